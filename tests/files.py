"""What the tests of photo files share: a photo, and files made of it."""

import io
import struct
import zlib

import numpy as np
import tifffile
from PIL import Image, ImageCms

from photos import jpeg
from photos.folder import result_name
from photos.picture import read_picture, write_picture

PACKET = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" %s</rdf:RDF></x:xmpmeta>'
)


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()


def scene(height=48, width=64):
    """A dark photo without noise, of which no turn is another."""
    photo = np.full((height, width, 3), (40, 60, 80), np.uint8)
    photo[:, : width // 2] = (100, 20, 30)
    photo[: height // 4] = (70, 90, 60)
    return photo


DEEP = scene().astype(np.uint16) * 257 + 13


UPRIGHT = np.rot90(scene(), -1)  # of orientation 6


ALPHA = np.full(DEEP.shape[:2], 32768, np.uint16)


def exif(orientation=1, **tags):
    block = Image.Exif()
    block[271], block[272], block[306], block[274] = 'Maker', 'Model', '2024:05:06 07:08:09', orientation
    block.get_ifd(0x8769)[0x9003] = '2024:05:06 07:08:09'
    block.get_ifd(0x8825)[1], block.get_ifd(0x8825)[2] = 'N', (48.0, 51.0, 29.0)
    return block


def make_jpeg(photo=None, **options):
    file = io.BytesIO()
    options = {'quality': 95, 'subsampling': 0, **options}
    Image.fromarray(scene() if photo is None else photo).save(file, 'JPEG', **options)
    return file.getvalue()


def segment(marker, body):
    return bytes([255, marker]) + struct.pack('>H', len(body) + 2) + body


def insert(data, *segments):
    """A JPEG with segments behind its first ones."""
    at = 2
    while data[at : at + 2] in (b'\xff\xe0', b'\xff\xe1'):
        at += 2 + struct.unpack_from('>H', data, at + 2)[0]
    return data[:at] + b''.join(segments) + data[at:]


def xmp(text):
    return segment(0xE1, jpeg.XMP + (PACKET % text).encode())


def returned(tmp_path, name, data):
    """(Picture of a file, Picture of what is written for its own pixels, the notes)."""
    path = tmp_path / name
    path.write_bytes(data)
    picture = read_picture(str(path))
    result = tmp_path / 'out' / result_name(name)
    result.parent.mkdir(exist_ok=True)
    notes = write_picture(str(result), picture, picture.photo.copy())
    return picture, read_picture(str(result)), notes


def close(photo, expected, levels=3):
    assert photo.shape == expected.shape
    assert np.abs(photo.astype(int) - expected).max() <= levels
    return True


def chunk(name, body):
    return struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))


def make_tiff(pixels, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, metadata=None, **options)
    return file.getvalue()
