"""The depth-weighted relatives: each against its equation in loops, against its kin, and at its start."""

import math

import pytest
import torch
from layer_tools import assert_equal, gradient_check, hold_weights, make_layers, make_maps, run_stage
from torch import nn

from mrla_minimal import UniformMean, cifar_resnet, record_attention
from mrla_minimal.course.checks import as_trained, signature
from mrla_minimal.family.depth_weights import (
    NAMES,
    AttentionResiduals,
    BlockAttentionResiduals,
    DenseFormer,
    KeyCorrelatedAttention,
    MUDDFormer,
)
from mrla_minimal.lab import figures
from mrla_minimal.lab.engine import TrainConfig
from mrla_minimal.lab.engine.model import build_model

CHANNELS, LAYERS = 6, 4
MEMBERS = (DenseFormer, MUDDFormer, AttentionResiduals, BlockAttentionResiduals, KeyCorrelatedAttention)
WEIGHTED = (DenseFormer, MUDDFormer, AttentionResiduals)
every_member = pytest.mark.parametrize("member", MEMBERS)


def stage(member, seed=0, count=LAYERS, **arguments):
    layers = make_layers(member, count, CHANNELS, seed=seed, **arguments)
    return layers, make_maps(count, 3, CHANNELS, 4, 5, seed=seed + 1)


def values_of(layers, maps):
    return [layer.value(x) for layer, x in zip(layers, maps, strict=True)]


def rms(row):
    return row / (row.square().mean(dim=-1, keepdim=True) + torch.finfo(row.dtype).eps).sqrt()


# Each is its equation, image by image

def test_denseformer_counts_back_from_the_layer_that_asks():
    layers, maps = stage(DenseFormer)
    values, outputs = values_of(layers, maps), run_stage(layers, maps)
    for t, output in enumerate(outputs):
        assert_equal(output, sum(layers[t].by_distance[t - s] * values[s] for s in range(t + 1)))


def test_mudds_weights_are_a_function_of_the_reader_alone():
    layers, maps = stage(MUDDFormer)
    values, outputs = values_of(layers, maps), run_stage(layers, maps)
    for t, (layer, output) in enumerate(zip(layers, outputs, strict=True)):
        for image in range(3):
            row = rms(maps[t][image].mean(dim=(1, 2)))
            weights = layer.leave.weight @ nn.functional.gelu(layer.enter.weight @ row) + layer.leave.bias
            assert_equal(output[image], sum(weights[t - s] * values[s][image] for s in range(t + 1)))


def by_hand(query, entries):
    """softmax over the entries (one image, maps) of query . rms(pooled entry), and their weighted sum."""
    logits = torch.stack([query @ rms(entry.mean(dim=(1, 2))) for entry in entries])
    return sum(weight * entry for weight, entry in zip(logits.softmax(dim=0), entries, strict=True))


def test_attention_residuals_weigh_by_what_each_value_holds():
    layers, maps = stage(AttentionResiduals)
    values, outputs = values_of(layers, maps), run_stage(layers, maps)
    for t, output in enumerate(outputs):
        for image in range(3):
            entries = [value[image] for value in values[: t + 1]]
            assert_equal(output[image], by_hand(layers[t].query[0], entries))


def test_block_attention_residuals_weigh_sums():
    layers, maps = stage(BlockAttentionResiduals, count=7, block=3)
    values, outputs = values_of(layers, maps), run_stage(layers, maps)
    for t, output in enumerate(outputs):
        sums = [sum(values[first : min(first + 3, t + 1)]) for first in range(0, t + 1, 3)]
        for image in range(3):
            assert_equal(output[image], by_hand(layers[t].query[0], [total[image] for total in sums]))


def test_kcla_is_a_mean_weighted_by_the_sizes_of_keys():
    layers, maps = stage(KeyCorrelatedAttention, head_dim=2)
    assert_equal(layers[0].slopes, torch.tensor([0.7, 1.0, 1 / 0.7], dtype=torch.float64), 1e-6)
    outputs, shares = run_stage(layers, maps), []
    for layer, x, output in zip(layers, maps, outputs, strict=True):
        row = x.mean(dim=(2, 3))[:, None]
        query, key = (projection(row).view(3, 3, 2) for projection in (layer.query, layer.key))
        shares.append((key.norm(dim=-1) * layer.slopes).clamp(max=10).exp())                # (batch, heads)
        wide = [share.repeat_interleave(2, dim=1)[:, :, None, None] for share in shares]
        mean = sum(share * x for share, x in zip(wide, maps, strict=False)) / sum(wide)
        gate = layer.mix((query * key).sum(dim=-1) / key.norm(dim=-1)).sigmoid()
        assert_equal(output, gate.repeat_interleave(2, dim=1)[:, :, None, None] * layer.value(mean))


def test_kclas_exponent_is_capped():
    layers, maps = stage(KeyCorrelatedAttention, count=2)
    with torch.no_grad():
        for layer in layers:
            layer.key.weight.fill_(1e4)
    _, (mean, total) = layers[1](maps[1], layers[0](maps[0])[1])
    assert_equal(total, torch.full_like(total, 2 * math.exp(10)), 1e-6)
    assert_equal(mean, (maps[0] + maps[1]) / 2)


def test_kcla_in_float16_is_finite_on_blank_images_and_over_many_layers():
    layers = make_layers(KeyCorrelatedAttention, 9, CHANNELS)
    maps = [torch.zeros(2, CHANNELS, 4, 5), *(100 * x for x in make_maps(8, 2, CHANNELS, 4, 5))]
    wanted = run_stage([layer.float() for layer in layers], [x.half().float() for x in maps])
    outputs = run_stage([layer.half() for layer in layers], [x.half() for x in maps])
    for output, exact in zip(outputs, wanted, strict=True):
        assert output.dtype == torch.float16 and (output - exact).norm() <= 0.02 * exact.norm()


# Kin

@pytest.mark.parametrize("member", WEIGHTED)
def test_held_at_equal_weights_it_is_the_uniform_mean(member):
    layers, maps = stage(member)
    means, _ = stage(UniformMean, seed=9)
    for mean, layer in zip(means, layers, strict=True):
        mean.value.load_state_dict(layer.value.state_dict())
        hold_weights(layer, lambda weights: torch.full_like(weights, 1 / weights.shape[-1]))
    for output, wanted in zip(run_stage(layers, maps), run_stage(means, maps), strict=True):
        assert_equal(output, wanted)


def test_blocks_of_one_layer_are_the_full_form_and_one_block_is_a_sum():
    layers, maps = stage(AttentionResiduals)
    values = values_of(layers, maps)
    sums = [sum(values[: t + 1]) for t in range(LAYERS)]
    for block, wanted in ((1, run_stage(layers, maps)), (LAYERS, sums)):
        blocks, _ = stage(BlockAttentionResiduals, seed=9, block=block)
        for twin, layer in zip(blocks, layers, strict=True):
            twin.load_state_dict(layer.state_dict())
        for output, expected in zip(run_stage(blocks, maps), wanted, strict=True):
            assert_equal(output, expected)


# Starts

def fresh(member, **arguments):
    return [member(CHANNELS, **arguments).double() for _ in range(LAYERS)]


def test_attention_residuals_start_as_the_uniform_mean():
    layers, maps = fresh(AttentionResiduals), stage(AttentionResiduals)[1]
    values = values_of(layers, maps)
    assert_equal(run_stage(layers, maps)[-1], sum(values) / LAYERS)


@pytest.mark.parametrize("member", [DenseFormer, MUDDFormer])
def test_weights_of_positions_start_as_the_own_value_alone(member):
    layers, maps = fresh(member), stage(member)[1]
    for output, value in zip(run_stage(layers, maps), values_of(layers, maps), strict=True):
        assert_equal(output, value)


# What all hold to

@every_member
@pytest.mark.parametrize("check", [
    signature.check_shapes, signature.check_reading, signature.check_batch, signature.check_calls,
    signature.check_memory_is_a_value, signature.check_gradients, as_trained.check_training_step,
    as_trained.check_transformer, as_trained.check_channels_last, as_trained.check_half_precision,
    as_trained.check_evaluation, as_trained.check_checkpoint], ids=lambda check: check.__name__)
def test_mrla_check_passes(member, check):
    torch.manual_seed(0)
    check(member)


@every_member
def test_the_order_of_the_layers_matters(member):
    layers, maps = stage(member)
    turned = run_stage([layers[1], layers[0], *layers[2:]], [maps[1], maps[0], *maps[2:]])[-1]
    same = torch.allclose(turned, run_stage(layers, maps)[-1])
    # a weight made of the writer alone does not know when it was written; a sum inside a block neither
    assert same == (member in (AttentionResiduals, BlockAttentionResiduals, KeyCorrelatedAttention))
    assert not torch.allclose(run_stage(layers, [maps[1], maps[0], *maps[2:]])[-1],
                              run_stage(layers, maps)[-1])


@every_member
def test_gradients_are_those_of_finite_differences(member):
    layers, maps = stage(member, count=3)
    chain = nn.Module()
    chain.layers = nn.ModuleList(layers)
    chain.forward = lambda *inputs: run_stage(layers, inputs)[-1]
    assert gradient_check(chain, *(x[:1, :, :2, :2] for x in maps))


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_may_name_it_and_figures_know_it(name):
    model = build_model(TrainConfig(layer_attention=name, width=4), 10)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert all(name in table for table in (figures.COLOURS, figures.MARKERS, figures.LABELS))


def test_weights_are_recorded_where_they_belong_to_layers():
    model = cifar_resnet(20, width=4, layer_attention=AttentionResiduals)
    with record_attention(model) as weights:
        model(torch.randn(2, 3, 8, 8))
    assert [tuple(layer.shape) for layer in weights[0]] == [(2, 1, 1), (2, 1, 2), (2, 1, 3)]


def x_of(channels=CHANNELS):
    return torch.zeros(2, channels, 4, 5)


@pytest.mark.parametrize("call, named", [
    (lambda: DenseFormer(CHANNELS, most_layers=0), "most_layers must be a positive integer, not 0"),
    (lambda: MUDDFormer(CHANNELS, most_layers=1.5), "most_layers must be a positive integer, not 1.5"),
    (lambda: BlockAttentionResiduals(CHANNELS, block=0), "block must be a positive integer, not 0"),
    (lambda: KeyCorrelatedAttention(CHANNELS, head_dim=4), "head_dim must divide channels=6"),
    (lambda: DenseFormer(CHANNELS, most_layers=1)(x_of(), [x_of()]), "may have 1 layers.* is layer 2"),
    (lambda: MUDDFormer(CHANNELS, most_layers=1)(x_of(), [x_of()]), "may have 1 layers.* is layer 2"),
    (lambda: AttentionResiduals(CHANNELS)(x_of(), x_of()), "memory must be None or a list of"),
    (lambda: BlockAttentionResiduals(CHANNELS)(x_of(), [x_of()]), "memory must be None or a list of pairs"),
    (lambda: BlockAttentionResiduals(CHANNELS)(x_of(), []), "memory must be None or a list of pairs"),
    (lambda: BlockAttentionResiduals(CHANNELS)(x_of(), [(x_of(), 0)]), "number of layers must be a positive"),
    (lambda: KeyCorrelatedAttention(CHANNELS)(x_of(), x_of()), "memory must be None or a pair"),
    (lambda: KeyCorrelatedAttention(CHANNELS)(x_of(), (x_of(), x_of())), "the memory's total must be"),
    *((lambda member=member: member(CHANNELS)(x_of(5)), "x must have shape") for member in MEMBERS),
])
def test_bad_input_is_named(call, named):
    with pytest.raises(ValueError, match=named) as refused:
        call()
    assert "\n" not in str(refused.value)
