"""What tools.benchmark measures: training steps, the coefficient network, photos on a GPU, inference.py on a folder."""

import contextlib
import copy
import io
import os
from types import SimpleNamespace

import cv2
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import inference
from kernels import enhance_photo, estimate_illumination, rule_of, training_loss
from model import build_network
from photos.picture import write_photo
from runs.checkpoint import load_network
from tools.measure import measure_peak, noisy_photo


def load_both(checkpoints_file):
    """[(arch, network)] of a checkpoint, and of an untrained network of the other architecture."""
    network, checkpoint = load_network(checkpoints_file)
    torch.manual_seed(0)
    other = 'deepupe' if checkpoint['arch'] == 'hdrnet' else 'hdrnet'
    return [(checkpoint['arch'], network), (other, build_network(other).eval())]


def plain(network):
    """A copy that takes the plain torch path."""
    network = copy.deepcopy(network)
    network.fused = False
    return network


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


def synchronized(function, device):
    """A function that also waits for the device."""

    def run():
        function()
        if device.type == 'cuda':
            torch.cuda.synchronize()

    return run


def training_step(arch, fused, batch, device='cpu', side=512):
    """A function that does one forward, loss, backward and optimiser step on photos of side x side."""
    torch.manual_seed(0)
    network = build_network(arch).to(device).train()
    network.fused = fused
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    lowres = torch.rand(batch, 3, 256, 256, device=device)
    fullres = torch.rand(batch, 3, side // 8, side // 8, device=device)
    fullres = torch.nn.functional.interpolate(fullres, (side, side), mode='bilinear').contiguous()
    target = fullres.sqrt()

    def step():
        illumination = estimate_illumination(network, lowres, fullres)
        losses = training_loss(network, fullres, illumination, target, True, arch)
        optimizer.zero_grad()
        losses['total'].backward()
        optimizer.step()

    return synchronized(step, torch.device(device))


def run_steps(arch, fused, batch):
    """Two training steps: one allocates, one reuses."""
    step = training_step(arch, fused, batch)
    step()
    step()


def coefficient_passes(batch, device):
    """{form: function} of the coefficient network's forward and backward: as train.py runs it (''), and other forms."""
    lowres = torch.rand(batch, 3, 256, 256, device=device)
    network = build_network('hdrnet').to(device).train()
    last = copy.deepcopy(network).to(memory_format=torch.channels_last)

    def passes(predict_grid, lowres):
        return synchronized(lambda: predict_grid(lowres).square().sum().backward(), device)

    return {
        '': passes(network.predict_grid, lowres),
        'channels_last': passes(last.predict_grid, lowres.contiguous(memory_format=torch.channels_last)),
        'torch.compile': passes(torch.compile(network.predict_grid), lowres),
    }


def enhance_on_gpu(network, photo, device):
    """Functions that enhance an 8-bit photo which lies on the GPU, and that copy the same bytes."""
    from kernels import cuda

    photo = torch.from_numpy(photo).to(device)
    lowres = torch.rand(1, 3, 256, 256, device=device)

    @torch.inference_mode()
    def enhance():
        cuda.enhance(photo, network.predict_grid(lowres)[0], network.guide.fold(lowres), rule_of(network))

    return synchronized(enhance, device), synchronized(photo.clone, device)


def copy_by_opencv(path):
    """Decode and encode one photo."""
    cv2.imwrite(path, cv2.imread(path))


def copy_folder(source, result):
    """The plain loop that inference.py is compared with: read and write each photo."""
    for name in os.listdir(source):
        cv2.imwrite(os.path.join(result, name), cv2.imread(os.path.join(source, name)))


def enhance_folder(checkpoints_file, source, result, denoise=-1.0):
    """inference.py on a folder, in this process."""
    values = {'images_dir': source, 'result_dir': result, 'checkpoints_file': checkpoints_file, 'denoise': denoise}
    with contextlib.redirect_stdout(io.StringIO()):
        inference.main(SimpleNamespace(**{**vars(inference.opt), **values, 'overwrite': True}))


def make_photos(megapixels, count, folder):
    """JPEGs in a folder, by a process of its own, so that its memory is not counted as ours."""
    measure_peak(write_photos, megapixels, count, folder)


def write_photos(megapixels, count, folder):
    """JPEGs of one photo, each shifted, so that no two are equal."""
    os.makedirs(folder, exist_ok=True)
    photo = noisy_photo(megapixels)
    for i in range(count):
        write_photo(os.path.join(folder, f'{i}.jpg'), np.roll(photo, 16 * i, axis=1))


def do_nothing():
    """What a process needs that only imports."""
