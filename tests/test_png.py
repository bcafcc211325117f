"""PNG files: their chunks and texts."""

import io
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from photos import metadata
from tests.files import UPRIGHT, chunk, exif, returned, scene


def test_png_keeps_texts_resolution_and_exif_in_a_text(tmp_path):
    block = b'Exif\0\0' + exif(6).tobytes().removeprefix(b'Exif\0\0')
    info, file = PngImagePlugin.PngInfo(), io.BytesIO()
    info.add_text('Raw profile type exif', f'\nexif\n{len(block):8}\n' + block.hex() + '\n', zip=True)
    info.add_text('Title', 'A title')
    Image.fromarray(scene()).save(file, 'PNG', pnginfo=info, dpi=(300, 200))
    picture, again, notes = returned(tmp_path, 'a.png', file.getvalue())
    assert np.array_equal(picture.photo, UPRIGHT)
    assert np.array_equal(again.photo, UPRIGHT)
    with Image.open(tmp_path / 'out' / 'a.png') as result:
        assert (result.text['Title'], result.getexif()[271], result.getexif()[274]) == ('A title', 'Maker', 1)
        assert np.round(result.info['dpi']).tolist() == [200, 300]  # it was turned
    assert notes == []


def with_text(key, text):
    """A grey PNG's bytes with a packed text."""
    data = cv2.imencode('.png', scene()[..., 1])[1].tobytes()
    return data[:33] + chunk(b'zTXt', key + b'\0\0' + zlib.compress(text)) + data[33:]


@pytest.mark.parametrize('heading', [b'iptc', b'IPTC profile'])
def test_raw_profile_of_any_heading_is_kept(tmp_path, heading):
    records = b'\x1c\x02\x78\0\x07Caption'
    text = b'\n%s\n%8d\n%s\n' % (heading, len(records), records.hex().encode())
    _, again, _ = returned(tmp_path, 'a.png', with_text(b'Raw profile type iptc', text))
    assert again.header.metadata == {'iptc': metadata.resources_of(records)}


def test_raw_profile_app1_with_a_generic_heading_is_exif(tmp_path):
    block = b'Exif\0\0' + exif(6).tobytes().removeprefix(b'Exif\0\0')
    text = b'\ngeneric profile\n%8d\n%s\n' % (len(block), block.hex().encode())
    picture, again, _ = returned(tmp_path, 'a.png', with_text(b'Raw profile type APP1', text))
    assert picture.photo.shape == UPRIGHT.shape
    assert metadata.read_exif(again.header.metadata['exif']).integer(metadata.ORIENTATION) == 1


@pytest.mark.parametrize('mode', ['L', 'RGB', 'P', '1'])
def test_transparent_level_becomes_alpha(tmp_path, mode):
    image = Image.fromarray(scene()).quantize(8) if mode == 'P' else Image.fromarray(scene()).convert(mode)
    file, key = io.BytesIO(), image.getpixel((0, 40))
    image.save(file, 'PNG', transparency=key)
    picture, again, notes = returned(tmp_path, 'a.png', file.getvalue())
    expected = np.all(np.atleast_3d(np.asarray(image)) == key, axis=2)
    assert np.array_equal(picture.alpha, np.where(expected, 0, 255))
    assert np.array_equal(again.alpha, picture.alpha)
    assert np.array_equal(again.photo, picture.photo)
    assert notes == []


def test_odd_name_of_a_chunk_stays_one_line(tmp_path):
    data = cv2.imencode('.png', scene())[1].tobytes()
    picture, _, _ = returned(tmp_path, 'a.png', data[:33] + chunk(b'a\0\nb', b'') + data[33:])
    assert picture.header.notes == ['its PNG chunk a\\x00\\nb is left out']
