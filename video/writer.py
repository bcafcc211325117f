"""The enhanced video file: its encoder, and beside it everything of the source that is copied as it is."""

import io
import os
import struct
from fractions import Fraction

import av
from av.codec.codec import PixFmtLoss, codecs_available, find_best_pix_fmt_of_list
from av.stream import Disposition

from video.boxes import copy_boxes, read_chunks, write_chunks
from video.colors import FULL, GBR, LIMITED, known_matrix
from video.reader import reformat

CONTAINERS = {'.mp4': 'mp4', '.m4v': 'mp4', '.mov': 'mov', '.mkv': 'matroska', '.webm': 'webm', '.avi': 'avi'}

LOSSLESS = ('huffyuv', 'ffvhuff', 'utvideo', 'rawvideo', 'png', 'qtrle')  # are written as FFV1 where that is usual
# codec of a file: encoder and its settings. A crf is a constant quality, about as good as what cameras write.
ENCODERS = {
    'h264': ('libx264', {'preset': 'medium', 'crf': '20'}),
    'hevc': ('libx265', {'preset': 'medium', 'crf': '22', 'x265-params': 'log-level=error'}),
    'vp8': ('libvpx', {'deadline': 'good', 'cpu-used': '4', 'crf': '10'}),
    'vp9': ('libvpx-vp9', {'deadline': 'good', 'cpu-used': '4', 'row-mt': '1', 'crf': '28'}),
    'av1': ('libsvtav1', {'preset': '8', 'crf': '28'}),
    'mpeg4': ('mpeg4', {'flags': '+qscale', 'global_quality': '2'}),
    'mjpeg': ('mjpeg', {'flags': '+qscale', 'global_quality': '2', 'strict': 'unofficial'}),  # of limited range too
    'prores': ('prores_ks', {}),
    'ffv1': ('ffv1', {'level': '3', 'slicecrc': '1'}),
} | {name: (name, {}) for name in LOSSLESS}
INSTEAD = {'webm': 'vp9', 'avi': 'mpeg4'}  # what a container gets of a codec that it or we cannot write; else h264
UNWRITTEN = ('pal8', 'monob', 'monow')  # pixel formats that FFmpeg's scaler does not make
SOUND = {'webm': ('libopus', 48_000)}  # encoder and rate for what cannot be copied; else AAC at its own rate
LOOKAHEAD = {'libx264': 40, 'libx265': 20}  # frames that an encoder's preset looks ahead
LOOKAHEAD_BYTES = 128 << 20  # ... in frames' bytes, of which it takes twice as many: less far from 1440p on
RATE_LIMIT = 2.0  # times the source's bit rate that constant quality may take: brightening brings noise up
MPEG4_TICKS = 60_000  # per second: MPEG-4's clock has 16 bits
TAGS = ('color_range', 'color_primaries', 'color_trc', 'colorspace')  # codes of H.273


class Result:
    """An open video file that frames are written to, and copied packets, in any order among the streams.

    Args:
        path: written to. name: of the result, whose extension says the container.
        source: `reader.Source`. frame: its first frame, by which the encoder is set.
    """

    def __init__(self, path, name, source, frame):
        self.container_format = CONTAINERS[os.path.splitext(name)[1].lower()]
        self.path, self.source, self.durations, self.sounds = path, source, {}, set()
        self.is_mov = self.container_format in ('mp4', 'mov')
        is_avi = self.container_format == source.container.format.name == 'avi'
        self.chunks = read_chunks(source.path) if is_avi else b''
        options = {'strict': 'unofficial'} if self.container_format == 'mov' else {}  # keeps the tag of raw frames
        if self.chunks:
            options['metadata_header_padding'] = str(len(self.chunks) + 8)
        self.container = av.open(path, 'w', format=self.container_format, container_options=options)
        try:
            self.container.metadata.update(source.container.metadata)
            self.stream = self.add_video(frame)
            self.copies = {stream: copy for stream in source.copied if (copy := self.add_copy(stream))}
            self.container.set_chapters(source.container.chapters())
        except BaseException:
            self.container.close()
            raise

    def add_video(self, frame):
        """The stream of enhanced frames, with its encoder."""
        source, original = self.source, self.source.stream.codec_context
        kept = original.codec.canonical_name
        codec, encoder, settings = choose_encoder(kept, self.container, frame.format.is_rgb)
        if codec != kept:
            source.notes.append(f'video in {kept} is written as {codec}')
        self.pixels, loss = choose_pixels(encoder, frame.format.name)
        if loss & ~PixFmtLoss.COLORSPACE:
            without = ', without their transparency' if loss & PixFmtLoss.ALPHA else ''
            source.notes.append(f'frames in {frame.format.name} are written in {codec} as {self.pixels}{without}')
        if frame.interlaced_frame:
            source.notes.append('interlaced video is written as progressive frames')
        if source.stream.metadata.get('alpha_mode') == '1':
            source.notes.append(f'the transparency of its {kept} video is lost')
        if not self.is_mov and 'SPHERICAL' in {data.type.name for data in frame.side_data}:
            source.notes.append('what makes it a 360-degree video cannot be kept')
        self.tags = result_tags(frame, self.pixels, codec)
        os.environ.setdefault('SVT_LOG', '1')  # libsvtav1 prints its settings unless told to say errors only
        time_base = Fraction(1, MPEG4_TICKS) if codec == 'mpeg4' and self.container_format != 'avi' else frame.time_base
        stream = self.container.add_stream(
            encoder, source.rate, settings, width=frame.width, height=frame.height, pix_fmt=self.pixels,
            sample_aspect_ratio=original.sample_aspect_ratio or 0, time_base=time_base, **self.tags,
        )  # fmt: skip
        context = stream.codec_context
        context.time_base = time_base
        if self.container_format == 'avi':
            context.max_b_frames = 0  # AVI has no presentation times
        if 'crf' in settings:
            limit_encoder(context, encoder, frame, source)
        if codec == kept and self.is_mov and codec in ('hevc', 'rawvideo') and self.pixels == frame.format.name:
            context.codec_tag = original.codec_tag  # Apple's players take hvc1 only; of raw frames it says the format
        if matrix := frame.side_data.get('DISPLAYMATRIX'):
            stream.set_display_matrix(struct.unpack('=9i', bytes(matrix)))
        stream.metadata.update({name: text for name, text in source.stream.metadata.items() if name != 'alpha_mode'})
        stream.disposition = source.stream.disposition
        return stream

    def add_copy(self, original):
        """A stream that takes the packets of another as they are; None where there is none, which is noted."""
        if original.disposition & Disposition.attached_pic and self.container_format == 'matroska':  # as attachments
            names = {'filename': 'cover.jpg', 'mimetype': 'image/jpeg'} | original.metadata
            with av.open(self.source.path) as again:
                cover = b''.join(map(bytes, again.demux(again.streams[original.index])))
            self.container.add_attachment(names['filename'], names['mimetype'], cover)
            return None
        if original.type == 'data' and self.is_mov:  # time code and titles of chapters it writes anew, others badly
            if 'timecode' not in original.metadata and not self.source.container.chapters():
                self.note_lost(original)
            return None
        try:
            with av.open(io.BytesIO(), 'w', format=self.container_format) as trial:
                trial.add_stream_from_template(original, opaque=True)
                trial.start_encoding()  # the header may fail
            copy = self.container.add_stream_from_template(original, opaque=True)
        except (ValueError, av.FFmpegError):
            if original.type != 'audio' or original.codec_context is None:
                self.note_lost(original)
                return None
            encoder, rate = SOUND.get(self.container_format, ('aac', original.codec_context.sample_rate))
            copy = self.container.add_stream(encoder, rate, layout=original.codec_context.layout)
            self.source.notes.append(f'sound in {original.name} is encoded anew as {copy.codec.canonical_name}')
            self.sounds.add(original)
        copy.metadata.update(original.metadata)
        copy.disposition = original.disposition
        return copy

    def note_lost(self, original):
        name = getattr(original, 'name', None) or 'unknown'
        self.source.notes.append(f'the {original.type} stream ({name}) cannot be kept')

    def copy(self, packet):
        """Write a packet of another stream; those of streams that cannot be kept are dropped."""
        original = packet.stream
        if original in self.sounds:
            self.encode_sound(original, packet)
        elif copy := self.copies.get(original):
            if packet.pts is None and copy.disposition & Disposition.attached_pic:
                packet.pts = packet.dts = 0
            packet.stream = copy
            try:
                self.container.mux(packet)
            except (av.ArgumentError, av.InvalidDataError):  # the container does not take it
                del self.copies[original]
                self.note_lost(original)

    def encode_sound(self, original, packet):
        """Encode what a packet of a sound holds, None at its end; packets that are damaged are left out."""
        try:
            frames = original.decode(packet)
        except av.InvalidDataError:
            return
        for frame in [*frames, None] if packet is None else frames:
            for encoded in self.copies[original].encode(frame):
                if encoded.pts >= 0 or self.container_format != 'avi':  # AVI would delay the video instead
                    self.container.mux(encoded)

    def write(self, frame):
        """Encode the next frame, which keeps its time and duration; None after the last. Copy what was read so far."""
        while not self.source.packets.empty():
            self.copy(self.source.packets.get())
        if frame is not None:
            frame.pict_type = 0  # the encoder's choice, not the source's
            full = self.tags['color_range'] == FULL
            if frame.format.name != self.pixels or full != (frame.color_range == FULL):
                frame = reformat(frame, self.pixels, self.tags['colorspace'], self.tags['color_range'])
            time = frame.pts * frame.time_base
            self.durations[round(time / self.stream.codec_context.time_base)] = frame.duration * frame.time_base
        for packet in self.stream.encode(frame):
            packet.duration = round(self.durations.pop(packet.pts, 0) / packet.time_base)
            self.container.mux(packet)

    def finish(self):
        """End the file, once all is read, and give it what FFmpeg does not carry over, see boxes."""
        self.write(None)
        for original in self.sounds:
            self.encode_sound(original, None)
        self.container.close()
        if self.chunks:
            write_chunks(self.path, self.chunks)
        if self.is_mov and 'mov' in self.source.container.format.name.split(','):
            streams = self.copies | {self.source.stream: self.stream}
            copy_boxes(self.source.path, self.path, {new.index + 1: old.id for old, new in streams.items()})


def choose_encoder(kept, container, rgb):
    """(codec, encoder, settings) that a codec is written with, or another where it has no encoder or no place here."""
    form = container.format.name
    instead = 'ffv1' if kept in LOSSLESS and form in ('matroska', 'avi') else INSTEAD.get(form, 'h264')
    for codec in (kept, instead):
        encoder, settings = ENCODERS.get(codec, ('', {}))
        if rgb and codec == kept == 'h264':
            encoder = 'libx264rgb'
        if encoder in codecs_available and codec in container.supported_codecs:
            return codec, encoder, dict(settings)
    raise ValueError(f'{kept}: expected a codec with an encoder in this FFmpeg, got none for {form}')


def choose_pixels(encoder, name):
    """(pixel format in which an encoder takes frames of another, PixFmtLoss of what they lose by it)."""
    formats = [form.name for form in av.Codec(encoder, 'w').video_formats or [] if form.name not in UNWRITTEN]
    formats = formats or ['bgr24' if name in UNWRITTEN else name]
    best, loss = find_best_pix_fmt_of_list(formats, name, has_alpha=True)
    return best.name, loss


def result_tags(frame, pixels, codec):
    """H.273's codes of a frame once it is in the pixel format `pixels`."""
    tags, rgb = {name: int(getattr(frame, name)) for name in TAGS}, av.VideoFormat(pixels).is_rgb
    if rgb and not frame.format.is_rgb:
        tags |= {'colorspace': GBR, 'color_range': FULL}
    elif frame.format.is_rgb and not rgb:
        tags |= {'colorspace': known_matrix(GBR, frame.width, frame.height), 'color_range': LIMITED}
    elif codec == 'mpeg4' and tags['color_range'] == FULL:
        tags['color_range'] = LIMITED  # the only one that it can say
    return tags


def limit_encoder(context, encoder, frame, source):
    """Bound the bits per second that constant quality may take, and the memory of looking ahead."""
    most = round(RATE_LIMIT * source.bit_rate)
    if encoder.startswith('libvpx'):
        context.bit_rate = most
    elif most:
        context.options |= {'maxrate': str(most), 'bufsize': str(2 * most)}
    if usual := LOOKAHEAD.get(encoder[:7]):
        ahead = min(LOOKAHEAD_BYTES // sum(plane.buffer_size for plane in frame.planes), usual)
        name, few = f'{encoder[3:7]}-params', 0 < source.frames < 8  # x265's decoding times are undefined in so few
        words = [context.options.get(name, ''), f'rc-lookahead={max(ahead, 5)}', 'bframes=0' if few else '']
        context.options |= {name: ':'.join(filter(None, words))}
