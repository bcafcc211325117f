"""The kernels for CUDA, in Triton; the plain torch path in model.py and loss.py is the definition.

The grid is interpolated along y beforehand (a small matrix product, which autograd differentiates); a program takes a
run of one row's pixels between the centres of two grid cells, so that all its pixels share the same coefficients,
linear in x, and sums over the luma bins that the run touches. The backward pass writes one partial sum for each run and
leaves their addition to torch: no atomics, and the same result every time.

Programs are (rows, runs of a row): CUDA takes 2^31 on the first axis only. A thread has several pixels, for all of
which it loads the grid's coefficients once; a program of one warp sums without shared memory. A kernel's arguments are
flat, because that is what Triton launches; the functions inside take the three channels as one tuple.

Tested with Triton's interpreter on the CPU (TRITON_INTERPRET=1), which proves the arithmetic; not yet run on a GPU.
"""

import functools
import itertools

import torch
import triton
import triton.language as tl

from kernels.common import count_elements, grid_intervals
from loss import LOG_EPS, LUMA, structure_loss
from model import TINY, reflectance

# ------------------------------------------------------------------------------------------------------ guide and slice


BLOCKS = 32, 256  # pixels of a program: the power of two that holds an interval between cell centres, within these
WARP = 128  # pixels of a warp


@triton.jit
def channels_of(image, at, plane, mask):
    """Three channels of an image (N, 3, H, W)."""
    return (
        tl.load(image + at, mask, 0.0),
        tl.load(image + at + plane, mask, 0.0),
        tl.load(image + at + 2 * plane, mask, 0.0),
    )


@triton.jit
def guide_of(pixels, hidden, units: tl.constexpr, tanh: tl.constexpr):
    """Guide in [0, 1]; hidden (units + 1, 5) holds weights, bias and mix, and mix_bias in its last element."""
    red, green, blue = pixels
    guide = tl.load(hidden + units * 5 + 4) + tl.zeros_like(red)
    for j in tl.static_range(units):
        unit = hidden + j * 5
        inside = tl.load(unit) * red + tl.load(unit + 1) * green + tl.load(unit + 2) * blue + tl.load(unit + 3)
        guide += tl.load(unit + 4) * tl.maximum(inside, 0.0)
    if tanh:
        return 1 / (1 + tl.exp(-2 * guide))
    return tl.minimum(tl.maximum(guide, 0.0), 1.0)


@triton.jit
def depth_of(guide, bins: tl.constexpr, align: tl.constexpr):
    """Position along the luma axis in [0, bins - 1]."""
    if align:
        return guide * (bins - 1)
    return tl.minimum(tl.maximum(guide * bins - 0.5, 0.0), bins - 1.0)


@triton.jit
def run_of(starts, run, blocks, width, gw: tl.constexpr, align: tl.constexpr, block: tl.constexpr):
    """(cell, x, mask, part): the pixels of a run, and the weight of cell + 1 at each."""
    cell = run // blocks
    x = tl.load(starts + cell) + (run % blocks) * block + tl.arange(0, block)
    mask = x < tl.load(starts + cell + 1)
    if align:
        place = x.to(tl.float32) * (gw - 1) / tl.maximum(width - 1, 1)
    else:
        place = (x.to(tl.float32) + 0.5) * gw / width - 0.5
    return cell, x, mask, tl.minimum(tl.maximum(place - cell, 0.0), 1.0)


@triton.jit
def bins_of(depth, mask, bins: tl.constexpr):
    """First luma bin that the run touches, and the one after its last; equal where the run is empty."""
    low = tl.min(tl.where(mask, depth, bins - 1.0)).to(tl.int32)
    high = tl.max(tl.where(mask, depth, -2.0)).to(tl.int32) + 2
    return low, tl.maximum(tl.minimum(high, bins), low)


@triton.jit
def affine_of(left, right, channel: tl.constexpr, pixels, part):
    """One output channel of the affine of a luma bin, its coefficients interpolated along x."""
    red, green, blue = pixels
    at, to = left + 4 * channel, right + 4 * channel
    a0, a1, a2, a3 = tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3)
    d0, d1, d2, d3 = tl.load(to) - a0, tl.load(to + 1) - a1, tl.load(to + 2) - a2, tl.load(to + 3) - a3
    return (a0 + d0 * part) * red + (a1 + d1 * part) * green + (a2 + d2 * part) * blue + (a3 + d3 * part)


@triton.jit
def cell_edges(rows, line, cell, gw: tl.constexpr, bins: tl.constexpr):
    """Coefficients of a cell and of the next in row `line` of rows (N * H, Gw, bins, 12)."""
    left = rows + (line * gw + cell) * bins * 12
    right = rows + (line * gw + tl.minimum(cell + 1, gw - 1)) * bins * 12
    return left, right


@triton.jit
def slice_run(left, right, pixels, part, depth, low, high):
    """Illumination of the run, three channels, from luma bins low to high - 1 of a cell and the next."""
    red_s, green_s, blue_s = tl.zeros_like(depth), tl.zeros_like(depth), tl.zeros_like(depth)
    for z in range(low, high):
        weight = tl.maximum(1 - tl.abs(depth - z), 0.0)
        red_s += weight * affine_of(left + z * 12, right + z * 12, 0, pixels, part)
        green_s += weight * affine_of(left + z * 12, right + z * 12, 1, pixels, part)
        blue_s += weight * affine_of(left + z * 12, right + z * 12, 2, pixels, part)
    return red_s, green_s, blue_s


@triton.jit
def clipped(illumination, value, clip: tl.constexpr):
    """One channel of the illumination, clipped to [value, 1] if clip."""
    if clip:
        illumination = tl.where(illumination > 1, 1.0, illumination)  # NaN stays: a diverged run is seen by its loss
        return tl.where(illumination < value, value, illumination)
    return illumination


def grid_rows(grid, height, align_corners):
    """Grid (N, 12, D, Gh, Gw) interpolated along y: (N, height, Gw, D, 12), differentiable."""
    gh = grid.shape[3]
    y = torch.arange(height, device=grid.device, dtype=grid.dtype)
    place = y * (gh - 1) / max(height - 1, 1) if align_corners else (y + 0.5) * gh / height - 0.5
    place = place.clamp(0, gh - 1)
    weights = (1 - (place[:, None] - torch.arange(gh, device=grid.device)).abs()).clamp(min=0)  # (height, Gh)
    return torch.einsum('yh,ncdhx->nyxdc', weights, grid).contiguous()


@functools.lru_cache(maxsize=64)
def row_runs(width, gw, align_corners, device):
    """How a row is shared out.

    Returns:
        starts: first pixel of each interval between cell centres, and the row's end. blocks: programs of an interval.
        block: pixels of a program.
    """
    starts, _, _ = grid_intervals(width, gw, align_corners)
    longest = max(b - a for a, b in itertools.pairwise(starts))
    block = min(max(triton.next_power_of_2(longest), BLOCKS[0]), BLOCKS[1])
    with torch.inference_mode(False):  # the cache also serves training
        return torch.tensor(starts, dtype=torch.int32, device=device), max(1, -(-longest // block)), block


def warps(block):
    """Warps of a program of `block` pixels."""
    return max(1, block // WARP)


def pack_guide(guide):
    """model.FoldedGuide as (units + 1, 5), differentiable."""
    hidden = torch.cat([guide.weights, guide.bias[:, None], guide.mix[:, None]], dim=1)
    return torch.cat([hidden, torch.nn.functional.pad(guide.mix_bias.view(1, 1), (4, 0))]).contiguous()


# --------------------------------------------------------------------------------------------------------------- photos


@triton.jit
def divide(value, illumination, eps, strength, tiny, full: tl.constexpr):
    """The reflectance value / (illumination + eps)^strength; full is strength 1."""
    divisor = illumination + eps
    if full:
        return value / tl.where(tl.abs(divisor) < tiny, tiny, divisor)
    divided = value * tl.exp2(-strength * tl.log2(tl.maximum(divisor, tiny)))
    return tl.where(divisor > -tiny, divided, value * (1 - strength))


@triton.jit
def store_level(enhanced, reflectance, top, half, pedestal, mask):
    """Write a reflectance as a level; half is added before the fraction is cut off."""
    level = tl.minimum(tl.maximum(reflectance * (top + 2 * pedestal) + (half - pedestal), 0.0), top + half)
    tl.store(enhanced, level.to(tl.int32).to(enhanced.dtype.element_ty), mask)


@triton.jit
def enhance_kernel(photo, enhanced, illumination, rows, starts, hidden, width, blocks, eps, strength, tiny, top, half,
                   pedestal, gw: tl.constexpr, bins: tl.constexpr, units: tl.constexpr, tanh: tl.constexpr,
                   align: tl.constexpr, clip: tl.constexpr, full: tl.constexpr, keep: tl.constexpr,
                   block: tl.constexpr):  # fmt: skip
    """Photo (H, W, 3) of integers to enhanced of the same type, and illumination (H, W, 3) float32 if keep."""
    line = tl.program_id(0).to(tl.int64)
    cell, x, mask, part = run_of(starts, tl.program_id(1), blocks, width, gw, align, block)
    at = (line * width + x) * 3
    red = (tl.load(photo + at, mask, 0).to(tl.float32) + pedestal) / (top + 2 * pedestal)
    green = (tl.load(photo + at + 1, mask, 0).to(tl.float32) + pedestal) / (top + 2 * pedestal)
    blue = (tl.load(photo + at + 2, mask, 0).to(tl.float32) + pedestal) / (top + 2 * pedestal)
    pixels = (red, green, blue)
    depth = depth_of(guide_of(pixels, hidden, units, tanh), bins, align)
    low, high = bins_of(depth, mask, bins)
    left, right = cell_edges(rows, line, cell, gw, bins)
    s = slice_run(left, right, pixels, part, depth, low, high)
    red_s, green_s, blue_s = clipped(s[0], red, clip), clipped(s[1], green, clip), clipped(s[2], blue, clip)
    if keep:
        tl.store(illumination + at, red_s, mask)
        tl.store(illumination + at + 1, green_s, mask)
        tl.store(illumination + at + 2, blue_s, mask)
    store_level(enhanced + at, divide(red, red_s, eps, strength, tiny, full), top, half, pedestal, mask)
    store_level(enhanced + at + 1, divide(green, green_s, eps, strength, tiny, full), top, half, pedestal, mask)
    store_level(enhanced + at + 2, divide(blue, blue_s, eps, strength, tiny, full), top, half, pedestal, mask)


def enhance(photo, grid, guide, rule, *, every=0):
    """Enhance a photo on its device.

    Args:
        photo: (H, W, 3) RGB tensor, uint8, or uint16 as int32.
        grid: (12, D, Gh, Gw). The others as in cpu.enhance.
    Returns:
        enhanced like photo, and illumination (ceil(H / every), ceil(W / every), 3) float32 or None.
    """
    height, width, _ = photo.shape
    enhanced = torch.empty_like(photo)
    kept = photo.shape if every else (1,)
    illumination = torch.empty(kept, dtype=torch.float32, device=photo.device)
    rows = grid_rows(grid[None], height, rule.align_corners)
    hidden = pack_guide(guide)
    gw, bins = rows.shape[2:4]
    starts, blocks, block = row_runs(width, gw, rule.align_corners, photo.device)
    top = 255.0 if photo.dtype == torch.uint8 else 65535.0
    with torch.cuda.device_of(photo):  # Triton launches on the thread's current device, the first unless told
        enhance_kernel[height, (len(starts) - 1) * blocks](
            photo, enhanced, illumination, rows, starts, hidden, width, blocks, float(rule.eps), float(rule.strength),
            TINY, top, 0.0 if rule.round_down else 0.5, rule.pedestal * top / 255, gw, bins, len(hidden) - 1,
            guide.tanh, rule.align_corners, rule.clip, rule.strength == 1, every > 0, block,
            num_warps=warps(block),
        )  # fmt: skip
    return enhanced, illumination[::every, ::every] if every else None


# ----------------------------------------------------------------------------------------- illumination, differentiable


@triton.jit
def illumination_kernel(photo, illumination, rows, starts, hidden, height, width, blocks, gw: tl.constexpr,
                        bins: tl.constexpr, units: tl.constexpr, tanh: tl.constexpr, align: tl.constexpr,
                        clip: tl.constexpr, block: tl.constexpr):  # fmt: skip
    """Illumination of photo (N, 3, H, W); programs (N * H, runs of a row)."""
    line = tl.program_id(0).to(tl.int64)
    cell, x, mask, part = run_of(starts, tl.program_id(1), blocks, width, gw, align, block)
    plane = height * width
    at = (line // height) * 3 * plane + (line % height) * width + x
    pixels = channels_of(photo, at, plane, mask)
    depth = depth_of(guide_of(pixels, hidden, units, tanh), bins, align)
    low, high = bins_of(depth, mask, bins)
    left, right = cell_edges(rows, line, cell, gw, bins)
    s = slice_run(left, right, pixels, part, depth, low, high)
    tl.store(illumination + at, clipped(s[0], pixels[0], clip), mask)
    tl.store(illumination + at + plane, clipped(s[1], pixels[1], clip), mask)
    tl.store(illumination + at + 2 * plane, clipped(s[2], pixels[2], clip), mask)


@triton.jit
def free_grad(grad_out, illumination, value, at, mask, clip: tl.constexpr):
    """Gradient by the unclipped illumination: none where it was clipped."""
    grad = tl.load(grad_out + at, mask, 0.0)
    if clip:
        s = tl.load(illumination + at, mask, 0.0)
        grad = tl.where((s > value) & (s < 1), grad, 0.0)
    return grad


@triton.jit
def channel_back(partial, left, right, channel: tl.constexpr, grad, pixels, part, weight, slope):
    """Write the eight sums of one channel and bin; returns the channel's share of the gradient by depth."""
    red, green, blue = pixels
    u = weight * grad
    out = partial + channel * 8
    tl.store(out, tl.sum(u * red))
    tl.store(out + 1, tl.sum(u * green))
    tl.store(out + 2, tl.sum(u * blue))
    tl.store(out + 3, tl.sum(u))
    u *= part
    tl.store(out + 4, tl.sum(u * red))
    tl.store(out + 5, tl.sum(u * green))
    tl.store(out + 6, tl.sum(u * blue))
    tl.store(out + 7, tl.sum(u))
    return slope * grad * affine_of(left, right, channel, pixels, part)


@triton.jit
def illumination_back_kernel(photo, illumination, grad_out, rows, starts, hidden, sums, hidden_sums, height, width,
                             blocks, gw: tl.constexpr, bins: tl.constexpr, units: tl.constexpr, tanh: tl.constexpr,
                             align: tl.constexpr, clip: tl.constexpr, block: tl.constexpr):  # fmt: skip
    """Partial sums of each run: sums (N * H, runs, bins, 24), zero before, and hidden_sums (N * H, runs, units + 1, 5).

    The 24 are, for each channel, the gradient times (red, green, blue, 1), then the same times the weight of cell + 1.
    """
    line = tl.program_id(0).to(tl.int64)
    run = tl.program_id(1)
    cell, x, mask, part = run_of(starts, run, blocks, width, gw, align, block)
    plane = height * width
    at = (line // height) * 3 * plane + (line % height) * width + x
    pixels = channels_of(photo, at, plane, mask)
    red, green, blue = pixels
    guide = guide_of(pixels, hidden, units, tanh)
    depth = depth_of(guide, bins, align)
    low, high = bins_of(depth, mask, bins)
    red_grad = free_grad(grad_out, illumination, red, at, mask, clip)
    green_grad = free_grad(grad_out, illumination, green, at + plane, mask, clip)
    blue_grad = free_grad(grad_out, illumination, blue, at + 2 * plane, mask, clip)

    left, right = cell_edges(rows, line, cell, gw, bins)
    index = line * tl.num_programs(1) + run
    partial = sums + index * bins * 24
    by_depth = tl.zeros_like(red)
    for z in range(low, high):
        offset = depth - z
        weight = tl.maximum(1 - tl.abs(offset), 0.0)
        # the interval is half open, [bin, bin + 1), as grid_sample's floor has it
        slope = tl.where((offset >= 0) & (offset < 1), -1.0, tl.where((offset < 0) & (offset >= -1), 1.0, 0.0))
        a, b, out = left + z * 12, right + z * 12, partial + z * 24
        by_depth += channel_back(out, a, b, 0, red_grad, pixels, part, weight, slope)
        by_depth += channel_back(out, a, b, 1, green_grad, pixels, part, weight, slope)
        by_depth += channel_back(out, a, b, 2, blue_grad, pixels, part, weight, slope)

    scale = bins - 1 if align else bins
    by_guide = tl.where((depth > 0) & (depth < bins - 1), by_depth * scale, 0.0)
    slope = 2 * guide * (1 - guide) if tanh else tl.where((guide > 0) & (guide < 1), 1.0, 0.0)
    by_guide = tl.where(mask, by_guide * slope, 0.0)
    out = hidden_sums + index * (units + 1) * 5
    tl.store(out + units * 5 + 4, tl.sum(by_guide))
    for j in tl.static_range(units):
        unit = hidden + j * 5
        inside = tl.load(unit) * red + tl.load(unit + 1) * green + tl.load(unit + 2) * blue + tl.load(unit + 3)
        grad = tl.where(inside > 0, by_guide, 0.0)
        mixed = grad * tl.load(unit + 4)
        tl.store(out + j * 5, tl.sum(mixed * red))
        tl.store(out + j * 5 + 1, tl.sum(mixed * green))
        tl.store(out + j * 5 + 2, tl.sum(mixed * blue))
        tl.store(out + j * 5 + 3, tl.sum(mixed))
        tl.store(out + j * 5 + 4, tl.sum(grad * inside))


class IlluminationOfRows(torch.autograd.Function):
    """Illumination of photo (N, 3, H, W) from rows (N, H, Gw, D, 12) and the packed guide; no gradient by the photo."""

    @staticmethod
    def forward(ctx, photo, rows, hidden, tanh, align_corners, clip):
        illumination = torch.empty_like(photo)
        n, _, height, width = photo.shape
        gw, bins = rows.shape[2:4]
        starts, blocks, block = row_runs(width, gw, align_corners, photo.device)
        ctx.shape = (height, width, blocks, gw, bins, len(hidden) - 1, tanh, align_corners, clip, block)
        ctx.launch = (n * height, (len(starts) - 1) * blocks)
        with torch.cuda.device_of(photo):  # Triton launches on the thread's current device, the first unless told
            illumination_kernel[ctx.launch](photo, illumination, rows, starts, hidden, *ctx.shape,
                                            num_warps=warps(block))  # fmt: skip
        ctx.save_for_backward(photo, illumination, rows, starts, hidden)
        return illumination

    @staticmethod
    def backward(ctx, grad_out):
        photo, illumination, rows, starts, hidden = ctx.saved_tensors
        lines, runs = ctx.launch
        blocks, gw, bins = ctx.shape[2:5]
        sums = torch.zeros(lines, runs, bins, 24, dtype=rows.dtype, device=rows.device)
        hidden_sums = torch.empty(lines, runs, *hidden.shape, dtype=rows.dtype, device=rows.device)
        hidden_sums[:, :, -1] = 0
        with torch.cuda.device_of(photo):
            illumination_back_kernel[ctx.launch](
                photo, illumination, grad_out.contiguous(), rows, starts, hidden, sums, hidden_sums, *ctx.shape,
                num_warps=warps(ctx.shape[-1]),
            )  # fmt: skip
        sums = sums.view(lines, runs // blocks, blocks, bins, 3, 2, 4).sum(dim=2)
        right = sums[..., 1, :].flatten(-2)  # (lines, intervals, bins, 12)
        left = sums[..., 0, :].flatten(-2) - right
        rows_grad = torch.zeros(lines, gw, bins, 12, dtype=rows.dtype, device=rows.device)
        rows_grad[:, : runs // blocks] += left
        rows_grad[:, -(runs // blocks) :] += right
        return None, rows_grad.view_as(rows), hidden_sums.sum(dim=(0, 1)), None, None, None


def illuminate(photo, grid, guide, rule):
    """Illumination (N, 3, H, W), differentiable by grid (N, 12, D, Gh, Gw) and guide, not by the photo."""
    rows = grid_rows(grid, photo.shape[2], rule.align_corners)
    return IlluminationOfRows.apply(
        photo.contiguous(), rows, pack_guide(guide), guide.tanh, rule.align_corners, rule.clip
    )


# ----------------------------------------------------------------------------------------------------------------- loss


BLOCK = 256  # pixels of a program
LUMA_R, LUMA_G, LUMA_B = (tl.constexpr(weight) for weight in LUMA)
LIFT = tl.constexpr(LOG_EPS)


@triton.jit
def logs_of(photo, at, plane, mask, luma: tl.constexpr):
    """Smoothness guide of three channels: the log of each, or of their luma."""
    red, green, blue = channels_of(photo, at, plane, mask)
    if luma:
        log = tl.log(red * LUMA_R + green * LUMA_G + blue * LUMA_B + LIFT)
        return log, log, log
    return tl.log(red + LIFT), tl.log(green + LIFT), tl.log(blue + LIFT)


@triton.jit
def smooth_step(s, other, log, other_log, mask):
    """(w, s - other) of a pair of neighbours; w is 0 outside the mask."""
    edge = tl.maximum(tl.abs(log - other_log), 1e-20)  # log2 of 0; 1e-24 is nothing beside 1e-4
    return tl.where(mask, 1.5 / (tl.exp2(1.2 * tl.log2(edge)) + 1e-4), 0.0), s - other


@triton.jit
def toward(photo, illumination, at, plane, mask, s, logs, luma: tl.constexpr):
    """Smoothness penalty towards the neighbour that is at `at`, and its halved derivative by each channel of S.

    s, logs: three channels of the pixel's illumination and smoothness guide. mask: where there is that neighbour.
    """
    other = channels_of(illumination, at, plane, mask)
    near = logs_of(photo, at, plane, mask, luma)
    red_weight, red_step = smooth_step(s[0], other[0], logs[0], near[0], mask)
    green_weight, green_step = smooth_step(s[1], other[1], logs[1], near[1], mask)
    blue_weight, blue_step = smooth_step(s[2], other[2], logs[2], near[2], mask)
    red, green, blue = red_weight * red_step, green_weight * green_step, blue_weight * blue_step
    return red * red_step + green * green_step + blue * blue_step, red, green, blue


@triton.jit
def reflect(value, illumination, eps, tiny, clamp: tl.constexpr):
    """(R, dR / dS); the slope is 0 where R is clamped."""
    divisor = illumination + eps
    small = tl.abs(divisor) < tiny
    divisor = tl.where(small, tiny, divisor)
    enhanced = value / divisor
    slope = tl.where(small, 0.0, -enhanced / divisor)
    if clamp:
        slope = tl.where((enhanced >= 0) & (enhanced <= 1), slope, 0.0)
        enhanced = tl.where(enhanced < 0, 0.0, tl.where(enhanced > 1, 1.0, enhanced))
    return enhanced, slope


@triton.jit
def loss_kernel(photo, illumination, target, grad, sums, height, width, eps, tiny, f_mse, f_color, f_x, f_y,
                clamp: tl.constexpr, luma: tl.constexpr, block: tl.constexpr):  # fmt: skip
    """Loss terms of a run of pixels and the gradient of their weighted sum by the illumination.

    photo, illumination, target, grad: (N, 3, H, W). sums (N * H, runs of a row, 3): raw sums of reconstruction and
    color, and the weighted one of smoothness. Factors: weight / number of elements of reconstruction, color, smoothness
    along x and y.
    """
    line = tl.program_id(0).to(tl.int64)
    x = tl.program_id(1) * block + tl.arange(0, block)
    mask = x < width
    y = line % height + tl.zeros_like(x)  # Triton's interpreter takes no mask that is not from a block
    plane = height * width
    at = (line // height) * 3 * plane + y * width + x
    value = channels_of(photo, at, plane, mask)
    s = channels_of(illumination, at, plane, mask)
    target_r, target_g, target_b = channels_of(target, at, plane, mask)
    out_r, back_r = reflect(value[0], s[0], eps, tiny, clamp)
    out_g, back_g = reflect(value[1], s[1], eps, tiny, clamp)
    out_b, back_b = reflect(value[2], s[2], eps, tiny, clamp)

    error_r, error_g, error_b = out_r - target_r, out_g - target_g, out_b - target_b
    squared = error_r * error_r + error_g * error_g + error_b * error_b

    lift = 1e-4 * 1e-4  # color_loss's eps squared
    dot = out_r * target_r + out_g * target_g + out_b * target_b + lift
    own = out_r * out_r + out_g * out_g + out_b * out_b + lift
    theirs = target_r * target_r + target_g * target_g + target_b * target_b + lift
    norm = 1 / tl.sqrt(own * theirs)
    cosine = dot * norm
    along, across = f_color * cosine / own, f_color * norm

    logs = logs_of(photo, at, plane, mask, luma)
    right, right_r, right_g, right_b = toward(photo, illumination, at + 1, plane, mask & (x + 1 < width), s, logs, luma)
    _, left_r, left_g, left_b = toward(photo, illumination, at - 1, plane, mask & (x > 0), s, logs, luma)
    down, down_r, down_g, down_b = toward(
        photo, illumination, at + width, plane, mask & (y + 1 < height), s, logs, luma
    )
    _, up_r, up_g, up_b = toward(photo, illumination, at - width, plane, mask & (y > 0), s, logs, luma)

    by_r = back_r * (2 * f_mse * error_r + along * out_r - across * target_r)
    by_g = back_g * (2 * f_mse * error_g + along * out_g - across * target_g)
    by_b = back_b * (2 * f_mse * error_b + along * out_b - across * target_b)
    tl.store(grad + at, by_r + 2 * (f_x * (right_r + left_r) + f_y * (down_r + up_r)), mask)
    tl.store(grad + at + plane, by_g + 2 * (f_x * (right_g + left_g) + f_y * (down_g + up_g)), mask)
    tl.store(grad + at + 2 * plane, by_b + 2 * (f_x * (right_b + left_b) + f_y * (down_b + up_b)), mask)
    out = sums + (line * tl.num_programs(1) + tl.program_id(1)) * 3
    tl.store(out, tl.sum(tl.where(mask, squared, 0.0)))
    tl.store(out + 1, tl.sum(tl.where(mask, 1 - cosine, 0.0)))
    tl.store(out + 2, tl.sum(f_x * right + f_y * down))  # the pixels to the left and above count the other two


class FusedLoss(torch.autograd.Function):
    """cpu.FusedLoss on the device, without waiting for it. The structure term, not DeepUPE's, is plain torch."""

    @staticmethod
    def forward(ctx, illumination, photo, target, eps, clamp, luma, weights):
        photo, illumination, target = (value.detach().contiguous() for value in (photo, illumination, target))
        n, _, height, width = photo.shape
        grad = torch.empty_like(illumination)
        runs = triton.cdiv(width, BLOCK)
        sums = torch.empty(n * height, runs, 3, device=illumination.device)
        counts = count_elements(n, height, width)
        factors = [w / max(count, 1) for w, count in zip((*weights[:3], weights[2]), counts, strict=True)]
        with torch.cuda.device_of(photo):  # Triton launches on the thread's current device, the first unless told
            loss_kernel[n * height, runs](
                photo, illumination, target, grad, sums, height, width, eps, TINY, *factors, clamp, luma, BLOCK
            )
        squared, angle, smooth = sums.sum(dim=(0, 1), dtype=torch.float64).unbind()
        terms = [squared / counts[0], angle / counts[1], smooth / (weights[2] or 1)]
        terms.append(torch.zeros_like(smooth))
        if weights[3]:
            with torch.enable_grad():
                s = illumination.requires_grad_()
                structure = structure_loss(reflectance(photo, s, eps, clamp=clamp), target)
                grad.add_(torch.autograd.grad(structure, s)[0], alpha=weights[3])
            terms[3] = structure.detach().double()
        terms = torch.stack(terms)
        total = sum(weight * term for weight, term in zip(weights, terms, strict=True)).to(illumination.dtype)
        ctx.save_for_backward(grad)
        ctx.mark_non_differentiable(terms)
        return total, terms

    @staticmethod
    def backward(ctx, total_grad, _):
        (grad,) = ctx.saved_tensors
        return grad * total_grad, None, None, None, None, None, None
