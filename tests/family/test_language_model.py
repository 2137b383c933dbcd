"""The small language model: causal, and what its layers hand on, each against loops."""

import pytest
import torch
from layer_tools import assert_equal
from torch import nn

from mrla_minimal import MultiHeadSelfAttention
from mrla_minimal.family.language_model import (
    CausalSelfAttention,
    CrossLayerAttention,
    LayerIntegratedMemory,
    TinyLanguageModel,
    ValueResidual,
)

ATTENTIONS = (CausalSelfAttention, ValueResidual, CrossLayerAttention, LayerIntegratedMemory)
TOKENS, DIM, HEADS = 7, 12, 3
every_attention = pytest.mark.parametrize("attention", ATTENTIONS)


def model_of(attention, layers=4, parts=1):
    torch.manual_seed(0)
    model = TinyLanguageModel(9, TOKENS, DIM, HEADS, layers, attention, parts).double()
    for part in model.parameters():
        nn.init.normal_(part, std=0.5)
    return model


def tokens_of(*shape, seed=1):
    return torch.randint(9, shape, generator=torch.Generator().manual_seed(seed))


def by_heads(layer, x):
    """Query, key and value of a layer, (batch, heads, tokens, d) each."""
    return [part(x).reshape(*x.shape[:2], HEADS, -1).transpose(1, 2)
            for part in (layer.query, layer.key, layer.value)]


def attend(layer, query, key, value):
    """Causal attention in loops over tokens and heads."""
    output = torch.zeros_like(query)
    for t in range(query.shape[2]):
        logits = torch.einsum("bhd, bhsd -> bhs", query[:, :, t], key[:, :, : t + 1]) / query.shape[-1] ** 0.5
        output[:, :, t] = torch.einsum("bhs, bhsd -> bhd", logits.softmax(dim=-1), value[:, :, : t + 1])
    return layer.output(output.transpose(1, 2).flatten(2))


@every_attention
def test_nobody_looks_ahead(attention):
    model, tokens = model_of(attention), tokens_of(2, TOKENS)
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 9
    first, second = model(tokens), model(changed)
    assert_equal(first[:, :5], second[:, :5], 1e-12)
    assert not torch.allclose(first[:, 5:], second[:, 5:])
    assert_equal(model(tokens[:1]), first[:1], 1e-12)                       # nor at its batch-mates
    assert_equal(model(tokens[:, :4]), first[:, :4], 1e-12)


def stack_of(attention, layers=4):
    torch.manual_seed(0)
    stack = [attention(DIM, HEADS, layer).double() for layer in range(1, layers + 1)]
    for part in nn.ModuleList(stack).parameters():
        nn.init.normal_(part, std=0.5)
    inputs = torch.randn(layers, 2, TOKENS, DIM, generator=torch.Generator().manual_seed(1)).double()
    outputs, memory = [], None
    for layer, x in zip(stack, inputs, strict=True):
        output, memory = layer(x, memory)
        outputs.append(output)
    return stack, outputs, [by_heads(layer, x) for layer, x in zip(stack, inputs, strict=True)]


def test_without_a_memory_it_is_notebook_01s_attention_that_sees_no_future():
    (layer, *_), (output, *_), ((query, key, value), *_) = stack_of(CausalSelfAttention)
    assert_equal(output, attend(layer, query, key, value), 1e-12)
    assert isinstance(layer, MultiHeadSelfAttention)
    assert set(layer.state_dict()) == set(MultiHeadSelfAttention(DIM, HEADS).state_dict())


def test_value_residual_mixes_in_the_first_layers_values():
    stack, outputs, projected = stack_of(ValueResidual)
    first = projected[0][2]
    for layer, output, (query, key, value) in zip(stack, outputs, projected, strict=True):
        assert_equal(output, attend(layer, query, key, 0.5 * first + 0.5 * value), 1e-12)


def test_cla_takes_keys_and_values_of_the_layer_before_in_every_second_layer():
    stack, outputs, projected = stack_of(CrossLayerAttention)
    for place, (layer, output) in enumerate(zip(stack, outputs, strict=True)):
        source = place - place % 2
        assert_equal(output, attend(layer, projected[place][0], *projected[source][1:]), 1e-12)


def test_lime_mixes_the_heads_of_all_layers_so_far():
    stack, outputs, projected = stack_of(LayerIntegratedMemory)
    for place, (layer, output) in enumerate(zip(stack, outputs, strict=True)):
        mixed = []
        for which in (1, 2):
            every_head = torch.cat([projected[s][which] for s in range(place + 1)], dim=1)
            heads = [sum(layer.mix[h, s] * every_head[:, s] for s in range(every_head.shape[1]))
                     for h in range(HEADS)]
            mixed.append(torch.stack(heads, dim=1))
        assert_equal(output, attend(layer, projected[place][0], *mixed), 1e-12)


def test_lime_starts_as_no_mix():
    torch.manual_seed(0)
    lime, plain = LayerIntegratedMemory(DIM, HEADS, layer=2), CausalSelfAttention(DIM, HEADS)
    plain.load_state_dict({name: part for name, part in lime.state_dict().items() if name != "mix"})
    x = torch.randn(2, TOKENS, DIM)
    before = torch.randn(2, 2, HEADS, TOKENS, DIM // HEADS)
    assert_equal(lime(x, [tuple(before)])[0], plain(x)[0], 1e-6)


@every_attention
def test_a_memory_is_a_value(attention):
    """A layer changes nothing of what it was given: running it twice gives the same again."""
    stack, outputs, _ = stack_of(attention)
    x, memory = torch.randn(2, TOKENS, DIM).double(), None
    _, memory = stack[0](x, memory)
    kept = len(memory) if isinstance(memory, list) else memory
    first, _ = stack[1](x, memory)
    second, _ = stack[1](x, memory)
    assert torch.equal(first, second)
    assert kept == len(memory) if isinstance(memory, list) else kept is memory


def heads_of(batch=2, tokens=TOKENS):
    return torch.zeros(batch, HEADS, tokens, DIM // HEADS)


@pytest.mark.parametrize(("attention", "memory", "words"), [
    (ValueResidual, heads_of(batch=1), r"memory must be .*\(2, 3, 7, 4\), not \(1, 3, 7, 4\)"),
    (ValueResidual, heads_of(tokens=5), r"memory must be .*\(2, 3, 7, 4\), not \(2, 3, 5, 4\)"),
    (CrossLayerAttention, heads_of(), "memory must be None or a pair, .*, not a Tensor"),
    (CrossLayerAttention, (heads_of(), heads_of(1)), "memory must be a list of .* pairs"),
    (LayerIntegratedMemory, None, "layer 2 reads the keys and values of 1 layers before it; memory .* of 0"),
    (LayerIntegratedMemory, [(heads_of(), heads_of())] * 2, "memory holds those of 2"),
    (LayerIntegratedMemory, [(heads_of(), heads_of(1))], "memory must be a list of .* pairs"),
])
def test_another_memory_is_refused(attention, memory, words):
    with pytest.raises(ValueError, match=words):
        attention(DIM, HEADS, 2)(torch.zeros(2, TOKENS, DIM), memory)


@pytest.mark.parametrize("attention", ATTENTIONS[1:])
def test_a_memory_of_another_type_is_taken_in_the_layers_own(attention):
    torch.manual_seed(0)
    first, second = attention(DIM, HEADS, 1), attention(DIM, HEADS, 2)
    x = torch.randn(2, TOKENS, DIM)
    _, memory = first(x)
    wider = memory.double() if isinstance(memory, torch.Tensor) else (
        [tuple(part.double() for part in pair) for pair in memory] if isinstance(memory, list)
        else tuple(part.double() for part in memory))
    assert_equal(second(x, wider)[0], second(x, memory)[0], 1e-6)


def test_a_token_of_several_symbols():
    model = model_of(CausalSelfAttention, parts=2)
    tokens = tokens_of(2, TOKENS, 2)
    x = model.embed(tokens)
    assert_equal(x[1, 3], torch.cat([model.symbol.weight[symbol] for symbol in tokens[1, 3]])
                 + model.place.weight[3], 1e-12)
    assert model(tokens).shape == (2, TOKENS, 9)


@pytest.mark.parametrize(("tokens", "words"), [
    (torch.zeros(2, TOKENS), r"tokens must be integers .* of shape \(batch, tokens\), not \(2, 7\)"),
    (torch.zeros(2, TOKENS, dtype=torch.bool), "tokens must be integers .*, not .* of torch.bool"),
    (torch.zeros(TOKENS, dtype=torch.long), r"tokens must be integers .*, not \(7,\) of torch.int64"),
    ([[1, 2]], "tokens must be integers .*, not list"),
    (torch.zeros(2, TOKENS, 2, dtype=torch.long), r"\(batch, tokens\), not \(2, 7, 2\)"),
    (torch.zeros(2, TOKENS + 1, dtype=torch.long), "the model has 7 places, which 8 tokens exceed"),
    (torch.full((2, 3), 9), "tokens must be from 0 to 8, not from 9 to 9"),
])
def test_wrong_tokens_are_named(tokens, words):
    with pytest.raises(ValueError, match=words):
        model_of(CausalSelfAttention)(tokens)


@pytest.mark.parametrize(("arguments", "words"), [
    (dict(layers=0), "layers must be a positive integer, not 0"),
    (dict(parts=5), "parts must divide dim=12"),
    (dict(heads=5), "heads must divide dim=12, which 5 does not"),
    (dict(heads=5, attention=lambda *sizes: nn.Identity()), "heads must divide dim=12"),
    (dict(dim=0), "dim must be a positive integer, not 0"),
    (dict(dim="12"), "dim must be a positive integer, not '12'"),
    (dict(symbols=True), "symbols must be a positive integer"),
])
def test_wrong_sizes_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        TinyLanguageModel(**dict(symbols=9, context=7, dim=12, heads=3) | arguments)
    with pytest.raises(ValueError, match="layer must be a positive integer, not 0"):
        CausalSelfAttention(12, 3, 0)
