"""What the kernels for the CPU and for CUDA share: a photo's rule, a row's intervals, the loss as autograd sees it."""

import math
from typing import NamedTuple

import torch


class Rule(NamedTuple):
    """How a grid becomes an illumination, and the illumination a photo."""

    align_corners: bool  # slicing convention, see model.slice_grid
    clip: bool  # clip the illumination to [photo, 1], see model.clip_illumination
    eps: float = 0.0  # added to the illumination before the division
    pedestal: float = 0.0  # levels of 255 that black counts for, see model.IlluminationNet
    strength: float = 1.0  # exponent of the illumination, in [0, 1.5]
    round_down: bool = False  # cut fractions of a level off instead of rounding


def grid_intervals(size, count, align_corners):
    """Which pixels of a row or column lie between the same two cell centres of a grid.

    Args:
        size: pixels. count: cells of the grid along the same axis. align_corners: see model.slice_grid.
    Returns:
        edges: first pixel of each interval between centres, and size; the outer two intervals reach to the row's ends.
        scale, offset: pixel x lies at x * scale + offset on the axis whose whole numbers are the cell centres.
    """
    if align_corners:
        scale, offset = (count - 1) / max(size - 1, 1), 0.0
    else:
        scale, offset = count / size, 0.5 * count / size - 0.5
    inner = [min(size, math.ceil((cell - offset) / scale)) for cell in range(1, count - 1)] if scale else []
    return [0, *inner, size], scale, offset


class FusedLoss(torch.autograd.Function):
    """Weighted sum of the terms over the reflectance of (photo, illumination), and its gradient, in one pass.

    forward(illumination, photo, target, loss_and_grad, eps, clamp, luma, weights) returns (total, terms); terms holds
    the unweighted reconstruction, color, smoothness and structure and has no gradient. Only the illumination gets one.

    loss_and_grad is the device's: ((photo, illumination, target), eps, clamp, luma, factors, weight of structure) to
    sums and gradient. luma: the smoothness guide is the log of the luma, else of each channel. factors: weight / number
    of elements of reconstruction, color, smoothness along x, along y. sums (4) float64: the first two terms' as they
    are, smoothness weighted, and the mean of structure.
    """

    @staticmethod
    def forward(ctx, illumination, photo, target, loss_and_grad, eps, clamp, luma, weights):
        images = [value.detach().contiguous() for value in (photo, illumination, target)]
        n, _, height, width = photo.shape
        pixels = n * height * width
        counts = 3 * pixels, pixels, 3 * n * height * (width - 1), 3 * n * (height - 1) * width
        factors = [w / max(count, 1) for w, count in zip((*weights[:3], weights[2]), counts, strict=True)]
        sums, grad = loss_and_grad(images, eps, clamp, luma, factors, weights[3])
        squared, angle, smooth, structure = sums.unbind()
        terms = torch.stack([squared / counts[0], angle / counts[1], smooth / (weights[2] or 1), structure])
        total = sum(weight * term for weight, term in zip(weights, terms, strict=True)).to(illumination.dtype)
        ctx.save_for_backward(grad)
        ctx.mark_non_differentiable(terms)
        return total, terms

    @staticmethod
    def backward(ctx, total_grad, _):
        (grad,) = ctx.saved_tensors
        whole = total_grad.is_cpu and total_grad == 1  # a GPU is not waited for
        return grad if whole else grad * total_grad, None, None, None, None, None, None, None
