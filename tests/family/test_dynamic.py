"""DLA: an LSTM cell with two edits, the release's own arrays, and what later layers do to a memory.

golden/dla_*.npz hold inputs, weights, outputs and gradients of the release's stage, in float64, each image
with its own state; `released_out` is what the release makes of the same, with image 0's state for all.
"""

import functools
import io
from pathlib import Path

import pytest
import torch
from layer_tools import assert_equal, load_golden, make_layers, make_maps, run_stage
from torch import nn
from torch.nn import functional as F

from mrla_minimal import MRLABase, cifar_resnet, cifar_vit
from mrla_minimal.course.checks import signature
from mrla_minimal.course.checks.common import Wrong
from mrla_minimal.course.checks.coursework import grade
from mrla_minimal.family import dynamic
from mrla_minimal.family.dynamic import DLABase, DLABaseReread, DLALight, DynamicUnit, RefreshedMap
from mrla_minimal.hosting import FAMILY_ATTENTIONS, attention_factory, sharing
from mrla_minimal.lab import figures
from mrla_minimal.lab.cost import count_macs, count_parameters

every_class = pytest.mark.parametrize("attention", dynamic.NAMES.values())
every_name = pytest.mark.parametrize("name", dynamic.NAMES)


class FirstImagesState(DLABase):
    """As released: what earlier layers left is scaled by image 0's state, whatever the image."""

    def rewritten(self, key, value, state):
        return super().rewritten(key, value, tuple(part[:1].expand_as(part) for part in state))


class FirstImagesMap(RefreshedMap):
    def forward(self, carried, state):
        return super().forward(carried, tuple(part[:1].expand_as(part) for part in state))


class FirstImagesLight(DLALight):
    shared_part = FirstImagesMap


# The unit

def test_the_unit_is_an_lstm_cell_with_two_edits():
    """No output gate, and sigmoid for tanh at the end. Positive numbers pass the bottleneck's ReLU as they
    are, so that there it is one matrix, as an LSTM cell's.
    """
    unit = DynamicUnit(6, reduction=2).double()
    for reduce in (unit.input_in, unit.state_in):
        nn.init.uniform_(reduce.weight)
        nn.init.uniform_(reduce.bias)
    cell = nn.LSTMCell(6, 6).double()
    with torch.no_grad():
        for (first, second), (weight, bias) in {
            (unit.input_in, unit.input_out): (cell.weight_ih, cell.bias_ih),
            (unit.state_in, unit.state_out): (cell.weight_hh, cell.bias_hh),
        }.items():
            weight[:18] = second.weight @ first.weight                      # torch's order is i, f, g, o
            bias[:18] = second.weight @ first.bias + second.bias
            weight[18:], bias[18:] = 0, 50                                  # the output gate is open
    y, h, c = torch.rand(3, 5, 6, dtype=torch.float64)
    of_cell, of_unit = cell(y, (h, c)), unit(y, (h, c))
    assert_equal(of_unit[1], of_cell[1], 1e-12)
    assert_equal(of_cell[0], of_cell[1].tanh(), 1e-12)
    assert_equal(of_unit[0], of_unit[1].sigmoid(), 1e-12)


def test_the_bottleneck_has_a_relu_in_each_branch():
    unit = DynamicUnit(4, reduction=2).double()
    with torch.no_grad():
        for part in unit.parameters():
            part.fill_(0.5)
        unit.input_in.bias.fill_(-100.0)                                    # nothing passes the first ReLU
    y, h, c = torch.rand(3, 2, 4, dtype=torch.float64)
    a = 2 * 0.5 * (0.5 * h.sum(dim=-1, keepdim=True) + 0.5) + 2 * 0.5        # two numbers pass the other
    wanted = a.sigmoid() * c + a.sigmoid() * a.tanh()
    assert_equal(unit(y, (h, c))[1], wanted, 1e-12)


def test_a_state_of_one_row_stands_for_all_rows_of_a_sample():
    unit, y, h, c = DynamicUnit(8), torch.randn(3, 5, 8), torch.randn(3, 1, 8), torch.randn(3, 1, 8)
    wanted = unit(y, (h.expand_as(y), c.expand_as(y)))
    assert_equal(torch.stack(unit(y, (h, c))), torch.stack(wanted), 1e-6)


def test_the_state_starts_at_zeros_and_not_at_sigmoid_of_zero():
    torch.manual_seed(0)
    unit, y, zeros = DynamicUnit(16), torch.randn(2, 16), torch.zeros(2, 16)
    for given, wanted in zip(unit(y), unit(y, (zeros, zeros)), strict=True):
        assert torch.equal(given, wanted)
    assert not torch.allclose(unit(y)[1], unit(y, (zeros + 0.5, zeros))[1])


def test_gates_that_start_at_one_half_forget():
    torch.manual_seed(0)
    gate, _ = DynamicUnit(64)(torch.randn(100, 64))
    assert 0.35 < gate.min() < gate.max() < 0.65 and abs(gate.mean() - 0.5) < 0.02


# The release

def golden_layers(attention, golden):
    """A stage's layers with the arrays' weights, and (array's name, layer or None, parameter) of all."""
    one_of_a_net = sharing(attention)
    count, channels = int(golden["T"]), int(golden["channels"])
    layers = [one_of_a_net(channels, head_dim=int(golden["head_dim"])).double() for _ in range(count)]
    unit = getattr(layers[0], "refreshed", layers[0]).unit
    places = [(f"unit_{name.replace('.', '_')}", None, part) for name, part in unit.named_parameters()]
    if "excite_weight" in golden:
        places.append(("excite_weight", None, layers[0].refreshed.excite.weight))
    own = {"query": "Wq", "key": "Wk", "value": "Wv", "lambda_o": "lambda_o"}
    for t, layer in enumerate(layers):
        places += [(own[name.partition(".")[0]], t, part) for name, part in layer.named_parameters()
                   if name.partition(".")[0] in own]
    with torch.no_grad():
        for name, t, part in places:
            array = golden[name] if t is None else golden[name][t]
            assert part.shape == array.shape, name
            part.copy_(array)
    assert len(places) == sum(1 for _ in nn.ModuleList(layers).parameters())
    return layers, places


def assert_gradients(places, golden):
    for name, t, part in places:
        wanted = golden[f"grad_{name}"] if t is None else golden[f"grad_{name}"][t]
        assert_equal(torch.zeros_like(part) if part.grad is None else part.grad, wanted)


def run_base(attention, golden, x):
    """Outputs, and the memory after each layer."""
    layers, places = golden_layers(attention, golden)
    outputs, memories = [], [None]
    for layer, map_ in zip(layers, x, strict=True):
        output, memory = layer(map_, memories[-1])
        outputs.append(output)
        memories.append(memory)
    return torch.stack(outputs), memories[1:], places


def run_light(attention, golden, x, shortcut):
    """Outputs and states with the block's shortcut as the map, as the release wires it."""
    layers, places = golden_layers(attention, golden)
    outputs, states = [], []
    state = (torch.zeros_like(golden["state_h"][0]), torch.zeros_like(golden["state_c"][0]))
    for layer, map_, carried in zip(layers, x, shortcut, strict=True):
        output, (state, _) = layer(map_, (state, carried))
        outputs.append(output)
        states.append(state)
    return torch.stack(outputs), states, places


def test_dla_base_agrees_with_the_release_per_image():
    golden = load_golden("dla_base_c32_d8_t4.npz")
    x = golden["x"].requires_grad_()
    outputs, memories, places = run_base(DLABase, golden, x)
    assert_equal(outputs, golden["out"])
    for t, (state, cache) in enumerate(memories):
        assert_equal(state[0], golden["state_h"][t])
        assert_equal(state[1], golden["state_c"][t])
        assert_equal(torch.stack([key.flatten(1) for key, _ in cache]), golden[f"keys_{t + 1}"])
        assert_equal(torch.stack([value for _, value in cache]), golden[f"values_{t + 1}"])
    (outputs * golden["grad_out"]).sum().backward()
    assert_equal(x.grad, golden["grad_x"])
    assert_gradients(places, golden)


def test_dla_light_agrees_with_the_release_per_image():
    golden = load_golden("dla_light_c32_d16_t3.npz")
    x, shortcut = golden["x"].requires_grad_(), golden["shortcut"].requires_grad_()
    outputs, states, places = run_light(DLALight, golden, x, shortcut)
    assert_equal(outputs, golden["out"])
    assert_equal(torch.stack([h for h, _ in states]), golden["state_h"])
    assert_equal(torch.stack([c for _, c in states]), golden["state_c"])
    (outputs * golden["grad_out"]).sum().backward()
    assert_equal(x.grad, golden["grad_x"])
    assert_equal(shortcut.grad, golden["grad_shortcut"])
    assert_gradients(places, golden)


@torch.no_grad()
def test_the_releases_fault_is_image_0s_state_for_the_whole_batch():
    base, light = load_golden("dla_base_c32_d8_t4.npz"), load_golden("dla_light_c32_d16_t3.npz")
    faulty, right = base["released_out"], base["out"]
    assert_equal(run_base(FirstImagesState, base, base["x"])[0], faulty)
    assert_equal(run_light(FirstImagesLight, light, light["x"], light["shortcut"])[0], light["released_out"])
    assert_equal(faulty[:, 0], right[:, 0])                                 # image 0 comes out right
    assert (faulty[1:, 1:] - right[1:, 1:]).abs().amax(dim=(2, 3, 4)).min() > 1e-3


@pytest.mark.parametrize("faulty", [FirstImagesState, FirstImagesLight])
def test_batch_mates_kept_apart_finds_the_fault(faulty):
    torch.manual_seed(0)
    with pytest.raises(Wrong, match="sample 2 gets another output alone"):
        signature.check_batch(faulty)
    signature.check_shapes(faulty)                                          # which no other look does
    signature.check_reading(faulty)
    signature.check_calls(faulty)
    assert "does not depend" in signature.check_batch(faulty.__base__)


# What a layer does to the memory

@torch.no_grad()
def test_refreshing_compounds():
    """Entry s has been through t - s units once layer t has read it."""
    layers, maps = make_layers(DLABase, 4, 8), make_maps(4, 2, 8, 3, 5)
    memory = None
    written = []
    for t, (layer, x) in enumerate(zip(layers, maps, strict=True)):
        before = memory
        _, memory = layer(x, memory)
        state, cache = memory
        assert len(cache) == t + 1
        written.append(cache[-1])
        for s in range(t):
            key, value = before[1][s]
            wanted = layer.unit(value.mean(dim=(2, 3)), state)[0][:, :, None, None] * value
            assert_equal(cache[s][1], wanted)
            wanted = layer.unit(key.flatten(1), state)[0].reshape(key.shape) * key
            assert_equal(cache[s][0], wanted)
            assert (cache[s][1].abs() < written[s][1].abs()).all()


@torch.no_grad()
def test_reread_scales_once_and_hands_on_what_was_written():
    layers, maps = make_layers(DLABaseReread, 3, 8), make_maps(3, 2, 8, 3, 5)
    twins = [DLABase(8).double() for _ in layers]
    for layer, twin in zip(layers, twins, strict=True):
        twin.load_state_dict(layer.state_dict())
    outputs, rewritten = run_stage(layers, maps), run_stage(twins, maps)
    assert_equal(outputs[:2], rewritten[:2])                                # nothing is scaled twice yet
    assert not torch.allclose(outputs[2], rewritten[2])
    memory = None
    for layer, x in zip(layers, maps, strict=True):
        before = memory[1] if memory else []
        _, memory = layer(x, memory)
        for (key, value), (old_key, old_value) in zip(memory[1], before, strict=False):
            assert torch.equal(key, old_key) and torch.equal(value, old_value)


@torch.no_grad()
def test_a_unit_that_opens_leaves_mrla_base():
    layers, maps = make_layers(DLABase, 3, 8), make_maps(3, 2, 8, 3, 5)
    plain = [MRLABase(8).double() for _ in layers]
    for layer, twin in zip(layers, plain, strict=True):
        twin.load_state_dict(layer.state_dict(), strict=False)
        for part in layer.unit.parameters():
            part.zero_()
        layer.unit.input_out.bias.fill_(50.0)                               # each layer adds 1 to c
    state = (torch.zeros(2, 8).double(), torch.full((2, 8), 40.0).double())     # of which the sigmoid is 1
    assert_equal(run_stage(layers, maps, (state, None)), run_stage(plain, maps))


def test_light_starts_as_mrla_light_and_rewrites_its_map_from_layer_2():
    layers, maps = make_layers(DLALight, 2, 8), make_maps(2, 2, 8, 3, 5)
    output, (state, carried) = layers[0](maps[0])
    assert carried is output
    gate, _ = layers[1].refreshed.unit(carried.mean(dim=(2, 3)), layers[1].refreshed.unit(
        maps[1].mean(dim=(2, 3)), state))
    rewritten = gate[:, :, None, None] * carried + layers[1].refreshed.excite(carried)
    without, _ = super(DLALight, layers[1]).forward(maps[1], rewritten)
    assert_equal(layers[1](maps[1], (state, carried))[0], without)


# The shared part

@pytest.mark.parametrize("depth, name, wanted", [
    (20, "dla-base", 405_230), (20, "dla-base-reread", 405_230), (20, "dla-light", 410_158),
    (56, "dla-base", 795_990), (56, "dla-light", 802_710)])
def test_parameters_of_the_releases_nets_a_shared_unit_counted_once(depth, name, wanted):
    model = cifar_resnet(depth, block="bottleneck", layer_attention=name)
    assert count_parameters(model) == wanted


def test_multiply_adds_by_hand():
    """Stages of 3 layers, 4, 8 and 16 channels on 32, 16 and 8 pixels a side: the unit runs 1 + 2 (t - 1)
    times in layer t of DLA-B, and t - 1 maps are rewritten; in DLA-L it runs twice, and one map is.
    """
    def macs(name, every_product):
        return count_macs(cifar_resnet(20, width=4, layer_attention=name), 32, every_product)
    stages = [(4, 32), (8, 16), (16, 8)]
    units = [2 * (c * (c // 4) + (c // 4) * 3 * c) for c, _ in stages]
    maps = [c * side * side for c, side in stages]
    base = [macs("dla-base", every) - macs("mrla-base", every) for every in (False, True)]
    assert base == [(1 + 3 + 5) * sum(units), (1 + 3 + 5) * sum(units) + 3 * sum(maps)]
    light = [macs("dla-light", every) - macs("mrla-light", every) for every in (False, True)]
    assert light == [6 * sum(units) + 3 * 9 * sum(maps), 6 * sum(units) + 3 * 10 * sum(maps)]
    assert macs("dla-base-reread", True) == macs("dla-base", True)


def test_every_name_has_its_colour_marker_and_label():
    for names in (figures.COLOURS, figures.MARKERS, figures.LABELS):
        assert set(dynamic.NAMES) <= set(names)


@every_name
def test_layers_of_a_stage_share_a_part_and_stages_and_nets_do_not(name):
    models = [cifar_resnet(20, width=4, layer_attention=name) for _ in range(2)]
    part = "refreshed" if name == "dla-light" else "unit"
    found = [[{id(getattr(block.layer_attention, part)) for block in stage} for stage in model.stages]
             for model in models]
    assert all(len(of_stage) == 1 for stages in found for of_stage in stages)
    assert len(set().union(*(of_stage for stages in found for of_stage in stages))) == 6


def test_a_partial_of_a_class_shares_its_part_too():
    unit = DynamicUnit(8)
    for given, own in ((functools.partial(DLABase, head_dim=8), False),
                       (functools.partial(DLABase, shared=unit), True)):
        layers = list(map(attention_factory(given, None), [8, 8, 8]))
        assert all(layer.unit is layers[0].unit for layer in layers) and (layers[0].unit is unit) == own
    plain = functools.partial(MRLABase, head_dim=8)
    assert sharing(plain) is plain


@every_name
def test_a_checkpoint_restores_a_shared_part_and_training_moves_it_once(name):
    torch.manual_seed(0)
    model, fresh = (cifar_resnet(20, width=4, layer_attention=name) for _ in range(2))
    images = torch.randn(3, 3, 32, 32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    assert len(optimizer.param_groups[0]["params"]) == len(set(model.parameters()))
    F.cross_entropy(model(images), torch.arange(3)).backward()
    optimizer.step()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh.eval()(images), model.eval()(images))


@every_name
def test_the_names_train_in_a_transformer_too(name):
    torch.manual_seed(0)
    model = cifar_vit(3, dim=16, heads=2, patch=8, layer_attention=name)
    F.cross_entropy(model(torch.randn(2, 3, 32, 32)), torch.arange(2)).backward()
    blocks = model.stages[0]
    assert blocks[0].layer_attention.state_dict().keys() == blocks[1].layer_attention.state_dict().keys()
    unit = next(part for part in blocks[0].layer_attention.modules() if isinstance(part, DynamicUnit))
    assert all(parameter.grad.any() for parameter in unit.parameters())


def test_the_family_is_known_by_its_names():
    assert {name: FAMILY_ATTENTIONS[name] for name in dynamic.NAMES} == dynamic.NAMES
    with pytest.raises(ValueError, match="'dla-base'.*not 'dla-b'"):
        cifar_resnet(20, layer_attention="dla-b")
    assert attention_factory("dla-base", 4)(8).head_dim == 4


def test_a_partial_may_name_a_part_of_its_own():
    attention = functools.partial(DLABase, head_dim=8)
    assert sharing(attention)(8).unit.input_in.out_features == DynamicUnit(8).input_in.out_features
    attention.shared_part = functools.partial(DynamicUnit, reduction=2)
    wide = DynamicUnit(8, reduction=2).input_in.out_features
    assert sharing(attention)(8).unit.input_in.out_features == wide > DynamicUnit(8).input_in.out_features


def test_a_class_of_ones_own_may_name_a_shared_part():
    build = attention_factory(DLABase, None)
    assert build(8).unit is build(8).unit and build(16).unit is not build(8).unit
    assert sharing(MRLABase) is MRLABase


@pytest.mark.parametrize("name", ["DLABase", "DLALight"])
def test_mrla_check_passes_the_family(name):
    results = grade(Path(dynamic.__file__), name, quiz=False, progress=False)
    assert [result["text"] for result in results if result["passed"] is False] == []
    texts = {result["check"]: result["text"] for result in results}
    assert "every parameter gets a gradient at every layer" in texts["several GPUs"]


# What they refuse

@every_class
def test_a_unit_of_another_width_is_refused(attention):
    shared = attention.shared_part(8)
    assert attention(8, shared=shared).channels == 8
    with pytest.raises(ValueError, match="of 8 channels cannot serve a layer of channels=16"):
        attention(16, shared=shared)


@every_class
def test_a_state_without_what_layers_left_is_a_first_layers(attention):
    state, x = (torch.zeros(2, 8), torch.zeros(2, 8)), torch.randn(2, 8, 3, 5)
    layer = attention(8)
    assert torch.equal(layer(x, (state, None))[0], layer(x)[0])


@every_class
@pytest.mark.parametrize("memory, message", [
    ((None, None), "the state must be a pair, h and c, not a NoneType"),
    ([], "a pair, the state and what the layers left, not a list"),
    ((1, 2, 3), "not a tuple"),
    ((torch.zeros(2, 8), None), "a pair, h and c, not a Tensor"),
    (((torch.zeros(2, 8), torch.zeros(3, 8)), None), r"the state's c must be .*\(2, 8\), not \(3, 8\)"),
    (((torch.zeros(2, 8), torch.zeros(2, 8, dtype=int)), None), "the state's c must be a floating-point"),
    (((torch.zeros(2, 8), torch.zeros(2, 8)), 5), "memory"),
])
def test_another_memory_is_refused(attention, memory, message):
    with pytest.raises(ValueError, match=message):
        attention(8)(torch.zeros(2, 8, 3, 5), memory)


@every_class
def test_another_map_is_refused(attention):
    with pytest.raises(ValueError, match=r"x must have shape \(batch, 8, height, width\)"):
        attention(8)(torch.zeros(2, 4, 3, 5))


@pytest.mark.parametrize("arguments", [(0,), (8, 0), (8.0,)])
def test_a_unit_refuses_other_sizes(arguments):
    with pytest.raises(ValueError, match="must be a positive integer"):
        DynamicUnit(*arguments)


def test_a_unit_refuses_another_input():
    with pytest.raises(ValueError, match=r"y must end in 8 channels, not \(2, 4\)"):
        DynamicUnit(8)(torch.zeros(2, 4))
    for wrong in (torch.zeros(1, 8), torch.zeros(8), torch.zeros(3, 4)):
        with pytest.raises(ValueError, match=r"the state's h must be .*\(3, 8\), not"):
            DynamicUnit(8)(torch.zeros(3, 8), (wrong, wrong))
    with pytest.raises(ValueError, match=r"the state's h must be .*\(3, 5, 8\), not \(1, 1, 8\)"):
        DynamicUnit(8)(torch.zeros(3, 5, 8), (torch.zeros(1, 1, 8), torch.zeros(1, 1, 8)))
    with pytest.raises(ValueError, match=r"the state's c must be .*\(2, 8\), not \(2, 4\)"):
        DynamicUnit(8)(torch.zeros(2, 8), (torch.zeros(2, 8), torch.zeros(2, 4)))
