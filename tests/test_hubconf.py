import inspect
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import hubconf
import inference

FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture(scope='module')
def enhance():
    """The callable on the plain torch path, which needs no compiling."""
    enhance = hubconf.deepupe(device='cpu')
    enhance.kernels.cpu_kernels = lambda: None
    return enhance


def dark(shape, dtype=np.uint8, seed=0):
    """A dark image of a shape (H, W) or (H, W, C); its alpha reaches to the top."""
    image = np.random.default_rng(seed).random(shape) * 0.2
    if shape[2:] in ((2,), (4,)):
        image[..., -1] *= 5
    dtype = np.dtype(dtype)
    return image.astype(dtype) if dtype.kind == 'f' else (image * np.iinfo(dtype).max).astype(dtype)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize('shape', [(9, 12), (9, 12, 1), (9, 12, 2), (9, 12, 3), (9, 12, 4)])
def test_an_array_comes_back_brighter_with_its_dtype_shape_and_alpha(enhance, shape, dtype):
    image = dark(shape, dtype)
    before = image.copy()
    enhanced = enhance(image)
    assert (enhanced.dtype, enhanced.shape) == (image.dtype, image.shape)
    assert (image == before).all()
    if shape[2:] in ((2,), (4,)):
        assert (enhanced[..., -1] == image[..., -1]).all()
        enhanced, image = enhanced[..., :-1], image[..., :-1]
    assert enhanced.mean() > 1.5 * image.mean()


def test_levels_are_those_of_the_scripts(enhance):
    image = dark((30, 40, 3))
    expected, _ = enhance.kernels.enhance_photo(enhance.network, image, enhance.kernels.Edit(0.5))
    assert (enhance(image, strength=0.5, denoise=0) == expected).all()
    assert abs(enhance(image / 255, strength=0.5) * 255 - expected).max() < 1.5  # lowres is rounded to 8 bit there


def test_defaults_are_those_of_the_command_line():
    taken = inspect.signature(hubconf.Enhance.__call__).parameters
    assert taken['strength'].default == inference.opt.strength
    assert taken['denoise'].default == inference.opt.denoise


def test_strength_0_gives_the_image_back(enhance):
    for image in (dark((9, 12)), dark((9, 12, 4), np.uint16), torch.from_numpy(dark((2, 3, 9, 12)))):
        assert (enhance(image, strength=0) == image).all()
    image = dark((9, 12, 3), np.float32)
    np.testing.assert_allclose(enhance(image, strength=0), image, atol=1e-6)  # the pedestal is added and taken off


@pytest.mark.parametrize('mode', ['L', 'LA', 'RGB', 'RGBA', 'I;16'])
def test_a_pil_image_keeps_its_mode_and_info(enhance, mode):
    array = dark((9, 12), np.uint16) if mode == 'I;16' else dark((9, 12, {'L': 1, 'LA': 2}.get(mode, len(mode))))
    image = Image.fromarray(array.squeeze())
    assert image.mode == mode
    image.info['icc_profile'] = b'profile'
    enhanced = enhance(image)
    assert isinstance(enhanced, Image.Image)
    assert (enhanced.mode, enhanced.size, enhanced.info) == (mode, image.size, image.info)
    if mode in ('LA', 'RGBA'):
        assert enhanced.getchannel('A').tobytes() == image.getchannel('A').tobytes()
    assert np.asarray(enhanced, float)[..., 0].mean() > np.asarray(image, float)[..., 0].mean()


def test_a_palette_becomes_rgb(enhance):
    image = Image.fromarray(dark((9, 12, 3))).quantize(8)
    assert enhance(image).mode == 'RGB'
    image.info['transparency'] = 0
    assert enhance(image).mode == 'RGBA'


@pytest.mark.parametrize('dtype', [torch.uint8, torch.float32, torch.float64, torch.bfloat16])
def test_each_tensor_of_a_batch_is_enhanced_on_its_own(enhance, dtype):
    batch = torch.from_numpy(dark((2, 3, 9, 12), np.uint8 if dtype == torch.uint8 else np.float32)).to(dtype)
    batch[1] = batch[1] // 4 if dtype == torch.uint8 else batch[1] / 4
    enhanced = enhance(batch)
    assert (enhanced.dtype, enhanced.shape) == (batch.dtype, batch.shape)
    assert (enhanced[1:] == enhance(batch[1:])).all()
    assert (enhanced.double().mean((1, 2, 3)) > 1.5 * batch.double().mean((1, 2, 3))).all()


def test_results_may_be_used_with_autograd(enhance):
    image = torch.from_numpy(dark((1, 3, 9, 12), np.float32))
    weight = torch.ones((), requires_grad=True)
    (enhance(image) * weight).sum().backward()
    assert weight.grad > 0


def test_the_network_itself_gives_the_illumination(enhance):
    lowres, fullres = torch.rand(1, 3, 256, 256), torch.rand(1, 3, 9, 12)
    assert enhance.network(lowres, fullres).shape == (1, 3, 9, 12)


@pytest.mark.parametrize(
    ('image', 'words'),
    [
        ('photo.jpg', 'expected a numpy array, a PIL image or a batch of tensors (N, 3, H, W), got str'),
        ([[1, 2]], 'got list'),
        (np.zeros((4, 5, 5), np.uint8), 'got (4, 5, 5)'),
        (np.zeros((0, 5, 3), np.uint8), 'got (0, 5, 3)'),
        (np.zeros((2, 4, 5, 3), np.uint8), 'got (2, 4, 5, 3)'),
        (np.zeros((4, 5, 3), np.int64), 'expected an array of uint8, uint16 or float in [0, 1], got int64'),
        (np.full((4, 5, 3), 255.0), 'expected float values in [0, 1], got 255 to 255'),
        (np.full((4, 5, 3), np.nan), 'expected float values in [0, 1], got nan to nan'),
        (torch.zeros(3, 4, 5), 'expected a batch of tensors (N, 3, H, W), got (3, 4, 5)'),
        (torch.zeros(1, 4, 4, 5), 'got (1, 4, 4, 5)'),
        (torch.zeros(1, 3, 4, 5).to_sparse(), 'got torch.sparse_coo'),
        (torch.zeros(1, 3, 4, 5, dtype=torch.int64), 'expected tensors of uint8 or float in [0, 1], got torch.int64'),
        (Image.new('CMYK', (5, 4)), 'expected a PIL image of mode L, LA, RGB, RGBA, I;16 or P, got CMYK'),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_what_is_no_image_is_refused_in_one_line(enhance, image, words):
    with pytest.raises((TypeError, ValueError)) as caught:
        enhance(image)
    assert str(caught.value).startswith('enhance: ')
    assert words in str(caught.value)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'options', [{'strength': 2}, {'strength': 'half'}, {'denoise': -2}, {'strength': float('nan')}]
)
def test_wrong_options_are_refused(enhance, options):
    with pytest.raises((TypeError, ValueError), match=r'strength|denoise'):
        enhance(dark((9, 12)), **options)


def test_an_unknown_checkpoint_is_refused():
    with pytest.raises(FileNotFoundError, match='no_such'):
        hubconf.deepupe('no_such')


CALLER = """
import sys
import numpy as np
import model, utils, kernels  # the user's own
import torch

before = dict(sys.modules), list(sys.path)
enhance = torch.hub.load({folder!r}, 'deepupe', source='local', device='cpu')
image = np.full((30, 40, 3), 20, np.uint8)
assert enhance(image).mean() > 40
assert enhance(image, denoise=1.0).mean() > 40
assert enhance(image / 255).mean() > 40 / 255

assert sys.path == before[1]
for name in {names}:
    assert sys.modules.get(name) is before[0].get(name), name
import model, pipeline, utils, kernels.cpu
assert (model.OWNER, pipeline.OWNER, utils.OWNER, kernels.OWNER, kernels.cpu.OWNER) == ('user',) * 5
print('apart')
"""


def test_hub_load_leaves_a_users_modules_of_the_same_names_alone(tmp_path):
    (tmp_path / 'kernels').mkdir()
    for name in ('model', 'utils', 'pipeline', 'photos', 'loss', 'system', 'kernels/__init__', 'kernels/cpu'):
        (tmp_path / f'{name}.py').write_text("OWNER = 'user'\n")
    script = tmp_path / 'caller.py'
    script.write_text(CALLER.format(folder=FOLDER, names=sorted(hubconf.OURS)))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout == 'apart\n', done.stderr


def test_a_copy_in_another_process_gives_the_same(tmp_path):
    enhance = hubconf.deepupe('paper_lol', device='cpu')
    with torch.no_grad():
        enhance.network.predict.conv.bias.add_(0.1)  # as a user's own training would
    image = dark((30, 40, 3))
    np.savez(tmp_path / 'image.npz', image=image, expected=enhance(image))
    (tmp_path / 'enhance.pkl').write_bytes(pickle.dumps(enhance))
    code = "import numpy, pickle; enhance = pickle.load(open('enhance.pkl', 'rb')); files = numpy.load('image.npz'); "
    code += "assert (enhance(files['image']) == files['expected']).all(); print(enhance)"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout.strip() == repr(enhance), done.stderr
