"""How a photo looks and what faults a result has, in numbers of CIE Lab (sRGB, D65).

PSNR alone hides that a result is pale, veiled or of a wrong hue: lifted blacks, low chroma and turned hues cost it
little. Photos of more than half a megapixel are measured on an area-shrunk copy of that size.
"""

import cv2
import numpy as np
from skimage.color import rgb2lab

MOST = 500_000  # pixels that are measured
WHITE = 99.5  # L from which a pixel is white: grey 254 of 255, for JPEG moves 255 by a level
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
    """Five numbers of a photo's Lab.

    Returns:
        dict of lightness (mean of L, in [0, 100]), contrast (standard deviation of L), chroma (mean of
        C = sqrt(a^2 + b^2)), black_point and veil: the L below which the darkest 1 % and 5 % of the pixels lie. A grey
        veil over the blacks lifts the last.
    """
    lightness = lab[..., 0]
    black_point, veil = np.percentile(lightness, (1, 5))
    return {
        'lightness': float(lightness.mean(dtype=np.float64)),
        'contrast': float(lightness.std(dtype=np.float64)),
        'chroma': float(np.hypot(lab[..., 1], lab[..., 2]).mean(dtype=np.float64)),
        'black_point': float(black_point),
        'veil': float(veil),
    }


def measure_faults(result, photo, target=None):
    """Faults of a result's Lab against the input photo's and the target's, all of one size.

    Returns:
        dict of hue_to_target (with a target alone) and hue_to_input, see hue_error, and blown: the share of the pixels,
        in %, that are white (L of WHITE or more) and were not in the photo.
    """
    to_target = {} if target is None else {'hue_to_target': hue_error(result, target)}
    blown = (result[..., 0] >= WHITE) & (photo[..., 0] < WHITE)
    return {**to_target, 'hue_to_input': hue_error(result, photo), 'blown': float(100 * blown.mean())}


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
