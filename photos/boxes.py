"""Boxes of ISO base media files (JPEG 2000, JPEG XL, HEIC, AVIF, Canon's CR3), and JPEG 2000's header.

In: a file's bytes. Out: what lies in its boxes beside the coded picture; of JPEG 2000 also a file with boxes added.
Source: ISO/IEC 15444-1, annex I (JP2); 18181-2 (JPEG XL); 23008-12 (HEIF); H.273 for the numbers of `colour_of`.
"""

import struct

from photos.formats import Header
from photos.metadata import iptc_of

XMP = bytes.fromhex('be7acfcb97a942e89c71999491e3afac')
EXIF = b'JpgTiffExif->JP2'
IPTC = bytes.fromhex('33c7a4d2b81d4723a0baf1a3e097ad38')
CANON = bytes.fromhex('85c0b687820f11e08111f4ce462b6a48')
PARENTS = {b'meta': 4, b'iprp': 0, b'ipco': 0, b'jp2h': 0, b'res ': 0, b'moov': 0}  # bytes in front of their boxes


def boxes(data, start=0, end=None, nested=True):
    """Yield (type, start, end of body) of each box and, if nested, those inside; stop where one leaves its parent."""
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
        front = PARENTS.get(kind, 16 if kind == b'uuid' and data[body : body + 16] == CANON else None)
        if nested and front is not None:
            yield from boxes(data, body + front, stop)
        start = stop


def first_box(data, kind, head=b''):
    """Return the body of the first box of a type that starts with `head`, b'' where there is none."""
    return next((data[a:b] for name, a, b in boxes(data) if name == kind and data[a : a + len(head)] == head), b'')


def colour_of(data):
    """Return (primaries, transfer) of the first `nclx` colour box, () where there is none."""
    body = first_box(data, b'colr', b'nclx')
    return struct.unpack_from('>HH', body, 4) if len(body) >= 10 else ()


def read_jp2(data):
    """Read the Header of a JPEG 2000 file's bytes."""
    header = Header(kind='JP2', orientation=1)
    for kind, start, end in boxes(data):
        body = data[start:end]
        if kind == b'ihdr' and len(body) >= 11:
            height, width, count, depth = struct.unpack_from('>IIHB', body)
            header.size, header.bits = (width, height), (depth & 127) + 1
            header.mode = {1: 'L', 2: 'LA', 3: 'RGB', 4: 'RGBA'}.get(count, '')
        elif kind == b'colr' and body[:1] == b'\2':
            header.metadata['icc'] = body[3:]
        elif kind == b'colr' and body[:1] == b'\1' and len(body) >= 7:
            space = struct.unpack_from('>I', body, 3)[0]
            if space not in (16, 17) and (space != 18 or header.bits > 8):  # 18 is sYCC
                raise ValueError(f'expected sRGB, grey or a profile, got the JPEG 2000 colour space {space}')
        elif kind == b'pclr':
            header.mode = 'P'
        elif kind == b'uuid' and body[:16] in (XMP, EXIF, IPTC):
            header.metadata[{XMP: 'xmp', EXIF: 'exif', IPTC: 'iptc'}[body[:16]]] = body[16:]
        elif kind == b'xml ':
            header.metadata['xml'] = header.metadata.get('xml', b'') + box(b'xml ', body)
        elif kind in (b'resc', b'resd') and len(body) >= 10:
            vertical, over_v, horizontal, over_h, power_v, power_h = struct.unpack_from('>HHHHbb', body)
            if over_v and over_h and vertical and horizontal:
                header.metadata['resolution'] = (horizontal / over_h * 10.0**power_h, vertical / over_v * 10.0**power_v)
    return header


def box(kind, body):
    return struct.pack('>I4s', 8 + len(body), kind) + body


def add_to_jp2(data, metadata):
    """Add metadata to a JPEG 2000 file's bytes, as OpenCV and Pillow write them."""
    data = bytes(data)
    places = {kind: (start, end) for kind, start, end in boxes(data)}
    (header, end), pixels = places[b'jp2h'], places[b'jp2c'][0] - 8
    inside, head = data[header:end], b''
    for kind, first, last in boxes(inside):  # a profile takes the place of the numbered colour space
        profile = metadata.get('icc') if kind == b'colr' else None
        head += box(kind, b'\2\0\0' + profile if profile else inside[first:last])
    if 'resolution' in metadata:
        x, y = (max(min(round(value), 65535), 1) for value in metadata['resolution'])
        head += box(b'res ', box(b'resd', struct.pack('>HHHHbb', y, 1, x, 1, 0, 0)))
    blocks = {EXIF: metadata.get('exif'), XMP: metadata.get('xmp'), IPTC: iptc_of(metadata.get('iptc', b''))}
    added = b''.join(box(b'uuid', mark + block) for mark, block in blocks.items() if block) + metadata.get('xml', b'')
    return data[: header - 8] + box(b'jp2h', head) + data[end:pixels] + added + data[pixels:]
