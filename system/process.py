"""This process's share of the machine: cores, threads and memory; what a result may depend on."""

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from collections import deque

PACKAGES = ('torch', 'numpy', 'numba', 'cv2', 'PIL', 'skimage', 'av')


def tune_malloc():
    """Let glibc keep freed arrays of up to 32 MB instead of returning them to the system; elsewhere nothing.

    Photo-sized temporaries would else be paged in anew each time: a third of test.py's time, a tenth of inference.py's.
    """
    if sys.platform == 'linux':
        libc = ctypes.CDLL(None)
        if hasattr(libc, 'mallopt'):
            libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, its maximum
            libc.mallopt(-1, 64 << 20)  # M_TRIM_THRESHOLD


def use_wide_vectors():
    """Let Numba, which is not imported yet, fill 512-bit registers, of which it uses half on Intel's CPUs unless told.

    A fifth faster. CPUs with VBMI (Ice Lake and later) do not slow down for them, as older ones do; AMD's fill them.
    For inference.py and train.py, whose time is the kernels'.
    """
    try:
        from llvmlite import binding
    except ImportError:
        return
    features = binding.get_host_cpu_features()
    if features.get('avx512vbmi') and not binding.get_host_cpu_name().startswith('znver'):
        os.environ.setdefault('NUMBA_CPU_FEATURES', f'{features.flatten()},-prefer-256-bit')


def cores():
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def map_in_order(pool, work, items, count):
    """Yield work(item) of every item in order, with up to `count` of them at work on a pool of threads."""
    pending = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) >= count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def describe_machine():
    """What a result may depend on: this code's commit, versions, hardware and its load over the last minute."""
    import torch

    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    processor = platform.processor() or platform.machine()
    if os.path.exists('/proc/cpuinfo'):
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            processor = next((line.split(':')[1].strip() for line in file if line.startswith('model name')), processor)
    commit = ['describe', '--always', '--abbrev=12', '--exclude=*', '--dirty=+changes']
    git = shutil.which('git')
    done = git and subprocess.run([git, '-C', folder, *commit], capture_output=True, text=True, check=False)
    return {
        'commit': done.stdout.strip() if git else '',
        'processor': processor,
        'cores': cores(),
        'load': round(os.getloadavg()[0], 1) if hasattr(os, 'getloadavg') else '',
        'gpu': torch.cuda.get_device_name() if torch.cuda.is_available() else '',
        'system': platform.platform(),
        'python': platform.python_version(),
        **{name: sys.modules[name].__version__ for name in PACKAGES if name in sys.modules},
    }
