"""What the scripts share: options from the command line, seeds, the device, torchrun, checkpoints."""

import argparse
import csv
import ctypes
import io
import json
import math
import os
import pickle
import random
import sys
import traceback
import zipfile

import numpy as np
import torch

from model import build_network
from photos import save_whole

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


def leave_rank(status):
    """sys.exit(status) of a rank without C++ destructors: gloo's abort or wait for ever now and then.

    Its process group joins its threads while it holds the GIL, and one of them may need the GIL to free a tensor.
    """
    if isinstance(status, str):
        print(status, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if isinstance(status, str) else status or 0)


def describe(error):
    """An error of one file as 'file: reason'."""
    return f'{error.filename}: {error.strerror}' if isinstance(error, OSError) and error.filename else str(error)


def raise_all(problems, where):
    """Raise one ValueError that names every problem, a line each; none, none."""
    if problems:
        raise ValueError(f'{where}: {len(problems)} bad\n  ' + '\n  '.join(problems))


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


# --------------------------------------------------------------------------------------------------- torchrun


def ranks():
    """(rank, world size) that torchrun set, or (0, 1)."""
    return int(os.environ.get('RANK', '0')), int(os.environ.get('WORLD_SIZE', '1'))


def join_ranks():
    """Join the process group where torchrun started several processes; returns (rank, world size)."""
    rank, world = ranks()
    if world > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group('cpu:gloo,cuda:nccl' if torch.cuda.is_available() else 'gloo')
    return rank, world


def gather(items):
    """One list of all ranks' lists, in the order of ranks, on each rank; several ranks need a process group."""
    if ranks()[1] == 1:
        return items
    parts = [None] * ranks()[1]
    torch.distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]


# ------------------------------------------------------------------------------------------------ checkpoints


def save_checkpoint(path, checkpoint):
    """Write a dict of tensors and plain values, whole or not at all."""
    try:
        save_whole(lambda partial: torch.save(checkpoint, partial), path)
    except RuntimeError as error:  # torch's way to say that the disk is full
        raise OSError(f'{path}: cannot be written ({str(error).splitlines()[0]})') from error


def save_json(path, values):
    """Write values as readable JSON, whole or not at all; an infinite value becomes the text 'inf'."""
    save_text(path, json.dumps(plain(values), indent=2, ensure_ascii=False) + '\n')


def plain(value):
    """Nested dicts and lists with floats that JSON does not have as text."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def save_text(path, text):
    """Write text as UTF-8, whole or not at all."""

    def save(partial):
        with open(partial, 'w', encoding='utf-8', newline='') as file:
            file.write(text)

    save_whole(save, path)


def save_csv(path, rows, columns):
    """Write dicts as a CSV file, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    save_text(path, text.getvalue())


def append_csv(path, row, columns):
    """Append a dict as one row; a new file starts with the names of the columns, what the row lacks stays empty."""
    with open(path, 'a', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, columns)
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)


def read_csv(path):
    """Rows of a CSV file as dicts; none where there is no file."""
    if not os.path.exists(path):
        return []
    with open(path, newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def read_checkpoint(path):
    """Read a checkpoint without running anything in it.

    Returns:
        dict with at least 'arch' and 'model'; a plain state dict of the predecessor becomes one, turned to RGB.
    Raises:
        FileNotFoundError: no such file. ValueError: truncated, not a checkpoint, or a pickle with code in it.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'{path}: expected a checkpoint, found no such file')
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f'{path}: not a checkpoint of tensors and plain values; refused, nothing in it ran') from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f'{path}: not a checkpoint, or a truncated one') from error
    if isinstance(checkpoint, dict) and 'coeffs.conv_out.conv.weight' in checkpoint:
        return {'arch': 'hdrnet', 'model': convert_predecessor(checkpoint), 'opt': {}, 'rounding': 'down'}
    if not isinstance(checkpoint, dict) or not {'arch', 'model'} <= set(checkpoint):
        raise ValueError(f"{path}: expected a checkpoint with 'arch' and 'model', or the predecessor's state dict")
    return checkpoint


def load_network(path, device='cpu'):
    """Network in eval mode on a device, and its checkpoint, from our file or the predecessor's plain state dict.

    Raises:
        FileNotFoundError: no such file. ValueError: not a checkpoint, or its weights do not fit its architecture.
    """
    checkpoint = read_checkpoint(path)
    weights = checkpoint['model']
    try:
        network = build_network(**network_options(checkpoint))
        network.load_state_dict({name: value.float() for name, value in weights.items()})
    except (RuntimeError, AttributeError, KeyError, TypeError) as error:
        detail = str(error).splitlines()[1 if '\n' in str(error) else 0].strip()
        raise ValueError(f'{path}: weights do not fit {checkpoint["arch"]} ({detail})') from error
    return network.eval().to(device), checkpoint


def network_options(checkpoint):
    """What model.build_network built a checkpoint's network with; a grid size not in it is read off the weights."""
    options = checkpoint.get('opt', {})
    luma_bins = options.get('luma_bins') or checkpoint['model']['predict.conv.weight'].shape[0] // 12
    variant = {name: options.get(name, '') for name in ('slicing', 'illumination', 'guide')}
    sizes = {'luma_bins': luma_bins, 'spatial_bin': options.get('spatial_bin', 0)}
    return {'arch': checkpoint['arch'], **sizes, **variant, 'pedestal': options.get('pedestal', 0.0)}


def convert_predecessor(weights):
    """State dict of hermosayhl/DeepUPE_pytorch (BGR) as ours (RGB).

    Its names become ours; channels are permuted where a photo goes in (splat, guide) and where the affine's rows and
    columns are colours (prediction).
    """
    renames = {
        'coeffs.splat_features.': 'splat.',
        'coeffs.global_features_conv.': 'global_conv.',
        'coeffs.global_features_fc.': 'global_fc.',
        'coeffs.local_features.': 'local.',
        'coeffs.conv_out.': 'predict.',
        'guide.conv1.': 'guide.hidden.',
        'guide.conv2.': 'guide.output.',
        '.bn.': '.norm.',
        '.fc.': '.linear.',
    }
    converted = {}
    for name, value in weights.items():
        for theirs, ours in renames.items():
            name = name.replace(theirs, ours)
        converted[name] = value
    for name in ('splat.0.conv.weight', 'guide.hidden.conv.weight'):
        converted[name] = converted[name].flip(1)
    for name in ('predict.conv.weight', 'predict.conv.bias'):
        value = converted[name]
        affine = value.view(3, 4, -1, *value.shape[1:])[[2, 1, 0]][:, [2, 1, 0, 3]]  # the offset stays last
        converted[name] = affine.reshape(value.shape)
    return converted
