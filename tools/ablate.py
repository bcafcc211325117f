"""What matters in this method: short equal training runs that differ from the base in one thing, several seeds each.

    python -m tools.ablate --train_pairs a/train.csv,b/train.csv --valid_pairs a/valid.csv,b/valid.csv

Each run is one of train.py in checkpoints/ablation/<variant>_<seed>; a complete one is not run again, a stopped one
goes on. Prints and writes table.md: validation PSNR and SSIM after the last epoch, mean (lowest to highest) over the
seeds, and the difference to the base, seed by seed.

    python -m tools.ablate --runs checkpoints/with_1,checkpoints/without_1 --result_dir docs

Draws runs that are there beside each other: curves.png of validation PSNR by epoch, and first_epoch.jpg with what the
first run of each name made of the sample photos after epoch 1. Names that differ in a number at the end share a colour.
"""

import glob
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np

import utils
from kernels import enhance_photo
from photos.contact_sheet import draw_row
from photos.picture import list_photos, read_photo, write_photo
from runs.checkpoint import ROOT, load_network
from runs.curves import draw_curves
from system.files import read_csv, save_text

opt = SimpleNamespace(
    train_pairs='',  # as for train.py; '' takes dataset_dir
    valid_pairs='',  # as for train.py
    dataset_dir='data/fivek',  # as for train.py
    good_photos='data/good',  # as for train.py, for the variants with simulated photos
    total_epochs=6,  # of each run
    full_size=256,  # side in pixels of the photos in training
    seeds='1,2,3',  # a run of each variant for each
    only='',  # names of VARIANTS, commas between; '' is all
    runs='',  # folders of runs to draw, commas between; '' trains
    result_dir='checkpoints/ablation',  # holds the runs and table.md, or the drawings
)

RULES = {'total_epochs': (1, None), 'full_size': (16, None)}

BASE = 'base'
VARIANTS = {  # options of train.py beside the base's
    BASE: '',
    'no colour loss': '--w_color 0',
    'no smoothness loss': '--w_smoothness 0',
    'reconstruction loss alone': '--w_color 0 --w_smoothness 0',
    'no reconstruction loss': '--w_reconstruction 0',
    'S clipped to [I, 1]': '--illumination clipped',
    'half-pixel slicing': '--slicing centers',
    'guide of curves': '--guide curves',
    'grid 16 x 16 x 8': '--spatial_bin 16',
    'grid 8 x 8 x 4': '--luma_bins 4',
    'grid 8 x 8 x 16': '--luma_bins 16',
    'deepupe, its own loss and lr': '--arch deepupe --lr 0.0001',
    "deepupe, hdrnet's loss, lr 1e-3": '--arch deepupe --loss hdrnet --lr 0.001',
    'pedestal of half a level': '--pedestal 0.5',
    'structure loss of weight 0.3': '--w_structure 0.3',
    'pedestal and structure loss': '--pedestal 0.5 --w_structure 0.3',
    "the predecessor's lr steps": '--schedule steps',
    'weights averaged, EMA 0.99': '--ema 0.99',
    'gradients clipped to norm 1': '--grad_clip 1',
    'other rounding (the plain torch path)': '--no-fused',
    'bf16 network': '--amp bf16',
    'a quarter darkened': '--darken 0.25',
    'target-to-target pairs': '--identity_share 0.12',
    'bilinear lowres': '--lowres bilinear',
    'simulated from good photos': '--good_photos GOOD',
}


def main(opt):
    utils.check_options(opt, RULES)
    if opt.runs:
        return draw_runs([name.strip().rstrip('/') for name in opt.runs.split(',')], opt.result_dir)
    names = [name.strip() for name in opt.only.split(',') if name.strip()] or list(VARIANTS)
    if unknown := set(names) - set(VARIANTS):
        raise ValueError(f'only: expected some of {", ".join(VARIANTS)}; got {", ".join(sorted(unknown))}')
    try:
        seeds = [int(seed) for seed in opt.seeds.split(',')]
    except ValueError as error:
        raise ValueError(f'seeds: expected whole numbers with commas between, got {opt.seeds!r}') from error
    # seed by seed, so that a table of all variants is there early
    runs = {(name, seed): train(opt, name, seed) for seed in seeds for name in dict.fromkeys((BASE, *names))}
    table = make_table(runs, names, seeds)
    save_text(os.path.join(opt.result_dir, 'table.md'), table)
    print(table)
    return 0


def train(opt, name, seed):
    """(PSNR, SSIM) on validation after the last epoch of one run, which is made or finished where it is not there."""
    exp_name = f'{"".join(c if c.isalnum() else "_" for c in name)}_{seed}'
    log = os.path.join(opt.result_dir, exp_name, 'log.csv')
    if not finished(log, opt.total_epochs):
        own = VARIANTS[name].replace('GOOD', opt.good_photos)
        data = ('train_pairs', 'valid_pairs') if opt.train_pairs else ('dataset_dir',)
        size = [] if '--arch deepupe' in own else ['full_size']
        command = [f'--{option}={getattr(opt, option)}' for option in (*data, 'total_epochs', *size)]
        command += [f'--checkpoints_dir={opt.result_dir}', f'--exp_name={exp_name}', f'--seed={seed}', '--resume=auto']
        command += ['--recipe=predecessor', '--schedule=cosine', '--lowres=area', '--drop_last', *own.split()]
        command += ['--no-tensorboard', f'--valid_interval={opt.total_epochs}']
        command = [sys.executable, os.path.join(ROOT, 'train.py'), *command]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise ValueError(f'{name}, seed {seed}: train.py failed: {done.stderr.strip().splitlines()[-1:]}')
    row = finished(log, opt.total_epochs)
    print(f'{name}, seed {seed}: {float(row["psnr"]):.2f} dB, {float(row["ssim"]):.3f}', flush=True)
    return float(row['psnr']), float(row['ssim'])


def finished(log, epochs):
    """The last epoch's row of a log.csv, or None."""
    return next((row for row in read_csv(log) if int(row['epoch']) == epochs and row['psnr']), None)


def make_table(runs, names, seeds):
    """Markdown table of {(name, seed): (PSNR, SSIM)}."""
    lines = ['| variant | PSNR dB | to the base | SSIM |', '|---|---|---|---|']
    for name in names:
        psnr, ssim = np.array([runs[name, seed] for seed in seeds]).T
        change = psnr - [runs[BASE, seed][0] for seed in seeds]
        spread = [f'{v.mean():.{n}f} ({v.min():.{n}f} to {v.max():.{n}f})' for v, n in ((psnr, 2), (ssim, 3))]
        shift = '' if name == BASE else f'{change.mean():+.2f} ({change.min():+.2f} to {change.max():+.2f})'
        lines.append(f'| {name} | {spread[0]} | {shift} | {spread[1]} |')
    return '\n'.join(lines) + '\n'


def draw_runs(runs, result_dir):
    """Draw training runs beside each other, and print their validation PSNR."""
    firsts, curves = {}, {}  # {name: its first run}, {name: [{epoch: PSNR} of each run]}
    for run in runs:
        name, log = re.sub(r'_?\d+$', '', os.path.basename(run)), read_csv(os.path.join(run, 'log.csv'))
        firsts.setdefault(name, run)
        curves.setdefault(name, []).append({int(row['epoch']): float(row['psnr']) for row in log if row['psnr']})
    os.makedirs(result_dir, exist_ok=True)
    draw_curves(os.path.join(result_dir, 'curves.png'), [('validation PSNR in dB', curves, False)])
    write_photo(os.path.join(result_dir, 'first_epoch.jpg'), np.concatenate([*map(show_first_epoch, firsts.values())]))
    for name, psnrs in curves.items():
        for epoch in sorted(set.intersection(*map(set, psnrs))):
            values = [psnr[epoch] for psnr in psnrs]
            print(f'{name:20} epoch {epoch:3}  PSNR {np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})')
    return 0


def show_first_epoch(run):
    """A row of illuminations above a row of enhanced sample photos, by a run's weights after its first epoch."""
    found = glob.glob(os.path.join(glob.escape(run), 'epoch_1_psnr_*.pth'))
    if not found:
        raise FileNotFoundError(f'{run}: no epoch_1_psnr_*.pth (valid_interval 1 saves it)')
    network, _ = load_network(found[0])
    photos = [read_photo(path) for path in list_photos(os.path.join(ROOT, 'sample_imgs'))]
    enhanced, lights = zip(*(enhance_photo(network, photo, keep_illumination=True) for photo in photos), strict=True)
    lights = [(light.clip(0, 1) * 255).round().astype(np.uint8) for light in lights]
    name = f'{os.path.basename(run)}, after epoch 1:'
    return np.concatenate([draw_row(f'{name} S', lights), draw_row(f'{name} R', enhanced)])


if __name__ == '__main__':
    utils.parse_overrides(opt, RULES, __file__)
    utils.run_script(main, opt)
