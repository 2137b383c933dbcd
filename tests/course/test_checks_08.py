"""The checkers of notebook 08: plausible mistakes are named."""

import math

import pytest
import torch
from notebook_answers import assert_wrong
from scipy import stats
from torch import nn

from mrla_minimal import MRLABase, UniformMean
from mrla_minimal.course.checks.comparing import check_holm, check_paired_interval, check_sharp_base
from mrla_minimal.lab.evidence import holm
from mrla_minimal.lab.evidence import paired_interval as library_interval
from mrla_minimal.layer_attention import pool, split_heads, weighted_sum


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
    # pairs other seeds; same mean
    (lambda a, b: interval()(a, b.flip(0)), "half the interval"),
    # right on the first call
    (five_seeds_only, "half the interval"),
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
    return (
        (m * p[order] / torch.arange(1, m + 1)).flip(0).cummin(0).values.flip(0)[order.argsort()].clamp(max=1)
    )


def of_seven(p):
    return stepped(p, factors=lambda m: torch.arange(7, 0, -1)[:m])


@pytest.mark.parametrize(("answer", "words"), [
    (lambda p: (len(p) * p).clamp(max=1), "that is Bonferroni"),
    (lambda p: len(p) * p, "Bonferroni, and a probability"),
    (lambda p: stepped(p, back=False), "are sorted"),
    # put back by the wrong permutation
    (lambda p: stepped(p)[p.argsort()][p.argsort()], "none above 1"),
    (lambda p: stepped(p, keep_largest=False), "keep the largest so far"),
    (lambda p: stepped(p, keep_largest=False, cut=False), "must not get a smaller"),
    (lambda p: stepped(p, cut=False), "cut what is above"),
    (lambda p: stepped(p, factors=lambda m: torch.arange(1, m + 1)), "factors go up"),
    (without_sorting, "sort first"),
    (benjamini_hochberg, "Benjamini"),
    # right on the first call
    (of_seven, "counts to 7"),
    (lambda p: p.clone(), "nothing is adjusted"),
    (lambda p: stepped(p)[:3], "is (3,)"),
    (lambda p: stepped(p) * math.nan, "contains NaN"),
    (lambda p: stepped(p).tolist(), "should be a tensor"),
])
def test_wrong_adjustments_are_named(answer, words):
    assert_wrong(check_holm, answer, words)


class Sharp(MRLABase):
    """Base with a sharpness; each subclass below makes one mistake."""

    def __init__(self, channels):
        super().__init__(channels)
        self.sharpness = nn.Parameter(torch.ones(()))

    def scale(self):
        return self.sharpness

    def weigh(self, logits):
        return (self.scale() * logits).softmax(dim=-1)

    def cache(self, memory, key, value):
        return [*(memory or []), (key, value)]

    def forward(self, x, memory=None):
        row = pool(x)
        query, key = (split_heads(module(row), self.head_dim) for module in (self.query, self.key))
        memory = self.cache(memory, key, self.value(x))
        keys = torch.stack([key for key, _ in memory], dim=2)
        logits = (query[:, :, None] * keys).sum(dim=-1) / math.sqrt(self.head_dim)
        weights = self.weights(self.weigh(logits))
        return weighted_sum(weights, [value for _, value in memory]), memory


class Unused(Sharp):            # what the start computes: right in a check that leaves the sharpness at 1
    def weigh(self, logits):
        return (1 + 0 * self.sharpness) * logits.softmax(dim=-1)


class Divided(Sharp):
    def weigh(self, logits):
        return (logits / self.sharpness).softmax(dim=-1)


class AfterSoftmax(Sharp):
    def weigh(self, logits):
        return self.sharpness * logits.softmax(dim=-1)


# agrees in its output at layer 1; with one sharpness for all layers it would be right
class ScaledKey(Sharp):
    def weigh(self, logits):
        return logits.softmax(dim=-1)

    def cache(self, memory, key, value):
        return super().cache(memory, self.sharpness * key, value)


class ScaledValue(Sharp):
    def cache(self, memory, key, value):
        return super().cache(memory, key, self.sharpness * value)


class Unscaled(Sharp):
    def weigh(self, logits):
        return super().weigh(logits * math.sqrt(self.head_dim))


class OverHeads(Sharp):
    def weigh(self, logits):
        return super().weigh(logits) if logits.shape[2] == 1 else (self.sharpness * logits).softmax(dim=1)


class Sigmoid(Sharp):
    def weigh(self, logits):
        return super().weigh(logits) if logits.shape[2] == 1 else (self.sharpness * logits).sigmoid()


class Uniform(Sharp):
    def weigh(self, logits):
        return (0 * self.sharpness * logits).softmax(dim=-1)


class Squared(Sharp):
    def scale(self):
        return self.sharpness**2


class CopiedNumber(Sharp):
    def scale(self):
        return self.sharpness.item()


class Detached(Sharp):
    def forward(self, x, memory=None):
        output, memory = super().forward(x, memory)
        return output, [(key.detach(), value.detach()) for key, value in memory]


class Appends(Sharp):
    def cache(self, memory, key, value):
        memory = [] if memory is None else memory
        memory.append((key, value))
        return memory


class KeepsOwnList(Sharp):      # a list on the module, which outlives the stage
    def cache(self, memory, key, value):
        if memory is None:
            memory = getattr(self, "before", [])
            self.before = [(key.detach(), value.detach())]
        return super().cache(memory, key, value)


class NewestFirst(Sharp):       # the same output, another order of memory
    def cache(self, memory, key, value):
        return [(key, value), *(memory or [])]


class Forgets(Sharp):           # no memory at all
    def cache(self, memory, key, value):
        return [(key, value)]


class MemoryOfKeys(Sharp):
    def forward(self, x, memory=None):
        output, memory = super().forward(x, memory)
        return output, {"pairs": memory}


class OutputAlone(Sharp):
    def forward(self, x, memory=None):
        return super().forward(x, memory)[0]


class PastTheHook(Sharp):
    def forward(self, x, memory=None):
        kept, self.weights = self.weights, nn.Identity()
        result = super().forward(x, memory)
        self.weights = kept
        return result


class LogitsThroughTheHook(PastTheHook):
    def weigh(self, logits):
        return super().weigh(self.kept(logits))

    def forward(self, x, memory=None):
        self.kept, self.weights = self.weights, nn.Identity()
        result = Sharp.forward(self, x, memory)
        self.weights = self.kept
        return result


class StartsAtZero(Sharp):
    def __init__(self, channels):
        super().__init__(channels)
        self.sharpness = nn.Parameter(torch.zeros(()))


class NumberAChannel(Sharp):
    def __init__(self, channels):
        super().__init__(channels)
        self.sharpness = nn.Parameter(torch.ones(channels, 1, 1))

    def scale(self):
        return self.sharpness.mean()


class NoParameter(Sharp):
    def __init__(self, channels):
        super().__init__(channels)
        del self.sharpness
        self.sharpness = torch.ones(())


class NotDerived(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.inner = Sharp(channels)

    def forward(self, x, memory=None):
        return self.inner(x, memory)


class NotANumber(Sharp):
    def weigh(self, logits):
        return super().weigh(logits) * math.nan


class NeedsManyChannels(Sharp):
    def forward(self, x, memory=None):
        return super().forward(x + torch.zeros(48, 1, 1, dtype=x.dtype), memory)


class Absolute(Sharp):
    def scale(self):
        return self.sharpness.abs()


class OneElement(Sharp):        # shape (1,) in place of (): as good
    def __init__(self, channels):
        super().__init__(channels)
        self.sharpness = nn.Parameter(torch.ones(1))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Unused, "sharpness is not used"),
        (Absolute, "absolute value"),
        (Divided, "you divide"),
        (AfterSoftmax, "nor the weights"),
        (ScaledKey, "what you cache is scaled"),
        (ScaledValue, "not the values"),
        (Unscaled, "divided by sqrt"),
        (OverHeads, "over the heads"),
        (Sigmoid, "sigmoid"),
        (Uniform, "all 1/t"),
        (Squared, "at layer 2"),
        (CopiedNumber, "copy of its number"),
        (Detached, "detached"),
        (Appends, "in place"),
        (KeepsOwnList, "outlives the memory"),
        (NewestFirst, "the oldest first"),
        (Forgets, "memory is not used"),
        (MemoryOfKeys, "list of 1 pairs"),
        (OutputAlone, "two things"),
        (StartsAtZero, "start at 1"),
        (PastTheHook, "through self.weights"),
        (LogitsThroughTheHook, "sums to 1"),
        (NumberAChannel, "with one number"),
        (NoParameter, "nn.Parameter"),
        (NotDerived, "derived from MRLABase"),
        (NotANumber, "contains NaN"),
        (NeedsManyChannels, "in a network"),
        (MRLABase, "self.sharpness"),
        (lambda channels: torch.zeros(channels), "should make a module"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_wrong_sharpness_is_named(answer, words):
    assert_wrong(check_sharp_base, answer, words)


@pytest.mark.parametrize("answer", [Sharp, OneElement])
def test_the_right_sharpness_passes(answer):
    assert check_sharp_base.judge(answer) == ("passed", "passed")


def test_sharpness_lies_between_base_and_the_uniform_mean():
    layers, uniform, base = (
        [Sharp(32) for _ in range(3)],
        [UniformMean(32) for _ in range(3)],
        [MRLABase(32) for _ in range(3)],
    )
    for sharpness, others in ((0.0, uniform), (1.0, base)):
        memory = given = None
        for layer, other in zip(layers, others, strict=True):
            nn.init.constant_(layer.sharpness, sharpness)
            other.load_state_dict({name: layer.state_dict()[name] for name in other.state_dict()})
            x = torch.randn(2, 32, 4, 5)
            output, memory = layer(x, memory)
            wanted, given = other(x, given)
            assert torch.allclose(output, wanted, atol=1e-6)
