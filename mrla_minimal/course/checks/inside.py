"""Checkers of notebook 10: a paired count and its p value, weights by class. The third: fixed_weights.py."""

import math

import torch

from mrla_minimal.course.checks.common import Wrong, checker, close, numbers, run, tensor, three_numbers
from mrla_minimal.course.checks.fixed_weights import check_fixed_weights

__all__ = ["check_by_class", "check_fixed_weights", "check_paired_test"]

# (right before and after, lost, gained, wrong before and after) of the tests that exercise 1 is given.
COUNTS = ((20, 9, 2, 6), (11, 1, 6, 3), (5, 3, 3, 4), (7, 0, 0, 2), (30, 40, 31, 0))


@checker("exercise 1")
def check_paired_test(answer: object) -> None:
    """answer(before, after, labels), classes (n,) each -> (lost, gained, p), p of the exact McNemar test."""
    for counts in COUNTS:
        before, after, labels = _predictions(*counts)
        lost, gained, p = three_numbers(run(answer, before, after, labels), "lost, gained, p")
        if any(map(math.isnan, (lost, gained, p))):
            raise Wrong("one of your numbers is NaN; with nothing lost and nothing gained, p is 1")
        _explain_counts(lost, gained, *counts)
        _explain_p(p, *counts)


def _predictions(kept, lost, gained, neither):
    """Images in mixed order. Of those wrong before and after, every second one changes its wrong answer."""
    n = kept + lost + gained + neither
    labels = torch.arange(n) % 10
    right, other, third = labels, (labels + 1) % 10, (labels + 4) % 10
    kind = torch.tensor([0] * kept + [1] * lost + [2] * gained + [3] * neither)
    before = torch.where(kind <= 1, right, other)
    wrong = torch.where((kind == 3) & (labels % 2 == 0), third, other)
    after = torch.where((kind == 0) | (kind == 2), right, wrong)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
    return before[order], after[order], labels[order]


def _explain_counts(lost, gained, kept, right_lost, right_gained, neither):
    if (lost, gained) == (right_lost, right_gained):
        return
    if (lost, gained) == (right_gained, right_lost):
        raise Wrong("lost and gained are exchanged: lost were right before and are wrong after")
    both_wrong = (lost, gained) == (right_lost + neither, right_gained + neither)
    if both_wrong or lost + gained > right_lost + right_gained:
        raise Wrong("you count images that were wrong before and after; "
                    "one wrong answer for another neither gains nor loses")
    if lost + gained == abs(right_lost - right_gained):
        raise Wrong("you took the difference of the two accuracies; it hides "
                    "the images that were lost and gained in equal number")
    images = kept + right_lost + right_gained + neither
    raise Wrong(f"of {images} images {right_lost} are lost and {right_gained} gained; "
                f"yours: {lost:g} and {gained:g}")


def _tail(successes, trials, half=0.5):
    return sum(math.comb(trials, k) for k in range(successes + 1)) * half**trials


def _explain_p(p, kept, lost, gained, neither):
    trials, fewer, n = lost + gained, min(lost, gained), kept + lost + gained + neither
    if close(p, min(1.0, 2 * _tail(fewer, trials))):
        return
    if trials == 0:
        raise Wrong("with nothing lost and nothing gained there is no sign of a difference: p is 1")
    if close(p, 2 * _tail(fewer, trials)) and p > 1:
        raise Wrong("with as many lost as gained your p passes 1; a probability is at most 1")
    if close(p, min(1.0, 2 * _tail(max(lost, gained), trials))):
        raise Wrong("you summed up to the larger of the two counts; take the smaller")
    if close(p, _tail(fewer, trials)) or close(p, _tail(lost, trials)) or close(p, _tail(gained, trials)):
        raise Wrong("that is one side of the binomial; you did not know beforehand "
                    "which way it would go, so take both: twice the smaller")
    if close(p, 2 * math.comb(trials, fewer) * 0.5**trials):
        raise Wrong("you took the chance of exactly this count; p is the "
                    "chance of this one or a more extreme one: sum from 0")
    if close(p, min(1.0, 2 * _tail(fewer, n))) or close(p, _tail(fewer, n)):
        raise Wrong("your coin is thrown once an image; only the lost and "
                    "gained ones say anything, so throw it lost + gained times")
    if close(p, math.erfc(abs(lost - gained) / math.sqrt(2 * trials))):
        raise Wrong("that is the normal approximation, too rough for "
                    "a handful of images; sum the binomial itself")
    raise Wrong(f"with {lost} lost and {gained} gained, p is the chance that "
                f"{trials} throws of a fair coin are at least this uneven")


@checker("exercise 2")
def check_by_class(answer: object) -> None:
    """answer(weights, labels, classes): T tensors (batch, heads, t) -> (classes, heads, T, T).

    Each class's mean; 0 above the diagonal.
    """
    for batch, heads, layers, classes in ((11, 2, 4, 5), (7, 3, 2, 6)):
        weights = [numbers(batch, heads, t, seed=t).softmax(dim=-1) for t in range(1, layers + 1)]
        # class 1 and the last ones have no image
        labels = torch.tensor([3, 0, 2, 3, 3, 0, 2, 3, 0, 2, 2])[:batch]
        given = tensor(run(answer, weights, labels, classes), (classes, heads, layers, layers))
        wanted = _by_class(weights, labels, classes)
        if not close(given, wanted):
            _explain_by_class(given, wanted, weights, labels, classes, heads, layers)


def _by_class(weights, labels, classes):
    layers = len(weights)
    result = torch.zeros(classes, weights[0].shape[1], layers, layers, dtype=weights[0].dtype)
    for t, of_layer in enumerate(weights, start=1):
        for label in labels.unique().tolist():
            result[label, :, t - 1, :t] = of_layer[labels == label].mean(dim=0)
    return result


def _explain_by_class(given, wanted, weights, labels, classes, heads, layers):
    counts = torch.bincount(labels, minlength=classes).to(wanted.dtype)[:, None, None, None]
    if close(given, wanted.mean(dim=1, keepdim=True).expand_as(wanted)):
        raise Wrong("all your heads are alike: do not average over the heads")
    everyone = torch.zeros_like(wanted)
    for t, of_layer in enumerate(weights, start=1):
        everyone[:, :, t - 1, :t] = of_layer.mean(dim=0)
    if close(given, everyone) or close(given, everyone * (counts > 0)):
        raise Wrong("all your classes are alike: take the mean over the images of one class at a time")
    if close(given, wanted * counts):
        raise Wrong("you sum over the images of a class; divide by their number")
    if close(given, wanted * counts / len(labels)):
        raise Wrong("you divide by the number of all images; divide by the number of the class's own")
    if close(given, wanted.transpose(2, 3)):
        raise Wrong("your rows and columns are exchanged: row t asks, column s is read")
    if close(given, wanted.flip(3)):
        raise Wrong("your columns run from the newest layer to the oldest; column s belongs to layer s")
    if not close(given.triu(1), torch.zeros_like(given)):
        raise Wrong("something stands above the diagonal; layer t has "
                    "read layers 1 to t only, the rest of its row is 0")
    empty = [label for label in range(classes) if not (labels == label).any()]
    if not close(given[empty], torch.zeros_like(given[empty])):
        raise Wrong("a class without images should be all 0")
    raise Wrong("entry [class, head, t - 1, s - 1] should be the mean of "
                "weights[t - 1][image, head, s - 1] over the class's images")
