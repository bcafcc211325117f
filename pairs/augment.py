"""Augmentation of a training pair: what is done is drawn as a few numbers, a `Recipe`; `render` makes the pixels.

Sources: hermosayhl/DeepUPE_pytorch (`hdrnet`: crop, flip and rotate, then squeezed to a square); dvlab-research/DeepUPE
(`deepupe`: random 256 x 256 crops, of which lowres is a copy).
"""

from typing import NamedTuple

import cv2
import numpy as np

from pairs.degrade import Darkening, Degradation, darken, degrade
from photos.lowres import make_lowres


class Recipe(NamedTuple):
    """How a pair becomes a training item."""

    target_as_input: bool  # the photo is the target
    steps: tuple  # geometry of both: ('window', y, x, height, width), ('flip',), ('turn', degrees), ('resize', h, w)
    degradation: Degradation | None = None  # the photo and its target are simulated from the target
    darkening: Darkening | None = None  # the photo is darkened further, its target stays


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


def draw_patch(height, width, size, rng=None):
    """A random size x size window, or that in the middle; a photo smaller than that is enlarged first."""
    steps = []
    if min(height, width) < size:
        scale = size / min(height, width)
        height, width = max(round(height * scale), size), max(round(width * scale), size)
        steps.append(('resize', height, width))
    if rng is None:
        return [*steps, ('window', (height - size) // 2, (width - size) // 2, size, size)]
    return [*steps, draw_window(height, width, size, size, rng)]


def draw_window(height, width, inner_height, inner_width, rng):
    """A random window of a photo of height x width."""
    y = int(rng.integers(height - inner_height + 1))
    x = int(rng.integers(width - inner_width + 1))
    return 'window', y, x, inner_height, inner_width


# -------------------------------------------------------------------------------------------------------- make


def render(photo, target, recipe, full_size, lowres_mode='bilinear'):
    """(lowres, fullres, target) of a pair by a recipe.

    Args:
        photo, target: (H, W, 3) uint8 or uint16.
        full_size: side of the square that both are squeezed to; 0 leaves them as the steps give them.
        lowres_mode: how lowres is made, see model.IlluminationNet.
    Returns:
        three such arrays; lowres is 256 x 256, with mode 'area' float32 levels of 255.
    """
    photo = target if recipe.target_as_input else photo
    for step in recipe.steps:
        photo, target = change(photo, step), change(target, step)
    if recipe.degradation:  # last: few pixels are left
        photo, target = degrade(squeeze(target, full_size), recipe.degradation)
    if recipe.darkening:
        photo = darken(squeeze(photo, full_size), recipe.darkening)
    lowres = make_lowres(photo, lowres_mode)
    return lowres, squeeze(photo, full_size), squeeze(target, full_size)


def squeeze(image, size):
    """An image at size x size, or as it is with 0."""
    return cv2.resize(image, (size, size)) if size and image.shape[:2] != (size, size) else image


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
