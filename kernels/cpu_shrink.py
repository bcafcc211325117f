"""The copy of a photo that the coefficient network looks at, averaged over areas, on the CPU in one pass."""

import numpy as np

from model import LOW_SIZE
from photos.lowres import shrink_taps
from system.jit import kernel, parallel_rows


@kernel
def shrink_rows(photo, lowres, lines, taps, scale):
    """Lines lines[0] to lines[1] - 1 of lowres (256, 256, 3) float32 of photo (H, W, 3), times scale.

    taps: first rows and their weights, first columns and their weights, see lowres.shrink_taps.
    """
    rows, row_weights, columns, column_weights = taps
    f = np.float32
    line = np.empty(photo.shape[1] * 3, f)
    for y in range(lines[0], lines[1]):
        for k in range(0, row_weights.shape[1], 4):  # four rows at a time, the last ones often of weight 0
            count = row_weights.shape[1] - k
            at = rows[y] + k
            w0 = row_weights[y, k]
            w1 = row_weights[y, k + 1] if count > 1 else f(0)
            w2 = row_weights[y, k + 2] if count > 2 else f(0)
            w3 = row_weights[y, k + 3] if count > 3 else f(0)
            a = photo[at].reshape(-1)
            b = photo[at + min(1, count - 1)].reshape(-1)
            c = photo[at + min(2, count - 1)].reshape(-1)
            d = photo[at + min(3, count - 1)].reshape(-1)
            if k == 0:
                for x in range(line.size):
                    line[x] = w0 * f(a[x]) + w1 * f(b[x]) + w2 * f(c[x]) + w3 * f(d[x])
            else:
                for x in range(line.size):
                    line[x] += w0 * f(a[x]) + w1 * f(b[x]) + w2 * f(c[x]) + w3 * f(d[x])
        for j in range(columns.size):
            red, green, blue = f(0), f(0), f(0)
            pixels = line[3 * columns[j] : 3 * (columns[j] + column_weights.shape[1])]
            for k in range(column_weights.shape[1]):
                w = column_weights[j, k]
                red += w * pixels[3 * k]
                green += w * pixels[3 * k + 1]
                blue += w * pixels[3 * k + 2]
            lowres[y, j, 0] = red * scale
            lowres[y, j, 1] = green * scale
            lowres[y, j, 2] = blue * scale


def shrink(photo):
    """lowres.shrink of a photo (H, W, 3) uint8 or uint16 in one pass: (256, 256, 3) float32 levels of 255."""
    photo = np.ascontiguousarray(photo)
    lowres = np.empty((LOW_SIZE, LOW_SIZE, 3), np.float32)
    taps = (*shrink_taps(photo.shape[0]), *shrink_taps(photo.shape[1]))
    scale = np.float32(1 if photo.dtype == np.uint8 else 1 / 257)
    parallel_rows(LOW_SIZE, lambda first, last: shrink_rows(photo, lowres, (first, last), taps, scale))
    return lowres
