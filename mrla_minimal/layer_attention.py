"""Attention whose tokens are a network's layers: Eq. 4, Eq. 6 and Eq. 8 of MRLA on feature maps.

Source: Y. Fang et al., Cross-Layer Retrospective Retrieving via Layer Attention, ICLR 2023, arXiv 2302.03985.

All three share one signature, `output, memory = attention(x, memory)`: x is layer t's feature map, memory is what the
layers before it left behind (None at the first), and the returned memory is what layer t leaves to layer t + 1.
They differ in what that memory is:

    LayerAttention   the feature maps X^1..X^t         projected again by every layer
    MRLABase         the (key, value) pairs of 1..t    projected once, by their own layer
    MRLALight        one map, O^t                      a running total, never asked again

MRLALightReleased is MRLALight as the public code runs it: given the block's input where Eq. 8 has O^{t-1}.
A memory is a value: each call returns a new one and leaves the one it was given as it was.
"""

import math

import torch
from einops import einsum, rearrange
from torch import nn

from mrla_minimal.shapes import (
    check_feature_map,
    check_key_value_memory,
    check_list_memory,
    check_map_memory,
    choose_head_dim,
    choose_kernel_size,
)


def channel_convolution(channels, kernel_size=None):
    """The query or key projection: a bias-free convolution along the channel axis, (batch, 1, channels) -> the same shape."""
    taps = choose_kernel_size(channels, kernel_size)
    return nn.Conv1d(1, 1, taps, padding=taps // 2, bias=False)


def value_convolution(channels):
    """The value projection: a bias-free depthwise 3x3 convolution, (batch, channels, height, width) -> the same shape.

    Starts as the released ResNets start each Conv2d: normal, with fan-out counted as if it were not depthwise, so small.
    """
    convolution = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution


def pool(x):
    """Global average of each channel, laid out as a row for Conv1d: (batch, channels, height, width) -> (batch, 1, channels)."""
    pixels = x.shape[2] * x.shape[3]
    return (x.sum(dim=(2, 3)) / pixels).unsqueeze(1)        # x.mean's gradient would divide a whole map in place of a row


def split_heads(row, head_dim):
    """(batch, 1, channels) -> (batch, heads, head_dim); channel c belongs to head c // head_dim."""
    return rearrange(row, "batch 1 (heads d) -> batch heads d", d=head_dim)


def per_channel(weights, like):
    """One number a head -> one a channel, ready to scale the maps `like`: (batch, heads) -> (batch, channels, 1, 1)."""
    head_dim = like.shape[1] // weights.shape[1]
    return weights.to(like.dtype).repeat_interleave(head_dim, dim=1)[:, :, None, None]


class AddProduct(torch.autograd.Function):
    """total + weight * value, written into `total`; weight * value alone if total is None. Its gradients are written out.

    apply(total, weight, value): value and total (batch, channels, height, width); weight broadcasts to them. Gradients,
    with g that of the result: g of total, the sum of g * value over what was broadcast of weight, weight * g of value.
    The numbers are autograd's own, for one fresh map where `total + weight * value` and its gradients take four; on a CPU a
    fresh map's memory costs more time than its arithmetic. Where weight asks for a gradient, the backward pass keeps
    `value` as it is, so a value that many layers read is kept once. Of torch.func, vmap cannot follow a change in place.
    """

    @staticmethod
    def forward(total, weight, value):
        if total is None:
            return weight * value
        total.addcmul_(weight, value)
        return total

    @staticmethod
    def setup_context(ctx, inputs, output):
        total, weight, value = inputs
        if total is not None:
            ctx.mark_dirty(total)       # tells autograd that it was changed in place
        _, of_weight, of_value = ctx.needs_input_grad
        ctx.weight_shape = weight.shape
        ctx.save_for_backward(weight if of_value else None, value if of_weight else None)        # what the other's gradient needs

    @staticmethod
    def backward(ctx, gradient):
        weight, value = ctx.saved_tensors
        product = of_weight = of_value = None
        if value is not None:
            product = gradient * value                                                   # (batch, channels, height, width)
            of_weight = product.sum_to_size(ctx.weight_shape).clone()       # clone: for maps of one pixel the sum is `product` itself
        if weight is not None:      # the map of products is written over, if there is one
            of_value = gradient * weight if product is None else product.copy_(gradient).mul_(weight)
        return gradient if ctx.needs_input_grad[0] else None, of_weight, of_value


def weighted_sum(weights, values):
    """sum over layers s of weights[..., s] * values[s]: (batch, heads, t) and t maps -> one map (batch, channels, height, width).

    In the data type of the newest value, the asking layer's own.

    Map by map: stacking them first would keep for the backward pass a fresh copy of the whole cache at every layer.
    """
    total = None
    for s, value in enumerate(values):
        value = value.to(values[-1].dtype)
        total = AddProduct.apply(total, per_channel(weights[:, :, s], value), value)
    return total


class LayerAttention(nn.Module):
    """Layer attention, Eq. 4: layer t projects every earlier feature map again, with its own key and value projections.

    O^t = softmax(Q^t (K^t)^T / sqrt(d)) V^t,  K^t = [f_K^t(X^1); ...; f_K^t(X^t)],  V^t alike.

    x (batch, channels, height, width) -> output of the same shape; weights (batch, heads, t).
    Memory: the list of feature maps X^1..X^t. Cost of layers 1..T: T (T + 1) / 2 key and value projections.
    Deviates from the released code, which splits the heads of (batch, layers, channels) with a view where a transpose is
    needed and so mixes layers with channels; the pooling, the two convolutions and the scale are the same.
    Raises ValueError if head_dim does not divide channels, or if x or memory has another shape.
    """

    relu_after_norm = True

    def __init__(self, channels, head_dim=None, kernel_size=None):
        super().__init__()
        self.channels = channels
        self.head_dim = choose_head_dim(channels, head_dim, largest=32)
        self.query = channel_convolution(channels, kernel_size)
        self.key = channel_convolution(channels, kernel_size)
        self.value = value_convolution(channels)
        self.weights = nn.Identity()        # the weights pass through here: a place to look at them, or to replace them

    def forward(self, x, memory=None):
        check_feature_map(x, self.channels)
        check_list_memory(memory, x)
        features = [*(memory or []), x]                                                  # X^1 .. X^t
        query = split_heads(self.query(pool(x)), self.head_dim)                          # (batch, heads, head_dim)
        keys = [split_heads(self.key(pool(feature)), self.head_dim) for feature in features]
        keys = torch.stack(keys, dim=2)                                                  # (batch, heads, t, head_dim)
        values = [self.value(feature) for feature in features]                           # t maps
        logits = einsum(query, keys, "b heads d, b heads t d -> b heads t") / math.sqrt(self.head_dim)
        weights = self.weights(logits.softmax(dim=-1))                                   # (batch, heads, t)
        return weighted_sum(weights, values), features                                   # Eq. 4


class MRLABase(nn.Module):
    """Recurrent layer attention, Eq. 6: keys and values are made once, by their own layer, and cached.

    O^t = softmax(Q^t (K^t)^T / sqrt(d)) V^t with K^t, V^t = the cached rows and layer t's own (Eq. 4 under our Eq. 5).

    x (batch, channels, height, width) -> output of the same shape; weights (batch, heads, t). At t = 1 the output is v^1.
    Memory: the list of pairs (key (batch, heads, head_dim), value (batch, channels, height, width)) of layers 1..t.
    Cost of layers 1..T: T projections, T (T + 1) / 2 weighted maps; the backward pass keeps 2 T maps.
    Equation 6 has no softmax; the paper's experiments and the released code apply one over the t cached layers, as here.
    The released code concatenates the whole cache anew at each layer; the numbers are the same.
    Raises ValueError if head_dim does not divide channels, or if x or memory has another shape.
    """

    relu_after_norm = True

    def __init__(self, channels, head_dim=None, kernel_size=None):
        super().__init__()
        self.channels = channels
        self.head_dim = choose_head_dim(channels, head_dim, largest=16)
        self.query = channel_convolution(channels, kernel_size)
        self.key = channel_convolution(channels, kernel_size)
        self.value = value_convolution(channels)
        self.weights = nn.Identity()

    def forward(self, x, memory=None):
        check_feature_map(x, self.channels)
        row = pool(x)                                                                    # (batch, 1, channels)
        query = split_heads(self.query(row), self.head_dim)                              # (batch, heads, head_dim)
        key = split_heads(self.key(row), self.head_dim)                                  # (batch, heads, head_dim)
        value = self.value(x)                                                            # (batch, channels, height, width)
        check_key_value_memory(memory, key, value)
        memory = [*(memory or []), (key, value)]
        keys = torch.stack([key for key, _ in memory], dim=2)                            # (batch, heads, t, head_dim)
        logits = einsum(query, keys, "b heads d, b heads t d -> b heads t") / math.sqrt(self.head_dim)
        weights = self.weights(logits.softmax(dim=-1))                                   # (batch, heads, t)
        return weighted_sum(weights, [value for _, value in memory]), memory             # Eq. 6


class MRLALight(nn.Module):
    """Light recurrent layer attention, Eq. 8: one carried map, one learned number a channel.

    O^t = lambda_o * O^{t-1} + sigmoid(q^t . k^t / sqrt(d)) v^t,  O^0 = 0.

    x (batch, channels, height, width) -> output of the same shape; weights, a gate, (batch, heads, 1).
    Memory: one map, O^t. Cost of layers 1..T: T projections, T sums.
    Equation 8 has the bare product Q (k)^T v; the released code, as here, puts a sigmoid round it: the softmax over the
    one entry would be 1. lambda_o starts at N(0, 1), as released.
    Raises ValueError if head_dim does not divide channels, or if x or memory has another shape.
    """

    is_gate = True

    def __init__(self, channels, head_dim=None, kernel_size=None):
        super().__init__()
        self.channels = channels
        self.head_dim = choose_head_dim(channels, head_dim, largest=32)
        self.query = channel_convolution(channels, kernel_size)
        self.key = channel_convolution(channels, kernel_size)
        self.value = value_convolution(channels)
        self.lambda_o = nn.Parameter(torch.randn(channels))
        self.weights = nn.Identity()

    def forward(self, x, memory=None):
        check_feature_map(x, self.channels)
        check_map_memory(memory, x)
        row = pool(x)                                                                    # (batch, 1, channels)
        query = split_heads(self.query(row), self.head_dim)                              # (batch, heads, head_dim)
        key = split_heads(self.key(row), self.head_dim)                                  # (batch, heads, head_dim)
        value = self.value(x)                                                            # (batch, channels, height, width)
        logits = (query * key).sum(dim=-1, keepdim=True) / math.sqrt(self.head_dim)      # (batch, heads, 1)
        gate = self.weights(logits.sigmoid())                                            # (batch, heads, 1)
        # O^0 is a map of zeros (one zero, expanded), not a skipped term: lambda_o then has a gradient (0) at t = 1 too.
        carried = value.new_zeros(()).expand_as(value) if memory is None else memory.to(value.dtype)
        lambda_o = self.lambda_o.to(value.dtype)[:, None, None]                          # (channels, 1, 1)
        output = AddProduct.apply(None, per_channel(gate[:, :, 0], value), value)        # sigmoid(q . k / sqrt(d)) v
        output = AddProduct.apply(output, lambda_o, carried)                             # + lambda_o * O^{t-1}
        return output, output                                                            # Eq. 8


class MRLALightReleased(MRLALight):
    """MRLA-light as the released ResNets wire it: the block hands its input over in place of O^{t-1}.

    O^t = lambda_o * (block input) + sigmoid(q^t . k^t / sqrt(d)) v^t: a second, weighted shortcut.

    The module computes what MRLALight computes; what differs is the map it is given. The block input is the tensor of the
    block's shortcut, down-sampled at a stage's start, so that it crosses from one stage to the next; the attention's own
    output is carried nowhere.
    """

    takes_block_input = True
