"""A video file for reading: the stream that is enhanced, those that are copied, its frames in order and in time."""

import queue
from collections import deque
from fractions import Fraction

import av
from av.stream import Disposition

from video.colors import known_matrix

HDR = {16: 'PQ (SMPTE ST 2084)', 18: 'HLG (ARIB STD-B67)'}  # transfer characteristics in H.273
DYNAMIC = ('DOVI_METADATA', 'DOVI_RPU_BUFFER', 'DYNAMIC_HDR_PLUS', 'DYNAMIC_HDR_VIVID')  # side data of HDR


class Source:
    """An open video file; whoever opens it closes its container.

    Attributes:
        stream: its main video stream, which is enhanced. copied: the other streams.
        packets: of these, read but not yet written. notes: what could not be kept.
        rate: frames per second, a Fraction; 25 where the file does not say. frames: how many, or about; 0 likewise.
        bit_rate: of the main stream in bits per second, or the most that it can be; 0 likewise.
    Raises:
        ValueError: no video stream, or not to be decoded. OSError.
    """

    def __init__(self, path):
        self.path, self.packets, self.notes = path, queue.SimpleQueue(), []
        self.container = av.open(path)
        moving = [s for s in self.container.streams.video if not s.disposition & Disposition.attached_pic]
        if not moving:
            raise ValueError('expected a video stream, found none')
        if len(moving) > 1:
            self.notes.append('only the main video stream of a file is enhanced, the others are copied')
        self.stream = next((s for s in moving if s.disposition & Disposition.default), moving[0])
        if self.stream.codec_context is None:
            raise ValueError('its video has a codec that is not decoded here')
        self.stream.thread_type = 'AUTO'
        self.copied = [s for s in self.container.streams if s is not self.stream]
        self.rate = self.stream.average_rate or self.stream.guessed_rate or Fraction(25)
        self.frames = self.stream.frames or round((self.container.duration or 0) / av.time_base * self.rate)
        others = sum(s.codec_context.bit_rate or 0 for s in self.copied if s.type == 'audio')
        self.bit_rate = self.stream.codec_context.bit_rate or max((self.container.bit_rate or 0) - others, 0)


def read_frames(source, max_megapixels=300):
    """Yield the frames of the main stream in order, each with pts, time_base and duration set and pts increasing.

    Packets of the other streams go into source.packets as they come.

    Raises:
        ValueError: no frames, too large, HDR, one cannot be decoded, or the picture's size or format changes.
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
            first = first or check_first(frame, max_megapixels)
            before, now = (f'{f.width} x {f.height} {f.format.name}' for f in (first, frame))
            if now != before:
                raise ValueError(f'its picture changes from {before} to {now}')
            if times:
                frame.pts = times.popleft()  # the n-th frame shown has the n-th of them
            if frame.pts is None:
                frame.pts, frame.time_base = (0 if last is None else last + usual), stream.time_base
            if last is not None and frame.pts <= last:  # no encoder takes it
                frame.pts = last + 1
            frame.duration = frame.duration or usual
            last = frame.pts
            yield frame
    if first is None:
        raise ValueError('expected frames in its video, found none')


def check_first(frame, max_megapixels):
    """A video's first frame; ValueError where it is too large or HDR."""
    if frame.width * frame.height > max_megapixels * 1e6:
        raise ValueError(f'expected at most {max_megapixels:g} megapixels, got {frame.width} x {frame.height}')
    dynamic = [data.type.name for data in frame.side_data if data.type.name in DYNAMIC]
    if name := HDR.get(int(frame.color_trc)) or next(iter(dynamic), ''):
        raise ValueError(f'expected a video of standard dynamic range, got HDR: {name}')
    return frame


def reformat(frame, name, matrix, color_range):
    """A frame in another pixel format; codes of H.273 of the YUV that is written or, where RGB is, that is read."""
    matrix = known_matrix(matrix, frame.width, frame.height)
    matrix = 5 if matrix == 6 else matrix  # equal, but FFmpeg's scaler knows one of them only
    return frame.reformat(
        format=name, src_colorspace=matrix, dst_colorspace=matrix, dst_color_range=color_range or None
    )
