"""Many photos on one page: before and after of files, a batch of training."""

import contextlib
import os

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from photos.levels import to_8bit, to_photo
from photos.picture import read_photo, write_photo

CELL = 240  # width of a photo in pixels
GAP = 8  # between two pairs
LIMIT = 200  # pairs


def save_contact_sheet(path, pairs):
    """Write before and after of each photo that has a result, two pairs to a row, with their names.

    Args:
        pairs: (path of the original, path of the result); the first 200 that can be read are shown.
    """
    cells = []
    for original, result in pairs:
        if len(cells) == LIMIT:
            break
        with contextlib.suppress(OSError, ValueError):  # reported already, or a file of the user's under its name
            cells.append(draw_row(os.path.basename(original), (read_photo(original), read_photo(result))))
    rows = []
    for first in range(0, len(cells), 2):
        pair = cells[first : first + 2]
        rows.append(np.full((max(map(len, pair)), 4 * CELL + GAP, 3), 255, np.uint8))
        for picture, left in zip(pair, (0, 2 * CELL + GAP), strict=False):
            rows[-1][: len(picture), left : left + 2 * CELL] = picture
    if rows:
        write_photo(path, np.concatenate(rows))


def draw_row(name, photos, cell=CELL):
    """Photos side by side under a name, (H, n cell, 3) uint8; each within a cell x 2 cell box, on white."""
    shown = []
    for photo in map(to_8bit, photos):
        scale = min(cell / photo.shape[1], 2 * cell / photo.shape[0])
        size = max(round(photo.shape[1] * scale), 1), max(round(photo.shape[0] * scale), 1)
        left = (cell - size[0]) // 2
        shown.append(np.full((size[1], cell, 3), 255, np.uint8))
        shown[-1][:, left : left + size[0]] = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
    title = np.full((20, len(shown) * cell, 3), 255, np.uint8)
    name = name.encode('ascii', 'replace').decode()  # OpenCV's fonts have no other letters
    cv2.putText(title, name, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([title, np.concatenate(shown, axis=1)])


def save_sheet(path, images, columns=4, cell=192):
    """Write up to columns x columns images (N, 3, H, W) in [0, 1] as one picture, each cell `cell` pixels wide."""
    images = images[: columns * columns].detach().float().clamp(0, 1)
    cells = [*F.interpolate(images, (max(1, round(cell * images.shape[-2] / images.shape[-1])), cell), mode='area')]
    cells += [torch.ones_like(cells[0])] * (-len(cells) % columns)
    rows = [torch.cat(cells[first : first + columns], dim=2) for first in range(0, len(cells), columns)]
    write_photo(path, to_photo(torch.cat(rows, dim=1)))
