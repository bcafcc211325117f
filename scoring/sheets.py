"""Pictures of progress and results: sheets of a batch, curves, rows of photos side by side."""

import cv2
import numpy as np
import torch.nn.functional as F

from photos.levels import to_photo
from photos.picture import write_photo

COLORS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (255, 127, 14))
WIDTH, HEIGHT, MARGIN = 800, 480, 60


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


def draw_curves(curves, title):
    """(H, W, 3) picture of {name: [{epoch: value}]}; runs of one name share a colour."""
    points = [(epoch, value) for psnrs in curves.values() for psnr in psnrs for epoch, value in psnr.items()]
    last = max(max(epoch for epoch, _ in points), 2)
    low, high = np.floor(min(v for _, v in points)), np.ceil(max(v for _, v in points))
    picture = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)

    def place(epoch, value):
        x = MARGIN + (epoch - 1) / (last - 1) * (WIDTH - 2 * MARGIN)
        return round(x), round(HEIGHT - MARGIN - (value - low) / max(high - low, 1) * (HEIGHT - 2 * MARGIN))

    def write(text, x, y, color=(60, 60, 60)):
        cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.5, color, 1, cv2.LINE_AA)

    for value in np.arange(low, high + 1):
        cv2.line(picture, place(1, value), place(last, value), (225, 225, 225), 1)
        write(f'{value:.0f}', MARGIN - 30, place(1, value)[1] + 5)
    for epoch in range(1, last + 1, max(1, last // 10)):
        write(str(epoch), place(epoch, low)[0] - 5, HEIGHT - MARGIN + 22)
    write('epoch', WIDTH // 2 - 20, HEIGHT - 12)
    write(title, 10, 25)
    for i, (name, psnrs) in enumerate(curves.items()):
        color = COLORS[i % len(COLORS)]
        for psnr in psnrs:
            line = np.array([place(*point) for point in sorted(psnr.items())])
            cv2.polylines(picture, [line], False, color, 2, cv2.LINE_AA)
        write(
            name + (f' ({len(psnrs)} runs)' if len(psnrs) > 1 else ''),
            WIDTH - 260,
            HEIGHT - MARGIN - 20 - 22 * i,
            color,
        )
    return picture


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
