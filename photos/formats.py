"""Photo files as containers: what their headers say, their metadata, and how each format is written.

Pixels are decoded and encoded by OpenCV, headers and metadata read by Pillow, TIFF profiles written by tifffile (both
come with scikit-image). Nothing here knows what a photo shows.
"""

import contextlib
import io
import os
import struct
from dataclasses import dataclass, field

import cv2
import numpy as np
from PIL import Image, ImageOps, JpegImagePlugin

from photos import nvjpeg

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # we say in one line what is wrong with a file

JPEG = ('.jpg', '.jpeg', '.jpe')
TIFF = ('.tif', '.tiff')
RAW = ('.dng', '.nef', '.cr2', '.cr3', '.arw', '.raf', '.rw2', '.orf', '.pef', '.srw')
FLOAT = ('.exr', '.hdr')  # known, and refused
READABLE = (*JPEG, '.png', *TIFF, '.webp', '.avif', '.bmp', '.ppm', '.pgm', '.jp2', *RAW, *FLOAT)
DEEP = ('.png', *TIFF, '.jp2', '.ppm', '.pgm')  # take 16 bit
WITH_ALPHA = ('.png', *TIFF, '.webp', '.avif', '.jp2')
METADATA_BY_OPENCV = ('.png', '.webp', '.avif')
NAMES = {'exif': 'EXIF', 'xmp': 'XMP', 'icc': 'the colour profile'}
JPEG_HEADS = {'exif': b'Exif\0\0', 'xmp': b'http://ns.adobe.com/xap/1.0/\0', 'icc': b'ICC_PROFILE\0'}
SEGMENT = 65533  # bytes of a JPEG segment
QUALITY = 95  # of JPEG, and of lossy WebP and AVIF; a JPEG's own where that is higher


@dataclass
class Header:
    """What a file says of itself; a field that it does not say keeps its default."""

    size: tuple = (0, 0)  # width, height as stored
    kind: str = ''  # Pillow's name of the format
    mode: str = ''  # Pillow's name of the pixel layout
    frames: int = 1
    orientation: int = 1  # EXIF's 1 to 8
    metadata: dict = field(default_factory=dict)  # of exif (a TIFF block), xmp, icc: bytes
    quality: int = 0  # of a JPEG, 1 to 100
    sampling: int = 0  # of a JPEG's chroma, OpenCV's constant
    progressive: bool = False
    luma: bool = True  # a JPEG holds luma and chroma, not RGB itself
    lossless: bool = True  # of a WebP


SAMPLING = {
    0: cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    1: cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    2: cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
}


# ------------------------------------------------------------------------------------------------------ headers


def read_header(data):
    """Header of a file's bytes, without decoding its pixels; what Pillow cannot make out keeps its default."""
    Image.MAX_IMAGE_PIXELS = None  # read_picture has a limit of its own
    header = Header()
    # whatever a damaged header makes Pillow raise: OpenCV has the last word on the pixels
    with contextlib.suppress(Exception), Image.open(io.BytesIO(data)) as image:
        header.size, header.kind, header.mode = image.size, image.format or '', image.mode
        header.frames = getattr(image, 'n_frames', 1)
        header.lossless = header.kind != 'WEBP' or b'VP8L' in data[:4096]
        if header.kind == 'JPEG':
            header.quality = jpeg_quality(image.quantization)
            header.sampling = SAMPLING.get(JpegImagePlugin.get_sampling(image), 0)
            header.progressive = bool(image.info.get('progressive'))
            header.luma = image.info.get('adobe_transform') != 0
        header.metadata = read_metadata(image)
        if 'exif' in header.metadata:
            exif = Image.Exif()
            exif.load(header.metadata['exif'])
            header.orientation = exif.get(274, 1)
    return header


def read_metadata(image):
    """{'exif', 'xmp', 'icc': bytes} of what the header of Pillow's image has.

    A TIFF's EXIF is part of its own tags and cannot be taken out; OpenCV turns TIFF upright by itself.
    """
    blocks = {
        'exif': image.info.get('exif', b''),
        'xmp': image.info.get('xmp') or image.info.get('XML:com.adobe.xmp', b''),
        'icc': image.info.get('icc_profile', b''),
    }
    if image.format == 'TIFF':
        blocks |= {'exif': b'', 'xmp': image.tag_v2.get(700, b'')}
    blocks = {
        name: block.encode() if isinstance(block, str) else bytes(block) for name, block in blocks.items() if block
    }
    return {name: block.removeprefix(b'Exif\0\0') for name, block in blocks.items()}


def decode(path, data, header, gpu=None):
    """A file's pixels as OpenCV lays them out, (H, W), (H, W, 3) BGR or (H, W, 4) BGRA, or None.

    Args:
        data: the file's bytes.
        gpu: torch.device that decodes JPEG of three channels if it can.
    Raises:
        cv2.error, OSError: damaged.
    """
    if gpu is not None and (header.kind, header.mode, header.luma) == ('JPEG', 'RGB', True):
        pixels = nvjpeg.decode(data, gpu)
        if pixels is not None:
            return pixels
    if header.kind == 'TIFF' and header.mode in ('LA', 'RGBA'):
        # OpenCV multiplies the colours of an 8-bit TIFF by its alpha; Pillow does not
        with Image.open(io.BytesIO(data)) as image:
            if image.tag_v2.get(258, (8,))[0] == 8:  # bits per sample
                return cv2.cvtColor(np.asarray(ImageOps.exif_transpose(image).convert('RGBA')), cv2.COLOR_RGBA2BGRA)
    if header.kind != 'TIFF' and is_plain(path):  # a TIFF is turned upright on the way, which dst does not take
        # with dst it decodes into numpy's memory; imdecode copies the photo there, a fifth slower and twice the memory
        return cv2.imread(path, dst=None, flags=cv2.IMREAD_UNCHANGED)
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def is_plain(path):
    """Whether OpenCV opens a file of that name: one in ASCII on Windows, in UTF-8 elsewhere."""
    try:
        os.fspath(path).encode('ascii' if os.name == 'nt' else 'utf-8')
    except UnicodeEncodeError:
        return False
    return True


def jpeg_quality(tables):
    """The IJG quality whose luminance table is nearest to the file's, 1 to 100; 0 without a table."""
    if not tables:
        return 0
    base = np.array(LUMINANCE)
    found = np.sort(np.array(tables[min(tables)], dtype=float))
    scales = [5000 / q if q < 50 else 200 - 2 * q for q in range(1, 101)]
    candidates = [np.sort(np.clip((base * scale + 50) // 100, 1, 255)) for scale in scales]
    return 1 + int(np.argmin([abs(candidate - found).sum() for candidate in candidates]))


LUMINANCE = (  # ITU-T T.81, table K.1
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51,
    87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip


def is_whole(data, header):
    """False for a JPEG without its end, or a TIFF that is shorter than its own table of strips says."""
    if header.kind == 'JPEG':
        return data.rstrip(b'\0').endswith(b'\xff\xd9') or b'\xff\xd9' in data[data.rfind(b'\xff\xda') :]
    if header.kind == 'TIFF':
        import tifffile

        try:
            with tifffile.TiffFile(io.BytesIO(data)) as file:
                page = file.pages[0]
                return all(
                    at + size <= len(data) for at, size in zip(page.dataoffsets, page.databytecounts, strict=True)
                )
        except Exception:  # a damaged table
            return False
    return True


def upright_exif(exif):
    """An EXIF block that says that the photo stands upright, without the thumbnail of the dark original."""
    exif = bytearray(exif)
    order = {b'II': '<', b'MM': '>'}.get(bytes(exif[:2]))
    try:
        (start,) = struct.unpack_from(order + 'I', exif, 4)
        (count,) = struct.unpack_from(order + 'H', exif, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + 'HH', exif, at)
            if tag == 274 and kind == 3:
                struct.pack_into(order + 'H', exif, at + 8, 1)
        struct.pack_into(order + 'I', exif, start + 2 + 12 * count, 0)  # no second directory: it holds the thumbnail
    except (struct.error, TypeError):  # not EXIF as it should be: leave it out rather than turn the photo twice
        return b''
    return bytes(exif)


# ------------------------------------------------------------------------------------------------------ writing


def holds(extension, name, block):
    """Whether a format can hold a block of metadata, 'exif', 'xmp' or 'icc'."""
    if extension in JPEG:
        room = SEGMENT - len(JPEG_HEADS[name])
        return len(block) <= (255 * (room - 2) if name == 'icc' else room)
    return name != 'exif' if extension in TIFF else extension in METADATA_BY_OPENCV


def encode(extension, pixels, header, sampling_444=False, gpu=None):
    """A photo's bytes in the format of an extension, with the header's metadata and JPEG settings where it has them.

    Args:
        pixels: (H, W), (H, W, 3) BGR or (H, W, 4) BGRA, uint8 or uint16, of what the format takes.
        gpu: torch.device that encodes JPEG of three channels if it can, as baseline 4:4:4.
    Raises:
        ValueError: OpenCV cannot encode it.
    """
    options, quality = [], max(QUALITY, header.quality)
    metadata = {name: block for name, block in header.metadata.items() if holds(extension, name, block)}
    if extension in JPEG:
        if gpu is not None and pixels.ndim == 3 and not header.progressive:
            data = nvjpeg.encode(pixels, quality, gpu)
            if data is not None:
                return add_jpeg_metadata(data, metadata)
        options = [cv2.IMWRITE_JPEG_QUALITY, quality]
        options += [cv2.IMWRITE_JPEG_PROGRESSIVE, int(header.progressive)]
        sampling = SAMPLING[0] if sampling_444 else header.sampling
        options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling] if sampling else []
    elif extension == '.webp':
        options = [cv2.IMWRITE_WEBP_QUALITY, 101 if header.lossless else QUALITY]  # above 100: lossless
    elif extension == '.avif':
        options = [cv2.IMWRITE_AVIF_QUALITY, QUALITY]
    elif extension in TIFF and metadata:
        return encode_tiff(pixels, metadata)
    kinds = {'exif': cv2.IMAGE_METADATA_EXIF, 'xmp': cv2.IMAGE_METADATA_XMP, 'icc': cv2.IMAGE_METADATA_ICCP}
    theirs = metadata if extension in METADATA_BY_OPENCV else {}
    blocks = [np.frombuffer(block, np.uint8) for block in theirs.values()]
    try:
        done, data = cv2.imencodeWithMetadata(extension, pixels, [kinds[name] for name in theirs], blocks, options)
    except cv2.error as error:
        raise ValueError(f'OpenCV cannot encode it ({error.err or error.code})') from error
    if not done:
        raise ValueError(f'OpenCV cannot encode {pixels.shape[1]} x {pixels.shape[0]} as {extension}')
    return add_jpeg_metadata(data, metadata) if extension in JPEG else data


def add_jpeg_metadata(data, metadata):
    """A JPEG's bytes with EXIF, XMP and colour profile, of which it `holds` each, behind its JFIF segment.

    OpenCV does not write XMP into a JPEG, nvJPEG nothing at all. Source: Exif 2.3, XMP part 3, ICC.1:2010 annex B.4.
    """
    segments = [(0xE1, JPEG_HEADS[name] + metadata[name]) for name in ('exif', 'xmp') if name in metadata]
    profile, room = metadata.get('icc', b''), SEGMENT - len(JPEG_HEADS['icc']) - 2
    parts = [profile[at : at + room] for at in range(0, len(profile), room)]
    segments += [(0xE2, JPEG_HEADS['icc'] + bytes([i, len(parts)]) + part) for i, part in enumerate(parts, 1)]
    added = b''.join(bytes([255, marker]) + (len(block) + 2).to_bytes(2, 'big') + block for marker, block in segments)
    if not added:
        return data
    start = data[:6].tobytes()
    at = 2 + (2 + int.from_bytes(start[4:], 'big') if start[2:4] == b'\xff\xe0' else 0)
    return np.concatenate([data[:at], np.frombuffer(added, np.uint8), data[at:]])


def encode_tiff(pixels, metadata):
    """A deflated TIFF with colour profile and XMP, which OpenCV does not write."""
    import tifffile

    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB)
    tags = [(700, 'B', len(metadata['xmp']), metadata['xmp'], True)] if metadata.get('xmp') else []
    file = io.BytesIO()
    tifffile.imwrite(
        file, pixels, photometric='minisblack' if pixels.ndim == 2 else 'rgb', compression='zlib',
        extrasamples=['unassalpha'] if pixels.ndim == 3 and pixels.shape[2] == 4 else None,
        iccprofile=metadata.get('icc') or None, extratags=tags, metadata=None,
    )  # fmt: skip
    return np.frombuffer(file.getvalue(), np.uint8)
