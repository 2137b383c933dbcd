"""SqueezeExcitation and EfficientChannelAttention: the released code, the formulas, what they refuse."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_tools import assert_equal, gradient_check, load_golden, make_layers, make_maps
from torch import nn

from mrla_minimal import EfficientChannelAttention, SqueezeExcitation

FEW = settings(max_examples=15, deadline=None, derandomize=True)
SIZE, SEED = st.integers(1, 4), st.integers(0, 10_000)
every_attention = pytest.mark.parametrize("attention", [SqueezeExcitation, EfficientChannelAttention])


def test_squeeze_excitation_agrees_with_the_released_code():
    golden = load_golden("se_c32.npz")
    module = SqueezeExcitation(32).double()
    module.load_state_dict({"squeeze.weight": golden["fc_0_weight"], "excite.weight": golden["fc_2_weight"]})
    assert_equal(module(golden["x"]), golden["out"])


def test_efficient_channel_attention_agrees_with_the_released_code():
    golden = load_golden("eca_c32.npz")
    module = EfficientChannelAttention(32).double()
    module.load_state_dict({"convolution.weight": golden["conv_weight"]})
    assert_equal(module(golden["x"]), golden["out"])


def sigmoid(number):
    return 1 / (1 + math.exp(-number))


@FEW
@given(st.integers(1, 9), st.integers(1, 4), SIZE, SIZE, SIZE, SEED)
def test_squeeze_excitation_is_its_formula(channels, reduction, batch, height, width, seed):
    module, = make_layers(SqueezeExcitation, 1, channels, seed=seed, reduction=reduction)
    x, = make_maps(1, batch, channels, height, width, seed=seed)
    squeeze, excite, output = module.squeeze.weight.tolist(), module.excite.weight.tolist(), module(x)
    assert len(squeeze) == max(1, channels // reduction)
    for image in range(batch):
        pooled = [x[image, c].sum().item() / (height * width) for c in range(channels)]
        hidden = [max(0.0, sum(w * p for w, p in zip(row, pooled, strict=True))) for row in squeeze]
        for c in range(channels):
            gate = sigmoid(sum(w * h for w, h in zip(excite[c], hidden, strict=True)))
            assert_equal(output[image, c], gate * x[image, c])


@FEW
@given(st.integers(1, 9), st.sampled_from([1, 3, 5]), SIZE, SIZE, SIZE, SEED)
def test_efficient_channel_attention_is_its_formula(channels, taps, batch, height, width, seed):
    module, = make_layers(EfficientChannelAttention, 1, channels, seed=seed, kernel_size=taps)
    x, = make_maps(1, batch, channels, height, width, seed=seed)
    kernel, output = module.convolution.weight.flatten().tolist(), module(x)
    for image in range(batch):
        pooled = [x[image, c].sum().item() / (height * width) for c in range(channels)]
        for c in range(channels):
            near = [(tap, c + i - taps // 2) for i, tap in enumerate(kernel)]
            gate = sigmoid(sum(tap * pooled[n] for tap, n in near if 0 <= n < channels))
            assert_equal(output[image, c], gate * x[image, c])


@every_attention
def test_gradients(attention):
    module, = make_layers(attention, 1, 6)
    if attention is SqueezeExcitation:          # more than one hidden channel, and none silent
        module, = make_layers(attention, 1, 6, reduction=2)
        nn.init.uniform_(module.squeeze.weight, 0.1, 1.0)
    x, = make_maps(1, 2, 6, 3, 2)
    assert gradient_check(module, x.abs() + 0.1)


@pytest.mark.parametrize(("channels", "reduced"), [(8, 1), (16, 1), (31, 1), (32, 2), (64, 4), (2048, 128)])
def test_squeeze_excitation_reduces_by_sixteen_and_keeps_one(channels, reduced):
    parameters = SqueezeExcitation(channels).named_parameters()
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters}
    assert shapes == {"squeeze.weight": (reduced, channels), "excite.weight": (channels, reduced)}


@pytest.mark.parametrize(("channels", "taps"), [(8, 3), (127, 3), (128, 5), (2048, 7)])
def test_efficient_channel_attention_has_its_taps_alone(channels, taps):
    (name, kernel), = EfficientChannelAttention(channels).named_parameters()
    assert name == "convolution.weight" and kernel.shape == (1, 1, taps)


@every_attention
@pytest.mark.parametrize(("x", "message"), [
    (torch.zeros(8, 4, 4), r"x must have shape \(batch, 8, height, width\), not \(8, 4, 4\)"),
    (torch.zeros(2, 9, 4, 4), r"x must have shape \(batch, 8, height, width\), not \(2, 9, 4, 4\)"),
    (torch.zeros(2, 8, 4, 4, dtype=torch.int32), "x must hold floating-point numbers, not torch.int32"),
])
def test_bad_maps_are_refused(attention, x, message):
    with pytest.raises(ValueError, match=message):
        attention(8)(x)


@pytest.mark.parametrize(("build", "message"), [
    (lambda: SqueezeExcitation(0), "channels must be a positive integer, not 0"),
    (lambda: SqueezeExcitation(8, reduction=0), "reduction must be a positive integer, not 0"),
    (lambda: SqueezeExcitation(8, reduction=2.0), "reduction must be a positive integer, not 2.0"),
    (lambda: EfficientChannelAttention(-8), "channels must be a positive integer, not -8"),
    (lambda: EfficientChannelAttention(8, kernel_size=2),
     "kernel_size must be a positive odd integer, not 2"),
])
def test_bad_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
