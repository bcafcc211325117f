"""This process's share of the machine: cores and memory."""

import ctypes
import os
import sys


def keep_memory():
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


def available_memory():
    """Bytes of memory that this process may still take, divided among the ranks of this machine."""
    try:
        with open('/proc/meminfo', encoding='ascii') as file:
            free = next(int(line.split()[1]) * 1024 for line in file if line.startswith('MemAvailable'))
    except (OSError, StopIteration):
        free = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') if hasattr(os, 'sysconf') else 4 << 30
    return free // int(os.environ.get('LOCAL_WORLD_SIZE', '1'))
