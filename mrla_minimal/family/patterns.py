"""Patterns like FSFS: which layers of an index cache search for positions, and which take another's.

F (full): the layer runs its own indexer. S (shared): it takes the positions of the nearest F layer before it.
The first layer is F. Each S saves an indexer, wherever it stands. What it costs in loss depends on where.

Source: IndexCache (index_cache.py); the released rule is read from its patches.
"""

import itertools
import math
from collections.abc import Callable

from mrla_minimal.shapes import check_positive


def check_pattern(pattern: str, layers: int | None = None) -> None:
    """A pattern must have one letter a layer, F or S, for `layers` layers if given, and begin with F."""
    letters = isinstance(pattern, str) and not set(pattern) - set("FS")
    if not letters or layers not in (None, len(pattern)):
        wanted = "is letters F or S" if layers is None else f"for {layers} layers is {layers} letters F or S"
        raise ValueError(f"a pattern {wanted}, not {pattern!r}")
    if not pattern.startswith("F"):
        raise ValueError(f"a pattern must begin with F: in {pattern!r} the first layer would take the "
                         "positions of a layer that is not there")


def every_pattern(layers: int) -> list[str]:
    """All 2 ** (layers - 1) patterns, from all F to F and S for the rest."""
    check_positive("layers", layers)
    return ["F" + "".join(rest) for rest in itertools.product("FS", repeat=layers - 1)]


def served_by(pattern: str) -> dict[int, list[int]]:
    """{F layer: the layers that use its set, itself first}, layers counted from 0."""
    check_pattern(pattern)
    served = {}
    for layer, kind in enumerate(pattern):
        if kind == "F":
            served[layer] = []
        served[max(served)].append(layer)
    return served


def released_pattern(layers: int, frequency: int) -> str:
    """The pattern of the released option index_topk_freq: S where max(layer - 1, 0) % frequency != 0.

    Layers count from 0, so the first *two* are F, and nobody but layer 0 uses layer 0's set.
    """
    check_positive("layers", layers)
    check_positive("frequency", frequency)
    return "".join("S" if max(layer - 1, 0) % frequency else "F" for layer in range(layers))


def greedy_search(loss_of: Callable[[str], float], layers: int) -> list[tuple[str, float]]:
    """The training-free search: turn F layers to S one by one, each time the one that costs least.

    loss_of(pattern) -> the model's loss on a fixed calibration set. Returns (pattern, loss) from all F to one
    F, after layers * (layers - 1) / 2 evaluations and that of the start. The first layer stays F.
    Raises ValueError for a loss that is NaN, which no other is below or above.
    """
    check_positive("layers", layers)

    def checked(pattern):
        loss = loss_of(pattern)
        if math.isnan(loss):
            raise ValueError(f"the loss of {pattern} must be a number, not {loss}")
        return loss

    pattern = "F" * layers
    path = [(pattern, checked(pattern))]
    while pattern.count("F") > 1:
        flips = [pattern[:place] + "S" + pattern[place + 1 :]
                 for place in range(1, layers) if pattern[place] == "F"]
        losses = {flip: checked(flip) for flip in flips}
        pattern = min(losses, key=losses.get)
        path.append((pattern, losses[pattern]))
    return path
