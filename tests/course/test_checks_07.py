"""The checkers of notebook 07: plausible mistakes are named."""

import math

import pytest
import torch
from notebook_answers import assert_wrong
from torch import nn
from torch.nn import functional as F

from mrla_minimal.course.checks.training import check_accuracy, check_fading_mean, check_trapezoid


def rate_answer(warmup=None, start=None, fall=None):
    """The trapezoid, where each keyword makes one mistake."""
    def answer(step, total_steps, warmup_steps, peak):
        if step < warmup_steps:
            return warmup(step, warmup_steps, peak) if warmup else peak * (step + 1) / warmup_steps
        half = start(total_steps, warmup_steps) if start else total_steps // 2
        if step < half:
            return peak
        return (
            fall(step, total_steps, half, peak)
            if fall
            else peak * (total_steps - step) / (total_steps - half)
        )

    return answer


def always_divides(step, total_steps, warmup_steps, peak):
    return min(peak * (step + 1) / warmup_steps, rate_answer()(step, total_steps, 0, peak))


def stops_at_half_of_the_rest(total_steps, warmup_steps):
    return warmup_steps + (total_steps - warmup_steps) // 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (rate_answer(warmup=lambda step, warmup, peak: peak * step / warmup), "first rate is 0"),
        (rate_answer(warmup=lambda step, warmup, peak: peak), "in the warm-up, at step 0"),
        # agrees at peak 1
        (rate_answer(warmup=lambda step, warmup, peak: (step + 1) / warmup), "in the warm-up"),
        (
            rate_answer(fall=lambda step, total, half, peak: peak * (total - 1 - step) / (total - 1 - half)),
            "last step has rate 0",
        ),
        (rate_answer(start=lambda total, warmup: warmup), "from the end of the warm-up on"),
        # agrees without warm-up
        (rate_answer(start=stops_at_half_of_the_rest), "on the way down"),
        (rate_answer(fall=lambda step, total, half, peak: peak), "on the way down"),
        (
            rate_answer(fall=lambda step, total, half, peak: peak * (total - step) / total),
            "on the way down, at step 20",
        ),
        (
            rate_answer(
                fall=lambda step, total, half, peak: (
                    peak * 0.5 * (1 + math.cos(math.pi * (step - half) / (total - half)))
                )
            ),
            "on the way down, at step 21",
        ),
        (always_divides, "ZeroDivisionError"),
        (rate_answer(fall=lambda step, total, half, peak: math.nan), "is nan"),
        (lambda step, total_steps, warmup_steps, peak: [peak], "should be one number, not of type list"),
    ],
)
def test_wrong_schedules_are_named(answer, words):
    assert_wrong(check_trapezoid, answer, words)


def test_a_rate_as_a_tensor_is_a_rate():
    assert check_trapezoid.judge(lambda *arguments: torch.tensor(rate_answer()(*arguments)))[0] == "passed"


def accuracy_answer(mode=nn.Module.eval, restore="back", gradient=False, sizes=None, reduce=None):
    """The accuracy, where each keyword makes one mistake."""
    def answer(model, images, labels, batch_size):
        was_training = model.training
        mode(model)
        right = []
        with torch.set_grad_enabled(gradient):
            for start in sizes(len(images), batch_size) if sizes else range(0, len(images), batch_size):
                logits = model(images[start : start + batch_size])
                right.append((logits.argmax(dim=1) == labels[start : start + batch_size]).double())
        if restore != "not":
            model.train(was_training if restore == "back" else True)
        return reduce(right) if reduce else torch.cat(right).mean().item()
    return answer


def all_at_once(model, images, labels, batch_size):
    return accuracy_answer()(model, images, labels, len(images))


def without_dropout_only(model):
    model.eval()
    model.norm.train()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (accuracy_answer(mode=lambda model: None), "BN's running statistics"),
        (accuracy_answer(mode=nn.Module.train), "BN's running statistics"),
        (accuracy_answer(mode=without_dropout_only), "BN's running statistics"),
        (accuracy_answer(restore="not"), "was in training mode before and is in evaluation mode now"),
        # agrees within training
        (accuracy_answer(restore="train"), "was in evaluation mode before and is in training mode now"),
        (accuracy_answer(gradient=True), "torch.no_grad()"),
        (all_at_once, "10 images at once"),
        (
            accuracy_answer(reduce=lambda right: torch.stack([part.mean() for part in right]).mean()),
            "the last batch is smaller",
        ),
        (
            accuracy_answer(sizes=lambda total, size: range(0, total - size + 1, size)),
            "last, smaller batch is missing",
        ),
        (accuracy_answer(reduce=lambda right: 100 * torch.cat(right).mean()), "per cent"),
        (accuracy_answer(reduce=lambda right: torch.cat(right).sum()), "divide by the number"),
        (accuracy_answer(reduce=lambda right: 1 - torch.cat(right[:-1]).mean()), "it should be 0.5"),
        (accuracy_answer(reduce=lambda right: math.nan), "is nan"),
        (lambda model, images, labels, batch_size: 0.5, "never calls the model"),
        (lambda model, images, labels, batch_size: (labels == labels).double(), "should be one number"),
    ],
)
def test_wrong_accuracies_are_named(answer, words):
    assert_wrong(check_accuracy, answer, words)


class Right(nn.Module):
    """The fading mean; the subclasses make one mistake each."""

    def __init__(self, channels):
        super().__init__()
        self.value = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.fade = nn.Parameter(torch.zeros(channels))

    def keep(self):
        return torch.sigmoid(self.fade)[:, None, None]

    def mix(self, memory, value):
        return self.keep() * memory + (1 - self.keep()) * value

    def start(self, value):
        return value

    def forward(self, x, memory=None):
        value = self.value(x)
        output = self.start(value) if memory is None else self.mix(memory, value)
        return output, output


class StartsFaded(Right):
    def start(self, value):
        return (1 - self.keep()) * value


class Swapped(Right):
    def mix(self, memory, value):
        return (1 - self.keep()) * memory + self.keep() * value      # agrees at the start, where keep is 1/2


class NoSigmoid(Right):
    def keep(self):
        return self.fade[:, None, None]


class OneShare(Right):
    def keep(self):
        return torch.sigmoid(self.fade).mean()      # agrees at the start


class Half(Right):
    def mix(self, memory, value):
        return (memory + value) / 2      # agrees at the start


class WholeEntry(Right):
    def mix(self, memory, value):
        return self.keep() * memory + value


class Forgetful(Right):
    def mix(self, memory, value):
        return value


class HandsOnTheValue(Right):
    def forward(self, x, memory=None):
        return super().forward(x, memory)[0], self.value(x)


class InPlace(Right):
    def mix(self, memory, value):
        memory *= self.keep()
        return memory + (1 - self.keep()) * value


class Detached(Right):
    def keep(self):
        return torch.sigmoid(self.fade.detach())[:, None, None]


class DetachedMemory(Right):
    def forward(self, x, memory=None):
        output, _ = super().forward(x, memory)
        return output, output.detach()


class HiddenState(Right):
    last = None

    def forward(self, x, memory=None):
        output, _ = super().forward(x, self.last if memory is None else memory)
        self.last = output
        return output, output


class LastOfStage(Right):
    def forward(self, x, memory=None):
        output, _ = super().forward(x, memory)
        return output


class PlainTensor(Right):
    def __init__(self, channels):
        super().__init__(channels)
        del self.fade
        self.fade = torch.zeros(channels)


class ManyInOne(Right):
    def __init__(self, channels):
        super().__init__(channels)
        self.value = nn.Conv2d(channels, channels, 3, padding=1, bias=False)


class WithBias(Right):
    def __init__(self, channels):
        super().__init__(channels)
        self.value = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)


class RandomStart(Right):
    def __init__(self, channels):
        super().__init__(channels)
        self.fade = nn.Parameter(torch.randn(channels))


class NotANumber(Right):
    def mix(self, memory, value):
        return super().mix(memory, value) * math.nan


class FlippedValue(Right):
    def forward(self, x, memory=None):
        return super().forward(x.flip(3), memory)


class Viewed(Right):
    """Right on plain maps; training keeps its maps channels last."""

    def mix(self, memory, value):
        return super().mix(memory, value.view(len(value), -1).view(value.shape))


class Lerped(Right):
    """Right in one type; under autocast the maps are bfloat16 and the share float32."""

    def mix(self, memory, value):
        return torch.lerp(value, memory, self.keep())


def small_only(channels):
    """Right on the checker's own maps alone."""
    if channels == 6:
        return Right(channels)
    raise ValueError("no other width")


@pytest.mark.parametrize(("answer", "words"), [
    (StartsFaded, "at layer 1 your output is (1 - keep) * v"),
    (FlippedValue, "at layer 1 your output is not v"),
    (Swapped, "the wrong way round"),
    (NoSigmoid, "put a sigmoid round it"),
    (OneShare, "channel by channel"),
    (Half, "whatever self.fade is"),
    (WholeEntry, "comes in whole"),
    (Forgetful, "the memory is missing"),
    (HandsOnTheValue, "the output O^t itself"),
    (InPlace, "in place"),
    (Detached, "no gradient reaches self.fade"),
    (DetachedMemory, "reaches layer 1"),
    (HiddenState, "outlives the memory"),
    (LastOfStage, "return two things"),
    (PlainTensor, "nn.Parameter"),
    (ManyInOne, "depthwise"),
    (WithBias, "has a bias"),
    (RandomStart, "start at 0"),
    (NotANumber, "contains NaN"),
    (small_only, "no other width"),
    (Viewed, "use reshape or flatten"),
    (Lerped, "bring them to one type"),
    (lambda channels: F.relu, "an nn.Module"),
])
def test_wrong_fading_means_are_named(answer, words):
    assert_wrong(check_fading_mean, answer, words)

