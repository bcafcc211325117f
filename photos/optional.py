"""Formats that need an optional package: HEIC (pillow-heif), JPEG XL (pillow-jxl-plugin), camera RAW (rawpy).

In: a file's bytes. Out: its Header and pixels; HEIC and JPEG XL are written, too. HEIC of 10 or 12 bit is scaled to 16,
JPEG XL has 8. RAW is developed by LibRaw: the camera's white balance, its exposure, sRGB, 16 bit, upright; a file whose
pixels are not all there is refused, for LibRaw develops what is missing as black or as a flat colour.
Source: ISO/IEC 23008-12 (HEIF); 18181-1 and -2 (JPEG XL).
"""

import importlib
import io
import re
import struct

import numpy as np
from PIL import Image

from photos import jpeg
from photos.boxes import XMP, boxes, colour_of, first_box
from photos.formats import Header, reading_by
from photos.metadata import MAKER_NOTE, Tag, Tags, blocks_of, exif_of_tags, read_directories, read_directory

HEIF_QUALITY, HEIF_PRESET = 80, 'ultrafast'  # by measurement, see docs/speed.md


def load(module, package, what):
    """Import an optional package's module, or say in a ValueError how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(f'expected {package} for {what}, it is not installed: pip install {package}') from None


def read_heif(data, check_size):
    """Read a HEIC: pixels (H, W) or (H, W, 3 or 4), uint16 over its whole range, turned by HEIF's own rule."""
    package = load('pillow_heif', 'pillow-heif', 'HEIC')
    with reading_by('libheif'):
        file = package.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)
        info = file.info
    header = Header(kind='HEIC', size=file.size, colour=colour_of(data), bits=info.get('bit_depth') or 8)
    check_size(header.size)
    mode = file.mode.split(';')[0].replace('I', 'L')
    header.associated = mode in ('RGBa', 'La')
    header.mode, header.chroma = mode.upper(), info.get('chroma') or 420
    header.metadata = blocks_of(info)
    kinds = {kind for kind, _, _ in boxes(data)}
    header.orientation = int(bool(kinds & {b'irot', b'imir'}))  # by these libheif turns it, else EXIF's counts
    others = ['depth map is'] * bool(info.get('depth_images'))
    others += ['gain map is' if 'gainmap' in kind.lower() else 'auxiliary picture is' for kind in info.get('aux') or ()]
    others += ['further pictures are'] * (len(file) > 1) + ['motion video is'] * (b'mpvd' in kinds)
    header.notes += [f'its {what} left out' for what in dict.fromkeys(others)]
    with reading_by('libheif'):
        pixels = np.asarray(file)
    return header, pixels | (pixels >> header.bits) if pixels.dtype == np.uint16 else pixels  # white becomes 65535


def encode_heif(pixels, metadata, chroma):
    """Encode a HEIC; returns its bytes.

    Args:
        pixels: (H, W), (H, W, 3) RGB or (H, W, 4), uint8, or uint16 that is written with 10 bit.
        chroma: 420, 422 or 444.
    """
    mode = 'L' if pixels.ndim == 2 else 'RGBA'[: pixels.shape[2]]
    if pixels.dtype == np.uint16:
        mode += ';16'
        pixels = np.rint(pixels * np.float32(1023 / 65535)).astype(np.uint16) << 6
    options = {'quality': HEIF_QUALITY, 'enc_params': {'preset': HEIF_PRESET}, 'chroma': chroma}
    options |= {'exif': metadata.get('exif'), 'xmp': metadata.get('xmp')}
    options |= {'icc_profile': metadata['icc'], 'icc_profile_type': 'prof'} if 'icc' in metadata else {}
    package, file = load('pillow_heif', 'pillow-heif', 'HEIC'), io.BytesIO()
    try:
        package.encode(mode, pixels.shape[1::-1], pixels.tobytes(), file, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f'pillow-heif cannot encode it ({error})') from error
    return file.getvalue()


JXL_SIDE = '(?:00.{9}|10.{13}|01.{18}|11.{30})'  # bits, the lowest first: how many follow
JXL_SIZE = f'(?:1.{{5}}(?:000.{{5}}|(?!000)...)|0{JXL_SIDE}(?:000{JXL_SIDE}|(?!000)...))'  # 000: no fixed ratio
JXL_ANIMATION = re.compile(f'{JXL_SIZE}01...(?:0|1{JXL_SIZE})01')  # orientation, size as shown, no preview, animation


def read_jxl(data, _):
    """Read a JPEG XL: pixels (H, W) or (H, W, 2 to 4); the plugin tells its size only with these."""
    load('pillow_jxl', 'pillow-jxl-plugin', 'JPEG XL')  # it adds itself to Pillow
    if is_animated(data):
        raise ValueError('expected a single photo, got an animated JPEG XL')
    with reading_by('libjxl'), Image.open(io.BytesIO(data), formats=['JXL']) as image:
        pixels, info = np.asarray(image), dict(image.info)
        header = Header(kind='JXL', size=image.size, mode=image.mode.split(';')[0].replace('I', 'L'), orientation=1)
    exif = first_box(data, b'Exif')  # behind four bytes that say where it starts, which some writers forget
    exif = exif if exif[:2] in (b'II', b'MM') else exif[4:]
    header.metadata = blocks_of(info) | {'exif': exif or info.get('exif'), 'xmp': first_box(data, b'xml ')}
    packed = {data[start : start + 4] for kind, start, _ in boxes(data) if kind == b'brob'}
    for kind in sorted(packed - ({b'Exif'} if header.metadata['exif'] else set())):
        header.notes.append(f'its packed {repr(kind)[2:-1].strip()} box is left out')
    return header, pixels


def is_animated(data):
    """Whether a JPEG XL's first header says that it is an animation; the header of a preview is not read."""
    stream = data if data.startswith(b'\xff\n') else first_box(data, b'jxlc') or first_box(data, b'jxlp')[4:]
    bits = np.unpackbits(np.frombuffer(stream[2:42].ljust(40, b'\0'), np.uint8), bitorder='little')
    return bool(JXL_ANIMATION.match(''.join(map(str, bits))))


def encode_jxl(pixels, metadata, quality):
    """Encode (H, W), or (H, W, 3 or 4) RGB, uint8, as JPEG XL; returns its bytes."""
    load('pillow_jxl', 'pillow-jxl-plugin', 'JPEG XL')  # it adds itself to Pillow
    exif = b'\0\0\0\0' + metadata['exif'] if 'exif' in metadata else b''  # the box says where EXIF starts: at once
    return save_by_pillow(pixels, 'JXL', quality=quality, exif=exif, xmp=metadata.get('xmp', b''))


def save_by_pillow(pixels, format, **options):
    """Encode pixels in one of Pillow's formats; returns its bytes."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, format, **options)
    return file.getvalue()


STRIPS, SUBDIRECTORIES, XMP_TAG = ((273, 279), (324, 325)), 330, 700  # places and sizes of strips, of tiles; others
PANASONIC = b'IIU\0'  # an RW2's start; its tags have numbers of their own
SENSOR, ISO, PREVIEW, PIXELS = (2, 3), 0x17, 0x2E, 0x118


def read_raw(data, check_size):
    """Develop a RAW file: pixels (H, W, 3) uint16 sRGB."""
    rawpy = load('rawpy', 'rawpy', 'camera RAW')
    check_strips(data)
    try:
        with rawpy.imread(io.BytesIO(data)) as raw:
            check_size((raw.sizes.width, raw.sizes.height))
            check_levels(raw)
            photo = raw.postprocess(output_bps=16, use_camera_wb=True, no_auto_bright=True, gamma=(2.4, 12.92))
    except rawpy.LibRawError as error:
        reason = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else error
        raise ValueError(f'expected a whole camera RAW, LibRaw says: {reason}') from error
    header = Header(kind='RAW', size=photo.shape[1::-1], mode='RGB', bits=16, orientation=1)
    try:
        tags, xmp = describe_raw(data)
    except (ValueError, struct.error, KeyError):
        tags, xmp = Tags(), b''
    if tags.exif.pop(MAKER_NOTE, None):  # it holds places in the RAW file, and previews of the dark original
        header.notes.append("EXIF's maker note is left out")
    header.metadata = {'exif': exif_of_tags(tags), 'xmp': xmp}
    return header, np.ascontiguousarray(photo)


def check_strips(data):
    """Raise ValueError where a directory, strip or tile lies behind the end of a TIFF-like file."""
    if data[:2] not in (b'II', b'MM'):
        return
    try:
        found = read_directories(data)
        found += [Tags(tags.order, read_directory(data, place, tags.order)[0])
                  for tags in found for place in tags.integers(SUBDIRECTORIES)[:20]]  # fmt: skip
    except (struct.error, ValueError):
        raise ValueError('expected a whole photo, the file is truncated or its directory damaged') from None
    for tags in found:
        pairs = [pair for strip in STRIPS for pair in zip(*map(tags.integers, strip), strict=False)]
        if data.startswith(PANASONIC):  # half a byte a pixel, however well they are packed
            width, height = map(tags.integer, SENSOR)
            pairs = [(tags.integer(PIXELS), width * height // 2)]
        if any(at + size > len(data) for at, size in pairs):
            raise ValueError('expected a whole photo, the file is truncated')


def check_levels(raw):
    """Raise ValueError where the photo, or its end, is one dark level throughout: a sensor's noise never is."""
    levels = getattr(raw, 'raw_image_visible', None)  # None of a file that holds colours, not a sensor's levels
    if levels is None or levels.ndim < 2:
        return
    end = levels[-max(len(levels) // 32, 4) :]
    if end.min() == end.max() and end.max() <= max(raw.black_level_per_channel or [0]):
        raise ValueError('expected a whole photo, its last rows hold nothing')


def describe_raw(data):
    """Read (Tags, XMP packet) of a RAW file."""
    if data[4:8] == b'ftyp':  # CR3: directory 0, EXIF, maker's note and GPS as a TIFF each
        parts = [first_box(data, b'CMT%d' % i) for i in (1, 2, 3, 4)]
        image, exif, note, gps = (read_directories(part)[0].image if part else {} for part in parts)
        exif |= {MAKER_NOTE: Tag(7, 1, b'')} if note else {}
        return Tags(read_directories(parts[0])[0].order, image, exif, gps), first_box(data, b'uuid', XMP)[16:]
    if data.startswith(b'FUJIFILM'):  # its preview has the EXIF
        at, size = struct.unpack_from('>II', data, 84)
        return read_directories(jpeg.read_header(data[at : at + size]).metadata['exif'])[0], b''
    tags = read_directories(data)[0]
    xmp = tags.value(XMP_TAG)
    if data.startswith(PANASONIC):
        tags.exif |= {34855: tags.image[ISO]} if ISO in tags.image else {}
        if PREVIEW in tags.image:
            tags = read_directories(jpeg.read_header(tags.image[PREVIEW].value).metadata['exif'])[0]
    return tags, xmp


READERS = {'HEIC': read_heif, 'JXL': read_jxl, 'RAW': read_raw}  # data, check_size: Header, pixels; see codecs.read
