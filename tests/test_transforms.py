"""What plain expressions are good for: torch.func, gradients of gradients, tracing, export."""

import copy

import pytest
import torch
from layer_tools import assert_equal, make_layers, make_maps, run_stage
from torch import nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

from mrla_minimal import LayerAttention, MRLABase, MRLALight

LAYERS = 3
# torch itself uses torch.jit for jvp.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
every_attention = pytest.mark.parametrize("attention", [LayerAttention, MRLABase, MRLALight])


class Stage(nn.Module):
    """Maps (layers, batch, channels, height, width) -> the outputs of all layers, the memory handed on."""

    def __init__(self, attention, seed=0):
        super().__init__()
        self.layers = nn.ModuleList(make_layers(attention, LAYERS, channels=4, seed=seed, head_dim=2))

    def forward(self, maps):
        return torch.stack(run_stage(self.layers, maps))


def stage_and_maps(attention):
    """A stage; its parameters, detached, by name; and maps that its layers read."""
    stage = Stage(attention)
    parameters = {name: parameter.detach() for name, parameter in stage.named_parameters()}
    return stage, parameters, torch.stack(make_maps(LAYERS, 2, 4, 4, 3))


def drawn_like(tree, seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            for name, tensor in tree.items()}


@every_attention
def test_forward_mode_and_backward_mode_are_each_others_transpose(attention):
    """u . (J v) = (J^T u) . v, for a step v of the maps and of every parameter."""
    stage, parameters, maps = stage_and_maps(attention)
    inputs = parameters | {"maps": maps}

    def output(inputs):
        return functional_call(stage, {name: inputs[name] for name in parameters}, (inputs["maps"],))

    step = drawn_like(inputs, seed=1)
    outputs, change = jvp(output, (inputs,), (step,))
    assert_equal(outputs, stage(maps))
    direction = drawn_like({"output": outputs}, seed=2)["output"]
    gradients = grad(lambda inputs: (direction * output(inputs)).sum())(inputs)
    backward = sum((gradients[name] * step[name]).sum() for name in inputs)
    assert change.abs().max() > 0.1
    torch.testing.assert_close((direction * change).sum(), backward, rtol=1e-10, atol=0)


@every_attention
def test_vmap_over_stages_of_maps_is_a_loop_over_them(attention):
    stage, _, maps = stage_and_maps(attention)
    several = torch.stack([maps, maps.flip(0), 2 * maps])
    assert_equal(vmap(stage)(several), torch.stack([stage(maps) for maps in several]))


@every_attention
def test_vmap_of_grad_gives_the_gradients_of_each_image(attention):
    stage, parameters, maps = stage_and_maps(attention)

    def loss(parameters, image):
        return functional_call(stage, parameters, (image[:, None],)).square().sum()

    found = vmap(grad(loss), in_dims=(None, 1))(parameters, maps)
    for image in range(maps.shape[1]):
        wanted = grad(loss)(parameters, maps[:, image])
        for name, gradient in wanted.items():
            assert_equal(found[name][image], gradient, tolerance=1e-8)


@every_attention
def test_an_ensemble_of_stacked_states_is_its_members_one_by_one(attention):
    members = [Stage(attention, seed) for seed in range(3)]
    _, _, maps = stage_and_maps(attention)
    parameters, buffers = stack_module_state(members)
    one = copy.deepcopy(members[0]).to("meta")

    def member(parameters, buffers):
        return functional_call(one, (parameters, buffers), (maps,))

    assert_equal(vmap(member)(parameters, buffers), torch.stack([stage(maps) for stage in members]))


@every_attention
def test_gradients_of_gradients(attention):
    """Of every parameter and map: torch's numerical check, and grad of grad along one direction."""
    stage, parameters, maps = stage_and_maps(attention)
    maps = maps[:, :1, :, :2, :2].contiguous()
    inputs = parameters | {"maps": maps}

    def loss(*values):
        given = dict(zip(inputs, values, strict=True))
        outputs = functional_call(stage, {name: given[name] for name in parameters}, (given["maps"],))
        return outputs.square().mean()

    assert torch.autograd.gradgradcheck(loss, [tensor.clone().requires_grad_() for tensor in inputs.values()])

    def slope(maps):
        return grad(lambda maps: loss(*parameters.values(), maps))(maps).sum()

    leaf = maps.clone().requires_grad_()
    first, = torch.autograd.grad(loss(*parameters.values(), leaf), leaf, create_graph=True)
    second, = torch.autograd.grad(first.sum(), leaf)
    assert_equal(grad(slope)(maps), second)
    assert second.abs().max() > 1e-3


@every_attention
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_traced_stage_equals_itself_on_other_maps(attention):
    stage, _, maps = stage_and_maps(attention)
    traced = torch.jit.trace(stage, maps)
    assert_equal(traced(-2 * maps), stage(-2 * maps))


@every_attention
def test_an_exported_stage_equals_itself_for_any_batch(attention):
    stage, _, maps = stage_and_maps(attention)
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(stage, (maps,), dynamic_shapes=({1: batch},)).module()
    other = torch.stack(make_maps(LAYERS, 5, 4, 4, 3, seed=7))
    assert_equal(exported(other), stage(other))
