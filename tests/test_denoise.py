"""Denoising follows the gain: nothing where nothing was brightened, more where more."""

import numpy as np
import pytest

from kernels import denoise
from kernels.denoise import remove_noise


def noisy(height=40, width=64, dtype=np.uint8):
    """A grey photo with noise of 8 levels of 255, and an edge down the middle."""
    levels = np.where(np.arange(width) < width // 2, 90, 160)[None, :, None]
    levels = levels + np.random.default_rng(0).normal(0, 8, (height, width, 3))
    return (np.clip(levels, 0, 255) * (np.iinfo(dtype).max / 255)).round().astype(dtype)


def light(photo, left, right):
    shade = np.full(photo.shape, right, np.float32)
    shade[:, : photo.shape[1] // 2] = left
    return shade


def spread(photo):
    """Standard deviation in levels of 255 of the left and the right half, off the edge."""
    unit = np.iinfo(photo.dtype).max / 255
    return photo[:, 4:24].std() / unit, photo[:, -24:-4].std() / unit


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_noise_goes_where_the_photo_was_brightened(dtype):
    photo = noisy(dtype=dtype)
    result = remove_noise(photo.copy(), light(photo, 1 / 16, 1))
    assert result.dtype == dtype
    assert spread(result)[0] < 0.5 * spread(photo)[0]
    np.testing.assert_array_equal(result[:, 32:], photo[:, 32:])
    assert result[:, 4:24].mean() == pytest.approx(photo[:, 4:24].mean(), rel=0.01)


def test_edge_stays():
    photo = noisy()
    result = remove_noise(photo.copy(), light(photo, 1 / 16, 1 / 16))
    assert result[:, 33].mean() - result[:, 30].mean() > 55  # of 70
    assert max(spread(result)) < 0.5 * min(spread(photo))


def test_more_where_more_was_brightened_and_with_a_larger_amount():
    photo = noisy()
    left, right = spread(remove_noise(photo.copy(), light(photo, 1 / 16, 1 / 2)))
    assert left < 0.7 * right
    shade = light(photo, 1 / 3, 1 / 3)
    spreads = [spread(remove_noise(photo.copy(), shade, amount, strength))[0]
               for amount, strength in ((0.5, 1), (1, 0.5), (1, 1), (2, 1))]  # fmt: skip
    assert spreads[0] == pytest.approx(spreads[1], abs=0.2)  # half the strength is half the gain in stops
    assert spreads[1] > spreads[2] > spreads[3]


@pytest.mark.parametrize('shade', [1, 2, 0.95])
def test_photo_that_was_not_brightened_is_not_touched(shade):
    photo = noisy()
    np.testing.assert_array_equal(remove_noise(photo.copy(), light(photo, shade, shade)), photo)


def test_strips_join_without_a_seam(monkeypatch):
    photo = noisy(100)
    shade = light(photo, 1 / 9, 1 / 5)
    whole = remove_noise(photo.copy(), shade)
    monkeypatch.setattr(denoise, 'ROWS', 32)
    np.testing.assert_array_equal(remove_noise(photo.copy(), shade), whole)


@pytest.mark.parametrize('size', [(1, 1), (3, 200), (200, 2)])
def test_tiny_photos(size):
    photo = np.full((*size, 3), 7, np.uint8)
    np.testing.assert_array_equal(remove_noise(photo.copy(), np.full(photo.shape, 0.1, np.float32)), photo)
