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
READ = {b'IHDR', b'tRNS', b'sRGB', b'gAMA', b'cHRM', b'eXIf', b'iCCP', b'pHYs', b'acTL', b'cICP'}
SILENT = {b'PLTE', b'IDAT', b'IEND', b'sBIT', b'bKGD', b'hIST', b'tIME', b'fcTL', b'fdAT', b'cLLI', b'mDCV', b'caNv',
          b'vpAg', b'orNT', b'CgBI'}  # fmt: skip
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
    header, texts, bodies = Header(kind='PNG'), b'', {}
    for name, start, end in chunks(data):
        if name in READ:
            bodies[name] = data[start:end]
        elif name in (b'tEXt', b'zTXt', b'iTXt'):
            if not read_profile(header.metadata, name, data[start:end]):
                texts += data[start - 8 : end + 4]
        elif name not in SILENT:
            header.notes.append(f'its PNG chunk {repr(name)[2:-1]} is left out')

    def values(name, code):
        body = bodies.get(name, b'')
        return struct.unpack(code, body) if len(body) == struct.calcsize(code) else ()

    width, height, depth, layout, *_ = values(b'IHDR', '>II5B') or (0, 0, 8, 0)
    header.size, header.mode = (width, height), MODES.get(layout, '')
    header.colour, (header.frames, _) = values(b'cICP', '>4B')[:2], values(b'acTL', '>II') or (1, 0)
    if header.mode == 'L' and values(b'tRNS', '>H'):
        header.key = values(b'tRNS', '>H')[0] * (255 // (2**depth - 1) if depth < 8 else 1)
    x, y, unit = values(b'pHYs', '>IIB') or (0, 0, 0)
    header.metadata |= {'text': texts, 'resolution': (float(x), float(y)) if unit == 1 and x and y else ()}
    if b'eXIf' in bodies:
        header.metadata['exif'] = bodies[b'eXIf']
    if b'iCCP' in bodies and not header.colour:  # cICP comes before it
        header.metadata['icc'] = inflate(bodies[b'iCCP'].split(b'\0', 1)[-1][1:])
    elif not (b'sRGB' in bodies or header.colour or 'icc' in header.metadata or header.mode in ('L', 'LA')):
        header.metadata['icc'] = profile_of_gamma(values(b'gAMA', '>I'), values(b'cHRM', '>8I'))
    return header


def only_pixels(data):
    """Leave out of a PNG's bytes what libpng may complain of: profiles, texts, EXIF."""
    found = chunks(data, check=False)
    if all(name in PIXELS for name, _, _ in found):
        return data
    return SIGNATURE + b''.join(data[start - 8 : end + 4] for name, start, end in found if name in PIXELS)


def profile_of_gamma(gamma, chroma):
    """Make a profile of the values of gAMA and cHRM, b'' where they say sRGB or nothing."""
    exponent, xy = sum(gamma) / 1e5, [value / 1e5 for value in chroma]  # of white, red, green, blue
    if not 0.2 < exponent < 2 or abs(exponent - 1 / 2.2) < 0.02:
        return b''
    primaries = [*zip(xy[2::2], xy[3::2], strict=True), xy[:2]] if xy else colour.PRIMARIES['sRGB']
    return colour.make_profile('PNG', primaries, 1 / exponent)


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
