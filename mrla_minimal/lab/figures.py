"""The figures of runs and suites, from plain records; one colour and one marker a method, everywhere.

The colours are Okabe and Ito's, told apart by most colour-blind readers; the markers tell them apart in grey.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mrla_minimal.lab.files import replace_file

if TYPE_CHECKING:
    from mrla_minimal.lab.evidence import Summary

COLOURS = {
    "plain": "#000000",
    "mrla-light": "#0072B2",
    "mrla-light-released": "#003B5C",
    "mrla-light-lambda0": "#7FB7D9",
    "mrla-light-lambda1": "#B8D8EA",
    "light-zero-query": "#4A9BD1",
    "mrla-base": "#D55E00",
    "mrla-base-emptied": "#8A3B00",
    "base-zero-query": "#F2A46F",
    "layer": "#CC79A7",
    "uniform": "#E69F00",
    "depthwise": "#009E73",
    "depthwise-relu": "#00573F",
    "depthwise-gated": "#56B4E9",
    "depthwise-carry": "#7F7F7F",
    "depthwise-carry-lambda0": "#B3B3B3",
    "depthwise-carry-released": "#4D4D4D",
    "denseformer": "#999933",
    "mudd": "#44AA99",
    "attnres": "#AA4499",
    "attnres-block": "#DDA0D6",
    "kcla": "#882255",
    "dla-base": "#B22222",
    "dla-base-reread": "#E9967A",
    "dla-light": "#4169E1",
    "sideways": "#228B22",
    "acla": "#C71585",
    "se": "#8C6D31",
    "eca": "#6A3D9A",
}

MARKERS = {
    "plain": "o",
    "mrla-light": "s",
    "mrla-light-released": "p",
    "mrla-light-lambda0": "$0$",
    "mrla-light-lambda1": "$1$",
    "light-zero-query": (4, 1, 45),
    "mrla-base": "^",
    "mrla-base-emptied": "1",
    "base-zero-query": (4, 1, 0),
    "layer": "v",
    "uniform": "D",
    "depthwise": "P",
    "depthwise-relu": "*",
    "depthwise-gated": "X",
    "depthwise-carry": "<",
    "depthwise-carry-lambda0": (6, 1, 0),
    "depthwise-carry-released": "H",
    "denseformer": "$D$",
    "mudd": "$M$",
    "attnres": "$A$",
    "attnres-block": "$B$",
    "kcla": "$K$",
    "dla-base": "8",
    "dla-base-reread": "+",
    "dla-light": "d",
    "sideways": "$S$",
    "acla": "$C$",
    "se": ">",
    "eca": "h",
}

LABELS = {
    "plain": "plain",
    "mrla-light": "MRLA-light",
    "mrla-light-released": "MRLA-light, released",
    "mrla-light-lambda0": "MRLA-light, lambda from 0",
    "mrla-light-lambda1": "MRLA-light, lambda from 1",
    "light-zero-query": "MRLA-light, queries and lambda from 0",
    "mrla-base": "MRLA-base",
    "mrla-base-emptied": "MRLA-base, emptied every 4",
    "base-zero-query": "MRLA-base, queries from 0",
    "layer": "Eq. 4",
    "uniform": "uniform mean",
    "depthwise": "depthwise",
    "depthwise-relu": "depthwise, ReLU",
    "depthwise-gated": "depthwise, gated",
    "depthwise-carry": "depthwise + carry",
    "depthwise-carry-lambda0": "depthwise + carry, lambda from 0",
    "depthwise-carry-released": "depthwise + carry, released",
    "denseformer": "DenseFormer",
    "mudd": "MUDDFormer, one way",
    "attnres": "Attention Residuals",
    "attnres-block": "Attention Residuals, blocks of 3",
    "kcla": "KCLA",
    "dla-base": "DLA-B",
    "dla-base-reread": "DLA-B, reread",
    "dla-light": "DLA-L",
    "sideways": "sideways, fixed keys",
    "acla": "ACLA",
    "se": "SE",
    "eca": "ECA",
}


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write the figure as PNG, whole or not at all, and close it."""
    try:
        replace_file(path, lambda file: figure.savefig(file, format="png", dpi=120))
    finally:
        plt.close(figure)


def mark_source(figure: Figure, source: str) -> Figure:
    """Say above a figure that its images are not CIFAR, unless they are. Returns the figure.

    source: a data set's or a record's.
    """
    if not source.startswith("cifar"):
        figure.suptitle(f"{source} images, not CIFAR")
    return figure


def _whole_numbers(ticks: Iterable[float], last: int) -> list[float]:
    return [tick for tick in ticks if 0 <= tick <= last and tick == int(tick)]


def plot_curves(
    metrics: Sequence[dict], path: str | Path | None = None, source: str = "cifar10",
) -> Figure | None:
    """Loss and accuracy against epochs, left and right; of a detector, average precision on the right.

    metrics: one run's list of epoch records, as in metrics.jsonl. A source other than CIFAR is written into
    the title. Returns the figure, or writes it to `path`.
    """
    epochs = [record["epoch"] for record in metrics]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    styles = {
        "train": ("#000000", "o", "-"), "validation": ("#E69F00", "D", "--"), "test": ("#0072B2", "s", "--"),
    }
    loss, right = "mean cross-entropy", "accuracy"
    for measure in ("box_AP", "mask_AP"):
        if any(name.endswith(measure) for name in metrics[-1]):
            loss, right = "mean loss", measure
    title = right.replace("_", " ")
    sides = ((axes[0], "loss", 1, loss), (axes[1], right, 100, f"{title} (%)"))
    for axis, what, scale, unit in sides:
        for split, (colour, marker, line) in styles.items():
            name = f"{split}_{what}"
            points = [(record["epoch"], scale * record[name]) for record in metrics if name in record]
            parts = f"train_{what}_parts"
            if split == "train" and len(metrics) <= 10 and parts in metrics[-1]:
                # a short run shows what happened within its epochs
                points = [(record["epoch"] - 1 + number / len(record[parts]), scale * part)
                          for record in metrics for number, part in enumerate(record[parts], start=1)]
            if points:
                label = f"{split}, last {points[-1][1]:.2f}"
                marker = marker if len(points) < 30 else None
                axis.plot(*zip(*points, strict=True), color=colour, marker=marker, linestyle=line,
                          label=label)
        axis.set(xlabel="epoch", ylabel=unit)
        axis.set_xlim(left=0)
        axis.set_xticks(_whole_numbers(axis.get_xticks(), epochs[-1]) or epochs)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    axes[0].set_title("loss (train: as training saw the images)")
    axes[1].set_title(title)
    mark_source(figure, source)
    if path is None:
        return figure
    save_figure(figure, path)
    return None


def plot_suite(summary: "Summary", path: str | Path | None = None) -> Figure | None:
    """Every run a point, on the suite's measure; every variant's mean and 95 % interval.

    A dotted line is the baseline's mean. The intervals are Student's t over a variant's seeds. The axis
    reaches one percentage point (of a loss, 0.1 nat) beyond the runs, and cuts off an interval that is wider
    (from two seeds it is). Returns the figure, or writes it to `path`.
    """
    from mrla_minimal.lab.evidence.intervals import paired_interval
    from mrla_minimal.lab.evidence.measures import MEASURES

    measure, runs = MEASURES[summary.measure], summary.values[summary.measure]
    figure, axis = plt.subplots(figsize=(8, 0.5 * len(runs) + 1.6), layout="constrained")
    for row, (variant, of_variant) in enumerate(runs.items()):
        values = [measure.scale * value for value in of_variant.values()]
        colour, marker = COLOURS.get(variant, "#444444"), MARKERS.get(variant, "o")
        axis.scatter(values, [row] * len(values), color=colour, marker=marker, s=36, zorder=3)
        mean, interval, _ = paired_interval(values)
        if interval is not None:
            axis.plot(interval, [row + 0.25] * 2, color=colour, linewidth=2)
        axis.plot([mean], [row + 0.25], color=colour, marker="|", markersize=10)
    if summary.baseline in runs:
        of_baseline = runs[summary.baseline].values()
        mean = measure.scale * sum(of_baseline) / len(of_baseline)
        axis.axvline(mean, color="#888888", linestyle=":", label=f"mean of {summary.baseline}")
        figure.legend(loc="outside upper right")
    everything = [measure.scale * value for of_variant in runs.values() for value in of_variant.values()]
    axis.set_xlim(min(everything) - measure.reach, max(everything) + measure.reach)
    axis.set_yticks(range(len(runs)), [LABELS.get(variant, variant) for variant in runs])
    axis.invert_yaxis()
    unit = "%" if measure.scale == 100 else measure.unit
    axis.set_xlabel(f"{images_of(summary.source)} {measure.label} ({unit})")
    return _finish(figure, axis, summary, path)


def plot_contrasts(summary: "Summary", path: str | Path | None = None,
                   marks: Iterable[float] = ()) -> Figure | None:
    """Every declared contrast, on the suite's measure: each seed's difference a symbol, their mean a stroke.

    The line is the 95 % interval, and the grey band the suite's margin. A contrast of one seed is one symbol.
    The axis reaches one percentage point (of a loss, 0.1 nat) beyond the symbols, and an interval that is
    wider ends in an arrow. `marks` are further differences, in the measure's unit, each a dashed line that
    the axis reaches. Returns the figure, or writes it to `path`.
    """
    from mrla_minimal.lab.evidence.measures import MEASURES

    measure, rows, marks = MEASURES[summary.measure], summary.contrasts, list(marks)
    band = measure.scale * (summary.margin or 0)
    figure, axis = plt.subplots(figsize=(8.5, 0.5 * len(rows) + 2), layout="constrained")
    differences = [[measure.scale * value for value in row.differences.values()] for row in rows]
    low = min([-band, *marks, *(min(points) for points in differences)]) - measure.reach
    high = max([band, *marks, *(max(points) for points in differences)]) + measure.reach
    axis.axvspan(-band, band, color="#DDDDDD", zorder=0)
    axis.axvline(0, color="black", linewidth=1, zorder=1)
    for mark in marks:
        axis.axvline(mark, color="black", linewidth=1, linestyle="--", zorder=1)
    for place, (row, points) in enumerate(zip(rows, differences, strict=True)):
        colour, marker = COLOURS.get(row.a, "#444444"), MARKERS.get(row.a, "o")
        if row.interval is not None:
            ends = [min(max(measure.scale * end, low), high) for end in row.interval]
            axis.plot(ends, [place + 0.18] * 2, color=colour, linewidth=3.5, solid_capstyle="butt", zorder=2)
            for end, shown, arrow in zip(row.interval, ends, "<>", strict=True):
                if measure.scale * end != shown:
                    axis.plot([shown], [place + 0.18], color=colour, marker=arrow, markersize=7,
                              clip_on=False, zorder=3)
        axis.scatter(points, [place - 0.15] * len(points), color=colour, marker=marker, s=30, zorder=3)
        if row.n > 1:
            stroke = [place - 0.02, place + 0.38]
            axis.plot([measure.scale * row.mean] * 2, stroke, color="black", linewidth=1.5, zorder=4)
    axis.set_yticks(range(len(rows)), [label_of(row.a, row.b) + " (primary)" * row.primary for row in rows])
    axis.set(xlim=(low, high), ylim=(len(rows) - 0.4, -0.6))
    grey = f"; grey: \u00b1 {band:g}" if band else ""
    axis.set_xlabel(f"difference in {images_of(summary.source)} {measure.label}\n"
                    f"({measure.unit}; {measure.better} is better{grey})")
    return _finish(figure, axis, summary, path)


def images_of(source: str) -> str:
    """What images are called in figures: "CIFAR-10" for cifar10."""
    return source.upper().replace("CIFAR", "CIFAR-") if source.startswith("cifar") else source


def label_of(a: str, b: str | None) -> str:
    """What a contrast is called in figures: "MRLA-base \u2212 uniform mean", or an effect's name."""
    return " \u2212 ".join(LABELS.get(part, part) for part in (a, b) if part)


def _finish(figure: Figure, axis: Axes, summary: "Summary", path: str | Path | None) -> Figure | None:
    """Title and grid; the figure itself, or None once it is written to `path`."""
    parts = (summary.suite, summary.host, summary.note)
    axis.set_title(" \u00b7 ".join(part for part in parts if part))
    axis.grid(axis="x", alpha=0.3)
    if path is None:
        return figure
    save_figure(figure, path)
    return None
