"""How a photo looks, in numbers of CIE Lab (sRGB, D65), how results differ from their targets in them, and faults.

PSNR alone hides that a result is pale, veiled or of a wrong hue: lifted blacks, low chroma and turned hues cost it
little. Photos of more than half a megapixel are measured on an area-shrunk copy of that size.
"""

from typing import NamedTuple

import cv2
import numpy as np
from skimage.color import rgb2lab

from scoring.statistics import summarize

MOST = 500_000  # pixels that are measured
WHITE = 99.5  # L from which a pixel is white: grey 254 of 255, for JPEG moves 255 by a level


class Appearance(NamedTuple):
    """Five numbers of one photo."""

    lightness: float  # mean of L, in [0, 100]
    contrast: float  # standard deviation of L
    chroma: float  # mean of C = sqrt(a^2 + b^2), the distance from grey
    black_point: float  # the L below which the darkest hundredth of the pixels lies
    veil: float  # the L below which the darkest twentieth lies: high where a grey veil covers the blacks


class Faults(NamedTuple):
    """Three numbers of one result; without a target, hue_to_target is None."""

    hue_to_target: float  # see hue_error
    hue_to_input: float
    blown: float  # see blown_share


LABELS = {
    'lightness': 'L',
    'contrast': 'sd L',
    'chroma': 'C',
    'black_point': 'black (1 % of L)',
    'veil': 'veil (5 % of L)',
    'hue_to_target': 'hue to target, deg',
    'hue_to_input': 'hue to input, deg',
    'blown': 'blown %',
}


def to_lab(photo):
    """CIE Lab (h, w, 3) float32 of an (H, W, 3) RGB photo, uint8 or uint16, shrunk to MOST pixels if it has more.

    Source: skimage.color.rgb2lab.
    """
    photo = photo / np.float32(np.iinfo(photo.dtype).max)
    scale = (MOST / (photo.shape[0] * photo.shape[1])) ** 0.5
    if scale < 1:
        size = max(int(photo.shape[1] * scale), 1), max(int(photo.shape[0] * scale), 1)
        photo = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
    return rgb2lab(photo)


def measure_appearance(lab):
    """Appearance of a photo's Lab."""
    lightness = lab[..., 0]
    black_point, veil = np.percentile(lightness, (1, 5))
    return Appearance(
        lightness=float(lightness.mean(dtype=np.float64)),
        contrast=float(lightness.std(dtype=np.float64)),
        chroma=float(np.hypot(lab[..., 1], lab[..., 2]).mean(dtype=np.float64)),
        black_point=float(black_point),
        veil=float(veil),
    )


def measure_faults(result, photo, target=None):
    """Faults of a result's Lab against the input photo's and, where there is one, the target's; all of one size."""
    return Faults(
        hue_to_target=None if target is None else hue_error(result, target),
        hue_to_input=hue_error(result, photo),
        blown=blown_share(result, photo),
    )


def hue_error(lab, other):
    """Mean absolute difference in CIE Lab hue, in degrees in [0, 180], weighted by the lower of the two chromas.

    sum(w |dh|) / sum(w), with w = min(C1, C2), C = sqrt(a^2 + b^2), and dh the angle between (a1, b1) and (a2, b2).
    A pixel that is grey in either does not count; 0 where no pixel counts.

    Args:
        lab, other: (h, w, 3) from to_lab.
    """
    (a1, b1), (a2, b2) = (np.moveaxis(image[..., 1:].astype(np.float64), -1, 0) for image in (lab, other))
    angle = np.degrees(np.abs(np.arctan2(a1 * b2 - a2 * b1, a1 * a2 + b1 * b2)))
    weight = np.minimum(np.hypot(a1, b1), np.hypot(a2, b2))
    return float((weight * angle).sum() / max(weight.sum(), 1e-9))


def blown_share(result, photo):
    """Share of the pixels, in %, that are white (L of WHITE or more) in a result's Lab and were not in the photo's."""
    return float(100 * ((result[..., 0] >= WHITE) & (photo[..., 0] < WHITE)).mean())


def compare_appearance(results, targets):
    """Results against their targets, photo by photo.

    Args:
        results, targets: Appearance of each photo, in the same order; targets may be None.
    Returns:
        {name of the number: {'result': mean, 'target': mean, 'difference': summarize(result - target)}}; without
        targets, the mean of the results alone.
    """
    results = np.array(results, np.float64)  # (photos, 5)
    found = {name: {'result': float(mean)} for name, mean in zip(Appearance._fields, results.mean(axis=0), strict=True)}
    if targets is not None:
        targets = np.array(targets, np.float64)
        for i, name in enumerate(found):
            found[name]['target'] = float(targets[:, i].mean())
            found[name]['difference'] = summarize(results[:, i] - targets[:, i])
    return found


def summarize_faults(faults):
    """{name of the number: summarize(its values)} of the Faults of each photo; those that are None are left out."""
    columns = zip(Faults._fields, zip(*faults, strict=True), strict=True)
    return {name: summarize(values) for name, values in columns if None not in values}


def describe_appearance(comparison, faults):
    """A comparison and faults in words: L, black point and veil as differences, contrast and chroma as shares."""
    words = [
        f'{name.replace("hue_", "hue error ").replace("_", " ")} {faults[name]["mean"]:.1f} degrees'
        for name in faults
        if name != 'blown'
    ]
    words.append(f'blown {faults["blown"]["mean"]:.2f} %')
    if 'target' not in comparison['veil']:
        return ', '.join([f'veil {comparison["veil"]["result"]:.1f}', *words])

    def share(name):
        result, target = comparison[name]['result'], comparison[name]['target']
        return f'{name} {100 * (result / target - 1):+.0f} %' if target else f'{name} {result:+.1f}'

    lightness, black, veil = (comparison[name]['difference']['mean'] for name in ('lightness', 'black_point', 'veil'))
    return (
        f'lightness {lightness:+.1f}, black point {black:+.1f}, veil {veil:+.1f}, {share("contrast")}, '
        f'{share("chroma")} of its targets; {", ".join(words)}'
    )
