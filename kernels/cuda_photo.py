"""A photo enhanced on CUDA in one pass: guide, slice, affine, clip, division and rounding."""

import torch
import triton
import triton.language as tl

from kernels.cuda_slice import (
    bins_of,
    cell_edges,
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
from model import TINY


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
        grid: (12, D, Gh, Gw). The others as in cpu_photo.enhance.
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
