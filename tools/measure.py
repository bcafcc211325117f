"""How the tools measure: photos, medians of functions that run in turn, peak memory of a process."""

import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor

import cv2
import numpy as np

from photos.picture import read_photo

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def noisy_photo(megapixels):
    """A dark 3 : 2 photo (H, W, 3) uint8 with the detail and noise of a camera's, so that its JPEG has a usual size."""
    height = round((megapixels * 1e6 * 2 / 3) ** 0.5)
    size = round(height * 1.5), height
    photo = read_photo(os.path.join(ROOT, 'sample_imgs', 'raccoon.jpg'))
    photo = cv2.resize(photo, size, interpolation=cv2.INTER_CUBIC)
    noise = np.random.default_rng(0).normal(0, 2, (*size[::-1], 1)).astype(np.float32)
    return np.clip(photo + noise, 0, 255).astype(np.uint8)


def time_in_turn(functions, repeats):
    """Median seconds of each function; they run in turn, after a warm-up of each, so that load meets all alike."""
    times = [[] for _ in functions]
    for turn in range(repeats + 1):
        for function, record in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            if turn:
                record.append(time.perf_counter() - start)
    return [statistics.median(record) for record in times]


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
