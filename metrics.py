"""PSNR and SSIM of 8-bit photos, as the predecessor's test.py scores them (scikit-image's own functions).

Photos are (H, W, 3) uint8. PSNR over all values, SSIM with the 7 x 7 uniform window per channel, then averaged.
"""

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity


def psnr(photo, target):
    """Peak signal-to-noise ratio in dB of a uint8 photo; infinite for equal photos."""
    check_same_shape(photo, target)
    if np.array_equal(photo, target):
        return float('inf')
    return float(peak_signal_noise_ratio(target, photo, data_range=255))


def ssim(photo, target):
    """Structural similarity in [-1, 1] of a uint8 photo, 7 x 7 uniform window, mean over channels."""
    check_same_shape(photo, target)
    if min(photo.shape[:2]) < 7:
        raise ValueError(f'ssim: expected at least 7 x 7 pixels, got {photo.shape[1]} x {photo.shape[0]}')
    return float(structural_similarity(target, photo, channel_axis=-1, data_range=255))


def check_same_shape(photo, target):
    if photo.shape != target.shape:
        raise ValueError(f'metric: expected two photos of one size, got {photo.shape} and {target.shape}')
