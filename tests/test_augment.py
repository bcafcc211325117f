import numpy as np
import pytest
import torch

from pairs import augment
from pairs.augment import Recipe


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


def render_both(photo, target, recipe, size):
    """Arrays of `render`, and of `render_on` as arrays."""
    pair = [augment.upload(image, 'cpu') for image in (photo, target)]
    ours = [image[0].permute(1, 2, 0).numpy() for image in augment.render_on([pair], [recipe], size)]
    return augment.render(photo, target, recipe, size), ours


@pytest.mark.parametrize(
    ('steps', 'tolerance'),
    [
        ((('window', 5, 7, 40, 50),), 0),
        ((('flip',),), 0),
        ((('window', 5, 7, 40, 50), ('flip',), ('window', 3, 4, 20, 30)), 0),
        ((('flip',), ('resize', 90, 70)), 0.8),  # OpenCV rounds to levels, and its weights
        ((('resize', 300, 400), ('window', 20, 31, 256, 256)), 0.8),
        ((('turn', 13),), 1),  # and turns by 32nds of a pixel
        ((('flip',), ('turn', -9), ('window', 12, 15, 30, 40)), 1),
    ],
)
def test_both_ways_of_steps_agree(steps, tolerance):
    (_, *expected), (_, *ours) = render_both(smooth(), 255 - smooth(), Recipe(False, (), steps), 0)
    for image, other in zip(ours, expected, strict=True):
        assert image.shape == other.shape
        difference = np.abs(image - other.astype(float))
        if steps[0][0] == 'turn':  # at the corners' edge a 32nd of a pixel is many levels
            difference = difference[12:-12, 12:-12]
            assert (image[0, 0] == 0).all()
        assert difference.max() <= tolerance


@pytest.mark.parametrize('size', [32, 64, 200])
def test_both_ways_squeeze_to_a_square(size):
    recipe = Recipe(False, (), (('window', 5, 7, 41, 53), ('flip',)))
    for image, other in zip(*render_both(smooth(), 255 - smooth(), recipe, size), strict=True):
        assert image.shape == other.shape
        assert np.abs(image.astype(float) - other).max() <= 0.8


def test_a_batch_holds_photos_of_any_size():
    """Each item is what it is alone."""
    rng = np.random.default_rng(0)
    shapes = [(60, 80), (80, 60), (33, 47)]
    pairs = [[augment.upload(rng.integers(0, 255, (*s, 3), np.uint8), 'cpu') for _ in range(2)] for s in shapes]
    recipes = [Recipe(i == 1, (1.0,) * i, tuple(augment.draw_steps(*s, rng))) for i, s in enumerate(shapes)]
    together = augment.render_on(pairs, recipes, 50)
    for i in range(3):
        alone = augment.render_on(pairs[i : i + 1], recipes[i : i + 1], 50)
        for batch, item in zip(together, alone, strict=True):
            assert torch.equal(batch[i], item[0])


def test_the_good_photo_and_the_darkened_one_on_a_device():
    for recipe in (Recipe(True, (), ()), Recipe(True, (1.2,), ()), Recipe(False, (-0.5, 0.3), ())):
        (_, *expected), (_, *ours) = render_both(smooth(), 255 - smooth(), recipe, 0)
        for image, other in zip(ours, expected, strict=True):
            np.testing.assert_array_equal(image, other)


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
