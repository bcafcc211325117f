"""The loss terms of loss.py on the CPU with the gradient by the illumination, in one pass (two with structure)."""

from typing import NamedTuple

import numpy as np
import torch

from kernels.common import count_elements
from kernels.cpu_jit import inlined, kernel, parallel_rows
from kernels.cpu_math import exp2, log2
from loss import C1, C2, LOG_EPS, LUMA, STRIDE, WINDOW, count_windows
from model import TINY


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
        edge = abs(log[x] - other_log[x])
        edge = edge if edge > tiny else tiny  # log2 of 0; 1e-24 is nothing beside 1e-4
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
    reflected = np.empty(width, dtype)
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
                    reflected[x] = reflect(value[x], s[x] + eps, rule.clamp, tiny, zero, one)[0]
                add_moments(group, reflected, wanted)
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
def loss_rows(images, windows, grad, sums, rows, rule, factors):
    """Loss terms of rows rows[0] to rows[1] - 1 of one photo and the gradient of their weighted sum by S.

    images: photo, illumination and target, each (3, H, W), as grad. windows: from structure_rows, or empty without that
    term. sums: (3,) float64, raw sums of reconstruction, color and smoothness, added to. factors: weight / number of
    elements of reconstruction, color, smoothness along x, along y, structure.
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
    smooth = f_x > zero or f_y > zero
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
                    sums[2] += smooth_step(s, illumination[c, y + 1], log, logs[2, k], f_y, by_s)
                if width > 1:
                    sums[2] += smooth_step(s[:-1], s[1:], log[:-1], log[1:], f_x, by_s[:-1])
                    smooth_step(s[1:], s[:-1], log[1:], log[:-1], f_x, by_s[1:])
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
    def forward(ctx, illumination, photo, target, eps, clamp, luma, weights):
        n, _, height, width = photo.shape
        images = [value.detach().contiguous().numpy() for value in (photo, illumination, target)]
        grad = np.empty_like(images[1])
        rule = LossRule(grad.dtype.type(eps), bool(clamp), bool(luma))
        down, across = count_windows(height, width) if weights[3] else (0, 0)
        windows = np.empty((n, 3, 3, down, across), grad.dtype)
        counts = (*count_elements(n, height, width), 3 * n * down * across)
        chosen = (weights[0], weights[1], weights[2], weights[2], weights[3])
        factors = np.array([w / max(c, 1) for w, c in zip(chosen, counts, strict=True)], grad.dtype)

        def strip(first, last, rows, work):
            """Sum of work(photo's number, first row, last row) over rows counted through the batch, photo by photo."""
            sums = 0
            while first < last:
                i, y = divmod(first, rows)
                stop = min(rows, y + last - first)
                sums = sums + work(i, y, stop)
                first += stop - y
            return sums

        def similar(i, y, stop):
            return structure_rows(tuple(image[i] for image in images), windows[i], (y, stop), rule)

        def terms_of(i, y, stop):
            sums = np.zeros(3)
            loss_rows(tuple(image[i] for image in images), windows[i], grad[i], sums, (y, stop), rule, factors)
            return sums

        structure = 0.0
        if windows.size:
            structure = (
                sum(parallel_rows(n * down, lambda y, stop: strip(y, stop, down, similar), smallest=4)) / counts[4]
            )
        sums = sum(parallel_rows(n * height, lambda y, stop: strip(y, stop, height, terms_of)))
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
