"""Checkers of notebook 14: a query of the reader's own, what parallel keys leave of it, a running mean."""

import math

import torch
from torch.nn import functional as F

from mrla_minimal.course.checks.common import Wrong, blame, checker, numbers, pair, run, tensor

BATCH, LAYERS, INPUTS, WIDTH = 5, 4, 7, 3


def _attended(query, values, keys=None, dim=-1):
    """softmax over `dim` of query . key, and the sum of the values by it: (batch, width)."""
    keys = F.rms_norm(values, (WIDTH,)) if keys is None else keys
    weights = (keys * query[:, None]).sum(dim=-1).softmax(dim=dim)      # (batch, layers)
    return (weights[:, :, None] * values).sum(dim=1)


@checker("exercise 1")
def check_reader(answer: object) -> None:
    """answer(x, values, matrix): Attention Residuals whose query is x times matrix -> (batch, width).

    x (batch, inputs) is the reader's, values (batch, layers, width), matrix (inputs, width).
    """
    x, values = numbers(BATCH, INPUTS), numbers(BATCH, LAYERS, WIDTH, seed=1)
    matrix = numbers(INPUTS, WIDTH, seed=2)
    given = tensor(run(answer, x, values, matrix), (BATCH, WIDTH))
    query = x @ matrix
    blame(given, _attended(query, values), [
        (values.mean(dim=1), "this is the plain mean: the query has no say"),
        (_attended(query.mean(dim=0).expand_as(query), values),
         "all images ask the same; the query of an image should be made of its own x"),
        (_attended(query, values, values),
         "the keys should be RMSNorm(v): each v divided by the root of its mean square"),
        (_attended(query, values, F.normalize(values, dim=-1)),
         "your logits are sqrt(d) too small: RMSNorm divides by the root of the *mean* square, not by the "
         "length, and there is no 1 / sqrt(d)"),
        (_attended(query, F.rms_norm(values, (WIDTH,))),
         "the norm is for the keys alone; what is summed is the values as they are"),
        (_attended(query, values, dim=0), "your softmax runs over the batch; it should run over the layers"),
    ], "it is not the values, weighted by the softmax over layers of (x W) . RMSNorm(v)")


@checker("exercise 2")
def check_one_number(answer: object) -> None:
    """answer(query, direction) -> what a query leaves where key s is sizes_s * direction: (batch,).

    So that softmax(number * sizes) are base's weights, softmax(query . key / sqrt(d)); query (batch, d).
    """
    size = 6
    query, direction = numbers(BATCH, size), F.normalize(numbers(size, seed=1), dim=0)
    given = tensor(run(answer, query, direction), (BATCH,), "number")
    along = query @ direction
    blame(given, along / math.sqrt(size), [
        (along, "the scale is missing: base divides by sqrt(d)"),
        (along / size, "divide by sqrt(d), not by d"),
        (query.norm(dim=1) / math.sqrt(size), "the length of the query is not it: what lies across the "
                                              "direction of the keys changes nothing"),
        (along / query.norm(dim=1) / math.sqrt(size), "a longer query asks louder: leave its length in"),
        (along.abs() / math.sqrt(size), "keep the sign: a query against that direction prefers small keys"),
    ], "it is not the number that multiplies the sizes in base's logits")


@checker("exercise 3")
def check_running_mean(answer: object) -> None:
    """answer(mean, total, x, share) -> (mean, total) one layer on, a mean weighted by all shares so far.

    mean, x (batch, width); total, share (batch,), share above 0. At first mean and total are zeros.
    """
    inputs, shares = numbers(LAYERS, BATCH, WIDTH), numbers(LAYERS, BATCH, seed=1).exp()
    mean, total = torch.zeros_like(inputs[0]), torch.zeros_like(shares[0])
    for t in range(LAYERS):
        new_mean, new_total = pair(run(answer, mean, total, inputs[t], shares[t]), "the mean", "the total")
        where = f"at layer {t + 1} "
        new_total = tensor(new_total, (BATCH,), "total")
        blame(new_total, total + shares[t], [
            (total + 1, "the total should grow by the share, not by 1"),
            (shares[t], "the total of all shares so far is asked for, not the last one"),
        ], "the total should grow by this layer's share", where)
        new_mean = tensor(new_mean, (BATCH, WIDTH), "mean")
        rest, part = (number[:, None] for number in (total, shares[t]))
        blame(new_mean, (rest * mean + part * inputs[t]) / (rest + part), [
            (mean + part * inputs[t], "you add; divide by the total, or the mean grows with depth"),
            ((t * mean + inputs[t]) / (t + 1), "this is the plain mean: the shares have no say"),
            (inputs[t], "the mean is the last layer alone: what came before is lost"),
            (mean + part / (rest + 1e-9) * (inputs[t] - mean), "divide by the new total, this share in it"),
        ], "the mean should be that of all layers so far, weighted by their shares", where)
        mean, total = new_mean.detach(), new_total.detach()
    if not torch.isfinite(mean).all():
        raise Wrong("the mean is not finite")
