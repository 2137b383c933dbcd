"""The checkers of notebook 04: Eq. 6 on vectors; the question that one layer answers; each layer left out.

No two sizes are equal. Each step is taken twice from the same memory, as in a network with two branches.
"""

import math

import torch

from mrla_minimal.course.checks.common import Wrong, blame, checker, close, numbers, pair, run, tensor

SIZES = [(4, 2, 3, 5), (3, 1, 5, 2)]        # layers, heads, d, e
KEYS = [(3, 5), (4, 4), (2, 7)]             # layers, d


def _stack(seed, layers, heads, d, e):
    """Each layer's query and key, (layers, heads, d) twice, and value, (layers, heads, e)."""
    return (numbers(layers, heads, d, seed=seed), numbers(layers, heads, d, seed=seed + 50),
            numbers(layers, heads, e, seed=seed + 90))


def _read(query, keys, values, scale=None, axis=0):
    """Softmax attention of each head: (heads, d), (t, heads, d), (t, heads, e) -> (heads, e)."""
    logits = (keys * query).sum(dim=-1) / (scale or math.sqrt(query.shape[-1]))         # (t, heads)
    return (logits.softmax(dim=axis)[..., None] * values).sum(dim=0)


def _sum(query, keys, values, scale=1.0):
    """The same without softmax."""
    return ((keys * query).sum(dim=-1, keepdim=True) / scale * values).sum(dim=0)


def _mistakes(query, keys, values, first_query):
    """What the likely mistakes give where a layer should read these `keys` and `values`, its own among them.
    """
    heads, d = query.shape
    root = math.sqrt(d)
    mistakes = [
        (_read(query, keys, values, 1.0), "you do not divide by the root of d"),
        (_read(query, keys, values, math.sqrt(heads * d)),
         "you divide by the root of heads * d; a head's dot product has d terms, so divide by the root of d"),
        (_read(query, keys, values, axis=1),
         "your softmax runs over the heads; it should run over the layers, for each head"),
        (_read(query, keys[:, :1].expand_as(keys), values), "all your heads read with head 1's keys"),
        (_read(first_query, keys, values), "you ask with the first layer's query; "
                                           "each layer brings a new one"),
        (values.mean(dim=0), "your weights are all equal: the query plays no part"),
        (values[-1], "your output is the layer's own value: it does not read the memory"),
        (_sum(query, keys, values), "you left out the softmax"),
        (_sum(query, keys, values, root), "you left out the softmax"),
    ]
    if len(keys) > 1:
        mistakes.append((_read(query, keys[:-1], values[:-1]),
                         "your layer does not read its own key and value"))
    return mistakes


def _check_pairs(memory, keys, values):
    """Raises Wrong unless `memory` is the list of pairs of keys (t, heads, d) and values (t, heads, e)."""
    if not isinstance(memory, list):
        raise Wrong(f"the memory should be a list of (key, value) pairs, not of type {type(memory).__name__}")
    if len(memory) != len(keys):
        raise Wrong(f"your memory holds {len(memory)} pairs, it should hold {len(keys)}")
    for number, (entry, *wanted) in enumerate(zip(memory, keys, values, strict=True), start=1):
        if not isinstance(entry, (tuple, list)) or len(entry) != 2:
            raise Wrong("each entry of the memory should be a pair (key, value)")
        for part, right, name in zip(entry, wanted, ("key", "value"), strict=True):
            if not close(tensor(part, right.shape, f"memory's {name}"), right):
                raise Wrong(f"entry {number} of your memory does not hold its layer's {name}")


def _step(answer, shape, *inputs):
    """The answer's (output, memory), if its output has that shape, and comes again from the same memory."""
    output, memory = pair(run(answer, *inputs), "the output", "the memory")
    tensor(output, shape)
    again, _ = pair(run(answer, *inputs), "the output", "the memory")
    if not close(again, output):
        raise Wrong("the same call from the same memory gives "
                    "another output: something is kept between calls")
    return output, memory


@checker("exercise 1")
def check_cache(answer: object) -> None:
    """answer(query, key (heads, d), value (heads, e), memory) -> output (heads, e), memory: pairs."""
    for seed, (layers, heads, d, e) in enumerate(SIZES):
        queries, keys, values = _stack(seed, layers, heads, d, e)
        memory = None
        for t in range(layers):
            output, memory = _step(answer, (heads, e), queries[t], keys[t], values[t], memory)
            seen = keys[: t + 1], values[: t + 1]
            blame(output, _read(queries[t], *seen), _mistakes(queries[t], *seen, queries[0]),
                  f"the output at layer {t + 1} is not the attention "
                  f"over layers 1 to {t + 1}; try plain loops")
            _check_pairs(memory, *seen)


@checker("exercise 2")
def check_question(answer: object) -> None:
    """answer(keys (t, d), s) -> a query (d,) that key s answers with 1 and every other key with 0."""
    for seed, (layers, d) in enumerate(KEYS):
        keys = numbers(layers, d, seed=seed)
        keys = keys + 0.5 * keys.roll(1, dims=0)        # far from right angles
        for s in range(layers):
            query = tensor(run(answer, keys, s), (d,), "query")
            answers = keys @ query.to(keys.dtype)                               # (t,)
            right = torch.eye(layers, dtype=torch.float64)[s]
            own = answers[s].item()
            others = "of the other layers answer too"
            blame(answers, right, [
                (keys @ keys[s], f"your question is layer {s + 1}'s own key: some {others}"),
                (keys @ keys[s] / keys[s].square().sum(), "your question is the layer's key, rescaled: it is "
                 f"answered with 1, but some {others}, for the keys are not at right angles"),
                (right.roll(1), "another layer answers; s counts from 0"),
                (right.roll(-1), "another layer answers; s counts from 0"),
            ], f"with s = {s} of {layers} layers the answers keys @ query are not 1 for that layer and 0 for "
               "the others" if not close(answers, own * right) else
               f"the right layer answers, and it alone, but with {own:.3g} in place of 1")


def _without(query, keys, values, s):
    """Eq. 6 over all layers but s: (heads, e)."""
    kept = [r for r in range(len(keys)) if r != s]
    return _read(query, keys[kept], values[kept])


def _silenced(query, keys, values, s, logit=None):
    """What is left if layer s keeps its share of the weight (`logit` None), or gets that logit: (heads, e).
    """
    logits = (keys * query).sum(dim=-1) / math.sqrt(query.shape[-1])            # (t, heads)
    if logit is not None:
        logits[s] = logit
    weights = logits.softmax(dim=0)[..., None].clone()
    if logit is None:
        weights[s] = 0
    return (weights * values).sum(dim=0)


@checker("exercise 3")
def check_left_out(answer: object) -> None:
    """answer(query (heads, d), keys (t, heads, d), values (t, heads, e)) -> (t, heads, e): without each."""
    for loudness in (1.0, 1000.0):      # in the second round one layer has all of a head's weight
        for seed, (layers, heads, d, e) in enumerate(SIZES):
            queries, keys, values = _stack(seed, layers, heads, d, e)
            query, inputs = loudness * queries[-1], (keys, values)
            right = torch.stack([_without(query, *inputs, s) for s in range(layers)])
            whole = _read(query, *inputs)
            output = run(answer, query, keys, values)
            if loudness > 1 and isinstance(output, torch.Tensor) and not output.isfinite().all():
                raise Wrong("one layer has all the weight here, and you divide by what is left, 0; leave it "
                            "out before the softmax")
            mistakes = {
                "you leave nobody out: all your outputs are the whole one": whole.expand_as(right),
                "you take out the layer's value, but not its share of the weight: "
                "the other weights should sum to 1":
                    torch.stack([_silenced(query, *inputs, s) for s in range(layers)]),
                "you give the layer that is left out the logit 0; absent is minus infinity":
                    torch.stack([_silenced(query, *inputs, s, 0.0) for s in range(layers)]),
                "you do not divide by the root of d":
                    torch.stack([_without(query * math.sqrt(d), *inputs, s) for s in range(layers)]),
                "your output is what the layer adds; wanted is the output without it": whole - right,
                "your order is reversed: entry 0 leaves out the first layer": right.flip(0),
            }
            blame(tensor(output, (layers, heads, e)), right, mistakes,
                  "an output is not the attention over the layers that are left"
                  + (" where one layer has all the weight" if loudness > 1 else "") + "; try plain loops")
