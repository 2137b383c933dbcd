"""What may be concluded from many runs: every declared difference, paired by seed, adjusted, and read.

Works on the records that `run_suite` returns; accuracies are fractions of 1, printed as points (percent).
"""

import dataclasses
import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from mrla_minimal.lab.evidence.intervals import (
    LEVEL,
    Interval,
    holm,
    paired_interval,
    pooled_error,
    pooled_interval,
    reading,
)
from mrla_minimal.lab.evidence.suites import Suite, with_defaults

NO_SCATTER = "no scatter"       # all differences are equal: nothing to judge them by


class NoRuns(ValueError):
    """There is nothing to summarise yet."""


@dataclass(frozen=True)
class Contrast:
    """a - b over their shared seeds, in accuracy (fractions of 1).

    Intervals are 95 %; None where n does not allow one.

    interval     paired t, n - 1 degrees of freedom
    pooled       with the variance pooled over all variants
    p            two-sided, paired t
    adjusted     p by Holm's method over its family: all primary contrasts of the suite, or all others
    correlation  between runs of one seed; None for fewer than five seeds, from which it is mostly noise
    diverged     whether a run of either variant has no accuracy: what is left is of the seeds that went well
    """

    a: str
    b: str
    n: int
    mean: float
    interval: Interval | None
    pooled: Interval | None
    p: float | None
    adjusted: float | None
    primary: bool
    correlation: float | None
    diverged: bool = False

    @property
    def reading(self) -> str:
        """What may be said of this contrast: `reading` of its interval, and what stands against it."""
        if self.diverged:
            return "not read: a run diverged"
        if self.interval is None and self.n > 1:
            return NO_SCATTER
        return reading(self.interval, holds=self.adjusted is not None and self.adjusted < LEVEL)


@dataclass(frozen=True)
class Summary:
    """What `summarise` found, and what it was made from."""

    suite: str
    note: str
    source: str
    baseline: str
    accuracies: dict[str, dict[int, float]]         # variant -> seed -> accuracy
    rates: dict[str, float]                         # variant -> learning rate, unless each seed drew its own
    contrasts: list[Contrast] = field(default_factory=list)
    diverged: dict[str, list[int]] = field(default_factory=dict)        # variant -> seeds without an accuracy
    unknown: dict[str, list[int]] = field(default_factory=dict)         # variants that are gone -> seeds


def check_definition(suite: Suite, record: dict, fields: Iterable[str], config: dict) -> None:
    """ValueError unless a record has, in those fields, what its variant is defined with in the suite now."""
    recorded, defined = with_defaults(record["config"]), with_defaults(config)
    for name in fields:
        then, now = recorded.get(name), defined.get(name)
        if then != now:
            raise ValueError(
                f"suite {suite.name}: {record['variant']} was recorded with {name} {then!r}, and has {now!r} "
                "now: give the variant or the suite another name, or put the records away")


def summarise(records: Iterable[dict], suite: Suite) -> Summary:
    """The Summary of a suite's final records: what it asked, and every variant against the baseline.

    Raises NoRuns (a ValueError) if there are none. Raises ValueError if they differ in recipe, data, or the
    learning rate within one variant, or if a variant is not what it was when they were made.
    """
    finished, diverged, unknown = [], {}, {}
    for record in records:
        if record["suite"] != suite.name or record["phase"] != "final":
            continue
        if record["variant"] not in suite.variants:
            unknown.setdefault(record["variant"], []).append(record["seed"])
        elif "diverged" in record:
            diverged.setdefault(record["variant"], []).append(record["seed"])
        else:
            finished.append(record)
    if not finished:
        others = f", but of {', '.join(unknown)}, which it no longer has" if unknown else ""
        raise NoRuns(f"no finished runs of suite {suite.name} ({', '.join(suite.variants)}) yet{others}")
    _one_of_each(finished, "recipe", lambda record: with_defaults(suite.recipe_of(record["config"])))
    _one_of_each(finished, "data", lambda record: {name: record[name] for name in ("source", "fingerprint")})
    suite.check_draws(finished)
    accuracies, rates = {}, {}
    for variant in suite.variants:
        of_variant = [record for record in finished if record["variant"] == variant]
        if of_variant:
            if "learning_rate" not in suite.draws:
                rates[variant] = _one_of_each(of_variant, f"learning rate ({variant})",
                                              lambda record: record["learning_rate"])
            defined = dataclasses.asdict(suite.config(variant, 0))
            for record in of_variant:
                check_definition(suite, record, suite.variant_fields(), defined)
            accuracies[variant] = {record["seed"]: record["test_accuracy"] for record in of_variant}
            if len(accuracies[variant]) < len(of_variant):
                raise ValueError(f"suite {suite.name}: {variant} has two records of one seed")
    contrasts = _contrasts(suite, accuracies, diverged)
    return Summary(suite.name, suite.note, finished[0]["source"], suite.baseline, accuracies, rates,
                   contrasts, diverged, unknown)


def _one_of_each(records: list[dict], what: str, of: Callable[[dict], Any]) -> Any:
    """The value that all records share. ValueError naming the differing values otherwise."""
    values = {json.dumps(of(record), sort_keys=True): of(record) for record in records}
    if len(values) > 1:
        first, second = list(values.values())[:2]
        if isinstance(first, dict):
            keys = sorted(key for key in {*first, *second} if first.get(key) != second.get(key))
            first, second = {key: first.get(key) for key in keys}, {key: second.get(key) for key in keys}
        raise ValueError(f"records of different {what} are not compared: {first} and {second}")
    return next(iter(values.values()))


def _contrasts(suite: Suite, accuracies: dict, diverged: dict) -> list[Contrast]:
    """Every declared contrast that has a shared seed, the primary ones first, adjusted within its family."""
    error, rows = pooled_error(accuracies), []
    for family, primary in ((suite.primary, True), (suite.secondary, False)):
        found = [_contrast(a, b, accuracies, error, diverged, primary) for a, b in family
                 if set(accuracies.get(a, ())) & set(accuracies.get(b, ()))]
        tested = [row for row in found if row.p is not None]
        # The family is all that was declared, whether or not its runs are there.
        p_values = holm([row.p for row in tested], len(family))
        adjusted = {(row.a, row.b): p for row, p in zip(tested, p_values, strict=True)}
        rows += [dataclasses.replace(row, adjusted=adjusted.get((row.a, row.b))) for row in found]
    return rows


def _contrast(a: str, b: str, accuracies: dict, error: tuple[float, int] | None, diverged: dict,
              primary: bool) -> Contrast:
    seeds = sorted(set(accuracies[a]) & set(accuracies[b]))
    x, y = [accuracies[a][seed] for seed in seeds], [accuracies[b][seed] for seed in seeds]
    mean, interval, p = paired_interval([i - j for i, j in zip(x, y, strict=True)])
    pooled = pooled_interval(mean, len(seeds), error)
    return Contrast(a, b, len(seeds), mean, interval, pooled, p, None, primary, _correlation(x, y),
                    a in diverged or b in diverged)


def _correlation(x: list[float], y: list[float]) -> float | None:
    if len(x) < 5 or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    return statistics.correlation(x, y)
