"""JPEG files: their segments, what these hold, decoding that refuses damaged data, and the segments of a result.

In: a file's bytes. The segments are walked from the start; what stands behind the end of the first picture (previews,
gain maps, video) is named, not kept. Decoding is libjpeg-turbo's by simplejpeg, for OpenCV's prints what is wrong and
returns the picture all the same.
Source: ITU-T T.81, annex B; JFIF 1.02; Exif 2.32; XMP part 3; ICC.1:2010, annex B.4; CIPA DC-007 (MPF).
"""

import functools
import re
import struct

import cv2
import numpy as np
import simplejpeg

from photos.formats import Header
from photos.metadata import clean_resources

EXIF, XMP, ICC = b'Exif\0\0', b'http://ns.adobe.com/xap/1.0/\0', b'ICC_PROFILE\0'
EXTENDED, PHOTOSHOP, MPF = b'http://ns.adobe.com/xmp/extension/\0', b'Photoshop 3.0\0', b'MPF\0'
GAIN_MAP = b'urn:iso:std:iso:ts:21496'
SEGMENT = 65533  # bytes of a segment
INCH = 0.0254  # metres
MARKER = re.compile(rb'\xff[\x01-\xcf\xd8-\xfe]')  # in coded data: neither a stuffed FF nor a restart
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
SAMPLING = {
    (1, 1): cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    (2, 1): cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    (2, 2): cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
}
LUMINANCE = (  # ITU-T T.81, table K.1
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51,
    87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------- segments


def walk(data):
    """[(marker, start, end of its body)] of the first picture; the last is FFD9 with the place behind it, if there.

    Raises:
        ValueError: the segments end before the picture starts.
    """
    found, at, frame = [], 2, 0
    while True:
        while data[at : at + 2] == b'\xff\xff':
            at += 1
        if at + 4 > len(data) and data[at : at + 2] != b'\xff\xd9':
            return found
        if data[at] != 0xFF:
            raise ValueError(f'expected a JPEG marker at byte {at}, got {data[at]:#04x}')
        marker = data[at + 1]
        if marker == 0xD9:
            return [*found, (marker, at + 2, at + 2)]
        if marker == 1 or 0xD0 <= marker <= 0xD8:  # these have no body
            at += 2
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], 'big')
        found.append((marker, at + 4, end))
        if marker in FRAMES:
            frame = data[at + 9] if at + 9 < len(data) else 0
        if marker == 0xDA:
            only = frame == data[at + 4] if at + 4 < len(data) else False
            # one scan of all components ends the picture, and finding two bytes is far faster than a pattern
            progressive = any(mark not in (0xC0, 0xC1, 0xC3) for mark, _, _ in found if mark in FRAMES)
            match = None if only and not progressive else MARKER.search(data, end)
            end = data.find(b'\xff\xd9', end) if only and not progressive else match.start() if match else -1
            if end < 0:
                return found
        at = end


def read_header(data):
    """Header of a JPEG's bytes.

    Raises:
        ValueError: not whole, or of a kind that cannot be read.
    """
    segments = walk(data)
    header = Header(kind='JPEG')
    tables, parts, photoshop, others = {}, {}, b'', []
    mpf, has_gain_map = None, False
    for marker, start, end in segments:
        body = data[start:end] if marker not in (0xDA, 0xD9) else b''
        if marker in FRAMES:
            read_frame(header, marker, body)
        elif marker == 0xDB:
            read_tables(tables, body)
        elif marker == 0xFE:
            header.metadata.setdefault('comment', body)
        elif body.startswith(b'JFIF\0') and marker == 0xE0:
            read_density(header, body)
        elif body.startswith(EXIF) and marker == 0xE1:
            header.metadata.setdefault('exif', body[len(EXIF) :])
        elif body.startswith(XMP) and marker == 0xE1:
            header.metadata.setdefault('xmp', body[len(XMP) :])
        elif body.startswith(EXTENDED) and marker == 0xE1:
            others.append('its extended XMP is left out')
        elif body.startswith(ICC) and marker == 0xE2 and len(body) > 14:
            parts[body[12]] = body[14:]
        elif body.startswith(MPF) and marker == 0xE2:
            mpf = start + len(MPF)
        elif body.startswith(PHOTOSHOP) and marker == 0xED:
            photoshop += body[len(PHOTOSHOP) :]
        elif body.startswith(GAIN_MAP):
            has_gain_map = True
        elif 0xE0 <= marker <= 0xEF and not body.startswith((b'JFXX', b'Adobe')):
            others.append(f'its APP{marker - 0xE0} block{name_of(body)} is left out')
    if not segments or segments[-1][0] != 0xD9 or not header.mode:
        raise ValueError('expected a whole photo, the file is truncated' if header.mode or len(data) > 512 else
                         'expected a photo, got a JPEG marker and no picture')  # fmt: skip
    header.metadata['icc'] = b''.join(parts[number] for number in sorted(parts))
    header.metadata['iptc'] = clean_resources(photoshop)
    header.quality = jpeg_quality(tables[min(tables)]) if tables else 0
    header.left_out += dict.fromkeys(others)
    header.left_out += dict.fromkeys(name_others(data, segments[-1][1], mpf, has_gain_map))
    return header


def read_frame(header, marker, body):
    """Size, layout and sampling out of a frame's segment."""
    if len(body) < 6 or len(body) < 6 + 3 * body[5]:
        raise ValueError('expected a whole photo, the file is truncated')
    bits, height, width, count = struct.unpack_from('>BHHB', body)
    if marker in (0xC3, 0xC7, 0xCB, 0xCF):
        raise ValueError('expected a baseline or progressive JPEG, got a lossless JPEG')
    if bits != 8:
        raise ValueError(f'expected 8 bit, got a {bits}-bit JPEG')
    header.size, header.mode = (width, height), {1: 'L', 3: 'RGB', 4: 'CMYK'}.get(count, f'{count} components')
    header.progressive = marker in (0xC2, 0xC6, 0xCA, 0xCE)
    samples = [(b >> 4, b & 15) for b in body[7 : 6 + 3 * count : 3]]
    if count == 3 and samples[1] == samples[2] == (1, 1):
        header.sampling = SAMPLING.get(samples[0], 0)
    elif count == 3 and samples[0] == samples[1] == samples[2]:
        header.sampling = SAMPLING[1, 1]


def read_tables(tables, body):
    """Add the quantisation tables of a DQT segment: {number: values}."""
    at = 0
    while at < len(body):
        wide, number = body[at] >> 4, body[at] & 15
        size = 128 if wide else 64
        values = body[at + 1 : at + 1 + size]
        if len(values) == size:
            tables[number] = struct.unpack('>64H', values) if wide else tuple(values)
        at += 1 + size


def read_density(header, body):
    unit, x, y = struct.unpack_from('>BHH', body, 7) if len(body) >= 12 else (0, 1, 1)
    if unit in (1, 2) and x and y:
        header.metadata['resolution'] = tuple(value / (INCH if unit == 1 else 0.01) for value in (x, y))


def name_of(body):
    name = re.match(rb'[\x20-\x7e]{3,40}', body)
    return f' ({name[0].decode().strip()})' if name else ''


@functools.lru_cache(maxsize=64)
def jpeg_quality(table):
    """The IJG quality whose luminance table is nearest to a file's, 1 to 100."""
    base, found = np.array(LUMINANCE), np.sort(np.array(table, dtype=float))
    scales = [5000 / q if q < 50 else 200 - 2 * q for q in range(1, 101)]
    candidates = [np.sort(np.clip((base * scale + 50) // 100, 1, 255)) for scale in scales]
    return 1 + int(np.argmin([abs(candidate - found).sum() for candidate in candidates]))


# ------------------------------------------------------------------------------------------- behind the first picture

MPF_TYPES = {0x010001: 'preview', 0x010002: 'preview', 0x020001: 'part of a panorama', 0x020002: 'other view',
             0x020003: 'other view', 0x050000: 'gain map'}  # fmt: skip


def name_others(data, end, mpf, has_gain_map):
    """What stands behind a JPEG's first picture, in words.

    Args:
        end: of the first picture.
        mpf: place of the MPF directory, or None.
        has_gain_map: the first picture says that another is its gain map.
    """
    others = [name_picture(data[at : at + size], kind) for kind, size, at in read_mpf(data, mpf) if at >= end]
    if has_gain_map and 'gain map' not in others and 'second picture' in others:
        others[others.index('second picture')] = 'gain map'
    rest = data[end : end + (1 << 16)].lstrip(b'\0')
    if b'ftyp' in rest[4:8] or b'MotionPhoto_Data' in rest or (not others and b'ftyp' in rest):
        others.append('motion video')
    elif rest and not others:
        others.append(name_picture(data[end:], 0) if rest.startswith(b'\xff\xd8') else 'data behind the picture')
    return [f'its {what} is left out' for what in others]


def name_picture(picture, kind):
    """A further picture by its MPF type, or by what its own segments say."""
    if kind in MPF_TYPES:
        return MPF_TYPES[kind]
    head = picture[: 1 << 16].lower()
    if b'hdrgm' in head or GAIN_MAP in head or b'hdrgainmap' in head:
        return 'gain map'
    return 'depth map' if b'depth' in head or b'disparity' in head else 'second picture'


def read_mpf(data, mpf):
    """[(type, size, place)] of the pictures that an MPF segment lists behind the first."""
    if mpf is None:
        return []
    from photos.tags import read_directories

    try:
        entries = read_directories(data[mpf : mpf + SEGMENT])[0]
        table = entries.image[0xB002].value
        rows = [struct.unpack_from(entries.order + '3I', table, at) for at in range(16, len(table) - 15, 16)]
    except (KeyError, ValueError, struct.error):
        return []
    return [(kind & 0xFFFFFF, size, mpf + at) for kind, size, at in rows]


# --------------------------------------------------------------------------------------------------------- decoding


def decode(data, header):
    """A JPEG's pixels as they are stored: (H, W), (H, W, 3) RGB, or (H, W, 4) CMYK of which 255 is no ink.

    Raises:
        ValueError: damaged, or not a kind that libjpeg reads.
    """
    colours = {'L': 'GRAY', 'RGB': 'RGB', 'CMYK': 'CMYK'}.get(header.mode)
    if colours is None:
        raise ValueError(f'expected 1, 3 or 4 components, got {header.mode}')
    options = {'colorspace': colours, 'fastdct': False, 'fastupsample': False}
    try:
        pixels = simplejpeg.decode_jpeg(data, **options)
    except ValueError as error:
        repaired = forgive(data, str(error))
        if repaired is None:
            raise ValueError(f'expected an undamaged photo, libjpeg says: {error}') from error
        pixels = simplejpeg.decode_jpeg(repaired, **options, strict=repaired is not data)
    return pixels[..., 0] if header.mode == 'L' else pixels


def forgive(data, warning):
    """The bytes to decode where libjpeg warns of what spoils no pixel, data itself to let it pass; None for damage.

    Some phones write a scan's header as that of a progressive file, and a few bytes in front of the end.
    """
    stray = re.search(r'(\d+) extraneous bytes before marker 0xd9', warning)
    if (stray and int(stray[1]) <= 64) or 'Adobe color transform' in warning:
        return data
    repaired = bytearray(data)
    for marker, start, _ in walk(data):
        if marker == 0xDA and 'Invalid SOS parameters' in warning:
            at = start + 1 + 2 * data[start]
            repaired[at : at + 3] = b'\0\x3f\0'
        elif marker == 0xE0 and 'JFIF revision' in warning and data[start : start + 5] == b'JFIF\0':
            repaired[start + 5] = 1
    return None if repaired == data else bytes(repaired)


# --------------------------------------------------------------------------------------------------------- writing


def encode(pixels, header, metadata, quality, sampling_444=False):
    """The bytes of a JPEG as a uint8 array, as progressive and subsampled as the header says.

    Args:
        pixels: (H, W) or (H, W, 3) BGR, uint8.
        metadata: blocks that fit.
    Raises:
        ValueError: OpenCV cannot encode it.
    """
    sampling = SAMPLING[1, 1] if sampling_444 else header.sampling
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_PROGRESSIVE, int(header.progressive)]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling] if sampling else []
    return add_metadata(cv2.imencode('.jpg', pixels, options)[1], metadata)


def add_metadata(data, metadata):
    """A JPEG's bytes with its blocks behind its JFIF segment, and the resolution in that."""
    heads = {'exif': (0xE1, EXIF), 'xmp': (0xE1, XMP), 'iptc': (0xED, PHOTOSHOP), 'comment': (0xFE, b'')}
    segments = [(marker, head + metadata[name]) for name, (marker, head) in heads.items() if name in metadata]
    profile, room = metadata.get('icc', b''), SEGMENT - len(ICC) - 2
    parts = [profile[at : at + room] for at in range(0, len(profile), room)]
    segments[2:2] = [(0xE2, ICC + bytes([i, len(parts)]) + part) for i, part in enumerate(parts, 1)]
    added = b''.join(bytes([255, marker]) + (len(block) + 2).to_bytes(2, 'big') + block for marker, block in segments)
    start = data[:20].tobytes()
    jfif = start[2:4] == b'\xff\xe0'
    at = 4 + int.from_bytes(start[4:6], 'big') if jfif else 2
    if 'resolution' in metadata and jfif:
        density = [min(round(value * INCH), 65535) for value in metadata['resolution']]
        data[13:18] = np.frombuffer(struct.pack('>BHH', 1, *density), np.uint8)
    if not added:
        return data
    return np.concatenate([data[:at], np.frombuffer(added, np.uint8), data[at:]])
