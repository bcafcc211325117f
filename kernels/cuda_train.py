"""Illumination on CUDA as a differentiable function.

The backward pass writes one partial sum for each run and leaves their addition to torch: no atomics, and the same
result every time.
"""

import torch
import triton
import triton.language as tl

from kernels.cuda_slice import (
    affine_of,
    bins_of,
    cell_edges,
    channels_of,
    clipped,
    depth_of,
    grid_rows,
    guide_of,
    pack_guide,
    row_runs,
    run_of,
    slice_run,
    warps,
)


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
