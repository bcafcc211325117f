"""The enhanced video file: its encoder, and beside it everything of the source that is copied as it is."""

import os
from fractions import Fraction

import av
from av.codec.codec import PixFmtLoss, UnknownCodecError, find_best_pix_fmt_of_list
from av.codec.context import Flags
from av.stream import Disposition

from video.reader import colour_tags, display_matrix, read_cover

CONTAINERS = {'.mp4': 'mp4', '.m4v': 'mp4', '.mov': 'mov', '.mkv': 'matroska', '.webm': 'webm', '.avi': 'avi'}

# codec of a file: encoder and its settings. A crf is a constant quality, about as good as what cameras write.
ENCODERS = {
    'h264': ('libx264', {'preset': 'medium', 'crf': '20'}),
    'hevc': ('libx265', {'preset': 'medium', 'crf': '22', 'x265-params': 'log-level=error'}),
    'vp8': ('libvpx', {'deadline': 'good', 'cpu-used': '4', 'crf': '10'}),
    'vp9': ('libvpx-vp9', {'deadline': 'good', 'cpu-used': '4', 'row-mt': '1', 'crf': '28'}),
    'av1': ('libsvtav1', {'preset': '8', 'crf': '28'}),
    'mpeg4': ('mpeg4', {}),
    'mjpeg': ('mjpeg', {}),
    'prores': ('prores_ks', {}),
    'ffv1': ('ffv1', {'level': '3', 'slicecrc': '1'}),
    'huffyuv': ('huffyuv', {}),
    'ffvhuff': ('ffvhuff', {}),
    'utvideo': ('utvideo', {}),
    'rawvideo': ('rawvideo', {}),
}
INSTEAD = {'webm': 'vp9', 'avi': 'mpeg4'}  # what a container gets whose codec has no encoder here; else h264
QUANTISER = {'mpeg4': 2, 'mjpeg': 2}  # constant quality of encoders that have no crf
RATE_LIMIT = 2.0  # times the source's bit rate that constant quality may take: brightening brings noise up
MPEG4_TICKS = 60_000  # per second: MPEG-4's clock has 16 bits


class Result:
    """An open video file that frames are written to, and copied packets, in any order among the streams.

    Args:
        path: written to; the container follows from the extension of `name`.
        name: file name of the result.
        source: `reader.Source`.
        frame: the first frame of the source, which the encoder is set by.
    """

    def __init__(self, path, name, source, frame):
        self.container_format = CONTAINERS[os.path.splitext(name)[1].lower()]
        options = {'movflags': 'use_metadata_tags'} if self.container_format == 'mov' else {}
        self.source, self.durations = source, {}
        self.container = av.open(path, 'w', format=self.container_format, container_options=options)
        try:
            self.container.metadata.update(source.container.metadata)
            self.stream = self.add_video(frame)
            self.copies = {stream.index: copy for stream in source.copied if (copy := self.add_copy(stream))}
            self.container.set_chapters(source.container.chapters())
        except BaseException:
            self.container.close()
            raise

    def add_video(self, frame):
        """The stream of enhanced frames, with its encoder."""
        source, original = self.source, self.source.stream.codec_context
        codec, encoder, settings = choose_encoder(original.name, self.container_format)
        if codec != original.codec.canonical_name:
            source.notes.append(f'video in {original.codec.canonical_name} is written as {codec}')
        formats = [form.name for form in av.Codec(encoder, 'w').video_formats or []]
        pixels, loss = frame.format.name, PixFmtLoss.NONE
        if formats and pixels not in formats:
            best, loss = find_best_pix_fmt_of_list(formats, pixels)
            pixels = best.name
        if loss & ~PixFmtLoss.COLORSPACE:
            source.notes.append(f'frames in {frame.format.name} are written in {codec} as {pixels}')
        if frame.interlaced_frame:
            source.notes.append('interlaced video is written as progressive frames')
        os.environ.setdefault('SVT_LOG', '1')  # libsvtav1 prints its settings unless told to say errors only
        stream = self.container.add_stream(encoder, source.rate, options=settings)
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, pixels
        time_base = Fraction(1, MPEG4_TICKS) if codec == 'mpeg4' and self.container_format != 'avi' else frame.time_base
        context = stream.codec_context
        context.time_base, stream.time_base = time_base, time_base
        if original.sample_aspect_ratio:
            context.sample_aspect_ratio = original.sample_aspect_ratio
        for name, value in colour_tags(frame, original).items():
            setattr(context, name, value)
        if self.container_format == 'avi':
            context.max_b_frames = 0  # AVI has no presentation times
        if codec in QUANTISER:
            context.flags |= Flags.qscale
            context.global_quality = QUANTISER[codec]
        elif 'crf' in settings and source.bit_rate:
            limit_rate(context, encoder, round(RATE_LIMIT * source.bit_rate))
        if codec == original.codec.canonical_name and self.container_format in ('mp4', 'mov') and codec == 'hevc':
            context.codec_tag = original.codec_tag  # Apple's players take hvc1 only
        if matrix := display_matrix(frame):
            stream.set_display_matrix(matrix)
        stream.metadata.update(source.stream.metadata)
        stream.disposition = source.stream.disposition
        return stream

    def add_copy(self, original):
        """A stream that takes the packets of another as they are; None where there is none, which is noted."""
        is_cover = bool(original.disposition & Disposition.attached_pic)
        if is_cover and self.container_format == 'matroska':  # it holds covers as attachments
            names = {'filename': 'cover.jpg', 'mimetype': 'image/jpeg'} | original.metadata
            cover = read_cover(self.source.path, original.index)
            self.container.add_attachment(names['filename'], names['mimetype'], cover)
            return None
        if original.type == 'data' and self.container_format in ('mp4', 'mov'):
            # what their muxers write anew: the track of chapters' titles, and time code; the others they do not take
            if 'timecode' not in original.metadata and not self.source.container.chapters():
                self.source.notes.append(f'the data stream ({original.name or "unknown"}) cannot be kept')
            return None
        try:
            copy = self.container.add_stream_from_template(original, opaque=True)
        except (ValueError, av.FFmpegError):
            kind, name = original.type, getattr(original, 'name', None) or 'unknown'
            self.source.notes.append(f'the {kind} stream ({name}) cannot be kept')
            return None
        copy.metadata.update(original.metadata)
        copy.disposition = original.disposition
        return copy

    def copy(self, packet):
        """Write a packet of a copied stream; those of streams that cannot be kept are dropped."""
        if copy := self.copies.get(packet.stream.index):
            if packet.pts is None and copy.disposition & Disposition.attached_pic:
                packet.pts = packet.dts = 0
            packet.stream = copy
            self.container.mux(packet)

    def write(self, frame):
        """Encode the next frame, which keeps its time and duration; None after the last."""
        if frame is not None:
            frame.pict_type = 0  # the encoder's choice, not the source's
            time = frame.pts * frame.time_base
            self.durations[round(time / self.stream.codec_context.time_base)] = frame.duration * frame.time_base
        for packet in self.stream.encode(frame):
            duration = self.durations.pop(packet.pts, None)
            if duration is not None:
                packet.duration = round(duration / packet.time_base)
            self.container.mux(packet)

    def close(self):
        self.container.close()


def choose_encoder(decoder, container):
    """(codec, encoder, settings) that a codec is written with, or another where it has no encoder here.

    Raises:
        ValueError: there is no encoder for the container.
    """
    canonical = av.Codec(decoder, 'r').canonical_name
    for codec in (canonical, INSTEAD.get(container, 'h264')):
        if codec not in ENCODERS:
            continue
        encoder, settings = ENCODERS[codec]
        try:
            av.Codec(encoder, 'w')
        except UnknownCodecError:
            continue
        return codec, encoder, dict(settings)
    raise ValueError(f'{canonical}: expected a codec with an encoder in this FFmpeg, got none for {container}')


def limit_rate(context, encoder, most):
    """Have constant quality take at most so many bits per second."""
    if encoder in ('libvpx', 'libvpx-vp9'):
        context.bit_rate = most
    else:
        context.options |= {'maxrate': str(most), 'bufsize': str(2 * most)}
