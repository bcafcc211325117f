"""The area shrink to lowres: against a plain loop, kernels against torch, and one photo at many sizes."""

import cv2
import numpy as np
import pytest
import torch

from model import build_network
from photos.lowres import make_lowres, shrink, shrink_matrix
from runs.checkpoint import load_network

SHAPES = [(600, 390), (256, 256), (341, 512), (257, 1), (40, 100), (1, 1), (2, 700), (255, 513)]


def reference(line, side=256):
    """One line shrunk by a plain loop over quarters of 1 / side of a pixel where it shrinks."""
    size, scale = len(line), len(line) / side
    result = []
    for i in range(side):
        if size >= side:
            total, at = 0.0, i * scale
            while at < (i + 1) * scale - 1e-9:
                end = min(np.floor(at + 1e-9) + 1, (i + 1) * scale)
                total += line[int(at + 1e-9)] * (end - at)
                at = end
            result.append(total / scale)
        else:
            place = min(max((i + 0.5) * scale - 0.5, 0), size - 1)
            left = int(place)
            part = place - left
            result.append(line[left] * (1 - part) + line[min(left + 1, size - 1)] * part)
    return np.array(result)


@pytest.mark.parametrize('size', [1, 2, 3, 100, 255, 256, 257, 300, 511, 512, 513, 1000, 3841])
def test_lines_are_a_plain_loops(size):
    line = np.random.default_rng(size).random(size)
    ours = shrink_matrix(size).double() @ torch.from_numpy(line)
    np.testing.assert_allclose(ours, reference(line), atol=1e-6)  # weights are float32


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('shape', SHAPES)
def test_kernel_is_the_two_products(shape, dtype):
    photo = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (*shape, 3)).astype(dtype)
    planes = torch.from_numpy(photo.astype(np.float32)).permute(2, 0, 1)
    plain = shrink(planes).permute(1, 2, 0).numpy() / np.float32(np.iinfo(photo.dtype).max / 255)
    compiled = make_lowres(photo, 'area')
    assert compiled.shape == (256, 256, 3)
    assert compiled.dtype == np.float32
    np.testing.assert_allclose(compiled, plain, atol=2e-4)  # of 255; sums in another order


def test_a_photo_of_lowres_size_is_its_own_copy():
    photo = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    np.testing.assert_array_equal(make_lowres(photo, 'area'), photo)
    np.testing.assert_array_equal(make_lowres(photo[:, ::-1], 'area'), photo[:, ::-1])


def test_shrinking_keeps_the_mean_and_needs_no_rounding():
    photo = np.random.default_rng(0).integers(0, 256, (512, 768, 3), np.uint8)
    assert make_lowres(photo, 'area').mean() == pytest.approx(photo.mean(), abs=1e-3)
    np.testing.assert_allclose(shrink(torch.ones(2, 3, 700, 30)), 1, atol=1e-6)


def test_the_mode_is_the_networks_and_kept_in_its_checkpoint(tmp_path):
    network = build_network('hdrnet', lowres='area')
    path = str(tmp_path / 'area.pth')
    torch.save({'arch': 'hdrnet', 'model': network.state_dict(), 'opt': {'lowres': 'area'}}, path)
    assert load_network(path)[0].lowres_mode == 'area'
    torch.save({'arch': 'hdrnet', 'model': network.state_dict(), 'opt': {}}, path)
    assert load_network(path)[0].lowres_mode == 'bilinear'
    assert build_network('deepupe').lowres_mode == 'nearest'
    with pytest.raises(ValueError, match="lowres: expected one of '', area, bilinear, nearest"):
        build_network('hdrnet', lowres='cubic')


def test_one_photo_at_two_sizes_gets_one_copy():
    """A pattern as fine as fabric or leaves aliases in the bilinear copy of the larger one."""
    smooth = cv2.resize(np.random.default_rng(0).integers(40, 160, (12, 16, 3)).astype(np.float32), (3072, 2304))
    large = (smooth + 40 * (-1.0) ** (np.arange(2304) // 2)[:, None, None]).astype(np.uint8)
    small = cv2.resize(large, (512, 384), interpolation=cv2.INTER_AREA)
    area, bilinear = (
        [make_lowres(photo, mode).astype(float) for photo in (large, small)] for mode in ('area', 'bilinear')
    )
    assert np.abs(area[0] - area[1]).mean() < 1
    assert np.abs(bilinear[0] - bilinear[1]).mean() > 8
