"""Photos as arrays of levels and as tensors in [0, 1]."""

import numpy as np
import torch

LOW_SIZE = 256  # side of lowres in pixels; the fully connected layers fix it


def to_8bit(photo):
    """A uint8 or uint16 photo as uint8, rounded."""
    return photo if photo.dtype == np.uint8 else (photo / 257).round().astype(np.uint8)


def to_tensor(photo, device='cpu'):
    """(H, W, 3) uint8, uint16, or float32 levels of 255, to (1, 3, H, W) float32 in [0, 1]."""
    top = 65535 if photo.dtype == np.uint16 else 255
    if photo.dtype == np.uint16:
        photo = photo.astype(np.float32)  # torch has few operations on uint16
    return torch.from_numpy(photo).to(device).permute(2, 0, 1)[None].float().div(top)


def to_photo(tensor, dtype=np.uint8, round_down=False):
    """(1, 3, H, W) or (3, H, W) in [0, 1] to (H, W, 3), clipped to the range of dtype, rounded to nearest or down."""
    top = int(np.iinfo(dtype).max)
    levels = tensor.reshape(tensor.shape[-3:]).mul(top).clamp(0, top).permute(1, 2, 0)
    return (levels if round_down else levels.round()).cpu().numpy().astype(dtype)
