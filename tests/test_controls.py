"""The controls: each is the attention it stands beside, with one thing taken away."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_tools import assert_equal, gradient_check, hold_weights, make_layers, make_maps, run_stage

from mrla_minimal import (
    DepthwiseCarry,
    DepthwiseCarryReleased,
    DepthwiseGated,
    DepthwiseValue,
    MRLABase,
    MRLALight,
    UniformMean,
)

CARRYING = (DepthwiseCarry, DepthwiseCarryReleased)
CONTROLS = (DepthwiseValue, DepthwiseGated, *CARRYING, UniformMean)
every_control = pytest.mark.parametrize("control", CONTROLS)
FEW = settings(max_examples=15, deadline=None, derandomize=True)
SEED = st.integers(0, 10_000)


@st.composite
def stage_sizes(draw):
    head_dim = draw(st.integers(1, 4))
    return {"channels": head_dim * draw(st.integers(1, 3)), "head_dim": head_dim,
            "batch": draw(st.integers(1, 3)), "height": draw(st.integers(1, 4)),
            "width": draw(st.integers(1, 3)), "count": draw(st.integers(1, 4))}


def stage(attention, seed=0, *, channels=6, head_dim=2, batch=2, height=4, width=3, count=3):
    layers = make_layers(attention, count, channels, seed=seed, head_dim=head_dim)
    return layers, make_maps(count, batch, channels, height, width, seed=seed + 1)


def twins(control, attention, seed, sizes):
    """Layers of a control with what it shares of the attention's parameters, the attention's, and maps."""
    layers, maps = stage(attention, seed, **sizes)
    controls, _ = stage(control, seed + 5, **sizes)
    for twin, layer in zip(controls, layers, strict=True):
        shared = {name: tensor for name, tensor in layer.state_dict().items() if name in twin.state_dict()}
        twin.load_state_dict(shared)
    return controls, layers, maps


def assert_same_stage(controls, layers, maps):
    for output, wanted in zip(run_stage(controls, maps), run_stage(layers, maps), strict=True):
        assert_equal(output, wanted)


# What each is


@FEW
@given(stage_sizes(), SEED)
def test_depthwise_is_v_alone(sizes, seed):
    layers, maps = stage(DepthwiseValue, seed, **sizes)
    for layer, x in zip(layers, maps, strict=True):
        output, memory = layer(x)
        assert memory is None
        assert_equal(output, layer.value(x))


@FEW
@given(stage_sizes(), SEED)
def test_depthwise_carry_adds_up_scaled_values(sizes, seed):
    layers, maps = stage(DepthwiseCarry, seed, **sizes)
    carried = torch.zeros_like(maps[0])
    for layer, x, output in zip(layers, maps, run_stage(layers, maps), strict=True):
        value = layer.value(x)
        channels = range(x.shape[1])
        carried = torch.stack([layer.lambda_o[c] * carried[:, c] + value[:, c] for c in channels], dim=1)
        assert_equal(output, carried)


@FEW
@given(stage_sizes(), SEED)
def test_uniform_is_the_mean_of_the_cached_values(sizes, seed):
    layers, maps = stage(UniformMean, seed, **sizes)
    values = [layer.value(x) for layer, x in zip(layers, maps, strict=True)]
    for t, output in enumerate(run_stage(layers, maps), start=1):
        assert_equal(output, torch.stack(values[:t]).mean(dim=0))


# What each is beside the attention it controls for


@FEW
@given(stage_sizes(), SEED)
def test_base_held_at_one_over_t_is_uniform(sizes, seed):
    controls, layers, maps = twins(UniformMean, MRLABase, seed, sizes)
    for layer in layers:
        hold_weights(layer, lambda weights: torch.full_like(weights, 1 / weights.shape[-1]))
    assert_same_stage(controls, layers, maps)


@FEW
@given(stage_sizes(), SEED)
def test_light_with_its_gate_held_at_one_is_depthwise_carry(sizes, seed):
    controls, layers, maps = twins(DepthwiseCarry, MRLALight, seed, sizes)
    for layer in layers:
        hold_weights(layer, torch.ones_like)
    assert_same_stage(controls, layers, maps)


@FEW
@given(stage_sizes(), SEED)
def test_light_with_lambda_zero_is_depthwise_gated(sizes, seed):
    controls, layers, maps = twins(DepthwiseGated, MRLALight, seed, sizes)
    for layer in layers:
        torch.nn.init.zeros_(layer.lambda_o)
    assert_same_stage(controls, layers, maps)


@FEW
@given(stage_sizes(), SEED)
def test_gated_with_its_gate_held_at_one_and_carry_with_lambda_zero_are_depthwise(sizes, seed):
    controls, gated, maps = twins(DepthwiseValue, DepthwiseGated, seed, sizes)
    for layer in gated:
        hold_weights(layer, torch.ones_like)
    assert_same_stage(controls, gated, maps)
    controls, carrying, maps = twins(DepthwiseValue, DepthwiseCarry, seed, sizes)
    for layer in carrying:
        torch.nn.init.zeros_(layer.lambda_o)
    assert_same_stage(controls, carrying, maps)


@pytest.mark.parametrize(("control", "attention"), [
    (UniformMean, MRLABase), (DepthwiseCarry, MRLALight), (DepthwiseGated, MRLALight),
])
def test_left_alone_they_differ(control, attention):
    controls, layers, maps = twins(control, attention, 0, {})
    assert (run_stage(controls, maps)[1] - run_stage(layers, maps)[1]).abs().max() > 0.1


@every_control
def test_gradients(control):
    (layer,), maps = stage(control, count=1, channels=4)
    values, = make_maps(1, 2, 4, 4, 3, seed=9)
    memories = dict.fromkeys(CARRYING, [values])
    assert gradient_check(layer, *maps, *memories.get(control, []))


@pytest.mark.parametrize("control", [UniformMean, DepthwiseCarry])
def test_the_last_output_teaches_every_layer(control):
    layers, maps = stage(control)
    kernels = [layer.value.weight for layer in layers]
    for gradient in torch.autograd.grad(run_stage(layers, maps)[-1].sum(), kernels, materialize_grads=True):
        assert gradient.abs().max() > 1e-3


def tensors_of(memory):
    if memory is None:
        return []
    return memory if isinstance(memory, list) else [memory]


@every_control
def test_a_memory_is_a_value(control):
    layers, maps = stage(control, count=4)
    _, memory = layers[1](maps[1], layers[0](maps[0])[1])
    kept = [tensor.clone() for tensor in tensors_of(memory)]
    output, further = layers[2](maps[2], memory)
    layers[3](maps[3], further)
    layers[3](maps[3], memory)
    assert torch.equal(layers[2](maps[2], memory)[0], output)
    assert len(tensors_of(memory)) == len(kept)
    assert all(torch.equal(now, then) for now, then in zip(tensors_of(memory), kept, strict=True))


# What they are made of, and what they refuse


@every_control
def test_parameters_and_what_a_block_reads_off_the_class(control):
    layer = control(64)
    shapes = {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()}
    wanted = {"value.weight": (64, 1, 3, 3)}
    if control is DepthwiseGated:
        wanted |= {"query.weight": (1, 1, 3), "key.weight": (1, 1, 3)}
    if control in CARRYING:
        wanted |= {"lambda_o": (64,)}
    assert shapes == wanted
    assert getattr(layer, "relu_after_norm", False) == (control is UniformMean)
    assert getattr(layer, "takes_block_input", False) == (control is DepthwiseCarryReleased)
    assert getattr(layer, "is_gate", False) == hasattr(layer, "weights") == (control is DepthwiseGated)


def test_the_released_carry_computes_what_its_parent_does():
    assert DepthwiseCarryReleased.forward is DepthwiseCarry.forward
    assert DepthwiseCarryReleased.__init__ is DepthwiseCarry.__init__


def test_lambda_o_has_a_gradient_at_the_first_layer_too():
    (layer,), (x,) = stage(DepthwiseCarry, count=1)
    layer(x)[0].sum().backward()
    assert layer.lambda_o.grad is not None and not layer.lambda_o.grad.any()


@every_control
@pytest.mark.parametrize(("x", "message"), [
    (torch.zeros(8, 4, 4), r"x must have shape \(batch, 8, height, width\), not \(8, 4, 4\)"),
    (torch.zeros(2, 4, 4, 4), r"x must have shape \(batch, 8, height, width\), not \(2, 4, 4, 4\)"),
    (torch.zeros(2, 8, 4, 4).long(), "x must hold floating-point numbers, not torch.int64"),
])
def test_bad_maps_are_refused(control, x, message):
    with pytest.raises(ValueError, match=message):
        control(8)(x)


X = torch.zeros(2, 8, 4, 4)


@pytest.mark.parametrize(("control", "memory", "message"), [
    (DepthwiseCarry, [X], r"memory must be None or one tensor of shape \(2, 8, 4, 4\), not a list"),
    (DepthwiseCarry, X[:1], r"memory must be .* \(2, 8, 4, 4\), like x, not \(1, 8, 4, 4\)"),
    (DepthwiseCarry, X.int(), "memory must be a floating-point tensor .* of torch.int32"),
    (UniformMean, X, r"memory must be None or a list of tensors of shape \(2, 8, 4, 4\), not a Tensor"),
    (UniformMean, [(X, X)], r"each entry of memory must be a tensor of shape \(2, 8, 4, 4\), not a tuple"),
    (UniformMean, [X, X[..., :2]], r"memory must be .* \(2, 8, 4, 4\), like x, not \(2, 8, 4, 2\)"),
    (UniformMean, [X.long()], "memory must be a floating-point tensor .* of torch.int64"),
])
def test_bad_memories_are_refused(control, memory, message):
    with pytest.raises(ValueError, match=message):
        control(8)(X, memory)


def test_a_head_dim_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="head_dim must divide channels=8 .*, not 3"):
        DepthwiseGated(8, head_dim=3)
