"""A picture of a batch of photos."""

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
