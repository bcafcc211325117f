"""Augmentation of a training pair: what is done is drawn on the host, the pixels are made by OpenCV or on a device.

A `Recipe` is a few numbers; everything random is in it. `render` makes the arrays with OpenCV, `render_on` makes the
same tensors with torch on the device that the levels lie on, so that a GPU need not wait for the host. Both are tested
against each other.

Sources: hermosayhl/DeepUPE_pytorch (`hdrnet`: crop, flip and rotate, then squeezed to a square); dvlab-research/DeepUPE
(`deepupe`: random 256 x 256 crops, of which lowres is a copy).
"""

from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from model import LOW_SIZE
from photos import make_lowres


class Recipe(NamedTuple):
    """How a pair becomes a training item."""

    good: bool  # the photo is the target
    stops: tuple  # exposure changes of the photo, one after another, see `exposure_table`
    steps: tuple  # geometry of both: ('window', y, x, height, width), ('flip',), ('turn', degrees), ('resize', h, w)


# -------------------------------------------------------------------------------------------------------- draw


def draw_steps(height, width, rng):
    """With probability 0.9, in random order: crop to 0.75-0.95 (p 0.8), flip (p 0.5), rotate by up to 15 degrees (0.1).

    Args:
        height, width: of the photo.
        rng: numpy Generator.
    Source: hermosayhl/DeepUPE_pytorch.
    """
    steps = []
    if rng.random() < 0.9:
        kinds = (('window', 0.8), ('flip', 0.5), ('turn', 0.1))
        for i in rng.permutation(len(kinds)):
            kind, probability = kinds[i]
            if rng.random() >= probability:
                continue
            if kind == 'window':
                ratio = rng.uniform(0.75, 0.95)
                inner = max(int(height * ratio), 1), max(int(width * ratio), 1)
                steps.append(draw_window(height, width, *inner, rng))
            elif kind == 'flip':
                steps.append(('flip',))
            else:
                steps.append(('turn', int(rng.integers(-15, 16))))
    return steps


def draw_patch(height, width, size, rng):
    """A random size x size window; a photo smaller than that is enlarged first."""
    steps = []
    if min(height, width) < size:
        scale = size / min(height, width)
        height, width = max(round(height * scale), size), max(round(width * scale), size)
        steps.append(('resize', height, width))
    return [*steps, draw_window(height, width, size, size, rng)]


def draw_window(height, width, inner_height, inner_width, rng):
    """A random window of a photo of height x width."""
    y = int(rng.integers(height - inner_height + 1))
    x = int(rng.integers(width - inner_width + 1))
    return 'window', y, x, inner_height, inner_width


# ---------------------------------------------------------------------------------------------------- exposure


def exposure_table(stops, top):
    """New level of each level 0 to `top` of a photo exposed `stops` less; brighter where negative.

    2^-stops as much light, sRGB transfer curve.
    """
    levels = np.arange(top + 1, dtype=np.float32) / top
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4) * 2.0**-stops
    linear = np.minimum(linear, 1)
    curve = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(curve * top)


def darken(photo, stops):
    """A uint8 or uint16 photo through `exposure_table`."""
    return exposure_table(stops, np.iinfo(photo.dtype).max).astype(photo.dtype)[photo]


# ------------------------------------------------------------------------------------------- make, with OpenCV


def render(photo, target, recipe, full_size):
    """(lowres, fullres, target) of a pair by a recipe.

    Args:
        photo, target: (H, W, 3) uint8 or uint16.
        full_size: side of the square that both are squeezed to; 0 leaves them as the steps give them.
    Returns:
        three such arrays; lowres is 256 x 256.
    """
    photo = target if recipe.good else photo
    for stops in recipe.stops:
        photo = darken(photo, stops)
    for step in recipe.steps:
        photo, target = change(photo, step), change(target, step)
    lowres = make_lowres(photo)
    if full_size:
        photo, target = (cv2.resize(image, (full_size, full_size)) for image in (photo, target))
    return lowres, photo, target


def change(image, step):
    """An image (H, W, 3) after one step of a recipe; turning brings black in at the corners."""
    kind, *values = step
    if kind == 'window':
        y, x, height, width = values
        return image[y : y + height, x : x + width]
    if kind == 'flip':
        return image[:, ::-1]
    if kind == 'resize':
        return cv2.resize(image, values[::-1])
    height, width = image.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), values[0], 1)
    return cv2.warpAffine(np.ascontiguousarray(image), turn, (width, height))


# -------------------------------------------------------------------------------------------- make, on a device


def upload(image, device):
    """An (H, W, 3) uint8 or uint16 array as integer levels (H, W, 3) on a device, and their top level."""
    deep = image.dtype == np.uint16  # torch has few operations on uint16
    return torch.tensor(image.astype(np.int32) if deep else image, device=device), 65535 if deep else 255


def render_on(photo, target, recipe, full_size):
    """`render` by torch, on the device of the levels, in fractions of a level: differs by half a level or so.

    Args:
        photo, target: from `upload`.
    Returns:
        three tensors (3, H, W), float32 levels of 255.
    """
    (photo, photo_top), (target, top) = target if recipe.good else photo, target
    for stops in recipe.stops:
        table = torch.from_numpy(exposure_table(stops, photo_top).astype(np.int32))
        photo = table.to(photo.device)[photo.long()]
    photo, target = (as_levels(*image) for image in ((photo, photo_top), (target, top)))
    for step in recipe.steps:
        photo, target = change_on(photo, step), change_on(target, step)
    lowres = resize(photo, LOW_SIZE, LOW_SIZE)
    if full_size:
        photo, target = resize(photo, full_size, full_size), resize(target, full_size, full_size)
    return lowres, photo, target


def as_levels(image, top):
    """(H, W, 3) integers to (3, H, W) float32 in [0, 255]."""
    return image.permute(2, 0, 1).float().mul_(255 / top)


def change_on(image, step):
    """`change` of a tensor (3, H, W)."""
    kind, *values = step
    if kind == 'window':
        y, x, height, width = values
        return image[:, y : y + height, x : x + width]
    if kind == 'flip':
        return image.flip(-1)
    if kind == 'resize':
        return resize(image, *values)
    height, width = image.shape[1:]
    turn = cv2.invertAffineTransform(cv2.getRotationMatrix2D((width / 2, height / 2), values[0], 1))
    y = torch.arange(height, dtype=torch.float32, device=image.device)[:, None]
    x = torch.arange(width, dtype=torch.float32, device=image.device)
    sides = zip(turn.tolist(), (width, height), strict=True)
    coords = [((a * x + b * y + c) * 2 + 1) / size - 1 for (a, b, c), size in sides]
    coords = torch.stack(coords, dim=-1)[None]  # (1, H, W, 2)
    return F.grid_sample(image[None], coords, mode='bilinear', padding_mode='zeros', align_corners=False)[0]


def resize(image, height, width):
    """A tensor (3, H, W) as cv2.resize does it: bilinear, without smoothing first."""
    if image.shape[1:] == (height, width):
        return image
    return F.interpolate(image[None], (height, width), mode='bilinear', align_corners=False)[0]
