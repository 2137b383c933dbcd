"""The checkers of notebook 08: plausible mistakes are named."""

import math

import pytest
import torch
from notebook_answers import assert_wrong
from scipy import stats

from mrla_minimal.course.checks.comparing import check_holm, check_paired_interval
from mrla_minimal.lab.evidence import holm
from mrla_minimal.lab.evidence import paired_interval as library_interval


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
