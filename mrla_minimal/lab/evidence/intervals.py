"""The statistics behind the tables: paired intervals, a run's scatter, Holm's method, what n seeds can find.

Accuracies and their differences are fractions of 1; 0.003 is 0.3 points.
"""

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

Interval = tuple[float, float]

MARGIN = 0.003      # 0.3 points: what a difference must pass to be worth its name here
LEVEL = 0.05        # of every test here, and of the 95 % intervals


def paired_interval(differences: Sequence[float],
                    level: float = 1 - LEVEL) -> tuple[float, Interval | None, float | None]:
    """(mean, interval, two-sided p) of paired differences by Student's t, with n - 1 degrees of freedom.

    The interval covers the true mean in a share `level` of worlds. Interval and p are None for fewer than two
    differences, and where all are equal: a few accuracies in steps of one test image may be so by chance, and
    then show no scatter to go by. Raises ValueError for none and for differences that are not finite.
    """
    from scipy import stats

    if not len(differences):
        raise ValueError("differences must be at least one, not none")
    if not all(map(math.isfinite, differences)):
        raise ValueError(f"differences must be finite, not {list(differences)}")
    mean = statistics.fmean(differences)
    spread = max(differences) - min(differences)
    if len(differences) < 2 or spread < 1e-9:       # far below one image, far above rounding
        return mean, None, None
    test = stats.ttest_1samp(differences, 0.0)      # of the differences: the paired test, stats.ttest_rel
    low, high = test.confidence_interval(level)
    return mean, (float(low), float(high)), float(test.pvalue)


def shared_seeds(runs: Iterable[Mapping[int, float]]) -> list[int]:
    """The seeds that all of these have, in order; runs: seed -> value, of one variant or more."""
    return sorted(set.intersection(*map(set, runs)))


def pooled_error(accuracies: Mapping[str, Mapping[int, float]]) -> tuple[float, int] | None:
    """(variance of one run about variant mean + seed effect, its degrees of freedom), over the shared seeds.

    accuracies: variant -> seed -> accuracy. The residual of a two-way layout without repetition. It assumes
    that all *differences* of two variants scatter alike: that variants have one standard deviation, and pairs
    of them one correlation. Where the standard deviations differ much, it is too small for the noisy pairs.
    None if there are fewer than two variants or two seeds that all variants share.
    """
    if len(accuracies) < 2:
        return None
    seeds = shared_seeds(accuracies.values())
    if len(seeds) < 2:
        return None
    table = [[runs[seed] for seed in seeds] for runs in accuracies.values()]
    grand = statistics.fmean(itertools.chain(*table))
    rows = [statistics.fmean(row) for row in table]
    columns = [statistics.fmean(column) for column in zip(*table, strict=True)]
    squares = sum((table[i][j] - rows[i] - columns[j] + grand) ** 2
                  for i in range(len(rows)) for j in range(len(columns)))
    degrees = (len(rows) - 1) * (len(columns) - 1)
    return squares / degrees, degrees


def holm(p_values: Sequence[float], family: int | None = None) -> list[float]:
    """Holm's adjusted p values, in the order given (Holm 1979).

    Where nothing is, any of them is below 0.05 in at most 5 % of worlds, however the tests hang together.
    `family` counts the tests if some have no p value yet. Raises ValueError for what is no p value,
    and for a family of fewer tests than there are p values.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"p values must lie between 0 and 1, not {list(p_values)}")
    family = len(p_values) if family is None else family
    if family < len(p_values):
        raise ValueError(f"family must be at least the {len(p_values)} p values that are given, not {family}")
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (family - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def detectable_difference(deviation: float, n: int, power: float = 0.8) -> float:
    """The true mean difference that a two-sided paired t test at 5 % finds with this power from n seeds.

    `deviation` is the standard deviation of one paired difference; the answer has its unit. Raises ValueError
    for n below 2.
    """
    import numpy
    from scipy import optimize, stats

    if n < 2 or not 0.05 < power < 1 or not deviation > 0:
        raise ValueError("n must be at least 2, power between 0.05 and 1, deviation positive; "
                         f"got {n}, {power}, {deviation}")
    # Averaged over what the n seeds may scatter: scipy's noncentral t gives NaN at one degree of freedom.
    chances = (numpy.arange(4000) + 0.5) / 4000
    limits = stats.t.ppf(0.975, n - 1) * numpy.sqrt(stats.chi2.ppf(chances, n - 1) / (n - 1))

    def shortfall(shift):       # shift: the true difference over its standard error
        return (stats.norm.sf(limits - shift) + stats.norm.cdf(-limits - shift)).mean() - power

    return float(deviation * optimize.brentq(shortfall, 0.0, 1000.0) / math.sqrt(n))
