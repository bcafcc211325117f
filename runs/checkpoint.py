"""Checkpoints: written whole, read without running anything in them, and the network that they hold."""

import io
import json
import os
import zipfile

import numpy as np
import torch

from model import build_network
from system.files import plain, save_whole
from utils import NETWORK_RULES

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PREDECESSOR = 'coeffs.conv_out.conv.weight'  # a name in the predecessor's state dict
HEADER = 'deepupe'  # name of our values in the header of a safetensors file
HEADER_VALUES = 'arch', 'epoch', 'psnr', 'ssim', 'opt', 'rounding'


def save_checkpoint(path, checkpoint):
    """Write a dict of tensors and plain values, whole or not at all."""
    try:
        save_whole(lambda file: torch.save(checkpoint, file), path)
    except RuntimeError as error:  # torch's way to say that the disk is full
        raise OSError(f'{path}: cannot be written ({str(error).splitlines()[0]})') from error


def save_safetensors(path, checkpoint):
    """Write a checkpoint's weights as safetensors, what inference needs and HEADER_VALUES names as JSON in the header.

    Raises:
        ValueError: safetensors is not installed.
    """
    weights = {name: value.contiguous() for name, value in checkpoint['model'].items()}
    values = {name: checkpoint[name] for name in HEADER_VALUES if name in checkpoint}
    data = safetensors_torch(path).save(weights, {HEADER: json.dumps(plain(values))})
    save_whole(lambda file: file.write(data), path)


def safetensors_torch(path):
    try:
        import safetensors.torch
    except ImportError:
        raise ValueError(f'{path}: expected safetensors, it is not installed: pip install safetensors') from None
    return safetensors.torch


def read_checkpoint(path):
    """Read a checkpoint without running anything in it, in no more memory than a few times its size.

    Args:
        path: of what torch.save or `save_safetensors` wrote; one that is not there is looked for beside the scripts.
    Returns:
        dict with at least 'arch' and 'model'; a plain state dict of the predecessor becomes one, turned to RGB.
    Raises:
        FileNotFoundError: no such file. ValueError: truncated, not a checkpoint, or not of tensors and plain values.
    """
    path = find_checkpoint(path)
    with open(path, 'rb') as file:
        data = file.read()
    library = safetensors_torch(path) if path.lower().endswith('.safetensors') else None
    try:
        checkpoint = read_safetensors(library, data) if library else read_tensors(data)
        if PREDECESSOR in checkpoint:
            checkpoint = {'arch': 'hdrnet', 'model': convert_predecessor(checkpoint), 'rounding': 'down'}
    except Exception as error:  # a damaged file may raise anything
        said = ' '.join(str(error).split()).partition('. ')[0]  # torch goes on with how to run what is in it
        reason = said or type(error).__name__
        raise ValueError(
            f'{path}: expected a whole checkpoint of tensors and plain values; refused, nothing in it ran ({reason})'
        ) from error
    if not isinstance(checkpoint, dict) or not {'arch', 'model'} <= set(checkpoint):
        raise ValueError(f"{path}: expected a checkpoint with 'arch' and 'model', or the predecessor's state dict")
    for name in ('model', 'opt'):
        if not isinstance(checkpoint.get(name, {}), dict):
            raise ValueError(f'{path}: expected a dict as {name}, got {type(checkpoint[name]).__name__}')
    return {'opt': {}, **checkpoint}


def read_tensors(data):
    """The object in the bytes of a file of torch.save; torch.load alone would unpack a small archive to any size."""
    if data[:4] == b'PK\3\4':  # else as before torch 1.6, such as the predecessor's weights
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > len(data):
                raise ValueError('its parts are larger than the file')
    return torch.load(io.BytesIO(data), map_location='cpu', weights_only=True)


def find_checkpoint(path):
    """A checkpoint's path: as it is, or beside the scripts, or of a shipped one by its name, such as 'general'.

    Raises:
        FileNotFoundError: none of these is there.
    """
    shipped = os.path.join(ROOT, 'checkpoints')
    for candidate in (path, os.path.join(ROOT, path), os.path.join(shipped, path, 'best.pth')):
        if os.path.isfile(candidate):
            return candidate
    names = sorted(name for name in os.listdir(shipped) if os.path.isdir(os.path.join(shipped, name)))
    raise FileNotFoundError(f"{path}: expected a checkpoint's file, or one of {', '.join(names)}; found none")


def read_safetensors(library, data):
    """The checkpoint in the bytes of a safetensors file; without our header, its tensors alone."""
    weights = library.load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], 'little')])
    values = header.get('__metadata__', {}).get(HEADER)
    return weights if values is None else {**json.loads(values), 'model': weights}


def load_network(path, device='cpu'):
    """Network in eval mode on a device, and its checkpoint, from our file or the predecessor's plain state dict.

    Raises:
        FileNotFoundError: no such file. ValueError: not a checkpoint, or its weights do not fit its architecture.
    """
    checkpoint = read_checkpoint(path)
    try:
        with torch.device('meta'):  # shapes alone: nothing is allocated before they are known to be the weights'
            network = build_network(**network_options(checkpoint))
        weights = fit_weights(checkpoint['model'], network.state_dict(), os.path.getsize(find_checkpoint(path)))
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, OverflowError) as error:
        detail = ' '.join(str(error).split())
        raise ValueError(f'{path}: weights do not fit {checkpoint["arch"]} ({detail})') from error
    network.load_state_dict(weights, assign=True)
    return network.eval().to(device), checkpoint


def fit_weights(weights, expected, size):
    """Weights {name: tensor} of a file of `size` bytes as the dtypes of a network's state dict, `expected`.

    Raises:
        ValueError: others than expected, or not finite numbers; the message names the first.
    """
    if different := sorted(set(weights) ^ set(expected)):
        raise ValueError(f'{different[0]}: {"not expected" if different[0] in weights else "missing"}')
    for name, value in weights.items():
        if not torch.is_tensor(value) or value.shape != expected[name].shape:
            shape = tuple(value.shape) if torch.is_tensor(value) else type(value).__name__
            raise ValueError(f'{name}: expected {tuple(expected[name].shape)}, got {shape}')
        if value.is_floating_point() != expected[name].is_floating_point():
            raise ValueError(f'{name}: expected {expected[name].dtype}, got {value.dtype}')
    if sum(value.nbytes for value in weights.values()) > size:
        raise ValueError('its weights share their values')
    fitted = {name: value.to(expected[name].dtype).contiguous() for name, value in weights.items()}
    for name, value in fitted.items():
        values = value.numpy()  # torch would start threads for each of a hundred small tensors
        if not np.isfinite(values).all():
            raise ValueError(f'{name}: expected finite numbers, got others')
        if name.endswith('running_var') and values.min() < 0:
            raise ValueError(f'{name}: expected variances of 0 or more, got {values.min():g}')
    return fitted


def network_options(checkpoint):
    """What model.build_network built a checkpoint's network with; a grid size not in it is read off the weights."""
    luma_bins = checkpoint['model']['predict.conv.weight'].shape[0] // 12
    usual = {'luma_bins': luma_bins, 'spatial_bin': 0, 'pedestal': 0.0, 'vibrance': 0.0}
    options = {**usual, **checkpoint['opt'], 'arch': checkpoint['arch']}
    return {name: options.get(name, '') for name in NETWORK_RULES}


def convert_predecessor(weights):
    """State dict of hermosayhl/DeepUPE_pytorch (BGR) as ours (RGB).

    Its names become ours; channels are permuted where a photo goes in (splat, guide) and where the affine's rows and
    columns are colours (prediction).
    """
    renames = {
        'coeffs.splat_features.': 'splat.',
        'coeffs.global_features_conv.': 'global_conv.',
        'coeffs.global_features_fc.': 'global_fc.',
        'coeffs.local_features.': 'local.',
        'coeffs.conv_out.': 'predict.',
        'guide.conv1.': 'guide.hidden.',
        'guide.conv2.': 'guide.output.',
        '.bn.': '.norm.',
        '.fc.': '.linear.',
    }
    converted = {}
    for name, value in weights.items():
        for theirs, ours in renames.items():
            name = name.replace(theirs, ours)
        if name in ('splat.0.conv.weight', 'guide.hidden.conv.weight'):
            value = value.flip(1)
        if name.startswith('predict.conv.'):
            affine = value.view(3, 4, -1, *value.shape[1:])[[2, 1, 0]][:, [2, 1, 0, 3]]  # the offset stays last
            value = affine.reshape(value.shape)
        converted[name] = value
    return converted
