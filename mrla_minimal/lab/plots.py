"""Every figure that more than one place draws, from plain records; one colour and one marker a method, everywhere.

The colours are Okabe and Ito's, told apart by most colour-blind readers; the markers tell them apart in grey.
"""

import math

import matplotlib.pyplot as plt
from matplotlib.colors import to_rgb

COLOURS = {
    "plain": "#000000",
    "mrla-light": "#0072B2",
    "mrla-light-own": "#003B5C",
    "mrla-light-lambda0": "#7FB7D9",
    "mrla-light-lambda1": "#B8D8EA",
    "mrla-base": "#D55E00",
    "layer": "#CC79A7",
    "uniform": "#E69F00",
    "depthwise": "#009E73",
    "depthwise-gated": "#56B4E9",
    "depthwise-carry": "#7F7F7F",
    "se": "#8C6D31",
    "eca": "#6A3D9A",
}
MARKERS = {
    "plain": "o",
    "mrla-light": "s",
    "mrla-light-own": "p",
    "mrla-light-lambda0": "$0$",
    "mrla-light-lambda1": "$1$",
    "mrla-base": "^",
    "layer": "v",
    "uniform": "D",
    "depthwise": "P",
    "depthwise-gated": "X",
    "depthwise-carry": "<",
    "se": ">",
    "eca": "h",
}
LABELS = {
    "plain": "plain",
    "mrla-light": "MRLA-light",
    "mrla-light-own": "MRLA-light, own carry",
    "mrla-light-lambda0": "MRLA-light, lambda from 0",
    "mrla-light-lambda1": "MRLA-light, lambda from 1",
    "mrla-base": "MRLA-base",
    "layer": "layer attention (Eq. 4)",
    "uniform": "uniform mean",
    "depthwise": "depthwise",
    "depthwise-gated": "depthwise, gated",
    "depthwise-carry": "depthwise + carry",
    "se": "SE",
    "eca": "ECA",
}


def save_figure(figure, path):
    """Write the figure as PNG, whole or not at all, and close it."""
    from mrla_minimal.lab.files import replace_file

    try:
        replace_file(path, lambda file: figure.savefig(file, format="png", dpi=120))
    finally:
        plt.close(figure)


def mark_source(figure, source):
    """Say above a figure that its images are not CIFAR, unless they are; `source` is a data set's or a record's. Returns the figure."""
    if not source.startswith("cifar"):
        figure.suptitle(f"{source} images, not CIFAR")
    return figure


def _whole_numbers(ticks, last):
    return [tick for tick in ticks if 0 <= tick <= last and tick == int(tick)]


def plot_curves(metrics, path=None, source="cifar10"):
    """Loss and accuracy against epochs, left and right. `metrics` is one run's list of epoch records, as in metrics.jsonl.

    `source` other than CIFAR is written into the title. Returns the figure, or writes it to `path`.
    """
    epochs = [record["epoch"] for record in metrics]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    styles = {"train": ("#000000", "o", "-"), "validation": ("#E69F00", "D", "--"), "test": ("#0072B2", "s", "--")}
    for axis, what, scale, unit in ((axes[0], "loss", 1, "mean cross-entropy"), (axes[1], "accuracy", 100, "accuracy (%)")):
        for split, (colour, marker, line) in styles.items():
            points = [(record["epoch"], scale * record[f"{split}_{what}"]) for record in metrics if f"{split}_{what}" in record]
            if split == "train" and len(metrics) <= 10:      # a short run shows what happened within its epochs
                points = [(record["epoch"] - 1 + (number + 1) / len(record[f"train_{what}_parts"]), scale * part)
                          for record in metrics for number, part in enumerate(record[f"train_{what}_parts"])]
            if points:
                label = f"{split}, last {points[-1][1]:.2f}"
                marker = marker if len(points) < 30 else None
                axis.plot(*zip(*points, strict=True), color=colour, marker=marker, linestyle=line, label=label)
        axis.set(xlabel="epoch", ylabel=unit)
        axis.set_xlim(left=0)
        axis.set_xticks(_whole_numbers(axis.get_xticks(), epochs[-1]) or epochs)
        axis.grid(alpha=0.3)
        axis.legend()
    axes[0].set_title("loss (train: as training saw the images)")
    axes[1].set_title("accuracy")
    mark_source(figure, source)
    if path is None:
        return figure
    save_figure(figure, path)
    return None


# The corridor quiz's methods, by their names there, look like their kin on images; "last" and "state" have none.
_KIN = {"residual": "plain", "mean": "uniform", "base": "mrla-base", "light": "mrla-light"}
COLOURS.update({method: COLOURS[kin] for method, kin in _KIN.items()}, last="#BBBBBB", state="#F0E442")
MARKERS.update({method: MARKERS[kin] for method, kin in _KIN.items()}, last="d", state="*")
LABELS.update(last="last alone", residual="residual sum", mean="mean of v", base="MRLA-base (Eq. 6)",
              light="MRLA-light (Eq. 8)", state="running state")
HATCHES = {"mean": "//", "layer": "xx", "base": "\\\\", "light": ".."}
for _name in ("layer-tagged", "layer, tagged"):
    COLOURS[_name], MARKERS[_name], LABELS[_name], HATCHES[_name] = COLOURS["layer"], "1", "Eq. 4, layers tagged", "--"


def quiz_bars(accuracies, chance=1 / 8):
    """The corridor quiz: a panel a question, a bar a method. `accuracies` is {title: {method: accuracy from 0 to 1}}.

    A bar above 0.95 is called solved, one below 0.6 not solved. Returns the figure.
    """
    most = max(map(len, accuracies.values()))
    size = (7 if len(accuracies) == 1 else 9, 1.2 + 0.4 * most)
    figure, axes = plt.subplots(1, len(accuracies), figsize=size, squeeze=False, layout="constrained")
    for axis, (title, bars) in zip(axes[0], accuracies.items(), strict=True):
        for position, (method, accuracy) in enumerate(bars.items()):
            look = {"color": COLOURS.get(method, "white"), "hatch": HATCHES.get(method), "edgecolor": "black"}
            axis.barh(position, accuracy, 0.7, **look)
            verdict = "solved" if accuracy > 0.95 else "not solved" if accuracy < 0.6 else "between"
            axis.text(max(accuracy, chance) + 0.03, position, verdict, va="center", fontsize=9)
        axis.axvline(chance, color="black", linestyle="--", linewidth=1)
        axis.set_yticks(range(len(bars)), [LABELS.get(method, method) for method in bars])
        axis.set(title=title, xlim=(0, 1.5), ylim=(len(bars) - 0.4, -0.6), xlabel="accuracy (dashed: chance)")
        axis.set_xticks([0, 0.5, 1])
    return figure


def attention_map(rows, axis=None, xlabel="layer s that is read", ylabel="layer t that asks", title="",
                  show_numbers=False, label="weight"):
    """Who reads whom: a row for each layer that asks. Rows may differ in length; what is missing gets a cross.

    rows: weights (or gates: then say so with `label`) from 0 to 1, as lists or arrays.
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
            axis.text(x, y, text, ha="center", va="center", color=colour, fontsize=8)
    axis.set_xticks(range(columns), range(1, columns + 1))
    axis.set_yticks(range(len(full)), range(1, len(full) + 1))
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axis.figure.colorbar(image, ax=axis, shrink=0.85, label=label)
    return axis


def _sheet(axis, x, y, text, colour, width=0.62, newest=False):
    """One kept map: a box with its name; the newest has a thick edge."""
    face = (*to_rgb(colour), 0.35)
    edge = 1.8 if newest else 0.6
    axis.add_patch(plt.Rectangle((x, y), width, 0.5, facecolor="white", linewidth=0))
    axis.add_patch(plt.Rectangle((x, y), width, 0.5, facecolor=face, edgecolor="black", linewidth=edge))
    axis.text(x + width / 2, y + 0.25, text, ha="center", va="center", fontsize=9)


def _draw_memory(axis, kind, layer):
    """What layer `layer` hands on, drawn as a column at x = layer."""
    left = layer - 0.31
    if kind == "layer":
        for s in range(1, layer + 1):
            _sheet(axis, left, 0.62 * (s - 1), f"$X^{s}$", COLOURS[kind], newest=s == layer)
    elif kind == "mrla-base":
        for s in range(1, layer + 1):
            _sheet(axis, left, 0.62 * (s - 1), f"$k^{s}$", "white", width=0.3, newest=s == layer)
            _sheet(axis, left + 0.3, 0.62 * (s - 1), f"$v^{s}$", COLOURS[kind], width=0.42, newest=s == layer)
    elif kind == "state":
        for behind in (3, 2, 1):
            _sheet(axis, left + 0.06 * behind, 0.09 * behind, "", COLOURS[kind], width=0.5)
        _sheet(axis, left, 0, f"$S^{layer}$", COLOURS[kind], width=0.5, newest=True)
    else:
        _sheet(axis, left, 0, f"$O^{layer}$", COLOURS[kind], newest=True)


def draw_four_memories(layers=4):
    """Four answers to "what does a layer carry forward?", side by side: what each of `layers` layers hands to the next.

    Returns the figure.
    """
    panels = {
        "layer": ("layer attention, Eq. 4", "every feature map", "projected again by each layer",
                  "T(T+1)/2 projections"),
        "mrla-base": ("MRLA-base, Eq. 6", "every key and value", "read by each later layer", "T projections"),
        "state": ("running state", "one sum of key-value products", "d maps, exact without softmax", "T projections"),
        "mrla-light": ("MRLA-light, Eq. 8", "one running output", "gated when it is written", "T projections"),
    }
    figure, axes = plt.subplots(1, 4, figsize=(11, 3.4), layout="constrained", sharey=True)
    for axis, (kind, (title, kept, how, cost)) in zip(axes, panels.items(), strict=True):
        for layer in range(1, layers + 1):
            _draw_memory(axis, kind, layer)
            if layer < layers:
                axis.annotate("", (layer + 0.7, -0.2), (layer + 0.1, -0.2), arrowprops={"arrowstyle": "->"})
        axis.set_title(title, fontsize=11, fontweight="bold")
        axis.set_xticks(range(1, layers + 1))
        axis.set_yticks([])
        axis.set(xlim=(0.5, layers + 0.6), ylim=(-0.4, 0.62 * layers + 0.05))
        axis.set_xlabel(f"layer t\n\nkeeps {kept}\n{how}\n{cost}", fontsize=9)
        axis.spines[["left", "right", "top"]].set_visible(False)
    return figure


def plot_suite(summary, path=None):
    """Every run a point, every variant's mean and 95 % interval (Student's t over its seeds), the baseline's mean a line.

    `summary` is what experiments.summarise returns. The axis reaches one percentage point beyond the runs, and cuts off an
    interval that is wider (from two seeds it is). Returns the figure, or writes it to `path`.
    """
    from mrla_minimal.lab.contrasts import paired_interval

    variants = list(summary.accuracies)
    figure, axis = plt.subplots(figsize=(8, 0.5 * len(variants) + 1.6), layout="constrained")
    for row, variant in enumerate(variants):
        values = [100 * value for value in summary.accuracies[variant].values()]
        colour, marker = COLOURS.get(variant, "#444444"), MARKERS.get(variant, "o")
        axis.scatter(values, [row] * len(values), color=colour, marker=marker, s=36, zorder=3)
        mean, interval, _ = paired_interval(values)
        if interval is not None:
            axis.plot(interval, [row + 0.25] * 2, color=colour, linewidth=2)
        axis.plot([mean], [row + 0.25], color=colour, marker="|", markersize=10)
    if summary.baseline in summary.accuracies:
        runs = summary.accuracies[summary.baseline].values()
        axis.axvline(100 * sum(runs) / len(runs), color="#888888", linestyle=":", label=f"mean of {summary.baseline}")
        figure.legend(loc="outside upper right")
    everything = [100 * value for runs in summary.accuracies.values() for value in runs.values()]
    axis.set_xlim(min(everything) - 1, max(everything) + 1)
    axis.set_yticks(range(len(variants)), [LABELS.get(variant, variant) for variant in variants])
    axis.invert_yaxis()
    axis.set_xlabel(f"{summary.source} test accuracy (%), last epoch")
    axis.set_title(" · ".join(part for part in (summary.suite, summary.note) if part))
    axis.grid(axis="x", alpha=0.3)
    if path is None:
        return figure
    save_figure(figure, path)
    return None


def plot_contrasts(summary, path=None, margin=None):
    """Every declared contrast a - b: each seed's difference (symbols), their mean, the 95 % paired interval (thick), the pooled one (thin).

    `summary` is what experiments.summarise returns. The grey band is the margin (a fraction of 1; None: contrasts.MARGIN). A contrast
    of one seed is one symbol. The axis reaches one percentage point beyond the symbols; an interval that is wider ends in an arrow.
    Returns the figure, or writes it to `path`.
    """
    from mrla_minimal.lab.contrasts import MARGIN

    margin = 100 * (MARGIN if margin is None else margin)
    rows = summary.contrasts
    figure, axis = plt.subplots(figsize=(8.5, 0.5 * len(rows) + 2), layout="constrained")
    differences = []
    for row in rows:
        a, b = summary.accuracies[row.a], summary.accuracies[row.b]
        differences.append([100 * (a[seed] - b[seed]) for seed in sorted(set(a) & set(b))])
    low = min([-margin, *(min(points) for points in differences)]) - 1
    high = max([margin, *(max(points) for points in differences)]) + 1
    axis.axvspan(-margin, margin, color="#DDDDDD", zorder=0)
    axis.axvline(0, color="black", linewidth=1, zorder=1)
    for place, (row, points) in enumerate(zip(rows, differences, strict=True)):
        colour, marker = COLOURS.get(row.a, "#444444"), MARKERS.get(row.a, "o")
        for interval, width, below in ((row.interval, 3.5, 0.18), (row.pooled, 1, 0.32)):
            if interval is not None:
                ends = [min(max(100 * end, low), high) for end in interval]
                axis.plot(ends, [place + below] * 2, color=colour, linewidth=width, solid_capstyle="butt", zorder=2)
                for end, shown, arrow in zip(interval, ends, "<>", strict=True):
                    if 100 * end != shown:
                        axis.plot([shown], [place + below], color=colour, marker=arrow, markersize=7, clip_on=False, zorder=3)
        axis.scatter(points, [place - 0.15] * len(points), color=colour, marker=marker, s=30, zorder=3)
        if row.n > 1:
            axis.plot([100 * row.mean] * 2, [place - 0.02, place + 0.38], color="black", linewidth=1.5, zorder=4)
    names = [f"{LABELS.get(row.a, row.a)} \u2212 {LABELS.get(row.b, row.b)}{' (primary)' if row.primary else ''}" for row in rows]
    axis.set_yticks(range(len(rows)), names)
    axis.set(xlim=(low, high), ylim=(len(rows) - 0.4, -0.6))
    axis.set_xlabel(f"difference in {summary.source} test accuracy, last epoch (points; grey: \u00b1 {margin:g})")
    axis.set_title(" \u00b7 ".join(part for part in (summary.suite, summary.note) if part))
    axis.grid(axis="x", alpha=0.3)
    if path is None:
        return figure
    save_figure(figure, path)
    return None
