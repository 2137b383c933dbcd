"""The checkers of notebook 03: layer attention, Eq. 4, on vectors.

No two sizes are equal, so that a swap of layers, heads and channels shows in a shape; each check takes
several sizes.
"""

import math

import torch

from mrla_minimal.course.checks.common import Wrong, blame, checker, close, numbers, pair, run, tensor

STAGES = [(3, 4, 6, 3), (5,), (2, 7), (1, 1, 1, 4)]
HEAD_SIZES = [(4, 2, 3), (3, 5, 2), (1, 2, 3)]      # layers t, heads, head_dim
TAG_SIZES = [(4, 5), (2, 3)]                        # layers t, dim


def _run_twice(answer, *inputs):
    """The answer's (output, weights), if a second call on the same inputs gives the same."""
    first, second = (pair(run(answer, *inputs), "the output", "the weights") for _ in range(2))
    for one, other in zip(first, second, strict=True):
        if isinstance(one, torch.Tensor) and not one.isnan().any() and not close(other, one):
            raise Wrong("a second call on the same inputs gives another "
                        "result: something is kept between calls")
    return first


@checker("exercise 1")
def check_count(answer: object) -> None:
    """answer(lengths) -> how often a net with stages of these lengths applies a key projection under Eq. 4.
    """
    for lengths in STAGES:
        given = run(answer, lengths)
        if not hasattr(given, "__float__") or isinstance(given, bool):
            raise Wrong(f"return a number, not something of type {type(given).__name__}")
        total = sum(lengths)
        right = sum(length * (length + 1) // 2 for length in lengths)
        mistakes = [
            (total * (total + 1) // 2, "a layer reads its own stage only; the "
                                       "next stage starts with an empty memory"),
            (2 * right, "you count key and value projections together; "
                        "the question is about key projections"),
            (total, "you count one key projection a layer; under "
                    "Eq. 4 layer t applies its own to t features"),
            (sum(length * length for length in lengths), "you let layers read later layers; "
                                                         "layer t reads 1 to t only"),
            (right - total, "you leave out a layer's own feature; layer t reads layers 1 to t, itself too"),
        ]
        stages = f" (stages {lengths} gave {float(given):g})"
        named = [(wrong, message + stages) for wrong, message in mistakes]
        blame(given, right, named, "the count is not right" + stages)


HEAD_MISTAKES = {
    "view": "your heads mix layers and channels: (layers, channels) needs a transpose, not only a view",
    "woven":
        "your heads take every n-th channel; head 1 should have the first head_dim channels, head 2 the next",
    "root of dim":
        "you divide by the root of dim; a head's dot product has head_dim terms, so divide by its root",
    "no scale": "you do not divide by the root of head_dim",
    "over heads": "your softmax runs over the heads; it should run over the layers, for each head",
    "first asks": "you ask with layer 1's query; the last row of features is the layer that asks",
    "turned":
        "you apply the projections the wrong way round: each is (outputs, inputs), so rows @ projection.T",
}


def _heads(rows, heads):
    """(t, dim) -> (heads, t, head_dim), in plain slices."""
    head_dim = rows.shape[-1] // heads
    return torch.stack([rows[:, h * head_dim : (h + 1) * head_dim] for h in range(heads)])


def _attend(queries, keys, values, scale, axis=-1):
    """(heads, 1, head_dim), (heads, t, head_dim) twice -> output (dim,), weights (heads, t)."""
    weights = (queries @ keys.transpose(-2, -1) / scale).softmax(dim=axis)              # (heads, 1, t)
    return (weights @ values).flatten(), weights[:, 0]


def _in_heads(features, maps, heads, mistake=None):
    """Eq. 4 with heads, or what one of HEAD_MISTAKES makes of it: output (dim,), weights (heads, t)."""
    dim = features.shape[-1]
    head_dim = dim // heads
    asking = features[:1] if mistake == "first asks" else features[-1:]
    turned = [matrix if mistake == "turned" else matrix.T for matrix in maps]
    projected = [rows @ matrix for rows, matrix in zip((asking, features, features), turned, strict=True)]
    if mistake == "view":
        split = [rows.reshape(heads, len(rows), head_dim) for rows in projected]
    elif mistake == "woven":
        split = [rows.reshape(len(rows), head_dim, heads).permute(2, 0, 1) for rows in projected]
    else:
        split = [_heads(rows, heads) for rows in projected]
    scale = math.sqrt({"root of dim": dim, "no scale": 1}.get(mistake, head_dim))
    return _attend(*split, scale, axis=0 if mistake == "over heads" else -1)


@checker("exercise 2")
def check_heads(answer: object) -> None:
    """answer(features (t, dim), three projections (dim, dim), heads) -> output (dim,), weights (heads, t)."""
    for number, (layers, heads, head_dim) in enumerate(HEAD_SIZES):
        dim = heads * head_dim
        features, maps = numbers(layers, dim, seed=number), numbers(3, dim, dim, seed=number + 10)
        output, weights = _run_twice(answer, features, *maps, heads)
        right = _in_heads(features, maps, heads)
        wrong = {mistake: _in_heads(features, maps, heads, mistake) for mistake in HEAD_MISTAKES}
        named = [[(wrong[mistake][part], HEAD_MISTAKES[mistake]) for mistake in wrong] for part in (0, 1)]
        otherwise = f"your {{}} differ from Eq. 4's with {layers} layers and {heads} heads; try plain loops"
        blame(tensor(weights, (heads, layers), "weights"), right[1], named[1], otherwise.format("weights"))
        blame(tensor(output, (dim,)), right[0], named[0], otherwise.format("output's numbers"))


TAG_MISTAKES = {
    "none":
        "your keys do not tell the layers apart: shuffling the earlier ones changes nothing; "
        "give feature s tag s",
    "query": "your query is tagged too; it should come from the plain feature",
    "values": "your values are tagged too; they should come from the plain features",
    "all": "you tag queries and values too; only the keys should know the tags",
    "after": "you add the tag after the key projection; add it to the feature, before the projection",
    "no scale": "you do not divide by the root of the key's length",
}


def _tagged(features, tags, maps, mistake=None):
    """Eq. 4 with tags on the keys, or what one of TAG_MISTAKES makes of it: output (dim,), weights (t,)."""
    query_map, key_map, value_map = maps
    both = features if mistake == "none" else features + tags
    query = query_map @ (both if mistake in ("query", "all") else features)[-1]
    keys = features @ key_map.T + tags if mistake == "after" else both @ key_map.T
    values = (both if mistake in ("values", "all") else features) @ value_map.T
    scale = 1 if mistake == "no scale" else math.sqrt(len(query))
    weights = (keys @ query / scale).softmax(dim=0)
    return weights @ values, weights


@checker("exercise 3")
def check_tags(answer: object) -> None:
    """answer(features (t, dim), tags (t, dim), three matrices (dim, dim)) -> output (dim,), weights (t,)."""
    for number, (layers, dim) in enumerate(TAG_SIZES):
        features, tags = numbers(layers, dim, seed=number), numbers(layers, dim, seed=number + 20)
        maps = numbers(3, dim, dim, seed=number + 30)
        output, weights = _run_twice(answer, features, tags, *maps)
        right = _tagged(features, tags, maps)
        wrong = {mistake: _tagged(features, tags, maps, mistake) for mistake in TAG_MISTAKES}
        # Both parts at once: "values" and "all" give the right weights or the right output, never both.
        joined = [(torch.cat(wrong[mistake]), TAG_MISTAKES[mistake]) for mistake in wrong]
        given = torch.cat([tensor(output, (dim,)), tensor(weights, (layers,), "weights")])
        blame(given, torch.cat(right), joined, "the numbers differ from Eq. 4's "
                                               "with tagged keys; try plain loops")
