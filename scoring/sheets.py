"""Pictures of progress and results: sheets of a batch, rows of photos side by side."""

import cv2
import numpy as np
import torch.nn.functional as F

from photos.levels import to_photo
from photos.picture import write_photo


def save_sheet(path, images, columns=4, cell=192):
    """Write up to columns x columns images (N, 3, H, W) in [0, 1] as one picture, each cell `cell` pixels wide."""
    images = images[: columns * columns].detach().float().clamp(0, 1)
    height = max(1, round(cell * images.shape[-2] / images.shape[-1]))
    images = F.interpolate(images, (height, cell), mode='area')
    rows = -(-len(images) // columns)
    sheet = images.new_ones(3, rows * height, columns * cell)
    for i, image in enumerate(images):
        y, x = i // columns * height, i % columns * cell
        sheet[:, y : y + height, x : x + cell] = image
    write_photo(path, to_photo(sheet))


def save_extremes(path, shown, cell=300):
    """One picture, a row for each of `shown`, a list of (caption, photos); each photo within a cell x 2 cell box."""
    rows = []
    for caption, photos in shown:
        cells = [fit_in(photo, cell, 2 * cell) for photo in photos]
        row = np.concatenate(cells, axis=1)
        title = np.full((22, row.shape[1], 3), 255, np.uint8)
        text = caption.encode('ascii', 'replace').decode()  # OpenCV's fonts have no other letters
        cv2.putText(title, text, (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
        rows += [title, row]
    write_photo(path, np.concatenate(rows))


def fit_in(photo, width, height):
    """A photo shrunk or enlarged to a width, or where it would be higher than `height` to that, on white."""
    scale = min(width / photo.shape[1], height / photo.shape[0])
    size = max(round(photo.shape[1] * scale), 1), max(round(photo.shape[0] * scale), 1)
    cell = np.full((size[1], width, 3), 255, np.uint8)
    left = (width - size[0]) // 2
    cell[:, left : left + size[0]] = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
    return cell
