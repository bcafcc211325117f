"""How a photo looks, in four numbers of CIE Lab (sRGB, D65), and how results differ from their targets in them.

PSNR alone hides that a result is pale: lifted blacks, low contrast and low chroma cost it little.
"""

from typing import NamedTuple

import numpy as np
from skimage.color import rgb2lab

from scoring.statistics import summarize


class Appearance(NamedTuple):
    """Four numbers of one photo, or their means over several."""

    lightness: float  # mean of L, in [0, 100]
    contrast: float  # standard deviation of L
    chroma: float  # mean of C, the distance from grey
    black_point: float  # the L below which the darkest hundredth of the pixels lies


LABELS = {'lightness': 'L', 'contrast': 'sd L', 'chroma': 'C', 'black_point': 'black (1 % of L)'}


def measure_appearance(photo):
    """Appearance of an (H, W, 3) RGB photo, uint8 or uint16.

    Source: skimage.color.rgb2lab.
    """
    lab = rgb2lab(photo / np.float32(np.iinfo(photo.dtype).max))
    lightness = lab[..., 0]
    return Appearance(
        lightness=float(lightness.mean(dtype=np.float64)),
        contrast=float(lightness.std(dtype=np.float64)),
        chroma=float(np.hypot(lab[..., 1], lab[..., 2]).mean(dtype=np.float64)),
        black_point=float(np.percentile(lightness, 1)),
    )


def compare_appearance(results, targets):
    """Results against their targets, photo by photo.

    Args:
        results, targets: Appearance of each photo, in the same order.
    Returns:
        {name of the number: {'result': mean, 'target': mean, 'difference': summarize(result - target)}}.
    """
    results, targets = np.array(results, np.float64), np.array(targets, np.float64)  # (photos, 4)
    return {
        name: {
            'result': float(results[:, i].mean()),
            'target': float(targets[:, i].mean()),
            'difference': summarize(results[:, i] - targets[:, i]),
        }
        for i, name in enumerate(Appearance._fields)
    }


def describe_appearance(comparison):
    """A comparison in words: lightness and black point as differences of L, contrast and chroma as shares."""

    def share(name):
        result, target = comparison[name]['result'], comparison[name]['target']
        return f'{name} {100 * (result / target - 1):+.0f} %' if target else f'{name} {result:+.1f}'

    lightness, black_point = (comparison[name]['difference']['mean'] for name in ('lightness', 'black_point'))
    return (
        f'lightness {lightness:+.1f}, black point {black_point:+.1f}, {share("contrast")}, {share("chroma")} '
        f'of its targets'
    )
