"""The vision transformer: the released code, the published counts, any layer attention, and bad input.

golden/vit_*.npz hold inputs, weights, outputs and gradients of the released transformer blocks with MRLA, in
float64, every kind of drop-out off.
"""

import copy
import math

import pytest
import torch
from layer_tools import load_golden
from net_tools import (
    GATES,
    WEIGHTED,
    ThirdOfTheInput,
    assert_refuses_wrong_images,
    blocks_of,
    images_of,
)
from torch import nn

from mrla_minimal import MRLALight, cifar_resnet, cifar_vit, deit, freeze_attention, record_attention
from mrla_minimal.hosting import LAYER_ATTENTIONS
from mrla_minimal.lab.cost import count_macs, count_parameters
from mrla_minimal.layer_attention import MRLABase, MRLALightReleased, channel_convolution
from mrla_minimal.vit import TransformerBlock, VisionTransformer, as_released, to_map, to_tokens

# What the arrays call a weight, and where it is in a block; heads' three matrices are one array there.
NAMES = {
    "attention_norm": "attention_norm", "attention_projection": "self_attention.output",
    "mlp_norm": "mlp_norm", "mlp_in": "mlp.enter", "mlp_out": "mlp.leave", "norm_x": "layer_norm",
    "norm_o": "carried_norm", "query": "layer_attention.query", "key": "layer_attention.key",
    "value": "layer_attention.value",
}
every_name = pytest.mark.parametrize("name", LAYER_ATTENTIONS)


# The released code


def assert_agrees(given, wanted):
    """To 1e-10 of the largest number."""
    assert given.shape == wanted.shape
    assert (given - wanted).abs().max() <= 1e-10 * max(1.0, wanted.abs().max())


def places(block, golden):
    """(name of the array, the parameters that are its parts along the first axis) of all of a block's."""
    for name, path in NAMES.items():
        for kind in ("weight", "bias"):
            if f"{name}_{kind}" in golden:
                module = block.get_submodule(path)
                yield f"{name}_{kind}", [getattr(getattr(module, "convolution", module), kind)]
    for kind in ("weight", "bias"):
        if f"attention_qkv_{kind}" in golden:
            parts = (block.self_attention.query, block.self_attention.key, block.self_attention.value)
            yield f"attention_qkv_{kind}", [getattr(part, kind) for part in parts]
    if "lambda_o" in golden:
        yield "lambda_o", [block.layer_attention.lambda_o]


@torch.no_grad()
def give_weights(block, golden, t=None):
    """Block t's weights from the arrays; of arrays that are not stacked, t is None."""
    found = list(places(block, golden))
    for name, parts in found:
        array = golden[name] if t is None else golden[name][t]
        for part, given in zip(parts, array.chunk(len(parts)), strict=True):
            assert part.shape == given.shape, name
            part.copy_(given)
    return len(found)


def assert_gradients(block, golden, t=None, prefix="grad_", names=None):
    for name, parts in places(block, golden):
        if names is None or name in names:
            wanted = golden[prefix + name] if t is None else golden[prefix + name][t]
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parts]
            assert_agrees(torch.cat(gradients), wanted)


def released_block(attention, golden, t=None):
    dim, mlp_dim = golden["value_weight"].shape[-4], 64
    block = TransformerBlock(dim, int(golden.get("heads", 2)), mlp_dim).double()
    own = attention(dim, int(golden["head_dim"]), int(golden["kernel_size"])).double()
    block.add_layer_attention(as_released(own), released=True)
    block.double()
    assert give_weights(block, golden, t) >= 5
    return block


def test_the_light_module_agrees_with_the_released_code():
    golden = load_golden("vit_light_module_c32_d8.npz")
    block = released_block(MRLALightReleased, golden)
    y, carried = (golden[name].clone().requires_grad_() for name in ("x", "carried"))
    gates, values = [], []
    block.layer_attention.weights.register_forward_hook(lambda *call: gates.append(call[-1]))
    block.layer_attention.value.register_forward_hook(lambda *call: values.append(call[-1]))
    output, _ = block.third_residual(y, carried, None)
    output.backward(golden["grad_output"])
    assert_agrees(output, golden["output"])
    assert_agrees(gates[0][:, :, 0], golden["gate"])
    assert_agrees(values[0], golden["value"])
    assert_agrees(y.grad, golden["grad_x"])
    assert_agrees(carried.grad, golden["grad_carried"])
    assert_gradients(block, golden)


def base_blocks():
    golden = load_golden("vit_base_blocks_c32_d8_t5.npz")
    return golden, [released_block(MRLABase, golden, t) for t in range(int(golden["depth"]))]


def test_the_base_blocks_agree_with_the_released_code():
    golden, blocks = base_blocks()
    x, memory, weights = golden["x"].clone().requires_grad_(), None, []
    for block in blocks:
        block.layer_attention.weights.register_forward_hook(lambda *call: weights.append(call[-1]))
    first = x
    for t, block in enumerate(blocks):
        memory = None if t % int(golden["reset_every"]) == 0 else memory
        x, memory = block(x, memory)
        assert_agrees(x, golden["block_output"][t])
        assert_agrees(memory[-1][0].flatten(1), golden["keys"][t])
        assert_agrees(memory[-1][1], golden["values"][t])
        layers = t % int(golden["reset_every"]) + 1
        assert_agrees(weights[t], golden["softmax_weights"][t][:, :, :layers])
    x.backward(golden["grad_output"])
    assert_agrees(first.grad, golden["grad_x"])
    for t, block in enumerate(blocks):
        assert_gradients(block, golden, t)
    # alone in its cache: nothing to choose, so neither the query nor the key of block 5 is taught
    for projection in (blocks[4].layer_attention.query, blocks[4].layer_attention.key):
        assert not projection.weight.grad.any()


def test_the_base_modules_agree_on_their_own():
    golden, blocks = base_blocks()
    inputs, memory = [y.clone().requires_grad_() for y in golden["y"]], None
    outputs = []
    for t, (block, y) in enumerate(zip(blocks, inputs, strict=True)):
        memory = None if t % int(golden["reset_every"]) == 0 else memory
        output, memory = block.third_residual(y, y, memory)
        outputs.append(output)
    torch.stack(outputs).backward(golden["module_grad_output"])
    assert_agrees(torch.stack(outputs), golden["attention_output"])
    assert_agrees(torch.stack([y.grad for y in inputs]), golden["module_grad_y"])
    names = [name.removeprefix("module_grad_") for name in golden if name.startswith("module_grad_")]
    for t, block in enumerate(blocks):
        assert_gradients(block, golden, t, "module_grad_", names)


def released_net(golden):
    model = VisionTransformer(depth=int(golden["depth"]), dim=32, heads=int(golden["heads"]), mlp_dim=64,
                              patch=int(golden["patch"]), image_size=32, num_classes=7, read="cls",
                              reset_every=None, drop_path=0.0, in_channels=3)
    model.stages[0] = nn.ModuleList(
        released_block(MRLALightReleased, golden, t) for t in range(int(golden["depth"])))
    outside = {"patch_weight": model.patches.weight, "patch_bias": model.patches.bias,
               "cls_token": model.class_token, "position": model.position,
               "final_norm_weight": model.norm.weight, "final_norm_bias": model.norm.bias,
               "head_weight": model.classifier.weight, "head_bias": model.classifier.bias}
    with torch.no_grad():
        for name, parameter in outside.items():
            parameter.data = golden[name].clone()
    return model, outside


def test_a_whole_light_net_agrees_with_the_released_code():
    golden = load_golden("vit_light_net_c32_d16_t3.npz")
    model, outside = released_net(golden)
    outputs = []
    for block in model.stages[0]:
        block.register_forward_hook(lambda *call: outputs.append(call[-1][0]))
    images = golden["images"].clone().requires_grad_()
    logits = model(images)
    logits.backward(golden["grad_logits"])
    assert_agrees(logits, golden["logits"])
    assert_agrees(torch.stack(outputs), golden["block_output"])
    assert_agrees(images.grad, golden["grad_images"])
    for name, parameter in outside.items():
        assert_agrees(parameter.grad, golden[f"grad_{name}"])
    for t, block in enumerate(model.stages[0]):
        assert_gradients(block, golden, t)
    assert not model.stages[0][-1].layer_attention.lambda_o.grad.any()      # only the class token is read


# Published sizes


@pytest.mark.parametrize("size, attention, parameters, macs", [
    ("tiny", None, 5_717_416, "1.2537"),
    ("tiny", "mrla-light-released", 5_749_792, "1.2578"),
    ("tiny", "mrla-base", 5_742_880, "1.2588"),
    ("small", None, 22_050_664, None),
    ("small", "mrla-light-released", 22_115_296, None),
    ("small", "mrla-base", 22_101_472, None),
])
def test_deit_has_the_published_parameters_and_multiply_adds(size, attention, parameters, macs):
    with torch.device("meta"):
        model = deit(size, layer_attention=attention)
        assert count_parameters(model) == parameters
        if macs is not None:
            assert f"{count_macs(model, 224) / 1e9:.4f}" == macs


def test_with_every_product_a_base_of_all_twelve_layers_costs_more_than_one_that_is_emptied():
    with torch.device("meta"):
        emptied, whole = (deit(layer_attention="mrla-base", reset_every=every) for every in (4, None))
    # sums over 2 to 12 layers, in place of three times 2 to 4; and one q.k for each cached layer
    maps, layers = sum(range(2, 13)) - 3 * sum(range(2, 5)), sum(range(1, 13)) - 3 * sum(range(1, 5))
    assert count_macs(whole, 224) - count_macs(emptied, 224) == maps * 192 * 14 * 14 + layers * 192


def test_the_rule_gives_five_taps_at_192_channels():
    assert channel_convolution(192).weight.shape == (1, 1, 5)
    with torch.device("meta"):
        for size in ("tiny", "small"):
            for block in deit(size, layer_attention="mrla-base").stages[0]:
                assert block.layer_attention.query.kernel_size == (5,)
                assert block.layer_attention.key.kernel_size == (5,)
                assert block.layer_attention.head_dim == 16


def test_deit_empties_a_memory_every_four_blocks_and_reads_the_class_token():
    with torch.device("meta"):
        model = deit(layer_attention="mrla-base")
        light = deit("small", layer_attention="mrla-light-released").stages[0][0]
    assert model.reset_every == 4 and model.class_token is not None and len(model.stages[0]) == 12
    assert isinstance(light.layer_attention.value[1], nn.GELU)          # light's alone
    assert isinstance(model.stages[0][0].layer_attention.value, nn.Conv2d)


def test_what_a_class_token_alone_leaves_dead_in_deit_tiny_is_counted():
    torch.manual_seed(0)
    light = deit(layer_attention="mrla-light-released", num_classes=10)
    base = deit(layer_attention="mrla-base", num_classes=10)
    images = torch.randn(1, 3, 224, 224)

    def dead(model):
        model(images).logsumexp(dim=1).sum().backward()
        parts = [*model.stages[0].named_parameters()]
        return sum(parameter.numel() for name, parameter in parts
                   if ("layer_attention" in name or "carried_norm" in name) and not parameter.grad.any())

    assert dead(light) == 2314          # 1,728 + 2 * 5 + 192 + 2 * 192 of the last block
    assert dead(base) == 1753           # the last block's 1,738, and the queries of the first in each cache


# Any layer attention


def tiny(name=None, seed=0, **arguments):
    """A transformer of four blocks whose branches and attention weights are far from 0."""
    torch.manual_seed(seed)
    defaults = {"depth": 4, "dim": 16, "heads": 2, "patch": 4, "image_size": 8}
    model = cifar_vit(**{**defaults, "layer_attention": name, **arguments})
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d)):
            nn.init.normal_(module.weight, std=0.3)
    return model


def loop(model, images):
    x = model.tokens(images)
    memory = None
    for t, block in enumerate(model.stages[0]):
        if model.reset_every and t % model.reset_every == 0:
            memory = None
        x, memory = block(x, memory)
    return x


@every_name
@pytest.mark.parametrize("read", ["mean", "cls"])
@pytest.mark.parametrize("released", [False, True])
def test_every_attention_of_the_library_runs_and_learns(name, read, released):
    model = tiny(name, read=read, released=released, reset_every=2)
    images = images_of()
    logits = model(images)
    assert logits.shape == (4, 10)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    x = model.norm(loop(model, images))
    read_out = x[:, 0] if read == "cls" else x.mean(dim=1)
    torch.testing.assert_close(logits, model.classifier(read_out))


def test_the_class_is_the_one_that_a_resnet_hosts():
    for name in LAYER_ATTENTIONS:
        of_resnet = cifar_resnet(8, layer_attention=name).stages[0][0].layer_attention
        assert type(tiny(name).stages[0][0].layer_attention) is type(of_resnet)


def test_an_attention_of_ones_own_gets_its_memory_from_block_to_block():
    model, memories = tiny(ThirdOfTheInput), []
    for block in model.stages[0]:
        block.layer_attention.register_forward_pre_hook(lambda module, given: memories.append(given[1]))
    model(images_of())
    assert memories == [None, 1, 2, 3]
    model.reset_every = 2
    memories.clear()
    model(images_of())
    assert memories == [None, 1, None, 1]


def test_an_attention_sees_the_normed_patches_as_a_map_and_adds_to_them_alone():
    """Against the same computed token by token, for an attention that is a known function."""
    model = tiny(ThirdOfTheInput, read="cls", released=False)
    block = model.stages[0][0]
    x = torch.randn(2, 5, 16)
    plain = copy.deepcopy(block)
    plain.layer_attention = None
    y, _ = plain(x)
    output, _ = block(x)
    torch.testing.assert_close(output[:, 0], y[:, 0])
    normed = nn.functional.layer_norm(y[:, 1:], (16,), eps=1e-6)
    torch.testing.assert_close(output[:, 1:], y[:, 1:] + normed / 3)
    block.released = True
    torch.testing.assert_close(block(x)[0][:, 0], y[:, 0] + block.layer_norm(y)[:, 0])


def test_light_as_released_reads_its_blocks_input_through_a_norm_and_keeps_nothing():
    block = tiny("mrla-light-released").stages[0][1]
    x, seen = torch.randn(2, 4, 16), []
    block.layer_attention.register_forward_pre_hook(lambda module, given: seen.append(given[1]))
    one, _ = block(x)
    other, _ = block(x, torch.full((2, 16, 2, 2), 7.0))
    torch.testing.assert_close(seen[0], to_map(block.carried_norm(x))[1])
    assert torch.equal(one, other)


def test_no_variant_changes_the_start_of_its_host():
    plain = tiny().state_dict()
    torch.manual_seed(0)
    plain = cifar_vit(depth=2, dim=16, heads=2).state_dict()
    for name in LAYER_ATTENTIONS:
        torch.manual_seed(0)
        variant = cifar_vit(depth=2, dim=16, heads=2, layer_attention=name).state_dict()
        assert all(torch.equal(value, variant[key]) for key, value in plain.items())


def test_values_start_as_released_only_when_asked_to():
    torch.manual_seed(0)
    ours, released = (cifar_vit(depth=1, layer_attention="mrla-base", released=how)
                      for how in (False, True))
    assert ours.stages[0][0].layer_attention.value.weight.std() < 0.06         # sqrt(2 / (9 * 96))
    assert abs(released.stages[0][0].layer_attention.value.weight.std() - 1 / 3 / math.sqrt(3)) < 0.01
    ours = cifar_vit(depth=1, layer_attention="mrla-light").stages[0][0].layer_attention
    assert type(ours) is MRLALight and isinstance(ours.value, nn.Conv2d)       # no GELU


def test_drop_path_grows_with_depth_and_leaves_the_layer_attention_alone():
    model = tiny("mrla-base", depth=3, drop_path=0.5)
    assert [block.drop_path.rate for block in model.stages[0]] == [0.0, 0.25, 0.5]
    block = tiny("depthwise", depth=2, drop_path=0.9999999).stages[0][1].train()
    x = torch.randn(3, 4, 16)
    torch.testing.assert_close(block(x)[0], x + block.third_residual(x, x, None)[0])


def test_grids_and_tokens_are_each_others_inverse():
    tokens = torch.arange(2 * 10 * 3.0).reshape(2, 10, 3)
    class_token, patches = to_map(tokens)
    assert class_token.shape == (2, 1, 3) and patches.shape == (2, 3, 3, 3)
    assert torch.equal(patches[:, :, 1, 2], tokens[:, 1 + 1 * 3 + 2])
    assert torch.equal(to_tokens(class_token, patches), tokens)
    class_token, patches = to_map(tokens[:, 1:])
    assert class_token.shape == (2, 0, 3) and torch.equal(to_tokens(class_token, patches), tokens[:, 1:])
    with pytest.raises(ValueError, match="so 1, 2 or 4 of them, not 0"):
        to_map(tokens[:, :0])


# What a class token does


def class_token_spread(model):
    spreads = []
    hooks = [block.register_forward_hook(lambda *call: spreads.append(call[-1][0][:, 0].std().item()))
             for block in blocks_of(model)]
    with torch.no_grad():
        model(images_of(2, model.image_size))
    for hook in hooks:
        hook.remove()
    return spreads


def test_the_released_form_makes_an_untrained_class_token_grow():
    """Each block adds a normed copy of it, of standard deviation 1."""
    arguments = {"depth": 12, "dim": 64, "heads": 2, "patch": 4, "image_size": 16, "read": "cls",
                 "layer_attention": "mrla-light-released"}
    torch.manual_seed(0)
    released, ours = (class_token_spread(cifar_vit(**arguments, released=how)) for how in (True, False))
    assert all(low < high for low, high in zip(released, released[1:], strict=False))
    assert 11 < released[-1] < 13
    assert ours[-1] < 1


@pytest.mark.parametrize("name", ["mrla-base", "mrla-light", "mrla-light-released", "uniform", "depthwise"])
def test_the_mean_mends_the_dead_last_block(name):
    for read, learns in (("cls", False), ("mean", True)):
        model = tiny(name, read=read)
        model(images_of()).square().sum().backward()
        *_, last = model.stages[0]
        gradients = [p.grad.any().item() for p in last.layer_attention.parameters()]
        assert all(gradients) if learns else not any(gradients), read


# Looking


@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_are_recorded_as_in_a_resnet(name):
    model = tiny(name, reset_every=3)
    with record_attention(model) as weights:
        model(images_of())
    shapes = [tuple(row.shape) for row in weights[0]]
    heads = 16 // model.stages[0][0].layer_attention.head_dim
    layers = [1] * 4 if name in GATES else [1, 2, 3, 1]
    assert len(weights) == 1 and shapes == [(4, heads, t) for t in layers]
    if name not in GATES:
        for row in weights[0]:
            torch.testing.assert_close(row.sum(dim=-1), torch.ones(4, heads))


@pytest.mark.parametrize("how", ["mean", "shuffle", "uniform"])
@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_are_frozen_as_in_a_resnet(name, how):
    model, images = tiny(name).eval(), images_of(6)
    with torch.no_grad():
        before = model(images)
        with freeze_attention(model, how, images), record_attention(model) as weights:
            frozen = model(images)
        assert not torch.allclose(before, frozen) and torch.equal(before, model(images))
    if how == "uniform" and name not in GATES:
        assert torch.equal(weights[0][3], torch.full_like(weights[0][3], 1 / 4))


def test_base_frozen_at_uniform_is_the_uniform_control():
    base, uniform = tiny("mrla-base").eval(), tiny("uniform").eval()
    uniform.load_state_dict(base.state_dict(), strict=False)
    images = images_of(2)
    with torch.no_grad(), freeze_attention(base, "uniform"):
        torch.testing.assert_close(base(images), uniform(images))


# Training's ways


@pytest.mark.parametrize("name", [None, "mrla-base", "mrla-light"])
def test_it_runs_channels_last_and_under_autocast(name):
    model = tiny(name, read="cls", released=True)
    images = images_of()
    wanted = model(images)
    torch.testing.assert_close(model(images.contiguous(memory_format=torch.channels_last)), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert (model(images).float() - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_it_compiles():
    model, images = tiny("mrla-base", depth=2, reset_every=1), images_of()
    torch.testing.assert_close(torch.compile(model, backend="aot_eager")(images), model(images))


def test_a_saved_net_is_the_same_net():
    model, other = tiny("mrla-light", read="cls"), tiny("mrla-light", read="cls", seed=1)
    other.load_state_dict(model.state_dict())
    images = images_of()
    assert torch.equal(model(images), other(images))


# Bad input


class Halves(nn.Module):
    """An attention that changes the shape."""

    def __init__(self, channels):
        super().__init__()

    def forward(self, x, memory=None):
        return x[:, :, ::2], None


@pytest.mark.parametrize("arguments, message", [
    (dict(image_size=30), r"patch must divide image_size=30 \(one of \[1, 2, 3, 5, 6, 10, 15, 30\]\), not 4"),
    (dict(patch=5), r"patch must divide image_size=32 .*, not 5"),
    (dict(patch=0), "patch must be a positive integer, not 0"),
    (dict(dim=97), "heads must divide dim=97, which 3 does not"),
    (dict(heads=5), "heads must divide dim=96, which 5 does not"),
    (dict(dim=0), "dim must be a positive integer, not 0"),
    (dict(dim="96"), "dim must be a positive integer, not '96'"),
    (dict(head_dim=5, layer_attention="mrla-light"), r"head_dim must divide channels=96 .*, not 5"),
    (dict(head_dim=5, layer_attention="uniform"), r"head_dim must divide channels=96 .*, not 5"),
    (dict(head_dim=8), "head_dim=8 needs a layer_attention, which is None"),
    (dict(head_dim=8, layer_attention=ThirdOfTheInput), "head_dim=8 is for the named attentions"),
    (dict(reset_every=0, layer_attention="mrla-base"), "reset_every must be a positive integer, not 0"),
    (dict(reset_every=0), "reset_every must be a positive integer, not 0"),
    (dict(reset_every=True, layer_attention="mrla-base"), "reset_every must be a positive integer, not True"),
    (dict(reset_every=4), "reset_every=4 needs a layer_attention, which is None"),
    (dict(depth=0), "depth must be a positive integer, not 0"),
    (dict(depth=2.0), "depth must be a positive integer, not 2.0"),
    (dict(read="max"), "read must be one of 'mean', 'cls', not 'max'"),
    (dict(layer_attention="mrla"), "layer_attention must be None, one of 'layer', .*, not 'mrla'"),
    (dict(layer_attention=lambda channels: None),
     "layer_attention must return a module for 96 channels, not None"),
    (dict(drop_path=1.0), "drop_path must be at least 0 and below 1, not 1.0"),
    (dict(num_classes=0), "num_classes must be a positive integer, not 0"),
    (dict(in_channels=0), "in_channels must be a positive integer, not 0"),
])
def test_a_wrong_argument_is_named_with_what_is_allowed(arguments, message):
    with pytest.raises(ValueError, match=message):
        cifar_vit(**arguments)


@pytest.mark.parametrize("arguments, message", [
    (dict(size="base"), "size must be one of 'tiny', 'small', not 'base'"),
    (dict(reset_every=0), "reset_every must be a positive integer, not 0"),
    (dict(layer_attention="mrla-lite"), "layer_attention must be None, one of .*, not 'mrla-lite'"),
])
def test_a_wrong_argument_of_deit_is_named_too(arguments, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        deit(**arguments)


def test_wrong_images_are_refused():
    assert_refuses_wrong_images(tiny(), "(batch, 3, 8, 8)")
    for size in ((16, 16), (8, 16), (16, 8)):
        message = rf"images must be .* \(batch, 3, 8, 8\), not \(2, 3, {size[0]}, {size[1]}\)"
        with pytest.raises(ValueError, match=message):
            tiny()(torch.zeros(2, 3, *size))


def test_tokens_that_are_no_grid_are_refused():
    block = tiny("mrla-base").stages[0][0]
    for count in (4, 5, 9, 10):
        block(torch.zeros(1, count, 16))
    with pytest.raises(ValueError, match="a square grid .* so 4, 5 or 9 of them, not 7"):
        block(torch.zeros(1, 7, 16))


def test_an_attention_that_changes_the_shape_is_refused():
    with pytest.raises(ValueError, match=r"the layer attention's output must be .* \(4, 16, 2, 2\), "
                                         r"not \(4, 16, 1, 2\) of torch.float32"):
        tiny(Halves)(images_of())
