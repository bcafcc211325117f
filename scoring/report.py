"""What an evaluation says: statistics of all photos by method, and the report of them that a reader sees.

A row is a dict of one photo by one method: 'input', 'target', 'method', its metrics, and the numbers of
scoring.appearance: the result's, and with 'target_' before the name the target's. Without a target it has no metrics.
"""

import numpy as np

from scoring.appearance import LABELS as NUMBERS
from scoring.metrics import LABELS

RESAMPLES = 10_000  # of the bootstrap
FEWEST = 3  # photos for an interval: resamples of one or two say nothing of others


def summarize_methods(rows, metrics):
    """{method: {metric: summarize(its values), 'appearance': compare_appearance(its rows)}} of the metrics' names."""
    return {
        method: {metric: summarize(column(mine, metric)) for metric in metrics}
        | {'appearance': compare_appearance(mine)}
        for method, mine in group_rows(rows).items()
    }


def compare_methods(rows, metrics, unprocessed):
    """Paired differences of every method to the first after the unprocessed input: [{'method', 'to', metric: ...}]."""
    methods = group_rows(rows)
    first, *others = [method for method in methods if method != unprocessed] or [unprocessed]
    paired = [metric for metric in ('psnr', 'ssim') if metric in metrics]
    return [
        {'method': other, 'to': first}
        | {metric: compare(column(methods[other], metric), column(methods[first], metric)) for metric in paired}
        for other in others
    ]


def compare_appearance(rows):
    """A method's results against their targets, photo by photo.

    Returns:
        {number: {'result': mean, 'target': mean, 'difference': summarize(result - target)}}, of those in the rows; the
        last two where targets have that number.
    """
    found = {}
    for name in (name for name in NUMBERS if name in rows[0]):
        results = column(rows, name)
        found[name] = {'result': float(results.mean())}
        if f'target_{name}' in rows[0]:
            targets = column(rows, f'target_{name}')
            found[name] |= {'target': float(targets.mean()), 'difference': summarize(results - targets)}
    return found


def group_rows(rows):
    """{method: its rows}, in the order of the first row of each."""
    methods = {}
    for row in rows:
        methods.setdefault(row['method'], []).append(row)
    return methods


def column(rows, name):
    """The values of a name in all rows."""
    return np.array([row[name] for row in rows], np.float64)


# -------------------------------------------------------------------------------------------------- statistics


def summarize(values):
    """Mean, median, standard deviation (n - 1), and the 95 % percentile bootstrap interval of the mean."""
    spread = len(values) > 1 and np.isfinite(values).all()
    return {
        'mean': float(np.mean(values)),
        'median': float(np.median(values)),
        'std': float(np.std(values, ddof=1)) if spread else 0.0,
        'ci95': bootstrap(values),
    }


def compare(values, others):
    """Paired difference values - others of the same photos: its mean, interval, and the share of photos won."""
    difference = values - others
    return {'mean': float(difference.mean()), 'ci95': bootstrap(difference), 'won': float((difference > 0).mean())}


def bootstrap(values, seed=0):
    """[low, high] of the mean's 95 % percentile interval over RESAMPLES resamples.

    None for fewer than FEWEST values, and where a value is infinite.
    """
    if len(values) < FEWEST or not np.isfinite(values).all():
        return None
    rng, means = np.random.default_rng(seed), []
    for _ in range(0, RESAMPLES, 100):  # so few at once that their positions take little memory
        means.append(values[rng.integers(len(values), size=(100, len(values)))].mean(axis=1))
    return [float(value) for value in np.percentile(means, (2.5, 97.5))]


def extremes(values, count=5):
    """{'best', 'median', 'worst': positions} of up to `count` values each, no position twice."""
    order = [int(i) for i in np.argsort(values, kind='stable')[::-1]]
    count = min(count, -(-len(order) // 3))
    middle = max((len(order) - count) // 2, count)
    return {'best': order[:count], 'median': order[middle : middle + count], 'worst': order[2 * count :][-count:]}


# ------------------------------------------------------------------------------------------------------- words


def write_report(summary, metrics, with_appearance=False):
    """The report as Markdown, from summary.json's content alone: title, table (see write_table), notes."""
    lines = [f'{summary["pairs"]}: {summary["photos"]} photos, {summary["protocol"]}, split {summary["split_sha256"]}']
    lines += summary['notes']
    lines += ['', write_table(summary['methods'], metrics, with_appearance), '']
    lines.append(f'± is half the 95 % bootstrap interval ({RESAMPLES:,} resamples; of {FEWEST} photos or more)')
    for method, values in summary['methods'].items():
        rounding = f'rounding {values["rounding"]}; ' if 'rounding' in values else ''
        lines.append(f'{method}: {rounding}{describe_appearance(values["appearance"])}')
    lines += [f'{metric} is blank: {reason}' for metric, reason in summary['blank_metrics'].items()]
    lines += [describe_paired(entry) for entry in summary['paired'] if 'psnr' in entry]
    return '\n'.join(lines) + '\n'


def write_table(methods, metrics, with_appearance=False):
    """The methods' means with half the interval's width, as Markdown; a metric that is not at hand stays blank.

    with_appearance adds columns of the numbers of scoring.appearance, and a row of the targets.
    """
    first = next(iter(methods.values()))['appearance']
    numbers = list(first) if with_appearance else []
    columns = [LABELS[name] for name in metrics] + [NUMBERS[name] for name in numbers]
    rows = [['', *columns], ['---'] * (len(columns) + 1)]
    for method, values in methods.items():
        cells = [write_cell(name, values.get(name)) for name in metrics]
        rows.append([method, *cells, *(f'{values["appearance"][name]["result"]:.1f}' for name in numbers)])
    if with_appearance and 'target' in first['veil']:
        targets = [f'{first[name]["target"]:.1f}' if 'target' in first[name] else '' for name in numbers]
        rows.append(['target', *[''] * len(metrics), *targets])
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def write_cell(metric, values):
    """A metric's mean with half the width of its interval; '' where it was not measured."""
    if not values:
        return ''
    digits = 4 if 'ssim' in metric or metric == 'lpips' else 3
    interval = values['ci95']
    spread = f' ± {(interval[1] - interval[0]) / 2:.{digits - 1}f}' if interval else ''
    return f'{values["mean"]:.{digits}f}{spread}'


def describe_appearance(found):
    """What compare_appearance found, in words: L, black point and veil as differences, contrast and chroma as shares.

    Without targets only what needs none.
    """
    words = [f'hue error to {name[7:]} {found[name]["result"]:.1f} degrees' for name in found if name[:7] == 'hue_to_']
    faults = ', '.join([*words, f'blown {found["blown"]["result"]:.2f} %'])
    if 'target' not in found['veil']:
        return f'veil {found["veil"]["result"]:.1f}, {faults}'

    def share(name):
        result, target = found[name]['result'], found[name]['target']
        return f'{name} {100 * (result / target - 1):+.0f} %' if target else f'{name} {result:+.1f}'

    lightness, black, veil = (found[name]['difference']['mean'] for name in ('lightness', 'black_point', 'veil'))
    return (
        f'lightness {lightness:+.1f}, black point {black:+.1f}, veil {veil:+.1f}, {share("contrast")}, '
        f'{share("chroma")} of its targets; {faults}'
    )


def describe_paired(entry):
    """A paired difference in words."""
    interval = entry['psnr']['ci95']
    between = f' [{interval[0]:+.3f}, {interval[1]:+.3f}]' if interval else ''
    won = f'better on {entry["psnr"]["won"]:.0%} of photos'
    return f'{entry["method"]} - {entry["to"]}: {entry["psnr"]["mean"]:+.3f} dB{between}, {won}'
