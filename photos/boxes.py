"""Boxes of ISO base media files: JPEG 2000, JPEG XL, HEIC, AVIF, Canon's CR3.

In: a file's bytes. Out: what lies in its boxes beside the coded picture; for JPEG 2000 also a file
with such boxes added.
Source: ISO/IEC 15444-1, annex I (JP2); 18181-2 (JPEG XL); 23008-12 (HEIF); H.273 for the numbers of `colour`.
"""

import struct

import numpy as np

from photos.formats import Header
from photos.metadata import clean_resources

XMP = bytes.fromhex('be7acfcb97a942e89c71999491e3afac')
EXIF = b'JpgTiffExif->JP2'
IPTC = bytes.fromhex('33c7a4d2b81d4723a0baf1a3e097ad38')
CANON = bytes.fromhex('85c0b687820f11e08111f4ce462b6a48')
PARENTS = {b'meta': 4, b'iprp': 0, b'ipco': 0, b'jp2h': 0, b'res ': 0, b'moov': 0}  # bytes in front of their boxes
JP2_START = 12 + 20  # signature and file type, as OpenCV writes them


def walk(data, start=0, end=None):
    """(type, start, end of its body) of each box and of those inside; stops where a box leaves its parent."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        size, kind = struct.unpack_from('>I4s', data, start)
        body = start + 8
        if size == 1 and start + 16 <= end:
            (size,) = struct.unpack_from('>Q', data, body)
            body += 8
        stop = end if size == 0 else start + size
        if stop > end or stop < body:
            return
        yield kind, body, stop
        if kind in PARENTS:
            yield from walk(data, body + PARENTS[kind], stop)
        elif kind == b'uuid' and data[body : body + 16] == CANON:
            yield from walk(data, body + 16, stop)
        start = stop


def colour(data):
    """(primaries, transfer) of the first `nclx` colour box, () where there is none."""
    for kind, start, end in walk(data):
        if kind == b'colr' and data[start : start + 4] == b'nclx' and end - start >= 10:
            return struct.unpack_from('>HH', data, start + 4)
    return ()


def bits(data):
    """Bits per channel that the first `pixi` box says, 0 where there is none."""
    return next((data[start + 5] for kind, start, end in walk(data) if kind == b'pixi' and end - start > 5), 0)


def read_jp2(data):
    """Header of a JPEG 2000 file's bytes."""
    header = Header(kind='JP2')
    palette = sycc = False
    for kind, start, end in walk(data):
        body = data[start:end]
        if kind == b'ihdr' and len(body) >= 11:
            height, width, count, depth = struct.unpack_from('>IIHB', body)
            header.size, header.bits = (width, height), (depth & 127) + 1
            header.mode = {1: 'L', 2: 'LA', 3: 'RGB', 4: 'RGBA'}.get(count, '')
        elif kind == b'colr' and body[:1] == b'\2':
            header.metadata['icc'] = body[3:]
        elif kind == b'colr' and body[:1] == b'\1' and len(body) >= 7:
            space = struct.unpack_from('>I', body, 3)[0]
            sycc |= space == 18
            if space not in (16, 17, 18):
                raise ValueError(f'expected sRGB, grey or a profile, got the JPEG 2000 colour space {space}')
        elif kind == b'pclr':
            palette = True
        elif kind == b'uuid' and body[:16] in (XMP, EXIF, IPTC):
            block, name = body[16:], {XMP: 'xmp', EXIF: 'exif', IPTC: 'iptc'}[body[:16]]
            header.metadata[name] = clean_resources(block) if name == 'iptc' else block.removeprefix(b'Exif\0\0')
        elif kind in (b'resc', b'resd') and len(body) >= 10:
            vertical, over_v, horizontal, over_h, power_v, power_h = struct.unpack_from('>HHHHbb', body)
            if over_v and over_h and vertical and horizontal:
                header.metadata['resolution'] = (horizontal / over_h * 10.0**power_h, vertical / over_v * 10.0**power_v)
    if (palette or sycc) and header.bits > 8:
        raise ValueError(f'expected RGB or grey of 16 bit, got JPEG 2000 with {"a palette" if palette else "sYCC"}')
    if palette:
        header.mode = 'P'
    elif sycc:
        header.mode = 'YCbCr'
    return header


def read_jxl(data):
    """(XMP, EXIF) of a JPEG XL file's boxes, b'' each where there is none or it is packed (brob)."""
    xmp = exif = b''
    for kind, start, end in walk(data):
        if kind == b'xml ':
            xmp = data[start:end]
        elif kind == b'Exif':
            body = data[start:end]  # behind four bytes that say where it starts, which some writers forget
            exif = body if body[:2] in (b'II', b'MM') else body[4:]
    return xmp, exif


def packed_boxes(data):
    """Types of the Brotli-packed boxes of a JPEG XL file."""
    return {data[start : start + 4] for kind, start, end in walk(data) if kind == b'brob'}


def canon_blocks(data):
    """[TIFF blocks] of a CR3 file: its directory 0, EXIF, maker's note, GPS (CMT1 to CMT4), b'' for what is missing."""
    found = {kind: data[start:end] for kind, start, end in walk(data) if kind[:3] == b'CMT'}
    return [found.get(b'CMT%d' % number, b'') for number in (1, 2, 3, 4)]


def box(kind, body):
    return struct.pack('>I4s', 8 + len(body), kind) + body


def add_to_jp2(data, metadata):
    """A JPEG 2000 file's bytes, as OpenCV writes them, with colour profile, resolution, EXIF and XMP."""
    if not metadata:
        return data
    source, parts = data.tobytes(), []
    start = 0
    while start + 8 <= len(source):
        size, kind = struct.unpack_from('>I4s', source, start)
        stop = start + size if size > 1 else len(source)
        whole = source[start:stop]
        if kind == b'jp2h':
            whole = box(kind, header_boxes(whole[8:], metadata))
        if kind == b'jp2c':
            for name, mark in (('exif', EXIF), ('xmp', XMP)):
                parts += [box(b'uuid', mark + metadata[name])] if name in metadata else []
        parts.append(whole)
        start = stop
    return np.frombuffer(b''.join(parts), np.uint8)


def header_boxes(inside, metadata):
    """The boxes inside jp2h with the profile in place of a numbered colour space, and the resolution."""
    parts = []
    for kind, start, end in walk(inside):
        profile = metadata.get('icc') if kind == b'colr' else None
        parts.append(box(kind, b'\2\0\0' + profile if profile else inside[start:end]))
    if 'resolution' in metadata:
        x, y = (max(min(round(value), 65535), 1) for value in metadata['resolution'])
        parts.append(box(b'res ', box(b'resd', struct.pack('>HHHHbb', y, 1, x, 1, 0, 0))))
    return b''.join(parts)
