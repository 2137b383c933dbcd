"""Every attention and control as networks use it: types, layouts, copies, compilers, sizes, what is saved."""

import copy
import io

import pytest
import torch
from layer_tools import assert_equal, hold_weights, make_layers, make_maps, run_stage
from torch import nn
from torch.utils.checkpoint import checkpoint

from mrla_minimal import (
    DepthwiseCarry,
    DepthwiseGated,
    DepthwiseValue,
    EfficientChannelAttention,
    LayerAttention,
    MRLABase,
    MRLALight,
    SqueezeExcitation,
    UniformMean,
)
from mrla_minimal.hosting import FAMILY_ATTENTIONS
from mrla_minimal.layer_attention import pool

MODULES = (LayerAttention, MRLABase, MRLALight, DepthwiseValue, DepthwiseGated, DepthwiseCarry, UniformMean)
every_module = pytest.mark.parametrize("module", MODULES)
CHANNELS_LAST = torch.channels_last


def stage(module, count=3, dtype=torch.float32, batch=2, channels=8, height=5, width=4):
    layers = [layer.to(dtype) for layer in make_layers(module, count, channels)]
    return layers, [x.to(dtype).requires_grad_() for x in make_maps(count, batch, channels, height, width)]


def run_and_differentiate(layers, maps, scale=1.0):
    """The outputs, and the gradients of `scale` times their squares' sum by every map and parameter."""
    outputs = run_stage(layers, maps)
    leaves = [*maps, *(parameter for layer in layers for parameter in layer.parameters())]
    loss = scale * sum(output.float().square().sum() for output in outputs)
    return outputs, torch.autograd.grad(loss, leaves)


# Data types


@every_module
def test_float64_stays_float64_and_float32_agrees(module):
    layers, maps = stage(module, dtype=torch.float64)
    outputs, gradients = run_and_differentiate(layers, maps)
    assert {tensor.dtype for tensor in (*outputs, *gradients)} == {torch.float64}
    singles = [x.detach().float().requires_grad_() for x in maps]
    outputs32, gradients32 = run_and_differentiate([layer.float() for layer in layers], singles)
    assert {tensor.dtype for tensor in (*outputs32, *gradients32)} == {torch.float32}
    for single, double in zip((*outputs32, *gradients32), (*outputs, *gradients), strict=True):
        assert (single - double).norm() <= 1e-4 * double.norm()


@every_module
def test_bfloat16_autocast_stays_close_to_float32(module):
    layers, maps = stage(module, count=4)
    wanted, wanted_gradients = run_and_differentiate(layers, maps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = run_stage(layers, maps)
    leaves = [*maps, *(parameter for layer in layers for parameter in layer.parameters())]
    gradients = torch.autograd.grad(sum(output.float().square().sum() for output in outputs), leaves)
    assert all(output.dtype == torch.bfloat16 for output in outputs)
    for given, exact in zip(outputs, wanted, strict=True):
        assert (given - exact).norm() <= 0.05 * exact.norm()
    # Gradients all together: some of the few query and key weights have small sums of large terms.
    given, exact = (torch.cat([gradient.flatten() for gradient in each])
                    for each in (gradients, wanted_gradients))
    assert (given - exact).norm() <= 0.1 * exact.norm()


@every_module
def test_a_memory_may_cross_the_border_of_autocast(module):
    """A layer under autocast hands its memory to one outside, and back; x may come in either type."""
    layers, maps = stage(module)
    wanted = run_stage(layers, maps)
    memory, outputs = None, []
    for t, (layer, x) in enumerate(zip(layers, maps, strict=True)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=t % 2 == 0):
            output, memory = layer(x.bfloat16() if t == 2 else x, memory)
        outputs.append(output)
    assert [output.dtype for output in outputs] == [torch.bfloat16, torch.float32, torch.bfloat16]
    for output, exact in zip(outputs, wanted, strict=True):
        assert (output - exact).norm() <= 0.05 * exact.norm()
    sum(output.float().sum() for output in outputs).backward()
    assert all(x.grad.isfinite().all() and x.grad.any() for x in maps)


def of_type(memory, dtype):
    """The memory with all its tensors in another type."""
    if isinstance(memory, (list, tuple)):
        return type(memory)(of_type(part, dtype) for part in memory)
    return memory.to(dtype) if isinstance(memory, torch.Tensor) else memory


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("module", (*MODULES, *FAMILY_ATTENTIONS.values()))
def test_a_memory_of_another_type_is_taken_in_the_layers_own(module, dtype):
    layers, maps = stage(module)
    layers, maps = [layer.float() for layer in layers], [x.detach().float() for x in maps]
    wanted = run_stage(layers, maps)
    memory = None
    for layer, x, exact in zip(layers, maps, wanted, strict=True):
        output, memory = layer(x, memory)
        assert output.dtype == torch.float32 and (output - exact).norm() <= 0.05 * exact.norm()
        memory = of_type(memory, dtype)


@pytest.mark.parametrize("module", (*MODULES, *FAMILY_ATTENTIONS.values()))
@pytest.mark.parametrize("channels", [2.0, "a", None, True, 0])
def test_channels_must_be_a_positive_integer(module, channels):
    with pytest.raises(ValueError, match=f"channels must be a positive integer, not {channels!r}"):
        module(channels)


@pytest.mark.parametrize("module", [LayerAttention, MRLABase, MRLALight, DepthwiseGated])
def test_weights_of_a_wider_type_do_not_widen_the_output(module):
    """On some devices autocast runs the softmax in float32."""
    layers, maps = stage(module)
    for layer in layers:
        hold_weights(layer, lambda weights: weights.double())
    assert {output.dtype for output in run_stage(layers, maps)} == {torch.float32}


@every_module
def test_all_in_bfloat16(module):
    layers, maps = stage(module, dtype=torch.bfloat16)
    outputs, gradients = run_and_differentiate(layers, maps)
    exact = run_stage([layer.float() for layer in layers], [x.float() for x in maps])
    for output, wanted in zip(outputs, exact, strict=True):
        assert output.dtype == torch.bfloat16 and (output - wanted).norm() <= 0.05 * wanted.norm()
    assert all(gradient.dtype == torch.bfloat16 and gradient.isfinite().all() for gradient in gradients)


class ChannelAttentionAsLayer(nn.Module):
    """A channel attention in a layer attention's signature, so that the same stage runs it."""

    attention = None

    def __init__(self, channels):
        super().__init__()
        self.inside = self.attention(channels)

    def forward(self, x, memory=None):
        return self.inside(x), None


class SqueezeExcitationLayer(ChannelAttentionAsLayer):
    attention = SqueezeExcitation


class EfficientChannelAttentionLayer(ChannelAttentionAsLayer):
    attention = EfficientChannelAttention


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("module", [*MODULES, SqueezeExcitationLayer, EfficientChannelAttentionLayer])
def test_half_precision_on_large_maps_stays_near_float32(module, dtype):
    """288 x 288 pixels of about 1 add up to 83,000, above the largest float16 number, 65,504.

    So would a weight's gradient, a sum over the pixels, for a loss that is one: hence the scale.
    """
    torch.manual_seed(0)
    layers = [module(4) for _ in range(2)]
    maps = [1.0 + 0.5 * torch.randn(2, 4, 288, 288) for _ in range(2)]
    exact, exact_gradients = run_and_differentiate(layers, [x.requires_grad_() for x in maps], scale=1e-3)
    halves = [x.detach().to(dtype).requires_grad_() for x in maps]
    outputs, gradients = run_and_differentiate([layer.to(dtype) for layer in layers], halves, scale=1e-3)
    for output, wanted in zip(outputs, exact, strict=True):
        assert output.dtype == dtype and (output - wanted).norm() <= 0.02 * wanted.norm()
    for gradient, wanted in zip(gradients[:2], exact_gradients[:2], strict=True):       # of the maps
        assert (gradient - wanted).norm() <= 0.05 * wanted.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_pool_is_the_mean_rounded_once(dtype):
    x = (3.0 + torch.randn(2, 4, 288, 288, generator=torch.Generator().manual_seed(0))).to(dtype)
    assert pool(x).dtype == dtype
    torch.testing.assert_close(pool(x)[:, 0], x.double().mean(dim=(2, 3)).to(dtype), rtol=1e-3, atol=0)


@pytest.fixture
def float64_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@every_module
def test_a_default_type_of_float64_builds_and_runs(module, float64_by_default):
    layers = [module(8) for _ in range(3)]
    assert all(parameter.dtype == torch.float64 for layer in layers for parameter in layer.parameters())
    maps = [torch.randn(2, 8, 5, 4, requires_grad=True) for _ in layers]
    outputs, gradients = run_and_differentiate(layers, maps)
    assert {tensor.dtype for tensor in (*outputs, *gradients)} == {torch.float64}
    singles = [layer.float() for layer in layers]       # a float32 net is not widened by the default
    outputs = run_stage(singles, [x.detach().float() for x in maps])
    assert {output.dtype for output in outputs} == {torch.float32}


@every_module
def test_a_default_device_is_the_device_of_everything(module):
    """"meta" stands in for a GPU: a tensor made on the CPU in passing would be an error there, as here."""
    torch.set_default_device("meta")
    try:
        layers = [module(8) for _ in range(3)]
        maps = [torch.randn(2, 8, 5, 4, requires_grad=True) for _ in layers]
        outputs, _ = run_and_differentiate(layers, maps)
        assert {output.device.type for output in outputs} == {"meta"}
    finally:
        torch.set_default_device(None)
    on_cpu = [module(8) for _ in range(3)]
    torch.set_default_device("meta")        # a net that lies elsewhere stays there
    try:
        maps = [torch.randn(2, 8, 5, 4, device="cpu") for _ in on_cpu]
        assert {output.device.type for output in run_stage(on_cpu, maps)} == {"cpu"}
    finally:
        torch.set_default_device(None)


# Layouts


def lies_channels_last(tensor):
    """Channels vary fastest; sizes above 1 everywhere, so that the strides tell the two layouts apart."""
    assert min(tensor.shape) > 1
    _, channels, _, width = tensor.shape
    return tensor.stride() == (tensor[0].numel(), 1, width * channels, channels)


@every_module
def test_channels_last_gives_the_same_values_and_keeps_its_layout(module):
    layers, maps = stage(module, dtype=torch.float64)
    wanted = run_and_differentiate(layers, maps)
    laid_out = [x.detach().to(memory_format=CHANNELS_LAST).requires_grad_() for x in maps]
    copies = [copy.deepcopy(layer).to(memory_format=CHANNELS_LAST) for layer in layers]
    outputs, gradients = run_and_differentiate(copies, laid_out)
    for given, exact in zip((*outputs, *gradients), (*wanted[0], *wanted[1]), strict=True):
        assert_equal(given, exact)
    assert all(lies_channels_last(output) for output in outputs)
    assert all(lies_channels_last(gradient) for gradient in gradients[: len(maps)])


@pytest.mark.parametrize("module", [MRLALight, DepthwiseCarry])
def test_a_carried_map_and_its_gradient_keep_channels_last(module):
    layer, = stage(module, count=1)[0]
    maps = make_maps(2, 2, 8, 5, 4, dtype=torch.float32)
    x, carried = (x.to(memory_format=CHANNELS_LAST).requires_grad_() for x in maps)
    output, memory = layer(x, carried)
    kept = []
    output.register_hook(lambda gradient: kept.append(gradient))
    torch.nn.functional.relu(output).square().sum().backward()
    assert all(lies_channels_last(tensor) for tensor in (output, memory, kept[0], x.grad, carried.grad))


@pytest.mark.parametrize("module", [SqueezeExcitation, EfficientChannelAttention])
def test_channel_attentions_keep_channels_last(module):
    attention = module(8)
    x = make_maps(1, 2, 8, 5, 4, dtype=torch.float32)[0].to(memory_format=CHANNELS_LAST).requires_grad_()
    output = attention(x)
    output.square().sum().backward()
    assert lies_channels_last(output) and lies_channels_last(x.grad)
    assert_equal(output, attention(x.detach().contiguous()), tolerance=1e-6)


# Copies, records, compilers


@every_module
def test_a_deep_copy_is_equal_and_independent(module):
    layers, maps = stage(module)
    before = run_stage(layers, maps)
    copies = copy.deepcopy(layers)
    for given, wanted in zip(run_stage(copies, maps), before, strict=True):
        assert torch.equal(given, wanted)
    with torch.no_grad():
        for layer in copies:
            for parameter in layer.parameters():
                parameter.zero_()
    for given, wanted in zip(run_stage(layers, maps), before, strict=True):
        assert torch.equal(given, wanted)


@every_module
def test_a_state_dict_goes_out_and_in(module):
    layers, maps = stage(module)
    file = io.BytesIO()
    torch.save(nn.ModuleList(layers).state_dict(), file)
    file.seek(0)
    others = nn.ModuleList(module(8) for _ in layers)
    others.load_state_dict(torch.load(file, weights_only=True))
    for given, wanted in zip(run_stage(others, maps), run_stage(layers, maps), strict=True):
        assert torch.equal(given, wanted)


@pytest.mark.parametrize("layout", [torch.contiguous_format, CHANNELS_LAST])
@every_module
def test_a_compiled_stage_equals_the_eager_one(module, layout):
    layers, maps = stage(module)
    maps = [x.detach().to(memory_format=layout).requires_grad_() for x in maps]
    torch.compiler.reset()
    compiled = torch.compile(lambda maps: run_stage(layers, maps), backend="aot_eager", fullgraph=True)
    outputs = compiled(maps)
    gradients = torch.autograd.grad(sum(output.square().sum() for output in outputs), maps)
    wanted, wanted_gradients = run_and_differentiate(layers, maps)
    for given, exact in zip((*outputs, *gradients), (*wanted, *wanted_gradients[: len(maps)]), strict=True):
        torch.testing.assert_close(given, exact, rtol=1e-5, atol=1e-5)


def test_values_of_two_types_are_summed_in_the_asking_layers_own():
    layers, maps = stage(MRLABase, count=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first, memory = layers[0](maps[0])
    assert first.dtype == torch.bfloat16 and layers[1](maps[1], memory)[0].dtype == torch.float32


# Odd sizes


@every_module
def test_an_empty_batch(module):
    layers, maps = stage(module, batch=0)
    outputs, gradients = run_and_differentiate(layers, maps)
    assert all(output.shape == (0, 8, 5, 4) for output in outputs)
    assert all(not gradient.any() for gradient in gradients)


@every_module
def test_maps_of_one_pixel(module):
    """One pixel meets the middle of each 3x3 kernel alone: the other eight weights have no gradient."""
    layers, maps = stage(module, height=1, width=1)
    outputs, gradients = run_and_differentiate(layers, maps)
    assert all(output.shape == (2, 8, 1, 1) for output in outputs)
    assert all(tensor.isfinite().all() for tensor in (*outputs, *gradients))
    kernels = [gradient.flatten(start_dim=1) for gradient in gradients if gradient.shape == (8, 1, 3, 3)]
    assert len(kernels) == 3
    for kernel in kernels:
        assert kernel[:, 4].all() and not kernel[:, :4].any() and not kernel[:, 5:].any()


# Checkpointing


def checkpointed_gradients(layers, maps, **arguments):
    memory, outputs = None, []
    for layer, x in zip(layers, maps, strict=True):
        output, memory = checkpoint(layer, x, memory, **arguments)
        outputs.append(output)
    leaves = [*maps, *(parameter for layer in layers for parameter in layer.parameters())]
    loss = sum(output.float().square().sum() for output in outputs)
    for leaf in leaves:
        leaf.grad = None
    loss.backward()
    return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]


@every_module
def test_checkpointing_changes_no_gradient(module):
    layers, maps = stage(module, dtype=torch.float64)
    _, wanted = run_and_differentiate(layers, maps)
    for given, exact in zip(checkpointed_gradients(layers, maps, use_reentrant=False), wanted, strict=True):
        assert_equal(given, exact)


@every_module
def test_reentrant_checkpointing_is_right_or_warned_of(module):
    """torch's reentrant form knows no tensor inside a list: its gradients would be silently wrong.

    Eq. 4's list holds maps from outside the layer, whose gradients survive; of a block there is a warning.
    """
    layers, maps = stage(module, dtype=torch.float64)
    if module in (MRLABase, UniformMean):
        with pytest.warns(UserWarning, match="reentrant checkpointing .* use_reentrant=False"):
            checkpointed_gradients(layers, maps, use_reentrant=True)
        return
    _, wanted = run_and_differentiate(layers, maps)
    for given, exact in zip(checkpointed_gradients(layers, maps, use_reentrant=True), wanted, strict=True):
        assert_equal(given, exact)


def test_a_list_memory_without_gradients_is_no_error_outside_a_backward_pass():
    layers, maps = stage(MRLABase, count=2)
    with torch.no_grad():
        _, memory = layers[0](maps[0])
    output, _ = layers[1](maps[1], memory)
    output.sum().backward()
    assert maps[1].grad.any() and maps[0].grad is None


# What the backward pass keeps


def saved_maps(module, count, learned=None):
    """What autograd keeps for a stage of `count` layers.

    How many storages of at least one map, each counted once, and how many maps they amount to. `learned` says
    of a parameter's name whether it asks for a gradient.
    """
    layers, maps = stage(module, count)
    for layer in layers:
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(learned is None or learned(name))
    size = maps[0].numel() * maps[0].element_size()
    saved = {}

    def keep(tensor):
        if tensor.untyped_storage().nbytes() >= size:
            saved[tensor.untyped_storage().data_ptr()] = tensor     # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = run_stage(layers, maps)
    assert len(outputs) == count
    return len(saved), sum(tensor.untyped_storage().nbytes() for tensor in saved.values()) / size


# Every value convolution keeps its x. Beside these: base the T values; Eq. 4 a value for each pair of layers;
# light the T values (for the gate) and the T - 1 carried maps (for lambda); a mean of values needs none.
SAVED_MAPS = {
    LayerAttention: lambda layers: layers + layers * (layers + 1) // 2,
    MRLABase: lambda layers: 2 * layers,
    MRLALight: lambda layers: 3 * layers - 1,
    DepthwiseValue: lambda layers: layers,
    DepthwiseGated: lambda layers: 2 * layers,
    DepthwiseCarry: lambda layers: 2 * layers - 1,
    UniformMean: lambda layers: layers,
}


@every_module
@pytest.mark.parametrize("count", [3, 6, 12])
def test_maps_kept_for_the_backward_pass(module, count):
    storages, maps_of_memory = saved_maps(module, count)
    assert storages == SAVED_MAPS[module](count)
    assert maps_of_memory == storages                                   # none of them is larger than one map


def test_what_no_gradient_will_ask_for_is_not_kept():
    """Light without lambda_o's gradient needs no carried map, and without query's and key's no value."""
    for count in (3, 6):
        assert saved_maps(MRLALight, count, lambda name: name != "lambda_o")[0] == 2 * count
        without_gate = saved_maps(MRLALight, count, lambda name: name == "value.weight")
        assert without_gate[0] == 2 * count                             # x still reaches the gate
        assert saved_maps(MRLABase, count, lambda name: False)[0] == 2 * count
