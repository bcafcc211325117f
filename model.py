"""The network: a low-resolution copy of a photo in, its full-resolution illumination map out.

    illumination = network(lowres, fullres)              # (N, 3, 256, 256), (N, 3, H, W) -> (N, 3, H, W)
    enhanced = network.reflectance(fullres, illumination)

Two architectures are built from the same blocks, `hdrnet` (hermosayhl/DeepUPE_pytorch, whose weights load) and
`deepupe` (the graph that the paper's authors released, dvlab-research/DeepUPE).

Sources: Wang et al., "Underexposed Photo Enhancement Using Deep Illumination Estimation", CVPR 2019; Gharbi et al.,
"Deep Bilateral Learning for Real-Time Image Enhancement", SIGGRAPH 2017 (HDRNet).

Departures from both: photos are RGB everywhere (the predecessor reads BGR; `load_network` permutes its weights);
the guide is in [0, 1] for both; the slice names its grid_sample flags, so every torch version gives the same picture
at the photo's borders; division by zero on black pixels gives black, not NaN. `pedestal`, off by default, is ours.
"""

import math
from types import SimpleNamespace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from photos.levels import LOW_SIZE
from system.ranks import BatchNorm, mean_of_ranks, update_statistics, world_size
from utils import NETWORK_RULES, check_options

STRONGEST = 1.5  # strength that a photo may be enhanced with
TINY = 1e-6  # smallest |illumination + eps| that a photo is divided by: below one level of 16 bit


# ---------------------------------------------------------------------------------------------------- blocks


class Conv(nn.Module):
    """Convolution, then optional BatchNorm, then optional ReLU.

    Args:
        same: pad as TensorFlow's SAME does (at stride 2 on an even size: one row and column at bottom and right only)
            instead of kernel // 2 on every side.
    """

    def __init__(self, inputs, outputs, kernel=3, stride=1, bias=True, norm=False, relu=True, same=False):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=0 if same else kernel // 2, bias=bias)
        self.norm = BatchNorm(outputs) if norm else nn.Identity()
        self.relu = nn.ReLU() if relu else nn.Identity()
        self.same = same

    def forward(self, features):
        if self.same:
            features = pad_same(features, self.conv.kernel_size[0], self.conv.stride[0])
        return self.relu(self.norm(self.conv(features)))


class Linear(nn.Module):
    """Fully connected layer, then optional BatchNorm, then optional ReLU."""

    def __init__(self, inputs, outputs, norm=False, relu=True):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.norm = BatchNorm(outputs) if norm else nn.Identity()
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(self, features):
        return self.relu(self.norm(self.linear(features)))


def pad_same(features, kernel, stride):
    """Zero-pad (N, C, H, W) as TensorFlow's SAME does: the odd row and column go to the bottom and right."""
    pads = []
    for size in (features.shape[-1], features.shape[-2]):
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(features, pads)


class FoldedGuide(NamedTuple):
    """A guide as one hidden layer of a pixel's RGB, the form that the fused kernels take.

    guide = squash(mix . relu(weights . rgb + bias) + mix_bias), with weights (U, 3), bias (U), mix (U), mix_bias ().
    """

    weights: torch.Tensor
    bias: torch.Tensor
    mix: torch.Tensor
    mix_bias: torch.Tensor
    tanh: bool  # squash is (tanh + 1) / 2, else a clip to [0, 1]


class PointwiseGuide(nn.Module):
    """Guide of `hdrnet`: a pointwise network with tanh output, mapped from [-1, 1] to [0, 1].

    Source: hermosayhl/DeepUPE_pytorch, after google/hdrnet's HDRNetPointwiseNNGuide.
    """

    def __init__(self, width=16):
        super().__init__()
        self.hidden = Conv(3, width, kernel=1, norm=True)
        self.output = Conv(width, 1, kernel=1, relu=False)

    def forward(self, fullres):
        return (torch.tanh(self.output(self.hidden(fullres))) + 1) / 2  # (N, 1, H, W)

    def fold(self, fullres):
        """The guide as `FoldedGuide`; in training, BatchNorm's statistics follow from the photo's mean and covariance.

        A 1x1 convolution's output w . rgb + b has mean w . mean(rgb) + b and variance w . cov(rgb) . w, so the hidden
        layer itself is never computed at full size.
        """
        conv, norm = self.hidden.conv, self.hidden.norm
        weight = conv.weight[:, :, 0, 0]  # (width, 3)
        if norm.training:
            pixels = fullres.flatten(2)  # (N, 3, H * W)
            if fullres.is_cuda:  # which multiplies many short rows fast, one long one 10 times as slowly
                pixels = fullres.transpose(1, 2).flatten(0, 1)  # (N * H, 3, W)
            center = mean_of_ranks(pixels.mean(dim=(0, 2)))
            square = (pixels @ pixels.transpose(1, 2)).mean(dim=0) / pixels.shape[2]
            covariance = mean_of_ranks(square) - center[:, None] * center
            mean = weight @ center + conv.bias
            var = ((weight @ covariance) * weight).sum(dim=1)
            update_statistics(norm, mean, var, fullres[:, 0].numel() * world_size())
        else:
            mean, var = norm.running_mean, norm.running_var
        scale = norm.weight * (var + norm.eps).rsqrt()
        output = self.output.conv
        return FoldedGuide(
            weight * scale[:, None],
            (conv.bias - mean) * scale + norm.bias,
            output.weight.flatten(),
            output.bias[0],
            True,
        )


class CurvesGuide(nn.Module):
    """Guide of `deepupe`: 3x3 colour matrix, a piecewise-linear curve per channel, 1x1 mix, clip to [0, 1].

    Starts as the mean of the three channels.
    Source: google/hdrnet, HDRNetCurves.
    """

    def __init__(self, knots=16):
        super().__init__()
        self.color = nn.Conv2d(3, 3, 1)
        self.shifts = nn.Parameter(torch.arange(knots).div(knots).repeat(3, 1))  # linspace [0, 1), (3, knots)
        self.slopes = nn.Parameter(torch.zeros(3, knots))
        self.mix = nn.Conv2d(3, 1, 1)
        with torch.no_grad():
            self.color.weight.copy_(torch.eye(3)[:, :, None, None])
            self.color.bias.zero_()
            self.slopes[:, 0] = 1
            self.mix.weight.fill_(1 / 3)
            self.mix.bias.zero_()

    def forward(self, fullres):
        colors = self.color(fullres)
        # one knot at a time: all 16 at once would need a (N, 3, 16, H, W) intermediate
        curves = torch.zeros_like(colors)
        for shift, slope in zip(self.shifts.T, self.slopes.T, strict=True):
            curves = curves + slope[:, None, None] * F.relu(colors - shift[:, None, None])
        return self.mix(curves).clamp(0, 1)  # (N, 1, H, W)

    def fold(self, fullres):
        """The guide as `FoldedGuide`: a ReLU for each knot of each channel's curve."""
        knots = self.shifts.shape[1]
        weights = self.color.weight[:, :, 0, 0].repeat_interleave(knots, dim=0)  # (3 * knots, 3)
        bias = (self.color.bias[:, None] - self.shifts).flatten()
        mix = (self.mix.weight.view(3, 1) * self.slopes).flatten()
        return FoldedGuide(weights, bias, mix, self.mix.bias[0], False)


# --------------------------------------------------------------------------------------- slice, apply, divide


def slice_grid(grid, guide, align_corners):
    """Read affine coefficients out of the bilateral grid at each full-resolution pixel.

    Args:
        grid: (N, C, D, Gh, Gw).
        guide: (N, 1, H, W) in [0, 1], chooses the luma bin.
        align_corners: True puts the centres of the outer cells on the photo's outer pixels and on guide 0 and 1
            (the predecessor under torch 1.1). False puts cell centres at half-integers, the photo's outer faces and
            guide 0 and 1 on the grid's outer faces (HDRNet).
    Returns:
        coeffs: (N, C, H, W), trilinear inside the grid, clamped at its border.
    Raises:
        ValueError: grid is not 5-D, guide is not (N, 1, H, W), or their N differ.
    Source: google/hdrnet bilateral_slice (align_corners=False); hermosayhl/DeepUPE_pytorch (align_corners=True).
    """
    if grid.ndim != 5:
        raise ValueError(f'slice_grid: expected grid (N, C, D, Gh, Gw), got {tuple(grid.shape)}')
    if guide.ndim != 4 or guide.shape[1] != 1 or guide.shape[0] != grid.shape[0]:
        raise ValueError(f'slice_grid: expected guide ({grid.shape[0]}, 1, H, W), got {tuple(guide.shape)}')
    n, _, h, w = guide.shape
    y = pixel_coords(h, align_corners, guide)
    x = pixel_coords(w, align_corners, guide)
    coords = torch.stack([x.expand(n, h, w), y[:, None].expand(n, h, w), guide[:, 0] * 2 - 1], dim=-1)  # (N, H, W, 3)
    # border: the default, zero padding, fades coeffs at the photo's border and where guide nears 0 or 1 (the halo)
    coeffs = F.grid_sample(
        grid, coords[:, None], mode='bilinear', padding_mode='border', align_corners=align_corners
    )  # (N, C, 1, H, W)
    return coeffs[:, :, 0]  # (N, C, H, W)


def pixel_coords(size, align_corners, like):
    """Positions of `size` pixels in grid_sample's [-1, 1], as the dtype and on the device of `like`."""
    pixels = torch.arange(size, device=like.device, dtype=like.dtype)
    if align_corners:
        return pixels / max(size - 1, 1) * 2 - 1
    return (pixels + 0.5) / size * 2 - 1


def apply_affine(coeffs, fullres):
    """Apply the 3x4 affine of every pixel to the pixel.

    Args:
        coeffs: (N, 12, H, W), row-major 3x4, last column is the offset.
        fullres: (N, 3, H, W).
    Returns:
        (N, 3, H, W).
    Source: google/hdrnet, bilateral_slice_apply with offset.
    """
    n, _, h, w = fullres.shape
    rows = coeffs.view(n, 3, 4, h, w)
    return (rows[:, :, :3] * fullres[:, None]).sum(dim=2) + rows[:, :, 3]


def clip_illumination(illumination, fullres):
    """Clip the illumination to [fullres, 1], so that the division neither darkens nor clips a highlight.

    Source: dvlab-research/DeepUPE, max(min(S, 1), I).
    """
    return torch.maximum(illumination.clamp(max=1), fullres)


def reflectance(fullres, illumination, eps=1e-4, strength=1.0, clamp=True):
    """Enhanced photo R = I / (S + eps)^strength, finite on black pixels.

    Args:
        fullres: (N, 3, H, W) in [0, 1], I.
        illumination: (N, 3, H, W), S, any range.
        eps: added to the illumination; `network.eps` holds the rule of the architecture.
        strength: in [0, 1.5]; 0 returns the photo, 1 the model's result.
        clamp: clip the result to [0, 1]. False leaves the gradient of pixels that are too bright alive in training.
    Returns:
        (N, 3, H, W). Where S + eps is not positive, strength 1 gives R <= 0 (black, as the predecessor does), and less
        strength fades to that linearly.
    Raises:
        ValueError: strength outside [0, 1.5].
    Source: DeepUPE's image formation I = S * R; eps and clamp from the two systems' code.
    """
    if not 0 <= strength <= STRONGEST:
        raise ValueError(f'reflectance: expected strength in [0, {STRONGEST}], got {strength}')
    divisor = illumination + eps
    divisor = torch.where(divisor.abs() < TINY, TINY, divisor)
    if strength == 1:
        enhanced = fullres / divisor
    else:
        enhanced = torch.where(divisor > 0, fullres / divisor.clamp(min=TINY) ** strength, fullres * (1 - strength))
    return enhanced.clamp(0, 1) if clamp else enhanced


def add_pedestal(images, pedestal):
    """Put a pedestal under the levels: (255 x + pedestal) / (255 + 2 pedestal).

    Args:
        images: (N, 3, H, W) in [0, 1].
        pedestal: levels of 255 below black and above white, see IlluminationNet.
    Returns:
        (N, 3, H, W) in [pedestal / (255 + 2 pedestal), 1 - pedestal / (255 + 2 pedestal)].
    """
    return images.mul(255).add_(pedestal).div_(255 + 2 * pedestal) if pedestal else images


def remove_pedestal(images, pedestal):
    """The inverse of add_pedestal."""
    return images.mul(255 + 2 * pedestal).sub_(pedestal).div_(255) if pedestal else images


# ---------------------------------------------------------------------------------------------------- network


class Architecture(NamedTuple):
    """Everything that tells one network of this family from another; `_replace` makes a variant."""

    name: str
    spatial_bin: int  # grid points along each side of the photo, a power of two from 4 to 64
    norm: bool  # BatchNorm behind all convolutions but the first, and behind the fully connected layers
    same: bool  # pad as TensorFlow's SAME does
    global_convs: int  # convolutions of the global path per halving from spatial_bin to 4, the first with stride 2
    local_convs: int  # convolutions of the local path
    guide: str  # pointwise or curves
    column_major: bool  # order of predict's channels: (3x4 row-major, bin), or ((in * 3 + out), bin)
    slicing: str  # corners or centers, what lies on the photo's outer pixels, see slice_grid
    illumination: str  # free, or clipped to [fullres, 1]
    eps: tuple  # (training, evaluation) eps of `reflectance`
    lowres: str  # how the photo is shrunk: area, or bilinear or nearest as both systems do in evaluation
    he: bool  # weights start from He's normal distribution and biases from 0, as HDRNet's do; else as torch's do
    luma_bins: int = 8  # depth D of the grid
    pedestal: float = 0.0  # see IlluminationNet
    vibrance: float = 0.0  # see IlluminationNet


ARCHITECTURES = {
    # hermosayhl/DeepUPE_pytorch, whose weights load
    'hdrnet': Architecture(
        'hdrnet', spatial_bin=8, norm=True, same=False, global_convs=1, local_convs=2, guide='pointwise',
        column_major=False, slicing='corners', illumination='free', eps=(1e-4, 1e-4), lowres='bilinear', he=False,
    ),
    # dvlab-research/DeepUPE, the graph in its checkpoint
    'deepupe': Architecture(
        'deepupe', spatial_bin=16, norm=False, same=True, global_convs=6, local_convs=6, guide='curves',
        column_major=True, slicing='centers', illumination='clipped', eps=(1e-3, 0.0), lowres='nearest', he=True,
    ),
}  # fmt: skip


class IlluminationNet(nn.Module):
    """HDRNet-style illumination estimator of an `Architecture`; `build_network` makes one from options.

    pedestal: what black counts for, in levels of 255: level k is read as (k + pedestal) / (255 + 2 pedestal), and R is
    written back the same way. 0.5 takes a level for the middle of its interval, (k + 0.5) / 256. Neither system has it:
    I / S leaves 0 at 0 whatever the illumination, which tears holes into very dark photos. The
    methods below add and remove it themselves: their images are photos in [0, 1] as they are.

    vibrance: evaluation takes S - vibrance (S + I - mean(S + I)), the means over the three channels. Less of S's own
    colour lets R keep the photo's hue; less S in the photo's stronger channels raises R's chroma by about a factor
    1 + vibrance R, bright colours more than dark noise. A network that is unsure of a colour learns the mean of what it
    might be, which is pale and of another hue; this gives both back. Neither system has it: 0 is theirs.
    """

    def __init__(self, architecture):
        super().__init__()
        a = architecture
        halvings = int(math.log2(LOW_SIZE // a.spatial_bin))  # from lowres down to the grid's size
        widths = [3] + [a.luma_bins * 2**i for i in range(halvings)]
        inputs, width = widths[-1], 8 * a.luma_bins
        convs = a.global_convs * int(math.log2(a.spatial_bin // 4))
        self.splat = nn.Sequential(
            *[Conv(widths[i], widths[i + 1], stride=2, norm=a.norm and i > 0, same=a.same) for i in range(halvings)]
        )
        self.global_conv = nn.Sequential(
            *[
                Conv(width if i else inputs, width, stride=1 if i % a.global_convs else 2, norm=a.norm, same=a.same)
                for i in range(convs)
            ]
        )
        self.global_fc = nn.Sequential(
            Linear(16 * (width if convs else inputs), 4 * width, norm=a.norm),
            Linear(4 * width, 2 * width, norm=a.norm),
            Linear(2 * width, width, norm=a.norm, relu=False),
        )
        self.local = nn.Sequential(
            Conv(inputs, width, norm=a.norm, same=a.same),
            *[Conv(width, width, bias=False, relu=False, same=a.same) for _ in range(a.local_convs - 1)],
        )
        self.predict = Conv(width, 12 * a.luma_bins, kernel=1, relu=False)
        self.guide = PointwiseGuide() if a.guide == 'pointwise' else CurvesGuide()
        if a.he:
            self.start_from_he()
        self.arch, self.luma_bins, self.column_major = a.name, a.luma_bins, a.column_major
        self.align_corners, self.clip = a.slicing == 'corners', a.illumination == 'clipped'
        self.train_eps, self.eval_eps = a.eps
        self.lowres_mode, self.pedestal, self.vibrance = a.lowres, a.pedestal, a.vibrance
        self.fused = True  # kernels/ does the full-resolution work where it can; False: this file and loss.py always do

    def start_from_he(self):
        for name, module in self.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and not name.startswith('guide'):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def eps(self):
        """What `reflectance` adds to the illumination, in training or in evaluation."""
        return self.train_eps if self.training else self.eval_eps

    def forward(self, lowres, fullres):
        """Illumination (N, 3, H, W) of fullres (N, 3, H, W), seen through lowres (N, 3, 256, 256); RGB in [0, 1].

        Raises:
            ValueError: lowres is not (N, 3, 256, 256) or fullres is not (N, 3, H, W).
        """
        return self.illuminate(self.predict_grid(lowres), fullres)

    def illuminate(self, grid, fullres):
        """The full-resolution half: illumination (N, 3, H, W) of fullres by a grid from `predict_grid`."""
        if fullres.ndim != 4 or fullres.shape[:2] != (len(grid), 3):
            raise ValueError(f'network: expected fullres ({len(grid)}, 3, H, W), got {tuple(fullres.shape)}')
        fullres = add_pedestal(fullres, self.pedestal)
        guide = self.guide(fullres)  # (N, 1, H, W)
        coeffs = slice_grid(grid, guide, self.align_corners)  # (N, 12, H, W)
        illumination = apply_affine(coeffs, fullres)  # (N, 3, H, W)
        return clip_illumination(illumination, fullres) if self.clip else illumination

    def predict_grid(self, lowres):
        """Bilateral grid (N, 12, D, Gh, Gw) of row-major 3x4 affine coefficients."""
        if lowres.ndim != 4 or lowres.shape[1:] != (3, LOW_SIZE, LOW_SIZE):
            raise ValueError(f'network: expected lowres (N, 3, {LOW_SIZE}, {LOW_SIZE}), got {tuple(lowres.shape)}')
        splat = self.splat(add_pedestal(lowres, self.pedestal))
        global_features = self.global_fc(self.global_conv(splat).flatten(1))[:, :, None, None]
        fusion = F.relu(self.local(splat) + global_features)
        with torch.autocast(fusion.device.type, enabled=False):  # bf16 has 8 bits: too few for coefficients
            grid = self.predict(fusion.to(self.predict.conv.weight.dtype))  # (N, 12 * D, Gh, Gw)
        n, _, gh, gw = grid.shape
        if self.column_major:
            grid = grid.view(n, 4, 3, self.luma_bins, gh, gw).transpose(1, 2)
        if self.vibrance and not self.training:
            photo = F.pad(torch.eye(3, device=grid.device, dtype=grid.dtype), (0, 1))  # I as 3x4
            rows = grid.reshape(n, 3, 4, self.luma_bins, gh, gw)
            both = rows + photo[:, :, None, None, None]  # S + I
            grid = rows - self.vibrance * (both - both.mean(dim=1, keepdim=True))
        return grid.reshape(n, 12, self.luma_bins, gh, gw)

    def reflectance(self, fullres, illumination, strength=1.0):
        """Enhanced photo R (N, 3, H, W) in [0, 1]: `reflectance` by the network's eps, on its pedestal.

        Args:
            fullres: (N, 3, H, W) in [0, 1].
            illumination: (N, 3, H, W) of the same photos, from `forward`.
            strength: in [0, 1.5]; 0 returns the photo, 1 the network's result.
        """
        raised = add_pedestal(fullres, self.pedestal)
        enhanced = reflectance(raised, illumination, self.eps, strength)
        return remove_pedestal(enhanced, self.pedestal).clamp(0, 1)


def build_network(arch, **variant):
    """The network of an architecture, hdrnet (594,369 parameters) or deepupe (998,816), or a variant of it.

    Args:
        arch: a name of ARCHITECTURES.
        variant: fields of Architecture that utils.NETWORK_RULES names, such as spatial_bin=16; '' and 0 are arch's own.
    Raises:
        ValueError: unknown arch or variant, or a value that breaks its rule.
    """
    given = {'arch': arch, **variant}
    if unknown := set(given) - set(NETWORK_RULES):
        raise ValueError(f'{min(unknown)}: expected one of {", ".join(NETWORK_RULES)}')
    check_options(SimpleNamespace(**given), {name: NETWORK_RULES[name] for name in given})
    changed = {name: value for name, value in variant.items() if isinstance(NETWORK_RULES[name], tuple) or value}
    return IlluminationNet(ARCHITECTURES[arch]._replace(**changed))
