"""How a result is scored and against what: size, borders, brightness; LOL's standard set; baselines."""

import re
from typing import NamedTuple

import cv2
import numpy as np
from skimage import exposure

from pairs.lists import stem_of
from scoring.metrics import match_mean

BASELINES = ('gamma', 'best_gamma', 'clahe', 'rescale')
GAMMAS = np.arange(10, 151) / 100  # candidates for the best single gamma


class Protocol(NamedTuple):
    """How a photo is scored; `str()` of it names every choice."""

    resize: str = ''  # '' own size, '512x512', or 'long512' for a long side of 512
    crop_border: int = 0  # pixels left out on every side
    gt_mean: bool = False  # scale the result to the target's mean grey level first

    def check(self):
        """Raise ValueError for a resize that is not one."""
        if not re.fullmatch(r'|long[1-9]\d*|[1-9]\d*x[1-9]\d*', self.resize):
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


EVAL15 = ['1', '22', '23', '55', '79', '111', '146', '179', '493', '547', '665', '669', '748', '778', '780']


def describe_lol(protocol, pairs):
    """What was scored as LOL's; pairs under other names than eval15's are said to be another set."""
    own = sorted(stem_of(photo) for photo, _ in pairs) == sorted(EVAL15)
    other = f'like lol, but on {len(pairs)} pairs that are not by name its 15, NOT COMPARABLE'
    return f'protocol {"lol (LOL v1, our485 -> eval15)" if own else other}, {protocol}'


# ----------------------------------------------------------------------------------------------------------- baselines


def choose_baselines(names):
    """{label: function photo -> photo} of names of BASELINES, each once; without best_gamma, which needs targets.

    gamma is 0.4; clahe is scikit-image's equalize_adapthist; rescale stretches a photo's levels to 0 to 255.
    """
    for i, name in enumerate(names):
        if name not in BASELINES or name in names[:i]:
            raise ValueError(f'baselines: expected {", ".join(BASELINES)}, each once, got {name!r}')
    functions = {
        'gamma': ('gamma 0.4', lambda photo: exposure.adjust_gamma(photo, 0.4)),
        'clahe': ('CLAHE', lambda photo: round_levels(exposure.equalize_adapthist(photo) * 255)),
        'rescale': ('rescale', lambda photo: round_levels(exposure.rescale_intensity(photo, 'image', (0, 255.0)))),
    }
    return dict(functions[name] for name in names if name != 'best_gamma')


def round_levels(photo):
    return photo.round().astype(np.uint8)


def gamma_decibels(photo, target):
    """PSNR (G,) of a photo under each of GAMMAS, exact for 8 bit, from level statistics alone.

    Args:
        photo, target: (H, W, 3) uint8.
    """
    tables = np.stack([gamma_levels(gamma) for gamma in GAMMAS]).astype(np.float64)  # (G, 256)
    levels, wanted = photo.ravel(), target.ravel().astype(np.float64)
    counts = np.bincount(levels, minlength=256)
    sums = np.bincount(levels, weights=wanted, minlength=256)
    squares = tables**2 @ counts - 2 * tables @ sums + (wanted**2).sum()
    return 10 * np.log10(255**2 / np.maximum(squares / levels.size, 1e-9))


def best_gamma(decibels):
    """(label, function photo -> photo) of the gamma with the highest mean PSNR: an upper bound that saw the targets.

    Args:
        decibels: list of gamma_decibels of every pair that can be read.
    """
    gamma = float(GAMMAS[sum(decibels, np.zeros(len(GAMMAS))).argmax()])
    levels = gamma_levels(gamma)
    return f'gamma {gamma:.2f} (best here)', lambda photo: levels[photo]


def gamma_levels(gamma):
    """Table (256,) uint8 of a gamma curve on 8-bit levels."""
    return round_levels((np.arange(256) / 255) ** gamma * 255)
