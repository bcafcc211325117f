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
def dct8(x0, x1, x2, x3, x4, x5, x6, x7):
    """Cosine transform of eight numbers."""
    f = np.float32
    s0, s1, s2, s3, d0, d1, d2, d3 = x0 + x7, x1 + x6, x2 + x5, x3 + x4, x0 - x7, x1 - x6, x2 - x5, x3 - x4
    e0, e1, e2, e3 = s0 + s3, s1 + s2, s0 - s3, s1 - s2
    return (
        f(R8) * (e0 + e1),
        f(C1) * d0 + f(C3) * d1 + f(C5) * d2 + f(C7) * d3,
        f(A2) * e2 + f(B2) * e3,
        f(C3) * d0 - f(C7) * d1 - f(C1) * d2 - f(C5) * d3,
        f(R8) * (e0 - e1),
        f(C5) * d0 - f(C1) * d1 + f(C7) * d2 + f(C3) * d3,
        f(B2) * e2 - f(A2) * e3,
        f(C7) * d0 - f(C5) * d1 + f(C3) * d2 - f(C1) * d3,
    )


@inlined
def idct8(c0, c1, c2, c3, c4, c5, c6, c7):
    """The eight numbers that dct8 was given."""
    f = np.float32
    e0, e1 = f(R8) * (c0 + c4), f(R8) * (c0 - c4)
    f0, f1 = f(A2) * c2 + f(B2) * c6, f(B2) * c2 - f(A2) * c6
    p0, p1, p2, p3 = e0 + f0, e1 + f1, e1 - f1, e0 - f0
    q0 = f(C1) * c1 + f(C3) * c3 + f(C5) * c5 + f(C7) * c7
    q1 = f(C3) * c1 - f(C7) * c3 - f(C1) * c5 - f(C5) * c7
    q2 = f(C5) * c1 - f(C1) * c3 + f(C7) * c5 + f(C3) * c7
    q3 = f(C7) * c1 - f(C5) * c3 + f(C3) * c5 - f(C1) * c7
    return p0 + q0, p1 + q1, p2 + q2, p3 + q3, p3 - q3, p2 - q2, p1 - q1, p0 - q0


@kernel
def filter_blocks(window, thresholds, columns, removed, carry, carry_weight, weight, change):
    """One row of blocks, and the change of the four rows that it completes.

    window: (8, 4 m) rows of a plane. thresholds: (m - 1), one for each block. carry (4, 4, m), carry_weight (m): what
    this row of blocks adds to its lower four rows, from call to call. columns (8, 4, m), removed (64, m), weight (m):
    scratch. change: (4, 4 m), what is added to the window's upper four rows.
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
def chroma_row(photo, y, unit, blue, red):
    """Row y of Cb and Cr (ceil W / 2), int16, means of 2 x 2 pixels."""
    f = np.float32
    height, width = photo.shape[0], photo.shape[1]
    a, b = photo[2 * y], photo[min(2 * y + 1, height - 1)]
    for x in range(blue.size):
        i, j = 2 * x, min(2 * x + 1, width - 1)
        r = f(a[i, 0]) + f(a[j, 0]) + f(b[i, 0]) + f(b[j, 0])
        g = f(a[i, 1]) + f(a[j, 1]) + f(b[i, 1]) + f(b[j, 1])
        b_ = f(a[i, 2]) + f(a[j, 2]) + f(b[i, 2]) + f(b[j, 2])
        luma = f(0.299) * r + f(0.587) * g + f(0.114) * b_
        blue[x] = np.int16(np.floor(unit * f(0.564) * (b_ - luma) + f(0.5)))
        red[x] = np.int16(np.floor(unit * f(0.713) * (r - luma) + f(0.5)))


@kernel
def shrink_chroma(photo, planes, rows, scale):
    """Rows rows[0] to rows[1] - 1 of Cb and Cr (2, ceil H / 2, ceil W / 2) of a photo (jit.either)."""
    unit = np.float32(0.25 * UNIT) * scale
    for y in range(rows[0], rows[1]):
        if photo[0].size:
            chroma_row(photo[0], y, unit, planes[0, y], planes[1, y])
        else:
            chroma_row(photo[1], y, unit, planes[0, y], planes[1, y])


@kernel
def filter_rows(plane, coarse, thresholds, change, rows, unit):
    """Rows rows[0] to rows[1] - 1 of a plane's change; rows[0] is a multiple of 4.

    plane: (H, W) int16 of 1 / unit levels and nothing, or nothing and float32 levels: compiled once for both.
    coarse: change (ceil H / 4, ceil W / 4) that is added before, in levels, or empty. thresholds: (ceil H / 4 + 1,
    ceil W / 4 + 1). change: a pair as plane, (H, W), in the plane's units and with the coarse one.
    """
    f = np.float32
    whole = plane[0].size > 0
    height, width = plane[0].shape if whole else plane[1].shape
    m = thresholds.shape[1] + 1
    window, columns, removed = np.zeros((8, 4 * m), f), np.empty((8, 4, m), f), np.empty((64, m), f)
    carry, carry_weight, weight = np.zeros((4, 4, m), f), np.zeros(m, f), np.empty(m, f)
    step, added = np.empty((4, 4 * m), f), np.zeros((8, width), f)
    for y0 in range(rows[0] - 8, rows[1], 4):
        for i in range(4):
            window[i] = window[4 + i]
            added[i] = added[4 + i]
            y = mirror(y0 + 4 + i, height)
            row, extra = window[4 + i], added[4 + i]
            if coarse.size:
                place = min(max((f(y) + f(0.5)) * f(0.25) - f(0.5), f(0)), f(coarse.shape[0] - 1))
                upper = int(place)
                part = place - f(upper)
                a, b = coarse[upper], coarse[min(upper + 1, coarse.shape[0] - 1)]
                for x in range(width):
                    at = min(max((f(x) + f(0.5)) * f(0.25) - f(0.5), f(0)), f(coarse.shape[1] - 1))
                    left = int(at)
                    right = min(left + 1, coarse.shape[1] - 1)
                    t = at - f(left)
                    first = a[left] + part * (b[left] - a[left])
                    extra[x] = first + t * (a[right] + part * (b[right] - a[right]) - first)
            if whole:
                for x in range(width):
                    row[4 + x] = f(plane[0][y, x]) / unit + extra[x]
            else:
                for x in range(width):
                    row[4 + x] = plane[1][y, x] + extra[x]
            pad_row(row, width)
        if y0 < rows[0] - 4:
            continue
        filter_blocks(window, thresholds[y0 // 4 + 1], columns, removed, carry, carry_weight, weight, step)
        if y0 >= rows[0]:
            for y in range(y0, min(y0 + 4, rows[1])):
                if whole:
                    for x in range(width):
                        change[0][y, x] = np.floor((step[y - y0, 4 + x] + added[y - y0, x]) * unit + f(0.5))
                else:
                    for x in range(width):
                        change[1][y, x] = step[y - y0, 4 + x] + added[y - y0, x]


@inlined
def grow_row(plane, y, lines, out):
    """Row y of a plane (H / 2, W / 2) int16 at twice its size, bilinear, into out (W) in levels; lines: (W / 2 + 2)."""
    f = np.float32
    near = y // 2
    far = near + 1 if y % 2 else near - 1
    a, b = plane[near], plane[min(max(far, 0), plane.shape[0] - 1)]
    for x in range(a.size):
        lines[x + 1] = (f(0.75) * f(a[x]) + f(0.25) * f(b[x])) * f(1 / UNIT)
    lines[0] = lines[1]
    lines[a.size + 1] = lines[a.size]
    for x in range(out.size // 2):
        out[2 * x] = f(0.75) * lines[x + 1] + f(0.25) * lines[x]
        out[2 * x + 1] = f(0.75) * lines[x + 1] + f(0.25) * lines[x + 2]
    if out.size % 2:
        out[out.size - 1] = f(0.75) * lines[a.size] + f(0.25) * lines[a.size - 1]


@inlined
def shrink_fine(fine, limit):
    """What is taken from a value of fine chroma: all of it up to the limit, less and less above."""
    small = abs(fine) <= limit
    return fine if small else limit * limit / fine


@inlined
def luma_row(photo, halo, rows, y, scale, row):
    """Luma in levels of 255 of a photo's row y, or of the halo's where it lies outside the strip, from row[4] on."""
    f = np.float32
    if y < rows[0]:
        source = halo[max(y - rows[0] + 4, 0)]
    elif y >= rows[1]:
        source = halo[4 + y - rows[1]]
    else:
        source = photo[y]
    flat = source.reshape(-1)
    for x in range(photo.shape[1]):
        luma = f(0.299) * f(flat[3 * x]) + f(0.587) * f(flat[3 * x + 1]) + f(0.114) * f(flat[3 * x + 2])
        row[4 + x] = luma * scale


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
    """Denoise rows rows[0] to rows[1] - 1 of photo (H, W, 3) in place, jit.either; rows[0] is a multiple of 4.

    halo: (4 + 8, W, 3), jit.either, copies of the rows above and below, mirrored at the photo's ends. planes, changes:
    (2, H / 2, W / 2) int16, chroma and its change. thresholds: luma's, see filter_rows. limits: (ceil H / 4,
    ceil W / 4), those of fine chroma. scale: levels of 255 per level of the photo.
    """
    f = np.float32
    deep = photo[1].size > 0
    width = photo[1].shape[1] if deep else photo[0].shape[1]
    m = thresholds.shape[1] + 1
    window, columns, removed = np.zeros((8, 4 * m), f), np.empty((8, 4, m), f), np.empty((64, m), f)
    carry, carry_weight, weight = np.zeros((4, 4, m), f), np.zeros(m, f), np.empty(m, f)
    step, limit = np.empty((4, 4 * m), f), np.empty(width, f)
    lines, grown = np.empty(planes.shape[2] + 2, f), np.empty((4, width), f)
    for y0 in range(rows[0] - 8, rows[1], 4):
        for i in range(4):
            window[i] = window[4 + i]
            if deep:
                luma_row(photo[1], halo[1], rows, y0 + 4 + i, scale, window[4 + i])
            else:
                luma_row(photo[0], halo[0], rows, y0 + 4 + i, scale, window[4 + i])
            pad_row(window[4 + i], width)
        if y0 < rows[0] - 4:
            continue
        filter_blocks(window, thresholds[y0 // 4 + 1], columns, removed, carry, carry_weight, weight, step)
        if y0 < rows[0]:
            continue
        for x in range(width):
            limit[x] = limits[y0 // 4, x // 4]
        for y in range(y0, min(y0 + 4, rows[1])):
            for c in range(2):
                grow_row(planes[c], y, lines, grown[c])
                grow_row(changes[c], y, lines, grown[2 + c])
            if deep:
                change_row(photo[1][y].reshape(-1), window[y - y0], step[y - y0], grown, limit, scale)
            else:
                change_row(photo[0][y].reshape(-1), window[y - y0], step[y - y0], grown, limit, scale)


def denoise(photo, limits, thresholds):
    """denoise.denoise_plain in passes over the photo's rows, in place; the same arguments."""
    height, width, _ = photo.shape
    scale = np.float32(255 / np.iinfo(photo.dtype).max)
    planes = np.empty((2, -(-height // 2), -(-width // 2)), np.int16)
    pair = either(photo)
    parallel_rows(planes.shape[1], lambda *rows: shrink_chroma(pair, planes, rows, scale))
    changes = np.empty_like(planes)
    unit, none, nothing = np.float32(UNIT), np.empty((0, 0), np.float32), np.empty((0, 0), np.int16)
    rows = planes.shape[1]
    for plane, change in zip(planes, changes, strict=True):
        coarse = shrink(plane.astype(np.float32), 4) / unit
        far = np.empty_like(coarse)
        filter_rows((nothing, coarse), none, thresholds[2], (nothing, far), (0, len(coarse)), unit)

        def work(a, b, plane=plane, change=change, far=far):
            filter_rows((plane, none), far, thresholds[1], (change, none), (4 * a, min(4 * b, rows)), unit)

        parallel_rows(-(-rows // 4), work)

    edges = [min(4 * edge, height) for edge in strip_edges(-(-height // 4))]
    halos = {}
    for a, b in itertools.pairwise(edges):
        halos[a] = either(photo[[mirror.py_func(y, height) for y in (*range(a - 4, a), *range(b, b + 8))]])

    def finish(a, b):
        a, b = 4 * a, min(4 * b, height)
        denoise_rows(pair, (a, b), halos[a], planes, changes, thresholds[0], limits, scale)

    parallel_rows(-(-height // 4), finish)
    return photo
