"""What the scripts share: options from the command line, seeds, the device, torchrun, checkpoints."""

import argparse
import os
import random
import sys
import traceback

import numpy as np
import torch

from system.files import describe
from system.ranks import leave_rank

# ---------------------------------------------------------------------------------------------------- options


def parse_overrides(opt, argv=None):
    """Overwrite fields of opt from `--name value`; each default fixes its flag's type.

    Booleans take `--name` and `--no-name`. An unknown option ends the script with argparse's message.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name, default in vars(opt).items():
        kind = {'action': argparse.BooleanOptionalAction} if isinstance(default, bool) else {'type': type(default)}
        parser.add_argument(f'--{name}', default=default, help=f'default {default!r}', **kind)
    vars(opt).update(vars(parser.parse_args(argv)))


def run_script(main, opt):
    """Parse overrides, run main(opt), exit with its status; user errors become one line and status 1."""
    parse_overrides(opt)
    try:
        status = main(opt)
    except (OSError, ValueError) as error:
        status = f'error: {describe(error)}'
    except KeyboardInterrupt:
        status = 'stopped'
    except Exception:  # a defect
        status = traceback.format_exc()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        leave_rank(status)
    sys.exit(status)


def set_name(path):
    """A short name of a file that others in a like folder do not share: folder_stem."""
    folder, name = os.path.split(os.path.abspath(path))
    return f'{os.path.basename(folder)}_{os.path.splitext(name)[0]}'


def set_seed(seed):
    """Seed Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries may use the global state
    torch.manual_seed(seed)


def pick_device(device):
    """torch.device of an option, made the current one: '' takes CUDA if there is one; cuda is each rank's own GPU.

    Raises:
        ValueError: not a device of this machine.
    """
    try:
        chosen = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
        if chosen == torch.device('cuda'):  # this rank's
            chosen = torch.device('cuda', int(os.environ.get('LOCAL_RANK', '0')))
        torch.empty(0, device=chosen)
        if chosen.type == 'cuda':
            torch.cuda.set_device(chosen)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f'device: expected cpu or a CUDA device of this machine, got {device!r}') from error
    return chosen


def fetch(tensor):
    """Start to copy a tensor to the host; returns a function that waits for that alone and gives the copy.

    On CUDA `.item()` would wait for all that is queued on the device, what came after the tensor included.
    """
    tensor = tensor.detach()
    if tensor.device.type != 'cuda':
        return lambda: tensor
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    copy.copy_(tensor, non_blocking=True)
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(tensor.device))

    def wait():
        done.synchronize()
        return copy

    return wait


# --------------------------------------------------------------------------------------------------- torchrun


# ------------------------------------------------------------------------------------------------ checkpoints
