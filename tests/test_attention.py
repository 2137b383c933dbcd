"""Attention between tokens: against torch's own, and where a mask leaves nothing to attend to."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_tools import assert_equal, gradient_check
from torch import nn
from torch.nn import functional as F

from mrla_minimal import MultiHeadSelfAttention, softmax_attention

FEW = settings(max_examples=20, deadline=None, derandomize=True)
SIZE = st.integers(1, 5)
SEED = st.integers(0, 10_000)


def draw(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def draw_mask(*shape, seed=0):
    """A random mask that leaves each row something: torch's function gives NaN for one that has nothing."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[..., 0] |= ~mask.any(dim=-1)
    return mask


@FEW
@given(st.lists(st.integers(1, 3), max_size=2), SIZE, SIZE, SIZE, SIZE, SEED, st.booleans())
def test_softmax_attention_agrees_with_torch(leading, n, m, d, e, seed, masked):
    query, key, value = draw((*leading, n, d), (*leading, m, d), (*leading, m, e), seed=seed)
    mask = draw_mask(*leading, n, m, seed=seed) if masked else None
    output, weights = softmax_attention(query, key, value, mask)
    assert_equal(output, F.scaled_dot_product_attention(query, key, value, attn_mask=mask))
    assert_equal(weights.sum(dim=-1), torch.ones(*leading, n, dtype=torch.float64))
    assert masked is False or not weights[~mask].any()


@FEW
@given(SIZE, SIZE, SIZE, SEED)
def test_softmax_attention_is_its_formula_row_by_row(n, m, d, seed):
    query, key, value = draw((n, d), (m, d), (m, 2), seed=seed)
    output, weights = softmax_attention(query, key, value)
    for i in range(n):
        products = [sum(query[i, c].item() * key[j, c].item() for c in range(d)) for j in range(m)]
        scores = [math.exp(product / math.sqrt(d)) for product in products]
        for j in range(m):
            assert weights[i, j].item() == pytest.approx(scores[j] / sum(scores), abs=1e-10)
        for c in range(2):
            wanted = sum(scores[j] * value[j, c].item() for j in range(m)) / sum(scores)
            assert output[i, c].item() == pytest.approx(wanted, abs=1e-10)


@pytest.mark.parametrize(("query_shape", "key_shape", "value_shape", "mask_shape"), [
    ((2, 1, 5, 4), (3, 6, 4), (2, 3, 6, 7), None),          # each broadcasts against the others
    ((5, 4), (2, 3, 6, 4), (6, 7), (5, 6)),                 # one query for all, one mask for all
    ((2, 3, 5, 4), (2, 3, 6, 4), (2, 3, 6, 7), (2, 1, 1, 6)),   # a padding mask: batch and keys alone
    ((2, 3, 5, 4), (2, 3, 6, 4), (2, 3, 6, 7), (6,)),
])
def test_leading_dimensions_and_masks_broadcast(query_shape, key_shape, value_shape, mask_shape):
    query, key, value = draw(query_shape, key_shape, value_shape)
    mask = None if mask_shape is None else draw_mask(*mask_shape)
    output, weights = softmax_attention(query, key, value, mask)
    leading = torch.broadcast_shapes(query_shape[:-2], key_shape[:-2], value_shape[:-2])
    query, key, value = (t.expand(*leading, *t.shape[-2:]) for t in (query, key, value))
    mask = None if mask is None else mask.expand(*leading, 5, 6)
    assert_equal(output, F.scaled_dot_product_attention(query, key, value, attn_mask=mask))
    assert weights.expand(*leading, 5, 6).shape == (*leading, 5, 6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_row_that_may_attend_to_nothing_gives_zeros_and_zero_gradients(dtype):
    query, key, value = (t.to(dtype).requires_grad_() for t in draw((2, 3, 4), (2, 5, 4), (2, 5, 2)))
    mask = torch.ones(2, 3, 5, dtype=torch.bool)
    mask[0, 1] = False                      # one row of the first
    mask[1] = False                         # all rows of the second
    output, weights = softmax_attention(query, key, value, mask)
    with torch.autograd.set_detect_anomaly(True):                       # no NaN on the way back either
        (output.square().sum() + weights.square().sum()).backward()
    assert output.dtype == dtype
    assert not output[0, 1].any() and not output[1].any() and not weights[0, 1].any() and not weights[1].any()
    assert output[0, 0].all() and output[0, 2].all()
    for tensor in (query, key, value):
        assert tensor.grad.isfinite().all() and not tensor.grad[1].any() and tensor.grad[0].any()
    assert not query.grad[0, 1].any()


def test_a_masked_key_has_no_influence_however_large():
    query, key, value = draw((3, 4), (5, 4), (5, 2))
    mask = torch.tensor([True, True, False, True, False])
    output, _ = softmax_attention(query, key, value, mask)
    key[2], key[4], value[2], value[4] = 1e6, -1e6, 1e6, -1e6
    assert torch.equal(softmax_attention(query, key, value, mask)[0], output)
    key[mask] = -1e6 * query[0]                                     # the first query dislikes all it may see
    weights = softmax_attention(query, key, value, mask)[1]
    assert_equal(weights[0].sum(), torch.tensor(1.0, dtype=torch.float64))


def test_a_causal_mask_hides_the_later_tokens():
    query, key, value = draw((5, 4), (5, 4), (5, 2))
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    output, _ = softmax_attention(query, key, value, mask)
    for n in range(1, 6):
        assert_equal(output[:n], softmax_attention(query[:n], key[:n], value[:n], mask[:n, :n])[0])


def test_large_logits_do_not_overflow():
    query, key, value = torch.tensor([[1e4]]), torch.tensor([[1e4], [-1e4]]), torch.tensor([[3.0], [5.0]])
    output, weights = softmax_attention(query, key, value)
    assert output.item() == 3.0 and weights.tolist() == [[1.0, 0.0]]


@FEW
@given(SIZE, SIZE, SIZE, SEED, st.booleans())
def test_softmax_attention_gradients(n, m, d, seed, masked):
    inputs = [t.requires_grad_() for t in draw((n, d), (m, d), (m, 2), seed=seed)]
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(n, m, generator=generator) < 0.6 if masked else None      # some rows may see nothing
    assert torch.autograd.gradcheck(lambda *qkv: softmax_attention(*qkv, mask), inputs)


def test_softmax_attention_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="mask must be a boolean tensor"):
        softmax_attention(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="same dim"):
        softmax_attention(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2, 3))


def torch_twin(module):
    """torch's own multi-head attention with the same weights, which it stacks in one matrix."""
    twin = nn.MultiheadAttention(module.dim, module.heads, batch_first=True, dtype=torch.float64)
    projections = (module.query, module.key, module.value)
    with torch.no_grad():
        twin.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        twin.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
        twin.out_proj.load_state_dict(module.output.state_dict())
    return twin


@FEW
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), SIZE, SEED)
def test_multi_head_self_attention_agrees_with_torch(heads, head_dim, batch, tokens, seed):
    torch.manual_seed(seed)
    module = MultiHeadSelfAttention(heads * head_dim, heads).double()
    x, = draw((batch, tokens, heads * head_dim), seed=seed)
    output, weights = module(x)
    wanted_output, wanted_weights = torch_twin(module)(x, x, x, average_attn_weights=False)
    assert weights.shape == (batch, heads, tokens, tokens)
    assert_equal(output, wanted_output)
    assert_equal(weights, wanted_weights)


def test_multi_head_self_attention_gradients():
    torch.manual_seed(0)
    assert gradient_check(MultiHeadSelfAttention(4, 2).double(), *draw((2, 3, 4)))


def test_multi_head_self_attention_has_four_linear_layers_with_bias():
    module = MultiHeadSelfAttention(6, 2)
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    assert shapes == {f"{layer}.{kind}": (6, 6) if kind == "weight" else (6,)
                      for layer in ("query", "key", "value", "output") for kind in ("weight", "bias")}


def test_multi_head_self_attention_of_an_empty_batch():
    output, weights = MultiHeadSelfAttention(6, 2)(torch.zeros(0, 4, 6))
    assert output.shape == (0, 4, 6) and weights.shape == (0, 2, 4, 4)


def test_multi_head_self_attention_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="heads must divide dim=6, which 4 does not"):
        MultiHeadSelfAttention(6, 4)
    with pytest.raises(ValueError, match=r"\(batch, tokens, 6\), not \(2, 3, 5\)"):
        MultiHeadSelfAttention(6, 2)(torch.zeros(2, 3, 5))
