"""What people would use instead: the time that other systems take for the same photo, ours being 1.

    python -m tools.compare_systems
    python -m tools.compare_systems --systems 'SCI=my_wrappers:sci; RetinexNet=my_wrappers:retinexnet'
    python -m tools.compare_systems --systems 'other=python other/test.py --input {input} --output {output}'

A system is NAME=MODULE:FUNCTION, a Python function that takes an (H, W, 3) uint8 RGB array and returns the enhanced
one; or NAME=COMMAND, a shell command that reads {input} and writes {output} (or works on {input_dir} and {output_dir}).
Ours, the predecessor's plain path, OpenCV's CLAHE and a gamma table are always measured.

Each system runs in a process of its own, in turn with ours, after a warm-up; its time is a median, without reading and
writing files. A command's time is that with the photo less that with a photo of 64 x 64, which leaves its start out;
its files, uncompressed BMP, stay in. A system whose modules are named as ours (model, utils) is run as a command.
Prints a Markdown table and writes compare_systems.json.
"""

import importlib
import os
import statistics
import subprocess
import tempfile
import time
from types import SimpleNamespace

import cv2
import numpy as np
import torch

import utils
from kernels import enhance_photo
from model import build_network
from photos.picture import write_photo
from runs.checkpoint import load_network
from system.files import save_json
from system.process import cores, describe_machine
from tools.measure import noisy_photo, peak_memory, start_process

opt = SimpleNamespace(
    systems='',  # NAME=MODULE:FUNCTION or NAME=COMMAND, semicolons between
    checkpoints_file='checkpoints/general/best.pth',  # ours
    megapixels=8.2,  # of the photo
    repeats=5,  # timed runs of each system
    cores=2,  # that each system may use
    result_json='compare_systems.json',
)

RULES = {'megapixels': (1e-6, None), 'repeats': (1, None), 'cores': (1, None)}
OURS = 'ours'
STATE = {}  # of a process that runs one system: its function and its photo


def main(opt):
    utils.check_options(opt, RULES)
    systems = {name: name for name in BUILTIN if name != OURS} | split_systems(opt.systems)
    if opt.cores > cores():
        raise ValueError(f'cores: expected up to the {cores()} that this process may use, got {opt.cores}')
    rows = []
    with start_process() as ours:
        ours.submit(prepare, OURS, opt).result()
        for name, system in systems.items():
            try:
                row = compare(ours, system, opt)
            except Exception as error:  # whatever another system may raise, or the end of its process
                row = {'failed': ' '.join(str(error).split())[:200] or type(error).__name__}
            rows.append({'system': name, **row})
            print(write_row(rows[-1]), flush=True)
        peak = ours.submit(peak_memory).result()
    seconds = statistics.median([row['ours'] for row in rows if 'ours' in row])
    rows.insert(0, {'system': OURS, 'seconds': seconds, 'ratio': 1.0, 'peak_gb': peak})
    table = '\n'.join([*HEAD, *map(write_row, rows)])
    print(f'\n{opt.megapixels:g} MP in memory, {opt.cores} cores, median of {opt.repeats}\n\n{table}')
    save_json(opt.result_json, {'machine': describe_machine(), 'options': vars(opt), 'rows': rows})
    return 0


def split_systems(text):
    """{name: MODULE:FUNCTION or COMMAND} of the option.

    Raises:
        ValueError: not of that form, or a name that is taken.
    """
    systems = {}
    for part in filter(None, map(str.strip, text.split(';'))):
        name, equals, system = (word.strip() for word in part.partition('='))
        if not equals or not name or not system or name in {*systems, *BUILTIN}:
            raise ValueError(f'systems: expected NAME=MODULE:FUNCTION or NAME=COMMAND, each name once, got {part!r}')
        systems[name] = system
    return systems


def compare(ours, system, opt):
    """A row of the table: seconds of a system and of ours, their ratio, and peak memory.

    Args:
        ours: the process that has ours ready.
        system: name of a built-in one, MODULE:FUNCTION, or a command.
    """
    times, peak = ([], []), 0.0
    if is_command(system):
        with tempfile.TemporaryDirectory() as folder:
            files = write_inputs(folder, opt.megapixels)
            for _ in range(opt.repeats):
                large, small = (run_command(system, *paths, opt.cores) for paths in files)
                times[1].append(large - small)
                times[0].append(ours.submit(run_once).result()[0])
    else:
        with start_process() as other:
            other.submit(prepare, system, opt).result()
            for turn in range(opt.repeats + 1):
                for process, record in zip((ours, other), times, strict=True):
                    seconds, peak = process.submit(run_once).result()
                    if turn:
                        record.append(seconds)
    mine, theirs = map(statistics.median, times)
    return {'seconds': theirs, 'ours': mine, 'ratio': theirs / mine, 'peak_gb': peak}


# ------------------------------------------------------------------------- in the process that runs a system


def prepare(system, opt):
    """Make this process ready to run a system."""
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: opt.cores])
    torch.set_num_threads(opt.cores)
    cv2.setNumThreads(opt.cores)
    STATE.update(function=load_system(system, opt), photo=noisy_photo(opt.megapixels))


def run_once():
    """(seconds, peak memory in GB) of this process's system on its photo.

    Raises:
        ValueError: the result is not a photo of the same size.
    """
    photo = STATE['photo'].copy()  # a system may work in place
    start = time.perf_counter()
    result = STATE['function'](photo)
    seconds = time.perf_counter() - start
    shape, dtype = getattr(result, 'shape', None), getattr(result, 'dtype', None)
    if shape != photo.shape or dtype != np.uint8:
        raise ValueError(f'result: expected {photo.shape} uint8, got {shape} {dtype}')
    return seconds, peak_memory()


def load_system(system, opt):
    """The function photo -> photo of a built-in system or of MODULE:FUNCTION.

    Raises:
        ValueError: no such module or function.
    """
    if system in BUILTIN:
        return BUILTIN[system](opt)
    module, _, function = system.partition(':')
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f'systems: expected a function {function} in a module {module}, got: {error}') from error


def load_ours(opt):
    network, _ = load_network(opt.checkpoints_file)
    return lambda photo: enhance_photo(network, photo)[0]


def load_predecessor(opt):
    """The predecessor's network by torch's own operations, as it runs; its weights play no part in the time."""
    torch.manual_seed(0)
    network = build_network('hdrnet').eval()
    network.fused = False
    return lambda photo: enhance_photo(network, photo)[0]


def load_clahe(opt):
    """OpenCV's CLAHE of the lightness in Lab."""
    clahe = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8))

    def enhance(photo):
        lab = cv2.cvtColor(photo, cv2.COLOR_RGB2LAB)
        lab[..., 0] = clahe.apply(lab[..., 0])
        return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)

    return enhance


def load_gamma(opt):
    """A gamma of 0.4 by a table of levels."""
    table = np.round((np.arange(256) / 255) ** 0.4 * 255).astype(np.uint8)
    return lambda photo: cv2.LUT(photo, table)


BUILTIN = {
    OURS: load_ours,
    "the predecessor's plain path": load_predecessor,
    'OpenCV CLAHE': load_clahe,
    'a gamma table': load_gamma,
}


# --------------------------------------------------------------------------------------------------- commands


def is_command(system):
    """Whether a system is a shell command."""
    return '{' in system


def write_inputs(folder, megapixels):
    """[(input, output)] of the photo and of one of 64 x 64, each in folders of its own."""
    files = []
    for name, photo in (('large', noisy_photo(megapixels)), ('small', np.full((64, 64, 3), 40, np.uint8))):
        folders = [os.path.join(folder, name, side) for side in ('input', 'output')]
        for path in folders:
            os.makedirs(path)
        files.append([os.path.join(path, 'photo.bmp') for path in folders])
        write_photo(files[-1][0], photo)
    return files


def run_command(command, source, result, cores):
    """Seconds of a shell command on one file.

    Raises:
        ValueError: it failed, or wrote nothing.
    """
    places = {'input': source, 'output': result}
    places |= {'input_dir': os.path.dirname(source), 'output_dir': os.path.dirname(result)}
    for name, path in places.items():
        command = command.replace(f'{{{name}}}', path)
    threads = {name: str(cores) for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS')}
    start = time.perf_counter()
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, env=os.environ | threads)
    seconds = time.perf_counter() - start
    if done.returncode or not os.listdir(places['output_dir']):
        last = (done.stderr.strip().splitlines() or ['it wrote nothing'])[-1]
        raise ValueError(f'{command}: exit status {done.returncode}: {last}')
    return seconds


# ------------------------------------------------------------------------------------------------------ table

HEAD = ('| system | time | seconds | peak memory |', '|---|---|---|---|')


def write_row(row):
    """A row of the Markdown table; a system that failed says why."""
    if 'failed' in row:
        return f'| {row["system"]} | failed: {row["failed"]} | | |'
    peak = f'{row["peak_gb"]:.1f} GB' if row.get('peak_gb') else ''
    return f'| {row["system"]} | {row["ratio"]:.3g} | {row["seconds"]:.3f} | {peak} |'


if __name__ == '__main__':
    utils.parse_overrides(opt, RULES, __file__)
    utils.run_script(main, opt)
