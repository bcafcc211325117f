"""How a result is scored: at what size, without which borders, with whose brightness; standard protocols by name."""

import re
from typing import NamedTuple

import cv2
import numpy as np


class Protocol(NamedTuple):
    """How a photo is scored; `str()` of it names every choice."""

    resize: str = ''  # '' own size, '512x512', or 'long512' for a long side of 512
    crop_border: int = 0  # pixels left out on every side
    gt_mean: bool = False  # scale the result to the target's mean grey level first

    def check(self):
        """Raise ValueError for a resize that is not one."""
        if self.resize and not re.fullmatch(r'long[1-9]\d*|[1-9]\d*x[1-9]\d*', self.resize):
            raise ValueError(f"resize: expected '', such as 512x512, or such as long512, got {self.resize!r}")

    def prepare(self, photo):
        """A photo at the size that is scored (area interpolation where it shrinks, bicubic where it grows)."""
        if not self.resize:
            return photo
        height, width = photo.shape[:2]
        if self.resize.startswith('long'):
            scale = int(self.resize[4:]) / max(height, width)
            size = max(round(width * scale), 1), max(round(height * scale), 1)
        else:
            size = tuple(int(side) for side in self.resize.split('x'))
        shrinks = size[0] * size[1] < width * height
        return cv2.resize(photo, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)

    def align(self, result, target):
        """Result and target as they are compared: without borders, the result at the target's brightness if so asked.

        Args:
            result, target: (H, W, 3) uint8 RGB.
        Raises:
            ValueError: the sizes differ, or nothing is left between the borders.
        """
        if result.shape != target.shape:
            sizes = ' and '.join(f'{image.shape[1]} x {image.shape[0]}' for image in (result, target))
            raise ValueError(f'expected the size of its target, got {sizes}')
        if self.gt_mean:
            result = match_mean(result, target)
        return self.crop(result), self.crop(target)

    def crop(self, photo):
        """A photo without its borders; raises ValueError where nothing is left."""
        border = self.crop_border
        inside = np.ascontiguousarray(photo[border:-border, border:-border]) if border else photo
        if not inside.size:
            raise ValueError(f'nothing left inside a border of {border} pixels')
        return inside

    def __str__(self):
        size = {'': 'own size', 'l': f'long side {self.resize[4:]}'}.get(self.resize[:1], self.resize)
        return ', '.join(
            [f'8-bit RGB at {size}']
            + [f'{self.crop_border} px cropped from each border'] * bool(self.crop_border)
            + ['GT-MEAN: brightness scaled to the target\'s, not comparable to scores without'] * self.gt_mean
        )  # fmt: skip


class Standard(NamedTuple):
    """A protocol of the literature: which photos of a data set, and how they are scored."""

    title: str
    folder: str  # of the data set's, holds the test pairs
    count: int  # of the test pairs
    protocol: Protocol


STANDARDS = {
    'lol': Standard('LOL v1, our485 -> eval15', 'eval15', 15, Protocol()),
    'lol_gt_mean': Standard('LOL v1, our485 -> eval15', 'eval15', 15, Protocol(gt_mean=True)),
}


def match_mean(result, target):
    """The result scaled so that its mean grey level is the target's, as papers on LOL call GT-mean."""
    means = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).mean() for image in (result, target)]
    return np.clip(result * (means[1] / max(means[0], 1e-6)), 0, 255).round().astype(np.uint8)
