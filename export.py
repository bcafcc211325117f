"""Write a checkpoint for other programs: as an ONNX graph, photo in and photo out, or as safetensors.

    python export.py --checkpoints_file general --result_file general.onnx
    python export.py --checkpoints_file general --tiles
    python export.py --checkpoints_file general --safetensors

The graph takes `photo` (N, 3, H, W) RGB uint8 of any height and width, and `strength` (1,), a float from 0 to 1.5. It
gives `enhanced`, of the photo's shape and type: shrinking, network, slicing, R = I / S^strength and rounding are all
in it. It needs opset 18 and no operator beyond those that TensorRT and the runtimes for browsers have: the slice is a
4-D GridSample, each row of pixels on its own. With --tiles it is two graphs, twice as fast on CPUs: one gives a
photo's grid, the other enhances it tile by tile, see docs/use.md. A safetensors file loads wherever a checkpoint does.
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
from photos.lowres import shrink_matrix
from runs.checkpoint import find_checkpoint, load_network, save_safetensors
from system.files import save_whole

opt = SimpleNamespace(
    checkpoints_file='general',  # a shipped one by its name, ours, or the predecessor's plain state dict
    result_file='',  # '' is <the checkpoint's folder>.onnx or .safetensors
    safetensors=False,  # write the weights as safetensors instead of a graph
    tiles=False,  # two graphs, <name>_grid.onnx and <name>_tile.onnx, twice as fast on CPUs
)

OPSET = 18


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
        raise ValueError(f'export: expected {" and ".join(missing)}, not installed: pip install onnx onnxscript')
    logging.getLogger('torch.onnx').setLevel(logging.ERROR)  # it says which other packages it could export
    size = {axis: torch.export.Dim(name, min=1) for axis, name in ((2, 'height'), (3, 'width'))}
    any_size = size | {0: torch.export.Dim('batch', min=1)}
    photo, place = torch.zeros(2, 3, 300, 400, dtype=torch.uint8), torch.tensor([0, 0, 600, 800])
    grid, strength = network.predict_grid(torch.zeros(1, 3, LOW_SIZE, LOW_SIZE)).detach(), (torch.ones(1), {})
    stem = os.path.splitext(path)[0]
    if not tiles:
        write_graph(photo_to_photo, network, path, {'photo': (photo, any_size), 'strength': strength}, ['enhanced'])
        return
    write_graph(photo_to_grid, network, f'{stem}_grid.onnx', {'photo': (photo[:1], size)}, ['grid', 'rows', 'columns'])
    inputs = {'tile': (photo[:1, :, :40, :40], size), 'place': (place, {}), 'grid': (grid, {}), 'strength': strength}
    write_graph(tile_to_tile, network, f'{stem}_tile.onnx', inputs, ['enhanced'])


def write_graph(function, network, path, inputs, outputs):
    """Write one graph, whole or not at all; inputs are {name: (tensor, {axis: its Dim where it may have any size})}."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)  # torch's own, of its next version
        warnings.filterwarnings('ignore', message='# The axis name')  # of two axes named batch
        values, axes = zip(*inputs.values(), strict=True)
        program = torch.onnx.export(
            Graph(function, network).eval(), values, dynamo=True, opset_version=OPSET, dynamic_shapes={'inputs': axes},
            input_names=list(inputs), output_names=outputs, verbose=False,
        )  # fmt: skip
    data = program.model_proto.SerializeToString()
    save_whole(lambda file: file.write(data), path)


class Graph(nn.Module):
    """One of the functions below with its network, in operators that exist everywhere."""

    def __init__(self, function, network):
        super().__init__()
        self.function, self.network = function, network

    def forward(self, *inputs):
        return self.function(self.network, *inputs)


def photo_to_photo(network, photo, strength):
    """Enhanced photo (N, 3, H, W) uint8 of one like it, as kernels.enhance_photo does it; strength (1,) in [0, 1.5].

    Each row of pixels has a grid (D, Gw) of its own, mixed from two rows of cells, and samples that.
    """
    n, _, height, width = photo.shape
    grid = network.predict_grid(shrink(photo, network.lowres_mode) / 255)
    _, channels, bins, rows, columns = grid.shape
    fullres = add_pedestal(photo.float() / 255, network.pedestal)
    y = cell_coords(network, torch.arange(height), height, rows)
    mix = (1 - (y[:, None] - torch.arange(rows)).abs()).clamp(min=0)  # (H, Gh)
    grids = mix @ grid.permute(0, 3, 1, 2, 4).reshape(n, rows, channels * bins * columns)
    grids = grids.reshape(n * height, channels, bins, columns)
    z = bin_coords(network, fullres, bins).reshape(n * height, 1, width) / (bins - 1)
    x = cell_coords(network, torch.arange(width), width, columns) / (columns - 1)
    coords = torch.stack([x.expand_as(z), z], dim=-1) * 2 - 1  # (N * H, 1, W, 2)
    coeffs = F.grid_sample(grids, coords, mode='bilinear', padding_mode='border', align_corners=True)
    lines = fullres.transpose(1, 2).reshape(n * height, 3, 1, width)
    illumination = apply_affine(coeffs, lines).reshape(n, height, 3, width).transpose(1, 2)
    return divide(network, fullres, illumination, strength)


def photo_to_grid(network, photo):
    """(grid (1, 12, D, Gh, Gw), rows and columns at which tiles begin and end) of a photo (1, 3, H, W) uint8.

    A tile lies between the centres of two cells each way, or reaches to the border.
    """
    grid, edges = network.predict_grid(shrink(photo, network.lowres_mode) / 255), []
    for size, cells in zip(photo.shape[2:], grid.shape[3:], strict=True):
        cell = torch.arange(1, cells - 1, dtype=torch.float32)
        first = cell * (size - 1) / (cells - 1) if network.align_corners else (cell + 0.5) * size / cells - 0.5
        edges.append(torch.cat([torch.zeros(1), first.ceil(), torch.ones(1) * size]).long())
    return grid, *edges


def tile_to_tile(network, tile, place, grid, strength):
    """An enhanced tile (1, 3, h, w) uint8, without GridSample, which is slow on CPUs.

    Between the centres of four cells a pixel's affine is a sum over them and the bins. So the tile's channels, times
    the weight of each bin, are multiplied with one matrix of the cells' coefficients, and the four products are mixed.

    Args:
        tile: (1, 3, h, w) uint8, cut out of the photo at edges that photo_to_grid gave.
        place: (4,) int64: its first row and column, the photo's height and width.
        grid: (1, 12, D, Gh, Gw) of the photo. strength: (1,) float in [0, 1.5].
    """
    bins = grid.shape[2]
    fullres, cells, shares = add_pedestal(tile.float() / 255, network.pedestal), grid[0], []
    for axis in (2, 3):
        size, count = tile.shape[axis], cells.shape[axis]
        coords = cell_coords(network, torch.arange(size) + place[axis - 2], place[axis], count)
        first = coords[size // 2].floor().clamp(0, count - 2)
        cells = cells.index_select(axis, torch.stack([first, first + 1]).long())  # (12, D, 2, 2) in the end
        shares.append(torch.stack([first + 1 - coords, coords - first]))
    matrix = cells.reshape(3, 4 * bins, 4).permute(2, 0, 1).reshape(12, 4 * bins)
    z = bin_coords(network, fullres, bins)  # (1, h, w)
    weights = (1 - (z - torch.arange(bins)[:, None, None]).abs()).clamp(min=0)  # (D, h, w)
    terms = torch.cat([*(weights * channel for channel in fullres[0].unbind()), weights]).flatten(1)
    mix = (shares[0][:, None, :, None] * shares[1][None, :, None, :]).reshape(4, 1, -1)
    illumination = ((matrix @ terms).reshape(4, 3, -1) * mix).sum(dim=0).reshape(fullres.shape)
    return divide(network, fullres, illumination, strength)


def cell_coords(network, pixels, size, cells):
    """Where some of a side's `size` pixels lie among `cells` cell centres, from 0 to cells - 1."""
    if network.align_corners:
        return pixels * (cells - 1) / (size - 1 + 1e-9)  # 0 for one pixel
    return ((pixels + 0.5) * cells / size - 0.5).clamp(0, cells - 1)


def bin_coords(network, fullres, bins):
    """Where pixels (N, 3, H, W) lie among the bins of a grid by their guide, (N, H, W) from 0 to bins - 1."""
    guide = network.guide(fullres)[:, 0]
    return guide * (bins - 1) if network.align_corners else (guide * bins - 0.5).clamp(0, bins - 1)


def divide(network, fullres, illumination, strength):
    """Levels (N, 3, H, W) uint8 of R = I / S^strength, by a network's rules."""
    if network.clip:
        illumination = clip_illumination(illumination, fullres)
    divisor = illumination + network.eps
    enhanced = torch.where(divisor > 0, fullres / divisor.clamp(min=TINY) ** strength, fullres * (1 - strength))
    return remove_pedestal(enhanced.clamp(0, 1), network.pedestal).mul(255).round().clamp(0, 255).to(torch.uint8)


def shrink(photo, mode):
    """photos.lowres.make_lowres of (N, 3, H, W) uint8: (N, 3, 256, 256) float levels of 255."""
    if mode == 'bilinear':
        return shrink_bilinear(photo)
    if mode == 'area':
        return shrink_matrix(photo.shape[2]) @ (photo.float() @ shrink_matrix(photo.shape[3]).T)
    rows, columns = ((torch.arange(LOW_SIZE) * size / LOW_SIZE).long() for size in photo.shape[2:])
    return photo.index_select(2, rows).index_select(3, columns).float()


def shrink_bilinear(photo):
    """cv2.resize of 8 bit with INTER_LINEAR, level for level: its integers, which float32 holds exactly.

    OpenCV's weights have 11 bits; the places are multiples of 1/512, so the last two are always 0 and left out here.
    Source: OpenCV, resize.cpp, HResizeLinear and VResizeLinear.
    """
    parts, ((x0, left), (x1, right)) = [], bilinear_taps(photo.shape[3])
    for y, weight in bilinear_taps(photo.shape[2]):
        rows = photo.index_select(2, y)
        line = rows.index_select(3, x0).float() * left + rows.index_select(3, x1).float() * right
        parts.append((weight[:, None] * (line / 4).floor() / 16384).floor())
    return ((parts[0] + parts[1] + 2) / 4).floor()


def bilinear_taps(size):
    """((pixels, weights in 512ths), (the next pixels, theirs)) for 256 new ones."""
    place = (torch.arange(LOW_SIZE, dtype=torch.float32) + 0.5) * size / LOW_SIZE - 0.5
    first = place.floor()
    weight = (place - first) * 512
    return [((first.long() + i).clamp(0, size - 1), part) for i, part in enumerate((512 - weight, weight))]


if __name__ == '__main__':
    utils.parse_overrides(opt, {}, __file__)
    utils.run_script(main, opt)
