"""Frames as RGB: planes of Y, Cb and Cr (or G, B and R) to (H, W, 3) uint16 and back, as the frame's tags say.

RGB has 16 bits whatever the frame has, so that nothing is rounded twice. Chroma is repeated over the pixels that it
covers and averaged over them on the way back: a frame within RGB's range comes back bit for bit, wherever its chroma
samples are sited. What lies outside RGB's range, such as the foot room below black, is clipped to it.

Source of the equations: ITU-T H.273, section 8.3.
"""

import re
from typing import NamedTuple

import numpy as np

from photos.levels import LOW_SIZE
from photos.lowres import make_lowres, shrink_area
from system.jit import inlined, kernel

LUMA = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087),
        9: (0.2627, 0.0593)}  # fmt: skip  # matrix coefficients' code in H.273: weights of red and blue
GBR, UNSPECIFIED = 0, 2  # codes of the matrix, the second also of transfer and primaries
LIMITED, FULL = 1, 2  # codes of the range
TOP = 65535  # of the RGB here
CHROMA = {'420': (2, 2), '422': (2, 1), '444': (1, 1), '440': (1, 2), '411': (4, 1), '410': (4, 4)}


class Layout(NamedTuple):
    """How the planes of a frame hold its colours."""

    dtype: type  # of the planes: uint8 or uint16
    planes: int  # that hold colour: 3, or 1 if grey
    chroma: tuple  # pixels that a chroma sample covers, across and down
    offset: np.ndarray  # (3,) float32, levels of each plane that stand for 0
    to_rgb: np.ndarray  # (3, 3) float32, RGB in [0, TOP] = to_rgb . (levels - offset)
    from_rgb: np.ndarray  # (3, 3) float32, its inverse
    top: int  # highest level of a plane


def parse_format(name):
    """(kind 'yuv', 'gbr' or 'gray', bits, pixels that a chroma sample covers, full range by name), or None."""
    found = re.fullmatch(r'(?:(yuv)a?(j?)(4\d\d)p|(gbr)a?p|(gray))(?:(9|1[0246])le)?', name)
    if not found:
        return None
    kind = found[1] or found[4] or found[5]
    return kind, int(found[6] or 8), CHROMA[found[3] or '444'], bool(found[2])


def find_layout(name, matrix, color_range, width, height):
    """Layout of a planar pixel format with H.273's codes; where they are not given, as players take it.

    Args:
        name: planar pixel format, such as 'yuv420p10le'.
        matrix: matrix coefficients; see known_matrix.
        color_range: LIMITED or FULL; where it is not given, grey is taken as full and YUV as limited.
    Raises:
        ValueError: another format, or a matrix that is not a matrix of RGB (YCgCo, constant luminance, ICtCp).
    """
    parsed = parse_format(name)
    if parsed is None:
        raise ValueError(f'pixel format: expected planar YUV, RGB or grey of 8 to 16 bits, got {name}')
    kind, bits, chroma, full = parsed
    top = 2**bits - 1
    dtype = np.uint8 if bits == 8 else np.uint16
    if kind == 'gbr':
        levels, offset = np.eye(3)[[2, 0, 1]] / top, np.zeros(3)
    else:
        matrix = known_matrix(matrix, width, height)
        if matrix not in LUMA:
            raise ValueError(f'matrix coefficients: expected one of {sorted(LUMA)} of H.273, got {matrix}')
        red, blue = LUMA[matrix]
        green = 1 - red - blue
        to_rgb = np.array([
            [1, 0, 2 - 2 * red],
            [1, -blue * (2 - 2 * blue) / green, -red * (2 - 2 * red) / green],
            [1, 2 - 2 * blue, 0],
        ])  # fmt: skip
        unit = 2 ** (bits - 8)
        full = full or color_range == FULL or (kind == 'gray' and color_range != LIMITED)
        span = np.array([top, top, top]) if full else np.array([219, 224, 224]) * unit
        offset = np.array([0 if full else 16 * unit, 128 * unit, 128 * unit])
        levels = to_rgb / span
    to_rgb = levels * TOP
    return Layout(dtype, 1 if kind == 'gray' else 3, chroma, offset.astype(np.float32), to_rgb.astype(np.float32),
                  np.linalg.inv(to_rgb).astype(np.float32), top)  # fmt: skip


def known_matrix(matrix, width, height):
    """Matrix coefficients of YUV: those given, or else, as players take them, BT.709 in HD sizes and BT.601 below."""
    return matrix if matrix not in (GBR, UNSPECIFIED) else 1 if width >= 1280 or height > 576 else 6


def planes_to_rgb(planes, layout, chroma, rgb):
    """Fill rgb (H, W, 3) uint16 from Y, Cb and Cr planes; a grey frame has one plane.

    Args:
        chroma: pixels that a sample of the later planes covers, across and down; (1, 1) where they were resized.
    """
    decode_rows(*three_planes(planes), *chroma, layout.offset, layout.to_rgb, rgb)


def frame_lowres(planes, layout, mode, turns=0):
    """What the network sees of a frame: (256, 256, 3) uint16, upright; planes are shrunk before colours are made.

    Args:
        planes: see planes_to_rgb.
        mode: 'area', 'bilinear' or 'nearest', see model.IlluminationNet.
        turns: quarter turns counter-clockwise that put the frame upright.
    """
    planes = [shrink_area(p[..., None])[..., 0] if mode == 'area' else make_lowres(p, mode) for p in planes]
    lowres = np.empty((LOW_SIZE, LOW_SIZE, 3), np.uint16)
    planes_to_rgb(planes, layout, (1, 1), lowres)
    return np.ascontiguousarray(np.rot90(lowres, turns)) if turns else lowres


def rgb_to_planes(rgb, layout, planes):
    """Fill Y, Cb and Cr planes, or a grey frame's one, from rgb (H, W, 3) uint16."""
    top = np.float32(layout.top)
    encode_rows(rgb, *layout.chroma, layout.offset, layout.from_rgb, top, *three_planes(planes))


def three_planes(planes):
    """The planes, or a grey frame's one and two without rows."""
    return planes if len(planes) == 3 else (planes[0], planes[0][:0], planes[0][:0])


@kernel
def decode_rows(luma, cb, cr, across, down, offset, matrix, rgb):
    """Planes of any integer dtype to rgb (H, W, 3) uint16; see planes_to_rgb."""
    height, width = luma.shape
    f = np.float32
    zero, top, half = f(0), f(TOP), f(0.5)
    blues, reds = np.zeros(width, f), np.zeros(width, f)  # chroma of a row, repeated
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
    """Fill a row of pixels with samples - offset, each `times` times; the common 1 and 2 without a division."""
    f = np.float32
    if times == 1:
        for x in range(row.size):
            row[x] = f(samples[x]) - offset
    elif times == 2:
        for k in range(row.size // 2):
            value = f(samples[k]) - offset
            row[2 * k], row[2 * k + 1] = value, value
        if row.size % 2:
            row[row.size - 1] = f(samples[row.size // 2]) - offset
    else:
        for x in range(row.size):
            row[x] = f(samples[x // times]) - offset


@kernel
def encode_rows(rgb, across, down, offset, matrix, top, luma, cb, cr):
    """rgb (H, W, 3) uint16 to planes of any integer dtype; see rgb_to_planes."""
    height, width = luma.shape
    f = np.float32
    zero, half = f(0), f(0.5)
    m = matrix
    blues, reds = np.zeros(width, f), np.zeros(width, f)  # chroma, summed over the rows that share it
    y0, c0 = offset[0] + half, offset[1] + half
    for y in range(height):
        source, result = rgb[y].reshape(-1), luma[y]
        if y % down == 0:
            blues[:] = zero
            reds[:] = zero
        for x in range(width):
            r, g, b = f(source[3 * x]), f(source[3 * x + 1]), f(source[3 * x + 2])
            result[x] = np.int32(min(top, max(zero, m[0, 0] * r + m[0, 1] * g + m[0, 2] * b + y0)))
            blues[x] += m[1, 0] * r + m[1, 1] * g + m[1, 2] * b
            reds[x] += m[2, 0] * r + m[2, 1] * g + m[2, 2] * b
        if cb.size and (y % down == down - 1 or y == height - 1):
            average(blues, across, y % down + 1, c0, top, cb[y // down])
            average(reds, across, y % down + 1, c0, top, cr[y // down])


@inlined
def average(sums, across, rows, offset, top, samples):
    """Fill samples with means over `across` pixels of sums over `rows` rows, + offset; the last has what is left."""
    f = np.float32
    zero, share, whole = f(0), f(1) / f(across * rows), sums.size // across
    for k in range(whole):
        value = zero
        if across == 1:
            value = sums[k]
        elif across == 2:
            value = sums[2 * k] + sums[2 * k + 1]
        else:
            for x in range(k * across, (k + 1) * across):
                value += sums[x]
        samples[k] = np.int32(min(top, max(zero, value * share + offset)))
    if whole < samples.size:
        value = sums[whole * across :].sum() / f(rows * (sums.size - whole * across)) + offset
        samples[whole] = np.int32(min(max(value, zero), top))
