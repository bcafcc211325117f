"""What FFmpeg does not carry from a container into the next, copied byte for byte.

MP4 and QuickTime: user data, keys and XMP of the file and of its tracks, the boxes of 360-degree and stereo video.
AVI: the recording date, lists of titles and of cameras, XMP.
Source: ISO/IEC 14496-12; QuickTime File Format; Spherical Video V2 RFC; Microsoft's AVI RIFF reference.
"""

import mmap
import struct

from photos.boxes import boxes

REST = {b'udta', b'meta', b'uuid'}  # of moov and of trak
SPATIAL = {b'st3d', b'sv3d'}  # of a video's sample entry
ENTRY_HEAD = 86  # bytes in front of its boxes
WAY = {b'moov': b'trak', b'trak': b'mdia', b'mdia': b'minf', b'minf': b'stbl', b'stbl': b'stsd'}  # to sample entries
STREAMS = {b'hdrl', b'movi', b'idx1', b'JUNK', b'RIFF'}  # of AVI: what FFmpeg writes itself


def open_map(path):
    with open(path, 'rb') as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def whole_boxes(data, start=0):
    """(type, start, end) of one box after the other, heads included."""
    for kind, _, end in boxes(data, start, nested=False):
        yield kind, start, end
        start = end


def inside(box, head=8):
    """[(type, bytes)] of the boxes in a box whose own head has so many bytes."""
    return [(kind, box[start:end]) for kind, start, end in whole_boxes(box, head)]


def pack(*parts):
    """A box of parts, the first of which starts with its type."""
    return struct.pack('>I', 4 + sum(map(len, parts))) + b''.join(parts)


def track_id(trak):
    head = dict(inside(trak)).get(b'tkhd', b'')
    return struct.unpack_from('>I', head, 28 if head[8] else 20)[0] if len(head) >= 32 else 0


def graft(box, original, tracks):
    """A moov, or a box in it, with REST and SPATIAL of the original one, in place of its own; see copy_boxes."""
    kind, given = box[4:8], inside(original)
    if kind == b'stsd':  # with one entry
        spatial = [part for inner, part in inside(original[16:], ENTRY_HEAD) if inner in SPATIAL]
        return pack(box[4:16], pack(box[20:], *spatial)) if spatial else box
    rest = [(inner, part) for inner, part in given if inner in REST and kind in (b'moov', b'trak')]
    parts = [(inner, part) for inner, part in inside(box) if inner not in dict(rest)]
    for i, (inner, part) in enumerate(parts):
        same = [o for k, o in given if k == inner and (k != b'trak' or track_id(o) == tracks.get(track_id(part)))]
        if inner == WAY[kind] and same:
            parts[i] = inner, graft(part, same[0], tracks)
    return pack(kind, *(part for _, part in parts + rest))


def copy_boxes(source, result, tracks):
    """Copy what FFmpeg leaves out of MP4 and QuickTime; tracks are {the result's: the source's} by tkhd's numbers."""
    with open_map(source) as data:
        top = [(kind, data[start:end]) for kind, start, end in whole_boxes(data) if kind in (b'moov', b'uuid')]
    with open_map(result) as data:
        start, moov = next((start, data[start:end]) for kind, start, end in whole_boxes(data) if kind == b'moov')
    with open(result, 'r+b') as file:
        file.seek(start)  # its moov is its last box
        file.write(graft(moov, dict(top)[b'moov'], tracks))
        file.writelines(part for kind, part in top if kind == b'uuid')
        file.truncate()


def chunks(data, start, end):
    """(type, start, end) of each chunk of a RIFF file, a list's type being its own."""
    while start + 12 <= end:
        kind, size = struct.unpack_from('<4sI', data, start)
        stop = min(start + 8 + size + size % 2, end)
        yield data[start + 8 : start + 12] if kind == b'LIST' else kind, start, stop
        start = stop


def read_chunks(path):
    """What FFmpeg leaves out of an AVI file: its chunks, one after the other."""
    found = b''
    with open_map(path) as data:
        for kind, start, end in chunks(data, 12, len(data)):
            if kind == b'hdrl':
                found += b''.join(data[s:e] for kind, s, e in chunks(data, start + 12, end) if kind == b'IDIT')
            elif kind not in STREAMS:
                found += data[start:end]
    return found


def write_chunks(path, found):
    """Write such chunks into an AVI file that has room for them, len(found) bytes or more, in a JUNK before `movi`."""
    with open_map(path) as data:
        top = {kind: start for kind, start, _ in reversed([*chunks(data, 12, len(data))])}  # the first of each
    replaced = b'INFO' in top and any(kind == b'INFO' for kind, _, _ in chunks(found, 0, len(found)))
    start = top[b'INFO' if replaced else b'JUNK']
    with open(path, 'r+b') as file:
        file.seek(start)
        file.write(found + struct.pack('<4sI', b'JUNK', top[b'movi'] - start - len(found) - 8))
