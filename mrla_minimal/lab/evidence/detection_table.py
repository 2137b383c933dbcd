"""What the tables of a suite of detectors have beyond others': each kind of image, the gain that the paper
claims, the noise of seeds beside the noise of images, and the rival that nobody has to train.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from mrla_minimal.lab.columns import first_column
from mrla_minimal.lab.evidence.contrasts import Contrast, Summary
from mrla_minimal.lab.evidence.estimates import Column, mean_and_deviation, side_by_side
from mrla_minimal.lab.evidence.image_noise import image_noise
from mrla_minimal.lab.evidence.intervals import Interval
from mrla_minimal.lab.evidence.measures import MEASURES, Measure
from mrla_minimal.lab.evidence.rival import RIVAL, against_rival
from mrla_minimal.lab.fields import from_text

CLAIMED = 0.03      # of AP: the paper claims 3 to 4 points more on COCO, for boxes and for masks
DRAWS = 100         # of the fields: a standard deviation within a seventh, and it is averaged over seeds


@dataclass(frozen=True)
class Noise:
    """How far a difference in mask AP (fractions of 1) of two nets is chance: standard deviations.

    Of seeds: from one pair of runs to the next, where both share the seed, and where they do not; None for
    fewer than two seeds. Of images: from one choice of the fields of view to the next, for two nets that are
    given, on the same fields or each on its own; the root of the mean variance over the pairs of runs.
    """

    name: str
    seeds: tuple[float, float] | None
    images: tuple[float, float]


def noises(summary: Summary) -> list[Noise]:
    """The Noise of each primary contrast whose records tell what was found field by field."""
    rows = []
    for row in summary.contrasts:
        if not row.primary or row.b is None or row.measure != "mask_AP":
            continue
        pairs = [[summary.fields.get(variant, {}).get(seed) for variant in (row.b, row.a)]
                 for seed in row.differences]
        if any(text is None for pair in pairs for text in pair):
            continue
        drawn = [_over_fields(*pair) for pair in pairs]
        images = tuple(math.sqrt(statistics.fmean(pair[place] ** 2 for pair in drawn)) for place in (0, 1))
        seeds = None
        if row.n > 1:
            runs = summary.values[row.measure]
            alone = [statistics.stdev(runs[variant][seed] for seed in row.differences)
                     for variant in (row.a, row.b)]
            seeds = statistics.stdev(row.differences.values()), math.hypot(*alone)
        rows.append(Noise(row.title, seeds, images))
    return rows


@lru_cache(maxsize=256)
def _over_fields(first: str, second: str) -> tuple[float, float]:
    noise = image_noise(from_text(first), from_text(second), DRAWS)
    return noise.paired, noise.unpaired


def inside(interval: Interval, value: float) -> str:
    """Where a value lies: "inside", "outside, above it" or "outside, below it"."""
    low, high = interval
    return "inside" if low <= value <= high else f"outside, {'above' if value > high else 'below'} it"


def answers(row: Contrast, baseline: str) -> str:
    """Two sentences: is 0 inside the 95 % interval of a contrast, and is what the paper claims.

    The claim is one of a gain over `baseline`: of a contrast with a control the first sentence stands alone.
    """
    measure = MEASURES[row.measure]
    if row.interval is None:
        return f"{row.title}: no interval from {row.n} seed{'s' * (row.n > 1)}."
    said = f"{row.title}, {measure.ends(row.interval)}: 0 is {inside(row.interval, 0.0)}."
    if row.b != baseline:
        return said
    return f"{said} {measure.scale * CLAIMED:+g} is {inside(row.interval, CLAIMED)}."


def of_detectors(summary: Summary) -> bool:
    """Whether it is a suite of detectors: asked of an average precision."""
    return summary.measure in ("mask_AP", "box_AP")


def detection_tables(summary: Summary, rival: Mapping[str, float]) -> list[list[str]]:
    """What a report says of detectors after its contrasts: tables, each a list of lines; [] for others.

    rival: what `rival_on` its images gives.
    """
    if not of_detectors(summary):
        return []
    measure = MEASURES[summary.measure]
    subjects = {row.a for row in summary.contrasts if row.primary}
    asked = [row for row in summary.contrasts
             if row.primary or (row.a in subjects and row.b == summary.baseline)]
    tables = [] if not asked else [
        [f"is 0 inside, is {measure.scale * CLAIMED:+g} inside? ({measure.short}, 95 % intervals over "
         f"seeds; {measure.scale * CLAIMED:+g} is the least",
         f"gain over {summary.baseline} that the paper claims on COCO)",
         *(answers(row, summary.baseline) for row in asked), *_answers_elsewhere(summary, measure, asked)]]
    if summary.kinds:
        tables.append(_by_kind(summary, rival))
    if any(summary.of_kinds.values()):
        tables.append(_contrasts_by_kind(summary, measure, rival))
    found = noises(summary)
    return [*tables, _noise_table(found)] if found else tables


def _answers_elsewhere(summary: Summary, measure: Measure, asked: Sequence[Contrast]) -> list[str]:
    """The same of what is asked against the baseline, on the other measure and on each kind of image."""
    names = {row.name for row in asked if row.b == summary.baseline}
    elsewhere = {MEASURES[name].short: rows for name, rows in summary.further.items()
                 if name in ("mask_AP", "box_AP")}
    elsewhere |= {f"{kind}, {measure.short}": rows for kind, rows in summary.of_kinds.items()}
    return [f"{where}: {answers(row, summary.baseline)}" for where, rows in elsewhere.items()
            for row in rows if row.name in names]


def _by_kind(summary: Summary, rival: Mapping[str, float]) -> list[str]:
    """Every variant's mean and standard deviation over seeds on each kind of image, and the rival's value."""
    columns = [(kind, MEASURES[name]) for kind in sorted(summary.kinds)
               for name in ("mask_AP", "box_AP") if name in summary.kinds[kind]]
    rows = {variant: [summary.kinds[kind][measure.name].get(variant, {}).values()
                      for kind, measure in columns]
            for variant in summary.values[summary.measure]}
    if rival:
        names = [f"test_{kind}_{measure.name}" for kind, measure in columns]
        rows[RIVAL] = [[rival[name]] if name in rival else [] for name in names]
    heads = [f" {kind}, {measure.short} %" for kind, measure in columns]
    wide, each = first_column(rows, least=20), first_column(heads, least=24)
    lines = [f"{'by kind of image':<{wide}}" + "".join(f"{head:>{each}} {'sd':>6}" for head in heads)]
    for name, reached in rows.items():
        cells = [mean_and_deviation(measure, values, each)
                 for (_, measure), values in zip(columns, reached, strict=True)]
        lines.append(f"{name:<{wide}}" + "".join(cells))
    return lines


def _contrasts_by_kind(summary: Summary, measure: Measure, rival: Mapping[str, float]) -> list[str]:
    """Every contrast on each kind of image, on the suite's measure: estimates with 95 % intervals."""
    columns = [Column(kind, measure, contrasts, against_rival(summary.kinds[kind][measure.name],
                      summary.baseline, rival.get(f"test_{kind}_{measure.name}")))
               for kind, contrasts in summary.of_kinds.items()]
    return side_by_side(f"{measure.short} by kind of image, points", columns, summary.baseline, 28,
                        with_rival=bool(rival))


def _noise_table(found: Sequence[Noise]) -> list[str]:
    wide = first_column((row.name for row in found), least=38)
    lines = ["how far a difference in mask AP is chance: standard deviations, points",
             f"{'':<{wide}} {'over seeds':>20} {'over fields of view':>24}",
             f"{'':<{wide}} {'paired':>10} {'unpaired':>9} {'paired':>14} {'unpaired':>9}"]
    for row in found:
        seeds = ("-", "-") if row.seeds is None else (f"{100 * value:.2f}" for value in row.seeds)
        cells = [*seeds, *(f"{100 * value:.2f}" for value in row.images)]
        lines.append(f"{row.name:<{wide}} {cells[0]:>10} {cells[1]:>9} {cells[2]:>14} {cells[3]:>9}")
    return [*lines, "Paired over seeds: the two runs of each seed. Paired over fields: two given nets on the "
                    "same fields",
            f"of view, drawn {DRAWS} times with replacement. The intervals above cover seeds, not this "
            "choice of images."]
