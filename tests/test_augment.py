import numpy as np
import pytest

from pairs import augment
from pairs.augment import Recipe
from pairs.degrade import Darkening


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
    lowres, patch, target = augment.render(photo, photo, Recipe(False, tuple(steps)), 0)
    assert patch.shape == (256, 256, 3)
    np.testing.assert_array_equal(patch, lowres)
    np.testing.assert_array_equal(patch, target)
    if min(size) >= 256:
        assert photo.tobytes().find(patch[0].tobytes()) >= 0


def test_a_recipe_treats_both_photos_alike():
    photo = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    for seed in range(20):
        steps = tuple(augment.draw_steps(60, 80, np.random.default_rng(seed)))
        _, first, second = augment.render(photo, photo.copy(), Recipe(False, steps), 32)
        np.testing.assert_array_equal(first, second)


def test_recipe_darkens_photo_alone():
    photo = np.full((40, 60, 3), 200, np.uint8)
    recipe = Recipe(False, (), darkening=Darkening(2.0, 1e-4, 1e-4, (0, 0)))
    lowres, fullres, target = augment.render(photo, photo, recipe, 32, 'area')
    assert fullres.shape == target.shape == (32, 32, 3)
    assert (target == 200).all()
    assert abs(fullres.mean() - 105.6) < 1  # a quarter of linear 0.5776 is sRGB 105.6
    assert abs(lowres.mean() - fullres.mean()) < 1
