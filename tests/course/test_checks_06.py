"""The checkers of notebook 06: plausible mistakes are named."""

import math

import pytest
import torch
from notebook_answers import assert_wrong

from mrla_minimal.course.checks.light import check_best_constant, check_betas, check_light_step


def after_ones(products):
    return torch.cat([torch.ones_like(products[:1]), products[:-1]])


def right_betas(lambdas):
    return after_ones(lambdas.flip(0).cumprod(0))


def five_layers_only(lambdas):
    return right_betas(lambdas) if len(lambdas) == 5 else lambdas


@pytest.mark.parametrize(("answer", "words"), [
    # agrees if all lambdas are equal
    (lambda lambdas: after_ones(lambdas.cumprod(0)), "start at the last layer"),
    (lambda lambdas: lambdas.flip(0).cumprod(0), "one step late"),
    (lambda lambdas: right_betas(lambdas).flip(0), "order of the layers"),
    # agrees up to l = 1
    (lambda lambdas: after_ones(lambdas.flip(0)), "product of l of them"),
    # agrees if all are equal
    (lambda lambdas: lambdas[-1] ** torch.arange(len(lambdas))[:, None],
     "your row 2 is the first wrong one; it should be the product of the 2 newest lambdas, channel by"),
    (lambda lambdas: after_ones(lambdas.flip(0).cumprod(0)[:, :1].expand_as(lambdas)),
     "your row 1 is the first wrong one; it should be the newest lambda, channel by channel"),
    (lambda lambdas: right_betas(lambdas) + (torch.arange(len(lambdas)) > 3)[:, None], "your row 4 is the"),
    (lambda lambdas: lambdas.cumprod(0), "row 0 should be ones"),
    (five_layers_only, "with one layer"),
    (lambda lambdas: right_betas(lambdas).T, "is (3, 5)"),
    (lambda lambdas: right_betas(lambdas) * math.nan, "contains NaN"),
])
def test_wrong_betas_are_named(answer, words):
    assert_wrong(check_betas, answer, words)


def light_answer(gate_of=torch.sigmoid, scale=1.0, interleaved=False, old=None, keep="output"):
    """light's step, where each keyword makes one mistake."""
    def answer(query, key, value, lambda_o, memory):
        d = query.shape[-1]
        gate = gate_of(scale * (query * key).sum(-1) / math.sqrt(d))
        gate = gate.repeat(1, d) if interleaved else gate.repeat_interleave(d, dim=1)
        entry = gate[:, :, None, None] * value
        carried = torch.zeros_like(value) if memory is None else memory
        output = (
            old(lambda_o[:, None, None], carried, entry) if old else lambda_o[:, None, None] * carried + entry
        )
        return output, {"output": output, "entry": entry, "value": value}[keep]
    return answer


def gate_a_channel(query, key, value, lambda_o, memory):
    # (batch, channels)
    gate = (query * key / math.sqrt(query.shape[-1])).flatten(1).sigmoid()
    carried = torch.zeros_like(value) if memory is None else memory
    output = lambda_o[:, None, None] * carried + gate[:, :, None, None] * value
    return output, output


def in_place(query, key, value, lambda_o, memory):
    output, _ = light_answer()(query, key, value, lambda_o, None)
    if memory is not None:
        memory *= lambda_o[:, None, None]
        output = output + memory
    return output, output


def with_hidden_state():
    last = []

    def answer(query, key, value, lambda_o, memory):
        output, _ = light_answer()(query, key, value, lambda_o, last[-1] if last else None)
        last.append(output)
        return output, output
    return answer


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (light_answer(gate_of=torch.ones_like), "a softmax over one entry"),
        (light_answer(gate_of=lambda logits: logits.softmax(dim=-1)), "softmax over the heads"),
        (light_answer(gate_of=lambda logits: logits), "bare product"),
        (light_answer(scale=2.0), "1 / sqrt(d)"),  # d is 4
        # the mean over the head's 4 entries
        (light_answer(scale=1 / 4), "one gate a head"),
        # agrees if d is 1
        (gate_a_channel, "one gate a head"),
        # agrees with one head
        (light_answer(interleaved=True), "interleaved"),
        (light_answer(old=lambda scale, carried, entry: entry), "carried map is missing"),  # agrees at t = 1
        (light_answer(old=lambda scale, carried, entry: carried + entry), "not scaled by lambda_o"),
        (light_answer(old=lambda scale, carried, entry: carried + scale * entry), "at layer 1"),
        (
            light_answer(old=lambda scale, carried, entry: (carried + entry) if carried.any() else entry),
            "not scaled",
        ),
        # agrees if all are equal
        (light_answer(old=lambda scale, carried, entry: scale.mean() * carried + entry), "at layer 2"),
        (light_answer(keep="entry"), "the output O^t itself"),  # agrees at t = 1
        (light_answer(keep="value"), "the output O^t itself"),
        (in_place, "in place"),
        # right on the first stage
        (with_hidden_state(), "outlives the memory"),
        (lambda query, key, value, lambda_o, memory: value, "return two things"),
        (light_answer(gate_of=lambda logits: logits * math.nan), "contains NaN"),
    ],
)
def test_wrong_steps_are_named(answer, words):
    assert_wrong(check_light_step, answer, words)


def fit(before, now, constant=None, root=True):
    constant = (before * now).sum((0, 2)) / before.square().sum((0, 2)) if constant is None else constant
    error = (now - constant[:, None] * before).square().sum((0, 2)) / now.square().sum((0, 2))
    return constant, error.sqrt() if root else error


def from_first_sample(before, now):
    return fit(before, now, (before[0] * now[0]).sum(1) / before[0].square().sum(1))


def for_all_heads(before, now):
    return fit(before, now, ((before * now).sum() / before.square().sum()).expand(before.shape[1]))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        # agrees if exactly parallel
        (lambda before, now: fit(before, now, (now / before).mean((0, 2))), "mean of the ratios"),
        (
            lambda before, now: fit(before, now, now.norm(dim=(0, 2)) / before.norm(dim=(0, 2))),
            "lost the sign",
        ),
        (
            lambda before, now: fit(before, now, (before * now).sum((0, 2)) / now.square().sum((0, 2))),
            "the other way round",
        ),
        # agrees with one head
        (for_all_heads, "one constant to all heads"),
        (from_first_sample, "do not minimise"),
        (lambda before, now: fit(before, now, root=False), "take the root"),
        (lambda before, now: (fit(before, now)[0], 1 - fit(before, now)[1]), "head by head"),
        (lambda before, now: fit(before, now)[0], "return two things"),
        (lambda before, now: (fit(before, now)[0][:1], fit(before, now)[1]), "is (1,)"),
        (lambda before, now: fit(before * math.nan, now), "contains NaN"),
    ],
)
def test_wrong_constants_are_named(answer, words):
    assert_wrong(check_best_constant, answer, words)
