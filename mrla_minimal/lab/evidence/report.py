"""The tables of a suite, as text: its variants and its contrasts; and all that is known of it, as JSON."""

import dataclasses
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from mrla_minimal.lab.columns import first_column
from mrla_minimal.lab.evidence.contrasts import NO_SCATTER, Summary
from mrla_minimal.lab.evidence.detection_table import answers, detection_tables, noises, of_detectors
from mrla_minimal.lab.evidence.estimates import Column, mean_and_deviation, side_by_side
from mrla_minimal.lab.evidence.intervention_table import intervention_means
from mrla_minimal.lab.evidence.measures import MEASURES, Measure
from mrla_minimal.lab.evidence.readings import TEST_FROM, amount
from mrla_minimal.lab.evidence.rival import RIVAL, against_rival, rival_on


def report(summary: Summary) -> str:
    """The Summary as text: its variants, its contrasts on the suite's measure, and on every other."""
    measure, rival = MEASURES[summary.measure], rival_on(summary.source)
    note = f" [{summary.note}]" if summary.note else ""
    tables = [[f"suite {summary.suite}, {summary.source}, {summary.host}{note}",
               f"asked of the {measure.label}: {measure.better} is better",
               *(part for line in summary.stopped.splitlines() for part in textwrap.wrap(line, 100))],
              _variants(summary, rival), _omnibus(summary), _contrasts(summary, measure),
              _further(summary, rival), *detection_tables(summary, rival), _legend(summary, measure)]
    return "\n\n".join("\n".join(lines) for lines in tables if lines)


def ranges(seeds: Iterable[int]) -> str:
    """Numbers in short: "0-4 7"."""
    parts = []
    for seed in sorted(seeds):
        if parts and parts[-1][1] == seed - 1:
            parts[-1][1] = seed
        else:
            parts.append([seed, seed])
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def _variants(summary: Summary, rival: Mapping[str, float]) -> list[str]:
    """Every variant's mean and standard deviation, a column a measure; and what needs no training."""
    measures = [MEASURES[name] for name in summary.values]
    heads = "".join(f"{measure.short + (' %' if measure.scale == 100 else ''):>13} {'sd':>6}"
                    for measure in measures)
    variants = list(dict.fromkeys(variant for values in summary.values.values() for variant in values))
    others = [*summary.diverged, *summary.unknown, *([RIVAL] if rival else [])]
    wide = first_column([*variants, *others], least=20)
    lines = [f"{'variant':<{wide}} {'seeds':<10}{heads} {'rate':>6}"]
    for variant in variants:
        rate = f"{summary.rates[variant]:g}" if variant in summary.rates else "drawn"
        runs = [summary.values[measure.name].get(variant, {}) for measure in measures]
        columns = "".join(mean_and_deviation(measure, its.values(), 13)
                          for measure, its in zip(measures, runs, strict=True))
        seeds = ranges(set().union(*runs))
        lines.append(f"{variant:<{wide}} {seeds:<10}{columns} {rate:>6}")
    if rival:
        reached = [[rival[f"test_{name}"]] if f"test_{name}" in rival else [] for name in summary.values]
        columns = "".join(mean_and_deviation(measure, its, 13)
                          for measure, its in zip(measures, reached, strict=True))
        lines.append(f"{RIVAL:<{wide}} {'none':<10}{columns} {'-':>6}")
    for what, variants in (("diverged", summary.diverged), ("not of this suite any more", summary.unknown)):
        lines += [f"{variant:<{wide}} {what}: seeds {', '.join(map(str, seeds))}"
                  for variant, seeds in variants.items()]
    return lines


def _omnibus(summary: Summary) -> list[str]:
    test = summary.omnibus
    if test is None:
        return []
    p, permuted = ("p < 0.0001" if p < 0.0001 else f"p = {p:.4f}" for p in (test.p, test.permuted))
    f = f"F({test.degrees[0]}, {test.degrees[1]}) = {test.f:.1f}"
    return [f"are all {test.variants} variants equal? {f}, {p}; {permuted} by relabelling within "
            f"each of {test.seeds} seeds"]


def _p(p: float | None) -> str:
    """A p value in a column: "0.031", "<0.001", "-"."""
    if p is None:
        return "-"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _contrasts(summary: Summary, measure: Measure) -> list[str]:
    if not summary.contrasts:
        return []
    tested = any(row.p is not None for row in summary.contrasts)
    wide = first_column((row.title for row in summary.contrasts), least=38)
    lines = [f"{f'contrast ({measure.unit})':<{wide}} {'n':>2} {'mean':>7}  {'95 % interval':<18} "
             f"{'     p   Holm  ' if tested else ''}reading"]
    for row in summary.contrasts:
        missing = NO_SCATTER if row.n > 1 else "one seed"
        p_values = f"{_p(row.p):>6} {_p(row.adjusted):>6}  " if tested else ""
        lines.append(f"{row.title:<{wide}} {row.n:>2} {measure.difference(row.mean):>7}  "
                     f"{measure.ends(row.interval) or missing:<18} {p_values}{row.reading}")
    return lines


def _further(summary: Summary, rival: Mapping[str, float]) -> list[str]:
    """The contrasts on every measure, side by side: estimates with 95 % intervals."""
    if not summary.contrasts or not summary.further:
        return []
    rows = {**summary.further, summary.measure: summary.contrasts}
    columns = [Column(f"{measure.short}, {measure.unit} ({measure.better} is better)", measure, rows[name],
                      against_rival(summary.values[name], summary.baseline, rival.get(f"test_{name}")))
               for name, measure in MEASURES.items() if name in rows]
    return side_by_side("on every measure", columns, summary.baseline, 41, with_rival=bool(rival))


def _legend(summary: Summary, measure: Measure) -> list[str]:
    covered = "not\nthe choice of the test images, nor of each variant's rate"
    if not summary.rates:
        covered = "and\nthe recipes that seeds have drawn, not the choice of the test images"
    lines = ["Differences are paired by seed; intervals are Student's t over seeds: they cover seeds, "
             f"{covered}.", "*: primary, what the suite is for."]
    if any(row.n < TEST_FROM for row in summary.contrasts):
        lines += [f"Fewer than {TEST_FROM} seeds give an estimate and no test: how wide its interval is, is",
                  "mostly luck."]
    if any(row.adjusted is not None for row in summary.contrasts):
        lines += ["Holm: p adjusted over all primary contrasts, or over all others: where nothing is, each",
                  "of these two families finds something in at most 5 % of worlds."]
        if summary.margin is not None:
            lines += [f"Margin: {amount(measure.scale * summary.margin, measure.unit)}; within it where the "
                      "90 % interval lies inside: wrong in",
                      "at most 5 % of worlds whose difference is as large."]
    return lines


def summary_as_json(summary: Summary, interventions: Iterable[dict] = ()) -> dict[str, Any]:
    """The Summary as plain values for JSON, each contrast with its name, n and reading.

    Accuracies are fractions of 1, losses nat.
    """
    plain = dataclasses.asdict(dataclasses.replace(summary, fields={}))
    del plain["fields"]         # 20 kB a run: they are in the records
    for shown, rows in ((plain["contrasts"], summary.contrasts),
                        *((plain["further"][name], rows) for name, rows in summary.further.items()),
                        *((plain["of_kinds"][kind], rows) for kind, rows in summary.of_kinds.items())):
        for row, contrast in zip(shown, rows, strict=True):
            row |= {"name": contrast.name, "n": contrast.n}
    for row, contrast in zip(plain["contrasts"], summary.contrasts, strict=True):
        row["reading"] = contrast.reading
    interventions = list(interventions)
    means = [dataclasses.asdict(row) for row in intervention_means(interventions)]
    if of_detectors(summary):
        plain |= {"answers": [answers(row, summary.baseline) for row in summary.contrasts if row.primary],
                  "noise": [dataclasses.asdict(row) for row in noises(summary)],
                  "rival": rival_on(summary.source)}
    return plain | {"accuracies": summary.accuracies, "interventions": interventions,
                    "intervention_means": means}
