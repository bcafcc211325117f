"""How code is compiled by Numba and rows of pixels are shared among threads, for all rooms.

Kernels release the GIL and take a range of rows; `parallel_rows` shares the rows among Python threads. So they need no
OpenMP, can run in several threads at once, and survive fork.
"""

import contextlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
from numba import njit
from numba.core import event
from torch.utils.data import get_worker_info

from system.process import cores

# no nnan, ninf: a network gone wrong must show up as NaN in its output
FAST = {'reassoc', 'contract', 'arcp', 'nsz', 'afn'}


def kernel(function):
    """A compiled function that releases the GIL, kept beside its file or else in the user's cache folder.

    Numba compiles it anew when its own file has changed and looks at no other: what it inlines lies in that file.
    """
    compiled = njit(function, nogil=True, fastmath=FAST, error_model='numpy')
    with contextlib.suppress(RuntimeError):  # neither can be written: it is compiled in every process anew
        compiled.enable_caching()
    return compiled


def inlined(function):
    """A function that becomes a part of the kernels which call it."""
    return njit(function, fastmath=FAST, error_model='numpy', inline='always')


def either(photo):
    """(photo, nothing) or (nothing, photo): the same types for 8 and 16 bit, so that a kernel is compiled once."""
    nothing = (0,) * photo.ndim
    if photo.dtype == np.uint8:
        return photo, np.empty(nothing, np.uint16)
    return np.empty(nothing, np.uint8), photo


@lru_cache(maxsize=1)
def threads():
    """The pool that strips of rows run on, one thread per core that this process may use."""
    return ThreadPoolExecutor(cores(), 'kernels')


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=threads.cache_clear)  # a fork has none of the pool's threads


def parallel_rows(rows, work, smallest=16, step=1):
    """Call work(first, last) for strips of `smallest` steps of rows or more; returns the results in order."""
    edges = strip_edges(rows, smallest, step)
    if len(edges) == 2:
        return [work(0, rows)]
    return list(threads().map(work, edges[:-1], edges[1:]))


def strip_edges(rows, smallest=16, step=1):
    """First row of each strip that parallel_rows makes, a multiple of step, and `rows`; smallest counts steps."""
    # one strip in a DataLoader's worker: the others have the other cores
    steps = -(-rows // step)
    count = 1 if get_worker_info() else max(1, min(4 * cores(), steps // smallest))
    return [min(steps * i // count * step, rows) for i in range(count + 1)]


class Announcement(event.Listener):
    """Says on stderr, once, that a kernel is compiled, which Numba's cache on disk then keeps."""

    said = False

    def on_start(self, _):
        if not self.said:
            print('note: compiling for this machine, once: it takes 10 to 20 seconds', file=sys.stderr)
        self.said = True

    def on_end(self, _):
        pass


def announce_compiling():
    """A context, for scripts, in which the first kernel that is compiled is announced."""
    return event.install_listener('numba:compile', Announcement())
