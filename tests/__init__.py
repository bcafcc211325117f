import socket
import sys


def two_ranks():
    """Start of a command that runs a script as two ranks, on a port that is free now."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    return [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', f'--master_port={port}']
