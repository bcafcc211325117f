"""JPEG on the GPU: nvJPEG through torchvision, where torchvision has it.

torchvision's codec works on a CUDA stream of its own, which in 0.28 does not wait for the caller's: decoding may write
into memory that queued kernels still read, encoding may read what they have not written yet (pytorch/vision issues 8587
and 9060, pull request 9606). So whoever uses the device while this codec is in use does so under `exclusive`.
"""

import contextlib
import functools
import sys
import threading

import cv2
import numpy as np
import torch

LOCK = threading.RLock()


@contextlib.contextmanager
def exclusive(device):
    """The device for one thread alone, idle when it starts and when it ends."""
    with LOCK:
        torch.cuda.synchronize(device)
        try:
            yield
        finally:
            torch.cuda.synchronize(device)


def decode(data, device):
    """The (H, W, 3) uint8 RGB pixels of a JPEG's bytes, as they are stored; None where nvJPEG does not take it."""
    return attempt(run_decoder, data, device)


def encode(pixels, quality, device):
    """The bytes, as a uint8 array, of a baseline 4:4:4 JPEG of (H, W, 3) uint8 BGR pixels; None where nvJPEG fails.

    Args:
        quality: 1 to 100.
    """
    return attempt(run_encoder, pixels, quality, device)


def attempt(run, *values):
    """run(codec, *values), whose last value is the device; None where there is no codec or it refuses."""
    codec = load_codec(values[-1])
    if codec is None:
        return None
    try:
        return run(codec, *values)
    except RuntimeError:  # a kind of JPEG that it does not know, damaged, or the device is full: for OpenCV to say
        return None


def run_decoder(codec, data, device):
    with exclusive(device):
        rgb = codec.decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), codec.ImageReadMode.RGB, device)
        return rgb.permute(1, 2, 0).contiguous().cpu().numpy()


def run_encoder(codec, pixels, quality, device):
    with exclusive(device):
        rgb = torch.from_numpy(pixels).to(device).permute(2, 0, 1).flip(0).contiguous()
        torch.cuda.synchronize(device)  # the encoder does not wait for these
        return codec.encode_jpeg(rgb, quality).cpu().numpy()


@functools.lru_cache(maxsize=1)
def load_codec(device):
    """torchvision.io, or None (said once) where it is not there or differs from OpenCV on a trial.

    Called before threads start, so that one trial serves them all.
    """
    try:
        from torchvision import io

        photo = cv2.resize(np.random.default_rng(0).integers(0, 255, (5, 6, 3), np.uint8), (83, 61))
        data = cv2.imencode('.jpg', photo)[1]
        decoded = run_decoder(io, data.tobytes(), device), cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
        encoded = cv2.imdecode(run_encoder(io, photo, 95, device), cv2.IMREAD_COLOR), photo
        for what, (ours, theirs) in {'decoder': decoded, 'encoder': encoded}.items():
            if ours is None or ours.shape != theirs.shape or cv2.absdiff(ours, theirs).mean() > 2:
                raise RuntimeError(f'its {what} differs from OpenCV')
    except Exception as error:  # whatever a driver may raise: OpenCV always works
        print(f'note: JPEG on the CPU: nvJPEG is not usable ({error})', file=sys.stderr)
        return None
    return io
