"""Camera RAW: developed by rawpy (LibRaw), which is optional, and its EXIF.

The camera's white balance, its exposure, sRGB with sRGB's curve, 16 bit, upright. A file whose pixels are not all there
is refused: LibRaw develops what is missing as black or as a flat colour.
"""

import io
import struct

import numpy as np

from photos import boxes
from photos.formats import Header, kind_of
from photos.metadata import exif_of_tags
from photos.tags import MAKER_NOTE, Tags, byte_order, read_directories, read_directory

STRIPS = ((273, 279), (324, 325))  # places and sizes of strips, of tiles
SUBDIRECTORIES = 330
FLAT = 32  # a photo whose last 32nd is one level throughout is not all there


def read(data, check_size):
    """(Header, (H, W, 3) uint16 sRGB photo) of a RAW file's bytes.

    Args:
        check_size: called with (width, height) before the photo is developed.
    Raises:
        ValueError: rawpy is not installed, or the file is damaged.
    """
    try:
        import rawpy
    except ImportError:
        raise ValueError('expected rawpy to read camera RAW, it is not installed: pip install rawpy') from None
    check_strips(data)
    try:
        with rawpy.imread(io.BytesIO(data)) as raw:
            check_size((raw.sizes.width, raw.sizes.height))
            check_levels(raw)
            photo = raw.postprocess(output_bps=16, use_camera_wb=True, no_auto_bright=True, gamma=(2.4, 12.92))
    except rawpy.LibRawError as error:
        reason = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else error
        raise ValueError(f'expected a whole camera RAW, LibRaw says: {reason}') from error
    header = Header(kind='RAW', size=photo.shape[1::-1], mode='RGB', bits=16)
    exif, note = read_exif(data)
    if exif:
        header.metadata['exif'] = exif
    if note:
        header.left_out.append("EXIF's maker note is left out")
    return header, np.ascontiguousarray(photo)


def check_strips(data):
    """Raise ValueError where a strip or tile lies behind the end of a TIFF-like file."""
    if kind_of(data) != 'TIFF':
        return
    for tags in all_directories(data):
        for places, sizes in STRIPS:
            pairs = zip(tags.integers(places), tags.integers(sizes), strict=False)
            if any(at + size > len(data) for at, size in pairs):
                raise ValueError('expected a whole photo, the file is truncated')


def all_directories(data):
    """Tags of every directory of a TIFF-like file, those in SubIFDs too."""
    try:
        found = read_directories(data)
    except ValueError:
        raise ValueError('expected a whole photo, its directory is damaged') from None
    for tags in list(found):
        for place in tags.integers(SUBDIRECTORIES)[:20]:
            try:
                found.append(Tags(tags.order, read_directory(data, place, tags.order)[0]))
            except (struct.error, ValueError):
                raise ValueError('expected a whole photo, the file is truncated') from None
    return found


def check_levels(raw):
    """Raise ValueError where the photo, or its end, is one dark level throughout: a sensor's noise never is."""
    levels = getattr(raw, 'raw_image_visible', None)  # None of a file that holds colours, not a sensor's levels
    if levels is None or levels.ndim < 2:
        return
    end = levels[-max(len(levels) // FLAT, 4) :]
    if end.min() == end.max() and end.max() <= max(raw.black_level_per_channel or [0]):
        raise ValueError('expected a whole photo, its last rows hold nothing')


def read_exif(data):
    """(EXIF block, whether a maker's note was left out) of a RAW file; b'' where it is not found.

    A maker's note is left out: it holds places in the RAW file, and previews of the dark original.
    """
    try:
        if kind_of(data) == 'RAW' and data[4:8] == b'ftyp':  # CR3
            image, exif, note, gps = (block and read_directories(block)[0] for block in boxes.canon_blocks(data))
            tags = Tags(image.order, image.image, exif.image if exif else {}, gps.image if gps else {})
            return exif_of_tags(tags, (MAKER_NOTE,)), bool(note)
        if data.startswith(b'FUJIFILM'):  # its preview is a JPEG with the EXIF
            from photos import jpeg

            at, size = struct.unpack_from('>II', data, 84)
            exif = jpeg.read_header(data[at : at + size]).metadata.get('exif', b'')
            tags = read_directories(exif)[0]
        else:
            byte_order(data)
            tags = read_directories(data)[0]
        return exif_of_tags(tags, (MAKER_NOTE,)), MAKER_NOTE in tags.exif
    except (ValueError, struct.error, AttributeError):
        return b'', False
