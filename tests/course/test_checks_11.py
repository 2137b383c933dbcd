"""The checkers of notebook 11: plausible mistakes are named."""

import math

import pytest
import torch
from notebook_answers import assert_wrong, read_answers
from torch import nn

from mrla_minimal import MRLABase, MRLALight, cifar_resnet, eca_kernel_size, imagenet_resnet
from mrla_minimal.course.checks import costs
from mrla_minimal.course.checks.costs import check_deepest_stage, check_extra_parameters, check_windowed_base
from mrla_minimal.lab.cost import count_macs, count_parameters, saved_activation_bytes

NAME = "11_what_it_costs.ipynb"


# Exercise 1


def total(one_block):
    return lambda widths: sum(one_block(channels) for channels in widths)


def taps(channels):
    return eca_kernel_size(channels)


def right_total(widths):
    return total(lambda c: 2 * taps(c) + 12 * c)(widths)


def empties_its_list(widths):
    count = 0
    while widths:
        count += right_total([widths.pop()])
    return count


@pytest.mark.parametrize(("answer", "words"), [
    # lambda_o, or half of the BN, is missing
    (total(lambda c: 2 * taps(c) + 11 * c), "not"),
    (total(lambda c: 2 * taps(c) + 10 * c), "the BN after the attention is missing"),
    (total(lambda c: 2 * taps(c) + 9 * c), "lambda_o and the BN are missing"),
    (total(lambda c: 2 * taps(c) + 14 * c), "running mean and variance"),
    (total(lambda c: taps(c) + 12 * c), "two convolutions along the channels, one for the query"),
    (total(lambda c: 3 * taps(c) + 12 * c), "none for the value"),
    # agrees up to 127 channels
    (total(lambda c: 6 + 12 * c), "eca_kernel_size(channels) says how many"),
    (total(lambda c: 2 * taps(c) + 9 * c * c + 3 * c), "depthwise"),
    (total(lambda c: 2 * c * c + 12 * c), "whole matrices"),
    (total(lambda c: 2 * taps(c) + 2 + 13 * c), "none of MRLA's has"),
    (lambda widths: right_total(widths[:1]), "first block only"),                    # agrees with one block
    (lambda widths: right_total(widths[-1:]), "last block only"),
    # agrees if all widths differ
    (lambda widths: right_total(set(widths)), "you count"),
    (total(lambda c: 27 * c * c), "even more than ordinary"),
    (empties_its_list, "in place"),
    (lambda widths: float("nan"), "NaN"),
    (lambda widths: float("inf"), "whole number"),
    (lambda widths: right_total(widths) + 0.5, "whole number"),
    (lambda widths: f"{right_total(widths):,}", "should be a number"),
    (lambda widths: [2 * taps(c) + 12 * c for c in widths], "should be a number"),
])
def test_wrong_totals_are_named(answer, words):
    assert_wrong(check_extra_parameters, answer, words)


def test_the_total_is_a_real_nets():
    plain, light = cifar_resnet(20), cifar_resnet(20, layer_attention="mrla-light")
    widths = [block.channels for stage in light.stages for block in stage]
    assert right_total(widths) == count_parameters(light) - count_parameters(plain)
    with torch.device("meta"):
        widths = [block.channels for stage in imagenet_resnet(50).stages for block in stage]
    assert read_answers(NAME, "solution")[check_extra_parameters](widths) == right_total(widths) == 181_420


# Exercise 2


def depth_answer(formulas=None, bytes_a_number=4, batched=True, strict=False, one_more=False, at_least=0):
    """The deepest stage, where each keyword makes one mistake."""
    kept = costs.KEPT | (formulas or {})

    def answer(form, budget, batch, channels, side):
        one_map = bytes_a_number * (batch if batched else 1) * channels * side * side
        layers = 0
        while kept[form](layers + 1) * one_map < budget + (not strict):
            layers += 1
        return max(layers + one_more, at_least)
    return answer


def right_once():
    calls = []

    def answer(*arguments):
        calls.append(arguments)
        return depth_answer()(*calls[0])
    return answer


@pytest.mark.parametrize(("answer", "words"), [
    (depth_answer({"layer": lambda T: T * (T + 1) // 2}), "feature maps they are made from"),
    (depth_answer({"layer": lambda T: 2 * T}), "you count Eq. 4 as base"),
    # agrees up to T = 1
    (depth_answer({"mrla-base": lambda T: T * (T + 3) // 2}), "you count base as Eq. 4"),
    (depth_answer({"mrla-base": lambda T: T}), "what base hands on"),
    # agrees at T = 1
    (depth_answer({"mrla-light": lambda T: 2 * T}), "each O^(t-1) too"),
    (depth_answer({"mrla-light": lambda T: 3 * T}), "there is no O^(t-1) yet"),
    (depth_answer({"mrla-light": lambda T: T}), "for the form 'mrla-light' and a budget of"),
    (depth_answer(bytes_a_number=1), "takes 4 bytes"),
    (depth_answer(bytes_a_number=2), "layers, which keep"),
    # agrees with a batch of 1
    (depth_answer(batched=False), "every image of the batch"),
    # agrees where some room is left
    (depth_answer(strict=True), "to the last byte"),
    (depth_answer(one_more=True), "the first depth that does not fit"),
    (depth_answer(at_least=1), "not even one layer"),
    (right_once(), "layers, which keep"),
    (lambda *arguments: float("nan"), "NaN"),
    (lambda *arguments: depth_answer()(*arguments) + 0.25, "whole number"),
    (lambda *arguments: -1, "layers, which keep"),
])
def test_wrong_depths_are_named(answer, words):
    assert_wrong(check_deepest_stage, answer, words)


@pytest.mark.parametrize(("form", "attention"), [("mrla-base", MRLABase), ("mrla-light", MRLALight)])
def test_the_checkers_formulas_are_what_is_measured(form, attention):
    images = torch.randn(1, 16, 24, 24)

    def stage(x):
        memory, outputs = None, []
        for layer in layers:
            x = x + 1.0
            output, memory = layer(x, memory)
            outputs.append(output)
        return outputs

    for count in (1, 2, 5):
        layers = [attention(16) for _ in range(count)]
        assert saved_activation_bytes(stage, images) // images.nbytes == costs.KEPT[form](count)


# Exercise 3


def window_class(before=None, after=None, default=3, base=MRLABase):
    """base over a window, from what is cut off the memory before base reads it, and after."""
    class Windowed(base):
        def __init__(self, channels, window=default):
            super().__init__(channels)
            self.window = window

        def forward(self, x, memory=None):
            if before is not None and memory is not None:
                memory = before(memory, self.window)
            output, memory = super().forward(x, memory)
            return output, memory if after is None else after(memory, self.window)
    return Windowed


def newest(memory, window):
    return memory[len(memory) - min(window - 1, len(memory)):]


def pops(memory, window):
    if len(memory) == window:
        memory.pop(0)
    return memory


def poisoned(memory, window):
    return [(key * math.nan, value) for key, value in newest(memory, window)]


class NoWindow(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.base = MRLABase(channels)

    def forward(self, x, memory=None):
        return self.base(x, memory)


class RemembersItself(MRLABase):
    def __init__(self, channels, window=3):
        super().__init__(channels)
        self.window, self.calls = window, 0

    def forward(self, x, memory=None):
        self.calls += 1
        memory = newest(memory, self.window) if memory else None
        return super().forward(x if self.calls < 2 else 2 * x, memory)


class OutputOnly(MRLABase):
    def __init__(self, channels, window=3):
        super().__init__(channels)

    def forward(self, x, memory=None):
        return super().forward(x, memory)[0]


@pytest.mark.parametrize("answer", [
    window_class(before=newest),
    window_class(before=lambda memory, window: newest(memory, window) or None),
    # hands on what the next layer reads, no more
    window_class(after=lambda memory, window: newest(memory, window)),
    window_class(after=lambda memory, window: newest(memory, window) or None),
])
def test_other_right_windows_pass(answer):
    assert check_windowed_base.judge(answer) == ("passed", "passed")


@pytest.mark.parametrize(("answer", "words"), [
    # agrees up to t = window
    (window_class(), "you read every entry"),
    (window_class(after=lambda memory, window: memory[-window:]), "older entries beside your own"),
    (window_class(before=lambda memory, window: memory[: window - 1]), "you keep the oldest entries"),
    # agrees at window 1
    (window_class(before=lambda memory, window: []), "own entry alone"),
    (window_class(before=lambda memory, window: newest(memory, window - 1)), "one entry too few"),
    # agrees for window > 1
    (window_class(before=lambda memory, window: memory[-(window - 1):]), "memory[-0:] is the whole list"),
    (window_class(before=newest, after=lambda memory, window: [*memory, *memory]), "over the 2 newest"),
    # ignores its argument
    (window_class(before=lambda memory, window: newest(memory, 3)), "with window 2"),
    (window_class(before=newest, default=2), "with window 3"),
    (window_class(before=pops), "in place"),
    (window_class(before=poisoned), "contains NaN"),
    (window_class(before=newest, base=MRLALight), "derive it from MRLABase"),
    (NoWindow, "derive it from MRLABase"),
    (MRLABase, "you read every entry"),
    # right on the first call only
    (RemembersItself, "newest entries"),
    (OutputOnly, "return two things"),
    (lambda channels, window=3: "a string", "a class of modules"),
    (lambda: None, "should be built as WindowedBase(channels)"),
    (7, "should be a class"),
])
def test_wrong_windows_are_named(answer, words):
    assert_wrong(check_windowed_base, answer, words)


def test_a_memory_that_only_grows_is_noticed():
    class KeepsAll(MRLABase):
        def __init__(self, channels, window=3):
            super().__init__(channels)
            self.window = window

        def forward(self, x, memory=None):
            everything = memory or []
            output, own = super().forward(x, newest(everything, self.window) or None)
            return output, [*everything, own[-1]]

    assert_wrong(check_windowed_base, KeepsAll, "layer 4 hands on 4 entries")


def test_a_window_saves_macs_and_not_what_training_keeps():
    windowed = read_answers(NAME, "solution")[check_windowed_base]
    models = [cifar_resnet(38, width=8, layer_attention=form) for form in ("mrla-base", windowed)]
    base, own = (count_macs(model, 16) for model in models)
    entries = sum(
        block.channels * side * side
        for stage, side in zip(models[0].stages, (16, 8, 4), strict=True)
        for block in stage[:1]
    )
    # Layers 4, 5, 6 read 3 entries each: 6 sums of maps less, and as many q.k
    assert base - own == 6 * entries + 6 * (8 + 16 + 32)
    images = torch.randn(2, 3, 32, 32)
    base, own = (saved_activation_bytes(model, images) for model in models)
    assert 0.98 * base < own <= base
    assert count_parameters(models[0]) == count_parameters(models[1])
