import os
from itertools import pairwise
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

import export
from kernels import Edit, enhance_photo
from model import build_network
from photos.lowres import make_lowres
from runs.checkpoint import load_network

MODES = ('area', 'bilinear', 'nearest')


@pytest.fixture(autouse=True)
def no_trace(monkeypatch):
    """pytest would format every step of torch.export, which takes longer than the export."""
    monkeypatch.setattr(torch._logging._internal.trace_log, 'handlers', [])


def dark_photo(height, width, seed=0):
    """A dark photo with smooth parts, edges and noise."""
    rng = np.random.default_rng(seed)
    photo = cv2.resize(
        rng.integers(0, 120, (5, 7, 3)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
    )
    photo[: height // 3] *= 0.2
    return (photo + rng.normal(0, 3, photo.shape)).clip(0, 255).round().astype(np.uint8)


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('size', [(512, 512), (401, 640), (1000, 1503), (100, 120), (3, 5), (257, 255), (1, 300)])
def test_the_graph_shrinks_as_we_do(size, mode):
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    lowres = export.shrink(torch.from_numpy(photo).permute(2, 0, 1)[None], mode)[0].permute(1, 2, 0).numpy()
    expected = make_lowres(photo, mode)
    if mode == 'area':
        assert abs(lowres - expected).max() < 1e-3  # the order of sums
    else:
        assert (lowres == expected).all()  # OpenCV's own levels


def make_network(name):
    """The shipped network with an antialiased shrink, and one that differs from it in everything else."""
    if name == 'deepupe':
        torch.manual_seed(0)
        return build_network('deepupe', pedestal=1.0).eval()
    network, _ = load_network(export.opt.checkpoints_file)
    network.lowres_mode = 'area'
    return network


def check(run, network):
    """Compare run(photo, strength), numpy in and out, with our photos."""
    for size, strength in (((401, 640), 1.0), ((128, 90), 0.6), ((256, 256), 0.0), ((5, 300), 1.5)):
        photo = dark_photo(*size)
        enhanced = run(photo.transpose(2, 0, 1)[None], np.array([strength], np.float32))
        assert enhanced.dtype == np.uint8
        expected, _ = enhance_photo(network, photo, Edit(strength))
        difference = abs(enhanced[0].transpose(1, 2, 0).astype(int) - expected)
        assert difference.max() <= 1
        assert (difference > 0).mean() <= 1e-3


def by_tiles(predict, apply):
    """run for `check` of the two graphs, as docs/use.md has it."""

    def run(photo, strength):
        enhanced = np.empty_like(photo)
        grid, rows, columns = predict(photo=photo)
        for top, bottom in pairwise(np.unique(rows)):
            for left, right in pairwise(np.unique(columns)):
                tile, place = photo[:, :, top:bottom, left:right], np.array([top, left, *photo.shape[2:]])
                made = apply(tile=tile, place=place, grid=grid, strength=strength)
                enhanced[:, :, top:bottom, left:right] = made
        return enhanced

    return run


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('name', ['hdrnet', 'deepupe'])
def test_what_is_exported_gives_our_photos(name, align_corners):
    network = make_network(name)
    network.align_corners = align_corners

    def call(module):
        def run(**inputs):
            made = module(*(torch.from_numpy(np.ascontiguousarray(value)) for value in inputs.values()))
            return made.numpy() if torch.is_tensor(made) else [value.numpy() for value in made]

        return run

    whole = call(export.Graph(export.photo_to_photo, network))
    with torch.no_grad():
        check(lambda photo, strength: whole(photo=photo, strength=strength), network)
        grid, tile = (call(export.Graph(part, network)) for part in (export.photo_to_grid, export.tile_to_tile))
        check(by_tiles(grid, tile), network)


@pytest.mark.parametrize('name', ['hdrnet', 'deepupe'])
def test_the_two_graphs_give_our_photos(tmp_path, name):
    pytest.importorskip('onnxscript')
    onnxruntime = pytest.importorskip('onnxruntime')
    network = make_network(name)
    export.export_onnx(network, str(tmp_path / 'graph.onnx'), tiles=True)
    assert sorted(os.listdir(tmp_path)) == ['graph_grid.onnx', 'graph_tile.onnx']
    grid, tile = (onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
                  for path in sorted(tmp_path.iterdir()))  # fmt: skip
    check(by_tiles(lambda **inputs: grid.run(None, inputs), lambda **inputs: tile.run(None, inputs)[0]), network)


def test_the_onnx_graph_gives_our_photos_by_what_other_runtimes_take(tmp_path):
    onnx, _ = pytest.importorskip('onnx'), pytest.importorskip('onnxscript')
    onnxruntime = pytest.importorskip('onnxruntime')
    network, path = make_network('hdrnet'), str(tmp_path / 'graph.onnx')
    export.export_onnx(network, path)
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    assert [value.name for value in session.get_inputs()] == ['photo', 'strength']
    check(lambda photo, strength: session.run(None, {'photo': photo, 'strength': strength})[0], network)

    model = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [('', 18)]
    values = {value.name: value.type.tensor_type for value in model.graph.value_info}
    samples = [node for node in model.graph.node if node.op_type == 'GridSample']
    assert [len(values[node.output[0]].shape.dim) for node in samples] == [4]  # TensorRT refuses five dimensions
    assert {value.elem_type for value in values.values()} <= {
        getattr(onnx.TensorProto, dtype) for dtype in ('FLOAT', 'INT64', 'UINT8', 'BOOL')
    }


class Shrink(torch.nn.Module):
    """The shrinks of the two systems as a graph of their own."""

    def forward(self, photo):
        """Both."""
        return export.shrink(photo, 'bilinear'), export.shrink(photo, 'nearest')


def test_onnx_shrinks_level_for_level_as_opencv(tmp_path):
    pytest.importorskip('onnx'), pytest.importorskip('onnxscript')
    onnxruntime = pytest.importorskip('onnxruntime')
    path, sizes = str(tmp_path / 'graph.onnx'), {2: torch.export.Dim('height'), 3: torch.export.Dim('width')}
    torch.onnx.export(
        Shrink().eval(), (torch.zeros(1, 3, 300, 400, dtype=torch.uint8),), path, input_names=['photo'], dynamo=True,
        opset_version=export.OPSET, dynamic_shapes={'photo': sizes}, verbose=False,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    photo = np.random.default_rng(0).integers(0, 256, (1000, 1503, 3), dtype=np.uint8)
    for lowres, mode in zip(session.run(None, {'photo': photo.transpose(2, 0, 1)[None]}), MODES[1:], strict=True):
        assert (lowres[0].transpose(1, 2, 0) == make_lowres(photo, mode)).all()


def test_a_missing_package_is_named_with_its_install_line(tmp_path, monkeypatch):
    monkeypatch.setattr(export.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match='pip install onnx onnxscript'):
        export.export_onnx(None, str(tmp_path / 'graph.onnx'))


def options(**changes):
    return SimpleNamespace(**{**vars(export.opt), **changes})


def test_safetensors_load_as_the_checkpoint(tmp_path):
    pytest.importorskip('safetensors')
    path = str(tmp_path / 'general.safetensors')
    export.main(options(result_file=path, safetensors=True))
    (ours, kept), (theirs, loaded) = load_network(export.opt.checkpoints_file), load_network(path)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all((ours.state_dict()[name] == value).all() for name, value in theirs.state_dict().items())
    assert (loaded['arch'], loaded['opt']) == (kept['arch'], kept['opt'])
    assert (ours.pedestal, ours.lowres_mode) == (theirs.pedestal, theirs.lowres_mode)


def test_a_result_with_another_extension_is_refused():
    with pytest.raises(ValueError, match=r"result_file: expected \.onnx, got 'graph\.pb'"):
        export.main(options(result_file='graph.pb'))
