"""What may be concluded from many runs: every declared difference, paired by seed, adjusted, and read.

Works on the records that `run_suite` returns. Accuracies are fractions of 1, printed as points (percent);
losses are in nat.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from mrla_minimal.lab.evidence.blocks import how_it_stopped
from mrla_minimal.lab.evidence.intervals import LEVEL, MARGIN, Interval, holm, paired_interval, shared_seeds
from mrla_minimal.lab.evidence.jobs import check_definitions
from mrla_minimal.lab.evidence.measures import MEASURES, Measure, fields_of, kinds_of, measured
from mrla_minimal.lab.evidence.omnibus import Omnibus, omnibus
from mrla_minimal.lab.evidence.readings import ESTIMATE, TEST_FROM, read_interval
from mrla_minimal.lab.evidence.suites import Suite, with_defaults

NO_SCATTER = "no scatter"       # all differences are equal: nothing to judge them by
Values = dict[str, dict[int, float]]        # variant -> seed -> value


def name_of(a: str, b: str | None) -> str:
    """What is asked: "mrla-base - uniform", or an effect's name."""
    return a if b is None else f"{a} - {b}"


class NoRuns(ValueError):
    """There is nothing to summarise yet."""


@dataclass(frozen=True)
class Contrast:
    """a - b over their shared seeds, or an effect: then `a` is its name, and b None.

    All is in the measure's own unit: fractions of 1, or nat. Intervals and p values are None where n does
    not allow one.

    differences  seed -> its difference
    interval     95 %, paired t with n - 1 degrees of freedom; `narrow` is the 90 % one
    p            two-sided, paired t; from TEST_FROM seeds on
    adjusted     p by Holm's method over its family: all primary contrasts of the suite, or all others;
                 None for what is not tested
    margin       what counts as nothing, or None
    diverged     whether a run of its variants has no result: what is left is of the seeds that went well
    """

    a: str
    b: str | None
    differences: dict[int, float]
    mean: float
    interval: Interval | None
    narrow: Interval | None
    p: float | None
    adjusted: float | None
    primary: bool
    measure: str
    margin: float | None
    diverged: bool = False

    @property
    def n(self) -> int:
        """How many seeds it is of."""
        return len(self.differences)

    @property
    def name(self) -> str:
        """What is asked."""
        return name_of(self.a, self.b)

    @property
    def title(self) -> str:
        """Its name as tables have it, with a star if it is primary."""
        return f"{self.name} *" if self.primary else self.name

    @property
    def reading(self) -> str:
        """What may be said of this contrast: `read_interval`, or why nothing may."""
        if self.diverged:
            return "not read: a run diverged"
        if self.n < TEST_FROM:
            return ESTIMATE
        if self.interval is None:
            return NO_SCATTER
        if self.adjusted is None:       # of another measure than the suite's, or of some of its images
            return ESTIMATE
        measure = MEASURES[self.measure]
        margin = None if self.margin is None else measure.scale * self.margin
        ends = [tuple(measure.scale * end for end in ends) for ends in (self.interval, self.narrow)]
        return read_interval(*ends, self.adjusted, margin, self._sides(measure), measure.unit)

    def _sides(self, measure: Measure) -> tuple[str, str]:
        if measure.better == "higher":
            return ("a above b", "b above a") if self.b else ("above 0", "below 0")
        if self.b is None:
            return "raises the loss", "lowers the loss"
        return "b's loss is lower", "a's loss is lower"


@dataclass(frozen=True)
class Summary:
    """What `summarise` found, and what it was made from.

    values      measure -> variant -> seed -> value, of the measures that the records have
    contrasts   every declared contrast and effect on the suite's `measure`, the primary ones first
    further     measure -> the same on each other measure, none of them tested
    rates       variant -> learning rate, unless each seed drew its own
    diverged    variant -> seeds without a result; `unknown`, variants that are gone -> seeds
    stopped     how many blocks are complete, and what ended the suite, in words; or nothing
    kinds       kind of image -> measure -> variant -> seed -> value, of detectors; `of_kinds`, kind -> the
                contrasts on the suite's measure, none of them tested
    fields      variant -> seed -> what a detector's masks found field by field, as a text of lab/fields.py
    """

    suite: str
    note: str
    source: str
    host: str
    baseline: str
    measure: str
    margin: float | None
    values: dict[str, Values]
    rates: dict[str, float]
    omnibus: Omnibus | None = None
    contrasts: list[Contrast] = field(default_factory=list)
    further: dict[str, list[Contrast]] = field(default_factory=dict)
    diverged: dict[str, list[int]] = field(default_factory=dict)
    unknown: dict[str, list[int]] = field(default_factory=dict)
    stopped: str = ""
    kinds: dict[str, dict[str, Values]] = field(default_factory=dict)
    of_kinds: dict[str, list[Contrast]] = field(default_factory=dict)
    fields: dict[str, dict[int, str]] = field(default_factory=dict)

    @property
    def accuracies(self) -> Values:
        """variant -> seed -> test accuracy; {} for detectors."""
        return self.values.get("test_accuracy", {})


def summarise(records: Iterable[dict], suite: Suite, stops: Sequence[dict] | None = None,
              changes: Mapping[str, Any] = MappingProxyType({})) -> Summary:
    """The Summary of a suite's final records: what it asked, and every variant against the baseline.

    stops: what `blocks.load_stops` gives, if `records` are all that the suite has; None says nothing of it.
    changes: as in `check_definitions`.
    Raises NoRuns (a ValueError) if there are none. Raises ValueError if they differ in recipe, data, or the
    learning rate within one variant, or if the suite's recipe or a variant is not what it was when they were
    made.
    """
    records, finished, diverged, unknown = list(records), [], {}, {}
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
    suite.check_blocks(finished)
    check_definitions(suite, suite.variants, finished, changes)
    rates, seen = {}, set()
    for variant in suite.variants:
        of_variant = [record for record in finished if record["variant"] == variant]
        if of_variant:
            if "learning_rate" not in suite.draws:
                rates[variant] = _one_of_each(of_variant, f"learning rate ({variant})",
                                              lambda record: record["learning_rate"])
        for record in of_variant:
            if (variant, record["seed"]) in seen:
                raise ValueError(f"suite {suite.name}: {variant} has two records of one seed")
            seen.add((variant, record["seed"]))
    values = measured(finished, suite.variants)
    if not values.get(suite.measure):
        raise NoRuns(f"no finished runs of suite {suite.name} have the {MEASURES[suite.measure].label} yet")
    rows = {name: _contrasts(suite, name, values[name], diverged, name == suite.measure) for name in values}
    kinds = kinds_of(finished)
    of_kinds = {kind: _contrasts(suite, suite.measure, of_kind[suite.measure], diverged, False)
                for kind, of_kind in sorted(kinds.items()) if suite.measure in of_kind}
    return Summary(suite.name, suite.note, finished[0]["source"], host_of(suite), suite.baseline,
                   suite.measure, margin_of(suite), values, rates, omnibus(values[suite.measure]),
                   rows.pop(suite.measure), rows, diverged, unknown,
                   "" if stops is None else how_it_stopped(suite, records, stops),
                   kinds, of_kinds, fields_of(finished))


def margin_of(suite: Suite) -> float | None:
    """What counts as nothing on the suite's measure, as the measure's values are: 0.003 for 0.3 points."""
    if suite.margin is not None:
        return suite.margin / MEASURES[suite.measure].scale
    return MARGIN if suite.measure == "test_accuracy" else None


def host_of(suite: Suite) -> str:
    """What the suite's nets are without their attentions: "ResNet-26 at 16 pixels, 15 % wiped"."""
    config = suite.config(suite.baseline, 0)
    return config.host_text + (", branches" if config.trunk else "")


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


def _contrasts(suite: Suite, measure: str, values: Values, diverged: dict, tested: bool) -> list[Contrast]:
    """Every declared contrast that has a shared seed, the primary ones first, adjusted within its family.

    Unless it is tested, nothing is adjusted, and there is no margin: on another measure than the suite's own,
    or on some of the images.
    """
    rows, margin = [], margin_of(suite) if tested else None
    for pairs, primary in ((suite.primary, True), (suite.secondary, False)):
        asked = [((a, b), {a: 1.0, b: -1.0}) for a, b in pairs]
        asked += [((effect.name, None), effect.weights) for effect in suite.effects
                  if effect.primary == primary]
        found = [weighted_contrast(names, weights, values, diverged, primary, measure, margin)
                 for names, weights in asked if shared_seeds(values.get(variant, {}) for variant in weights)]
        if tested:
            # The family is all that was declared, whether or not its runs are there.
            adjusted = iter(holm([row.p for row in found if row.p is not None], len(asked)))
            found = [row if row.p is None else dataclasses.replace(row, adjusted=next(adjusted))
                     for row in found]
        rows += found
    return rows


def weighted_contrast(names: tuple[str, str | None], weights: Mapping[Any, float],
                      values: Mapping[Any, Mapping[int, float]], diverged: Iterable, primary: bool,
                      measure: str, margin: float | None) -> Contrast:
    """The Contrast whose difference, for each seed, is the sum of `values` so weighted; p is not adjusted.

    weights: variant (or whatever else is compared) -> weight; values: the same -> seed -> value.
    """
    seeds = shared_seeds(values[variant] for variant in weights)
    differences = {seed: sum(weight * values[variant][seed] for variant, weight in weights.items())
                   for seed in seeds}
    mean, interval, p = paired_interval(list(differences.values()))
    narrow = paired_interval(list(differences.values()), 1 - 2 * LEVEL)[1]
    tested = p if len(seeds) >= TEST_FROM else None
    return Contrast(*names, differences, mean, interval, narrow, tested, None, primary, measure, margin,
                    any(name in diverged for name in weights))
