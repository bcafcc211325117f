"""AVIF, JPEG 2000 and PPM."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from photos import boxes, formats, metadata
from photos.metadata import read_directories
from photos.picture import Picture, read_photo, read_picture, write_picture
from tests.files import SRGB, close, exif, returned, scene


def make_avif(photo, **options):
    file = io.BytesIO()
    Image.fromarray(photo).save(file, 'AVIF', quality=100, **options)
    return file.getvalue()


def test_grey_avif_of_limited_range_has_all_levels(tmp_path):
    ramp = np.linspace(0, 255, 64).round().astype(np.uint8)[None].repeat(64, 0)
    (tmp_path / 'a.avif').write_bytes(make_avif(ramp, subsampling='4:0:0', range='limited'))
    close(read_photo(str(tmp_path / 'a.avif')), np.dstack([ramp] * 3), 2)


def test_avif_with_exif_behind_its_pixels_is_read(tmp_path):
    block = exif()
    del block[274]  # Pillow would write a turn of HEIF's own
    block = block.tobytes().removeprefix(b'Exif\0\0')
    data = bytearray(make_avif(scene(), exif=block, subsampling='4:4:4'))
    at, mdat = data.index(block), data.index(b'mdat')
    place = next(p for p in range(at, at - 16, -1) if data[:mdat].count(struct.pack('>I', p)) == 1)
    where = data.index(struct.pack('>I', place))
    data[where : where + 4] = struct.pack('>I', len(data))  # a copy of it behind all else
    data[mdat - 4 : mdat] = struct.pack('>I', len(data) - mdat + 4 + at - place + len(block))
    picture, again, _ = returned(tmp_path, 'a.avif', bytes(data) + bytes(data[place : at + len(block)]))
    close(picture.photo, scene(), 6)
    assert read_directories(again.header.metadata['exif'])[0].value(271) == b'Maker\0'


def test_jpeg_2000_keeps_iptc_and_xml(tmp_path):
    records = b'\x1c\x02\x78\0\x07Caption'
    file = io.BytesIO()
    Image.fromarray(scene()).save(file, 'JPEG2000', irreversible=False)
    data = file.getvalue()
    at = data.index(b'jp2c') - 4
    added = boxes.box(b'uuid', boxes.IPTC + records), boxes.box(b'xml ', b'<a/>')
    _, again, notes = returned(tmp_path, 'a.jp2', data[:at] + b''.join(added) + data[at:])
    assert again.header.metadata == {'iptc': metadata.resources_of(records), 'xml': added[1]}
    assert notes == []


@pytest.mark.parametrize('size', [(1, 1), (24, 24), (31, 200)])
@pytest.mark.parametrize('channels', [1, 3, 4])
def test_jpeg_2000_of_any_size_is_lossless(tmp_path, size, channels):
    photo = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    photo = photo[..., :1].repeat(3, 2) if channels == 1 else photo
    alpha = photo[..., 0].copy() if channels == 4 else None
    picture = Picture(photo, alpha, channels == 1, 8, formats.Header(metadata={'icc': SRGB} if channels > 1 else {}))
    assert write_picture(str(tmp_path / 'a.jp2'), picture, photo.copy()) == []
    result = read_picture(str(tmp_path / 'a.jp2'))
    assert np.array_equal(result.photo, photo)
    assert alpha is None or np.array_equal(result.alpha, alpha)


@pytest.mark.parametrize(('top', 'dtype'), [(15, '>u1'), (200, '>u1'), (1023, '>u2')])
@pytest.mark.parametrize('channels', [1, 3])
def test_ppm_of_any_maximum_has_the_whole_range(tmp_path, top, dtype, channels):
    levels = np.linspace(0, top, 96).round().astype(dtype).reshape(4, 8, 3)[..., :channels]
    head = b'P%d\n# made by a scanner\n8 4 # size\n%d\n' % (5 if channels == 1 else 6, top)
    (tmp_path / 'a.ppm').write_bytes(head + levels.tobytes())
    full = 65535 if top > 255 else 255
    expected = (levels.astype(float) * full / top).round().repeat(4 - channels if channels == 1 else 1, 2)
    assert np.array_equal(read_picture(str(tmp_path / 'a.ppm')).photo, expected)
