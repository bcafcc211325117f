"""Colour profiles: what the network sees of a photo that is not sRGB, and how the result comes back into its profile.

A network is trained on sRGB. A photo in another space is shown to it with sRGB's curve and primaries, in 16 bit,
colours outside of sRGB clipped; the pixels as they were in the file are kept beside it. The result goes back by

    linear result = linear(E) + (x - linear(I)) * Y(E) / Y(I)

in sRGB's primaries, where I is what the network saw, E what it made of it, x the photo's own colour unclipped and Y the
luminance: within sRGB that is E, and what lay outside is brightened with its pixel instead of being lost. A pixel that
did not change comes back as the file's own levels.

Source: ICC.1:2022 (profiles of matrix and curves); IEC 61966-2-1 (sRGB); ITU-T H.273 (numbers of primaries and curves).
Profiles of tables (CMYK, some scanners) and Lab go to sRGB by littlecms (Pillow's ImageCms), 8 bit, and stay there.
"""

import io
import struct

import cv2
import numpy as np
from PIL import Image, ImageCms

TOP = 65535
D50 = np.array([0.9642, 1.0, 0.8249])
SRGB_TO_XYZ = np.array(  # D50, as every sRGB profile has it
    [[0.436066, 0.385147, 0.143066], [0.222488, 0.716873, 0.060608], [0.013916, 0.097076, 0.714096]]
)
ALIKE = 0.01  # largest difference of matrix or curve of what is taken for sRGB
PRIMARIES = {  # xy of red, green, blue, white
    9: ((0.708, 0.292), (0.17, 0.797), (0.131, 0.046), (0.3127, 0.329)),  # Rec. 2020
    11: ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06), (0.314, 0.351)),  # DCI-P3
    12: ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06), (0.3127, 0.329)),  # Display P3
    'sRGB': ((0.64, 0.33), (0.3, 0.6), (0.15, 0.06), (0.3127, 0.329)),
    'Adobe RGB': ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), (0.3127, 0.329)),
}
PRIMARIES |= dict.fromkeys((0, 1, 2, 5, 6, 7), PRIMARIES['sRGB'])  # the last three by a hair
CURVES = {4: 2.2, 5: 2.8, 8: 1.0} | dict.fromkeys((0, 1, 2, 6, 13, 14, 15), 0.0)  # shown as sRGB by every viewer
HDR = {16: 'PQ', 18: 'HLG'}


def encode_srgb(linear):
    """sRGB's levels in [0, 1] of an array of linear light in [0, 1]."""
    bright = cv2.pow(linear, 1 / 2.4).reshape(linear.shape)  # twice as fast as numpy's
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * bright - 0.055)


def decode_srgb(level):
    """Linear light in [0, 1] of sRGB's levels in [0, 1]."""
    return np.where(level <= 0.04045, level / 12.92, ((np.maximum(level, 0) + 0.055) / 1.055) ** 2.4)


RAMP = np.linspace(0, 1, TOP + 1)
TO_SRGB = np.round(encode_srgb(RAMP**2) * TOP).astype(np.uint16)  # by the square root of linear light, in 16 bit
FROM_SRGB = decode_srgb(RAMP).astype(np.float32)


class Space:
    """A photo's own colour space: one curve a channel, then a matrix to sRGB's linear primaries."""

    def __init__(self, curves, matrix):
        """curves: three arrays of 65536, linear light of each channel's level in 16 bit; matrix: (3, 3)."""
        same = all(np.array_equal(curve, curves[0]) for curve in curves)
        curves = curves[:1] if same else curves  # one table thrice takes a third of the cache
        levels = [np.interp(RAMP**2, curve, RAMP) for curve in curves]
        share, types = 3 // len(curves), {np.uint8: 255, np.uint16: TOP}
        self.linear = {  # linear light by level
            dtype: tuple([curve[:: TOP // top].astype(np.float32) for curve in curves] * share)
            for dtype, top in types.items()
        }
        self.levels = {  # level by the square root of linear light
            dtype: tuple([np.round(level * top).astype(dtype) for level in levels] * share)
            for dtype, top in types.items()
        }
        self.inverse = np.linalg.inv(matrix).astype(np.float32)
        self.matrix = matrix.astype(np.float32)

    def as_srgb(self, own):
        """The (H, W, 3) uint16 sRGB photo of own levels, uint8 or uint16."""
        from photos.convert import show_rows  # compiled by Numba, for those who have such a photo
        from system.jit import parallel_rows

        photo, tables = np.empty(own.shape, np.uint16), self.linear[own.dtype.type]
        parallel_rows(len(own), lambda *rows: show_rows(own, rows, tables, self.matrix, TO_SRGB, photo))
        return photo

    def from_srgb(self, enhanced, own):
        """Write the own levels of a result that was made from as_srgb(own) over `own`.

        Args:
            enhanced: (H, W, 3) uint16 sRGB.
            own: (H, W, 3) uint8 or uint16.
        """
        from photos.convert import return_rows
        from system.jit import parallel_rows

        tables, levels = self.linear[own.dtype.type], self.levels[own.dtype.type]
        rules = tables, self.matrix, TO_SRGB, FROM_SRGB, self.inverse, levels
        parallel_rows(len(own), lambda *rows: return_rows(enhanced, own, rows, *rules))
        return own


def read_space(icc):
    """What a profile means: a Space, None for sRGB, 'tables' where it holds tables alone, 'PQ' or 'HLG' for HDR.

    Raises:
        ValueError: it is damaged, or for other channels than grey and RGB.
    """
    try:
        (count,) = struct.unpack_from('>I', icc, 128)
        entries = [struct.unpack_from('>4sII', icc, 132 + 12 * i) for i in range(min(count, 200))]
        tags = {name: icc[at : at + size] for name, at, size in entries}
        if tags.get(b'cicp', bytes(12))[9] in HDR:
            return HDR[tags[b'cicp'][9]]
        if icc[16:20] == b'GRAY':
            curves, matrix = [read_curve(tags[b'kTRC'])] * 3, np.eye(3)
        elif icc[16:20] == b'RGB ' and b'A2B0' in tags and b'rXYZ' not in tags:
            return 'tables'
        else:
            curves = [read_curve(tags[name]) for name in (b'rTRC', b'gTRC', b'bTRC')]
            columns = [struct.unpack_from('>3i', tags[name], 8) for name in (b'rXYZ', b'gXYZ', b'bXYZ')]
            matrix = np.linalg.solve(SRGB_TO_XYZ, np.array(columns).T / 65536)
            matrix /= matrix.sum(axis=1, keepdims=True)  # grey stays exactly grey
    except (KeyError, struct.error, np.linalg.LinAlgError, IndexError) as error:
        raise ValueError(f'read_space: expected a whole profile ({error!r})') from error
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-3 or any(curve[-1] < 0.5 for curve in curves):
        raise ValueError('read_space: expected a profile that can be inverted')
    alike = np.abs(matrix - np.eye(3)).max() < ALIKE
    if alike and all(np.abs(encode_srgb(curve[::257]) - RAMP[::257]).max() < ALIKE for curve in curves):
        return None
    return Space(curves, matrix)


def read_curve(tag):
    """Read a curve at 65536 levels, rising, in [0, 1]."""
    if tag[:4] == b'curv':
        (count,) = struct.unpack_from('>I', tag, 8)
        values = struct.unpack_from(f'>{count}H', tag, 12)
        if count < 2:
            return RAMP ** (values[0] / 256 if values else 1)
        curve = np.interp(RAMP, np.linspace(0, 1, count), np.array(values) / TOP)
    elif tag[:4] == b'para':
        kind = struct.unpack_from('>H', tag, 8)[0]
        values = [v / 65536 for v in struct.unpack_from(f'>{(1, 3, 4, 5, 7)[kind]}i', tag, 12)]
        g, a, b, c, d, e, f = values + [0] * (7 - len(values))
        if kind == 0:
            a = 1
        elif kind < 3:
            c, d, e, f = 0, -b / a, c, c
        curve = np.where(d <= RAMP, np.maximum(a * RAMP + b, 0) ** g + e, c * RAMP + f)
    else:
        raise ValueError(f'read_curve: expected curv or para, got {tag[:4]!r}')
    return np.maximum.accumulate(np.clip(curve, 0, 1))


def make_profile(name, primaries, gamma=0.0):
    """Make an ICC profile, version 4, of the xy of primaries and white, and a gamma; 0 is sRGB's curve."""
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in primaries]).T
    white = columns[:, 3]
    matrix = columns[:, :3] * np.linalg.solve(columns[:, :3], white)
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    adapt = np.linalg.inv(bradford) @ np.diag((bradford @ D50) / (bradford @ white)) @ bradford
    fixed = lambda values: b''.join(struct.pack('>i', round(v * 65536)) for v in values)  # noqa: E731
    parameters = (gamma,) if gamma else (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    curve = b'para\0\0\0\0' + struct.pack('>HH', 0 if gamma else 3, 0) + fixed(parameters)
    tags = {}
    for key, text in ((b'desc', name), (b'cprt', 'No copyright')):
        head = struct.pack('>4s4xII2s2sII', b'mluc', 1, 12, b'en', b'US', 2 * len(text), 28)
        tags[key] = head + text.encode('utf-16-be')
    tags[b'wtpt'] = b'XYZ \0\0\0\0' + fixed(D50)
    tags[b'chad'] = b'sf32\0\0\0\0' + fixed(adapt.ravel())
    columns = zip((b'rXYZ', b'gXYZ', b'bXYZ'), (adapt @ matrix).T, strict=True)
    tags |= {key: b'XYZ \0\0\0\0' + fixed(column) for key, column in columns}
    tags |= dict.fromkeys((b'rTRC', b'gTRC', b'bTRC'), curve)
    table, body, at = b'', b'', 132 + 12 * len(tags)
    for key, value in tags.items():
        value += b'\0' * (-len(value) % 4)
        table, body = table + struct.pack('>4sII', key, at + len(body), len(value)), body + value
    head = struct.pack('>I4xI4s4s4s6H', at + len(body), 0x04300000, b'mntr', b'RGB ', b'XYZ ', 2024, 1, 1, 0, 0, 0)
    head += b'acsp' + bytes(28) + fixed(D50) + bytes(48)
    return head + struct.pack('>I', len(tags)) + table + body


def profile_of(colour, adobe):
    """The profile of a photo that has none but says its colours otherwise; b'' for sRGB.

    Args:
        colour: (primaries, transfer) of H.273, or ().
        adobe: EXIF says Adobe RGB.
    Raises:
        ValueError: HDR, or colours that are not known here.
    """
    if colour:
        primaries, transfer = colour
        refuse_hdr(HDR.get(transfer))
        if primaries not in PRIMARIES or transfer not in CURVES:
            raise ValueError(f'expected known colours, got primaries {primaries} and transfer {transfer} of H.273')
        name, gamma = {9: 'Rec. 2020', 11: 'DCI-P3', 12: 'Display P3'}.get(primaries, 'RGB'), CURVES[transfer]
        return make_profile(name, PRIMARIES[primaries], gamma) if gamma or name != 'RGB' else b''
    return make_profile('Adobe RGB (1998) compatible', PRIMARIES['Adobe RGB'], 563 / 256) if adobe else b''


def refuse_hdr(kind):
    """Raise ValueError where what read_space or HDR says of a photo's colours is HDR."""
    if kind in HDR.values():
        raise ValueError(f'expected a photo of standard range, got HDR ({kind}); tone-map it first')


def by_tables(pixels, mode, icc):
    """Convert an 8-bit photo to sRGB by littlecms; None where the profile does not fit.

    Args:
        pixels: (H, W, 3 or 4) uint8.
        mode: Pillow's RGB, CMYK (255 is full ink) or LAB.
        icc: the profile; b'' for LAB.
    """
    try:
        source = ImageCms.createProfile('LAB') if mode == 'LAB' else ImageCms.ImageCmsProfile(io.BytesIO(icc))
        image = Image.frombytes(mode, pixels.shape[1::-1], np.ascontiguousarray(pixels).tobytes())
        srgb = ImageCms.createProfile('sRGB')
        flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
        done = ImageCms.profileToProfile(image, source, srgb, ImageCms.Intent.RELATIVE_COLORIMETRIC, 'RGB', flags=flags)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    return np.array(done)
