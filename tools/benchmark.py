"""Speed and memory as ratios, both sides measured in turn in one run.

    python -m tools.benchmark                     # everything, about 5 minutes on two cores
    python -m tools.benchmark --photos 4 --repeats 3

Prints a table and writes it to benchmark.json with versions, hardware and load. Plain is the torch path of model.py and
loss.py on the same device; fused is what the scripts run. Photos are sample_imgs/raccoon.jpg enlarged, with sensor-like
noise, so that their JPEGs are of ordinary size. Timings are medians after a warm-up; peak memory is that of a process
of its own.
"""

import functools
import os
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import numpy as np
import torch

import utils
from kernels import enhance_photo
from model import ARCHITECTURES, build_network
from photos.picture import write_photo
from system.files import save_json
from system.process import describe_machine
from tools import workloads
from tools.measure import ROOT, measure_peak, noisy_photo, start_process, time_in_turn

opt = SimpleNamespace(
    checkpoints_file='checkpoints/general/best.pth',
    photos=20,  # photos in the folder test
    repeats=5,  # timed runs of each side
    batch=16,  # photos of 512 x 512 in a training step
    result_json='benchmark.json',
)

RULES = {'photos': (1, None), 'repeats': (1, None), 'batch': (2, None)}


def main(opt):
    utils.check_options(opt, RULES)
    machine = describe_machine()  # with the load that others cause
    table = Table()
    both = workloads.load_both(opt.checkpoints_file)
    costs = measure_costs(opt)
    add_photos(table, opt, both)
    add_steps(table, opt, [arch for arch, _ in both])
    add_forms(table, opt)
    add_memory_of_steps(table, opt)
    if torch.cuda.is_available():
        add_cuda(table, opt, both, torch.device('cuda'))
    with tempfile.TemporaryDirectory() as folder:
        add_folder(table, opt, folder)
        add_start(table, opt, folder)
    add_memory_of_inference(table, opt)
    save_json(opt.result_json, {'machine': machine, 'options': vars(opt), 'costs': costs, 'rows': table.rows})
    return 0


SIZES = {'256': (256, 256), '512': (512, 512), '1080p': (1080, 1920), '4K': (2160, 3840), '24 MP': (4000, 6000)}


def measure_costs(opt):
    """Parameters, multiply-accumulates, seconds and peak memory of one 8-bit photo of each size, printed too."""
    rows, empty = [], measure_peak(workloads.do_nothing)
    print(f'{"":16} {"parameters":>10} {"GMAC":>8} {"seconds":>8} {"GB":>6}')
    for arch in ARCHITECTURES:
        network = build_network(arch).eval()
        parameters = sum(value.numel() for value in network.parameters())
        for name, (height, width) in SIZES.items():
            photo = np.zeros((height, width, 3), np.uint8)
            (seconds,) = time_in_turn([functools.partial(enhance_photo, network, photo)], opt.repeats)
            memory = measure_peak(workloads.enhance_black, arch, height, width) - empty
            macs = workloads.count_macs(network, height * width) / 1e9
            rows.append([arch, name, parameters, macs, seconds, memory])
            print(f'{arch + ", " + name:16} {parameters:10,} {macs:8.3f} {seconds:8.4f} {memory:6.2f}', flush=True)
    return rows


class Table:
    """Rows of ours against another, printed as they come."""

    def __init__(self):
        self.rows = []
        print(f'{"":44} {"ours":>13} {"other":>13} {"ratio":>8}  other is')

    def add(self, what, unit, sides, versus):
        """A row; sides are (ours, other) in the unit."""
        ours, other = sides
        row = {'what': what, 'unit': unit, 'ours': ours, 'other': other, 'other is': versus, 'ratio': other / ours}
        self.rows.append(row)
        print(f'{what:44} {ours:9.3f} {unit:3} {other:9.3f} {unit:3} {row["ratio"]:7.1f}x  {versus}', flush=True)


def add_photos(table, opt, both):
    """One photo in memory: fused against plain, and against a JPEG's decoding and encoding."""
    photo = noisy_photo(8.2)
    for arch, network in both:
        sides = [functools.partial(enhance_photo, net, photo) for net in (network, workloads.plain(network))]
        table.add(f'{arch}, one 8.2 MP photo in memory', 's', time_in_turn(sides, opt.repeats), 'plain path')
    arch, network = both[0]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'photo.jpg')
        write_photo(path, photo)
        sides = functools.partial(enhance_photo, network, photo), functools.partial(workloads.copy_by_opencv, path)
        seconds = time_in_turn(sides, opt.repeats)
    table.add(f'{arch}, one 8.2 MP photo in memory', 's', seconds, 'cv2.imread + cv2.imwrite of it')


def add_steps(table, opt, archs):
    """A training step: fused against plain."""
    for arch in archs:
        sides = [workloads.training_step(arch, fused, opt.batch) for fused in (True, False)]
        seconds = time_in_turn(sides, opt.repeats)
        table.add(f'{arch}, training step, {opt.batch} x 512 x 512', 's', seconds, 'plain path')


def add_forms(table, opt):
    """The coefficient network in other forms than train.py runs it: why it does not."""
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    passes = workloads.coefficient_passes(opt.batch, device)
    plain = passes.pop('')
    for name, form in passes.items():
        try:
            seconds = time_in_turn((form, plain), opt.repeats)
        except Exception as error:  # no compiler on this machine
            print(f'{name}: left out ({str(error).strip().splitlines()[0]})', file=sys.stderr)
            continue
        table.add(f'hdrnet, coefficient network, {name}', 's', seconds, 'as train.py runs it')


def add_memory_of_steps(table, opt):
    """Peak memory of training steps, less that of a process which only imports."""
    empty = measure_peak(workloads.do_nothing)
    sides = [measure_peak(workloads.run_steps, 'hdrnet', fused, opt.batch) - empty for fused in (True, False)]
    table.add(f'hdrnet, memory of a step, {opt.batch} x 512 x 512', 'GB', sides, 'plain path')


def add_cuda(table, opt, both, device, sizes=((24, '24 MP'), (8.3, '4K'))):
    """8-bit photos on the device against a copy of the same bytes, and training steps against the plain path."""
    for arch, network in both:
        network.to(device)
        for megapixels, name in sizes:
            sides = workloads.enhance_on_gpu(network, noisy_photo(megapixels), device)
            milliseconds = [1e3 * seconds for seconds in time_in_turn(sides, 20)]
            table.add(f'{arch}, CUDA, {name}, 8 bit on the device', 'ms', milliseconds, 'copy of the same bytes')
        sides = [workloads.training_step(arch, fused, opt.batch, device) for fused in (True, False)]
        milliseconds = [1e3 * seconds for seconds in time_in_turn(sides, opt.repeats)]
        table.add(f'{arch}, CUDA, training step, {opt.batch} x 512 x 512', 'ms', milliseconds, 'plain path')


def add_folder(table, opt, folder):
    """inference.py over a folder once it has started, against a loop that only reads and writes the same files.

    By default it looks for noise that shows, with denoise 0 it does not. Each side has a process of its own, for
    inference.py tunes the allocator of its process.
    """
    source, result = os.path.join(folder, 'in'), os.path.join(folder, 'out')
    workloads.make_photos(8.2, opt.photos, source)
    with start_process() as ours, start_process() as other:

        def enhance(denoise):
            ask = workloads.enhance_folder, opt.checkpoints_file, source, result, denoise
            return lambda: ours.submit(*ask).result()

        sides = enhance(0.0), enhance(-1.0), lambda: other.submit(workloads.copy_folder, source, result).result()
        without, default, copied = time_in_turn(sides, opt.repeats)
    name = f'inference.py on {opt.photos} of 8.2 MP, started'
    table.add(name, 's', (default, copied), 'imread + imwrite')
    table.add(f'{name}, --denoise 0', 's', (without, copied), 'imread + imwrite')


def add_start(table, opt, folder):
    """inference.py on one small photo from start to end, against importing torch."""
    path, result = os.path.join(folder, 'one.jpg'), os.path.join(folder, 'one')
    write_photo(path, noisy_photo(0.12))
    command = [sys.executable, os.path.join(ROOT, 'inference.py'), '--images_dir', path, '--result_dir', result]
    command += ['--overwrite', '--checkpoints_file', opt.checkpoints_file]
    sides = (
        lambda: subprocess.run(command, check=True, capture_output=True),
        lambda: subprocess.run([sys.executable, '-c', 'import torch'], check=True),
    )
    seconds = time_in_turn(sides, opt.repeats)
    table.add('inference.py on one 0.1 MP photo, start to end', 's', seconds, 'python -c "import torch"')


def add_memory_of_inference(table, opt):
    """Peak memory of inference.py, against a process that only imports."""
    empty = measure_peak(workloads.do_nothing)
    for name, megapixels, count in (('folder of 24 MP', 24, 4), ('one 100 MP photo', 100, 1)):
        with tempfile.TemporaryDirectory() as folder:
            source, result = os.path.join(folder, 'in'), os.path.join(folder, 'out')
            workloads.make_photos(megapixels, count, source)
            for more, denoise in (('', -1.0), (', --denoise 1', 1.0)):
                used = measure_peak(workloads.enhance_folder, opt.checkpoints_file, source, result, denoise)
                row = f'inference.py, peak memory, {name}{more}'
                table.add(row, 'GB', (used, empty), 'a process that imported torch')


if __name__ == '__main__':
    utils.parse_overrides(opt, RULES, __file__)
    utils.run_script(main, opt)
