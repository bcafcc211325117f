"""Draw training runs beside each other: validation PSNR by epoch, and the first epoch's pictures.

    python -m tools.compare_runs --runs checkpoints/with_1,checkpoints/without_1 --result_dir docs

Runs whose names differ only in a number at the end (seeds) share a colour. Writes curves.png, and first_epoch.jpg with
the illumination and reflectance that the first run of each name gave the photos of images_dir after epoch 1.
"""

import glob
import os
import re
from types import SimpleNamespace

import cv2
import numpy as np

import utils
from kernels import enhance_photo
from photos.picture import list_photos, read_photo, write_photo
from runs.checkpoint import load_network
from runs.curves import draw_curves
from system.files import read_csv

opt = SimpleNamespace(
    runs='',  # folders of runs, commas between
    images_dir='sample_imgs',  # photos that the first epoch is shown on
    result_dir='docs',  # gets curves.png and first_epoch.jpg
)


def main(opt):
    runs = [name.strip().rstrip('/') for name in opt.runs.split(',') if name.strip()]
    if not runs:
        raise ValueError('runs: expected folders of training runs, got none')
    groups = {}
    for run in runs:
        groups.setdefault(re.sub(r'_?\d+$', '', os.path.basename(run)), []).append(run)
    os.makedirs(opt.result_dir, exist_ok=True)
    curves = {name: [read_psnr(run) for run in members] for name, members in groups.items()}
    draw_curves(os.path.join(opt.result_dir, 'curves.png'), [('validation PSNR in dB', curves, False)])
    rows = [first_epoch(members[0], opt.images_dir) for members in groups.values()]
    write_photo(os.path.join(opt.result_dir, 'first_epoch.jpg'), np.concatenate(rows))
    for name, psnrs in curves.items():
        for epoch in sorted(set.intersection(*(set(psnr) for psnr in psnrs))):
            values = [psnr[epoch] for psnr in psnrs]
            print(f'{name:20} epoch {epoch:3}  PSNR {np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})')
    return 0


def read_psnr(run):
    """{epoch: validation PSNR} of a run."""
    return {int(row['epoch']): float(row['psnr']) for row in read_csv(os.path.join(run, 'log.csv')) if row['psnr']}


def first_epoch(run, images_dir, height=110):
    """A row of illuminations above a row of enhanced photos, by a run's weights after its first epoch."""
    found = sorted(glob.glob(os.path.join(glob.escape(run), 'epoch_1_psnr_*.pth')))
    if not found:
        raise FileNotFoundError(f'{run}: no epoch_1_psnr_*.pth (valid_interval 1 saves it)')
    network, _ = load_network(found[0])
    columns = []
    for path in list_photos(images_dir):
        photo = read_photo(path)
        enhanced, illumination = enhance_photo(network, photo, keep_illumination=True)
        illumination = (illumination.clip(0, 1) * 255).round().astype(np.uint8)
        size = round(photo.shape[1] * height / photo.shape[0]), height
        columns.append(
            np.concatenate([cv2.resize(x, size, interpolation=cv2.INTER_AREA) for x in (illumination, enhanced)])
        )
    picture = np.concatenate(columns, axis=1)
    label = np.full((28, picture.shape[1], 3), 255, np.uint8)
    text = f'{os.path.basename(run)}: S and R after epoch 1'
    cv2.putText(label, text, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([label, picture])


if __name__ == '__main__':
    utils.parse_overrides(opt, {}, __file__)
    utils.run_script(main, opt)
