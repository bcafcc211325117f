"""What the kernels for the CPU and for CUDA share: the rule of a photo, and counts of pixels and elements."""

import math
from typing import NamedTuple


class Rule(NamedTuple):
    """How a grid becomes an illumination, and the illumination a photo."""

    align_corners: bool  # slicing convention, see model.slice_grid
    clip: bool  # clip the illumination to [photo, 1], see model.clip_illumination
    eps: float = 0.0  # added to the illumination before the division
    pedestal: float = 0.0  # levels of 255 that black counts for, see model.IlluminationNet
    strength: float = 1.0  # exponent of the illumination, in [0, 1.5]
    round_down: bool = False  # cut fractions of a level off instead of rounding


def grid_intervals(size, count, align_corners):
    """Which pixels of a row or column lie between the same two cell centres of a grid.

    Args:
        size: pixels. count: cells of the grid along the same axis. align_corners: see model.slice_grid.
    Returns:
        edges: first pixel of each interval between centres, and size; the outer two intervals reach to the row's ends.
        scale, offset: pixel x lies at x * scale + offset on the axis whose whole numbers are the cell centres.
    """
    if align_corners:
        scale, offset = (count - 1) / max(size - 1, 1), 0.0
    else:
        scale, offset = count / size, 0.5 * count / size - 0.5
    inner = [min(size, math.ceil((cell - offset) / scale)) for cell in range(1, count - 1)] if scale else []
    return [0, *inner, size], scale, offset


def count_elements(photos, height, width):
    """Elements that the mean of each loss term is over: reconstruction, color, smoothness along x and along y."""
    return (
        3 * photos * height * width,
        photos * height * width,
        3 * photos * height * (width - 1),
        3 * photos * (height - 1) * width,
    )
