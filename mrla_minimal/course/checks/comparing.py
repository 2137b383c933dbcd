"""Checkers of notebook 08: the paired interval and Holm's adjustment."""

import math

import torch

from mrla_minimal.course.checks.common import (
    Wrong,
    blame,
    checker,
    close,
    numbers,
    run,
    tensor,
    three_numbers,
)

__all__ = ["check_holm", "check_paired_interval"]


@checker("exercise 1")
def check_paired_interval(answer: object) -> None:
    """answer(a, b), both (seeds,) -> (mean, low, high): a - b and its 95 % interval.

    By Student's t, with n - 1 degrees of freedom.
    """
    for n in (5, 3):
        a = 90.4 + 0.3 * numbers(n)
        b = 90.0 + 0.8 * (a - 90.4) + 0.2 * numbers(n, seed=1)      # correlated, so that pairing shows
        result = three_numbers(run(answer, a, b), "mean, low, high")
        mean, low, high = tensor(torch.tensor(result, dtype=torch.float64), (3,))
        difference = a - b
        if not close(mean, difference.mean()):
            raise Wrong("your mean has the wrong sign: a - b, so that above 0 speaks for a"
                        if close(mean, -difference.mean()) else "your mean should be the mean of a - b")
        if not close(mean - low, high - mean):
            raise Wrong("the interval should reach equally far below and above the mean")
        _explain_half((high - low) / 2, a, b, n)


def _explain_half(half, a, b, n):
    from scipy import stats

    def exact(number):      # float64: a plain number would be compared as float32
        return torch.tensor(number, dtype=torch.float64)

    quantile, error = float(stats.t.ppf(0.975, n - 1)), (a - b).std().item() / math.sqrt(n)
    unpaired = math.sqrt((a.var() + b.var()).item() / n)
    biased = math.sqrt((n - 1) / n)     # a standard deviation that divides by n
    normal = ("1.96 is for a standard deviation that is known; yours is estimated from a few seeds, "
              "so Student's t, n - 1 degrees of freedom")
    mistakes = (
        (1.96 * error, normal),
        (float(stats.norm.ppf(0.975)) * error, normal),
        (float(stats.t.ppf(0.95, n - 1)) * error,
         "95 % in the middle leaves 2.5 % on each side: the quantile at 0.975"),
        (float(stats.t.ppf(0.975, n)) * error,
         "n differences have n - 1 degrees of freedom: one went into their mean"),
        (quantile * error * biased,
         "your standard deviation divides by n; from few differences it must divide by n - 1"),
        (quantile * error * math.sqrt(n),
         "that is where single differences lie; the error of their mean is smaller by sqrt(n)"),
        (quantile * error / math.sqrt(n),
         "you divide by n; the error of a mean is the standard deviation over sqrt(n)"),
        (1.96 * error * biased,
         "both halves of the bug of the day: 1.96 in place of "
         "Student's t, and a standard deviation that divides by n"),
        (-quantile * error, "your ends are exchanged: the lower one comes first"),
        (error, "your half width is one standard error; multiply it by the quantile of Student's t"),
        (quantile * unpaired,
         "you scatter a and b apart; take the differences seed by seed first, then their standard deviation"),
        (float(stats.t.ppf(0.975, 2 * n - 2)) * unpaired,
         "that is the interval for unpaired runs; take the differences seed by seed first"),
    )
    blame(half, exact(quantile * error), ((exact(wrong), message) for wrong, message in mistakes),
          "your mean is right; half the interval should be t(0.975, n - 1) * std(differences) / sqrt(n)")


@checker("exercise 2")
def check_holm(answer: object) -> None:
    """answer(p (tests,)) -> (tests,): Holm's adjusted p values, in the order of p."""
    p = torch.tensor([0.55, 0.011, 0.60, 0.010, 0.04, 0.40, 0.0005], dtype=torch.float64)
    _explain_holm(tensor(run(answer, p), p.shape), p, _holm(p))
    for other in (numbers(4).abs() / 9, torch.tensor([0.03], dtype=torch.float64)):
        if not close(tensor(run(answer, other), other.shape), _holm(other)):
            raise Wrong("your function is right for 7 tests and wrong "
                        f"for {len(other)}: something in it counts to 7")


def _holm(p):
    order = p.argsort()
    factors = torch.arange(len(p), 0, -1)                                   # m, m - 1, .., 1
    adjusted = torch.empty_like(p)
    adjusted[order] = (factors * p[order]).clamp(max=1).cummax(0).values
    return adjusted


def _explain_holm(given, p, wanted):
    m, order = len(p), p.argsort()
    back = order.argsort()
    factors = torch.arange(m, 0, -1)
    steps = factors * p[order]
    raw = steps.cummax(0).values
    upwards = "your factors go up with p; the smallest p gets the largest factor"
    unsorted = "you multiply in the order given; sort first: the smallest p gets the factor 7"
    mistakes = (
        (wanted[order], "your values are sorted; give each back to the test it belongs to"),
        ((m * p).clamp(max=1), "that is Bonferroni: every p times 7. Holm multiplies "
                               "only the smallest by 7, the next by 6, and so on"),
        (m * p, "that is Bonferroni, and a probability is at most 1"),
        (steps[back].clamp(max=1), "a larger p must not get a smaller adjusted one: "
                                   "keep the largest so far while you go up"),
        (steps[back], "a larger p must not get a smaller adjusted one, and a probability is at most 1"),
        (raw[back], "a probability is at most 1: cut what is above"),
        ((m * p[order] / torch.arange(1, m + 1)).flip(0).cummin(0).values.flip(0)[back].clamp(max=1),
         "that is Benjamini and Hochberg's, which bounds the share of false findings, not the chance of any"),
        ((factors.flip(0) * p[order])[back].clamp(max=1), upwards),
        ((factors.flip(0) * p[order]).cummax(0).values[back].clamp(max=1), upwards),
        ((factors * p).clamp(max=1), unsorted),
        ((factors * p).cummax(0).values.clamp(max=1), unsorted),
        (p, "nothing is adjusted yet"),
    )
    blame(given, wanted, mistakes, "the smallest of the 7 should be multiplied by 7, the next by 6, ..., "
                                   "each raised to the one before, none above 1")
