"""Each wrong answer to 19's exercises meets the message that is meant for it."""

import pytest
from notebook_answers import assert_wrong
from torch import nn

from mrla_minimal.course.checks.capstone import check_proposal, check_reading, check_window


@pytest.mark.parametrize(("answer", "words"), [
    (lambda layers, window: layers * window, "return two numbers"),
    (lambda layers, window: (layers * window, window), "the first layers have fewer than 3 to read"),
    (lambda layers, window: (layers * (layers + 1) // 2, window), "that is base without a window"),
    (lambda layers, window: (0, window), "the layers read [1, 2, 3, 3, 3, 3, 3], together 18, not 0"),
    (lambda layers, window: (sum(min(t, window) for t in range(1, layers + 1)), window),
     "for 7 layers and a window of 3 a further layer would want 2 of the values, beside its own, not 3"),
    (lambda layers, window: (sum(min(t, window) for t in range(1, layers + 1)), window - 1),
     "for 3 layers and a window of 6 a further layer would want 3 of the values, beside its own, not 5"),
])
def test_a_wrong_price(answer, words):
    assert_wrong(check_window, answer, words)


def by_sign(low, high, margin):
    return "lowers" if high < 0 else "raises" if low > 0 else "undecided"


def holding_zero(low, high, margin):
    if high < -margin:
        return "lowers"
    return "raises" if low > margin else "within" if low < 0 < high else "undecided"


@pytest.mark.parametrize(("answer", "words"), [
    (lambda low, high, margin: "helps", "return one of lowers, raises, within, undecided, not 'helps'"),
    (by_sign, "-0.03 to +0.04 with a margin of 0.05 is 'within', not 'undecided'"),
    (holding_zero, "is 'undecided', not 'within': a part of the interval lies beyond the margin"),
    (lambda low, high, margin: "raises" if low > margin else "lowers" if high < margin and low < -margin else
     "within" if abs(low) < margin and abs(high) < margin else "undecided",
     "is 'undecided', not 'lowers': a part of the interval lies within the margin"),
])
def test_a_wrong_reading(answer, words):
    assert_wrong(check_reading, answer, words)


class Proposal(nn.Module):
    """A mean of the newest value and what was carried: right, and a start for what is wrong."""

    def __init__(self, channels):
        super().__init__()
        self.value = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)

    def forward(self, x, memory=None):
        value = self.value(x)
        output = value if memory is None else (value + memory) / 2
        return output, output


class AcrossTheBatch(Proposal):
    def forward(self, x, memory=None):
        output, _ = super().forward(x, memory)
        output = output - output.mean(dim=0, keepdim=True)
        return output, output


class Appends(Proposal):
    def forward(self, x, memory=None):
        memory = [] if memory is None else memory
        memory.append(self.value(x))
        return sum(memory) / len(memory), memory


def no_attention(channels):
    return nn.Conv2d(channels, channels, 1)


@pytest.mark.parametrize("answer", [AcrossTheBatch, Appends, no_attention])
def test_a_proposal_that_is_no_layer_attention(answer):
    status, message = check_proposal.judge(answer)
    assert status == "wrong" and message.startswith("not yet: ")


def test_a_layer_attention_of_ones_own_passes():
    assert check_proposal.judge(Proposal) == ("passed", "passed")
