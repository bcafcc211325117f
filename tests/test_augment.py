import numpy as np
import pytest
import torch

import augment
from augment import Recipe


def smooth(height=60, width=80):
    """Ramps, so that a 32nd of a pixel makes little difference."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 3, x * 2, y + x], axis=-1).astype(np.uint8)


def test_recipes_keep_what_the_predecessor_keeps():
    rng, kinds = np.random.default_rng(0), {'window': 0, 'flip': 0, 'turn': 0}
    for _ in range(2000):
        for kind, *values in augment.draw_steps(60, 80, rng):
            kinds[kind] += 1
            if kind == 'window':
                y, x, height, width = values
                assert 45 <= height <= 57
                assert 60 <= width <= 76
                assert 0 <= y <= 60 - height
                assert 0 <= x <= 80 - width
            elif kind == 'turn':
                assert -15 <= values[0] <= 15
    # p = 0.9 x 0.8, 0.5 and 0.1, within four standard deviations
    assert [kinds[k] / 2000 for k in kinds] == pytest.approx([0.72, 0.45, 0.09], abs=0.045)


@pytest.mark.parametrize('size', [(60, 80), (300, 280), (256, 256)])
def test_patches_have_their_size_and_show_the_photo(size):
    photo = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    steps = augment.draw_patch(*size, 256, np.random.default_rng(1))
    lowres, patch, target = augment.render(photo, photo, Recipe(False, (), tuple(steps)), 0)
    assert patch.shape == (256, 256, 3)
    np.testing.assert_array_equal(patch, lowres)
    np.testing.assert_array_equal(patch, target)
    if min(size) >= 256:
        assert photo.tobytes().find(patch[0].tobytes()) >= 0


def test_a_recipe_treats_both_photos_alike():
    photo = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    for seed in range(20):
        steps = tuple(augment.draw_steps(60, 80, np.random.default_rng(seed)))
        _, first, second = augment.render(photo, photo.copy(), Recipe(False, (), steps), 32)
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ('step', 'tolerance'),
    [
        (('window', 5, 7, 40, 50), 0),
        (('flip',), 0),
        (('resize', 90, 70), 0.8),  # OpenCV rounds to levels, and its weights
        (('turn', 13), 0.8),  # and turns by 32nds of a pixel
    ],
)
def test_both_ways_of_a_step_agree(step, tolerance):
    photo = smooth()
    expected = augment.change(photo, step)
    ours = augment.change_on(augment.as_levels(*augment.upload(photo, 'cpu')), step).permute(1, 2, 0).numpy()
    assert ours.shape == expected.shape
    difference = np.abs(ours - expected.astype(float))
    if step[0] == 'turn':  # at the corners' edge a 32nd of a pixel is many levels
        difference = difference[12:-12, 12:-12]
        assert (ours[0, 0] == 0).all()
    assert difference.max() <= tolerance


def test_the_good_photo_and_the_darkened_one_on_a_device():
    photo, target = smooth(), 255 - smooth()
    on_device = [augment.upload(image, 'cpu') for image in (photo, target)]
    for recipe in (Recipe(True, (), ()), Recipe(True, (1.2,), ()), Recipe(False, (-0.5, 0.3), ())):
        expected = augment.render(photo, target, recipe, 0)[1:]
        ours = augment.render_on(*on_device, recipe, 0)[1:]
        for image, other in zip(ours, expected, strict=True):
            assert torch.equal(image, torch.from_numpy(other).permute(2, 0, 1).float())


def test_darkening_is_in_linear_light():
    """One stop less of sRGB 188, linear 0.5029, is linear 0.2514, sRGB 137.2; and back again."""
    levels = np.arange(256, dtype=np.uint8).reshape(1, 256, 1)
    dark = augment.darken(levels, 1.0)
    assert dark[0, 188, 0] == 137
    assert (np.diff(dark[0, :, 0].astype(int)) >= 0).all()
    assert abs(augment.darken(dark, -1.0).astype(int) - levels).max() <= 3  # steps lost in the dark
    assert augment.darken(levels, -3.0).max() == 255
    deep = augment.darken(levels.astype(np.uint16) * 257, 1.0)
    assert abs(deep / 257 - dark).max() <= 0.51
