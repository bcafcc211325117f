"""From a file's bytes to its header and pixels, from pixels to a file's bytes: which module does it for which format.

A file is read for what it is, whatever its name. PNG, WebP, deep AVIF and deep JPEG 2000 are decoded by OpenCV, the
rest by Pillow and the modules that are named here.
"""

import contextlib
import io
import logging
import os
import re
import warnings
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from photos import formats, jpeg, metadata, optional, png, tiff
from photos.boxes import add_to_jp2, bits_of, colour_of, read_jp2

QUALITY = 95  # of JPEG, and of other lossy formats; a JPEG's own where that is higher
BY_PILLOW = ('WEBP', 'AVIF', 'BMP', 'PPM')
METADATA_BY_OPENCV = {'.webp', '.avif'}
PPM = re.compile(rb'P([56])' + 3 * rb'(?:\s|#[^\n]*\n)+(\d+)' + rb'\s')
JP2_SIDE = 32  # OpenCV's JPEG 2000 has no smaller ones


class Writing(NamedTuple):
    """How a photo is to be written."""

    header: formats.Header  # of the file that it was read from
    extra: str = ''  # what its fourth channel is in a TIFF, see tiff.encode
    sampling_444: bool = False
    is_ours: bool = False  # the pixels' memory may be changed


def quiet_libraries():
    """Silence OpenCV, Pillow and tifffile and lift Pillow's limit, for the whole process: for scripts.

    What is wrong with a file we say in one line, and read_picture has a limit of its own.
    """
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    warnings.filterwarnings('ignore', module=r'PIL\.')
    logging.getLogger('tifffile').setLevel(logging.CRITICAL)
    Image.MAX_IMAGE_PIXELS = None


def read(path, data, check_size):
    """Read a file's bytes.

    Args:
        path: of the file; its extension tells a RAW file from a TIFF.
        check_size: called with (width, height) before pixels are decoded.
    Returns:
        (Header, pixels): (H, W), or (H, W, 2 to 4) grey or RGB with alpha, CMYK (255 is no ink) or Lab; uint8 or
            uint16, not turned.
    Raises:
        ValueError: not a whole photo that can be read.
    """
    if not data:
        raise ValueError('expected a photo, got an empty file')
    extension, kind = os.path.splitext(path)[1].lower(), formats.kind_of(data)
    if kind in ('EXR', 'HDR') or (extension in formats.FLOAT and not kind):
        raise ValueError('expected 8 or 16 bit, got a floating-point format; tone-map it first')
    if kind == 'RAW' or (extension in formats.RAW and kind in ('TIFF', '')):
        return optional.read_raw(data, check_size)
    if kind == 'JXL':
        header, pixels = optional.read_jxl(data)
    elif kind == 'HEIC':
        header, file = optional.open_heif(data)
        check_size(header.size)
        pixels = optional.decode_heif(file, header)
    elif kind in HEADERS:
        header = HEADERS[kind](data)
        check_size(header.size)
        if header.frames > 1:
            raise ValueError(f'expected a single photo, got {header.frames} frames or pages')
        pixels = decode(path, data, header)
    else:
        raise ValueError(f'expected a photo, got {"a " + kind if kind else "no known type of file"}')
    if not header.orientation:
        tags, xmp = metadata.read_exif(header.metadata.get('exif', b'')), header.metadata.get('xmp', b'')
        header.orientation = metadata.orientation_of(tags) or metadata.xmp_orientation(xmp) or 1
    return header, pixels


def read_by_pillow(data):
    """Read the Header of a WebP, AVIF, BMP or PPM."""
    with formats.reading_by('Pillow'), Image.open(io.BytesIO(data), formats=BY_PILLOW) as image:
        header = formats.Header(image.size, image.format, image.mode, getattr(image, 'n_frames', 1))
        info = image.info
    if header.kind == 'WEBP':
        header.lossless = b'VP8L' in data[:4096]
        if len(data) < 8 + int.from_bytes(data[4:8], 'little'):
            raise ValueError('expected a whole photo, the file is truncated')
    if header.kind == 'AVIF':
        header.colour, header.bits = colour_of(data), bits_of(data)
    header.metadata = metadata.found_blocks(info.get('exif'), info.get('xmp'), info.get('icc_profile'))
    if header.kind == 'BMP' and info.get('dpi'):
        header.metadata['resolution'] = tuple(value / jpeg.INCH for value in info['dpi'])
    return header


HEADERS = {'JPEG': jpeg.read_header, 'PNG': png.read_header, 'TIFF': tiff.read_header, 'JP2': read_jp2,
           **dict.fromkeys(BY_PILLOW, read_by_pillow)}  # fmt: skip


def decode(path, data, header):
    """Decode the pixels of a file whose header was read; see `read`."""
    if header.kind == 'JPEG':
        return jpeg.decode(data, header)
    if header.kind == 'TIFF':
        pixels = tiff.decode(data, header)
        return 255 - pixels if header.mode == 'CMYK' else pixels
    if header.kind == 'BMP' or (header.kind in ('JP2', 'AVIF') and header.bits <= 8):
        return decode_by_pillow(data)
    if header.kind == 'PPM':
        return decode_ppm(data)
    if header.kind == 'PNG':
        pixels = png.only_pixels(data)
        pixels = decode_by_opencv(path if pixels is data else None, pixels)
        return png.add_alpha(pixels, header.key) if header.key >= 0 and pixels.ndim == 2 else pixels
    if header.kind == 'AVIF':
        return decode_deep_avif(data, header)
    return decode_by_opencv(path, data)


def decode_deep_avif(data, header):
    """Decode an AVIF of 10 or 12 bit to the whole range of 16; to 8 where OpenCV does not take it."""
    try:
        pixels = decode_by_opencv(None, data)
    except ValueError:
        header.left_out.append(f'{header.bits} bit of this AVIF are read as 8')
        return decode_by_pillow(data)
    return optional.widen(pixels << (16 - header.bits), header.bits) if pixels.dtype == np.uint16 else pixels


def decode_ppm(data):
    """Decode a PPM or PGM, whose white may be any level up to 65535."""
    found = PPM.match(data)
    kind, width, height, top = map(int, found.groups()) if found else (0, 0, 0, 0)
    dtype, shape = (np.uint8 if top < 256 else '>u2'), (height, width, 3)[: kind - 3]
    if not 0 < top < 65536 or len(data) < found.end() + np.prod(shape) * np.dtype(dtype).itemsize:
        raise ValueError('expected a whole photo, the file is truncated')
    pixels = np.frombuffer(data, dtype, np.prod(shape), found.end()).reshape(shape)
    full = 255 if top < 256 else 65535
    levels = np.minimum(np.rint(np.arange(full + 1) * (full / top)), full).astype(pixels.dtype.newbyteorder('='))
    return levels[pixels] if top != full else pixels.astype(levels.dtype)


def decode_by_pillow(data):
    """Decode by Pillow, palettes to RGB."""
    with formats.reading_by('Pillow'), Image.open(io.BytesIO(data)) as image:
        image.load()
        has_alpha = image.mode in ('LA', 'PA', 'RGBA') or 'transparency' in image.info
        mode = {'1': 'L', 'L': 'L', 'LA': 'LA'}.get(image.mode, 'RGBA' if has_alpha else 'RGB')
        return np.asarray(image if image.mode == mode else image.convert(mode))


def decode_by_opencv(path, data):
    """Decode by OpenCV, 3 or 4 channels to RGB or RGBA.

    Args:
        path: the file of these bytes, or None for the bytes alone.
    """
    flags = cv2.IMREAD_UNCHANGED
    try:
        # with dst it decodes into numpy's memory; imdecode copies the photo there, a fifth slower and twice the memory
        pixels = cv2.imread(path, dst=None, flags=flags) if path and is_plain(path) else None
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if pixels is None else pixels
    except cv2.error as error:
        raise ValueError(f'expected an undamaged photo, OpenCV cannot decode it ({error.err or error.code})') from error
    if pixels is None or not pixels.size:
        raise ValueError('expected an undamaged photo, OpenCV cannot decode it')
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f'expected 8 or 16 bit, got {pixels.dtype}; tone-map it first')
    return reverse_channels(pixels) if pixels.ndim == 3 and pixels.shape[2] > 2 else pixels


def is_plain(path):
    """Whether OpenCV opens a file of that name: one in ASCII on Windows, in UTF-8 elsewhere."""
    with contextlib.suppress(UnicodeEncodeError):
        return bool(os.fspath(path).encode('ascii' if os.name == 'nt' else 'utf-8'))
    return False


def reverse_channels(photo):
    """Turn BGR to RGB or back (alpha stays) in place, by so few rows that they stay in the processor's cache."""
    code = cv2.COLOR_BGRA2RGBA if photo.shape[2] == 4 else cv2.COLOR_BGR2RGB
    count = max(1, (1 << 18) // photo[0].nbytes)
    for y in range(0, len(photo), count):
        rows = photo[y : y + count]
        rows[:] = cv2.cvtColor(rows, code)
    return photo


# --------------------------------------------------------------------------------------------------------- writing


def encode(extension, pixels, blocks, writing):
    """Encode pixels in the format of an extension; returns bytes or a uint8 array of them.

    Args:
        pixels: (H, W), (H, W, 3) RGB or (H, W, 4) RGBA, or in a TIFF and PNG (H, W, 2), uint8 or uint16.
        blocks: metadata, of which the format `holds` each.
        writing: Writing.
    Raises:
        ValueError: it cannot be encoded.
    """
    header, channels = writing.header, 1 if pixels.ndim == 2 else pixels.shape[2]
    entry = formats.BY_EXTENSION[extension]
    if extension in formats.TIFF:
        return tiff.encode(pixels, blocks, writing.extra)
    if channels == 2:  # grey and alpha, which the others do not have
        pixels, channels = np.dstack([pixels[..., 0]] * 3 + [pixels[..., 1]]), 4
    if channels == 1 and not entry.grey:
        pixels, channels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB), 3
    if extension in formats.HEIC:
        return optional.encode_heif(pixels, blocks, 444 if writing.sampling_444 else header.chroma)
    if extension == '.jxl':
        return optional.encode_jxl(pixels, blocks, QUALITY)
    if extension == '.jp2' and min(pixels.shape[:2]) < JP2_SIDE:
        return add_to_jp2(encode_small_jp2(pixels), blocks)
    if extension == '.pgm' and channels > 1:
        raise ValueError('pgm holds greyscale only')
    if channels > 1:
        pixels = reverse_channels(pixels if writing.is_ours and pixels.flags.c_contiguous else pixels.copy())
    try:
        if extension in formats.JPEG:
            return jpeg.encode(pixels, header, blocks, max(QUALITY, header.quality), writing.sampling_444)
        data = encode_by_opencv(extension, pixels, blocks, header)
    except cv2.error as error:
        raise ValueError(f'OpenCV cannot encode it ({error.err or error.code})') from error
    if extension == '.png':
        return png.add_metadata(data, blocks)
    if extension == '.jp2':
        return add_to_jp2(data, blocks)
    if extension == '.bmp' and 'resolution' in blocks:
        data[38:46] = np.frombuffer(np.array(blocks['resolution']).round().astype('<u4').tobytes(), np.uint8)
    return data


def encode_small_jp2(pixels):
    """Encode a lossless JPEG 2000 of any size."""
    if pixels.dtype == np.uint16 and pixels.ndim == 3:
        raise ValueError(f'a JPEG 2000 of 16-bit colours has sides of {JP2_SIDE} pixels or more')
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, 'JPEG2000', num_resolutions=1, irreversible=False)
    return file.getvalue()


def encode_by_opencv(extension, pixels, blocks, header):
    """Encode by OpenCV, with EXIF, XMP and profile where it writes them itself."""
    options = []
    if extension == '.webp':
        options = [cv2.IMWRITE_WEBP_QUALITY, 101 if header.lossless else QUALITY]  # above 100: lossless
    elif extension == '.avif':
        options = [cv2.IMWRITE_AVIF_QUALITY, QUALITY]
    elif extension == '.jp2':
        options = [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000]  # lossless
    kinds = {'exif': cv2.IMAGE_METADATA_EXIF, 'xmp': cv2.IMAGE_METADATA_XMP, 'icc': cv2.IMAGE_METADATA_ICCP}
    theirs = blocks if extension in METADATA_BY_OPENCV else {}
    values = [np.frombuffer(block, np.uint8) for block in theirs.values()]
    done, data = cv2.imencodeWithMetadata(extension, pixels, [kinds[name] for name in theirs], values, options)
    if not done:
        raise ValueError(f'OpenCV cannot encode {pixels.shape[1]} x {pixels.shape[0]} as {extension}')
    return data
