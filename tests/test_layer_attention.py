"""LayerAttention (Eq. 4), MRLABase (Eq. 6), MRLALight (Eq. 8): the released code, the formulas, each other.

golden/*.npz holds inputs, weights, outputs and gradients of the released modules, computed in float64.
"""

import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_tools import (
    assert_equal,
    gradient_check,
    hold_weights,
    load_golden,
    make_layers,
    make_maps,
    run_stage,
)
from torch import nn

from mrla_minimal import LayerAttention, MRLABase, MRLALight, MRLALightReleased

ATTENTIONS = (LayerAttention, MRLABase, MRLALight)
every_attention = pytest.mark.parametrize("attention", ATTENTIONS)

FEW = settings(max_examples=20, deadline=None, derandomize=True)
LAYERS = st.integers(1, 4)
SEED = st.integers(0, 10_000)


@st.composite
def stage_sizes(draw):
    """Keyword arguments of `stage`: a few small heads on small, not square maps."""
    head_dim = draw(st.integers(1, 4))
    return {"channels": head_dim * draw(st.integers(1, 3)), "head_dim": head_dim,
            "kernel_size": draw(st.sampled_from([None, 1, 3, 5])), "batch": draw(st.integers(1, 3)),
            "height": draw(st.integers(1, 4)), "width": draw(st.integers(1, 3))}


def stage(attention, count, seed=0, *, channels=6, head_dim=2, kernel_size=3, batch=2, height=4, width=3):
    """`count` layers and a map for each."""
    layers = make_layers(attention, count, channels, seed=seed, head_dim=head_dim, kernel_size=kernel_size)
    return layers, make_maps(count, batch, channels, height, width, seed=seed + 1)


# The released code


def golden_layer(attention, golden, query, key, value):
    head_dim, kernel_size = int(golden["head_dim"]), int(golden["kernel_size"])
    layer = attention(len(value), head_dim, kernel_size).double()
    projections = (layer.query, layer.key, layer.value)
    with torch.no_grad():
        for projection, given in zip(projections, (query, key, value), strict=True):
            projection.weight.copy_(given)
    return layer


def golden_base(name):
    """The golden arrays, their layers and maps, after one forward and one backward pass."""
    golden = load_golden(name)
    weights = zip(golden["Wq"], golden["Wk"], golden["Wv"], strict=True)
    layers = [golden_layer(MRLABase, golden, query, key, value) for query, key, value in weights]
    maps = [x.clone().requires_grad_() for x in golden["x"]]
    outputs = run_stage(layers, maps)
    torch.autograd.backward(outputs, list(golden["grad_out"]))
    return golden, layers, maps, outputs


@pytest.mark.parametrize("name", ["mrla_base_c16_h4_t4.npz", "mrla_base_c32_h2_t3.npz"])
def test_base_agrees_with_the_released_code(name):
    golden, layers, maps, outputs = golden_base(name)
    assert len(outputs) == int(golden["T"])
    assert_equal(torch.stack(outputs), golden["out"])
    assert_equal(torch.stack([x.grad for x in maps]), golden["grad_x"])
    assert_equal(torch.stack([layer.query.weight.grad for layer in layers]), golden["grad_Wq"])
    assert_equal(torch.stack([layer.key.weight.grad for layer in layers]), golden["grad_Wk"])
    assert_equal(torch.stack([layer.value.weight.grad for layer in layers]), golden["grad_Wv"])


@pytest.mark.parametrize("name", ["mrla_light_c16_h1.npz", "mrla_light_c32_h4.npz"])
def test_light_agrees_with_the_released_code(name):
    golden = load_golden(name)
    layer = golden_layer(MRLALight, golden, golden["Wq"], golden["Wk"], golden["Wv"])
    with torch.no_grad():
        layer.lambda_o.zero_()
        assert_equal(layer(golden["x"], golden["o_prev"])[0], golden["attn"])
        layer.lambda_o.copy_(golden["lambda_o"])
    x, carried = golden["x"].clone().requires_grad_(), golden["o_prev"].clone().requires_grad_()
    output, memory = layer(x, carried)
    output.backward(golden["grad_out"])
    assert memory is output
    assert_equal(output, golden["out"])
    assert_equal(x.grad, golden["grad_x"])
    assert_equal(layer.query.weight.grad, golden["grad_Wq"])
    assert_equal(layer.key.weight.grad, golden["grad_Wk"])
    assert_equal(layer.value.weight.grad, golden["grad_Wv"])
    assert_equal(carried.grad, golden["lambda_o"][:, None, None] * golden["grad_out"])
    assert_equal(layer.lambda_o.grad, (golden["o_prev"] * golden["grad_out"]).sum(dim=(0, 2, 3)))


# The formulas, number by number


def slow_projection(convolution, pooled):
    """Query or key: the taps slide along the channels, beyond whose ends there is nothing."""
    taps = convolution.weight.detach().flatten().tolist()
    reach = len(taps) // 2
    return [sum(tap * pooled[c + i - reach] for i, tap in enumerate(taps) if 0 <= c + i - reach < len(pooled))
            for c in range(len(pooled))]


def slow_value(convolution, x):
    """x (channels, height, width) as an array -> each channel's own 3x3 kernel slid over it."""
    kernels = convolution.weight.detach().numpy()
    channels, height, width = x.shape
    output = np.zeros_like(x)
    for c, i, j in np.ndindex(channels, height, width):
        for a, b in np.ndindex(3, 3):
            if 0 <= i + a - 1 < height and 0 <= j + b - 1 < width:
                output[c, i, j] += kernels[c, 0, a, b] * x[c, i + a - 1, j + b - 1]
    return output


def slow_logit(query, key, head, head_dim):
    return sum(query[c] * key[c] for c in range(head * head_dim, (head + 1) * head_dim)) / math.sqrt(head_dim)


def slow_softmax_attention(layers, features, projects):
    """Eq. 4 and Eq. 6 for one image: `projects(t, s)` makes layer s's key and value that layer t reads."""
    head_dim, pooled, outputs = layers[0].head_dim, [x.mean(axis=(1, 2)).tolist() for x in features], []
    for t, layer in enumerate(layers):
        query = slow_projection(layer.query, pooled[t])
        keys = [slow_projection(projects(t, s).key, pooled[s]) for s in range(t + 1)]
        values = [slow_value(projects(t, s).value, features[s]) for s in range(t + 1)]
        output = np.zeros_like(features[t])
        for c in range(len(output)):
            scores = [math.exp(slow_logit(query, key, c // head_dim, head_dim)) for key in keys]
            weighted = (score * value[c] for score, value in zip(scores, values, strict=True))
            output[c] = sum(weighted) / sum(scores)
        outputs.append(output)
    return outputs


def slow_gate(layer, x):
    """One number a channel: the sigmoid of its head's logit."""
    pooled = x.mean(axis=(1, 2)).tolist()
    query, key = slow_projection(layer.query, pooled), slow_projection(layer.key, pooled)
    logits = (slow_logit(query, key, c // layer.head_dim, layer.head_dim) for c in range(len(x)))
    return [1 / (1 + math.exp(-logit)) for logit in logits]


def slow_light(layers, features):
    """Eq. 8 for one image."""
    carried, outputs = np.zeros_like(features[0]), []
    for layer, x in zip(layers, features, strict=True):
        gate, value, lambda_o = slow_gate(layer, x), slow_value(layer.value, x), layer.lambda_o.tolist()
        carried = np.stack([lambda_o[c] * carried[c] + gate[c] * value[c] for c in range(len(x))])
        outputs.append(carried)
    return outputs


def slow_layer_attention(layers, features):
    return slow_softmax_attention(layers, features, projects=lambda t, s: layers[t])


def slow_base(layers, features):
    return slow_softmax_attention(layers, features, projects=lambda t, s: layers[s])


SLOW = {LayerAttention: slow_layer_attention, MRLABase: slow_base, MRLALight: slow_light}


@every_attention
@FEW
@given(stage_sizes(), st.integers(2, 3), SEED)
def test_attention_is_its_formula_number_by_number(attention, sizes, count, seed):
    layers, maps = stage(attention, count, seed, **sizes)
    outputs = run_stage(layers, maps)
    for image in range(sizes["batch"]):
        slow_outputs = SLOW[attention](layers, [x[image].numpy() for x in maps])
        for output, wanted in zip(outputs, slow_outputs, strict=True):
            assert_equal(output[image].detach(), torch.from_numpy(wanted))


class Stage(nn.Module):
    """Maps -> all outputs, so that gradients through every memory are checked at once."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, *maps):
        return torch.stack(run_stage(self.layers, maps))


@every_attention
def test_gradients_of_every_input_parameter_and_memory(attention):
    layers, maps = stage(attention, 3, channels=4, batch=2, height=2, width=2)
    assert gradient_check(Stage(layers), *maps)


def test_gradients_of_light_with_a_given_memory():
    (layer,), maps = stage(MRLALight, 1, channels=4)
    carried, = make_maps(1, 2, 4, 4, 3, seed=9)
    assert gradient_check(layer, *maps, carried)


# What follows from the equations


@FEW
@given(stage_sizes(), LAYERS, SEED)
def test_eq_4_is_eq_6_when_key_and_value_weights_are_shared(sizes, count, seed):
    base, maps = stage(MRLABase, count, seed, **sizes)
    layer, _ = stage(LayerAttention, count, seed, **sizes)
    for module, twin in zip(base, layer, strict=True):
        module.key, module.value = base[0].key, base[0].value           # one set of them for all layers
        twin.query, twin.key, twin.value = module.query, module.key, module.value
    for wanted, output in zip(run_stage(base, maps), run_stage(layer, maps), strict=True):
        assert_equal(output, wanted)


def test_eq_4_and_eq_6_differ_when_weights_are_not_shared():
    base, maps = stage(MRLABase, 2)
    layer, _ = stage(LayerAttention, 2)
    for module, twin in zip(base, layer, strict=True):
        twin.load_state_dict(module.state_dict())
    first, second = (a - b for a, b in zip(run_stage(base, maps), run_stage(layer, maps), strict=True))
    assert not first.any() and second.abs().max() > 0.1


@FEW
@given(stage_sizes(), st.integers(1, 6), SEED)
def test_eq_8_is_its_unrolled_sum(sizes, count, seed):
    layers, maps = stage(MRLALight, count, seed, **sizes)
    entries = []                                                        # gate * v of each layer alone
    for layer, x in zip(layers, maps, strict=True):
        gate = torch.stack([torch.tensor(slow_gate(layer, image.numpy()), dtype=x.dtype) for image in x])
        entries.append(gate[:, :, None, None] * layer.value(x))
    for t, output in enumerate(run_stage(layers, maps)):
        wanted = torch.zeros_like(output)
        for distance in range(t + 1):
            beta = torch.ones(sizes["channels"], dtype=torch.float64)   # product of the lambdas up to t
            for passed in range(t - distance + 1, t + 1):
                beta = beta * layers[passed].lambda_o
            wanted = wanted + beta[:, None, None] * entries[t - distance]
        assert_equal(output, wanted)


@pytest.mark.parametrize("attention", [LayerAttention, MRLABase])
@FEW
@given(sizes=stage_sizes(), seed=SEED)
def test_first_output_is_the_value(attention, sizes, seed):
    (layer,), (x,) = stage(attention, 1, seed, **sizes)
    assert_equal(layer(x)[0], layer.value(x))


@FEW
@given(stage_sizes(), st.integers(3, 5), SEED)
def test_permuting_the_earlier_layers_changes_nothing_in_eq_4(sizes, count, seed):
    (layer,), _ = stage(LayerAttention, 1, seed, **sizes)
    *earlier, x = stage(LayerAttention, count, seed, **sizes)[1]
    order = torch.randperm(len(earlier), generator=torch.Generator().manual_seed(seed))
    assert_equal(layer(x, [earlier[i] for i in order])[0], layer(x, earlier)[0])


def test_exchanging_the_earlier_features_changes_eq_6():
    layers, (first, second, third) = stage(MRLABase, 3)
    outputs, exchanged = run_stage(layers, [first, second, third]), run_stage(layers, [second, first, third])
    assert (outputs[2] - exchanged[2]).abs().max() > 0.1


@every_attention
@FEW
@given(stage_sizes(), st.integers(2, 4), SEED)
def test_a_layer_is_unaffected_by_later_ones(attention, sizes, count, seed):
    layers, maps = stage(attention, count, seed, **sizes)
    outputs = run_stage(layers, maps)
    for t in range(1, count):
        others = [*maps[:t], *(-2 * x for x in maps[t:])]
        for before, after in zip(outputs[:t], run_stage(layers, others)[:t], strict=True):
            assert torch.equal(before, after)


@every_attention
def test_every_layer_learns_from_all_later_outputs(attention):
    """The gradient of output t reaches layers 1..t, their maps and parameters, and no later one."""
    layers, maps = stage(attention, 3)
    maps = [x.requires_grad_() for x in maps]
    for t, output in enumerate(run_stage(layers, maps)):
        leaves = [*maps, *(layer.value.weight for layer in layers)]
        gradients = torch.autograd.grad(output.square().sum(), leaves, retain_graph=True, allow_unused=True)
        reached = [gradient is not None and gradient.abs().max().item() > 1e-6 for gradient in gradients]
        assert reached[:3] == [s <= t for s in range(3)]
        if attention is LayerAttention:                     # Eq. 4: the reader's own value projection for all
            assert reached[3:] == [s == t for s in range(3)]
        else:
            assert reached[3:] == [s <= t for s in range(3)]


def test_lambda_o_has_a_gradient_at_the_first_layer_too():
    (layer,), (x,) = stage(MRLALight, 1)
    layer(x)[0].sum().backward()
    assert layer.lambda_o.grad is not None and not layer.lambda_o.grad.any()


def tensors_of(memory):
    if isinstance(memory, torch.Tensor):
        return [memory]
    return [tensor for entry in memory for tensor in tensors_of(entry)]


@every_attention
def test_a_memory_is_a_value(attention):
    """Later calls leave an earlier memory as it was, and branches from one memory do not see each other."""
    layers, maps = stage(attention, 4)
    _, first = layers[0](maps[0])
    _, memory = layers[1](maps[1], first)
    kept = [tensor.clone() for tensor in tensors_of(memory)]
    output, further = layers[2](maps[2], memory)
    layers[3](maps[3], further)
    layers[3](maps[3], memory)
    again, _ = layers[2](maps[2], memory)
    assert torch.equal(again, output)
    assert len(tensors_of(memory)) == len(kept)
    assert all(torch.equal(now, then) for now, then in zip(tensors_of(memory), kept, strict=True))


def test_memories_are_what_the_table_says():
    maps = make_maps(2, 2, 6, 4, 3)
    layers = make_layers(LayerAttention, 2, 6)
    _, memory = layers[1](maps[1], layers[0](maps[0])[1])
    assert isinstance(memory, list) and all(entry is x for entry, x in zip(memory, maps, strict=True))
    layers = make_layers(MRLABase, 2, 6, head_dim=2)
    _, memory = layers[1](maps[1], layers[0](maps[0])[1])
    assert isinstance(memory, list) and all(isinstance(entry, tuple) for entry in memory)
    assert [(key.shape, value.shape) for key, value in memory] == [((2, 3, 2), (2, 6, 4, 3))] * 2
    assert_equal(memory[0][1], layers[0].value(maps[0]))


# Heads


@every_attention
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_a_head_sees_another_only_as_far_as_query_and_key_reach(attention, kernel_size):
    """With k taps, the k // 2 channels beside the border are seen and no others: with one tap none."""
    layers, maps = stage(attention, 2, channels=12, head_dim=4, kernel_size=kernel_size)
    before = run_stage(layers, maps)[1]
    for channel in range(4):                                            # change one channel of head 0
        changed = [x.clone() for x in maps]
        for x in changed:
            x[:, channel] += 1
        difference = (run_stage(layers, changed)[1] - before).abs().amax(dim=(0, 2, 3))
        assert difference[:4].min() > 1e-6
        assert (difference[4:8].max() > 1e-6) == (channel + kernel_size // 2 >= 4)
        assert not difference[8:].any()


@every_attention
def test_channel_c_belongs_to_head_c_div_head_dim(attention):
    layers, maps = stage(attention, 3, channels=6, head_dim=2)
    held = torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64)

    def on_the_first_cached_layer(weights):
        return held[None, :, None] * (torch.arange(weights.shape[2]) == 0).expand_as(weights)

    for layer in layers:
        hold_weights(layer, on_the_first_cached_layer)
    output = run_stage(layers[:1], maps[:1])[0]
    scale = torch.tensor([2.0, 2.0, 3.0, 3.0, 5.0, 5.0], dtype=torch.float64)
    assert_equal(output, scale[:, None, None] * layers[0].value(maps[0]))
    if attention is MRLABase:                                   # all later layers read the first value too
        for later in run_stage(layers, maps)[1:]:
            assert_equal(later, output)


@every_attention
def test_weights_pass_through_their_identity(attention):
    layers, maps = stage(attention, 3)
    seen = []
    for layer in layers:
        layer.weights.register_forward_hook(lambda module, inputs, weights: seen.append(weights))
    run_stage(layers, maps)
    if attention is MRLALight:
        assert [weights.shape for weights in seen] == [(2, 3, 1)] * 3
        assert all(0 < weight < 1 for weights in seen for weight in weights.flatten())
    else:
        assert [weights.shape for weights in seen] == [(2, 3, t) for t in (1, 2, 3)]
        for weights in seen:
            assert_equal(weights.sum(dim=-1), torch.ones(2, 3, dtype=torch.float64))
    hold_weights(layers[-1], torch.zeros_like)
    last = run_stage(layers, maps)[-1]
    if attention is MRLALight:                                      # a closed gate leaves what was carried
        assert_equal(last, layers[2].lambda_o[:, None, None] * run_stage(layers[:2], maps[:2])[-1])
    else:
        assert not last.any()


@every_attention
@FEW
@given(stage_sizes(), LAYERS, SEED)
def test_images_of_a_batch_do_not_see_each_other(attention, sizes, count, seed):
    layers, maps = stage(attention, count, seed, **sizes)
    outputs = run_stage(layers, maps)
    for image in range(sizes["batch"]):
        alone = run_stage(layers, [x[image : image + 1] for x in maps])
        for output, wanted in zip(outputs, alone, strict=True):
            assert_equal(output[image : image + 1], wanted)


# What the modules are made of


@every_attention
def test_parameters_and_defaults(attention):
    layer = attention(64)
    shapes = {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()}
    wanted = {"query.weight": (1, 1, 3), "key.weight": (1, 1, 3), "value.weight": (64, 1, 3, 3)}
    assert shapes == (wanted | {"lambda_o": (64,)} if attention is MRLALight else wanted)
    assert layer.head_dim == (16 if attention is MRLABase else 32)
    assert getattr(layer, "relu_after_norm", False) == (attention is not MRLALight)
    assert getattr(layer, "is_gate", False) == (attention is MRLALight)
    assert not hasattr(layer, "takes_block_input")


def test_the_released_light_is_light_given_the_blocks_input():
    """The same module: a block reads off the class what to give it as memory."""
    assert issubclass(MRLALightReleased, MRLALight) and MRLALightReleased.takes_block_input
    assert MRLALightReleased.forward is MRLALight.forward and MRLALightReleased.__init__ is MRLALight.__init__


def test_starting_values():
    torch.manual_seed(0)
    layer = MRLALight(2048)
    assert layer.lambda_o.mean().abs() < 0.1 and abs(layer.lambda_o.std() - 1) < 0.1
    fan_out = 2048 * 9                                                  # counted as if there were no groups
    assert layer.value.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)
    assert layer.query.weight.abs().max() <= 1 / math.sqrt(7)           # torch's own start


@every_attention
def test_a_class_fits_one_screen(attention):
    assert len(inspect.getsource(attention).splitlines()) < 60


# Bad input


@every_attention
@pytest.mark.parametrize(("arguments", "message"), [
    ({"channels": 8, "head_dim": 3}, r"head_dim must divide channels=8 \(one of \[1, 2, 4, 8\]\), not 3"),
    ({"channels": 8, "head_dim": 0}, "head_dim must divide channels=8 .*, not 0"),
    ({"channels": 0}, "channels must be a positive integer, not 0"),
    ({"channels": 8, "kernel_size": 4}, "kernel_size must be a positive odd integer, not 4"),
    ({"channels": 8, "kernel_size": 0}, "kernel_size must be a positive odd integer, not 0"),
])
def test_bad_arguments_are_refused(attention, arguments, message):
    with pytest.raises(ValueError, match=message):
        attention(**arguments)


@every_attention
@pytest.mark.parametrize(("x", "message"), [
    (torch.zeros(8, 4, 4), r"x must have shape \(batch, 8, height, width\), not \(8, 4, 4\)"),
    (torch.zeros(2, 4, 4, 4), r"x must have shape \(batch, 8, height, width\), not \(2, 4, 4, 4\)"),
    (torch.zeros(2, 8, 4, 4, dtype=torch.int64), "x must hold floating-point numbers, not torch.int64"),
])
def test_bad_maps_are_refused(attention, x, message):
    with pytest.raises(ValueError, match=message):
        attention(8)(x)


def memory_of(attention, x):
    return attention(x.shape[1])(x)[1]


@every_attention
@pytest.mark.parametrize("shape", [(3, 8, 4, 4), (2, 4, 4, 4), (2, 8, 2, 4), (2, 8, 4, 5)])
def test_a_memory_of_another_shape_is_refused(attention, shape):
    given = ", ".join(map(str, shape))
    with pytest.raises(ValueError, match=rf"memory must be .*\(2, 8, 4, 4\).* \({given}"):
        attention(8)(torch.zeros(2, 8, 4, 4), memory_of(attention, torch.zeros(shape)))


def test_a_memory_with_other_heads_is_refused():
    x = torch.zeros(2, 8, 4, 4)
    with pytest.raises(ValueError, match=r"shapes \(2, 1, 8\) and .* an entry has \(2, 2, 4\) and"):
        MRLABase(8, head_dim=8)(x, MRLABase(8, head_dim=4)(x)[1])


@pytest.mark.parametrize(("attention", "other", "message"), [
    (LayerAttention, MRLABase, "each entry of memory must be a tensor of shape .*, not a tuple"),
    (LayerAttention, MRLALight, "memory must be None or a list of tensors of shape .*, not a Tensor"),
    (MRLABase, LayerAttention, r"memory must be a list of \(key, value\) pairs .* an entry is a Tensor"),
    (MRLABase, MRLALight, r"memory must be None or a list of \(key, value\) pairs .*, not a Tensor"),
    (MRLALight, LayerAttention, "memory must be None or one tensor of shape .*, not a list"),
    (MRLALight, MRLABase, "memory must be None or one tensor of shape .*, not a list"),
])
def test_a_memory_of_another_class_is_refused(attention, other, message):
    x = torch.zeros(2, 8, 4, 4)
    with pytest.raises(ValueError, match=message):
        attention(8)(x, memory_of(other, x))


@pytest.mark.parametrize(("attention", "memory"), [
    (LayerAttention, [torch.zeros(2, 8, 4, 4).long()]),
    (MRLABase, [(torch.zeros(2, 1, 8), torch.zeros(2, 8, 4, 4).long())]),
    (MRLALight, torch.zeros(2, 8, 4, 4).long()),
])
def test_a_memory_of_integers_is_refused(attention, memory):
    with pytest.raises(ValueError, match="memory must be .*floating-point .*torch.int64"):
        attention(8)(torch.zeros(2, 8, 4, 4), memory)
