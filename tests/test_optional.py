"""HEIC, JPEG XL and camera RAW, which need optional packages."""

import io
import struct
import sys

import numpy as np
import pytest
from PIL import Image

from photos import metadata, optional
from photos.metadata import Tag, Tags, pack_directories, read_directories
from photos.picture import read_picture
from tests.files import PACKET, UPRIGHT, close, exif, make_jpeg, make_tiff, returned, scene


@pytest.mark.parametrize('name', ['a.heic', 'named.jpg'])
def test_heic_is_turned_once_whatever_its_name(tmp_path, name):
    heif = pytest.importorskip('pillow_heif')
    file = io.BytesIO()
    heif.from_pillow(Image.fromarray(scene())).save(file, quality=95, chroma=444, exif=exif(6).tobytes())
    picture, again, notes = returned(tmp_path, name, file.getvalue())
    close(picture.photo, UPRIGHT, 5)  # by HEIF's own turn; EXIF's, which the file has too, does not count
    assert metadata.read_exif(again.header.metadata['exif']).integer(metadata.ORIENTATION) == 1
    assert np.abs(again.photo.astype(int) - picture.photo).mean() < 2  # 4:2:0 at the edges
    assert again.header.kind == ('HEIC' if name == 'a.heic' else 'JPEG')
    assert read_directories(again.header.metadata['exif'])[0].value(271) == b'Maker\0'
    assert notes == []


def test_heic_of_10_bit_stays_so(tmp_path):
    heif = pytest.importorskip('pillow_heif')
    deep, file = (
        np.tile(np.linspace(0, 1023, 64).round().astype(np.uint16)[None, :, None] << 6, (64, 1, 3)),
        io.BytesIO(),
    )
    heif.encode('RGB;16', (64, 64), deep.tobytes(), file, quality=100, chroma=444)
    picture, again, _ = returned(tmp_path, 'a.heic', file.getvalue())
    assert (picture.bits, again.bits) == (10, 10)
    assert picture.photo.max() > 65000
    close(again.photo, picture.photo.astype(int), 600)


def test_jpeg_xl_is_read_and_written(tmp_path):
    pytest.importorskip('pillow_jxl')
    file = io.BytesIO()
    Image.fromarray(scene()).save(file, 'JXL', lossless=True, exif=exif().tobytes())
    picture, again, notes = returned(tmp_path, 'a.jxl', file.getvalue())
    assert np.array_equal(picture.photo, scene())
    close(again.photo, scene(), 12)
    assert read_directories(again.header.metadata['exif'])[0].value(271) == b'Maker\0'
    assert notes == []


@pytest.mark.parametrize(
    ('name', 'data', 'module', 'package'),
    [
        ('a.heic', b'\0\0\0\x18ftypheic\0\0\0\0mif1heic', 'pillow_heif', 'pillow-heif'),
        ('a.jxl', b'\xff\n' + bytes(20), 'pillow_jxl', 'pillow-jxl-plugin'),
        ('a.nef', b'II*\0' + bytes(20), 'rawpy', 'rawpy'),
    ],
)
def test_missing_package_is_named(tmp_path, monkeypatch, name, data, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=f'{name}: expected .* pip install {package}'):
        read_picture(str(tmp_path / name))


def make_dng(orientation=1, more=()):
    """A DNG of a Bayer sensor, whose left half is red."""
    levels = np.random.default_rng(0).integers(900, 1100, (96, 128)).astype(np.uint16)
    levels[::2, :64:2] *= 8
    rational = lambda *values: tuple(x for value in values for x in (round(value * 10000), 10000))  # noqa: E731
    tags = [
        (274, 'H', 1, orientation, True), (271, 's', 0, 'Maker', True), (272, 's', 0, 'Model', True),
        (306, 's', 0, '2024:05:06 07:08:09', True), (33421, 'H', 2, (2, 2), True),
        (33422, 'B', 4, bytes([0, 1, 1, 2]), True), (50706, 'B', 4, bytes([1, 4, 0, 0]), True),
        (50707, 'B', 4, bytes([1, 1, 0, 0]), True), (50708, 's', 0, 'Maker Model', True), (50717, 'I', 1, 16383, True),
        (50721, '2i', 9, rational(3.2406, -1.5372, -0.4986, -0.9689, 1.8758, 0.0415, 0.0557, -0.2040, 1.0570), True),
        (50728, '2I', 3, rational(0.5, 1, 0.6), True), (50778, 'H', 1, 21, True), *more,
    ]  # fmt: skip
    return make_tiff(levels, photometric=32803, extratags=tags, software='', rowsperstrip=96)


def test_dng_is_developed_upright_with_its_exif(tmp_path):
    pytest.importorskip('rawpy')
    upright, again, _ = returned(tmp_path, 'a.dng', make_dng())
    turned, _, _ = returned(tmp_path, 'b.dng', make_dng(6))
    assert upright.photo.shape == (96, 128, 3)
    assert upright.photo[:, :56, 0].mean() > 2 * upright.photo[:, 72:, 0].mean()
    assert np.array_equal(turned.photo, np.rot90(upright.photo, -1))
    assert again.header.kind == 'TIFF'
    tags = read_directories(again.header.metadata['exif'])[0]
    assert (tags.value(271), tags.value(306)) == (b'Maker\0', b'2024:05:06 07:08:09\0')


def test_dng_whose_pixels_are_not_all_there_is_refused(tmp_path):
    pytest.importorskip('rawpy')
    data = make_dng()
    for name, bad in (
        ('half.dng', data[: len(data) // 2]),
        ('zeros.dng', data[: len(data) // 2] + bytes(len(data) // 2)),
    ):
        (tmp_path / name).write_bytes(bad)
        with pytest.raises(ValueError, match=f'{name}: expected a whole photo'):
            read_picture(str(tmp_path / name))


def test_xmp_of_a_dng_is_kept(tmp_path):
    pytest.importorskip('rawpy')
    packet = (PACKET % 'xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4"/>').encode()
    data = make_dng(more=[(700, 'B', len(packet), packet, True)])
    assert returned(tmp_path, 'a.dng', data)[1].header.metadata['xmp'] == packet


def make_rw2(size, more=()):
    """The tags of a Panasonic RAW file for a sensor of 4000 x 3000, padded to a size."""
    tags = {2: (3, 4000), 3: (3, 3000), 0x17: (3, 1600), 0x118: (4, 2048)}
    tags = {number: Tag(type, 1, struct.pack('<I', value)) for number, (type, value) in tags.items()}
    tags |= dict(more)
    return b'IIU\0\x08\0\0\0' + pack_directories(Tags(image=tags)).ljust(size, b'\0')


def test_rw2_that_is_cut_is_refused(tmp_path):
    pytest.importorskip('rawpy')
    (tmp_path / 'a.rw2').write_bytes(make_rw2(12000))
    with pytest.raises(ValueError, match='expected a whole photo, the file is truncated'):
        read_picture(str(tmp_path / 'a.rw2'))


def test_rw2_has_exif_of_its_preview_or_own_iso():
    preview = make_jpeg(exif=exif())
    tags, _ = optional.describe_raw(make_rw2(9000, {0x2E: Tag(7, len(preview), preview)}.items()))
    assert tags.value(306) == b'2024:05:06 07:08:09\0'
    assert optional.describe_raw(make_rw2(9000))[0].integer(34855, directory='exif') == 1600


def test_heic_without_a_turn_is_turned_by_exif(tmp_path):
    heif = pytest.importorskip('pillow_heif')
    file = io.BytesIO()
    heif.from_pillow(Image.fromarray(scene())).save(file, quality=95, chroma=444, exif=exif(1).tobytes())
    one = struct.pack('>HHIHH', 274, 3, 1, 1, 0)
    assert file.getvalue().count(one) == 1
    data = file.getvalue().replace(one, struct.pack('>HHIHH', 274, 3, 1, 6, 0))
    picture, again, _ = returned(tmp_path, 'a.heic', data)
    close(picture.photo, UPRIGHT, 5)
    assert again.photo.shape == UPRIGHT.shape
    assert metadata.read_exif(again.header.metadata['exif']).integer(metadata.ORIENTATION) == 1


ANIMATED = (  # two frames of 40 x 24, by cjxl
    'ff0a0588600001c5250108029209000040004b188b1580d5fc7f81080000274e8521080292050044004b188b15801df8ff02'
    '110000908b0ad300'
)
PQ = (  # 40 x 24
    'ff0a05880002f2e81187030000004008020100f8004b2835c63eac0a0a2640813171e2e014c630c6e00c2f1028c0488e03c0'
    'ff3ffffffffffffb05fc011980008e0f6454c8acaaacaac402c402010002b00201'
)


@pytest.mark.parametrize(('data', 'reason'), [(ANIMATED, 'got an animated JPEG XL'), (PQ, r'got HDR \(PQ\)')])
def test_jpeg_xl_that_moves_or_is_hdr_is_refused(tmp_path, data, reason):
    pytest.importorskip('pillow_jxl')
    (tmp_path / 'a.jxl').write_bytes(bytes.fromhex(data))
    with pytest.raises(ValueError, match=reason):
        read_picture(str(tmp_path / 'a.jxl'))
