"""Checkpoints: written whole, read without running anything in them, and the network that they hold."""

import os
import pickle
import zipfile

import torch

from model import build_network
from runs.predecessor import convert_predecessor
from system.files import save_whole


def save_checkpoint(path, checkpoint):
    """Write a dict of tensors and plain values, whole or not at all."""
    try:
        save_whole(lambda partial: torch.save(checkpoint, partial), path)
    except RuntimeError as error:  # torch's way to say that the disk is full
        raise OSError(f'{path}: cannot be written ({str(error).splitlines()[0]})') from error


def read_checkpoint(path):
    """Read a checkpoint without running anything in it.

    Returns:
        dict with at least 'arch' and 'model'; a plain state dict of the predecessor becomes one, turned to RGB.
    Raises:
        FileNotFoundError: no such file. ValueError: truncated, not a checkpoint, or a pickle with code in it.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'{path}: expected a checkpoint, found no such file')
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f'{path}: not a checkpoint of tensors and plain values; refused, nothing in it ran') from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f'{path}: not a checkpoint, or a truncated one') from error
    if isinstance(checkpoint, dict) and 'coeffs.conv_out.conv.weight' in checkpoint:
        return {'arch': 'hdrnet', 'model': convert_predecessor(checkpoint), 'opt': {}, 'rounding': 'down'}
    if not isinstance(checkpoint, dict) or not {'arch', 'model'} <= set(checkpoint):
        raise ValueError(f"{path}: expected a checkpoint with 'arch' and 'model', or the predecessor's state dict")
    return checkpoint


def load_network(path, device='cpu'):
    """Network in eval mode on a device, and its checkpoint, from our file or the predecessor's plain state dict.

    Raises:
        FileNotFoundError: no such file. ValueError: not a checkpoint, or its weights do not fit its architecture.
    """
    checkpoint = read_checkpoint(path)
    weights = checkpoint['model']
    try:
        network = build_network(**network_options(checkpoint))
        network.load_state_dict({name: value.float() for name, value in weights.items()})
    except (RuntimeError, AttributeError, KeyError, TypeError) as error:
        detail = str(error).splitlines()[1 if '\n' in str(error) else 0].strip()
        raise ValueError(f'{path}: weights do not fit {checkpoint["arch"]} ({detail})') from error
    return network.eval().to(device), checkpoint


def network_options(checkpoint):
    """What model.build_network built a checkpoint's network with; a grid size not in it is read off the weights."""
    options = checkpoint.get('opt', {})
    luma_bins = options.get('luma_bins') or checkpoint['model']['predict.conv.weight'].shape[0] // 12
    variant = {name: options.get(name, '') for name in ('slicing', 'illumination', 'guide', 'lowres')}
    sizes = {'luma_bins': luma_bins, 'spatial_bin': options.get('spatial_bin', 0)}
    return {'arch': checkpoint['arch'], **sizes, **variant, 'pedestal': options.get('pedestal', 0.0)}
