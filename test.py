"""Score checkpoints on pairs: PSNR and SSIM of each photo at its own size, beside the unprocessed input's.

    python test.py --checkpoints_file checkpoints/general/best.pth --pairs_file path/to/eval15.csv
    python test.py --checkpoints_file checkpoints/fivek/best.pth

Without pairs_file or dataset_dir it scores the validation split saved beside the checkpoint. Prints the means and
writes one CSV row per photo.

Protocol: 8-bit RGB; PSNR over all values and SSIM with scikit-image's default 7 x 7 window per channel; the mean of
the photos' values. The predecessor's weights are scored as it published them, levels rounded down; all else is rounded
to the nearest level. --rounding chooses one for both.
"""

import csv
import os
from types import SimpleNamespace

from tqdm import tqdm

import pipeline
import utils
from fast import enhance_photo
from metrics import psnr, ssim

opt = SimpleNamespace(
    checkpoints_file='checkpoints/general/best.pth',  # ours, or the predecessor's plain state dict
    pairs_file='',  # CSV list with the columns input,target
    dataset_dir='',  # or a folder with input/ and expertC_gt/, all of whose pairs are scored
    result_csv='',  # one row per photo; '' is <checkpoints_file without .pth>_<name of the pairs>.csv
    strength=1.0,  # 0 leaves the photo as it is, 1 is the model's result
    rounding='',  # nearest or down; '' is down for the predecessor's weights, nearest for ours
    fused=True,  # --no-fused takes the plain torch path
    device='',  # '' takes CUDA when there is one
)

COLUMNS = ('input', 'psnr_input', 'ssim_input', 'psnr', 'ssim')


def main(opt):
    network, checkpoint = utils.load_network(opt.checkpoints_file, utils.pick_device(opt.device))
    rounding = opt.rounding or checkpoint.get('rounding', 'nearest')
    if rounding not in ('nearest', 'down'):
        raise ValueError(f'rounding: expected nearest or down, got {rounding!r}')
    name, pairs = choose_pairs(opt)
    result_csv = opt.result_csv or f'{os.path.splitext(opt.checkpoints_file)[0]}_{name}.csv'

    rows, problems = [], []
    for pair in tqdm(pairs, name, disable=None, leave=False, dynamic_ncols=True):
        try:
            rows.append({'input': pair[0], **score(network, pair, opt.strength, opt.fused, rounding == 'down')})
        except (OSError, ValueError) as error:
            problems.append(utils.describe(error))
    utils.raise_all(problems, f'{name}, no mean from the other {len(rows)} of {len(pairs)} pairs')

    with open(result_csv, 'w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    mean = {column: sum(row[column] for row in rows) / len(rows) for column in COLUMNS[1:]}
    print(f'{name}: {len(rows)} photos at their own size, 8 bit (rounding: {rounding}), SSIM 7 x 7')
    print(f'{"":24}  PSNR dB    SSIM')
    print(f'{"unprocessed input":24}  {mean["psnr_input"]:7.3f}  {mean["ssim_input"]:6.4f}')
    print(f'{os.path.basename(opt.checkpoints_file):24}  {mean["psnr"]:7.3f}  {mean["ssim"]:6.4f}')
    print(f'per photo: {result_csv}')
    return 0


def choose_pairs(opt):
    """(name, pairs) of the list, of the dataset folder, or of the validation split beside the checkpoint."""
    if opt.pairs_file and opt.dataset_dir:
        raise ValueError('pairs_file, dataset_dir: expected one of them, got both')
    if opt.dataset_dir:
        return os.path.basename(os.path.abspath(opt.dataset_dir)), pipeline.find_pairs(opt.dataset_dir)
    saved = os.path.join(os.path.dirname(opt.checkpoints_file), 'valid_pairs.csv')
    pairs_file = opt.pairs_file or saved
    if not os.path.isfile(pairs_file):
        hint = '' if opt.pairs_file else ' (no --pairs_file or --dataset_dir given)'
        raise FileNotFoundError(f'{pairs_file}: expected a CSV list of pairs, found no such file{hint}')
    return os.path.splitext(os.path.basename(pairs_file))[0], pipeline.read_pairs(pairs_file)


def score(network, pair, strength=1.0, fused=True, truncate=False):
    """PSNR and SSIM of one pair's input and of its enhanced photo against the target.

    Raises:
        OSError, ValueError: unreadable, of different sizes, or not 8 bit; the message names the file.
    """
    photo, target = pipeline.read_pair(pair)
    if photo.dtype != 'uint8' or target.dtype != 'uint8':
        raise ValueError(f'{pair[0]}: expected 8-bit photos, got {photo.dtype} and {target.dtype}')
    enhanced, _ = enhance_photo(network, photo, strength, fused=fused, truncate=truncate)
    return {
        'psnr_input': psnr(photo, target),
        'ssim_input': ssim(photo, target),
        'psnr': psnr(enhanced, target),
        'ssim': ssim(enhanced, target),
    }


if __name__ == '__main__':
    utils.run_script(main, opt)
