"""The tables of a suite, as text: its variants and its contrasts; and all that is known of it, as JSON."""

import dataclasses
import statistics
from collections.abc import Iterable
from typing import Any

from mrla_minimal.lab.evidence.contrasts import NO_SCATTER, Summary
from mrla_minimal.lab.evidence.intervals import MARGIN, Interval
from mrla_minimal.lab.evidence.intervention_table import intervention_means


def _points(interval: Interval | None, missing: str) -> str:
    return missing if interval is None else f"{100 * interval[0]:+.2f} to {100 * interval[1]:+.2f}"


def report(summary: Summary) -> str:
    """The Summary as text: a table of variants, a table of contrasts, and what the columns mean."""
    note = f" [{summary.note}]" if summary.note else ""
    lines = [f"suite {summary.suite}, {summary.source} test accuracy of the last epoch{note}", "",
             f"{'variant':<20} {'seeds':<10} {'mean %':>8} {'sd':>6} {'rate':>6}"]
    for variant, runs in summary.accuracies.items():
        values = [100 * value for value in runs.values()]
        deviation = f"{statistics.stdev(values):.2f}" if len(values) > 1 else "-"
        seeds = " ".join(map(str, sorted(runs)))
        rate = f"{summary.rates[variant]:g}" if variant in summary.rates else "drawn"
        lines.append(f"{variant:<20} {seeds:<10} {statistics.fmean(values):>8.2f} {deviation:>6} {rate:>6}")
    for what, variants in (("diverged", summary.diverged), ("not of this suite any more", summary.unknown)):
        lines += [f"{variant:<20} {what}: seeds {', '.join(map(str, seeds))}"
                  for variant, seeds in variants.items()]
    lines += ["", f"{'contrast (points)':<38} {'n':>2} {'mean':>6}  {'95 % paired':<18} {'95 % pooled':<18} "
                  f"{'p':>6} {'Holm':>6} {'corr':>5}  reading"]
    for row in summary.contrasts:
        p, adjusted = _decimals(row.p, 3), _decimals(row.adjusted, 3)
        correlation = _decimals(row.correlation, 2)
        missing = NO_SCATTER if row.n > 1 else "too few seeds"
        name = f"{row.a} - {row.b}{' *' if row.primary else ''}"
        lines.append(f"{name:<38} {row.n:>2} {100 * row.mean:>+6.2f}  {_points(row.interval, missing):<18} "
                     f"{_points(row.pooled, '-'):<18} {p:>6} {adjusted:>6} {correlation:>5}  {row.reading}")
    lines += [
        "",
        "Differences are paired by seed; means of rows with different seeds are not to be compared.",
        "*: primary, what the suite is for. Holm: p adjusted over all primary contrasts, or over all others:",
        "where nothing is, each of these two families finds something in at most 5 % of worlds. pooled: only",
        "if all differences scatter alike. corr: between same-seed runs, from five seeds on. reading: of the",
        f"paired interval and Holm's p, against a margin of {100 * MARGIN:g} points. Intervals cover seeds;",
        "not the choice of the test images, nor of each variant's rate."]
    return "\n".join(lines)


def _decimals(number: float | None, places: int) -> str:
    return "-" if number is None else f"{number:.{places}f}"


def summary_as_json(summary: Summary, interventions: Iterable[dict] = ()) -> dict[str, Any]:
    """The Summary as plain values for JSON, each contrast with its reading; accuracies are fractions of 1."""
    plain = dataclasses.asdict(summary)
    for row, contrast in zip(plain["contrasts"], summary.contrasts, strict=True):
        row["reading"] = contrast.reading
    interventions = list(interventions)
    means = [dataclasses.asdict(row) for row in intervention_means(interventions)]
    return plain | {"interventions": interventions, "intervention_means": means}
