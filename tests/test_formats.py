"""What holds for every format: the table of docs/formats.md, damaged files, permissions."""

import io
import os
import struct
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from photos import formats, metadata, tiff
from photos.folder import result_name
from photos.metadata import read_directories
from photos.picture import read_photo, read_picture, write_picture
from tests.files import ALPHA, PACKET, SRGB, chunk, close, exif, make_jpeg, scene


def test_what_a_library_says_names_no_object():
    with pytest.raises(ValueError, match=r'Pillow says: cannot identify image file$'), formats.reading_by('Pillow'):
        Image.open(io.BytesIO(b'no photo'))


@pytest.mark.parametrize('name', ['a.png', 'a.tif', 'a.webp', 'a.avif', 'a.bmp', 'a.ppm', 'a.jp2', 'a.jpg'])
def test_half_a_file_is_refused_in_every_format(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = cv2.imencode(name[1:], noise)[1].tobytes()
    for size in (len(data) // 2, len(data) - 8):
        (tmp_path / name).write_bytes(data[:size])
        with pytest.raises(ValueError, match=f'{name}: expected a'):
            read_picture(str(tmp_path / name))


@pytest.mark.parametrize('name', ['a.bmp', 'a.jp2', 'a.png', 'a.tif'])
def test_palettes_have_their_colours(tmp_path, name):
    image = Image.fromarray(scene()).quantize(8)
    if name == 'a.jp2':
        image = image.convert('RGB')  # Pillow writes none with a palette
    image.save(tmp_path / name)
    close(read_photo(str(tmp_path / name)), np.asarray(image.convert('RGB')), 0)


def test_os2_bitmap_has_its_colours(tmp_path):
    """A header of twelve bytes, and a palette of three bytes a colour."""
    palette = bytes([30, 20, 100, 80, 60, 40]) + bytes(254 * 3)
    pixels = np.zeros((4, 8), np.uint8)
    pixels[:, 4:] = 1
    head = struct.pack('<IHHHH', 12, 8, 4, 1, 8)
    data = b'BM' + struct.pack('<IHHI', 14 + 12 + 768 + 32, 0, 0, 14 + 12 + 768) + head + palette + pixels.tobytes()
    (tmp_path / 'a.bmp').write_bytes(data)
    assert read_photo(str(tmp_path / 'a.bmp'))[0, ::7].tolist() == [[100, 20, 30], [40, 60, 80]]


def test_table_of_formats_is_that_of_the_code():
    path = os.path.join(os.path.dirname(__file__), '..', 'docs', 'formats.md')
    with open(path, encoding='utf-8') as file:
        text = file.read()
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.splitlines() if line.startswith('|')]
    columns = ['grey', 'alpha', *(name.removeprefix('the ') for name in metadata.NAMES.values())]
    assert rows[0] == ['format', 'bits read', *columns, 'written as']
    found = {row[0].partition(', needs')[0]: row[2:-1] for row in rows[2:]}
    expected = {}
    for entry in filter(lambda entry: entry.written, formats.FORMATS):
        flags = [entry.grey, entry.alpha, *(name in entry.keeps for name in metadata.NAMES)]
        name = f'{entry.name} ({", ".join(extension[1:] for extension in entry.extensions)})'
        expected[name] = ['yes' if flag else '-' for flag in flags]
    assert found == expected
    assert ', '.join(extension[1:] for extension in formats.RAW) in ' '.join(text.split())


EVERY_BLOCK = {
    'exif': exif().tobytes().removeprefix(b'Exif\0\0'),
    'xmp': (PACKET % 'xmlns:a="b" a:c="d"/>').encode(),
    'icc': SRGB,
    'iptc': metadata.resources_of(b'\x1c\x02\x78\0\x07Caption'),
    'comment': b'a comment',
    'text': chunk(b'tEXt', b'Title\0A title'),
    'resolution': (11811.0, 11811.0),
    'xml': struct.pack('>I', 12) + b'xml <a/>',
}


@pytest.mark.parametrize(
    'extension', ['.jpg', '.png', '.tif', '.webp', '.avif', '.heic', '.jxl', '.jp2', '.bmp', '.ppm', '.pgm']
)
def test_table_is_true_and_what_is_lost_is_said(tmp_path, extension):
    entry = formats.BY_EXTENSION[extension]
    pytest.importorskip({'.heic': 'pillow_heif', '.jxl': 'pillow_jxl'}.get(extension, 'numpy'))
    grey = scene()[..., :1].repeat(3, 2)
    (tmp_path / 'grey.png').write_bytes(cv2.imencode('.png', grey[..., 0])[1].tobytes())
    (tmp_path / 'a.png').write_bytes(
        cv2.imencode('.png', np.dstack([scene(), ALPHA // 257]).astype(np.uint8))[1].tobytes()
    )
    picture = read_picture(str(tmp_path / ('grey.png' if extension == '.pgm' else 'a.png')))
    picture.header.metadata = dict(EVERY_BLOCK)
    notes = write_picture(str(tmp_path / f'b{extension}'), picture, picture.photo)
    result = read_picture(str(tmp_path / f'b{extension}'))
    kept = {'text' if name == 'comment' and extension == '.png' else name for name in entry.keeps}
    assert set(result.header.metadata) == kept
    for name in kept - {'resolution', 'text', 'exif'}:
        assert result.header.metadata[name].rstrip(b'\0') == EVERY_BLOCK[name].rstrip(b'\0')
    lost = [name for name in EVERY_BLOCK if name not in entry.keeps]
    said = f'{formats.in_words(lost)} cannot be written to {extension[1:]}'
    assert notes == [f'{extension[1:]} has no alpha'] * (not entry.alpha and extension != '.pgm') + [said] * bool(lost)
    assert (result.alpha is not None) == (entry.alpha and extension != '.pgm')
    picture = read_picture(str(tmp_path / 'grey.png'))
    write_picture(str(tmp_path / f'c{extension}'), picture, picture.photo)
    assert read_picture(str(tmp_path / f'c{extension}')).grey == entry.grey


def test_permissions_are_kept_and_times_on_request(tmp_path):
    (tmp_path / 'a.jpg').write_bytes(make_jpeg())
    os.chmod(tmp_path / 'a.jpg', 0o640)
    os.utime(tmp_path / 'a.jpg', (1e9, 1e9))
    picture = read_picture(str(tmp_path / 'a.jpg'))
    write_picture(str(tmp_path / 'b.jpg'), picture, picture.photo.copy())
    write_picture(str(tmp_path / 'c.jpg'), picture, picture.photo.copy(), keep_times=True)
    assert {os.stat(tmp_path / name).st_mode & 0o777 for name in ('b.jpg', 'c.jpg')} == {0o640}
    assert os.stat(tmp_path / 'b.jpg').st_mtime != 1e9
    assert os.stat(tmp_path / 'c.jpg').st_mtime == 1e9


REFUSED = {'pq.png': 'HDR', 'half_with_eoi.jpg': 'libjpeg says', 'middle.jpg': 'libjpeg says', 'half.dng': 'truncated',
           'zeros.dng': 'hold nothing', 'half_float.tif': 'float16'}  # fmt: skip


def test_every_odd_file_keeps_its_pixels_or_is_refused(shared, tmp_path):
    for package in ('rawpy', 'pillow_heif', 'pillow_jxl'):
        pytest.importorskip(package)
    made = tmp_path / 'made'
    subprocess.run([sys.executable, f'{shared}/odd_files/make.py', str(made)], check=True, capture_output=True)
    refused, read = {}, 0
    for path in sorted(made.glob('*/*')):
        if path.parent.name in ('names', 'motion') and read % 5:
            continue
        try:
            picture = read_picture(str(path))
        except ValueError as error:
            refused[path.name] = str(error)
            continue
        read += 1
        result = str(tmp_path / result_name(f'result{path.suffix}'))
        write_picture(result, picture, picture.photo.copy())
        again, lossy = read_picture(result), path.suffix.lower() in ('.jpg', '.heic', '.jxl', '.webp')
        assert again.photo.shape == picture.photo.shape
        assert np.abs(again.photo.astype(int) - picture.photo).mean() <= 3 * lossy, path
        if picture.own is not None:
            assert np.array_equal(again.own, picture.own)
    assert refused.keys() == REFUSED.keys()
    assert all(reason in refused[name] for name, reason in REFUSED.items())
    seen = {
        name: read_photo(str(made / 'wide_gamut' / f'{name}.png')).astype(float) for name in ('srgb', 'p3', 'prophoto')
    }
    assert abs(seen['p3'] - seen['srgb']).mean() < 1.5  # its 8 bits are what differs
    assert abs(seen['prophoto'] - seen['srgb']).mean() < 1.5
    assert tiff.read_header((made / 'tiff_exif' / 'a.tif').read_bytes()).metadata['exif']


FIELD = {  # what each has behind its name in ../shared/field_files: (extension of the result, blocks that are kept)
    'maker.jpg': ('.tif', {'exif'}),
    'max1023.ppm': ('.ppm', set()),
    'max15.pgm': ('.pgm', set()),
    'mono_lim.avif': ('.avif', set()),
    'mseg.jpg': ('.jpg', {'exif'}),
    'raw_iptc.png': ('.png', {'iptc'}),
    'raw_app1.png': ('.png', {'exif'}),
    'trns_l.png': ('.png', set()),
    'iptc.jp2': ('.jp2', {'iptc'}),
    'tiny.jp2': ('.jp2', set()),
    'exif_last.avif': ('.avif', {'exif'}),
    'asym.jpg': ('.jpg', set()),
    'icc_late.jpg': ('.jpg', set()),
    'icc_twice.jpg': ('.jpg', {'icc'}),
    'zeros.jpg': ('.jpg', set()),
    'adobe2.jpg': ('.jpg', set()),
}


@pytest.mark.parametrize('name', FIELD)
def test_field_file_comes_out_with_all_it_holds(shared, tmp_path, name):
    if not os.path.exists(f'{shared}/field_files/{name}'):
        pytest.skip('no ../shared/field_files')
    extension, kept = FIELD[name]
    picture = read_picture(f'{shared}/field_files/{name}')
    notes = write_picture(str(tmp_path / f'a{extension}'), picture, picture.photo.copy())
    again = read_picture(str(tmp_path / f'a{extension}'))
    assert set(again.header.metadata) == kept
    assert notes == ['its colour profile is damaged and left out'] * (
        name == 'icc_late.jpg'
    )  # the file lacks half of it
    assert np.abs(again.photo.astype(int) - picture.photo).mean() <= (2 if extension in ('.jpg', '.avif') else 0)
    assert (again.alpha is not None) == (name == 'trns_l.png')
    if name == 'mseg.jpg':
        assert read_directories(again.header.metadata['exif'])[0].gps
