"""Before and after of many photos on one page."""

import os

import cv2
import numpy as np

from photos.levels import to_8bit
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
        try:
            cells.append(draw_pair(os.path.basename(original), read_photo(original), read_photo(result)))
        except (OSError, ValueError):  # reported already, or a file of the user's under a result's name
            continue
    rows = []
    for first in range(0, len(cells), 2):
        pair = cells[first : first + 2]
        row = np.full((max(map(len, pair)), 4 * CELL + GAP, 3), 255, np.uint8)
        for i, picture in enumerate(pair):
            row[: len(picture), i * (2 * CELL + GAP) :][:, : 2 * CELL] = picture
        rows.append(row)
    if rows:
        write_photo(path, np.concatenate(rows))


def draw_pair(name, before, after):
    """Two photos side by side under their name, (H, 2 CELL, 3) uint8."""
    height = max(min(round(CELL * before.shape[0] / before.shape[1]), 2 * CELL), 1)
    both = [cv2.resize(to_8bit(photo), (CELL, height), interpolation=cv2.INTER_AREA) for photo in (before, after)]
    title = np.full((20, 2 * CELL, 3), 255, np.uint8)
    name = name.encode('ascii', 'replace').decode()
    cv2.putText(title, name, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([title, np.concatenate(both, axis=1)])
