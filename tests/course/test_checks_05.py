"""The checkers of notebook 05: plausible mistakes are named."""

import math

import pytest
import torch
from einops import rearrange
from notebook_answers import assert_wrong
from torch.nn import functional as F

from mrla_minimal.course.checks.feature_maps import (
    check_channel_convolution,
    check_contributions,
    check_running_mean,
)


def slide(row, taps, padding="constant", half=None):
    half = len(taps) // 2 if half is None else half
    return F.conv1d(F.pad(row[:, None], (half, half), padding), taps[None, None])[:, 0]


def with_copied_ends(row, taps):
    return slide(row, taps, "replicate") if len(taps) > 1 else slide(row, taps)


def around_the_circle(row, taps):
    return sum(tap * row.roll(len(taps) // 2 - j, dims=1) for j, tap in enumerate(taps))


def three_taps_only(row, taps):
    return slide(row, taps) if len(taps) == 3 else slide(row, taps[:3])


def two_taps_at_least(row, taps):
    return slide(row, taps) if len(taps) > 1 else row


@pytest.mark.parametrize(("answer", "words"), [
    (lambda row, taps: slide(row, taps.flip(0)), "reverse order"),              # agrees for symmetric taps
    (around_the_circle, "sees the last one"),
    (with_copied_ends, "those at the two ends are not"),
    (three_taps_only, "right with 3 taps and not with 5"),
    (two_taps_at_least, "a single tap"),
    (lambda row, taps: slide(row, taps, half=0), "is (2, 5)"),
    (lambda row, taps: slide(row, taps) / len(taps), "is not the sum"),
    (lambda row, taps: slide(row, taps)[:1].expand_as(row), "is not the sum"),  # the first sample's for all
    (lambda row, taps: row * math.nan, "contains NaN"),
])
def test_wrong_convolutions_are_named(answer, words):
    assert_wrong(check_channel_convolution, answer, words)


def keep_all(value, memory):
    values = [*(memory or []), value]
    return sum(values) / len(values), values


def half_and_half(value, memory):
    mean = value if memory is None else (memory + value) / 2
    return mean, mean


def sum_without_division(value, memory):
    total = value if memory is None else memory + value
    return total, total


def count_starts_at_two(value, memory):
    mean, count = (torch.zeros_like(value), 1) if memory is None else memory
    mean = mean + (value - mean) / (count + 1)
    return mean, (mean, count + 1)


def changed_in_place(value, memory):
    if memory is None:
        return value, (value, 1)
    mean, count = memory
    mean += (value - mean) / (count + 1)
    return mean, (mean, count + 1)


def with_hidden_state():
    seen = []

    def answer(value, memory):
        seen.append(value)
        return sum(seen) / len(seen), torch.zeros(1)
    return answer


@pytest.mark.parametrize(("answer", "words"), [
    (half_and_half, "mean of two layers only"),                                 # agrees at t = 1 and 2
    (sum_without_division, "the sum of the values"),                            # agrees at t = 1
    (lambda value, memory: (value, value), "newest value alone"),               # agrees at t = 1
    (count_starts_at_two, "not the mean of the 1 values"),
    (keep_all, "your memory holds 240 numbers"),
    (changed_in_place, "in place"),
    (with_hidden_state(), "outlives the memory"),                               # right on the first stage
    (lambda value, memory: value, "return two things"),
    (lambda value, memory: (value * math.nan, value), "contains NaN"),
])
def test_wrong_means_are_named(answer, words):
    assert_wrong(check_running_mean, answer, words)


def shares(weights, values, cut="b (heads d) h w -> b heads d h w", size=None, normalise=1):
    size = size or (lambda product: product.square().mean((0, 2, 3, 4)).sqrt())
    heads = weights.shape[1]
    products = [
        weights[:, :, s, None, None, None] * rearrange(value, cut, heads=heads)
        for s, value in enumerate(values)
    ]
    sizes = torch.stack([size(product) for product in products], dim=1)
    return sizes if normalise is None else sizes / sizes.sum(dim=normalise, keepdim=True)


def of_all_heads(weights, values):
    return shares(
        weights, values, size=lambda product: product.square().mean().sqrt().expand(weights.shape[1])
    )


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda weights, values: weights.mean(dim=0), "the values must come in"),
        # agrees at 1 head
        (lambda weights, values: shares(weights, values, "b (d heads) h w -> b heads d h w"), "interleaved"),
        # agrees at 1 head
        (of_all_heads, "each head has channels of its own"),
        (lambda weights, values: shares(weights, values, normalise=0), "sum to 1 over the heads"),
        (lambda weights, values: shares(weights, values, normalise=None), "divide by their sum"),
        # agrees at batch 1
        (lambda weights, values: shares(weights.mean(dim=0, keepdim=True), values), "each sample's weight"),
        (
            lambda weights, values: shares(weights, values, size=lambda p: p.square().mean((0, 2, 3, 4))),
            "take the root",
        ),
        (
            lambda weights, values: shares(weights, values, size=lambda p: p.abs().mean((0, 2, 3, 4))),
            "mean absolute",
        ),
        (lambda weights, values: shares(weights, values, size=lambda p: p.mean((0, 2, 3, 4))), "cancels"),
        (lambda weights, values: shares(torch.ones_like(weights), values), "the weights must come in"),
        (
            lambda weights, values: shares(
                weights, values, size=lambda p: p[0].square().mean((1, 2, 3)).sqrt()
            ),
            "your shares are not",
        ),
        (lambda weights, values: shares(weights, values)[:, :-1], "is (2, 3)"),
        (lambda weights, values: shares(weights, values) * math.nan, "contains NaN"),
    ],
)
def test_wrong_contributions_are_named(answer, words):
    assert_wrong(check_contributions, answer, words)
