"""Photos simulated from good ones: the formulas, and what a target is."""

import numpy as np
import pytest
import torch

import pipeline
from pairs import degrade, lists
from photos.colour import decode_srgb, encode_srgb
from tests import train_options

PLAIN = degrade.Degradation()
STOP = degrade.Darkening(1.0, 0.0, 0.0, (0, 0))


def good_photo(height=60, width=80, dtype=np.uint8):
    y, x = np.mgrid[:height, :width]
    photo = np.stack([y / height, x / width, (y + x) / (height + width)], axis=-1) * 0.7 + 0.1
    return (photo * np.iinfo(dtype).max).astype(dtype)


def drawn(seed, kept=False, **ranges):
    black = degrade.find_black(good_photo(), 0.5)
    return degrade.draw_degradation(degrade.Ranges(**ranges), black, np.random.default_rng(seed), kept)


def test_photo_is_the_formula_of_the_module():
    image, numbers = good_photo(), drawn(3, cast=0.1, gamma=(1.2, 1.3))._replace(noise=0.0)
    cast = np.array(numbers.cast) / max(numbers.cast)
    source, black = (decode_srgb(v**numbers.gamma) for v in (image / 255, numbers.black))
    light = np.clip((source - black) / (1 - black), 0, 1) * cast
    luma = (light @ degrade.LUMA)[..., None]
    mean = np.exp(np.log(luma + degrade.DARK).mean())
    mixed = numbers.chroma * light + (1 - numbers.chroma) * luma
    mixed *= ((luma + degrade.DARK) / mean) ** (numbers.contrast - 1)
    photo = encode_srgb(np.clip(2.0**-numbers.stops * np.array(numbers.balance) * (mixed + numbers.flare), 0, 1))
    ours, target = degrade.degrade(image, numbers)
    assert np.abs(ours - photo * 255).max() < 0.51
    assert np.abs(target - encode_srgb(light) * 255).max() < 0.51
    kept, same = degrade.degrade(image, numbers._replace(kept=True))
    assert np.abs(kept - encode_srgb(source * cast) * 255).max() < 0.51
    np.testing.assert_array_equal(same, target)


def test_nothing_done_is_the_photo_itself():
    for image in degrade.degrade(good_photo(), PLAIN):
        assert np.abs(image.astype(int) - good_photo()).max() <= 1
    photo, target = degrade.degrade(good_photo(), PLAIN._replace(stops=1.0))
    np.testing.assert_array_equal(photo, degrade.darken(good_photo(), STOP))
    np.testing.assert_array_equal(target, good_photo())


def test_darkening_is_in_linear_light():
    """One stop less of sRGB 188, linear 0.5029, is linear 0.2514, sRGB 137.2."""
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    dark = degrade.darken(levels, STOP)
    assert (dark[levels == 188] == 137).all()
    deep = degrade.darken(levels.astype(np.uint16) * 257, STOP)
    assert abs(deep / 257 - dark).max() <= 0.51


def test_noise_of_darkening_grows_with_light():
    """Standard deviation of shot and read noise, within four standard errors of 256 x 256 x 3 samples."""
    numbers = degrade.Darkening(1.0, 2e-4, 3e-4, (5, 500))
    for level in (80, 200):
        light = decode_srgb(np.float64(level / 255)) / 2
        noisy = degrade.darken(np.full((256, 256, 3), level * 257, np.uint16), numbers)
        expected = np.sqrt(2e-4 * light + 3e-4**2)
        assert decode_srgb(noisy / 65535).std() == pytest.approx(expected, rel=4 / np.sqrt(2 * 256 * 256 * 3))


def test_darkening_ends_at_a_mean_light_of_darkest():
    photo = np.full((30, 30, 3), 60, np.uint8)
    dark = degrade.darken(photo, STOP._replace(stops=9.0))
    assert decode_srgb(dark / 255).mean() == pytest.approx(degrade.DARKEST, rel=0.1)  # whole levels
    assert (degrade.darken(dark // 2, STOP) == dark // 2).all()


def test_black_is_a_hazy_photos_darkest_within_bounds():
    hazy = np.linspace(60, 220, 30000).astype(np.uint8).reshape(100, 100, 3)
    black = degrade.find_black(hazy, 0.5)
    assert black * 255 == pytest.approx(60.8, abs=1.5)
    assert degrade.find_black(hazy.astype(np.uint16) * 257, 0.5) == pytest.approx(black)
    for level, expected in ((0, 0), (100, 100 / 255), (255, degrade.MOST_BLACK)):
        assert degrade.find_black(np.full((30, 30, 3), level, np.uint8), 0.5) == pytest.approx(expected)


def test_a_black_point_leaves_the_tones_above():
    hazy = np.linspace(25, 220, 30000).astype(np.uint8).reshape(100, 100, 3)
    _, target = degrade.degrade(hazy, PLAIN._replace(black=25 / 255))
    assert target.min() == 0
    assert (hazy[hazy > 100] - target[hazy > 100].astype(int)).max() <= 4
    assert (hazy >= target).all()


def test_gamma_moves_photo_and_target_alike_and_leaves_white():
    _, target = degrade.degrade(good_photo(), PLAIN._replace(gamma=1.5))
    np.testing.assert_allclose(target, 255 * (good_photo() / 255) ** 1.5, atol=0.51)
    photo, same = degrade.degrade(good_photo(), PLAIN._replace(gamma=1.5, kept=True))
    np.testing.assert_array_equal(photo, same)


def test_a_cast_is_in_photo_and_target_alike():
    grey = np.full((20, 20, 3), 150, np.uint8)
    photo, target = degrade.degrade(grey, PLAIN._replace(cast=(1.2, 1.0, 0.8)))
    np.testing.assert_array_equal(photo, target)
    assert photo[0, 0, 0] == 150
    assert photo[0, 0, 0] > photo[0, 0, 1] > photo[0, 0, 2]


def test_batches_of_good_photos_are_the_same_whatever_the_threads(make_pairs):
    pairs = lists.find_pairs(make_pairs(6))
    good = [(target, target) for _, target in pairs[:3]], 2.0
    batches = []
    for workers, cache in ((0, 'ram'), (2, 'none')):
        opt = train_options(full_size=64, identity_share=0.25, darken=0.5, cache=cache)
        dataset = pipeline.PairDataset([(pairs[3:], 1.0)], opt, good, 'area')
        assert len(dataset) == 9
        batches.append(list(pipeline.Loader(dataset, 3, workers)))
    for plain, threads in zip(*batches, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(plain[1], threads[1], strict=True))


def test_a_kept_good_photo_stays_and_a_degraded_one_darker(make_pairs, monkeypatch):
    monkeypatch.setattr(pipeline, 'RANGES', degrade.Ranges(stops=(2.0, 2.0)))
    good = [(target, target) for _, target in lists.find_pairs(make_pairs(4))], 1.0
    for keep in (0.0, 1.0):
        dataset = pipeline.PairDataset([], train_options(full_size=32, augment=False, good_identity_share=keep), good)
        for position in range(4):
            _, photo, target = dataset[position]
            assert np.array_equal(photo, target) == bool(keep)
            assert photo.mean() <= (255 if keep else 0.7 * target.mean())
