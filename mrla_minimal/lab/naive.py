"""MRLA-base and MRLA-light as one would first write them: the yardsticks of `mrla bench attention`."""

import math

import torch
from torch import nn

from mrla_minimal.layer_attention import channel_convolution, pool, value_convolution


class NaiveMRLABase(nn.Module):
    """MRLABase as one would first write it: keys and values in two tensors, concatenated anew at each layer.

    Called like MRLABase; its memory is (keys, values), each (batch, heads, t, ...).
    """

    relu_after_norm = True

    def __init__(self, channels: int, head_dim: int = 16):
        super().__init__()
        self.channels, self.head_dim = channels, head_dim
        self.query = channel_convolution(channels)
        self.key = channel_convolution(channels)
        self.value = value_convolution(channels)

    def forward(
        self, x: torch.Tensor, memory: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        batch, channels, height, width = x.shape
        heads = channels // self.head_dim
        row = pool(x)
        query = self.query(row).view(batch, heads, 1, self.head_dim)
        key = self.key(row).view(batch, heads, 1, self.head_dim)
        value = self.value(x).reshape(batch, heads, 1, -1)
        if memory is not None:
            key = torch.cat([memory[0], key], dim=2)        # (batch, heads, t, head_dim)
            value = torch.cat([memory[1], value], dim=2)    # (batch, heads, t, head_dim * height * width)
        weights = (query @ key.transpose(-2, -1) / math.sqrt(self.head_dim)).softmax(dim=-1)
        return (weights @ value).view(batch, channels, height, width), (key, value)


class NaiveMRLALight(nn.Module):
    """MRLALight as one would first write it, with gate and lambda_o expanded over the maps, term by term.

    Called like MRLALight; its memory is the carried map.
    """

    def __init__(self, channels: int, head_dim: int = 32):
        super().__init__()
        self.channels, self.head_dim = channels, math.gcd(channels, head_dim)
        self.query = channel_convolution(channels)
        self.key = channel_convolution(channels)
        self.value = value_convolution(channels)
        self.lambda_o = nn.Parameter(torch.randn(channels))

    def forward(
        self, x: torch.Tensor, memory: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        batch, channels, height, width = x.shape
        heads = channels // self.head_dim
        row = pool(x)
        query = self.query(row).view(batch, heads, 1, self.head_dim)
        key = self.key(row).view(batch, heads, 1, self.head_dim)
        value = self.value(x).contiguous().view(batch, heads, self.head_dim, height, width)
        gate = (query @ key.transpose(-2, -1) / math.sqrt(self.head_dim)).sigmoid()     # (batch, heads, 1, 1)
        gated = gate.unsqueeze(-1).expand_as(value) * value
        carried = torch.zeros_like(x) if memory is None else memory
        weight = self.lambda_o.view(1, -1, 1, 1).expand_as(carried)
        output = weight * carried + gated.view(batch, channels, height, width)
        return output, output
