"""Files as phones, cameras, scanners and agencies write them: read for what they are, nothing lost in silence.

The files are made here, or by ../shared/odd_files/make.py where that is at hand.
"""

import io
import os
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, PngImagePlugin

from photos import colour, formats, jpeg, metadata, tiff
from photos.picture import read_photo, read_picture, write_picture, written_extension
from photos.tags import read_directories

PACKET = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" %s</rdf:RDF></x:xmpmeta>'
)
TURN = 'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6" tiff:Make="Maker"/>'
MOTION = 'xmlns:GCamera="http://ns.google.com/photos/1.0/camera/" GCamera:MotionPhoto="1" GCamera:Other="x"/>'
GAIN_MAP = (
    'xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" hdrgm:Version="1.0" '
    'xmlns:C="http://ns.google.com/photos/1.0/container/" xmlns:Item="http://ns.google.com/photos/1.0/container/item/">'
    '<C:Directory><rdf:Seq><rdf:li><C:Item Item:Semantic="GainMap"/></rdf:li></rdf:Seq></C:Directory></rdf:Description>'
)
EXTENDED = 'xmlns:xmpNote="http://ns.adobe.com/xmp/note/" xmpNote:HasExtendedXMP="0123"/>'
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()


def scene(height=48, width=64):
    """A dark photo without noise, of which no turn is another."""
    photo = np.full((height, width, 3), (40, 60, 80), np.uint8)
    photo[:, : width // 2] = (100, 20, 30)
    photo[: height // 4] = (70, 90, 60)
    return photo


DEEP = scene().astype(np.uint16) * 257 + 13
UPRIGHT = np.rot90(scene(), -1)  # of orientation 6


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


def mpf(primary, other, kind):
    """A JPEG with an MPF directory and another JPEG behind it."""

    def directory(size, place):
        entries = struct.pack('<IIIHH', 0x20030000, 0, 0, 0, 0) + struct.pack('<IIIHH', kind, size, place, 0, 0)
        head = b'II*\0' + struct.pack('<IH', 8, 3) + struct.pack('<HHI', 0xB000, 7, 4) + b'0100'
        head += struct.pack('<HHII', 0xB001, 4, 1, 2) + struct.pack('<HHII', 0xB002, 7, 32, 50) + bytes(4)
        return segment(0xE2, b'MPF\0' + head + entries)

    empty = insert(primary, directory(0, 0))
    return insert(primary, directory(len(other), len(empty) - empty.index(b'MPF\0') - 4)) + other


def returned(tmp_path, name, data):
    """(Picture of a file, Picture of what is written for its own pixels, the notes)."""
    path = tmp_path / name
    path.write_bytes(data)
    picture = read_picture(str(path))
    result = tmp_path / 'out' / (path.stem + written_extension(path.suffix))
    result.parent.mkdir(exist_ok=True)
    notes = write_picture(str(result), picture, picture.photo.copy())
    return picture, read_picture(str(result)), notes


def close(photo, expected, levels=3):
    assert photo.shape == expected.shape
    assert np.abs(photo.astype(int) - expected).max() <= levels
    return True


# --------------------------------------------------------------------------------------------------- JPEG of phones


@pytest.mark.parametrize(
    ('kind', 'more', 'what'),
    [
        (0x00010001, b'', 'preview'),
        (0x00020002, b'', 'other view'),
        (0, segment(0xE2, b'urn:iso:std:iso:ts:21496-1\0\0\0\0\0'), 'gain map'),
        (0, b'', 'second picture'),
    ],
)
def test_first_picture_of_mpf_is_the_photo_and_the_others_are_named(tmp_path, kind, more, what):
    small = make_jpeg(scene(12, 16))
    picture, again, notes = returned(tmp_path, 'a.jpg', mpf(insert(make_jpeg(exif=exif()), more), small, kind))
    close(picture.photo, scene())
    assert notes == [f'its {what} is left out']
    assert again.header.metadata['exif']
    assert again.notes == ()


def test_motion_photo_is_read_whatever_its_video_holds(tmp_path):
    video = b'\0\0\0\x18ftypmp42\0\0\0\0' + b'\xff\xda\0\x0c\xff\xd9' * 9 + b'\xff\xda\0\x55'
    picture, again, notes = returned(tmp_path, 'a.jpg', insert(make_jpeg(), xmp(MOTION)) + video)
    close(picture.photo, scene())
    assert notes == ['its motion video is left out']
    kept = again.header.metadata['xmp']
    assert b'MotionPhoto' not in kept
    assert b'GCamera:Other="x"' in kept


def test_xmp_no_longer_points_to_what_is_left_out(tmp_path):
    part = segment(0xE1, jpeg.EXTENDED + b'0123' * 8 + struct.pack('>II', 4, 0) + b'<x/>')
    data = mpf(insert(make_jpeg(), xmp(GAIN_MAP), part), make_jpeg(scene(12, 16)), 0)
    _, again, notes = returned(tmp_path, 'a.jpg', data)
    assert 'its extended XMP is left out' in notes
    assert not any(word in again.header.metadata['xmp'] for word in (b'hdrgm', b'Directory', b'GainMap', b'container'))
    assert b'HasExtendedXMP' not in metadata.upright_xmp((PACKET % EXTENDED).encode())


def test_damaged_scan_is_refused_even_where_the_file_ends_as_it_should(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (160, 160, 3), dtype=np.uint8)
    whole = make_jpeg(noise)
    middle = bytearray(whole)
    middle[len(whole) // 2 : len(whole) // 2 + 900] = b'\x55' * 900
    for name, data in (('half.jpg', whole[: len(whole) // 2] + whole[-2:]), ('middle.jpg', bytes(middle))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=rf'{name}: expected an undamaged photo, libjpeg says: \w'):
            read_picture(str(tmp_path / name))


def test_what_libjpeg_warns_of_without_harm_is_read(tmp_path):
    """A scan header of a progressive file, and stray bytes before the end, as some phones write."""
    data = make_jpeg()
    at = data.index(b'\xff\xda')
    end = at + 2 + struct.unpack_from('>H', data, at + 2)[0]
    for name, odd in (
        ('scan.jpg', data[: end - 3] + b'\0\0\0' + data[end:]),
        ('stray.jpg', data[:-2] + b'\0' + data[-2:]),
    ):
        (tmp_path / name).write_bytes(odd)
        close(read_photo(str(tmp_path / name)), scene())


@pytest.mark.parametrize(
    ('name', 'data', 'reason'),
    [
        (
            'deep.jpg',
            make_jpeg().replace(b'\xff\xc0\0\x11\x08', b'\xff\xc0\0\x11\x0c'),
            'expected 8 bit, got a 12-bit JPEG',
        ),
        ('exact.jpg', make_jpeg().replace(b'\xff\xc0\0\x11', b'\xff\xc3\0\x11'), 'got a lossless JPEG'),
        ('a.jpg', b'%PDF-1.4 of a scanner', 'expected a photo, got a PDF'),
        ('b.jpg', b'\0\0\0\x18ftypqt  \0\0\0\0qt  ', 'got a MP4 or QuickTime video'),
        ('c.jpg', b'neither this nor that', 'got no known type of file'),
    ],
)
def test_refusal_says_what_the_file_is(tmp_path, name, data, reason):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=reason):
        read_picture(str(tmp_path / name))


def test_iptc_comment_and_resolution_are_kept_without_photoshops_thumbnail(tmp_path):
    records = b'\x1c\x02\x78\0\x07Caption'
    thumbnail = b'8BIM' + struct.pack('>H', 1036) + b'\0\0' + struct.pack('>I', 4) + b'dark'
    block = metadata.resources_of(records)
    data = insert(make_jpeg(dpi=(300, 200), comment=b'a comment'), segment(0xED, jpeg.PHOTOSHOP + thumbnail + block))
    _, again, notes = returned(tmp_path, 'a.jpg', data)
    assert notes == []
    assert again.header.metadata['iptc'] == block
    assert again.header.metadata['comment'] == b'a comment'
    assert np.round(np.multiply(again.header.metadata['resolution'], 0.0254)).tolist() == [300, 200]


def test_blocks_that_nobody_reads_are_named(tmp_path):
    data = insert(make_jpeg(), segment(0xEB, b'JP\0\x01 jumbf'), segment(0xEC, b'Ducky\0\0'))
    assert returned(tmp_path, 'a.jpg', data)[2] == [
        'its APP11 block is left out',
        'its APP12 block (Ducky) is left out',
    ]


# ----------------------------------------------------------------------------------------------------- orientation


@pytest.mark.parametrize('type', [1, 3, 4, 9])
def test_orientation_of_any_integer_type_is_applied_once(tmp_path, type):
    order, value = '<', struct.pack('<I', 6) if type in (4, 9) else b'\6\0\0\0'
    block = b'II*\0' + struct.pack(order + 'IHHHI', 8, 1, 274, type, 1) + value + bytes(4)
    picture, again, _ = returned(tmp_path, 'a.jpg', insert(make_jpeg(), segment(0xE1, jpeg.EXIF + block)))
    close(picture.photo, UPRIGHT)
    close(again.photo, UPRIGHT, 5)


@pytest.mark.parametrize('with_exif', [True, False])
def test_orientation_of_xmp_counts_where_exif_has_none_and_is_1_afterwards(tmp_path, with_exif):
    data = make_jpeg(exif=exif(6)) if with_exif else make_jpeg()
    picture, again, _ = returned(tmp_path, 'a.jpg', insert(data, xmp(TURN)))
    close(picture.photo, UPRIGHT)
    close(again.photo, UPRIGHT, 5)
    assert b'tiff:Orientation="1"' in again.header.metadata['xmp']


def test_png_exif_as_text_is_read_and_texts_and_resolution_are_kept(tmp_path):
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


# -------------------------------------------------------------------------------------------------------- TIFF


def make_tiff(pixels, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, metadata=None, **options)
    return file.getvalue()


ALPHA = np.full(DEEP.shape[:2], 32768, np.uint16)
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
def test_tiff_of_every_layout_has_its_colours_and_keeps_its_fourth_channel(tmp_path, kind):
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


def test_associated_alpha_stays_associated_and_its_pixels_what_they_were(tmp_path):
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


def test_tiff_keeps_exif_gps_iptc_artist_and_resolution_also_as_jpeg(tmp_path):
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


def test_tiff_compressed_in_a_way_that_is_not_known_here_is_refused_by_name(tmp_path):
    data = bytearray(make_tiff(scene(), photometric='rgb'))
    at = data.index(struct.pack('<HHI', 259, 3, 1))
    data[at + 8 : at + 10] = struct.pack('<H', 50001)
    (tmp_path / 'a.tif').write_bytes(data)
    with pytest.raises(ValueError, match='WEBP'):
        read_picture(str(tmp_path / 'a.tif'))


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


# ------------------------------------------------------------------------------------------------------- colours

SPACES = {
    'P3': colour.make_profile('Display P3', 12),
    'Adobe RGB': colour.make_profile('Adobe RGB', 'Adobe RGB', 563 / 256),
    'ProPhoto': colour.make_profile('P', ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001), (0.3457, 0.3585)), 1.8),
    'linear Rec. 2020': colour.make_profile('R', 9, 1.0),
}


def save_png(path, photo, profile):
    path.write_bytes(cv2.imencode('.png', photo[..., ::-1])[1].tobytes())
    picture = read_picture(str(path))
    picture.header.metadata['icc'] = profile
    write_picture(str(path), picture, photo)


@pytest.mark.parametrize('name', SPACES)
def test_network_sees_srgb_as_littlecms_says_and_the_file_gets_its_own_levels_back(tmp_path, name):
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
def test_wide_gamut_result_is_that_of_srgb_inside_and_keeps_its_colours_outside(deep):
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


def test_photo_without_profile_or_with_srgbs_takes_the_plain_path(tmp_path):
    for profile in (SRGB, colour.make_profile('sRGB', 'sRGB')):
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


def chunk(name, body):
    return struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))


def test_cicp_of_a_png_is_wide_gamut_and_hdr_is_refused(tmp_path):
    data = cv2.imencode('.png', scene()[..., ::-1])[1].tobytes()
    picture, again, _ = returned(tmp_path, 'p3.png', data[:33] + chunk(b'cICP', bytes([12, 13, 0, 1])) + data[33:])
    assert picture.space is not None
    assert np.array_equal(again.own, scene())
    (tmp_path / 'pq.png').write_bytes(data[:33] + chunk(b'cICP', bytes([9, 16, 0, 1])) + data[33:])
    with pytest.raises(ValueError, match=r'HDR \(PQ\)'):
        read_picture(str(tmp_path / 'pq.png'))


def test_cameras_adobe_rgb_without_a_profile_is_known_by_its_exif(tmp_path):
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
    assert picture.notes == ('CMYK is written as sRGB, by its colour profile',)


# ------------------------------------------------------------------------------------------- optional packages


@pytest.mark.parametrize('name', ['a.heic', 'named.jpg'])
def test_heic_is_turned_once_whatever_its_name_and_written_as_named(tmp_path, name):
    heif = pytest.importorskip('pillow_heif')
    file = io.BytesIO()
    heif.from_pillow(Image.fromarray(scene())).save(file, quality=95, chroma=444, exif=exif(6).tobytes())
    picture, again, notes = returned(tmp_path, name, file.getvalue())
    close(picture.photo, UPRIGHT, 5)  # by HEIF's own turn; EXIF's, which the file has too, does not count
    assert metadata.exif_orientation(again.header.metadata['exif']) == 1
    assert np.abs(again.photo.astype(int) - picture.photo).mean() < 2  # 4:2:0 at the edges
    assert again.header.kind == ('HEIC' if name == 'a.heic' else 'JPEG')
    assert read_directories(again.header.metadata['exif'])[0].text(271) == 'Maker'
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
    assert read_directories(again.header.metadata['exif'])[0].text(271) == 'Maker'
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


def make_dng(orientation=1):
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
        (50728, '2I', 3, rational(0.5, 1, 0.6), True), (50778, 'H', 1, 21, True),
    ]  # fmt: skip
    return make_tiff(levels, photometric=32803, extratags=tags, software='', rowsperstrip=96)


def test_dng_is_developed_upright_and_turned_with_its_exif(tmp_path):
    pytest.importorskip('rawpy')
    upright, again, _ = returned(tmp_path, 'a.dng', make_dng())
    turned, _, _ = returned(tmp_path, 'b.dng', make_dng(6))
    assert upright.photo.shape == (96, 128, 3)
    assert upright.photo[:, :56, 0].mean() > 2 * upright.photo[:, 72:, 0].mean()
    assert np.array_equal(turned.photo, np.rot90(upright.photo, -1))
    assert again.header.kind == 'TIFF'
    tags = read_directories(again.header.metadata['exif'])[0]
    assert (tags.text(271), tags.text(306)) == ('Maker', '2024:05:06 07:08:09')


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


# ---------------------------------------------------------------------------------------------------- what is kept


def test_table_of_formats_is_that_of_the_code():
    path = os.path.join(os.path.dirname(__file__), '..', 'docs', 'formats.md')
    with open(path, encoding='utf-8') as file:
        assert file.read() == formats.table()


EVERY_BLOCK = {
    'exif': exif().tobytes().removeprefix(b'Exif\0\0'),
    'xmp': (PACKET % 'xmlns:a="b" a:c="d"/>').encode(),
    'icc': SRGB,
    'iptc': metadata.resources_of(b'\x1c\x02\x78\0\x07Caption'),
    'comment': b'a comment',
    'text': chunk(b'tEXt', b'Title\0A title'),
    'resolution': (11811.0, 11811.0),
}


@pytest.mark.parametrize(
    'extension', ['.jpg', '.png', '.tif', '.webp', '.avif', '.heic', '.jxl', '.jp2', '.bmp', '.ppm', '.pgm']
)
def test_table_is_true_for_every_block_and_what_is_not_kept_is_said(tmp_path, extension):
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


def test_every_file_of_make_py_keeps_its_pixels_or_is_refused_with_its_reason(shared, tmp_path):
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
        result = str(tmp_path / f'result{written_extension(path.suffix)}')
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
