"""Take out the noise that brightening a dark photo brings up, where and as much as it was brightened."""

import cv2
import numpy as np

# Chosen on the validation lists (README): levels of 255 per doubling of brightness, and how much more for colour.
LEVELS, CHROMA = 2.0, 1.5
PATCH, SEARCH = 5, 11  # pixels
ROWS = 512  # done at once: bounds the memory


def remove_noise(enhanced, illumination, amount=1.0, strength=1.0):
    """Non-local means (Buades, Coll and Morel, CVPR 2005; OpenCV's) in YCrCb, its strength following the gain 1/S.

    The filter runs at the strength that the most brightened fifth of the photo needs, log2(gain) * amount * LEVELS.
    Each pixel takes a share of its result in proportion to its own log2(gain): what was not brightened stays as it is.

    Args:
        enhanced: (H, W, 3) RGB, uint8 or uint16; overwritten.
        illumination: (H, W, 3) S of the photo.
        amount: 0 does nothing, 1 is the usual, 2 twice as strong.
        strength: exponent of S that `enhanced` was made with.
    Returns:
        enhanced.
    """
    stops = np.log2(gain(illumination[::8, ::8])) * strength
    top = float(np.percentile(stops, 80))
    levels = amount * LEVELS * top
    if levels < 0.5:  # half a level of noise cannot be seen
        return enhanced
    scale = np.float32(np.iinfo(enhanced.dtype).max / 255)
    margin = (PATCH + SEARCH) // 2
    height, source = len(enhanced), enhanced[:0]
    for y in range(0, height, ROWS):
        above = source[ROWS - margin : ROWS] if y else source  # as it was before the strip above was overwritten
        source = enhanced[y : y + ROWS + margin].copy()
        change = noise(np.concatenate([above, source]), levels, scale)[len(above) :][:ROWS]
        share = np.minimum(np.log2(gain(illumination[y : y + ROWS])) * (strength / top), 1)
        change *= share[..., None] * scale
        strip = enhanced[y : y + ROWS]
        strip[:] = np.clip(strip + change, 0, 255 * scale).round()
    return enhanced


def gain(illumination):
    """How many times brighter each pixel became, (H, W), at least 1."""
    return 1 / np.clip(illumination.mean(axis=2), 1 / 64, 1)


def noise(photo, levels, scale):
    """What non-local means adds to a photo, (H, W, 3) float32 in levels of 255."""
    if scale > 1:
        photo = (photo / scale).round().astype(np.uint8)
    channels = cv2.split(cv2.cvtColor(photo, cv2.COLOR_RGB2YCrCb))
    before = cv2.cvtColor(cv2.merge(channels), cv2.COLOR_YCrCb2RGB)  # the round trip's own rounding cancels
    filtered = [
        cv2.fastNlMeansDenoising(channel, None, levels * (CHROMA if i else 1), PATCH, SEARCH)
        for i, channel in enumerate(channels)
    ]
    after = cv2.cvtColor(cv2.merge(filtered), cv2.COLOR_YCrCb2RGB)
    return cv2.subtract(after, before, dtype=cv2.CV_32F)
