"""Speed and memory as ratios, both sides measured in turn in one run.

    python -m tools.benchmark                     # everything, about 5 minutes on two cores
    python -m tools.benchmark --photos 4 --repeats 3

Prints a table and writes it to benchmark.json with versions and hardware. Plain is the torch path of model.py and
loss.py on the same device; fused is what the scripts run. Photos are sample_imgs/raccoon.jpg enlarged, with sensor-like
noise, so that their JPEGs are of ordinary size. Timings are medians after a warm-up; peak memory is that of a process
of its own.
"""

import contextlib
import copy
import io
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace

import cv2
import numpy as np
import torch

import inference
import utils
from kernels import enhance_photo, estimate_illumination, training_loss
from model import build_network
from photos.picture import read_photo, write_photo
from runs.checkpoint import load_network
from system.files import save_json
from system.process import cores

opt = SimpleNamespace(
    checkpoints_file='checkpoints/general/best.pth',
    photos=20,  # photos in the folder test
    repeats=5,  # timed runs of each side
    batch=16,  # photos of 512 x 512 in a training step
    result_json='benchmark.json',
    only='',  # leave this and folder empty; they tell a child process what to do
    folder='',
)


def main(opt):
    if opt.only:
        child(opt)
        return 0
    rows = []

    def row(what, unit, ours, other, versus):
        rows.append(
            {'what': what, 'unit': unit, 'ours': ours, 'other': other, 'other is': versus, 'ratio': other / ours}
        )
        print(f'{what:44} {ours:9.3f} {unit:3} {other:9.3f} {unit:3} {other / ours:7.1f}x  {versus}', flush=True)

    print(f'{"":44} {"ours":>13} {"other":>13} {"ratio":>8}  other is')
    photo = noisy_photo(2336, 3504)
    both = networks(opt)
    for arch, network in both:
        sides = [lambda n=network, f=fused: enhance_photo(n, photo, fused=f) for fused in (True, False)]
        fused, plain = pair(*sides, opt.repeats)
        row(f'{arch}, one 8.2 MP photo in memory', 's', fused, plain, 'plain path')
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'photo.jpg')
        write_photo(path, photo)
        arch, network = both[0]
        enhance, codec = pair(
            lambda: enhance_photo(network, photo), lambda: cv2.imwrite(path, cv2.imread(path)), opt.repeats
        )
        row(f'{arch}, one 8.2 MP photo in memory', 's', enhance, codec, 'cv2.imread + cv2.imwrite of it')
    for arch, _ in both:
        fused, plain = pair(training_step(arch, True, opt.batch), training_step(arch, False, opt.batch), opt.repeats)
        row(f'{arch}, training step, {opt.batch} x 512 x 512', 's', fused, plain, 'plain path')
    layout_rows(opt, row)
    fused, plain = (peak(opt, f'step_{kind}') for kind in ('fused', 'plain'))
    empty = peak(opt, 'nothing')
    row(f'hdrnet, memory of a step, {opt.batch} x 512 x 512', 'GB', fused - empty, plain - empty, 'plain path')
    if torch.cuda.is_available():
        cuda_rows(opt, row, torch.device('cuda'))
    folder_row(opt, row)
    for name, megapixels, count in (('folder of 24 MP', 24, 4), ('one 100 MP photo', 100, 1)):
        used = peak(opt, f'inference_{megapixels}_{count}')
        row(f'inference.py, peak memory, {name}', 'GB', used, empty, 'a process that imported torch')
    save_json(opt.result_json, {'machine': machine(), 'options': vars(opt), 'rows': rows})
    return 0


def networks(opt):
    """(arch, network) of the checkpoint and of an untrained network of the other architecture."""
    network, checkpoint = load_network(opt.checkpoints_file)
    torch.manual_seed(0)
    other = 'deepupe' if checkpoint['arch'] == 'hdrnet' else 'hdrnet'
    return [(checkpoint['arch'], network), (other, build_network(other).eval())]


def noisy_photo(height, width):
    """A dark photo of that size with the detail and noise of a camera's."""
    photo = cv2.resize(
        read_photo(os.path.join('sample_imgs', 'raccoon.jpg')), (width, height), interpolation=cv2.INTER_CUBIC
    )
    noise = np.random.default_rng(0).normal(0, 2, (height, width, 1)).astype(np.float32)
    return np.clip(photo + noise, 0, 255).astype(np.uint8)


def pair(ours, other, repeats):
    """Median seconds of two functions, run in turn after one warm-up of each."""
    times = ([], [])
    for turn in range(repeats + 1):
        for function, record in zip((ours, other), times, strict=True):
            start = time.perf_counter()
            function()
            if turn:
                record.append(time.perf_counter() - start)
    return tuple(statistics.median(record) for record in times)


def training_step(arch, fused, batch, device='cpu'):
    """A function that does one forward, loss, backward and optimiser step."""
    torch.manual_seed(0)
    network = build_network(arch).to(device).train()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    lowres = torch.rand(batch, 3, 256, 256, device=device)
    fullres = torch.rand(batch, 3, 64, 64, device=device)
    fullres = torch.nn.functional.interpolate(fullres, (512, 512), mode='bilinear').contiguous()
    target = fullres.sqrt()

    def step():
        light = estimate_illumination(network, lowres, fullres, fused)
        losses = training_loss(network, fullres, light, target, True, arch, fused=fused)
        optimizer.zero_grad()
        losses['total'].backward()
        optimizer.step()

    return step


def layout_rows(opt, row):
    """The coefficient network's forward and backward in other forms than train.py runs it: why it does not."""
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    lowres = torch.rand(opt.batch, 3, 256, 256, device=device)
    network = build_network('hdrnet').to(device).train()
    last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    compiled = torch.compile(network.predict_grid)

    def passes(predict_grid, lowres):
        def run():
            predict_grid(lowres).square().sum().backward()
            if device.type == 'cuda':
                torch.cuda.synchronize()

        return run

    plain = passes(network.predict_grid, lowres)
    forms = {'channels_last': passes(last.predict_grid, lowres.contiguous(memory_format=torch.channels_last))}
    forms['torch.compile'] = passes(compiled, lowres)
    for name, form in forms.items():
        try:
            seconds = pair(form, plain, opt.repeats)
        except Exception as error:  # no compiler on this machine
            print(f'{name}: left out ({str(error).strip().splitlines()[0]})', file=sys.stderr)
            continue
        row(f'hdrnet, coefficient network, {name}', 's', *seconds, 'as train.py runs it')


def cuda_rows(opt, row, device, photo_size=(4000, 6000), frame_size=(2160, 3840)):
    """8-bit photos on the device against a copy of the same bytes, and training steps against the plain path."""
    from kernels import cuda

    def synchronized(function):
        def run():
            function()
            if device.type == 'cuda':
                torch.cuda.synchronize()

        return run

    for arch, network in networks(opt):
        network.to(device)
        for size, name in ((photo_size, '24 MP'), (frame_size, '4K')):
            photo = torch.from_numpy(noisy_photo(*size)).to(device)
            lowres = torch.rand(1, 3, 256, 256, device=device)

            @torch.inference_mode()
            def frame(photo=photo, lowres=lowres, network=network):
                cuda.enhance(photo, network.predict_grid(lowres)[0], network.guide.fold(lowres),
                                   align_corners=network.align_corners, clip=network.clip, eps=network.eps,
                                   pedestal=network.pedestal)  # fmt: skip

            ours, copy = pair(synchronized(frame), synchronized(photo.clone), 20)
            row(f'{arch}, CUDA, {name}, 8 bit on the device', 'ms', 1e3 * ours, 1e3 * copy, 'copy of the same bytes')
        steps = [synchronized(training_step(arch, fused, opt.batch, device)) for fused in (True, False)]
        fused, plain = pair(*steps, opt.repeats)
        row(f'{arch}, CUDA, training step, {opt.batch} x 512 x 512', 'ms', 1e3 * fused, 1e3 * plain, 'plain path')


def folder_row(opt, row):
    """inference.py over a folder once it has started, against a loop that only reads and writes the same files."""
    with tempfile.TemporaryDirectory() as folder:
        source, result = os.path.join(folder, 'in'), os.path.join(folder, 'out')
        make_photos(8.2, opt.photos, source)

        # each side in a process of its own that has started: inference.py tunes the allocator of its process
        spawn = {'max_workers': 1, 'mp_context': multiprocessing.get_context('spawn')}
        with ProcessPoolExecutor(**spawn) as ours, ProcessPoolExecutor(**spawn) as other:
            seconds = pair(
                lambda: ours.submit(run_inference, opt, source, result).result(),
                lambda: other.submit(run_codec, source, result).result(),
                opt.repeats,
            )
        row(f'inference.py on {opt.photos} of 8.2 MP, started', 's', *seconds, 'imread + imwrite')
        one = os.path.join(folder, 'one.jpg')
        write_photo(one, noisy_photo(300, 400))
        command = [sys.executable, 'inference.py', '--images_dir', one, '--result_dir', result, '--overwrite',
                   '--checkpoints_file', opt.checkpoints_file]  # fmt: skip
        ours, importing = pair(
            lambda: subprocess.run(command, check=True, capture_output=True),
            lambda: subprocess.run([sys.executable, '-c', 'import torch'], check=True),
            opt.repeats,
        )
        row('inference.py on one 0.1 MP photo, start to end', 's', ours, importing, 'python -c "import torch"')


def run_inference(opt, source, result):
    """inference.py on a folder, in this process."""
    values = {'images_dir': source, 'result_dir': result, 'checkpoints_file': opt.checkpoints_file, 'overwrite': True}
    with contextlib.redirect_stdout(io.StringIO()):
        inference.main(SimpleNamespace(**{**vars(inference.opt), **values}))


def run_codec(source, result):
    """The plain loop that inference.py is compared with."""
    for name in os.listdir(source):
        cv2.imwrite(os.path.join(result, name), cv2.imread(os.path.join(source, name)))


def peak(opt, what):
    """Peak memory in GB of a process that makes one measurement."""
    command = [sys.executable, '-m', 'tools.benchmark', '--only', what, '--batch', str(opt.batch), '--checkpoints_file',
               opt.checkpoints_file]  # fmt: skip
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def make_photos(megapixels, count, folder):
    """JPEGs in folder, made by a process of its own, so that its memory is not counted as ours."""
    command = [sys.executable, '-m', 'tools.benchmark', '--only', f'photos_{megapixels}_{count}', '--folder', folder]
    subprocess.run(command, check=True, capture_output=True)


def child(opt):
    """Do one thing and print this process's peak memory in GB."""
    kind, *rest = opt.only.split('_')
    if kind == 'step':
        step = training_step('hdrnet', rest == ['fused'], opt.batch)
        step()
        step()
    elif kind == 'photos':
        height = round((float(rest[0]) * 1e6 * 2 / 3) ** 0.5)
        os.makedirs(opt.folder, exist_ok=True)
        photo = noisy_photo(height, round(height * 1.5))
        for i in range(int(rest[1])):
            write_photo(os.path.join(opt.folder, f'{i}.jpg'), np.roll(photo, 16 * i, axis=1))
    elif kind == 'inference':
        with tempfile.TemporaryDirectory() as folder:
            make_photos(*rest, folder)
            run_inference(opt, folder, os.path.join(folder, 'out'))
    with open('/proc/self/status', encoding='ascii') as file:
        print(next(int(line.split()[1]) for line in file if line.startswith('VmHWM')) / 1e6)


def machine():
    """Versions and hardware, for the JSON."""
    import numba

    processor = platform.processor() or platform.machine()
    if os.path.exists('/proc/cpuinfo'):
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            processor = next((line.split(':')[1].strip() for line in file if line.startswith('model name')), processor)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ''
    versions = {m.__name__: m.__version__ for m in (torch, numba, cv2, np)}
    return {'processor': processor, 'cores': cores(), 'gpu': gpu, 'python': platform.python_version(), **versions}


if __name__ == '__main__':
    utils.run_script(main, opt)
