"""The checkers of notebook 04: plausible mistakes are named."""

import math

import pytest
import torch
from notebook_answers import assert_wrong

from mrla_minimal.course.checks.recurrent import check_cache, check_left_out, check_question


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


def solve(keys, s):
    return torch.linalg.pinv(keys)[:, s]


def by_least_squares(keys, s):
    """Another right answer where d > t: any part that no key sees may be added."""
    wanted = torch.eye(len(keys), dtype=keys.dtype)[s]
    query = torch.linalg.lstsq(keys, wanted[:, None], driver="gelsd").solution[:, 0]
    unseen = torch.ones_like(query)
    return query + unseen - torch.linalg.pinv(keys) @ (keys @ unseen)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda keys, s: keys[s], "layer 1's own key"),
        (lambda keys, s: keys[s] / keys[s].square().sum(), "not at right angles"),
        (lambda keys, s: torch.linalg.pinv(keys)[:, s - 1], "s counts from 0"),
        (lambda keys, s: torch.linalg.pinv(keys)[:, (s + 1) % len(keys)], "s counts from 0"),
        (lambda keys, s: 3 * solve(keys, s), "but with 3 in place of 1"),
        (lambda keys, s: torch.linalg.pinv(keys)[s], "the shape of your query"),
        (lambda keys, s: torch.ones(keys.shape[1]), "the answers keys @ query are not 1"),
        (lambda keys, s: solve(keys, s) * math.nan, "NaN"),
        (lambda keys, s: solve(keys.div_(2), s) / 2, "in place"),
        (lambda keys, s: 1.0, "should be a tensor"),
    ],
)
def test_wrong_questions_are_named(answer, words):
    assert_wrong(check_question, answer, words)


def leave_out(query, keys, values, value=None, logit=-math.inf, scale=1.0):
    """(t, heads, e): without each layer in turn, or with another logit, or with its value taken out alone."""
    outputs = []
    for s in range(len(keys)):
        logits = (keys * query).sum(dim=-1) * scale / math.sqrt(query.shape[-1])       # (t, heads)
        kept = values.clone()
        if value is None:
            logits[s] = logit
        else:
            kept[s] = value
        outputs.append((logits.softmax(dim=0)[..., None] * kept).sum(dim=0))
    return torch.stack(outputs)


def whole(query, keys, values):
    return attend(query, list(zip(keys, values, strict=True)))


def by_subtraction(query, keys, values):
    """(O - w v) / (1 - w), which is 0 / 0 where one layer has all the weight."""
    logits = (keys * query).sum(dim=-1) / math.sqrt(query.shape[-1])
    weights = logits.softmax(dim=0)[..., None]                                          # (t, heads, 1)
    return (whole(query, keys, values) - weights * values) / (1 - weights)


def clamped(query, keys, values):
    """Right as long as no logit is large."""
    logits = (keys * query).sum(dim=-1) / math.sqrt(query.shape[-1])
    outputs = []
    for s in range(len(keys)):
        kept = [r for r in range(len(keys)) if r != s]
        weights = logits[kept].clamp(-30, 30).softmax(dim=0)[..., None]
        outputs.append((weights * values[kept]).sum(dim=0))
    return torch.stack(outputs)


def with_a_guard(query, keys, values):
    """By subtraction, with the 0 mended to something small: wrong where it matters."""
    logits = (keys * query).sum(dim=-1) / math.sqrt(query.shape[-1])
    weights = logits.softmax(dim=0)[..., None]
    return (whole(query, keys, values) - weights * values) / (1 - weights).clamp_min(1e-12)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda q, k, v: whole(q, k, v).expand(len(k), -1, -1), "leave nobody out"),
        (lambda q, k, v: leave_out(q, k, v, value=0.0), "not its share of the weight"),
        (lambda q, k, v: leave_out(q, k, v, logit=0.0), "absent is minus infinity"),
        (lambda q, k, v: leave_out(q, k, v, scale=math.sqrt(q.shape[-1])), "do not divide by the root of d"),
        (lambda q, k, v: whole(q, k, v) - leave_out(q, k, v), "what the layer adds"),
        (lambda q, k, v: leave_out(q, k, v).flip(0), "entry 0 leaves out the first layer"),
        (lambda q, k, v: leave_out(q.flip(0), k, v), "not the attention over the layers that are left"),
        (by_subtraction, "leave it out before the softmax"),
        (with_a_guard, "the other weights should sum to 1"),
        (clamped, "where one layer has all the weight"),
        (lambda q, k, v: leave_out(q, k, v)[:-1], "shape"),
        (lambda q, k, v: leave_out(q, k, v) * math.nan, "NaN"),
        (lambda q, k, v: leave_out(q.mul_(2), k, v), "in place"),
    ],
)
def test_wrong_outputs_without_a_layer_are_named(answer, words):
    assert_wrong(check_left_out, answer, words)


def test_other_right_answers_pass():
    assert check_cache.judge(cache_answer()) == ("passed", "passed")
    assert check_question.judge(solve) == ("passed", "passed")
    assert check_question.judge(by_least_squares) == ("passed", "passed")
    assert check_left_out.judge(leave_out) == ("passed", "passed")
