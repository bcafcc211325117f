"""TIFF files: which page is the photo, its pixels, its tags, and a result's file.

Pixels are tifffile's. Where a compression needs more than tifffile has, plain RGB and 16 bit are OpenCV's and other
8-bit pages Pillow's; what none reads rightly is refused by name. OpenCV alone is no choice: it takes separate planes
of 16 bit, palettes and MinIsWhite for what they are not. Source: TIFF 6.0; TIFF technical note 2 (NewSubfileType).
"""

import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image

from photos import metadata
from photos.formats import Header, reading_by
from photos.metadata import Tag

XMP, IPTC, PHOTOSHOP, PROFILE, LAYERS = 700, 33723, 34377, 34675, 37724
MEANT = {*range(254, 348), *range(512, 522), *range(529, 533), 559, XMP, IPTC, PHOTOSHOP, PROFILE,
         32781, 32932, 33421, 33422, 34665, 34853, 65000}  # fmt: skip
MODES = {0: 'L', 1: 'L', 2: 'RGB', 3: 'P', 5: 'CMYK', 6: 'YCbCr', 8: 'LAB', 9: 'ICCLAB'}
INCHES = {2: 0.0254, 3: 0.01}  # metres of a resolution's unit


def read_header(data):
    """Read the Header of a TIFF's bytes; `header.page` is the photo's page among those of the file."""
    try:
        pages = metadata.read_directories(data)
    except ValueError:
        raise ValueError('expected a whole photo, the TIFF is truncated or its directory damaged') from None
    kinds = [page.integer(254, 0) or {2: 1, 3: 2}.get(page.integer(255), 0) for page in pages]
    photos = [i for i, kind in enumerate(kinds) if not kind & 5]  # 1 is a smaller copy, 4 a mask
    header = Header(kind='TIFF', frames=max(len(photos), 1), page=photos[0] if photos else 0)
    tags = pages[header.page]
    if len(pages) > header.frames and header.frames == 1:
        header.notes.append(f'its {"thumbnail" if any(kind & 1 for kind in kinds) else "mask"} page is left out')
    header.size = tags.integer(256), tags.integer(257)
    header.mode = MODES.get(tags.integer(262, 1), f'photometric {tags.integer(262)}')
    depths, formats = tags.integers(258) or (1,), tags.integers(339) or (1,)
    header.bits = max(depths)
    if 3 in formats:
        raise ValueError(f'expected 8 or 16 bit, got float{header.bits}; tone-map it first')
    if len({*depths}) > 1 or header.bits > 16 or {*formats} - {1, 4}:
        signed = 'int' if 2 in formats else 'uint'
        raise ValueError(f'expected unsigned levels of up to 16 bit, got {signed}{header.bits}')
    channels = {'RGB': 3, 'CMYK': 4, 'YCbCr': 3, 'LAB': 3, 'ICCLAB': 3}.get(header.mode, 1)
    more, kind = tags.integer(277, channels) - channels, tags.integer(338)
    if more > 0:
        header.extra, header.associated = kind == 0, kind == 1
        if header.mode in ('L', 'RGB'):
            header.mode += 'A'
        if more > 1:
            header.notes.append('its further channels are left out')
    where, sizes = tags.integers(273) or tags.integers(324), tags.integers(279) or tags.integers(325)
    if not where or any(at + size > len(data) for at, size in zip(where, sizes, strict=False)):
        raise ValueError('expected a whole photo, the file is truncated')
    header.orientation = tags.integer(metadata.ORIENTATION)  # else XMP's counts
    read_blocks(header, tags)
    return header


def read_blocks(header, tags):
    """Read the metadata of a page's tags, and name the tags that are not kept."""
    if not metadata.free_note(tags):
        header.notes.append("EXIF's maker note is left out: it holds places in this file")
    photoshop = tags.value(PHOTOSHOP)
    if not metadata.iptc_of(photoshop) and tags.value(IPTC):
        photoshop += metadata.resources_of(tags.value(IPTC))
    exif = metadata.exif_of_tags(tags)
    header.metadata = {'exif': exif, 'xmp': tags.value(XMP), 'icc': tags.value(PROFILE), 'iptc': photoshop}
    metres, places = INCHES.get(tags.integer(296, 2)), [tags.image.get(number) for number in (282, 283)]
    if metres and all(tag and tag.type == 5 for tag in places):
        pairs = [struct.unpack_from(tags.order + 'II', tag.value) for tag in places]
        if all(over and under for over, under in pairs):
            header.metadata['resolution'] = tuple(over / under / metres for over, under in pairs)
    if LAYERS in tags.image:
        header.notes.append('its Photoshop layers are left out')
    others = sorted(set(tags.image) - MEANT - {*metadata.read_exif(exif).image, LAYERS})
    if others:
        header.notes.append(f'its TIFF tags {", ".join(map(str, others))} are left out')


def decode(data, header):
    """Decode a TIFF's photo as it is stored: (H, W), or (H, W, 2 to 4) grey or RGB with a further channel.

    CMYK (255 is no ink) and Lab come as Pillow's (H, W, 4 or 3) of 8 bit, palettes as RGB. Not turned.
    """
    if header.bits < 8 or (header.bits == 8 and header.mode in ('P', 'YCbCr', 'CMYK', 'LAB', 'ICCLAB')):
        header.orientation = 1  # Pillow turns a TIFF upright
        return by_pillow(data, header)
    if header.bits not in (8, 16) or header.mode not in ('L', 'LA', 'RGB', 'RGBA'):
        raise ValueError(f'expected 8 or 16 bit RGB or grey, got a TIFF of {header.mode} with {header.bits} bit')
    import tifffile  # takes a tenth of a second: for those who read a TIFF

    with reading_by('tifffile'), tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[header.page]
        negative, planar = page.photometric == 0, page.planarconfig == 2
        compression = getattr(page.compression, 'name', str(page.compression)).replace('_', ' ')
        try:
            pixels = page.asarray()
        except (ImportError, NotImplementedError, ValueError) as error:
            if isinstance(error, ValueError) and 'imagecodecs' not in str(error):
                raise
            pixels = None  # it lacks the compression
    if pixels is None:
        return by_others(data, header, planar, negative, compression)
    if planar and pixels.ndim == 3:
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.shape[:2] != header.size[::-1]:
        raise ValueError(f'expected {header.size[0]} x {header.size[1]} pixels, got the shape {pixels.shape}')
    if negative:
        colours = pixels if pixels.ndim == 2 else pixels[..., :1]
        np.subtract(np.iinfo(pixels.dtype).max, colours, out=colours)
    return np.ascontiguousarray(pixels[..., : len(header.mode)] if pixels.ndim == 3 else pixels)


def by_others(data, header, planar, negative, compression):
    """Decode a compression that tifffile does not have."""
    plain = not planar and header.page == 0 and header.mode in ('L', 'RGB', 'RGBA')
    header.orientation = 1  # whatever flags they get, OpenCV and Pillow turn a TIFF upright
    if header.bits == 8 and (header.mode != 'RGB' or not plain):
        return by_pillow(data, header)
    if not plain:
        raise ValueError(f'expected imagecodecs to read this TIFF ({compression}), it is not installed: '
                         'pip install imagecodecs')  # fmt: skip
    with reading_by('OpenCV'):
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype.itemsize * 8 != header.bits:
        raise ValueError(f'expected an undamaged TIFF of a known compression, OpenCV cannot decode its {compression}')
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB)
    return np.iinfo(pixels.dtype).max - pixels if negative else pixels


def by_pillow(data, header):
    """Decode the 8-bit photo of any format by Pillow, which knows palettes, YCbCr and whatever libtiff unpacks."""
    with reading_by('Pillow'), Image.open(io.BytesIO(data)) as image:
        image.seek(header.page)
        image.load()
        if image.mode in ('RGBa', 'RGBX'):  # taken as they are: associated alpha, or no alpha
            return np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, 4)
        mode = {'P': 'RGB', '1': 'L', 'YCbCr': 'RGB', 'PA': 'RGBA'}.get(image.mode, image.mode)
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
        return 255 - pixels if mode == 'CMYK' else pixels


def encode(pixels, blocks, extra=''):
    """Encode a deflated TIFF with its metadata; returns a uint8 array of its bytes.

    Args:
        pixels: (H, W) or (H, W, 2 to 4) grey or RGB with alpha, uint8 or uint16.
        extra: what the last of 2 or 4 channels is: 'unassociated', 'associated' or 'unspecified'.
    """
    tags = metadata.read_exif(blocks.get('exif', b''))
    order = tags.order
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    height, width, channels = pixels.shape
    rows = max(1, (1 << 18) // pixels[0].nbytes)  # strips of 256 KB before they are packed
    strips = [deflate(predict(pixels[y : y + rows], order)) for y in range(0, height, rows)]
    places = np.cumsum([len(metadata.start_of_file(tags)), *map(len, strips)])
    start = int(places[-1] + places[-1] % 2)
    if start > 0xFFFFFFFF - (1 << 24):
        raise ValueError('a TIFF holds 4 GB')
    short = lambda *values: Tag(3, len(values), struct.pack(f'{order}{len(values)}H', *values))  # noqa: E731
    long = lambda *values: Tag(4, len(values), struct.pack(f'{order}{len(values)}I', *values))  # noqa: E731
    tags.image |= {
        256: long(width), 257: long(height), 258: short(*[8 * pixels.itemsize] * channels), 259: short(8),
        262: short(1 if channels < 3 else 2), 273: long(*places[:-1]), 274: short(1), 277: short(channels),
        278: long(rows), 279: long(*map(len, strips)), 284: short(1), 317: short(2),
    }  # fmt: skip
    if channels in (2, 4):
        tags.image[338] = short({'unspecified': 0, 'associated': 1, 'unassociated': 2}[extra])
    if 'resolution' in blocks:
        for number, value in zip((282, 283), blocks['resolution'], strict=True):
            tags.image[number] = Tag(5, 1, struct.pack(order + 'II', min(round(value * 254), 0xFFFFFFFF), 10000))
        tags.image[296] = short(2)
    iptc = blocks.get('iptc', b'')
    whole = {XMP: blocks.get('xmp'), PROFILE: blocks.get('icc'), IPTC: metadata.iptc_of(iptc), PHOTOSHOP: iptc}
    bytes_or_any = {XMP: 1, PHOTOSHOP: 1, PROFILE: 7, IPTC: 7}
    tags.image |= {number: Tag(bytes_or_any[number], len(block), block) for number, block in whole.items() if block}
    first = metadata.start_of_file(tags, start)
    body = b''.join([first, *strips, b'\0' * (start - int(places[-1])), metadata.pack_directories(tags, start)])
    return np.frombuffer(body, np.uint8)


def deflate(data):
    """Pack bytes, by isal if it is installed: several times as fast."""
    try:
        from isal import isal_zlib
    except ImportError:
        return zlib.compress(data, 6)
    return isal_zlib.compress(data)


def predict(rows, order):
    """Return rows as differences to the pixel on the left (predictor 2), in a byte order."""
    differences = rows.copy()
    differences[:, 1:] -= rows[:, :-1]
    return differences.astype(rows.dtype.newbyteorder(order), copy=False).tobytes()
