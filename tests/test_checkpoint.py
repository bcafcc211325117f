"""Checkpoints of strangers: what they hold is read, what they claim beyond that is refused before it takes memory."""

import io
import json
import pickle
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from kernels import enhance_photo
from model import build_network
from pairs.lists import read_options_pickle
from runs.checkpoint import ROOT, load_network, read_checkpoint, save_checkpoint, save_safetensors
from system.pickles import InertUnpickler


@pytest.fixture
def good():
    torch.manual_seed(0)
    return {'arch': 'hdrnet', 'model': build_network('hdrnet').state_dict(), 'epoch': 3, 'psnr': 20.5, 'opt': {}}


def with_weights(good, change):
    """The checkpoint with one tensor changed."""
    model = dict(good['model'])
    model.update(change(model))
    return {**good, 'model': model}


LOAD = """
import resource, sys
from runs.checkpoint import load_network
used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20),) * 2)
for path in sys.argv[1:]:
    try:
        load_network(path)
    except ValueError as error:
        print(error)
"""


def test_hostile_checkpoints_take_no_memory(tmp_path, good):
    """What they claim would take gigabytes; the process that refuses them may take 300 MB."""
    sizes = {'luma_bins': 64, 'spatial_bin': 64}
    with torch.device('meta'):
        huge = build_network('hdrnet', **sizes).state_dict()
    hostile = {
        'luma_bins': {**good, 'opt': sizes},
        'stride_0': {
            **good,
            'opt': sizes,
            'model': {k: torch.zeros((), dtype=v.dtype).expand(v.shape) for k, v in huge.items()},
        },
        'deflated': {**good, 'opt': {'more': torch.zeros(1 << 23)}},
    }
    for name, checkpoint in hostile.items():
        torch.save(checkpoint, tmp_path / f'{name}.pth')
    with zipfile.ZipFile(tmp_path / 'deflated.pth') as large:
        parts = {name: large.read(name) for name in large.namelist()}
    with zipfile.ZipFile(tmp_path / 'deflated.pth', 'w', zipfile.ZIP_DEFLATED) as small:
        for name, part in parts.items():
            small.writestr(name, part)
    (tmp_path / 'claim.pth').write_bytes(claim_of_4_gb())
    paths = [str(tmp_path / f'{name}.pth') for name in (*hostile, 'claim')]
    command = [sys.executable, '-c', LOAD, *paths]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    reasons = [
        'weights do not fit hdrnet',
        'its weights share their values',
        'its parts are larger than the file',
        r'record size \(4 bytes\) does not match expected size \(4294967296 bytes|weights do not fit',  # older torch
    ]
    for line, path, reason in zip(done.stdout.splitlines(), paths, reasons, strict=True):
        assert line.startswith(f'{path}: ')
        assert re.search(reason, line)


def claim_of_4_gb():
    """A checkpoint with a tensor of 4 GB whose record has 4 bytes."""

    class Claim:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Storage(), 0, (1 << 30,), (1,), False, {})

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ('storage', torch.FloatStorage, '0', 'cpu', 1 << 30) if isinstance(value, Storage) else None

    text, data = io.BytesIO(), io.BytesIO()
    Pickler(text, 2).dump({'arch': 'hdrnet', 'model': {'a': Claim()}})
    with zipfile.ZipFile(data, 'w') as archive:
        archive.writestr('archive/data.pkl', text.getvalue())
        archive.writestr('archive/version', '3')
        archive.writestr('archive/data/0', bytes(4))
    return data.getvalue()


def test_absurd_sizes_of_the_grid_are_named(tmp_path, good):
    torch.save({**good, 'opt': {'luma_bins': 10**9}}, tmp_path / 'bad.pth')
    with pytest.raises(ValueError, match=r'bad.pth: .*luma_bins: expected a whole number, 1 to 64'):
        load_network(str(tmp_path / 'bad.pth'))


def test_weights_that_share_their_values_are_refused(tmp_path, good):
    shared = torch.zeros(max(value.numel() for value in good['model'].values()))
    model = {name: shared[: value.numel()].view(value.shape) for name, value in good['model'].items()}
    model = {name: value.long() if name.endswith('tracked') else value for name, value in model.items()}
    torch.save({**good, 'model': model}, tmp_path / 'bad.pth')
    with pytest.raises(ValueError, match='share their values'):
        load_network(str(tmp_path / 'bad.pth'))


def test_lone_key_of_the_predecessor_is_refused(tmp_path):
    torch.save({'coeffs.conv_out.conv.weight': torch.zeros(96, 64, 1, 1)}, tmp_path / 'bad.pth')
    with pytest.raises(ValueError, match=r'bad.pth: weights do not fit hdrnet \(global_conv.0.conv.bias: missing'):
        load_network(str(tmp_path / 'bad.pth'))


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        (lambda value: value.fill_(float('nan')), 'expected finite numbers'),
        (lambda value: value.fill_(float('inf')), 'expected finite numbers'),
        (lambda value: value.to(torch.complex64), 'expected torch.float32, got torch.complex64'),
        (lambda value: value.long(), 'expected torch.float32, got torch.int64'),
        (lambda value: value[:, :2], r'expected \(8, 3, 3, 3\), got \(8, 2, 3, 3\)'),
        (lambda value: 'text', r'expected \(8, 3, 3, 3\), got str'),
    ],
)
def test_weights_that_would_give_black_photos_are_refused(tmp_path, good, change, reason):
    name = 'splat.0.conv.weight'
    torch.save(with_weights(good, lambda model: {name: change(model[name].clone())}), tmp_path / 'bad.pth')
    with pytest.raises(ValueError, match=f'bad.pth: weights do not fit hdrnet \\({name}: {reason}'):
        load_network(str(tmp_path / 'bad.pth'))


def test_negative_variance_is_refused(tmp_path, good):
    name = 'guide.hidden.norm.running_var'
    torch.save(with_weights(good, lambda model: {name: -model[name]}), tmp_path / 'bad.pth')
    with pytest.raises(ValueError, match='expected variances of 0 or more'):
        load_network(str(tmp_path / 'bad.pth'))


def test_weights_whose_grid_overflows_give_no_black_photo():
    network = build_network('hdrnet').eval()
    torch.nn.init.constant_(network.predict.conv.weight, 3e38)
    with pytest.raises(ValueError, match='expected finite coefficients'):
        enhance_photo(network, np.full((8, 8, 3), 60, np.uint8))


@pytest.mark.parametrize('legacy', [False, True])
def test_every_kind_of_value_that_training_saves_comes_back(tmp_path, legacy):
    saved = {
        'arch': 'hdrnet',
        'model': {'turned': torch.rand(4, 3, 5, 2).to(memory_format=torch.channels_last), 'part': torch.arange(9)[2:5]},
        'optimizer': {
            'state': {0: {'step': torch.tensor(3.0), 'half': torch.rand(3).bfloat16()}},
            'groups': [{'lr': 1}],
        },
        'random': torch.get_rng_state(),
        'empty': torch.zeros(0, 3),
        'scaler': {'scale': 2.5, 'none': None, 'flag': True, 'text': 'ü'},
    }
    torch.save(saved, tmp_path / 'a.pth', _use_new_zipfile_serialization=not legacy)
    read = read_checkpoint(str(tmp_path / 'a.pth'))
    expected = torch.load(tmp_path / 'a.pth', weights_only=True)
    assert read['scaler'] == expected['scaler']
    assert read['optimizer']['groups'] == expected['optimizer']['groups']
    tensors = [(read['model'][name], expected['model'][name]) for name in saved['model']]
    tensors += [(read[name], expected[name]) for name in ('random', 'empty')]
    state = read['optimizer']['state'][0], expected['optimizer']['state'][0]
    tensors += [(state[0][name], state[1][name]) for name in ('step', 'half')]
    for ours, theirs in tensors:
        assert (ours.dtype, ours.shape, ours.stride()) == (theirs.dtype, theirs.shape, theirs.stride())
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize('legacy', [False, True])
def test_damaged_checkpoints_are_refused_in_one_line(tmp_path, good, legacy):
    torch.save(good, tmp_path / 'good.pth', _use_new_zipfile_serialization=not legacy)
    data = np.fromfile(tmp_path / 'good.pth', np.uint8)
    rng, refusals = np.random.default_rng(0), 0
    for _ in range(25):
        mutant = data.copy()
        mutant[rng.integers(0, 3000, 3)] = rng.integers(0, 256, 3)
        mutant[: rng.choice([len(mutant), rng.integers(len(mutant))])].tofile(tmp_path / 'bad.pth')
        try:
            load_network(str(tmp_path / 'bad.pth'))
        except ValueError as error:
            assert str(error).startswith(f'{tmp_path}/bad.pth: ')  # noqa: PT017
            assert '\n' not in str(error)  # noqa: PT017
            refusals += 1
    assert refusals > 10


@pytest.mark.parametrize(
    'data',
    [
        b'\x96' + (3 << 30).to_bytes(8, 'little'),  # BYTEARRAY8
        b'\x8e' + (3 << 30).to_bytes(8, 'little'),  # BINBYTES8
        b'\x8d' + (3 << 30).to_bytes(8, 'little'),  # BINUNICODE8
        b'\x95' + (3 << 30).to_bytes(8, 'little'),  # FRAME
        b'Nr' + (1 << 28).to_bytes(4, 'little') + b'0N.',  # LONG_BINPUT
    ],
)
def test_nine_bytes_of_pickle_take_no_gigabytes(tmp_path, data):
    assert len(data) == 9
    with pytest.raises(ValueError, match=r'pickle|expected'):
        InertUnpickler(io.BytesIO(data)).load()
    (tmp_path / 'options.pkl').write_bytes(data)
    with pytest.raises(ValueError, match=r'options.pkl: expected a pickle with'):
        read_options_pickle(str(tmp_path / 'options.pkl'), str(tmp_path))


def test_shipped_checkpoint_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_network('checkpoints/general/best.pth')[1]['arch'] == 'hdrnet'


def test_safetensors_hold_the_same_network_and_values(tmp_path, good):
    pytest.importorskip('safetensors')
    save_checkpoint(str(tmp_path / 'a.pth'), {**good, 'random': torch.get_rng_state()})
    save_safetensors(str(tmp_path / 'a.safetensors'), read_checkpoint(str(tmp_path / 'a.pth')))
    network, checkpoint = load_network(str(tmp_path / 'a.safetensors'))
    for name, value in good['model'].items():
        assert torch.equal(network.state_dict()[name], value)
    assert {name: checkpoint[name] for name in checkpoint if name != 'model'} == {
        name: good[name] for name in good if name != 'model'
    }


def test_safetensors_of_others_need_their_architecture(tmp_path):
    library = pytest.importorskip('safetensors.torch')
    library.save_file({'a': torch.zeros(3)}, tmp_path / 'a.safetensors')
    with pytest.raises(ValueError, match=r"a.safetensors: expected a checkpoint with 'arch' and 'model'"):
        load_network(str(tmp_path / 'a.safetensors'))
    header = json.dumps({'a': {'dtype': 'F32', 'shape': [1 << 40], 'data_offsets': [0, 4 << 40]}}).encode()
    (tmp_path / 'a.safetensors').write_bytes(len(header).to_bytes(8, 'little') + header)
    with pytest.raises(ValueError, match=r'a.safetensors: expected a whole checkpoint'):
        load_network(str(tmp_path / 'a.safetensors'))


def test_missing_safetensors_names_what_to_install(tmp_path, monkeypatch):
    (tmp_path / 'a.safetensors').write_bytes(b'')
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    with pytest.raises(ValueError, match=r'a.safetensors: expected safetensors, it is not installed: pip install'):
        load_network(str(tmp_path / 'a.safetensors'))
