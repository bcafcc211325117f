"""The kernels for CUDA, in Triton; the plain torch path in model.py and loss.py is the definition.

The grid is interpolated along y beforehand (a small matrix product, which autograd differentiates); a program takes a
run of one row's pixels between the centres of two grid cells, so that all its pixels share the same coefficients,
linear in x, and sums over the luma bins that the run touches. The backward pass writes one partial sum for each run and
leaves their addition to torch: no atomics, and the same result every time.

Programs are (rows, cells, runs of a cell): CUDA takes 2^31 on the first axis only. A thread has several pixels, for all
of which it loads the grid's coefficients once; a program of one warp sums without shared memory. A kernel's arguments
are flat, because that is what Triton launches; the functions inside take the three channels as one tuple.

Instructions bound enhance_kernel, not memory (docs/speed.md). The tests run on a GPU, as they did on an H200, else in
Triton's interpreter on the CPU (TRITON_INTERPRET=1).
"""

import functools
import itertools
import math
import threading
import warnings
import weakref

import torch
import triton
import triton.language as tl

from kernels.common import grid_intervals
from loss import LOG_EPS, LUMA, structure_loss
from model import TINY, reflectance

# ------------------------------------------------------------------------------------------------------ guide and slice


BLOCKS = 32, 128  # pixels of a run: the power of two that holds an interval between cell centres, within these
LINES = 4  # rows of a program that enhances
GROUP, STEPS = 16, 32  # units of a program, and times BLOCK its pixels, where the guide's gradients are added up
LOG2_E = tl.constexpr(1 / math.log(2))


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
    """Guide in [0, 1]; hidden is that of pack_guide."""
    red, green, blue = pixels
    guide = tl.load(hidden + units * 5 + 4) + tl.zeros_like(red)
    if tanh:
        for j in tl.static_range(units):
            unit = hidden + j * 5
            inside = tl.load(unit + 1) * green + (tl.load(unit + 2) * blue + tl.load(unit + 3))
            guide += tl.load(unit + 4) * tl.maximum(tl.load(unit) * red + inside, 0.0)
        up = 1 + tl.exp2(guide * (-2 * LOG2_E))
        return tl.rsqrt(up * up)  # 1 / up by 2 instructions instead of 9
    guide += tl.load(hidden + units * 5 + 3)
    for j in tl.static_range(units):
        unit = hidden + j * 5
        if j % (units // 3) == 0:  # the units of a curve share their weights
            minus = -(tl.load(unit) * red + (tl.load(unit + 1) * green + tl.load(unit + 2) * blue))
        guide -= tl.load(unit + 4) * tl.minimum(minus, tl.load(unit + 3))
    return tl.minimum(tl.maximum(guide, 0.0), 1.0)


@triton.jit
def depth_of(guide, bins: tl.constexpr, align: tl.constexpr):
    """Position along the luma axis in [0, bins - 1]."""
    if align:
        return guide * (bins - 1)
    return tl.minimum(tl.maximum(guide * bins - 0.5, 0.0), bins - 1.0)


@triton.jit
def run_of(starts, width, gw: tl.constexpr, align: tl.constexpr, block: tl.constexpr):
    """(count, x, part) of a run: how many pixels, where (its last one's behind its end), weight of cell + 1 at each."""
    cell = tl.program_id(1)
    start = tl.load(starts + cell) + tl.program_id(2) * block
    end = tl.load(starts + cell + 1)
    x = tl.minimum(start + tl.arange(0, block), end - 1)
    if align:
        place = x.to(tl.float32) * ((gw - 1) / tl.maximum(width - 1, 1))
    else:
        place = (x.to(tl.float32) + 0.5) * (gw / width) - 0.5
    return end - start, x, tl.minimum(tl.maximum(place - cell, 0.0), 1.0)


@triton.jit
def affine_of(left, right, channel: tl.constexpr, pixels, part):
    """One output channel of the affine of a luma bin, its coefficients interpolated along x."""
    red, green, blue = pixels
    at, to = left + 4 * channel, right + 4 * channel
    a0, a1, a2, a3 = tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3)
    d0, d1, d2, d3 = tl.load(to) - a0, tl.load(to + 1) - a1, tl.load(to + 2) - a2, tl.load(to + 3) - a3
    return (a0 + d0 * part) * red + ((a1 + d1 * part) * green + ((a2 + d2 * part) * blue + (a3 + d3 * part)))


@triton.jit
def cell_edges(rows, line, gw: tl.constexpr, bins: tl.constexpr):
    """Coefficients of the program's cell and of the next in row `line` of rows (N * H, Gw, bins, 12)."""
    cell = tl.program_id(1)
    left = rows + (line * gw + cell) * bins * 12
    right = rows + (line * gw + tl.minimum(cell + 1, gw - 1)) * bins * 12
    return left, right


@triton.jit
def clipped(illumination, value, clip: tl.constexpr):
    """One channel of the illumination, clipped to [value, 1] if clip."""
    if clip:  # NaN stays: a diverged run is seen by its loss
        illumination = tl.minimum(illumination, 1.0, propagate_nan=tl.PropagateNan.ALL)
        return tl.maximum(illumination, value, propagate_nan=tl.PropagateNan.ALL)
    return illumination


@triton.jit
def illuminate_run(pixels, part, rows, line, hidden, gw: tl.constexpr, bins: tl.constexpr, units: tl.constexpr,
                   tanh: tl.constexpr, align: tl.constexpr, clip: tl.constexpr):  # fmt: skip
    """(red, green, blue, guide): the illumination and the guide of a run in row `line` of rows."""
    guide = guide_of(pixels, hidden, units, tanh)
    depth = depth_of(guide, bins, align)
    low, high = tl.min(depth).to(tl.int32), tl.minimum(tl.max(depth).to(tl.int32) + 2, bins)  # bins that it touches
    left, right = cell_edges(rows, line, gw, bins)
    red, green, blue = tl.zeros_like(depth), tl.zeros_like(depth), tl.zeros_like(depth)
    for z in range(low, high):
        weight = tl.maximum(1 - tl.abs(depth - z), 0.0)
        red += weight * affine_of(left + z * 12, right + z * 12, 0, pixels, part)
        green += weight * affine_of(left + z * 12, right + z * 12, 1, pixels, part)
        blue += weight * affine_of(left + z * 12, right + z * 12, 2, pixels, part)
    return clipped(red, pixels[0], clip), clipped(green, pixels[1], clip), clipped(blue, pixels[2], clip), guide


@functools.lru_cache(maxsize=64)
def row_weights(height, gh, align_corners, device):
    """Weights (height, Gh) of a grid's rows at a photo's rows."""
    y = torch.arange(height, dtype=torch.float32)
    place = y * (gh - 1) / max(height - 1, 1) if align_corners else (y + 0.5) * gh / height - 0.5
    weights = (1 - (place.clamp(0, gh - 1)[:, None] - torch.arange(gh)).abs()).clamp(min=0)
    with torch.inference_mode(False):  # the cache also serves training
        return weights.to(device, copy=True)


def grid_rows(grid, height, align_corners):
    """Grid (N, 12, D, Gh, Gw) interpolated along y: (N, height, Gw, D, 12), differentiable."""
    n, channels, bins, gh, gw = grid.shape
    lines = grid.permute(0, 3, 4, 2, 1).reshape(n, gh, -1)
    return (row_weights(height, gh, align_corners, grid.device) @ lines).view(n, height, gw, bins, channels)


@functools.lru_cache(maxsize=64)
def row_runs(width, gw, align_corners, device):
    """First pixel of each interval between cell centres, and the end; intervals; programs of one; pixels of those."""
    starts, _, _ = grid_intervals(width, gw, align_corners)
    longest = max(b - a for a, b in itertools.pairwise(starts))
    block = min(max(triton.next_power_of_2(longest), BLOCKS[0]), BLOCKS[1])
    with torch.inference_mode(False):  # the cache also serves training
        first = torch.tensor(starts, dtype=torch.int32, device=device)
    return first, len(starts) - 1, max(1, -(-longest // block)), block


def pack_guide(guide):
    """model.FoldedGuide as (units + 1, 5), differentiable: weights, bias, mix; then 0, 0, 0, mix . bias, mix_bias.

    mix . bias, here without a gradient, lets guide_of take max(colour, -bias) for relu(colour + bias).
    """
    hidden = torch.cat([guide.weights, guide.bias[:, None], guide.mix[:, None]], dim=1)
    last = torch.stack([guide.mix.detach() @ guide.bias.detach(), guide.mix_bias])
    return torch.cat([hidden, torch.nn.functional.pad(last, (3, 0))[None]])


# --------------------------------------------------------------------------------------------------------------- graphs


GRAPHS, GRAPHS_LOCK = weakref.WeakKeyDictionary(), threading.Lock()  # record_grid's of each network


@torch.inference_mode(False)
@torch.no_grad()
def record_grid(network, lowres):
    """(lowres, graph, grid, event): network.predict_grid as one launch, which reads and writes these two tensors."""
    lowres, graph = lowres.clone(), torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):  # cuDNN and cuBLAS set themselves up, which a graph cannot hold
        network.predict_grid(lowres)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, capture_error_mode='thread_local'):
        grid = network.predict_grid(lowres)
    return lowres, graph, grid, torch.cuda.Event()


def predict_grid(network, lowres):
    """network.predict_grid(lowres), in evaluation by a CUDA graph, which reads the weights where they lie."""
    if network.training or torch.is_grad_enabled() or torch.is_autocast_enabled() or lowres.device.type != 'cuda':
        return network.predict_grid(lowres)
    key = [lowres.shape, lowres.dtype, lowres.device, network.pedestal, network.vibrance, *places(network)]
    with GRAPHS_LOCK, torch.cuda.device_of(lowres):
        if network not in GRAPHS or GRAPHS[network][0] != key:
            GRAPHS[network] = key, *record_grid(network, lowres)
        _, given, graph, grid, done = GRAPHS[network]
        torch.cuda.current_stream().wait_event(done)  # another thread's call may still run on its own stream
        given.copy_(lowres)
        graph.replay()
        grid = grid.clone()
        done.record()
    return grid


def places(module):
    """Where a module's weights and buffers lie, found four times as fast as by parameters() and buffers()."""
    held = *module._parameters.values(), *module._buffers.values()
    found = [value.data_ptr() for value in held if value is not None]
    return found + [place for child in module._modules.values() for place in places(child)]


def record_step(step, images):
    """Have a module in training replay two CUDA graphs, forward and backward, instead of its hundreds of launches.

    Its buffers stay as they are, and what it returns lasts until its next call. images: the tensors that it is called
    with; it runs as before on others whose shapes differ.
    """
    warnings.filterwarnings('ignore', "The AccumulateGrad node's stream")  # of the recording; autograd waits for it
    plain, buffers = step.forward, [value.clone() for value in step.buffers()]
    torch.cuda.make_graphed_callables(step, tuple(image.clone() for image in images), allow_unused_input=True)
    for value, before in zip(step.buffers(), buffers, strict=True):  # it ran a few times
        value.copy_(before)
    recorded, shapes = step.forward, [image.shape for image in images]
    step.forward = lambda *given: (recorded if [value.shape for value in given] == shapes else plain)(*given)


# --------------------------------------------------------------------------------------------------------------- photos


@triton.jit
def brighten(enhanced, raised, illumination, eps, strength, tiny, top, shift, full: tl.constexpr):
    """Write one channel: raised / (illumination + eps)^strength as a level; full is strength 1."""
    divisor = illumination + eps
    least = tl.maximum(divisor, tiny)
    gain = tl.rsqrt(least * least) if full else tl.exp2(-strength * tl.log2(least))
    level = raised * tl.where(divisor > -tiny, gain, 1 - strength) + shift
    level = tl.minimum(tl.maximum(level, 0.0), top)
    tl.store(enhanced, level.to(tl.int32).to(enhanced.dtype.element_ty))


@triton.jit
def enhance_kernel(photo, enhanced, illumination, rows, starts, hidden, height, width, eps, strength, tiny, top, shift,
                   pedestal, scale, gw: tl.constexpr, bins: tl.constexpr, units: tl.constexpr, tanh: tl.constexpr,
                   align: tl.constexpr, clip: tl.constexpr, full: tl.constexpr, keep: tl.constexpr,
                   lines: tl.constexpr, block: tl.constexpr):  # fmt: skip
    """Photo (H, W, 3) of integers to enhanced of the same type, and illumination (H, W, 3) float32 if keep.

    A level plus pedestal, times scale, is in [0, 1]; shift is added to a level before its fraction is cut off.
    """
    count, x, part = run_of(starts, width, gw, align, block)
    if count <= 0:
        return
    first = tl.program_id(0).to(tl.int64) * lines
    for i in range(tl.minimum(height - first, lines).to(tl.int32)):
        line = first + i
        start = line * width * 3
        source, out = photo + start + x * 3, enhanced + start + x * 3
        red_raised = tl.load(source).to(tl.int32).to(tl.float32) + pedestal
        green_raised = tl.load(source + 1).to(tl.int32).to(tl.float32) + pedestal
        blue_raised = tl.load(source + 2).to(tl.int32).to(tl.float32) + pedestal
        pixels = (red_raised * scale, green_raised * scale, blue_raised * scale)
        light = illuminate_run(pixels, part, rows, line, hidden, gw, bins, units, tanh, align, clip)
        raised = (red_raised, green_raised, blue_raised)
        for c in tl.static_range(3):
            if keep:
                tl.store(illumination + start + x * 3 + c, light[c])
            brighten(out + c, raised[c], light[c], eps, strength, tiny, top, shift, full)


def enhance(photo, grid, guide, rule, *, every=0):
    """cpu.enhance of a tensor (H, W, 3) on its device, uint8, or uint16 as int32; gives tensors."""
    height, width, _ = photo.shape
    enhanced = torch.empty_like(photo)
    illumination = torch.empty(photo.shape if every else 1, dtype=torch.float32, device=photo.device)
    rows = grid_rows(grid[None], height, rule.align_corners)
    hidden = pack_guide(guide)
    gw, bins = rows.shape[2:4]
    starts, cells, runs, block = row_runs(width, gw, rule.align_corners, photo.device)
    top = 255.0 if photo.dtype == torch.uint8 else 65535.0
    half, pedestal = 0.0 if rule.round_down else 0.5, rule.pedestal * top / 255
    with torch.cuda.device_of(photo):  # Triton launches on the thread's current device, the first unless told
        enhance_kernel[triton.cdiv(height, LINES), cells, runs](
            photo, enhanced, illumination, rows, starts, hidden, height, width, float(rule.eps), float(rule.strength),
            TINY, top + half, half - pedestal, pedestal, 1 / (top + 2 * pedestal), gw, bins, len(hidden) - 1,
            guide.tanh, rule.align_corners, rule.clip, rule.strength == 1, every > 0, LINES, block, num_warps=1,
        )  # fmt: skip
    return enhanced, illumination[::every, ::every] if every else None


# ----------------------------------------------------------------------------------------- illumination, differentiable


@triton.jit
def illumination_kernel(photo, illumination, guides, rows, starts, hidden, height, width, gw: tl.constexpr,
                        bins: tl.constexpr, units: tl.constexpr, tanh: tl.constexpr, align: tl.constexpr,
                        clip: tl.constexpr, block: tl.constexpr):  # fmt: skip
    """Illumination and guide (N, H, W) of photo (N, 3, H, W); programs (N * H, cells, runs of a cell)."""
    line = tl.program_id(0).to(tl.int64)
    count, x, part = run_of(starts, width, gw, align, block)
    if count <= 0:
        return
    plane = height * width
    at = (line // height) * 3 * plane + (line % height) * width + x
    pixels = channels_of(photo, at, plane, x < width)
    light = illuminate_run(pixels, part, rows, line, hidden, gw, bins, units, tanh, align, clip)
    tl.store(guides + line * width + x, light[3])
    for c in tl.static_range(3):
        tl.store(illumination + at + c * plane, light[c])


@triton.jit
def free_grad(grad_out, illumination, value, at, mask, clip: tl.constexpr):
    """Gradient by the unclipped illumination: none where it was clipped."""
    grad = tl.load(grad_out + at, mask, 0.0)
    if clip:
        s = tl.load(illumination + at, mask, 0.0)
        grad = tl.where((s > value) & (s < 1), grad, 0.0)
    return grad


@triton.jit
def store_sums(out, grad, pixels):
    """Write the sums of grad times (red, green, blue, 1)."""
    tl.store(out, tl.sum(grad * pixels[0]))
    tl.store(out + 1, tl.sum(grad * pixels[1]))
    tl.store(out + 2, tl.sum(grad * pixels[2]))
    tl.store(out + 3, tl.sum(grad))


@triton.jit
def channel_back(left_sums, right_sums, left, right, channel: tl.constexpr, grad, pixels, part, weight, slope):
    """Write the sums of one channel and bin for both cells; returns the channel's share of the gradient by depth."""
    by_right = weight * grad * part
    store_sums(left_sums + channel * 4, weight * grad - by_right, pixels)
    store_sums(right_sums + channel * 4, by_right, pixels)
    return slope * grad * affine_of(left, right, channel, pixels, part)


@triton.jit
def illumination_back_kernel(photo, illumination, guides, grad_out, rows, starts, sums, by_guides, height, width,
                             gw: tl.constexpr, bins: tl.constexpr, tanh: tl.constexpr, align: tl.constexpr,
                             clip: tl.constexpr, block: tl.constexpr):  # fmt: skip
    """Gradients by the guide before its squash and, in sums, by the coefficients of the run's cell and of the next."""
    line = tl.program_id(0).to(tl.int64)
    count, x, part = run_of(starts, width, gw, align, block)
    if count <= 0:
        return
    mask = tl.arange(0, block) < count
    plane = height * width
    at = (line // height) * 3 * plane + (line % height) * width + x
    pixels = channels_of(photo, at, plane, x < width)
    guide = tl.load(guides + line * width + x)
    depth = depth_of(guide, bins, align)
    low, high = tl.min(depth).to(tl.int32), tl.minimum(tl.max(depth).to(tl.int32) + 2, bins)  # bins that it touches
    red_grad = free_grad(grad_out, illumination, pixels[0], at, mask, clip)
    green_grad = free_grad(grad_out, illumination, pixels[1], at + plane, mask, clip)
    blue_grad = free_grad(grad_out, illumination, pixels[2], at + 2 * plane, mask, clip)

    left, right = cell_edges(rows, line, gw, bins)
    lines, cells = tl.num_programs(0), tl.num_programs(1)
    left_sums = sums + ((tl.program_id(2) * 2 * lines + line) * cells + tl.program_id(1)) * bins * 12
    right_sums = left_sums + lines.to(tl.int64) * cells * bins * 12
    by_depth = tl.zeros_like(depth)
    for z in range(low, high):
        offset = depth - z
        weight = tl.maximum(1 - tl.abs(offset), 0.0)
        # the interval is half open, [bin, bin + 1), as grid_sample's floor has it
        slope = tl.where((offset >= 0) & (offset < 1), -1.0, tl.where((offset < 0) & (offset >= -1), 1.0, 0.0))
        a, b, c, d = left_sums + z * 12, right_sums + z * 12, left + z * 12, right + z * 12
        by_depth += channel_back(a, b, c, d, 0, red_grad, pixels, part, weight, slope)
        by_depth += channel_back(a, b, c, d, 1, green_grad, pixels, part, weight, slope)
        by_depth += channel_back(a, b, c, d, 2, blue_grad, pixels, part, weight, slope)

    scale = bins - 1 if align else bins
    by_guide = tl.where((depth > 0) & (depth < bins - 1), by_depth * scale, 0.0)
    slope = 2 * guide * (1 - guide) if tanh else tl.where((guide > 0) & (guide < 1), 1.0, 0.0)
    tl.store(by_guides + line * width + x, by_guide * slope, mask)


@triton.jit
def guide_back_kernel(photo, by_guides, hidden, sums, plane, parts, units: tl.constexpr, group: tl.constexpr,
                      steps: tl.constexpr, block: tl.constexpr):  # fmt: skip
    """Sums (N * parts, units, 4) of the guide's gradient times (red, green, blue, 1) where a unit is active."""
    index = tl.program_id(0).to(tl.int64)
    unit = tl.program_id(1) * group + tl.arange(0, group)
    weights = hidden + unit[:, None] * 5
    by_red, by_green, by_blue, bias = tl.load(weights), tl.load(weights + 1), tl.load(weights + 2), tl.load(weights + 3)
    zero = tl.zeros((group, block), tl.float32)
    red_sum, green_sum, blue_sum, grad_sum = zero, zero, zero, zero
    photo += index // parts * 3 * plane
    by_guides += index // parts * plane
    for step in range(steps):
        at = (index % parts * steps + step) * block + tl.arange(0, block)[None, :]
        red, green, blue = channels_of(photo, at, plane, at < plane)
        inside = by_red * red + (by_green * green + (by_blue * blue + bias))
        grad = tl.where(inside > 0, tl.load(by_guides + at, at < plane, 0.0), 0.0)
        red_sum += grad * red
        green_sum += grad * green
        blue_sum += grad * blue
        grad_sum += grad
    out = sums + (index * units + unit) * 4
    tl.store(out, tl.sum(red_sum, axis=1))
    tl.store(out + 1, tl.sum(green_sum, axis=1))
    tl.store(out + 2, tl.sum(blue_sum, axis=1))
    tl.store(out + 3, tl.sum(grad_sum, axis=1))


class IlluminationOfRows(torch.autograd.Function):
    """Illumination of photo (N, 3, H, W) from rows (N, H, Gw, D, 12) and the packed guide; no gradient by the photo."""

    @staticmethod
    def forward(ctx, photo, rows, hidden, tanh, align_corners, clip):
        illumination = torch.empty_like(photo)
        guides = torch.empty_like(photo[:, 0])
        n, _, height, width = photo.shape
        gw, bins = rows.shape[2:4]
        starts, cells, runs, block = row_runs(width, gw, align_corners, photo.device)
        ctx.shape, ctx.rule = (height, width, gw, bins), (tanh, align_corners, clip, block)
        ctx.launch = (n * height, cells, runs)
        with torch.cuda.device_of(photo):  # Triton launches on the thread's current device, the first unless told
            illumination_kernel[ctx.launch](photo, illumination, guides, rows, starts, hidden, *ctx.shape,
                                            len(hidden) - 1, *ctx.rule, num_warps=1)  # fmt: skip
        ctx.save_for_backward(photo, illumination, guides, rows, starts, hidden)
        return illumination

    @staticmethod
    def backward(ctx, grad_out):
        photo, illumination, guides, rows, starts, hidden = ctx.saved_tensors
        lines, cells, runs = ctx.launch
        height, width, gw, bins = ctx.shape
        units, parts = len(hidden) - 1, triton.cdiv(height * width, STEPS * BLOCK)
        sums = rows.new_zeros(runs, 2, lines, cells, bins, 12)
        by_guides = torch.empty_like(guides)
        unit_sums = rows.new_empty(len(photo) * parts, units, 4)
        with torch.cuda.device_of(photo):
            illumination_back_kernel[ctx.launch](
                photo, illumination, guides, grad_out.contiguous(), rows, starts, sums, by_guides, *ctx.shape,
                *ctx.rule, num_warps=1,
            )  # fmt: skip
            guide_back_kernel[len(photo) * parts, units // GROUP](
                photo, by_guides, hidden, unit_sums, height * width, parts, units, GROUP, STEPS, BLOCK
            )
        left, right = sums.sum(dim=0) if runs > 1 else sums[0]
        rows_grad = rows.new_zeros(lines, gw, bins, 12)
        rows_grad[:, :cells] = left
        rows_grad[:, -cells:] += right
        active = unit_sums.sum(dim=0)  # (units, 4)
        hidden_grad = torch.zeros_like(hidden)
        hidden_grad[:-1, :4] = active * hidden[:-1, 4:]
        hidden_grad[:-1, 4] = (active * hidden[:-1, :4]).sum(dim=1)
        hidden_grad[-1, 4] = by_guides.sum()
        return None, rows_grad.view_as(rows), hidden_grad, None, None, None


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
    """Smoothness penalty towards the neighbour at `at`, if mask, and its halved derivative by each channel of S."""
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
    """Gradient of the loss by a run's illumination, and sums (N * H, runs of a row, 3), factors: see FusedLoss."""
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


def loss_and_grad(images, eps, clamp, luma, factors, structure):
    """What common.FusedLoss takes from a device, without waiting for it. The structure term is plain torch."""
    photo, illumination, target = images
    n, _, height, width = photo.shape
    grad = torch.empty_like(illumination)
    runs = triton.cdiv(width, BLOCK)
    sums = torch.empty(n * height, runs, 3, device=photo.device)
    with torch.cuda.device_of(photo):  # Triton launches on the thread's current device, the first unless told
        loss_kernel[n * height, runs](
            photo, illumination, target, grad, sums, height, width, eps, TINY, *factors, clamp, luma, BLOCK
        )
    sums = torch.nn.functional.pad(sums.sum(dim=(0, 1), dtype=torch.float64), (0, 1))
    if structure:
        with torch.enable_grad():
            s = illumination.requires_grad_()
            unlike = structure_loss(reflectance(photo, s, eps, clamp=clamp), target)
            grad.add_(torch.autograd.grad(unlike, s)[0], alpha=structure)
        sums[3] = unlike.detach()
    return sums, grad
