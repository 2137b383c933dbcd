"""A small language model, and what its layers may hand on: three ways, each a method of a few lines.

A layer is `output, memory = layer(x, memory)` again, with tokens in place of pixels: x and output (batch,
tokens, dim). Attention runs between tokens, as in attention.py; what goes from layer to layer is the memory.

    CausalSelfAttention       nothing
    ValueResidual             the first layer's values
    CrossLayerAttention       one layer's keys and values, for the next one
    LayerIntegratedMemory     all layers' keys and values (LIMe)

index_cache.py hands on a set of positions. None of these can be an attention on feature maps: they attend
from token to token, and a host of feature maps has no tokens.
"""

from collections.abc import Callable

import torch
from einops import einsum, rearrange
from torch import Tensor, nn

from mrla_minimal.attention import MultiHeadSelfAttention, softmax_attention
from mrla_minimal.shapes import (
    check_heads,
    check_integers,
    check_key_value_memory,
    check_positive,
    check_same_shape,
    check_tokens,
)

# key and value, (batch, heads, tokens, d); a mask that broadcasts to (batch, heads, tokens, tokens); a memory
Exchanged = tuple[Tensor, Tensor, Tensor, object]


class CausalSelfAttention(MultiHeadSelfAttention):
    """Notebook 01's attention between tokens, which cannot look ahead, and a place to meet other layers.

    x (batch, tokens, dim), memory -> output (batch, tokens, dim), memory. `layer` counts from 1.
    Weights, at the point `weights`: (batch, heads, tokens, tokens). Its memory is None: nothing is handed on.

    Raises ValueError if `heads` does not divide `dim`, or if x has another shape.
    """

    def __init__(self, dim: int, heads: int, layer: int = 1):
        super().__init__(dim, heads)
        check_positive("layer", layer)
        self.layer = layer
        self.weights = nn.Identity()

    def forward(self, x: Tensor, memory: object = None) -> tuple[Tensor, object]:
        check_tokens(x, self.dim)
        query, key, value = (
            rearrange(projection(x), "batch tokens (heads d) -> batch heads tokens d", heads=self.heads)
            for projection in (self.query, self.key, self.value)
        )                                                                   # each (batch, heads, tokens, d)
        key, value, mask, memory = self.exchange(x, query, key, value, memory)
        output, weights = softmax_attention(query, key, value, mask)        # (batch, heads, tokens, d)
        self.weights(weights)                                               # a place to look, no more
        output = rearrange(output, "batch heads tokens d -> batch tokens (heads d)")
        return self.output(output), memory                                  # (batch, tokens, dim)

    def exchange(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, memory: object) -> Exchanged:
        """What other layers left comes in, and what this one leaves goes out.

        x (batch, tokens, dim); query, key and value (batch, heads, tokens, d); the memory of the layer before
        -> key, value, mask (True = may attend), the memory for the next layer.
        """
        return key, value, causal_mask(x), None


class ValueResidual(CausalSelfAttention):
    """Every layer reads the mean of its own values and the first layer's: (V^1 + V^t) / 2.

    Source: ResFormer, arXiv 2410.17897, and its code (Zcchill/Value-Residual-Learning): the form with halves.
    Memory: V^1, (batch, heads, tokens, d). Raises ValueError for another.
    """

    def exchange(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, memory: object) -> Exchanged:
        first = value if memory is None else memory
        check_same_shape("memory", first, value)
        return key, (first.to(value.dtype) + value) / 2, causal_mask(x), first


class CrossLayerAttention(CausalSelfAttention):
    """CLA: every second layer reads the keys and values of the one before, with queries of its own.

    So half of the cache of keys and values is enough. Source: arXiv 2405.12981, from memory: we have not read
    it again. There a layer that takes them has no projections to keys and values; here they rest.
    Memory: a layer's keys and values, or None after the layer that took them. Raises ValueError for another.
    """

    def exchange(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, memory: object) -> Exchanged:
        if memory is not None:
            if not isinstance(memory, tuple):
                raise ValueError("memory must be None or a pair, the keys and values of the layer "
                                 f"before, not a {type(memory).__name__}")
            check_key_value_memory([memory], key, value)
            return *(part.to(key.dtype) for part in memory), causal_mask(x), None
        return key, value, causal_mask(x), (key, value)


class LayerIntegratedMemory(CausalSelfAttention):
    """LIMe: a head's keys and values are a learned mix of those of all heads of layers 1 to t.

    Source: arXiv 2502.09245 and its code (corl-team/lime). The mix, (heads, t * heads), is no function of x,
    and starts as the head's own.
    Memory: the list of pairs, the keys and values of layers 1..t. Raises ValueError for another, and for one
    of more or fewer layers than stand before.
    """

    def __init__(self, dim: int, heads: int, layer: int = 1):
        super().__init__(dim, heads, layer)
        self.mix = nn.Parameter(torch.eye(layer * heads)[-heads:])          # the last heads are the own ones

    def exchange(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, memory: object) -> Exchanged:
        check_key_value_memory(memory, key, value)
        memory = [*(memory or []), (key, value)]
        if len(memory) != self.layer:
            raise ValueError(f"layer {self.layer} reads the keys and values of {self.layer - 1} "
                             f"layers before it; memory holds those of {len(memory) - 1}")
        every_head = (torch.cat(parts, dim=1).to(key.dtype) for parts in zip(*memory, strict=True))
        mixed = (einsum(self.mix, part, "h s, b s n d -> b h n d") for part in every_head)
        return *mixed, causal_mask(x), memory


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); the memory goes through the attention.

    x (batch, tokens, dim), memory -> output (batch, tokens, dim), memory.
    """

    def __init__(self, dim: int, attention: nn.Module):
        super().__init__()
        self.attention = attention
        self.norm, self.norm_forward = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, memory: object = None) -> tuple[Tensor, object]:
        output, memory = self.attention(self.norm(x), memory)
        x = x + output
        return x + self.feed_forward(self.norm_forward(x)), memory          # (batch, tokens, dim)


class TinyLanguageModel(nn.Module):
    """A decoder: symbols and places are embedded, layers follow, and each token predicts what comes next.

    tokens, integers (batch, tokens), or (batch, tokens, parts) where a token has several symbols: each is
    embedded in dim / parts numbers -> logits (batch, tokens, symbols). `attention(dim, heads, layer)` makes
    layer number `layer`'s.

    Raises ValueError for sizes that are no positive integers, heads or parts that do not divide dim, and for
    tokens of another shape, with a number that is no symbol, or of more than `context` places.
    """

    def __init__(self, symbols: int, context: int, dim: int = 64, heads: int = 4, layers: int = 6,
                 attention: Callable[[int, int, int], nn.Module] = CausalSelfAttention, parts: int = 1):
        super().__init__()
        named = {"symbols": symbols, "context": context, "layers": layers, "parts": parts}
        for name, number in named.items():
            check_positive(name, number)
        check_heads(dim, heads)
        if dim % parts:
            raise ValueError(f"parts must divide dim={dim}, which {parts} does not")
        self.context, self.parts = context, parts
        self.symbol, self.place = nn.Embedding(symbols, dim // parts), nn.Embedding(context, dim)
        nn.init.normal_(self.place.weight, std=0.02)
        self.layers = nn.ModuleList(DecoderLayer(dim, attention(dim, heads, layer))
                                    for layer in range(1, layers + 1))
        self.norm, self.read = nn.LayerNorm(dim), nn.Linear(dim, symbols)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        memory = None
        for layer in self.layers:
            x, memory = layer(x, memory)
        return self.read(self.norm(x))                                      # (batch, tokens, symbols)

    def embed(self, tokens: Tensor) -> Tensor:
        """Symbols and their places: tokens as for `forward` -> (batch, tokens, dim)."""
        parts = () if self.parts == 1 else (self.parts,)
        check_integers("tokens", tokens, ("batch", "tokens", *parts), below=self.symbol.num_embeddings)
        if tokens.shape[1] > self.context:
            raise ValueError(f"the model has {self.context} places, which {tokens.shape[1]} tokens exceed")
        x = self.symbol(tokens).flatten(2)
        return x + self.place.weight[: tokens.shape[1]]                     # (batch, tokens, dim)


def causal_mask(x: Tensor) -> Tensor:
    """True where a token may attend, to itself and to what came before: x (batch, n, dim) -> (n, n)."""
    return torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
