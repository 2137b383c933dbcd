"""Every figure that more than one notebook draws, in the colours and markers of `lab/figures.py`."""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from mrla_minimal.course.quiz import SIGNS, verdict
from mrla_minimal.lab import figures
from mrla_minimal.lab.figures import mark_source, plot_contrasts, plot_suite, save_figure

__all__ = [
    "COLOURS",
    "HATCHES",
    "LABELS",
    "MARKERS",
    "attention_map",
    "draw_four_memories",
    "mark_source",
    "plot_contrasts",
    "plot_suite",
    "quiz_bars",
    "quiz_picture",
    "save_figure",
    "use_style",
]

# The corridor quiz's methods look like their kin on images; "last" and "state" have none.
_KIN = {
    "residual": "plain",
    "mean": "uniform",
    "base": "mrla-base",
    "light": "mrla-light",
    "layer-tagged": "layer",
    "layer, tagged": "layer",
    "dla": "dla-base",
}
COLOURS = {
    **figures.COLOURS,
    **{method: figures.COLOURS[kin] for method, kin in _KIN.items()},
    "last": "#BBBBBB",
    "state": "#F0E442",
    "context": "#9E9E9E",
    "base-context": "#7A5C00",
    "dla-open": "#FF7F50",
    "mean-dla": "#B8860B",
}
MARKERS = {
    **figures.MARKERS,
    **{method: figures.MARKERS[kin] for method, kin in _KIN.items()},
    "last": "d",
    "state": "*",
    "context": "X",
    "base-context": "v",
    "dla-open": "P",
    "mean-dla": "h",
    "layer-tagged": "1",
    "layer, tagged": "1",
}
LABELS = {
    **figures.LABELS,
    "last": "last alone",
    "residual": "residual sum",
    "mean": "mean of v",
    "base": "MRLA-base (Eq. 6)",
    "light": "MRLA-light (Eq. 8)",
    "state": "running state",
    "context": "the context alone",
    "base-context": "MRLA-base, query of a sum",
    "dla": "keys rewritten",
    "dla-open": "keys rewritten, gates start open",
    "mean-dla": "mean of v, rewritten",
    "layer-tagged": "Eq. 4, layers tagged",
    "layer, tagged": "Eq. 4, layers tagged",
    "hyper-connections": "hyper-connections, 4 streams",
    "rla": "RLA",
}
HATCHES = {
    "mean": "//",
    "layer": "xx",
    "base": "\\\\",
    "light": "..",
    "layer-tagged": "--",
    "layer, tagged": "--",
}


def use_style() -> None:
    """Text of 12 points at 110 dots an inch, so that a figure 9 inches wide can be read in a notebook."""
    plt.rcParams.update({
        "figure.dpi": 110,
        "font.size": 12,
        "axes.titlesize": "medium",
        "figure.constrained_layout.use": True,
    })


def _bars(axis: Axes, title: str, bars: Mapping[str, float]) -> None:
    """A bar a method, with its verdict beside it."""
    chance = 1 / SIGNS
    for position, (method, accuracy) in enumerate(bars.items()):
        look = {"color": COLOURS.get(method, "white"), "hatch": HATCHES.get(method), "edgecolor": "black"}
        axis.barh(position, accuracy, 0.7, **look)
        axis.text(max(accuracy, chance) + 0.03, position, verdict(accuracy), va="center")
    axis.axvline(chance, color="black", linestyle="--", linewidth=1)
    axis.set_yticks(range(len(bars)), [LABELS.get(method, method) for method in bars])
    axis.set(title=title, xlim=(0, 1.35), ylim=(len(bars) - 0.4, -0.6))
    axis.set_xlabel("accuracy (dashed: chance)")
    axis.set_xticks([0, 0.5, 1])


def quiz_bars(accuracies: Mapping[str, Mapping[str, float]]) -> Figure:
    """The corridor quiz: a panel a question, a bar a method.

    accuracies: {title: {method: accuracy from 0 to 1}}. A bar above 0.95 is called solved, one below 0.6 not
    solved. Returns the figure.
    """
    most = max(map(len, accuracies.values()))
    size = (7 if len(accuracies) == 1 else 9, 1.3 + 0.45 * most)
    figure, axes = plt.subplots(1, len(accuracies), figsize=size, squeeze=False, layout="constrained")
    for axis, (title, bars) in zip(axes[0], accuracies.items(), strict=True):
        _bars(axis, title, bars)
    return figure


def quiz_picture(bars: Mapping[str, float], weights: Sequence[Sequence[float]]) -> Figure:
    """The quiz in one picture: who solves it, and which rooms the exit reads to do so.

    bars: {method: accuracy from 0 to 1}; weights: a row for each room asked for. Returns the figure.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), width_ratios=(1.2, 1), layout="constrained")
    _bars(axes[0], "which sign hung in that room?", bars)
    attention_map(weights, axes[1], ylabel="room asked for", title="what MRLA-base's exit reads")
    return figure


def attention_map(
    rows: Sequence[Sequence[float]],
    axis: Axes | None = None,
    xlabel: str = "layer s that is read",
    ylabel: str = "layer t that asks",
    title: str = "",
    show_numbers: bool = False,
    label: str = "weight",
) -> Axes:
    """Who reads whom: a row for each layer that asks.

    Rows may differ in length; what is missing gets a cross.
    rows: weights (or gates: then say so with `label`) from 0 to 1, as lists, arrays or tensors.
    Draws into `axis`, or into a figure of its own; returns the axis.
    """
    rows = [[float(weight) for weight in row] for row in rows]
    if axis is None:
        axis = plt.subplots(figsize=(4, 3.4), layout="constrained")[1]
    columns = max(map(len, rows))
    full = [row + [float("nan")] * (columns - len(row)) for row in rows]
    image = axis.imshow(full, cmap="Greys", vmin=0, vmax=1)
    for y, row in enumerate(full):
        for x, weight in enumerate(row):
            missing = math.isnan(weight)
            text = "\u00d7" if missing else f"{weight:.2f}" if show_numbers else ""
            colour = "#BBBBBB" if missing else "white" if weight > 0.5 else "black"
            axis.text(x, y, text, ha="center", va="center", color=colour, fontsize="small")
    axis.set_xticks(range(columns), range(1, columns + 1))
    axis.set_yticks(range(len(full)), range(1, len(full) + 1))
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axis.figure.colorbar(image, ax=axis, shrink=0.85, label=label)
    return axis


def _sheet(
    axis: Axes, x: float, y: float, text: str, colour: str, width: float = 0.62, newest: bool = False
) -> None:
    """One kept map: a box with its name; the newest has a thick edge."""
    face = (*to_rgb(colour), 0.35)
    edge = 1.8 if newest else 0.6
    axis.add_patch(plt.Rectangle((x, y), width, 0.5, facecolor="white", linewidth=0))
    axis.add_patch(plt.Rectangle((x, y), width, 0.5, facecolor=face, edgecolor="black", linewidth=edge))
    axis.text(x + width / 2, y + 0.25, text, ha="center", va="center", fontsize="medium")


def _draw_memory(axis: Axes, kind: str, layer: int) -> None:
    """What layer `layer` hands on, drawn as a column at x = layer."""
    left = layer - 0.31
    if kind == "layer":
        for s in range(1, layer + 1):
            _sheet(axis, left, 0.62 * (s - 1), f"$X^{s}$", COLOURS[kind], newest=s == layer)
    elif kind == "mrla-base":
        for s in range(1, layer + 1):
            _sheet(axis, left - 0.1, 0.62 * (s - 1), f"$k^{s}$", "white", 0.38, newest=s == layer)
            _sheet(axis, left + 0.28, 0.62 * (s - 1), f"$v^{s}$", COLOURS[kind], 0.46, newest=s == layer)
    elif kind == "state":
        for behind in (3, 2, 1):
            _sheet(axis, left + 0.06 * behind, 0.09 * behind, "", COLOURS[kind], width=0.5)
        _sheet(axis, left, 0, f"$S^{layer}$", COLOURS[kind], width=0.5, newest=True)
    else:
        name = "O" if kind == "mrla-light" else "Y"
        _sheet(axis, left, 0, f"${name}^{layer}$", COLOURS[kind], newest=True)


def draw_four_memories(layers: int = 4) -> Figure:
    """Four answers to "what does a layer carry forward?", and what the released code of MRLA-light does.

    A panel each: what each of `layers` layers hands to the next. Returns the figure.
    """
    panels = {
        "layer": ("Eq. 4", "every feature map,", "projected again by each layer"),
        "mrla-base": ("MRLA-base, Eq. 6", "every key and value,", "read by each later layer"),
        "state": ("running state", "one sum of products k\u1d40v,", "which does not grow"),
        "mrla-light": ("MRLA-light, Eq. 8", "one running output,", "gated when it is written"),
        "mrla-light-released": ("MRLA-light, released", "no attention output:", "the block's output Y alone"),
    }
    figure, axes = plt.subplots(
        2, 3, figsize=(9, 5.8), height_ratios=(0.62 * layers + 0.4, 1.4), layout="constrained"
    )
    *used, last = axes.flat
    for axis, (kind, (title, kept, how)) in zip(used, panels.items(), strict=True):
        for layer in range(1, layers + 1):
            _draw_memory(axis, kind, layer)
            if layer < layers:
                axis.annotate("", (layer + 0.7, -0.2), (layer + 0.1, -0.2), arrowprops={"arrowstyle": "->"})
        height = 0.62 * layers + 0.05 if axis in axes[0] else 0.9
        axis.set_title(title, fontweight="bold")
        axis.set_xticks(range(1, layers + 1))
        axis.set_yticks([])
        axis.set(xlim=(0.4, layers + 0.6), ylim=(-0.4, height), xlabel=f"layer t\n{kept}\n{how}")
        axis.spines[["left", "right", "top"]].set_visible(False)
    last.text(0, 0.9, "thick edge:\nmade by layer t\n\narrow:\nhanded on", va="top", transform=last.transAxes)
    last.axis("off")
    return figure
