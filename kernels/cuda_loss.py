"""The loss terms of loss.py on CUDA with the gradient by the illumination, in one pass; structure is plain torch."""

import torch
import triton
import triton.language as tl

from kernels.common import count_elements
from kernels.cuda_slice import channels_of
from loss import LOG_EPS, LUMA, structure_loss
from model import TINY, reflectance

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
        enhanced = tl.minimum(tl.maximum(enhanced, 0.0), 1.0)
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
    """cpu_loss.FusedLoss on the device, without waiting for it. The structure term, not DeepUPE's, is plain torch."""

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
