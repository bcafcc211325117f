"""A video file for reading: the stream that is enhanced, those that are copied, its frames in order and in time."""

import queue
import struct
from collections import deque
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np
from av.codec.codec import find_best_pix_fmt_of_list
from av.stream import Disposition

from video.colors import UNSPECIFIED, find_layout, known_matrix, parse_format

HDR = {16: 'PQ (SMPTE ST 2084)', 18: 'HLG (ARIB STD-B67)'}  # transfer characteristics in H.273
UNKNOWN = {'color_range': 0, 'color_primaries': UNSPECIFIED, 'color_trc': UNSPECIFIED, 'colorspace': UNSPECIFIED}
DYNAMIC = ('DOVI_METADATA', 'DOVI_RPU_BUFFER', 'DYNAMIC_HDR_PLUS', 'DYNAMIC_HDR_VIVID')


@dataclass
class Source:
    """An open video file."""

    path: str
    container: object  # av.container.InputContainer
    stream: object  # the video stream that is enhanced
    copied: list = field(default_factory=list)  # the other streams, unless they are named in notes
    packets: queue.SimpleQueue = field(default_factory=queue.SimpleQueue)  # of these, read but not yet written
    notes: list = field(default_factory=list)  # what could not be kept

    @property
    def rate(self):
        """Frames per second, a Fraction; 25 where the file does not say."""
        return self.stream.average_rate or self.stream.guessed_rate or Fraction(25)

    @property
    def frames(self):
        """How many frames the file says it has, or about how many by its duration; 0 if it says neither."""
        if self.stream.frames:
            return self.stream.frames
        seconds = self.container.duration / av.time_base if self.container.duration else 0
        return round(seconds * self.rate)

    @property
    def bit_rate(self):
        """Of the video stream in bits per second, or the most that it can be; 0 where the file does not say."""
        if self.stream.codec_context.bit_rate:
            return self.stream.codec_context.bit_rate
        others = sum(stream.codec_context.bit_rate or 0 for stream in self.copied if stream.type == 'audio')
        return max((self.container.bit_rate or 0) - others, 0)


def open_source(path):
    """Open a video file and choose its main video stream; the caller closes its container.

    Raises:
        ValueError: no video stream, HDR, or not to be decoded. OSError.
    """
    container = av.open(path)
    try:
        moving = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not moving:
            raise ValueError('expected a video stream, found none')
        chosen = [s for s in moving if s.disposition & Disposition.default] or moving
        stream = chosen[0]
        if stream.codec_context is None:
            raise ValueError('its video has a codec that is not decoded here')
        refuse_hdr(stream.codec_context.color_trc)
        source = Source(path, container, stream, [s for s in container.streams if s is not stream])
        if len(moving) > 1:
            source.notes.append('only the main video stream of a file is enhanced, the others are copied')
        stream.thread_type = 'AUTO'
        return source
    except BaseException:
        container.close()
        raise


def refuse_hdr(transfer, side_data=()):
    """Raises: ValueError: the transfer characteristics or side data of a frame are those of HDR."""
    name = HDR.get(int(transfer)) or next((name for name in DYNAMIC if name in side_data), '')
    if name:
        raise ValueError(f'expected a video of standard dynamic range, got HDR: {name}')


def read_frames(source):
    """Yield the frames of the main stream in order, each with pts, time_base and duration set and pts increasing.

    Packets of the other streams go into source.packets as they come.

    Raises:
        ValueError: a frame cannot be decoded, or the picture's size or format changes.
    """
    stream, first, last = source.stream, None, None
    times = deque() if source.container.format.name == 'avi' else None  # AVI has decoding times only, in order
    usual = max(round(1 / source.rate / stream.time_base), 1)
    for packet in source.container.demux():
        if packet.stream.index != stream.index:
            if packet.size or packet.pts is not None:  # else the end of its stream
                source.packets.put(packet)
            continue
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            at = f'at {float(packet.pts * packet.time_base):.2f} s' if packet.pts is not None else 'at its end'
            raise ValueError(f'cannot be decoded {at}: {error.strerror}') from error
        if times is not None and packet.size:
            times.append(packet.dts)
        for frame in frames:
            first = first or frame
            if (frame.width, frame.height, frame.format.name) != (first.width, first.height, first.format.name):
                raise ValueError(
                    f'its picture changes from {first.width} x {first.height} {first.format.name} to '
                    f'{frame.width} x {frame.height} {frame.format.name}'
                )
            if times:
                frame.pts = times.popleft()  # the n-th frame shown has the n-th of them
            if frame.pts is None:
                frame.pts, frame.time_base = (0 if last is None else last + usual), stream.time_base
            if last is not None and frame.pts <= last:  # no encoder takes it
                frame.pts = last + 1
            frame.duration = frame.duration or usual
            last = frame.pts
            yield frame


def read_cover(path, index):
    """Bytes of the cover picture that is stream `index` of a file."""
    with av.open(path) as container:
        return next((bytes(packet) for packet in container.demux(container.streams[index]) if packet.size), b'')


def frame_layout(frame):
    """(planar pixel format that loses nothing, `colors.Layout`) of a frame by its own tags.

    Raises:
        ValueError: see colors.find_layout.
    """
    name = frame.format.name
    if not parse_format(name):
        planar = [other for other in av.video.format.names if parse_format(other) and 'j' not in other]
        name = find_best_pix_fmt_of_list(planar, name, has_alpha=True)[0].name
    return name, find_layout(name, frame.colorspace, frame.color_range, frame.width, frame.height)


def frame_planes(frame, layout):
    """The planes that hold a frame's colours, as arrays (H, W) that share its memory; not its alpha."""
    planes = []
    for plane in frame.planes[: layout.planes]:
        lines = np.frombuffer(plane, layout.dtype).reshape(plane.height, -1)
        planes.append(lines[:, : plane.width] if plane.line_size > 0 else lines[::-1, : plane.width])
    return planes


def reformat(frame, name, matrix, color_range):
    """A frame in another pixel format, its time kept.

    Args:
        matrix, color_range: H.273's codes, of the YUV that is written or, where RGB is, that is read.
    """
    matrix = known_matrix(matrix, frame.width, frame.height)
    matrix = 5 if matrix == 6 else matrix  # equal, but FFmpeg's scaler knows one of them only
    converted = frame.reformat(
        format=name, src_colorspace=matrix, dst_colorspace=matrix, dst_color_range=color_range or None
    )
    converted.pts, converted.time_base, converted.duration = frame.pts, frame.time_base, frame.duration
    return converted


def display_matrix(frame):
    """The nine integers that turn or mirror a frame for display, or None."""
    data = frame.side_data.get('DISPLAYMATRIX')
    return struct.unpack('=9i', bytes(data)) if data else None


def quarter_turns(frame):
    """How many quarter turns counter-clockwise put a frame upright, as far as quarter turns can."""
    return round(frame.rotation / 90) % 4


def colour_tags(frame, context):
    """H.273's codes (range, primaries, transfer, matrix) of a frame, or else of its stream's context."""
    tags = {}
    for name, unknown in UNKNOWN.items():
        value = int(getattr(frame, name))
        tags[name] = value if value != unknown else int(getattr(context, name))
    return tags
