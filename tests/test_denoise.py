"""Denoising follows the gain and the photo's own noise: nothing where nothing was brightened, more where more."""

import itertools

import numpy as np
import pytest

from kernels import cpu_denoise
from kernels.denoise import SAMPLE, denoise_plain, measure_noise, remove_noise

FUSED = cpu_denoise.denoise


def noisy(height=48, width=64, dtype=np.uint8, noise=8.0):
    """A grey photo with noise in levels of 255, and an edge down the middle."""
    levels = np.where(np.arange(width) < width // 2, 90, 160)[None, :, None]
    levels = levels + np.random.default_rng(0).normal(0, noise, (height, width, 3))
    return (np.clip(levels, 0, 255) * (np.iinfo(dtype).max / 255)).round().astype(dtype)


def illuminated(photo, left, right):
    """Samples of an illumination that has one value in the left half of a photo and another in the right."""
    illumination = np.full(photo.shape, right, np.float32)
    illumination[:, : photo.shape[1] // 2] = left
    return illumination[::SAMPLE, ::SAMPLE]


def spread(photo):
    """Standard deviation in levels of 255 of the left and the right half, off the edge."""
    unit = np.iinfo(photo.dtype).max / 255
    return photo[:, 4:24].std() / unit, photo[:, -24:-4].std() / unit


@pytest.mark.parametrize('denoise', [denoise_plain, FUSED])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_noise_goes_where_the_photo_was_brightened(dtype, denoise):
    photo = noisy(dtype=dtype)
    result = remove_noise(photo.copy(), illuminated(photo, 1 / 8, 1), denoise=denoise)
    assert result.dtype == dtype
    assert spread(result)[0] < 0.3 * spread(photo)[0]
    np.testing.assert_array_equal(result[:, 32:], photo[:, 32:])
    assert result[:, 4:24].mean() == pytest.approx(photo[:, 4:24].mean(), rel=0.01)


def test_blotches_of_chroma_go():
    """Chroma noise as coarse as 16 pixels, which no block at full size can tell from the photo."""
    rng = np.random.default_rng(0)
    blotches = rng.normal(0, 5, (16, 16)).repeat(16, axis=0).repeat(16, axis=1)
    photo = 110 + blotches[..., None] * [1.0, -0.3, -1.0] + rng.normal(0, 5, (256, 256, 3))
    photo = np.clip(photo, 0, 255).astype(np.uint8)
    result = remove_noise(photo.copy(), illuminated(photo, 1 / 24, 1 / 24), denoise=FUSED).astype(float)
    red_blue = [(image[..., 0] - image[..., 2]).std() for image in (photo.astype(float), result)]
    assert red_blue[1] < 0.5 * red_blue[0]


def test_edge_stays():
    photo = noisy()
    result = remove_noise(photo.copy(), illuminated(photo, 1 / 4, 1 / 4), denoise=FUSED)
    assert result[:, 33].mean() - result[:, 30].mean() > 60  # of 70
    assert max(spread(result)) < 0.5 * min(spread(photo))


def test_more_where_more_was_brightened_and_with_a_larger_amount():
    photo = noisy()
    left, right = spread(remove_noise(photo.copy(), illuminated(photo, 1 / 8, 1 / 1.5), denoise=FUSED))
    assert left < 0.7 * right
    illumination = illuminated(photo, 1 / 2, 1 / 2)
    spreads = [spread(remove_noise(photo.copy(), illumination, amount, strength, FUSED))[0]
               for amount, strength in ((0.5, 1), (1, 1), (2, 1), (1, 0.5))]  # fmt: skip
    assert spreads[0] > spreads[1] > spreads[2]
    assert spreads[3] > spreads[1]


def test_threshold_follows_the_photos_own_noise():
    ones = np.ones((12, 16), np.float32)
    quiet, loud = (measure_noise(noisy(noise=noise), ones)[0] for noise in (3.0, 9.0))
    assert loud == pytest.approx(3 * quiet, rel=0.1)
    assert measure_noise(noisy(noise=9.0), 3 * ones)[0] == pytest.approx(loud / 3, rel=0.01)  # before brightening
    assert measure_noise(noisy(noise=0.0), ones)[0] < 0.1


@pytest.mark.parametrize('denoise', [denoise_plain, FUSED])
@pytest.mark.parametrize('illumination', [1, 2, 0.97])
def test_photo_that_was_not_brightened_is_not_touched(illumination, denoise):
    photo = noisy()
    samples = illuminated(photo, illumination, illumination)
    np.testing.assert_array_equal(remove_noise(photo.copy(), samples, denoise=denoise), photo)


def test_automatic_amount_takes_noise_out_only_where_it_shows():
    noise, clean = noisy(), noisy(noise=0.3)
    for photo, value in ((noise, 1 / 1.1), (clean, 1 / 4)):
        samples = illuminated(photo, value, value)
        np.testing.assert_array_equal(remove_noise(photo.copy(), samples, -1.0, 1.0, FUSED), photo)
    samples = illuminated(noise, 1 / 4, 1 / 4)
    automatic, full = (remove_noise(noise.copy(), samples, amount, 1.0, FUSED) for amount in (-1.0, 1.0))
    np.testing.assert_array_equal(automatic, full)
    assert (full != noise).any()


@pytest.mark.parametrize('size', [(203, 301), (97, 130), (9, 13), (3, 150)])
def test_passes_over_rows_are_the_plain_path(size):
    photo = noisy(*size)
    samples = illuminated(photo, 1 / 6, 1 / 2)
    plain, fused = (remove_noise(photo.copy(), samples, denoise=denoise) for denoise in (denoise_plain, FUSED))
    difference = np.abs(plain.astype(int) - fused)
    assert (difference > 0).mean() < 0.02  # float32 on a rounding edge
    assert difference.max() <= 3  # or on a threshold's
    assert np.abs(plain.astype(int) - photo).mean() > 1


@pytest.mark.parametrize('denoise', [denoise_plain, FUSED])
def test_photo_that_is_a_view_works(denoise):
    photo = noisy()
    samples = illuminated(photo, 1 / 6, 1 / 2)
    view = np.ascontiguousarray(photo.transpose(2, 0, 1)).transpose(1, 2, 0)
    results = [remove_noise(given.copy(order='K'), samples, denoise=denoise) for given in (photo, view)]
    np.testing.assert_array_equal(*results)
    assert (results[0] != photo).any()


def test_any_number_of_strips_gives_the_same(monkeypatch):
    photo, results = noisy(203, 150), []
    samples = illuminated(photo, 1 / 9, 1 / 5)
    for count in (1, 2, 5, 9):

        def strip_edges(rows, step=1, count=count):
            return [min(-(-rows // step) * i // count * step, rows) for i in range(count + 1)]

        def parallel_rows(rows, work, step=1, strip_edges=strip_edges):
            for first, last in list(itertools.pairwise(strip_edges(rows, step)))[::-1]:  # the last one first
                work(first, last)

        monkeypatch.setattr(cpu_denoise, 'strip_edges', strip_edges)
        monkeypatch.setattr(cpu_denoise, 'parallel_rows', parallel_rows)
        results.append(remove_noise(photo.copy(), samples, denoise=FUSED))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_sixteen_bit_is_as_eight():
    photo = noisy()
    samples = illuminated(photo, 1 / 6, 1 / 3)
    eight = remove_noise(photo.copy(), samples, denoise=FUSED)
    sixteen = remove_noise(photo.astype(np.uint16) * 257, samples, denoise=FUSED)
    assert np.abs(sixteen / 257 - eight).max() < 1.6  # half a level of rounding, and a threshold's edge
    assert np.abs(sixteen / 257 - eight).mean() < 0.3


@pytest.mark.parametrize('denoise', [denoise_plain, FUSED])
@pytest.mark.parametrize('size', [(1, 1), (3, 200), (200, 2)])
def test_tiny_photos(size, denoise):
    photo = np.full((*size, 3), 7, np.uint8)
    samples = np.full(photo.shape, 0.1, np.float32)[::SAMPLE, ::SAMPLE]
    np.testing.assert_array_equal(remove_noise(photo.copy(), samples, denoise=denoise), photo)
