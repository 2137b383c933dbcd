"""Attention inside one layer: which of its channels count. The peers that MRLA is compared with.

Both scale each channel by a number between 0 and 1 computed from the pooled map; neither sees another layer.
"""

import torch
from torch import Tensor, nn

from mrla_minimal.shapes import check_feature_map, check_positive, choose_kernel_size


class SqueezeExcitation(nn.Module):
    """x * sigmoid(W2 relu(W1 pool(x))): two bias-free linear maps, and few channels between them.

    x (batch, channels, height, width) -> the same shape, through max(1, channels // reduction) channels.
    Source: J. Hu et al., Squeeze-and-Excitation Networks, CVPR 2018, equations 2 to 4.

    Raises ValueError if channels or reduction is no positive integer, or if x is no such map.
    """

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        check_positive("channels", channels)
        check_positive("reduction", reduction)
        self.channels = channels
        reduced = max(1, channels // reduction)
        self.squeeze = nn.Linear(channels, reduced, bias=False)
        self.excite = nn.Linear(reduced, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        hidden = torch.relu(self.squeeze(x.mean(dim=(2, 3))))       # (batch, reduced)
        gate = torch.sigmoid(self.excite(hidden))                   # (batch, channels)
        return x * gate[:, :, None, None]


class EfficientChannelAttention(nn.Module):
    """x * sigmoid(conv1d(pool(x))): the gate of a channel sees its neighbours along the channel axis alone.

    x (batch, channels, height, width) -> the same shape. MRLA takes its query and key projections from here.
    Source: Q. Wang et al., ECA-Net, CVPR 2020, equations 7 and 8.

    Raises ValueError if kernel_size is no odd positive integer, or if x is no such map.
    """

    def __init__(self, channels: int, kernel_size: int | None = None):
        super().__init__()
        self.channels = channels
        taps = choose_kernel_size(channels, kernel_size)
        self.convolution = nn.Conv1d(1, 1, taps, padding=taps // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        row = x.mean(dim=(2, 3)).unsqueeze(1)                       # (batch, 1, channels)
        gate = torch.sigmoid(self.convolution(row))                 # (batch, 1, channels)
        return x * gate[:, 0, :, None, None]
