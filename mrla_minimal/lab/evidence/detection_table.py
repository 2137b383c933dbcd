"""What the tables of a suite of detectors have beyond others': each kind of image, the gain that the paper
claims, the noise of seeds beside the noise of images, and the rival that nobody has to train.
"""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from mrla_minimal.lab.evidence.contrasts import Contrast, Summary, Values
from mrla_minimal.lab.evidence.image_noise import image_noise
from mrla_minimal.lab.evidence.intervals import Interval, paired_interval, shared_seeds
from mrla_minimal.lab.evidence.measures import MEASURES, Measure, first_column
from mrla_minimal.lab.fields import from_text
from mrla_minimal.lab.files import repository_root

RIVAL = "Otsu + watershed"
CLAIMED = 0.03      # of AP: the paper claims 3 to 4 points more on COCO, for boxes and for masks
DRAWS = 100         # of the fields: a standard deviation within a seventh, and it is averaged over seeds


def rival_on(source: str) -> dict[str, float]:
    """What the rival reaches on these images, as data/nuclei/rival.py recorded it; {} where it was not tried.
    """
    root = repository_root()
    path = root and root / "data" / "results" / f"{source}-rival.json"
    return json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else {}


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


def detection_tables(summary: Summary) -> list[list[str]]:
    """What a report says of detectors after its contrasts: tables, each a list of lines; [] for others."""
    subjects = {row.a for row in summary.contrasts if row.primary}
    asked = [row for row in summary.contrasts
             if row.primary or (row.a in subjects and row.b == summary.baseline)]
    if summary.measure not in ("mask_AP", "box_AP") or not asked:
        return []
    measure = MEASURES[summary.measure]
    tables = [[f"is 0 inside, is {measure.scale * CLAIMED:+g} inside? ({measure.short}, 95 % intervals over "
               f"seeds; {measure.scale * CLAIMED:+g} is the least",
               f"gain over {summary.baseline} that the paper claims on COCO)",
               *(answers(row, summary.baseline) for row in asked)]]
    if summary.kinds:
        tables += [_by_kind(summary), _contrasts_by_kind(summary, measure)]
    found = noises(summary)
    return [*tables, _noise_table(found)] if found else tables


def against_rival(values: Values, baseline: str, rival: float | None) -> tuple[float, Interval | None] | None:
    """(mean, 95 % interval over seeds) of what the baseline has more than the rival; None without either."""
    runs = values.get(baseline, {})
    if rival is None or not runs:
        return None
    return paired_interval([value - rival for value in runs.values()])[:2]


def _columns(summary: Summary) -> list[tuple[str, Measure]]:
    return [(kind, MEASURES[name]) for kind in sorted(summary.kinds)
            for name in ("mask_AP", "box_AP") if name in summary.kinds[kind]]


def _by_kind(summary: Summary) -> list[str]:
    """Every variant's mean and standard deviation over seeds on each kind of image, and the rival's value."""
    columns, variants = _columns(summary), summary.values[summary.measure]
    wide = first_column(variants, least=20)
    lines = [f"{'by kind of image':<{wide}}" + "".join(
        f"{f'{kind}, {measure.short} %':>24} {'sd':>6}" for kind, measure in columns)]
    for variant in variants:
        cells = []
        for kind, measure in columns:
            of_kind = summary.kinds[kind][measure.name]
            runs = [measure.scale * value for value in of_kind.get(variant, {}).values()]
            mean = f"{statistics.fmean(runs):.{measure.decimals}f}" if runs else "-"
            spread = f"{statistics.stdev(runs):.{measure.decimals}f}" if len(runs) > 1 else "-"
            cells.append(f"{mean:>24} {spread:>6}")
        lines.append(f"{variant:<{wide}}" + "".join(cells))
    rival = rival_on(summary.source)
    if rival:
        reached = [(rival.get(f"test_{kind}_{measure.name}"), measure) for kind, measure in columns]
        cells = ["-" if value is None else f"{measure.scale * value:.{measure.decimals}f}"
                 for value, measure in reached]
        lines.append(f"{RIVAL:<{wide}}" + "".join(f"{cell:>24} {'-':>6}" for cell in cells))
    return lines


def _contrasts_by_kind(summary: Summary, measure: Measure) -> list[str]:
    """Every contrast on each kind of image, on the suite's measure: estimates with 95 % intervals."""
    kinds = [kind for kind in sorted(summary.kinds) if measure.name in summary.kinds[kind]]
    rows = [row for row in summary.contrasts if row.b is not None]
    wide = first_column((row.title for row in rows), least=38)
    lines = [f"{f'{measure.short} by kind of image, points':<{wide}} "
             + "".join(f"{kind:<28}" for kind in kinds).rstrip()]
    for row in rows:
        cells = []
        for kind in kinds:
            values = summary.kinds[kind][measure.name]
            seeds = shared_seeds(values.get(variant, {}) for variant in (row.a, row.b))
            found = paired_interval([values[row.a][seed] - values[row.b][seed] for seed in seeds])[:2] \
                if seeds else None
            cells.append(estimate(found, measure))
        lines.append(f"{row.title:<{wide}} " + "".join(f"{cell:<28}" for cell in cells).rstrip())
    rival = rival_on(summary.source)
    cells = [estimate(against_rival(summary.kinds[kind][measure.name], summary.baseline,
                                    rival.get(f"test_{kind}_{measure.name}")), measure) for kind in kinds]
    if rival:
        lines.append(f"{f'{summary.baseline} - {RIVAL}':<{wide}} "
                     + "".join(f"{cell:<28}" for cell in cells).rstrip())
    return lines


def estimate(found: tuple[float, Interval | None] | None, measure: Measure) -> str:
    """"+0.50 (-1.67 to +2.67)", without the interval where there is none, "-" without either."""
    if found is None:
        return "-"
    mean, ends = measure.difference(found[0]), measure.ends(found[1])
    return f"{mean} ({ends})" if ends else mean


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
