"""TIFF directories, of which EXIF is made too: read and written tag by tag, the values' bytes as they are.

A maker's note may hold places in its file, so it is written where it stood.

In: the bytes of a TIFF file, of an EXIF block or of a camera RAW file. Out: `Tags`, and bytes again.
Source: TIFF 6.0, section 2; Exif 2.32, section 4.6.
"""

import struct
from dataclasses import dataclass, field
from typing import NamedTuple

SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
INTEGERS = {1: 'B', 3: 'H', 4: 'I', 6: 'b', 8: 'h', 9: 'i', 13: 'I', 16: 'Q', 17: 'q', 18: 'Q'}
EXIF, GPS, INTEROP = 34665, 34853, 40965  # tags that point to a directory of their own
ORIENTATION = 274
MAKER_NOTE = 37500


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

    def text(self, number, directory='image'):
        """A text tag, '' where there is none."""
        tag = getattr(self, directory).get(number)
        return tag.value.split(b'\0')[0].decode('latin-1').strip() if tag and tag.type in (2, 7) else ''


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
            if place:
                try:
                    setattr(found[-1], name, read_directory(data, place, order, big)[0])
                except (struct.error, ValueError):
                    continue
    if not found:
        raise ValueError('read_directories: expected a TIFF directory, got none')
    return found


def read_directory(data, at, order, big=False):
    """Read a directory: ({number: Tag}, place of the next one); tags that lie outside of the file are left out."""
    if at > len(data):
        raise ValueError('read_directory: expected a directory inside the file')
    count = struct.unpack_from(order + ('Q' if big else 'H'), data, at)[0]
    first, width, room = (at + 8, 20, 8) if big else (at + 2, 12, 4)
    if count > 4096 or first + width * count > len(data):
        raise ValueError('read_directory: expected a directory inside the file')
    tags = {}
    for entry in range(first, first + width * count, width):
        number, type, values = struct.unpack_from(order + ('HHQ' if big else 'HHI'), data, entry)
        size = SIZES.get(type, 0) * values
        place = entry + width - room
        if size > room:
            place = struct.unpack_from(order + ('Q' if big else 'I'), data, place)[0]
        if size and place + size <= len(data):
            tags.setdefault(number, Tag(type, values, bytes(data[place : place + size]), place))
    end = first + width * count
    has_next = end + room <= len(data)
    return tags, struct.unpack_from(order + ('Q' if big else 'I'), data, end)[0] if has_next else 0


def pack_directories(tags, start=8):
    """Pack a picture's directories for a place of a file."""
    parts = [dict(tags.image), dict(tags.exif), dict(tags.gps), dict(tags.interop)]
    empty = Tag(4, 1, bytes(4))
    if parts[3]:
        parts[1][INTEROP] = empty
    if parts[1]:
        parts[0][EXIF] = empty
    if parts[2]:
        parts[0][GPS] = empty
    places = [start]
    for part in parts[:-1]:
        places.append(places[-1] + (len(pack_directory(part, 0, tags.order)) if part else 0))
    for owner, pointer, place in ((0, EXIF, 1), (0, GPS, 2), (1, INTEROP, 3)):
        if pointer in parts[owner] and parts[place]:
            parts[owner][pointer] = Tag(4, 1, struct.pack(tags.order + 'I', places[place]))
    packed = [pack_directory(part, place, tags.order) if part or i == 0 else b''
              for i, (part, place) in enumerate(zip(parts, places, strict=True))]  # fmt: skip
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
    """Return the bytes in front of everything else: a TIFF's header, and the maker's note at its place.

    Args:
        at: place of the first directory; None is behind these bytes.
    """
    note = tags.exif.get(MAKER_NOTE)
    is_fixed = note and note.place >= 8 and len(note.value) > 4
    front = bytes(note.place - 8) + note.value + bytes(len(note.value) % 2) if is_fixed else b''
    order = tags.order
    return (b'II' if order == '<' else b'MM') + struct.pack(order + 'HI', 42, at or 8 + len(front)) + front
