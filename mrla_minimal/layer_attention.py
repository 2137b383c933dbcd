"""Attention whose tokens are a network's layers: Eq. 4, Eq. 6 and Eq. 8 of MRLA on feature maps.

Source: Y. Fang et al., Cross-Layer Retrospective Retrieving via Layer Attention, ICLR 2023, arXiv 2302.03985.

All share one signature, `output, memory = attention(x, memory)`. x is layer t's feature map, memory is what
the layers before it left behind (None at the first), and the returned memory is what layer t leaves to
layer t + 1. They differ in what that memory is:

    LayerAttention   the feature maps X^1..X^t         projected again by every layer
    MRLABase         the (key, value) pairs of 1..t    projected once, by their own layer
    MRLALight        one map, O^t                      a running total, never asked again

MRLALightReleased is MRLALight as the public code runs it: given the block's input where Eq. 8 has O^{t-1}.

A memory is a value: a call returns a new one and leaves the given one as it was. Checkpoint a stage with
`use_reentrant=False`: torch's reentrant form loses the gradients of tensors inside a list. A layer that
meets one warns, as it does of a tensor from layers that are frozen.

What a block or a tool reads off an attention, ours or one's own, is four attributes. Absent means no:

    weights             an nn.Identity that the attention weights (batch, heads, layers) pass through:
                        where `looking` records them and puts others in their place
    is_gate             the weights are a gate (batch, heads, 1), and do not sum to 1 over the layers
    relu_after_norm     the block puts a ReLU after the batch norm that follows the attention
    takes_block_input   the block hands over its input, the shortcut, in place of the memory
"""

import math

import torch
from einops import einsum, rearrange
from torch import Tensor, nn

from mrla_minimal.shapes import (
    check_feature_map,
    check_key_value_memory,
    check_list_memory,
    check_map_memory,
    check_positive,
    choose_head_dim,
    choose_kernel_size,
)

KeyValues = list[tuple[Tensor, Tensor]]         # MRLABase's memory: the key and the value of each layer


def channel_convolution(channels: int, kernel_size: int | None = None) -> nn.Conv1d:
    """The query or key projection: a bias-free convolution along the channel axis.

    (batch, 1, channels) -> the same shape. Raises ValueError if kernel_size is no odd positive integer.
    """
    taps = choose_kernel_size(channels, kernel_size)
    return nn.Conv1d(1, 1, taps, padding=taps // 2, bias=False)


def value_convolution(channels: int) -> nn.Conv2d:
    """The value projection: a bias-free depthwise 3x3 convolution of maps, which keep their shape.

    It starts as the released ResNets start each Conv2d: normal, with the fan-out counted as if the
    convolution were not depthwise, so small. Raises ValueError if channels is no positive integer.
    """
    check_positive("channels", channels)
    convolution = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution


def pool(x: Tensor) -> Tensor:
    """Global average of each channel, as a row: (batch, channels, height, width) -> (batch, 1, channels).

    Half precision is added up in float32: the float16 sum over a map of 256 x 256 pixels would overflow.
    The sums are divided, not the map: the gradient of x.mean() would divide a whole map.
    """
    sums = x.sum(dim=(2, 3), dtype=torch.promote_types(x.dtype, torch.float32))     # (batch, channels)
    return (sums / (x.shape[2] * x.shape[3])).to(x.dtype).unsqueeze(1)


def split_heads(row: Tensor, head_dim: int) -> Tensor:
    """(batch, 1, channels) -> (batch, heads, head_dim); channel c belongs to head c // head_dim."""
    return rearrange(row, "batch 1 (heads d) -> batch heads d", d=head_dim)


def per_channel(weights: Tensor, like: Tensor) -> Tensor:
    """One number a head -> one a channel, to scale maps `like`: (batch, heads) -> (batch, channels, 1, 1)."""
    head_dim = like.shape[1] // weights.shape[1]
    return weights.to(like.dtype).repeat_interleave(head_dim, dim=1)[:, :, None, None]


def weighted_sum(weights: Tensor, values: list[Tensor]) -> Tensor:
    """sum over layers s of weights[..., s] * values[s]: (batch, heads, t) and t maps -> one map.

    In the data type of the newest value, the asking layer's own. Map by map: stacking the maps first would
    keep a fresh copy of the whole cache at every layer for the backward pass.
    """
    total = 0.0
    for s, value in enumerate(values):
        value = value.to(values[-1].dtype)
        total = total + per_channel(weights[:, :, s], value) * value        # (batch, channels, height, width)
    return total


class LayerAttention(nn.Module):
    """Layer attention, Eq. 4: layer t projects every earlier feature map again, by its own projections.

    O^t = softmax(Q^t (K^t)^T / sqrt(d)) V^t,  K^t = [f_K^t(X^1); ...; f_K^t(X^t)],  V^t alike.

    x (batch, channels, height, width) -> output of the same shape; weights (batch, heads, t).
    Memory: the list of feature maps X^1..X^t. Cost of layers 1..T: T (T + 1) / 2 key and value projections.

    The released code splits the heads of (batch, layers, channels) by a view where a transpose is needed,
    which mixes layers with channels. That apart, the module computes the same; its block does not.

    Raises ValueError if head_dim does not divide channels, or if x or memory has another shape.
    """

    relu_after_norm = True

    def __init__(self, channels: int, head_dim: int | None = None, kernel_size: int | None = None):
        super().__init__()
        self.channels = channels
        self.head_dim = choose_head_dim(channels, head_dim, largest=32)
        self.query = channel_convolution(channels, kernel_size)
        self.key = channel_convolution(channels, kernel_size)
        self.value = value_convolution(channels)
        self.weights = nn.Identity()    # the weights pass through: a place to look at, or replace, them

    def forward(self, x: Tensor, memory: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        check_feature_map(x, self.channels)
        check_list_memory(memory, x)
        features = [*(memory or []), x]                                     # X^1 .. X^t
        query = split_heads(self.query(pool(x)), self.head_dim)             # (batch, heads, head_dim)
        keys = [split_heads(self.key(pool(feature.to(x.dtype))), self.head_dim) for feature in features]
        keys = torch.stack(keys, dim=2)                                     # (batch, heads, t, head_dim)
        values = [self.value(feature.to(x.dtype)) for feature in features]  # t maps
        logits = einsum(query, keys, "b heads d, b heads t d -> b heads t") / math.sqrt(self.head_dim)
        weights = self.weights(logits.softmax(dim=-1))                      # (batch, heads, t)
        return weighted_sum(weights, values), features                      # Eq. 4


class MRLABase(nn.Module):
    """Recurrent layer attention, Eq. 6: keys and values are made once, by their own layer, and cached.

    O^t = softmax(Q^t (K^t)^T / sqrt(d)) V^t,  K^t, V^t = the cached rows and layer t's own (our Eq. 5).

    x (batch, channels, height, width) -> output of the same shape, v^1 at t = 1; weights (batch, heads, t).
    Memory: the list of pairs of layers 1..t, key (batch, heads, head_dim) and value (like x).
    Cost of layers 1..T: T projections, T (T + 1) / 2 weighted maps; the backward pass keeps 2 T maps.

    Equation 6 has no softmax; the paper's experiments and the released code apply one over the t cached
    layers, as here. The released code concatenates the whole cache anew at each layer; the numbers are the
    same.

    Raises ValueError if head_dim does not divide channels, or if x or memory has another shape.
    """

    relu_after_norm = True

    def __init__(self, channels: int, head_dim: int | None = None, kernel_size: int | None = None):
        super().__init__()
        self.channels = channels
        self.head_dim = choose_head_dim(channels, head_dim, largest=16)
        self.query = channel_convolution(channels, kernel_size)
        self.key = channel_convolution(channels, kernel_size)
        self.value = value_convolution(channels)
        self.weights = nn.Identity()

    def forward(self, x: Tensor, memory: KeyValues | None = None) -> tuple[Tensor, KeyValues]:
        check_feature_map(x, self.channels)
        row = pool(x)                                                       # (batch, 1, channels)
        query = split_heads(self.query(row), self.head_dim)                 # (batch, heads, head_dim)
        key = split_heads(self.key(row), self.head_dim)                     # (batch, heads, head_dim)
        value = self.value(x)                                               # (batch, channels, height, width)
        check_key_value_memory(memory, key, value)
        memory = [*(memory or []), (key, value)]
        keys = torch.stack([past.to(key.dtype) for past, _ in memory], dim=2)   # (batch, heads, t, head_dim)
        logits = einsum(query, keys, "b heads d, b heads t d -> b heads t") / math.sqrt(self.head_dim)
        weights = self.weights(logits.softmax(dim=-1))                      # (batch, heads, t)
        return weighted_sum(weights, [value for _, value in memory]), memory        # Eq. 6


class MRLALight(nn.Module):
    """Light recurrent layer attention, Eq. 8: one carried map, one learned number a channel.

    O^t = lambda_o * O^{t-1} + sigmoid(q^t . k^t / sqrt(d)) v^t,  O^0 = 0.

    x (batch, channels, height, width) -> output of the same shape; weights, a gate, (batch, heads, 1).
    Memory: one map, O^t. Cost of layers 1..T: T projections, T sums.

    Equation 8 has the bare product Q (k)^T v. The released code, as here, puts a sigmoid round it: the
    softmax over the one entry would be 1. lambda_o starts at N(0, 1), as released.

    Raises ValueError if head_dim does not divide channels, or if x or memory has another shape.
    """

    is_gate = True

    def __init__(self, channels: int, head_dim: int | None = None, kernel_size: int | None = None):
        super().__init__()
        self.channels = channels
        self.head_dim = choose_head_dim(channels, head_dim, largest=32)
        self.query = channel_convolution(channels, kernel_size)
        self.key = channel_convolution(channels, kernel_size)
        self.value = value_convolution(channels)
        self.lambda_o = nn.Parameter(torch.randn(channels))
        self.weights = nn.Identity()

    def forward(self, x: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_feature_map(x, self.channels)
        check_map_memory(memory, x)
        row = pool(x)                                                       # (batch, 1, channels)
        query = split_heads(self.query(row), self.head_dim)                 # (batch, heads, head_dim)
        key = split_heads(self.key(row), self.head_dim)                     # (batch, heads, head_dim)
        value = self.value(x)                                               # (batch, channels, height, width)
        logits = (query * key).sum(dim=-1, keepdim=True) / math.sqrt(self.head_dim)     # (batch, heads, 1)
        gate = self.weights(logits.sigmoid())                               # (batch, heads, 1)
        # O^0 is zero, not a skipped term: lambda_o then has a gradient (0) at t = 1 too.
        carried = value.new_zeros(1, self.channels, 1, 1) if memory is None else memory.to(value.dtype)
        lambda_o = self.lambda_o.to(value.dtype)[:, None, None]             # (channels, 1, 1)
        output = lambda_o * carried + per_channel(gate[:, :, 0], value) * value     # Eq. 8
        return output, output


class MRLALightReleased(MRLALight):
    """MRLA-light as the released ResNets wire it: the block hands its input over in place of O^{t-1}.

    O^t = lambda_o * (block input) + sigmoid(q^t . k^t / sqrt(d)) v^t: a second, weighted shortcut.

    The module computes what MRLALight computes; what differs is the map it is given. The block input is the
    tensor of the block's shortcut, down-sampled at a stage's start, so that it crosses from one stage to
    the next. The attention's own output is carried nowhere.
    """

    takes_block_input = True
