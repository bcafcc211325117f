"""The loss terms of DeepUPE and two of ours as pure functions, and their totals as both systems weigh them.

Images are RGB (N, 3, H, W) in [0, 1]; every term is a scalar, 0 at its best.

Source: Wang et al., CVPR 2019, as implemented in hermosayhl/DeepUPE_pytorch (`hdrnet`) and dvlab-research/DeepUPE
(`deepupe`).

Departures: the colour term adds eps to both norms and to the dot product, so two black pixels agree (both systems count
them as orthogonal, a constant) and its gradient stays bounded; differences in the smoothness term cover every pair of
neighbours (the predecessor leaves out the first row and column). The structure and tone terms are in neither system
and have weight 0 in both presets.
"""

import torch
import torch.nn.functional as F

# weights of both systems; deepupe's smoothness is 2 x (mean / 2)
PRESETS = {
    'hdrnet': {'reconstruction': 1.0, 'color': 0.2, 'smoothness': 0.05, 'structure': 0.0, 'tone': 0.0},
    'deepupe': {'reconstruction': 1.0, 'color': 1.0, 'smoothness': 2.0 / 2, 'structure': 0.0, 'tone': 0.0},
}
LOG_EPS = 1e-4  # log of 0 is -inf, so lift by eps
LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as the paper's code has it
WINDOW, STRIDE = 7, 4  # pixels: scikit-image's SSIM window, on every fourth row and column
TONE_LIFT = 1e-3  # the slope of a square root at black is bounded by it
C1, C2 = 0.01**2, 0.03**2  # SSIM's constants for a range of 1


def reconstruction_loss(enhanced, target):
    """Mean squared error between the enhanced photo and its target.

    Args:
        enhanced, target: (N, 3, H, W); enhanced may exceed [0, 1].
    """
    return F.mse_loss(enhanced, target)


def color_loss(enhanced, target, eps=1e-4):
    """Mean over pixels of 1 - cosine of the angle between two RGB vectors.

    Args:
        enhanced, target: (N, 3, H, W).
        eps: a fourth component that both vectors share, so two black pixels have angle 0.
    """
    dot = (enhanced * target).sum(dim=1) + eps**2
    squares = ((enhanced**2).sum(dim=1) + eps**2) * ((target**2).sum(dim=1) + eps**2)
    return (1 - dot * squares.rsqrt()).mean()


def smoothness_loss(illumination, guide):
    """Squared differences between neighbours of the illumination, weighted down where the photo has an edge.

    mean over x of w_x (d_x S)^2 + mean over y of w_y (d_y S)^2, with w = 1.5 / (|d L|^1.2 + 1e-4).

    Args:
        illumination: (N, 3, H, W), S.
        guide: (N, 3, H, W) or (N, 1, H, W), L, the log of the photo or of its luma, see `log_photo` and `log_luma`.
    """
    total = illumination.new_zeros(())
    for dim in (-1, -2):
        if illumination.shape[dim] > 1:
            weight = 1.5 / (guide.diff(dim=dim).abs() ** 1.2 + 1e-4)
            total = total + (weight * illumination.diff(dim=dim) ** 2).mean()
    return total


def log_photo(fullres):
    """Log of each channel (N, 3, H, W), the smoothness guide of `hdrnet`."""
    return torch.log(fullres + LOG_EPS)


def log_luma(fullres):
    """Log of the luma (N, 1, H, W), the smoothness guide of `deepupe`."""
    luma = sum(weight * fullres[:, i : i + 1] for i, weight in enumerate(LUMA))
    return torch.log(luma + LOG_EPS)


def structure_loss(enhanced, target):
    """1 - SSIM of 7 x 7 windows per channel, the mean over windows on every fourth row and column.

    Every fourth: neighbouring windows say much the same, and each pixel still lies in one to four of them.

    Args:
        enhanced, target: (N, 3, H, W).
    Raises:
        ValueError: smaller than a window.
    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004, with the
    uniform window and the unbiased variances of skimage.metrics.structural_similarity.
    """
    count_windows(*enhanced.shape[-2:])
    mean_x, mean_y = pool(enhanced), pool(target)
    unbiased = WINDOW**2 / (WINDOW**2 - 1)
    var_x = unbiased * (pool(enhanced**2) - mean_x**2)
    var_y = unbiased * (pool(target**2) - mean_y**2)
    covariance = unbiased * (pool(enhanced * target) - mean_x * mean_y)
    means = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    return (1 - means * (2 * covariance + C2) / (var_x + var_y + C2)).mean()


def tone_loss(enhanced, target):
    """Mean squared difference of the square roots of levels lifted by TONE_LIFT.

    Dark tones count as they are seen: in R = I / S the gradient of the squared error of R fades with R / S, so that
    blacks which are too light cost next to nothing.

    Args:
        enhanced, target: (N, 3, H, W); below 0 counts as 0.
    """
    first, second = ((images.clamp(min=0) + TONE_LIFT).sqrt() for images in (enhanced, target))
    return F.mse_loss(first, second)


def count_windows(height, width):
    """Rows and columns of structure_loss's windows.

    Raises:
        ValueError: smaller than a window.
    """
    if min(height, width) < WINDOW:
        raise ValueError(f'structure_loss: expected {WINDOW} x {WINDOW} pixels or more, got {width} x {height}')
    return (height - WINDOW) // STRIDE + 1, (width - WINDOW) // STRIDE + 1


def pool(images):
    """Mean of each window, (N, C, rows of windows, columns of windows)."""
    return F.avg_pool2d(images, WINDOW, STRIDE)


def total_loss(fullres, illumination, enhanced, target, preset='hdrnet', weights=None):
    """Weighted sum of the terms.

    Args:
        fullres, illumination, enhanced, target: (N, 3, H, W) photo, S, R and ground truth.
        preset: 'hdrnet' or 'deepupe', a key of PRESETS; fixes the weights and the smoothness guide.
        weights: terms whose weight replaces the preset's, such as {'color': 0.0}. A term of weight 0 is not computed.
    Returns:
        dict of scalars: 'total', then each unweighted term.
    Raises:
        ValueError: unknown preset or term.
    """
    if preset not in PRESETS:
        raise ValueError(f'loss: expected one of {", ".join(PRESETS)}, got {preset!r}')
    weights = weights or {}
    if unknown := set(weights) - set(PRESETS[preset]):
        raise ValueError(f'loss weights: expected {", ".join(PRESETS[preset])}, got {", ".join(sorted(unknown))}')
    weights = {**PRESETS[preset], **weights}
    guide = log_luma if preset == 'deepupe' else log_photo
    terms = {
        'reconstruction': lambda: reconstruction_loss(enhanced, target),
        'color': lambda: color_loss(enhanced, target),
        'smoothness': lambda: smoothness_loss(illumination, guide(fullres)),
        'structure': lambda: structure_loss(enhanced, target),
        'tone': lambda: tone_loss(*(images[..., ::2, ::2] for images in (enhanced, target))),  # a quarter of the pixels
    }
    values = {name: term() if weights[name] else enhanced.new_zeros(()) for name, term in terms.items()}
    return {'total': sum(weights[name] * value for name, value in values.items()), **values}
