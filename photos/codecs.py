"""From a file's bytes to its header and pixels, from pixels to a file's bytes: which module does it for which format.

A file is read for what it is, whatever its name. PNG, WebP, deep AVIF and deep JPEG 2000 are decoded by OpenCV, the
rest by Pillow and the modules that are named here.
"""

import io
import logging
import os
import re
import warnings

import cv2
import numpy as np
from PIL import Image

from photos import formats, jpeg, metadata, optional, png, tiff
from photos.boxes import add_to_jp2, colour_of, first_box, read_jp2

QUALITY = 95  # of JPEG, and of other lossy formats; a JPEG's own where that is higher
BY_PILLOW = ('WEBP', 'AVIF', 'BMP', 'PPM')
PPM = re.compile(rb'P([56])' + 3 * rb'(?:\s|#[^\n]*\n)+(\d+)' + rb'\s')
JP2_SIDE = 32  # OpenCV's JPEG 2000 has no smaller ones


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
    """
    if not data:
        raise ValueError('expected a photo, got an empty file')
    extension, kind = os.path.splitext(path)[1].lower(), formats.kind_of(data)
    if kind in ('EXR', 'HDR') or (extension in formats.FLOAT and not kind):
        raise ValueError('expected 8 or 16 bit, got a floating-point format; tone-map it first')
    if extension in formats.RAW and kind in ('TIFF', ''):
        kind = 'RAW'
    if kind in optional.READERS:
        header, pixels = optional.READERS[kind](data, check_size)
    elif kind in HEADERS:
        header = HEADERS[kind](data)
        check_size(header.size)
        if header.frames > 1:
            raise ValueError(f'expected a single photo, got {header.frames} frames or pages')
        pixels = decode(data, header)
    else:
        raise ValueError(f'expected a photo, got {"a " + kind if kind else "no known type of file"}')
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
        header.colour, header.bits = colour_of(data), sum(first_box(data, b'pixi')[5:6])  # of the first channel
    header.metadata = metadata.blocks_of(info)
    if header.kind == 'BMP' and info.get('dpi'):
        header.metadata['resolution'] = tuple(value / jpeg.INCH for value in info['dpi'])
    return header


HEADERS = {'JPEG': jpeg.read_header, 'PNG': png.read_header, 'TIFF': tiff.read_header, 'JP2': read_jp2,
           **dict.fromkeys(BY_PILLOW, read_by_pillow)}  # fmt: skip
DECODERS = {'JPEG': jpeg.decode, 'TIFF': tiff.decode, 'BMP': tiff.by_pillow}  # the others' stand in `decode`


def decode(data, header):
    """Decode the pixels of a file whose header was read; see `read`."""
    if header.kind in DECODERS:
        return DECODERS[header.kind](data, header)
    if header.kind in ('JP2', 'AVIF') and header.bits <= 8:
        return tiff.by_pillow(data, header)
    if header.kind == 'PPM':
        return decode_ppm(data)
    if header.kind == 'PNG':
        pixels = decode_by_opencv(png.only_pixels(data))
        if header.key < 0 or pixels.ndim > 2:
            return pixels
        alpha = np.where(pixels == header.key, 0, np.iinfo(pixels.dtype).max)
        return np.dstack([pixels, alpha.astype(pixels.dtype)])
    try:
        pixels = decode_by_opencv(data)
    except ValueError:
        if header.kind != 'AVIF':
            raise
        header.notes.append(f'{header.bits} bit of this AVIF are read as 8')
        return tiff.by_pillow(data, header)
    if header.kind == 'AVIF' and pixels.dtype == np.uint16:  # of 10 or 12 bit, which stand in the lower bits
        return pixels << (16 - header.bits) | pixels >> (2 * header.bits - 16)  # white becomes 65535
    return pixels


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


def decode_by_opencv(data):
    """Decode by OpenCV, 3 or 4 channels to RGB or RGBA."""
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ValueError(f'expected an undamaged photo, OpenCV cannot decode it ({error.err or error.code})') from error
    if pixels is None or not pixels.size:
        raise ValueError('expected an undamaged photo, OpenCV cannot decode it')
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f'expected 8 or 16 bit, got {pixels.dtype}; tone-map it first')
    return reverse_channels(pixels) if pixels.ndim == 3 and pixels.shape[2] > 2 else pixels


def reverse_channels(photo):
    """Turn BGR to RGB or back (alpha stays) in place, by so few rows that they stay in the processor's cache."""
    code = cv2.COLOR_BGRA2RGBA if photo.shape[2] == 4 else cv2.COLOR_BGR2RGB
    count = max(1, (1 << 18) // photo[0].nbytes)
    for y in range(0, len(photo), count):
        rows = photo[y : y + count]
        rows[:] = cv2.cvtColor(rows, code)
    return photo


def encode(extension, pixels, blocks, header, extra='', sampling_444=False, in_place=False):
    """Encode pixels in the format of an extension; returns bytes or a uint8 array of them.

    Args:
        pixels: (H, W), (H, W, 2) grey with alpha, (H, W, 3) RGB or (H, W, 4) RGBA, uint8 or uint16.
        blocks: metadata, of which the format `holds` each.
        header: of the file that the photo was read from.
        extra: what the last of 2 or 4 channels is in a TIFF, see tiff.encode.
        in_place: the pixels' memory may be changed.
    """
    if extension in formats.TIFF:
        return tiff.encode(pixels, blocks, extra)
    if pixels.ndim == 3 and pixels.shape[2] == 2:  # grey and alpha, which the others do not have
        pixels = np.dstack([pixels[..., 0]] * 3 + [pixels[..., 1]])
    if pixels.ndim == 2 and not formats.BY_EXTENSION[extension].grey:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    if extension in formats.HEIC:
        return optional.encode_heif(pixels, blocks, 444 if sampling_444 else header.chroma)
    if extension == '.jxl':
        return optional.encode_jxl(pixels, blocks, QUALITY)
    if extension == '.jp2' and min(pixels.shape[:2]) < JP2_SIDE:
        if pixels.dtype == np.uint16 and pixels.ndim == 3:
            raise ValueError(f'a JPEG 2000 of 16-bit colours has sides of {JP2_SIDE} pixels or more')
        data = optional.save_by_pillow(pixels, 'JPEG2000', num_resolutions=1, irreversible=False)
        return add_to_jp2(data, blocks)
    if extension == '.pgm' and pixels.ndim == 3:
        raise ValueError('pgm holds greyscale only')
    if pixels.ndim == 3:
        pixels = reverse_channels(pixels if in_place and pixels.flags.c_contiguous else pixels.copy())
    try:
        if extension in formats.JPEG:
            return jpeg.encode(pixels, header, blocks, max(QUALITY, header.quality), sampling_444)
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


def encode_by_opencv(extension, pixels, blocks, header):
    """Encode by OpenCV, with EXIF, XMP and profile where it writes them itself."""
    options = {
        '.webp': [cv2.IMWRITE_WEBP_QUALITY, 101 if header.lossless else QUALITY],  # above 100: lossless
        '.avif': [cv2.IMWRITE_AVIF_QUALITY, QUALITY],
        '.jp2': [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000],  # lossless
    }.get(extension, [])
    kinds = {'exif': cv2.IMAGE_METADATA_EXIF, 'xmp': cv2.IMAGE_METADATA_XMP, 'icc': cv2.IMAGE_METADATA_ICCP}
    theirs = blocks if extension in ('.webp', '.avif') else {}
    values = [np.frombuffer(block, np.uint8) for block in theirs.values()]
    done, data = cv2.imencodeWithMetadata(extension, pixels, [kinds[name] for name in theirs], values, options)
    if not done:
        raise ValueError(f'OpenCV cannot encode {pixels.shape[1]} x {pixels.shape[0]} as {extension}')
    return data
