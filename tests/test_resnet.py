"""The ResNets: their sizes, where the attentions sit in them, and what is carried."""

import copy
import functools
import math
import os
import sys
import warnings

import numpy as np
import pytest
import torch
from net_tools import (
    CARRIES,
    GATES,
    LISTS,
    RELEASED,
    WEIGHTED,
    ThirdOfTheInput,
    assert_refuses_wrong_images,
    blocks_of,
    images_of,
    small,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mrla_minimal import MRLABase, cifar_resnet, freeze_attention, imagenet_resnet, record_attention
from mrla_minimal.hosting import LAYER_ATTENTIONS, DropPath
from mrla_minimal.resnet import PadShortcut

every_attention = pytest.mark.parametrize("name", LAYER_ATTENTIONS)
every_variant = pytest.mark.parametrize("name", [None, *LAYER_ATTENTIONS])
both_blocks = pytest.mark.parametrize("block", ["basic", "bottleneck"])


def structured_images(count, size, seed=0):
    """Ten fixed pictures under noise, and their numbers."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 10
    pictures = torch.randn(10, 3, size, size, generator=generator)
    return pictures[labels] + 0.5 * torch.randn(count, 3, size, size, generator=generator), labels


def parameters_of(model):
    return sum(parameter.numel() for parameter in model.parameters())


def gradients(model, images):
    model.zero_grad()
    model(images).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


# Sizes


@pytest.mark.parametrize("arguments, parameters", [
    (dict(depth=20), 269_722),
    (dict(depth=56), 853_018),
    (dict(depth=110), 1_727_962),
    (dict(depth=20, shortcut="conv"), 272_474),
    (dict(depth=20, block="bottleneck"), 220_378),
    (dict(depth=56, block="bottleneck"), 591_322),
    (dict(depth=110, block="bottleneck"), 1_147_738),
    (dict(depth=20, block="bottleneck", shortcut="pad"), 177_498),
    (dict(depth=56, block="bottleneck", shortcut="pad"), 548_442),
    (dict(depth=110, block="bottleneck", shortcut="pad"), 1_104_858),
    (dict(depth=20, block="bottleneck", layer_attention="mrla-light"), 231_182),
    (dict(depth=20, block="bottleneck", layer_attention="mrla-base"), 230_286),
    (dict(depth=20, block="bottleneck", layer_attention="mrla-light", head_dim=8), 231_182),
    (dict(depth=20, block="bottleneck", layer_attention="mrla-base", head_dim=32), 230_286),
])
def test_cifar_resnets_have_the_parameters_of_the_literature(arguments, parameters):
    with torch.device("meta"):
        assert parameters_of(cifar_resnet(**arguments)) == parameters


@pytest.mark.parametrize("arguments, parameters", [
    (dict(), 25_557_032),
    (dict(channel_attention="se"), 28_071_976),
    (dict(channel_attention="eca"), 25_557_118),
    (dict(layer_attention="mrla-light"), 25_557_032 + 181_420),
    (dict(layer_attention="mrla-base"), 25_557_032 + 166_316),
    (dict(layer_attention="layer"), 25_723_348),
    (dict(layer_attention="depthwise"), 25_723_176),
    (dict(stem="deep"), 25_557_032 - 7 * 7 * 3 * 64 + 9 * (3 * 32 + 32 * 32 + 32 * 64) - 128 + 64 + 64 + 128),
    (dict(depth=101), 44_549_160),
    (dict(depth=101, layer_attention="mrla-light"), 44_939_646),
])
def test_imagenet_resnets_have_the_parameters_of_the_literature(arguments, parameters):
    with torch.device("meta"):
        assert parameters_of(imagenet_resnet(**arguments)) == parameters


@pytest.mark.parametrize("stem", ["conv7", "deep"])
def test_an_imagenet_resnet_halves_its_maps_five_times(stem):
    with torch.device("meta"):
        model = imagenet_resnet(50, num_classes=7, stem=stem).eval()
        assert model.stem(torch.zeros(2, 3, 224, 224)).shape == (2, 64, 56, 56)
        assert model(torch.zeros(2, 3, 224, 224)).shape == (2, 7)
    shapes, x = [], torch.zeros(2, 64, 56, 56, device="meta")
    for stage in model.stages:
        for block in stage:
            x, _ = block(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]


def test_bottlenecks_stride_in_their_3x3_convolution():
    for block in blocks_of(small(block="bottleneck")):
        assert block.residual.conv1.stride == block.residual.conv3.stride == (1, 1)
    strides = [blocks[0].residual.conv2.stride for blocks in small(block="bottleneck").stages]
    assert strides == [(1, 1), (2, 2), (2, 2)]


@pytest.mark.parametrize("build", [
    cifar_resnet, imagenet_resnet, functools.partial(imagenet_resnet, stem="deep"),
])
def test_images_may_have_other_channels_than_three(build):
    with torch.device("meta"):
        gray, colour = build(in_channels=1, num_classes=5), build(num_classes=5)
        assert gray(torch.zeros(2, 1, 32, 32)).shape == (2, 5)
        with pytest.raises(ValueError, match=r"of shape \(batch, 1, height, width\), not \(2, 3, 32, 32\)"):
            gray(torch.zeros(2, 3, 32, 32))
        first, wider = gray.stem[0].weight, colour.stem[0].weight
    assert first.shape == (wider.shape[0], 1, *wider.shape[2:])
    assert parameters_of(colour) - parameters_of(gray) == 2 * first.numel()


def test_numpy_integers_are_integers():
    sizes = dict(depth=np.int64(8), width=np.int32(4), num_classes=np.int64(7), head_dim=np.int64(2))
    model = cifar_resnet(**sizes, layer_attention="mrla-base", in_channels=np.int64(2))
    assert model(torch.zeros(1, 2, 8, 8)).shape == (1, 7)


# Every attention runs and learns, in every host


@both_blocks
@pytest.mark.parametrize("channel_attention", [None, "se", "eca"])
@every_variant
def test_every_combination_gives_logits_and_every_parameter_a_gradient(name, channel_attention, block):
    model = small(name, block, num_classes=7, channel_attention=channel_attention)
    logits = model(images_of())
    assert logits.shape == (4, 7) and logits.isfinite().all()
    F.cross_entropy(logits, torch.arange(4)).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
    if name is not None:
        values = [block.layer_attention.value.weight.grad for block in blocks_of(model)]
        assert all(gradient.abs().sum() > 0 for gradient in values)


@pytest.mark.parametrize("name", WEIGHTED)
def test_queries_and_keys_learn_wherever_there_is_a_choice(name):
    model = small(name, layers=3)
    gradients(model, images_of())
    for stage in model.stages:
        for layer, block in enumerate(stage):
            # A softmax over one layer is 1 whatever it asks; but base's first key is asked for again later.
            asks = name in GATES or layer > 0
            attention = block.layer_attention
            assert bool(attention.query.weight.grad.abs().max() > 1e-6) == asks
            assert bool(attention.key.weight.grad.abs().max() > 1e-6) == (asks or name == "mrla-base")


@pytest.mark.parametrize("channel_attention", ["se", "eca"])
@pytest.mark.parametrize("name", [None, "mrla-light-released"])
def test_channel_attention_acts_on_the_residual_branch_before_the_sum(name, channel_attention):
    model = small(name, channel_attention=channel_attention).eval()
    x = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    block = model.stages[0][1]
    seen = []
    block.channel_attention.register_forward_hook(
        lambda module, inputs, output: seen.append((inputs[0], output)))
    output, _ = block(x, torch.zeros_like(x))
    branch, scaled = seen[0]
    assert torch.equal(branch, block.residual(x)) and not torch.allclose(branch, scaled)
    summed = torch.relu(scaled + x)
    if name is not None:
        summed = summed + block.attention_norm(block.layer_attention(summed, x)[0])
    torch.testing.assert_close(output, summed)


# Place in the block: the whole forward pass once more, by hand


def forward_by_hand(model, images, released, gated):
    """The whole pass written out for nets whose memory is one map: O^t = lambda O^{t-1} + gate v.

    With lambda times the block's input, the shortcut, in the released wiring.
    """
    x = model.stem(images)
    for stage in model.stages:
        carried = 0.0
        for block in stage:
            attention, shortcut = block.layer_attention, block.shortcut(x)
            x = (block.residual(x) + shortcut).clamp(min=0)
            if released:
                carried = shortcut
            own = F.conv2d(x, attention.value.weight, padding=1, groups=x.shape[1])
            if gated:
                row, taps = x.mean(dim=(2, 3))[:, None], attention.query.weight.shape[-1]
                query = F.conv1d(row, attention.query.weight, padding=taps // 2)
                key = F.conv1d(row, attention.key.weight, padding=taps // 2)
                head_dim = attention.head_dim
                products = (query * key).unflatten(2, (-1, head_dim)).sum(dim=-1) / math.sqrt(head_dim)
                gates = torch.sigmoid(products).repeat_interleave(head_dim, dim=2)   # (batch, 1, channels)
                own = own * gates[:, 0, :, None, None]
            carried = attention.lambda_o[:, None, None] * carried + own
            norm = block.attention_norm
            statistics = (norm.running_mean, norm.running_var)
            x = x + F.batch_norm(carried, *statistics, norm.weight, norm.bias, eps=norm.eps)
    return model.classifier(x.mean(dim=(2, 3)))


@both_blocks
@pytest.mark.parametrize("name", [*CARRIES, *RELEASED])
def test_both_readings_of_the_carried_map_equal_a_loop_written_by_hand(name, block):
    released = name in RELEASED
    other_name = name.removesuffix("-released") if released else f"{name}-released"
    model, other = (small(name, block, layers=3).double().eval() for name in (name, other_name))
    images = images_of(dtype=torch.float64)
    expected = forward_by_hand(model, images, released, gated=name in GATES)
    torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-10)
    assert not torch.allclose(other(images), expected, atol=1e-3)


def memories_given(model, images):
    """[stage][t - 1]: the memory that layer t's attention was given, its block's shortcut, what it left."""
    given, shortcuts, left = [], [], []

    def new_stage(module, inputs):
        for kept in (given, shortcuts, left):
            kept.append([])

    def shortcut_hook(module, inputs, output):
        shortcuts[-1].append(output)

    def attention_hook(module, inputs, output):
        given[-1].append(inputs[1])
        left[-1].append(output[1])

    hooks = []
    for stage in model.stages:
        hooks.append(stage[0].register_forward_pre_hook(new_stage))
        for block in stage:
            hooks.append(block.shortcut.register_forward_hook(shortcut_hook))
            hooks.append(block.layer_attention.register_forward_hook(attention_hook))
    model(images)
    for hook in hooks:
        hook.remove()
    return given, shortcuts, left


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_layers_starts_empty_in_each_stage_and_grows_by_one(name):
    given, _, left = memories_given(small(name, layers=3), images_of())
    lengths = [[None if memory is None else len(memory) for memory in stage] for stage in given]
    assert lengths == [[None, 1, 2]] * 3
    assert [[len(memory) for memory in stage] for stage in left] == [[1, 2, 3]] * 3
    for stage_given, stage_left in zip(given, left, strict=True):
        assert stage_given[1] is stage_left[0] and stage_given[2] is stage_left[1]


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_wiring_hands_over_the_blocks_input_and_never_resets(name):
    given, shortcuts, _ = memories_given(small(name, layers=3), images_of())
    for stage_given, stage_shortcuts in zip(given, shortcuts, strict=True):
        assert all(memory is shortcut for memory, shortcut in zip(stage_given, stage_shortcuts, strict=True))


@pytest.mark.parametrize("name", CARRIES)
def test_a_carried_map_of_the_attentions_own_resets_in_each_stage(name):
    given, _, left = memories_given(small(name, layers=3), images_of())
    for stage_given, stage_left in zip(given, left, strict=True):
        assert stage_given[0] is None
        assert stage_given[1] is stage_left[0] and stage_given[2] is stage_left[1]


@pytest.mark.parametrize("name", ["depthwise", "depthwise-gated"])
def test_controls_without_memory_are_given_none(name):
    given, _, left = memories_given(small(name), images_of())
    assert given == left == [[None, None]] * 3


@every_attention
def test_a_relu_follows_the_norm_where_the_attention_asks_for_it(name):
    model = small(name)
    lowest = []
    for block in blocks_of(model):
        block.drop_path.register_forward_pre_hook(
            lambda module, inputs: lowest.append(float(inputs[0].detach().min())))
    model(images_of())
    assert len(lowest) == 6
    assert [minimum >= 0 for minimum in lowest] == [name in LISTS] * 6


@every_attention
def test_drop_path_drops_the_attention_branch_of_whole_images_in_training_alone(name):
    model = small(name, drop_path=0.5)
    assert sum(isinstance(module, DropPath) for module in model.modules()) == 6
    block, x = model.stages[0][0], torch.rand(64, 4, 6, 6, generator=torch.Generator().manual_seed(2))

    def output_and_parts():
        seen = []
        hooks = [module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
                 for module in (block.layer_attention, block.drop_path)]
        output, _ = block(x)
        for hook in hooks:
            hook.remove()
        return output, *seen

    output, without, branch = output_and_parts()
    pairs = zip(output, without, strict=True)
    dropped = torch.tensor([torch.equal(image, unattended) for image, unattended in pairs])
    assert 10 < int(dropped.sum()) < 54
    torch.testing.assert_close(output[~dropped], (without + 2 * branch)[~dropped])
    model.eval()
    output, without, branch = output_and_parts()
    assert torch.equal(output, without + branch)


def test_drop_path_keeps_the_mean():
    torch.manual_seed(0)
    kept = DropPath(0.2)(torch.ones(20_000, 1, 1, 1))
    assert sorted(set(kept.flatten().tolist())) == [0.0, 1.25]
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.02)


def test_a_callable_plugs_in_ones_own_module():
    model = small(ThirdOfTheInput, layers=3)
    channels = [block.layer_attention.scale.shape[0] for block in blocks_of(model)]
    assert channels == [4] * 3 + [8] * 3 + [16] * 3
    _, _, left = memories_given(model, images_of())
    assert left == [[1, 2, 3]] * 3                           # carried inside a stage, and not between stages
    gradients(model, images_of())
    assert all(block.layer_attention.scale.grad.abs().sum() > 0 for block in blocks_of(model))
    with record_attention(model) as weights:
        model(images_of())
    assert weights == [[None] * 3] * 3


def test_a_callable_of_our_own_class_equals_its_name():
    named = small("mrla-base", head_dim=2).eval()
    plugged = small(functools.partial(MRLABase, head_dim=2)).eval()
    plugged.load_state_dict(named.state_dict())
    assert torch.equal(named(images_of()), plugged(images_of()))


@both_blocks
def test_all_variants_of_one_seed_share_the_start_of_their_host(block):
    def drawn(**arguments):
        torch.manual_seed(3)
        return cifar_resnet(20, block=block, width=8, **arguments).state_dict()

    host = drawn()
    variants = [dict(layer_attention=name) for name in LAYER_ATTENTIONS] + [
        dict(channel_attention="se"), dict(channel_attention="eca"), dict(layer_attention=ThirdOfTheInput),
        dict(layer_attention="mrla-light", channel_attention="se", head_dim=4, drop_path=0.2)]
    for arguments in variants:
        variant = drawn(**arguments)
        assert len(variant) > len(host) or arguments == dict(channel_attention="eca")
        for name, tensor in host.items():
            assert torch.equal(tensor, variant[name]), (arguments, name)


@both_blocks
@pytest.mark.parametrize("shortcut", ["pad", "conv"])
def test_the_last_norm_of_a_branch_starts_at_0_unless_its_shortcut_is_padded(shortcut, block):
    torch.manual_seed(0)
    padded = 0
    model = cifar_resnet(20, block=block, width=4, shortcut=shortcut, layer_attention="mrla-light")
    for residual_block in blocks_of(model):
        *norms, last = [module for module in residual_block.residual if isinstance(module, nn.BatchNorm2d)]
        is_padded = isinstance(residual_block.shortcut, PadShortcut)
        padded += is_padded
        assert (last.weight == float(is_padded)).all() and (last.bias == 0).all()
        assert all((norm.weight == 1).all() for norm in [*norms, residual_block.attention_norm])
    assert padded == {("basic", "pad"): 2, ("bottleneck", "pad"): 3}.get((block, shortcut), 0)


def test_a_padded_shortcut_keeps_every_second_pixel_and_adds_zeros():
    x = torch.arange(2 * 3 * 5 * 5, dtype=torch.float32).reshape(2, 3, 5, 5)
    padded = PadShortcut(2, stride=2)(x)
    assert padded.shape == (2, 5, 3, 3)
    assert torch.equal(padded[:, :3], x[:, :, ::2, ::2]) and (padded[:, 3:] == 0).all()


# Training is sound from the first step


@every_variant
def test_the_first_gradient_of_a_deep_thin_net_is_small(name):
    torch.manual_seed(0)
    model = cifar_resnet(56, width=8, layer_attention=name)
    images, labels = structured_images(32, size=32)
    F.cross_entropy(model(images), labels).backward()
    norm = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
    assert 0.01 < float(norm) < 100


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[] if name in ("mrla-light-released", "mrla-base") else pytest.mark.slow)
    for name in [None, *LAYER_ATTENTIONS]])
def test_fifty_steps_of_a_deep_thin_net_lower_the_loss(name):
    torch.manual_seed(0)
    model = cifar_resnet(56, width=8, layer_attention=name)
    images, labels = structured_images(32, size=16)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    losses = []
    for step in range(50):
        batch = slice(step % 4 * 8, step % 4 * 8 + 8)
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        assert loss.isfinite(), f"step {step}"
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-4:]) < sum(losses[:4])
    assert all(parameter.isfinite().all() for parameter in model.parameters())


# Data types, layouts, copies, compilers


@every_variant
def test_float64_stays_float64(name):
    model = small(name, drop_path=0.1).double()
    assert model(images_of(dtype=torch.float64)).dtype == torch.float64
    for gradient in gradients(model, images_of(dtype=torch.float64)).values():
        assert gradient.dtype == torch.float64


@every_variant
def test_a_default_type_of_float64_builds_and_runs(name):
    torch.set_default_dtype(torch.float64)
    try:
        model = small(name, channel_attention="se", drop_path=0.1)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
        found = gradients(model, images_of(dtype=torch.float64))
        assert {gradient.dtype for gradient in found.values()} == {torch.float64}
        assert model.float()(images_of(dtype=torch.float32)).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


@every_variant
def test_a_default_device_holds_the_net_and_all_that_it_makes(name):
    """"meta" stands in for a GPU: what is made on the CPU in passing cannot meet it."""
    torch.set_default_device("meta")
    try:
        model = cifar_resnet(8, width=4, layer_attention=name, channel_attention="eca", drop_path=0.1)
        logits = model(torch.randn(4, 3, 8, 8))
        logits.sum().backward()
        with record_attention(model):
            assert model(torch.randn(4, 3, 8, 8)).device == logits.device == torch.device("meta")
    finally:
        torch.set_default_device(None)
    model = small(name, drop_path=0.1)                       # a net that lies elsewhere stays there
    if name not in WEIGHTED:
        return
    torch.set_default_device("meta")
    try:
        images = torch.zeros(4, 3, 8, 8, device="cpu")
        for how in ("mean", "shuffle", "uniform"):
            with freeze_attention(model, how, images):
                assert model(images).device == torch.device("cpu")
    finally:
        torch.set_default_device(None)


@every_variant
def test_bfloat16_autocast_stays_near_float32(name):
    model = small(name, channel_attention="se", drop_path=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        F.cross_entropy(model(images_of()), torch.arange(4)).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    model.eval()
    exact = model(images_of())
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(images_of())
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().max() < 0.1 * exact.abs().max() + 0.05


@both_blocks
@every_variant
def test_channels_last_gives_the_same_values(name, block):
    model = small(name, block, channel_attention="eca").double()
    images = images_of(dtype=torch.float64)
    expected, expected_gradients = model(images), gradients(model, images)
    model = model.to(memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-10)
    for key, gradient in gradients(model, images).items():
        torch.testing.assert_close(gradient, expected_gradients[key], rtol=1e-8, atol=1e-8)


@every_attention
def test_a_deep_copy_is_equal_and_independent(name):
    model = small(name).eval()
    before = model(images_of())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1)
    assert torch.equal(model(images_of()), before) and not torch.allclose(twin(images_of()), before)


@both_blocks
@every_attention
def test_a_state_dict_makes_the_same_net_of_another_seed(name, block, tmp_path):
    model, other = (small(name, block, channel_attention="se", seed=seed) for seed in (0, 1))
    model(images_of())                                       # so that the buffers are not as they began
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True), strict=True)
    assert torch.equal(model.eval()(images_of()), other.eval()(images_of()))


@pytest.fixture
def empty_compiler():
    """The compiler gives up a function that it has compiled some times: nets of other tests would count."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.slow
@every_attention
def test_a_traced_net_equals_itself(name, empty_compiler):
    model = small(name)
    twin = copy.deepcopy(model)
    expected = gradients(model, images_of())
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    found = gradients(compiled, images_of())
    for key, gradient in expected.items():
        torch.testing.assert_close(found[f"_orig_mod.{key}"], gradient, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled.eval()(images_of()), model.eval()(images_of()))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="inductor needs a C++ compiler, rare on Windows")
def test_a_compiled_net_equals_itself(empty_compiler):
    model = small("mrla-light", layers=1)
    twin = copy.deepcopy(model)
    expected = gradients(model, images_of())
    for key, gradient in gradients(torch.compile(twin, fullgraph=True), images_of()).items():
        torch.testing.assert_close(gradient, expected[key.removeprefix("_orig_mod.")], rtol=1e-3, atol=1e-4)


@both_blocks
@every_variant
def test_no_image_at_all_and_images_of_one_pixel(name, block):
    model = small(name, block, channel_attention="se", drop_path=0.1).eval()
    assert model(images_of(0)).shape == (0, 10)
    logits = model(images_of(3, size=1))
    assert logits.shape == (3, 10) and logits.isfinite().all()
    torch.testing.assert_close(model(images_of(3, size=1))[1:2], model(images_of(3, size=1)[1:2]))
    assert model(images_of(2, size=7)).isfinite().all()      # odd: maps of 7, 4 and 2 pixels


def _train_in_parallel(rank, folder):
    """One of two processes: each net's gradients, against their mean over the two computed by hand."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    for name in [None, *LAYER_ATTENTIONS]:
        model = small(name)
        alone = copy.deepcopy(model)
        parallel = nn.parallel.DistributedDataParallel(model, find_unused_parameters=False)
        for step in range(2):                       # an unused parameter is only reported at the second step
            images = images_of(seed=10 * step + rank)
            found, expected = gradients(parallel, images), gradients(alone, images)
            for key, gradient in expected.items():
                torch.distributed.all_reduce(gradient)
                torch.testing.assert_close(found[f"module.{key}"], gradient / 2, rtol=1e-4, atol=1e-4)
    os._exit(0)     # all was checked; while Python ends, a late thread of gloo would abort the process


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="gloo between processes is not dependable on Windows")
def test_data_parallel_training_averages_every_gradient(tmp_path):
    torch.multiprocessing.spawn(_train_in_parallel, args=(str(tmp_path),), nprocs=2)


def checkpointed_gradients(model, images, use_reentrant):
    """The gradients of a net whose blocks are run again in the backward pass."""
    model.zero_grad()
    x = model.stem(images)
    for stage in model.stages:
        memory = None
        for block in stage:
            x, memory = checkpoint(block, x, memory, use_reentrant=use_reentrant)
    model.classifier(x.mean(dim=(2, 3))).square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@every_variant
def test_checkpointed_blocks_learn_the_same_or_say_that_they_cannot(name):
    """torch's reentrant form loses the gradients of a list memory, and would train wrongly without a word."""
    model = small(name, layers=3).double()
    images = images_of(dtype=torch.float64)
    wanted = gradients(model, images)
    for use_reentrant in (False, True):
        if use_reentrant and name in LISTS:
            with pytest.warns(UserWarning, match="reentrant checkpointing .* use_reentrant=False"):
                checkpointed_gradients(model, images, use_reentrant)
            continue
        for key, gradient in checkpointed_gradients(model, images, use_reentrant).items():
            torch.testing.assert_close(gradient, wanted[key], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", sorted(LISTS))
def test_checkpointed_blocks_after_frozen_ones_learn_the_same(name):
    model = small(name, layers=3).double()
    for part in (model.stem, model.stages[0][0]):
        part.requires_grad_(False)
    images = images_of(dtype=torch.float64)
    model.zero_grad()
    model(images).square().sum().backward()
    wanted = {key: parameter.grad for key, parameter in model.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")         # a frozen entry looks like a lost one
        model.zero_grad()
        given = checkpointed_gradients(model, images, use_reentrant=False)
    assert any(gradient is not None for gradient in given.values())
    for key, gradient in given.items():
        assert (gradient is None) == (wanted[key] is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, wanted[key], rtol=1e-9, atol=1e-9)


# Bad input


@pytest.mark.parametrize("arguments, message", [
    (dict(depth=21), r"depth must be 6n \+ 2 with basic blocks \(8, 14, 20, .*\), not 21"),
    (dict(depth=26, block="bottleneck"),
     r"depth must be 9n \+ 2 with bottleneck blocks \(11, 20, .*\), not 26"),
    (dict(depth=2), "depth must be .* not 2"),
    (dict(depth=-4), "depth must be .* not -4"),
    (dict(depth=20.0), "depth must be .* not 20.0"),
    (dict(block="wide"), "block must be one of 'basic', 'bottleneck', not 'wide'"),
    (dict(shortcut="identity"), "shortcut must be one of 'pad', 'conv', not 'identity'"),
    (dict(shortcut=""), "shortcut must be one of 'pad', 'conv', not ''"),
    (dict(layer_attention="mrla"),
     "layer_attention must be None, one of 'layer', .*'uniform'.*callable.*, not 'mrla'"),
    (dict(layer_attention=3), "layer_attention must be .*, not 3"),
    (dict(layer_attention=lambda channels: None),
     "layer_attention must return a module for 16 channels, not None"),
    (dict(channel_attention="cbam"), "channel_attention must be one of None, 'se', 'eca', not 'cbam'"),
    (dict(head_dim=8), "head_dim=8 needs a layer_attention"),
    (dict(head_dim=8, layer_attention=ThirdOfTheInput), "head_dim=8 is for the named attentions"),
    (dict(head_dim=5, layer_attention="mrla-light"),
     r"head_dim must divide channels=16 .*\[1, 2, 4, 8, 16\].*, not 5"),
    (dict(width=0), "width must be a positive integer, not 0"),
    (dict(width=1.5), "width must be a positive integer, not 1.5"),
    (dict(num_classes=0), "num_classes must be a positive integer, not 0"),
    (dict(num_classes=True), "num_classes must be a positive integer, not True"),
    (dict(in_channels=0), "in_channels must be a positive integer, not 0"),
    (dict(drop_path=True), "drop_path must be at least 0 and below 1, not True"),
    (dict(drop_path=float("nan")), "drop_path must be at least 0 and below 1, not nan"),
    (dict(drop_path=1.0, layer_attention="mrla-light"), "drop_path must be at least 0 and below 1, not 1.0"),
    (dict(drop_path=-0.1), "drop_path must be at least 0 and below 1, not -0.1"),
    (dict(drop_path="much"), "drop_path must be at least 0 and below 1, not 'much'"),
])
def test_a_wrong_argument_is_named_with_what_is_allowed(arguments, message):
    with pytest.raises(ValueError, match=message):
        cifar_resnet(**arguments)


@pytest.mark.parametrize("arguments, message", [
    (dict(depth=34), "depth must be one of 50, 101, not 34"),
    (dict(stem="patch"), "stem must be one of 'conv7', 'deep', not 'patch'"),
    (dict(num_classes=0), "num_classes must be a positive integer, not 0"),
    (dict(in_channels=3.0), "in_channels must be a positive integer, not 3.0"),
    (dict(layer_attention="light"), "layer_attention must be None, one of .*, not 'light'"),
    (dict(channel_attention="ECA"), "channel_attention must be one of .*, not 'ECA'"),
    (dict(head_dim=16), "head_dim=16 needs a layer_attention"),
])
def test_a_wrong_argument_of_an_imagenet_resnet_is_named_too(arguments, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        imagenet_resnet(**arguments)


def test_images_of_another_shape_or_type_are_refused():
    assert_refuses_wrong_images(small("mrla-light"), "(batch, 3, height, width)")
