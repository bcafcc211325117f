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

import functools
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
from scoring.protocol import gamma_levels
from system.files import save_json
from system.process import cores, describe_machine
from tools.benchmark import noisy_photo, peak_memory, start_process

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
BUILTIN = (OURS, "the predecessor's plain path", 'OpenCV CLAHE', 'a gamma table')


def main(opt):
    utils.check_options(opt, RULES)
    systems = {name: name for name in BUILTIN[1:]} | split_systems(opt.systems)
    if opt.cores > cores():
        raise ValueError(f'cores: expected up to the {cores()} that this process may use, got {opt.cores}')
    rows = []
    print('| system | time | seconds | peak memory |\n|---|---|---|---|')
    with start_process() as ours:
        for name, system in {OURS: OURS, **systems}.items():
            try:
                row = compare(ours, system, opt)
            except Exception as error:  # whatever another system may raise, or the end of its process
                row = {'failed': ' '.join(str(error).split())[:200] or type(error).__name__}
            rows.append({'system': name, **row})
            print(write_row(rows[-1]), flush=True)
    print(f'{opt.megapixels:g} MP in memory, {opt.cores} cores, median of {opt.repeats}')
    save_json(opt.result_json, {'machine': describe_machine(), 'options': vars(opt), 'rows': rows})
    return 0


def split_systems(text):
    """{name: MODULE:FUNCTION or COMMAND} of the option; ValueError for another form, or a name that is taken."""
    systems = {}
    for part in filter(None, map(str.strip, text.split(';'))):
        name, _, system = (word.strip() for word in part.partition('='))
        if not name or not system or name in {*systems, *BUILTIN}:
            raise ValueError(f'systems: expected NAME=MODULE:FUNCTION or NAME=COMMAND, each name once, got {part!r}')
        systems[name] = system
    return systems


def compare(ours, system, opt):
    """A row of the table: a system in a process of its own, in turn with ours."""
    times = []
    with start_process() as other:
        for _ in range(opt.repeats + 1):
            times.append([ours.submit(time_once, OURS, opt).result(), other.submit(time_once, system, opt).result()])
        peak = float('nan') if '{' in system else other.submit(peak_memory).result()
    mine, theirs = map(statistics.median, zip(*times[1:], strict=True))  # the first is a warm-up
    return {'seconds': theirs, 'ours': mine, 'ratio': theirs / mine, 'peak_gb': peak}


def write_row(row):
    """A row of the Markdown table; a system that failed says why."""
    if 'failed' in row:
        return f'| {row["system"]} | failed: {row["failed"]} | | |'
    peak = f'{row["peak_gb"]:.1f} GB' if row['peak_gb'] > 0 else ''
    return f'| {row["system"]} | {row["ratio"]:.3g} | {row["seconds"]:.3f} | {peak} |'


def time_once(system, opt):
    """Seconds of a system on the photo, of which a function that gives no photo of the same size is refused."""
    photo, function = prepare(system, opt.checkpoints_file, opt.megapixels, opt.cores)
    if not function:
        with tempfile.TemporaryDirectory() as large, tempfile.TemporaryDirectory() as small:
            seconds = run_command(system, photo, large, opt.cores)
            return seconds - run_command(system, photo[:64, :64], small, opt.cores)
    copy = photo.copy()  # a system may work in place
    start = time.perf_counter()
    result = function(copy)
    seconds = time.perf_counter() - start
    shape, dtype = getattr(result, 'shape', None), getattr(result, 'dtype', None)
    if shape != photo.shape or dtype != np.uint8:
        raise ValueError(f'result: expected {photo.shape} uint8, got {shape} {dtype}')
    return seconds


@functools.lru_cache(maxsize=1)
def prepare(system, checkpoints_file, megapixels, cores):
    """(photo, function photo -> photo, or None for a command): makes a process ready for a system, once."""
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    torch.set_num_threads(cores)
    cv2.setNumThreads(cores)
    return noisy_photo(megapixels), None if '{' in system else load_system(system, checkpoints_file)


def load_system(system, checkpoints_file):
    """The function photo -> photo of a built-in system or of MODULE:FUNCTION; ValueError where there is none."""
    if system in BUILTIN[:2]:  # the predecessor's weights play no part in its time
        network = load_network(checkpoints_file)[0] if system == OURS else build_network('hdrnet').eval()
        network.fused = system == OURS
        return lambda photo: enhance_photo(network, photo)[0]
    if system in BUILTIN:
        return equalize if 'CLAHE' in system else lambda photo: cv2.LUT(photo, gamma_levels(0.4))
    module, _, function = system.partition(':')
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f'systems: expected a function {function} in a module {module}, got: {error}') from error


def equalize(photo):
    """OpenCV's CLAHE of the lightness in Lab."""
    lab = cv2.cvtColor(photo, cv2.COLOR_RGB2LAB)
    lab[..., 0] = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8)).apply(lab[..., 0])
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)


def run_command(command, photo, folder, cores):
    """Seconds of a shell command on a photo, in a folder; ValueError where it fails or writes nothing."""
    for side in ('input', 'output'):
        path = os.path.join(folder, side)
        os.mkdir(path)
        command = command.replace(f'{{{side}_dir}}', path).replace(f'{{{side}}}', os.path.join(path, 'photo.bmp'))
    write_photo(os.path.join(folder, 'input', 'photo.bmp'), photo)
    threads = {name: str(cores) for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS')}
    start = time.perf_counter()
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, env=os.environ | threads)
    seconds = time.perf_counter() - start
    if done.returncode or not os.listdir(path):
        last = (done.stderr.strip().splitlines() or ['it wrote nothing'])[-1]
        raise ValueError(f'{command}: exit status {done.returncode}: {last}')
    return seconds


if __name__ == '__main__':
    utils.parse_overrides(opt, RULES, __file__)
    utils.run_script(main, opt)
