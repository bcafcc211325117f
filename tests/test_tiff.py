"""TIFF files of every layout and compression."""

import io
import struct
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from photos import jpeg, metadata, tiff
from photos.metadata import MAKER_NOTE, Tag, Tags, pack_directories, read_directories, start_of_file
from photos.picture import read_photo, read_picture, write_picture
from tests.files import ALPHA, DEEP, SRGB, UPRIGHT, close, exif, insert, make_jpeg, make_tiff, returned, scene, segment

KINDS = {
    'planar16': (np.moveaxis(DEEP, -1, 0), {'photometric': 'rgb', 'planarconfig': 'separate'}, DEEP),
    'planar16zip': (
        np.moveaxis(DEEP, -1, 0), {'photometric': 'rgb', 'planarconfig': 'separate', 'compression': 'zlib'}, DEEP
    ),
    'planar8': (np.moveaxis(scene(), -1, 0), {'photometric': 'rgb', 'planarconfig': 'separate'}, scene()),
    'negative16': (65535 - DEEP[..., 1], {'photometric': 'miniswhite'}, DEEP[..., 1:2].repeat(3, 2)),
    'negative8': (255 - scene()[..., 1], {'photometric': 'miniswhite'}, scene()[..., [1, 1, 1]]),
    'big': (DEEP, {'photometric': 'rgb', 'bigtiff': True}, DEEP),
    'tiled': (DEEP,
              {'photometric': 'rgb', 'tile': (16, 16), 'compression': 'zlib', 'predictor': True, 'byteorder': '>'},
              DEEP),
    'alpha': (np.dstack([DEEP, ALPHA]), {'photometric': 'rgb', 'extrasamples': ['unassalpha']}, DEEP),
    'infrared': (np.dstack([DEEP, ALPHA]), {'photometric': 'rgb', 'extrasamples': ['unspecified']}, DEEP),
    'grey_alpha': (np.dstack([DEEP[..., 0], ALPHA]), {'photometric': 'minisblack', 'extrasamples': ['unassalpha']},
                   DEEP[..., :1].repeat(3, 2)),
}  # fmt: skip


@pytest.mark.parametrize('kind', KINDS)
def test_tiff_of_every_layout_keeps_colours_and_fourth_channel(tmp_path, kind):
    pixels, options, expected = KINDS[kind]
    picture, again, notes = returned(tmp_path, 'a.tif', make_tiff(pixels, **options))
    assert np.array_equal(picture.photo, expected)
    assert np.array_equal(again.photo, expected)
    assert notes == []
    if 'extrasamples' in options:
        with tifffile.TiffFile(tmp_path / 'out' / 'a.tif') as file:
            extra = file.pages[0].extrasamples[0].name.lower()
        assert extra == options['extrasamples'][0]
        assert np.array_equal(again.alpha, ALPHA)


def test_associated_alpha_stays_associated(tmp_path):
    alpha = np.linspace(0, 65535, DEEP[..., 0].size).round().astype(np.uint16).reshape(DEEP.shape[:2])
    multiplied = (DEEP * (alpha[..., None] / 65535)).round().astype(np.uint16)
    data = make_tiff(np.dstack([multiplied, alpha]), photometric='rgb', extrasamples=['assocalpha'])
    picture, _, _ = returned(tmp_path, 'a.tif', data)
    assert np.abs(picture.photo[-1].astype(int) - DEEP[-1]).max() <= 1  # what the network sees is not darkened
    with tifffile.TiffFile(tmp_path / 'out' / 'a.tif') as file:
        assert file.pages[0].extrasamples[0].name == 'ASSOCALPHA'
        assert np.array_equal(file.pages[0].asarray(), np.dstack([multiplied, alpha]))


@pytest.mark.parametrize('compression', ['tiff_lzw', 'tiff_adobe_deflate', 'packbits', 'raw'])
@pytest.mark.parametrize('mode', ['RGB', 'P', 'RGBA', 'CMYK'])
def test_tiff_of_every_decoder_is_turned_once(tmp_path, compression, mode):
    image = {
        'P': Image.fromarray(scene()).quantize(16),
        'RGBA': Image.fromarray(np.dstack([scene(), ALPHA // 257]).astype(np.uint8)),
    }
    image = image.get(mode) or Image.fromarray(scene()).convert(mode)
    image.save(tmp_path / 'a.tif', compression=compression, exif=exif(6))
    close(read_photo(str(tmp_path / 'a.tif')), UPRIGHT)


def test_tiff_with_a_thumbnail_page_is_one_photo(tmp_path):
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as pages:
        pages.write(scene(12, 16), photometric='rgb', metadata=None, subfiletype=1)
        pages.write(DEEP, photometric='rgb', metadata=None)
    picture, _, notes = returned(tmp_path, 'a.tif', file.getvalue())
    assert np.array_equal(picture.photo, DEEP)
    assert notes == ['its thumbnail page is left out']


def test_tiff_keeps_its_metadata_also_as_jpeg_and_png(tmp_path):
    block = exif()
    block[315], block[270] = 'Photographer', 'Caption'
    data = make_jpeg(exif=block, dpi=(300, 300), icc_profile=SRGB)
    data = insert(data, segment(0xED, jpeg.PHOTOSHOP + metadata.resources_of(b'\x1c\x02\x78\0\x01C')))
    (tmp_path / 'a.jpg').write_bytes(data)
    picture = read_picture(str(tmp_path / 'a.jpg'))
    write_picture(str(tmp_path / 'a.tif'), picture, picture.photo.copy())
    picture = read_picture(str(tmp_path / 'a.tif'))
    for name in ('b.tif', 'b.jpg', 'b.png'):
        assert write_picture(str(tmp_path / name), picture, picture.photo) == []
        with Image.open(tmp_path / name) as result:
            tags = result.getexif()
            assert (tags[271], tags[315], tags[306]) == ('Maker', 'Photographer', '2024:05:06 07:08:09')
            assert tags.get_ifd(0x8769)[0x9003] == '2024:05:06 07:08:09'
            assert tags.get_ifd(0x8825)[2] == (48.0, 51.0, 29.0)
            assert round(float(result.info['dpi'][0])) == 300
            assert result.info['icc_profile'] == SRGB
        assert metadata.iptc_of(read_picture(str(tmp_path / name)).header.metadata['iptc'])


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.int16, np.uint32])
def test_tiff_of_other_numbers_is_refused_by_name(tmp_path, dtype):
    (tmp_path / 'a.tif').write_bytes(make_tiff(scene().astype(dtype), photometric='rgb'))
    with pytest.raises(ValueError, match=np.dtype(dtype).name):
        read_picture(str(tmp_path / 'a.tif'))


def test_tiff_of_unknown_compression_is_refused_by_name(tmp_path):
    data = bytearray(make_tiff(scene(), photometric='rgb'))
    at = data.index(struct.pack('<HHI', 259, 3, 1))
    data[at + 8 : at + 10] = struct.pack('<H', 50001)
    (tmp_path / 'a.tif').write_bytes(data)
    with pytest.raises(ValueError, match='WEBP'):
        read_picture(str(tmp_path / 'a.tif'))


NOTE = b'a note that holds places in its file'


def exif_with_note(place):
    """An EXIF block whose maker's note stands at a place."""
    tags = Tags(image={271: Tag(2, 6, b'Maker\0')}, exif={MAKER_NOTE: Tag(7, len(NOTE), NOTE, place)})
    front = start_of_file(tags)
    return front + pack_directories(tags, len(front))


def test_makers_note_stays_at_its_place_in_every_format(tmp_path):
    (tmp_path / 'a.jpg').write_bytes(insert(make_jpeg(), segment(0xE1, jpeg.EXIF + exif_with_note(300))))
    for source, result in ('a.jpg', 'b.tif'), ('b.tif', 'c.tif'), ('c.tif', 'd.png'), ('d.png', 'e.jpg'):
        picture = read_picture(str(tmp_path / source))
        assert write_picture(str(tmp_path / result), picture, picture.photo.copy()) == []
        data = (tmp_path / result).read_bytes()
        block = data if result.endswith('.tif') else read_picture(str(tmp_path / result)).header.metadata['exif']
        assert block[300 : 300 + len(NOTE)] == NOTE
        assert read_directories(block)[0].exif[MAKER_NOTE].place == 300


def test_makers_note_far_behind_is_said_to_be_lost(tmp_path):
    data = tiff.encode(scene(), {'exif': exif_with_note(70000)})
    _, again, notes = returned(tmp_path, 'a.tif', data.tobytes())
    assert notes == ["EXIF's maker note is left out: it holds places in this file"]
    assert NOTE not in again.header.metadata['exif']


def test_makers_note_of_its_own_places_goes_anywhere(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), 'NOTE', b'Nikon\0\2\x10\0\0MM\0*\0\0\0\x08')
    data = tiff.encode(scene(), {'exif': exif_with_note(70000)})
    _, again, notes = returned(tmp_path, 'a.tif', data.tobytes())
    assert notes == []
    assert NOTE in again.header.metadata['exif']


def test_tiff_is_packed_with_isal_and_without(tmp_path, monkeypatch):
    for module in ('isal', None):
        if module is None:
            monkeypatch.setitem(sys.modules, 'isal', None)
        (tmp_path / 'a.tif').write_bytes(tiff.encode(DEEP, {}).tobytes())
        assert np.array_equal(read_photo(str(tmp_path / 'a.tif')), DEEP)
