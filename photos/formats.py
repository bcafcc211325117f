"""The photo formats: how a file is told apart, what each format can hold, and what a file's header said.

docs/formats.md says the same in words; a test compares the two. Nothing here opens a file.
"""

import contextlib
import re
from dataclasses import dataclass, field

from photos.metadata import NAMES


@dataclass(frozen=True)
class Format:
    """What of a photo a file of one format keeps when we write it."""

    name: str
    extensions: tuple
    keeps: tuple = ()  # names of metadata.NAMES
    deep: bool = False  # written with 16 bit (HEIC: 10) where the photo has more than 8
    grey: bool = False  # greyscale stays so
    alpha: bool = False
    written: bool = True


JPEG, TIFF, HEIC, FLOAT = ('.jpg', '.jpeg', '.jpe'), ('.tif', '.tiff'), ('.heic', '.heif', '.hif'), ('.exr', '.hdr')
RAW = ('.dng', '.nef', '.cr2', '.cr3', '.arw', '.raf', '.rw2', '.orf', '.pef', '.srw')
FORMATS = (
    Format('JPEG', JPEG, ('exif', 'xmp', 'icc', 'iptc', 'comment', 'resolution'), grey=True),
    Format('PNG', ('.png',), ('exif', 'xmp', 'icc', 'iptc', 'comment', 'text', 'resolution'), True, True, True),
    Format('TIFF', TIFF, ('exif', 'xmp', 'icc', 'iptc', 'resolution'), True, True, True),
    Format('WebP', ('.webp',), ('exif', 'xmp', 'icc'), alpha=True),
    Format('AVIF', ('.avif',), ('exif', 'xmp', 'icc'), alpha=True),
    Format('HEIC', HEIC, ('exif', 'xmp', 'icc'), True, True, True),
    Format('JPEG XL', ('.jxl',), ('exif', 'xmp'), alpha=True),
    Format('JPEG 2000', ('.jp2',), ('exif', 'xmp', 'icc', 'iptc', 'resolution', 'xml'), True, True, True),
    Format('BMP', ('.bmp',), ('resolution',)),
    Format('PPM', ('.ppm',), deep=True),
    Format('PGM', ('.pgm',), deep=True, grey=True),
    Format('camera RAW', RAW, written=False),
    Format('floating point', FLOAT, written=False),
)

BY_EXTENSION = {extension: entry for entry in FORMATS for extension in entry.extensions}
READABLE = tuple(BY_EXTENSION)
WRITABLE = tuple(extension for extension, entry in BY_EXTENSION.items() if entry.written)
ROOM = {'xmp': 65502, 'comment': 65531, 'icc': 255 * 65519}  # of a JPEG's segments


@dataclass
class Header:
    """What a file says of itself; the default stands for what it leaves out."""

    size: tuple = (0, 0)  # width, height as stored
    kind: str = ''  # JPEG, PNG, TIFF ...: what the file is, whatever its name
    mode: str = ''  # Pillow's name of the pixel layout
    frames: int = 1
    page: int = 0  # of a TIFF, the photo's
    orientation: int = 0  # 1 to 8 as the pixels are stored; 0 where EXIF or XMP have to say
    metadata: dict = field(default_factory=dict)  # by metadata.NAMES: bytes; resolution: (x, y) a metre
    bits: int = 0  # of a level, where the format has others than its array
    colour: tuple = ()  # (primaries, transfer) of ITU-T H.273, where the file says them
    key: int = -1  # of a grey PNG, the level that is transparent
    notes: list = field(default_factory=list)  # what of the file the result will not have, in words
    quality: int = 0  # of a JPEG, 1 to 100
    sampling: int = 0  # of a JPEG's chroma, OpenCV's constant
    chroma: int = 420  # of a HEIC, 420, 422 or 444
    progressive: bool = False
    lossless: bool = True  # of a WebP
    associated: bool = False  # the file's colours are multiplied by its alpha
    extra: bool = False  # the fourth channel is no alpha, infrared for example


def holds(extension, name, block):
    """Whether a format can hold a block of metadata of one of metadata.NAMES."""
    is_too_long = extension in JPEG and name in ROOM and len(block) > ROOM[name]
    return name in BY_EXTENSION[extension].keeps and not is_too_long


@contextlib.contextmanager
def reading_by(library):
    """Turn whatever a library raises on a damaged file into a ValueError that names the library."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        reason = re.sub(' <.* object at .*>', '', str(error)) or type(error).__name__
        raise ValueError(f'expected an undamaged photo, {library} says: {reason}') from error


def in_words(names):
    """Name blocks in words: 'EXIF, XMP and the colour profile'."""
    words = [words for name, words in NAMES.items() if name in names]
    return ' and '.join([', '.join(words[:-1]), words[-1]] if len(words) > 1 else words)


MAGIC = {
    b'\xff\xd8': 'JPEG', b'\x89PNG\r\n\x1a\n': 'PNG', b'BM': 'BMP', b'GIF8': 'GIF', b'P5': 'PPM', b'P6': 'PPM',
    b'\0\0\0\x0cjP  \r\n\x87\n': 'JP2', b'\xff\x4f\xff\x51': 'JPEG 2000 codestream',
    b'\0\0\0\x0cJXL \r\n\x87\n': 'JXL', b'\xff\n': 'JXL', b'II*\0': 'TIFF', b'MM\0*': 'TIFF', b'II+\0': 'TIFF',
    b'MM\0+': 'TIFF', b'IIU\0': 'RAW', b'IIRO': 'RAW', b'IIRS': 'RAW', b'MMOR': 'RAW', b'FUJIFILMCCD-RAW': 'RAW',
    b'\x76\x2f\x31\x01': 'EXR', b'#?RADIANCE': 'HDR', b'8BPS': 'Photoshop document', b'%PDF': 'PDF',
    b'%!PS': 'PostScript', b'<svg': 'SVG', b'<?xml': 'XML', b'<!DOCTYPE html': 'web page', b'<html': 'web page',
    b'PK\x03\x04': 'ZIP archive', b'\0\0\x01\0': 'icon',
}  # fmt: skip
BRANDS = {  # in this order: an AVIF file names mif1 too
    'AVIF': {b'avif', b'avis'},
    'RAW': {b'crx '},
    'HEIC': {b'heic', b'heix', b'hevc', b'heim', b'heis', b'hevm', b'hevs', b'mif1', b'msf1', b'mif2'},
}


def kind_of(data):
    """Tell a file's kind by its first bytes: 'JPEG', 'TIFF', 'HEIC', 'RAW', 'PDF' ...; '' if it is none of these."""
    if data[4:8] == b'ftyp':
        size = int.from_bytes(data[:4], 'big')
        brands = {data[8:12], *(data[at : at + 4] for at in range(16, min(size, 256), 4))}
        return next((kind for kind, known in BRANDS.items() if brands & known), 'MP4 or QuickTime video')
    if data[:4] == b'RIFF':
        return 'WEBP' if data[8:12] == b'WEBP' else 'RIFF file'
    start = data[:32].removeprefix(b'\xef\xbb\xbf').lstrip()
    return next((kind for magic, kind in MAGIC.items() if data.startswith(magic) or start.startswith(magic)), '')
