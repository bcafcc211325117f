"""The kernels for the CPU, in Numba; the plain torch path in model.py and loss.py is the definition.

They serve both architectures, because both guides are one hidden layer of ReLUs of a pixel's RGB (model.FoldedGuide),
and both slicing conventions.

How it is fast: the grid is interpolated along y once per row; along x the coefficients are linear within a grid cell;
along the luma axis a pixel's coefficients are a sum over bins weighted by max(0, 1 - |z - bin|). So the inner loops
have no gather and vectorise over pixels. A short run of pixels touches few bins; the others are left out.

max and min are Python's: what is not a number is kept where it stands first, and replaced where it stands second.

One file, because it is one compilation unit: Numba's cache on disk takes a kernel for unchanged as long as its own file
is, whatever it takes from others.
"""

import itertools
import math
from functools import lru_cache
from typing import NamedTuple

import numba
import numpy as np
import torch
from numba.extending import overload

import loss
import model
from kernels.common import Rule, count_elements, grid_intervals
from kernels.cpu_denoise import denoise  # noqa: F401 - the dispatcher takes it from here
from model import FoldedGuide
from system.jit import FAST, either, inlined, kernel, parallel_rows

TINY, LOG_EPS, LUMA, WINDOW, STRIDE, C1, C2 = 1e-6, 1e-4, (0.2989, 0.587, 0.114), 7, 4, 0.01**2, 0.03**2
assert model.TINY == TINY, 'the kernels have the constants of model.py, in a file that the cache looks at'
assert (loss.LOG_EPS, loss.LUMA, loss.WINDOW, loss.STRIDE, loss.C1, loss.C2) == (LOG_EPS, LUMA, WINDOW, STRIDE, C1, C2)

# --------------------------------------------------------------------------------------------------------- 2^x and log2


def exp2(x):
    """2^x; the exponent is clipped to what float32 holds."""


def log2(x):
    """Base 2 logarithm of a positive normal number."""


@overload(exp2, fastmath=FAST)
def _exp2(x):
    if x != numba.float32:
        return lambda x: math.exp(x * 0.6931471805599453)
    f = np.float32
    top, half, ln2, one = f(126), f(0.5), f(math.log(2)), f(1)
    c2, c3, c4, c5, c6, c7 = (f(1 / math.factorial(k)) for k in range(2, 8))
    bias, shift = np.int32(127), np.int32(23)

    def fast(x):
        x = max(min(x, top), -top)
        whole = np.floor(x + half)
        y = (x - whole) * ln2
        series = one + y * (one + y * (c2 + y * (c3 + y * (c4 + y * (c5 + y * (c6 + y * c7))))))
        return series * np.int32((np.int32(whole) + bias) << shift).view(np.float32)

    return fast


@overload(log2, fastmath=FAST)
def _log2(x):
    if x != numba.float32:
        return lambda x: math.log(x) * 1.4426950408889634
    f = np.float32
    root_half, shift = np.int32(0x3F3504F3), np.int32(23)
    one, scale = f(1), f(2 / math.log(2))
    c3, c5, c7, c9 = (f(1 / k) for k in (3, 5, 7, 9))

    def fast(x):
        bits = np.float32(x).view(np.int32)
        exponent = np.int32(np.int32(bits - root_half) >> shift)
        mantissa = np.int32(bits - np.int32(exponent << shift)).view(np.float32)  # in [sqrt 1/2, sqrt 2)
        s = (mantissa - one) / (mantissa + one)
        s2 = s * s
        return f(exponent) + scale * s * (one + s2 * (c3 + s2 * (c5 + s2 * (c7 + s2 * c9))))

    return fast


# ------------------------------------------------------------------------------------------------------ guide and slice


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


def parts_of_batch(first, last, height):
    """Yield (photo, (first row, last row + 1)) of each photo that has some of the rows counted through a batch."""
    while first < last:
        photo, y = divmod(first, height)
        stop = min(height, y + last - first)
        yield photo, (y, stop)
        first += stop - y


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
            out[x] = min(one, max(zero, out[x]))


@inlined
def depth_of_row(guide, bins, align_corners, depth):
    """Position along the luma axis, in bins, clamped to [0, bins - 1], of guide (n,) into depth (n,)."""
    dtype = depth.dtype.type
    zero, last, half = dtype(0), dtype(bins - 1), dtype(0.5)
    for x in range(depth.size):
        position = guide[x] * last if align_corners else guide[x] * (last + dtype(1)) - half
        depth[x] = min(last, max(zero, position))


@inlined
def bins_of_run(depth, bins):
    """First luma bin that a run of pixels touches and the one after its last; within the grid whatever depth holds."""
    low, high = np.int32(depth[0]), np.int32(depth[0])
    for x in range(depth.size):
        low, high = min(low, np.int32(depth[x])), max(high, np.int32(depth[x]))
    return max(int(low), 0), min(int(high) + 2, bins)


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
            w = max(zero, one - abs(depth[x] - bin_))
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


# --------------------------------------------------------------------------------------------------------------- photos


BLOCK = 512  # pixels whose buffers stay in the first-level cache


@inlined
def read_levels(source, pedestal, unit, colors):
    """Levels of n pixels, flat so that LLVM sees the constant stride of 3, into colors (3, n) in [0, 1]."""
    f = np.float32
    red, green, blue = colors[0], colors[1], colors[2]
    for x in range(red.size):
        red[x] = (f(source[3 * x]) + pedestal) * unit
        green[x] = (f(source[3 * x + 1]) + pedestal) * unit
        blue[x] = (f(source[3 * x + 2]) + pedestal) * unit


@inlined
def write_levels(colors, result):
    """The other way, of levels that are cut to whole ones."""
    red, green, blue = colors[0], colors[1], colors[2]
    for x in range(red.size):
        result[3 * x] = red[x]
        result[3 * x + 1] = green[x]
        result[3 * x + 2] = blue[x]


@kernel
def enhance_rows(images, every, rows, grid, guide, runs, rule):
    """Rows rows[0] to rows[1] - 1 of a photo into another, and S of every so many of its rows and columns.

    images: photo (H, W, 3), enhanced, both jit.either, illumination (ceil(H / every), ceil(W / every), 3) float32.
    every: a divisor of BLOCK, or 0, which leaves illumination alone. grid, guide, runs: as the slice reads them.
    rule: common.Rule with the pedestal in the photo's own levels.
    """
    (photo8, photo16), (enhanced8, enhanced16), illumination = images
    deep = photo16.size > 0
    height, width, _ = photo16.shape if deep else photo8.shape
    f = np.float32
    zero, one, tiny = f(0), f(1), f(TINY)
    half = zero if rule.round_down else f(0.5)  # added before the fraction is cut off
    eps, strength, pedestal = f(rule.eps), f(rule.strength), f(rule.pedestal)
    top = f(65535) if deep else f(255)
    scale, lift = top + f(2) * pedestal, half - pedestal
    unit = one / scale
    colors, lights = np.empty((3, BLOCK), f), np.empty((3, BLOCK), f)
    guides, depths = np.empty(BLOCK, f), np.empty(BLOCK, f)
    row = np.empty((grid.shape[1], grid.shape[2], 12), f)
    for y in range(rows[0], rows[1]):
        row_of_grid(grid, y, height, rule.align_corners, row)
        for start in range(0, width, BLOCK):
            size = min(BLOCK, width - start)
            red, green, blue = colors[0, :size], colors[1, :size], colors[2, :size]
            if deep:
                read_levels(photo16[y, start : start + size].reshape(-1), pedestal, unit, colors[:, :size])
            else:
                read_levels(photo8[y, start : start + size].reshape(-1), pedestal, unit, colors[:, :size])
            buffers = guides[:size], depths[:size]
            illumination_of_row((red, green, blue), runs.spans[start // BLOCK], runs.part[start : start + size], row,
                                guide, rule.align_corners, buffers, lights[:, :size])  # fmt: skip
            for c in range(3):
                s, value = lights[c, :size], colors[c, :size]
                if rule.clip:
                    for x in range(size):
                        s[x] = max(value[x], min(one, s[x]))
                if every and y % every == 0:
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
                        divided = value[x] * exp2(-strength * log2(max(tiny, divisor)))
                        value[x] = divided if divisor > -tiny else value[x] * (one - strength)
                for x in range(size):
                    value[x] = min(top + half, max(zero, value[x] * scale + lift))
            if deep:
                write_levels(colors[:, :size], enhanced16[y, start : start + size].reshape(-1))
            else:
                write_levels(colors[:, :size], enhanced8[y, start : start + size].reshape(-1))


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
    images = either(photo), either(enhanced), illumination
    parallel_rows(height, lambda first, last: enhance_rows(images, every, (first, last), grid, guide, runs, rule))
    return enhanced, illumination if every else None


# ----------------------------------------------------------------------------------------- illumination, differentiable


@kernel
def illumination_rows(photo, illumination, rows, grid, guide, runs, rule):
    """Illumination of rows rows[0] to rows[1] - 1, counted through the batch, of photo (N, 3, H, W)."""
    _, _, height, width = photo.shape
    dtype = photo.dtype
    one = photo.dtype.type(1)
    guides, depth = np.empty(width, dtype), np.empty(width, dtype)
    out = np.empty((3, width), dtype)
    row = np.empty((grid.shape[2], grid.shape[3], 12), dtype)
    for line in range(rows[0], rows[1]):
        n, y = line // height, line % height
        row_of_grid(grid[n], y, height, rule.align_corners, row)
        illumination_of_row((photo[n, 0, y], photo[n, 1, y], photo[n, 2, y]), runs.spans[0], runs.part, row, guide,
                            rule.align_corners, (guides, depth), out)  # fmt: skip
        for c in range(3):
            value, result = photo[n, c, y], illumination[n, c, y]
            for x in range(width):
                s = out[c, x]
                if rule.clip:  # what is not a number stays so, here and in reflect: a diverged run is seen by its loss
                    s = max(min(s, one), value[x])
                result[x] = s


@inlined
def slice_run_back(row, cell, bins, pixels, depth, part, grad_out, row_grad, depth_grad):
    """Gradients through slice_run.

    grad_out: (3, n), by the unclipped illumination. row_grad (Gw, D, 12), added to; depth_grad (n,), set.
    """
    red, green, blue = pixels
    dtype = red.dtype.type
    zero, one = dtype(0), dtype(1)
    depth_grad[:] = zero
    right = min(cell + 1, row.shape[0] - 1)
    for z in range(bins[0], bins[1]):
        bin_ = dtype(z)
        for c in range(3):
            channel = slice(4 * c, 4 * c + 4)
            a, e, by_s = row[cell, z, channel], row[right, z, channel], grad_out[c]
            a0, a1, a2, a3 = a[0], a[1], a[2], a[3]
            d0, d1, d2, d3 = e[0] - a0, e[1] - a1, e[2] - a2, e[3] - a3
            s0, s1, s2, s3 = zero, zero, zero, zero
            t0, t1, t2, t3 = zero, zero, zero, zero
            for x in range(red.size):
                t, r, g, b = part[x], red[x], green[x], blue[x]
                offset = depth[x] - bin_
                u = max(zero, one - abs(offset)) * by_s[x]
                s0 += u * r
                s1 += u * g
                s2 += u * b
                s3 += u
                u *= t
                t0 += u * r
                t1 += u * g
                t2 += u * b
                t3 += u
                # the interval is half open, [bin, bin + 1), as grid_sample's floor has it
                slope = -one if offset >= zero else one
                slope = slope if offset < one and offset >= -one else zero
                value = (a0 + d0 * t) * r + (a1 + d1 * t) * g + (a2 + d2 * t) * b + (a3 + d3 * t)
                depth_grad[x] += slope * by_s[x] * value
            grad = row_grad[cell, z, channel]
            grad[0] += s0 - t0
            grad[1] += s1 - t1
            grad[2] += s2 - t2
            grad[3] += s3 - t3
            grad = row_grad[right, z, channel]
            grad[0] += t0
            grad[1] += t1
            grad[2] += t2
            grad[3] += t3


@inlined
def guide_of_row_back(pixels, guides, grad_out, guide, hidden_grad):
    """Gradients through guide_of_row.

    guides: (n,), its result. grad_out: (n,), by that result; overwritten. hidden_grad: (units + 1, 5), added to:
    weights, bias and mix of each unit, and mix_bias as the last element.
    """
    red, green, blue = pixels
    weights, bias, mix = guide.weights, guide.bias, guide.mix
    dtype = red.dtype.type
    zero, one, two = dtype(0), dtype(1), dtype(2)
    total = zero
    for x in range(red.size):
        g = guides[x]
        inside = one if g > zero and g < one else zero
        slope = two * g * (one - g) if guide.tanh else inside
        grad_out[x] *= slope
        total += grad_out[x]
    hidden_grad[mix.size, 4] += total
    for j in range(mix.size):
        w0, w1, w2, w3, m = weights[j, 0], weights[j, 1], weights[j, 2], bias[j], mix[j]
        s0, s1, s2, s3, s4 = zero, zero, zero, zero, zero
        for x in range(red.size):
            r, g, b = red[x], green[x], blue[x]
            p = w0 * r + w1 * g + w2 * b + w3
            d = grad_out[x] if p > zero else zero
            s0 += d * r
            s1 += d * g
            s2 += d * b
            s3 += d
            s4 += d * p
        hidden_grad[j, 0] += s0 * m
        hidden_grad[j, 1] += s1 * m
        hidden_grad[j, 2] += s2 * m
        hidden_grad[j, 3] += s3 * m
        hidden_grad[j, 4] += s4


@kernel
def illumination_rows_back(images, rows, grid, guide, runs, rule, grid_grad, hidden_grad):
    """Gradients of rows rows[0] to rows[1] - 1 of one photo, added to this strip's own sums.

    images: photo, illumination and the gradient by the illumination, each (3, H, W). Sums: grid_grad
    (Gh, Gw, D, 3, 4) and hidden_grad (units + 1, 5).
    """
    photo, illumination, grad_out = images
    _, height, width = photo.shape
    dtype = photo.dtype
    zero, one = photo.dtype.type(0), photo.dtype.type(1)
    guides, depth = np.empty(width, dtype), np.empty(width, dtype)
    free_grad, depth_grad = np.empty((3, width), dtype), np.empty(width, dtype)
    row = np.empty((grid.shape[1], grid.shape[2], 12), dtype)
    row_grad = np.empty(row.shape, dtype)
    flat_row_grad = row_grad.reshape(-1)
    bins = row.shape[1]
    last_bin = photo.dtype.type(bins - 1)
    scale = last_bin if rule.align_corners else last_bin + one
    for y in range(rows[0], rows[1]):
        red, green, blue = photo[0, y], photo[1, y], photo[2, y]
        above, below_part = row_of_grid(grid, y, height, rule.align_corners, row)
        guide_of_row((red, green, blue), guide, guides)
        depth_of_row(guides, bins, rule.align_corners, depth)
        for c in range(3):
            value, s, by_s = photo[c, y], illumination[c, y], grad_out[c, y]
            for x in range(width):
                free = not rule.clip or (s[x] > value[x] and s[x] < one)
                free_grad[c, x] = by_s[x] if free else zero
        flat_row_grad[:] = zero
        for k in range(runs.spans.shape[1]):
            run = slice(runs.spans[0, k, 0], runs.spans[0, k, 1])
            touched = bins_of_run(depth[run], bins)
            slice_run_back(row, runs.spans[0, k, 2], touched, (red[run], green[run], blue[run]), depth[run],
                           runs.part[run], free_grad[:, run], row_grad, depth_grad[run])  # fmt: skip
        for x in range(width):  # clamped positions, the ends included, have no gradient
            depth_grad[x] = depth_grad[x] * scale if depth[x] > zero and depth[x] < last_bin else zero
        guide_of_row_back((red, green, blue), guides, depth_grad, guide, hidden_grad)
        upper = grid_grad[above].reshape(-1)
        lower = grid_grad[min(above + 1, grid.shape[0] - 1)].reshape(-1)
        for i in range(flat_row_grad.size):
            upper[i] += (one - below_part) * flat_row_grad[i]
            lower[i] += below_part * flat_row_grad[i]


class SliceApply(torch.autograd.Function):
    """Guide, slice, affine and clip as one function of photo, grid and folded guide; CPU.

    forward(photo (N, 3, H, W), grid (N, 12, D, Gh, Gw), weights (U, 3), bias (U), mix (U), mix_bias (), tanh, rule)
    returns the illumination (N, 3, H, W), differentiable by all but the photo. float32 or float64 throughout. Of the
    rule it takes align_corners and clip.
    autograd sees only tensors that are arguments themselves, hence not one FoldedGuide.
    """

    @staticmethod
    def forward(ctx, photo, grid, weights, bias, mix, mix_bias, tanh, rule):
        photo = photo.contiguous()
        illumination = torch.empty_like(photo)
        source, result, cells = photo.detach().numpy(), illumination.numpy(), grid_array(grid)
        guide = guide_arrays(weights, bias, mix, mix_bias, tanh)
        runs = runs_of_row(photo.shape[3], grid.shape[4], rule.align_corners, photo.shape[3], source.dtype)
        parallel_rows(
            photo.shape[0] * photo.shape[2],
            lambda first, last: illumination_rows(source, result, (first, last), cells, guide, runs, rule),
        )
        ctx.save_for_backward(photo, illumination, torch.from_numpy(cells), weights, bias, mix, mix_bias)
        ctx.runs, ctx.rule, ctx.tanh = runs, rule, tanh
        return illumination

    @staticmethod
    def backward(ctx, grad_out):
        photo, illumination, cells, *guide = ctx.saved_tensors
        arrays = [value.detach().contiguous().numpy() for value in (photo, illumination, grad_out)]
        cells, guide = cells.numpy(), guide_arrays(*guide, ctx.tanh)
        dtype = cells.dtype
        n, _, height, _ = photo.shape
        units = len(guide.mix)

        def strip(first, last):
            hidden, grids = np.zeros((units + 1, 5), dtype), []
            for i, rows in parts_of_batch(first, last, height):
                grid_grad, images = np.zeros(cells.shape[1:], dtype), tuple(array[i] for array in arrays)
                illumination_rows_back(images, rows, cells[i], guide, ctx.runs, ctx.rule, grid_grad, hidden)
                grids.append((i, grid_grad))
            return hidden, grids

        grid_grad = np.zeros(cells.shape, dtype)
        hidden_grad = np.zeros((units + 1, 5), dtype)
        for hidden, grids in parallel_rows(n * height, strip):
            hidden_grad += hidden
            for i, part in grids:
                grid_grad[i] += part
        gh, gw, d = cells.shape[1:4]
        grid_grad = torch.from_numpy(grid_grad).view(n, gh, gw, d, 12).permute(0, 4, 3, 1, 2)
        hidden_grad = torch.from_numpy(hidden_grad)
        weights, bias, mix = hidden_grad[:units].split([3, 1, 1], dim=1)
        return None, grid_grad, weights, bias[:, 0], mix[:, 0], hidden_grad[units, 4], None, None


def illuminate(photo, grid, guide, rule):
    """Illumination (N, 3, H, W) of photo, differentiable by grid (N, 12, D, Gh, Gw) and guide."""
    return SliceApply.apply(photo, grid, *guide, Rule(bool(rule.align_corners), bool(rule.clip)))


# ----------------------------------------------------------------------------------------------------------------- loss


class LossRule(NamedTuple):
    """How R follows from S in the loss, and which smoothness guide it has."""

    eps: np.floating  # of the photo's dtype, added to the illumination before the division
    clamp: bool  # clip R to [0, 1]
    luma: bool  # the smoothness guide is the log of the luma, else of each channel


@inlined
def log_row(photo, y, luma, out):
    """Smoothness guide of row y of photo (3, H, W) into out (3 or 1, W)."""
    dtype = out.dtype.type
    eps, ln2 = dtype(LOG_EPS), dtype(0.6931471805599453)
    if luma:
        wr, wg, wb = dtype(LUMA[0]), dtype(LUMA[1]), dtype(LUMA[2])
        for x in range(out.shape[1]):
            out[0, x] = ln2 * log2(wr * photo[0, y, x] + wg * photo[1, y, x] + wb * photo[2, y, x] + eps)
    else:
        for c in range(3):
            for x in range(out.shape[1]):
                out[c, x] = ln2 * log2(photo[c, y, x] + eps)


@inlined
def smooth_step(s, other, log, other_log, weight, grad):
    """Penalty weight * w * (s - other)^2 summed over a run of pixels; adds its derivative by `s` to grad."""
    dtype = grad.dtype.type
    zero, tiny, power = dtype(0), dtype(1e-20), dtype(1.2)
    lift, floor, two = dtype(1.5), dtype(1e-4), dtype(2)
    total = zero
    for x in range(s.size):
        edge = max(tiny, abs(log[x] - other_log[x]))  # log2 of 0; 1e-24 is nothing beside 1e-4
        w = weight * lift / (exp2(power * log2(edge)) + floor)
        step = s[x] - other[x]
        total += w * step * step
        grad[x] += two * w * step
    return total


@inlined
def reflect(value, divisor, clamp, tiny, zero, one):
    """(R, dR / dS) of a value of the photo and its illumination + eps; the slope is 0 where R is clamped."""
    small = abs(divisor) < tiny
    divisor = tiny if small else divisor
    r = value / divisor
    slope = zero if small else -r / divisor
    if clamp:
        slope = slope if r >= zero and r <= one else zero
        r = min(max(r, zero), one)
    return r, slope


@kernel
def structure_rows(images, windows, rows, rule):
    """1 - SSIM summed over rows of windows rows[0] to rows[1] - 1 of one photo, and its derivative by each pixel of R.

    images: photo, illumination and target, each (3, H, W). windows: (3, 3, rows of windows, columns of windows); a
    pixel's derivative is the sum over the windows that it lies in of
    windows[c, 0] + windows[c, 1] * R + windows[c, 2] * target.
    """
    photo, illumination, target = images
    width = photo.shape[2]
    dtype = photo.dtype.type
    zero, one, two, tiny, eps = dtype(0), dtype(1), dtype(2), dtype(TINY), rule.eps
    c1, c2, share, unbiased = dtype(C1), dtype(C2), dtype(1 / WINDOW**2), dtype(WINDOW**2 / (WINDOW**2 - 1))
    slope_share = dtype(1 / (WINDOW**2 - 1))
    # a window's rows are a whole group of STRIDE rows and the first WINDOW - STRIDE of the next: each is summed once
    group, window = np.empty((5, width), dtype), np.empty((5, width), dtype)
    mean = np.empty(5, dtype)
    total = 0.0
    for c in range(3):
        window[:] = zero
        for j in range(rows[0], rows[1] + 1):
            group[:] = zero
            for k in range(STRIDE if j < rows[1] else WINDOW - STRIDE):
                y = STRIDE * j + k
                value, s, wanted = photo[c, y], illumination[c, y], target[c, y]
                for x in range(width):
                    a, b = reflect(value[x], s[x] + eps, rule.clamp, tiny, zero, one)[0], wanted[x]
                    group[0, x] += a
                    group[1, x] += b
                    group[2, x] += a * a
                    group[3, x] += b * b
                    group[4, x] += a * b
                if k == WINDOW - STRIDE - 1 and j > rows[0]:
                    window += group
                    for i in range(windows.shape[3]):
                        for m in range(5):
                            mean[m] = zero
                            for x in range(WINDOW):
                                mean[m] += window[m, STRIDE * i + x]
                            mean[m] *= share
                        mx, my = mean[0], mean[1]
                        vx, vy = unbiased * (mean[2] - mx * mx), unbiased * (mean[3] - my * my)
                        covariance = two * unbiased * (mean[4] - mx * my) + c2
                        product = two * mx * my + c1
                        squares, spreads = mx * mx + my * my + c1, vx + vy + c2
                        norm = one / (squares * spreads)
                        similar = product * covariance * norm
                        by_mean = two * (my * covariance * norm - similar * mx / squares) * share
                        by_x = -two * similar / spreads * slope_share
                        by_y = two * product * norm * slope_share
                        windows[c, 0, j - 1, i] = -(by_mean - by_x * mx - by_y * my)
                        windows[c, 1, j - 1, i] = -by_x
                        windows[c, 2, j - 1, i] = -by_y
                        total += one - similar
            window[:] = group
    return total


@inlined
def structure_row_back(windows, y, enhanced, wanted, slope, factor, spread, grad):
    """Add to row y's gradient (W) the share of the windows that the row lies in, see structure_rows.

    enhanced, wanted, slope: (W), R, target and dR / dS. factor: the term's. spread: (3, W), overwritten.
    """
    spread[:] = grad.dtype.type(0)
    for j in range(max((y - WINDOW + STRIDE) // STRIDE, 0), min(y // STRIDE + 1, windows.shape[1])):
        for i in range(windows.shape[2]):
            a, b, c = windows[0, j, i], windows[1, j, i], windows[2, j, i]
            for x in range(STRIDE * i, STRIDE * i + WINDOW):
                spread[0, x] += a
                spread[1, x] += b
                spread[2, x] += c
    for x in range(grad.size):
        grad[x] += factor * slope[x] * (spread[0, x] + spread[1, x] * enhanced[x] + spread[2, x] * wanted[x])


@kernel
def loss_rows(images, windows, grad, rows, rule, factors):
    """Raw sums of reconstruction, color and smoothness over rows of one photo, and the gradient of the loss by S.

    images: photo, illumination and target, each (3, H, W), as grad. windows: from structure_rows, or empty without that
    term. factors: weight / number of elements of reconstruction, color, smoothness along x, along y, structure.
    """
    photo, illumination, target = images
    _, height, width = photo.shape
    dtype = photo.dtype
    zero, one, two = photo.dtype.type(0), photo.dtype.type(1), photo.dtype.type(2)
    tiny, eps = photo.dtype.type(TINY), rule.eps
    lift = photo.dtype.type(1e-4 * 1e-4)  # color_loss's eps squared
    f_mse, f_color, f_x, f_y, f_structure = factors[0], factors[1], factors[2], factors[3], factors[4]
    enhanced, slopes = np.empty((3, width), dtype), np.empty((3, width), dtype)
    along, cosine_scale = np.empty(width, dtype), np.empty(width, dtype)
    spread = np.empty((3, width), dtype)
    guides = 1 if rule.luma else 3
    logs = np.empty((3, guides, width), dtype)  # the rows before, this and next
    smooth, squares, angles, steps = f_x > zero or f_y > zero, 0.0, 0.0, 0.0
    if smooth:
        log_row(photo, max(rows[0] - 1, 0), rule.luma, logs[0])
        log_row(photo, rows[0], rule.luma, logs[1])
    for y in range(rows[0], rows[1]):
        squared, angle = zero, zero
        for c in range(3):
            value, s, wanted = photo[c, y], illumination[c, y], target[c, y]
            r, slope, by_s = enhanced[c], slopes[c], grad[c, y]
            for x in range(width):
                r[x], slope[x] = reflect(value[x], s[x] + eps, rule.clamp, tiny, zero, one)
                error = r[x] - wanted[x]
                squared += error * error
                by_s[x] = two * f_mse * error * slope[x]
            if windows.size:
                structure_row_back(windows[c], y, r, wanted, slope, f_structure, spread, by_s)
        if f_color > zero:
            r0, r1, r2 = enhanced[0], enhanced[1], enhanced[2]
            t0, t1, t2 = target[0, y], target[1, y], target[2, y]
            for x in range(width):
                dot = r0[x] * t0[x] + r1[x] * t1[x] + r2[x] * t2[x] + lift
                own = r0[x] * r0[x] + r1[x] * r1[x] + r2[x] * r2[x] + lift
                theirs = t0[x] * t0[x] + t1[x] * t1[x] + t2[x] * t2[x] + lift
                norm = one / np.sqrt(own * theirs)
                angle += one - dot * norm
                cosine_scale[x] = f_color * norm
                along[x] = f_color * norm * dot / own
            for c in range(3):
                r, slope, wanted, by_s = enhanced[c], slopes[c], target[c, y], grad[c, y]
                for x in range(width):
                    by_s[x] += (along[x] * r[x] - cosine_scale[x] * wanted[x]) * slope[x]
        if smooth:
            if y + 1 < height:
                log_row(photo, y + 1, rule.luma, logs[2])
            for c in range(3):
                k = 0 if rule.luma else c
                s, by_s, log = illumination[c, y], grad[c, y], logs[1, k]
                if y > 0:  # the strip above counts this pair's penalty
                    smooth_step(s, illumination[c, y - 1], log, logs[0, k], f_y, by_s)
                if y + 1 < height:
                    steps += smooth_step(s, illumination[c, y + 1], log, logs[2, k], f_y, by_s)
                if width > 1:
                    steps += smooth_step(s[:-1], s[1:], log[:-1], log[1:], f_x, by_s[:-1])
                    smooth_step(s[1:], s[:-1], log[1:], log[:-1], f_x, by_s[1:])
            logs[0] = logs[1]
            logs[1] = logs[2]
        squares += squared
        angles += angle
    return squares, angles, steps


class FusedLoss(torch.autograd.Function):
    """Weighted sum of the terms over the reflectance of (photo, illumination), and its gradient, in one pass.

    forward(illumination, photo, target, eps, clamp, luma, weights) returns (total, terms); terms holds the unweighted
    reconstruction, color, smoothness and structure and has no gradient. Only the illumination gets one.
    """

    @staticmethod
    def forward(ctx, illumination, photo, target, eps, clamp, luma, weights):
        n, _, height, width = photo.shape
        images = [value.detach().contiguous().numpy() for value in (photo, illumination, target)]
        grad = np.empty_like(images[1])
        rule = LossRule(grad.dtype.type(eps), bool(clamp), bool(luma))
        down, across = loss.count_windows(height, width) if weights[3] else (0, 0)
        windows = np.empty((n, 3, 3, down, across), grad.dtype)
        counts = (*count_elements(n, height, width), 3 * n * down * across)
        chosen = (weights[0], weights[1], weights[2], weights[2], weights[3])
        factors = np.array([w / max(c, 1) for w, c in zip(chosen, counts, strict=True)], grad.dtype)

        def over_batch(height, work, smallest=16):
            """Sum of work(photo's number, its images, rows) over rows of a batch of photos of so many."""

            def strip(first, last):
                parts = parts_of_batch(first, last, height)
                return sum(work(i, tuple(image[i] for image in images), rows) for i, rows in parts)

            return sum(parallel_rows(n * height, strip, smallest))

        def similar(i, images, rows):
            return structure_rows(images, windows[i], rows, rule)

        def terms_of(i, images, rows):
            return np.array(loss_rows(images, windows[i], grad[i], rows, rule, factors))

        structure = over_batch(down, similar, smallest=4) / counts[4] if windows.size else 0.0
        sums = over_batch(height, terms_of)
        smoothness = sums[2] / weights[2] if weights[2] else 0.0
        means = sums[0] / counts[0], sums[1] / counts[1], smoothness, structure
        total = torch.tensor(sum(w * m for w, m in zip(weights, means, strict=True)), dtype=illumination.dtype)
        terms = torch.tensor(means)
        ctx.save_for_backward(torch.from_numpy(grad))
        ctx.mark_non_differentiable(terms)
        return total, terms

    @staticmethod
    def backward(ctx, total_grad, _):
        (grad,) = ctx.saved_tensors
        return grad if total_grad == 1 else grad * total_grad, None, None, None, None, None, None
