import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from kernels import training_loss
from loss import (
    PRESETS,
    color_loss,
    log_luma,
    log_photo,
    reconstruction_loss,
    smoothness_loss,
    structure_loss,
    tone_loss,
    total_loss,
)
from model import build_network, reflectance

NETWORK = build_network('hdrnet')  # whose eps counts


def image(*rows):
    """(1, 3, H, W) float64 with the same rows in each channel."""
    return torch.tensor(rows, dtype=torch.float64).expand(1, 3, -1, -1).clone()


def test_reconstruction_is_the_mean_squared_error():
    assert reconstruction_loss(image([0.0, 1.0]), image([0.5, 0.5])).item() == pytest.approx(0.25)


def test_parallel_colors_have_no_color_loss():
    color = torch.rand(2, 3, 4, 4, dtype=torch.float64) + 0.1
    assert color_loss(color, 0.3 * color).item() == pytest.approx(0, abs=1e-6)  # eps, 1e-4, turns dark vectors a little


def test_orthogonal_colors_have_color_loss_one():
    red, blue = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    red[:, 0], blue[:, 2] = 1, 0.5
    assert color_loss(red, blue).item() == pytest.approx(1, abs=1e-6)


def test_black_agrees_with_black():
    black = torch.zeros(1, 3, 2, 2)
    assert color_loss(black, black).item() == pytest.approx(0, abs=1e-6)


def test_color_loss_is_the_cosine_of_torch():
    first, second = torch.rand(2, 3, 5, 5, dtype=torch.float64), torch.rand(2, 3, 5, 5, dtype=torch.float64)
    cosine = torch.nn.functional.cosine_similarity(first, second, dim=1)
    assert color_loss(first, second).item() == pytest.approx((1 - cosine).mean().item(), abs=1e-6)


def test_smoothness_on_constant_is_zero():
    assert smoothness_loss(torch.full((1, 3, 4, 4), 0.3), log_photo(torch.rand(1, 3, 4, 4))).item() == 0


def test_smoothness_of_two_by_two_by_hand():
    illumination = image([0.1, 0.4], [0.3, 0.9])
    photo = image([0.2, 0.2], [0.6, 0.2])

    def weight(a, b):
        return 1.5 / (abs(math.log(a + 1e-4) - math.log(b + 1e-4)) ** 1.2 + 1e-4)

    along_x = (weight(0.2, 0.2) * 0.3**2 + weight(0.6, 0.2) * 0.6**2) / 2
    along_y = (weight(0.2, 0.6) * 0.2**2 + weight(0.2, 0.2) * 0.5**2) / 2
    assert smoothness_loss(illumination, log_photo(photo)).item() == pytest.approx(along_x + along_y)
    # the three channels are equal, so the luma is 0.9999 of each
    along_luma = smoothness_loss(illumination, log_luma(photo / 0.9999)).item()
    assert along_luma == pytest.approx(along_x + along_y)


def test_totals_weigh_the_terms_as_both_systems_do():
    generator = torch.Generator().manual_seed(0)
    photo, illumination, target = (torch.rand(1, 3, 6, 6, generator=generator) + 0.1 for _ in range(3))
    enhanced = photo / illumination
    terms = (reconstruction_loss(enhanced, target), color_loss(enhanced, target))
    values = total_loss(photo, illumination, enhanced, target, 'hdrnet')
    expected = terms[0] + 0.2 * terms[1] + 0.05 * smoothness_loss(illumination, log_photo(photo))
    torch.testing.assert_close(values['total'], expected)
    values = total_loss(photo, illumination, enhanced, target, 'deepupe')
    expected = terms[0] + terms[1] + 2 * (smoothness_loss(illumination, log_luma(photo)) / 2)
    torch.testing.assert_close(values['total'], expected)
    values = total_loss(photo, illumination, enhanced, target, 'hdrnet', {'color': 0.0, 'smoothness': 0.0})
    torch.testing.assert_close(values['total'], terms[0])


def test_structure_is_scikit_images_ssim_on_every_fourth_window():
    first, second = torch.rand(2, 3, 15, 20, dtype=torch.float64), torch.rand(2, 3, 15, 20, dtype=torch.float64)
    windows = [
        structural_similarity(a.numpy(), b.numpy(), data_range=1, channel_axis=0, full=True)[1][:, 3:-3:4, 3:-3:4]
        for a, b in zip(first, second, strict=True)
    ]
    assert structure_loss(first, second).item() == pytest.approx(1 - np.mean(windows), abs=1e-12)
    assert structure_loss(first, first).item() == pytest.approx(0, abs=1e-12)


def test_tone_is_the_closed_form_on_constants():
    first, second = (torch.full((1, 3, 5, 6), value, dtype=torch.float64) for value in (0.043, 0.008))
    assert tone_loss(first, second).item() == pytest.approx((0.044**0.5 - 0.009**0.5) ** 2, abs=1e-12)
    assert tone_loss(first, first).item() == 0


@pytest.mark.parametrize('fused', [False, True])
def test_structure_needs_a_window(fused, monkeypatch):
    monkeypatch.setattr(NETWORK, 'fused', fused)
    images = [torch.rand(1, 3, 6, 20)] * 3
    with pytest.raises(ValueError, match='expected 7 x 7 pixels or more, got 20 x 6'):
        training_loss(NETWORK, *images, True, 'hdrnet', {'structure': 1.0})


def test_total_refuses_unknown_names():
    images = [torch.rand(1, 3, 2, 2)] * 4
    with pytest.raises(ValueError, match='expected one of hdrnet, deepupe'):
        total_loss(*images, preset='l1')
    with pytest.raises(ValueError, match='got colour'):
        total_loss(*images, weights={'colour': 1.0})


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('preset', list(PRESETS))
@pytest.mark.parametrize('value', [0.0, 0.5, 1.0])
def test_gradients_stay_finite_on_black_saturated_and_constant(value, preset, fused, monkeypatch):
    monkeypatch.setattr(NETWORK, 'fused', fused)
    photo, target = torch.full((1, 3, 5, 5), value), torch.full((1, 3, 5, 5), value)
    for level in (0.0, 0.5, 1.0):
        illumination = torch.full((1, 3, 5, 5), level, requires_grad=True)
        values = training_loss(NETWORK, photo, illumination, target, False, preset)
        values['total'].backward()
        assert values['total'].isfinite()
        assert illumination.grad.isfinite().all()


def test_clamping_kills_the_gradient_of_pixels_that_are_too_bright():
    photo, target = torch.full((1, 3, 2, 2), 0.5), torch.full((1, 3, 2, 2), 0.8)
    for clamp, dead in ((True, True), (False, False)):
        illumination = torch.full((1, 3, 2, 2), 0.25, requires_grad=True)  # R = 2
        enhanced = reflectance(photo, illumination, clamp=clamp)
        total_loss(photo, illumination, enhanced, target)['total'].backward()
        assert illumination.grad.eq(0).all() == dead
