"""The checkers of notebook 01: plausible mistakes are named."""

import math

import pytest
import torch
from einops import rearrange
from notebook_answers import assert_wrong

from mrla_minimal import softmax_attention
from mrla_minimal.course.checks.self_attention import (
    check_cross_attention,
    check_softmax_gradient,
    check_softmax_rows,
)


def softmax_with_largest_of(logits, dim):
    largest = logits.max() if dim is None else logits.amax(dim=dim, keepdim=True)
    exponentials = (logits - largest).exp()
    return exponentials / exponentials.sum(dim=-1, keepdim=True)


def softmax_less(logits, shift):
    exponentials = (logits - shift).exp()
    return exponentials / exponentials.sum(dim=-1, keepdim=True)


def second_row_of_nan(logits):
    weights = logits.softmax(dim=-1).clone()
    weights[1] = math.nan
    return weights


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda logits: logits.softmax(dim=0), "sum to 1 over the queries"),
        (lambda logits: logits.flatten().softmax(dim=0).view_as(logits), "over the whole table"),
        (lambda logits: logits / logits.sum(dim=-1, keepdim=True), "exp() comes first"),
        (lambda logits: logits.exp(), "still be divided"),
        (
            lambda logits: logits.exp() / logits.exp().sum(dim=-1, keepdim=True),
            "near 1000, -1000, 900, 1000, -1000 and 0 side by side",
        ),
        (lambda logits: softmax_with_largest_of(logits, None), "near -1000, 0: subtract each row's own"),
        (lambda logits: softmax_with_largest_of(logits, 0), "largest logit of each column"),
        (lambda logits: logits.clamp(max=50).softmax(dim=-1), "wrong where rows are far apart"),
        (lambda logits: logits.softmax(dim=-1).T, "the shape of your weights is (5, 3), it should be (3, 5)"),
        (lambda logits: logits.sub_(logits.amax(dim=-1, keepdim=True)).softmax(dim=-1), "in place"),
        (lambda logits: logits.sigmoid(), "divided by the sum of exp"),
        (
            lambda logits: softmax_less(logits, logits.mean(dim=-1, keepdim=True)),
            "not finite in rows with logits near 1000, -1000 and 0 side",
        ),
        (lambda logits: torch.softmax(logits, -1), "write it with exp() and sum()"),
        (lambda logits: torch.nn.Softmax(dim=-1)(logits), "write it with exp() and sum()"),
        (lambda logits: torch.full_like(logits, math.nan), "contains NaN"),
        (second_row_of_nan, "contains NaN"),
        (lambda logits: logits.softmax(dim="keys"), "your code raises"),
    ],
)
def test_softmax_rows(answer, words):
    assert_wrong(check_softmax_rows, answer, words)


def mean_over(weights, gradient, dim):
    return (weights * gradient).sum(dim=dim, keepdim=True)


@pytest.mark.parametrize(("answer", "words"), [
    (lambda w, g: w * (1 - w) * g, "only a weight's answer to its own logit"),
    (lambda w, g: w * (g - mean_over(w, g, 0)), "runs over the queries"),
    (lambda w, g: w * (g - (w * g).sum()), "not the gradient that autograd finds"),     # agrees for one query
    (lambda w, g: w * (g - g.sum(dim=-1, keepdim=True)), "weigh each gradient by its weight"),
    # agrees where weights are equal
    (lambda w, g: w * (g - g.mean(dim=-1, keepdim=True)), "not the plain mean"),
    (lambda w, g: g - mean_over(w, g, -1), "factor w_s in front is missing"),
    (lambda w, g: w * g, "the first term only"),
    (lambda w, g: w * g - mean_over(w, g, -1), "without its own factor w_r"),
    (lambda w, g: w * (mean_over(w, g, -1) - g), "sign"),
    (lambda w, g: g, "not the gradient that autograd finds"),
    (lambda w, g: mean_over(w, g, -1), "the shape of your gradient is (3, 1)"),
    (lambda w, g: w * g * math.nan, "contains NaN"),
])
def test_softmax_gradient(answer, words):
    assert_wrong(check_softmax_gradient, answer, words)


def attend(
    x,
    context,
    attention,
    split="batch tokens (heads d) -> batch heads tokens d",
    factor=1,
    joined=None,
    maps=("query", "key", "value"),
    projected=True,
):
    """The solution, with one thing to be got wrong."""
    query, key, value = (
        getattr(attention, name)(part) for name, part in zip(maps, (x, context, context), strict=True)
    )
    query, key, value = (
        rearrange(part, split, heads=attention.heads) for part in (factor * query, key, value)
    )
    output, weights = softmax_attention(query, key, value)
    left, right = split.split(" -> ")
    output = rearrange(output, f"{right} -> {left}") if joined is None else joined(output)
    return (attention.output(output) if projected else output), weights


def attend_by_view(x, context, attention):
    query, key, value = (part.view(part.shape[0], attention.heads, -1, part.shape[2] // attention.heads)
                         for part in (attention.query(x), attention.key(context), attention.value(context)))
    output, weights = softmax_attention(query, key, value)
    return attention.output(output.reshape(x.shape)), weights


def attend_without_heads(x, context, attention):
    output, weights = softmax_attention(attention.query(x), attention.key(context), attention.value(context))
    return attention.output(output), weights


def attend_over_queries(x, context, attention):
    query, key, value = (rearrange(part, "b t (h d) -> b h t d", h=attention.heads)
                         for part in (attention.query(x), attention.key(context), attention.value(context)))
    weights = (query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])).softmax(dim=-2)
    return attention.output(rearrange(weights @ value, "b h t d -> b t (h d)")), weights


def attend_with_raw_values(x, context, attention):
    def split(part):
        return rearrange(part, "b t (h d) -> b h t d", h=attention.heads)

    output, weights = softmax_attention(
        split(attention.query(x)), split(attention.key(context)), split(context)
    )
    return attention.output(rearrange(output, "b h t d -> b t (h d)")), weights


def attend_without_projections(x, context, attention):
    query, key = (rearrange(part, "b t (h d) -> b h t d", h=attention.heads) for part in (x, context))
    output, weights = softmax_attention(query, key, key)
    return attention.output(rearrange(output, "b h t d -> b t (h d)")), weights


def attend_to_nan(x, context, attention):
    output, weights = attend(x, context, attention)
    return output * math.nan, weights


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (attend_by_view, "mixes tokens and heads"),  # agrees with one head
        (lambda *given: attend(*given, split="b t (d heads) -> b heads t d"), "interleaved"),
        (lambda *given: attend(*given, factor=1 / math.sqrt(3)), "divide the logits by sqrt(dim)"),
        # 2 = sqrt(d): undoes the scale
        (lambda *given: attend(*given, factor=2), "forgot to divide"),
        (lambda *given: attend(*given, maps=("key", "query", "value")), "swapped"),
        (lambda *given: attend(*given, maps=("query", "key", "key")), "they mix the keys"),
        (lambda *given: attend(*given, maps=("value", "key", "value")), "your weights are not softmax"),
        (lambda *given: attend(*given, projected=False), "attention.output, is missing"),
        (
            lambda *given: attend(*given, joined=lambda o: o.reshape(o.shape[0], o.shape[2], -1)),
            "a view joins the heads",
        ),
        (
            lambda *given: attend(*given, joined=lambda o: rearrange(o, "b h t d -> b t (d h)")),
            "joined channel by channel",
        ),
        (lambda x, context, attention: attend(x, x, attention), "keys should come from the context"),
        (attend_without_heads, "have no heads"),  # agrees with one head
        (attend_over_queries, "sum to 1 over the queries"),
        (attend_with_raw_values, "go through attention.value first"),
        (attend_without_projections, "need the projections"),
        (lambda *given: attend(*given)[0], "return two things"),
        (lambda *given: attend(*given)[::-1], "the shape of your weights is"),
        (
            lambda x, context, attention: attend(x, context[:1].expand_as(context), attention),
            "weights are not softmax",
        ),
        (attend_to_nan, "output contains NaN"),
        (lambda *given: tuple(part * math.nan for part in attend(*given)), "weights contains NaN"),
    ],
)
def test_cross_attention(answer, words):
    assert_wrong(check_cross_attention, answer, words)
