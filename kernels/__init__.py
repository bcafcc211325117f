"""The network's full-resolution work by the fastest path that the device has; the scripts call this and nothing below.

On the CPU it is cpu.py (Numba), on CUDA cuda.py (Triton). Where those do not run, and where network.fused is False, it
is the plain torch path of model.py and loss.py, which is the definition and which the kernels are tested against.
"""

import contextlib
import functools
import importlib
import sys
import threading
from typing import NamedTuple

import numpy as np
import torch

from kernels.common import FusedLoss, Rule
from kernels.denoise import SAMPLE, denoise_plain, remove_noise
from loss import PRESETS, tone_loss, total_loss
from model import LOW_SIZE, STRONGEST, add_pedestal, build_network, reflectance
from photos.levels import to_photo, to_tensor
from photos.lowres import make_lowres, make_lowres_batch

FUSED_TERMS = 'reconstruction', 'color', 'smoothness', 'structure'  # of the loss, in the kernels' order
LOCK = threading.Lock()  # one trial of the kernels, however many threads ask for them at once


@functools.lru_cache(maxsize=1)
def cpu_kernels():
    """The Numba module, or None (said once) where Numba does not import."""
    try:
        return importlib.import_module('.cpu', __name__)
    except ImportError as error:
        print(f'note: plain torch path, about 40 times slower: Numba is not usable ({error})', file=sys.stderr)
        return None


def announce_compiling():
    """A context, for scripts, in which it is said on stderr that a CPU kernel is compiled, which takes seconds."""
    cpu = cpu_kernels()
    return cpu.announce_compiling() if cpu else contextlib.nullcontext()


@functools.lru_cache(maxsize=1)
def cuda_kernels(device):
    """The Triton module, or None (said once) where it does not compile or differs from the plain path on a trial."""
    try:
        from kernels import cuda

        try_kernels(cuda, device)
    except Exception as error:  # whatever a compiler or driver may raise: the plain path always works
        print(f'note: plain torch path: the Triton kernels are not usable ({error})', file=sys.stderr)
        return None
    return cuda


@torch.inference_mode(False)
@torch.enable_grad()
def try_kernels(kernels, device):
    """Compare illumination, loss, gradient and photo with the plain path's on the CPU, where it is deterministic.

    Raises:
        RuntimeError: they differ. Or whatever the kernels raise.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network('hdrnet').eval()  # in training ranks would wait for one another
        lowres, fullres = torch.rand(2, 3, LOW_SIZE, LOW_SIZE), torch.randint(256, (2, 3, 2, 100)) / 255
    grid, outcomes = network.predict_grid(lowres), []
    for place, network.fused in (('cpu', False), (device, kernels)):
        network.to(place)
        photo, cells = fullres.to(place), grid.detach().to(place).requires_grad_()
        illumination = illuminate(network, cells, photo)
        loss = training_loss(network, photo, illumination, photo.sqrt(), True, 'hdrnet')['total']
        outcomes.append((illumination, loss, *torch.autograd.grad(loss, (cells, *network.guide.parameters()))))
    for expected, value in zip(*outcomes, strict=True):
        if (value.cpu() - expected).abs().max() > 1e-3 * expected.abs().max():
            raise RuntimeError('its training differs from the plain path')
    with torch.no_grad():
        kernels.predict_grid(network, lowres[:1].to(device))  # whether a graph can be recorded
        levels = photo[0].mul(255).round().byte().permute(1, 2, 0).contiguous()
        enhanced, _ = kernels.enhance(levels, cells[0], network.guide.fold(photo), rule_of(network))
        expected = to_photo(network.reflectance(fullres, outcomes[0][0])[0])
    if (abs(enhanced.cpu().numpy().astype(int) - expected) > 1).mean() > 0.01:  # where S is next to 0, R jumps
        raise RuntimeError('its photo differs from the plain path')


def kernels_for(network, tensor):
    """Kernel module for a network and a tensor's device, or None for the plain path."""
    if network.fused is not True:  # but False, or in try_kernels the module
        return network.fused or None
    with LOCK:
        if tensor.device.type == 'cpu':
            return cpu_kernels()
        return cuda_kernels(tensor.device) if tensor.device.type == 'cuda' else None


def estimate_illumination(network, lowres, fullres, bf16=False):
    """network(lowres, fullres), differentiable: the illumination (N, 3, H, W).

    Args:
        lowres, fullres: (N, 3, 256, 256), (N, 3, H, W) in [0, 1].
        bf16: run the coefficient network in bfloat16; the full-resolution work stays in float32.
    """
    with torch.autocast(fullres.device.type, torch.bfloat16, enabled=bf16):
        grid = network.predict_grid(lowres).to(fullres.dtype)
    return illuminate(network, grid, fullres)


def illuminate(network, grid, fullres):
    """network.illuminate by the kernels where they run."""
    kernels = kernels_for(network, fullres)
    if kernels is None or fullres.requires_grad:  # the kernels have no gradient by the photo
        return network.illuminate(grid, fullres)
    fullres = add_pedestal(fullres, network.pedestal)
    return kernels.illuminate(fullres, grid, network.guide.fold(fullres), rule_of(network))


def training_loss(network, fullres, illumination, target, clamp, preset, weights=None):
    """loss.total_loss of the reflectance at full strength: a dict of scalars, 'total' with a gradient.

    The terms compare photos on the network's pedestal.

    Args:
        network: whose eps and pedestal count.
        fullres, illumination, target: (N, 3, H, W); fullres and target in [0, 1].
        clamp: see model.reflectance. preset, weights: see loss.total_loss.
    """
    eps, pedestal = network.eps, network.pedestal
    fullres, target = add_pedestal(fullres, pedestal), add_pedestal(target, pedestal)
    kernels = kernels_for(network, fullres)
    if kernels is None:
        enhanced = reflectance(fullres, illumination, eps, clamp=clamp)
        return total_loss(fullres, illumination, enhanced, target, preset, weights)
    weights = {**PRESETS[preset], **(weights or {})}
    chosen = tuple(weights[name] for name in FUSED_TERMS)
    total, terms = FusedLoss.apply(
        illumination, fullres, target, kernels.loss_and_grad, eps, clamp, preset == 'deepupe', chosen
    )
    tone = total.new_zeros(())
    if weights['tone']:  # plain torch, on the pixels that total_loss takes
        photo, s, wanted = (images[..., ::2, ::2] for images in (fullres, illumination, target))
        tone = tone_loss(reflectance(photo, s, eps, clamp=clamp), wanted)
        total = total + weights['tone'] * tone
    terms = {name: term * (weights[name] > 0) for name, term in zip(FUSED_TERMS, terms, strict=True)}
    return {'total': total, **terms, 'tone': tone}


@torch.no_grad()
def enhance_batch(network, fullres, strength=1.0):
    """Photos as tensors through the network, as enhance_photo does it with arrays of levels.

    Args:
        network: from `model.build_network` or `load_network`, in eval mode.
        fullres: (N, 3, H, W) RGB in [0, 1], on the network's device.
        strength: in [0, 1.5]; 0 gives the photos, 1 the network's result.
    Returns:
        enhanced (N, 3, H, W) in [0, 1].
    Raises:
        ValueError: strength outside [0, 1.5], or not (N, 3, H, W).
    """
    lowres = make_lowres_batch(fullres, network.lowres_mode)
    return network.reflectance(fullres, estimate_illumination(network, lowres, fullres), strength)


class Edit(NamedTuple):
    """What is asked of an enhanced photo."""

    strength: float = 1.0  # in [0, 1.5], exponent of S: 0 gives the photo, 1 the network's result
    denoise: float = 0.0  # 1 takes out the noise that the gain brings up, 0 none, -1 where it shows; see remove_noise
    round_down: bool = False  # cut fractions of a level off, as the predecessor does, instead of rounding


FULL = Edit()


def rule_of(network, edit=FULL):
    """The Rule of a network in its current mode, and of an edit."""
    return Rule(network.align_corners, network.clip, network.eps, network.pedestal, edit.strength, edit.round_down)


@torch.inference_mode()
def enhance_photo(network, photo, edit=FULL, *, keep_illumination=False, in_place=False):
    """One photo through the network, on the network's device: `predict_grid`, then `apply_grid`.

    Args:
        network: from `model.build_network` or `load_network`, in eval mode.
        photo: (H, W, 3) RGB, uint8 or uint16.
        edit: strength, denoising, rounding.
        keep_illumination: return S too.
        in_place: write the result over `photo` where the path can, which saves the memory of a second photo.
    Returns:
        enhanced (H, W, 3) of the photo's dtype, and illumination (H, W, 3) float32, or None unless kept.
    Raises:
        ValueError: strength outside [0, 1.5], denoise below 0 and not -1.
    """
    grid = predict_grid(network, photo)
    return apply_grid(network, photo, grid, edit, keep_illumination=keep_illumination, in_place=in_place)


@torch.inference_mode()
def predict_grid(network, photo):
    """A photo's bilateral grid (1, 12, D, Gh, Gw), on the network's device.

    Args:
        photo: (H, W, 3) RGB, uint8 or uint16.
    Raises:
        ValueError: the network's weights are so large that the grid overflows.
    """
    device = next(network.parameters()).device
    lowres = to_tensor(make_lowres(photo, network.lowres_mode), device)
    kernels = kernels_for(network, lowres)
    grid = kernels.predict_grid(network, lowres) if kernels and lowres.is_cuda else network.predict_grid(lowres)
    if not grid.isfinite().all():  # else a black photo
        raise ValueError('network: expected finite coefficients, got others: its weights are broken')
    return grid


@torch.inference_mode()
def apply_grid(network, photo, grid, edit=FULL, *, keep_illumination=False, in_place=False):
    """A photo enhanced by a grid, its own or one made of several; arguments and results as of `enhance_photo`.

    Args:
        grid: (1, 12, D, Gh, Gw), see predict_grid.
    """
    if not 0 <= edit.strength <= STRONGEST:
        raise ValueError(f'strength: expected 0 to {STRONGEST}, got {edit.strength}')
    if edit.denoise < 0 and edit.denoise != -1:
        raise ValueError(f'denoise: expected -1, or 0 or more, got {edit.denoise}')
    every = 1 if keep_illumination else SAMPLE if edit.denoise else 0  # rows and columns of S to keep
    kernels = kernels_for(network, grid)
    if kernels is None:
        fullres = to_tensor(photo, grid.device)
        illumination = network.illuminate(grid, fullres)
        enhanced = to_photo(network.reflectance(fullres, illumination, edit.strength), photo.dtype, edit.round_down)
        illumination = illumination[0, :, ::every, ::every].permute(1, 2, 0).cpu().numpy() if every else None
    elif grid.is_cuda:
        levels = torch.from_numpy(photo.astype(np.int32) if photo.dtype == np.uint16 else photo).to(grid.device)
        guide, rule = network.guide.fold(grid), rule_of(network, edit)
        enhanced, illumination = kernels.enhance(levels, grid[0], guide, rule, every=every)
        enhanced = enhanced.cpu().numpy().astype(photo.dtype, copy=False)
        illumination = illumination.cpu().numpy() if every else None
    else:
        guide, rule = network.guide.fold(grid), rule_of(network, edit)
        enhanced, illumination = kernels.enhance(photo, grid[0], guide, rule, every=every, in_place=in_place)
    if edit.denoise:
        samples = illumination[::SAMPLE, ::SAMPLE] if keep_illumination else illumination
        cpu = cpu_kernels() if network.fused else None
        denoise = cpu.denoise if cpu else denoise_plain
        enhanced = remove_noise(enhanced, samples, edit.denoise, edit.strength, denoise)
    return enhanced, illumination if keep_illumination else None
