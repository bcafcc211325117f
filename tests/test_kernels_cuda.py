"""The Triton kernels against the plain torch path, on a GPU where there is one, else in Triton's interpreter."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
torch.backends.cudnn.allow_tf32 = False  # as utils.pick_device has it
if DEVICE == 'cpu':
    os.environ['TRITON_INTERPRET'] = '1'  # read when triton is imported

triton = pytest.importorskip('triton')

import triton.language as tl  # noqa: E402 - after the environment is set

import kernels  # noqa: E402
from kernels import Edit, cuda, enhance_photo, rule_of  # noqa: E402
from kernels.common import FusedLoss, Rule  # noqa: E402
from loss import PRESETS, total_loss  # noqa: E402
from model import reflectance  # noqa: E402
from photos.levels import to_tensor  # noqa: E402
from photos.lowres import make_lowres  # noqa: E402
from tests.test_kernels import ARCHS, lively, photo_of  # noqa: E402


@triton.jit
def count_kernel(numbers, end):
    for i in range(0, tl.load(end)):
        tl.store(numbers + i, i)


def interpreter_works():
    """Whether this Triton's interpreter, with this numpy, can loop and store at all: some pairs of versions cannot."""
    numbers = torch.zeros(4, dtype=torch.int32)
    try:
        count_kernel[(1,)](numbers, torch.tensor([4], dtype=torch.int32))
    except Exception:  # whatever it stumbles over
        return False
    return numbers.tolist() == [0, 1, 2, 3]


pytestmark = pytest.mark.skipif(
    DEVICE == 'cpu' and not interpreter_works(),
    reason=f'the interpreter of Triton {triton.__version__} does not work with numpy {np.__version__}',
)


@pytest.mark.parametrize('arch', ARCHS)
@pytest.mark.parametrize('size', [(2, 150), (1, 1)])  # the interpreter is slow
def test_training_has_the_plain_paths_values_and_gradients(arch, size):
    outcomes = []
    for fused in (False, True):
        network = lively(arch).to(DEVICE).train()
        generator = torch.Generator().manual_seed(3)
        lowres, fullres = (torch.rand(2, 3, *s, generator=generator).to(DEVICE) for s in ((256, 256), size))
        upstream = torch.randn(2, 3, *size, generator=generator).to(DEVICE)
        if fused:
            grid, guide = network.predict_grid(lowres), network.guide.fold(fullres)
            illumination = cuda.illuminate(fullres, grid, guide, rule_of(network))
        else:
            illumination = network(lowres, fullres)
        (illumination * upstream).sum().backward()
        outcomes.append((illumination.detach(), torch.cat([p.grad.flatten() for p in network.parameters()])))
    (plain, plain_grad), (ours, our_grad) = outcomes
    torch.testing.assert_close(ours, plain, atol=5e-5, rtol=0)  # steep grids, coordinates in float32
    # float32 sums in another order; biases before BatchNorm have gradients of pure rounding
    assert (our_grad - plain_grad).abs().max() <= 1e-4 * plain_grad.abs().max() + 1e-6


@pytest.mark.parametrize('arch', ARCHS)
@pytest.mark.parametrize(('dtype', 'strength', 'pedestal'), [(np.uint8, 1.0, 0.5), (np.uint16, 0.4, 0.0)])
def test_photo_is_the_plain_paths_within_one_level(arch, dtype, strength, pedestal):
    network = lively(arch).eval()
    network.pedestal, network.fused = pedestal, False
    photo = photo_of(4, 150, dtype)
    edit = Edit(strength)
    plain, illumination = enhance_photo(network, photo, edit, keep_illumination=True)
    network.to(DEVICE)
    with torch.inference_mode():
        lowres = to_tensor(make_lowres(photo, network.lowres_mode), DEVICE)
        levels = torch.from_numpy(photo if dtype == np.uint8 else photo.astype(np.int32)).to(DEVICE)
        grid, guide = network.predict_grid(lowres)[0], network.guide.fold(lowres)
        ours, our_illumination = cuda.enhance(levels, grid, guide, rule_of(network, edit), every=1)
    difference = np.abs(plain.astype(int) - ours.cpu().numpy())
    difference[np.abs(illumination + network.eps) < 1e-4] = 0  # R jumps between black and white there
    assert difference.max() <= (1 if dtype == np.uint8 else 257)
    np.testing.assert_allclose(our_illumination.cpu().numpy(), illumination, atol=1e-4)


@pytest.mark.parametrize('clip', [False, True])
def test_diverged_network_has_a_loss_that_is_not_a_number(clip):
    guide = lively('hdrnet').to(DEVICE).guide.fold(torch.rand(1, 3, 2, 9, device=DEVICE))
    photo = torch.rand(1, 3, 2, 9, device=DEVICE)
    grid = torch.full((1, 12, 8, 8, 8), float('nan'), device=DEVICE)
    illumination = cuda.illuminate(photo, grid, guide, Rule(True, clip))
    weights = 1.0, 0.2, 0.05, 0.0
    loss, _ = FusedLoss.apply(illumination, photo, photo.sqrt(), cuda.loss_and_grad, 1e-4, True, clip, weights)
    assert loss.isnan()


def test_gradients_repeat_exactly():
    network = lively('hdrnet').to(DEVICE).train()
    fullres = torch.rand(1, 3, 2, 150, device=DEVICE)
    grid = torch.rand(1, 12, 8, 8, 8, device=DEVICE, requires_grad=True)
    grads = []
    for _ in range(2):
        illumination = cuda.illuminate(fullres, grid, network.guide.fold(fullres), Rule(True, False))
        grads.append(torch.autograd.grad(illumination.square().sum(), grid)[0])
    assert torch.equal(*grads)


@pytest.mark.parametrize('preset', list(PRESETS))
@pytest.mark.parametrize('clamp', [True, False])
@pytest.mark.parametrize(
    ('size', 'weights'), [((3, 150), {}), ((1, 5), {}), ((5, 1), {'color': 0.0}), ((8, 12), {'structure': 0.7})]
)
def test_loss_has_the_plain_paths_values_and_gradient(preset, clamp, size, weights):
    generator = torch.Generator().manual_seed(4)
    photo, illumination, target = (torch.rand(2, 3, *size, generator=generator).to(DEVICE) for _ in range(3))
    photo[0, :, 0], target[0, :, 0] = 0, 0
    illumination[1, :, 0] = -1e-4  # S + eps is 0
    plain, ours = illumination.clone().requires_grad_(), illumination.clone().requires_grad_()
    enhanced = reflectance(photo, plain, 1e-4, clamp=clamp)
    values = total_loss(photo, plain, enhanced, target, preset, weights)
    (3 * values.pop('total')).backward()
    all_weights = tuple({**PRESETS[preset], **weights}[name] for name in kernels.FUSED_TERMS)
    luma = preset == 'deepupe'
    total, terms = FusedLoss.apply(ours, photo, target, cuda.loss_and_grad, 1e-4, clamp, luma, all_weights)
    (3 * total).backward()
    computed = [term if weight else torch.zeros_like(term) for term, weight in zip(terms, all_weights, strict=True)]
    torch.testing.assert_close(
        torch.stack(computed).float(), torch.stack([values[name] for name in kernels.FUSED_TERMS]), rtol=1e-4, atol=1e-6
    )
    assert (ours.grad - plain.grad).abs().max() <= 1e-4 * plain.grad.abs().max()


def test_trial_takes_the_kernels_and_refuses_wrong_ones():
    device, state = torch.device(DEVICE), torch.get_rng_state()
    kernels.try_kernels(cuda, device)
    assert torch.equal(torch.get_rng_state(), state)
    dark = SimpleNamespace(**vars(cuda))
    dark.illuminate = lambda *values: cuda.illuminate(*values) * 0.99
    with pytest.raises(RuntimeError, match='training differs'):
        kernels.try_kernels(dark, device)
    dark = SimpleNamespace(**vars(cuda))
    dark.enhance = lambda *values: cuda.enhance(*values[:3], values[3]._replace(strength=0.9))
    with pytest.raises(RuntimeError, match='photo differs'):
        kernels.try_kernels(dark, device)


@pytest.mark.skipif(
    tuple(map(int, triton.__version__.split('.')[:2])) < (3, 3), reason='its compiler is called otherwise'
)
@pytest.mark.parametrize(
    'kernel', ['illumination_kernel', 'illumination_back_kernel', 'guide_back_kernel', 'enhance_kernel', 'loss_kernel']
)
def test_kernel_compiles_for_a_gpu(kernel):
    environment = {name: value for name, value in os.environ.items() if name != 'TRITON_INTERPRET'}
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'compile_kernels.py')
    command = [sys.executable, script, kernel]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == [kernel] * 2
