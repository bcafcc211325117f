"""Training as one run, as a killed and resumed one, on two ranks, and what it refuses."""

import json
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import train
from pairs import lists
from runs.checkpoint import read_checkpoint
from runs.state import RunData
from system import files
from tests import two_ranks

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TINY = {
    'split': 'ratio',
    'dataset_ratio': 0.75,
    'full_size': 32,
    'device': 'cpu',
    'tensorboard': False,
    'train_batch_size': 2,
}


def options(runs, name, **values):
    tiny = TINY if values.get('arch') != 'deepupe' else {key: TINY[key] for key in TINY if key != 'full_size'}
    return {**tiny, 'exp_name': name, 'checkpoints_dir': str(runs), **values}


def make_options(values):
    opt = type(train.opt)(**{**vars(train.opt), **values})
    if opt.recipe in ('', *train.RECIPES):
        train.choose_recipe(opt, values)
    return opt


def run_training(runs, name, **values):
    assert train.main(make_options(options(runs, name, **values))) == 0
    return read_checkpoint(str(runs / name / 'last.pth'))


def command(runs, name, launcher=(sys.executable,), **values):
    flags = []
    for key, value in options(runs, name, **values).items():
        flags += [f'--{key}' if value else f'--no-{key}'] if isinstance(value, bool) else [f'--{key}', str(value)]
    return [*launcher, os.path.join(ROOT, 'train.py'), *flags]


def equal(first, second):
    return all(
        torch.equal(first[part][name], second[part][name]) for part in ('model', 'network') for name in first[part]
    )


def test_learning_rate_steps_are_the_predecessors():
    factors = [train.lr_factor('steps', epoch + 0.5, 100) for epoch in (0, 1, 2, 8, 9, 18, 19, 30, 31, 99)]
    assert factors == [1.0, 0.5, 0.1, 0.1, 0.05, 0.05, 0.01, 0.01, 0.003, 0.003]
    assert train.lr_factor('steps', 1.0, 100) == 1.0
    assert train.lr_factor('cosine', 30, 30) == pytest.approx(0, abs=1e-6)


def test_good_photos_alone_train_a_network_and_are_listed(make_pairs, tmp_path):
    folder = os.path.join(make_pairs(20), 'target')
    checkpoint = run_training(tmp_path, 'good', good_photos=folder, total_epochs=1)
    assert checkpoint['opt']['lowres'] == 'area'  # of the network that it starts from
    train_pairs = lists.read_pairs(str(tmp_path / 'good' / 'train_pairs.csv'))
    valid_pairs = lists.read_pairs(str(tmp_path / 'good' / 'valid_pairs.csv'))
    assert (len(train_pairs), len(valid_pairs)) == (15, 5)
    assert all(photo == target for photo, target in train_pairs + valid_pairs)
    hashes = lists.pair_hashes(str(tmp_path / 'good' / 'train_pairs.csv'), train_pairs)
    assert len(hashes[1]) == 15
    again = run_training(tmp_path, 'again', good_photos=folder, total_epochs=1)
    assert again['psnr'] == checkpoint['psnr']  # validation is simulated with a fixed seed
    assert equal(again, checkpoint)


def test_taste_is_never_worse_than_its_start(make_pairs, tmp_path, capsys):
    folder = os.path.join(make_pairs(20), 'target')
    run_training(tmp_path, 'worse', good_photos=folder, total_epochs=1, lr=0.1)
    printed = capsys.readouterr().out
    start, reached = (float(re.search(rf'{name} ([\d.]+)', printed)[1]) for name in (r'\(start', 'psnr'))
    assert 'unprocessed' in printed
    assert reached < start
    best = torch.load(tmp_path / 'worse' / 'best.pth', weights_only=True)
    assert best['psnr'] == pytest.approx(start, abs=1e-3)


def test_too_few_good_photos_are_refused(make_pairs, tmp_path):
    with pytest.raises(ValueError, match='good_photos: expected 20 or more photos, got 6'):
        run_training(tmp_path, 'few', good_photos=os.path.join(make_pairs(6), 'target'))


def test_good_photos_join_pairs(make_pairs, tmp_path):
    pairs = make_pairs(4)
    folder = os.path.join(pairs, 'target')
    run_training(tmp_path, 'both', dataset_dir=pairs, good_photos=folder, good_weight=2.0, total_epochs=1)
    train_pairs = lists.read_pairs(str(tmp_path / 'both' / 'train_pairs.csv'))
    assert len(train_pairs) == 3 + 4


def test_a_run_goes_on_from_another_ones_weights_and_network(make_pairs, tmp_path):
    pairs = make_pairs(4)
    variant = {'spatial_bin': 16, 'luma_bins': 4, 'pedestal': 0.5, 'illumination': 'clipped', 'slicing': 'centers'}
    run_training(tmp_path, 'first', dataset_dir=pairs, total_epochs=1, **variant)
    first = read_checkpoint(str(tmp_path / 'first' / 'best.pth'))
    start = str(tmp_path / 'first' / 'best.pth')
    second = run_training(tmp_path, 'second', dataset_dir=pairs, total_epochs=1, start_from=start, lr=1e-9)
    assert {name: second['opt'][name] for name in variant} == variant
    for name, value in first['model'].items():
        if 'running' not in name and 'tracked' not in name:
            torch.testing.assert_close(second['model'][name], value, atol=1e-7, rtol=0)
    os.remove(start)
    common = {'dataset_dir': pairs, 'total_epochs': 2, 'resume': 'auto', 'lr': 1e-9}
    assert run_training(tmp_path, 'second', **common)['epoch'] == 2


def test_seconds_go_on_and_each_start_is_recorded(make_pairs, tmp_path):
    common = {'dataset_dir': make_pairs(4), 'resume': 'auto'}
    for epochs in (1, 2):
        run_training(tmp_path, 'run', total_epochs=epochs, **common)
    seconds = [float(row['seconds']) for row in files.read_csv(tmp_path / 'run' / 'log.csv')]
    assert seconds[1] > seconds[0]
    starts = [json.loads(line) for line in (tmp_path / 'run' / 'run.jsonl').read_text().splitlines()]
    assert [start['after_epoch'] for start in starts] == [0, 1]
    assert starts[0]['torch'] == torch.__version__


def test_time_left_is_said_after_a_hundred_steps(make_pairs, tmp_path, capsys):
    lists.write_pairs(str(tmp_path / 'a.csv'), lists.find_pairs(make_pairs(2)))
    paths = {'train_pairs': str(tmp_path / 'a.csv'), 'valid_pairs': str(tmp_path / 'data'), 'train_weights': '101'}
    small = {'full_size': 16, 'luma_bins': 1, 'spatial_bin': 4, 'dataset_ratio': 0.9}
    run_training(tmp_path, 'run', **paths, **small, total_epochs=1)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith('epoch 1/1, step')]
    assert len(lines) == 1
    assert 'step 100/101: loss=' in lines[0]
    assert lines[0].endswith('left without validation')


def test_sixteen_bit_targets_train(make_pairs, tmp_path):
    folder = make_pairs(4)
    for i in range(4):
        path = f'{folder}/target/p{i}.png'
        cv2.imwrite(path, cv2.imread(path).astype(np.uint16) * 257)
    deep = run_training(tmp_path, 'deep', dataset_dir=folder, total_epochs=1)
    assert deep['psnr'] > 3


@pytest.mark.parametrize('arch', ['hdrnet', 'deepupe'])
def test_resumed_run_equals_one_that_never_stopped(make_pairs, tmp_path, capsys, arch):
    common = {'dataset_dir': make_pairs(6), 'arch': arch, 'ema': 0.9}
    whole = run_training(tmp_path, 'whole', total_epochs=3, **common)
    run_training(tmp_path, 'parts', total_epochs=2, num_workers=0, **common)
    parts = run_training(tmp_path, 'parts', total_epochs=3, num_workers=3, cache='file', resume='auto', **common)
    assert 'after epoch 2, best PSNR' in capsys.readouterr().out
    assert equal(whole, parts)
    assert [row['epoch'] for row in files.read_csv(tmp_path / 'parts' / 'log.csv')] == ['1', '2', '3']


def test_run_killed_at_random_moments_ends_with_the_same_weights(make_pairs, tmp_path):
    common = {'dataset_dir': make_pairs(12), 'total_epochs': 5, 'ema': 0.9, 'resume': 'auto'}
    whole = run_training(tmp_path, 'whole', **common)
    rng = random.Random(0)
    kills = 0
    for _ in range(12):
        process = subprocess.Popen(
            command(tmp_path, 'killed', **common), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        while process.poll() is None and not (tmp_path / 'killed' / 'options.json').exists():
            time.sleep(0.02)
        time.sleep(rng.uniform(0.0, 2.0))
        if process.poll() is None and kills < 3:
            process.send_signal(signal.SIGKILL)
            kills += 1
        out, err = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, err
    assert process.returncode == 0, out
    assert kills > 0
    assert equal(whole, read_checkpoint(str(tmp_path / 'killed' / 'last.pth')))
    log = [files.read_csv(tmp_path / name / 'log.csv') for name in ('whole', 'killed')]
    assert [(row['epoch'], row['total'], row['psnr']) for row in log[0]] == [
        (row['epoch'], row['total'], row['psnr']) for row in log[1]
    ]


@pytest.mark.parametrize(('arch', 'fused'), [('hdrnet', True), ('hdrnet', False), ('deepupe', True)])
def test_two_ranks_train_as_one(make_pairs, tmp_path, arch, fused):
    """The same global batch on two CPU ranks with gloo; float32 sums in another order, over 3 epochs of Adam."""
    common = {'dataset_dir': make_pairs(12), 'total_epochs': 3, 'arch': arch, 'train_batch_size': 4, 'fused': fused}
    common |= {'lr': 1e-4}  # Adam divides tiny gradients by their own size: a large step would blow up their rounding
    run_training(tmp_path, 'one', **common)
    done = subprocess.run(command(tmp_path, 'two', two_ranks(), **common), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('epoch 3  ') == 1
    one, two = (files.read_csv(tmp_path / name / 'log.csv') for name in ('one', 'two'))
    for first, second in zip(one, two, strict=True):
        for name in ('total', 'reconstruction', 'color', 'smoothness', 'psnr'):
            assert float(first[name]) == pytest.approx(float(second[name]), rel=2e-3), (first['epoch'], name)


def test_training_does_not_overwrite_a_run(make_pairs, tmp_path):
    folder = make_pairs(4)
    run_training(tmp_path, 'run', dataset_dir=folder, total_epochs=1)
    with pytest.raises(ValueError, match='holds a run already'):
        run_training(tmp_path, 'run', dataset_dir=folder, total_epochs=1)


def test_resuming_refuses_other_options_and_other_photos(make_pairs, tmp_path):
    folder = make_pairs(6)
    run_training(tmp_path, 'run', dataset_dir=folder, total_epochs=1)
    again = {'dataset_dir': folder, 'total_epochs': 2, 'resume': 'auto'}
    with pytest.raises(ValueError, match=r'lr is 0.5, was 0.01; ema is 0.9, was 0.0'):
        run_training(tmp_path, 'run', lr=0.5, ema=0.9, **again)
    before = (tmp_path / 'run' / 'last.pth').read_bytes()
    path = lists.read_pairs(str(tmp_path / 'run' / 'train_pairs.csv'))[0][0]
    cv2.imwrite(path, np.zeros((40, 48, 3), np.uint8))
    with pytest.raises(ValueError, match='expected the training photos that the run began with'):
        run_training(tmp_path, 'run', **again)
    assert (tmp_path / 'run' / 'last.pth').read_bytes() == before


def test_a_loss_that_is_no_number_names_the_photos(make_pairs, tmp_path, monkeypatch):
    folder, real = make_pairs(6), train.training_loss
    run_training(tmp_path, 'run', dataset_dir=folder, total_epochs=1)
    before = (tmp_path / 'run' / 'last.pth').read_bytes()

    def broken(*args):
        losses = real(*args)
        return {**losses, 'total': losses['total'] * float('nan')}

    monkeypatch.setattr(train, 'training_loss', broken)
    with pytest.raises(ValueError, match=r'expected a finite loss, got nan in epoch 2, step 1.*input.p\d.png'):
        run_training(tmp_path, 'run', dataset_dir=folder, total_epochs=2, resume='auto')
    assert (tmp_path / 'run' / 'last.pth').read_bytes() == before


def test_weights_that_are_not_numbers_are_not_saved(make_pairs, tmp_path, monkeypatch):
    folder, real = make_pairs(6), train.training_loss
    run_training(tmp_path, 'run', dataset_dir=folder, total_epochs=1)
    before = (tmp_path / 'run' / 'last.pth').read_bytes()

    def broken(network, fullres, illumination, *args):
        losses, last = real(network, fullres, illumination, *args), steps.pop()
        return {**losses, 'total': losses['total'] + (illumination.sum() * 0).sqrt() if last else losses['total']}

    steps = [True, False]  # what is added to the last step's loss is 0, its gradient inf * 0

    monkeypatch.setattr(train, 'training_loss', broken)
    message = r'expected finite weights, got others in splat.* after epoch 2; .*run/last.pth holds epoch 1'
    with pytest.raises(ValueError, match=message):
        run_training(tmp_path, 'run', dataset_dir=folder, total_epochs=2, resume='auto')
    assert (tmp_path / 'run' / 'last.pth').read_bytes() == before


def test_validation_photos_among_the_training_photos_are_warned_of(make_pairs, capsys):
    pairs = lists.find_pairs(make_pairs(4))
    hashes = lists.hash_files({path for pair in pairs for path in pair})
    for valid, overfit in ((pairs[3:], 0), (pairs[:2], 2)):
        train.warn_of_overlap(RunData(pairs[:3], [3], valid, hashes), overfit)
    assert capsys.readouterr().err == ''
    train.warn_of_overlap(RunData(pairs[:3], [3], [pairs[0], (pairs[3][0], pairs[1][1]), pairs[3]], hashes), 0)
    assert 'WARNING: of 3 validation pairs, 1 inputs and 2 targets are among' in capsys.readouterr().err


def test_mixed_precision_stays_near_float32(make_pairs, tmp_path):
    common = {'dataset_dir': make_pairs(6), 'total_epochs': 2, 'lr': 1e-4}
    plain = run_training(tmp_path, 'plain', **common)
    mixed = run_training(tmp_path, 'mixed', amp='bf16', **common)
    assert mixed['psnr'] == pytest.approx(plain['psnr'], abs=0.3)
    assert not equal(plain, mixed)


def test_overfit_and_limit_take_so_many_pairs(make_pairs, tmp_path):
    folder = make_pairs(8)
    run_training(tmp_path, 'limit', dataset_dir=folder, total_epochs=1, limit=3)
    run_training(tmp_path, 'overfit', dataset_dir=folder, total_epochs=1, overfit=2)
    counts = {}
    for name in ('limit', 'overfit'):
        counts[name] = [
            len(lists.read_pairs(str(tmp_path / name / f'{part}_pairs.csv'))) for part in ('train', 'valid')
        ]
    assert counts == {'limit': [3, 2], 'overfit': [2, 2]}


def test_averaged_weights_follow_the_networks():
    network, average = (train.build_network('hdrnet') for _ in range(2))
    target = [value.clone() for value in network.state_dict().values()]
    for step in range(1, 400):
        train.update_average(average, network, 0.9, step)
    for ours, theirs in zip(average.state_dict().values(), target, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def limited(runs, name, **values):
    """Run in a process that may write no file larger than 1 MB, as on a full disk: last.pth takes 7 MB."""
    code = (
        'import resource, signal, sys, runpy; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); '
        'resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6)); '
        'sys.argv = sys.argv[1:]; sys.path.insert(0, sys.argv[0].rsplit("/", 1)[0]); '
        'runpy.run_path(sys.argv[0], run_name="__main__")'
    )
    return subprocess.run(
        command(runs, name, (sys.executable, '-c', code), **values), capture_output=True, text=True, check=False
    )


def test_full_disk_leaves_the_last_checkpoint(make_pairs, tmp_path):
    common = {'dataset_dir': make_pairs(6)}
    run_training(tmp_path, 'run', total_epochs=1, **common)
    before = (tmp_path / 'run' / 'last.pth').read_bytes()
    done = limited(tmp_path, 'run', total_epochs=2, resume='auto', **common)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert 'epoch_2_psnr' in done.stderr
    assert (tmp_path / 'run' / 'last.pth').read_bytes() == before
    assert not [name for name in os.listdir(tmp_path / 'run') if name.endswith('.part')]
    whole = run_training(tmp_path, 'whole', total_epochs=2, **common)
    assert equal(whole, run_training(tmp_path, 'run', total_epochs=2, resume='auto', **common))


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'schedule': 'sawtooth'}, 'schedule: expected'),
        ({'amp': 'int8'}, "amp: expected one of '', bf16, got 'int8'"),
        ({'ema': 1.0}, 'ema: expected 0 to 0.999999, got 1.0'),
        ({'darken': 1.4}, 'darken: expected 0 to 1'),
        ({'cache': 'cloud'}, 'cache: expected'),
        ({'slicing': 'middle'}, "slicing: expected one of '', corners, centers"),
        ({'total_epochs': 0}, 'total_epochs: expected a whole number, 1 or more'),
        ({'grad_clip': -1.0}, 'grad_clip: expected 0 or more, got -1.0'),
        ({'limit': -3}, 'limit: expected a whole number, 0 or more, got -3'),
        ({'train_batch_size': 0}, 'train_batch_size: expected a whole number, 2 or more, got 0'),
        ({'luma_bins': 0}, 'luma_bins: expected a whole number, 1 to 64, got 0'),
        ({'spatial_bin': 5}, 'spatial_bin: expected one of 0, 4, 8'),
        ({'max_stops': 1e9}, 'max_stops: expected 0.5 to 16'),
        ({'lr': float('nan')}, 'lr: expected 1e-12 or more, got nan'),
        ({'split': 'random'}, 'split: expected ratio, paper or'),
        ({'recipe': 'papers'}, "recipe: expected one of '', predecessor, paper, lol, general, taste, got 'papers'"),
        ({'train_pairs': 'a.csv'}, 'valid_pairs: expected a CSV list or a folder beside train_pairs'),
        ({'exp_name': '.'}, 'exp_name: expected the name of a folder'),
        ({'device': 'meta'}, 'device: expected cpu or a CUDA device'),
    ],
)
def test_options_that_make_no_sense_are_refused_first(tmp_path, values, message):
    values = {'dataset_dir': str(tmp_path / 'nowhere'), **values}
    with pytest.raises(ValueError, match=message):
        train.main(make_options({**options(tmp_path, 'run'), **values}))
    assert os.listdir(tmp_path) == []


def test_every_option_has_a_rule():
    assert set(vars(train.opt)) == set(train.RULES)
    train.utils.check_options(train.opt, train.RULES)


@pytest.mark.parametrize(
    ('name', 'value', 'message'),
    [
        ('dataset_ratio', '0.9', "dataset_ratio: expected 0.01 to 0.99, got '0.9'"),
        ('total_epochs', 2.5, 'total_epochs: expected a whole number, 1 or more, got 2.5'),
        ('total_epochs', True, 'total_epochs: expected a whole number, 1 or more, got True'),
        ('augment', 'False', "augment: expected True or False, got 'False'"),
        ('exp_name', 3, 'exp_name: expected text, got 3'),
        ('totl_epochs', 3, 'totl_epochs: expected an option of train.py'),
    ],
)
def test_a_wrong_inline_option_is_one_line(tmp_path, name, value, message):
    with pytest.raises(ValueError, match=message):
        train.main(type(train.opt)(**{**vars(train.opt), name: value, 'checkpoints_dir': str(tmp_path)}))


def test_an_inline_path_is_text():
    opt = type(train.opt)(**{**vars(train.opt), 'dataset_dir': Path('a') / 'b'})
    train.utils.check_options(opt, train.RULES)
    assert opt.dataset_dir == os.path.join('a', 'b')


def test_help_is_answered_without_torch():
    code = (
        "import sys, runpy; sys.argv = ['train.py', '--help']; sys.modules['torch'] = None; "
        "runpy.run_path('train.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert '--recipe' in done.stdout


# ----------------------------------------------------------------------------------------------------- recipes


def parse(*argv):
    opt = type(train.opt)(**vars(train.opt))
    train.choose_recipe(opt, train.utils.parse_overrides(opt, train.RULES, train.__file__, argv=list(argv)))
    return opt


def test_the_option_block_is_the_predecessors_recipe():
    for name, value in train.RECIPES['predecessor'].items():
        assert getattr(train.opt, name) == value, name
    assert all(set(recipe) <= set(train.RECIPES['predecessor']) for recipe in train.RECIPES.values())


@pytest.mark.parametrize('name', train.RECIPES)
def test_a_recipe_fills_in_and_is_within_the_limits(name):
    opt = parse('--recipe', name)
    train.utils.check_options(opt, train.RULES)
    train.check_combination(opt)
    assert {key: getattr(opt, key) for key in train.RECIPES[name]} == train.RECIPES[name]


def test_what_is_given_or_changed_inline_stays():
    opt = parse('--recipe', 'paper', '--lr', '0.01', '--total_epochs', '3')
    assert (opt.lr, opt.total_epochs, opt.schedule, opt.weight_decay) == (0.01, 3, 'constant', 0.0)
    assert 'lr=0.01 (recipe: 0.0001)' in train.describe_options(opt)
    inline = type(train.opt)(**{**vars(train.opt), 'recipe': 'general', 'pedestal': 3.0})
    train.choose_recipe(inline)
    assert (inline.pedestal, inline.vibrance) == (3.0, 0.2)


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'dataset_dir': 'a', 'train_pairs': 'b.csv', 'valid_pairs': 'c.csv'}, 'dataset_dir: .* without --train_pairs'),
        ({'split': 'paper', 'valid_pairs': 'c.csv'}, 'split: expected only without --valid_pairs'),
        ({'train_weights': '1'}, 'train_weights: .* with --train_pairs'),
        ({'good_weight': 2.0}, 'good_weight: expected only with --good_photos, got 2.0'),
        ({'max_stops': 2.0}, 'max_stops: expected only with --darken'),
        ({'limit': 3, 'overfit': 3}, 'limit: expected only without --overfit'),
        ({'arch': 'deepupe', 'full_size': 99}, 'full_size: expected only with --arch hdrnet'),
        ({'start_from': 'a.pth', 'pedestal': 2.0}, 'pedestal: expected only without --start_from'),
    ],
)
def test_an_option_without_effect_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        train.check_combination(make_options(values))


@pytest.mark.parametrize('name', train.RECIPES)
def test_no_recipe_contradicts_itself(name):
    train.check_combination(make_options({'recipe': name}))


def test_the_papers_architecture_has_the_papers_recipe():
    opt = parse('--arch', 'deepupe')
    assert (opt.recipe, opt.lr, opt.schedule, opt.split) == ('paper', 1e-4, 'constant', 'paper')


def make_fivek(make_pairs, tmp_path):
    """A FiveK of twelve photos, a4495 to a4506, in the predecessor's layout."""
    make_pairs(12, size=(52, 78), names=('input', 'expertC_gt'))
    for i in range(12):
        for name in ('input', 'expertC_gt'):
            os.rename(tmp_path / 'data' / name / f'p{i}.png', tmp_path / 'data' / name / f'a{4495 + i}-DSC_{i:04}.png')
    return str(tmp_path / 'data')


def test_the_papers_recipe_runs_on_a_made_up_fivek(make_pairs, tmp_path):
    folder = make_fivek(make_pairs, tmp_path)
    shorter = ['--total_epochs', '1', '--no-tensorboard', '--device', 'cpu']
    command = [sys.executable, 'train.py', '--recipe', 'paper', '--dataset_dir', folder, '--exp_name', 'paper']
    command += ['--checkpoints_dir', str(tmp_path)]
    done = subprocess.run([*command, *shorter], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert 'recipe paper: arch=deepupe' in done.stdout
    ids = [[lists.fivek_id(pair[0]) for pair in lists.read_pairs(str(tmp_path / 'paper' / f'{part}_pairs.csv'))]
           for part in ('train', 'valid')]  # fmt: skip
    assert ids == [list(range(4495, 4501)), list(range(4501, 4507))]
    row = files.read_csv(tmp_path / 'paper' / 'log.csv')[0]
    assert float(row['lr']) == 1e-4
    assert read_checkpoint(str(tmp_path / 'paper' / 'best.pth'))['arch'] == 'deepupe'


def test_photos_that_are_not_fiveks_need_another_split(make_pairs, tmp_path):
    with pytest.raises(ValueError, match=r'split: expected file names that begin with a4501 .* need --split ratio'):
        run_training(tmp_path, 'paper', arch='deepupe', split='paper', dataset_dir=make_pairs(4), total_epochs=1)


def test_folders_and_lists_validate_whatever_the_recipe(make_pairs, tmp_path):
    pairs = lists.find_pairs(make_pairs(5))
    lists.write_pairs(str(tmp_path / 'valid.csv'), pairs[:2])
    common = {'dataset_dir': str(tmp_path / 'data'), 'total_epochs': 1, 'dataset_ratio': 0.9}
    for name, valid, count in (('list', 'valid.csv', 2), ('folder', 'data', 5)):
        run_training(tmp_path, name, valid_pairs=str(tmp_path / valid), **common)
        found = [lists.read_pairs(str(tmp_path / name / f'{part}_pairs.csv')) for part in ('train', 'valid')]
        assert [len(part) for part in found] == [5, count]


def test_the_predecessors_own_split_is_read(make_pairs, tmp_path):
    pairs = lists.find_pairs(make_pairs(6))
    content = {'train_images_list': pairs[:3], 'valid_images_list': pairs[3:5]}
    (tmp_path / 'options.pkl').write_bytes(pickle.dumps(content))
    folder = str(tmp_path / 'data')
    run_training(tmp_path, 'run', dataset_dir=folder, split=str(tmp_path / 'options.pkl'), total_epochs=1)
    found = [lists.read_pairs(str(tmp_path / 'run' / f'{part}_pairs.csv')) for part in ('train', 'valid')]
    assert [[os.path.basename(pair[0]) for pair in part] for part in found] == [
        ['p0.png', 'p1.png', 'p2.png'], ['p3.png', 'p4.png'],
    ]  # fmt: skip
