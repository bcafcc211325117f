"""What a checkpoint is compared with: a fixed gamma, the best single gamma, scikit-image's CLAHE and rescaling."""

import numpy as np
from skimage import exposure

BASELINES = ('gamma', 'best_gamma', 'clahe', 'rescale')
GAMMAS = np.arange(10, 151) / 100  # candidates for the best single gamma


def choose_baselines(names):
    """{label: function photo -> photo} of baselines that need no targets, all but best_gamma.

    gamma is 0.4; clahe is scikit-image's equalize_adapthist; rescale stretches a photo's levels to 0 to 255.

    Args:
        names: list of BASELINES.
    Raises:
        ValueError: unknown name, or a name twice.
    """
    for i, name in enumerate(names):
        if name not in BASELINES or name in names[:i]:
            raise ValueError(f'baselines: expected {", ".join(BASELINES)}, each once, got {name!r}')
    functions = {
        'gamma': ('gamma 0.4', lambda photo: exposure.adjust_gamma(photo, 0.4)),
        'clahe': ('CLAHE', lambda photo: (exposure.equalize_adapthist(photo) * 255).round().astype(np.uint8)),
        'rescale': ('rescale', lambda photo: exposure.rescale_intensity(photo, 'image', (0, 255)).astype(np.uint8)),
    }
    return dict(functions[name] for name in names if name != 'best_gamma')


def gamma_decibels(photo, target):
    """PSNR (G,) of a photo under each of GAMMAS, exact for 8 bit, from level statistics alone.

    Args:
        photo, target: (H, W, 3) uint8.
    """
    tables = np.stack([gamma_levels(gamma) for gamma in GAMMAS]).astype(np.float64)  # (G, 256)
    levels, wanted = photo.ravel(), target.ravel().astype(np.float64)
    counts = np.bincount(levels, minlength=256)
    sums = np.bincount(levels, weights=wanted, minlength=256)
    squares = tables**2 @ counts - 2 * tables @ sums + (wanted**2).sum()
    return 10 * np.log10(255**2 / np.maximum(squares / levels.size, 1e-9))


def best_gamma(decibels):
    """(label, function photo -> photo) of the gamma with the highest mean PSNR: an upper bound that saw the targets.

    Args:
        decibels: gamma_decibels of every pair that is scored.
    """
    gamma = float(GAMMAS[np.mean(decibels, axis=0).argmax()])
    levels = gamma_levels(gamma)
    return f'gamma {gamma:.2f} (best here)', lambda photo: levels[photo]


def gamma_levels(gamma):
    """Table (256,) uint8 of a gamma curve on 8-bit levels."""
    return np.round((np.arange(256) / 255) ** gamma * 255).astype(np.uint8)
