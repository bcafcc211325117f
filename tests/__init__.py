import multiprocessing
import os
import socket
import sys
from types import SimpleNamespace

import pytest
import torch


def train_options(**values):
    """The options of train.py's block, with other values."""
    import train

    return SimpleNamespace(**{**train.DEFAULTS, **values})


def two_ranks():
    """Start of a command that runs a script as two ranks, on a port that is free now."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    return [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', f'--master_port={port}']


def on_two_ranks(function, folder):
    """[function(0), function(1)] of two processes that are ranks of one gloo group, which meet in a folder."""
    if torch.cuda.is_available():
        pytest.skip('where there is a GPU, autograd does not survive the fork of a process that has used it')
    context = multiprocessing.get_context('fork')
    results = context.SimpleQueue()
    processes = [context.Process(target=run_rank, args=(function, rank, str(folder), results)) for rank in (0, 1)]
    for process in processes:
        process.start()
    found = dict(results.get() for _ in processes)
    for process in processes:
        process.join()
    return [found[0], found[1]]


def run_rank(function, rank, folder, results):
    torch.set_num_threads(1)  # the threads of OpenMP do not survive the fork
    os.environ.update(RANK=str(rank), WORLD_SIZE='2')
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/ranks', rank=rank, world_size=2)
    try:
        result = function(rank)
        torch.distributed.barrier()
    except BaseException as error:
        result = error
    results.put((rank, result))
    os._exit(0)  # a rank that waits for this one then fails too; see system.ranks.leave_rank
