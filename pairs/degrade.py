"""An underexposed, flat and pale photo simulated from a good one, and the target that it is simulated for.

The source is the good photo, darker or lighter by a power of its levels (`gamma`), in other light (`cast`). The target
is the source with a black point: the light of black is taken off everywhere, as flare would be, which leaves the tones
above nearly as they are. The photo is what a camera might have given of it: less light, less contrast,
less colour, flare, a white balance that is a little off, noise; or, where it is kept, the source. What is done is drawn
as a few numbers (`Degradation`); `degrade` makes the pixels. A pair's photo is darkened further by `darken`.

In linear light l of the target, with luma Y and its geometric mean G:
    l1 = (Y / G)^(contrast - 1) (chroma l + (1 - chroma) Y)
    photo = sRGB(2^-stops balance (l1 + flare)) + noise
"""

import functools
from typing import NamedTuple

import cv2
import numpy as np

from photos.colour import decode_srgb, encode_srgb

LUMA = np.float32([0.2126, 0.7152, 0.0722])  # of linear sRGB
DARK = 1e-4  # light added where a logarithm is taken
MOST_BLACK = 0.5  # level in [0, 1] that becomes black at most: the contrast is at most doubled
MILD = 1.5  # power of a uniform number that chooses within `stops`: 1 is uniform, more is mild more often
LEAST_STOPS, DARKEST = 0.5, 0.002  # of darken; a mean light of 0.002 is L = 1.8
MOST_SHOT, MOST_READ = 2e-4, 3e-4  # 2e-4 is 14 % of a light of 0.01, 3e-4 is a level of 255 at black
TILE = 512  # side in pixels of the noise that all simulated photos take a part of


class Ranges(NamedTuple):
    """What degradations are drawn from, uniformly where nothing else is said."""

    stops: tuple = (-0.2, 3.5)  # less light; little is drawn more often, see MILD
    contrast: tuple = (0.5, 0.85)  # power of the luma around its geometric mean
    chroma: tuple = (0.4, 0.8)  # factor of the difference to grey
    flare: float = 0.025  # up to so much of white's light, added before the exposure
    balance: float = 0.04  # each channel of the photo off by up to so much
    cast: float = 0.1  # each channel of photo and target off by up to so much: coloured light stays coloured
    noise: float = 2.0  # standard deviation up to so many levels of 255
    gamma: tuple = (0.65, 1.55)  # power of the levels of photo and target alike: above 1 is a darker mood, white stays
    black: float = 0.5  # percent of the target's pixels that become black


class Degradation(NamedTuple):
    """The numbers of one simulated photo."""

    stops: float = 0.0
    contrast: float = 1.0
    chroma: float = 1.0
    flare: float = 0.0
    balance: tuple = (1.0, 1.0, 1.0)
    cast: tuple = (1.0, 1.0, 1.0)
    noise: float = 0.0
    tile: tuple = (0, 0)  # row and column of the tile of noise that the photo's corner takes
    gamma: float = 1.0
    black: float = 0.0  # level in [0, 1] of the good photo that is black in the target
    kept: bool = False  # the photo is the source


def draw_degradation(ranges, black, rng, kept=False):
    """A Degradation out of Ranges for a good photo with `black` from find_black, by a numpy Generator."""
    return Degradation(
        float(ranges.stops[0] + (ranges.stops[1] - ranges.stops[0]) * rng.random() ** MILD),
        float(rng.uniform(*ranges.contrast)),
        float(rng.uniform(*ranges.chroma)),
        float(rng.uniform(0, ranges.flare)),
        tuple(rng.uniform(1 - ranges.balance, 1 + ranges.balance, 3).tolist()),
        tuple(rng.uniform(1 - ranges.cast, 1 + ranges.cast, 3).tolist()),
        float(rng.uniform(0, ranges.noise)),
        tuple(rng.integers(TILE, size=2).tolist()),
        float(np.exp(rng.uniform(*np.log(ranges.gamma)))),
        black,
        kept,
    )


class Darkening(NamedTuple):
    """The numbers of one photo that is darkened further, see darken."""

    stops: float  # less light, 2^-stops
    shot: float  # variance of the noise per unit of light: photons
    read: float  # its standard deviation in the dark: electronics
    tile: tuple  # row and column of the tile of noise that the photo's corner takes


def draw_darkening(max_stops, rng):
    """A Darkening by LEAST_STOPS to max_stops, by a numpy Generator."""
    stops, shot, read = rng.uniform((LEAST_STOPS, 0, 0), (max_stops, MOST_SHOT, MOST_READ))
    return Darkening(float(stops), float(shot), float(read), tuple(rng.integers(TILE, size=2).tolist()))


@functools.lru_cache(maxsize=1)
def noise_tile():
    """Standard normal noise (TILE, TILE, 3) float32, always the same."""
    return np.random.default_rng(0).standard_normal((TILE, TILE, 3), np.float32)


# ------------------------------------------------------------------------------------------- what levels stand for


def find_black(photo, percent):
    """The level in [0, MOST_BLACK] below which a percentage of a photo's pixels is.

    Args:
        photo: (H, W, 3) uint8 or uint16; a large one is read at every second, third ... row and column.
    """
    step = max(min(photo.shape[:2]) // 256, 1)
    luma = cv2.transform(photo[::step, ::step].astype(np.float32), np.float32([[0.299, 0.587, 0.114]]))
    black = np.percentile(luma, np.float64(percent)) / np.iinfo(photo.dtype).max  # a float would be rounded to float32
    return float(min(black, MOST_BLACK))


def light_table(numbers, top, black=0.0):
    """Linear light (top + 1, 3) of each level of a good photo by gamma and cast; `black` becomes 0.

    The cast leaves the strongest channel as it is, so that white does not clip.
    """
    light, black = (decode_srgb(np.float64(v) ** numbers.gamma) for v in (np.arange(top + 1) / top, black))
    light = np.clip((light - black) / (1 - black), 0, 1)
    return (light[:, None] * (np.array(numbers.cast) / max(numbers.cast))).astype(np.float32)


# ------------------------------------------------------------------------------------------------------- make


def degrade(image, numbers):
    """(photo, target) of a good photo, or a part of it, (H, W, 3) uint8 or uint16, by a Degradation."""
    top = np.iinfo(image.dtype).max
    table = light_table(numbers, top, numbers.black)
    target = relight(image, table)
    if numbers.kept:
        return relight(image, light_table(numbers, top)), target
    light = look_up(table, image)
    luma = cv2.transform(light, LUMA[None])
    log = cv2.log(luma + np.float32(DARK))
    contrast = cv2.exp((log - np.float32(log.mean(dtype=np.float64))) * np.float32(numbers.contrast - 1))
    matrix, offset = color_change(numbers)
    light = cv2.transform(light, matrix)
    light *= contrast[..., None]
    light += offset
    np.clip(light, 0, 1, out=light)
    photo = encode_srgb(light)
    photo *= top
    if numbers.noise:
        photo += noise_for(*photo.shape[:2], numbers.tile) * np.float32(numbers.noise * top / 255)
    return np.clip(np.rint(photo), 0, top).astype(image.dtype), target


def darken(photo, numbers):
    """A photo (H, W, 3) uint8 or uint16 as a camera gives it that gets less light, by a Darkening, at the same depth.

    In linear light l: l1 = 2^-stops l, photo = sRGB(l1 + n), n normal of variance shot l1 + read^2, rounded to whole
    levels. A photo is not darkened below a mean light of DARKEST: black teaches nothing.

    Source: the noise model of raw photos, Foi et al., "Practical Poissonian-Gaussian noise modeling", 2008.
    """
    top = np.iinfo(photo.dtype).max
    light = look_up(light_table(Degradation(), top), photo)
    stops = min(numbers.stops, np.log2(max(light.mean(dtype=np.float64), DARKEST) / DARKEST))
    light *= np.float32(2.0**-stops)
    noise = noise_for(*photo.shape[:2], numbers.tile)
    light += noise * np.sqrt(light * np.float32(numbers.shot) + np.float32(numbers.read**2))
    return np.rint(encode_srgb(light.clip(0, 1)) * np.float32(top)).astype(photo.dtype)


def relight(image, table):
    """An image (H, W, 3) uint8 or uint16 with the linear light that a table (top + 1, 3) has for its levels."""
    return look_up(np.round(encode_srgb(table) * np.iinfo(image.dtype).max).astype(image.dtype), image)


def look_up(table, image):
    """table (top + 1, 3) read at the levels of each channel of an image (H, W, 3)."""
    if image.dtype == np.uint8:
        return cv2.LUT(np.ascontiguousarray(image), table[None])
    return np.stack([table[:, c][image[..., c]] for c in range(3)], axis=-1)


def color_change(numbers):
    """(matrix (3, 3), offset (3)) of linear light by chroma, white balance and exposure, and by the flare; float32."""
    gain = np.array(numbers.balance) * 2.0**-numbers.stops
    mix = numbers.chroma * np.eye(3) + (1 - numbers.chroma) * LUMA
    return (gain[:, None] * mix).astype(np.float32), (gain * numbers.flare).astype(np.float32)


def noise_for(height, width, tile):
    """Standard normal noise (height, width, 3) whose corner is at row and column `tile` of the tile."""
    y, x = ((np.arange(size) + start) % TILE for size, start in zip((height, width), tile, strict=True))
    return noise_tile()[y[:, None], x]
