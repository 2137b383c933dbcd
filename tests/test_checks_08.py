"""The checkers of notebook 08: the stub is not attempted, the solution passes, and plausible mistakes are named."""

import math

import pytest
import torch
from notebook_answers import read_answers
from scipy import stats
from torch import nn

from mrla_minimal import DepthwiseCarry
from mrla_minimal.lab.checks.comparing import check_holm, check_moving_average, check_paired_interval
from mrla_minimal.lab.experiments import holm
from mrla_minimal.lab.experiments import paired_interval as library_interval
from mrla_minimal.layer_attention import value_convolution

NAME = "08_does_layer_attention_help.ipynb"
CHECKS = {check.__name__: check for check in (check_paired_interval, check_holm, check_moving_average)}


def assert_wrong(check, answer, words):
    status, message = check.judge(answer)
    assert (status, words in message) == ("wrong", True), message


@pytest.mark.parametrize("check", CHECKS)
def test_stub_is_not_attempted(check):
    assert CHECKS[check].judge(read_answers(NAME, "exercise", CHECKS)[check]) == ("not attempted", "not attempted yet")


@pytest.mark.parametrize("check", CHECKS)
def test_solution_passes(check):
    assert CHECKS[check].judge(read_answers(NAME, "solution", CHECKS)[check]) == ("passed", "passed")


def by_library(a, b):
    mean, (low, high), _ = library_interval((a - b).tolist())
    return mean, low, high


def test_the_librarys_own_statistics_pass():
    assert check_paired_interval.judge(by_library) == ("passed", "passed")
    assert check_holm.judge(lambda p: torch.tensor(holm(p.tolist()), dtype=p.dtype)) == ("passed", "passed")


def interval(quantile=None, correction=1, unpaired=False, power=0.5, sign=1):
    """The paired interval, where each keyword makes one mistake."""
    def answer(a, b):
        n, d = len(a), sign * (a - b)
        error = math.sqrt((a.var() + b.var()).item()) if unpaired else d.std(correction=correction).item()
        half = (quantile(n) if quantile else stats.t.ppf(0.975, n - 1)) * error / n**power
        return d.mean().item(), d.mean().item() - half, d.mean().item() + half
    return answer


def five_seeds_only(a, b):
    return interval(quantile=lambda n: stats.t.ppf(0.975, 4))(a, b)


@pytest.mark.parametrize(("answer", "words"), [
    (interval(quantile=lambda n: 1.96), "a standard deviation that is known"),
    (interval(quantile=lambda n: stats.norm.ppf(0.975)), "1.96 is for"),
    (interval(quantile=lambda n: stats.t.ppf(0.95, n - 1)), "the quantile at 0.975"),
    (interval(quantile=lambda n: stats.t.ppf(0.975, n)), "n - 1 degrees of freedom"),
    (interval(quantile=lambda n: 1.0), "one standard error"),
    (interval(correction=0), "must divide by n - 1"),                                        # numpy's default
    (interval(power=0), "smaller by sqrt(n)"),
    (interval(power=1), "you divide by n"),
    (interval(unpaired=True), "seed by seed"),
    (interval(unpaired=True, quantile=lambda n: stats.t.ppf(0.975, 2 * n - 2)), "unpaired runs"),
    (interval(sign=-1), "wrong sign"),
    (lambda a, b: interval()(a, b.flip(0)), "half the interval"),                            # pairs other seeds; same mean
    (five_seeds_only, "half the interval"),                                                  # right on the first call
    (lambda a, b: (a.mean() - b.mean() + 1, 0.0, 1.0), "mean of a - b"),
    (lambda a, b: (interval()(a, b)[0], interval()(a, b)[1], 9.0), "equally far"),
    (lambda a, b: interval()(a, b)[1:], "three numbers"),
    (lambda a, b: (a - b, a, b), "should be one number"),
    (lambda a, b: (math.nan, *interval()(a, b)[1:]), "contains NaN"),
    (lambda a, b: interval()(a.sub_(b), torch.zeros_like(b)), "in place"),
])
def test_wrong_intervals_are_named(answer, words):
    assert_wrong(check_paired_interval, answer, words)


def stepped(p, factors=None, keep_largest=True, cut=True, back=True):
    """Holm's adjustment, where each keyword makes one mistake."""
    order = p.argsort()
    values = (torch.arange(len(p), 0, -1) if factors is None else factors(len(p))) * p[order]
    values = values.cummax(0).values if keep_largest else values
    values = values.clamp(max=1) if cut else values
    return values[order.argsort()] if back else values


def without_sorting(p):
    return (torch.arange(len(p), 0, -1) * p).clamp(max=1)


def benjamini_hochberg(p):
    order, m = p.argsort(), len(p)
    return (m * p[order] / torch.arange(1, m + 1)).flip(0).cummin(0).values.flip(0)[order.argsort()].clamp(max=1)


def of_seven(p):
    return stepped(p, factors=lambda m: torch.arange(7, 0, -1)[:m])


@pytest.mark.parametrize(("answer", "words"), [
    (lambda p: (len(p) * p).clamp(max=1), "that is Bonferroni"),
    (lambda p: len(p) * p, "Bonferroni, and a probability"),
    (lambda p: stepped(p, back=False), "are sorted"),
    (lambda p: stepped(p)[p.argsort()][p.argsort()], "none above 1"),                        # put back by the wrong permutation
    (lambda p: stepped(p, keep_largest=False), "keep the largest so far"),
    (lambda p: stepped(p, keep_largest=False, cut=False), "must not get a smaller"),
    (lambda p: stepped(p, cut=False), "cut what is above"),
    (lambda p: stepped(p, factors=lambda m: torch.arange(1, m + 1)), "factors go up"),
    (without_sorting, "sort first"),
    (benjamini_hochberg, "Benjamini"),
    (of_seven, "counts to 7"),                                                               # right on the first call
    (lambda p: p.clone(), "nothing is adjusted"),
    (lambda p: stepped(p)[:3], "shape (3,)"),
    (lambda p: stepped(p) * math.nan, "contains NaN"),
    (lambda p: stepped(p).tolist(), "should be a tensor"),
])
def test_wrong_adjustments_are_named(answer, words):
    assert_wrong(check_holm, answer, words)


class Average(nn.Module):
    """The moving average; each subclass below makes one mistake."""

    def __init__(self, channels):
        super().__init__()
        self.value = value_convolution(channels)
        self.decay = nn.Parameter(torch.zeros(channels))

    def share(self):
        return self.decay.sigmoid()[:, None, None]

    def mix(self, old, new):
        return self.share() * old + (1 - self.share()) * new

    def forward(self, x, memory=None):
        value = self.value(x)
        output = value if memory is None else self.mix(memory, value)
        return output, output


class Exchanged(Average):
    def mix(self, old, new):
        return (1 - self.share()) * old + self.share() * new


class Raw(Average):
    def share(self):
        return self.decay[:, None, None]


class OneShare(Average):
    def share(self):
        return self.decay.mean().sigmoid()


class Halves(Average):          # what the start computes: right in a check that leaves decay at 0
    def mix(self, old, new):
        return (old + new) / 2


class Summed(Average):
    def mix(self, old, new):
        return self.share() * old + new


class Forgetful(Average):
    def mix(self, old, new):
        return new


class FromZero(Average):
    def forward(self, x, memory=None):
        value = self.value(x)
        output = self.mix(torch.zeros_like(value) if memory is None else memory, value)
        return output, output


class OfMaps(Average):
    def forward(self, x, memory=None):
        output = x if memory is None else self.mix(memory, x)
        return output, output


class CarriesValue(Average):    # agrees up to layer 2
    def forward(self, x, memory=None):
        return super().forward(x, memory)[0], self.value(x)


class Detached(Average):
    def forward(self, x, memory=None):
        output, memory = super().forward(x, memory)
        return output, memory.detach()


class CopiedDecay(Average):
    def share(self):
        return self.decay.detach().sigmoid()[:, None, None]


class InPlace(Average):
    def mix(self, old, new):
        return old.mul_(self.share()).add_((1 - self.share()) * new)


class Hidden(Average):          # right on the first stage
    last = None

    def forward(self, x, memory=None):
        output, memory = super().forward(x, self.last)
        self.last = memory
        return output, memory


class HiddenState(Average):
    """Keeps the map on the module: the first pass through a stage is right where layers pass their memory on as well."""

    def __init__(self, channels):
        super().__init__(channels)
        self.before = None

    def forward(self, x, memory=None):
        memory = self.before if memory is None else memory
        output, memory = super().forward(x, memory)
        self.before = memory
        return output, memory


class StartsAtOne(Average):
    def __init__(self, channels):
        super().__init__(channels)
        self.decay = nn.Parameter(torch.ones(channels))


class OneNumber(Average):
    def __init__(self, channels):
        super().__init__(channels)
        self.decay = nn.Parameter(torch.zeros(()))


class NoParameter(Average):
    def __init__(self, channels):
        super().__init__(channels)
        del self.decay
        self.decay = torch.zeros(channels)


class OrdinaryValue(Average):
    def __init__(self, channels):
        super().__init__(channels)
        self.value = nn.Conv2d(channels, channels, 3, padding=1)


class OutputAlone(Average):
    def forward(self, x, memory=None):
        return super().forward(x, memory)[0]


class NotANumber(Average):
    def mix(self, old, new):
        return super().mix(old, new) * math.nan


class NeedsSixChannels(Average):
    def __init__(self, channels):
        super().__init__(channels)
        self.register_buffer("six", torch.ones(6, 1, 1))

    def forward(self, x, memory=None):
        return super().forward(x * self.six, memory)


@pytest.mark.parametrize(("answer", "words"), [
    (Exchanged, "exchanged"), (Raw, "sigmoid(decay)"), (OneShare, "one share for all channels"), (Halves, "one half each"),
    (Summed, "shares that sum to 1"), (Forgetful, "memory is not used"), (FromZero, "O^1 = v^1"), (OfMaps, "average the values"),
    (CarriesValue, "the output O^t itself"), (Detached, "detached"), (CopiedDecay, "decay gets no gradient"), (InPlace, "in place"),
    (Hidden, "right at the first layer only"), (HiddenState, "outlives the memory"), (StartsAtOne, "start at 0"),
    (OneNumber, "one number a channel"), (NoParameter, "nn.Parameter"), (OrdinaryValue, "value_convolution"),
    (OutputAlone, "two things"), (NotANumber, "contains NaN"), (NeedsSixChannels, "in a network"),
    (DepthwiseCarry, "self.decay"), (lambda channels: torch.zeros(channels), "should make a module"),
], ids=lambda value: getattr(value, "__name__", None))
def test_wrong_averages_are_named(answer, words):
    assert_wrong(check_moving_average, answer, words)


def test_the_right_average_passes():
    assert check_moving_average.judge(Average) == ("passed", "passed")
