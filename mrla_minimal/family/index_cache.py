"""IndexCache: sparse attention between tokens whose layers hand on *where to look*.

Source: Y. Bai et al., IndexCache: Accelerating Sparse Attention via Cross-Layer Index Reuse, 2026, arXiv
2603.12201, and its released patches (THUDM/IndexCache). The sparse attention is DeepSeek-V3.2's: a small
*lightning indexer* scores all earlier tokens, the k best are kept, and attention runs over those alone.

The indexer is cheap, but it looks at every pair of tokens. So here a layer is of one of two kinds, and a
pattern like FSFS names them from the first layer to the last:

    F (full)      runs its own indexer, and keeps k positions for each token
    S (shared)    has none, and takes the positions of the nearest F layer before it

The memory that goes from layer to layer is this set of positions: `output, memory = layer(x, memory)`.
Queries, keys and values stay each layer's own. It attends between the tokens of a sequence, so it cannot be
an attention on feature maps, and is no name of `cifar_resnet(layer_attention=...)`.

Deviations: here each layer has an indexer, so that any pattern can be tried, and those of S layers rest. The
attention is computed densely under a mask: equal to gathering k keys, and no faster. What it would cost is
counted by `index_products` and `core_products`. In the paper the language model learns on under sparse
attention; here it stays as its dense training left it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from einops import einsum, rearrange
from torch import Tensor, nn

from mrla_minimal.attention import softmax_attention
from mrla_minimal.family.language_model import (
    CausalSelfAttention,
    Exchanged,
    TinyLanguageModel,
    causal_mask,
)
from mrla_minimal.family.patterns import check_pattern
from mrla_minimal.shapes import check_choice, check_integers, check_positive, check_tokens

CHOICES = ("indexer", "oracle", "last", "random", "all")


class LightningIndexer(nn.Module):
    """How much token t should look at token s: I[t, s] = sum over h of w_h(x_t) relu(q_h(x_t) . k(x_s)).

    x (batch, tokens, dim) -> scores (batch, tokens, tokens), those of later tokens s > t too. All heads share
    one key. Raises ValueError for an x of another shape, and for sizes that are no positive integers.
    """

    def __init__(self, dim: int, heads: int = 4, head_dim: int = 16):
        super().__init__()
        for name, number in (("dim", dim), ("heads", heads), ("head_dim", head_dim)):
            check_positive(name, number)
        self.dim, self.heads, self.head_dim = dim, heads, head_dim
        self.query = nn.Linear(dim, heads * head_dim)
        self.key = nn.Linear(dim, head_dim)
        self.head_weight = nn.Linear(dim, heads)

    def forward(self, x: Tensor) -> Tensor:
        check_tokens(x, self.dim)
        query = rearrange(self.query(x), "b t (h d) -> b h t d", h=self.heads)
        match = einsum(query, self.key(x), "b h t d, b s d -> b h t s").relu()
        return einsum(self.head_weight(x), match, "b t h, b h t s -> b t s")   # (batch, tokens, tokens)


class IndexCacheAttention(CausalSelfAttention):
    """Attention over k positions a token: an F layer chooses them, an S layer takes the nearest F layer's.

    x (batch, tokens, dim), memory -> output (batch, tokens, dim), memory.
    Memory: the set of positions, integers (batch, tokens, k). A token t < k has only t of them; the rest of
    its row repeats its own place.

    `chosen_by`, of an F layer: "indexer"; "oracle", the k largest of this layer's own weights, which only a
    dense pass can know; the controls "last" (the last k tokens) and "random"; "all", dense attention.
    Raises ValueError for a kind other than F or S, a k larger than the number of tokens, and an S layer
    without the memory of an F layer before it.
    """

    def __init__(self, dim: int, heads: int, layer: int = 1, k: int = 16, kind: str = "F",
                 indexer_heads: int = 4, indexer_dim: int = 16):
        super().__init__(dim, heads, layer)
        check_positive("k", k)
        check_choice("kind", kind, "FS")
        self.k, self.kind, self.chosen_by = k, kind, "indexer"
        self.indexer = LightningIndexer(dim, indexer_heads, indexer_dim)

    def exchange(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, memory: object) -> Exchanged:
        if self.kind == "F":
            memory = self.choose(x, query, key)                             # (batch, tokens, k)
        check_positions(memory, x)
        return key, value, set_mask(memory, x.shape[1])[:, None], memory

    def choose(self, x: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """The set of an F layer: x (batch, tokens, dim), query and key by heads -> (batch, tokens, k)."""
        check_choice("chosen_by", self.chosen_by, CHOICES)
        batch, tokens, _ = x.shape
        if self.chosen_by == "all":
            places = torch.arange(tokens, device=x.device)
            return places.minimum(places[:, None]).expand(batch, tokens, tokens)
        if self.chosen_by == "indexer":
            scores = self.indexer(x)
        elif self.chosen_by == "oracle":
            scores = softmax_attention(query, key, key, causal_mask(x))[1].mean(dim=1)
        elif self.chosen_by == "last":
            places = torch.arange(tokens, device=x.device)                  # integers: bfloat16 would tie
            scores = places.float().expand(batch, tokens, tokens)
        else:
            scores = torch.rand(batch, tokens, tokens, device=x.device)
        return top_positions(scores, self.k)                                # (batch, tokens, k)


def top_positions(scores: Tensor, k: int) -> Tensor:
    """The k positions s <= t of the best scores of each token t, as integers.

    scores (batch, tokens, tokens), row t holding token t's -> positions (batch, tokens, k).
    A token with fewer than k positions up to its own has all of them, and its own again for the rest.
    Raises ValueError for a k that is no positive integer, or larger than the number of tokens.
    """
    check_positive("k", k)
    tokens = scores.shape[-1]
    if k > tokens:
        raise ValueError(f"k must be at most the number of tokens, {tokens}, not {k}")
    places = torch.arange(tokens, device=scores.device)
    ahead = places > places[:, None]                                        # (tokens, tokens): s > t
    chosen = scores.detach().masked_fill(ahead, float("-inf")).topk(k, dim=-1).indices
    return chosen.minimum(places[:, None])                                  # of what lies ahead: its own


def set_mask(positions: Tensor, tokens: int) -> Tensor:
    """Positions (batch, tokens, k) -> True where a token may attend, (batch, tokens, tokens)."""
    mask = torch.zeros(*positions.shape[:2], tokens, dtype=torch.bool, device=positions.device)
    return mask.scatter(-1, positions, True)


def set_pattern(model: TinyLanguageModel, pattern: str, chosen_by: str = "indexer") -> None:
    """Make each layer of a model of IndexCacheAttention F or S, as `check_pattern` wants it."""
    check_pattern(pattern, len(model.layers))
    check_choice("chosen_by", chosen_by, CHOICES)
    for layer, kind in zip(model.layers, pattern, strict=True):
        layer.attention.kind, layer.attention.chosen_by = kind, chosen_by


# What an indexer learns

def distillation_loss(scores: Tensor, target: Tensor) -> Tensor:
    """KL(target || softmax(scores)), the mean over tokens: what an indexer's scores are trained by.

    Both (batch, tokens, tokens); each row of the target sums to 1 and is 0 ahead of its token.
    """
    log_made = scores.masked_fill(~causal_mask(scores), torch.finfo(scores.dtype).min).log_softmax(dim=-1)
    return (torch.xlogy(target, target) - target * log_made).sum(dim=-1).mean()


def multi_layer_loss(scores: Tensor, targets: Sequence[Tensor]) -> Tensor:
    """The mean over the layers that an indexer serves of `distillation_loss`, one target a layer."""
    return torch.stack([distillation_loss(scores, target) for target in targets]).mean()


def averaged_loss(scores: Tensor, targets: Sequence[Tensor]) -> Tensor:
    """`distillation_loss` against the mean of the targets: another number, the same gradient."""
    return distillation_loss(scores, torch.stack(list(targets)).mean(dim=0))


@contextmanager
def recorded(model: TinyLanguageModel) -> Iterator[list[dict[str, Tensor]]]:
    """with recorded(model) as seen: model(tokens) puts into seen[layer], detached, of its latest pass

    "input" (batch, tokens, dim), what the layer's attention and indexer read; "weights" (batch, tokens,
    tokens), the mean over heads; "positions" (batch, tokens, k), the set that it used, if there is one.
    """
    seen = [{} for _ in model.layers]
    hooks = []
    for of_layer, layer in zip(seen, model.layers, strict=True):
        def keep(module, given, output, of_layer=of_layer):
            of_layer["input"] = given[0].detach()
            if isinstance(output[1], Tensor) and not output[1].is_floating_point():
                of_layer["positions"] = output[1]

        def keep_weights(module, given, output, of_layer=of_layer):
            of_layer["weights"] = output.detach().mean(dim=1)

        hooks += [layer.attention.register_forward_hook(keep),
                  layer.attention.weights.register_forward_hook(keep_weights)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


# What it costs

def index_products(tokens: int, heads: int, head_dim: int) -> int:
    """Products of one indexer on one sequence: heads * head_dim for each of the tokens ** 2 / 2 pairs."""
    return heads * head_dim * tokens**2 // 2


def core_products(tokens: int, k: int, width: int) -> int:
    """Products of one layer's attention over k positions a token: with keys, then with values of `width`."""
    return 2 * width * tokens * k


def overlap(first: Tensor, second: Tensor) -> float:
    """The share of positions that two sets have in common, a mean over tokens that had 2 k or more to see.

    first, second: (batch, tokens, k). NaN if there is no such token.
    """
    tokens, k = first.shape[1:]
    both = set_mask(first, tokens) & set_mask(second, tokens)
    return (both.sum(dim=-1)[:, 2 * k - 1 :] / k).mean().item()


def check_positions(memory: object, x: Tensor) -> None:
    """Positions that an S layer was handed must be int64 (batch, tokens, k), none ahead of its token."""
    if memory is None:
        raise ValueError("an S layer takes the positions of an F layer before it, and there is none")
    check_integers("the positions in the memory of an S layer", memory, (*x.shape[:2], "k"))
    places = torch.arange(x.shape[1], device=memory.device)[:, None]
    wrong = (memory < 0) | (memory > places)
    if wrong.any():
        _, token, place = wrong.nonzero()[0].tolist()
        raise ValueError("each position of the memory must be a place from 0 to its token's own, "
                         f"not {memory[wrong][0]} for token {token}")
