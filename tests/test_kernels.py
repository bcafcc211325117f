"""The Numba kernels against the plain torch path."""

import copy
import sys

import numpy as np
import pytest
import torch

import kernels
from kernels import Edit, cpu, enhance_batch, enhance_photo, estimate_illumination, training_loss
from kernels.common import Rule
from loss import PRESETS
from model import FoldedGuide, build_network
from photos.levels import to_photo, to_tensor
from photos.lowres import make_lowres, make_lowres_batch

ARCHS = ['hdrnet', 'deepupe']


def lively(arch, seed=0, dtype=torch.float32):
    """A network whose grid, guide and BatchNorm are far from their start."""
    torch.manual_seed(seed)
    network = build_network(arch).to(dtype)
    with torch.no_grad():
        network.predict.conv.bias.normal_(0.1, 0.3)
        for name, value in network.guide.named_parameters():
            value.add_(torch.randn_like(value) * (0.3 if 'bias' in name else 0.1))
        for name, value in network.guide.named_buffers():
            if 'running' in name:
                value.add_(torch.rand_like(value) * 0.3)
    return network


def plain_path(network):
    """The same network by the plain torch path."""
    network = copy.deepcopy(network)
    network.fused = False
    return network


def photo_of(height, width, dtype=np.uint8, seed=0):
    """Noise on a ramp with black, white and constant areas."""
    rng = np.random.default_rng(seed)
    photo = np.linspace(0, 0.8, width)[None, :, None] + rng.random((height, width, 3)) * 0.2
    photo[: height // 4, : width // 4] = 0
    photo[-(height // 4) :, -(width // 4) :] = 1
    return (photo * np.iinfo(dtype).max).astype(dtype)


@pytest.mark.parametrize('arch', ARCHS)
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize(
    ('strength', 'pedestal'), [(0.0, 0.0), (0.4, 0.0), (1.0, 0.0), (0.4, 0.5), (1.0, 0.5), (1.5, 0.5)]
)
def test_photo_is_the_plain_paths_within_one_level(arch, dtype, strength, pedestal):
    network = lively(arch).eval()
    network.pedestal = pedestal
    photo = photo_of(97, 301, dtype)
    plain, illumination = enhance_photo(plain_path(network), photo, Edit(strength), keep_illumination=True)
    fused, fused_illumination = enhance_photo(network, photo, Edit(strength), keep_illumination=True)
    # float32 sums in another order move a value across a rounding edge; 16 bit has 257 levels in one of 8 bit
    difference = np.abs(plain.astype(int) - fused)
    # where S + eps is next to 0, R jumps between black and white: not a matter of rounding
    difference[np.abs(illumination + network.eps) < 1e-4] = 0
    assert fused.dtype == dtype
    assert difference.max() <= (1 if dtype == np.uint8 else 257)
    assert (difference > 0).mean() < (1e-3 if dtype == np.uint8 else 0.2)
    np.testing.assert_allclose(fused_illumination, illumination, atol=1e-4)  # grids here are steep, coordinates float32


@pytest.mark.parametrize('arch', ARCHS)
@pytest.mark.parametrize(('height', 'width'), [(1, 1), (1, 500), (500, 1), (2, 3), (7, 129), (3, 1300)])
def test_any_size_works(arch, height, width):
    network = lively(arch).eval()
    photo = photo_of(height, width)
    plain, _ = enhance_photo(plain_path(network), photo)
    fused, illumination = enhance_photo(network, photo)
    assert illumination is None
    assert np.abs(plain.astype(int) - fused).max() <= 1


def constant(value, pedestal, fused=True):
    """A network whose illumination is `value` everywhere, or the photo where that is brighter."""
    network = build_network('hdrnet', illumination='clipped', pedestal=pedestal).eval()
    with torch.no_grad():
        network.predict.conv.weight.zero_()
        network.predict.conv.bias.zero_()
        network.predict.conv.bias.view(3, 4, -1)[:, 3] = value
    network.eval_eps, network.fused = 0.0, fused
    return network


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_pedestal_brightens_black_and_keeps_what_is_bright(dtype, fused):
    """With illumination 1 every level comes back; with 0.1, level 0 is 0.5 / 256 / 0.1, and the brightest stays."""
    top = np.iinfo(dtype).max
    photo = np.arange(top + 1).astype(dtype).reshape(-1, 64, 1).repeat(3, axis=2)
    same, _ = enhance_photo(constant(1.0, 0.5, fused), photo)
    assert np.abs(same.astype(int) - photo).max() <= (0 if dtype == np.uint8 else 1)  # float32 has 24 bits
    bright, _ = enhance_photo(constant(0.1, 0.5, fused), photo)
    black, white = bright[0, 0, 0], bright[-1, -1, 0]
    assert black / top * 255 == pytest.approx(0.5 / 0.1 - 0.5, abs=0.51)
    assert white == top
    black_stays, _ = enhance_photo(constant(0.1, 0.0, fused), photo)
    assert black_stays[0, 0, 0] == 0


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize(('pedestal', 'strength'), [(0.0, 1.0), (1.0, 1.0), (1.0, 0.5)])
def test_batch_of_tensors_gives_the_pictures_of_its_photos(pedestal, strength, fused):
    network = lively('hdrnet').eval()
    network.pedestal, network.fused = pedestal, fused
    photos = [photo_of(256, 256, seed=seed) for seed in (0, 1)]  # of lowres' size: nothing is shrunk, nothing rounded
    fullres = torch.cat([to_tensor(photo) for photo in photos])
    enhanced = enhance_batch(network, fullres, strength)
    separate = network.reflectance(fullres, network(fullres, fullres).detach(), strength)
    for photo, ours, plain in zip(photos, enhanced, separate, strict=True):
        expected, illumination = enhance_photo(network, photo, Edit(strength), keep_illumination=True)
        settled = np.abs(illumination + network.eps) > 1e-4  # next to 0, R jumps between black and white
        for tensor in (ours, plain):
            difference = np.abs(to_photo(tensor).astype(int) - expected)[settled]
            assert difference.max() <= 1
            assert (difference > 0).mean() < 1e-3  # float32 on a rounding edge


@pytest.mark.parametrize('mode', ['area', 'bilinear', 'nearest'])
def test_lowres_of_a_batch_is_that_of_its_photos(mode):
    photo = photo_of(301, 440)
    ours = make_lowres_batch(to_tensor(photo), mode)
    difference = (ours - to_tensor(make_lowres(photo, mode))).abs().max()
    assert difference <= (1e-6 if mode == 'area' else 1 / 255)  # OpenCV rounds to levels


def test_pedestal_is_as_high_in_sixteen_bit():
    photo = photo_of(20, 30)
    eight, _ = enhance_photo(constant(0.3, 0.5), photo)
    sixteen, _ = enhance_photo(constant(0.3, 0.5), photo.astype(np.uint16) * 257)
    assert np.abs(sixteen / 257 - eight).max() <= 0.51


def test_without_numba_the_plain_path_runs(monkeypatch, capsys):
    network, photo = lively('hdrnet').eval(), photo_of(20, 30)
    plain, _ = enhance_photo(plain_path(network), photo)
    monkeypatch.setattr(kernels.cpu, 'enhance', lambda *values, **options: pytest.fail('took the kernels'))
    with pytest.raises(pytest.fail.Exception):
        enhance_photo(network, photo)
    kernels.cpu_kernels.cache_clear()
    monkeypatch.setitem(sys.modules, 'kernels.cpu', None)  # makes its import fail
    try:
        fallen_back, _ = enhance_photo(network, photo)
    finally:
        kernels.cpu_kernels.cache_clear()
    np.testing.assert_array_equal(fallen_back, plain)
    assert 'Numba is not usable' in capsys.readouterr().err


def test_result_may_take_the_photos_place():
    network, photo = lively('hdrnet').eval(), photo_of(40, 60)
    expected, _ = enhance_photo(network, photo)
    result, _ = enhance_photo(network, photo, in_place=True)
    assert result is photo
    np.testing.assert_array_equal(result, expected)


def test_photo_that_is_a_view_works():
    network = lively('hdrnet').eval()
    photo = photo_of(40, 60)
    flipped, _ = enhance_photo(network, photo[:, ::-1])
    copied, _ = enhance_photo(network, np.ascontiguousarray(photo[:, ::-1]))
    np.testing.assert_array_equal(flipped, copied)


@pytest.mark.parametrize('arch', ARCHS)
def test_training_has_the_plain_paths_values_and_gradients(arch):
    lowres = torch.rand(2, 3, 256, 256, dtype=torch.float64)
    upstream = torch.randn(2, 3, 13, 150, dtype=torch.float64)
    outcomes = []
    for fused in (False, True):
        network = lively(arch, dtype=torch.float64).train()
        network.fused = fused
        fullres = torch.rand(2, 3, 13, 150, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        illumination = estimate_illumination(network, lowres, fullres)
        (illumination * upstream).sum().backward()
        grads = {name: value.grad for name, value in network.named_parameters()}
        buffers = {name: value.double() for name, value in network.named_buffers()}
        outcomes.append({'illumination': illumination.detach(), **grads, **buffers})
    for name, value in outcomes[0].items():  # BatchNorm's statistics included
        torch.testing.assert_close(outcomes[1][name], value, atol=1e-9, rtol=1e-7, msg=lambda m, n=name: f'{n}: {m}')


def test_photo_that_needs_a_gradient_gets_it():
    network, photo = lively('hdrnet'), torch.rand(2, 3, 5, 9, requires_grad=True)
    estimate_illumination(network, torch.rand(2, 3, 256, 256), photo).sum().backward()
    assert photo.grad.abs().sum() > 0


@pytest.mark.parametrize(('tanh', 'align_corners', 'clip'), [(True, True, False), (False, False, True)])
def test_slice_apply_gradcheck(tanh, align_corners, clip):
    torch.manual_seed(2)
    double = {'dtype': torch.float64, 'requires_grad': True}
    photo = torch.rand(2, 3, 3, 4, dtype=torch.float64)
    grid = (torch.rand(2, 12, 3, 2, 3, dtype=torch.float64) * 0.4).requires_grad_()
    guide = FoldedGuide(
        torch.randn(4, 3, **double), torch.randn(4, **double), torch.randn(4, **double), torch.rand((), **double), tanh
    )

    def slice_apply(*tensors):
        return cpu.SliceApply.apply(photo, *tensors, tanh, Rule(align_corners, clip))

    assert torch.autograd.gradcheck(slice_apply, (grid, *guide[:4]))


@pytest.mark.parametrize('preset', list(PRESETS))
@pytest.mark.parametrize('clamp', [True, False])
@pytest.mark.parametrize(
    ('size', 'weights'),
    [
        *[
            (size, weights)
            for size in [(9, 11), (1, 5), (5, 1)]
            for weights in [{}, {'color': 0.0}, {'smoothness': 0.0}]
        ],
        *[(size, {'structure': 0.7, 'tone': 0.3}) for size in [(7, 7), (10, 12), (29, 83)]],
    ],
)
def test_loss_has_the_plain_paths_values_and_gradient(preset, clamp, weights, size):
    generator = torch.Generator().manual_seed(4)
    photo, start, target = (torch.rand(2, 3, *size, dtype=torch.float64, generator=generator) for _ in range(3))
    photo[0, :, 0], target[0, :, 0] = 0, 0
    network, outcomes = build_network('hdrnet', pedestal=0.5 if clamp else 0.0), []
    for fused in (False, True):
        network.fused = fused
        illumination = (start * 0.9 + 0.1).requires_grad_()
        values = training_loss(network, photo, illumination, target, clamp, preset, weights)
        (3 * values['total']).backward()
        outcomes.append({**values, 'grad': illumination.grad})
    assert list(outcomes[0]) == list(outcomes[1])
    for name, value in outcomes[0].items():
        torch.testing.assert_close(outcomes[1][name].double(), value.double(), atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize('arch', ARCHS)  # deepupe clips the illumination
@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('clamp', [False, True])
def test_diverged_network_has_a_loss_that_is_not_a_number(arch, fused, clamp):
    network = lively(arch)
    network.fused = fused
    with torch.no_grad():
        network.predict.conv.bias.fill_(float('nan'))
    photo = torch.rand(2, 3, 5, 9)
    illumination = estimate_illumination(network, torch.rand(2, 3, 256, 256), photo)
    assert training_loss(network, photo, illumination, photo.sqrt(), clamp, arch)['total'].isnan()


def test_training_step_in_float32_is_close_to_the_plain_one():
    steps = []
    for fused in (False, True):
        network = lively('hdrnet')
        network.fused = fused
        generator = torch.Generator().manual_seed(5)
        lowres, fullres = torch.rand(2, 3, 256, 256, generator=generator), torch.rand(2, 3, 64, 80, generator=generator)
        illumination = estimate_illumination(network, lowres, fullres)
        losses = training_loss(network, fullres, illumination, fullres**0.5, True, 'hdrnet')
        losses['total'].backward()
        steps.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    # float32 and a loss with weights up to 15,000 (smoothness on flat areas)
    assert torch.nn.functional.cosine_similarity(*steps, dim=0) > 0.9999
