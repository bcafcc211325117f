"""What an evaluation says: statistics of all photos by method, and the report that a reader sees.

A row is a dict of one photo by one method: 'input', 'target', 'method', its metrics, and the appearance of the result
and, with 'target_' before the name, of the target, and the faults of the result. Without a target it has no metrics.
"""

import math

from scoring.appearance import LABELS as APPEARANCE_LABELS
from scoring.appearance import Appearance, Faults, compare_appearance, describe_appearance, summarize_faults
from scoring.metrics import LABELS
from scoring.statistics import RESAMPLES, compare, summarize

RESULT = Appearance._fields
TARGET = tuple(f'target_{name}' for name in RESULT)


def summarize_methods(rows, metrics):
    """{method: {metric: summarize(values), 'appearance': compare_appearance(...), 'faults': summarize_faults(...)}}.

    Args:
        rows: of all photos and methods.
        metrics: names of those that were measured.
    """
    found = {}
    for method, mine in group_rows(rows).items():
        found[method] = {metric: summarize([row[metric] for row in mine]) for metric in metrics}
        results, targets, faults = (
            [[row[name] for name in names] for row in mine] if names[0] in mine[0] else None
            for names in (RESULT, TARGET, Faults._fields)
        )
        found[method] |= {'appearance': compare_appearance(results, targets), 'faults': summarize_faults(faults)}
    return found


def compare_methods(rows, metrics, unprocessed):
    """Paired differences of every method to the first after the unprocessed input: [{'method', 'to', metric: ...}]."""
    methods = group_rows(rows)
    first, *others = [method for method in methods if method != unprocessed] or [unprocessed]
    return [
        {'method': other, 'to': first, **{
            metric: compare(*([row[metric] for row in methods[method]] for method in (other, first)))
            for metric in ('psnr', 'ssim') if metric in metrics
        }}
        for other in others
    ]  # fmt: skip


def group_rows(rows):
    """{method: its rows}, in the order of the first row of each."""
    methods = {}
    for row in rows:
        methods.setdefault(row['method'], []).append(row)
    return methods


def write_report(summary, metrics, with_appearance=False):
    """The report as Markdown, from summary.json's content alone: title, table, notes.

    Args:
        metrics: columns of the table.
        with_appearance: columns of appearance and faults too, with a row of the targets.
    """
    lines = [f'{summary["pairs"]}: {summary["photos"]} photos, {summary["protocol"]}, split {summary["split_sha256"]}']
    if skipped := summary['skipped']:
        count = summary['photos'] + len(skipped)
        lines.append(f'SKIPPED {len(skipped)} of {count} pairs (--skip_bad): {"; ".join(skipped)}')
    lines += ['', write_table(summary['methods'], metrics, with_appearance), '']
    lines.append(f'± is half the 95 % bootstrap interval ({RESAMPLES:,} resamples)')
    for method, values in summary['methods'].items():
        rounding = f'rounding {values["rounding"]}; ' if 'rounding' in values else ''
        lines.append(f'{method}: {rounding}{describe_appearance(values["appearance"], values["faults"])}')
    lines += [f'{metric} is blank: {reason}' for metric, reason in summary['blank_metrics'].items()]
    lines += [describe_paired(entry) for entry in summary['paired'] if 'psnr' in entry]
    return '\n'.join(lines) + '\n'


def write_table(methods, metrics, with_appearance=False):
    """The methods' means with half the interval's width, as Markdown; a metric that is not at hand stays blank."""
    columns = [LABELS[name] for name in metrics] + list(APPEARANCE_LABELS.values()) * with_appearance
    lines = ['| | ' + ' | '.join(columns) + ' |', '|---|' + '---|' * len(columns)]
    for method, values in methods.items():
        cells = [write_cell(name, values.get(name)) for name in metrics]
        if with_appearance:
            cells += [f'{values["appearance"][name]["result"]:.1f}' for name in RESULT]
            cells += [
                f'{values["faults"][name]["mean"]:.2f}' if name in values['faults'] else '' for name in Faults._fields
            ]
        lines.append(f'| {method} | ' + ' | '.join(cells) + ' |')
    first = next(iter(methods.values()))['appearance']
    if with_appearance and 'target' in first['veil']:
        targets = [f'{first[name]["target"]:.1f}' for name in RESULT]
        lines.append('| target | ' + ' | '.join([''] * len(metrics) + targets + [''] * len(Faults._fields)) + ' |')
    return '\n'.join(lines)


def write_cell(metric, values):
    """A metric's mean with half the width of its interval; '' where it was not measured."""
    if not values:
        return ''
    digits = 4 if 'ssim' in metric or metric == 'lpips' else 3
    interval = values['ci95']
    spread = f' ± {(interval[1] - interval[0]) / 2:.{digits - 1}f}' if interval else ''
    return f'{values["mean"]:.{digits}f}{spread}'


def describe_paired(entry):
    """A paired difference in words."""
    low, high = entry['psnr']['ci95'] or (math.nan, math.nan)
    return (
        f'{entry["method"]} - {entry["to"]}: {entry["psnr"]["mean"]:+.3f} dB [{low:+.3f}, {high:+.3f}], '
        f'better on {entry["psnr"]["won"]:.0%} of photos'
    )
