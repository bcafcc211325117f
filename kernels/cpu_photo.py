"""A photo enhanced on the CPU in one pass, from 8 bit to 8 bit or 16 to 16, nothing full-size between."""

import numpy as np

from kernels.cpu_jit import kernel, parallel_rows
from kernels.cpu_math import exp2, log2
from kernels.cpu_slice import grid_array, guide_arrays, illumination_of_row, row_of_grid, runs_of_row
from model import TINY

BLOCK = 512  # pixels whose buffers stay in the first-level cache


@kernel
def enhance_rows(images, every, rows, grid, guide, runs, rule):
    """Rows rows[0] to rows[1] - 1 of a photo into another, and S of every so many of its rows and columns.

    images: photo (H, W, 3), uint8 or uint16, enhanced like it, illumination (ceil(H / every), ceil(W / every), 3)
    float32. every: a divisor of BLOCK, or 0, which leaves illumination alone. grid, guide, runs: as cpu_slice.py reads
    them. rule: common.Rule with the pedestal in the photo's own levels.
    """
    photo, enhanced, illumination = images
    height, width = photo.shape[0], photo.shape[1]
    f = np.float32
    zero, one, tiny = f(0), f(1), f(TINY)
    half = zero if rule.round_down else f(0.5)  # added before the fraction is cut off
    eps, strength, pedestal = f(rule.eps), f(rule.strength), f(rule.pedestal)
    top = f(255) if photo.itemsize == 1 else f(65535)
    scale, lift = top + f(2) * pedestal, half - pedestal
    unit = one / scale
    colors, lights = np.empty((3, BLOCK), f), np.empty((3, BLOCK), f)
    guides, depths = np.empty(BLOCK, f), np.empty(BLOCK, f)
    row = np.empty((grid.shape[1], grid.shape[2], 12), f)
    for y in range(rows[0], rows[1]):
        row_of_grid(grid, y, height, rule.align_corners, row)
        for start in range(0, width, BLOCK):
            size = min(BLOCK, width - start)
            # flat, so that LLVM sees the constant stride of 3
            source = photo[y, start : start + size].reshape(-1)
            result = enhanced[y, start : start + size].reshape(-1)
            red, green, blue = colors[0, :size], colors[1, :size], colors[2, :size]
            for x in range(size):
                red[x] = (f(source[3 * x]) + pedestal) * unit
                green[x] = (f(source[3 * x + 1]) + pedestal) * unit
                blue[x] = (f(source[3 * x + 2]) + pedestal) * unit
            buffers = guides[:size], depths[:size]
            illumination_of_row((red, green, blue), runs.spans[start // BLOCK], runs.part[start : start + size], row,
                                guide, rule.align_corners, buffers, lights[:, :size])  # fmt: skip
            for c in range(3):
                s, value = lights[c, :size], colors[c, :size]
                if rule.clip:
                    for x in range(size):
                        clipped = s[x] if s[x] < one else one
                        s[x] = clipped if clipped > value[x] else value[x]
                if every == 1:
                    illumination[y, start : start + size, c] = s
                elif every and y % every == 0:
                    for x in range(0, size, every):
                        illumination[y // every, (start + x) // every, c] = s[x]
                if strength == one:
                    for x in range(size):
                        divisor = s[x] + eps
                        divisor = tiny if abs(divisor) < tiny else divisor
                        value[x] /= divisor
                else:
                    for x in range(size):
                        divisor = s[x] + eps
                        divided = value[x] * exp2(-strength * log2(divisor if divisor > tiny else tiny))
                        value[x] = divided if divisor > -tiny else value[x] * (one - strength)
                for x in range(size):
                    v = value[x] * scale + lift
                    v = v if v > zero else zero  # also where it is not a number
                    value[x] = v if v < top + half else top + half
            for x in range(size):
                result[3 * x] = red[x]
                result[3 * x + 1] = green[x]
                result[3 * x + 2] = blue[x]


def enhance(photo, grid, guide, rule, *, every=0, in_place=False):
    """Enhance a photo in one pass.

    Args:
        photo: (H, W, 3) RGB uint8 or uint16.
        grid: (12, D, Gh, Gw) float32 tensor.
        guide: a `FoldedGuide`.
        rule: common.Rule.
        every: return the illumination of every so many rows and columns, 1, 2 or 4; 0 returns none.
        in_place: write the result over the photo; every row is read before it is written.
    Returns:
        enhanced like photo, and illumination (ceil(H / every), ceil(W / every), 3) float32 or None.
    """
    photo = np.ascontiguousarray(photo)
    enhanced = photo if in_place else np.empty_like(photo)
    height, width, _ = photo.shape
    illumination = np.empty((-(-height // every), -(-width // every), 3) if every else (0, 0, 3), np.float32)
    pedestal = rule.pedestal * np.iinfo(photo.dtype).max / 255
    # one type for each field, whatever it came as: Numba compiles anew for others
    rule = rule._replace(eps=float(rule.eps), pedestal=float(pedestal), strength=float(rule.strength))
    grid, guide = grid_array(grid[None])[0], guide_arrays(*guide)
    runs = runs_of_row(width, grid.shape[1], rule.align_corners, BLOCK, np.float32)
    images = photo, enhanced, illumination
    parallel_rows(height, lambda first, last: enhance_rows(images, every, (first, last), grid, guide, runs, rule))
    return enhanced, illumination if every else None
