"""PNG files: their chunks, what these hold, and the chunks of a result.

Pixels are OpenCV's, both ways. Source: PNG, third edition (W3C 2025); the "Raw profile type" texts are ImageMagick's,
as ExifTool and exiv2 read and write them.
"""

import contextlib
import re
import struct
import zlib

import numpy as np

from photos import colour
from photos.formats import Header

SIGNATURE = b'\x89PNG\r\n\x1a\n'
XMP = b'XML:com.adobe.xmp'
LIMIT = 64 << 20  # bytes of an unpacked text or profile
MODES = {0: 'L', 2: 'RGB', 3: 'P', 4: 'LA', 6: 'RGBA'}
SILENT = {b'IHDR', b'PLTE', b'IDAT', b'IEND', b'tRNS', b'sRGB', b'gAMA', b'cHRM', b'sBIT', b'bKGD', b'hIST', b'tIME',
          b'fcTL', b'fdAT', b'cLLI', b'mDCV', b'caNv', b'vpAg', b'orNT', b'CgBI'}  # fmt: skip
PIXELS = {b'IHDR', b'PLTE', b'tRNS', b'IDAT', b'IEND'}
RAW_PROFILES = {b'exif': 'exif', b'app1': 'app1', b'iptc': 'iptc', b'8bim': 'iptc', b'xmp': 'xmp', b'icc': 'icc',
                b'icm': 'icc'}  # fmt: skip


def chunks(data, check=True):
    """List a PNG's chunks: [(name, start, end of its body)]; those of pixels and header must have their checksums."""
    found, at = [], len(SIGNATURE)
    while at + 12 <= len(data):
        size, name = struct.unpack_from('>I4s', data, at)
        end = at + 8 + size
        if end + 4 > len(data):
            break
        sum_in_file = int.from_bytes(data[end : end + 4], 'big')
        if check and name[:1].isupper() and zlib.crc32(memoryview(data)[at + 4 : end]) != sum_in_file:
            raise ValueError(f'expected an undamaged photo, the checksum of {repr(name)[2:-1]} is wrong')
        found.append((name, at + 8, end))
        if name == b'IEND':
            return found
        at = end + 4
    raise ValueError('expected a whole photo, the file is truncated')


def read_header(data):
    """Read the Header of a PNG's bytes."""
    header, texts, colours = Header(kind='PNG'), b'', {}
    for name, start, end in chunks(data):
        body = data[start:end] if name != b'IDAT' else b''
        if name == b'IHDR' and len(body) == 13:
            width, height, depth, layout = struct.unpack('>IIBB', body[:10])
            header.size, header.mode = (width, height), MODES.get(layout, '')
        elif name == b'tRNS' and header.mode == 'L' and len(body) == 2:
            header.key = int.from_bytes(body, 'big') * (255 // (2**depth - 1) if depth < 8 else 1)
        elif name == b'eXIf':
            header.metadata['exif'] = body
        elif name == b'iCCP':
            header.metadata['icc'] = inflate(body.split(b'\0', 1)[-1][1:])
        elif name == b'pHYs' and len(body) == 9:
            x, y, unit = struct.unpack('>IIB', body)
            if unit == 1 and x and y:
                header.metadata['resolution'] = (float(x), float(y))
        elif name == b'acTL' and len(body) == 8:
            header.frames = struct.unpack('>I', body[:4])[0]
        elif name == b'cICP' and len(body) == 4:
            header.colour = (body[0], body[1])
        elif name in (b'gAMA', b'cHRM', b'sRGB'):
            colours[name] = body
        elif name in (b'tEXt', b'zTXt', b'iTXt'):
            if not read_profile(header.metadata, name, body):
                texts += data[start - 8 : end + 4]
        elif name not in SILENT:
            header.notes.append(f'its PNG chunk {repr(name)[2:-1]} is left out')
    header.metadata['text'] = texts
    if not (b'sRGB' in colours or header.colour or 'icc' in header.metadata or header.mode in ('L', 'LA')):
        header.metadata['icc'] = profile_of_gamma(colours)
    return header


def only_pixels(data):
    """Leave out of a PNG's bytes what libpng may complain of: profiles, texts, EXIF."""
    found = chunks(data, check=False)
    if all(name in PIXELS for name, _, _ in found):
        return data
    parts = [data[start - 8 : end + 4] for name, start, end in found if name in PIXELS]
    return SIGNATURE + b''.join(parts)


def profile_of_gamma(chunks):
    """Make a profile of gAMA and cHRM, b'' where they say sRGB or nothing."""
    gamma, chroma = int.from_bytes(chunks.get(b'gAMA', b''), 'big') / 1e5, chunks.get(b'cHRM', b'')
    if not 0.2 < gamma < 2 or abs(gamma - 1 / 2.2) < 0.02:
        return b''
    primaries = colour.PRIMARIES['sRGB']
    if len(chroma) == 32:  # of white, red, green, blue
        xy = [value / 1e5 for value in struct.unpack('>8I', chroma)]
        primaries = [*zip(xy[2::2], xy[3::2], strict=True), xy[:2]]
    return colour.make_profile('PNG', primaries, 1 / gamma)


def read_profile(metadata, name, body):
    """Take XMP, EXIF, IPTC or a profile out of a text chunk; False where it is an ordinary text."""
    key, _, rest = body.partition(b'\0')
    if key == XMP and name == b'iTXt':
        text = rest[2:].split(b'\0', 2)[-1]  # behind its language, twice
        metadata['xmp'] = inflate(text) if rest[:1] == b'\1' else text
        return True
    kind = RAW_PROFILES.get(key.removeprefix(b'Raw profile type ').lower()) if key.startswith(b'Raw ') else None
    if kind is None or name == b'iTXt':
        return False
    text = inflate(rest[1:]) if name == b'zTXt' else rest
    found = re.match(rb'\s*\S[^\n]*?\s+(\d+)\s+([0-9a-fA-F\s]*)', text)  # a heading, a length, bytes in hexadecimal
    block = bytes.fromhex(found[2].decode()) if found and len(found[2].translate(None, b' \t\r\n')) % 2 == 0 else b''
    if kind == 'app1':
        kind = 'xmp' if block.startswith(b'http://ns.adobe.com/xap/1.0/\0') else 'exif'
        block = block.removeprefix(b'http://ns.adobe.com/xap/1.0/\0')
    metadata.setdefault(kind, block)
    return True


def inflate(data):
    """Unpack bytes; b'' where they are damaged or a bomb."""
    with contextlib.suppress(zlib.error):
        unpacker = zlib.decompressobj()
        unpacked = unpacker.decompress(data, LIMIT)
        return b'' if unpacker.unconsumed_tail else unpacked
    return b''


def as_utf8(text):
    """Return a comment's bytes as UTF-8; what is none is taken for Latin-1."""
    text = text.rstrip(b'\0').replace(b'\0', b' ')
    with contextlib.suppress(UnicodeDecodeError):
        return text.decode().encode()
    return text.decode('latin-1').encode()


def chunk(name, body):
    return struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))


def add_metadata(data, metadata):
    """Add the blocks behind a PNG's header chunk; takes and returns a uint8 array of bytes."""
    iptc = metadata.get('iptc', b'')
    raw_profile = b'\niptc\n%8d\n%b\n' % (len(iptc), iptc.hex('\n', -36).encode())  # as ImageMagick writes it
    makers = {
        'icc': lambda profile: chunk(b'iCCP', b'ICC profile\0\0' + zlib.compress(profile)),
        'resolution': lambda xy: chunk(b'pHYs', struct.pack('>IIB', *(min(round(v), 2**31 - 1) for v in xy), 1)),
        'exif': lambda block: chunk(b'eXIf', block),
        'xmp': lambda packet: chunk(b'iTXt', XMP + b'\0\0\0\0\0' + packet),
        'iptc': lambda _: chunk(b'zTXt', b'Raw profile type iptc\0\0' + zlib.compress(raw_profile)),
        'comment': lambda text: chunk(b'iTXt', b'Comment\0\0\0\0\0' + as_utf8(text)),
        'text': bytes,
    }
    added = b''.join(make(metadata[name]) for name, make in makers.items() if name in metadata)
    at = len(SIGNATURE) + 25
    return np.concatenate([data[:at], np.frombuffer(added, np.uint8), data[at:]])
