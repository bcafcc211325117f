"""Speed and memory as ratios, both sides measured in turn in one run.

    python -m tools.benchmark                     # everything, about 5 minutes on two cores
    python -m tools.benchmark --photos 4 --repeats 3
    python -m tools.benchmark --video libx264,libx265 --frames 60 --width 3840 --height 2160    # of video alone
    python -m tools.benchmark --systems sci=my_wrappers:sci,iat=my_wrappers:iat                 # of other systems alone

Prints a table and writes it to benchmark.json with versions, hardware and load. Plain is the torch path of model.py and
loss.py on the same device; fused is what the scripts run. A system is NAME=MODULE:FUNCTION, a function that takes an
(H, W, 3) uint8 RGB array and returns the enhanced one. Photos are sample_imgs/cave.jpg enlarged, with sensor-like
noise, so that their JPEGs are of ordinary size. Timings are medians after a warm-up; peak memory is that of a process
of its own.
"""

import contextlib
import copy
import functools
import importlib
import io
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from types import SimpleNamespace

import cv2
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import inference
import utils
from kernels import enhance_photo, rule_of
from model import ARCHITECTURES, build_network
from photos.picture import read_photo, write_photo
from runs.checkpoint import ROOT, load_network
from runs.state import State
from scoring.protocol import gamma_levels
from system.files import save_json
from system.process import describe_machine, tune_malloc
from train import FusedStep

with contextlib.suppress(ImportError):  # of PyAV, for --video alone
    import av

    from video.enhance import enhance_video
    from video.reader import Source, read_frames
    from video.writer import Result

opt = SimpleNamespace(
    checkpoints_file='checkpoints/general/best.pth',
    photos=20,  # photos in the folder test
    repeats=5,  # timed runs of each side
    batch=16,  # photos of 512 x 512 in a training step
    video='',  # encoders of a clip, commas between several: what enhancing it takes is measured, and nothing else
    width=1920,
    height=1080,
    frames=90,
    systems='',  # NAME=MODULE:FUNCTION, commas between several: their time for one photo is measured, and nothing else
    result_json='benchmark.json',
)

SIZES = {'256': (256, 256), '512': (512, 512), '1080p': (1080, 1920), '4K': (2160, 3840), '24 MP': (4000, 6000)}
RULES = {'photos': (1, None), 'repeats': (1, None), 'batch': (2, None)}
RULES |= {'width': (64, None), 'height': (64, None), 'frames': (2, None)}


def main(opt):
    utils.check_options(opt, RULES)
    if opt.video and 'av' not in sys.modules:
        raise ValueError("--video: needs PyAV: pip install 'av>=18'")
    machine, rows = describe_machine(), []  # with the load that others cause
    costs = [] if opt.video or opt.systems else measure_costs(opt)
    print(f'{"":44} {"ours":>13} {"other":>13} {"ratio":>8}  other is')

    def add(what, unit, sides, versus):
        """A row; sides are (ours, other) in the unit."""
        ours, other = sides
        row = {'what': what, 'unit': unit, 'ours': ours, 'other': other, 'other is': versus, 'ratio': other / ours}
        rows.append(row)
        print(f'{what:44} {ours:9.3f} {unit:3} {other:9.3f} {unit:3} {row["ratio"]:7.1f}x  {versus}', flush=True)

    network, checkpoint = load_network(opt.checkpoints_file)
    both = {arch: build_network(arch).eval() for arch in ('hdrnet', 'deepupe')} | {checkpoint['arch']: network}
    with tempfile.TemporaryDirectory() as folder:
        if opt.video:
            for codec in opt.video.split(','):
                add_video(add, opt, network, codec, os.path.join(folder, codec))
        elif opt.systems:
            add_systems(add, opt)
        else:
            add_photos(add, opt, both, os.path.join(folder, 'photo.jpg'))
            add_steps(add, opt, both)
            if torch.cuda.is_available():
                add_cuda(add, opt, both)
            add_folder(add, opt, os.path.join(folder, 'folder'))
            add_start(add, opt, os.path.join(folder, 'one.jpg'))
            add_memory(add, opt, folder)
    save_json(opt.result_json, {'machine': machine, 'options': vars(opt), 'costs': costs, 'rows': rows})
    return 0


def measure_costs(opt):
    """Parameters, multiply-accumulates, seconds and peak memory of one 8-bit photo of each size, printed too."""
    rows, empty = [], measure_peak(int)
    print(f'{"":16} {"parameters":>10} {"GMAC":>8} {"seconds":>8} {"GB":>6}')
    for arch in ARCHITECTURES:
        network = build_network(arch).eval()
        parameters = sum(value.numel() for value in network.parameters())
        for name, (height, width) in SIZES.items():
            photo = np.zeros((height, width, 3), np.uint8)
            (seconds,) = time_in_turn([functools.partial(enhance_photo, network, photo)], opt.repeats)
            memory = measure_peak(enhance_black, arch, height, width) - empty
            macs = count_macs(network, height * width) / 1e9
            rows.append([arch, name, parameters, macs, seconds, memory])
            print(f'{arch + ", " + name:16} {parameters:10,} {macs:8.3f} {seconds:8.4f} {memory:6.2f}', flush=True)
    return rows


def add_photos(add, opt, both, path):
    """One photo in memory: fused against plain, and against a JPEG's decoding and encoding."""
    photo = noisy_photo(8.2)
    write_photo(path, photo)
    for arch, network in both.items():
        plain = copy.deepcopy(network)
        plain.fused = False
        sides = [functools.partial(enhance_photo, net, photo) for net in (network, plain)]
        add(f'{arch}, one 8.2 MP photo in memory', 's', time_in_turn(sides, opt.repeats), 'plain path')
    for versus, other in (
        ('cv2.imread + cv2.imwrite of it', lambda: cv2.imwrite(path, cv2.imread(path))),
        ('OpenCV CLAHE', lambda: equalize(photo)),
        ('a gamma table', lambda: cv2.LUT(photo, gamma_levels(0.4))),
    ):
        sides = functools.partial(enhance_photo, both['hdrnet'], photo), other
        add('hdrnet, one 8.2 MP photo in memory', 's', time_in_turn(sides, opt.repeats), versus)


def add_systems(add, opt):
    """One photo in memory by each of opt.systems, in a process of its own that imports them, against ours in turn."""

    def side(process, system):
        return lambda: process.submit(run_system, system, opt.checkpoints_file).result()

    for name, _, system in (part.strip().partition('=') for part in opt.systems.split(',')):
        with start_process() as ours, start_process() as other:
            sides = side(ours, None), side(other, system)
            add('one 8.2 MP photo in memory', 's', time_in_turn(sides, opt.repeats), name)


def add_steps(add, opt, both, name='', device='cpu'):
    """A training step: fused against plain."""
    for arch in both:
        seconds = time_in_turn([training_step(arch, fused, opt.batch, device) for fused in (True, False)], opt.repeats)
        add(f'{arch}, {name}training step, {opt.batch} x 512 x 512', 's', seconds, 'plain path')


def add_cuda(add, opt, both):
    """8-bit photos on the device against a copy of the same bytes, and training steps against the plain path."""
    from kernels import cuda

    for arch, network in both.items():
        network = copy.deepcopy(network).cuda()
        lowres = torch.rand(1, 3, 256, 256, device='cuda')
        for megapixels, name in ((24, '24 MP'), (8.3, '4K')):
            photo = torch.from_numpy(noisy_photo(megapixels)).cuda()

            @torch.inference_mode()
            def enhance(network=network, photo=photo, lowres=lowres):
                cuda.enhance(photo, cuda.predict_grid(network, lowres)[0], network.guide.fold(lowres), rule_of(network))

            sides = time_in_turn([synchronized(enhance), synchronized(photo.clone)], 20)
            what = f'{arch}, CUDA, {name}, 8 bit on the device'
            add(what, 'ms', [1e3 * seconds for seconds in sides], 'copy of the same bytes')
    add_steps(add, opt, both, 'CUDA, ', 'cuda')


def add_folder(add, opt, folder):
    """inference.py over a folder once it has started, against a loop that only reads and writes the same files."""
    source, result = os.path.join(folder, 'in'), os.path.join(folder, 'out')
    write_photos(8.2, opt.photos, source)
    with start_process() as ours, start_process() as other:  # inference.py tunes its process's allocator

        def enhance(denoise):
            return lambda: ours.submit(run_inference, opt.checkpoints_file, source, result, denoise).result()

        sides = enhance(0.0), enhance(-1.0), lambda: other.submit(copy_folder, source, result).result()
        without, default, copied = time_in_turn(sides, opt.repeats)
    name = f'inference.py on {opt.photos} of 8.2 MP, started'
    add(name, 's', (default, copied), 'imread + imwrite')
    add(f'{name}, --denoise 0', 's', (without, copied), 'imread + imwrite')


def add_start(add, opt, path):
    """inference.py on one small photo from start to end, against importing torch."""
    write_photo(path, noisy_photo(0.12))
    ours = [os.path.join(ROOT, 'inference.py'), path, '--overwrite', '--checkpoints_file', opt.checkpoints_file]
    sides = [
        lambda command=command: subprocess.run([sys.executable, *command], check=True, capture_output=True)
        for command in (ours, ['-c', 'import torch'])
    ]
    seconds = time_in_turn(sides, opt.repeats)
    add('inference.py on one 0.1 MP photo, start to end', 's', seconds, 'python -c "import torch"')


def add_memory(add, opt, folder):
    """Peak memory of training steps, less that of a process which only imports, and of inference.py beside it."""
    empty = measure_peak(int)
    sides = [measure_peak(run_steps, 'hdrnet', fused, opt.batch) - empty for fused in (True, False)]
    add(f'hdrnet, memory of a step, {opt.batch} x 512 x 512', 'GB', sides, 'plain path')
    for name, megapixels, count in (('folder of 24 MP', 24, 4), ('one 100 MP photo', 100, 1)):
        source = os.path.join(folder, name)
        write_photos(megapixels, count, source)
        for more, denoise in (('', -1.0), (', --denoise 1', 1.0)):
            used = measure_peak(run_inference, opt.checkpoints_file, source, f'{source} out', denoise)
            add(f'inference.py, peak memory, {name}{more}', 'GB', (used, empty), 'a process that imported torch')


def add_video(add, opt, network, codec, path):
    """Enhancing a clip against decoding and encoding alone with the same codec settings.

    Encoding alone is measured twice: of the clip's own frames, and of its enhanced ones, which are brighter and take
    the encoder longer.
    """
    what = f'{codec}, {opt.width} x {opt.height}, {opt.frames} frames'
    clip, result, other = (f'{path}_{name}.mkv' for name in ('clip', 'result', 'other'))
    write_clip(clip, codec, opt)
    peak = measure_peak(run_inference, opt.checkpoints_file, clip, result)
    add(f'{what}, memory', 'GB', (peak, measure_peak(int)), 'a process that imported torch')
    tune_malloc()
    sides = (
        functools.partial(enhance_video, network, clip, result),
        functools.partial(copy_video, clip, clip, other),
        functools.partial(copy_video, result, clip, other),
    )
    ours, own, enhanced = time_in_turn(sides, opt.repeats)
    add(what, 's', (ours, own), 'decoding and encoding it')
    add(what, 's', (ours, enhanced), 'decoding and encoding the enhanced one')


# ------------------------------------------------------------------------------------------------ what is measured


def noisy_photo(megapixels):
    """A dark 3 : 2 photo (H, W, 3) uint8 with the detail and noise of a camera's, so that its JPEG has a usual size."""
    height = round((megapixels * 1e6 * 2 / 3) ** 0.5)
    size = round(height * 1.5), height
    photo = read_photo(os.path.join(ROOT, 'sample_imgs', 'cave.jpg'))
    photo = cv2.resize(photo, size, interpolation=cv2.INTER_CUBIC)
    noise = np.random.default_rng(0).normal(0, 2, (*size[::-1], 1)).astype(np.float32)
    return np.clip(photo + noise, 0, 255).astype(np.uint8)


def equalize(photo):
    """OpenCV's CLAHE of the lightness in Lab."""
    lab = cv2.cvtColor(photo, cv2.COLOR_RGB2LAB)
    lab[..., 0] = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8)).apply(lab[..., 0])
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)


@functools.lru_cache(maxsize=1)
def load_system(system, checkpoints_file):
    """(photo, function photo -> photo) of MODULE:FUNCTION, None is ours.

    Raises:
        ValueError: there is none.
    """
    if system is None:
        network, _ = load_network(checkpoints_file)
        return noisy_photo(8.2), lambda photo: enhance_photo(network, photo)[0]
    module, _, function = system.partition(':')
    try:
        return noisy_photo(8.2), getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f'systems: expected NAME=MODULE:FUNCTION, got {system!r} ({error})') from error


def run_system(system, checkpoints_file):
    """A system's result of a photo of 8.2 MP, in this process; ValueError where it is not such a photo."""
    photo, function = load_system(system, checkpoints_file)
    result = np.asarray(function(photo.copy()))  # it may work in place
    if result.shape != photo.shape or result.dtype != np.uint8:
        raise ValueError(f'{system}: expected {photo.shape} uint8 as its result, got {result.shape} {result.dtype}')


def write_photos(megapixels, count, folder):
    """JPEGs of one photo, each shifted, so that no two are equal."""
    os.makedirs(folder, exist_ok=True)
    photo = noisy_photo(megapixels)
    for i in range(count):
        write_photo(os.path.join(folder, f'{i}.jpg'), np.roll(photo, 16 * i, axis=1))


def count_macs(network, pixels):
    """Multiply-accumulates of a photo: those of the coefficient network, counted by torch, and of each pixel.

    A pixel takes 4 for each unit of the folded guide, 8 x 12 for the trilinear sample of the grid, 9 for the affine.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.predict_grid(torch.zeros(1, 3, 256, 256))
    units = len(network.guide.fold(torch.zeros(1, 3, 1, 1)).mix)
    return counter.get_total_flops() // 2 + pixels * (4 * units + 8 * 12 + 9)


def enhance_black(arch, height, width):
    """One photo by an untrained network."""
    enhance_photo(build_network(arch).eval(), np.zeros((height, width, 3), np.uint8))


def training_step(arch, fused, batch, device='cpu', side=512):
    """A function that does one forward, loss, backward and optimiser step on photos of side x side."""
    torch.manual_seed(0)
    network = build_network(arch).to(device).train()
    network.fused = fused
    optimizer = State(network, 1e-3).optimizer
    model = FusedStep(network, False, arch, {}, graph=device == 'cuda')
    lowres = torch.rand(batch, 3, 256, 256, device=device)
    fullres = torch.rand(batch, 3, side // 8, side // 8, device=device)
    fullres = torch.nn.functional.interpolate(fullres, (side, side), mode='bilinear').contiguous()
    target = fullres.sqrt()

    def step():
        _, losses = model(lowres, fullres, target)
        optimizer.zero_grad()
        losses['total'].backward()
        optimizer.step()

    return synchronized(step) if device == 'cuda' else step


def run_steps(arch, fused, batch):
    """Two training steps: one allocates, one reuses."""
    step = training_step(arch, fused, batch)
    step()
    step()


def copy_folder(source, result):
    """The plain loop that inference.py is compared with: read and write each photo."""
    for name in os.listdir(source):
        cv2.imwrite(os.path.join(result, name), cv2.imread(os.path.join(source, name)))


def run_inference(checkpoints_file, source, result, denoise=-1.0):
    """inference.py on a folder or a file, in this process."""
    values = {'images_dir': source, 'result_dir': result, 'checkpoints_file': checkpoints_file, 'denoise': denoise}
    with contextlib.redirect_stdout(io.StringIO()):
        inference.main(SimpleNamespace(**{**vars(inference.opt), **values, 'overwrite': True}))


def write_clip(path, codec, opt):
    """A video of 30 frames a second that pans over a dark, noisy photo half as large again."""
    width, height = opt.width, opt.height
    photo = cv2.resize(noisy_photo(0.3), (width * 3 // 2, height * 3 // 2), interpolation=cv2.INTER_CUBIC) * 0.35
    rng = np.random.default_rng(0)
    noise = [rng.normal(0, 2, (height, width, 1)) for _ in range(8)]
    with av.open(path, 'w') as container:
        stream = container.add_stream(codec, 30, options={'crf': '20'})
        stream.width, stream.height, stream.pix_fmt = width, height, 'yuv420p'
        for i in range(opt.frames):
            x, y = (round(size / 4 * (1 + np.sin(i / period))) for size, period in ((width, 40), (height, 60)))
            picture = np.clip(photo[y : y + height, x : x + width] + noise[i % 8], 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format='rgb24')
            frame.pts, frame.time_base = i, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def copy_video(path, settings_of, result):
    """Decode and encode a video as enhance_video does, with the settings that it has for the video `settings_of`."""
    settings, source, output = Source(settings_of), Source(path), None
    with settings.container, source.container:
        for frame in read_frames(source):
            output = output or Result(result, result, settings, frame)
            output.write(frame)
        output.finish()


# ------------------------------------------------------------------------------------- how, for the other tools too


def synchronized(function):
    """A function that also waits for the GPU."""
    return lambda: (function(), torch.cuda.synchronize())


def time_in_turn(functions, repeats, clock=time.perf_counter):
    """Median seconds of each function by a clock; in turn, after a warm-up of each."""
    times = [[] for _ in functions]
    for _ in range(repeats + 1):
        for function, record in zip(functions, times, strict=True):
            start = clock()
            function()
            record.append(clock() - start)
    return [float(np.median(record[1:])) for record in times]


def start_process():
    """A process of its own, as an executor of one worker, which shares nothing with this one."""
    return ProcessPoolExecutor(1, multiprocessing.get_context('spawn'))


def measure_peak(function, *values):
    """Peak memory in GB of a process that starts, imports what this one imports, and calls function(*values)."""
    with start_process() as process:
        process.submit(function, *values).result()
        return process.submit(peak_memory).result()


def peak_memory():
    """Peak memory in GB of this process so far; nan where the system does not say."""
    if not os.path.exists('/proc/self/status'):
        return float('nan')
    with open('/proc/self/status', encoding='ascii') as file:
        return next(int(line.split()[1]) for line in file if line.startswith('VmHWM')) / 1e6


if __name__ == '__main__':
    utils.parse_overrides(opt, RULES, __file__)
    utils.run_script(main, opt)
