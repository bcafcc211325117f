"""Pixels between a colour space of curves and a matrix, and sRGB: colour.py's formulas in one pass each (Numba).

Tables are indexed by the square root of linear light: gamma curves are nearly straight over it, black included.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit

from system.process import cores

TOP = 65535
RED, GREEN, BLUE = np.float32(0.2126), np.float32(0.7152), np.float32(0.0722)  # shares of sRGB's luminance
MOST = np.float32(16)  # by which what lies outside of sRGB is brightened at most
TINY = np.float32(1e-4)


def kernel(function):
    return njit(function, nogil=True, cache=True, error_model='numpy', fastmath={'contract', 'nsz', 'arcp'})


@kernel
def root(value):
    """Index of linear light in a table by its square root."""
    return np.int32(np.sqrt(min(max(value, np.float32(0)), np.float32(1))) * np.float32(TOP) + np.float32(0.5))


@kernel
def mix(matrix, row, r, g, b):
    return matrix[row, 0] * r + matrix[row, 1] * g + matrix[row, 2] * b


@kernel
def show_rows(own, tables, matrix, to_srgb, photo):
    """Write the 16-bit sRGB of own levels to `photo`, clipped."""
    red, green, blue = tables
    for y in range(own.shape[0]):
        for x in range(own.shape[1]):
            r, g, b = red[own[y, x, 0]], green[own[y, x, 1]], blue[own[y, x, 2]]
            photo[y, x, 0] = to_srgb[root(mix(matrix, 0, r, g, b))]
            photo[y, x, 1] = to_srgb[root(mix(matrix, 1, r, g, b))]
            photo[y, x, 2] = to_srgb[root(mix(matrix, 2, r, g, b))]


@kernel
def return_rows(enhanced, own, tables, matrix, to_srgb, from_srgb, inverse, levels):
    """Write the own levels of what was made of show_rows' photo over `own`; a pixel that did not change keeps its."""
    red, green, blue = tables
    for y in range(own.shape[0]):
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


def in_strips(rows, work):
    """Call work(slice) for strips of rows on as many threads as there are cores."""
    count = max(1, min(cores(), rows // 64))
    edges = [rows * i // count for i in range(count + 1)]
    strips = [slice(*edges[i : i + 2]) for i in range(count)]
    if count == 1:
        return work(strips[0])
    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(work, strip) for strip in strips]:
            done.result()
    return None
