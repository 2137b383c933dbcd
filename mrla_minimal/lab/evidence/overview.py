"""All suites at once: what was planted, what losses say, what accuracies say, and what they say together."""

import dataclasses
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mrla_minimal.lab.columns import first_column
from mrla_minimal.lab.evidence.across import FEWEST, RELEVANT, TAU, Cell, MeanEffect, random_effects
from mrla_minimal.lab.evidence.contrasts import Contrast, Summary, name_of, weighted_contrast
from mrla_minimal.lab.evidence.declared import CORRIDORS
from mrla_minimal.lab.evidence.intervals import shared_seeds
from mrla_minimal.lab.evidence.measures import MEASURES

PLANTED = "positive control"        # the note of suites whose effect was put there
LEGEND = "*: primary, what its suite is for. The suites' own tables say what was measured, and of which nets."
ALL_CORRIDORS = "all corridors"         # whose widths are compared: no suite of its own
SECTIONS = {"planted": "positive controls: the effect was planted", "losses": "losses",
            "accuracies": "test accuracy"}


@dataclass(frozen=True)
class Finding:
    """A contrast, and the suite that it is of."""

    summary: Summary
    contrast: Contrast


@dataclass(frozen=True)
class Overview:
    """Every contrast of several suites, each on its suite's declared measure, the primary ones first.

    together    contrast -> the mean effect on test accuracy over the suites that were asked of it, where one
                has it as a primary contrast, or two have it. What was planted is left out
    """

    planted: list[Finding] = field(default_factory=list)
    losses: list[Finding] = field(default_factory=list)
    accuracies: list[Finding] = field(default_factory=list)
    together: dict[tuple[str, str | None], MeanEffect] = field(default_factory=dict)


def overview(summaries: Iterable[Summary]) -> Overview:
    """The Overview of these suites; those on other images than CIFAR's have no place in it."""
    found = Overview()
    for summary in summaries:
        if not summary.source.startswith("cifar"):
            continue
        section = found.planted if summary.note == PLANTED else (
            found.accuracies if summary.measure == "test_accuracy" else found.losses)
        section += [Finding(summary, contrast) for contrast in summary.contrasts]
    found.planted.extend(_slope_of_choice(found.planted))
    for section in (found.planted, found.losses, found.accuracies):
        section.sort(key=lambda finding: not finding.contrast.primary)
    found.together.update(_together(found.accuracies))
    return found


def _slope_of_choice(planted: list[Finding]) -> list[Finding]:
    """What each doubling of a corridor's channels does to base - uniform; nothing without two widths."""
    found = {math.log2(CORRIDORS[finding.summary.suite]): finding for finding in planted
             if finding.summary.suite in CORRIDORS and finding.contrast.name == "mrla-base - uniform"}
    gains = {width: finding.contrast.differences for width, finding in found.items()}
    if len(found) < 2 or not shared_seeds(gains.values()):
        return []
    middle = statistics.mean(gains)
    spread = sum((width - middle) ** 2 for width in gains)
    weights = {width: (width - middle) / spread for width in gains}      # of the least-squares slope
    first, *_ = found.values()
    row = weighted_contrast(("mrla-base - uniform, channels doubled", None), weights, gains,
                            [width for width in found if found[width].contrast.diverged], False,
                            first.contrast.measure, None)
    summary = dataclasses.replace(first.summary, suite=ALL_CORRIDORS, host="corridors")
    return [Finding(summary, dataclasses.replace(row, adjusted=row.p))]


def _together(findings: list[Finding]) -> dict[tuple[str, str | None], MeanEffect]:
    """The mean effect of each contrast; a - b and b - a are one, the way round that comes first."""
    cells, primary = {}, set()
    for finding in findings:
        row, sign = finding.contrast, 1
        key = (row.a, row.b)
        if key[::-1] in cells:
            key, sign = key[::-1], -1
        if row.n < FEWEST or row.interval is None or row.diverged:
            continue
        error = statistics.stdev(row.differences.values()) / math.sqrt(row.n)
        cells.setdefault(key, []).append(
            Cell(finding.summary.suite, finding.summary.host, row.n, 100 * sign * row.mean, 100 * error))
        if row.primary:
            primary.add(key)
    return {key: random_effects(of_key) for key, of_key in cells.items()
            if key in primary or len(of_key) > 1}


def report_overview(found: Overview, primary_only: bool = False) -> str:
    """The Overview as text: a table a section, and what the suites say together."""
    parts = []
    for name, title in SECTIONS.items():
        findings = [finding for finding in getattr(found, name)
                    if finding.contrast.primary or not primary_only]
        if findings:
            wide = first_column((finding.contrast.title for finding in findings), least=38)
            parts.append("\n".join([title, "", f"{'contrast':<{wide}} {'suite':<20} {'n':>2} {'mean':>7}  "
                                    f"{'95 % interval':<18} {'unit':<7} reading",
                                    *(_line(finding, wide) for finding in findings)]))
    if found.together:
        parts.append(_together_as_text(found.together))
    return "\n\n".join([*parts, LEGEND])


def _line(finding: Finding, wide: int) -> str:
    row = finding.contrast
    measure = MEASURES[row.measure]
    return (f"{row.title:<{wide}} {finding.summary.suite:<20} {row.n:>2} {measure.difference(row.mean):>7}  "
            f"{measure.ends(row.interval) or '-':<18} {measure.unit:<7} {row.reading}")


def _together_as_text(together: dict[tuple[str, str | None], MeanEffect]) -> str:
    heads = "".join(f"{head:>7}" for head in 2 * (f"<-{RELEVANT:g}", "within", f">{RELEVANT:g}"))
    wide = first_column((name_of(*key) for key in together), least=38)
    lines = ["all suites together: the mean effect on test accuracy, in points", "",
             f"{'':<{wide + 42}}{'of another suite':>21}",
             f"{'contrast':<{wide}} {'suites':>6} {'mean':>6}  {'95 % interval':<16} {heads}    tau"]
    for key, effect in together.items():
        ends = " to ".join(f"{end:+.2f}" for end in effect.interval)
        chances = "".join(f"{chance:>7.2f}" for chance in (*effect.chances, *effect.new))
        lines.append(f"{name_of(*key):<{wide}} {len(effect.cells):>6} {effect.mean:>+6.2f}  {ends:<16} "
                     f"{chances} {effect.tau:>6.2f}")
    return "\n".join([
        *lines, "",
        "A random-effects model: each suite has a true difference of its own, and these scatter about the",
        f"mean effect by tau (half-normal prior of {TAU:g} points); Student's t for each suite's estimate.",
        f"What was planted is left out, and so are suites of fewer than {FEWEST} seeds. Then the chances",
        f"that the mean effect is below -{RELEVANT:g} points, within, and above {RELEVANT:g}; and the true",
        "difference in another suite. From one suite, the figures for another come mostly from the prior."])


def overview_as_json(found: Overview) -> dict[str, Any]:
    """The Overview as plain values for JSON: differences in their measure's unit, mean effects in points."""
    plain = {name: [{"suite": finding.summary.suite, "host": finding.summary.host,
                     "contrast": finding.contrast.name, "measure": finding.contrast.measure,
                     "primary": finding.contrast.primary, "n": finding.contrast.n,
                     "mean": finding.contrast.mean, "interval": finding.contrast.interval,
                     "reading": finding.contrast.reading} for finding in getattr(found, name)]
             for name in SECTIONS}
    return plain | {"together": {name_of(*key): dataclasses.asdict(effect)
                                 for key, effect in found.together.items()}}
