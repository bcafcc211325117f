"""The network's small copy of a frame, shrunk plane by plane before the colours are made, so that it costs little."""

import cv2
import numpy as np
from numba import njit

from photos.levels import LOW_SIZE
from photos.lowres import shrink_taps
from video.colors import planes_to_rgb

CV2 = {'bilinear': cv2.INTER_LINEAR, 'nearest': cv2.INTER_NEAREST}


def frame_lowres(planes, layout, mode, turns=0):
    """What the network sees of a frame: (256, 256, 3) RGB uint16, upright.

    Args:
        planes: see colors.planes_to_rgb.
        mode: 'area', 'bilinear' or 'nearest', see model.IlluminationNet.
        turns: quarter turns counter-clockwise that put the frame upright.
    """
    if mode == 'area':
        planes = [shrink_plane(plane) for plane in planes]
    else:
        planes = [cv2.resize(plane, (LOW_SIZE, LOW_SIZE), interpolation=CV2[mode]) for plane in planes]
    lowres = np.empty((LOW_SIZE, LOW_SIZE, 3), np.uint16)
    planes_to_rgb(planes, layout, (1, 1), lowres)
    return np.ascontiguousarray(np.rot90(lowres, turns)) if turns else lowres


def shrink_plane(plane):
    """photos.lowres.shrink of a plane (H, W) of integers: (256, 256) float32 in the plane's levels."""
    result = np.empty((LOW_SIZE, LOW_SIZE), np.float32)
    shrink_rows(plane, *shrink_taps(plane.shape[0]), *shrink_taps(plane.shape[1]), result)
    return result


@njit(nogil=True, fastmath={'reassoc', 'contract', 'nsz'}, cache=True, error_model='numpy')
def shrink_rows(plane, rows, row_weights, columns, column_weights, result):
    line = np.empty(plane.shape[1], np.float32)
    for i in range(len(rows)):
        line[:] = np.float32(0)
        for j in range(row_weights.shape[1]):
            source, weight = plane[rows[i] + j], row_weights[i, j]
            for x in range(line.size):
                line[x] += weight * np.float32(source[x])
        for k in range(len(columns)):
            total = np.float32(0)
            for j in range(column_weights.shape[1]):
                total += column_weights[k, j] * line[columns[k] + j]
            result[i, k] = total
