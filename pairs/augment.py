"""Augmentation of a training pair: what is done is drawn on the host, the pixels are made by OpenCV or on a device.

A `Recipe` is a few numbers; everything random is in it. `render` makes a pair's arrays with OpenCV, `render_on`
a batch of the same with torch on the device that the levels lie on, so that a GPU need not wait for the host. Both are
tested against each other.

Sources: hermosayhl/DeepUPE_pytorch (`hdrnet`: crop, flip and rotate, then squeezed to a square); dvlab-research/DeepUPE
(`deepupe`: random 256 x 256 crops, of which lowres is a copy).
"""

from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from kernels import make_lowres
from model import LOW_SIZE
from pairs.degrade import Degradation, degrade, degrade_on, finish, finish_on, to_device
from photos.colour import decode_srgb, encode_srgb
from photos.lowres import shrink


class Recipe(NamedTuple):
    """How a pair becomes a training item."""

    target_as_input: bool  # the photo is the target
    stops: tuple  # exposure changes of the photo, one after another, see `exposure_table`
    steps: tuple  # geometry of both: ('window', y, x, height, width), ('flip',), ('turn', degrees), ('resize', h, w)
    degradation: Degradation | None = None  # the photo and its target are simulated from the target
    levels: tuple = ()  # (black, white) of the target, which become 0 and 1


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
    return np.round(encode_srgb(np.minimum(decode_srgb(levels) * 2.0**-stops, 1)) * top)


def darken(photo, stops):
    """A uint8 or uint16 photo through `exposure_table`."""
    return exposure_table(stops, np.iinfo(photo.dtype).max).astype(photo.dtype)[photo]


# ------------------------------------------------------------------------------------------- make, with OpenCV


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
    for stops in recipe.stops:
        photo = darken(photo, stops)
    for step in recipe.steps:
        photo, target = change(photo, step), change(target, step)
    if recipe.degradation:  # last: few pixels are left
        photo, target = degrade(squeeze(target, full_size), recipe.degradation)
    lowres = make_lowres(photo, lowres_mode, all_cores=False)
    target = squeeze(target, full_size)
    return lowres, squeeze(photo, full_size), finish(target, recipe.levels) if recipe.levels else target


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


# -------------------------------------------------------------------------------------------- make, on a device


def upload(image, device):
    """An (H, W, 3) uint8 or uint16 array as integer levels (H, W, 3) on a device, and their top level."""
    deep = image.dtype == np.uint16  # torch has few operations on uint16
    return to_device(image.astype(np.int32) if deep else image, device), 65535 if deep else 255


def render_on(pairs, recipes, full_size, lowres_mode='bilinear'):
    """`render` of a batch by torch, on the device of the levels and in fractions of one: differs by half one or so.

    Windows, flips and sizes are one reading of all photos together, whatever their sizes; exposures and turns, which
    some have, are made photo by photo before, degradations and the area shrink photo by photo after.

    Args:
        pairs: ((levels, top) of a photo, (levels, top) of its target) of each item, from `upload`.
        recipes: of each item.
    Returns:
        three tensors (N, 3, H, W), float32 levels of 255.
    """
    photos, targets, rests = [], [], []
    for (photo, target), recipe in zip(pairs, recipes, strict=True):
        photo = target if recipe.target_as_input else photo
        for stops in recipe.stops:
            photo = expose_on(*photo, stops)
        done = max((i + 1 for i, step in enumerate(recipe.steps) if step[0] == 'turn'), default=0)
        for step in recipe.steps[:done]:
            photo, target = change_on(*photo, step), change_on(*target, step)
        photos.append(photo)
        targets.append(target)
        rests.append(recipe.steps[done:])
    places, low = (
        [trace(steps, *image.shape[:2], size) for (image, _), steps in zip(photos, rests, strict=True)]
        for size in (full_size, LOW_SIZE)
    )
    fullres, target = sample(photos, places), sample(targets, places)
    lowres = sample(photos, low)
    for i, recipe in enumerate(recipes):
        if recipe.degradation:
            made = degrade_on(target[i].permute(1, 2, 0), targets[i][1], recipe.degradation)
            fullres[i], target[i] = (image.permute(2, 0, 1) for image in made)
        if recipe.levels:
            target[i] = finish_on(target[i].permute(1, 2, 0), targets[i][1], recipe.levels).permute(2, 0, 1)
        resized = any(step[0] == 'resize' for step in rests[i])
        if lowres_mode == 'area' and not resized and not recipe.degradation:
            image, top = photos[i]
            for step in rests[i]:
                image, _ = change_on(image, top, step)
            lowres[i] = shrink(image.permute(2, 0, 1).float()) * (255 / top)
        elif lowres_mode == 'area':
            lowres[i] = shrink(fullres[i])
        elif recipe.degradation:
            lowres[i] = F.interpolate(fullres[i : i + 1], (LOW_SIZE, LOW_SIZE), mode='bilinear', align_corners=False)[0]
    return lowres, fullres, target


def expose_on(image, top, stops):
    table = to_device(exposure_table(stops, top), image.device)
    return table[image.long()].to(image.dtype), top


def change_on(image, top, step):
    """`change` of the levels of an image."""
    kind, *values = step
    if kind == 'window':
        y, x, height, width = values
        return image[y : y + height, x : x + width], top
    if kind == 'flip':
        return image.flip(1), top
    height, width = image.shape[:2]
    turn = cv2.invertAffineTransform(cv2.getRotationMatrix2D((width / 2, height / 2), values[0], 1))
    y = torch.arange(height, dtype=torch.float32, device=image.device)[:, None]
    x = torch.arange(width, dtype=torch.float32, device=image.device)
    sides = zip(turn.tolist(), (width, height), strict=True)
    coords = [((a * x + b * y + c) * 2 + 1) / size - 1 for (a, b, c), size in sides]
    coords = torch.stack(coords, dim=-1)[None]  # (1, H, W, 2)
    planes = image.permute(2, 0, 1)[None].float()
    turned = F.grid_sample(planes, coords, mode='bilinear', padding_mode='zeros', align_corners=False)
    return turned[0].permute(1, 2, 0).round().to(image.dtype), top


def trace(steps, height, width, size):
    """Where an image of height x width is read for a square of `size`, or 0 for its own size, after steps but turns.

    Returns:
        (rows, columns) in pixels, as cv2.resize places them: pixel centres at whole numbers.
    """
    shapes = [(height, width)]
    for kind, *values in steps:
        shapes.append(tuple(values[-2:]) if kind in ('window', 'resize') else shapes[-1])
    y, x = (stretch(np.arange(size or side), size or side, side) for side in shapes[-1])
    for (kind, *values), (height, width) in zip(reversed(steps), reversed(shapes[:-1]), strict=True):
        if kind == 'window':
            y, x = y + values[0], x + values[1]
        elif kind == 'flip':
            x = width - 1 - x
        else:
            y, x = stretch(y, values[0], height), stretch(x, values[1], width)
    return y, x


def stretch(place, size, other):
    """Places among `size` pixels as places among the `other` that they were made of."""
    return np.clip((place + 0.5) * other / size - 0.5, 0, other - 1)


def sample(images, places):
    """Images (H, W, 3) of levels, each of its own size, read bilinearly at (rows, columns): (N, 3, h, w) float32."""
    device = images[0][0].device
    pixels = torch.cat([image.reshape(-1, 3) for image, _ in images])
    heights, widths = np.array([image.shape[:2] for image, _ in images]).T
    starts = np.cumsum(heights * widths) - heights * widths
    # one number of each image, beside its row of places
    numbers = np.stack([starts, widths, heights - 1, widths - 1])[..., None]
    start, width, last_y, last_x = to_device(numbers, device)
    y, x = (to_device(np.float32([place[axis] for place in places]), device) for axis in (0, 1))
    above, left = y.long(), x.long()
    rows = [start + row * width for row in (above, torch.minimum(above + 1, last_y))]
    columns = [left, torch.minimum(left + 1, last_x)]
    lines = []
    for row in rows:
        near, far = (pixels[row[:, :, None] + column[:, None, :]].float() for column in columns)
        lines.append(near.lerp_(far, x.frac()[:, None, :, None]))
    scale = to_device(np.float32([255 / top for _, top in images]), device).view(-1, 1, 1, 1)
    return lines[0].lerp_(lines[1], y.frac()[:, :, None, None]).mul_(scale).permute(0, 3, 1, 2)
