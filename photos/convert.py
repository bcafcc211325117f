"""Pixels between a colour space of curves and a matrix, and sRGB: colour.py's formulas in one pass each (Numba).

Tables are indexed by the square root of linear light: gamma curves are nearly straight over it, black included.
"""

import numpy as np

from system.jit import inlined, kernel

TOP = 65535
RED, GREEN, BLUE = np.float32(0.2126), np.float32(0.7152), np.float32(0.0722)  # shares of sRGB's luminance
MOST = np.float32(16)  # by which what lies outside of sRGB is brightened at most
TINY = np.float32(1e-4)


@inlined
def root(value):
    """Index of linear light in a table by its square root."""
    return np.int32(np.sqrt(min(max(value, np.float32(0)), np.float32(1))) * np.float32(TOP) + np.float32(0.5))


@inlined
def mix(matrix, row, r, g, b):
    return matrix[row, 0] * r + matrix[row, 1] * g + matrix[row, 2] * b


@kernel
def show_rows(own, rows, tables, matrix, to_srgb, photo):
    """Write the 16-bit sRGB of own levels to `photo`, clipped; rows rows[0] to rows[1] - 1."""
    red, green, blue = tables
    for y in range(rows[0], rows[1]):
        for x in range(own.shape[1]):
            r, g, b = red[own[y, x, 0]], green[own[y, x, 1]], blue[own[y, x, 2]]
            photo[y, x, 0] = to_srgb[root(mix(matrix, 0, r, g, b))]
            photo[y, x, 1] = to_srgb[root(mix(matrix, 1, r, g, b))]
            photo[y, x, 2] = to_srgb[root(mix(matrix, 2, r, g, b))]


@kernel
def return_rows(enhanced, own, rows, tables, matrix, to_srgb, from_srgb, inverse, levels):
    """Write the own levels of what was made of show_rows' photo over `own`; a pixel that did not change keeps its."""
    red, green, blue = tables
    for y in range(rows[0], rows[1]):
        for x in range(own.shape[1]):
            r, g, b = red[own[y, x, 0]], green[own[y, x, 1]], blue[own[y, x, 2]]
            r, g, b = mix(matrix, 0, r, g, b), mix(matrix, 1, r, g, b), mix(matrix, 2, r, g, b)
            seen_r, seen_g, seen_b = to_srgb[root(r)], to_srgb[root(g)], to_srgb[root(b)]
            new_r, new_g, new_b = enhanced[y, x, 0], enhanced[y, x, 1], enhanced[y, x, 2]
            if seen_r == new_r and seen_g == new_g and seen_b == new_b:
                continue
            old_r, old_g, old_b = from_srgb[seen_r], from_srgb[seen_g], from_srgb[seen_b]
            to_r, to_g, to_b = from_srgb[new_r], from_srgb[new_g], from_srgb[new_b]
            before = max(RED * old_r + GREEN * old_g + BLUE * old_b, TINY)
            brighter = min((RED * to_r + GREEN * to_g + BLUE * to_b) / before, MOST)
            r, g, b = to_r + (r - old_r) * brighter, to_g + (g - old_g) * brighter, to_b + (b - old_b) * brighter
            own[y, x, 0] = levels[0][root(mix(inverse, 0, r, g, b))]
            own[y, x, 1] = levels[1][root(mix(inverse, 1, r, g, b))]
            own[y, x, 2] = levels[2][root(mix(inverse, 2, r, g, b))]


@inlined
def mix_rows(photo, at, weights, line):
    """Sum of weights times rows at, at + 1 ... of photo (H, n) into line (n,), four at a time; the last may weigh 0."""
    f = np.float32
    for k in range(0, weights.size, 4):
        count = weights.size - k
        w0 = weights[k]
        w1 = weights[k + 1] if count > 1 else f(0)
        w2 = weights[k + 2] if count > 2 else f(0)
        w3 = weights[k + 3] if count > 3 else f(0)
        first = at + k
        a, b = photo[first], photo[first + min(1, count - 1)]
        c, d = photo[first + min(2, count - 1)], photo[first + min(3, count - 1)]
        if k == 0:
            for x in range(line.size):
                line[x] = w0 * f(a[x]) + w1 * f(b[x]) + w2 * f(c[x]) + w3 * f(d[x])
        else:
            for x in range(line.size):
                line[x] += w0 * f(a[x]) + w1 * f(b[x]) + w2 * f(c[x]) + w3 * f(d[x])


@inlined
def mix_columns(line, columns, weights, scale, channels, out):
    """out (256, channels): scale times sums of weights times a line's pixels; one channel is taken thrice."""
    middle, last = channels // 2, channels - 1
    for j in range(columns.size):
        pixels = line[channels * columns[j] : channels * (columns[j] + weights.shape[1])]
        red, green, blue = np.float32(0), np.float32(0), np.float32(0)
        for k in range(weights.shape[1]):
            w = weights[j, k]
            red += w * pixels[channels * k]
            green += w * pixels[channels * k + middle]
            blue += w * pixels[channels * k + last]
        out[j, last] = blue * scale
        out[j, middle] = green * scale
        out[j, 0] = red * scale


@kernel
def shrink_rows(photo, lowres, lines, taps, scale):
    """Lines lines[0] to lines[1] - 1 of lowres (256, 256, C) float32, the area shrink of a photo times scale.

    photo: jit.either of (H, W * C). taps: first rows and their weights, first columns and theirs, see shrink_taps.
    """
    rows, row_weights, columns, column_weights = taps
    line = np.empty(photo[0].shape[1] + photo[1].shape[1], np.float32)
    for y in range(lines[0], lines[1]):
        if photo[0].size:
            mix_rows(photo[0], rows[y], row_weights[y], line)
        else:
            mix_rows(photo[1], rows[y], row_weights[y], line)
        if lowres.shape[2] == 3:
            mix_columns(line, columns, column_weights, scale, 3, lowres[y])
        else:
            mix_columns(line, columns, column_weights, scale, 1, lowres[y])
