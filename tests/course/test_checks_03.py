"""The checkers of notebook 03: plausible mistakes are named."""

import math

import pytest
import torch
from einops import rearrange
from notebook_answers import assert_wrong

from mrla_minimal import softmax_attention
from mrla_minimal.course.checks.across_layers import check_count, check_heads, check_tags


@pytest.mark.parametrize(("answer", "words"), [
    (lambda lengths: sum(lengths) * (sum(lengths) + 1) // 2, "reads its own stage only"),
    (lambda lengths: sum(n * (n + 1) for n in lengths), "key and value projections together"),
    (lambda lengths: sum(lengths), "one key projection a layer"),
    (lambda lengths: sum(n * n for n in lengths), "read later layers"),
    (lambda lengths: sum(n * (n - 1) // 2 for n in lengths), "a layer's own feature"),
    (lambda lengths: 43, "(stages (5,) gave 43)"),
    (lambda lengths: 2 * lengths[0] + 37, "not right"),
    (lambda lengths: math.nan, "not right"),
    (lambda lengths: "43", "return a number"),
    (lambda lengths: lengths.sum(), "AttributeError"),
    (43, "should be a function"),
])
def test_wrong_counts_are_named(answer, words):
    assert_wrong(check_count, answer, words)


def in_heads(
    features, maps, heads, cut="layers (heads d) -> heads layers d", asks=-1, scale=1.0, axis=-1, turned=False
):
    """Eq. 4 with heads, where each keyword but the first three makes one mistake."""
    query_map, key_map, value_map = (matrix.T if turned else matrix for matrix in maps)
    query = rearrange((query_map @ features[asks])[None], cut, heads=heads)
    keys, values = (rearrange(features @ matrix.T, cut, heads=heads) for matrix in (key_map, value_map))
    weights = (scale * query @ keys.transpose(-2, -1) / math.sqrt(keys.shape[-1])).softmax(dim=axis)
    return (weights @ values).flatten(), weights[:, 0]


def heads_answer(**mistake):
    return lambda features, q, k, v, heads: in_heads(features, (q, k, v), heads, **mistake)


def by_view(features, query_map, key_map, value_map, heads):
    query, keys, values = features[-1:] @ query_map.T, features @ key_map.T, features @ value_map.T
    output, weights = softmax_attention(*(rows.view(heads, len(rows), -1) for rows in (query, keys, values)))
    return output.flatten(), weights[:, 0]


def root_of_dim(features, q, k, v, heads):
    return in_heads(features, (q, k, v), heads, scale=1 / math.sqrt(heads))


def no_scale(features, q, k, v, heads):
    return in_heads(features, (q, k, v), heads, scale=math.sqrt(len(q) // heads))


def one_head(features, q, k, v, heads):
    output, weights = in_heads(features, (q, k, v), 1)
    return output, weights.expand(heads, -1)


def right_on_the_first_call():
    calls = []

    def answer(features, q, k, v, heads):
        calls.append(1)
        return in_heads(features, (q, k, v), heads, scale=float(len(calls)))
    return answer


def nan_in_heads(features, q, k, v, heads):
    output, weights = in_heads(features, (q, k, v), heads)
    return output * math.nan, weights


def map_changed(features, q, k, v, heads):
    k.mul_(2)
    return in_heads(features, (q, k / 2, v), heads)


@pytest.mark.parametrize(("answer", "words"), [
    (by_view, "needs a transpose, not only a view"),
    (heads_answer(cut="layers (d heads) -> heads layers d"), "every n-th channel"),
    (root_of_dim, "by the root of dim"),
    (no_scale, "do not divide by the root of head_dim"),
    (heads_answer(axis=0), "softmax runs over the heads"),
    (heads_answer(asks=0), "layer 1's query"),
    (heads_answer(turned=True), "the wrong way round"),
    (one_head, "4 layers and 2 heads"),
    (heads_answer(scale=-1.0), "try plain loops"),
    (lambda f, q, k, v, heads: in_heads(f, (q, k, v), heads)[::-1], "shape"),
    (lambda f, q, k, v, heads: (f[-1], in_heads(f, (q, k, v), heads)[1]), "output's numbers differ"),
    (lambda f, q, k, v, heads: in_heads(f, (q, k, v), heads)[0], "return two things"),
    (lambda f, q, k, v, heads: (in_heads(f, (q, k, v), heads)[0], None), "tensor"),
    (right_on_the_first_call(), "kept between calls"),
    (map_changed, "in place"),
    (nan_in_heads, "NaN"),
])
def test_wrong_heads_are_named(answer, words):
    assert_wrong(check_heads, answer, words)


def tagged(key_tags=1.0, value_tags=0.0, query_tags=0.0, after=0.0, scale=1.0, same=False):
    """Eq. 4 with tags; each keyword changes one thing."""
    def answer(features, tags, query_map, key_map, value_map):
        tags = tags[-1:].expand_as(tags) if same else tags
        query = query_map @ (features + query_tags * tags)[-1]
        keys = (features + key_tags * tags) @ key_map.T + after * tags
        weights = (scale * (keys @ query) / math.sqrt(len(query))).softmax(dim=0)
        return weights @ ((features + value_tags * tags) @ value_map.T), weights
    return answer


def tagged_in_place(features, tags, query_map, key_map, value_map):
    features += tags
    return tagged(key_tags=0.0)(features, tags, query_map, key_map, value_map)


def tagged_from_the_layer_number(features, tags, *maps):
    return tagged()(
        features, torch.arange(len(features), dtype=features.dtype)[:, None].expand_as(features), *maps
    )


def no_scale_with_tags(features, tags, *maps):
    return tagged(scale=math.sqrt(features.shape[-1]))(features, tags, *maps)


@pytest.mark.parametrize(("answer", "words"), [
    (tagged(key_tags=0.0), "do not tell the layers apart"),
    (tagged(same=True), "changes nothing; give feature s tag s"),
    (tagged(query_tags=1.0), "query is tagged too"),
    (tagged(value_tags=1.0), "values are tagged too"),
    (tagged(value_tags=1.0, query_tags=1.0), "queries and values too"),
    (tagged(key_tags=0.0, after=1.0), "after the key projection"),
    (no_scale_with_tags, "do not divide"),
    (tagged_from_the_layer_number, "differ from Eq. 4's with tagged keys"),
    (tagged_in_place, "in place"),
    (lambda *inputs: (tagged()(*inputs)[0], tagged()(*inputs)[1][None]), "shape"),
    (lambda *inputs: (tagged()(*inputs)[0] * math.nan, tagged()(*inputs)[1]), "NaN"),
    (lambda *inputs: (tagged()(*inputs)[0], tagged()(*inputs)[1] * math.nan), "NaN"),
])
def test_wrong_tags_are_named(answer, words):
    assert_wrong(check_tags, answer, words)


@pytest.mark.parametrize("answer", [
    lambda f, q, k, v, heads: in_heads(f, (q, k, v), heads),
    lambda f, q, k, v, heads: tuple(part.clone() for part in in_heads(f, (q, k, v), heads)),
])
def test_other_right_answers_pass(answer):
    assert check_heads.judge(answer) == ("passed", "passed")
    assert check_tags.judge(tagged()) == ("passed", "passed")
    assert check_count.judge(lambda lengths: sum(sum(range(n + 1)) for n in lengths)) == ("passed", "passed")


def test_a_count_may_be_any_kind_of_number():
    import numpy

    for kind in (int, float, numpy.int64, torch.tensor):
        assert check_count.judge(lambda lengths, kind=kind: kind(sum(n * (n + 1) // 2 for n in lengths))) == (
            "passed",
            "passed",
        )
