"""Checkers of notebook 01: softmax without overflow, its gradient, and attention to another sequence."""

import math

import torch
from einops import rearrange
from torch.overrides import TorchFunctionMode

from mrla_minimal.attention import MultiHeadSelfAttention, softmax_attention
from mrla_minimal.course.checks.common import Wrong, blame, checker, close, numbers, pair, run, tensor


class _SoftmaxWatch(TorchFunctionMode):
    """Within it, `used` tells whether any of torch's softmax functions was called."""

    used = False

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.used |= "softmax" in getattr(function, "__name__", "")
        return function(*args, **(kwargs or {}))


@checker("exercise 1")
def check_softmax_rows(answer: object) -> None:
    """softmax_rows(logits (n, m)) -> weights (n, m)."""
    logits = numbers(3, 5)
    with _SoftmaxWatch() as watch:
        weights = tensor(run(answer, logits), (3, 5), "weights")
    mistakes = {
        "your weights sum to 1 over the queries (each column), not over the keys (each row)":
            logits.softmax(dim=0),
        "your weights sum to 1 over the whole table, not over each row": logits.exp() / logits.exp().sum(),
        "you divide the logits by their sum, but exp() comes first": logits / logits.sum(dim=1, keepdim=True),
        "these are the exponentials: each row must still be divided by its sum": logits.exp(),
        "you subtract the largest logit of each column; only one "
        "number for a whole row leaves its softmax unchanged":
            (logits - logits.amax(dim=0)).softmax(dim=1),
    }
    blame(weights, logits.softmax(dim=1), mistakes,
          "weight s of row t should be exp(logits[t, s]) divided by the sum of exp over row t")

    shifts = [1000, -1000, 0, 900]
    far = numbers(4, 3, seed=1) + logits.new_tensor(shifts)[:, None]
    far = torch.cat([far, far.new_tensor([[1000.0, -1000.0, 0.0]])])
    names = [*map(str, shifts), "1000, -1000 and 0 side by side"]
    weights = run(answer, far)
    broken = [name for name, row in zip(names, weights, strict=True) if not row.isfinite().all()]
    if broken:
        raise Wrong(f"right for small logits, but not finite in rows with logits near {', '.join(broken)}: "
                    "subtract each row's own largest logit before exp()")
    if not close(weights, far.softmax(dim=1)):
        raise Wrong("right for small logits, but wrong where rows are "
                    "far apart: subtract each row's own largest logit")
    if watch.used:
        raise Wrong("the numbers are right, but they are torch's "
                    "own softmax's; write it with exp() and sum()")


@checker("exercise 2")
def check_softmax_gradient(answer: object) -> None:
    """softmax_gradient(weights (n, m), gradient (n, m)) -> the gradient with respect to the logits (n, m)."""
    for rows, keys, seed in ((3, 5, 0), (1, 4, 2)):
        weights = numbers(rows, keys, seed=seed).softmax(dim=1)
        gradient = numbers(rows, keys, seed=seed + 1)
        output = tensor(run(answer, weights, gradient), (rows, keys), "gradient")
        mistakes = {
            "this is only a weight's answer to its own logit "
            "(r = s); each logit moves all weights of its row":
                weights * (1 - weights) * gradient,
            "your sum runs over the queries, it should run over the "
            "keys (dim=-1), the axis that the softmax runs over":
                weights * (gradient - (weights * gradient).sum(dim=0, keepdim=True)),
            "the sum must weigh each gradient by its weight: sum of w * g, not of g":
                weights * (gradient - gradient.sum(dim=-1, keepdim=True)),
            "the average to subtract is the weighted one, sum of w * g, not the plain mean of g":
                weights * (gradient - gradient.mean(dim=-1, keepdim=True)),
            "the weighted average is subtracted, but the factor w_s in front is missing":
                gradient - (weights * gradient).sum(dim=-1, keepdim=True),
            "the weighted average is subtracted without its own factor w_r":
                weights * gradient - (weights * gradient).sum(dim=-1, keepdim=True),
            "this is the first term only; the weighted average of the gradient is to be subtracted":
                weights * gradient,
            "the sign is turned round": weights * ((weights * gradient).sum(dim=-1, keepdim=True) - gradient),
        }
        right = weights * (gradient - (weights * gradient).sum(dim=-1, keepdim=True))
        blame(output, right, mistakes, "not the gradient that autograd finds; write out the sum over s of "
                                       "g_s * w_s * ([r == s] - w_r)")


PATTERN = "batch tokens (heads d) -> batch heads tokens d"


def _attend(query, key, value, heads, pattern=PATTERN):
    """The heads' outputs, joined and not projected (batch, n, dim), and the weights (batch, heads, n, m)."""
    query, key, value = (rearrange(part, pattern, heads=heads) for part in (query, key, value))
    output, weights = softmax_attention(query, key, value)
    left, right = pattern.split(" -> ")
    return rearrange(output, f"{right} -> {left}"), weights


@checker("exercise 3")
def check_cross_attention(answer: object) -> None:
    """cross_attention(x, context, attention) -> output (batch, n, dim), weights (batch, heads, n, m).

    x (batch, n, dim), context (batch, m, dim), attention a MultiHeadSelfAttention.
    """
    batch, n, m, heads, d = 2, 5, 7, 3, 4
    attention = MultiHeadSelfAttention(heads * d, heads).double()
    x, context = numbers(batch, n, heads * d, seed=3), numbers(batch, m, heads * d, seed=4)
    given = pair(run(answer, x, context, attention), "the output", "the weights")
    shape = tuple(getattr(given[1], "shape", ()))
    if shape == (batch, heads, n, n):
        raise Wrong("your weights are (batch, heads, n, n): the keys "
                    f"should come from the context, of m = {m} tokens")
    if shape == (batch, n, m):
        raise Wrong("your weights have no heads: each head attends on its own slice of the channels")
    _check_cross_weights(tensor(given[1], (batch, heads, n, m), "weights"), x, context, attention)
    _check_cross_output(tensor(given[0], (batch, n, heads * d), "output"), x, context, attention)


def _check_cross_weights(weights, x, context, attention):
    query, key, heads = attention.query(x), attention.key(context), attention.heads
    d = attention.dim // heads
    viewed_query, viewed_key = (part.reshape(len(part), heads, -1, d) for part in (query, key))
    logits = rearrange(query, PATTERN, heads=heads) @ rearrange(key, PATTERN, heads=heads).transpose(-2, -1)
    mistakes = {
        "a view of (batch, tokens, dim) as (batch, heads, tokens, "
        "d) mixes tokens and heads: split dim, then transpose":
            softmax_attention(viewed_query, viewed_key, viewed_key)[1],
        "your heads are interleaved (channel c in head c % heads); "
        "head h owns the channels h * d up to (h + 1) * d":
            _attend(query, key, key, heads, "batch tokens (d heads) -> batch heads tokens d")[1],
        f"you divide the logits by sqrt(dim), dim = {attention.dim}; "
        f"a head's dot product has only d = {d} terms":
            (logits / math.sqrt(attention.dim)).softmax(dim=-1),
        "you forgot to divide the logits by sqrt(d)": logits.softmax(dim=-1),
        "your queries and keys are swapped: attention.query is for x, attention.key for the context":
            _attend(attention.key(x), attention.query(context), key, heads)[1],
        "x and the context need the projections attention.query and attention.key first":
            _attend(x, context, context, heads)[1],
        "your weights sum to 1 over the queries, not over the keys": (logits / math.sqrt(d)).softmax(dim=-2),
    }
    blame(weights, (logits / math.sqrt(d)).softmax(dim=-1), mistakes,
          "your weights are not softmax(q k^T / sqrt(d)) within each head, q from x and k from the context")


def _check_cross_output(output, x, context, attention):
    query, key, value = attention.query(x), attention.key(context), attention.value(context)
    heads = attention.heads
    joined, _ = _attend(query, key, value, heads)                       # (batch, n, dim)
    viewed = rearrange(joined, PATTERN, heads=heads).reshape(joined.shape)
    mistakes = {
        "the output projection, attention.output, is missing": joined,
        "they mix the keys; they should mix the values": attention.output(_attend(query, key, key, heads)[0]),
        "they mix the context as it is; it should go through attention.value first":
            attention.output(_attend(query, key, context, heads)[0]),
        "a view joins the heads: transpose to (batch, tokens, heads, d) first": attention.output(viewed),
    }
    blame(output, attention.output(joined), mistakes,
          "the output should be attention.output of the heads, joined channel by channel",
          prefix="your weights are right, but ")
