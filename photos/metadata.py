"""What a photo file holds beside its pixels, made right for the enhanced photo: EXIF, XMP, Photoshop's block with IPTC.

In and out: the blocks' bytes. The result stands upright, has no thumbnail of the dark original, and points to no gain
map, depth map or video, for these are left out. EXIF is made of TIFF's directories, which are read and written tag by
tag, the values' bytes as they are; a maker's note may hold places in its file, so it is written where it stood.
Source: TIFF 6.0, section 2; Exif 2.32; XMP part 1 and 3; IPTC-IIM 4.2; Google's Container, GCamera, hdrgm and GDepth
schemas; Apple's HDRGainMap.
"""

import contextlib
import itertools
import re
import struct
from dataclasses import dataclass, field
from typing import NamedTuple

NAMES = {  # the blocks, in the order in which a sentence names them
    'exif': 'EXIF', 'xmp': 'XMP', 'icc': 'the colour profile', 'iptc': 'IPTC', 'comment': 'the comment',
    'text': "PNG's texts", 'resolution': 'the resolution', 'xml': "JPEG 2000's XML",
}  # fmt: skip


def blocks_of(info):
    """{name: bytes or None} of what Pillow found in a file."""
    return {'exif': info.get('exif'), 'xmp': info.get('xmp'), 'icc': info.get('icc_profile')}


SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
INTEGERS = {1: 'B', 3: 'H', 4: 'I', 6: 'b', 8: 'h', 9: 'i', 13: 'I', 16: 'Q', 17: 'q', 18: 'Q'}
EXIF, GPS, INTEROP = 34665, 34853, 40965  # tags that point to a directory of their own
ORIENTATION, MAKER_NOTE = 274, 37500


class Tag(NamedTuple):
    """One entry of a directory."""

    type: int  # TIFF's 1 (byte) to 13, BigTIFF's 16 to 18
    count: int
    value: bytes  # in the byte order of the file
    place: int = 0  # of the value in its file


@dataclass
class Tags:
    """The directories of one picture: {number: Tag} each, without the pointers between them."""

    order: str = '<'  # struct's sign of the byte order
    image: dict = field(default_factory=dict)
    exif: dict = field(default_factory=dict)
    gps: dict = field(default_factory=dict)
    interop: dict = field(default_factory=dict)

    def integers(self, number, directory='image'):
        """All values of an integer tag; () where there is none."""
        tag = getattr(self, directory).get(number)
        code = tag and INTEGERS.get(tag.type)
        return struct.unpack(f'{self.order}{tag.count}{code}', tag.value) if code else ()

    def integer(self, number, default=0, directory='image'):
        """First value of an integer tag; default where there is none."""
        return next(iter(self.integers(number, directory)), default)

    def value(self, number, directory='image'):
        """Bytes of a tag; b'' where there is none."""
        tag = getattr(self, directory).get(number)
        return tag.value if tag else b''


def read_directories(data):
    """Read every directory in a file's chain, or those that a damaged chain still leads to: [Tags].

    Args:
        data: bytes of a TIFF, BigTIFF, EXIF block (from its II or MM), or RAW file with another number behind that.
    Raises:
        ValueError: not one directory.
    """
    order = {b'II': '<', b'MM': '>'}.get(bytes(data[:2]))
    if order is None or len(data) < 8:
        raise ValueError(f'read_directories: expected II or MM, got {bytes(data[:2])!r}')
    big = struct.unpack_from(order + 'H', data, 2)[0] == 43
    at = struct.unpack_from(order + ('Q' if big else 'I'), data, 8 if big else 4)[0] if len(data) >= 16 else 0
    found, seen = [], set()
    while at and at not in seen and len(found) < 1000:
        seen.add(at)
        try:
            image, at = read_directory(data, at, order, big)
        except (struct.error, ValueError):
            break
        found.append(Tags(order, image))
        for name, owner, pointer in (('exif', 'image', EXIF), ('gps', 'image', GPS), ('interop', 'exif', INTEROP)):
            place = found[-1].integer(pointer, directory=owner)
            getattr(found[-1], owner).pop(pointer, None)
            with contextlib.suppress(struct.error, ValueError):
                setattr(found[-1], name, read_directory(data, place, order, big)[0] if place else {})
    if not found:
        raise ValueError('read_directories: expected a TIFF directory, got none')
    return found


def read_directory(data, at, order, big=False):
    """Read a directory: ({number: Tag}, place of the next one); tags that lie outside of the file are left out."""
    codes, first, room = ('QQ', at + 8, 8) if big else ('HI', at + 2, 4)
    (count,) = struct.unpack(order + codes[0], data[at:first])
    word, width = order + codes[1], 4 + 2 * room
    end = first + width * count
    if count > 4096 or end > len(data):
        raise ValueError('read_directory: expected a directory inside the file')
    tags = {}
    for entry in range(first, end, width):
        number, type, values = struct.unpack_from(f'{order}HH{codes[1]}', data, entry)
        size, place = SIZES.get(type, 0) * values, entry + width - room
        if size > room:
            (place,) = struct.unpack_from(word, data, place)
        if size and place + size <= len(data):
            tags.setdefault(number, Tag(type, values, bytes(data[place : place + size]), place))
    return tags, struct.unpack_from(word, data, end)[0] if end + room <= len(data) else 0


def pack_directories(tags, start=8):
    """Pack a picture's directories for a place of a file."""
    places = [start] * 4
    for _ in range(2):  # once for their sizes, once at their places
        pointers = [Tag(4, 1, struct.pack(tags.order + 'I', place)) for place in places]
        exif = tags.exif | ({INTEROP: pointers[3]} if tags.interop else {})
        image = tags.image | ({EXIF: pointers[1]} if exif else {}) | ({GPS: pointers[2]} if tags.gps else {})
        parts = zip((image, exif, tags.gps, tags.interop), places, strict=True)
        packed = [pack_directory(part, at, tags.order) if part or part is image else b'' for part, at in parts]
        places = list(itertools.accumulate(map(len, packed[:-1]), initial=start))
    return b''.join(packed)


def pack_directory(tags, at, order):
    """Pack one directory for a place of a file: its entries by their numbers, then their longer values."""
    head, tail = struct.pack(order + 'H', len(tags)), b''
    beyond = at + 2 + 12 * len(tags) + 4
    for number, tag in sorted(tags.items()):
        head += struct.pack(order + 'HHI', number, tag.type, tag.count)
        if len(tag.value) <= 4:
            head += tag.value.ljust(4, b'\0')
        elif number == MAKER_NOTE and tag.place:
            head += struct.pack(order + 'I', tag.place)
        else:
            head += struct.pack(order + 'I', beyond + len(tail))
            tail += tag.value + b'\0' * (len(tag.value) % 2)
    return head + bytes(4) + tail


def start_of_file(tags, at=None):
    """Return a TIFF's header, and the maker's note at its place; at: of the first directory, None is behind these."""
    note = tags.exif.get(MAKER_NOTE)
    is_fixed = note and note.place >= 8 and len(note.value) > 4
    front = bytes(note.place - 8) + note.value + bytes(len(note.value) % 2) if is_fixed else b''
    order = tags.order
    return (b'II' if order == '<' else b'MM') + struct.pack(order + 'HI', 42, at or 8 + len(front)) + front


OWN_PLACES = b'FUJIFILM', b'Apple iOS', b'OLYMPUS\0', b'OM SYSTEM', b'PENTAX \0'  # notes that count from themselves
FARTHEST = 1 << 16  # place of a maker's note
PIXELS = {40962: 0, 40963: 1}  # EXIF's width and height, index of a size
DESCRIPTIVE = {269, 270, 271, 272, 285, 282, 283, 296, 305, 306, 315, 316, 33432, 18246, 18249,
               *range(40091, 40096), 33550, 33922, 34264, 34735, 34736, 34737, 42112, 42113}  # fmt: skip


def read_exif(exif):
    """Read the Tags of an EXIF block; without any where it is damaged."""
    try:
        return read_directories(exif)[0]
    except ValueError:
        return Tags()


def upright_exif(exif, size=None):
    """Make an EXIF block say that the photo stands upright; the thumbnail of the dark original goes.

    Changed in place, so that a maker's note finds its own parts again; b'' for what is no EXIF as it should be; size:
    (width, height) of the upright photo, where it is known.
    """
    exif = bytearray(exif)
    try:
        tags = read_directories(exif)[0]
        order, turn = tags.order, tags.image.get(ORIENTATION)
        if turn:
            struct.pack_into(order + 'HHIHH', exif, turn.place - 8, ORIENTATION, 3, 1, 1, 0)
        for number, side in PIXELS.items():
            tag = tags.exif.get(number)
            if size and tag and tag.type in (3, 4) and tag.count == 1:
                struct.pack_into(order + INTEGERS[tag.type], exif, tag.place, size[side])
        (start,) = struct.unpack_from(order + 'I', exif, 4)
        (count,) = struct.unpack_from(order + 'H', exif, start)
        struct.pack_into(order + 'I', exif, start + 2 + 12 * count, 0)  # no second directory: it holds the thumbnail
    except (struct.error, ValueError):  # leave it out rather than turn the photo twice
        return b''
    return bytes(exif)


def exif_of_tags(tags):
    """Make an EXIF block of those tags of a TIFF or RAW file that describe the photo, not its pixels' layout."""
    image = {number: tag for number, tag in tags.image.items() if number in DESCRIPTIVE}
    exif = {number: tag for number, tag in tags.exif.items() if number not in PIXELS}
    if not (image.keys() - {282, 283, 296} or exif or tags.gps):
        return b''
    tags = Tags(tags.order, image, exif, tags.gps, tags.interop)
    front = start_of_file(tags)
    return front + pack_directories(tags, len(front))


def free_note(tags):
    """Fix a maker's note at its place, unless it may stand anywhere; False where that is too far: it is gone then."""
    note = tags.exif.get(MAKER_NOTE, Tag(7, 0, b''))
    if note.place and (note.value.startswith(OWN_PLACES) or re.search(rb'II\*\0|MM\0\*', note.value[:20])):
        tags.exif[MAKER_NOTE] = note._replace(place=0)
    elif note.place > FARTHEST:
        del tags.exif[MAKER_NOTE]
        return False
    return True


TIFF, GOOGLE, ANY = b'http://ns.adobe.com/tiff/1.0/', b'http://ns.google.com/photos/', rb'[\w.-]+'
POINTERS = {  # schemas that describe what is left out, and which of their names do
    **{GOOGLE + name: ANY for name in (b'1.0/container/', b'1.0/container/item/', b'1.0/depthmap/', b'1.0/image/',
                                       b'1.0/audio/', b'dd/1.0/container/', b'dd/1.0/item/', b'dd/1.0/device/')},
    b'http://ns.adobe.com/hdr-gain-map/1.0/': ANY, b'http://ns.apple.com/HDRGainMap/1.0/': ANY,
    b'http://ns.adobe.com/xmp/note/': ANY, b'http://ns.adobe.com/xap/1.0/': rb'Thumbnails[\w.-]*',
    GOOGLE + b'1.0/camera/': rb'(?:MotionPhoto|MicroVideo)[\w.-]*',
}  # fmt: skip
SCHEMA = re.compile(rb'xmlns:([\w.-]+)\s*=\s*["\']([^"\']*)["\']')
TURN = rb'(%b:Orientation(?:\s*=\s*["\']|>)\s*)(\d+)'


def xmp_orientation(xmp):
    """Return the tiff:Orientation of an XMP packet; 0 where it has none."""
    turns = [re.search(TURN % prefix, xmp) for prefix, schema in SCHEMA.findall(xmp) if schema == TIFF]
    return int(turns[0][2]) if turns and turns[0] else 0


def upright_xmp(xmp):
    """Make an XMP packet say that the photo stands upright and point to nothing that is left out; the rest stays."""
    for prefix, schema in dict.fromkeys(SCHEMA.findall(xmp)):
        if schema == TIFF:
            xmp = re.sub(TURN % prefix, rb'\g<1>1', xmp)
        elif schema in POINTERS:
            name = b'%b:%b' % (prefix, POINTERS[schema])
            declared = b'|xmlns:' + prefix if POINTERS[schema] == ANY else b''
            xmp = re.sub(rb'\s(?:%b%b)\s*=\s*(?:"[^"]*"|\'[^\']*\')' % (name, declared), b'', xmp)
            kept, depth, end = [], 0, 0
            for tag in re.finditer(rb'<(/?)%b(?=[\s/>])[^>]*?(/?)>' % name, xmp):  # elements go with what is in them
                kept += [] if depth else [xmp[end : tag.start()]]
                depth, end = depth + (0 if tag[2] else -1 if tag[1] else 1), tag.end()
            xmp = b''.join([*kept, xmp[end:]])
    return xmp


IPTC = 1028
STALE = {1033, 1036, 1039, 1058, 1059, 1060, 1061}  # thumbnails; copies of profile, EXIF and XMP; IPTC's checksum


def resources(block):
    """Split Photoshop's image resources: [(number, bytes of the whole resource, its body)]."""
    found, at = [], 0
    while block[at : at + 4] in (b'8BIM', b'MeSa', b'AgHg', b'PHUT', b'DCSR') and at + 12 <= len(block):
        body = at + 11 + (block[at + 6] | 1)  # behind a name of even length, its own byte included, and the size
        size = int.from_bytes(block[body - 4 : body], 'big')
        if body + size > len(block):
            break
        end = body + size + size % 2
        found.append((int.from_bytes(block[at + 4 : at + 6], 'big'), block[at:end], block[body : body + size]))
        at = end
    return found


def clean_resources(block):
    """Leave thumbnails and copies of other blocks out of Photoshop's image resources; bare IPTC records become such."""
    block = resources_of(block) if block.startswith(b'\x1c') else block.removeprefix(b'Photoshop 3.0\0')
    return b''.join(whole for number, whole, _ in resources(block) if number not in STALE)


def iptc_of(block):
    """Return the IPTC records in Photoshop's image resources, b'' where there are none."""
    return next((body for number, _, body in resources(block) if number == IPTC), b'')


def resources_of(iptc):
    """Make Photoshop's image resources that hold IPTC records alone."""
    return b'8BIM\x04\x04\0\0' + struct.pack('>I', len(iptc)) + iptc + b'\0' * (len(iptc) % 2)
