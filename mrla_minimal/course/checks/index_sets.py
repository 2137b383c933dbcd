"""Checkers of notebook 16: a rule of frequency, two searches, one gradient, keys that are shared too."""

import torch

from mrla_minimal.course.checks.common import (
    NotAttempted,
    Wrong,
    blame,
    checker,
    close,
    numbers,
    pair,
    run,
    tensor,
)
from mrla_minimal.family.patterns import every_pattern, greedy_search, released_pattern


def _pattern(given, layers, where):
    """`given`, if it is a pattern for so many layers; else raises Wrong."""
    if not isinstance(given, str):
        raise Wrong(f"{where} return one string of letters, not of type {type(given).__name__}")
    if len(given) != layers or set(given) - set("FS"):
        raise Wrong(f"{where} the pattern should have {layers} letters, each F or S, not {given!r}")
    return given


@checker("exercise 1")
def check_frequency(answer: object) -> None:
    """answer(layers, every) -> the pattern whose first layer is F, and then every `every`-th one."""
    for layers, every in ((9, 4), (8, 3), (5, 1), (3, 7), (12, 4)):
        where = f"for {layers} layers and every = {every}:"
        given = _pattern(run(answer, layers, every), layers, where)
        right = "".join("S" if layer % every else "F" for layer in range(layers))
        if given == right:
            continue
        if given == released_pattern(layers, every):
            raise Wrong(f"{where} {given} is the released pattern: the first two layers are F")
        if given[0] == "S":
            raise Wrong(f"{where} {given} begins with S, and nobody has searched yet")
        if given == "".join("F" if letter == "S" else "S" for letter in right):
            raise Wrong(f"{where} F and S are exchanged")
        raise Wrong(f"{where} it should be {right}, not {given}")


def _losses(seed, layers=4):
    """A loss for every pattern, the smaller the more layers search, and never the same twice."""
    names = every_pattern(layers)
    noise = numbers(len(names), seed=seed).tolist()
    return {name: 3.0 - 0.1 * name.count("F") + abs(extra) for name, extra in zip(names, noise, strict=True)}


@checker("exercise 2")
def check_two_searches(answer: object) -> None:
    """answer(losses, searching) -> two patterns with so many F: greedy's, and the best of all.

    losses: {pattern: loss} of every pattern that begins with F.
    """
    for seed in range(8):
        losses, layers = _losses(seed, layers=4 + seed % 2), 4 + seed % 2
        for searching in range(1, layers):
            found, best = pair(run(answer, losses, searching), "greedy's pattern", "the best pattern")
            if found is None or best is None:
                raise NotAttempted
            path = dict((pattern.count("F"), pattern) for pattern, _ in greedy_search(losses.get, layers))
            same_price = [pattern for pattern in losses if pattern.count("F") == searching]
            right, greedy = min(same_price, key=losses.get), path[searching]
            where = f"for {layers} layers, of which {searching} may search:"
            found, best = (_pattern(given, layers, where) for given in (found, best))
            if best.count("F") != searching:
                raise Wrong(f"{where} the best pattern should have so many F, and {best} has not")
            if best != right:
                raise Wrong(f"{where} {best} has not the lowest loss of the patterns with so many F")
            if found == right != greedy:
                raise Wrong(f"{where} greedy ends at {greedy}, and misses {found}, the best of all")
            if found != greedy:
                raise Wrong(f"{where} greedy ends at {greedy}, not {found}: each step turns the one F to S "
                            "that costs least, and none is taken back")


@checker("exercise 3")
def check_gradient(answer: object) -> None:
    """answer(scores, targets) -> the gradient by scores of the mean of KL(target || softmax(scores)).

    scores (tokens,), targets (layers, tokens) whose rows sum to 1 -> (tokens,).
    """
    for count, layers in ((5, 3), (4, 2), (6, 1)):
        scores = numbers(count, seed=count)
        targets = numbers(layers, count, seed=count + 1).softmax(dim=-1)
        given = tensor(run(answer, scores, targets), (count,), "gradient")
        made = scores.softmax(dim=0)
        right = made - targets.mean(dim=0)
        mistakes = [
            (-right, "the sign is turned round: a score that is too large should come down"),
            (made * layers - targets.sum(dim=0), "that is the gradient of the sum, not of the mean"),
            (made - targets[0], "that is the gradient of the first layer's divergence alone"),
            (made - targets.sum(dim=0), "the targets are summed, and should be averaged"),
            (scores - targets.mean(dim=0), "the indexer's weights are softmax(scores), not the scores"),
        ]
        blame(given, right, mistakes, "it should be the gradient that autograd finds: compare the two")


def _agrees(given, wanted):
    """Whether keys and values agree, but for rounding, and positions to the last one."""
    if wanted.is_floating_point():
        return close(given, wanted)
    if given.dtype != wanted.dtype:
        raise Wrong(f"your positions should stay integers, of {wanted.dtype}, not {given.dtype}")
    return torch.equal(given, wanted)


@checker("exercise 4")
def check_shared_keys(answer: object) -> None:
    """answer(kind, positions, key, value, memory) -> what the layer uses, positions, key and value, and the
    memory for the next layer; an S layer gets no positions of its own, and takes all three from the memory.
    """
    used, memory = None, None
    for layer, kind in enumerate("FSSFS", start=1):
        key, value = numbers(2, 3, 5, 4, seed=layer), numbers(2, 3, 5, 4, seed=10 + layer)
        own = numbers(2, 5, 2, seed=20 + layer).argsort(dim=-1) if kind == "F" else None
        before = used
        used = (own, key, value) if kind == "F" else used
        given = run(answer, kind, own, key, value, memory)
        if not isinstance(given, tuple) or len(given) != 4:
            raise Wrong("return four things: positions, key, value, and the memory for the next layer")
        *given, memory = given
        where = f"layer {layer} of FSSFS, which is {kind}:"
        for name, part, right, its_own in zip(("positions", "key", "value"), given, used, (own, key, value),
                                              strict=True):
            if part is None:
                raise Wrong(f"{where} it has no {name}")
            tensor(part, right.shape, name)
            if _agrees(part, right):
                continue
            if kind == "S" and its_own is not None and _agrees(part, its_own):
                raise Wrong(f"{where} its {name} should be the F layer's, not its own")
            if kind == "F" and before and _agrees(part, before[("positions", "key", "value").index(name)]):
                raise Wrong(f"{where} an F layer uses its own {name}, whatever it was handed")
            raise Wrong(f"{where} its {name} should be those that the nearest F layer made; "
                        "does the memory still hold them?")
