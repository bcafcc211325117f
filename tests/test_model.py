import math

import pytest
import torch

from model import add_pedestal, apply_affine, build_network, pad_same, reflectance, remove_pedestal, slice_grid


def plain_slice(grid, guide, align_corners):
    """Trilinear slice by loops: a pixel at a time, positions clamped to the grid."""
    n, c, d, gh, gw = grid.shape
    h, w = guide.shape[2:]

    def place(i, size, cells):
        if align_corners:
            return i / max(size - 1, 1) * (cells - 1)
        return min(max((i + 0.5) / size * cells - 0.5, 0), cells - 1)

    coeffs = torch.zeros(n, c, h, w, dtype=grid.dtype)
    for b in range(n):
        for i in range(h):
            for j in range(w):
                value = guide[b, 0, i, j].item()
                z = value * (d - 1) if align_corners else min(max(value * d - 0.5, 0), d - 1)
                spot = (z, place(i, h, gh), place(j, w, gw))
                for corner in range(8):
                    weight, index = 1.0, []
                    for axis, (position, cells) in enumerate(zip(spot, (d, gh, gw), strict=True)):
                        low = min(math.floor(position), cells - 1)
                        step = corner >> axis & 1
                        weight *= position - low if step else 1 - position + low
                        index.append(min(low + step, cells - 1))
                    coeffs[b, :, i, j] += weight * grid[b, :, index[0], index[1], index[2]]
    return coeffs


def test_deepupe_has_the_papers_parameter_count():
    assert sum(p.numel() for p in build_network('deepupe').parameters()) == 998_816


def test_hdrnet_has_the_count_its_docstring_says():
    count = sum(p.numel() for p in build_network('hdrnet').parameters())
    assert count == 594_369
    assert f'{count:,}' in build_network.__doc__


@pytest.mark.parametrize(('arch', 'side'), [('hdrnet', 8), ('deepupe', 16)])
def test_grid_has_the_papers_shape(arch, side):
    grid = build_network(arch).eval().predict_grid(torch.rand(2, 3, 256, 256))
    assert grid.shape == (2, 12, 8, side, side)


@pytest.mark.parametrize('arch', ['hdrnet', 'deepupe'])
@pytest.mark.parametrize('spatial_bin', [4, 8, 16, 32, 64])
def test_any_grid_size_gives_an_illumination_of_the_photos_size(arch, spatial_bin):
    network = build_network(arch, luma_bins=4, spatial_bin=spatial_bin).eval()
    assert network(torch.rand(1, 3, 256, 256), torch.rand(1, 3, 5, 9)).shape == (1, 3, 5, 9)


def test_prediction_channels_follow_each_systems_order():
    for arch, channel in (('hdrnet', (1 * 4 + 2) * 8 + 5), ('deepupe', (2 * 3 + 1) * 8 + 5)):
        network = build_network(arch).eval()
        torch.nn.init.zeros_(network.predict.conv.weight)
        torch.nn.init.zeros_(network.predict.conv.bias)
        with torch.no_grad():
            network.predict.conv.bias[channel] = 1
            grid = network.predict_grid(torch.rand(1, 3, 256, 256))
        # row 1 (green out), column 2 (blue in), bin 5
        assert grid[0, 1 * 4 + 2, 5].eq(1).all()
        assert grid.sum() == grid.shape[-1] * grid.shape[-2]


@pytest.mark.parametrize(('size', 'pads'), [(8, (0, 1)), (7, (1, 1))])
def test_same_padding_puts_the_odd_row_at_the_bottom(size, pads):
    padded = pad_same(torch.ones(1, 1, size, size), kernel=3, stride=2)
    assert padded.shape[-1] == size + sum(pads)
    assert padded[0, 0, :, pads[0]].tolist() == [0] * pads[0] + [1] * size + [0] * pads[1]


@pytest.mark.parametrize('align_corners', [True, False])
def test_slice_equals_plain_loops(align_corners):
    generator = torch.Generator().manual_seed(0)
    grid = torch.rand(2, 3, 4, 3, 5, dtype=torch.float64, generator=generator)
    guide = torch.rand(2, 1, 6, 7, dtype=torch.float64, generator=generator)
    guide[:, :, 0, 0], guide[:, :, -1, -1], guide[:, :, 0, 3], guide[:, :, 3, 0] = 0, 1, 1, 0
    # 1e-12: only rounding of float64 may differ
    torch.testing.assert_close(
        slice_grid(grid, guide, align_corners), plain_slice(grid, guide, align_corners), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize('align_corners', [True, False])
def test_constant_grid_gives_that_constant_everywhere(align_corners):
    guide = torch.linspace(0, 1, 35).view(1, 1, 5, 7)
    coeffs = slice_grid(torch.full((1, 12, 8, 8, 8), 0.7), guide, align_corners)
    torch.testing.assert_close(coeffs, torch.full((1, 12, 5, 7), 0.7))


def test_slice_returns_bin_value_at_bin_centre():
    grid = torch.arange(8.0).view(1, 1, 8, 1, 1).expand(1, 1, 8, 2, 2)
    guide = torch.arange(8.0).view(1, 1, 1, 8)
    torch.testing.assert_close(slice_grid(grid, guide / 7, True).flatten(), torch.arange(8.0))
    torch.testing.assert_close(slice_grid(grid, (guide + 0.5) / 8, False).flatten(), torch.arange(8.0))


@pytest.mark.parametrize('align_corners', [True, False])
def test_slice_gradcheck(align_corners):
    generator = torch.Generator().manual_seed(1)
    grid = torch.rand(1, 2, 3, 2, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    guide = torch.rand(1, 1, 3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: slice_grid(a, b, align_corners), (grid, guide))


def test_slice_refuses_wrong_shapes():
    with pytest.raises(ValueError, match='expected grid'):
        slice_grid(torch.rand(12, 8, 8, 8), torch.rand(1, 1, 4, 4), True)
    with pytest.raises(ValueError, match='expected guide'):
        slice_grid(torch.rand(1, 12, 8, 8, 8), torch.rand(1, 4, 4), True)


def test_identity_affine_returns_fullres():
    fullres = torch.rand(2, 3, 4, 5)
    coeffs = torch.eye(3, 4).reshape(1, 12, 1, 1).expand(2, 12, 4, 5)
    torch.testing.assert_close(apply_affine(coeffs, fullres), fullres)


def test_one_pixel_photo_works():
    network = build_network('hdrnet').eval()
    assert network(torch.rand(1, 3, 256, 256), torch.rand(1, 3, 1, 1)).isfinite().all()


def test_network_refuses_wrong_shapes():
    network = build_network('hdrnet').eval()
    with pytest.raises(ValueError, match='expected lowres'):
        network(torch.rand(1, 3, 128, 128), torch.rand(1, 3, 9, 9))
    with pytest.raises(ValueError, match='expected fullres'):
        network(torch.rand(1, 3, 256, 256), torch.rand(1, 4, 9, 9))
    with pytest.raises(ValueError, match='expected one of hdrnet, deepupe'):
        build_network('unet')


def test_pedestal_lies_below_black_and_above_white():
    levels = torch.arange(256.0)
    raised = add_pedestal(levels / 255, 0.5)
    assert torch.equal(raised, (levels + 0.5) / 256)  # to the bit: older training runs made their batches so
    torch.testing.assert_close(remove_pedestal(raised, 0.5) * 255, levels, atol=1e-4, rtol=0)


def test_deepupe_never_darkens_nor_exceeds_one():
    network = build_network('deepupe').eval()
    torch.nn.init.normal_(network.predict.conv.bias)
    fullres = torch.rand(1, 3, 16, 16)
    illumination = network(torch.rand(1, 3, 256, 256), fullres)
    assert (illumination >= fullres).all()
    assert (illumination <= 1).all()
    enhanced = reflectance(fullres, illumination, network.eps)
    assert (enhanced >= fullres).all()


def test_reflectance_follows_each_systems_rule():
    photo, illumination = (
        torch.tensor([0.2, 0.4, 0.0]).view(1, 3, 1, 1),
        torch.tensor([0.5, 0.1, -0.3]).view(1, 3, 1, 1),
    )
    hdrnet, deepupe = build_network('hdrnet'), build_network('deepupe')
    enhanced = reflectance(photo, illumination, hdrnet.eval().eps).flatten()
    torch.testing.assert_close(enhanced, torch.tensor([0.2 / 0.5001, 1, 0]))
    assert (hdrnet.train().eps, deepupe.train().eps, deepupe.eval().eps) == (1e-4, 1e-3, 0.0)
    torch.testing.assert_close(
        reflectance(photo, illumination, clamp=False).flatten(), torch.tensor([0.2 / 0.5001, 0.4 / 0.1001, 0])
    )


@pytest.mark.parametrize('strength', [0.0, 0.3, 1.0, 1.5])
@pytest.mark.parametrize('eps', [0.0, 1e-4])
def test_black_pixels_stay_finite(eps, strength):
    illumination = torch.tensor([0.0, -eps, 1.0, -0.5, 1e-9]).repeat(3, 1).view(1, 3, 1, 5)
    for value in (0.0, 0.5):
        assert reflectance(torch.full_like(illumination, value), illumination, eps, strength).isfinite().all()
    assert reflectance(torch.zeros_like(illumination), illumination, eps, strength).eq(0).all()


def test_strength_goes_from_photo_to_result():
    photo, illumination = torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4) * 1.5 - 0.2
    torch.testing.assert_close(reflectance(photo, illumination, strength=0.0), photo)
    torch.testing.assert_close(
        reflectance(photo, illumination, strength=1 - 1e-6), reflectance(photo, illumination), atol=1e-4, rtol=1e-4
    )
    half = reflectance(torch.tensor(0.2), torch.tensor(0.25), eps=0.0, strength=0.5)
    torch.testing.assert_close(half, torch.tensor(0.4))
    with pytest.raises(ValueError, match='expected strength'):
        reflectance(photo, illumination, strength=1.6)


@pytest.mark.parametrize('arch', ['hdrnet', 'deepupe'])
def test_vibrance_takes_colour_from_illumination_in_evaluation(arch):
    lowres, fullres = torch.rand(1, 3, 256, 256), torch.rand(1, 3, 20, 30)
    plain, vivid = (build_network(arch, illumination='free', vibrance=vibrance) for vibrance in (0.0, 0.3))
    vivid.load_state_dict(plain.state_dict())
    before = plain.eval()(lowres, fullres)
    colours = (image - image.mean(dim=1, keepdim=True) for image in (before, fullres))
    torch.testing.assert_close(vivid.eval()(lowres, fullres), before - 0.3 * sum(colours), atol=1e-4, rtol=1e-4)
    both = lowres.expand(2, -1, -1, -1), fullres.expand(2, -1, -1, -1)
    torch.testing.assert_close(vivid.train()(*both), plain.train()(*both))
