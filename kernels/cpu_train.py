"""Illumination on the CPU as a differentiable function: SliceApply, its forward and backward pass.

The plain torch path in model.py is the definition.
"""

import numpy as np
import torch

from kernels.common import Rule
from kernels.cpu_jit import inlined, kernel, parallel_rows
from kernels.cpu_slice import (
    bins_of_run,
    depth_of_row,
    grid_array,
    guide_arrays,
    guide_of_row,
    illumination_of_row,
    row_of_grid,
    runs_of_row,
)


@kernel
def illumination_rows(photo, illumination, rows, grid, guide, runs, rule):
    """Illumination of rows rows[0] to rows[1] - 1, counted through the batch, of photo (N, 3, H, W)."""
    _, _, height, width = photo.shape
    dtype = photo.dtype
    one = photo.dtype.type(1)
    guides, depth = np.empty(width, dtype), np.empty(width, dtype)
    out = np.empty((3, width), dtype)
    row = np.empty((grid.shape[2], grid.shape[3], 12), dtype)
    for line in range(rows[0], rows[1]):
        n, y = line // height, line % height
        row_of_grid(grid[n], y, height, rule.align_corners, row)
        illumination_of_row((photo[n, 0, y], photo[n, 1, y], photo[n, 2, y]), runs.spans[0], runs.part, row, guide,
                            rule.align_corners, (guides, depth), out)  # fmt: skip
        for c in range(3):
            value, result = photo[n, c, y], illumination[n, c, y]
            for x in range(width):
                s = out[c, x]
                if rule.clip:
                    s = s if s < one else one
                    s = s if s > value[x] else value[x]
                result[x] = s


@inlined
def slice_run_back(row, cell, bins, pixels, place, grad_out, grads, want_photo):
    """Gradients through slice_run.

    place: depth and part, each (n,). grad_out: (3, n), by the unclipped illumination. grads: row_grad (Gw, D, 12),
    added to; depth_grad (n,), set; photo_grad (3, n), added to if want_photo.
    """
    red, green, blue = pixels
    depth, part = place
    row_grad, depth_grad, photo_grad = grads
    dtype = red.dtype.type
    zero, one = dtype(0), dtype(1)
    depth_grad[:] = zero
    right = min(cell + 1, row.shape[0] - 1)
    for z in range(bins[0], bins[1]):
        bin_ = dtype(z)
        for c in range(3):
            channel = slice(4 * c, 4 * c + 4)
            a, e, by_s = row[cell, z, channel], row[right, z, channel], grad_out[c]
            a0, a1, a2, a3 = a[0], a[1], a[2], a[3]
            d0, d1, d2, d3 = e[0] - a0, e[1] - a1, e[2] - a2, e[3] - a3
            s0, s1, s2, s3 = zero, zero, zero, zero
            t0, t1, t2, t3 = zero, zero, zero, zero
            for x in range(red.size):
                t, r, g, b = part[x], red[x], green[x], blue[x]
                offset = depth[x] - bin_
                w = one - abs(offset)
                w = w if w > zero else zero
                u = w * by_s[x]
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
                depth_grad[x] += slope * by_s[x] * value
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
                    u = (w if w > zero else zero) * by_s[x]
                    photo_grad[0, x] += u * (a0 + d0 * part[x])
                    photo_grad[1, x] += u * (a1 + d1 * part[x])
                    photo_grad[2, x] += u * (a2 + d2 * part[x])


@inlined
def guide_of_row_back(pixels, guides, grad_out, guide, hidden_grad, photo_grad, want_photo):
    """Gradients through guide_of_row.

    guides: (n,), its result. grad_out: (n,), by that result; overwritten. hidden_grad: (units + 1, 5), added to:
    weights, bias and mix of each unit, and mix_bias as the last element. photo_grad: (3, n), added to if want_photo.
    """
    red, green, blue = pixels
    weights, bias, mix = guide.weights, guide.bias, guide.mix
    dtype = red.dtype.type
    zero, one, two = dtype(0), dtype(1), dtype(2)
    total = zero
    for x in range(red.size):
        g = guides[x]
        inside = one if g > zero and g < one else zero
        slope = two * g * (one - g) if guide.tanh else inside
        grad_out[x] *= slope
        total += grad_out[x]
    hidden_grad[mix.size, 4] += total
    for j in range(mix.size):
        w0, w1, w2, w3, m = weights[j, 0], weights[j, 1], weights[j, 2], bias[j], mix[j]
        s0, s1, s2, s3, s4 = zero, zero, zero, zero, zero
        for x in range(red.size):
            r, g, b = red[x], green[x], blue[x]
            p = w0 * r + w1 * g + w2 * b + w3
            d = grad_out[x] if p > zero else zero
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
                d = grad_out[x] * m if p > zero else zero
                photo_grad[0, x] += d * w0
                photo_grad[1, x] += d * w1
                photo_grad[2, x] += d * w2


@kernel
def illumination_rows_back(images, rows, grid, guide, runs, rule, grads):
    """Gradients of rows rows[0] to rows[1] - 1 of one photo, added to this strip's own sums.

    images: photo, illumination and the gradient by the illumination, each (3, H, W). grads: grid_grad (Gh, Gw, D, 3, 4)
    and hidden_grad (units + 1, 5), added to; photo_grad (3, H, W), set, or (3, 0, 0) to leave it out.
    """
    photo, illumination, grad_out = images
    grid_grad, hidden_grad, photo_grad = grads
    _, height, width = photo.shape
    dtype = photo.dtype
    zero, one = photo.dtype.type(0), photo.dtype.type(1)
    want_photo = photo_grad.size > 0
    guides, depth = np.empty(width, dtype), np.empty(width, dtype)
    free_grad, depth_grad = np.empty((3, width), dtype), np.empty(width, dtype)
    pixel_grad = np.zeros((3, width), dtype)
    row = np.empty((grid.shape[1], grid.shape[2], 12), dtype)
    row_grad = np.empty(row.shape, dtype)
    flat_row_grad = row_grad.reshape(-1)
    bins = row.shape[1]
    last_bin = photo.dtype.type(bins - 1)
    scale = last_bin if rule.align_corners else last_bin + one
    for y in range(rows[0], rows[1]):
        red, green, blue = photo[0, y], photo[1, y], photo[2, y]
        above, below_part = row_of_grid(grid, y, height, rule.align_corners, row)
        guide_of_row((red, green, blue), guide, guides)
        depth_of_row(guides, bins, rule.align_corners, depth)
        for c in range(3):
            value, s, by_s = photo[c, y], illumination[c, y], grad_out[c, y]
            for x in range(width):
                free = not rule.clip or (s[x] > value[x] and s[x] < one)
                free_grad[c, x] = by_s[x] if free else zero
                if want_photo:  # where clipped from below, S is the photo
                    pixel_grad[c, x] = by_s[x] if rule.clip and s[x] <= value[x] and value[x] < one else zero
        flat_row_grad[:] = zero
        for k in range(runs.spans.shape[1]):
            run = slice(runs.spans[0, k, 0], runs.spans[0, k, 1])
            touched = bins_of_run(depth[run], bins)
            slice_run_back(row, runs.spans[0, k, 2], touched, (red[run], green[run], blue[run]),
                           (depth[run], runs.part[run]), free_grad[:, run],
                           (row_grad, depth_grad[run], pixel_grad[:, run]), want_photo)  # fmt: skip
        for x in range(width):  # clamped positions, the ends included, have no gradient
            depth_grad[x] = depth_grad[x] * scale if depth[x] > zero and depth[x] < last_bin else zero
        guide_of_row_back((red, green, blue), guides, depth_grad, guide, hidden_grad, pixel_grad, want_photo)
        upper = grid_grad[above].reshape(-1)
        lower = grid_grad[min(above + 1, grid.shape[0] - 1)].reshape(-1)
        for i in range(flat_row_grad.size):
            upper[i] += (one - below_part) * flat_row_grad[i]
            lower[i] += below_part * flat_row_grad[i]
        if want_photo:
            photo_grad[:, y] = pixel_grad


class SliceApply(torch.autograd.Function):
    """Guide, slice, affine and clip as one differentiable function of photo, grid and folded guide; CPU.

    forward(photo (N, 3, H, W), grid (N, 12, D, Gh, Gw), weights (U, 3), bias (U), mix (U), mix_bias (), tanh, rule)
    returns the illumination (N, 3, H, W). float32 or float64 throughout. Of the rule it takes align_corners and clip.
    autograd sees only tensors that are arguments themselves, hence not one FoldedGuide.
    """

    @staticmethod
    def forward(ctx, photo, grid, weights, bias, mix, mix_bias, tanh, rule):
        photo = photo.contiguous()
        illumination = torch.empty_like(photo)
        source, result, cells = photo.detach().numpy(), illumination.numpy(), grid_array(grid)
        guide = guide_arrays(weights, bias, mix, mix_bias, tanh)
        runs = runs_of_row(photo.shape[3], grid.shape[4], rule.align_corners, photo.shape[3], source.dtype)
        parallel_rows(
            photo.shape[0] * photo.shape[2],
            lambda first, last: illumination_rows(source, result, (first, last), cells, guide, runs, rule),
        )
        ctx.save_for_backward(photo, illumination, torch.from_numpy(cells), weights, bias, mix, mix_bias)
        ctx.runs, ctx.rule, ctx.tanh = runs, rule, tanh
        return illumination

    @staticmethod
    def backward(ctx, grad_out):
        photo, illumination, cells, *guide = ctx.saved_tensors
        arrays = [value.detach().contiguous().numpy() for value in (photo, illumination, grad_out)]
        cells, guide = cells.numpy(), guide_arrays(*guide, ctx.tanh)
        dtype = cells.dtype
        n, _, height, _ = photo.shape
        want_photo = ctx.needs_input_grad[0]
        photo_grad = np.empty(arrays[0].shape if want_photo else (n, 3, 0, 0), dtype)
        units = len(guide.mix)

        def strip(first, last):
            """Rows counted through the batch, photo by photo."""
            hidden = np.zeros((units + 1, 5), dtype)
            grids = []
            while first < last:
                i, y = divmod(first, height)
                stop = min(height, y + last - first)
                grid_grad = np.zeros(cells.shape[1:], dtype)
                images = tuple(array[i] for array in arrays)
                grads = grid_grad, hidden, photo_grad[i]
                illumination_rows_back(images, (y, stop), cells[i], guide, ctx.runs, ctx.rule, grads)
                grids.append((i, grid_grad))
                first += stop - y
            return hidden, grids

        grid_grad = np.zeros(cells.shape, dtype)
        hidden_grad = np.zeros((units + 1, 5), dtype)
        for hidden, grids in parallel_rows(n * height, strip):
            hidden_grad += hidden
            for i, part in grids:
                grid_grad[i] += part
        gh, gw, d = cells.shape[1:4]
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
        )


def illuminate(photo, grid, guide, rule):
    """Illumination (N, 3, H, W) of photo, differentiable by photo, grid (N, 12, D, Gh, Gw) and guide."""
    return SliceApply.apply(photo, grid, *guide, Rule(bool(rule.align_corners), bool(rule.clip)))
