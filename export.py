"""Write a checkpoint for other programs: as an ONNX graph, photo in and photo out, or as safetensors.

    python export.py --checkpoints_file general --result_file general.onnx
    python export.py --checkpoints_file general --tiles
    python export.py --checkpoints_file general --safetensors

The graph takes `photo` (N, 3, H, W) RGB uint8 of any height and width, and `strength` (1,), a float from 0 to 1.5. It
gives `enhanced`, of the photo's shape and type: shrinking, network, slicing, R = I / S^strength and rounding are all
in it. It needs opset 18 and no operator beyond those that TensorRT and the runtimes for browsers have: the slice is two
4-D GridSample of the grid's bins stacked as rows, and a mean of the two. With --tiles it is two graphs, several times
as fast on CPUs: one gives a photo's grid, the other enhances it tile by tile, see docs/use.md. A safetensors file loads
wherever a checkpoint does.
"""

import importlib.util
import logging
import os
import warnings
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

import utils
from model import TINY, add_pedestal, apply_affine, clip_illumination, remove_pedestal
from photos.levels import LOW_SIZE
from runs.checkpoint import find_checkpoint, load_network, save_safetensors
from system.files import save_whole

opt = SimpleNamespace(
    checkpoints_file='general',  # a shipped one by its name, ours, or the predecessor's plain state dict
    result_file='',  # '' is <the checkpoint's folder>.onnx or .safetensors
    safetensors=False,  # write the weights as safetensors instead of a graph
    tiles=False,  # two graphs, <name>_grid.onnx and <name>_tile.onnx, several times as fast on CPUs
)

OPSET = 18
INSTALL = 'pip install onnx onnxscript'


def main(opt):
    extension = '.safetensors' if opt.safetensors else '.onnx'
    name = os.path.basename(os.path.dirname(os.path.abspath(find_checkpoint(opt.checkpoints_file))))
    path = opt.result_file or name + extension
    if not path.endswith(extension):
        raise ValueError(f'result_file: expected {extension}, got {path!r}')
    network, checkpoint = load_network(opt.checkpoints_file)
    if opt.safetensors:
        save_safetensors(path, checkpoint)
    else:
        export_onnx(network, path, opt.tiles)
    print(f'{path}: {network.arch}')


def export_onnx(network, path, tiles=False):
    """Write the graph of a network, or with tiles the two, each whole or not at all.

    Raises:
        ValueError: the packages for it are not installed.
    """
    missing = [name for name in ('onnx', 'onnxscript') if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f'export: expected {" and ".join(missing)}, not installed: {INSTALL}')
    batch, height, width = (torch.export.Dim(name, min=1) for name in ('batch', 'height', 'width'))
    photo, strength = torch.zeros(2, 3, 300, 400, dtype=torch.uint8), torch.ones(1)
    size = {0: batch, 2: height, 3: width}
    logging.getLogger('torch.onnx').setLevel(logging.ERROR)  # it says which other packages it could export
    stem = os.path.splitext(path)[0]
    if not tiles:
        write_graph(PhotoToPhoto(network), path, {'photo': (photo, size), 'strength': (strength, {})}, ['enhanced'])
        return
    place = torch.tensor([0, 0, 600, 800])
    grid = network.predict_grid(torch.zeros(1, 3, LOW_SIZE, LOW_SIZE)).detach()
    write_graph(
        PhotoToGrid(network),
        f'{stem}_grid.onnx',
        {'photo': (photo[:1], {2: height, 3: width})},
        ['grid', 'rows', 'columns'],
    )
    inputs = {'tile': (photo[:1, :, :40, :40], {2: height, 3: width}), 'place': (place, {}), 'grid': (grid, {})}
    write_graph(TileToTile(network), f'{stem}_tile.onnx', inputs | {'strength': (strength, {})}, ['enhanced'])


def write_graph(module, path, inputs, outputs):
    """Write one graph, whole or not at all.

    Args:
        inputs: {name: (tensor, {axis: its name where it may have any size})}.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)  # torch's own, of its next version
        warnings.filterwarnings('ignore', message='# The axis name')  # of two axes named batch
        program = torch.onnx.export(
            module.eval(), kwargs={name: value for name, (value, _) in inputs.items()}, dynamo=True,
            opset_version=OPSET, dynamic_shapes={name: axes for name, (_, axes) in inputs.items()},
            input_names=list(inputs), output_names=outputs, verbose=False,
        )  # fmt: skip
    data = program.model_proto.SerializeToString()
    save_whole(lambda file: file.write(data), path)


class PhotoToPhoto(nn.Module):
    """A network with all that kernels.enhance_photo does around it, in operators that exist everywhere."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, photo, strength):
        """Enhanced photo (N, 3, H, W) uint8 of one like it; strength (1,) float in [0, 1.5]."""
        network = self.network
        grid = network.predict_grid(shrink(photo, network.lowres_mode) / 255)
        fullres = add_pedestal(photo.float() / 255, network.pedestal)
        return divide(
            network, fullres, slice_rows(grid, network.guide(fullres), fullres, network.align_corners), strength
        )


class PhotoToGrid(nn.Module):
    """The half of a network that looks at the whole photo."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, photo):
        """(grid (1, 12, D, Gh, Gw), rows and columns at which tiles begin and end) of a photo (1, 3, H, W) uint8."""
        network = self.network
        grid = network.predict_grid(shrink(photo, network.lowres_mode) / 255)
        return grid, *(tile_edges(photo.shape[i], grid.shape[i + 1], network.align_corners) for i in (2, 3))


def tile_edges(size, cells, align_corners):
    """First pixel of each tile, and `size`: a tile lies between the centres of two cells, or reaches to the border."""
    cell = torch.arange(1, cells - 1, dtype=torch.float32)
    first = cell * torch.sym_max(size - 1, 1) / (cells - 1) if align_corners else (cell + 0.5) * size / cells - 0.5
    return torch.cat([torch.zeros(1), first.ceil(), torch.ones(1) * size]).long()


class TileToTile(nn.Module):
    """The other half, for a tile between the centres of four cells: without GridSample, which is slow on CPUs.

    Between four centres a pixel's affine is a sum over them and the bins. So the photo's channels, times the weight of
    each bin, are multiplied with one matrix of the four cells' coefficients, and the four products are mixed.
    """

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, tile, place, grid, strength):
        """Enhanced tile (1, 3, h, w) uint8.

        Args:
            tile: (1, 3, h, w) uint8, cut out of the photo at edges that PhotoToGrid gave.
            place: (4,) int64: its first row and column, the photo's height and width.
            grid: (1, 12, D, Gh, Gw) of the photo. strength: (1,) float in [0, 1.5].
        """
        network = self.network
        _, _, bins, rows, columns = grid.shape
        fullres = add_pedestal(tile.float() / 255, network.pedestal)[0]  # (3, h, w)
        y, row = tile_coords(tile.shape[2], place[0], place[2], rows, network.align_corners)
        x, column = tile_coords(tile.shape[3], place[1], place[3], columns, network.align_corners)
        cells = grid[0].index_select(2, row).index_select(3, column)  # (12, D, 2, 2)
        matrix = cells.reshape(3, 4 * bins, 4).permute(2, 0, 1).reshape(12, 4 * bins)
        z = network.guide(fullres[None])[0]
        z = z * (bins - 1) if network.align_corners else (z * bins - 0.5).clamp(0, bins - 1)  # (1, h, w)
        weights = (1 - (z - torch.arange(bins)[:, None, None]).abs()).clamp(min=0)  # (D, h, w)
        terms = torch.cat([weights * fullres[0], weights * fullres[1], weights * fullres[2], weights]).flatten(1)
        products = (matrix @ terms).reshape(4, 3, -1)
        mix = (torch.stack([1 - y, y])[:, None, :, None] * torch.stack([1 - x, x])[None, :, None, :]).reshape(4, 1, -1)
        illumination = (products * mix).sum(dim=0).reshape(fullres.shape)
        return divide(network, fullres[None], illumination[None], strength)


def tile_coords(size, first, whole, cells, align_corners):
    """(where a tile's `size` pixels lie between the centres of two cells, from 0 to 1, indices of these cells (2,))."""
    pixels = torch.arange(size) + first
    if align_corners:
        coords = pixels * (cells - 1) / (whole - 1).clamp(min=1)
    else:
        coords = ((pixels + 0.5) * cells / whole - 0.5).clamp(0, cells - 1)
    cell = coords[size // 2].floor().clamp(0, cells - 2)
    return coords - cell, torch.stack([cell, cell + 1]).long()


def divide(network, fullres, illumination, strength):
    """Levels (N, 3, H, W) uint8 of R = I / S^strength, by a network's rules."""
    if network.clip:
        illumination = clip_illumination(illumination, fullres)
    divisor = illumination + network.eps
    enhanced = torch.where(divisor > 0, fullres / divisor.clamp(min=TINY) ** strength, fullres * (1 - strength))
    return remove_pedestal(enhanced.clamp(0, 1), network.pedestal).mul(255).round().clamp(0, 255).to(torch.uint8)


def slice_rows(grid, guide, fullres, align_corners):
    """Illumination (N, 3, H, W): model.slice_grid and apply_affine by two 4-D grid_sample.

    The grid's bins are lain out as rows. A pixel's affines out of its two bins are applied before they are mixed, which
    comes to the same and needs no third (N, 12, H, W).
    """
    n, channels, bins, rows, columns = grid.shape
    _, _, height, width = guide.shape
    y = cell_coords(height, rows, align_corners)
    x = cell_coords(width, columns, align_corners) / (columns - 1) * 2 - 1
    z = guide[:, 0] * (bins - 1) if align_corners else (guide[:, 0] * bins - 0.5).clamp(0, bins - 1)  # (N, H, W)
    bin = z.floor().clamp(max=bins - 2)
    stacked = grid.reshape(n, channels, bins * rows, columns)
    x = x.expand_as(z)
    parts = []
    for step in (0, 1):
        row = ((bin + step) * rows + y[:, None]) / (bins * rows - 1) * 2 - 1
        coords = torch.stack([x, row], dim=-1)  # (N, H, W, 2)
        coeffs = F.grid_sample(stacked, coords, mode='bilinear', padding_mode='border', align_corners=True)
        parts.append(apply_affine(coeffs, fullres))
    return torch.lerp(*parts, (z - bin)[:, None])


def cell_coords(size, cells, align_corners):
    """Where each of `size` pixels lies among `cells` cell centres, from 0 to cells - 1."""
    pixels = torch.arange(size, dtype=torch.float32)
    if align_corners:
        return pixels * ((cells - 1) / torch.sym_max(size - 1, 1))
    return ((pixels + 0.5) * (cells / size) - 0.5).clamp(0, cells - 1)


def shrink(photo, mode):
    """The copy that the network looks at, (N, 3, 256, 256) float levels of 255, as photos.lowres.make_lowres makes it.

    Args:
        photo: (N, 3, H, W) uint8.
        mode: 'area', 'bilinear' or 'nearest'.
    """
    height, width = photo.shape[-2:]
    if mode == 'area':
        return area_weights(height) @ (photo.float() @ area_weights(width).T)
    if mode == 'nearest':
        rows, columns = (
            (torch.arange(LOW_SIZE, dtype=torch.float32) * size / LOW_SIZE).long() for size in (height, width)
        )
        return photo.index_select(2, rows).index_select(3, columns).float()
    return shrink_bilinear(photo)


def area_weights(size):
    """photos.lowres.shrink_matrix for a size that the graph learns when it runs.

    All places are multiples of 1/512 and exact in float32.
    """
    new, old = torch.arange(LOW_SIZE, dtype=torch.float32)[:, None], torch.arange(size, dtype=torch.float32)
    start, end = new * size / LOW_SIZE - old, (new + 1) * size / LOW_SIZE - old
    covered = (end.clamp(max=1) - start.clamp(min=0)).clamp(min=0)
    place = ((new + 0.5) * size / LOW_SIZE - 0.5).clamp(min=0).minimum(old[-1])
    weights = torch.where(old[-1] + 1 >= LOW_SIZE, covered, (1 - (place - old).abs()).clamp(min=0))
    return weights / weights.sum(dim=1, keepdim=True)


def shrink_bilinear(photo):
    """cv2.resize of 8 bit with INTER_LINEAR, level for level: its integers, which float32 holds exactly.

    OpenCV's weights have 11 bits; the places are multiples of 1/512, so the last two are always 0 and left out here.
    Source: OpenCV, resize.cpp, HResizeLinear and VResizeLinear.
    """
    y0, y1, top, bottom = bilinear_taps(photo.shape[2])
    x0, x1, left, right = bilinear_taps(photo.shape[3])
    parts = []
    for y, weight in ((y0, top), (y1, bottom)):
        rows = photo.index_select(2, y)
        line = rows.index_select(3, x0).float() * left + rows.index_select(3, x1).float() * right
        parts.append((weight[:, None] * (line / 4).floor() / 16384).floor())
    return ((parts[0] + parts[1] + 2) / 4).floor()


def bilinear_taps(size):
    """Two pixels for each of 256 new ones, and their weights in 512ths."""
    place = (torch.arange(LOW_SIZE, dtype=torch.float32) + 0.5) * size / LOW_SIZE - 0.5
    first = place.floor()
    weight = (place - first) * 512
    last = size - 1
    return first.long().clamp(0, last), (first.long() + 1).clamp(0, last), 512 - weight, weight


if __name__ == '__main__':
    utils.parse_overrides(opt, {}, __file__)
    utils.run_script(main, opt)
