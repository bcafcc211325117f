"""Score checkpoints, baselines and other systems' results on pairs, by a protocol that is printed with the numbers.

    python test.py --checkpoints_file checkpoints/general/best.pth --pairs_file path/to/eval15.csv
    python test.py --checkpoints_file a/best.pth,b/best.pth --dataset_dir path/to/fivek --split paper
    python test.py --results_dir other_system/results --baselines gamma,best_gamma,clahe --pairs_file path/to/eval15.csv
    torchrun --nproc_per_node=4 test.py ...

Without pairs_file or dataset_dir it scores the validation split saved beside the first checkpoint. Prints a Markdown
table and writes to result_dir: per_photo.csv, summary.json (means, intervals, protocol, hashes, versions), table.md and
extremes.jpg (input, result, target of the best, median and worst photos).

Default protocol: each photo at its own size, 8-bit RGB, nothing cropped, no GT-mean. The predecessor's weights are
scored as it published them, levels rounded down; all else is rounded to the nearest level.
"""

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import cv2
import numpy
import skimage
import torch
from tqdm import tqdm

import pipeline
import utils
from kernels import Edit, enhance_photo
from pairs.lists import choose_split, find_overlap, find_pairs, hash_files, hash_pairs, pair_hashes, read_pairs
from pairs.predecessor import read_options_pickle
from photos.picture import list_photos, read_photo
from runs.checkpoint import load_network
from scoring.metrics import METRICS, OPTIONAL, optional_metric
from scoring.protocol import Protocol, baselines, markdown_table, stem
from scoring.sheets import save_extremes
from scoring.statistics import RESAMPLES, compare, extremes, summarize
from system.files import describe, raise_all, save_csv, save_json, save_text
from system.process import cores, keep_memory
from system.ranks import gather, join_ranks

opt = SimpleNamespace(
    # what is scored, beside the unprocessed input
    checkpoints_file='checkpoints/general/best.pth',  # ours, or the predecessor's state dict; commas between; '' none
    results_dir='',  # folders of other systems' results, matched by stem, commas between
    baselines='',  # of gamma, best_gamma, clahe, rescale, commas between
    strength=1.0,  # of the checkpoints: 0 leaves the photo as it is, 1 is the model's result
    denoise=0.0,  # of the checkpoints: 1 takes out the noise that brightening brings up; marked in the result
    rounding='',  # nearest or down; '' is down for the predecessor's weights, nearest for ours
    # on what
    pairs_file='',  # CSV list with the columns input,target; or the predecessor's options.pkl, with dataset_dir
    dataset_dir='',  # or a folder with input/ and expertC_gt/
    split='all',  # of dataset_dir: all; paper (FiveK a4501 to a5000); ratio (what train.py validates on)
    dataset_ratio=0.9,  # of split ratio
    seed=212,  # of split ratio
    targets_as_input=False,  # score how far well exposed photos, the targets, are left as they are
    # protocol
    metrics='psnr,ssim,ssim_gauss,de76,de2000',  # and ms_ssim, lpips, niqe where their packages are installed
    resize='',  # '' scores each photo at its own size; 512x512, or long512 for a long side of 512
    crop_border=0,  # pixels left out on every side
    gt_mean=False,  # scale each result to its target's mean grey level (some papers on LOL); marked in the result
    skip_bad=False,  # a mean without the pairs that cannot be scored; their number is printed with it
    # run
    result_dir='',  # '' is test_<name of the pairs> beside the first checkpoint
    fused=True,  # --no-fused takes the plain torch path
    device='',  # '' takes CUDA when there is one
)

INPUT = 'unprocessed input'


def main(opt):
    keep_memory()
    rank, world = join_ranks()
    protocol = Protocol(opt.resize, opt.crop_border, opt.gt_mean)
    protocol.check()
    if opt.denoise < 0:
        raise ValueError(f'denoise: expected 0 or more, got {opt.denoise}')
    functions, blanks = choose_metrics(opt.metrics)
    checkpoints = [name.strip() for name in opt.checkpoints_file.split(',') if name.strip()]
    name, pairs = choose_pairs(opt, checkpoints)
    if opt.targets_as_input:
        name, pairs = f'{name}_targets_as_input', [(target, target) for target in sorted({t for _, t in pairs})]
    result_dir = opt.result_dir or os.path.join(os.path.dirname(checkpoints[0]) if checkpoints else '.', f'test_{name}')
    methods, about = choose_methods(opt, checkpoints, protocol, pairs)
    hashes = hash_files({path for pair in pairs for path in pair})
    for method in about:
        about[method].update(check_overlap(method, about[method].get('checkpoint'), pairs, hashes, quiet=rank > 0))

    # score this rank's share
    def score(position):
        try:
            return position, score_pair(pairs[position], methods, protocol, functions)
        except (OSError, ValueError, MemoryError) as error:
            return position, describe(error)

    mine = range(rank, len(pairs), world)
    with ThreadPoolExecutor(cores()) as pool:
        bar = tqdm(pool.map(score, mine), name, len(mine), disable=None if rank == 0 else True, leave=False)
        scored = sorted(gather(list(bar)), key=lambda item: item[0])
    if rank > 0:
        return 0
    problems = [result for _, result in scored if isinstance(result, str)]
    rows = [
        {'input': pairs[position][0], 'target': pairs[position][1], 'method': method, **values}
        for position, result in scored
        if not isinstance(result, str)
        for method, values in result.items()
    ]
    if not opt.skip_bad or not rows:
        raise_all(problems, f'{name}, no mean from the other {len(pairs) - len(problems)} of {len(pairs)} pairs')

    # report
    columns = {
        method: {metric: [row[metric] for row in rows if row['method'] == method] for metric in functions}
        for method in methods
    }
    means = {
        method: {metric: summarize(values) for metric, values in column.items() if functions[metric]}
        for method, column in columns.items()
    }
    table = markdown_table(means, functions)
    summary = {
        'pairs': name,
        'photos': len(pairs) - len(problems),
        'split_sha256': hash_pairs(pairs),
        'protocol': str(protocol),
        'skipped': problems,
        'blank_metrics': blanks,
        'methods': {method: {**about[method], **means[method]} for method in methods},
        'paired': compare_methods(columns, functions),
        'options': vars(opt),
        'versions': versions(),
    }
    os.makedirs(result_dir, exist_ok=True)
    save_csv(os.path.join(result_dir, 'per_photo.csv'), rows, ('input', 'target', 'method', *functions))
    save_json(os.path.join(result_dir, 'summary.json'), summary)
    header = f'{name}: {summary["photos"]} photos, {protocol}, split {summary["split_sha256"]}'
    if problems:
        header += f'\nSKIPPED {len(problems)} of {len(pairs)} pairs (--skip_bad): {"; ".join(problems)}'
    notes = [f'{method}: rounding {about[method]["rounding"]}' for method in about if 'rounding' in about[method]]
    notes += [f'{metric} is blank: {reason}' for metric, reason in blanks.items()]
    notes += describe_paired(summary['paired'])
    lines = [
        header,
        '',
        table,
        '',
        f'± is half the 95 % bootstrap interval ({RESAMPLES:,} resamples)',
        *notes,
    ]
    save_text(os.path.join(result_dir, 'table.md'), '\n'.join(lines) + '\n')
    shown = next((method for method in methods if method != INPUT), INPUT)
    save_pictures(os.path.join(result_dir, 'extremes.jpg'), rows, shown, methods[shown], protocol)
    print('\n'.join(lines))
    print(f'per_photo.csv, summary.json, table.md, extremes.jpg: {result_dir}')
    return 0


def choose_metrics(names):
    """({metric: function, None where it is not at hand}, {metric: the reason}).

    Raises:
        ValueError: unknown metric.
    """
    functions, blanks = {}, {}
    for name in filter(None, (part.strip() for part in names.split(','))):
        if name not in (*METRICS, *OPTIONAL):
            raise ValueError(f'metrics: expected {", ".join((*METRICS, *OPTIONAL))}, got {name!r}')
        functions[name] = METRICS.get(name) or optional_metric(name)
        if isinstance(functions[name], str):
            blanks[name], functions[name] = functions[name], None
    if 'psnr' not in functions:
        raise ValueError(f'metrics: expected psnr among them, got {names!r}')
    return functions, blanks


def choose_pairs(opt, checkpoints):
    """(name, pairs) of the list, of the dataset folder, or of the validation split beside the first checkpoint."""
    if opt.pairs_file.endswith('.pkl'):
        if not opt.dataset_dir:
            raise ValueError(f'dataset_dir: expected the folder that holds the photos of {opt.pairs_file}, got none')
        return utils.set_name(opt.pairs_file), read_options_pickle(opt.pairs_file, opt.dataset_dir)[1]
    if opt.pairs_file and opt.dataset_dir:
        raise ValueError('pairs_file, dataset_dir: expected one of them, got both')
    if opt.dataset_dir:
        pairs = choose_split(find_pairs(opt.dataset_dir), opt.split, opt.dataset_ratio, opt.seed)
        name = os.path.basename(os.path.abspath(opt.dataset_dir))
        return name + ('' if opt.split == 'all' else f'_{opt.split}'), pairs
    if not opt.pairs_file and not checkpoints:
        raise ValueError('pairs_file: expected a CSV list, or --dataset_dir, or a checkpoint, got none')
    pairs_file = opt.pairs_file or os.path.join(os.path.dirname(checkpoints[0]), 'valid_pairs.csv')
    if not os.path.isfile(pairs_file):
        hint = '' if opt.pairs_file else ' (no --pairs_file or --dataset_dir given)'
        raise FileNotFoundError(f'{pairs_file}: expected a CSV list of pairs, found no such file{hint}')
    return utils.set_name(pairs_file), read_pairs(pairs_file)


def choose_methods(opt, checkpoints, protocol, pairs):
    """({label: function (photo, path of the input) -> result}, {label: facts for the summary}), the input first."""
    methods, about = {INPUT: lambda photo, path: photo}, {INPUT: {}}
    device = utils.pick_device(opt.device)
    for path in checkpoints:
        network, checkpoint = load_network(path, device)
        rounding = opt.rounding or checkpoint.get('rounding', 'nearest')
        if rounding not in ('nearest', 'down'):
            raise ValueError(f'rounding: expected nearest or down, got {rounding!r}')
        label = utils.set_name(path)
        label = path if label in methods else label
        label += f' + denoise {opt.denoise:g}' if opt.denoise else ''

        def enhance(photo, path, network=network, round_down=rounding == 'down'):
            return enhance_photo(
                network, photo, Edit(opt.strength, opt.denoise, round_down), fused=opt.fused, all_cores=False
            )[0]

        methods[label] = enhance
        sha256 = hash_files([path])[path]
        about[label] = {'checkpoint': path, 'sha256': sha256, 'rounding': rounding, 'strength': opt.strength}
        about[label] |= {'denoise': opt.denoise}
    for folder in filter(None, (part.strip() for part in opt.results_dir.split(','))):
        results, label = {}, os.path.basename(os.path.abspath(folder))
        label = folder if label in methods else label
        for path in list_photos(folder):
            if stem(path) in results:
                raise ValueError(f'{path}: same stem as {results[stem(path)]}')
            results[stem(path)] = path

        def read_result(photo, path, results=results, folder=folder):
            if stem(path) not in results:
                raise ValueError(f'{path}: no result in {folder}')
            result = read_photo(results[stem(path)])
            return result if result.shape == photo.shape else protocol.prepare(result)

        methods[label], about[label] = read_result, {'results_dir': folder}
    read = (tuple(protocol.prepare(photo) for photo in pipeline.read_pair(pair)) for pair in pairs)
    for label, function in baselines(opt.baselines, read).items():
        methods[label], about[label] = lambda photo, path, function=function: function(photo), {}
    return methods, about


def check_overlap(method, checkpoint, pairs, hashes, quiet):
    """Compare the test pairs with the checkpoint's training pairs, warn of any overlap, return it for the summary."""
    train_csv = os.path.join(os.path.dirname(checkpoint), 'train_pairs.csv') if checkpoint else ''
    if not os.path.isfile(train_csv):
        return {'overlap': 'unknown: no train_pairs.csv beside the checkpoint'} if checkpoint else {}
    train_pairs = read_pairs(train_csv)
    train_hashes = pair_hashes(train_csv, train_pairs)
    overlap = find_overlap(pairs, train_pairs, train_hashes, hashes)
    if not all(train_hashes):
        overlap['content'] = 'unknown: neither hashes in train_pairs.csv nor its files at hand'
    if any(overlap[kind] for kind in ('same_input', 'same_target', 'same_name')) and not quiet:
        print(
            f'WARNING: {method}: of {len(pairs)} test pairs, {overlap["same_input"]} inputs and '
            f'{overlap["same_target"]} targets are among its training photos by content, '
            f'{overlap["same_name"]} inputs by file name',
            file=sys.stderr,
        )
    return {'overlap': overlap}


def score_pair(pair, methods, protocol, functions):
    """{method: {metric: value}} of one pair.

    Raises:
        OSError, ValueError: unreadable, of different sizes, or not 8 bit; the message names the file.
    """
    photo, target = read_8bit(pair)
    photo, target = protocol.prepare(photo), protocol.prepare(target)
    scores = {}
    for method, function in methods.items():
        result = function(photo, pair[0])
        try:
            scores[method] = protocol.score(result, target, functions)
        except ValueError as error:
            raise ValueError(f'{pair[0]}: {method}: {error}') from error
    return scores


def read_8bit(pair):
    """Both photos of a pair; raises ValueError, which names the file, where one is not 8 bit."""
    photo, target = pipeline.read_pair(pair)
    if photo.dtype != 'uint8' or target.dtype != 'uint8':
        raise ValueError(f'{pair[0]}: expected 8-bit photos, got {photo.dtype} and {target.dtype}')
    return photo, target


def compare_methods(columns, functions):
    """Paired differences of every method to the first after the input: [{'method', 'to', metric: ...}]."""
    first, *others = [method for method in columns if method != INPUT] or [INPUT]
    return [
        {'method': other, 'to': first, **{
            metric: compare(columns[other][metric], columns[first][metric])
            for metric in ('psnr', 'ssim') if functions.get(metric)
        }}
        for other in others
    ]  # fmt: skip


def describe_paired(paired):
    """A line for each paired difference."""
    lines = []
    for entry in paired:
        low, high = entry['psnr']['ci95'] or (float('nan'), float('nan'))
        lines.append(
            f'{entry["method"]} - {entry["to"]}: {entry["psnr"]["mean"]:+.3f} dB [{low:+.3f}, {high:+.3f}], '
            f'better on {entry["psnr"]["won"]:.0%} of photos'
        )
    return lines


def save_pictures(path, rows, method, function, protocol, count=5):
    """The method's best, median and worst photos by PSNR: input, result, target, with their numbers."""
    rows = [row for row in rows if row['method'] == method]
    shown = []
    for rank, positions in extremes([row['psnr'] for row in rows], count).items():
        for row in (rows[i] for i in positions):
            photo, target = map(protocol.prepare, pipeline.read_pair((row['input'], row['target'])))
            caption = f'{rank}: {os.path.basename(row["input"])}  PSNR {row["psnr"]:.2f}'
            if row.get('ssim') not in (None, ''):
                caption += f'  SSIM {row["ssim"]:.3f}'
            shown.append((f'{caption}   (input, {method}, target)', [photo, function(photo, row['input']), target]))
    save_extremes(path, shown)


def versions():
    """What a number may depend on."""
    packages = {'torch': torch, 'numpy': numpy, 'opencv': cv2, 'skimage': skimage}
    found = {name: package.__version__ for name, package in packages.items()}
    return {'python': platform.python_version(), **found, 'machine': platform.platform()}


if __name__ == '__main__':
    utils.run_script(main, opt)
