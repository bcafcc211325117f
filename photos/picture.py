"""Photos on disk and in memory: read, write, with all that their files hold beside the pixels.

A photo is an (H, W, 3) RGB array, uint8 or uint16, in sRGB; a `Picture` is a photo with what its file holds. What the
network sees is `Picture.photo`; `write_picture` takes the result back into the photo's own profile, channels and depth.
"""

import os
from dataclasses import dataclass, field

import cv2
import numpy as np

from photos import codecs, colour, formats, metadata
from photos.folder import is_photo
from photos.levels import to_8bit
from system.files import copy_status, save_whole

MEGAPIXELS = 300  # largest photo that is read, against decompression bombs


@dataclass
class Picture:
    """An upright photo, and what its file holds beside its colours."""

    photo: np.ndarray  # (H, W, 3) sRGB, uint8 or uint16
    alpha: np.ndarray | None  # (H, W) of the file's dtype, or another fourth channel (header.extra)
    grey: bool  # the file is greyscale: the three channels are equal
    bits: int  # of a level in the file: 8, 16, or 10 and 12 (AVIF, HEIC), which are scaled to 16 here
    header: formats.Header
    space: colour.Space | None = None  # the file's own colours where they are not sRGB
    own: np.ndarray | None = None  # (H, W, 3) in that space, of the file's dtype
    status: os.stat_result | None = field(default=None, repr=False)  # of the file


def list_photos(folder):
    """List the paths of the photos in a folder by name; hidden files and other types are left out.

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
    """Read the (H, W, 3) sRGB photo of a file, uint8 or uint16 as the file has it, upright; grey as RGB, no alpha.

    Raises:
        ValueError, OSError: see read_picture.
    """
    picture = read_picture(path)
    return picture.photo if picture.bits > 8 else to_8bit(picture.photo)


def read_picture(path, megapixels=MEGAPIXELS):
    """Read a photo upright at its own bit depth, with alpha and metadata; in sRGB and 16 bit where it is not sRGB.

    Raises:
        ValueError: not a whole, single photo of 8 to 16 bit, or more than `megapixels`. OSError: it cannot be opened.
    """
    with open(path, 'rb') as file:
        data, status = file.read(), os.fstat(file.fileno())

    def check_size(size):
        if size[0] * size[1] > megapixels * 1e6:
            got = f'{size[0]} x {size[1]} ({size[0] * size[1] / 1e6:.0f} megapixels)'
            raise ValueError(f'expected up to {megapixels:g} megapixels (max_megapixels), got {got}')

    try:
        header, pixels = codecs.read(path, data, check_size)
        check_size(pixels.shape[1::-1])
        return make_picture(pixels, header, status)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error


def make_picture(pixels, header, status):
    """Make a Picture of pixels as they are stored, and the status of their file."""
    clean_metadata(header, pixels.shape)
    pixels = turn_upright(pixels, header.orientation)
    pixels = convert_cmyk_and_lab(pixels, header)
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    alpha = np.ascontiguousarray(pixels[..., -1]) if channels in (2, 4) else None
    grey = channels < 3 or header.mode in ('L', 'LA', '1')
    if channels < 3:
        photo = cv2.cvtColor(np.atleast_3d(pixels)[..., 0], cv2.COLOR_GRAY2RGB)
    else:
        photo = np.require(pixels[..., :3], requirements=['C', 'W'])
    if header.associated and alpha is not None:
        photo = divide_by_alpha(photo, alpha)
    bits = header.bits if photo.dtype == np.uint16 and header.bits in (10, 12) else 8 * photo.itemsize
    picture = Picture(photo, alpha, grey, bits, header, status=status)
    find_space(picture)
    return picture


def turn_upright(pixels, orientation):
    """Turn pixels as EXIF's orientation (1 to 8) says that they are seen."""
    if orientation > 4:  # it lies on its side
        pixels = cv2.transpose(pixels)
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return pixels if flip is None else cv2.flip(pixels, flip)


def convert_cmyk_and_lab(pixels, header):
    """Convert CMYK (255 is no ink) and Lab to sRGB and drop their profile; other pixels stay as they are."""
    if header.mode not in ('CMYK', 'LAB'):
        return pixels
    profile = header.metadata.pop('icc', b'')
    if header.mode == 'LAB':
        header.notes.append('Lab is written as sRGB')
        return colour.by_tables(pixels, 'LAB', b'')
    rgb = colour.by_tables(255 - pixels, 'CMYK', profile) if profile else None
    if rgb is None:
        header.notes.append('CMYK is written as RGB' + (', its colour profile cannot be used' if profile else ''))
        return np.dstack([cv2.multiply(pixels[..., c], pixels[..., 3], scale=1 / 255) for c in range(3)])
    header.notes.append('CMYK is written as sRGB, by its colour profile')
    return rgb


def divide_by_alpha(photo, alpha):
    """Undo that colours were multiplied by their alpha; black where nothing shows."""
    top = np.float32(np.iinfo(photo.dtype).max)
    scale = np.where(alpha, top / np.maximum(alpha, 1), 0).astype(np.float32)
    return np.minimum(np.rint(photo * scale[..., None]), top).astype(photo.dtype)


def clean_metadata(header, shape):
    """Make orientation and blocks true of an upright photo without thumbnails and second pictures; empty ones go."""
    exif, xmp, iptc = (header.metadata.get(name) or b'' for name in ('exif', 'xmp', 'iptc'))
    exif = exif.removeprefix(b'Exif\0\0')  # which some files have and some have not
    turn = header.orientation or metadata.read_exif(exif).integer(metadata.ORIENTATION) or metadata.xmp_orientation(xmp)
    header.orientation = turn if turn in range(1, 9) else 1
    size = shape[:2] if header.orientation > 4 else shape[1::-1]  # upright
    clean = {'exif': metadata.upright_exif(exif, size), 'xmp': metadata.upright_xmp(xmp)}
    if exif and not clean['exif']:
        header.notes.append('its EXIF is damaged and left out')
    clean['iptc'] = metadata.clean_resources(iptc)
    if 'resolution' in header.metadata and header.orientation > 4:
        clean['resolution'] = header.metadata['resolution'][::-1]
    header.metadata = {name: block for name, block in (header.metadata | clean).items() if block}


def find_space(picture):
    """Show a picture that is not sRGB as sRGB, and keep its own pixels and space beside."""
    header, blocks = picture.header, picture.header.metadata
    exif = b'' if 'icc' in blocks else blocks.get('exif', b'')
    rule = metadata.read_exif(exif).value(1, 'interop')  # DCF's, whose R03 is Adobe RGB
    implied = colour.profile_of(header.colour, rule[:3] == b'R03')
    profile = blocks.pop('icc', b'') or (b'' if picture.grey else implied)  # and back where it is true of the result
    if not profile:
        return
    if profile[16:20] != (b'GRAY' if picture.grey else b'RGB '):
        header.notes.append('its colour profile is for other channels than the result has')
        return
    try:
        space = colour.read_space(profile)
    except ValueError:
        header.notes.append('its colour profile is damaged and left out')
        return
    colour.refuse_hdr(space)
    if space == 'tables':
        converted = colour.by_tables(to_8bit(picture.photo), 'RGB', profile)
        picture.photo = picture.photo if converted is None else converted
        picture.bits = 8 * picture.photo.itemsize
        result = 'damaged and left out' if converted is None else 'applied: the result is sRGB with 8 bit'
        header.notes.append(f'its colour profile of tables is {result}')
        return
    if space or header.kind != 'JXL':  # whose decoder makes a profile for sRGB, too
        blocks['icc'] = profile
    if space:
        picture.space, picture.own = space, picture.photo
        picture.photo = space.as_srgb(picture.own)


def write_photo(path, photo):
    """Write an (H, W, 3) RGB photo alone, whole or not at all.

    Quality 95 for JPEG, lossless WebP, 16 bit where the format has it (PNG, TIFF, JPEG 2000, PPM), else rounded to 8.

    Raises:
        ValueError: this type cannot be written. OSError: disk full, no permission.
    """
    write_picture(path, Picture(photo, None, False, photo.dtype.itemsize * 8, formats.Header()), photo)


def write_picture(path, picture, photo, in_place=False, sampling_444=False, keep_times=False):
    """Write a new photo in place of a picture's own: colours, grey, alpha, depth and metadata as the picture has them.

    The file gets the permissions of the picture's file.

    Args:
        photo: (H, W, 3) sRGB of the picture's size and dtype.
        in_place: the photo's memory, and the picture's, may be changed.
        sampling_444: full chroma resolution in a JPEG, whatever the picture's file had.
        keep_times: the file gets the times of the picture's file, too.
    Returns:
        list of what the format does not keep, in words.
    Raises:
        ValueError: this type cannot be written. OSError: disk full, no permission.
    """
    extension = os.path.splitext(path)[1].lower()
    if extension not in formats.WRITABLE:
        raise ValueError(f'{path}: expected one of {" ".join(formats.WRITABLE)}')
    entry, lost, blocks = formats.BY_EXTENSION[extension], list(picture.header.notes), dict(picture.header.metadata)
    pixels = to_own_colours(picture, photo, extension, blocks, lost, in_place)
    pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if picture.grey else pixels
    alpha, extra = picture.alpha, ''
    if alpha is not None and (not entry.alpha or (picture.header.extra and extension not in formats.TIFF)):
        lost.append(f'{extension[1:]} has no {"further channel" if picture.header.extra else "alpha"}')
        alpha = None
    if pixels.dtype == np.uint16 and not entry.deep:
        pixels = to_8bit(pixels)
        lost.append(f'{extension[1:]} is written with 8 bit')
    if alpha is not None:
        alpha = to_8bit(alpha) if pixels.dtype == np.uint8 else alpha
        extra = 'unspecified' if picture.header.extra else 'unassociated'
        if picture.header.associated and extension in formats.TIFF:  # divide_by_alpha is undone
            share = alpha[..., None].astype(np.float32) / np.iinfo(pixels.dtype).max
            pixels, extra = np.rint(np.atleast_3d(pixels) * share).astype(pixels.dtype), 'associated'
        pixels = np.dstack([pixels, alpha])
    names = [name for name, block in blocks.items() if not formats.holds(extension, name, block)]
    if names:
        lost.append(f'{formats.in_words(names)} cannot be written to {extension[1:]}')
    blocks = {name: block for name, block in blocks.items() if name not in names}
    in_place = in_place or pixels is not photo
    try:
        data = codecs.encode(extension, pixels, blocks, picture.header, extra, sampling_444, in_place)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error

    def save(file):
        file.write(data)
        if picture.status is not None:
            file.flush()  # else what is written later would set the time anew
            copy_status(picture.status, file.name, keep_times)

    save_whole(save, path)
    return lost


def to_own_colours(picture, photo, extension, blocks, lost, in_place):
    """The photo in the colours and depth that are written; itself where it has them."""
    if picture.space:
        if formats.holds(extension, 'icc', blocks['icc']):
            own = picture.own if in_place else picture.own.copy()
            return picture.space.from_srgb(photo, own)
        del blocks['icc']
        lost.append(f'{metadata.NAMES["icc"]} cannot be written to {extension[1:]}: the result is sRGB')
    return to_8bit(photo) if picture.bits == 8 else photo
