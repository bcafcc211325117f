"""Image quality metrics of 8-bit photos against their target, as well-kept libraries define them.

Photos are (H, W, 3) RGB, both of one size; 16 bit is rounded to 8 first. `METRICS` are always there; LPIPS needs a
package and weights that not everybody has.
"""

import functools
import glob
import importlib.util
import os
import threading

import cv2
import numpy as np
import torch
from skimage.color import deltaE_cie76, deltaE_ciede2000, rgb2lab
from skimage.metrics import structural_similarity

from photos.levels import to_8bit


def psnr(photo, target):
    """Peak signal-to-noise ratio over all values in dB; infinite for equal photos.

    To the bit what skimage.metrics.peak_signal_noise_ratio gives, whose import takes half a second of scipy.stats.
    """
    photo, target = check_photos(photo, target)
    if np.array_equal(photo, target):
        return float('inf')
    first, second = as_float(target, photo)
    return float(10 * np.log10(255**2 / np.mean((first - second) ** 2, dtype=np.float64)))


def ssim(photo, target):
    """Structural similarity in [-1, 1], scikit-image's default 7 x 7 uniform window per channel, then the mean.

    In float32, which is three times faster and differs by less than 1e-6.
    Source: skimage.metrics.structural_similarity.
    """
    photo, target = check_photos(photo, target, side=7)
    return float(structural_similarity(*as_float(target, photo), channel_axis=-1, data_range=255))


def ssim_gauss(photo, target):
    """SSIM with the 11 x 11 Gaussian window, sigma 1.5, as in its paper and in most others; not comparable to `ssim`.

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004, by
    skimage.metrics.structural_similarity.
    """
    photo, target = check_photos(photo, target, side=11)
    window = {'gaussian_weights': True, 'sigma': 1.5, 'use_sample_covariance': False}
    return float(structural_similarity(*as_float(target, photo), channel_axis=-1, data_range=255, **window))


def de76(photo, target):
    """Mean CIE 1976 colour difference in Lab (sRGB, D65); 0 for equal photos, 2.3 is about just noticeable.

    Source: skimage.color.deltaE_cie76.
    """
    return color_difference(photo, target, deltaE_cie76)


def de2000(photo, target):
    """Mean CIEDE2000 colour difference in Lab (sRGB, D65).

    Source: skimage.color.deltaE_ciede2000.
    """
    return color_difference(photo, target, deltaE_ciede2000)


def match_mean(photo, target):
    """An 8-bit photo scaled so that its mean grey level is the target's, as papers on LOL call GT-mean."""
    means = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).mean() for image in (photo, target)]
    return np.clip(photo * (means[1] / max(means[0], 1e-6)), 0, 255).round().astype(np.uint8)


METRICS = {function.__name__: function for function in (psnr, ssim, ssim_gauss, de76, de2000)}

LABELS = {
    'psnr': 'PSNR dB',
    'ssim': 'SSIM',
    'ssim_gauss': 'SSIM-G',
    'de76': 'dE76',
    'de2000': 'dE2000',
    'lpips': 'LPIPS',
}


def find_lpips():
    """LPIPS with AlexNet by torchmetrics (lower is better), or the reason why it is not at hand; downloads nothing."""
    weights = os.path.join(torch.hub.get_dir(), 'checkpoints', 'alexnet-owt-*.pth')
    if importlib.util.find_spec('torchmetrics') is None:
        return 'torchmetrics is not installed'
    if not glob.glob(weights):
        return f'its weights are not at hand ({weights})'
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        own = one_per_thread(lambda: LearnedPerceptualImagePatchSimilarity('alex', normalize=True))
        own()  # what fails, fails here
    except (ImportError, RuntimeError, OSError) as error:
        return f'torchmetrics does not run here ({str(error).splitlines()[0]})'
    return lambda photo, target: float(own()(as_batch(photo), as_batch(target)))


def one_per_thread(make):
    """A function that returns the calling thread's own object of make(): a metric that keeps sums is not shared."""
    made = functools.cache(lambda thread: make())
    return lambda: made(threading.get_ident())


def color_difference(photo, target, difference):
    photo, target = check_photos(photo, target)
    lab = [rgb2lab(image / np.float32(255)) for image in (target, photo)]
    return float(difference(*lab).mean(dtype=np.float64))


def as_float(*photos):
    return [photo.astype(np.float32) for photo in photos]


def as_batch(photo):
    return torch.from_numpy(to_8bit(photo)).permute(2, 0, 1)[None].float() / 255


def check_photos(photo, target, side=1):
    """Both photos as uint8.

    Raises:
        ValueError: they differ in size, or are smaller than side x side.
    """
    if photo.shape != target.shape:
        raise ValueError(f'metric: expected two photos of one size, got {photo.shape} and {target.shape}')
    if min(photo.shape[:2]) < side:
        raise ValueError(f'metric: expected {side} x {side} pixels or more, got {photo.shape[1]} x {photo.shape[0]}')
    return to_8bit(photo), to_8bit(target)
