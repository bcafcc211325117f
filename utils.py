"""What the scripts share: options from the command line and their rules, the version, seeds, the device.

torch is imported where it is used, so that a script which parses its options before its other imports answers --help
at once.
"""

import argparse
import math
import os
import random
import re
import sys
import traceback

from system.files import error_line

__version__ = '2.0.0'  # CITATION.cff has it too
NETWORK_RULES = {  # what model.build_network takes and train.py's options: '' and 0 are the architecture's own
    'arch': ['hdrnet', 'deepupe'],
    'luma_bins': (1, 64),
    'spatial_bin': [0, 4, 8, 16, 32, 64],
    'slicing': ['', 'corners', 'centers'],
    'illumination': ['', 'free', 'clipped'],
    'guide': ['', 'pointwise', 'curves'],
    'pedestal': (0.0, 8.0),
    'vibrance': (0.0, 1.0),
    'lowres': ['', 'area', 'bilinear', 'nearest'],
}


def parse_overrides(opt, rules, script, positional='', flags=None, argv=None):
    """Overwrite fields of opt from `--name value`; each default fixes its flag's type. Returns the names given.

    Booleans take `--name` and `--no-name`. What argparse or check_options refuses ends the script with one line.

    Args:
        rules: of check_options, which --help prints too.
        script: path of the script whose `opt` block explains the options to --help, in its comments.
        positional: an option of text that also takes its values without `--name`; several make it a list.
        flags: {option: another flag for it, such as '-o'}.
    """
    about, titles, comments = read_comments(script)
    usage = f'%(prog)s {positional and f"[{positional} ...] "}[--name value ...]'
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(usage=usage, description=about, allow_abbrev=False, formatter_class=layout)
    parser.add_argument('--version', action='version', version=f'DeepUPE in PyTorch {__version__}')
    groups = {'': parser}
    for name, default in vars(opt).items():
        title = titles.get(name, '')
        group = groups.setdefault(title, None) or parser.add_argument_group(title)
        groups[title] = group
        rule = '' if isinstance(default, bool) or name not in rules else describe_rule(rules[name])
        words = [comments.get(name, ''), rule and f'expected {rule}', f'default {default!r}']
        text = '; '.join(filter(None, words)).replace('%', '%%')
        flag = {'action': argparse.BooleanOptionalAction} if isinstance(default, bool) else {'type': type(default)}
        names = filter(None, (f'--{name}', (flags or {}).get(name)))
        group.add_argument(*names, dest=name, default=argparse.SUPPRESS, help=text, **flag)
    if positional:
        parser.add_argument('plain', nargs='*', metavar=positional, help=f'the same as --{positional}, one or several')
    given = vars(parser.parse_intermixed_args(argv))
    plain = given.pop('plain', [])
    if plain and positional in given:
        parser.error(f'{positional}: expected --{positional} or paths without it, got both')
    if plain:
        given[positional] = plain[0] if len(plain) == 1 else plain
    vars(opt).update(given)
    try:
        check_options(opt, rules)
    except ValueError as error:
        sys.exit(f'error: {error}')
    return set(given)


def run_script(main, opt):
    """Run main(opt), exit with its status; user errors become one line and status 1, Ctrl-C 130."""
    from photos.codecs import quiet_libraries

    quiet_libraries()
    try:
        status = main(opt)
    except (OSError, ValueError) as error:
        status = f'error: {error_line(error)}'
    except KeyboardInterrupt:
        print('stopped', file=sys.stderr)
        status = 130  # as shells have it: 128 + SIGINT
    except Exception:  # a defect
        status = traceback.format_exc()
    if os.environ.get('WORLD_SIZE', '1') != '1':
        from system.ranks import leave_rank

        leave_rank(status)
    sys.exit(status)


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


def check_options(opt, rules):
    """Refuse the first option that breaks its rule; a path of pathlib becomes text.

    Args:
        rules: {option: rule}: a tuple is a range with both ends, the upper one None where there is none, of whole
            numbers where the lower one is whole; a list a choice of values, its last one maybe a range without an upper
            end; a type that type.
    Raises:
        ValueError: such as 'ema: expected 0 to 0.9999, got 1.0'.
    """
    for name, rule in rules.items():
        if isinstance(getattr(opt, name, None), os.PathLike):
            setattr(opt, name, os.fspath(getattr(opt, name)))
        if not hasattr(opt, name):
            raise ValueError(f'{name}: expected in the options, it is not there')
        if not fits(getattr(opt, name), rule):
            raise ValueError(f'{name}: expected {describe_rule(rule)}, got {getattr(opt, name)!r}')


def fits(value, rule):
    """Whether an option's value keeps a rule, see check_options."""
    if isinstance(rule, list):
        return any(fits(value, part) for part in rule)
    if isinstance(rule, type):
        return isinstance(value, rule)
    if not isinstance(rule, tuple):
        return value == rule and isinstance(value, bool) == isinstance(rule, bool)
    low, high = rule
    number = isinstance(value, int if isinstance(low, int) else (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and low <= value and (high is None or value <= high)


def describe_rule(rule):
    """A rule in words, such as 'one of a, b', '0 or more' or '-1 or at least 0'."""
    if isinstance(rule, list) and isinstance(rule[-1], tuple):
        return f'{" or ".join(f"{value:.15g}" for value in rule[:-1])} or at least {rule[-1][0]:.15g}'
    if isinstance(rule, list):
        return f'one of {", ".join(map(describe_rule, rule))}'
    if isinstance(rule, type):
        return {str: 'text', bool: 'True or False'}[rule]
    if isinstance(rule, tuple):
        whole = 'a whole number, ' if isinstance(rule[0], int) else ''
        return whole + (f'{rule[0]:.15g} or more' if rule[1] is None else f'{rule[0]:.15g} to {rule[1]:.15g}')
    return str(rule) or "''"


def short_name(path):
    """A short name of a file that others in a like folder do not share: folder_stem."""
    folder, name = os.path.split(os.path.abspath(path))
    return f'{os.path.basename(folder)}_{os.path.splitext(name)[0]}'


def set_seed(seed):
    """Seed Python, numpy and torch."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries may use the global state
    torch.manual_seed(seed)


def pick_device(device):
    """torch.device of an option, made the current one: '' takes CUDA if there is one; cuda is each rank's own GPU.

    Raises:
        ValueError: not a device of this machine.
    """
    import torch

    try:
        chosen = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
        if chosen == torch.device('cuda'):  # this rank's
            chosen = torch.device('cuda', int(os.environ.get('LOCAL_RANK', '0')))
        torch.ones(1, device=chosen).item()  # 'meta' computes nothing
        if chosen.type == 'cuda':
            torch.cuda.set_device(chosen)
            torch.backends.cudnn.allow_tf32 = False  # torch's default rounds convolutions to 11 bits
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f'device: expected cpu or a CUDA device of this machine, got {device!r}') from error
    return chosen
