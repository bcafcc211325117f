"""How the CPU kernels are compiled and shared among threads."""

import os
import signal
import subprocess
import sys

import pytest

from system import jit


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork on this system')
@pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning')
def test_strips_run_in_a_fork_too():
    def count():
        return sum(jit.parallel_rows(64, lambda first, last: last - first))

    assert count() == 64  # the pool's threads are there
    child = os.fork()
    if not child:
        signal.alarm(20)  # a pool without threads would wait for ever
        os._exit(0 if count() == 64 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_kernels_run_where_no_cache_can_be_written(monkeypatch):
    monkeypatch.setattr('numba.core.caching.FunctionCache._impl_class._locator_classes', [])
    assert jit.kernel(lambda x: x + 1)(2) == 3


SCRIPT = """
from system.jit import announce_compiling, kernel

@kernel
def f(x):
    return x

with announce_compiling():
    f(1), f(1.0)
"""


def test_compiling_is_said_once_and_not_of_cached_kernels(tmp_path):
    (tmp_path / 'use.py').write_text(SCRIPT)
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    command, env = [sys.executable, tmp_path / 'use.py'], {**os.environ, 'PYTHONPATH': root}
    said = [subprocess.run(command, env=env, capture_output=True, text=True, check=True).stderr for _ in range(2)]
    assert [text.count('note: compiling') for text in said] == [1, 0]
