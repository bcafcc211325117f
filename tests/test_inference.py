"""inference.py on real folders: formats kept whole, bad files named, nothing lost when a run is killed.

Results are read back by Pillow, which plays no part in writing them.
"""

import errno
import io
import os
import random
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms

import inference
from model import build_network
from photos import jpeg, metadata, picture
from photos.folder import RECORD
from photos.picture import read_photo, write_photo
from runs.checkpoint import save_checkpoint
from tests import two_ranks

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"/></x:xmpmeta>'
GAIN = 1 / 0.5001  # of the checkpoint below


@pytest.fixture
def checkpoint(tmp_path):
    """An untrained network whose illumination is 0.5 everywhere."""
    network = build_network('hdrnet')
    with torch.no_grad():
        network.predict.conv.weight.zero_()
        network.predict.conv.bias.zero_()
        network.predict.conv.bias.view(3, 4, -1)[:, 3] = 0.5
    path = str(tmp_path / 'half.pth')
    save_checkpoint(path, {'arch': 'hdrnet', 'model': network.state_dict(), 'opt': {}})
    return path


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'in').mkdir()
    return tmp_path / 'in'


def run(checkpoint, images, results, **values):
    options = {**vars(inference.opt), 'device': 'cpu', 'checkpoints_file': checkpoint, **values}
    return inference.main(type(inference.opt)(**{**options, 'images_dir': str(images), 'result_dir': str(results)}))


def scene(height=72, width=96):
    """A dark photo whose left half is red and whose top row is white, so that every turn of it shows."""
    photo = np.full((height, width, 3), (40, 60, 80), np.uint8)
    photo[:, : width // 2] = (100, 20, 30)
    photo[:4] = 120
    return photo


def exif(orientation=1):
    block = Image.Exif()
    block[274], block[271] = orientation, 'Maker'
    return block


def close(result, photo, tolerance):
    expected = np.minimum(photo * GAIN, np.iinfo(photo.dtype).max)
    assert np.abs(result.astype(float) - expected).mean() <= tolerance
    return True


# ------------------------------------------------------------------------------------------------------- formats

ALPHA = np.full((72, 96), 90, np.uint8)
ALPHA[:10] = 255
MODES = {
    'RGB': lambda: Image.fromarray(scene()),
    'L': lambda: Image.fromarray(scene()[..., 1]),
    'RGBA': lambda: Image.fromarray(np.dstack([scene(), ALPHA])),
    'LA': lambda: Image.fromarray(np.dstack([scene()[..., 1], ALPHA]), 'LA'),
    'CMYK': lambda: Image.fromarray(scene()).convert('CMYK'),
    'P': lambda: Image.fromarray(scene()).quantize(16),
}


@pytest.mark.parametrize(
    ('name', 'mode', 'mode_out', 'options'),
    [
        ('a.jpg', 'RGB', 'RGB', {'quality': 95}),
        ('a.JPEG', 'RGB', 'RGB', {'quality': 95, 'progressive': True}),
        ('a.jpg', 'L', 'L', {}),
        ('a.jpg', 'CMYK', 'RGB', {'quality': 100, 'subsampling': 0}),
        ('a.png', 'RGB', 'RGB', {}),
        ('a.png', 'L', 'L', {}),
        ('a.png', 'RGBA', 'RGBA', {}),
        ('a.png', 'LA', 'RGBA', {}),
        ('a.png', 'P', 'RGB', {}),
        ('a.tif', 'RGB', 'RGB', {'compression': 'tiff_lzw'}),
        ('a.tiff', 'RGBA', 'RGBA', {}),
        ('a.tif', 'L', 'L', {}),
        ('a.webp', 'RGB', 'RGB', {'lossless': True}),
        ('a.webp', 'RGBA', 'RGBA', {'lossless': True}),
        ('a.avif', 'RGB', 'RGB', {'quality': 95}),
        ('a.bmp', 'RGB', 'RGB', {}),
        ('a.ppm', 'RGB', 'RGB', {}),
        ('a.pgm', 'L', 'L', {}),
        ('a.jp2', 'RGB', 'RGB', {}),
    ],
)
def test_format_channels_and_alpha_are_kept(checkpoint, folder, tmp_path, name, mode, mode_out, options):
    image = MODES[mode]()
    image.save(folder / name, **options)
    assert run(checkpoint, folder, tmp_path / 'out') == 0
    result = Image.open(tmp_path / 'out' / name)
    assert (result.format, result.mode, result.size) == (Image.open(folder / name).format, mode_out, (96, 72))
    lossy = name.lower().endswith(('jpg', 'jpeg', 'avif')) or mode in ('P', 'CMYK')
    if mode in ('L', 'LA'):
        close(np.asarray(result.convert('RGB'))[..., 0], scene()[..., 1], 6 if lossy else 1)
    else:
        close(np.asarray(result.convert('RGB')), scene(), 6 if lossy else 1)
    if 'A' in mode:
        np.testing.assert_array_equal(np.asarray(result)[..., -1], ALPHA)


@pytest.mark.parametrize('name', ['a.png', 'a.tif', 'a.jp2', 'a.ppm', 'grey.png', 'grey.tif', 'grey.pgm', 'alpha.png'])
def test_sixteen_bit_comes_out_as_sixteen_bit(checkpoint, folder, tmp_path, name):
    photo = scene().astype(np.uint16) * 257 + 100
    pixels = photo[..., 1] if 'grey' in name else photo[..., ::-1]
    if name == 'alpha.png':
        pixels = np.dstack([pixels, ALPHA.astype(np.uint16) * 200])
    cv2.imwrite(str(folder / name), pixels)
    assert run(checkpoint, folder, tmp_path / 'out') == 0
    result = cv2.imread(str(tmp_path / 'out' / name), cv2.IMREAD_UNCHANGED)
    assert (result.dtype, result.shape) == (np.uint16, pixels.shape)
    colours = result[..., :3] if result.ndim == 3 else result
    close(colours, pixels[..., :3] if pixels.ndim == 3 else pixels, 200 if name.endswith('jp2') else 1)
    if name == 'alpha.png':
        np.testing.assert_array_equal(result[..., 3], pixels[..., 3])


@pytest.mark.parametrize('name', ['a.jpg', 'a.png', 'a.webp', 'a.avif', 'a.tif', 'alpha.tif'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation_is_applied_exactly_once(checkpoint, folder, tmp_path, name, orientation):
    if name.endswith('tif'):
        pixels = np.dstack([scene(), ALPHA]) if name == 'alpha.tif' else scene()
        samples = ['unassalpha'] if name == 'alpha.tif' else None
        tags = [(274, 'H', 1, orientation, True)]
        tifffile.imwrite(folder / name, pixels, photometric='rgb', extrasamples=samples, extratags=tags)
    else:
        options = {'subsampling': 0} if name == 'a.jpg' else {}
        Image.fromarray(scene()).save(folder / name, quality=95, exif=exif(orientation), **options)
    assert run(checkpoint, folder, tmp_path / 'out') == 0
    turn = {1: [], 2: [0], 3: [3], 4: [1], 5: [5], 6: [4], 7: [6], 8: [2]}[orientation]  # Pillow's transpose constants
    seen = Image.fromarray(scene())
    for constant in turn:
        seen = seen.transpose(Image.Transpose(constant))
    result = Image.open(tmp_path / 'out' / name)
    assert result.getexif().get(274, 1) == 1
    close(np.asarray(result)[..., :3], np.asarray(seen), 6)


@pytest.mark.parametrize(
    ('name', 'kept'),
    [
        ('a.jpg', {'exif', 'xmp', 'icc'}),
        ('a.png', {'exif', 'icc'}),
        ('a.webp', {'exif', 'xmp', 'icc'}),
        ('a.avif', {'exif', 'xmp', 'icc'}),
        ('a.tif', {'icc'}),
    ],
)
def test_metadata_arrives(checkpoint, folder, tmp_path, name, kept):
    options = {'xmp': XMP} if 'xmp' in kept else {}
    Image.fromarray(scene()).save(folder / name, exif=exif(6), icc_profile=ICC, **options)
    assert run(checkpoint, folder, tmp_path / 'out') == 0
    result = Image.open(tmp_path / 'out' / name)
    assert result.info['icc_profile'] == ICC
    if 'exif' in kept:
        assert result.getexif()[271] == 'Maker'
    if 'xmp' in kept:
        assert result.info['xmp'].rstrip(b'\0') == XMP


def test_tiff_keeps_profile_xmp_alpha_and_depth_together(checkpoint, folder, tmp_path):
    photo = np.dstack([scene().astype(np.uint16) * 257, ALPHA.astype(np.uint16) * 100])
    tags = [(700, 'B', len(XMP), XMP, True)]
    tifffile.imwrite(
        folder / 'a.tif', photo, photometric='rgb', extrasamples=['unassalpha'], iccprofile=ICC, extratags=tags
    )
    assert run(checkpoint, folder, tmp_path / 'out') == 0
    with tifffile.TiffFile(tmp_path / 'out' / 'a.tif') as file:
        page = file.pages[0]
        result = page.asarray()
        assert bytes(page.tags[34675].value) == ICC
        assert bytes(page.tags[700].value) == XMP
    np.testing.assert_array_equal(result[..., 3], photo[..., 3])
    close(result[..., :3], photo[..., :3], 1)


def test_metadata_of_every_length_that_a_jpeg_holds_arrives(checkpoint, folder, tmp_path, capsys):
    """A JPEG's segment holds 64 KB: EXIF goes on in the next ones, XMP needs one, a profile up to 255."""
    block = exif()
    block.get_ifd(0x8769)[37500] = bytes(70000)  # the maker's note
    profile = ICC + bytes(range(256)) * 700
    Image.fromarray(scene()).save(folder / 'a.png', exif=block, icc_profile=profile)
    Image.fromarray(scene()).save(folder / 'b.tif', icc_profile=ICC.ljust(255 * 65519))
    Image.fromarray(scene()).save(folder / 'c.tif', icc_profile=ICC.ljust(255 * 65519 + 1))
    assert run(checkpoint, folder, tmp_path / 'out', format='jpg') == 0
    results = [Image.open(tmp_path / 'out' / f'{name}.jpg').info for name in 'abc']
    assert results[0]['icc_profile'] == profile
    assert Image.open(tmp_path / 'out' / 'a.jpg').getexif().get_ifd(0x8769)[37500] == bytes(70000)
    assert len(results[1]['icc_profile']) == 255 * 65519
    assert 'icc_profile' not in results[2]
    notes = capsys.readouterr().err
    assert 'EXIF' not in notes
    assert 'the colour profile cannot be written to jpg' in notes


def test_what_a_format_cannot_keep_is_said_once(checkpoint, folder, tmp_path, capsys):
    for name in ('a.png', 'b.png'):
        MODES['RGBA']().save(folder / name, exif=exif(), icc_profile=ICC)
    assert run(checkpoint, folder, tmp_path / 'out', format='bmp') == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith('note: ')]
    assert len(notes) == 2
    assert any('bmp has no alpha' in note and 'and 1 more' in note for note in notes)
    assert any('EXIF and the colour profile cannot be written to bmp' in note for note in notes)


@pytest.mark.parametrize(('quality', 'subsampling'), [(60, 2), (98, 1), (100, 0)])
def test_jpeg_is_never_written_worse_than_it_was(checkpoint, folder, tmp_path, quality, subsampling):
    Image.fromarray(scene()).save(folder / 'a.jpg', quality=quality, subsampling=subsampling)
    assert jpeg.read_header((folder / 'a.jpg').read_bytes()).quality == quality
    assert run(checkpoint, folder, tmp_path / 'out') == 0
    header = jpeg.read_header((tmp_path / 'out' / 'a.jpg').read_bytes())
    assert header.quality == max(quality, 95)
    assert header.sampling == list(jpeg.SAMPLING.values())[subsampling]
    run(checkpoint, folder, tmp_path / 'full', jpeg_444=True)
    assert jpeg.read_header((tmp_path / 'full' / 'a.jpg').read_bytes()).sampling == jpeg.SAMPLING[1, 1]


def test_thumbnail_of_the_dark_original_is_left_out():
    block = exif(6)
    block.get_ifd(0x8769)[0x9003] = '2020:01:01 00:00:00'
    data = bytearray(block.tobytes().removeprefix(b'Exif\0\0'))
    clean = metadata.upright_exif(data)
    again = Image.Exif()
    again.load(clean)
    assert (again[274], again[271]) == (1, 'Maker')
    assert again.get_ifd(0x8769)[0x9003] == '2020:01:01 00:00:00'
    for bad in (b'', b'II*\0', b'MM\0*\xff\xff\xff\xff', b'II*\0\x08\0\0\0\xff\xff'):
        assert metadata.upright_exif(bad) == b''


def test_camera_raw_is_developed_or_says_what_to_install(checkpoint, folder, tmp_path, capsys, monkeypatch):
    (folder / 'a.NEF').write_bytes(b'raw')
    monkeypatch.setitem(sys.modules, 'rawpy', None)
    assert run(checkpoint, folder, tmp_path / 'out') == 1
    assert 'pip install rawpy' in capsys.readouterr().err
    fake = type(sys)('rawpy')

    class Raw:
        sizes = type('Sizes', (), {'width': 96, 'height': 72})

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def postprocess(self, **options):
            return scene().astype(np.uint16) * (257 if options['output_bps'] == 16 else 1)

    fake.imread, fake.LibRawError = lambda file: Raw(), RuntimeError
    monkeypatch.setitem(sys.modules, 'rawpy', fake)
    assert run(checkpoint, folder, tmp_path / 'out') == 0
    result = cv2.imread(str(tmp_path / 'out' / 'a.tif'), cv2.IMREAD_UNCHANGED)
    assert result.dtype == np.uint16
    close(result[..., ::-1], scene().astype(np.uint16) * 257, 1)
    assert run(checkpoint, folder, tmp_path / 'jpgs', format='jpg') == 0
    assert tree(tmp_path / 'jpgs') == ['a.jpg']


# ------------------------------------------------------------------------------------------------------- folders


def write(path, value=60):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_photo(str(path), np.full((9, 12, 3), value, np.uint8))


def tree(folder):
    names = (os.path.relpath(os.path.join(at, name), folder) for at, _, names in os.walk(folder) for name in names)
    return sorted(name for name in names if os.path.basename(name) != RECORD)


def test_folders_are_mirrored_on_request(checkpoint, folder, tmp_path, capsys):
    for name in ('a.png', 'sub/b.png', 'sub/deep/c.jpg', '.hidden/d.png', 'sub/.e.png', 'Ünïcode 名/f.PNG'):
        write(folder / name)
    (folder / 'sub' / 'notes.txt').write_text('no photo')
    assert run(checkpoint, folder, tmp_path / 'flat') == 0
    assert tree(tmp_path / 'flat') == ['a.png']
    assert run(checkpoint, folder, tmp_path / 'all', recursive=True) == 0
    assert tree(tmp_path / 'all') == sorted(['a.png', 'sub/b.png', 'sub/deep/c.jpg', 'Ünïcode 名/f.PNG'])
    assert '2 other files left out' in capsys.readouterr().out


@pytest.mark.parametrize(('pattern', 'expected'), [('*.png', ['a.png']), ('**/*.jpg', ['sub/b.jpg', 'sub/deep/c.jpg'])])
def test_patterns_and_single_files(checkpoint, folder, tmp_path, pattern, expected):
    for name in ('a.png', 'sub/b.jpg', 'sub/deep/c.jpg'):
        write(folder / name)
    assert run(checkpoint, folder / pattern, tmp_path / 'out') == 0
    assert tree(tmp_path / 'out') == expected
    assert run(checkpoint, folder / 'sub' / 'b.jpg', tmp_path / 'one') == 0
    assert tree(tmp_path / 'one') == ['b.jpg']


def test_file_names_that_opencv_does_not_open(checkpoint, folder, tmp_path):
    """Some systems hold names that are not UTF-8, and what comes out is the same photo."""
    write(folder / 'plain.jpg')
    for name in ('föhn 夜.jpg', os.fsdecode(b'caf\xe9.jpg')):
        os.link(folder / 'plain.jpg', folder / name)
    assert run(checkpoint, folder, tmp_path / 'out') == 0
    results = [(tmp_path / 'out' / name).read_bytes() for name in tree(tmp_path / 'out')]
    assert len(results) == 3
    assert len(set(results)) == 1


def test_photos_that_would_share_a_name_both_survive(checkpoint, folder, tmp_path):
    for name, value in (('a.jpg', 30), ('a.png', 60), ('a.webp', 90), ('b.jpeg', 30), ('a_png.jpg', 20)):
        write(folder / name, value)
    assert run(checkpoint, folder, tmp_path / 'out', format='jpg') == 0
    assert len(tree(tmp_path / 'out')) == 5
    means = sorted(read_photo(str(tmp_path / 'out' / name)).mean() for name in tree(tmp_path / 'out'))
    np.testing.assert_allclose(means, np.array([20, 30, 30, 60, 90]) * GAIN, atol=2)


def test_results_never_become_inputs_nor_replace_originals(checkpoint, folder, tmp_path, capsys):
    write(folder / 'a.png')
    assert run(checkpoint, folder, folder / 'out', recursive=True) == 0
    assert run(checkpoint, folder, folder / 'out', recursive=True, overwrite=True) == 0
    assert tree(folder) == ['a.png', 'out/a.png']
    assert read_photo(str(folder / 'out' / 'a.png')).max() == 120
    with pytest.raises(ValueError, match='expected another folder'):
        run(checkpoint, folder, folder)
    with pytest.raises(ValueError, match='expected another folder'):
        run(checkpoint, folder / 'a.png', folder)
    # result_dir above the photos: the mirrored path of in/in/a.png is the original in/a.png
    write(folder / 'in' / 'a.png', 10)
    before = (folder / 'a.png').read_bytes()
    assert run(checkpoint, folder, tmp_path, recursive=True, overwrite=True) == 1
    assert 'would replace another file' in capsys.readouterr().err
    assert (folder / 'a.png').read_bytes() == before


def test_a_photo_that_was_replaced_is_made_again(checkpoint, folder, tmp_path, capsys):
    write(folder / 'a.png')
    assert run(checkpoint, folder, tmp_path / 'out') == 0
    assert run(checkpoint, folder, tmp_path / 'out') == 0
    assert '1 there already' in capsys.readouterr().out
    cv2.imwrite(str(folder / 'a.png'), np.full((20, 30, 3), 10, np.uint8))
    assert run(checkpoint, folder, tmp_path / 'out') == 0
    assert 'options or photos are made again: 1' in capsys.readouterr().err
    assert read_photo(str(tmp_path / 'out' / 'a.png')).shape == (20, 30, 3)


def test_results_stay_unless_overwritten(checkpoint, folder, tmp_path, capsys):
    write(folder / 'a.png')
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'a.png').write_bytes(b'mine')
    assert run(checkpoint, folder, tmp_path / 'out') == 0
    assert (tmp_path / 'out' / 'a.png').read_bytes() == b'mine'
    assert '1 there already' in capsys.readouterr().out
    assert run(checkpoint, folder, tmp_path / 'out', overwrite=True, strength=0.0) == 0
    assert read_photo(str(tmp_path / 'out' / 'a.png'))[0, 0].tolist() == [60, 60, 60]


def test_noise_goes_where_it_shows_unless_told_otherwise(checkpoint, folder, tmp_path):
    photo = np.random.default_rng(0).normal(60, 4, (40, 40, 3)).round().astype(np.uint8)
    quiet = np.random.default_rng(0).normal(60, 1, (40, 40, 3)).round().astype(np.uint8)
    write_photo(str(folder / 'noisy.png'), photo)
    write_photo(str(folder / 'quiet.png'), quiet)
    spreads = []
    for name, options in (('plain', {'denoise': 0.0}), ('default', {}), ('clean', {'denoise': 2.0})):
        assert run(checkpoint, folder, tmp_path / name, **options) == 0
        spreads.append([read_photo(str(tmp_path / name / f'{file}.png')).std() for file in ('noisy', 'quiet')])
    plain, default, clean = spreads
    assert plain[0] == pytest.approx(photo.std() * GAIN, rel=0.01)
    assert clean[0] < default[0] < 0.7 * plain[0]
    assert clean[1] < default[1] == plain[1]


def test_a_photo_without_noise_is_named_where_denoising_was_asked_for(checkpoint, folder, tmp_path, capsys):
    write(folder / 'flat.png', 60)
    run(checkpoint, folder, tmp_path / 'default')
    assert 'denoise' not in capsys.readouterr().err
    run(checkpoint, folder, tmp_path / 'asked', denoise=1.0)
    said = '--denoise took nothing out: it was not brightened, or its compression left no noise'
    assert f'{said} ({folder}' in capsys.readouterr().err


def test_extras(checkpoint, folder, tmp_path):
    for i in range(3):
        write(folder / 'sub' / f'{i}.png', 40 + i)
    assert run(checkpoint, folder, tmp_path / 'out', recursive=True, save_illumination=True, contact_sheet=True) == 0
    illumination = read_photo(str(tmp_path / 'out' / 'illumination' / 'sub' / '1_png.png'))
    assert (illumination == 128).all()
    sheet = read_photo(str(tmp_path / 'out' / 'contact_sheet.jpg'))
    assert sheet.shape[1] == 4 * 240 + 8
    assert abs(int(sheet[60, 100, 0]) - 40) <= 2
    assert abs(int(sheet[60, 300, 0]) - 80) <= 2
    assert run(checkpoint, folder, tmp_path / 'side', recursive=True, save_extra=True) == 0
    extra = read_photo(str(tmp_path / 'side' / 'extra' / 'sub' / '0_png.png'))
    assert extra[0, ::12, 0].tolist() == [40, 80, 128]
    assert (read_photo(str(tmp_path / 'side' / 'sub' / '0.png')) == 80).all()


# ----------------------------------------------------------------------------------------------------- bad input


def bomb(width, height):
    """A valid PNG header of that size and no pixels."""
    import struct
    import zlib

    def chunk(name, body):
        return struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))

    head = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(b'0')) + chunk(b'IEND', b'')


def test_every_bad_file_is_named_with_its_reason_and_the_rest_goes_on(checkpoint, folder, tmp_path, capsys):
    write(folder / 'good.png')
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)).save(whole, 'JPEG')
    whole = whole.getvalue()
    frames = [Image.fromarray(np.full((8, 8, 3), 60 * i, np.uint8)) for i in (1, 2)]
    frames[0].save(folder / 'moving.webp', save_all=True, append_images=frames[1:])
    frames[0].save(folder / 'pages.tif', save_all=True, append_images=frames[1:])
    cv2.imwrite(str(folder / 'float.tif'), np.ones((8, 8, 3), np.float32))
    bad = {
        'empty.png': b'',
        'noise.jpg': b'\xff\xd8\xff no photo',
        'half.jpg': whole[: len(whole) // 2],
        'nearly.jpg': whole[:-2],
        'bomb.png': bomb(60000, 60000),
        'text.tif': b'hello',
        'light.exr': b'v/1\x01',
    }
    for name, data in bad.items():
        (folder / name).write_bytes(data)
    (folder / 'folder.jpg').mkdir()
    os.symlink(folder / 'nowhere.png', folder / 'gone.png')
    Image.fromarray(scene()).save(folder / 'png_inside.jpg', format='PNG')
    assert run(checkpoint, folder, tmp_path / 'out') == 1
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith('failed: ')]
    reasons = {
        **dict.fromkeys(('noise.jpg', 'text.tif'), 'expected a photo'),
        **dict.fromkeys(('half.jpg', 'nearly.jpg'), 'truncated'),
        **dict.fromkeys(('moving.webp', 'pages.tif'), '2 frames or pages'),
        'empty.png': 'an empty file',
        'float.tif': 'expected 8 or 16 bit, got float32',
        'light.exr': 'floating-point',
        'bomb.png': 'expected up to 300 megapixels (max_megapixels), got 60000 x 60000',
        'folder.jpg': 'Is a directory',
        'gone.png': 'No such file',
    }
    assert len(lines) == len(reasons)
    for name, reason in reasons.items():
        assert sum(name in line and reason in line for line in lines) == 1, (name, lines)
    assert '2 enhanced' in printed.out
    assert '12 failed' in printed.out
    assert tree(tmp_path / 'out') == ['good.png', 'png_inside.jpg']


@pytest.mark.parametrize('size', [(1, 1), (1, 5000), (5000, 1), (7, 65500)])
def test_odd_sizes(checkpoint, folder, tmp_path, size):
    photo = np.full((*size, 3), 50, np.uint8)
    for name in ('a.png', 'a.jpg'):
        write_photo(str(folder / name), photo)
    assert run(checkpoint, folder, tmp_path / 'out') == 0
    assert (read_photo(str(tmp_path / 'out' / 'a.png')) == 100).all()
    assert read_photo(str(tmp_path / 'out' / 'a.jpg')).shape == photo.shape


def test_unwritable_folder_and_vanished_photo_are_named(checkpoint, folder, tmp_path, capsys, monkeypatch):
    for name in ('a.png', 'b.png'):
        write(folder / name)
    real = inference.plan_jobs

    def vanish(*args):
        os.remove(folder / 'b.png')
        return real(*args)

    monkeypatch.setattr(inference, 'plan_jobs', vanish)
    assert run(checkpoint, folder, tmp_path / 'out') == 1
    assert 'b.png: No such file' in capsys.readouterr().err
    write(folder / 'b.png')
    monkeypatch.setattr(inference, 'plan_jobs', real)
    (tmp_path / 'file').write_text('in the way')
    with pytest.raises(OSError, match='file'):
        run(checkpoint, folder, tmp_path / 'file')


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'format': 'docx'}, 'format: expected one of jpg'),
        ({'format': 'exr'}, 'format: expected one of jpg'),
        ({'strength': -0.1}, 'strength: expected 0 to 1.5'),
        ({'denoise': -2.0}, 'denoise: expected -1 or at least 0'),
        ({'max_megapixels': 0.0}, 'max_megapixels: expected 0.01 or more'),
    ],
)
def test_bad_options_are_refused(checkpoint, folder, tmp_path, values, message):
    write(folder / 'a.png')
    with pytest.raises(ValueError, match=message):
        run(checkpoint, folder, tmp_path / 'out', **values)


FUZZ = """
import sys
import numpy as np
from photos.picture import read_photo, read_picture, write_photo, write_picture
rng, folder = np.random.default_rng(int(sys.argv[1])), sys.argv[2]
read = 0
for name in sys.argv[3:]:
    data = np.fromfile(name, np.uint8)
    for i in range(500):
        mutant = data.copy()
        for _ in range(rng.integers(1, 6)):
            at = rng.integers(len(mutant))
            kind = rng.integers(4)
            if kind == 0:
                mutant[at] = rng.integers(256)
            elif kind == 1:
                mutant = mutant[: max(at, 1)]
            elif kind == 2:
                more = rng.integers(0, 256, rng.integers(1, 20)).astype(np.uint8)
                mutant = np.concatenate([mutant[:at], more, mutant[at:]])
            else:
                mutant[at : at + rng.integers(1, 64)] = rng.integers(256)
        path = f'{folder}/mutant{name[name.rindex("."):]}'
        mutant.tofile(path)
        try:
            picture = read_picture(path, 1)
            write_picture(f'{folder}/result{name[name.rindex("."):]}', picture, picture.photo)
            read += 1
        except (ValueError, OSError) as error:
            assert name[name.rindex('.'):] in str(error), error
print(read)
"""


def test_thousands_of_mutated_files_crash_nothing(folder, tmp_path):
    names = ['a.jpg', 'b.png', 'c.tif', 'd.webp', 'e.jpg', 'f.png']
    for name in names[:4]:
        Image.fromarray(scene()).save(folder / name, exif=exif(6), icc_profile=ICC)
    Image.fromarray(scene()).save(folder / 'e.jpg', progressive=True)
    cv2.imwrite(str(folder / 'f.png'), np.dstack([scene(), ALPHA]).astype(np.uint16) * 257)
    done = subprocess.run(
        [sys.executable, '-c', FUZZ, '1', str(tmp_path), *(str(folder / name) for name in names)],
        capture_output=True, text=True, cwd=ROOT, timeout=200, check=False, errors='replace',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0 < int(done.stdout.splitlines()[-1]) < 3000
    assert not [name for name in os.listdir(tmp_path) if name.endswith('.part')]


# --------------------------------------------------------------------------------- stopped runs, several processes


def command(checkpoint, folder, results, launcher=(sys.executable,), *options):
    return [*launcher, os.path.join(ROOT, 'inference.py'), '--images_dir', str(folder), '--result_dir', str(results),
            '--checkpoints_file', checkpoint, '--device', 'cpu', *options]  # fmt: skip


def test_runs_killed_at_random_moments_lose_nothing(checkpoint, folder, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(30):
        cv2.imwrite(str(folder / f'{i:02}.png'), rng.integers(0, 99, (700, 900, 3), dtype=np.uint8))
    before = {name: (folder / name).read_bytes() for name in tree(folder)}
    dice, partly = random.Random(0), 0
    for _ in range(5):
        process = subprocess.Popen(command(checkpoint, folder, tmp_path / 'out'), stdout=subprocess.DEVNULL)
        count = len(tree(tmp_path / 'out'))
        while process.poll() is None and len(tree(tmp_path / 'out')) == count:
            time.sleep(0.005)
        time.sleep(dice.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.wait()
        whole = [name for name in tree(tmp_path / 'out') if name.endswith('.png')]
        partly += 0 < len(whole) < 30
        for name in whole:
            assert read_photo(str(tmp_path / 'out' / name)).shape == (700, 900, 3)
    assert partly > 0
    assert subprocess.run(command(checkpoint, folder, tmp_path / 'out'), check=False).returncode == 0
    assert tree(tmp_path / 'out') == sorted(before)  # nothing half-written is left either
    assert {name: (folder / name).read_bytes() for name in tree(folder)} == before


def test_full_disk_leaves_whole_files_only(checkpoint, folder, tmp_path):
    rng = np.random.default_rng(0)
    write(folder / 'small.png')
    cv2.imwrite(str(folder / 'large.png'), rng.integers(0, 99, (400, 500, 3), dtype=np.uint8))
    code = (
        'import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); '
        'resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); sys.argv = sys.argv[1:]; '
        'sys.path.insert(0, sys.argv[0].rsplit("/", 1)[0]); runpy.run_path(sys.argv[0], run_name="__main__")'
    )
    launched = command(checkpoint, folder, tmp_path / 'out', (sys.executable, '-c', code))
    done = subprocess.run(
        launched,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if line.startswith('failed: ') and 'large.png' in line]
    assert tree(tmp_path / 'out') == ['small.png']


def test_full_disk_is_said_and_stops_the_run(checkpoint, folder, tmp_path, monkeypatch):
    for i in range(9):
        write(folder / f'{i}.png')
    tried = []

    def write_nothing(path, *args):
        tried.append(path)
        raise OSError(errno.ENOSPC, 'No space left on device', path)

    monkeypatch.setattr('photos.picture.write_picture', write_nothing)
    monkeypatch.setattr(inference, 'cores', lambda: 1)
    with pytest.raises(OSError, match='No space left on device'):
        run(checkpoint, folder, tmp_path / 'out')
    assert tried == [f'{tmp_path}/out/0.png']


def test_names_are_printed_so_that_a_terminal_shows_them(checkpoint, folder, tmp_path, capsys):
    names = ['new\nline  .jpg', 'esc\x1b[31mred.jpg', os.fsdecode(b'caf\xe9.jpg'), 'föhn.jpg']
    for name in names:
        (folder / name).write_bytes(b'')
    assert run(checkpoint, folder, tmp_path / 'out') == 1
    lines = capsys.readouterr().err.splitlines()
    shown = [r'new\nline  .jpg', r'esc\x1b[31mred.jpg', r'caf\udce9.jpg', 'föhn.jpg']
    assert sorted(lines) == sorted(f'failed: {folder}/{name}: expected a photo, got an empty file' for name in shown)


def test_defect_that_one_photo_shows_does_not_end_the_run(checkpoint, folder, tmp_path, capsys, monkeypatch):
    for name in ('a.png', 'b.png'):
        write(folder / name)
    real = picture.read_picture

    def read(path, *args):
        return {}['no such key'] if path.endswith('a.png') else real(path, *args)

    monkeypatch.setattr(picture, 'read_picture', read)
    assert run(checkpoint, folder, tmp_path / 'out') == 1
    printed = capsys.readouterr()
    assert "a.png: defect: KeyError: 'no such key' (test_inference.py, line " in printed.err
    assert '1 enhanced' in printed.out


def test_ranks_share_what_is_left_and_a_bad_photo_of_one_ends_no_other(checkpoint, folder, tmp_path):
    for i in range(6):
        write(folder / f'{i}.png', 10 * i + 10)
    (folder / '0.jpg').write_bytes(b'no photo')  # the first rank's first
    write(tmp_path / 'out' / '3.png')
    done = subprocess.run(
        command(checkpoint, folder, tmp_path / 'out', two_ranks(), '--contact_sheet'),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert [line for line in done.stdout.splitlines() if 'enhanced' in line] == [
        f'5 enhanced into {tmp_path}/out, 1 there already (--overwrite redoes them), 1 failed, 0 other files left out'
    ]
    assert len(tree(tmp_path / 'out')) == 7
    sheet = read_photo(str(tmp_path / 'out' / 'contact_sheet.jpg'))
    assert len(sheet) == 3 * (20 + 180)  # six pairs of 4:3


def test_nothing_heavy_is_imported_before_photos_are_found_nor_unused_after():
    """--help is answered at once, and the light install of pyproject.toml is enough."""
    code = (
        'import sys; sys.modules.update(dict.fromkeys(("skimage", "scipy", "matplotlib"))); import inference; '
        'print({"torch", "cv2", "numpy", "numba", "PIL"} & set(sys.modules)); '
        'import kernels.cpu, kernels.cpu_denoise, photos.contact_sheet, photos.lowres, runs.checkpoint'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.stdout, done.returncode) == ('set()\n', 0), done.stderr
