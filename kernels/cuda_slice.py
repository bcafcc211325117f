"""Guide, slice and affine of a run of pixels in Triton, the parts that the CUDA kernels for photos and training share.

The grid is interpolated along y beforehand (a small matrix product, which autograd differentiates); a program takes a
run of one row's pixels between the centres of two grid cells, so that all its pixels share the same coefficients,
linear in x, and sums over the luma bins that the run touches.

Programs are (rows, runs of a row): CUDA takes 2^31 on the first axis only. A thread has several pixels, for all of
which it loads the grid's coefficients once; a program of one warp sums without shared memory. A kernel's arguments are
flat, because that is what Triton launches; the functions inside take the three channels as one tuple.
"""

import functools
import itertools

import torch
import triton
import triton.language as tl

from kernels.common import grid_intervals

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
        return tl.maximum(tl.minimum(illumination, 1.0), value)
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
