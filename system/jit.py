"""How the CPU kernels are compiled by Numba and shared among threads.

Kernels release the GIL and take a range of rows; `parallel_rows` shares the rows among Python threads. So they need no
OpenMP, can run in several threads at once, and survive fork.
"""

import contextlib
import glob
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numba
from numba import njit
from numba.core.caching import FunctionCache
from numba.core.codegen import get_host_cpu_features
from torch.utils.data import get_worker_info

from system.process import cores

WIDE = '+avx512vbmi,'  # CPUs with it (Ice Lake and later) do not slow down for vectors of 512 bit, as older ones do
# no nnan, ninf: a network gone wrong must show up as NaN in its output
FAST = {'reassoc', 'contract', 'arcp', 'nsz', 'afn'}


def use_wide_vectors():
    """Have LLVM fill 512-bit registers, of which it uses half on Intel's CPUs unless told: a fifth faster."""
    features = get_host_cpu_features()
    if numba.config.CPU_FEATURES is None and WIDE in features:
        numba.config.CPU_FEATURES = f'{features},-prefer-256-bit'


use_wide_vectors()  # before the first kernel is declared


@lru_cache(maxsize=1)
def hash_sources():
    """SHA-256 of all files that the CPU kernels and their constants come from."""
    folder = os.path.dirname(os.path.abspath(__file__))
    digest = hashlib.sha256()
    constants = [os.path.join(os.path.dirname(folder), name) for name in ('loss.py', 'model.py')]
    for path in sorted(glob.glob(os.path.join(folder, 'cpu_*.py'))) + constants:
        with open(path, 'rb') as file:
            digest.update(file.read())
    return digest.hexdigest()


class KernelCache(FunctionCache):
    """Numba's cache on disk, which compiles a kernel again where a function that it calls changed in another file."""

    def _index_key(self, sig, codegen):
        return (*super()._index_key(sig, codegen), hash_sources())


def kernel(function):
    """A compiled function that releases the GIL, kept beside its file or else in the user's cache folder."""
    compiled = njit(function, nogil=True, fastmath=FAST, error_model='numpy')
    with contextlib.suppress(RuntimeError):  # neither can be written: it is compiled in every process anew
        compiled._cache = KernelCache(compiled.py_func)
    return compiled


def inlined(function):
    """A function that becomes a part of the kernels which call it."""
    return njit(function, fastmath=FAST, error_model='numpy', inline='always')


@lru_cache(maxsize=1)
def threads():
    """The pool that strips of rows run on, one thread per core that this process may use."""
    return ThreadPoolExecutor(cores(), 'kernels')


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=threads.cache_clear)  # a fork has none of the pool's threads


def parallel_rows(rows, work, smallest=16):
    """Call work(first, last) for strips that cover `rows`; returns the results in order.

    Photos of several threads share the one pool.

    Args:
        smallest: rows that a strip has at least.
    """
    edges = strip_edges(rows, smallest)
    if len(edges) == 2:
        return [work(0, rows)]
    return list(threads().map(work, edges[:-1], edges[1:]))


def strip_edges(rows, smallest=16):
    """First row of each strip that parallel_rows makes, and `rows`."""
    # one strip in a DataLoader's worker: the others have the other cores
    count = 1 if get_worker_info() else max(1, min(4 * cores(), rows // smallest))
    return [rows * i // count for i in range(count + 1)]
