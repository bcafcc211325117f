"""Take out the noise that brightening a dark photo brings up, where and as much as it was brightened.

Overlapping blocks of 8 x 8 are transformed by the DCT, coefficients below a threshold are dropped, and a pixel becomes
the mean of its blocks, weighted by how few coefficients each kept. Luma is filtered at full size; chroma at half size,
after its low frequencies at an eighth, where the blotches of very dark photos live; chroma finer than half size is
shrunk. The threshold is the photo's own noise, measured, times what the gain adds to it, 1 / S^strength - 1: where
nothing was brightened, nothing is changed.

Sources: Yu and Sapiro, "DCT image denoising: a simple and effective image denoising algorithm", Image Processing On
Line 2011 (thresholding of overlapping blocks); Guleryuz, "Weighted averaging for denoising with overcomplete
dictionaries", IEEE Transactions on Image Processing 2007 (weights by the coefficients kept); Pierazzo, Morel and
Facciolo, "Multi-scale DCT denoising", Image Processing On Line 2017 (coarse scales).

`denoise_plain` is the definition, in torch; cpu_denoise.py does the same in passes over rows. Photos from CUDA are in
the host's memory by then and take the same way.
"""

import numpy as np
import torch
import torch.nn.functional as F

SAMPLE = 4  # the illumination is looked at in every fourth row and column
BLOCKS = 4096  # about as many blocks show the noise
QUIET = 0.25  # share of the blocks that are taken for free of texture
# chosen on the validation lists: a threshold is NOISE x the quiet blocks' middle frequencies, where JPEG leaves noise,
# but at most LIMIT levels of 255, because texture has them too; or WHITE x the high ones, which texture hardly has
NOISE, LIMIT, WHITE = 4.0, 1.75, 3.0
SHOWS = 6.0  # levels of luma's threshold in the most brightened fifth of a photo, from which on noise is seen


def remove_noise(enhanced, illumination, amount=1.0, strength=1.0, denoise=None):
    """Denoise an enhanced photo as much as it was brightened.

    Args:
        enhanced: (H, W, 3) RGB, uint8 or uint16; overwritten if contiguous.
        illumination: S in every fourth row and column, (ceil(H / 4), ceil(W / 4), 3).
        amount: 0 does nothing, 1 is the usual, 2 doubles the thresholds; -1 is 1 where the noise shows, else 0.
        strength: exponent of S that `enhanced` was made with.
        denoise: what does it, `denoise_plain` or the kernels'; None takes the plain one.
    Returns:
        The denoised photo.
    """
    gain = np.clip(illumination @ np.full(3, 1 / 3, np.float32), 1 / 64, 1) ** np.float32(-strength)
    added = (gain - 1).astype(np.float32)
    if amount == 0 or added.max() * abs(amount) * LIMIT < 0.1:  # a tenth of a level of noise cannot be seen
        return enhanced
    luma, chroma = measure_noise(enhanced, gain)
    if amount == -1 and np.quantile(added[::2, ::2], 0.8) * luma < SHOWS:
        return enhanced
    luma, chroma = np.float32(abs(amount) * luma), np.float32(abs(amount) * chroma)
    half = shrink(added, 2)
    thresholds = of_blocks(added) * luma, of_blocks(half) * chroma, of_blocks(shrink(half, 4)) * (chroma / 2)
    return (denoise or denoise_plain)(enhanced, added * (2 * chroma), thresholds)


def measure_noise(photo, gain):
    """Thresholds (luma, chroma at half size) in levels of 255 of a photo before a gain (ceil(H / 4), ceil(W / 4))."""
    height, width, _ = photo.shape
    if min(height, width) < 8:
        return LIMIT, LIMIT / 2
    apart = max(4, int(np.sqrt(height * width / BLOCKS)) // 4 * 4)  # pixels from block to block
    blocks = np.lib.stride_tricks.sliding_window_view(photo, (8, 8), axis=(0, 1))[::apart, ::apart]
    red, green, blue = np.moveaxis(blocks.astype(np.float32), 2, 0) * np.float32(255 / np.iinfo(photo.dtype).max)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    gain = gain[1 :: apart // 4, 1 :: apart // 4][: luma.shape[0], : luma.shape[1]]  # at a block's centre
    luma, blue, red = (plane[: gain.shape[0], : gain.shape[1]] for plane in (luma, blue, red))
    mean = luma.mean(axis=(2, 3))
    usable = (mean > 2) & (mean < 230)  # neither black nor clipped
    if not usable.any():
        return LIMIT, LIMIT / 2
    frequency = np.add.outer(np.arange(8), np.arange(8)).ravel()
    middle, high = (frequency >= 3) & (frequency <= 5), frequency >= 10
    basis = dct_basis().numpy().reshape(64, 64)
    levels = []
    for plane in (luma, (blue - luma) * 0.564, (red - luma) * 0.713):
        power = (plane[usable].reshape(-1, 64) @ basis.T) ** 2
        for band in (middle, high):
            levels.append(float(np.quantile(np.sqrt(power[:, band].mean(axis=1)) / gain[usable], QUIET)))
    chroma = max(min(2 * NOISE * (levels[2] + levels[4]), LIMIT), WHITE * max(levels[3], levels[5]))
    return max(min(NOISE * levels[0], LIMIT), WHITE * levels[1]), chroma / 2  # half of white noise is left at half size


def dct_basis():
    """The 64 patterns of the orthonormal 8 x 8 DCT, (64, 1, 8, 8)."""
    i = np.arange(8)
    rows = 0.5 * np.cos(np.pi * (2 * i + 1) * i[:, None] / 16)
    rows[0] = 8**-0.5
    return torch.from_numpy(np.einsum('ka,lb->klab', rows, rows).reshape(64, 1, 8, 8).astype(np.float32))


def shrink(plane, times):
    """Means of times x times of an array (H, W); at the ends of fewer."""
    tensor = torch.from_numpy(np.ascontiguousarray(plane))[None, None]
    return F.avg_pool2d(tensor, times, ceil_mode=True, count_include_pad=False)[0, 0].numpy()


def of_blocks(values):
    """Mean of the four values (h, w), one for each 4 x 4 pixels, that a block lies on: (h + 1, w + 1)."""
    padded = np.pad(values, 1, mode='edge')
    return (padded[1:, 1:] + padded[1:, :-1] + padded[:-1, 1:] + padded[:-1, :-1]) / 4


def denoise_plain(photo, limits, thresholds):
    """Denoise a photo in place.

    Args:
        photo: (H, W, 3) RGB, uint8 or uint16.
        limits: (ceil(H / 4), ceil(W / 4)), levels of 255 up to which chroma finer than half size is noise.
        thresholds: of luma's blocks (ceil(H / 4) + 1, ceil(W / 4) + 1), of chroma's at half size and at an eighth.
    """
    scale = 255 / np.iinfo(photo.dtype).max
    height, width, _ = photo.shape
    red, green, blue = torch.from_numpy(photo.astype(np.float32) * np.float32(scale)).permute(2, 0, 1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    by_luma = filter_plane(luma, thresholds[0])
    limits = torch.from_numpy(limits).repeat_interleave(4, 0).repeat_interleave(4, 1)[:height, :width]
    changes = []
    for chroma in ((blue - luma) * 0.564, (red - luma) * 0.713):
        whole = F.pad(chroma[None, None], (0, width % 2, 0, height % 2), mode='replicate')[0, 0]
        half = torch.from_numpy(shrink(whole, 2))
        coarse = torch.from_numpy(shrink(half, 4))
        far = grow(filter_plane(coarse, thresholds[2]), half.shape, 4)
        change = grow(far + filter_plane(half + far, thresholds[1]), chroma.shape, 2)
        fine = chroma - grow(half, chroma.shape, 2)
        small = fine.abs() <= limits
        changes.append(change - torch.where(small, fine, limits**2 / torch.where(small, 1, fine)))
    share = (4 * limits).clamp(max=1)  # a block also reaches where nothing was brightened
    by_luma, by_blue, by_red = share * by_luma, share * changes[0], share * changes[1]
    red += by_luma + by_red / 0.713
    blue += by_luma + by_blue / 0.564
    green += by_luma - by_red * (0.299 / 0.587 / 0.713) - by_blue * (0.114 / 0.587 / 0.564)
    result = torch.stack([red, green, blue], dim=-1) / scale
    photo[:] = result.clamp(0, np.iinfo(photo.dtype).max).add(0.5).floor().numpy().astype(photo.dtype)
    return photo


def filter_plane(plane, thresholds):
    """What block thresholding adds to a plane (H, W); thresholds: (ceil(H / 4) + 1, ceil(W / 4) + 1)."""
    height, width = plane.shape
    thresholds = torch.from_numpy(thresholds)[None, None]
    rows, columns = (torch.arange(-4, 4 * n) for n in thresholds.shape[2:])
    rows, columns = (mirror(i, size) for i, size in ((rows, height), (columns, width)))
    padded, basis = plane[rows][:, columns][None, None], dct_basis()
    coefficients = F.conv2d(padded, basis, stride=4)
    small = coefficients.abs() <= thresholds
    small[:, 0] = False  # a block's mean always stays
    weight = 1 / (64 - small.sum(dim=1, keepdim=True)).float()
    removed = F.conv_transpose2d(coefficients * small * weight, basis, stride=4)
    total = F.conv_transpose2d(weight, torch.ones(1, 1, 8, 8), stride=4)
    return -(removed / total)[0, 0, 4 : 4 + height, 4 : 4 + width]


def mirror(index, size):
    """Indices beyond a line's ends reflected at them, and clamped on tiny photos."""
    index = torch.where(index < 0, -1 - index, index)
    index = torch.where(index >= size, 2 * size - 1 - index, index)
    return index.clamp(0, size - 1)


def grow(plane, shape, times):
    """A plane at `times` its size, bilinear, cut to shape."""
    grown = F.interpolate(plane[None, None], scale_factor=times, mode='bilinear', align_corners=False)
    return grown[0, 0, : shape[0], : shape[1]]
