"""What the scripts share: options from the command line and their limits, seeds, the device."""

import argparse
import inspect
import math
import os
import random
import re
import sys
import traceback

import numpy as np
import torch

from system.files import error_line
from system.ranks import leave_rank


def run_script(main, opt, limits=None, positional='', complete=None):
    """Parse overrides, run main(opt), exit with its status; user errors become one line and status 1, Ctrl-C 130.

    Args:
        limits: of `check_options`, which --help prints too.
        positional: see parse_overrides.
        complete: function (opt, names of the options that were given) to call before main.
    """
    given = parse_overrides(opt, limits=limits, script=inspect.getsourcefile(main), positional=positional)
    try:
        if complete:
            complete(opt, given)
        status = main(opt)
    except (OSError, ValueError) as error:
        status = f'error: {error_line(error)}'
    except KeyboardInterrupt:
        print('stopped', file=sys.stderr)
        status = 130  # as shells have it: 128 + SIGINT
    except Exception:  # a defect
        status = traceback.format_exc()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        leave_rank(status)
    sys.exit(status)


def parse_overrides(opt, argv=None, limits=None, script='', positional=''):
    """Overwrite fields of opt from `--name value`; each default fixes its flag's type. Returns the names given.

    Booleans take `--name` and `--no-name`. An unknown option ends the script with argparse's message.

    Args:
        script: path of the script whose `opt` block explains the options to --help, in its comments.
        positional: an option of text that also takes its values without `--name`; several make it a list.
    """
    about, titles, comments = read_comments(script) if script else ('', {}, {})
    parser = argparse.ArgumentParser(
        description=about, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    groups = {'': parser}
    for name, default in vars(opt).items():
        title = titles.get(name, '')
        group = groups.setdefault(title, None) or parser.add_argument_group(title)
        groups[title] = group
        limit = (limits or {}).get(name)
        words = [comments.get(name, ''), f'expected {limit}' if limit else '', f'default {default!r}']
        text = '; '.join(filter(None, words)).replace('%', '%%')
        flag = {'action': argparse.BooleanOptionalAction} if isinstance(default, bool) else {'type': type(default)}
        group.add_argument(f'--{name}', default=argparse.SUPPRESS, help=text, **flag)
    if not positional:
        given = vars(parser.parse_args(argv))
    else:
        parser.add_argument('plain', nargs='*', metavar=positional, help=f'the same as --{positional}, one or several')
        given = vars(parser.parse_intermixed_args(argv))
        plain = given.pop('plain', [])
        if plain and positional in given:
            parser.error(f'{positional}: expected --{positional} or paths without it, got both')
        if plain:
            given[positional] = plain[0] if len(plain) == 1 else plain
    vars(opt).update(given)
    return set(given)


def read_comments(script):
    """What a script says of itself and of its options: (docstring, {option: heading}, {option: comment})."""
    with open(script, encoding='utf-8') as file:
        text = file.read()
    about = re.match(r'"""(.*?)"""', text, re.DOTALL)
    block = re.search(r'^opt = SimpleNamespace\(\n(.*?)^\)', text, re.DOTALL | re.MULTILINE)
    heading, titles, comments = '', {}, {}
    for line in block[1].splitlines() if block else ():
        if found := re.match(r' {4}# (.*)', line):
            heading = found[1]
        elif found := re.match(r' {4}(\w+)=.*?(?:,\s+# (.*))?$', line):
            titles[found[1]], comments[found[1]] = heading, found[2] or ''
    return about[1] if about else '', titles, comments


def check_options(opt, limits):
    """Refuse the first option that lies outside its limit.

    Args:
        limits: {option: limit}, a text of alternatives with ', or ' between: 'above 0', '1 or more', '0 to 1',
            '0 to below 1', '-1', 'one of a, b'. Every number must be finite.
    Raises:
        ValueError: such as 'lr: expected above 0, got -1'.
    """
    for name, limit in limits.items():
        value = getattr(opt, name)
        if not any(is_within(value, alternative) for alternative in limit.split(', or ')):
            raise ValueError(f'{name}: expected {limit}, got {value!r}')


def is_within(value, limit):
    """Whether an option's value is within one alternative of a limit, see check_options."""
    if limit.startswith('one of '):
        return value in [word.strip(" '") for word in limit.removeprefix('one of ').split(',')]
    if not math.isfinite(value):
        return False
    if found := re.fullmatch(r'above (\S+)', limit):
        return value > float(found[1])
    if found := re.fullmatch(r'(\S+) or more', limit):
        return value >= float(found[1])
    if found := re.fullmatch(r'(\S+) to (below )?(\S+)', limit):
        low, high = float(found[1]), float(found[3])
        return low <= value < high if found[2] else low <= value <= high
    return value == float(limit)


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
        torch.ones(1, device=chosen).item()  # 'meta' computes nothing
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
