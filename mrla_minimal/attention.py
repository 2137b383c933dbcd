"""Attention between the tokens of one sequence: where every layer attention comes from.

Source: A. Vaswani et al., Attention Is All You Need, 2017, equation 1 and section 3.2.2.
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from mrla_minimal.shapes import check_heads, check_query_key_value, check_tokens


def softmax_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """softmax(Q K^T / sqrt(d)) V.

    query (..., n, d), key (..., m, d), value (..., m, e) -> output (..., n, e) and weights (..., n, m),
    whose rows sum to 1. `mask` is boolean and broadcasts to (..., n, m); True = may attend. A row that may
    attend to nothing has weights and output 0, and passes no gradient on.

    Raises ValueError for shapes that do not fit.
    """
    check_query_key_value(query, key, value, mask)
    logits = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])     # (..., n, m)
    if mask is not None:
        # The lowest finite number, not -inf: its exp() is 0 beside other logits, and a row of it is not NaN.
        logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
    weights = logits.softmax(dim=-1)                                        # (..., n, m)
    if mask is not None:
        weights = weights.masked_fill(~mask, 0.0)
    return weights @ value, weights                                         # (..., n, e), (..., n, m)


class MultiHeadSelfAttention(nn.Module):
    """Several attentions side by side, each on its own slice of the queries, keys and values.

    x (batch, tokens, dim) -> output (batch, tokens, dim), weights (batch, heads, tokens, tokens).
    Head h owns the channels h * dim / heads up to (h + 1) * dim / heads.

    Raises ValueError if `heads` does not divide `dim`, or if x has another shape.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        check_heads(dim, heads)
        self.dim, self.heads = dim, heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_tokens(x, self.dim)
        query, key, value = (
            rearrange(projection(x), "batch tokens (heads d) -> batch heads tokens d", heads=self.heads)
            for projection in (self.query, self.key, self.value)
        )                                                                   # each (batch, heads, tokens, d)
        output, weights = softmax_attention(query, key, value)              # (batch, heads, tokens, tokens)
        output = rearrange(output, "batch heads tokens d -> batch tokens (heads d)")
        return self.output(output), weights                                 # (batch, tokens, dim)
