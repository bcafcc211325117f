"""train -> test -> inference as a user runs them, on tiny pairs and on the real photos where they are."""

import csv
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

import utils
from kernels import Edit, enhance_photo
from model import build_network, reflectance
from pairs import lists
from photos import levels
from photos.folder import RECORD
from photos.picture import read_photo
from runs.checkpoint import load_network, read_checkpoint, save_checkpoint
from system import files
from tools import ablate

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def script(name, *options):
    """Run a script; returns (exit status, stdout, stderr)."""
    arguments = [sys.executable, os.path.join(ROOT, name), *map(str, options)]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def checkpoint(tmp_path):
    """An untrained network whose illumination is 0.5 everywhere."""
    network = build_network('hdrnet')
    with torch.no_grad():
        network.predict.conv.weight.zero_()
        network.predict.conv.bias.zero_()
        network.predict.conv.bias.view(3, 4, -1)[:, 3] = 0.5
    path = str(tmp_path / 'half.pth')
    save_checkpoint(path, {'arch': 'hdrnet', 'model': network.state_dict(), 'opt': {}})
    return path


@pytest.mark.parametrize('arch', ['hdrnet', 'deepupe'])
def test_train_then_test_then_inference(make_pairs, tmp_path, arch):
    folder, runs = make_pairs(4), tmp_path / 'runs'
    size = ('--full_size', 32) if arch == 'hdrnet' else ('--split', 'ratio')
    common = ('--arch', arch, *size, '--num_workers', 0, '--checkpoints_dir', runs, '--device', 'cpu')
    status, out, err = script(
        'train.py', '--dataset_dir', folder, '--dataset_ratio', 0.75, '--total_epochs', 2, '--exp_name', 'tiny', *common
    )
    assert status == 0, err
    lines = [line for line in out.splitlines() if line.startswith('epoch ')]
    assert len(lines) == 2
    for name in ('total', 'reconstruction', 'color', 'smoothness', 'psnr', 'ssim', 'lr', 'photos_per_s'):
        assert name in lines[0]
    files = os.listdir(runs / 'tiny')
    assert {'last.pth', 'best.pth', 'options.json', 'train_pairs.csv', 'valid_pairs.csv', 'log.csv'} <= set(files)
    assert sum(name.startswith('epoch_2_psnr_') for name in files) == 1
    assert len(os.listdir(runs / 'tiny' / 'train_phase')) == 6
    assert len(os.listdir(runs / 'tiny' / 'valid_phase')) == 5
    assert 'curves.png' in files
    assert json.loads((runs / 'tiny' / 'options.json').read_text())['arch'] == arch
    assert len(lists.read_pairs(str(runs / 'tiny' / 'train_pairs.csv'))) == 3

    best = runs / 'tiny' / 'best.pth'
    status, out, err = script('test.py', '--checkpoints_file', best, '--device', 'cpu')
    assert status == 0, err
    assert 'unprocessed input' in out
    with open(runs / 'tiny' / 'test_tiny_valid_pairs' / 'per_photo.csv', newline='') as file:
        rows = [row for row in csv.DictReader(file) if row['method'] == 'tiny_best']
    assert len(rows) == 1
    assert float(rows[0]['psnr']) == pytest.approx(float(read_checkpoint(str(best))['psnr']), abs=1e-9)

    status, out, err = script(
        'inference.py', '--images_dir', f'{folder}/input', '--result_dir', tmp_path / 'out', '--checkpoints_file', best
    )
    assert status == 0, err
    assert set(os.listdir(tmp_path / 'out')) == {RECORD, *os.listdir(f'{folder}/input')}


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('inference.py', ('--images_dir', 'nowhere'), 'nowhere: expected a folder'),
        ('inference.py', ('--strength', '2'), 'strength: expected 0 to 1.5'),
        (
            'inference.py',
            ('--checkpoints_file', 'none.pth'),
            'none.pth: expected a checkpoint',
        ),
        ('inference.py', ('--device', 'cuda:77'), 'device: expected cpu or a CUDA device'),
        ('test.py', ('--pairs_file', 'none.csv'), 'none.csv'),
        ('train.py', ('--dataset_dir', 'nowhere'), 'and Label/, found no such folder'),
        ('train.py', ('--arch', 'unet'), "arch: expected one of hdrnet, deepupe, got 'unet'"),
    ],
)
def test_user_errors_are_one_line(name, options, message):
    status, _, err = script(name, *options)
    assert status == 1
    assert message in err
    assert len([line for line in err.splitlines() if line]) == 1


def db(first, second):
    """PSNR of two arrays of levels."""
    return 10 * np.log10(255**2 / max(((first.astype(float) - second) ** 2).mean(), 1e-12))


PUBLISHED = ['a1427-IMG_4252', 'a2696-DSC_0006-1', 'a3679-IMG_4033', 'a4090-IMG_4996']


def as_published(photo):
    """A photo through JPEG as OpenCV writes it by default, which is how the predecessor's pictures were saved."""
    _, data = cv2.imencode('.jpg', photo[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)


@pytest.mark.parametrize('name', PUBLISHED)
def test_predecessors_weights_give_its_published_pictures(shared, name):
    network, _ = load_network(f'{shared}/reference/predecessor_fivek.pth')
    photo = read_photo(f'{shared}/reference/sample_imgs/{name}.jpg')
    published = read_photo(f'{shared}/reference/sample_results/{name}.jpg')
    width = photo.shape[1]
    for network.fused in (False, True):
        enhanced, light = enhance_photo(network, photo, keep_illumination=True, edit=Edit(round_down=True))
        wrapped = (light * 255).astype(int).astype(np.uint8)  # as the predecessor's 8 bit: wraps above 1
        side = np.concatenate([photo, enhanced, wrapped], axis=1)
        ours = as_published(side)
        assert db(ours[:, width : 2 * width], published[:, width : 2 * width]) >= 75
        kept = light < 1  # what wraps around is left out
        assert db(ours[:, 2 * width :][kept], published[:, 2 * width :][kept]) >= 75


def test_inference_gives_the_published_r(shared, tmp_path):
    status, _, err = script(
        'inference.py', '--images_dir', f'{shared}/reference/sample_imgs', '--result_dir', tmp_path / 'out',
        '--checkpoints_file', f'{shared}/reference/predecessor_fivek.pth', '--format', 'png', '--save_extra',
    )  # fmt: skip
    assert status == 0, err
    for name in PUBLISHED:
        ours = as_published(read_photo(str(tmp_path / 'out' / 'extra' / f'{name}_png.png')))
        published = read_photo(f'{shared}/reference/sample_results/{name}.jpg')
        width = ours.shape[1] // 3
        assert db(ours[:, width : 2 * width], published[:, width : 2 * width]) >= 41


def test_tiny_predecessor_state_gives_the_plain_formula(tmp_path, checkpoint):
    """The published-picture equality without the photos: R = I / (S + 1e-4), rounded down, from weights made here."""
    network, _ = load_network(checkpoint)
    photo = np.arange(0, 240, dtype=np.uint8).reshape(10, 8, 3)
    enhanced, light = enhance_photo(network, photo, edit=Edit(round_down=True), keep_illumination=True)
    np.testing.assert_allclose(light, 0.5, atol=1e-6)
    exact = np.minimum(photo / 255 / 0.5001, 1) * 255
    assert np.abs(enhanced - np.floor(exact)).max() == 0
    tensor = reflectance(levels.to_tensor(photo), torch.full((1, 3, 10, 8), 0.5))
    np.testing.assert_array_equal(levels.to_photo(tensor, round_down=True), enhanced)


def test_ablation_compares_runs_with_the_base_and_does_not_repeat_them(make_pairs, tmp_path, monkeypatch):
    options = {**vars(ablate.opt), 'dataset_dir': make_pairs(6), 'total_epochs': 1, 'full_size': 48, 'seeds': '1,2'}
    options |= {'only': 'grid 8 x 8 x 4', 'result_dir': str(tmp_path / 'runs')}
    assert ablate.main(SimpleNamespace(**options)) == 0
    table = (tmp_path / 'runs' / 'table.md').read_text()
    shown = re.search(r'\| grid 8 x 8 x 4 \| ([\d.]+) \(', table)[1]
    psnr = [
        [float(files.read_csv(tmp_path / 'runs' / f'{name}_{seed}' / 'log.csv')[-1]['psnr']) for seed in (1, 2)]
        for name in ('base', 'grid_8_x_8_x_4')
    ]
    assert float(shown) == pytest.approx(np.mean(psnr[1]), abs=0.005)
    assert f'{np.subtract(psnr[1], psnr[0]).mean():+.2f}' in table
    monkeypatch.setattr(ablate.subprocess, 'run', None)  # would fail if anything ran again
    assert ablate.main(SimpleNamespace(**options)) == 0
    with pytest.raises(ValueError, match='only: expected some of base'):
        ablate.main(SimpleNamespace(**{**options, 'only': 'nothing'}))


def readme_commands():
    """The commands of README.md in order, without what installs; the page and the export have tests of their own."""
    with open(os.path.join(ROOT, 'README.md'), encoding='utf-8') as file:
        parts = re.findall(r'^```bash\n(.*?)^```|^\|[^|]*\| `([^`|]+)` \|$', file.read(), re.MULTILINE | re.DOTALL)
    lines = [line.partition(' #')[0].split(' && ')[-1] for part in parts for line in ''.join(part).splitlines()]
    return [line for line in lines if re.match(r'(\.venv/bin/)?(deepupe|python (train|test))', line)]


def test_each_command_of_readme_does_something(tmp_path, monkeypatch, capsys):
    """In their order in one fresh folder, training on tiny pairs."""
    rng = np.random.default_rng(0)

    def make(*names, light=255):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            photo = cv2.resize(rng.integers(light // 4, light, (5, 6, 3), dtype=np.uint8), (48, 40))
            cv2.imwrite(str(tmp_path / name), photo)

    def tree():
        return {str(path): path.stat().st_mtime_ns for path in tmp_path.rglob('*') if path.is_file()}

    pairs = [f'a{number:04}.png' for number in (*range(1, 21), 4501, 4502)]
    make('my_photos/a.jpg', 'my_photos/b.png', 'my_photos/sub/c.jpg', 'photo.jpg', light=60)
    make(*(f'data/fivek/input/{name}' for name in pairs), light=60)
    make(*(f'my_best_photos/{i}.jpg' for i in range(24)))
    for folder in ('data/fivek/expertC_gt', 'other_system/results'):
        make(*(f'{folder}/{name}' for name in pairs))
    (tmp_path / 'pairs.csv').write_text(f'input,target\ndata/fivek/input/{pairs[0]},data/fivek/expertC_gt/{pairs[0]}\n')
    os.symlink(os.path.join(ROOT, 'sample_imgs'), tmp_path / 'sample_imgs')
    monkeypatch.chdir(tmp_path)
    commands = readme_commands()
    assert sum('deepupe' in command for command in commands) >= 7
    for command in commands:
        _, *words = command.removeprefix('.venv/bin/').split()
        name = 'inference.py' if 'deepupe' in command.split()[0] else words.pop(0)
        if name == 'train.py':
            epochs = 2 if '--resume' in words else 1
            words += f'--total_epochs {epochs} --train_batch_size 2 --num_workers 0 --device cpu'.split()
            words += [] if 'paper' in words else ['--full_size', '32']
        words += ['--result_dir', 'scored'] if name == 'test.py' else []
        before = tree()
        monkeypatch.setattr(sys, 'argv', [name, *words])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(os.path.join(ROOT, name), run_name='__main__')
        assert not ended.value.code, (command, ended.value.code, capsys.readouterr().err)
        assert tree() != before or words == ['--help'], command


def test_installed_command_enhances_a_photo_and_has_the_looks(tmp_path):
    """`pip install .` without network and dependencies, and `deepupe` from another folder."""
    pytest.importorskip('setuptools', minversion='68')  # as pyproject.toml asks
    copy = tmp_path / 'copy'
    shutil.copytree(
        ROOT, copy, ignore=shutil.ignore_patterns('.*', 'docs', 'sample_*', 'tests', '__pycache__', 'build')
    )
    pip = [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-build-isolation', '--no-index']
    subprocess.run([*pip, '--target', tmp_path / 'site', copy], check=True, capture_output=True)
    info = f'deepupe-{utils.__version__}.dist-info'
    assert sorted(os.listdir(tmp_path / 'site')) == ['bin', 'deepupe', info]  # no plain names
    cv2.imwrite(str(tmp_path / 'a.png'), np.full((40, 50, 3), 40, np.uint8))
    env = {**os.environ, 'PYTHONPATH': str(tmp_path / 'site')}
    command = [sys.executable, tmp_path / 'site' / 'bin' / 'deepupe', 'a.png', 'b.png', '--look', 'paper_lol']
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)
    assert done.stdout.startswith('1 enhanced into b.png'), done.stderr
    assert read_photo(str(tmp_path / 'b.png')).mean() > 60
