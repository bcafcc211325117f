"""Photos on disk and in memory: read, write, and tensors of them.

A photo is an (H, W, 3) RGB array, uint8 or uint16. This is the one place where OpenCV's BGR is turned round.
"""

import os

import cv2
import numpy as np
import torch

from model import LOW_SIZE

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


def is_photo(name):
    """Whether a file of that name is a photo: a known extension, and not hidden."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith('.')


def list_photos(folder):
    """Paths of the photos in a folder, sorted by name; hidden files and other types are left out.

    Raises:
        FileNotFoundError: no such folder, or no photo in it.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f'{folder}: expected a folder of photos, found none')
    names = sorted(filter(is_photo, os.listdir(folder)))
    if not names:
        raise FileNotFoundError(f'{folder}: no photos (looked for {" ".join(EXTENSIONS)})')
    return [os.path.join(folder, name) for name in names]


def read_photo(path):
    """Read a photo upright (EXIF orientation applied) at its own bit depth.

    Returns:
        (H, W, 3) RGB, uint8 or uint16; greyscale becomes RGB, alpha is dropped.
    Raises:
        ValueError: not a readable photo of 8 or 16 bit. OSError: the file cannot be opened.
    """
    with open(path, 'rb') as file:
        data = np.frombuffer(file.read(), np.uint8)
    if data.size == 0:
        raise ValueError(f'{path}: expected a photo, got an empty file')
    try:
        photo = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:
        raise ValueError(f'{path}: OpenCV cannot decode it ({error.err or error.code})') from error
    if photo is None:
        raise ValueError(f'{path}: expected a photo, OpenCV cannot decode it (truncated, or another type?)')
    if photo.dtype not in (np.uint8, np.uint16):
        raise ValueError(f'{path}: expected 8 or 16 bit, got {photo.dtype}')
    return reverse_channels(photo)


def reverse_channels(photo):
    """Turn BGR to RGB or back in place, some rows at a time: a large photo need not be in memory twice."""
    for y in range(0, len(photo), 256):
        rows = photo[y : y + 256]
        rows[:] = cv2.cvtColor(rows, cv2.COLOR_BGR2RGB)
    return photo


def write_photo(path, photo, reuse=False):
    """Write an (H, W, 3) RGB photo whole or not at all: to a temporary name first, then renamed.

    Quality 95 for JPEG, lossless WebP, 16 bit where the format has it (PNG, TIFF) and rounded to 8 elsewhere.

    Args:
        reuse: the photo's memory may be changed.
    Raises:
        ValueError: OpenCV cannot write this type. OSError: disk full, no permission.
    """
    extension = os.path.splitext(path)[1].lower()
    if photo.dtype == np.uint16 and extension not in ('.png', '.tif', '.tiff'):
        photo = (photo / 257).round().astype(np.uint8)
    options = [cv2.IMWRITE_JPEG_QUALITY, 95] if extension in ('.jpg', '.jpeg') else []
    try:
        done, data = cv2.imencode(extension, reverse_channels(photo if reuse else photo.copy()), options)
    except cv2.error as error:
        raise ValueError(f'{path}: OpenCV cannot encode it ({error.err or error.code})') from error
    if not done:
        raise ValueError(f'{path}: OpenCV cannot encode {photo.shape[1]} x {photo.shape[0]} as {extension}')
    save_whole(data.tofile, path)


def save_whole(save, path):
    """Call save(temporary path), then rename to `path`: a killed run leaves the old file or the new one, never half."""
    partial = f'{path}.{os.getpid()}.part'
    try:
        save(partial)
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def to_tensor(photo, device='cpu'):
    """(H, W, 3) uint8 or uint16 to (1, 3, H, W) float32 in [0, 1]."""
    scale = np.float32(np.iinfo(photo.dtype).max)
    if photo.dtype == np.uint16:
        photo = photo.astype(np.float32)  # torch has few operations on uint16
    return torch.from_numpy(photo).to(device).permute(2, 0, 1)[None].float().div(float(scale))


def to_photo(tensor, dtype=np.uint8, truncate=False):
    """(1, 3, H, W) or (3, H, W) in [0, 1] to (H, W, 3), clipped to the range of dtype, rounded or truncated."""
    top = np.iinfo(dtype).max
    levels = tensor.reshape(tensor.shape[-3:]).clamp(0, 1).mul(top).permute(1, 2, 0)
    return (levels if truncate else levels.round()).cpu().numpy().astype(dtype)


def make_lowres(photo, mode='bilinear'):
    """The (256, 256, 3) copy that the coefficient network looks at; mode 'bilinear' or 'nearest'."""
    if photo.shape[:2] == (LOW_SIZE, LOW_SIZE):
        return photo
    interpolation = {'bilinear': cv2.INTER_LINEAR, 'nearest': cv2.INTER_NEAREST}[mode]
    return cv2.resize(photo, (LOW_SIZE, LOW_SIZE), interpolation=interpolation)
