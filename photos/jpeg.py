"""JPEG files: what their segments hold, decoding that refuses damaged data, and the segments of a result.

In: a file's bytes. Pillow reads the segments in front of the pixels; what stands behind the first picture's end
(previews, gain maps, video) is named, not kept. Decoding is libjpeg-turbo's by simplejpeg, for OpenCV's prints what is
wrong and returns the picture all the same, and Pillow's says nothing.
Source: ITU-T T.81, annex B; JFIF 1.02; Exif 2.32; XMP part 3; ICC.1:2010, annex B.4; CIPA DC-007 (MPF).
"""

import contextlib
import functools
import io
import re
import struct

import cv2
import numpy as np
import simplejpeg
from PIL import JpegImagePlugin

from photos.formats import Header, reading_by
from photos.metadata import read_directories
from photos.tiff import by_pillow

EXIF, XMP, ICC = b'Exif\0\0', b'http://ns.adobe.com/xap/1.0/\0', b'ICC_PROFILE\0'
EXTENDED, PHOTOSHOP, MPF = b'http://ns.adobe.com/xmp/extension/\0', b'Photoshop 3.0\0', b'MPF\0'
HEADS = {
    'exif': (0xE1, EXIF),
    'xmp': (0xE1, XMP),
    'icc': (0xE2, ICC),
    'iptc': (0xED, PHOTOSHOP),
    'comment': (0xFE, b''),
}
GAIN_MAP = b'urn:iso:std:iso:ts:21496'
SEGMENT = 65533  # bytes of a segment
INCH = 0.0254  # metres
SAMPLING = {  # of chroma, by the luma's factors
    (1, 1): cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    (2, 1): cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    (2, 2): cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    (1, 2): cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
    (4, 1): cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411,
}


def read_header(data):
    """Read the Header of a JPEG's bytes."""
    image = open_segments(data)
    header = Header(kind='JPEG', size=image.size, mode=image.mode, progressive='progressive' in image.info)
    samples = [layer[1:3] for layer in image.layer]
    if image.layers == 3:  # full chroma where OpenCV does not write what the file has
        header.sampling = SAMPLING.get(samples[0] if samples[1:] == [(1, 1)] * 2 else (1, 1), SAMPLING[1, 1])
    if image.quantization:
        table = np.sort(image.quantization[min(image.quantization)])
        header.quality = 1 + int(np.abs(luminance_tables() - table).sum(axis=1).argmin())
    unit, density = image.info.get('jfif_unit'), image.info.get('jfif_density', (0, 0))
    if unit in (1, 2) and all(density):
        header.metadata['resolution'] = tuple(value / (INCH if unit == 1 else 0.01) for value in density)
    blocks, profile, photoshop, others = header.metadata, {}, b'', []
    for name, body in image.applist:
        if name == 'COM':
            blocks.setdefault('comment', body)
        elif name == 'APP1' and body.startswith(EXIF):
            part = body[len(EXIF) :]
            is_more = 'exif' in blocks and part[:4] not in (b'II*\0', b'MM\0*')  # of a block longer than a segment
            blocks['exif'] = blocks['exif'] + part if is_more else blocks.get('exif', part)
        elif name == 'APP1' and body.startswith(XMP):
            blocks.setdefault('xmp', body[len(XMP) :])
        elif name == 'APP1' and body.startswith(EXTENDED):
            others.append('its extended XMP is left out')
        elif name == 'APP2' and body.startswith(ICC) and len(body) > 14:
            profile[body[12]] = body[14:]
        elif name == 'APP13' and body.startswith(PHOTOSHOP):
            photoshop += body[len(PHOTOSHOP) :]
        elif not body.startswith((b'JFIF', b'JFXX', b'Adobe', MPF, GAIN_MAP)):
            word = re.match(rb'[\x20-\x7e]{3,40}', body)
            others.append(f'its {name} block{f" ({word[0].decode().strip()})" if word else ""} is left out')
    blocks['icc'] = b''.join(profile[number] for number in sorted(profile))
    blocks['iptc'] = photoshop
    end = data.find(b'\xff\xd9', image.fp.tell())  # neither coded data nor the tables between scans hold these bytes
    if end < 0:
        raise ValueError('expected a whole photo, the file is truncated')
    header.notes += dict.fromkeys(others + name_others(data, end + 2, image))
    return header


def open_segments(data):
    """Open a JPEG's bytes by Pillow, which reads the segments in front of the pixels."""
    try:
        with reading_by('Pillow'):
            return JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    except ValueError as error:
        if deep := re.search(r'(\d+)-bit', str(error)):
            raise ValueError(f'expected 8 bit, got a {deep[1]}-bit JPEG') from error
        raise ValueError('expected a whole photo, the file is truncated' if len(data) > 512 else
                         'expected a photo, got a JPEG marker and no picture') from error  # fmt: skip


@functools.lru_cache(maxsize=1)
def luminance_tables():
    """(100, 64) sorted tables of our encoder's qualities 1 to 100."""
    files = (cv2.imencode('.jpg', np.zeros((8, 8), np.uint8), [cv2.IMWRITE_JPEG_QUALITY, q])[1] for q in range(1, 101))
    return np.sort([open_segments(file.tobytes()).quantization[0] for file in files])


MPF_TYPES = {0x010001: 'preview', 0x010002: 'preview', 0x020001: 'part of a panorama', 0x020002: 'other view',
             0x020003: 'other view', 0x050000: 'gain map'}  # fmt: skip


def name_others(data, end, image):
    """Name what stands behind the end of a JPEG's first picture; image: from open_segments."""
    others, mpf = [], image.info.get('mpoffset', len(data))
    with contextlib.suppress(KeyError, ValueError, struct.error):  # what is no directory lists nothing
        entries = read_directories(data[mpf : mpf + SEGMENT])[0]
        table = entries.image[0xB002].value
        for kind, size, at in [*struct.iter_unpack(entries.order + '3I4x', table)][1:]:  # behind the photo's own
            if mpf + at >= end:
                others.append(name_picture(data[mpf + at : mpf + at + size], kind & 0xFFFFFF))
    if 'gain map' not in others and any(body.startswith(GAIN_MAP) for _, body in image.applist):
        others = ['gain map' if what == 'second picture' else what for what in others]
    rest = data[end : end + (1 << 16)].lstrip(b'\0')
    if b'ftyp' in rest[4:8] or b'MotionPhoto_Data' in rest or (not others and b'ftyp' in rest):
        others.append('motion video')
    elif rest and not others:
        others.append(name_picture(data[end:], 0) if rest.startswith(b'\xff\xd8') else 'data behind the picture')
    return [f'its {what} is left out' for what in others]


def name_picture(picture, kind):
    """Name a further picture by its MPF type, or by what its own segments say."""
    if kind in MPF_TYPES:
        return MPF_TYPES[kind]
    head = picture[: 1 << 16].lower()
    if b'hdrgm' in head or GAIN_MAP in head or b'hdrgainmap' in head:
        return 'gain map'
    return 'depth map' if b'depth' in head or b'disparity' in head else 'second picture'


def decode(data, header):
    """Decode a JPEG as it is stored: (H, W), (H, W, 3) RGB, or (H, W, 4) CMYK of which 255 is no ink."""
    colours = {'L': 'GRAY'}.get(header.mode, header.mode)
    try:
        pixels = simplejpeg.decode_jpeg(data, colours)
    except ValueError:
        pixels = decode_odd(data, header, colours)
    return pixels[..., 0] if header.mode == 'L' else pixels


def decode_odd(data, header, colours):
    """Decode a JPEG that libjpeg warns of or simplejpeg does not take."""
    try:
        return simplejpeg.decode_jpeg(repair_harmless(data, header), colours)
    except ValueError as error:
        reason = str(error)
        stray = re.search(r'(\d+) extraneous bytes before marker 0xd9', reason)
        if stray and int(stray[1]) <= 64:  # as some phones write in front of the end
            return simplejpeg.decode_jpeg(repair_harmless(data, header), colours, strict=False)
        if 'subsampling' in reason:  # of a kind that simplejpeg does not take; Pillow says nothing of damage
            return np.atleast_3d(by_pillow(data, header))
        is_other = 'SOF type' in reason or 'color conversion' in reason  # lossless, for example
        expected = 'a baseline or progressive JPEG' if is_other else 'an undamaged photo'
        raise ValueError(f'expected {expected}, libjpeg says: {reason}') from error


def repair_harmless(data, header):
    """Return a JPEG's bytes without what libjpeg warns of though it spoils no pixel; for the decoder alone.

    Blocks of metadata and bytes between the segments go, whatever is wrong with them; unknown numbers in the blocks of
    JFIF and Adobe, and a sequential scan's header in a progressive file's way, as some phones write it, become right.
    """
    parts, at, marker = [data[:2]], 2, 0
    while marker != 0xDA:
        at = data.index(b'\xff', at)
        marker = data[at + 1]
        if marker in (0, 1, 0xFF) or 0xD0 <= marker <= 0xD8:  # these have no body
            at += 1
            continue
        segment = bytearray(data[at : at + 2 + int.from_bytes(data[at + 2 : at + 4], 'big')])
        at += len(segment)
        if segment[4:9] == b'JFIF\0':
            segment[9] = 1
        elif segment[4:9] == b'Adobe' and len(segment) > 15:
            right = (0, 1) if header.mode == 'RGB' else (0, 2)
            segment[15] = segment[15] if segment[15] in right else right[1]
        elif 0xE0 <= marker <= 0xEF or marker == 0xFE:
            continue
        elif marker == 0xDA and not header.progressive:
            segment[-3:] = b'\0\x3f\0'
        parts.append(segment)
    return b''.join([*parts, data[at:]])


def encode(pixels, header, metadata, quality, sampling_444=False):
    """Encode a JPEG as progressive and subsampled as the header says; returns a uint8 array of its bytes.

    Args:
        pixels: (H, W) or (H, W, 3) BGR, uint8.
        metadata: blocks that fit; they stand behind the segment of JFIF, which holds the resolution.
    """
    sampling = SAMPLING[1, 1] if sampling_444 else header.sampling
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_PROGRESSIVE, int(header.progressive)]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling] if sampling else []
    data, added = cv2.imencode('.jpg', pixels, options)[1], b''
    for name, (marker, head) in HEADS.items():
        block, room = metadata.get(name, b''), SEGMENT - len(head) - 2
        parts = [block[at : at + room] for at in range(0, len(block), room)]
        for number, part in enumerate(parts, 1):
            body = head + (bytes([number, len(parts)]) if name == 'icc' else b'') + part
            added += bytes([255, marker]) + (len(body) + 2).to_bytes(2, 'big') + body
    if 'resolution' in metadata:
        density = [min(round(value * INCH), 65535) for value in metadata['resolution']]
        data[13:18] = np.frombuffer(struct.pack('>BHH', 1, *density), np.uint8)
    return np.concatenate([data[:20], np.frombuffer(added, np.uint8), data[20:]])
