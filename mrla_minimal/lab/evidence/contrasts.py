"""What may be concluded from the records of many runs: paired intervals, their Holm-adjusted p values, and how to read them.

Works on the records that `run_suite` returns; accuracies are fractions of 1, printed as points (percent).
"""

import dataclasses
import itertools
import json
import math
import statistics
from dataclasses import dataclass, field

from mrla_minimal.lab.evidence.suites import with_defaults

MARGIN = 0.003      # 0.3 points: what a difference must pass to be worth its name here
NO_SCATTER = "no scatter"       # all differences are equal: nothing to judge them by


def reading(interval, margin=MARGIN, holds=True):
    """What an interval of a - b allows to be said: "a above b" (or below), and whether it clears the margin or lies within it.

    `holds` False marks a finding that its adjusted p value does not bear out. "undecided" if none of these. The 95 % interval
    within the margin is a strict rule for "within": it is wrong in at most 2.5 % of worlds whose difference is as large as the margin.
    """
    if interval is None:
        return "too few seeds"
    low, high = interval
    points = f"{100 * margin:g} points"
    if low > 0 or high < 0:
        words = ("a above b" if low > 0 else "a below b") + ("" if holds else " before Holm")
        if low > margin or high < -margin:
            return f"{words} by more than {points}"
        return f"{words}, within {points}" if -margin < low and high < margin else words
    return f"within {points}" if -margin < low and high < margin else "undecided"


@dataclass(frozen=True)
class Contrast:
    """a - b over their shared seeds, in accuracy (fractions of 1). Intervals are 95 %; None where n does not allow one.

    interval     paired t, n - 1 degrees of freedom        pooled    with the variance pooled over all variants
    p            two-sided, paired t; `adjusted` by Holm's method over all contrasts that are not primary
    correlation  between runs of one seed; None for fewer than five seeds, from which it is mostly noise
    diverged     whether any run of either variant has no accuracy: what is left is then of the seeds that went well
    """

    a: str
    b: str
    n: int
    mean: float
    interval: tuple | None
    pooled: tuple | None
    p: float | None
    adjusted: float | None
    primary: bool
    correlation: float | None
    diverged: bool = False

    @property
    def reading(self):
        """What may be said of this contrast: `reading` of its interval, and what stands against it."""
        if self.diverged:
            return "not read: a run diverged"
        if self.interval is None and self.n > 1:
            return NO_SCATTER
        return reading(self.interval, holds=self.primary or (self.adjusted is not None and self.adjusted < 0.05))


@dataclass(frozen=True)
class Summary:
    """What `summarise` found: accuracies[variant][seed], rates[variant], the contrasts, and what they were made from."""

    suite: str
    note: str
    source: str
    baseline: str
    accuracies: dict
    rates: dict
    contrasts: list = field(default_factory=list)
    diverged: dict = field(default_factory=dict)        # variant -> seeds without an accuracy


def paired_interval(differences):
    """(mean, 95 % interval, two-sided p) of paired differences by Student's t.

    Interval and p are None for fewer than two differences, and where all are equal: a few accuracies in steps of one test
    image may be so by chance, and then show no scatter to go by.
    """
    from scipy import stats

    n, mean = len(differences), statistics.fmean(differences)
    if n < 2 or max(differences) - min(differences) < 1e-9:     # far below one image, far above rounding
        return mean, None, None
    error = statistics.stdev(differences) / math.sqrt(n)
    half = stats.t.ppf(0.975, n - 1) * error
    return mean, (mean - half, mean + half), float(2 * stats.t.sf(abs(mean) / error, n - 1))


def detectable_difference(deviation, n, power=0.8):
    """The true mean difference that a two-sided paired t test at 5 % finds with this power from n seeds.

    `deviation` is the standard deviation of one paired difference; the answer has its unit. ValueError for n below 2.
    """
    import numpy
    from scipy import optimize, stats

    if n < 2 or not 0.05 < power < 1 or not deviation > 0:
        raise ValueError(f"n must be at least 2, power between 0.05 and 1, deviation positive; got {n}, {power}, {deviation}")
    # Averaged over what the n seeds may scatter: scipy's noncentral t gives NaN at one degree of freedom.
    chances = (numpy.arange(4000) + 0.5) / 4000
    limits = stats.t.ppf(0.975, n - 1) * numpy.sqrt(stats.chi2.ppf(chances, n - 1) / (n - 1))

    def shortfall(shift):       # shift: the true difference over its standard error
        return (stats.norm.sf(limits - shift) + stats.norm.cdf(-limits - shift)).mean() - power

    return float(deviation * optimize.brentq(shortfall, 0.0, 1000.0) / math.sqrt(n))


def pooled_error(accuracies):
    """(variance of one run about variant mean + seed effect, degrees of freedom), from the seeds that all variants share.

    The residual of a two-way layout without repetition. It assumes that all *differences* of two variants scatter alike: that
    variants have one standard deviation, and pairs of them one correlation. Where the standard deviations differ much, its
    interval is too short for the noisy pairs. None if fewer than two variants or two shared seeds.
    """
    seeds = sorted(set.intersection(*(set(runs) for runs in accuracies.values())))
    if len(seeds) < 2 or len(accuracies) < 2:
        return None
    table = [[runs[seed] for seed in seeds] for runs in accuracies.values()]
    grand = statistics.fmean(itertools.chain(*table))
    rows = [statistics.fmean(row) for row in table]
    columns = [statistics.fmean(column) for column in zip(*table, strict=True)]
    squares = sum((table[i][j] - rows[i] - columns[j] + grand) ** 2 for i in range(len(rows)) for j in range(len(columns)))
    degrees = (len(rows) - 1) * (len(columns) - 1)
    return squares / degrees, degrees


def holm(p_values, family=None):
    """Holm's adjusted p values, in the order given; `family` counts the tests if some have no p value yet."""
    family = len(p_values) if family is None else family
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (family - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def _correlation(x, y):
    if len(x) < 5 or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    return statistics.correlation(x, y)


def _one_of_each(records, what, of):
    """The value that all records share. ValueError naming the differing values otherwise."""
    values = {json.dumps(of(record), sort_keys=True): of(record) for record in records}
    if len(values) > 1:
        first, second = list(values.values())[:2]
        if isinstance(first, dict):
            keys = sorted(key for key in {*first, *second} if first.get(key) != second.get(key))
            first, second = {key: first.get(key) for key in keys}, {key: second.get(key) for key in keys}
        raise ValueError(f"records of different {what} are not compared: {first} and {second}")
    return next(iter(values.values()))


def check_definition(suite, record, fields, config):
    """ValueError unless a record has, in those fields, what its variant is defined with in the suite now."""
    for name in fields:
        then, now = with_defaults(record["config"]).get(name), with_defaults(config).get(name)
        if then != now:
            raise ValueError(f"suite {suite.name}: {record['variant']} was recorded with {name} {then!r}, and has {now!r} now: "
                             "give the variant or the suite another name, or put the records away")


def summarise(records, suite):
    """The Summary of a suite's final records: every variant against the baseline, and the contrasts that the suite declares.

    Raises ValueError if there are none, if they differ in recipe, data, or the learning rate within one variant, or if a variant
    is not what it was when they were made.
    """
    records = [record for record in records if record["suite"] == suite.name and record["phase"] == "final"]
    diverged = {}
    for record in records:
        if "diverged" in record:
            diverged.setdefault(record["variant"], []).append(record["seed"])
    records = [record for record in records if "diverged" not in record]
    if not records:
        raise ValueError(f"no finished runs of suite {suite.name} yet; to make them: mrla compare --suite {suite.name}, "
                         "or the file that makes the suite, without --report")
    _one_of_each(records, "recipe", lambda record: with_defaults(suite.recipe_of(record["config"])))
    _one_of_each(records, "data", lambda record: {"source": record["source"], "fingerprint": record["fingerprint"]})
    accuracies, rates, own_fields = {}, {}, suite.variant_fields()
    for variant in suite.variants:
        of_variant = [record for record in records if record["variant"] == variant]
        if of_variant:
            rates[variant] = _one_of_each(of_variant, f"learning rate ({variant})", lambda record: record["learning_rate"])
            for record in of_variant:
                check_definition(suite, record, own_fields, dataclasses.asdict(suite.config(variant, 0)))
            accuracies[variant] = {record["seed"]: record["test_accuracy"] for record in of_variant}
            if len(accuracies[variant]) < len(of_variant):
                raise ValueError(f"suite {suite.name}: {variant} has two records of one seed")
    pairs = [*suite.primary, *suite.contrasts, *((variant, suite.baseline) for variant in suite.variants if variant != suite.baseline)]
    contrasts = _contrasts(dict.fromkeys(pairs), suite.primary, accuracies, diverged)
    return Summary(suite.name, suite.note, records[0]["source"], suite.baseline, accuracies, rates, contrasts, diverged)


def _contrasts(pairs, primary, accuracies, diverged):
    from scipy import stats

    error = pooled_error(accuracies)
    rows = []
    for a, b in pairs:
        seeds = sorted(set(accuracies.get(a, {})) & set(accuracies.get(b, {})))
        if not seeds:
            continue
        x, y = [accuracies[a][seed] for seed in seeds], [accuracies[b][seed] for seed in seeds]
        mean, interval, p = paired_interval([i - j for i, j in zip(x, y, strict=True)])
        pooled = None
        if error is not None and len(seeds) >= 2:
            half = stats.t.ppf(0.975, error[1]) * math.sqrt(2 * error[0] / len(seeds))
            pooled = (mean - half, mean + half)
        rows.append(Contrast(a, b, len(seeds), mean, interval, pooled, p, None, (a, b) in primary, _correlation(x, y),
                             a in diverged or b in diverged))
    others = [row for row in rows if not row.primary and row.p is not None]
    family = sum(pair not in primary for pair in pairs)      # all that were declared, whether or not their runs are there
    adjusted = dict(zip(((row.a, row.b) for row in others), holm([row.p for row in others], family), strict=True))
    return [dataclasses.replace(row, adjusted=adjusted.get((row.a, row.b))) for row in rows]
