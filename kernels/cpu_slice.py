"""Guide, slice and affine of a row of pixels, the parts that the CPU kernels for photos and for training share.

They serve both architectures, because both guides are one hidden layer of ReLUs of a pixel's RGB (model.FoldedGuide),
and both slicing conventions.

How it is fast: the grid is interpolated along y once per row; along x the coefficients are linear within a grid cell;
along the luma axis a pixel's coefficients are a sum over bins weighted by max(0, 1 - |z - bin|). So the inner loops
have no gather and vectorise over pixels. A short run of pixels touches few bins; the others are left out.
"""

import itertools
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from kernels.common import grid_intervals
from kernels.cpu_jit import inlined
from kernels.cpu_math import exp2, ordered, unordered
from model import FoldedGuide

RUN = 256  # pixels that share a range of luma bins
LANES = 16  # of the widest vectors; runs are made up to whole ones where a row goes on


class Runs(NamedTuple):
    """A row's pixels in runs, each between the centres of two grid cells."""

    spans: np.ndarray  # (blocks, most runs of a block, 3): first pixel, last + 1, cell; see runs_of_row
    part: np.ndarray  # (width,), weight of cell + 1 at each pixel


@lru_cache(maxsize=64)
def runs_of_row(width, gw, align_corners, block, dtype):
    """Runs of at most RUN pixels, each between the centres of two cells and in one `block` of a row of pixels.

    Args:
        width: pixels of the row. gw: cells of the grid along x. dtype: of the weights.
    Returns:
        Runs. Pixels are counted from the start of their block and lie between the centres of cell and cell + 1; a block
        that has fewer runs than another ends with empty ones.
    """
    edges, scale, offset = grid_intervals(width, gw, align_corners)
    blocks, part = [], np.empty(width, dtype)
    for start in range(0, width, block):
        stop, spans = min(start + block, width), []
        for cell, (first, last) in enumerate(itertools.pairwise(np.clip(edges, start, stop))):
            spans += [(at - start, min(at + RUN, last) - start, cell) for at in range(first, last, RUN)]
            part[first:last] = np.clip(np.arange(first, last) * scale + offset - cell, 0, 1)
        blocks.append(spans)
    most = max(map(len, blocks))
    return Runs(np.array([spans + [(0, 0, 0)] * (most - len(spans)) for spans in blocks]), part)


def grid_array(grid):
    """Grid (N, 12, D, Gh, Gw) as the kernels read it: an array (N, Gh, Gw, D, 3, 4), contiguous."""
    n, _, d, gh, gw = grid.shape
    return grid.detach().permute(0, 3, 4, 2, 1).reshape(n, gh, gw, d, 3, 4).contiguous().numpy()


def guide_arrays(weights, bias, mix, mix_bias, tanh):
    """A FoldedGuide of arrays from the tensors of one."""
    arrays = [value.detach().numpy() for value in (weights, bias, mix)]
    return FoldedGuide(*arrays, arrays[0].dtype.type(mix_bias.item()), bool(tanh))


@inlined
def row_of_grid(grid, y, height, align_corners, row):
    """Interpolate grid (Gh, Gw, D, 3, 4) along y into row (Gw, D, 12); returns (cell above, weight of the next)."""
    gh = grid.shape[0]
    if align_corners:
        position = y * (gh - 1) / max(height - 1, 1)
    else:
        position = min(max((y + 0.5) * gh / height - 0.5, 0.0), gh - 1.0)
    above = min(int(position), max(gh - 2, 0))
    below = min(above + 1, gh - 1)
    part = row.dtype.type(position - above)
    upper, lower, flat = grid[above].reshape(-1), grid[below].reshape(-1), row.reshape(-1)
    for i in range(flat.size):
        flat[i] = upper[i] + part * (lower[i] - upper[i])
    return above, part


@inlined
def guide_of_row(pixels, guide, out):
    """Guide in [0, 1] of a row of pixels: mix . relu(weights . rgb + bias) + mix_bias, then tanh mapped up, or clip.

    pixels: red, green and blue, each (n,). guide: FoldedGuide of arrays. out: (n,).
    """
    zero, one = out.dtype.type(0), out.dtype.type(1)
    red, green, blue = pixels
    weights, bias, mix = guide.weights, guide.bias, guide.mix
    out[:] = guide.mix_bias
    for j in range(0, mix.size, 4):  # four units at a time; FoldedGuide has 16 or 48
        a0, a1, a2, a3, m0 = weights[j, 0], weights[j, 1], weights[j, 2], bias[j], mix[j]
        b0, b1, b2, b3, m1 = weights[j + 1, 0], weights[j + 1, 1], weights[j + 1, 2], bias[j + 1], mix[j + 1]
        c0, c1, c2, c3, m2 = weights[j + 2, 0], weights[j + 2, 1], weights[j + 2, 2], bias[j + 2], mix[j + 2]
        d0, d1, d2, d3, m3 = weights[j + 3, 0], weights[j + 3, 1], weights[j + 3, 2], bias[j + 3], mix[j + 3]
        for x in range(out.size):
            r, g, b = red[x], green[x], blue[x]
            p0 = a0 * r + a1 * g + a2 * b + a3
            p1 = b0 * r + b1 * g + b2 * b + b3
            p2 = c0 * r + c1 * g + c2 * b + c3
            p3 = d0 * r + d1 * g + d2 * b + d3
            p0 = p0 if p0 > zero else zero
            p1 = p1 if p1 > zero else zero
            p2 = p2 if p2 > zero else zero
            p3 = p3 if p3 > zero else zero
            out[x] += m0 * p0 + m1 * p1 + m2 * p2 + m3 * p3
    if guide.tanh:
        steep = out.dtype.type(-2 * 1.4426950408889634)  # (tanh(x) + 1) / 2 = 1 / (1 + e^-2x)
        for x in range(out.size):
            out[x] = one / (one + exp2(steep * out[x]))
    else:
        for x in range(out.size):
            value = out[x]
            value = value if value > zero else zero
            out[x] = value if value < one else one


@inlined
def depth_of_row(guide, bins, align_corners, depth):
    """Position along the luma axis, in bins, clamped to [0, bins - 1], of guide (n,) into depth (n,)."""
    dtype = depth.dtype.type
    zero, last, half = dtype(0), dtype(bins - 1), dtype(0.5)
    for x in range(depth.size):
        position = guide[x] * last if align_corners else guide[x] * (last + dtype(1)) - half
        position = position if position > zero else zero
        depth[x] = position if position < last else last


@inlined
def bins_of_run(depth, bins):
    """First luma bin that a run of pixels touches and the one after its last; within the grid whatever depth holds."""
    low, high = ordered(depth[0]), ordered(depth[0])
    for x in range(depth.size):
        low, high = min(low, ordered(depth[x])), max(high, ordered(depth[x]))
    return max(int(unordered(low)), 0), min(int(unordered(high)) + 2, bins)


@inlined
def slice_run(row, cell, bins, pixels, depth, part, out):
    """Slice the grid's row at a run of pixels and apply the affine to them.

    row: (Gw, D, 12). cell: the cell on the left. bins: first luma bin and last + 1. pixels: red, green and blue, and
    out: the illumination of each, depth and part: positions along the luma axis and along x, all (n,). Views of a run,
    so that indices start at 0.
    """
    red, green, blue = pixels
    out_r, out_g, out_b = out
    dtype = out_r.dtype.type
    zero, one = dtype(0), dtype(1)
    right = min(cell + 1, row.shape[0] - 1)
    out_r[:] = zero
    out_g[:] = zero
    out_b[:] = zero
    for z in range(bins[0], bins[1]):
        bin_, a, e = dtype(z), row[cell, z], row[right, z]
        a0, a1, a2, a3, b0, b1, b2, b3 = a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]
        c0, c1, c2, c3 = a[8], a[9], a[10], a[11]
        d0, d1, d2, d3 = e[0] - a0, e[1] - a1, e[2] - a2, e[3] - a3
        e0, e1, e2, e3 = e[4] - b0, e[5] - b1, e[6] - b2, e[7] - b3
        f0, f1, f2, f3 = e[8] - c0, e[9] - c1, e[10] - c2, e[11] - c3
        for x in range(out_r.size):
            t, r, g, b = part[x], red[x], green[x], blue[x]
            w = one - abs(depth[x] - bin_)
            w = w if w > zero else zero
            out_r[x] += w * ((a0 + d0 * t) * r + (a1 + d1 * t) * g + (a2 + d2 * t) * b + (a3 + d3 * t))
            out_g[x] += w * ((b0 + e0 * t) * r + (b1 + e1 * t) * g + (b2 + e2 * t) * b + (b3 + e3 * t))
            out_b[x] += w * ((c0 + f0 * t) * r + (c1 + f1 * t) * g + (c2 + f2 * t) * b + (c3 + f3 * t))


@inlined
def illumination_of_row(pixels, spans, part, row, guide, align_corners, buffers, out):
    """Illumination of n pixels from the grid's row.

    pixels: red, green and blue, each (n,). spans: (k, 3), see Runs. part: (n,). row: (Gw, D, 12). buffers: two (n,),
    which hold the guide and the depth afterwards. out: (3, n).
    """
    red, green, blue = pixels
    guides, depth = buffers
    guide_of_row(pixels, guide, guides)
    depth_of_row(guides, row.shape[1], align_corners, depth)
    for k in range(len(spans)):
        first, end, cell = spans[k, 0], spans[k, 1], spans[k, 2]
        if first == end:
            break
        # whole vectors: what is too much is overwritten by the next run
        run = slice(first, min(first + (end - first + LANES - 1) // LANES * LANES, red.size))
        bins = bins_of_run(depth[run], row.shape[1])
        slice_run(row, cell, bins, (red[run], green[run], blue[run]), depth[run], part[run],
                  (out[0, run], out[1, run], out[2, run]))  # fmt: skip
