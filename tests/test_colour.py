"""Colour profiles: what the network sees, and what comes back."""

import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from photos import colour
from photos.picture import read_photo, read_picture, write_picture
from tests.files import SRGB, chunk, close, exif, make_jpeg, returned, scene

SPACES = {
    'P3': colour.make_profile('Display P3', colour.PRIMARIES[12]),
    'Adobe RGB': colour.make_profile('Adobe RGB', colour.PRIMARIES['Adobe RGB'], 563 / 256),
    'ProPhoto': colour.make_profile('P', ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001), (0.3457, 0.3585)), 1.8),
    'linear Rec. 2020': colour.make_profile('R', colour.PRIMARIES[9], 1.0),
}


def save_png(path, photo, profile):
    path.write_bytes(cv2.imencode('.png', photo[..., ::-1])[1].tobytes())
    picture = read_picture(str(path))
    picture.header.metadata['icc'] = profile
    write_picture(str(path), picture, photo)


@pytest.mark.parametrize('name', SPACES)
def test_network_sees_srgb_and_the_file_keeps_its_levels(tmp_path, name):
    own = np.random.default_rng(0).integers(8, 200, (32, 32, 3), dtype=np.uint8)
    save_png(tmp_path / 'a.png', own, SPACES[name])
    picture = read_picture(str(tmp_path / 'a.png'))
    profile = ImageCms.ImageCmsProfile(io.BytesIO(SPACES[name]))
    seen = ImageCms.profileToProfile(Image.fromarray(own), profile, ImageCms.createProfile('sRGB'), renderingIntent=1)
    assert picture.photo.dtype == np.uint16
    close((picture.photo / 257).round(), np.asarray(seen).astype(int), 2)  # littlecms' own way has 8 bit
    write_picture(str(tmp_path / 'b.png'), picture, picture.photo.copy())
    with Image.open(tmp_path / 'b.png') as result:
        assert np.array_equal(np.asarray(result), own)
        assert result.info['icc_profile'] == SPACES[name]


@pytest.mark.parametrize('deep', [False, True])
def test_wide_gamut_result_is_srgbs_inside_and_brighter_outside(deep):
    space = colour.read_space(SPACES['ProPhoto'])
    inside = np.random.default_rng(0).integers(20000, 30000, (16, 16, 3)).astype(np.uint16)
    outside = np.array([[[20000, 2000, 2000], [2000, 20000, 2000]]], np.uint16)
    for own, levels in ((inside, 40), (outside, None)):
        own = own if deep else (own // 257).astype(np.uint8)
        seen = space.as_srgb(own)
        brighter = np.minimum(colour.encode_srgb(colour.decode_srgb(seen / 65535) * 2) * 65535, 65535).round()
        result = space.from_srgb(brighter.astype(np.uint16), own.copy())
        again = space.as_srgb(result)
        top = np.iinfo(own.dtype).max
        if levels is not None:
            close(again, brighter.astype(int), levels if deep else 600)
        else:  # twice the linear light, in all three channels of its own
            ratio = (result / top) ** 1.8 / (own / top) ** 1.8
            np.testing.assert_allclose(ratio[own > top // 8], 2, rtol=0.1)
            assert (result[own < top // 8] < 0.25 * top).all()


def test_photo_in_srgb_takes_the_plain_path(tmp_path):
    for profile in (SRGB, colour.make_profile('sRGB', colour.PRIMARIES['sRGB'])):
        save_png(tmp_path / 'a.png', scene(), profile)
        picture = read_picture(str(tmp_path / 'a.png'))
        assert picture.space is None
        assert picture.photo.dtype == np.uint8


def test_format_without_profiles_gets_srgb_and_says_so(tmp_path):
    save_png(tmp_path / 'a.png', scene(), SPACES['P3'])
    picture = read_picture(str(tmp_path / 'a.png'))
    notes = write_picture(str(tmp_path / 'a.bmp'), picture, picture.photo.copy())
    assert notes == ['the colour profile cannot be written to bmp: the result is sRGB']
    close(read_photo(str(tmp_path / 'a.bmp')), (picture.photo / 257).round(), 1)


def test_cicp_is_wide_gamut_and_hdr_is_refused(tmp_path):
    data = cv2.imencode('.png', scene()[..., ::-1])[1].tobytes()
    picture, again, _ = returned(tmp_path, 'p3.png', data[:33] + chunk(b'cICP', bytes([12, 13, 0, 1])) + data[33:])
    assert picture.space is not None
    assert np.array_equal(again.own, scene())
    (tmp_path / 'pq.png').write_bytes(data[:33] + chunk(b'cICP', bytes([9, 16, 0, 1])) + data[33:])
    with pytest.raises(ValueError, match=r'HDR \(PQ\)'):
        read_picture(str(tmp_path / 'pq.png'))


def test_adobe_rgb_without_a_profile_is_known_by_its_exif(tmp_path):
    block = exif()
    block.get_ifd(0x8769)[0xA005] = {1: 'R03'}
    picture, again, _ = returned(tmp_path, 'a.jpg', make_jpeg(exif=block))
    assert picture.space is not None
    assert again.header.metadata['icc']


def cmyk_profile():
    """A printer's profile whose one table says that all ink is black, cyan alone is L 60, no ink is white."""
    grid = np.zeros((2, 2, 2, 2, 3), np.uint8)
    grid[..., 1:] = 128
    for ink in np.ndindex(2, 2, 2, 2):
        grid[(*ink, 0)] = max(0, 255 - 102 * sum(ink[:3]) - 255 * ink[3])
    ramp = bytes(range(256))
    body = b'mft1\0\0\0\0' + bytes([4, 3, 2, 0]) + struct.pack('>9i', *[65536 if i % 4 == 0 else 0 for i in range(9)])
    body += ramp * 4 + grid.tobytes() + ramp * 3
    tags = {b'A2B0': body, b'desc': b'desc\0\0\0\0' + struct.pack('>I', 2) + b'x\0' + bytes(78),
            b'cprt': b'text\0\0\0\0x\0',
            b'wtpt': b'XYZ \0\0\0\0' + struct.pack('>3i', 63190, 65536, 54061)}  # fmt: skip
    table, data, at = b'', b'', 132 + 12 * len(tags)
    for name, value in tags.items():
        value += b'\0' * (-len(value) % 4)
        table, data = table + struct.pack('>4sII', name, at + len(data), len(value)), data + value
    head = struct.pack('>I4sI4s4s4s', at + len(data), b'', 0x02400000, b'prtr', b'CMYK', b'Lab ')
    head += struct.pack('>6H', 2024, 1, 1, 0, 0, 0) + b'acsp' + bytes(28) + struct.pack('>3i', 63190, 65536, 54061)
    return head.ljust(128, b'\0') + struct.pack('>I', len(tags)) + table + data


@pytest.mark.parametrize('name', ['a.jpg', 'a.tif'])
def test_cmyk_goes_through_its_profile(tmp_path, name):
    inks = np.zeros((16, 16, 4), np.uint8)
    inks[:, 8:, 0] = 255  # cyan, which this profile says is grey of L 60
    image = Image.frombytes('CMYK', (16, 16), inks.tobytes())
    image.save(tmp_path / name, icc_profile=cmyk_profile(), **({'quality': 100} if name == 'a.jpg' else {}))
    picture = read_picture(str(tmp_path / name))
    close(picture.photo[8, [2, 13]], np.array([[255] * 3, [145] * 3]), 4)
    assert 'icc' not in picture.header.metadata
    assert picture.header.notes == ['CMYK is written as sRGB, by its colour profile']
