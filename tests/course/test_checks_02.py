"""The checkers of notebook 02: plausible mistakes are named."""

import math

import pytest
import torch
from notebook_answers import assert_wrong

from mrla_minimal.course.checks.running_attention import check_causal_window, check_decayed_state, check_merge


def distances(tokens):
    position = torch.arange(tokens)
    return position[:, None] - position[None, :]


def window_of(tokens, first, last):
    return (distances(tokens) >= first) & (distances(tokens) <= last)


@pytest.mark.parametrize(("answer", "words"), [
    # agrees for a long window
    (lambda tokens, window: window_of(tokens, 0, tokens), "has no window"),
    (lambda tokens, window: window_of(tokens, 1 - window, 0), "read the future"),    # agrees at window 1
    (lambda tokens, window: window_of(tokens, 1 - window, window - 1), "reaches forward"),
    (lambda tokens, window: window_of(tokens, 0, window), "one token too wide"),
    (lambda tokens, window: window_of(tokens, 0, window - 2), "one token too narrow"),
    (lambda tokens, window: window_of(tokens, 1, window), "may not read themselves"),
    (lambda tokens, window: ~window_of(tokens, 0, window - 1), "turned round"),
    (lambda tokens, window: window_of(tokens, 0, 2), "for 5 tokens and window=1"),   # right at window 3 alone
    (lambda tokens, window: window_of(tokens, 0, window - 1).double(), "should be boolean"),
    (lambda tokens, window: window_of(tokens, 0, window - 1)[None], "the shape of your mask is (1, 7, 7)"),
    (lambda tokens, window: window_of(tokens, 0, window - 1).tolist(), "should be a tensor"),
    (lambda tokens, window: torch.full((tokens, tokens), math.nan), "contains NaN"),
])
def test_causal_window(answer, words):
    assert_wrong(check_causal_window, answer, words)


def merge_with(weight, log_sum=lambda a, b: torch.logaddexp(a, b)):
    """merge() with A's share of the output and the log sum to be got wrong."""
    def merge(output_a, log_sum_a, output_b, log_sum_b):
        share = weight(log_sum_a, log_sum_b)
        share = share[:, None] if isinstance(share, torch.Tensor) else share
        return share * output_a + (1 - share) * output_b, log_sum(log_sum_a, log_sum_b)

    return merge


def stable_share(a, b, largest):
    return (a - largest).exp() / ((a - largest).exp() + (b - largest).exp())


def right_share(a, b):
    return torch.sigmoid(a - b)


def share_above_zero(a, b):
    """Guards against overflow, not against sums that are all 0."""
    largest = torch.maximum(a, b).clamp(min=0)
    return (a - largest).exp() / ((a - largest).exp() + (b - largest).exp())


def not_divided(output_a, log_sum_a, output_b, log_sum_b):
    output = log_sum_a.exp()[:, None] * output_a + log_sum_b.exp()[:, None] * output_b
    return output, torch.logaddexp(log_sum_a, log_sum_b)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        # agrees where both sums are equal
        (merge_with(lambda a, b: 0.5), "averaged evenly"),
        # agrees where all logits are equal
        (merge_with(lambda a, b: 4 / 6), "by the number of entries"),
        (merge_with(lambda a, b: a / (a + b)), "by the logarithms"),
        (merge_with(lambda a, b: right_share(b, a)), "swapped"),
        (not_divided, "not divided by the whole sum"),
        (
            merge_with(lambda a, b: right_share(a.mean(), b.mean()).expand_as(a)),
            "not the attention over all entries",
        ),
        (merge_with(right_share, lambda a, b: a + b), "adds the two logarithms"),
        (merge_with(right_share, torch.maximum), "the larger of the two"),
        (merge_with(right_share, lambda a, b: a.exp() + b.exp()), "the sum itself"),
        (merge_with(right_share, lambda a, b: a), "should be log(exp"),
        (merge_with(lambda a, b: a.exp() / (a.exp() + b.exp())), "log sums near 1000 and 1001"),
        (merge_with(right_share, lambda a, b: (a.exp() + b.exp()).log()), "log sums near 1000 and 1001"),
        (merge_with(lambda a, b: stable_share(a, b, torch.maximum(a.max(), b.max()))), "of each query"),
        (
            merge_with(right_share, lambda a, b: torch.logaddexp(a, b) - torch.maximum(a, b)),
            "did not add it back",
        ),
        (merge_with(share_above_zero), "log sums near -1000 and -1001"),
        (
            merge_with(right_share, lambda a, b: torch.logaddexp(a, b)[:, None]),
            "the shape of your log_sum is (3, 1)",
        ),
        (lambda *given: merge_with(right_share)(*given)[0], "return two things"),
        (merge_with(lambda a, b: a * math.nan), "output contains NaN"),
        (merge_with(right_share, lambda a, b: a * math.nan), "log_sum contains NaN"),
    ],
)
def test_merge(answer, words):
    assert_wrong(check_merge, answer, words)


def decayed(query, key, value, decay, shift=0, on_entry=False, entry_first=False, read_first=False,
            einsum="bhd,bhe->bhde"):
    """The solution, with one thing to be got wrong."""
    state, outputs = value.new_zeros(*key.shape[:2], key.shape[-1], value.shape[-1]), []
    for t in range(key.shape[2]):
        factor = decay[max(t - shift, 0)][:, None, None] if t >= shift else 1
        entry = torch.einsum(einsum, key[:, :, t], value[:, :, t])
        old = state
        state = (
            factor * (state + entry)
            if entry_first
            else factor * state + (factor * entry if on_entry else entry)
        )
        outputs.append(torch.einsum("bhd,bhde->bhe", query[:, :, t], old if read_first else state))
    return torch.stack(outputs, dim=2)


def own_entry(query, key, value):
    return (query * key).sum(dim=-1, keepdim=True) * value


def first_sample_for_all(query, key, value, decay):
    return decayed(query, key[:1].expand_as(key), value[:1].expand_as(value), decay)


def carried_output(query, key, value, decay):
    output, outputs = 0, []
    for t in range(key.shape[2]):
        gate = (query[:, :, t] * key[:, :, t]).sum(dim=-1, keepdim=True)
        output = decay[t][:, None] * output + gate * value[:, :, t]
        outputs.append(output)
    return torch.stack(outputs, dim=2)


def power_of_first(query, key, value, decay):
    powers = torch.stack([decay[0] ** (t + 1) for t in range(len(decay))])
    return decayed(query, key, value, powers)


def powers_of_own(query, key, value, decay):
    return decayed(query, key, value, torch.stack([decay[t] ** t for t in range(len(decay))]))


class KeepsTheState:
    """Right on the first call; the second begins with what the first has left."""

    def __init__(self):
        self.left = 0

    def __call__(self, query, key, value, decay):
        output = decayed(query, key, value, decay) + self.left
        self.left = self.left + output[:, :, -1:]
        return output


def in_place(query, key, value, decay):
    output = decayed(query, key, value, decay)
    value.mul_(2)
    return output


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda q, k, v, decay: decayed(q, k, v, torch.ones_like(decay)), "does not decay"),
        (lambda *given: decayed(*given, on_entry=True), "also multiplies the new entry"),
        (lambda *given: decayed(*given, entry_first=True), "also multiplies the new entry"),
        # agrees where all decays are equal
        (lambda *given: decayed(*given, shift=1), "one token late"),
        (
            lambda q, k, v, decay: decayed(q, k, v, decay[:, :1].expand_as(decay)),
            "all heads decay like head 0",
        ),
        (lambda q, k, v, decay: decayed(q, k, v, decay[:1].expand_as(decay)), "all tokens decay by decay[0]"),
        (power_of_first, "raised to powers"),
        # agrees at tokens 1 and 2
        (powers_of_own, "wrong from token 3 on"),
        (lambda *given: decayed(*given, read_first=True), "asks the old state"),
        (lambda q, k, v, decay: decayed(q, k, v, decay) - own_entry(q, k, v), "its own entry is missing"),
        # agrees for a batch of one
        (lambda *given: decayed(*given, einsum="bhd,bhe->hde"), "summed over it"),
        (first_sample_for_all, "the first sample's state"),
        # agrees at the first token
        (carried_output, "carry the old output"),
        (lambda q, k, v, decay: own_entry(q, k, v), "wrong from token 2 on"),
        (KeepsTheState(), "right on the first call, wrong on the second"),
        (in_place, "in place"),
        (lambda *given: decayed(*given).transpose(1, 2), "the shape of your output is (2, 5, 3, 6)"),
        (lambda q, k, v, decay: v * math.nan, "contains NaN"),
        (
            lambda *given: torch.cat([decayed(*given)[:, :, :-1], given[2][:, :, :1] * math.nan], dim=2),
            "contains NaN",
        ),
    ],
)
def test_decayed_state(answer, words):
    assert_wrong(check_decayed_state, answer, words)
