"""Kernels for the CPU: guide, slice, affine, clip, division and rounding in one pass, nothing full-size between.

The plain torch path in model.py and loss.py is the definition; these Numba kernels compute the same and are tested
against it. They serve both architectures, because both guides are one hidden layer of ReLUs of a pixel's RGB (see
a `FoldedGuide`), and both slicing conventions.

How it is fast: the grid is interpolated along y once per row; along x the coefficients are linear within a grid cell;
along the luma axis a pixel's coefficients are a sum over bins weighted by max(0, 1 - |z - bin|). So the inner loops
have no gather and vectorise over pixels. A short run of pixels touches few bins; the others are left out.

Kernels release the GIL and take a range of rows; `run_strips` shares the rows among Python threads. So they need no
OpenMP, can run in several threads at once, and survive fork.
"""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numba
import numpy as np
import torch
from numba import njit
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic, overload

from loss import C1, C2, LOG_EPS, LUMA, STRIDE, WINDOW, count_elements, count_windows
from model import LOW_SIZE, TINY, cell_intervals
from photos.lowres import shrink_taps
from system.process import cores

RUN = 256  # pixels that share a range of luma bins
LANES = 16  # of the widest vectors; runs are made up to whole ones where a row goes on
BLOCK = 512  # pixels whose buffers stay in the first-level cache
WIDE = '+avx512vbmi,'  # CPUs with it (Ice Lake and later) do not slow down for vectors of 512 bit, as older ones do
# no nnan, ninf: a network gone wrong must show up as NaN in its output
FAST = {'reassoc', 'contract', 'arcp', 'nsz', 'afn'}


def use_wide_vectors():
    """Have LLVM fill 512-bit registers, of which it uses half on Intel's CPUs unless told: a fifth faster."""
    features = get_host_cpu_features()
    if numba.config.CPU_FEATURES is None and WIDE in features:
        numba.config.CPU_FEATURES = f'{features},-prefer-256-bit'


use_wide_vectors()  # before the first kernel is declared


def kernel(function):
    return njit(function, nogil=True, fastmath=FAST, cache=True, error_model='numpy')


def inlined(function):
    return njit(function, fastmath=FAST, cache=True, error_model='numpy', inline='always')


@lru_cache(maxsize=1)
def threads():
    """The pool that strips of rows run on, one thread per core that this process may use."""
    return ThreadPoolExecutor(cores(), 'fused')


def run_strips(rows, work, alone=True, smallest=16):
    """Call work(first, last) for strips that cover `rows`, on all cores if alone; returns the results in order."""
    if not alone:
        return [work(0, rows)]
    count = max(1, min(4 * cores(), rows // smallest))
    edges = [rows * i // count for i in range(count + 1)]
    return list(threads().map(work, edges[:-1], edges[1:]))


# ----------------------------------------------------------------------------------------------- exp2 and log2
# libm's are scalar calls that stop vectorisation; these are within 2 ulp in float32. float64 takes libm's.


@intrinsic
def bits_of(context, value):
    def code(_, builder, signature, args):
        from llvmlite import ir

        return builder.bitcast(args[0], ir.IntType(32))

    return numba.int32(numba.float32), code


@intrinsic
def float_of(context, bits):
    def code(_, builder, signature, args):
        from llvmlite import ir

        return builder.bitcast(args[0], ir.FloatType())

    return numba.float32(numba.int32), code


def ordered(x):
    """Something that orders as numbers of 0 or more do; its minimum and maximum take one cycle, not four."""


def unordered(x):
    """The float32 that `ordered` was made of."""


@overload(ordered)
def _ordered(x):
    return (lambda x: bits_of(x)) if x == numba.float32 else (lambda x: x)


@overload(unordered)
def _unordered(x):
    return (lambda x: float_of(x)) if x == numba.int32 else (lambda x: x)


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
        x = top if x > top else x
        x = -top if x < -top else x
        whole = np.floor(x + half)
        y = (x - whole) * ln2
        series = one + y * (one + y * (c2 + y * (c3 + y * (c4 + y * (c5 + y * (c6 + y * c7))))))
        return series * float_of(np.int32((np.int32(whole) + bias) << shift))

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
        bits = bits_of(x)
        exponent = np.int32(np.int32(bits - root_half) >> shift)
        mantissa = float_of(np.int32(bits - np.int32(exponent << shift)))  # in [sqrt 1/2, sqrt 2)
        s = (mantissa - one) / (mantissa + one)
        s2 = s * s
        return f(exponent) + scale * s * (one + s2 * (c3 + s2 * (c5 + s2 * (c7 + s2 * c9))))

    return fast


# -------------------------------------------------------------------------------------------- parts of a row


@inlined
def row_of_grid(grid, y, height, align_corners, row):
    """Interpolate grid (Gh, Gw, D, 3, 4) along y into row (Gw, D, 12): (cell above, weight of the next)."""
    cells = grid.shape[0]
    if align_corners:
        position = y * (cells - 1) / max(height - 1, 1)
    else:
        position = min(max((y + 0.5) * cells / height - 0.5, 0.0), cells - 1.0)
    above = min(int(position), max(cells - 2, 0))
    below = min(above + 1, cells - 1)
    part = row.dtype.type(position - above)
    upper, lower, flat = grid[above].reshape(-1), grid[below].reshape(-1), row.reshape(-1)
    for i in range(flat.size):
        flat[i] = upper[i] + part * (lower[i] - upper[i])
    return above, part


@inlined
def guide_of_row(red, green, blue, weights, bias, mix, mix_bias, tanh, guide):
    """Guide in [0, 1] of a row of pixels: mix . relu(weights . rgb + bias) + mix_bias, then tanh mapped up, or clip."""
    zero, one = guide.dtype.type(0), guide.dtype.type(1)
    guide[:] = mix_bias
    for j in range(0, mix.size, 4):  # four units at a time; FoldedGuide has 16 or 48
        a0, a1, a2, a3, m0 = weights[j, 0], weights[j, 1], weights[j, 2], bias[j], mix[j]
        b0, b1, b2, b3, m1 = weights[j + 1, 0], weights[j + 1, 1], weights[j + 1, 2], bias[j + 1], mix[j + 1]
        c0, c1, c2, c3, m2 = weights[j + 2, 0], weights[j + 2, 1], weights[j + 2, 2], bias[j + 2], mix[j + 2]
        d0, d1, d2, d3, m3 = weights[j + 3, 0], weights[j + 3, 1], weights[j + 3, 2], bias[j + 3], mix[j + 3]
        for x in range(guide.size):
            r, g, b = red[x], green[x], blue[x]
            p0 = a0 * r + a1 * g + a2 * b + a3
            p1 = b0 * r + b1 * g + b2 * b + b3
            p2 = c0 * r + c1 * g + c2 * b + c3
            p3 = d0 * r + d1 * g + d2 * b + d3
            p0 = p0 if p0 > zero else zero
            p1 = p1 if p1 > zero else zero
            p2 = p2 if p2 > zero else zero
            p3 = p3 if p3 > zero else zero
            guide[x] += m0 * p0 + m1 * p1 + m2 * p2 + m3 * p3
    if tanh:
        steep = guide.dtype.type(-2 * 1.4426950408889634)  # (tanh(x) + 1) / 2 = 1 / (1 + e^-2x)
        for x in range(guide.size):
            guide[x] = one / (one + exp2(steep * guide[x]))
    else:
        for x in range(guide.size):
            value = guide[x]
            value = value if value > zero else zero
            guide[x] = value if value < one else one


@inlined
def depth_of_row(guide, bins, align_corners, depth):
    """Position along the luma axis, in bins, clamped to [0, bins - 1]."""
    kind = depth.dtype.type
    zero, last, half = kind(0), kind(bins - 1), kind(0.5)
    for x in range(depth.size):
        position = guide[x] * last if align_corners else guide[x] * (last + kind(1)) - half
        position = position if position > zero else zero
        depth[x] = position if position < last else last


@lru_cache(maxsize=64)
def runs_of_row(width, cells, align_corners, block, kind):
    """Runs of at most RUN pixels, each between the centres of two cells and in one `block` of a row of pixels.

    Returns:
        runs (blocks, most of a block, 3): (first, end, cell); pixels first to end - 1, counted from the start of the
        block, lie between the centres of cell and cell + 1; empty ones at the end of a block that has fewer.
        part (width) of dtype `kind`: weight of cell + 1 at each pixel.
    """
    edges, scale, offset = cell_intervals(width, cells, align_corners)
    blocks, part = [], np.empty(width, kind)
    for start in range(0, width, block):
        stop, runs = min(start + block, width), []
        for cell, (first, last) in enumerate(itertools.pairwise(np.clip(edges, start, stop))):
            runs += [(at - start, min(at + RUN, last) - start, cell) for at in range(first, last, RUN)]
            part[first:last] = np.clip(np.arange(first, last) * scale + offset - cell, 0, 1)
        blocks.append(runs)
    most = max(map(len, blocks))
    return np.array([runs + [(0, 0, 0)] * (most - len(runs)) for runs in blocks]), part


@inlined
def bins_of_run(depth, bins):
    """First luma bin that a run of pixels touches and the one after its last; within the grid whatever depth holds."""
    low, high = ordered(depth[0]), ordered(depth[0])
    for x in range(depth.size):
        low, high = min(low, ordered(depth[x])), max(high, ordered(depth[x]))
    return max(int(unordered(low)), 0), min(int(unordered(high)) + 2, bins)


@inlined
def slice_run(row, cell, low, high, red, green, blue, depth, part, light_r, light_g, light_b):
    """Sliced affine of a run of pixels applied to them. Views, so that indices start at 0."""
    kind = light_r.dtype.type
    zero, one = kind(0), kind(1)
    right = min(cell + 1, row.shape[0] - 1)
    light_r[:] = zero
    light_g[:] = zero
    light_b[:] = zero
    for z in range(low, high):
        bin_, a, e = kind(z), row[cell, z], row[right, z]
        a0, a1, a2, a3, b0, b1, b2, b3 = a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]
        c0, c1, c2, c3 = a[8], a[9], a[10], a[11]
        d0, d1, d2, d3 = e[0] - a0, e[1] - a1, e[2] - a2, e[3] - a3
        e0, e1, e2, e3 = e[4] - b0, e[5] - b1, e[6] - b2, e[7] - b3
        f0, f1, f2, f3 = e[8] - c0, e[9] - c1, e[10] - c2, e[11] - c3
        for x in range(light_r.size):
            t, r, g, b = part[x], red[x], green[x], blue[x]
            w = one - abs(depth[x] - bin_)
            w = w if w > zero else zero
            light_r[x] += w * ((a0 + d0 * t) * r + (a1 + d1 * t) * g + (a2 + d2 * t) * b + (a3 + d3 * t))
            light_g[x] += w * ((b0 + e0 * t) * r + (b1 + e1 * t) * g + (b2 + e2 * t) * b + (b3 + e3 * t))
            light_b[x] += w * ((c0 + f0 * t) * r + (c1 + f1 * t) * g + (c2 + f2 * t) * b + (c3 + f3 * t))


@inlined
def light_of_row(red, green, blue, runs, part, row, guide, depth, weights, bias, mix, mix_bias, tanh, align_corners,
                 light):  # fmt: skip
    """Illumination (3, n) of n pixels from the grid's row; runs (k, 3) of them and part (n) from runs_of_row."""
    guide_of_row(red, green, blue, weights, bias, mix, mix_bias, tanh, guide)
    depth_of_row(guide, row.shape[1], align_corners, depth)
    for k in range(len(runs)):
        first, end, cell = runs[k, 0], runs[k, 1], runs[k, 2]
        if first == end:
            break
        # whole vectors: what is too much is overwritten by the next run
        run = slice(first, min(first + (end - first + LANES - 1) // LANES * LANES, red.size))
        low, high = bins_of_run(depth[run], row.shape[1])
        slice_run(row, cell, low, high, red[run], green[run], blue[run], depth[run], part[run], light[0, run],
                  light[1, run], light[2, run])  # fmt: skip


# --------------------------------------------------------------------------------------------------- inference


@kernel
def enhance_rows(photo, enhanced, light_out, first_row, last_row, runs, parts, grid, weights, bias, mix, mix_bias,
                 tanh, align_corners, clip, eps, strength, tiny, half, pedestal):  # fmt: skip
    """Rows first_row to last_row - 1 of photo (H, W, 3), uint8 or uint16, into enhanced, and S into light_out if kept.

    light_out: (H, W, 3) float32, or (0, 0, 3) to leave it out. half: added before the fraction is cut off. pedestal: in
    the photo's own levels. runs, parts: from runs_of_row. The other arguments as in `enhance`.
    """
    height, width = photo.shape[0], photo.shape[1]
    f = np.float32
    zero, one = f(0), f(1)
    top = f(255) if photo.itemsize == 1 else f(65535)
    scale, lift = top + f(2) * pedestal, half - pedestal
    unit = one / scale
    colors, light = np.empty((3, BLOCK), f), np.empty((3, BLOCK), f)
    guides, depths = np.empty(BLOCK, f), np.empty(BLOCK, f)
    row = np.empty((grid.shape[1], grid.shape[2], 12), f)
    for y in range(first_row, last_row):
        row_of_grid(grid, y, height, align_corners, row)
        for start in range(0, width, BLOCK):
            size = min(BLOCK, width - start)
            # flat, so that LLVM sees the constant stride of 3
            source = photo[y, start : start + size].reshape(-1)
            result = enhanced[y, start : start + size].reshape(-1)
            red, green, blue, guide, depth = (
                colors[0, :size],
                colors[1, :size],
                colors[2, :size],
                guides[:size],
                depths[:size],
            )
            for x in range(size):
                red[x] = (f(source[3 * x]) + pedestal) * unit
                green[x] = (f(source[3 * x + 1]) + pedestal) * unit
                blue[x] = (f(source[3 * x + 2]) + pedestal) * unit
            light_of_row(red, green, blue, runs[start // BLOCK], parts[start : start + size], row, guide, depth,
                         weights, bias, mix, mix_bias, tanh, align_corners, light[:, :size])  # fmt: skip
            for c in range(3):
                shade, value = light[c, :size], colors[c, :size]
                if clip:
                    for x in range(size):
                        s = shade[x] if shade[x] < one else one
                        shade[x] = s if s > value[x] else value[x]
                if light_out.size:
                    light_out[y, start : start + size, c] = shade
                if strength == one:
                    for x in range(size):
                        s = shade[x] + eps
                        s = tiny if abs(s) < tiny else s
                        value[x] /= s
                else:
                    for x in range(size):
                        s = shade[x] + eps
                        lit = value[x] * exp2(-strength * log2(s if s > tiny else tiny))
                        value[x] = lit if s > -tiny else value[x] * (one - strength)
                for x in range(size):
                    v = value[x] * scale + lift
                    v = v if v > zero else zero  # also where it is not a number
                    value[x] = v if v < top + half else top + half
            for x in range(size):
                result[3 * x] = red[x]
                result[3 * x + 1] = green[x]
                result[3 * x + 2] = blue[x]


def enhance(photo, grid, guide, *, align_corners, clip, eps, pedestal=0.0, strength=1.0, keep_light=False,
            reuse=False, truncate=False, alone=True):  # fmt: skip
    """Enhance a photo in one pass from 8 bit to 8 bit, or 16 to 16.

    Args:
        photo: (H, W, 3) RGB uint8 or uint16, C-contiguous.
        grid: (12, D, Gh, Gw) float32 tensor.
        guide: from a `FoldedGuide`.
        align_corners, clip, eps, strength: as in model.slice_grid, clip_illumination and reflectance.
        pedestal: levels of 255, see model.IlluminationNet.
        keep_light: also return the illumination.
        reuse: write the result over the photo; every row is read before it is written.
        truncate: cut fractions of a level off instead of rounding.
        alone: share the rows among all cores; False where other threads have photos of their own.
    Returns:
        enhanced like photo, and illumination (H, W, 3) float32 or None.
    """
    photo = np.ascontiguousarray(photo)
    enhanced = photo if reuse else np.empty_like(photo)
    light = np.empty(photo.shape if keep_light else (0, 0, 3), np.float32)
    below = pedestal * np.iinfo(photo.dtype).max / 255
    cells = grid_cells(grid[None])[0].numpy()
    runs = runs_of_row(photo.shape[1], cells.shape[1], align_corners, BLOCK, np.float32)
    weights, bias, mix, mix_bias = (value.detach().numpy() for value in guide[:4])
    f = np.float32
    run_strips(
        photo.shape[0],
        lambda first, last: enhance_rows(photo, enhanced, light, first, last, *runs, cells, weights, bias, mix,
            f(mix_bias), guide[4], align_corners, clip, f(eps), f(strength), f(TINY), f(0 if truncate else 0.5),
            f(below)),
        alone,
    )  # fmt: skip
    return enhanced, light if keep_light else None


def grid_cells(grid):
    """(N, 12, D, Gh, Gw) as the kernels read it: (N, Gh, Gw, D, 3, 4), contiguous."""
    n, _, d, gh, gw = grid.shape
    return grid.detach().permute(0, 3, 4, 2, 1).reshape(n, gh, gw, d, 3, 4).contiguous()


# ------------------------------------------------------------------------------------------------------ lowres


@kernel
def shrink_rows(photo, lowres, first_line, last_line, rows, row_weights, columns, column_weights, scale):
    """Lines first_line to last_line - 1 of lowres (256, 256, 3) float32 of photo (H, W, 3), see lowres.shrink_taps."""
    f = np.float32
    line = np.empty(photo.shape[1] * 3, f)
    for y in range(first_line, last_line):
        for k in range(0, row_weights.shape[1], 4):  # four rows at a time, the last ones often of weight 0
            count = row_weights.shape[1] - k
            at = rows[y] + k
            w0 = row_weights[y, k]
            w1 = row_weights[y, k + 1] if count > 1 else f(0)
            w2 = row_weights[y, k + 2] if count > 2 else f(0)
            w3 = row_weights[y, k + 3] if count > 3 else f(0)
            a = photo[at].reshape(-1)
            b = photo[at + min(1, count - 1)].reshape(-1)
            c = photo[at + min(2, count - 1)].reshape(-1)
            d = photo[at + min(3, count - 1)].reshape(-1)
            if k == 0:
                for x in range(line.size):
                    line[x] = w0 * f(a[x]) + w1 * f(b[x]) + w2 * f(c[x]) + w3 * f(d[x])
            else:
                for x in range(line.size):
                    line[x] += w0 * f(a[x]) + w1 * f(b[x]) + w2 * f(c[x]) + w3 * f(d[x])
        for j in range(columns.size):
            red, green, blue = f(0), f(0), f(0)
            pixels = line[3 * columns[j] : 3 * (columns[j] + column_weights.shape[1])]
            for k in range(column_weights.shape[1]):
                w = column_weights[j, k]
                red += w * pixels[3 * k]
                green += w * pixels[3 * k + 1]
                blue += w * pixels[3 * k + 2]
            lowres[y, j, 0] = red * scale
            lowres[y, j, 1] = green * scale
            lowres[y, j, 2] = blue * scale


def shrink(photo, alone=True):
    """lowres.shrink of a photo (H, W, 3) uint8 or uint16 in one pass: (256, 256, 3) float32 levels of 255."""
    photo = np.ascontiguousarray(photo)
    lowres = np.empty((LOW_SIZE, LOW_SIZE, 3), np.float32)
    taps = (*shrink_taps(photo.shape[0]), *shrink_taps(photo.shape[1]))
    scale = np.float32(1 if photo.dtype == np.uint8 else 1 / 257)
    run_strips(LOW_SIZE, lambda first, last: shrink_rows(photo, lowres, first, last, *taps, scale), alone)
    return lowres


# ---------------------------------------------------------------------------------------------------- training


@kernel
def light_rows(photo, light, first, last, runs, part, grid, weights, bias, mix, mix_bias, tanh, align_corners, clip):
    """Illumination of rows first to last - 1, counted through the batch, of photo (N, 3, H, W)."""
    _, _, height, width = photo.shape
    kind = photo.dtype
    one = photo.dtype.type(1)
    guide, depth = np.empty(width, kind), np.empty(width, kind)
    out = np.empty((3, width), kind)
    row = np.empty((grid.shape[2], grid.shape[3], 12), kind)
    for line in range(first, last):
        n, y = line // height, line % height
        row_of_grid(grid[n], y, height, align_corners, row)
        light_of_row(photo[n, 0, y], photo[n, 1, y], photo[n, 2, y], runs[0], part, row, guide, depth, weights, bias,
                     mix, mix_bias, tanh, align_corners, out)  # fmt: skip
        for c in range(3):
            value, result = photo[n, c, y], light[n, c, y]
            for x in range(width):
                s = out[c, x]
                if clip:
                    s = s if s < one else one
                    s = s if s > value[x] else value[x]
                result[x] = s


@inlined
def slice_run_back(row, row_grad, cell, low, high, red, green, blue, depth, part, shade, depth_grad, photo_grad,
                   want_photo):  # fmt: skip
    """Gradients through slice_run: adds to row_grad (Gw, D, 12), sets depth_grad, adds to photo_grad (3, n)."""
    kind = red.dtype.type
    zero, one = kind(0), kind(1)
    depth_grad[:] = zero
    right = min(cell + 1, row.shape[0] - 1)
    for z in range(low, high):
        bin_ = kind(z)
        for c in range(3):
            channel = slice(4 * c, 4 * c + 4)
            a, e, up = row[cell, z, channel], row[right, z, channel], shade[c]
            a0, a1, a2, a3 = a[0], a[1], a[2], a[3]
            d0, d1, d2, d3 = e[0] - a0, e[1] - a1, e[2] - a2, e[3] - a3
            s0, s1, s2, s3 = zero, zero, zero, zero
            t0, t1, t2, t3 = zero, zero, zero, zero
            for x in range(red.size):
                t, r, g, b = part[x], red[x], green[x], blue[x]
                offset = depth[x] - bin_
                w = one - abs(offset)
                w = w if w > zero else zero
                u = w * up[x]
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
                depth_grad[x] += slope * up[x] * value
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
            if want_photo:
                for x in range(red.size):
                    w = one - abs(depth[x] - bin_)
                    u = (w if w > zero else zero) * up[x]
                    photo_grad[0, x] += u * (a0 + d0 * part[x])
                    photo_grad[1, x] += u * (a1 + d1 * part[x])
                    photo_grad[2, x] += u * (a2 + d2 * part[x])


@inlined
def guide_of_row_back(
    red, green, blue, guide, guide_grad, weights, bias, mix, tanh, hidden_grad, photo_grad, want_photo
):
    """Gradients through guide_of_row: adds to hidden_grad (units + 1, 5): weights, bias, mix; last mix_bias."""
    kind = red.dtype.type
    zero, one, two = kind(0), kind(1), kind(2)
    total = zero
    for x in range(red.size):
        g = guide[x]
        inside = one if g > zero and g < one else zero
        slope = two * g * (one - g) if tanh else inside
        guide_grad[x] *= slope
        total += guide_grad[x]
    hidden_grad[mix.size, 4] += total
    for j in range(mix.size):
        w0, w1, w2, w3, m = weights[j, 0], weights[j, 1], weights[j, 2], bias[j], mix[j]
        s0, s1, s2, s3, s4 = zero, zero, zero, zero, zero
        for x in range(red.size):
            r, g, b = red[x], green[x], blue[x]
            p = w0 * r + w1 * g + w2 * b + w3
            d = guide_grad[x] if p > zero else zero
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
        if want_photo:
            for x in range(red.size):
                p = w0 * red[x] + w1 * green[x] + w2 * blue[x] + w3
                d = guide_grad[x] * m if p > zero else zero
                photo_grad[0, x] += d * w0
                photo_grad[1, x] += d * w1
                photo_grad[2, x] += d * w2


@kernel
def light_rows_back(photo, light, light_grad, first, last, runs, part, grid, weights, bias, mix, mix_bias, tanh,
                    align_corners, clip, grid_grad, hidden_grad, photo_grad):  # fmt: skip
    """Gradients of rows first to last - 1 of one photo (3, H, W), added to this strip's own sums.

    photo_grad: (3, H, W), or (3, 0, 0) to leave it out.
    """
    _, height, width = photo.shape
    kind = photo.dtype
    zero, one = photo.dtype.type(0), photo.dtype.type(1)
    want_photo = photo_grad.size > 0
    guide, depth = np.empty(width, kind), np.empty(width, kind)
    shade, depth_grad = np.empty((3, width), kind), np.empty(width, kind)
    pixel_grad = np.zeros((3, width), kind)
    row = np.empty((grid.shape[1], grid.shape[2], 12), kind)
    row_grad = np.empty(row.shape, kind)
    flat_row_grad = row_grad.reshape(-1)
    bins = row.shape[1]
    last_bin = photo.dtype.type(bins - 1)
    scale = last_bin if align_corners else last_bin + one
    for y in range(first, last):
        red, green, blue = photo[0, y], photo[1, y], photo[2, y]
        above, below_part = row_of_grid(grid, y, height, align_corners, row)
        guide_of_row(red, green, blue, weights, bias, mix, mix_bias, tanh, guide)
        depth_of_row(guide, bins, align_corners, depth)
        for c in range(3):
            value, s, up = photo[c, y], light[c, y], light_grad[c, y]
            for x in range(width):
                free = not clip or (s[x] > value[x] and s[x] < one)
                shade[c, x] = up[x] if free else zero
                if want_photo:  # where clipped from below, S is the photo
                    pixel_grad[c, x] = up[x] if clip and s[x] <= value[x] and value[x] < one else zero
        flat_row_grad[:] = zero
        for k in range(runs.shape[1]):
            run = slice(runs[0, k, 0], runs[0, k, 1])
            low, high = bins_of_run(depth[run], bins)
            slice_run_back(row, row_grad, runs[0, k, 2], low, high, red[run], green[run], blue[run], depth[run],
                           part[run], shade[:, run], depth_grad[run], pixel_grad[:, run], want_photo)  # fmt: skip
        for x in range(width):  # clamped positions, the ends included, have no gradient
            depth_grad[x] = depth_grad[x] * scale if depth[x] > zero and depth[x] < last_bin else zero
        guide_of_row_back(red, green, blue, guide, depth_grad, weights, bias, mix, tanh, hidden_grad, pixel_grad,
                          want_photo)  # fmt: skip
        upper = grid_grad[above].reshape(-1)
        lower = grid_grad[min(above + 1, grid.shape[0] - 1)].reshape(-1)
        for i in range(flat_row_grad.size):
            upper[i] += (one - below_part) * flat_row_grad[i]
            lower[i] += below_part * flat_row_grad[i]
        if want_photo:
            photo_grad[:, y] = pixel_grad


class SliceApply(torch.autograd.Function):
    """Guide, slice, affine and clip as one differentiable function of photo, grid and folded guide; CPU.

    forward(photo (N, 3, H, W), grid (N, 12, D, Gh, Gw), weights (U, 3), bias (U), mix (U), mix_bias (), tanh,
    align_corners, clip) returns the illumination (N, 3, H, W). float32 or float64 throughout.
    """

    @staticmethod
    def forward(ctx, photo, grid, weights, bias, mix, mix_bias, tanh, align_corners, clip):
        photo = photo.contiguous()
        light = torch.empty_like(photo)
        cells = grid_cells(grid)
        runs = runs_of_row(photo.shape[3], grid.shape[4], align_corners, photo.shape[3], photo.detach().numpy().dtype)
        arrays = [value.detach().numpy() for value in (weights, bias, mix)]
        offset = arrays[0].dtype.type(mix_bias.item())
        rows = photo.shape[0] * photo.shape[2]
        source, result, lattice = photo.detach().numpy(), light.numpy(), cells.numpy()
        run_strips(
            rows,
            lambda first, last: light_rows(
                source, result, first, last, *runs, lattice, *arrays, offset, tanh, align_corners, clip
            ),
        )
        ctx.save_for_backward(photo, light, cells, weights, bias, mix, mix_bias)
        ctx.runs, ctx.rule = runs, (tanh, align_corners, clip)
        return light

    @staticmethod
    def backward(ctx, light_grad):
        photo, light, cells, *guide = ctx.saved_tensors
        source, shaded, lattice = (value.detach().numpy() for value in (photo, light, cells))
        up = light_grad.contiguous().numpy()
        arrays = [value.detach().numpy() for value in guide]
        arrays[3] = source.dtype.type(arrays[3])
        n, _, height, _ = photo.shape
        want_photo = ctx.needs_input_grad[0]
        photo_grad = np.empty(source.shape if want_photo else (n, 3, 0, 0), source.dtype)
        units = len(arrays[2])

        def strip(first, last):
            """Rows counted through the batch, photo by photo."""
            hidden = np.zeros((units + 1, 5), source.dtype)
            grids = []
            while first < last:
                i, y = divmod(first, height)
                stop = min(height, y + last - first)
                grid_grad = np.zeros(lattice.shape[1:], source.dtype)
                light_rows_back(source[i], shaded[i], up[i], y, stop, *ctx.runs, lattice[i], *arrays, *ctx.rule,
                                grid_grad, hidden, photo_grad[i])  # fmt: skip
                grids.append((i, grid_grad))
                first += stop - y
            return hidden, grids

        grid_grad = np.zeros(lattice.shape, source.dtype)
        hidden_grad = np.zeros((units + 1, 5), source.dtype)
        for hidden, grids in run_strips(n * height, strip):
            hidden_grad += hidden
            for i, part in grids:
                grid_grad[i] += part
        gh, gw, d = lattice.shape[1:4]
        grid_grad = torch.from_numpy(grid_grad).view(n, gh, gw, d, 12).permute(0, 4, 3, 1, 2)
        hidden_grad = torch.from_numpy(hidden_grad)
        return (
            torch.from_numpy(photo_grad) if want_photo else None,
            grid_grad,
            hidden_grad[:units, :3],
            hidden_grad[:units, 3],
            hidden_grad[:units, 4],
            hidden_grad[units, 4],
            None,
            None,
            None,
        )


def illuminate(photo, grid, guide, align_corners, clip):
    """Illumination (N, 3, H, W) of photo, differentiable by photo, grid (N, 12, D, Gh, Gw) and guide."""
    return SliceApply.apply(photo, grid, *guide[:4], guide.tanh, align_corners, clip)


# -------------------------------------------------------------------------------------------------------- loss


@inlined
def log_row(photo, y, luma, out):
    """Smoothness guide of row y of photo (3, H, W) into out (3 or 1, W)."""
    kind = out.dtype.type
    eps, ln2 = kind(LOG_EPS), kind(0.6931471805599453)
    if luma:
        wr, wg, wb = kind(LUMA[0]), kind(LUMA[1]), kind(LUMA[2])
        for x in range(out.shape[1]):
            out[0, x] = ln2 * log2(wr * photo[0, y, x] + wg * photo[1, y, x] + wb * photo[2, y, x] + eps)
    else:
        for c in range(3):
            for x in range(out.shape[1]):
                out[c, x] = ln2 * log2(photo[c, y, x] + eps)


@inlined
def smooth_step(light, other, log, other_log, weight, grad):
    """Penalty weight * w * (light - other)^2 summed over a run of pixels; adds its derivative by `light` to grad."""
    kind = grad.dtype.type
    zero, tiny, power = kind(0), kind(1e-20), kind(1.2)
    lift, floor, two = kind(1.5), kind(1e-4), kind(2)
    total = zero
    for x in range(light.size):
        edge = abs(log[x] - other_log[x])
        edge = edge if edge > tiny else tiny  # log2 of 0; 1e-24 is nothing beside 1e-4
        w = weight * lift / (exp2(power * log2(edge)) + floor)
        step = light[x] - other[x]
        total += w * step * step
        grad[x] += two * w * step
    return total


@inlined
def reflect(value, lit, clamp, tiny, zero, one):
    """(R, dR / dS) of a value of the photo and its illumination + eps; the slope is 0 where R is clamped."""
    small = abs(lit) < tiny
    lit = tiny if small else lit
    r = value / lit
    slope = zero if small else -r / lit
    if clamp:
        slope = slope if r >= zero and r <= one else zero
        r = r if r > zero else zero
        r = r if r < one else one
    return r, slope


@inlined
def add_moments(sums, x, y):
    """Add a row's values, squares and products (W) to sums (5, W)."""
    for i in range(x.size):
        a, b = x[i], y[i]
        sums[0, i] += a
        sums[1, i] += b
        sums[2, i] += a * a
        sums[3, i] += b * b
        sums[4, i] += a * b


@kernel
def structure_rows(photo, light, target, windows, first, last, eps, clamp, tiny):
    """1 - SSIM summed over rows of windows first to last - 1 of one photo, and its derivative by each pixel of R.

    photo, light, target: (3, H, W). windows: (3, 3, rows of windows, columns of windows); a pixel's derivative is the
    sum over the windows that it lies in of windows[c, 0] + windows[c, 1] * R + windows[c, 2] * target.
    """
    width = photo.shape[2]
    kind = photo.dtype.type
    zero, one, two = kind(0), kind(1), kind(2)
    c1, c2, share, unbiased = kind(C1), kind(C2), kind(1 / WINDOW**2), kind(WINDOW**2 / (WINDOW**2 - 1))
    slope_share = kind(1 / (WINDOW**2 - 1))
    reflected = np.empty(width, kind)
    # a window's rows are a whole group of STRIDE rows and the first WINDOW - STRIDE of the next: each is summed once
    group, window = np.empty((5, width), kind), np.empty((5, width), kind)
    mean = np.empty(5, kind)
    total = 0.0
    for c in range(3):
        window[:] = zero
        for j in range(first, last + 1):
            group[:] = zero
            for k in range(STRIDE if j < last else WINDOW - STRIDE):
                y = STRIDE * j + k
                value, s, wanted = photo[c, y], light[c, y], target[c, y]
                for x in range(width):
                    reflected[x] = reflect(value[x], s[x] + eps, clamp, tiny, zero, one)[0]
                add_moments(group, reflected, wanted)
                if k == WINDOW - STRIDE - 1 and j > first:
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
                        lights, spreads = mx * mx + my * my + c1, vx + vy + c2
                        norm = one / (lights * spreads)
                        similar = product * covariance * norm
                        by_mean = two * (my * covariance * norm - similar * mx / lights) * share
                        by_x = -two * similar / spreads * slope_share
                        by_y = two * product * norm * slope_share
                        windows[c, 0, j - 1, i] = -(by_mean - by_x * mx - by_y * my)
                        windows[c, 1, j - 1, i] = -by_x
                        windows[c, 2, j - 1, i] = -by_y
                        total += one - similar
            window[:] = group
    return total


@inlined
def structure_row_back(windows, y, out, wanted, back, factor, spread, up):
    """Add to row `up` of the gradient what the windows that row y lies in say of it, see structure_rows."""
    spread[:] = up.dtype.type(0)
    for j in range(max((y - WINDOW + STRIDE) // STRIDE, 0), min(y // STRIDE + 1, windows.shape[1])):
        for i in range(windows.shape[2]):
            a, b, c = windows[0, j, i], windows[1, j, i], windows[2, j, i]
            for x in range(STRIDE * i, STRIDE * i + WINDOW):
                spread[0, x] += a
                spread[1, x] += b
                spread[2, x] += c
    for x in range(up.size):
        up[x] += factor * back[x] * (spread[0, x] + spread[1, x] * out[x] + spread[2, x] * wanted[x])


@kernel
def loss_rows(photo, light, target, windows, grad, sums, first, last, eps, clamp, luma, factors, tiny):
    """Loss terms of rows first to last - 1 of one photo and the gradient of their weighted sum by the illumination.

    photo, light, target, grad: (3, H, W). windows: from structure_rows, or empty without that term.
    sums: (3,) float64, raw sums of reconstruction, color and smoothness, added to.
    factors: weight / number of elements of reconstruction, color, smoothness along x, along y, structure.
    """
    _, height, width = photo.shape
    kind = photo.dtype
    zero, one, two = photo.dtype.type(0), photo.dtype.type(1), photo.dtype.type(2)
    lift = photo.dtype.type(1e-4 * 1e-4)  # color_loss's eps squared
    f_mse, f_color, f_x, f_y, f_structure = factors[0], factors[1], factors[2], factors[3], factors[4]
    enhanced, by_light = np.empty((3, width), kind), np.empty((3, width), kind)
    along, cosine_scale = np.empty(width, kind), np.empty(width, kind)
    spread = np.empty((3, width), kind)
    guides = 1 if luma else 3
    logs = np.empty((3, guides, width), kind)  # the rows before, this and next
    smooth = f_x > zero or f_y > zero
    if smooth:
        log_row(photo, max(first - 1, 0), luma, logs[0])
        log_row(photo, first, luma, logs[1])
    for y in range(first, last):
        squared, angle = zero, zero
        for c in range(3):
            value, s, wanted = photo[c, y], light[c, y], target[c, y]
            out, back, up = enhanced[c], by_light[c], grad[c, y]
            for x in range(width):
                out[x], back[x] = reflect(value[x], s[x] + eps, clamp, tiny, zero, one)
                error = out[x] - wanted[x]
                squared += error * error
                up[x] = two * f_mse * error * back[x]
            if windows.size:
                structure_row_back(windows[c], y, out, wanted, back, f_structure, spread, up)
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
                out, back, wanted, up = enhanced[c], by_light[c], target[c, y], grad[c, y]
                for x in range(width):
                    up[x] += (along[x] * out[x] - cosine_scale[x] * wanted[x]) * back[x]
        if smooth:
            if y + 1 < height:
                log_row(photo, y + 1, luma, logs[2])
            for c in range(3):
                k = 0 if luma else c
                s, up, log = light[c, y], grad[c, y], logs[1, k]
                if y > 0:  # the strip above counts this pair's penalty
                    smooth_step(s, light[c, y - 1], log, logs[0, k], f_y, up)
                if y + 1 < height:
                    sums[2] += smooth_step(s, light[c, y + 1], log, logs[2, k], f_y, up)
                if width > 1:
                    sums[2] += smooth_step(s[:-1], s[1:], log[:-1], log[1:], f_x, up[:-1])
                    smooth_step(s[1:], s[:-1], log[1:], log[:-1], f_x, up[1:])
            logs[0] = logs[1]
            logs[1] = logs[2]
        sums[0] += squared
        sums[1] += angle


class FusedLoss(torch.autograd.Function):
    """Weighted sum of the terms over the reflectance of (photo, illumination), and its gradient, in one pass.

    forward(illumination, photo, target, eps, clamp, luma, weights) returns (total, terms); terms holds the unweighted
    reconstruction, color, smoothness and structure and has no gradient. Only the illumination gets one.
    """

    @staticmethod
    def forward(ctx, light, photo, target, eps, clamp, luma, weights):
        n, _, height, width = photo.shape
        arrays = [value.detach().contiguous().numpy() for value in (photo, light, target)]
        grad = np.empty_like(arrays[1])
        kind = grad.dtype.type
        rule = kind(eps), clamp
        down, across = count_windows(height, width) if weights[3] else (0, 0)
        windows = np.empty((n, 3, 3, down, across), grad.dtype)
        counts = (*count_elements(n, height, width), 3 * n * down * across)
        chosen = (weights[0], weights[1], weights[2], weights[2], weights[3])
        factors = np.array([w / max(c, 1) for w, c in zip(chosen, counts, strict=True)], grad.dtype)

        def strip(first, last, rows, work):
            """Sum of work(photo's arrays, first row, last row) over rows counted through the batch, photo by photo."""
            sums = 0
            while first < last:
                i, y = divmod(first, rows)
                stop = min(rows, y + last - first)
                sums = sums + work([array[i] for array in (*arrays, windows, grad)], y, stop)
                first += stop - y
            return sums

        def similar(images, y, stop):
            return structure_rows(*images[:4], y, stop, *rule, kind(TINY))

        def terms_of(images, y, stop):
            sums = np.zeros(3)
            loss_rows(*images, sums, y, stop, *rule, luma, factors, kind(TINY))
            return sums

        structure = 0.0
        if windows.size:
            structure = sum(run_strips(n * down, lambda y, stop: strip(y, stop, down, similar), smallest=4)) / counts[4]
        sums = sum(run_strips(n * height, lambda y, stop: strip(y, stop, height, terms_of)))
        smoothness = sums[2] / weights[2] if weights[2] else 0.0
        means = sums[0] / counts[0], sums[1] / counts[1], smoothness, structure
        total = torch.tensor(sum(w * m for w, m in zip(weights, means, strict=True)), dtype=light.dtype)
        terms = torch.tensor(means)
        ctx.save_for_backward(torch.from_numpy(grad))
        ctx.mark_non_differentiable(terms)
        return total, terms

    @staticmethod
    def backward(ctx, total_grad, _):
        (grad,) = ctx.saved_tensors
        return grad if total_grad == 1 else grad * total_grad, None, None, None, None, None, None
