"""The mean of all layers' values, times a learned loudness: the report is wrong.md."""

import torch
from torch import nn

from mrla_minimal.layer_attention import value_convolution


class LoudMean(nn.Module):
    """O^t = g^t (v^1 + ... + v^t) / t, with one learned number g^t a layer, between 0 and 1."""

    relu_after_norm = True

    def __init__(self, channels):
        super().__init__()
        self.value = value_convolution(channels)
        self.loudness = nn.Parameter(torch.zeros(1))

    def forward(self, x, memory=None):
        values = [*(memory or []), self.value(x)]
        return self.loudness.sigmoid() * sum(values) / len(values), values
