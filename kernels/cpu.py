"""The kernels for the CPU, in Numba; the plain torch path in model.py and loss.py is the definition.

They serve both architectures, because both guides are one hidden layer of ReLUs of a pixel's RGB (model.FoldedGuide),
and both slicing conventions.

How it is fast: the grid is interpolated along y once per row; along x the coefficients are linear within a grid cell;
along the luma axis a pixel's coefficients are a sum over bins weighted by max(0, 1 - |z - bin|). So the inner loops
have no gather and vectorise over pixels. A short run of pixels touches few bins; the others are left out.

max and min are Python's: what is not a number is kept where it stands first, and replaced where it stands second.

One file, because it is one compilation unit: Numba's cache on disk looks for changes in a kernel's own file alone.
"""

import itertools
import math
from functools import lru_cache

import numba
import numpy as np
import torch
from numba.extending import overload

import loss
import model
from kernels.common import Rule, grid_intervals
from kernels.cpu_denoise import denoise  # noqa: F401 - the dispatcher takes it from here
from model import FoldedGuide
from system.jit import FAST, announce_compiling, either, inlined, kernel, parallel_rows  # noqa: F401 - as above

TINY, LOG_EPS, LUMA, WINDOW, STRIDE, C1, C2 = 1e-6, 1e-4, (0.2989, 0.587, 0.114), 7, 4, 0.01**2, 0.03**2
assert model.TINY == TINY, 'the kernels have the constants of model.py, in a file that the cache looks at'
assert (loss.LOG_EPS, loss.LUMA, loss.WINDOW, loss.STRIDE, loss.C1, loss.C2) == (LOG_EPS, LUMA, WINDOW, STRIDE, C1, C2)
ZERO, HALF, ONE, TWO = (np.float32(value) for value in (0, 0.5, 1, 2))  # float64 takes them exactly

# --------------------------------------------------------------------------------------------------------- 2^x and log2


def exp2(x):
    """2^x; the exponent is clipped to what float32 holds."""


def log2(x):
    """Base 2 logarithm of a positive normal number."""


@overload(exp2, fastmath=FAST)
def _exp2(x):
    if x != numba.float32:
        return lambda x: math.exp(x * 0.6931471805599453)
    f, i, ln2 = np.float32, np.int32, np.float32(math.log(2))
    c2, c3, c4, c5, c6, c7 = (f(1 / math.factorial(k)) for k in range(2, 8))

    def fast(x):
        x = max(min(x, f(126)), f(-126))
        whole = np.floor(x + HALF)
        y = (x - whole) * ln2
        series = ONE + y * (ONE + y * (c2 + y * (c3 + y * (c4 + y * (c5 + y * (c6 + y * c7))))))
        return series * i((i(whole) + i(127)) << i(23)).view(f)

    return fast


@overload(log2, fastmath=FAST)
def _log2(x):
    if x != numba.float32:
        return lambda x: math.log(x) * 1.4426950408889634
    f, i, scale = np.float32, np.int32, np.float32(2 / math.log(2))
    c3, c5, c7, c9 = (f(1 / k) for k in (3, 5, 7, 9))

    def fast(x):
        bits = f(x).view(i)
        exponent = i(i(bits - i(0x3F3504F3)) >> i(23))
        mantissa = i(bits - i(exponent << i(23))).view(f)  # in [sqrt 1/2, sqrt 2)
        s = (mantissa - ONE) / (mantissa + ONE)
        s2 = s * s
        return f(exponent) + scale * s * (ONE + s2 * (c3 + s2 * (c5 + s2 * (c7 + s2 * c9))))

    return fast


# ------------------------------------------------------------------------------------------------------ guide and slice


RUN = 256  # pixels that share a range of luma bins
LANES = 16  # of the widest vectors; runs are made up to whole ones where a row goes on


@lru_cache(maxsize=64)
def runs_of_row(width, gw, align_corners, block, dtype):
    """A row's pixels in runs of at most RUN, each between the centres of two of gw cells and in one block of so many.

    Returns:
        spans: (blocks, most runs of a block, 3): first pixel in the block, last + 1, cell; then empty ones.
        part: (width,), weight of cell + 1 at each pixel.
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
    return np.array([spans + [(0, 0, 0)] * (most - len(spans)) for spans in blocks]), part


def grid_array(grid):
    """Grid (N, 12, D, Gh, Gw) as the kernels read it: an array (N, Gh, Gw, D, 3, 4), contiguous."""
    return grid.detach().permute(0, 3, 4, 2, 1).unflatten(-1, (3, 4)).contiguous().numpy()


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
def unit_of(guide, j):
    """Weights, bias and mix of unit j of the guide's hidden layer."""
    return guide.weights[j, 0], guide.weights[j, 1], guide.weights[j, 2], guide.bias[j], guide.mix[j]


@inlined
def activation(unit, r, g, b):
    """What a unit adds to the guide of a pixel."""
    inside = unit[0] * r + unit[1] * g + unit[2] * b + unit[3]
    return unit[4] * (inside if inside > ZERO else ZERO)


@inlined
def guide_of_row(pixels, guide, bins, align_corners, out, depth):
    """Guide in [0, 1] of pixels, three (n,), see FoldedGuide, into out (n,), its place on the luma axis into depth."""
    red, green, blue = pixels
    out[:] = guide.mix_bias
    for j in range(0, guide.mix.size, 4):  # four units at a time; FoldedGuide has 16 or 48
        u, v, w, p = unit_of(guide, j), unit_of(guide, j + 1), unit_of(guide, j + 2), unit_of(guide, j + 3)
        for x in range(out.size):
            r, g, b = red[x], green[x], blue[x]
            out[x] += activation(u, r, g, b) + activation(v, r, g, b) + activation(w, r, g, b) + activation(p, r, g, b)
    if guide.tanh:
        steep = out.dtype.type(-2 * 1.4426950408889634)  # (tanh(x) + 1) / 2 = 1 / (1 + e^-2x)
        for x in range(out.size):
            out[x] = ONE / (ONE + exp2(steep * out[x]))
    else:
        for x in range(out.size):
            out[x] = min(ONE, max(ZERO, out[x]))
    last = depth.dtype.type(bins - 1)
    for x in range(out.size):
        depth[x] = min(last, max(ZERO, out[x] * last if align_corners else out[x] * (last + ONE) - HALF))


@inlined
def bins_of_run(depth, bins):
    """First luma bin that a run of pixels touches and the one after its last; within the grid whatever depth holds."""
    low, high = np.int32(depth[0]), np.int32(depth[0])
    for x in range(depth.size):
        low, high = min(low, np.int32(depth[x])), max(high, np.int32(depth[x]))
    return max(int(low), 0), min(int(high) + 2, bins)


@inlined
def edges_of(row, cell, right, z, c):
    """Coefficients of output channel c in bin z of the grid's row at a cell, and what the right one's are more."""
    a, b, i = row[cell, z], row[right, z], 4 * c
    return (a[i], a[i + 1], a[i + 2], a[i + 3],
            b[i] - a[i], b[i + 1] - a[i + 1], b[i + 2] - a[i + 2], b[i + 3] - a[i + 3])  # fmt: skip


@inlined
def affine_of(k, t, r, g, b):
    """One channel of a bin's affine of a pixel, t of the way between the cells; k: from edges_of."""
    return (k[0] + k[4] * t) * r + (k[1] + k[5] * t) * g + (k[2] + k[6] * t) * b + (k[3] + k[7] * t)


@inlined
def slice_run(row, cell, pixels, depth, part, out):
    """Slice the grid's row (Gw, D, 12) at a run of pixels right of a cell's centre, and apply the affine to them.

    All others (n,): views of a run, so that indices start at 0. depth, part: positions along the luma axis and x.
    """
    red, green, blue = pixels
    out_r, out_g, out_b = out
    right = min(cell + 1, row.shape[0] - 1)
    out_r[:] = ZERO
    out_g[:] = ZERO
    out_b[:] = ZERO
    first, end = bins_of_run(depth, row.shape[1])
    for z in range(first, end):
        bin_ = depth.dtype.type(z)
        to_r, to_g = edges_of(row, cell, right, z, 0), edges_of(row, cell, right, z, 1)
        to_b = edges_of(row, cell, right, z, 2)
        for x in range(out_r.size):
            t, r, g, b = part[x], red[x], green[x], blue[x]
            w = max(ZERO, ONE - abs(depth[x] - bin_))
            out_r[x] += w * affine_of(to_r, t, r, g, b)
            out_g[x] += w * affine_of(to_g, t, r, g, b)
            out_b[x] += w * affine_of(to_b, t, r, g, b)


@inlined
def illumination_of_row(pixels, spans, part, row, guide, align_corners, buffers, out):
    """Illumination, not clipped, of pixels, three (n,), from the grid's row into out; buffers: for guide and depth."""
    red, green, blue = pixels
    guides, depth = buffers
    guide_of_row(pixels, guide, row.shape[1], align_corners, guides, depth)
    for k in range(len(spans)):
        first, end, cell = spans[k, 0], spans[k, 1], spans[k, 2]
        if first == end:
            break
        # whole vectors: what is too much is overwritten by the next run
        run = slice(first, min(first + (end - first + LANES - 1) // LANES * LANES, red.size))
        out_run = out[0][run], out[1][run], out[2][run]
        slice_run(row, cell, (red[run], green[run], blue[run]), depth[run], part[run], out_run)


# --------------------------------------------------------------------------------------------------------------- photos


BLOCK = 512  # pixels whose buffers stay in the first-level cache


@inlined
def read_levels(source, pedestal, unit, colors):
    """Levels of n pixels, flat so that LLVM sees the constant stride of 3, into colors, three (n,), in [0, 1]."""
    red, green, blue = colors
    for x in range(red.size):
        red[x] = (np.float32(source[3 * x]) + pedestal) * unit
        green[x] = (np.float32(source[3 * x + 1]) + pedestal) * unit
        blue[x] = (np.float32(source[3 * x + 2]) + pedestal) * unit


@inlined
def write_levels(colors, result):
    """The other way, of levels that are cut to whole ones."""
    red, green, blue = colors
    for x in range(red.size):
        result[3 * x] = red[x]
        result[3 * x + 1] = green[x]
        result[3 * x + 2] = blue[x]


@kernel
def enhance_rows(images, every, rows, grid, guide, runs, rule):
    """Rows rows[0] to rows[1] - 1 of a photo into another, both jit.either, and S of every so many rows and columns.

    every: a divisor of BLOCK, or 0, which leaves illumination alone. rule: with the pedestal in the photo's own levels.
    """
    (photo8, photo16), (enhanced8, enhanced16), illumination = images
    spans, part = runs
    deep = photo16.size > 0
    height, width, _ = photo16.shape if deep else photo8.shape
    f = np.float32
    tiny, eps, strength, pedestal = f(TINY), f(rule.eps), f(rule.strength), f(rule.pedestal)
    half = ZERO if rule.round_down else HALF  # added before the fraction is cut off
    top = f(65535) if deep else f(255)
    scale, lift = top + TWO * pedestal, half - pedestal
    unit = ONE / scale
    buffers = np.empty((8, BLOCK), f)
    row = np.empty((grid.shape[1], grid.shape[2], 12), f)
    for y in range(rows[0], rows[1]):
        row_of_grid(grid, y, height, rule.align_corners, row)
        for start in range(0, width, BLOCK):
            size = min(BLOCK, width - start)
            block = slice(start, start + size)
            colors = buffers[0, :size], buffers[1, :size], buffers[2, :size]
            lights = buffers[3, :size], buffers[4, :size], buffers[5, :size]
            if deep:
                read_levels(photo16[y, block].reshape(-1), pedestal, unit, colors)
            else:
                read_levels(photo8[y, block].reshape(-1), pedestal, unit, colors)
            illumination_of_row(colors, spans[start // BLOCK], part[block], row, guide, rule.align_corners,
                                (buffers[6, :size], buffers[7, :size]), lights)  # fmt: skip
            for c in range(3):
                s, value = lights[c], colors[c]
                if rule.clip:
                    for x in range(size):
                        s[x] = max(value[x], min(ONE, s[x]))
                if every and y % every == 0:
                    for x in range(0, size, every):
                        illumination[y // every, (start + x) // every, c] = s[x]
                if strength == ONE:
                    for x in range(size):
                        divisor = s[x] + eps
                        value[x] /= tiny if abs(divisor) < tiny else divisor
                else:
                    for x in range(size):
                        divisor = s[x] + eps
                        divided = value[x] * exp2(-strength * log2(max(tiny, divisor)))
                        value[x] = divided if divisor > -tiny else value[x] * (ONE - strength)
                for x in range(size):
                    value[x] = min(top + half, max(ZERO, value[x] * scale + lift))
            if deep:
                write_levels(colors, enhanced16[y, block].reshape(-1))
            else:
                write_levels(colors, enhanced8[y, block].reshape(-1))


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
    parallel_rows(height, lambda *rows: enhance_rows(images, every, rows, grid, guide, runs, rule))
    return enhanced, illumination if every else None


# ----------------------------------------------------------------------------------------- illumination, differentiable


@inlined
def channels_of(image, n, y):
    """Red, green and blue, each (W,), of row y of photo n of an image (N, 3, H, W)."""
    return image[n, 0, y], image[n, 1, y], image[n, 2, y]


@kernel
def illumination_rows(photo, illumination, rows, grid, guide, runs, rule):
    """Illumination of rows rows[0] to rows[1] - 1, counted through the batch, of photo (N, 3, H, W)."""
    _, _, height, width = photo.shape
    dtype = photo.dtype
    buffers = np.empty(width, dtype), np.empty(width, dtype)
    row = np.empty((grid.shape[2], grid.shape[3], 12), dtype)
    for line in range(rows[0], rows[1]):
        n, y = line // height, line % height
        row_of_grid(grid[n], y, height, rule.align_corners, row)
        pixels, out = channels_of(photo, n, y), channels_of(illumination, n, y)
        illumination_of_row(pixels, runs[0][0], runs[1], row, guide, rule.align_corners, buffers, out)
        if rule.clip:
            for c in range(3):
                value, s = pixels[c], out[c]
                for x in range(width):  # what is not a number stays so, here and in reflect: its loss shows a lost run
                    s[x] = max(min(s[x], ONE), value[x])


@inlined
def slice_run_back(row, cell, pixels, depth, part, grad_out, row_grad, depth_grad):
    """Gradients through slice_run from grad_out (3, n), added to row_grad (Gw, D, 12), written to depth_grad (n,)."""
    red, green, blue = pixels
    depth_grad[:] = ZERO
    right = min(cell + 1, row.shape[0] - 1)
    zero = depth.dtype.type(0)
    first, end = bins_of_run(depth, row.shape[1])
    for z in range(first, end):
        bin_ = depth.dtype.type(z)
        for c in range(3):
            edges, by_s = edges_of(row, cell, right, z, c), grad_out[c]
            s0, s1, s2, s3 = zero, zero, zero, zero
            t0, t1, t2, t3 = zero, zero, zero, zero
            for x in range(red.size):
                t, r, g, b = part[x], red[x], green[x], blue[x]
                offset = depth[x] - bin_
                u = max(ZERO, ONE - abs(offset)) * by_s[x]
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
                slope = -ONE if offset >= ZERO else ONE
                slope = slope if offset < ONE and offset >= -ONE else ZERO
                depth_grad[x] += slope * by_s[x] * affine_of(edges, t, r, g, b)
            for i, (both, by_right) in enumerate(((s0, t0), (s1, t1), (s2, t2), (s3, t3))):
                row_grad[cell, z, 4 * c + i] += both - by_right
                row_grad[right, z, 4 * c + i] += by_right


@inlined
def guide_of_row_back(pixels, guides, grad_out, guide, hidden_grad):
    """Gradients through guide_of_row, whose result is guides, from grad_out (n,), which is overwritten.

    hidden_grad: (units + 1, 5), added to: weights, bias and mix of each unit, and mix_bias as the last element.
    """
    red, green, blue = pixels
    zero = grad_out.dtype.type(0)
    total = zero
    for x in range(red.size):
        g = guides[x]
        inside = ONE if g > ZERO and g < ONE else ZERO
        grad_out[x] *= TWO * g * (ONE - g) if guide.tanh else inside
        total += grad_out[x]
    hidden_grad[guide.mix.size, 4] += total
    for j in range(guide.mix.size):
        w0, w1, w2, w3, m = unit_of(guide, j)
        s0, s1, s2, s3, s4 = zero, zero, zero, zero, zero
        for x in range(red.size):
            r, g, b = red[x], green[x], blue[x]
            p = w0 * r + w1 * g + w2 * b + w3
            d = grad_out[x] if p > ZERO else ZERO
            s0 += d * r
            s1 += d * g
            s2 += d * b
            s3 += d
            s4 += d * p
        for i, total in enumerate((s0 * m, s1 * m, s2 * m, s3 * m, s4)):
            hidden_grad[j, i] += total


@kernel
def illumination_rows_back(images, rows, grid, guide, runs, rule, grid_grad, hidden_grad):
    """Gradients of rows counted through the batch, added to grid_grad, of the strip's photos alone, and hidden_grad."""
    photo, illumination, grad_out = images
    spans, part = runs[0][0], runs[1]
    _, _, height, width = photo.shape
    dtype = photo.dtype
    guides, depth = np.empty(width, dtype), np.empty(width, dtype)
    free_grad, depth_grad = np.empty((3, width), dtype), np.empty(width, dtype)
    row = np.empty((grid.shape[2], grid.shape[3], 12), dtype)
    row_grad = np.empty(row.shape, dtype)
    flat_row_grad = row_grad.reshape(-1)
    last_bin = photo.dtype.type(row.shape[1] - 1)
    scale = last_bin if rule.align_corners else last_bin + ONE
    for line in range(rows[0], rows[1]):
        n, y = line // height, line % height
        pixels = channels_of(photo, n, y)
        red, green, blue = pixels
        above, below_part = row_of_grid(grid[n], y, height, rule.align_corners, row)
        guide_of_row(pixels, guide, row.shape[1], rule.align_corners, guides, depth)
        for c in range(3):
            value, s, by_s = photo[n, c, y], illumination[n, c, y], grad_out[n, c, y]
            for x in range(width):
                free = not rule.clip or (s[x] > value[x] and s[x] < ONE)
                free_grad[c, x] = by_s[x] if free else ZERO
        flat_row_grad[:] = ZERO
        for k in range(len(spans)):
            run = slice(spans[k, 0], spans[k, 1])
            slice_run_back(row, spans[k, 2], (red[run], green[run], blue[run]), depth[run], part[run],
                           free_grad[:, run], row_grad, depth_grad[run])  # fmt: skip
        for x in range(width):  # clamped positions, the ends included, have no gradient
            depth_grad[x] = depth_grad[x] * scale if depth[x] > ZERO and depth[x] < last_bin else ZERO
        guide_of_row_back(pixels, guides, depth_grad, guide, hidden_grad)
        cells = grid_grad[n - rows[0] // height]
        upper, lower = cells[above].reshape(-1), cells[min(above + 1, len(cells) - 1)].reshape(-1)
        for i in range(flat_row_grad.size):
            upper[i] += (ONE - below_part) * flat_row_grad[i]
            lower[i] += below_part * flat_row_grad[i]


class SliceApply(torch.autograd.Function):
    """Guide, slice, affine and clip of photo (N, 3, H, W), differentiable by all tensors but it; float32 or float64.

    autograd sees only tensors that are arguments themselves, hence not one FoldedGuide.
    """

    @staticmethod
    def forward(ctx, photo, grid, weights, bias, mix, mix_bias, tanh, rule):
        photo = photo.contiguous()
        illumination = torch.empty_like(photo)
        source, result, cells = photo.detach().numpy(), illumination.numpy(), grid_array(grid)
        guide = guide_arrays(weights, bias, mix, mix_bias, tanh)
        n, _, height, width = photo.shape
        runs = runs_of_row(width, grid.shape[4], rule.align_corners, width, source.dtype)
        parallel_rows(n * height, lambda *rows: illumination_rows(source, result, rows, cells, guide, runs, rule))
        ctx.save_for_backward(photo, illumination, torch.from_numpy(cells), weights, bias, mix, mix_bias)
        ctx.runs, ctx.rule, ctx.tanh = runs, rule, tanh
        return illumination

    @staticmethod
    def backward(ctx, grad_out):
        photo, illumination, cells, *guide = ctx.saved_tensors
        images = tuple(value.detach().contiguous().numpy() for value in (photo, illumination, grad_out))
        cells, guide = cells.numpy(), guide_arrays(*guide, ctx.tanh)
        n, _, height, _ = photo.shape
        units = len(guide.mix)
        grid_grad, hidden_grad = np.zeros_like(cells), np.zeros((units + 1, 5), cells.dtype)

        def strip(first, last):
            photos = slice(first // height, (last - 1) // height + 1)
            sums = np.zeros_like(cells[photos]), np.zeros_like(hidden_grad)
            illumination_rows_back(images, (first, last), cells, guide, ctx.runs, ctx.rule, *sums)
            return photos, *sums

        for photos, by_grid, by_hidden in parallel_rows(n * height, strip):
            grid_grad[photos] += by_grid
            hidden_grad += by_hidden
        grid_grad = torch.from_numpy(grid_grad).flatten(4).permute(0, 4, 3, 1, 2)
        hidden_grad = torch.from_numpy(hidden_grad)
        weights, bias, mix = hidden_grad[:units].split([3, 1, 1], dim=1)
        return None, grid_grad, weights, bias[:, 0], mix[:, 0], hidden_grad[units, 4], None, None


def illuminate(photo, grid, guide, rule):
    """Illumination (N, 3, H, W) of photo, differentiable by grid (N, 12, D, Gh, Gw) and guide."""
    return SliceApply.apply(photo, grid, *guide, Rule(bool(rule.align_corners), bool(rule.clip)))


# ----------------------------------------------------------------------------------------------------------------- loss


@inlined
def log_row(photo, y, luma, out):
    """Smoothness guide of row y of photo (3, H, W), the log of its luma or of each channel, into out (1 or 3, W)."""
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
    tiny, power, lift, floor = dtype(1e-20), dtype(1.2), dtype(1.5), dtype(1e-4)
    total = dtype(0)
    for x in range(s.size):
        edge = max(tiny, abs(log[x] - other_log[x]))  # log2 of 0; 1e-24 is nothing beside 1e-4
        w = weight * lift / (exp2(power * log2(edge)) + floor)
        step = s[x] - other[x]
        total += w * step * step
        grad[x] += TWO * w * step
    return total


@inlined
def reflect(value, divisor, clamp, tiny):
    """(R, dR / dS) of a value of the photo and its illumination + eps; the slope is 0 where R is clamped."""
    small = abs(divisor) < tiny
    divisor = tiny if small else divisor
    r = value / divisor
    slope = ZERO if small else -r / divisor
    if clamp:
        slope = slope if r >= ZERO and r <= ONE else ZERO
        r = min(max(r, ZERO), ONE)
    return r, slope


@kernel
def structure_planes(images, windows, planes, eps, clamp):
    """1 - SSIM summed over planes planes[0] to planes[1] - 1 of images (3 N, H, W), and its derivative by R.

    That of a pixel is the sum of a + b R + c target over the windows that it lies in; windows: a, b and c of each.
    """
    photo, illumination, target = images
    _, _, width = photo.shape
    _, _, down, across = windows.shape
    dtype = photo.dtype.type
    c1, c2, share, unbiased = dtype(C1), dtype(C2), dtype(1 / WINDOW**2), dtype(WINDOW**2 / (WINDOW**2 - 1))
    tiny, slope_share = dtype(TINY), dtype(1 / (WINDOW**2 - 1))
    # a window's rows are a whole group of STRIDE rows and the first WINDOW - STRIDE of the next: each is summed once
    group, window, mean = np.empty((5, width), dtype), np.empty((5, width), dtype), np.empty(5, dtype)
    total = 0.0
    for c in range(planes[0], planes[1]):
        for j in range(down + 1):
            group[:] = ZERO
            for k in range(STRIDE if j < down else WINDOW - STRIDE):
                y = STRIDE * j + k
                value, s, wanted = photo[c, y], illumination[c, y], target[c, y]
                for x in range(width):
                    a, b = reflect(value[x], s[x] + eps, clamp, tiny)[0], wanted[x]
                    group[0, x] += a
                    group[1, x] += b
                    group[2, x] += a * a
                    group[3, x] += b * b
                    group[4, x] += a * b
                if k == WINDOW - STRIDE - 1 and j > 0:
                    window += group
                    for i in range(across):
                        for m in range(5):
                            mean[m] = ZERO
                            for x in range(WINDOW):
                                mean[m] += window[m, STRIDE * i + x]
                            mean[m] *= share
                        mx, my = mean[0], mean[1]
                        vx, vy = unbiased * (mean[2] - mx * mx), unbiased * (mean[3] - my * my)
                        covariance = TWO * unbiased * (mean[4] - mx * my) + c2
                        product = TWO * mx * my + c1
                        squares, spreads = mx * mx + my * my + c1, vx + vy + c2
                        norm = ONE / (squares * spreads)
                        similar = product * covariance * norm
                        by_mean = TWO * (my * covariance * norm - similar * mx / squares) * share
                        by_x = -TWO * similar / spreads * slope_share
                        by_y = TWO * product * norm * slope_share
                        windows[c, 0, j - 1, i] = -(by_mean - by_x * mx - by_y * my)
                        windows[c, 1, j - 1, i] = -by_x
                        windows[c, 2, j - 1, i] = -by_y
                        total += ONE - similar
            window[:] = group
    return total


@inlined
def structure_row_back(windows, y, enhanced, wanted, slope, factor, spread, grad):
    """Add to row y's gradient (W) the share of the windows that the row lies in; spread: (3, W), overwritten."""
    spread[:] = ZERO
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
    """Sums of reconstruction, color and smoothness over rows counted through a batch, and the gradient by S into grad.

    windows: from structure_planes, or empty without that term. rule, factors: as of common.FusedLoss, and structure's.
    """
    photo, illumination, target = images
    _, _, height, width = photo.shape
    eps, clamp, luma = rule
    dtype = photo.dtype
    tiny, lift = photo.dtype.type(TINY), photo.dtype.type(1e-4 * 1e-4)  # color_loss's eps squared
    f_mse, f_color, f_x, f_y, f_structure = factors[0], factors[1], factors[2], factors[3], factors[4]
    enhanced, slopes, spread = np.empty((3, width), dtype), np.empty((3, width), dtype), np.empty((3, width), dtype)
    along, cosine_scale = np.empty(width, dtype), np.empty(width, dtype)
    logs = np.empty((3, 1 if luma else 3, width), dtype)  # the rows before, this and next
    smooth, squares, angles, steps = f_x > ZERO or f_y > ZERO, 0.0, 0.0, 0.0
    for line in range(rows[0], rows[1]):
        n, y = line // height, line % height
        squared, angle = photo.dtype.type(0), photo.dtype.type(0)
        for c in range(3):
            value, s, wanted = photo[n, c, y], illumination[n, c, y], target[n, c, y]
            r, slope, by_s = enhanced[c], slopes[c], grad[n, c, y]
            for x in range(width):
                r[x], slope[x] = reflect(value[x], s[x] + eps, clamp, tiny)
                error = r[x] - wanted[x]
                squared += error * error
                by_s[x] = TWO * f_mse * error * slope[x]
            if windows.size:
                structure_row_back(windows[3 * n + c], y, r, wanted, slope, f_structure, spread, by_s)
        if f_color > ZERO:
            r0, r1, r2 = enhanced[0], enhanced[1], enhanced[2]
            t0, t1, t2 = channels_of(target, n, y)
            for x in range(width):
                dot = r0[x] * t0[x] + r1[x] * t1[x] + r2[x] * t2[x] + lift
                own = r0[x] * r0[x] + r1[x] * r1[x] + r2[x] * r2[x] + lift
                theirs = t0[x] * t0[x] + t1[x] * t1[x] + t2[x] * t2[x] + lift
                norm = ONE / np.sqrt(own * theirs)
                angle += ONE - dot * norm
                cosine_scale[x] = f_color * norm
                along[x] = f_color * norm * dot / own
            for c in range(3):
                r, slope, wanted, by_s = enhanced[c], slopes[c], target[n, c, y], grad[n, c, y]
                for x in range(width):
                    by_s[x] += (along[x] * r[x] - cosine_scale[x] * wanted[x]) * slope[x]
        if smooth:
            if y == 0 or line == rows[0]:  # the row before left none
                log_row(photo[n], max(y - 1, 0), luma, logs[0])
                log_row(photo[n], y, luma, logs[1])
            if y + 1 < height:
                log_row(photo[n], y + 1, luma, logs[2])
            for c in range(3):
                k = 0 if luma else c
                s, by_s, log = illumination[n, c, y], grad[n, c, y], logs[1, k]
                if y > 0:  # the row above counts this pair's penalty
                    smooth_step(s, illumination[n, c, y - 1], log, logs[0, k], f_y, by_s)
                if y + 1 < height:
                    steps += smooth_step(s, illumination[n, c, y + 1], log, logs[2, k], f_y, by_s)
                if width > 1:
                    steps += smooth_step(s[:-1], s[1:], log[:-1], log[1:], f_x, by_s[:-1])
                    smooth_step(s[1:], s[:-1], log[1:], log[:-1], f_x, by_s[1:])
            logs[0] = logs[1]
            logs[1] = logs[2]
        squares += squared
        angles += angle
    return squares, angles, steps


def loss_and_grad(images, eps, clamp, luma, factors, structure):
    """What common.FusedLoss takes from here."""
    n, _, height, width = images[0].shape
    images = tuple(image.numpy() for image in images)
    grad = np.empty_like(images[0])
    dtype, planes = grad.dtype, tuple(image.reshape(3 * n, height, width) for image in images)
    down, across = loss.count_windows(height, width) if structure else (0, 0)
    windows, count = np.empty((3 * n, 3, down, across), dtype), max(3 * n * down * across, 1)
    factors = np.array([*factors, structure / count], dtype)
    rule = dtype.type(eps), bool(clamp), bool(luma)
    unlike = [0.0]
    if structure:
        unlike = parallel_rows(3 * n, lambda *part: structure_planes(planes, windows, part, *rule[:2]), smallest=1)
    parts = parallel_rows(n * height, lambda *rows: loss_rows(images, windows, grad, rows, rule, factors))
    return torch.tensor([*np.sum(parts, axis=0), sum(unlike) / count], dtype=torch.float64), torch.from_numpy(grad)
