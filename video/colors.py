"""Frames as RGB: planes of Y, Cb and Cr (or G, B and R) to (H, W, 3) uint16 and back, as the frame's tags say.

RGB has 16 bits whatever the frame has, so that nothing is rounded twice. Chroma is repeated over the pixels that it
covers and averaged over them on the way back: a frame within RGB's range comes back bit for bit, wherever its chroma
samples are sited. What lies outside RGB's range, such as the foot room below black, is clipped to it.

Source of the equations: ITU-T H.273, section 8.3.
"""

import re
from typing import NamedTuple

import numpy as np
from av.codec.codec import find_best_pix_fmt_of_list
from av.video.format import names as FORMATS

from photos.levels import LOW_SIZE
from photos.lowres import make_lowres, shrink_area
from system.jit import inlined, kernel

LUMA = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087),
        9: (0.2627, 0.0593)}  # fmt: skip  # matrix coefficients' code in H.273: weights of red and blue
GBR, UNSPECIFIED = 0, 2  # codes of the matrix, the second also of transfer and primaries
LIMITED, FULL = 1, 2  # codes of the range
TOP = 65535  # of the RGB here
PLANAR = re.compile(r'(?:yuva?(?P<full>j?)(?P<chroma>4\d\d)p|gbra?p|gray)(?:(?P<bits>9|1[0246])le)?')  # formats' names
CHROMA = {'420': (2, 2), '422': (2, 1), '444': (1, 1), '440': (1, 2), '411': (4, 1), '410': (4, 4)}


class Layout(NamedTuple):
    """How the planes of a frame hold its colours."""

    name: str  # of the planar pixel format
    dtype: type  # of the planes: uint8 or uint16
    planes: int  # that hold colour: 3, or 1 if grey
    chroma: tuple  # pixels that a chroma sample covers, across and down
    offset: np.ndarray  # (3,) float32, levels of each plane that stand for 0
    to_rgb: np.ndarray  # (3, 3) float32, RGB in [0, TOP] = to_rgb . (levels - offset)
    from_rgb: np.ndarray  # (3, 3) float32, its inverse
    top: int  # highest level of a plane


def find_layout(name, matrix, color_range, width, height):
    """Layout of the planar pixel format that loses nothing of another; codes of H.273 that are not given as players do.

    Args:
        name: pixel format, such as 'nv12'.
        matrix: matrix coefficients; see known_matrix.
        color_range: LIMITED or FULL; where it is not given, grey is taken as full and YUV as limited.
    Raises:
        ValueError: the matrix is not a matrix of RGB (YCgCo, constant luminance, ICtCp).
    """
    if not PLANAR.fullmatch(name):
        planar = [other for other in FORMATS if PLANAR.fullmatch(other) and 'j' not in other]
        name = find_best_pix_fmt_of_list(planar, name, has_alpha=True)[0].name
    found, is_grey = PLANAR.fullmatch(name), name.startswith('gray')
    bits, chroma = int(found['bits'] or 8), CHROMA[found['chroma'] or '444']
    top, dtype = 2**bits - 1, np.uint8 if bits == 8 else np.uint16
    if name.startswith('gbr'):
        from_rgb, offset = np.eye(3)[[1, 2, 0]] * top, np.zeros(3)
    else:
        matrix = known_matrix(matrix, width, height)
        if matrix not in LUMA:
            raise ValueError(f'matrix coefficients: expected one of {sorted(LUMA)} of H.273, got {matrix}')
        red, blue = LUMA[matrix]
        luma = np.array([red, 1 - red - blue, blue])
        unit = 2 ** (bits - 8)
        full = found['full'] or color_range == FULL or (is_grey and color_range != LIMITED)
        span = np.array([top, top, top] if full else [219 * unit, 224 * unit, 224 * unit])
        offset = np.array([0 if full else 16 * unit, 128 * unit, 128 * unit])
        from_rgb = span[:, None] * [luma, ([0, 0, 1] - luma) / (2 - 2 * blue), ([1, 0, 0] - luma) / (2 - 2 * red)]
    arrays = (array.astype(np.float32) for array in (offset, TOP * np.linalg.inv(from_rgb), from_rgb / TOP))
    return Layout(name, dtype, 1 if is_grey else 3, chroma, *arrays, top)


def known_matrix(matrix, width, height):
    """Matrix coefficients of YUV: those given, or else, as players take them, BT.709 in HD sizes and BT.601 below."""
    return matrix if matrix not in (GBR, UNSPECIFIED) else 1 if width >= 1280 or height > 576 else 6


def frame_planes(frame, layout):
    """A frame's Y, Cb and Cr, or G, B and R, as arrays (H, W) that share its memory; grey has two empty ones."""
    planes = []
    for plane in frame.planes[: layout.planes]:  # not its alpha
        lines = np.frombuffer(plane, layout.dtype).reshape(plane.height, -1)
        planes.append(lines[:, : plane.width] if plane.line_size > 0 else lines[::-1, : plane.width])
    return planes if len(planes) == 3 else [planes[0], planes[0][:0], planes[0][:0]]


def planes_to_rgb(planes, layout, rgb):
    """Fill rgb (H, W, 3) uint16 from planes, see frame_planes."""
    decode_rows(*planes, *layout.chroma, layout.offset, layout.to_rgb, rgb)


def frame_lowres(planes, layout, mode, turns):
    """What the network sees of a frame: (256, 256, 3) uint16, put upright by quarter turns; planes are shrunk first."""
    small = [shrink_area(p[..., None])[..., 0] if mode == 'area' else make_lowres(p, mode) for p in planes if p.size]
    lowres = np.empty((LOW_SIZE, LOW_SIZE, 3), np.uint16)
    planes_to_rgb(small + planes[len(small) :], layout._replace(chroma=(1, 1)), lowres)
    return np.ascontiguousarray(np.rot90(lowres, turns))


def rgb_to_planes(rgb, layout, planes):
    """Fill planes, see frame_planes, from rgb (H, W, 3) uint16."""
    encode_rows(rgb, *layout.chroma, layout.offset, layout.from_rgb, np.float32(layout.top), *planes)


@kernel
def decode_rows(luma, cb, cr, across, down, offset, matrix, rgb):
    """Planes of any integer dtype to rgb (H, W, 3) uint16; see planes_to_rgb."""
    height, width = luma.shape
    f = np.float32
    zero, top, half = f(0), f(TOP), f(0.5)
    blues, reds = np.zeros(cb.shape[1] * across, f), np.zeros(cb.shape[1] * across, f)  # chroma of a row, repeated
    m = matrix
    y0, c0 = offset[0], offset[1]
    for y in range(height):
        if cb.size and y % down == 0:
            repeat(cb[y // down], across, c0, blues)
            repeat(cr[y // down], across, c0, reds)
        source, result = luma[y], rgb[y].reshape(-1)  # flat, so that LLVM sees the constant stride of 3
        for x in range(width):
            level, blue, red = f(source[x]) - y0, blues[x], reds[x]
            for c in range(3):
                value = m[c, 0] * level + m[c, 1] * blue + m[c, 2] * red
                result[3 * x + c] = np.int32(min(top, max(zero, value)) + half)


@inlined
def repeat(samples, times, offset, row):
    """Fill a row of pixels with samples - offset, each `times` times."""
    for x in range(times):
        for k in range(samples.size):
            row[k * times + x] = np.float32(samples[k]) - offset


@kernel
def encode_rows(rgb, across, down, offset, matrix, top, luma, cb, cr):
    """rgb (H, W, 3) uint16 to planes of any integer dtype; see rgb_to_planes."""
    height, width = luma.shape
    f = np.float32
    zero, half = f(0), f(0.5)
    m = matrix
    blues, reds = np.zeros(cb.shape[1] * across, f), np.zeros(cb.shape[1] * across, f)  # summed over rows that share it
    y0, c0 = offset[0] + half, offset[1] + half
    for y in range(height):
        source, result = rgb[y].reshape(-1), luma[y]
        for x in range(width):
            r, g, b = f(source[3 * x]), f(source[3 * x + 1]), f(source[3 * x + 2])
            result[x] = np.int32(min(top, max(zero, m[0, 0] * r + m[0, 1] * g + m[0, 2] * b + y0)))
            blues[x] += m[1, 0] * r + m[1, 1] * g + m[1, 2] * b
            reds[x] += m[2, 0] * r + m[2, 1] * g + m[2, 2] * b
        if cb.size and (y % down == down - 1 or y == height - 1):
            average(blues, width, across, y % down + 1, c0, top, cb[y // down])
            average(reds, width, across, y % down + 1, c0, top, cr[y // down])


@inlined
def average(sums, width, across, rows, offset, top, samples):
    """Fill samples with means over `across` pixels of sums over `rows` rows, + offset; the last pixel is repeated."""
    zero, share = np.float32(0), np.float32(1) / np.float32(across * rows)
    sums[width:] = sums[width - 1]
    if across == 2:  # in vectors
        for k in range(samples.size):
            samples[k] = np.int32(min(top, max(zero, (sums[2 * k] + sums[2 * k + 1]) * share + offset)))
    else:
        for x in range(1, across):
            for k in range(samples.size):
                sums[k * across] += sums[k * across + x]
        for k in range(samples.size):
            samples[k] = np.int32(min(top, max(zero, sums[k * across] * share + offset)))
    sums[:] = zero
