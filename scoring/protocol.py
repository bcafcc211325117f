"""What an evaluation is made of: its protocol, baselines to compare with, statistics and tables.

test.py puts it together. A score is a dict {metric: value} of one photo by one method.
"""

import os
import re
from typing import NamedTuple

import cv2
import numpy as np
from skimage import exposure

from scoring.metrics import LABELS

GAMMAS = np.arange(10, 151) / 100  # candidates for the best single gamma

# ---------------------------------------------------------------------------------------------------- protocol


class Protocol(NamedTuple):
    """How a photo is scored; `str()` of it names every choice."""

    resize: str = ''  # '' own size, '512x512', or 'long512' for a long side of 512
    crop_border: int = 0  # pixels left out on every side
    gt_mean: bool = False  # scale the result to the target's mean grey level first

    def check(self):
        """Raise ValueError for a resize that is not one, or a negative border."""
        if self.resize and not re.fullmatch(r'long[1-9]\d*|[1-9]\d*x[1-9]\d*', self.resize):
            raise ValueError(f"resize: expected '', such as 512x512, or such as long512, got {self.resize!r}")
        if self.crop_border < 0:
            raise ValueError(f'crop_border: expected 0 or more pixels, got {self.crop_border}')

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

    def score(self, result, target, functions):
        """{metric: value} of one result; a metric of `functions` that is not at hand (None) stays empty.

        Raises:
            ValueError: the sizes differ, or nothing is left between the borders.
        """
        if result.shape != target.shape:
            sizes = ' and '.join(f'{image.shape[1]} x {image.shape[0]}' for image in (result, target))
            raise ValueError(f'expected the size of its target, got {sizes}')
        if self.gt_mean:
            result = match_mean(result, target)
        if border := self.crop_border:
            result, target = (image[border:-border, border:-border] for image in (result, target))
            if not result.size:
                raise ValueError(f'nothing left inside a border of {border} pixels')
            result, target = np.ascontiguousarray(result), np.ascontiguousarray(target)
        return {name: function(result, target) if function else '' for name, function in functions.items()}

    def __str__(self):
        size = {'': 'own size', 'l': f'long side {self.resize[4:]}'}.get(self.resize[:1], self.resize)
        return ', '.join(
            [f'8-bit RGB at {size}']
            + [f'{self.crop_border} px cropped from each border'] * bool(self.crop_border)
            + ['GT-MEAN: brightness scaled to the target\'s, not comparable to scores without'] * self.gt_mean
        )  # fmt: skip


def match_mean(result, target):
    """The result scaled so that its mean grey level is the target's, as papers on LOL call GT-mean."""
    means = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).mean() for image in (result, target)]
    return np.clip(result * (means[1] / max(means[0], 1e-6)), 0, 255).round().astype(np.uint8)


# --------------------------------------------------------------------------------------------------- baselines


def baselines(names, pairs):
    """Functions photo -> photo by label, of names such as 'gamma,best_gamma,clahe,rescale'.

    gamma is 0.4; best_gamma the one with the best mean PSNR on these very pairs, an upper bound that has seen the
    targets; clahe is scikit-image's equalize_adapthist; rescale stretches a photo's levels to 0 to 255.

    Args:
        pairs: iterable of (photo, target), read only for best_gamma.
    Raises:
        ValueError: unknown name.
    """
    functions = {}
    for name in filter(None, (part.strip() for part in names.split(','))):
        if name == 'gamma':
            functions['gamma 0.4'] = lambda photo: exposure.adjust_gamma(photo, 0.4)
        elif name == 'best_gamma':
            value = best_gamma(pairs)
            functions[f'gamma {value:.2f} (best here)'] = lambda photo, value=value: apply_levels(
                photo, gamma_levels(value)
            )
        elif name == 'clahe':
            functions['CLAHE'] = lambda photo: (exposure.equalize_adapthist(photo) * 255).round().astype(np.uint8)
        elif name == 'rescale':
            functions['rescale'] = lambda photo: exposure.rescale_intensity(photo, 'image', (0, 255)).astype(np.uint8)
        else:
            raise ValueError(f'baselines: expected gamma, best_gamma, clahe or rescale, got {name!r}')
    return functions


def best_gamma(pairs):
    """The gamma of GAMMAS with the highest mean PSNR over pairs, exact for 8 bit, from level statistics alone."""
    tables = np.stack([gamma_levels(gamma) for gamma in GAMMAS]).astype(np.float64)  # (G, 256)
    decibels = []
    for photo, target in pairs:
        levels, wanted = photo.ravel(), target.ravel().astype(np.float64)
        counts = np.bincount(levels, minlength=256)
        sums = np.bincount(levels, weights=wanted, minlength=256)
        squares = tables**2 @ counts - 2 * tables @ sums + (wanted**2).sum()
        decibels.append(10 * np.log10(255**2 / np.maximum(squares / levels.size, 1e-9)))
    return float(GAMMAS[np.mean(decibels, axis=0).argmax()])


def gamma_levels(gamma):
    return np.round((np.arange(256) / 255) ** gamma * 255).astype(np.uint8)


def apply_levels(photo, levels):
    return levels[photo]


# ------------------------------------------------------------------------------------------ tables


def markdown_table(summary, metrics):
    """The methods' means with half the interval's width, as Markdown; a metric that is not at hand stays blank."""
    lines = [
        '| | ' + ' | '.join(LABELS[name] for name in metrics) + ' |',
        '|---|' + '---|' * len(metrics),
    ]
    for method, values in summary.items():
        lines.append(f'| {method} | ' + ' | '.join(cell(name, values.get(name)) for name in metrics) + ' |')
    return '\n'.join(lines)


def cell(metric, values):
    if not values:
        return ''
    digits = 4 if 'ssim' in metric or metric == 'lpips' else 3
    interval = values['ci95']
    spread = f' ± {(interval[1] - interval[0]) / 2:.{digits - 1}f}' if interval else ''
    return f'{values["mean"]:.{digits}f}{spread}'


def stem(path):
    """A file's name without folder and extension."""
    return os.path.splitext(os.path.basename(path))[0]
