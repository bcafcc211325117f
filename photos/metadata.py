"""What a photo file holds beside its pixels, made right for the enhanced photo: EXIF, XMP, Photoshop's block with IPTC.

In and out: the blocks' bytes. The result stands upright, has no thumbnail of the dark original, and points to no gain
map, depth map or video, for these are left out. Source: Exif 2.32; XMP part 1 and 3; IPTC-IIM 4.2; Google's Container,
GCamera, hdrgm and GDepth schemas; Apple's HDRGainMap.
"""

import re
import struct
from xml.dom import minidom
from xml.parsers.expat import ExpatError

from photos.tags import (
    INTEGERS,
    MAKER_NOTE,
    ORIENTATION,
    Tag,
    Tags,
    pack_directories,
    read_directories,
    start_of_file,
)

NAMES = {  # the blocks, in the order in which a sentence names them
    'exif': 'EXIF',
    'xmp': 'XMP',
    'icc': 'the colour profile',
    'iptc': 'IPTC',
    'comment': 'the comment',
    'text': "PNG's texts",
    'resolution': 'the resolution',
    'xml': "JPEG 2000's XML",
}
OWN_PLACES = b'FUJIFILM', b'Apple iOS', b'OLYMPUS\0', b'OM SYSTEM', b'PENTAX \0'  # notes that count from themselves
FARTHEST = 1 << 16  # place of a maker's note
PIXELS = {40962: 0, 40963: 1}  # EXIF's width and height, index of a size
DESCRIPTIVE = {269, 270, 271, 272, 285, 282, 283, 296, 305, 306, 315, 316, 33432, 18246, 18249,
               *range(40091, 40096), 33550, 33922, 34264, 34735, 34736, 34737, 42112, 42113}  # fmt: skip


def found_blocks(exif, xmp, icc):
    """Return {name: bytes} of those blocks that are there."""
    blocks = {'exif': exif, 'xmp': xmp, 'icc': icc}
    return {name: bytes(block).removeprefix(b'Exif\0\0') for name, block in blocks.items() if block}


def swaps_sides(orientation):
    """Whether a photo of that EXIF orientation lies on its side."""
    return orientation in (5, 6, 7, 8)


# --------------------------------------------------------------------------------------------------------- EXIF


def read_exif(exif):
    """Read the Tags of an EXIF block; without any where it is damaged."""
    try:
        return read_directories(exif)[0]
    except ValueError:
        return Tags()


def orientation_of(tags):
    """EXIF's orientation, 1 to 8, of whatever integer type it is; 0 where there is none."""
    return as_orientation(tags.integer(ORIENTATION, 1)) if ORIENTATION in tags.image else 0


def as_orientation(value):
    return value if value in range(1, 9) else 1


def upright_exif(exif, size=None):
    """Make an EXIF block say that the photo stands upright; the thumbnail of the dark original goes.

    Changed in place, so that a maker's note finds its own parts again; b'' for what is no EXIF as it should be.

    Args:
        size: (width, height) of the upright photo, where it is known.
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
    """Fix the maker's note at its place, unless it holds no places in its file and may stand anywhere.

    Returns:
        False where that is too far behind for an EXIF block: the note is gone then.
    """
    note = tags.exif.get(MAKER_NOTE, Tag(7, 0, b''))
    if note.place and (note.value.startswith(OWN_PLACES) or re.search(rb'II\*\0|MM\0\*', note.value[:20])):
        tags.exif[MAKER_NOTE] = note._replace(place=0)
    elif note.place > FARTHEST:
        del tags.exif[MAKER_NOTE]
        return False
    return True


def says_adobe_rgb(exif):
    """Whether a block is that of a camera's Adobe RGB file (DCF's option file), which often has no profile."""
    return read_exif(exif).text(1, 'interop') == 'R03'


# ---------------------------------------------------------------------------------------------------------- XMP

TIFF, XAP, NOTE = (f'http://ns.adobe.com/{name}/' for name in ('tiff/1.0', 'xap/1.0', 'xmp/note'))
GOOGLE = 'http://ns.google.com/photos/'
CAMERA = f'{GOOGLE}1.0/camera/'
POINTERS = (  # schemas that describe what is left out, and nothing else
    *(f'{GOOGLE}1.0/{name}/' for name in ('container', 'container/item', 'depthmap', 'image', 'audio')),
    *(f'{GOOGLE}dd/1.0/{name}/' for name in ('container', 'item', 'device')),
    'http://ns.adobe.com/hdr-gain-map/1.0/',
    'http://ns.apple.com/HDRGainMap/1.0/',
    NOTE,
)
PARTLY = {CAMERA: ('MotionPhoto', 'MicroVideo'), XAP: ('Thumbnails',)}  # names that start so
XMLNS = 'http://www.w3.org/2000/xmlns/'


def xmp_orientation(xmp):
    """Return the tiff:Orientation of an XMP packet, 1 to 8; 0 where it has none."""
    if b'Orientation' not in xmp:
        return 0
    try:
        nodes = list(nodes_of(parse_xmp(xmp)))
    except (ExpatError, ValueError):
        return 0
    texts = [text_of(node) for node in nodes if (node.namespaceURI, node.localName) == (TIFF, 'Orientation')]
    return as_orientation(int(texts[0])) if texts and texts[0].isdigit() else 0


def upright_xmp(xmp):
    """Make an XMP packet say that the photo stands upright and point to nothing that is left out.

    One that has nothing to change stays byte for byte; b'' for what is no XML.
    """
    needles = [b'Orientation', b'Thumbnails', *(name.encode() for name in (*POINTERS, CAMERA))]
    if not any(needle in xmp for needle in needles):
        return xmp
    try:
        document = parse_xmp(xmp)
    except (ExpatError, ValueError):
        return b''
    changed = False
    for node in list(nodes_of(document)):
        space, name = node.namespaceURI, node.localName
        if (space, name) == (TIFF, 'Orientation'):
            changed |= text_of(node) != '1'
            set_text(node, '1')
        elif (node.value if space == XMLNS else space) in POINTERS or name.startswith(PARTLY.get(space, '\0')):
            remove(node)
            changed = True
    text = ''.join(node.toxml() for node in document.childNodes)
    return text.encode() if changed else xmp


def parse_xmp(xmp):
    """Parse a packet's XML. Raises ExpatError, ValueError: it is none."""
    if b'<!DOCTYPE' in xmp or b'<!ENTITY' in xmp:
        raise ValueError('parse_xmp: expected no entities')  # an XMP packet has none; a bomb has
    return minidom.parseString(bytes(xmp).strip(b'\0 \r\n\t'))


def nodes_of(element):
    """Yield every element below a node, and every attribute of theirs."""
    for child in element.childNodes:
        if child.nodeType == child.ELEMENT_NODE:
            yield child
            yield from list(child.attributes.values())
            yield from nodes_of(child)


def text_of(node):
    if node.nodeType == node.ATTRIBUTE_NODE:
        return node.value.strip()
    return ''.join(child.data for child in node.childNodes if child.nodeType == child.TEXT_NODE).strip()


def set_text(node, text):
    if node.nodeType == node.ATTRIBUTE_NODE:
        node.value = text
    else:
        for child in node.childNodes:
            child.data = text


def remove(node):
    if node.nodeType != node.ATTRIBUTE_NODE:
        if node.parentNode is not None:
            node.parentNode.removeChild(node)
    elif node.ownerElement is not None:
        node.ownerElement.removeAttributeNode(node)


# ------------------------------------------------------------------------------------- Photoshop's block, with IPTC

IPTC = 1028
STALE = {1033, 1036, 1039, 1058, 1059, 1060, 1061}  # thumbnails; copies of profile, EXIF and XMP; IPTC's checksum


def resources(block):
    """Split Photoshop's image resources: [(number, bytes of the whole resource, its body)]."""
    found, at = [], 0
    while block[at : at + 4] in (b'8BIM', b'MeSa', b'AgHg', b'PHUT', b'DCSR') and at + 12 <= len(block):
        name = 1 + block[at + 6]
        body = at + 6 + name + name % 2
        if body + 4 > len(block):
            break
        (size,) = struct.unpack_from('>I', block, body)
        end = body + 4 + size + size % 2
        if body + 4 + size > len(block):
            break
        found.append((struct.unpack_from('>H', block, at + 4)[0], block[at:end], block[body + 4 : body + 4 + size]))
        at = end
    return found


def clean_resources(block):
    """Leave thumbnails and copies of other blocks out of Photoshop's image resources."""
    return b''.join(whole for number, whole, _ in resources(block) if number not in STALE)


def iptc_of(block):
    """Return the IPTC records in Photoshop's image resources, b'' where there are none."""
    return next((body for number, _, body in resources(block) if number == IPTC), b'')


def resources_of(iptc):
    """Make Photoshop's image resources that hold IPTC records alone."""
    return b'8BIM\x04\x04\0\0' + struct.pack('>I', len(iptc)) + iptc + b'\0' * (len(iptc) % 2)
