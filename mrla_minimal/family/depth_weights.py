"""Five relatives of MRLA that differ in one thing: who makes the weight that layer t gives to layer s.

                              the writer s adds nothing     the writer s adds a key of its own content
    the reader t adds nothing     DenseFormer                   AttentionResiduals
    the reader t adds a query     MUDDFormer                    MRLABase, Eq. 6

BlockAttentionResiduals keeps sums of several layers in place of each layer. KeyCorrelatedAttention keeps a
running mean, in which the writer's key alone decides.

They have the signature of layer_attention.py, `output, memory = attention(x, memory)`, x and output (batch,
channels, height, width); those without heads make no use of head_dim. All share MRLA's value, a depthwise
convolution of layer t's map: the papers mix the layers' outputs as they are. So each of the first three, with
its weights held at 1 / t, is the control UniformMean. Each has the ReLU after its norm that MRLABase and
UniformMean have. ValueError for an x or a memory of another shape.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mrla_minimal.layer_attention import (
    KeyValues,
    channel_convolution,
    per_channel,
    pool,
    split_heads,
    value_convolution,
    weighted_sum,
)
from mrla_minimal.shapes import (
    check_feature_map,
    check_key_value_memory,
    check_list_memory,
    check_map_memory,
    check_positive,
    check_same_shape,
    choose_head_dim,
)

MOST_LAYERS = 32                # of a stage, for weights that belong to positions
LARGEST_EXPONENT = 10.0         # of KeyCorrelatedAttention, as released
Blocks = list[tuple[Tensor, int]]       # the sum of a block's values, and how many layers it sums


class DenseFormer(nn.Module):
    """A learned weighted mean of all layers: neither the reader's nor the writer's content has a say.

    O^t = sum over s of a_{t-s} v^s: one number a distance t - s. It starts as v^t alone: (1, 0, 0, ...).

    Source: M. Pagliardini et al., DenseFormer, NeurIPS 2024, arXiv 2402.02622. There a layer's numbers
    belong to s; each layer has its own, so counting back from t says the same. Its dilation and its period,
    which leave layers out, are not built.

    Memory: the list of values v^1..v^t. Weights (batch, 1, t), the same for all images.
    Raises ValueError if a stage has more than `most_layers` layers.
    """

    relu_after_norm = True

    def __init__(self, channels: int, head_dim: int | None = None, most_layers: int = MOST_LAYERS):
        super().__init__()
        check_positive("most_layers", most_layers)
        self.channels = channels
        self.value = value_convolution(channels)
        self.by_distance = nn.Parameter(F.one_hot(torch.tensor(0), most_layers).float())
        self.weights = nn.Identity()

    def forward(self, x: Tensor, memory: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        check_feature_map(x, self.channels)
        check_list_memory(memory, x)
        values = [*(memory or []), self.value(x)]                           # t maps
        weights = _by_layer(self.by_distance, len(values)).expand(len(x), 1, -1)
        return weighted_sum(self.weights(weights), values), values


class MUDDFormer(nn.Module):
    """The reader's content makes the weights: a small network of x^t gives one number a layer.

    O^t = sum over s of w_{t-s} v^s,  w = W_2 GELU(W_1 RMSNorm(pool(x^t))) + a;  W_2 starts at 0, a at
    (1, 0, 0, ...), so it starts as v^t alone. No softmax, and no keys.

    Source: D. Xiao et al., MUDDFormer, ICML 2025, arXiv 2502.12170. There four such sets feed query, key,
    value and residual; here is one way. There a token makes its weights, here the pooled map.

    Memory: the list of values v^1..v^t. Weights (batch, 1, t).
    Raises ValueError if a stage has more than `most_layers` layers.
    """

    relu_after_norm = True

    def __init__(self, channels: int, head_dim: int | None = None, most_layers: int = MOST_LAYERS):
        super().__init__()
        check_positive("most_layers", most_layers)
        self.channels = channels
        self.value = value_convolution(channels)
        self.enter = nn.Linear(channels, channels, bias=False)
        self.leave = nn.Linear(channels, most_layers)
        nn.init.zeros_(self.leave.weight)
        with torch.no_grad():
            self.leave.bias.copy_(F.one_hot(torch.tensor(0), most_layers))
        self.weights = nn.Identity()

    def forward(self, x: Tensor, memory: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        check_feature_map(x, self.channels)
        check_list_memory(memory, x)
        values = [*(memory or []), self.value(x)]                           # t maps
        row = _root_mean_square_norm(pool(x))                               # (batch, 1, channels)
        by_distance = self.leave(F.gelu(self.enter(row)))                   # (batch, 1, most_layers)
        weights = self.weights(_by_layer(by_distance, len(values)))         # (batch, 1, t)
        return weighted_sum(weights, values), values


class AttentionResiduals(nn.Module):
    """A softmax over depth with a constant query: the writer's content alone decides.

    O^t = sum over s of softmax_s(w^t . k^s) v^s,  k^s = RMSNorm(pool(v^s));  w^t is learned and starts at 0:
    the uniform mean.

    Source: Kimi Team, Attention Residuals, 2026, arXiv 2603.15031, the full form. There the mix is layer
    t's input, and replaces the residual sum; here it is the output, beside the host's own sum. There a token
    makes its key, here the pooled map. One head, as its ablation prefers.

    Memory: the list of pairs of layers 1..t, key (batch, 1, channels) and value (like x).
    Weights (batch, 1, t).
    """

    relu_after_norm = True

    def __init__(self, channels: int, head_dim: int | None = None):
        super().__init__()
        self.channels = channels
        self.value = value_convolution(channels)
        self.query = nn.Parameter(torch.zeros(1, channels))
        self.weights = nn.Identity()

    def forward(self, x: Tensor, memory: KeyValues | None = None) -> tuple[Tensor, KeyValues]:
        check_feature_map(x, self.channels)
        value = self.value(x)                                               # (batch, channels, height, width)
        key = _root_mean_square_norm(pool(value))                           # (batch, 1, channels)
        check_key_value_memory(memory, key, value)
        memory = [*(memory or []), (key, value)]
        keys = torch.cat([key for key, _ in memory], dim=1)                 # (batch, t, channels)
        weights = self.weights(_softmax_over_depth(self.query, keys))       # (batch, 1, t)
        return weighted_sum(weights, [value for _, value in memory]), memory


class BlockAttentionResiduals(nn.Module):
    """Attention Residuals over the sums of blocks: `block` layers share one entry of the memory.

    O^t = sum over blocks b of softmax_b(w^t . RMSNorm(pool(S^b))) S^b,  S^b the sum of block b's values,
    the last one up to v^t. block = 1 is AttentionResiduals; a block as long as the stage is a plain sum.

    Source: arXiv 2603.15031, the block form: about t / block maps are kept in place of t.

    Memory: the list of pairs, a block's sum (like x) and how many layers it sums. Weights (batch, 1, blocks).
    """

    relu_after_norm = True

    def __init__(self, channels: int, head_dim: int | None = None, block: int = 3):
        super().__init__()
        check_positive("block", block)
        self.channels, self.block = channels, block
        self.value = value_convolution(channels)
        self.query = nn.Parameter(torch.zeros(1, channels))

    def forward(self, x: Tensor, memory: Blocks | None = None) -> tuple[Tensor, Blocks]:
        check_feature_map(x, self.channels)
        _check_blocks(memory, x)
        value = self.value(x)                                               # (batch, channels, height, width)
        *full, (last, layers) = memory or [(None, self.block)]
        if layers >= self.block:
            memory = [*(memory or []), (value, 1)]                          # a new block begins
        else:
            memory = [*full, (last.to(value.dtype) + value, layers + 1)]
        sums = [block for block, _ in memory]
        keys = torch.cat([_root_mean_square_norm(pool(block)) for block in sums], dim=1)
        return weighted_sum(_softmax_over_depth(self.query, keys), sums), memory


class KeyCorrelatedAttention(nn.Module):
    """KCLA: a running mean of the maps, weighted by the size of each one's key; projected when it is read.

    z^t = z^{t-1} + e^t,  m^t = m^{t-1} + (e^t / z^t) (X^t - m^{t-1}),  e^t = exp(min(slope |k^t|, 10)), and
    O^t = sigmoid(W (q^t . k^t / |k^t|)) f_V^t(m^t): Eq. 4's late projection at the price of Eq. 8's memory.

    Source: arXiv 2606.28405 (2026), read from its public code: if the keys of all layers are nearly
    parallel, their sizes decide. A head's slope is fixed, from 0.7 to 1 / 0.7; W mixes heads. The code
    keeps z m; the mean itself cannot overflow. It also carries the memory from stage to stage, and divides
    by z + 0.001: here are neither.

    Memory: the pair (m^t like x, z^t (batch, heads)). Weights, a gate, (batch, heads, 1).
    """

    is_gate = True
    relu_after_norm = True

    def __init__(self, channels: int, head_dim: int | None = None):
        super().__init__()
        self.channels = channels
        self.head_dim = choose_head_dim(channels, head_dim, largest=16)
        self.query, self.key = channel_convolution(channels), channel_convolution(channels)
        self.value = value_convolution(channels)
        heads = channels // self.head_dim
        slopes = torch.linspace(math.log(0.7), -math.log(0.7), heads).exp()
        self.register_buffer("slopes", slopes, persistent=False)
        self.mix = nn.Linear(heads, heads, bias=False)
        self.weights = nn.Identity()

    def forward(self, x: Tensor, memory: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple]:
        check_feature_map(x, self.channels)
        row = pool(x)                                                       # (batch, 1, channels)
        query = split_heads(self.query(row), self.head_dim)                 # (batch, heads, head_dim)
        key = split_heads(self.key(row), self.head_dim)                     # (batch, heads, head_dim)
        # In float16 the shares' sum overflows, and a blank key is NaN.
        key = key.to(torch.promote_types(key.dtype, torch.float32))
        share = (key.norm(dim=-1) * self.slopes).clamp(max=LARGEST_EXPONENT).exp()      # (batch, heads)
        mean, total = _mean_and_total(memory, x, share)
        total = total + share
        mean = mean + per_channel(share / total, x) * (x - mean)            # m^t, like x
        along = (query * F.normalize(key, dim=-1)).sum(dim=-1).to(query.dtype)          # (batch, heads)
        gate = self.weights(self.mix(along).sigmoid()[:, :, None])          # (batch, heads, 1)
        return per_channel(gate[:, :, 0], x) * self.value(mean), (mean, total)


NAMES: dict[str, type[nn.Module]] = {
    "denseformer": DenseFormer,
    "mudd": MUDDFormer,
    "attnres": AttentionResiduals,
    "attnres-block": BlockAttentionResiduals,
    "kcla": KeyCorrelatedAttention,
}


def _by_layer(by_distance: Tensor, layers: int) -> Tensor:
    """Weights by distance, own layer first, (..., most) -> by layer, own layer last, (..., layers)."""
    most = by_distance.shape[-1]
    if layers > most:
        raise ValueError(f"a stage may have {most} layers, as most_layers says; here is layer {layers}")
    return by_distance[..., :layers].flip(-1)


def _root_mean_square_norm(row: Tensor) -> Tensor:
    """Rows divided by the root of their mean square; no gain is learned, for it could not outdo the query's.
    """
    return F.rms_norm(row, row.shape[-1:])


def _softmax_over_depth(query: Tensor, keys: Tensor) -> Tensor:
    """(1, channels) and (batch, t, channels) -> weights (batch, 1, t)."""
    return (keys * query.to(keys.dtype)).sum(dim=-1).softmax(dim=-1)[:, None]


def _check_blocks(memory, x):
    if memory is None:
        return
    pairs = isinstance(memory, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in memory)
    if not pairs or not memory:
        raise ValueError("memory must be None or a list of pairs, a block's sum and its number of layers, "
                         f"not a {type(memory).__name__} of something else")
    check_list_memory([block for block, _ in memory], x)
    for _, layers in memory:
        check_positive("a block's number of layers", layers)


def _mean_and_total(memory, x, share):
    """The pair that KeyCorrelatedAttention was given; at the first layer a mean of 0 with no weight."""
    if memory is None:
        return torch.zeros_like(x), torch.zeros_like(share)
    if not isinstance(memory, tuple) or len(memory) != 2:
        raise ValueError(f"memory must be None or a pair, mean and total, not a {type(memory).__name__}")
    mean, total = memory
    check_map_memory(mean, x)
    check_same_shape("the memory's total", total, share)
    return mean.to(x.dtype), total.to(share.dtype)
