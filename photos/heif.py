"""HEIC (HEIF with HEVC) through pillow-heif, which is optional: 8 bit, and 10 or 12 bit scaled to 16.

Source: ISO/IEC 23008-12; libheif turns the picture upright itself, so EXIF's orientation does not count.
"""

import io

import numpy as np

from photos import boxes
from photos.formats import Header, reading_by


def load_package():
    """The module pillow_heif.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import pillow_heif
    except ImportError:
        raise ValueError(
            'expected pillow-heif to read and write HEIC, it is not installed: pip install pillow-heif'
        ) from None
    return pillow_heif


def can_encode():
    """Whether pillow-heif is there with an encoder."""
    try:
        return bool(load_package().libheif_info()['HEIF'])
    except ValueError:
        return False


def open_file(data):
    """(Header, pillow-heif's picture whose pixels are not decoded yet) of a HEIC's bytes.

    Raises:
        ValueError: pillow-heif is not installed, or the file is damaged.
    """
    package = load_package()
    with reading_by('libheif'):
        file = package.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)
        info = file.info
    header = Header(kind='HEIC', size=file.size, colour=boxes.colour(data), bits=info.get('bit_depth') or 8)
    mode = file.mode.split(';')[0].replace('I', 'L')
    header.associated = mode in ('RGBa', 'La')
    header.mode, header.chroma = mode.upper(), info.get('chroma') or 420
    blocks = {'exif': info.get('exif'), 'xmp': info.get('xmp'), 'icc': info.get('icc_profile')}
    header.metadata = {name: bytes(block).removeprefix(b'Exif\0\0') for name, block in blocks.items() if block}
    others = ['its depth map is left out'] * bool(info.get('depth_images'))
    for kind in info.get('aux') or ():
        what = 'gain map' if 'gainmap' in kind.lower() else 'auxiliary picture'
        others.append(f'its {what} is left out')
    others += ['its further pictures are left out'] * (len(file) > 1)
    if any(kind == b'mpvd' for kind, _, _ in boxes.walk(data)):
        others.append('its motion video is left out')
    header.left_out += dict.fromkeys(others)
    return header, file


def decode(file, header):
    """Pixels (H, W) or (H, W, 3 or 4), uint8 or uint16 over its whole range, upright."""
    with reading_by('libheif'):
        pixels = np.asarray(file)
    return widen(pixels, header.bits) if pixels.dtype == np.uint16 else pixels


def widen(pixels, bits):
    """Levels of 10 or 12 bit, which stand in the upper bits of 16, spread over all of 16: white is 65535."""
    return pixels | (pixels >> bits) if bits < 16 else pixels


def encode(pixels, metadata, chroma, quality):
    """The bytes of a HEIC as a uint8 array.

    Args:
        pixels: (H, W), (H, W, 3) RGB or (H, W, 4), uint8, or uint16 that is written with 10 bit.
        chroma: 420, 422 or 444.
    Raises:
        ValueError: pillow-heif cannot.
    """
    package = load_package()
    mode = {1: 'L', 3: 'RGB', 4: 'RGBA'}[1 if pixels.ndim == 2 else pixels.shape[2]]
    if pixels.dtype == np.uint16:
        mode += ';16'
        pixels = np.rint(pixels * np.float32(1023 / 65535)).astype(np.uint16) << 6
    names = {'exif': 'exif', 'xmp': 'xmp', 'icc': 'icc_profile'}
    more = {names[name]: block for name, block in metadata.items() if name in names}
    if 'icc_profile' in more:
        more['icc_profile_type'] = 'prof'
    file = io.BytesIO()
    try:
        data = np.ascontiguousarray(pixels).tobytes()
        package.encode(mode, pixels.shape[1::-1], data, file, quality=quality, chroma=chroma, **more)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f'pillow-heif cannot encode it ({error})') from error
    return np.frombuffer(file.getvalue(), np.uint8)
