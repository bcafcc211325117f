"""Score checkpoints, baselines and other systems' results on pairs, by a protocol that is printed with the numbers.

    python test.py
    python test.py --checkpoints_file checkpoints/general/best.pth --pairs_file path/to/pairs.csv
    python test.py --checkpoints_file a/best.pth,b/best.pth --protocol lol --dataset_dir path/to/LOL
    python test.py --checkpoints_file a/best.pth --dataset_dir path/to/fivek --split paper
    python test.py --checkpoints_file a/best.pth --photos path/to/folder
    python test.py --results_dir other_system/results --baselines gamma,best_gamma,clahe --pairs_file path/to/pairs.csv
    torchrun --nproc_per_node=4 test.py ...

Without pairs_file, dataset_dir or photos it scores the validation split saved beside the first checkpoint; for the
default checkpoint, the sample photos against the originals they were darkened from. Prints a Markdown table and writes
to result_dir: per_photo.csv, summary.json (means, intervals, how results differ from their targets in lightness,
contrast, chroma, black point, veil and hue, protocol, hashes, commit, versions, hardware), table.md and extremes.jpg
(input, result, target of the best, median and worst photos). Photos without targets are scored for their faults alone:
hue error against the input, veil, and what is blown to white.

Default protocol: each photo at its own size, 8-bit RGB, nothing cropped, no GT-mean. The predecessor's weights are
scored as it published them, levels rounded down; all else is rounded to the nearest level. A checkpoint gets photos of
16 bit as they are; results, targets and the photos of baselines are rounded to 8.
"""

import os
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

import pipeline
import utils
from kernels import Edit, enhance_photo
from pairs import lists
from photos.contact_sheet import draw_row
from photos.levels import to_8bit
from photos.picture import list_photos, read_photo, write_photo
from runs.checkpoint import find_checkpoint, load_network
from scoring.appearance import measure_appearance, measure_faults, to_lab
from scoring.metrics import LABELS, METRICS, find_lpips
from scoring.protocol import Protocol, best_gamma, choose_baselines, describe_lol, gamma_decibels
from scoring.report import compare_methods, extremes, summarize_methods, write_report
from system.files import error_line, raise_all, save_csv, save_json, save_text
from system.process import cores, describe_machine, tune_malloc
from system.ranks import all_gather_list, init_distributed, ranks

opt = SimpleNamespace(
    # what is scored, beside the unprocessed input
    checkpoints_file='checkpoints/general/best.pth',  # ours, or its name, or the predecessor's; commas between; '' none
    results_dir='',  # folders of other systems' results, matched by stem, commas between
    baselines='',  # of gamma, best_gamma, clahe, rescale, commas between
    strength=1.0,  # of the checkpoints: 0 leaves the photo as it is, 1 is the model's result, 1.5 more
    denoise=0.0,  # of the checkpoints: 1 takes out the noise that brightening brings up, -1 where it shows; marked
    rounding='',  # of the checkpoints; '' is down for the predecessor's weights, nearest for ours
    # on what
    pairs_file='',  # CSV list with the columns input,target; or the predecessor's options.pkl, with dataset_dir
    dataset_dir='',  # or a folder with input/ and expertC_gt/, low/ and high/, or input/ and target/
    photos='',  # or a folder of photos without targets, or a CSV list with the column input: faults alone
    split='all',  # of dataset_dir: all; paper (FiveK a4501 to a5000); ratio (what train.py validates on)
    dataset_ratio=0.9,  # of split ratio
    seed=212,  # of split ratio
    targets_as_input=False,  # score how far well exposed photos, the targets, are left as they are
    # protocol
    protocol='',  # lol: eval15/ of LOL, which dataset_dir names, or its CSV list
    metrics='',  # '' is psnr,ssim,ssim_gauss,de76,de2000; also lpips; psnr is needed
    resize='',  # '' scores each photo at its own size; 512x512, or long512 for a long side of 512
    crop_border=0,  # pixels left out on every side
    gt_mean=False,  # scale each result to its target's mean grey level (some papers on LOL); marked in the result
    skip_bad=False,  # a mean without the pairs that cannot be scored; their number is printed with it
    appearance=False,  # columns in the table: lightness to veil, hue error, blown; summary.json has them always
    # run
    result_dir='',  # '' is test_<name of the pairs> beside the first checkpoint
    fused=True,  # --no-fused takes the plain torch path
    device='',  # '' takes CUDA when there is one
)

RULES = {
    'strength': (0.0, 1.5),
    'denoise': [-1.0, (0.0, None)],
    'rounding': ['', 'nearest', 'down'],
    'split': ['all', 'paper', 'ratio'],
    'dataset_ratio': (0.01, 0.99),
    'seed': (0, None),
    'protocol': ['', 'lol'],
    'crop_border': (0, None),
    **dict.fromkeys(('targets_as_input', 'gt_mean', 'skip_bad', 'appearance', 'fused'), bool),
    **dict.fromkeys(
        ('checkpoints_file', 'results_dir', 'baselines', 'pairs_file', 'dataset_dir', 'photos', 'metrics', 'resize',
         'result_dir', 'device'), str),
}  # fmt: skip
USUAL = {'strength': 1.0, 'split': 'all', 'dataset_ratio': 0.9, 'seed': 212, 'fused': True}  # else '', 0 or False
INPUT = 'unprocessed input'
ROOT = os.path.dirname(os.path.abspath(__file__))
SHIPPED, SAMPLES = 'checkpoints/general/best.pth', 'sample_imgs/pairs.csv'  # it is scored on them by default


def main(opt):
    utils.check_options(opt, RULES)
    check_combination(opt)
    tune_malloc()
    rank, _ = init_distributed()

    protocol = Protocol(opt.resize, opt.crop_border, opt.gt_mean)
    protocol.check()
    functions, blanks = ({}, {}) if opt.photos else choose_metrics(opt.metrics)
    checkpoints = [find_checkpoint(name) for name in lists.list_names(opt.checkpoints_file)]
    baselines = lists.list_names(opt.baselines)
    name, pairs, notes = choose_pairs(opt, checkpoints)
    result_dir = make_result_dir(opt, checkpoints, name)
    methods = choose_methods(opt, checkpoints, baselines, pairs, protocol)
    find_overlaps(methods, pairs, quiet=rank > 0)

    scored = map_pairs(lambda pair: score_pair(pair, methods, protocol, functions), pairs, name)
    kept = [(pair, scores) for pair, scores in zip(pairs, scored, strict=True) if not isinstance(scores, str)]
    problems = [reason for reason in scored if isinstance(reason, str)]
    if problems and not (opt.skip_bad and kept):
        if rank == 0:
            raise_all(problems, f'{name}, no mean from the other {len(kept)} of {len(pairs)} pairs')
        return 1
    if problems:
        notes.append(f'SKIPPED {len(problems)} of {len(pairs)} pairs (--skip_bad): {"; ".join(problems)}')
    if rank > 0:
        return 0

    rows = [{'input': pair[0], 'target': pair[1], **row} for pair, scores in kept for row in scores]
    metrics = [metric for metric, function in functions.items() if function]
    found = summarize_methods(rows, metrics)
    summary = {
        'pairs': name,
        'photos': len(kept),
        'split_sha256': lists.hash_pairs(pairs),
        'protocol': describe_lol(protocol, pairs) if opt.protocol else str(protocol),
        'notes': notes,
        'skipped': problems,
        'blank_metrics': blanks,
        'methods': {label: {**method.about, **found[label]} for label, method in methods.items()},
        'paired': compare_methods(rows, metrics, INPUT),
        'options': vars(opt),
        'versions': describe_machine(),
    }
    report = write_report(summary, functions, opt.appearance or bool(opt.photos))
    save_csv(os.path.join(result_dir, 'per_photo.csv'), rows, list(rows[0]))
    save_json(os.path.join(result_dir, 'summary.json'), summary)
    save_text(os.path.join(result_dir, 'table.md'), report)
    print(report, end='', flush=True)
    shown = next((label for label in methods if label != INPUT), INPUT)
    save_pictures(os.path.join(result_dir, 'extremes.jpg'), rows, shown, methods[shown].run, protocol)
    print(f'per_photo.csv, summary.json, table.md, extremes.jpg: {result_dir}')
    return 0


# ------------------------------------------------------------------------------------------------------ choose


class Method(NamedTuple):
    """What is scored: a function of a photo and of the path of its file, and facts of it for the summary."""

    run: Callable
    about: dict


def check_combination(opt):
    """Refuse an option that the others leave without effect, and one that a standard protocol fixes."""
    lone = opt.pairs_file.endswith('.pkl') or not opt.dataset_dir
    no_gamma = not (opt.photos and 'best_gamma' in opt.baselines)
    rules = [
        ('split targets_as_input resize crop_border skip_bad', not opt.protocol, 'without --protocol'),
        ('split', opt.dataset_dir and not opt.pairs_file, 'with --dataset_dir and no --pairs_file'),
        ('dataset_ratio seed', opt.split == 'ratio', 'with --split ratio'),
        ('strength denoise rounding fused', lists.list_names(opt.checkpoints_file), 'with --checkpoints_file'),
        ('pairs_file dataset_dir protocol metrics gt_mean targets_as_input', not opt.photos, 'without --photos'),
        ('baselines', no_gamma, 'without best_gamma, which needs targets, with --photos'),
        ('pairs_file', lone, 'without --dataset_dir, but for an options.pkl'),
    ]
    for names, usable, needed in rules:
        for name in names.split():
            if getattr(opt, name) != USUAL.get(name, type(getattr(opt, name))()) and not usable:
                raise ValueError(f'{name}: expected only {needed}, got {getattr(opt, name)!r}')


def choose_metrics(names):
    """({metric: function, None where it is not at hand}, {metric: the reason}) of the option's text."""
    functions, blanks = {}, {}
    for name in lists.list_names(names) or tuple(METRICS):
        if name not in LABELS:
            raise ValueError(f'metrics: expected {", ".join(LABELS)}, got {name!r}')
        functions[name] = METRICS.get(name) or find_lpips()
        if isinstance(functions[name], str):
            blanks[name], functions[name] = functions[name], None
    if 'psnr' not in functions:
        raise ValueError(f'metrics: expected psnr among them, got {names!r}')
    return functions, blanks


def choose_pairs(opt, checkpoints):
    """(name, pairs, notes for the report) of the options. A photo without a target is a pair with ''."""
    name, pairs = find_test_pairs(opt, checkpoints)
    if not any(map(os.path.exists, {path for pair in pairs for path in pair})):
        raise FileNotFoundError(
            f'{name}: expected photos such as {pairs[0][0]}, found none of {len(pairs)}: docs/results.md says where '
            f'they come from; name yours by --pairs_file or --dataset_dir, or score --pairs_file {SAMPLES}'
        )
    counts = Counter(tuple(map(os.path.realpath, pair)) for pair in pairs)
    raise_all([f'{pair[0]}: listed twice with the target {pair[1]}' for pair in counts if counts[pair] > 1], name)
    notes = []
    if opt.split == 'paper' and {lists.fivek_id(photo) for photo, _ in pairs} != set(range(4501, 5001)):
        name += f'_{len(pairs)}_of_500'
        notes.append(f"NOT THE PAPER'S TEST SET: FiveK's a4501 to a5000 are 500 photos, these are {len(pairs)}")
    if own := sum(photo == target for photo, target in pairs):
        notes.append(f'{own} of {len(pairs)} pairs are a photo with itself: they show how little it is changed')
    if opt.targets_as_input:
        name, pairs = f'{name}_targets_as_input', [(target, target) for target in sorted({t for _, t in pairs})]
    return name, pairs, notes


def find_test_pairs(opt, checkpoints):
    """(name, pairs) of what is named on the command line, else of the default checkpoint, else of the first one."""
    if opt.photos:
        return utils.short_name(opt.photos), [(path, '') for path in lists.find_inputs(opt.photos)]
    if opt.pairs_file.endswith('.pkl'):
        if not opt.dataset_dir:
            raise ValueError(f'dataset_dir: expected the folder that holds the photos of {opt.pairs_file}, got none')
        return utils.short_name(opt.pairs_file), lists.read_options_pickle(opt.pairs_file, opt.dataset_dir)[1]
    if opt.protocol and not opt.pairs_file:
        folder = os.path.join(opt.dataset_dir, 'eval15')
        if not opt.dataset_dir or not os.path.isdir(folder):
            wanted = 'the folder of LOL v1 with eval15/ in it, or pairs_file'
            raise FileNotFoundError(f'dataset_dir: expected {wanted}, got {opt.dataset_dir!r}')
        return opt.protocol, lists.find_pairs(folder)
    if opt.dataset_dir:
        pairs = lists.split_dataset(lists.find_pairs(opt.dataset_dir), opt.split, opt.dataset_ratio, opt.seed)[1]
        name = os.path.basename(os.path.abspath(opt.dataset_dir))
        return name + ('' if opt.split == 'all' else f'_{opt.split}'), pairs
    if not opt.pairs_file and not checkpoints:
        raise ValueError('pairs_file: expected a CSV list, or --dataset_dir, or a checkpoint, got none')
    saved = os.path.join(os.path.dirname((checkpoints or [''])[0]), 'valid_pairs.csv')
    shipped = list(map(os.path.realpath, checkpoints)) == [os.path.realpath(os.path.join(ROOT, SHIPPED))]
    pairs_file = opt.pairs_file or (os.path.join(ROOT, SAMPLES) if shipped else saved)
    if not os.path.isfile(pairs_file):
        hint = '' if opt.pairs_file else ' (no --pairs_file or --dataset_dir given)'
        raise FileNotFoundError(f'{pairs_file}: expected a CSV list of pairs, found no such file{hint}')
    return utils.short_name(pairs_file), lists.read_pairs(pairs_file)


def make_result_dir(opt, checkpoints, name):
    """The folder of the results, made before the work, so that one that cannot be written to shows at once."""
    folder = opt.result_dir or os.path.join(os.path.dirname(checkpoints[0]) if checkpoints else '.', f'test_{name}')
    os.makedirs(folder, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise ValueError(f'result_dir: expected a folder that can be written to, got {folder}')
    return folder


def choose_methods(opt, checkpoints, baselines, pairs, protocol):
    """{label: Method}, the unprocessed input first."""
    methods = {INPUT: Method(lambda photo, path: photo, {})}

    def add(label, longer, method):
        label = longer if label in methods else label
        if label in methods:
            raise ValueError(f'{label}: expected once, got it twice')
        methods[label] = method

    device = utils.pick_device(opt.device)
    suffix = f' + denoise {opt.denoise:g}' if opt.denoise else ''
    for path in checkpoints:
        add(utils.short_name(path) + suffix, path + suffix, use_checkpoint(path, opt, device))
    for folder in lists.list_names(opt.results_dir):
        add(os.path.basename(os.path.abspath(folder)), folder, use_results(folder, pairs, protocol))
    for label, function in choose_baselines(baselines).items():
        add(label, f'{label} (baseline)', Method(lambda photo, path, function=function: function(to_8bit(photo)), {}))
    if 'best_gamma' in baselines:

        def score_gammas(pair):
            return gamma_decibels(*map(to_8bit, read_prepared(pair, protocol)))

        found = map_pairs(score_gammas, pairs, 'best gamma')
        label, function = best_gamma([decibels for decibels in found if not isinstance(decibels, str)])
        add(label, f'{label} (baseline)', Method(lambda photo, path: function(to_8bit(photo)), {}))
    return methods


def use_checkpoint(path, opt, device):
    """Method of a checkpoint."""
    network, checkpoint = load_network(path, device)
    network.fused = opt.fused
    rounding = opt.rounding or checkpoint.get('rounding', 'nearest')
    edit = Edit(opt.strength, opt.denoise, round_down=rounding == 'down')
    about = {'checkpoint': path, 'sha256': lists.hash_files([path])[path], 'rounding': rounding}
    about |= {'strength': opt.strength, 'denoise': opt.denoise}
    return Method(lambda photo, path: enhance_photo(network, photo, edit)[0], about)


def use_results(folder, pairs, protocol):
    """Method that reads another system's results, matched by stem, which no two of them and no two inputs share."""
    problems = []
    results = lists.by_stem(list_photos(folder), problems)
    lists.by_stem(sorted({photo for photo, _ in pairs}), problems)
    raise_all(problems, f'{folder}, results matched by stem')

    def read_result(photo, path):
        if lists.stem_of(path) not in results:
            raise ValueError(f'{path}: no result in {folder}')
        result = to_8bit(read_photo(results[lists.stem_of(path)]))
        return result if result.shape == photo.shape else protocol.prepare(result)

    return Method(read_result, {'results_dir': folder})


def find_overlaps(methods, pairs, quiet):
    """Compare the test pairs with each checkpoint's training pairs: a fact of the method, and a warning where equal."""
    hashes = lists.hash_files({path for pair in pairs for path in pair})
    for label, about in ((label, method.about) for label, method in methods.items() if 'checkpoint' in method.about):
        train_csv = os.path.join(os.path.dirname(about['checkpoint']), 'train_pairs.csv')
        if not os.path.isfile(train_csv):
            about['overlap'] = 'unknown: no train_pairs.csv beside the checkpoint'
            continue
        train_pairs = lists.read_pairs(train_csv)
        train_hashes = lists.pair_hashes(train_csv, train_pairs)
        overlap = about['overlap'] = lists.find_overlap(pairs, train_pairs, train_hashes, hashes)
        if any(overlap.values()) and not quiet:
            print(
                f'WARNING: {label}: of {len(pairs)} test pairs, {overlap["same_input"]} inputs and '
                f'{overlap["same_target"]} targets are among its training photos by content, '
                f'{overlap["same_name"]} inputs by file name',
                file=sys.stderr,
            )
        if not all(train_hashes):
            overlap['content'] = 'unknown: neither hashes in train_pairs.csv nor its files at hand'


# ------------------------------------------------------------------------------------------------------- score


def map_pairs(function, pairs, title):
    """[function(pair) of every pair], shared among ranks and threads; the reason, a text, for a pair where it fails."""
    rank, world = ranks()

    def attempt(position):
        try:
            return position, function(pairs[position])
        except (OSError, ValueError, MemoryError) as error:
            return position, error_line(error)

    mine = range(rank, len(pairs), world)
    with ThreadPoolExecutor(cores()) as pool:
        bar = tqdm(pool.map(attempt, mine), title, len(mine), disable=None if rank == 0 else True, leave=False)
        found = all_gather_list(list(bar))
    return [result for _, result in sorted(found, key=lambda item: item[0])]


def score_pair(pair, methods, protocol, functions):
    """Rows of one pair, one for each method: {'method', metrics, numbers of the result's and target's appearance}.

    Raises:
        OSError, ValueError: unreadable, or of different sizes; the message names the file.
    """
    photo, target = read_prepared(pair, protocol)
    labs = [to_lab(protocol.crop(image)) for image in (photo, target) if image is not None]
    wanted = measure_appearance(labs[1]) if len(labs) > 1 else {}
    rows = []
    for label, method in methods.items():
        result = to_8bit(method.run(photo, pair[0]))
        try:
            images = protocol.align(result, to_8bit(photo) if target is None else target)
            row = {name: function(*images) if function else '' for name, function in functions.items()}
        except ValueError as error:
            raise ValueError(f'{pair[0]}: {label}: {error}') from error
        lab = to_lab(images[0])
        row |= measure_appearance(lab) | {f'target_{name}': value for name, value in wanted.items()}
        rows.append({'method': label, **row, **measure_faults(lab, *labs)})
    return rows


def read_prepared(pair, protocol):
    """(photo as its file has it, 8-bit target or None), at the size that is scored."""
    if not pair[1]:
        return protocol.prepare(read_photo(pair[0])), None
    photo, target = pipeline.read_pair(pair)
    return protocol.prepare(photo), protocol.prepare(to_8bit(target))


# ------------------------------------------------------------------------------------------------------ report


def save_pictures(path, rows, label, function, protocol):
    """A method's best, median and worst photos, by PSNR or hue error to the input: input, result, target, numbers.

    The table is out by now: a picture that cannot be made is a note on stderr.
    """
    rows = [row for row in rows if row['method'] == label]
    titles = {'psnr': 'PSNR', 'ssim': 'SSIM'} if 'psnr' in rows[0] else {'hue_to_input': 'hue error', 'veil': 'veil'}
    pictures = []
    try:
        for rank, positions in extremes([row.get('psnr', -row['hue_to_input']) for row in rows]).items():
            for row in (rows[i] for i in positions):
                photo, target = read_prepared((row['input'], row['target']), protocol)
                numbers = '  '.join(f'{titles[name]} {row[name]:.4g}' for name in titles if row.get(name, '') != '')
                shown = {'input': photo, label: function(photo, row['input'])}
                shown |= {} if target is None else {'target': target}
                caption = f'{rank}: {os.path.basename(row["input"])}  {numbers}   ({", ".join(shown)})'
                pictures.append(draw_row(caption, shown.values(), cell=300))
        write_photo(path, np.concatenate(pictures))
    except (OSError, ValueError, MemoryError, cv2.error) as error:
        print(f'note: no {path}: {error_line(error)}', file=sys.stderr)


if __name__ == '__main__':
    utils.parse_overrides(opt, RULES, __file__)
    utils.run_script(main, opt)
