"""Enhance a video: decode, shrink, predict and smooth grids, apply them, encode, each on threads of its own.

Decoding runs ahead on FFmpeg's threads, one thread shrinks the frames and predicts grids, a pool applies them, and the
caller's thread encodes and writes. The network sees frames upright; they are stored as they were, with the tag that
turns them.
"""

import errno
import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import av
import numpy as np
import torch

from kernels import FULL, apply_grid
from photos.levels import to_tensor
from system.files import copy_status, save_whole
from system.process import cores, map_in_order
from video.colors import find_layout, frame_lowres, frame_planes, planes_to_rgb, rgb_to_planes
from video.reader import Source, read_frames, reformat
from video.smoothing import Look, smooth_grids
from video.writer import Result

DECODED = 4  # frames that decoding runs ahead
WAITING_BYTES = 256 << 20  # of frames that wait for the grids of later ones


def enhance_video(network, path, result, edit=FULL, smoothing=1.0, max_megapixels=300, keep_times=False, progress=None):
    """Enhance a video file into another, whole or not at all.

    Args:
        network: from `model.build_network` or `load_network`, in eval mode.
        path, result: files; their extensions choose the containers, see writer.CONTAINERS.
        edit: kernels.Edit of every frame.
        smoothing: seconds that a grid is averaged over to each side, see smoothing.smooth_grids; 0 is none.
        max_megapixels: larger frames are refused.
        keep_times: the result gets the file's time of modification; its permissions it gets always.
        progress: function of (iterable of frames, their number or 0) that gives the iterable back.
    Returns:
        what could not be kept, a list of texts.
    Raises:
        ValueError: no video, HDR, damaged, too large, no encoder. OSError: also a full disk.
    """
    status = os.stat(path)

    def save(file):
        with closing(prefetch(read_frames(source, max_megapixels), DECODED)) as frames:
            first = next(frames)
            output = Result(file.name, result, source, first)
            enhanced = enhance_frames(network, first, itertools.chain([first], frames), edit, smoothing)
            with closing(output.container), closing(enhanced):
                for frame in progress(enhanced, source.frames) if progress else enhanced:
                    output.write(frame)
                output.finish()
        copy_status(status, file.name, keep_times)

    try:
        source = Source(path)
        with source.container:
            save_whole(save, result)
        return source.notes
    except av.FFmpegError as error:
        if error.errno in errno.errorcode and error.errno != errno.EINVAL:  # the system's, not FFmpeg's
            raise OSError(error.errno, error.strerror, error.filename or result) from error
        reason = error.log[2].strip() if error.log else error.strerror or error
        raise ValueError(f'{path}: {reason}') from error
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error


def enhance_frames(network, first, frames, edit, smoothing):
    """Yield the frames of a video enhanced, in order; arguments as of enhance_video, `first` is the first frame."""
    layout = find_layout(first.format.name, first.colorspace, first.color_range, first.width, first.height)
    waiting = max(WAITING_BYTES // sum(plane.buffer_size for plane in first.planes), 8)
    turns = round(first.rotation / 90) % 4  # as far as quarter turns put it upright
    buffers = threading.local()  # a thread uses its RGB again for its next frame

    def looks():
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # for the small network two take longer, and spin while they wait
        try:
            for frame in frames:
                planar = reformat(frame, layout.name, frame.colorspace, frame.color_range)
                lowres = frame_lowres(frame_planes(planar, layout), layout, network.lowres_mode, turns)
                yield Look(planar, float(planar.pts * planar.time_base), lowres)
        finally:
            torch.set_num_threads(threads)

    @torch.inference_mode()
    def predict(lowres):
        grid = network.predict_grid(to_tensor(lowres, next(network.parameters()).device))
        return torch.rot90(grid, -turns, (3, 4))

    def enhance(graded):
        frame, grid = graded
        frame.make_writable()  # a copy, for decoders may still need their own
        planes = frame_planes(frame, layout)
        if not hasattr(buffers, 'rgb'):
            buffers.rgb = np.empty((*planes[0].shape, 3), np.uint16)
        planes_to_rgb(planes, layout, buffers.rgb)
        rgb, _ = apply_grid(network, buffers.rgb, grid, edit, in_place=True)
        rgb_to_planes(rgb, layout, planes)
        return frame

    graded = prefetch(smooth_grids(looks(), predict, smoothing, waiting), 1)
    pool = ThreadPoolExecutor(cores())
    with pool, closing(graded), closing(map_in_order(pool, enhance, graded, cores() + 1)) as enhanced:
        yield from enhanced


def prefetch(items, size):
    """Yield the items of a generator, which runs on a thread up to `size` items ahead.

    What it raises is raised here. Where the consumer stops, by closing this generator or by an exception, the generator
    is closed and its thread ends before `close` returns.
    """
    end = object()
    with ThreadPoolExecutor(1) as thread:
        ahead = map_in_order(thread, lambda _: next(items, end), itertools.repeat(None), size + 1)
        try:
            yield from itertools.takewhile(lambda item: item is not end, ahead)
        finally:
            ahead.close()
            thread.submit(items.close)
