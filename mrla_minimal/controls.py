"""Controls: what any claim about layer attention must beat.

Nearly all parameters that MRLA adds sit in its value convolution. So each control keeps that convolution and
takes something else away, on the same signature `output, memory = attention(x, memory)`:

                     no memory         memory                             the memory is
    no gate          DepthwiseValue    DepthwiseCarry
    gate             DepthwiseGated    MRLALight (not a control)          one carried map
    uniform weights                    UniformMean, beside MRLABase       the cached values

DepthwiseCarryReleased is DepthwiseCarry wired like MRLALightReleased: the map carried is the block's input.

They take (channels, head_dim=None, kernel_size=None) like the attentions they stand in for; those without
heads make no use of the last two. x, memories and errors are as there: x (batch, channels, height, width)
-> output of the same shape, and ValueError for an x or a memory of another shape.
"""

import math

import torch
from torch import Tensor, nn

from mrla_minimal.layer_attention import (
    channel_convolution,
    per_channel,
    pool,
    split_heads,
    value_convolution,
)
from mrla_minimal.shapes import check_feature_map, check_list_memory, check_map_memory, choose_head_dim


class DepthwiseValue(nn.Module):
    """v alone: O^t = v^t. A depthwise convolution with no attention at all; memory stays None."""

    def __init__(self, channels: int, head_dim: int | None = None, kernel_size: int | None = None):
        super().__init__()
        self.channels = channels
        self.value = value_convolution(channels)

    def forward(self, x: Tensor, memory: object = None) -> tuple[Tensor, None]:
        check_feature_map(x, self.channels)
        return self.value(x), None                                          # (batch, channels, height, width)


class DepthwiseGated(nn.Module):
    """v gated: O^t = sigmoid(q^t . k^t / sqrt(d)) v^t. MRLALight with lambda_o = 0; memory stays None."""

    is_gate = True

    def __init__(self, channels: int, head_dim: int | None = None, kernel_size: int | None = None):
        super().__init__()
        self.channels = channels
        self.head_dim = choose_head_dim(channels, head_dim, largest=32)
        self.query = channel_convolution(channels, kernel_size)
        self.key = channel_convolution(channels, kernel_size)
        self.value = value_convolution(channels)
        self.weights = nn.Identity()

    def forward(self, x: Tensor, memory: object = None) -> tuple[Tensor, None]:
        check_feature_map(x, self.channels)
        row = pool(x)                                                       # (batch, 1, channels)
        query = split_heads(self.query(row), self.head_dim)                 # (batch, heads, head_dim)
        key = split_heads(self.key(row), self.head_dim)                     # (batch, heads, head_dim)
        value = self.value(x)                                               # (batch, channels, height, width)
        logits = (query * key).sum(dim=-1, keepdim=True) / math.sqrt(self.head_dim)     # (batch, heads, 1)
        gate = self.weights(logits.sigmoid())                               # (batch, heads, 1)
        return per_channel(gate[:, :, 0], value) * value, None


class DepthwiseCarry(nn.Module):
    """v plus the carried map: O^t = lambda_o * O^{t-1} + v^t. MRLALight with its gate held at 1."""

    def __init__(self, channels: int, head_dim: int | None = None, kernel_size: int | None = None):
        super().__init__()
        self.channels = channels
        self.value = value_convolution(channels)
        self.lambda_o = nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_feature_map(x, self.channels)
        check_map_memory(memory, x)
        value = self.value(x)                                               # (batch, channels, height, width)
        carried = value.new_zeros(1, self.channels, 1, 1) if memory is None else memory.to(value.dtype)
        lambda_o = self.lambda_o.to(value.dtype)[:, None, None]             # (channels, 1, 1)
        output = lambda_o * carried + value
        return output, output


class DepthwiseCarryReleased(DepthwiseCarry):
    """The control of MRLALightReleased: the block hands over its input as the carried map."""

    takes_block_input = True


class UniformMean(nn.Module):
    """The mean of the cached values: O^t = (v^1 + ... + v^t) / t. MRLABase with its weights held at 1 / t."""

    relu_after_norm = True

    def __init__(self, channels: int, head_dim: int | None = None, kernel_size: int | None = None):
        super().__init__()
        self.channels = channels
        self.value = value_convolution(channels)

    def forward(self, x: Tensor, memory: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        check_feature_map(x, self.channels)
        check_list_memory(memory, x)
        values = [*(memory or []), self.value(x)]                           # t maps
        return sum(value.to(values[-1].dtype) for value in values) / len(values), values
