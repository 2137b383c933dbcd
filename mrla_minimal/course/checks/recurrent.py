"""The checkers of notebook 04: recurrent layer attention, Eq. 6, and other memories, on vectors.

No two sizes are equal. Each step is taken twice from the same memory, as in a network with two branches.
"""

import math

import torch

from mrla_minimal.course.checks.common import Wrong, blame, checker, close, numbers, pair, run, tensor

SIZES = [(4, 2, 3, 5), (3, 1, 5, 2)]        # layers, heads, d, e
WINDOWS = (3, 1, 2, 6)


def _stack(seed, layers, heads, d, e):
    """Each layer's query and key, (layers, heads, d) twice, and value, (layers, heads, e)."""
    return (numbers(layers, heads, d, seed=seed), numbers(layers, heads, d, seed=seed + 50),
            numbers(layers, heads, e, seed=seed + 90))


def _ask(query, matrices):
    """(heads, d) and (heads, d, e) -> (heads, e), head by head."""
    return torch.stack([row @ matrix for row, matrix in zip(query, matrices, strict=True)])


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
def check_state(answer: object) -> None:
    """answer(query, key (heads, d), value (heads, e), state) -> output (heads, e), state (heads, d, e).

    Without softmax.
    """
    for seed, (layers, heads, d, e) in enumerate(SIZES):
        queries, keys, values = _stack(seed, layers, heads, d, e)
        state, right = None, torch.zeros(heads, d, e, dtype=torch.float64)
        for t in range(layers):
            output, state = _step(answer, (heads, e), queries[t], keys[t], values[t], state)
            before, entry = right, keys[t][:, :, None] * values[t][:, None, :]
            right = before + entry
            scaled = "leave out the scale: this is Eq. 6 as the paper writes it"
            if isinstance(state, torch.Tensor) and state.shape == (heads, e, d):
                raise Wrong(f"your state is {(heads, e, d)}, it should be "
                            f"{(heads, d, e)}: keys down, values across")
            blame(tensor(state, (heads, d, e), "state"), right, [
                (entry, "your state holds the newest entry only: the older ones are lost"),
                (before, "your state does not take in the layer's own entry"),
                (right / (t + 1), "your state is a mean; it should be a sum"),
                (right / math.sqrt(d), scaled),
            ], f"the state after layer {t + 1} is not the sum of the key-value products so far")
            blame(output, _ask(queries[t], right), [
                (_ask(queries[t], before), "you ask the old state; add the layer's own entry first"),
                (_ask(queries[t], entry), "your output asks the layer's own entry only; ask the whole state"),
                (_ask(queries[t], right) / math.sqrt(d), scaled),
                (_ask(queries[0], right), "you ask with the first layer's query; "
                                          "each layer brings a new one"),
                (_ask(keys[t], right), "you ask with the key in place of the query"),
                (_read(queries[t], keys[: t + 1], values[: t + 1]), "leave out the softmax"),
            ], f"the output at layer {t + 1} is not the query times the state, head by head")


@checker("exercise 3")
def check_window(answer: object) -> None:
    """answer(query, key, value, memory, window) -> output, memory: exercise 1 over the latest `window` pairs.
    """
    layers, heads, d, e = 5, 2, 3, 4
    for window in WINDOWS:
        queries, keys, values = _stack(window, layers, heads, d, e)
        memory = None
        for t in range(layers):
            output, memory = _step(answer, (heads, e), queries[t], keys[t], values[t], memory, window)
            ranges = {
                "your layer reads more than `window` pairs, the layer's own among them": (t - window, t + 1),
                "you keep the oldest pairs; the window is the latest ones": (0, min(window, t + 1)),
                "your window is one too short: the own pair and window - 1 earlier ones":
                    (t + 2 - window, t + 1),
            }
            mistakes = []
            for message, (first, last) in ranges.items():
                part = slice(max(first, 0), last)
                if len(keys[part]) > 0:
                    mistakes.append((_read(queries[t], keys[part], values[part]), message))
            seen = keys[max(t + 1 - window, 0) : t + 1], values[max(t + 1 - window, 0) : t + 1]
            blame(output, _read(queries[t], *seen), mistakes + _mistakes(queries[t], *seen, queries[0]),
                  f"the output at layer {t + 1} with window {window} "
                  "is not the attention over its latest pairs")
            if isinstance(memory, list) and len(memory) > window:
                raise Wrong(f"your memory holds {len(memory)} pairs with "
                            f"a window of {window}: drop the old ones")
            handed_on = [] if memory is None else memory
            # all that the next layer will read
            if isinstance(handed_on, list) and len(handed_on) == window - 1:
                seen = [part[len(part) - min(window - 1, len(part)) :] for part in seen]
            _check_pairs(handed_on, *seen)
