"""The checkers of notebook 10: plausible mistakes are named."""

import math

import pytest
import torch
from notebook_answers import assert_wrong
from torch import nn

from mrla_minimal.controls import UniformMean
from mrla_minimal.course.checks.inside import check_by_class, check_fixed_weights, check_paired_test
from mrla_minimal.layer_attention import MRLABase, value_convolution, weighted_sum

# Exercise 1

def counts(before, after, labels):
    lost = int(((before == labels) & (after != labels)).sum())
    return lost, int(((before != labels) & (after == labels)).sum())


def tail(k, throws):
    return sum(math.comb(throws, i) for i in range(k + 1)) / 2**throws


def with_p(p_of):
    """The right counts, and a p of one's own making."""
    def answer(before, after, labels):
        lost, gained = counts(before, after, labels)
        return lost, gained, p_of(lost, gained, len(labels))
    return answer


def right_p(lost, gained, images):
    return min(1.0, 2 * tail(min(lost, gained), lost + gained))


def changed_answers(before, after, labels):
    changed, lost = before != after, (before == labels) & (after != labels)
    return int(lost.sum()), int((changed & ~lost).sum()), 0.5


def net_change(before, after, labels):
    lost, gained = counts(before, after, labels)
    return max(0, lost - gained), max(0, gained - lost), 0.5


def no_guard(lost, gained, images):
    return 0 / (lost + gained) if lost + gained == 0 else right_p(lost, gained, images)


def approximate(lost, gained, images):
    return math.erfc(abs(lost - gained) / math.sqrt(2 * (lost + gained)))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda *inputs: (*counts(*inputs)[::-1], 0.5), "exchanged"),
        (changed_answers, "wrong before and after"),
        (net_change, "difference of the two accuracies"),
        (lambda *inputs: (0, 0, 1.0), "are lost and"),
        (with_p(lambda lost, gained, images: tail(min(lost, gained), lost + gained)), "one side"),
        (with_p(lambda lost, gained, images: tail(gained, lost + gained)), "one side"),
        (
            with_p(lambda lost, gained, images: min(1.0, 2 * tail(max(lost, gained), lost + gained))),
            "take the smaller",
        ),
        # right unless they are near
        (with_p(lambda lost, gained, images: 2 * tail(min(lost, gained), lost + gained)), "at most 1"),
        (
            with_p(lambda lost, gained, images: 2 * math.comb(lost + gained, gained) / 2 ** (lost + gained)),
            "exactly this count",
        ),
        (with_p(lambda lost, gained, images: min(1.0, 2 * tail(min(lost, gained), images))), "once an image"),
        (with_p(approximate), "normal approximation"),
        (
            with_p(lambda lost, gained, images: 0.0 if lost + gained == 0 else right_p(lost, gained, images)),
            "p is 1",
        ),
        (with_p(no_guard), "ZeroDivisionError"),
        (with_p(lambda lost, gained, images: math.nan), "NaN"),
        (with_p(lambda lost, gained, images: 0.05), "at least this uneven"),
        (counts, "three numbers"),
        (lambda before, after, labels: (before == labels, after == labels, 0.5), "one number"),
    ],
)
def test_wrong_paired_tests_are_named(answer, words):
    assert_wrong(check_paired_test, answer, words)


# Exercise 2

def by_class(weights, labels, classes, mean=None, empty=0.0, place=lambda t: slice(0, t)):
    mean = mean or (lambda of_layer, own: of_layer[own].mean(dim=0))
    depth = len(weights)
    result = weights[0].new_zeros(classes, weights[0].shape[1], depth, depth)
    for label in range(classes):
        own = labels == label
        for t, of_layer in enumerate(weights, start=1):
            if own.any():
                result[label, :, t - 1, place(t)] = mean(of_layer, own)
            else:
                result[label, :, t - 1, place(t)] = empty
    return result


def variant(**keywords):
    return lambda weights, labels, classes: by_class(weights, labels, classes, **keywords)


def no_guard_for_empty(weights, labels, classes):
    return by_class(weights, labels, classes, empty=math.nan)


def only_two_layers(weights, labels, classes):
    return by_class(weights, labels, classes) if len(weights) == 4 else by_class(weights, labels, classes) + 1


@pytest.mark.parametrize(("answer", "words"), [
    (variant(mean=lambda of_layer, own: of_layer[own].mean(dim=(0, 1))), "average over the heads"),
    (variant(mean=lambda of_layer, own: of_layer.mean(dim=0)), "classes are alike"),
    (variant(mean=lambda of_layer, own: of_layer[own].sum(dim=0)), "divide by their number"),
    (variant(mean=lambda of_layer, own: of_layer[own].sum(dim=0) / len(own)), "the class's own"),
    # agrees with one image a class
    (variant(mean=lambda of_layer, own: of_layer[own][0]), "mean of weights[t - 1]"),
    # agrees at t = T
    (variant(place=lambda t: slice(-t, None)), "above the diagonal"),
    (lambda *inputs: by_class(*inputs).flip(3), "newest layer to the oldest"),
    (lambda *inputs: by_class(*inputs).transpose(2, 3), "exchanged"),
    (variant(empty=0.25), "without images"),
    (no_guard_for_empty, "contains NaN"),
    (lambda *inputs: by_class(*inputs).mean(dim=1), "the shape of your"),
    # agrees on the first inputs
    (lambda weights, labels, classes: by_class(weights, labels, 5), "the shape of your"),
    (only_two_layers, "above the diagonal"),
])
def test_wrong_weights_by_class_are_named(answer, words):
    assert_wrong(check_by_class, answer, words)


# Exercise 3

class Fixed(nn.Module):
    """The solution in pieces, so that a subclass makes one mistake."""

    relu_after_norm = True
    heads_of = 16

    def __init__(self, channels):
        super().__init__()
        self.head_dim = min(self.heads_of, channels)
        self.scores = nn.Parameter(torch.zeros(channels // self.head_dim, 32))
        self.value, self.weights = value_convolution(channels), nn.Identity()

    def make(self, x, t):
        return self.scores[:, :t].flip(1).softmax(dim=1).expand(len(x), -1, -1)

    def forward(self, x, memory=None):
        values = [*(memory or []), self.value(x)]
        weights = self.weights(self.make(x, len(values)))
        return weighted_sum(weights, values), values


class ByPosition(Fixed):
    def make(self, x, t):
        return self.scores[:, :t].softmax(dim=1).expand(len(x), -1, -1)


class ByDistanceInOneNumber(Fixed):
    """One number a head, times the distance: a line of logits, not a number for each layer."""

    def make(self, x, t):
        return (self.scores[:, :1] * torch.arange(t).flip(0)).softmax(dim=1).expand(len(x), -1, -1)


class SquashedScores(Fixed):
    def make(self, x, t):
        return self.scores[:, :t].sigmoid().softmax(dim=1).expand(len(x), -1, -1)


class Shares(Fixed):
    def make(self, x, t):
        shares = self.scores[:, :t].abs() + 1e-6
        return (shares / shares.sum(dim=1, keepdim=True)).expand(len(x), -1, -1)


class CutTooLate(Fixed):
    def make(self, x, t):
        return self.scores.softmax(dim=1)[:, :t].flip(1).expand(len(x), -1, -1)


class OverHeads(Fixed):
    def make(self, x, t):
        return self.scores[:, :t].flip(1).softmax(dim=0).expand(len(x), -1, -1)


class PerImage(Fixed):
    def make(self, x, t):
        tilt = x.mean(dim=(1, 2, 3))[:, None, None]
        return (self.scores[:, :t] * tilt).softmax(dim=-1)


class PerBatch(Fixed):
    def make(self, x, t):
        return (self.scores[:, :t] * (1 + x.mean())).softmax(dim=-1).expand(len(x), -1, -1)


class Uniform(Fixed):
    def make(self, x, t):
        return (0 * self.scores[:, :t]).softmax(dim=1).expand(len(x), -1, -1)


class SameHeads(Fixed):
    def make(self, x, t):
        return self.scores[:1, :t].softmax(dim=1).expand(len(x), len(self.scores), -1)


class BigHeads(Fixed):
    heads_of = 32


class Unseen(Fixed):
    def forward(self, x, memory=None):
        values = [*(memory or []), self.value(x)]
        return weighted_sum(self.make(x, len(values)), values), values


class SeenElsewhere(Fixed):
    """What passes through `weights` is not what makes the output."""

    def forward(self, x, memory=None):
        values = [*(memory or []), self.value(x)]
        weights = self.weights(self.make(x, len(values)))
        return weighted_sum(weights.flip(-1), values), values


class NewestOnly(Fixed):
    def forward(self, x, memory=None):
        values = [*(memory or []), self.value(x)]
        weights = self.weights(self.make(x, len(values)))
        return weighted_sum(weights[:, :, -1:], values[-1:]), values


class Appends(Fixed):
    def forward(self, x, memory=None):
        memory = [] if memory is None else memory
        memory.append(self.value(x))
        return weighted_sum(self.weights(self.make(x, len(memory))), memory), memory


class Detached(Fixed):
    def forward(self, x, memory=None):
        values = [*(memory or []), self.value(x)]
        return weighted_sum(self.weights(self.make(x, len(values)).detach()), values), values


class NoReLU(Fixed):
    relu_after_norm = False


class FewLayers(Fixed):
    def __init__(self, channels):
        super().__init__(channels)
        self.scores = nn.Parameter(torch.zeros(channels // self.head_dim, 9))


class DenseValue(Fixed):
    def __init__(self, channels):
        super().__init__(channels)
        self.value = nn.Conv2d(channels, channels, 3, padding=1, bias=False)


class NoScores(Fixed):
    def __init__(self, channels):
        super().__init__(channels)
        del self.scores
        self.scores = torch.zeros(channels // self.head_dim, 32)


class Louder(Fixed):
    def forward(self, x, memory=None):
        output, memory = super().forward(x, memory)
        return 2 * output, memory


class NaN(Fixed):
    def make(self, x, t):
        return super().make(x, t) * math.nan


class NoMemory(Fixed):
    def forward(self, x, memory=None):
        return super().forward(x, memory)[0]


class Nothing(Fixed):
    def forward(self, x, memory=None):
        return None


def test_scores_by_position_pass_too():
    assert check_fixed_weights.judge(ByPosition) == ("passed", "passed")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (ByDistanceInOneNumber, "take softmax(a)"),
        (SquashedScores, "take softmax(a)"),
        (Shares, "take softmax(a)"),
        (CutTooLate, "cut off"),
        (OverHeads, "over the heads"),
        (PerImage, "between the images of one batch"),
        (PerBatch, "change with the images"),  # agrees within a batch
        (Uniform, "uniform control"),
        (SameHeads, "both heads"),  # agrees with one head
        (BigHeads, "it should be (2, 2, 1)"),
        (Unseen, "nothing passes through"),
        (SeenElsewhere, "opposite order"),  # agrees at t = 1
        (NewestOnly, "newest value only"),  # agrees at t = 1
        (Appends, "in place"),
        (Detached, "gets no gradient"),
        (NoReLU, "relu_after_norm = True"),
        # enough for a net of nine layers a stage
        (FewLayers, "at layer 10 of a stage of 32"),
        (DenseValue, "value_convolution(channels)"),
        (NoScores, "no parameter but the value's"),
        (Louder, "not the sum of weights"),
        (NaN, "NaN"),
        (NoMemory, "return two things"),
        (UniformMean, "nn.Identity()"),
        (MRLABase, "query or a key"),
        (lambda channels: channels, "make a module"),
    ],
)
def test_wrong_attentions_are_named(answer, words):
    assert_wrong(check_fixed_weights, answer, words)


def test_a_module_that_does_nothing_yet_is_a_stub():
    assert check_fixed_weights.judge(Nothing)[0] == "not attempted"
