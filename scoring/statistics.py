"""Statistics of a metric's values over photos: mean and interval, paired differences, the best and worst photos."""

import numpy as np

RESAMPLES = 10_000  # of the bootstrap


def summarize(values, seed=0):
    """Mean, median, standard deviation (n - 1), and the 95 % percentile bootstrap interval of the mean."""
    values = np.asarray(values, np.float64)
    return {
        'mean': float(values.mean()),
        'median': float(np.median(values)),
        'std': float(values.std(ddof=1)) if len(values) > 1 and np.isfinite(values).all() else 0.0,
        'ci95': bootstrap(values, seed),
    }


def bootstrap(values, seed=0):
    """[low, high] of the mean's 95 % percentile interval over RESAMPLES resamples; None where a value is infinite."""
    if not np.isfinite(values).all():
        return None
    rng, count, means = np.random.default_rng(seed), len(values), []
    for _ in range(0, RESAMPLES, 100):  # so few at once that their positions take little memory
        means.append(values[rng.integers(count, size=(100, count))].mean(axis=1))
    return [float(value) for value in np.percentile(means, (2.5, 97.5))]


def compare(values, others, higher_is_better=True):
    """Paired difference values - others of the same photos: its mean, interval, and the share of photos won."""
    difference = np.asarray(values, np.float64) - np.asarray(others, np.float64)
    won = difference > 0 if higher_is_better else difference < 0
    return {'mean': float(difference.mean()), 'ci95': bootstrap(difference), 'won': float(won.mean())}


def extremes(values, count=5):
    """{'best', 'median', 'worst': positions} of up to `count` values each, no position twice."""
    order = [int(i) for i in np.argsort(np.asarray(values, np.float64), kind='stable')[::-1]]
    if len(order) <= 3 * count:
        third = -(-len(order) // 3)
        return {'best': order[:third], 'median': order[third : 2 * third], 'worst': order[2 * third :]}
    middle = (len(order) - count) // 2
    return {'best': order[:count], 'median': order[middle : middle + count], 'worst': order[-count:]}
