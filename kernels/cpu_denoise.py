"""The denoiser of denoise.py on the CPU: block thresholding of a plane, row of blocks by row of blocks.

A row of blocks shares its vertical transforms; the horizontal ones run over blocks side by side, so all inner loops
vectorise. A strip of rows computes its first blocks anew, hence results do not depend on how rows are shared.
"""

import itertools

import numpy as np

from kernels.denoise import shrink
from system.jit import either, inlined, kernel, parallel_rows, strip_edges

UNIT = 128  # of the int16 chroma planes: one level of 255
# the 8-point cosine transform, orthonormal: cos(k pi / 16) / 2, and 1 / sqrt(8)
R8, A2, B2 = 0.35355339, 0.46193977, 0.19134172
C1, C3, C5, C7 = 0.49039264, 0.41573481, 0.27778512, 0.09754516


@inlined
def odd_half(a, b, c, d):
    """The transform's odd half, its own inverse."""
    f = np.float32
    return (
        f(C1) * a + f(C3) * b + f(C5) * c + f(C7) * d,
        f(C3) * a - f(C7) * b - f(C1) * c - f(C5) * d,
        f(C5) * a - f(C1) * b + f(C7) * c + f(C3) * d,
        f(C7) * a - f(C5) * b + f(C3) * c - f(C1) * d,
    )


@inlined
def dct8(x0, x1, x2, x3, x4, x5, x6, x7):
    """Cosine transform of eight numbers."""
    f = np.float32
    s0, s1, s2, s3 = x0 + x7, x1 + x6, x2 + x5, x3 + x4
    e0, e1, e2, e3 = s0 + s3, s1 + s2, s0 - s3, s1 - s2
    c1, c3, c5, c7 = odd_half(x0 - x7, x1 - x6, x2 - x5, x3 - x4)
    return (f(R8) * (e0 + e1), c1, f(A2) * e2 + f(B2) * e3, c3,
            f(R8) * (e0 - e1), c5, f(B2) * e2 - f(A2) * e3, c7)  # fmt: skip


@inlined
def idct8(c0, c1, c2, c3, c4, c5, c6, c7):
    """The eight numbers that dct8 was given."""
    f = np.float32
    e0, e1 = f(R8) * (c0 + c4), f(R8) * (c0 - c4)
    f0, f1 = f(A2) * c2 + f(B2) * c6, f(B2) * c2 - f(A2) * c6
    p0, p1, p2, p3 = e0 + f0, e1 + f1, e1 - f1, e0 - f0
    q0, q1, q2, q3 = odd_half(c1, c3, c5, c7)
    return p0 + q0, p1 + q1, p2 + q2, p3 + q3, p3 - q3, p2 - q2, p1 - q1, p0 - q0


@kernel
def filter_blocks(window, thresholds, columns, removed, carry, carry_weight, weight, change):
    """One row of blocks of window (8, 4 m), and change (4, 4 m) of its upper four rows, which it completes.

    carry, carry_weight: what blocks add to their lower four rows, from call to call. columns, removed, weight: scratch.
    """
    f = np.float32
    blocks, m = thresholds.size, carry_weight.size
    top = f(0)
    for j in range(blocks):
        top = max(top, thresholds[j])
    if top == f(0):  # nothing is taken out, and every block counts as one that keeps all
        columns[:] = f(0)
        weight[:blocks] = f(1 / 64)
    else:
        for x in range(m):
            for p in range(4):
                i = 4 * x + p
                v = dct8(window[0, i], window[1, i], window[2, i], window[3, i], window[4, i], window[5, i],
                         window[6, i], window[7, i])  # fmt: skip
                for k in range(8):
                    columns[k, p, x] = v[k]
        weight[:] = f(0)
        for k in range(8):
            a0, a1, a2, a3 = columns[k, 0], columns[k, 1], columns[k, 2], columns[k, 3]
            b0, b1, b2, b3 = a0[1:], a1[1:], a2[1:], a3[1:]
            mean = f(1e30) if k == 0 else f(0)  # a block's mean always stays
            for j in range(blocks):
                v = dct8(a0[j], a1[j], a2[j], a3[j], b0[j], b1[j], b2[j], b3[j])
                kept = f(0)
                for i in range(8):
                    large = abs(v[i]) + (mean if i == 0 else f(0)) > thresholds[j]
                    removed[8 * k + i, j] = f(0) if large else v[i]
                    kept += f(1) if large else f(0)
                weight[j] += kept
        for j in range(blocks):
            weight[j] = f(1) / weight[j]
        for k in range(8):
            r = removed[8 * k : 8 * k + 8]
            for j in range(blocks):
                w = weight[j]
                v = idct8(w * r[0, j], w * r[1, j], w * r[2, j], w * r[3, j], w * r[4, j], w * r[5, j], w * r[6, j],
                          w * r[7, j])  # fmt: skip
                for i in range(4):
                    columns[k, i, j] = v[i]
                    r[4 + i, j] = v[4 + i]
            for i in range(4):
                line, right = columns[k, i], r[4 + i]
                line[blocks] = f(0)
                for j in range(blocks):
                    line[j + 1] += right[j]
    weight[blocks] = f(0)
    for x in range(m):
        both = weight[x] + (weight[x - 1] if x else f(0))
        carry_weight[x] = f(1) / (carry_weight[x] + both)  # of the four rows that are complete
        removed[0, x] = both
    for p in range(4):
        for x in range(m):
            v = idct8(columns[0, p, x], columns[1, p, x], columns[2, p, x], columns[3, p, x], columns[4, p, x],
                      columns[5, p, x], columns[6, p, x], columns[7, p, x])  # fmt: skip
            share = -carry_weight[x]
            for i in range(4):
                change[i, 4 * x + p] = share * (carry[i, p, x] + v[i])
                carry[i, p, x] = v[4 + i]
    carry_weight[:] = removed[0]


@inlined
def mirror(i, size):
    """An index beyond a line's ends, reflected at them, and clamped on tiny photos."""
    i = -1 - i if i < 0 else i
    i = 2 * size - 1 - i if i >= size else i
    return min(max(i, 0), size - 1)


@inlined
def pad_row(row, width):
    """Mirror row (4 m), whose pixels start at 4, at both ends."""
    for i in range(4):
        row[3 - i] = row[4 + mirror(i, width)]
    for i in range(4 + width, row.size):
        row[i] = row[4 + mirror(i - 4, width)]


@inlined
def level(row, deep, i):
    """Level i of a row of levels, 8 or 16 bit (jit.either) and then deep: LLVM makes a loop for each."""
    return np.float32(row[1][i]) if deep else np.float32(row[0][i])


@kernel
def shrink_chroma(photo, planes, rows, scale):
    """Rows of Cb and Cr (2, ceil H / 2, ceil W / 2), means of 2 x 2 pixels of a photo (H, 3 W), jit.either."""
    f = np.float32
    narrow, wide = photo
    deep = wide.size > 0
    height, width = wide.shape if deep else narrow.shape
    unit = f(0.25 * UNIT) * scale
    for y in range(rows[0], rows[1]):
        last = min(2 * y + 1, height - 1)
        up, down = (narrow[2 * y], wide[2 * y]), (narrow[last], wide[last])
        for x in range(planes.shape[2]):
            i, j = 6 * x, min(6 * x + 3, width - 3)
            r = level(up, deep, i) + level(up, deep, j) + level(down, deep, i) + level(down, deep, j)
            i, j = i + 1, j + 1
            g = level(up, deep, i) + level(up, deep, j) + level(down, deep, i) + level(down, deep, j)
            i, j = i + 1, j + 1
            b = level(up, deep, i) + level(up, deep, j) + level(down, deep, i) + level(down, deep, j)
            luma = f(0.299) * r + f(0.587) * g + f(0.114) * b
            planes[0, y, x] = np.int16(np.floor(unit * f(0.564) * (b - luma) + f(0.5)))
            planes[1, y, x] = np.int16(np.floor(unit * f(0.713) * (r - luma) + f(0.5)))


@inlined
def grow_row(plane, y, times, unit, lines, out):
    """Row y of a plane (h, w) at `times` its size, bilinear, times unit, into out (times w); lines: (w + 2)."""
    f = np.float32
    near, away = y // times, (f(y % times) + f(0.5)) / f(times) - f(0.5)
    far = min(max(near + 1 if away > f(0) else near - 1, 0), plane.shape[0] - 1)
    a, b, t = plane[near], plane[far], abs(away)
    for x in range(a.size):
        lines[x + 1] = ((f(1) - t) * f(a[x]) + t * f(b[x])) * unit
    lines[0] = lines[1]
    lines[a.size + 1] = lines[a.size]
    for x in range(a.size):
        for k in range(times):
            away = (f(k) + f(0.5)) / f(times) - f(0.5)
            t, side = abs(away), lines[x + 2] if away > f(0) else lines[x]
            out[times * x + k] = (f(1) - t) * lines[x + 1] + t * side


@kernel
def filter_rows(plane, coarse, thresholds, change, rows, unit):
    """Rows of the change of a plane (H, W) in 1 / unit levels; rows[0] is a multiple of 4.

    coarse: change (ceil H / 4, ceil W / 4) in levels that is added before and stays in the result, or empty.
    """
    f = np.float32
    height, width = plane.shape
    m = thresholds.shape[1] + 1
    window, columns, removed = np.zeros((8, 4 * m), f), np.empty((8, 4, m), f), np.empty((64, m), f)
    carry, carry_weight, weight = np.zeros((4, 4, m), f), np.zeros(m, f), np.empty(m, f)
    step, added, lines = np.empty((4, 4 * m), f), np.zeros((8, 4 * m), f), np.empty(m + 2, f)
    for y0 in range(rows[0] - 8, rows[1], 4):
        for i in range(4):
            window[i] = window[4 + i]
            added[i] = added[4 + i]
            row, extra, y = window[4 + i], added[4 + i], mirror(y0 + 4 + i, height)
            if coarse.size:
                grow_row(coarse, y, 4, f(1), lines, extra)
            for x in range(width):
                row[4 + x] = f(plane[y, x]) / unit + extra[x]
            pad_row(row, width)
        if y0 < rows[0] - 4:
            continue
        filter_blocks(window, thresholds[y0 // 4 + 1], columns, removed, carry, carry_weight, weight, step)
        if y0 >= rows[0]:
            for y in range(y0, min(y0 + 4, rows[1])):
                for x in range(width):
                    levels = step[y - y0, 4 + x] + added[y - y0, x]
                    change[y, x] = levels if unit == f(1) else np.floor(levels * unit + f(0.5))


@inlined
def shrink_fine(fine, limit):
    """What is taken from a value of fine chroma: all of it up to the limit, less and less above."""
    small = abs(fine) <= limit
    return fine if small else limit * limit / fine


@inlined
def change_row(flat, luma, by_luma, grown, limit, scale):
    """Add a row's changes to its levels. luma, by_luma: pixels start at 4. grown: chroma and its changes (4, W)."""
    f = np.float32
    back, top = f(1) / scale, f(255) / scale
    blue, red, by_blue, by_red = grown[0], grown[1], grown[2], grown[3]
    for x in range(limit.size):
        r, g, b = f(flat[3 * x]), f(flat[3 * x + 1]), f(flat[3 * x + 2])
        cb = by_blue[x] - shrink_fine((b * scale - luma[4 + x]) * f(0.564) - blue[x], limit[x])
        cr = by_red[x] - shrink_fine((r * scale - luma[4 + x]) * f(0.713) - red[x], limit[x])
        share = back * min(f(4) * limit[x], f(1))
        r += share * (by_luma[4 + x] + cr * f(1 / 0.713))
        b += share * (by_luma[4 + x] + cb * f(1 / 0.564))
        g += share * (by_luma[4 + x] - cr * f(0.299 / 0.587 / 0.713) - cb * f(0.114 / 0.587 / 0.564))
        flat[3 * x] = min(max(r, f(0)), top) + f(0.5)
        flat[3 * x + 1] = min(max(g, f(0)), top) + f(0.5)
        flat[3 * x + 2] = min(max(b, f(0)), top) + f(0.5)


@kernel
def denoise_rows(photo, rows, halo, planes, changes, thresholds, limits, scale):
    """Denoise rows of photo (H, 3 W) in place; rows[0] is a multiple of 4. planes, changes: chroma and its change.

    halo: copies of 4 rows above and 8 below, mirrored at the photo's ends. scale: levels of 255 per level of the photo.
    """
    f = np.float32
    narrow, wide = photo
    deep = wide.size > 0
    width = (wide.shape[1] if deep else narrow.shape[1]) // 3
    m = thresholds.shape[1] + 1
    window, columns, removed = np.zeros((8, 4 * m), f), np.empty((8, 4, m), f), np.empty((64, m), f)
    carry, carry_weight, weight = np.zeros((4, 4, m), f), np.zeros(m, f), np.empty(m, f)
    step, limit = np.empty((4, 4 * m), f), np.empty(width, f)
    lines, grown = np.empty(planes.shape[2] + 2, f), np.empty((4, 2 * planes.shape[2]), f)
    for y0 in range(rows[0] - 8, rows[1], 4):
        for i in range(4):
            window[i] = window[4 + i]
            row, y = window[4 + i], y0 + 4 + i
            inside = rows[0] <= y < rows[1]
            source, at = photo if inside else halo, y if inside else y + 4 - (rows[0] if y < rows[0] else rows[1])
            levels = source[0][at], source[1][at]
            for x in range(width):
                r, g, b = level(levels, deep, 3 * x), level(levels, deep, 3 * x + 1), level(levels, deep, 3 * x + 2)
                row[4 + x] = (f(0.299) * r + f(0.587) * g + f(0.114) * b) * scale
            pad_row(row, width)
        if y0 < rows[0] - 4:
            continue
        filter_blocks(window, thresholds[y0 // 4 + 1], columns, removed, carry, carry_weight, weight, step)
        if y0 < rows[0]:
            continue
        for x in range(width):
            limit[x] = limits[y0 // 4, x // 4]
        for y in range(y0, min(y0 + 4, rows[1])):
            for c in range(2):
                grow_row(planes[c], y, 2, f(1 / UNIT), lines, grown[c])
                grow_row(changes[c], y, 2, f(1 / UNIT), lines, grown[2 + c])
            if deep:
                change_row(wide[y], window[y - y0], step[y - y0], grown, limit, scale)
            else:
                change_row(narrow[y], window[y - y0], step[y - y0], grown, limit, scale)


def denoise(photo, limits, thresholds):
    """denoise.denoise_plain in passes over the photo's rows, in place where the photo is contiguous; same arguments."""
    height, width, _ = photo.shape
    scale, unit = np.float32(255 / np.iinfo(photo.dtype).max), np.float32(UNIT)
    flat = np.ascontiguousarray(photo).reshape(height, -1)
    pair = either(flat)
    planes = np.empty((2, -(-height // 2), -(-width // 2)), np.int16)
    changes = np.empty_like(planes)
    parallel_rows(planes.shape[1], lambda *rows: shrink_chroma(pair, planes, rows, scale))
    for plane, change in zip(planes, changes, strict=True):
        coarse = shrink(plane.astype(np.float32), 4) / unit
        far = np.empty_like(coarse)
        filter_rows(coarse, coarse[:0], thresholds[2], far, (0, len(far)), np.float32(1))
        images = plane, far, thresholds[1], change
        parallel_rows(len(plane), lambda *rows, images=images: filter_rows(*images, rows, unit), step=4)

    halos = {}
    for a, b in itertools.pairwise(strip_edges(height, step=4)):
        halos[a] = either(flat[[mirror.py_func(y, height) for y in (*range(a - 4, a), *range(b, b + 8))]])
    rest = planes, changes, thresholds[0], limits, scale
    parallel_rows(height, lambda *rows: denoise_rows(pair, rows, halos[rows[0]], *rest), step=4)
    return flat.reshape(photo.shape)
