"""The one figure of all suites: what they are for, or every contrast, and what they say together."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mrla_minimal.lab.evidence.across import RELEVANT, MeanEffect
from mrla_minimal.lab.evidence.intervals import Interval
from mrla_minimal.lab.evidence.measures import MEASURES
from mrla_minimal.lab.evidence.overview import ALL_CORRIDORS, Finding, Overview
from mrla_minimal.lab.evidence.readings import TEST_FROM
from mrla_minimal.lab.figures import COLOURS, MARKERS, images_of, label_of, save_figure

TITLES = {"planted": "Planted: can the measurement see?", "losses": "Losses",
          "accuracies": "Test accuracy", "together": "All suites of test accuracy together"}


@dataclass(frozen=True)
class _Row:
    """A line of a panel, in the panel's unit; `note` stands at its right."""

    a: str
    b: str | None
    mean: float
    interval: Interval | None
    margin: float | None
    note: str
    tested: bool

    @property
    def texts(self) -> tuple[str, str]:
        """What stands at its left and at its right, broken into lines."""
        return fill(label_of(self.a, self.b), 26), fill(self.note, 36)

    @property
    def height(self) -> float:
        """The room that its text needs, in rows of two lines."""
        return max(1, *(0.5 * (1 + text.count("\n")) for text in self.texts))


def plot_overview(found: Overview, path: str | Path | None = None, every: bool = False) -> Figure | None:
    """A panel a section, each with its own scale: estimate and 95 % interval of what the suites are for.

    That is every primary contrast, and what the corridors' widths say together; all contrasts with `every`.

    Planted effects on top, then losses, accuracies, and the mean effects over two suites or more. Grey behind
    a row is its margin. A hollow marker is an estimate from fewer than eight seeds; of a mean over suites, in
    one of them at least. At the right stand the suite, its net and n. Panels without a row are left out.
    Returns the figure, or writes it to `path`. Raises ValueError if no suite has a primary contrast.
    """
    panels = {name: [_of_finding(finding) for finding in getattr(found, name)
                     if every or finding.contrast.primary or finding.summary.suite == ALL_CORRIDORS]
              for name in ("planted", "losses", "accuracies")}
    panels["together"] = [_of_effect(key, effect) for key, effect in found.together.items()
                          if len(effect.cells) > 1]
    panels = {name: rows for name, rows in panels.items() if rows}
    if not panels:
        raise ValueError("no suite with records has a primary contrast: there is nothing to draw")
    with plt.rc_context({"font.size": 12, "axes.titlesize": 12}):
        sizes = [0.46 * sum(row.height for row in rows) for rows in panels.values()]
        figure, axes = plt.subplots(
            len(panels), figsize=(11, 0.4 + sum(1.3 + size for size in sizes)), squeeze=False,
            height_ratios=[1 + size for size in sizes], layout="constrained")
        for axis, (name, rows) in zip(axes[:, 0], panels.items(), strict=True):
            _draw(axis, rows)
            axis.set_title(TITLES[name], loc="left", fontweight="bold")
            axis.set_xlabel(_unit(getattr(found, name) if name != "together" else found.accuracies))
        figure.suptitle("estimates with 95 % intervals; hollow: fewer than "
                        f"{TEST_FROM} seeds; grey: the margin", fontsize=12)
        if "together" in panels and "accuracies" in panels:
            axes[-1, 0].set_xlim(axes[-2, 0].get_xlim())
    if path is None:
        return figure
    save_figure(figure, path)
    return None


def _of_finding(finding: Finding) -> _Row:
    row, scale = finding.contrast, MEASURES[finding.contrast.measure].scale
    interval = None if row.interval is None else tuple(scale * end for end in row.interval)
    margin = None if row.margin is None else scale * row.margin
    where, name = f"{finding.summary.suite}: {finding.summary.host}", row.a
    if finding.summary.suite == ALL_CORRIDORS:
        where, name = ALL_CORRIDORS, f"{label_of('mrla-base', 'uniform')}, for each doubling of the channels"
    note = f"{where}, n\xa0=\xa0{row.n}".replace(" %", "\xa0%")
    return _Row(name, row.b, scale * row.mean, interval, margin, note, row.n >= TEST_FROM)


def _of_effect(key: tuple[str, str | None], effect: MeanEffect) -> _Row:
    tested = all(cell.n >= TEST_FROM for cell in effect.cells)
    return _Row(*key, effect.mean, effect.interval, RELEVANT, f"{len(effect.cells)} suites", tested)


def _unit(findings: Sequence[Finding]) -> str:
    """What the axis of these findings shows: which data, which measure, which side is better."""
    images = " and ".join(dict.fromkeys(images_of(finding.summary.source) for finding in findings))
    measures = dict.fromkeys(finding.contrast.measure for finding in findings)
    labels = " or ".join(MEASURES[name].label for name in measures)
    measure = MEASURES[next(iter(measures))]
    side = "right" if measure.better == "higher" else "left"
    return f"{images}: difference in {labels} ({measure.unit}; {side} is better)"


def _draw(axis: Axes, rows: Sequence[_Row]) -> None:
    axis.axvline(0, color="black", linewidth=1, zorder=1)
    places, top = [], -0.5
    for row in rows:
        place = top + row.height / 2
        colour, marker = COLOURS.get(row.a, "#444444"), MARKERS.get(row.a, "o")
        if row.margin is not None:
            band = Rectangle((-row.margin, top), 2 * row.margin, row.height, color="#DDDDDD", linewidth=0,
                             zorder=0)
            axis.add_patch(band)
        if row.interval is not None:
            axis.plot(row.interval, [place, place], color=colour, linewidth=3, zorder=2)
        axis.plot([row.mean], [place], color=colour, marker=marker, markersize=9, zorder=3,
                  markerfacecolor=colour if row.tested else "white", markeredgewidth=1.5, linestyle="none")
        axis.text(1.02, place, row.texts[1], transform=axis.get_yaxis_transform(), va="center",
                  fontsize="small")
        places.append(place)
        top += row.height
    axis.set_yticks(places, [row.texts[0] for row in rows], fontsize="small")
    axis.set_ylim(top, -0.5)
    axis.margins(x=0.08)
    axis.grid(axis="x", alpha=0.3)
