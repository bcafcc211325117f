"""The 256 x 256 copy that the coefficient network looks at, as an antialiased area shrink in float.

Each side on its own: where it shrinks, a new pixel is the mean of what it covers, fractions of pixels counted; where it
grows, bilinear with pixel centres at half-integers. So one photo at any size gives about one copy, on every machine and
every version of OpenCV. `shrink` here is the definition, two products with weight matrices, on any device and where a
graph is exported; `shrink_area` does the same with a photo of levels in one pass.

Departure from both systems: theirs are bilinear without antialiasing and nearest, see `make_lowres`.
"""

import functools

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from photos.levels import LOW_SIZE

try:
    from photos.convert import shrink_rows
    from system.jit import either, parallel_rows
except ImportError:  # no Numba
    shrink_rows = None


@functools.lru_cache(maxsize=64)
def shrink_taps(size):
    """Which of a line's `size` pixels each of 256 new ones is made of.

    Returns:
        first (256) int64: the first of them. weights (256, taps) float32: of that one and those after it; rows sum to
        1 and first + taps never passes the line's end.
    """
    line = np.arange(LOW_SIZE)
    if size >= LOW_SIZE:
        first = line * size // LOW_SIZE
        taps = int((-(-(line + 1) * size // LOW_SIZE) - first).max())
    else:
        first, taps = np.maximum((2 * line + 1) * size - LOW_SIZE, 0) // (2 * LOW_SIZE), min(size, 2)
    first = np.minimum(first, size - taps)
    pixels = torch.from_numpy(first[:, None] + np.arange(taps)).double()
    return first, shrink_weights(torch.tensor(size), pixels).float().numpy()


def shrink_matrix(size):
    """float32 tensor (256, size): new line = matrix @ line; where a graph is exported, size is known when that runs."""
    pixels = torch.arange(size, dtype=torch.float32)
    return shrink_weights(pixels[-1] + 1, pixels)


def shrink_weights(size, pixels):
    """Shares of pixels, (n) or (256, n) float, of a line of `size`, a tensor, in each of 256 new ones: (256, n)."""
    new = torch.arange(LOW_SIZE, dtype=pixels.dtype)[:, None]
    start, end = new * size / LOW_SIZE - pixels, (new + 1) * size / LOW_SIZE - pixels
    covered = (end.clamp(max=1) - start.clamp(min=0)).clamp(min=0)
    place = ((new + 0.5) * size / LOW_SIZE - 0.5).clamp(min=0).minimum(size - 1)
    weights = torch.where(size >= LOW_SIZE, covered, (1 - (place - pixels).abs()).clamp(min=0))
    return weights / weights.sum(dim=1, keepdim=True)


def shrink(images):
    """(..., H, W) float to (..., 256, 256) of the same range."""
    rows, columns = (shrink_matrix(size).to(images) for size in images.shape[-2:])
    return rows @ (images @ columns.T)


def shrink_area(image, scale=1.0):
    """shrink of levels (H, W, C) uint8 or uint16, in one pass where Numba is: (256, 256, C) float32, times scale."""
    height, width, channels = image.shape
    scale = np.float32(scale)
    if shrink_rows is None:
        return (shrink(torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)).permute(1, 2, 0) * scale).numpy()
    photo = either(np.ascontiguousarray(image).reshape(height, width * channels))
    lowres = np.empty((LOW_SIZE, LOW_SIZE, channels), np.float32)
    taps = (*shrink_taps(height), *shrink_taps(width))
    parallel_rows(LOW_SIZE, lambda *lines: shrink_rows(photo, lowres, lines, taps, scale))
    return lowres


def make_lowres(photo, mode):
    """The (256, 256, 3) copy of a photo (H, W, 3), uint8 or uint16, that the coefficient network looks at.

    Args:
        mode: see model.IlluminationNet. 'area' gives float32 levels of 255, 'bilinear' and 'nearest' the photo's dtype.
    """
    if mode == 'area':
        return shrink_area(photo, 1 if photo.dtype == np.uint8 else 1 / 257)
    interpolation = {'bilinear': cv2.INTER_LINEAR, 'nearest': cv2.INTER_NEAREST}[mode]
    return cv2.resize(photo, (LOW_SIZE, LOW_SIZE), interpolation=interpolation)


def make_lowres_batch(fullres, mode):
    """The copies of photos (N, 3, H, W) in [0, 1] on any device: (N, 3, 256, 256), differentiable, not rounded.

    Args:
        mode: 'area', 'bilinear' or 'nearest', see make_lowres.
    """
    if mode == 'area':
        return shrink(fullres)
    return F.interpolate(fullres, (LOW_SIZE, LOW_SIZE), mode=mode, align_corners=False if mode == 'bilinear' else None)
