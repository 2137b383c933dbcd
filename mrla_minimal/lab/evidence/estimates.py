"""Cells of tables, as text: means with deviations, estimates with intervals; and estimates side by side."""

import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mrla_minimal.lab.columns import first_column, row
from mrla_minimal.lab.evidence.contrasts import Contrast
from mrla_minimal.lab.evidence.intervals import Interval
from mrla_minimal.lab.evidence.measures import Measure
from mrla_minimal.lab.evidence.rival import RIVAL


@dataclass(frozen=True)
class Column:
    """A column of estimates: its heading, its contrasts, and what the baseline has more than the rival."""

    head: str
    measure: Measure
    contrasts: Sequence[Contrast]
    over_rival: tuple[float, Interval | None] | None


def mean_and_deviation(measure: Measure, values: Collection[float], wide: int) -> str:
    """Mean and standard deviation in two columns, of `wide` and of 7 characters; "-" where there is none."""
    values = [measure.scale * value for value in values]
    mean = f"{statistics.fmean(values):.{measure.decimals}f}" if values else "-"
    deviation = f"{statistics.stdev(values):.{measure.decimals}f}" if len(values) > 1 else "-"
    return f"{mean:>{wide}} {deviation:>6}"


def estimate(found: tuple[float, Interval | None] | None, measure: Measure) -> str:
    """"+0.50 (-1.67 to +2.67)", without the interval where there is none, "-" without either."""
    if found is None:
        return "-"
    mean, ends = measure.difference(found[0]), measure.ends(found[1])
    return f"{mean} ({ends})" if ends else mean


def side_by_side(title: str, columns: Sequence[Column], baseline: str, least: int,
                 with_rival: bool) -> list[str]:
    """A line a contrast, with its estimate in each column, of `least` characters or more; "-" for none.

    with_rival: a last line, of the baseline against the rival.
    """
    names = list(dict.fromkeys(contrast.title for column in columns for contrast in column.contrasts))
    lines = {title: [column.head for column in columns]} | {name: [] for name in names}
    for column in columns:
        found = {contrast.title: (contrast.mean, contrast.interval) for contrast in column.contrasts}
        for name in names:
            lines[name].append(estimate(found.get(name), column.measure))
    if with_rival:
        lines[f"{baseline} - {RIVAL}"] = [estimate(column.over_rival, column.measure) for column in columns]
    wide = first_column(lines, least=38)
    each = first_column((f"{cell}  " for cells in lines.values() for cell in cells), least)
    return [row(name, cells, wide, each) for name, cells in lines.items()]
