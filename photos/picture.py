"""Photos on disk and in memory: read, write, and tensors of them.

A photo is an (H, W, 3) RGB array, uint8 or uint16; a `Picture` is a photo with all that its file holds beside it. This
is the one place where OpenCV's BGR is turned round.
"""

import os
from dataclasses import dataclass

import cv2
import numpy as np

from photos import formats  # before cv2: it sets OpenCV's log level
from photos.levels import to_8bit
from system.files import save_whole

MEGAPIXELS = 300  # largest photo that is read, against decompression bombs


@dataclass
class Picture:
    """An upright photo, and what its file holds beside its colours."""

    photo: np.ndarray  # (H, W, 3) RGB, uint8 or uint16
    alpha: np.ndarray | None  # (H, W) of the photo's dtype
    grey: bool  # the file is greyscale: the three channels are equal
    bits: int  # of a level in the file: 8, 16, or 10 and 12 (AVIF), which are scaled to 16 here
    header: formats.Header
    notes: tuple = ()  # what could not be kept


def is_photo(name):
    """Whether a file of that name is a photo: a known extension, and not hidden."""
    return name.lower().endswith(formats.READABLE) and not name.startswith('.')


def list_photos(folder):
    """Paths of the photos in a folder, sorted by name; hidden files and other types are left out.

    Raises:
        FileNotFoundError: no such folder, or no photo in it.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f'{folder}: expected a folder of photos, found none')
    names = sorted(filter(is_photo, os.listdir(folder)))
    if not names:
        raise FileNotFoundError(f'{folder}: no photos (looked for {" ".join(formats.READABLE)})')
    return [os.path.join(folder, name) for name in names]


def read_photo(path):
    """The (H, W, 3) RGB photo of a file, uint8 or uint16, upright; greyscale becomes RGB, alpha is dropped.

    Raises:
        ValueError, OSError: see read_picture.
    """
    return read_picture(path).photo


def read_picture(path, megapixels=MEGAPIXELS, gpu=None):
    """Read a photo upright (EXIF orientation applied) at its own bit depth, with alpha and metadata.

    Args:
        gpu: torch.device that decodes JPEG if it can.
    Raises:
        ValueError: not a whole, single photo of 8 or 16 bit, or more than `megapixels`. OSError: it cannot be opened.
    """
    with open(path, 'rb') as file:
        data = file.read()
    if not data:
        raise ValueError(f'{path}: expected a photo, got an empty file')
    extension = os.path.splitext(path)[1].lower()
    if extension in formats.FLOAT:
        raise ValueError(f'{path}: expected 8 or 16 bit, got a floating-point format; tone-map it first')
    if extension in formats.RAW:
        return read_raw(path, data, megapixels)
    header = formats.read_header(data)
    check_size(path, header.size, megapixels)
    if header.frames > 1:
        raise ValueError(f'{path}: expected a single photo, got {header.frames} frames or pages')
    if not formats.is_whole(data, header):
        raise ValueError(f'{path}: expected a whole photo, the file is truncated')
    try:
        pixels = formats.decode(path, data, header, gpu)
    except cv2.error as error:
        raise ValueError(f'{path}: expected a photo, OpenCV cannot decode it ({error.err or error.code})') from error
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's
        raise ValueError(f'{path}: expected a photo, Pillow cannot decode it ({error})') from error
    if pixels is None or not pixels.size:
        raise ValueError(f'{path}: expected a photo, OpenCV cannot decode it (truncated, or another type?)')
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f'{path}: expected 8 or 16 bit, got {pixels.dtype}; tone-map it first')
    check_size(path, pixels.shape[1::-1], megapixels)
    return assemble(pixels, header, data)


def check_size(path, size, megapixels):
    if size[0] * size[1] > megapixels * 1e6:
        got = f'{size[0]} x {size[1]} ({size[0] * size[1] / 1e6:.0f} megapixels)'
        raise ValueError(f'{path}: expected up to {megapixels:g} megapixels (max_megapixels), got {got}')


def assemble(pixels, header, data):
    """Picture of OpenCV's decoded pixels."""
    bits, notes = pixels.dtype.itemsize * 8, []
    if header.kind == 'AVIF' and bits == 16:
        at = data.find(b'pixi')  # box of the bits per channel: 4 bytes of version, a count, then the bits
        bits = data[at + 9] if at > 0 and data[at + 9] in (10, 12) else 16
        pixels = pixels << (16 - bits)
    pixels = turn_upright(pixels, header.orientation)
    alpha = np.ascontiguousarray(pixels[..., 3]) if pixels.ndim == 3 and pixels.shape[2] == 4 else None
    if header.mode == 'CMYK':
        alpha = None  # OpenCV's own filling
    grey = pixels.ndim == 2 or header.mode in ('L', 'LA', '1', 'I;16')
    if pixels.ndim == 2:
        photo = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    else:
        photo = reverse_channels(np.ascontiguousarray(pixels[..., :3]))
    metadata = header.metadata
    if 'exif' in metadata:
        metadata['exif'] = formats.upright_exif(metadata['exif'])
    if metadata.get('icc', b'')[16:20] not in (b'', b'GRAY' if grey else b'RGB '):
        metadata['icc'] = b''
        notes.append('its colour profile is for other channels than the result has')
    header.metadata = {name: block for name, block in metadata.items() if block}
    return Picture(photo, alpha, grey, bits, header, tuple(notes))


def turn_upright(pixels, orientation):
    """Pixels as EXIF's orientation (1 to 8) says that they are seen."""
    if orientation in (5, 6, 7, 8):
        pixels = cv2.transpose(pixels)
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return pixels if flip is None else cv2.flip(pixels, flip)


def read_raw(path, data, megapixels):
    """Develop a camera RAW file with rawpy (LibRaw): the camera's white balance, its exposure, sRGB, 16 bit."""
    try:
        import rawpy
    except ImportError:
        raise ValueError(f'{path}: expected rawpy to read camera RAW, it is not installed: pip install rawpy') from None
    try:
        import io

        with rawpy.imread(io.BytesIO(data)) as raw:
            check_size(path, (raw.sizes.width, raw.sizes.height), megapixels)
            photo = raw.postprocess(output_bps=16, use_camera_wb=True, no_auto_bright=True)
    except rawpy.LibRawError as error:
        raise ValueError(f'{path}: LibRaw cannot read it ({error})') from error
    return Picture(np.ascontiguousarray(photo), None, False, 16, formats.Header(size=photo.shape[1::-1], kind='RAW'))


def reverse_channels(photo):
    """Turn BGR to RGB or back in place, by so few rows that they stay in the processor's cache."""
    count = max(1, (1 << 18) // photo[0].nbytes)
    for y in range(0, len(photo), count):
        rows = photo[y : y + count]
        rows[:] = cv2.cvtColor(rows, cv2.COLOR_BGR2RGB)
    return photo


def write_photo(path, photo, reuse=False):
    """Write an (H, W, 3) RGB photo alone, whole or not at all.

    Quality 95 for JPEG, lossless WebP, 16 bit where the format has it (PNG, TIFF, JPEG 2000, PPM), else rounded to 8.

    Args:
        reuse: the photo's memory may be changed.
    Raises:
        ValueError: OpenCV cannot write this type. OSError: disk full, no permission.
    """
    picture = Picture(photo, None, False, photo.dtype.itemsize * 8, formats.Header())
    write_picture(path, picture, photo, reuse)


def write_picture(path, picture, photo, reuse=False, sampling_444=False, gpu=None):
    """Write a new photo in place of a picture's own: greyscale, alpha, depth and metadata as the picture has them.

    Args:
        photo: (H, W, 3) RGB of the picture's size and dtype.
        reuse: the photo's memory may be changed.
        sampling_444: full chroma resolution in a JPEG, whatever the picture's file had.
        gpu: torch.device that encodes JPEG if it can.
    Returns:
        list of what the format does not keep, in words.
    Raises:
        ValueError: OpenCV cannot write this type. OSError: disk full, no permission.
    """
    extension = os.path.splitext(path)[1].lower()
    lost = list(picture.notes)
    if picture.grey:
        pixels = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
    else:
        pixels = reverse_channels(photo if reuse else photo.copy())
    alpha = picture.alpha
    if alpha is not None and extension not in formats.WITH_ALPHA:
        alpha = None
        lost.append(f'{extension[1:]} has no alpha')
    if alpha is not None:
        channels = [pixels] * 3 if picture.grey else cv2.split(pixels)
        pixels = cv2.merge([*channels, alpha])
    if pixels.ndim == 2 and extension == '.ppm':
        pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR)
    elif pixels.ndim == 3 and extension == '.pgm':
        raise ValueError(f'{path}: pgm holds greyscale only')
    if pixels.dtype == np.uint16 and extension not in formats.DEEP:
        pixels = to_8bit(pixels)
        lost.append(f'{extension[1:]} is written with 8 bit')
    names = [formats.NAMES[name] for name, block in picture.header.metadata.items()
             if not formats.holds(extension, name, block)]  # fmt: skip
    if names:
        lost.append(f'{" and ".join(names)} cannot be written to {extension[1:]}')
    try:
        data = formats.encode(extension, pixels, picture.header, sampling_444, gpu)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error
    save_whole(lambda file: file.write(data), path)
    return lost
