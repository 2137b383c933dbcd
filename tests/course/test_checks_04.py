"""The checkers of notebook 04: plausible mistakes are named."""

import math

import pytest
import torch
from notebook_answers import assert_wrong

from mrla_minimal.course.checks.recurrent import check_cache, check_state, check_window


def attend(query, pairs, scale=1.0, axis=0):
    """query (heads, d), pairs of (heads, d) and (heads, e) -> (heads, e)."""
    logits = torch.stack([(key * query).sum(dim=-1) for key, _ in pairs]) * scale / math.sqrt(query.shape[-1])
    weights = logits.softmax(dim=axis)
    return sum(weight[:, None] * value for weight, (_, value) in zip(weights, pairs, strict=True))


def cache_answer(**mistake):
    def answer(query, key, value, memory):
        memory = [*(memory or []), (key, value)]
        return attend(query, memory, **mistake), memory
    return answer


def no_scale(query, key, value, memory):
    return cache_answer(scale=math.sqrt(query.shape[-1]))(query, key, value, memory)


def scale_of_all_heads(query, key, value, memory):
    return cache_answer(scale=1 / math.sqrt(len(query)))(query, key, value, memory)


def not_itself(query, key, value, memory):
    return attend(query, memory or [(key, value)]), [*(memory or []), (key, value)]


def first_head_for_all(query, key, value, memory):
    memory = [*(memory or []), (key, value)]
    return attend(query, [(key[:1].expand_as(key), value) for key, value in memory]), memory


def no_softmax(query, key, value, memory):
    memory = [*(memory or []), (key, value)]
    scores = [(key * query).sum(dim=-1, keepdim=True) / math.sqrt(query.shape[-1]) for key, _ in memory]
    total = sum(score * value for score, (_, value) in zip(scores, memory, strict=True))
    return (value, memory) if len(memory) == 1 else (total, memory)       # right at t = 1


def appends(query, key, value, memory):
    memory = [] if memory is None else memory
    memory.append((key, value))
    return attend(query, memory), memory


def keeps_a_list_of_its_own():
    kept = []

    def answer(query, key, value, memory):
        kept.append((key, value))
        return attend(query, kept), list(kept)
    return answer


def first_query(query, key, value, memory):
    """Memory is right, but the query is the first layer's: kept outside, right at t = 1."""
    if memory is None:
        first_query.kept = query
    return attend(first_query.kept, [*(memory or []), (key, value)]), [*(memory or []), (key, value)]


def forgets(query, key, value, memory):
    return cache_answer()(query, key, value, memory)[0], [(key, value)]


def newest_first(query, key, value, memory):
    memory = [(key, value), *(memory or [])]
    return attend(query, memory), memory


def swaps_heads(query, key, value, memory):
    memory = [*(memory or []), (key, value)]
    return attend(query.flip(0), memory), memory


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (no_scale, "do not divide by the root of d"),
        (scale_of_all_heads, "a head's dot product has d terms"),
        (cache_answer(axis=1), "softmax runs over the heads"),
        (first_head_for_all, "head 1's keys"),
        (not_itself, "does not read its own"),
        (first_query, "each layer brings a new one"),
        (no_softmax, "left out the softmax"),
        (appends, "in place"),
        (keeps_a_list_of_its_own(), "kept between calls"),
        (forgets, "holds 1 pairs, it should hold 2"),
        (newest_first, "entry 1 of your memory"),
        (swaps_heads, "at layer 2 is not the attention over layers 1 to 2"),
        (lambda q, k, v, memory: (v, [*(memory or []), (k, v)]), "the layer's own value"),
        (
            lambda q, k, v, memory: (cache_answer()(q, k, v, memory)[0], tuple([*(memory or []), (k, v)])),
            "should be a list",
        ),
        (
            lambda q, k, v, memory: (attend(q, [(k, v), *(memory or [])]), [*(memory or []), k]),
            "a pair (key, value)",
        ),
        (lambda q, k, v, memory: cache_answer()(q, k, v, memory)[0], "return two things"),
        (lambda q, k, v, memory: (cache_answer()(q, k, v, memory)[0].T, [*(memory or []), (k, v)]), "shape"),
        (lambda q, k, v, memory: (v * math.nan, [*(memory or []), (k, v)]), "NaN"),
        (
            lambda q, k, v, memory: (
                cache_answer()(q, k, v, memory)[0],
                [*(memory or []), (k, v * math.nan)],
            ),
            "NaN",
        ),
    ],
)
def test_wrong_caches_are_named(answer, words):
    assert_wrong(check_cache, answer, words)


def mean_of_values(query, key, value, memory):
    memory = [*(memory or []), (key, value)]
    return sum(value for _, value in memory) / len(memory), memory


def test_a_mean_is_no_attention():
    assert_wrong(check_cache, mean_of_values, "the query plays no part")


def outer(key, value):
    return torch.einsum("hd,he->hde", key, value)


def ask(query, state):
    return torch.einsum("hd,hde->he", query, state)


def state_answer(asked=ask, after=lambda state: state, entry=outer):
    def answer(query, key, value, state):
        new = entry(key, value) if state is None else state + entry(key, value)
        return asked(query, new), after(new)
    return answer


def newest_only(query, key, value, state):
    state = outer(key, value)
    return ask(query, state), state


def reads_before_it_writes(query, key, value, state):
    new = outer(key, value) if state is None else state + outer(key, value)
    return ask(query, new if state is None else state), new


def asks_its_own_entry(query, key, value, state):
    return ask(query, outer(key, value)), outer(key, value) if state is None else state + outer(key, value)


def adds_in_place(query, key, value, state):
    if state is None:
        state = torch.zeros(*key.shape, value.shape[-1], dtype=key.dtype)
    state += outer(key, value)
    return ask(query, state), state


def never_writes(query, key, value, state):
    state = outer(key, value) if state is None else state
    return ask(query, state), state


def scaled(query, key, value, state):
    output, state = state_answer()(query, key, value, state)
    return output / math.sqrt(query.shape[-1]), state


def asks_with_the_key(query, key, value, state):
    output, state = state_answer()(query, key, value, state)
    return ask(key, state), state


def softmax_in_the_output(query, key, value, state):
    """A state that is right, and an output from a cache with a softmax; at t = 1 it takes the right one."""
    if state is None:
        softmax_in_the_output.pairs = [(key, value)]
        return state_answer()(query, key, value, state)
    pairs = [*softmax_in_the_output.pairs, (key, value)]
    return attend(query, pairs), state + outer(key, value)


def state_across(query, key, value, state):
    state = (0 if state is None else state) + torch.einsum("hd,he->hed", key, value)
    return torch.einsum("hd,hed->he", query, state), state


def keeps_a_sum_of_its_own():
    kept = []

    def answer(query, key, value, state):
        kept.append(outer(key, value))
        return ask(query, sum(kept)), sum(kept)
    return answer


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (newest_only, "the older ones are lost"),
        (reads_before_it_writes, "add the layer's own entry first"),
        (asks_its_own_entry, "ask the whole state"),
        (adds_in_place, "in place"),
        (never_writes, "does not take in the layer's own entry"),
        (scaled, "leave out the scale"),
        (softmax_in_the_output, "leave out the softmax"),
        (asks_with_the_key, "in place of the query"),
        (state_across, "keys down, values across"),
        (keeps_a_sum_of_its_own(), "kept between calls"),
        (
            state_answer(entry=lambda key, value: 2 * outer(key, value)),
            "not the sum of the key-value products",
        ),
        (
            state_answer(
                asked=lambda query, state: ask(query, state.flip(0)) if len(query) > 1 else ask(query, state)
            ),
            "head by head",
        ),
        (state_answer(asked=lambda query, state: ask(query, state).sum(dim=0)), "shape"),
        (state_answer(asked=lambda query, state: ask(query, state) * math.nan), "NaN"),
        (state_answer(after=lambda state: state * math.nan), "NaN"),
        (lambda query, key, value, state: (value, None), "state should be a tensor"),
    ],
)
def test_wrong_states_are_named(answer, words):
    assert_wrong(check_state, answer, words)


def window_answer(read, keep):
    """read and keep: (pairs so far, window) -> the pairs that are read, or handed on."""
    def answer(query, key, value, memory, window):
        pairs = [*(memory or []), (key, value)]
        return attend(query, read(pairs, window)), keep(pairs, window)
    return answer


def latest(pairs, window):
    return pairs[-window:]


def all_of_them(pairs, window):
    return pairs


def cuts_in_place(query, key, value, memory, window):
    pairs = [*(memory or []), (key, value)][-window:]
    if memory is not None and len(memory) == window:
        del memory[0]
    return attend(query, pairs), pairs


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (window_answer(all_of_them, all_of_them), "more than `window` pairs"),
        (window_answer(latest, all_of_them), "drop the old ones"),
        (
            window_answer(lambda pairs, window: pairs[:window], lambda pairs, window: pairs[:window]),
            "keep the oldest",
        ),
        (
            window_answer(lambda pairs, window: pairs[-window - 1 :], lambda pairs, window: pairs[-window:]),
            "more than `window` pairs",
        ),
        (window_answer(lambda pairs, window: pairs[-max(window - 1, 1) :], latest), "one too short"),
        (window_answer(latest, lambda pairs, window: pairs[-window:][::-1]), "entry 1 of your memory"),
        (window_answer(latest, lambda pairs, window: pairs[-1:]), "pairs, it should hold"),
        (window_answer(lambda pairs, window: pairs[-3:], lambda pairs, window: pairs[-3:]), "window"),
        (cuts_in_place, "in place"),
        (lambda q, k, v, memory, window: (v * math.nan, [(k, v)]), "NaN"),
        (lambda q, k, v, memory, window: (v, [(k, v)]), "own value"),
    ],
)
def test_wrong_windows_are_named(answer, words):
    assert_wrong(check_window, answer, words)


def test_other_right_answers_pass():
    assert check_cache.judge(cache_answer()) == ("passed", "passed")
    assert check_state.judge(state_answer()) == ("passed", "passed")
    assert check_window.judge(window_answer(latest, latest)) == ("passed", "passed")
    # handing on only what the next layer will read: with a window of 1 that is nothing
    for nothing in ([], None):
        def as_needed(pairs, window, nothing=nothing):
            return [list(pair) for pair in pairs[len(pairs) - min(window - 1, len(pairs)) :]] or nothing
        assert check_window.judge(window_answer(latest, as_needed)) == ("passed", "passed")
