"""JPEG files as phones, cameras and agencies write them: read for what they are, nothing lost in silence."""

import struct

import numpy as np
import pytest
from PIL import Image

from photos import jpeg, metadata
from photos.picture import read_photo, read_picture
from tests.files import PACKET, SRGB, UPRIGHT, close, exif, insert, make_jpeg, returned, scene, segment, xmp

TURN = 'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6" tiff:Make="Maker"/>'
MOTION = 'xmlns:GCamera="http://ns.google.com/photos/1.0/camera/" GCamera:MotionPhoto="1" GCamera:Other="x"/>'
GAIN_MAP = (
    'xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" hdrgm:Version="1.0" '
    'xmlns:C="http://ns.google.com/photos/1.0/container/" xmlns:Item="http://ns.google.com/photos/1.0/container/item/">'
    '<C:Directory><rdf:Seq><rdf:li><C:Item Item:Semantic="GainMap"/></rdf:li></rdf:Seq></C:Directory></rdf:Description>'
)
EXTENDED = 'xmlns:xmpNote="http://ns.adobe.com/xmp/note/" xmpNote:HasExtendedXMP="0123"/>'


def mpf(primary, other, kind):
    """A JPEG with an MPF directory and another JPEG behind it."""

    def directory(size, place):
        entries = struct.pack('<IIIHH', 0x20030000, 0, 0, 0, 0) + struct.pack('<IIIHH', kind, size, place, 0, 0)
        head = b'II*\0' + struct.pack('<IH', 8, 3) + struct.pack('<HHI', 0xB000, 7, 4) + b'0100'
        head += struct.pack('<HHII', 0xB001, 4, 1, 2) + struct.pack('<HHII', 0xB002, 7, 32, 50) + bytes(4)
        return segment(0xE2, b'MPF\0' + head + entries)

    empty = insert(primary, directory(0, 0))
    return insert(primary, directory(len(other), len(empty) - empty.index(b'MPF\0') - 4)) + other


@pytest.mark.parametrize(
    ('kind', 'more', 'what'),
    [
        (0x00010001, b'', 'preview'),
        (0x00020002, b'', 'other view'),
        (0, segment(0xE2, b'urn:iso:std:iso:ts:21496-1\0\0\0\0\0'), 'gain map'),
        (0, b'', 'second picture'),
    ],
)
def test_first_picture_of_mpf_is_the_photo(tmp_path, kind, more, what):
    small = make_jpeg(scene(12, 16))
    picture, again, notes = returned(tmp_path, 'a.jpg', mpf(insert(make_jpeg(exif=exif()), more), small, kind))
    close(picture.photo, scene())
    assert notes == [f'its {what} is left out']
    assert again.header.metadata['exif']
    assert again.header.notes == []


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


def test_damaged_scan_is_refused_though_the_file_ends_well(tmp_path):
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
        (
            'exact.jpg',
            make_jpeg().replace(b'\xff\xc0\0\x11', b'\xff\xc3\0\x11'),
            'expected a baseline or progressive JPEG, libjpeg says',
        ),
        ('a.jpg', b'%PDF-1.4 of a scanner', 'expected a photo, got a PDF'),
        ('b.jpg', b'\0\0\0\x18ftypqt  \0\0\0\0qt  ', 'got a MP4 or QuickTime video'),
        ('c.jpg', b'neither this nor that', 'got no known type of file'),
    ],
)
def test_refusal_says_what_the_file_is(tmp_path, name, data, reason):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=reason):
        read_picture(str(tmp_path / name))


def test_iptc_comment_and_resolution_stay_without_photoshops_thumbnail(tmp_path):
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


@pytest.mark.parametrize('type', [1, 3, 4, 9])
def test_orientation_of_any_integer_type_is_applied_once(tmp_path, type):
    order, value = '<', struct.pack('<I', 6) if type in (4, 9) else b'\6\0\0\0'
    block = b'II*\0' + struct.pack(order + 'IHHHI', 8, 1, 274, type, 1) + value + bytes(4)
    picture, again, _ = returned(tmp_path, 'a.jpg', insert(make_jpeg(), segment(0xE1, jpeg.EXIF + block)))
    close(picture.photo, UPRIGHT)
    close(again.photo, UPRIGHT, 5)


@pytest.mark.parametrize('with_exif', [True, False])
def test_orientation_of_xmp_counts_where_exif_has_none(tmp_path, with_exif):
    data = make_jpeg(exif=exif(6)) if with_exif else make_jpeg()
    picture, again, _ = returned(tmp_path, 'a.jpg', insert(data, xmp(TURN)))
    close(picture.photo, UPRIGHT)
    close(again.photo, UPRIGHT, 5)
    assert b'tiff:Orientation="1"' in again.header.metadata['xmp']


@pytest.mark.parametrize('order', ['II', 'MM'])
def test_exif_over_several_segments_keeps_what_lies_beyond(tmp_path, order):
    block = exif()
    block.endian = '<' if order == 'II' else '>'
    block.get_ifd(0x8769)[0x9286] = b'ASCII\0\0\0' + b'comment ' * 9000
    long = block.tobytes().removeprefix(b'Exif\0\0')
    parts = [segment(0xE1, jpeg.EXIF + long[at : at + 65000]) for at in range(0, len(long), 65000)]
    _, again, notes = returned(tmp_path, 'a.jpg', insert(make_jpeg(), *parts))
    assert notes == []
    assert again.header.metadata['exif'] == long
    with Image.open(tmp_path / 'out' / 'a.jpg') as result:
        assert result.getexif().get_ifd(0x8825)[2] == (48.0, 51.0, 29.0)


def test_second_exif_block_of_its_own_is_not_joined(tmp_path):
    data = insert(make_jpeg(exif=exif()), segment(0xE1, jpeg.EXIF + b'II*\0' + bytes(70)))
    (tmp_path / 'a.jpg').write_bytes(data)
    assert read_picture(str(tmp_path / 'a.jpg')).header.metadata['exif'] == exif().tobytes().removeprefix(jpeg.EXIF)


def disorder(kind):
    """A JPEG that every viewer opens, and libjpeg warns of."""
    data, icc = make_jpeg(), [segment(0xE2, jpeg.ICC + bytes([i, 2]) + SRGB[(i - 1) * 300 :][:300]) for i in (1, 2)]
    frame = data.index(b'\xff\xc0')
    behind = frame + 2 + struct.unpack_from('>H', data, frame + 2)[0]
    return {
        'profile behind the frame': data[:frame] + icc[0] + data[frame:behind] + icc[1] + data[behind:],
        'profile twice': insert(data, *icc, *icc),
        'zeros between segments': insert(data, bytes(30)),
        'transform 2 of Adobe': insert(data, segment(0xEE, b'Adobe\0\x64\0\0\0\0\2')),
    }[kind]


@pytest.mark.parametrize(
    'kind', ['profile behind the frame', 'profile twice', 'zeros between segments', 'transform 2 of Adobe']
)
def test_harmless_disorder_is_read(tmp_path, kind):
    picture, _, notes = returned(tmp_path, 'a.jpg', disorder(kind))
    close(picture.photo, scene())
    assert picture.header.metadata == ({'icc': SRGB} if kind.startswith('profile') else {})
    assert notes == []


def test_disorder_hides_no_damage(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (160, 160, 3), dtype=np.uint8)
    data = bytearray(insert(make_jpeg(noise), bytes(30)))
    data[len(data) // 2 : len(data) // 2 + 900] = b'\x55' * 900
    (tmp_path / 'a.jpg').write_bytes(data)
    with pytest.raises(ValueError, match='expected an undamaged photo, libjpeg says'):
        read_picture(str(tmp_path / 'a.jpg'))


def test_uncommon_subsampling_is_read_and_written_with_full_chroma(tmp_path):
    """Factors 2x1, 2x1, 1x1, which simplejpeg does not take."""
    data = make_jpeg(subsampling=1)
    frame = data.index(b'\xff\xc0')
    odd = bytearray(data)
    odd[frame + 11], odd[frame + 14], odd[frame + 17] = 0x21, 0x21, 0x11
    data = bytes(odd)
    header = jpeg.read_header(data)
    assert header.sampling == jpeg.SAMPLING[1, 1]
    assert jpeg.decode(data, header).shape == scene().shape
