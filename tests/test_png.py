"""PNG files: their chunks and texts."""

import io

import numpy as np
from PIL import Image, PngImagePlugin

from tests.files import UPRIGHT, exif, returned, scene


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
