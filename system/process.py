"""This process's share of the machine: cores and memory; what a result may depend on."""

import ctypes
import os
import platform
import shutil
import subprocess
import sys

PACKAGES = ('torch', 'numpy', 'numba', 'cv2', 'PIL', 'skimage')


def tune_malloc():
    """Let glibc keep freed arrays of up to 32 MB instead of returning them to the system; elsewhere nothing.

    Photo-sized temporaries would otherwise be paged in anew each time: a third of test.py's time, a tenth of
    inference.py's.
    """
    if sys.platform == 'linux':
        libc = ctypes.CDLL(None)
        if hasattr(libc, 'mallopt'):
            libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, its maximum
            libc.mallopt(-1, 64 << 20)  # M_TRIM_THRESHOLD


def cores():
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


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


def available_memory():
    """Bytes of memory that this process may still take, divided among the ranks of this machine.

    What is free in the machine, or what its control groups leave it, as containers and job schedulers set them.
    """
    try:
        with open('/proc/meminfo', encoding='ascii') as file:
            free = next(int(line.split()[1]) * 1024 for line in file if line.startswith('MemAvailable'))
    except (OSError, StopIteration):
        free = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') if hasattr(os, 'sysconf') else 4 << 30
    return min([free, *memory_left_by_groups()]) // int(os.environ.get('LOCAL_WORLD_SIZE', '1'))


def memory_left_by_groups(proc='/proc/self/cgroup', root='/sys/fs/cgroup'):
    """Bytes that each control group with a limit, from this process's own up to the root's, leaves to it.

    Args:
        proc: where the kernel lists the groups of this process, those of version 2 as '0::/a/b', those of version 1 as
            '9:memory:/a/b'.
        root: where they are mounted.
    """
    try:
        with open(proc, encoding='utf-8') as file:
            lines = [line.strip().split(':', 2) for line in file]
    except OSError:  # no Linux
        return []
    left = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers and 'memory' not in controllers.split(','):
            continue
        base = os.path.join(root, 'memory') if controllers else root
        names = ('memory.limit_in_bytes', 'memory.usage_in_bytes') if controllers else ('memory.max', 'memory.current')
        folder = os.path.normpath(os.path.join(base, path.lstrip('/')))
        while folder.startswith(base):
            limit, used = (read_number(os.path.join(folder, name)) for name in names)
            if limit is not None and used is not None:
                left.append(max(limit - used + reclaimable(folder), 0))
            folder = os.path.dirname(folder)
    return left


def read_number(path):
    """The whole number in a file; None where there is none, such as 'max'."""
    try:
        with open(path, encoding='ascii') as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def reclaimable(folder):
    """Bytes of a control group's use that are copies of files which nobody has used for a while."""
    try:
        with open(os.path.join(folder, 'memory.stat'), encoding='ascii') as file:
            numbers = dict(line.split() for line in file)
    except (OSError, ValueError):
        return 0
    return int(numbers.get('total_inactive_file', numbers.get('inactive_file', 0)))
