"""torchrun's ranks: join them, let the first decide, gather their results, BatchNorm over all of them."""

import os
import sys

import torch
from torch import nn


def leave_rank(status):
    """sys.exit(status) of a rank without C++ destructors: gloo's abort or wait for ever now and then.

    Its process group joins its threads while it holds the GIL, and one of them may need the GIL to free a tensor.
    """
    if isinstance(status, str):
        print(status, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if isinstance(status, str) else status or 0)


def ranks():
    """(rank, world size) in the process group, (0, 1) without one."""
    distributed = torch.distributed
    joined = distributed.is_available() and distributed.is_initialized()
    return (distributed.get_rank(), distributed.get_world_size()) if joined else (0, 1)


def init_distributed(timeout=None):
    """Join the process group where torchrun started several processes; returns (rank, world size).

    Args:
        timeout: datetime.timedelta after which a rank gives up waiting for another; None is torch's, half an hour.
    """
    if os.environ.get('WORLD_SIZE', '1') != '1' and not torch.distributed.is_initialized():
        backend = 'cpu:gloo,cuda:nccl' if torch.cuda.is_available() else 'gloo'
        torch.distributed.init_process_group(backend, timeout=timeout)
    return ranks()


def all_gather_list(items):
    """One list of all ranks' lists, in the order of ranks, on each rank."""
    if world_size() == 1:
        return items
    parts = [None] * world_size()
    torch.distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def on_rank0(function):
    """What function() gives on rank 0, on every rank; where it raises OSError or ValueError there, all raise that."""
    rank, world = ranks()
    if world == 1:
        return function()
    outcome = [None, None]
    if rank == 0:
        try:
            outcome[0] = function()
        except (OSError, ValueError) as error:
            outcome[1] = error
    torch.distributed.broadcast_object_list(outcome, src=0)
    if outcome[1]:
        raise outcome[1]
    return outcome[0]


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm of (N, C, H, W) or (N, C) whose training statistics are those of all ranks' batches together.

    torch's SyncBatchNorm needs CUDA; this one is the same arithmetic wherever torch.distributed runs.
    """

    def _check_input_dim(self, features):
        pass  # both shapes

    def forward(self, features):
        if not self.training or world_size() == 1:
            return super().forward(features)
        given = features.dtype
        features = features.to(torch.promote_types(given, torch.float32))  # amp: 16 bit is too little for statistics
        flat = features.transpose(0, 1).flatten(1)  # (C, N * H * W)
        count = flat.shape[1] * world_size()
        mean = mean_of_ranks(flat.mean(dim=1))
        var = mean_of_ranks((flat - mean[:, None]).square().mean(dim=1))
        update_statistics(self, mean, var, count)
        shape = (1, -1) + (1,) * (features.ndim - 2)
        scale = self.weight * (var + self.eps).rsqrt()
        return (features * scale.view(shape) + (self.bias - mean * scale).view(shape)).to(given)


def world_size():
    """Number of ranks in the process group, 1 without one."""
    return ranks()[1]


def mean_of_ranks(values):
    """Mean over the process group of equally large shares, differentiable; the values themselves in one process."""
    if world_size() == 1:
        return values
    from torch.distributed.nn.functional import all_reduce  # each rank's loss depends on every rank's values

    return all_reduce(values) / world_size()


@torch.no_grad()
def update_statistics(norm, mean, var, count):
    """A BatchNorm's running statistics after a batch of `count` values with that mean and biased variance."""
    norm.num_batches_tracked += 1
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(var * count / (count - 1), norm.momentum)
