"""JPEG XL through pillow-jxl-plugin, which is optional; 8 bit. libjxl turns the picture upright itself."""

import io

import numpy as np
from PIL import Image

from photos import boxes
from photos.formats import Header, reading_by


def load_package():
    """Raises ValueError: pillow-jxl-plugin is not installed."""
    try:
        import pillow_jxl  # noqa: F401  it adds itself to Pillow
    except ImportError:
        raise ValueError(
            'expected pillow-jxl-plugin to read and write JPEG XL, it is not installed: pip install pillow-jxl-plugin'
        ) from None


def read(data):
    """(Header, pixels (H, W) or (H, W, 2 to 4)) of a JPEG XL's bytes.

    Raises:
        ValueError: the plugin is not installed, or the file is damaged.
    """
    load_package()
    with reading_by('libjxl'), Image.open(io.BytesIO(data), formats=['JXL']) as image:
        pixels, info = np.asarray(image), dict(image.info)
        header = Header(kind='JXL', size=image.size, mode=image.mode.split(';')[0].replace('I', 'L'))
    xmp, exif = boxes.read_jxl(data)
    blocks = {'exif': exif or info.get('exif'), 'xmp': xmp, 'icc': info.get('icc_profile')}
    header.metadata = {name: bytes(block).removeprefix(b'Exif\0\0') for name, block in blocks.items() if block}
    packed = boxes.packed_boxes(data) - ({b'Exif'} if 'exif' in header.metadata else set())
    header.left_out += [f'its packed {kind.decode("latin-1").strip()} box is left out' for kind in sorted(packed)]
    return header, pixels


def encode(pixels, metadata, quality):
    """The bytes of a JPEG XL as a uint8 array, of (H, W, 3 or 4) RGB or (H, W), uint8.

    Raises:
        ValueError: the plugin is not installed.
    """
    load_package()
    file = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    exif = b'\0\0\0\0' + metadata['exif'] if 'exif' in metadata else b''  # the box says where EXIF starts: at once
    image.save(file, 'JXL', quality=quality, exif=exif, xmp=metadata.get('xmp', b''))
    return np.frombuffer(file.getvalue(), np.uint8)
