"""Adaptive cross-layer attention: each pixel reads a few places of earlier layers' maps, and learns where.

Source: Y. Wang, N. Xu, Y. Yang, Adaptive Cross-Layer Attention for Image Restoration, arXiv 2203.03619, and
its code (SDL-ASU/ACLA). The query's pixel alone decides: a 1x1 convolution of its map says where each key
lies, how much it weighs, and whether it is used at all. There is no product of a query and a key.

    read_at                         a map, read between its pixels
    SidewaysAttention               a fixed number of keys a layer
    AdaptiveCrossLayerAttention     the same, with a gate for each key

The released code does not run as it stands, and where it differs from the paper we follow the paper. The
search for where to insert the module is not built. ("Cross-layer attention" is also the name of another
method, which shares keys and values between a language model's layers: language_model.py.)
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from mrla_minimal.family.depth_weights import MOST_LAYERS
from mrla_minimal.shapes import check_feature_map, check_floats, check_list_memory, check_positive


def read_at(x: Tensor, offsets: Tensor) -> Tensor:
    """Read a map at places beside each pixel, bilinearly between four pixels.

    x (batch, channels, height, width); offsets (batch, keys, 2, height, width), rows down and columns right,
    in pixels -> (batch, keys, channels, height, width). Beyond the border the nearest pixel of the border
    stands. Raises ValueError for shapes that do not fit, and for offsets that are not finite.
    """
    check_floats("x", x, ("batch", "channels", "height", "width"))
    batch, _, height, width = x.shape
    check_floats("offsets", offsets, (batch, "keys", 2, height, width))
    if not offsets.isfinite().all():
        raise ValueError("offsets must be finite; some are not")
    return _read_at(x, offsets)


def _read_at(x, offsets):
    """read_at without its checks, of which one waits for the offsets' values."""
    height, width = x.shape[2:]
    precise = torch.promote_types(torch.promote_types(x.dtype, offsets.dtype), torch.float32)
    offsets = offsets.to(precise)           # bfloat16's three digits would be too few for a place
    rows = torch.arange(height, device=x.device)[:, None] + offsets[:, :, 0]    # (batch, keys, height, width)
    columns = torch.arange(width, device=x.device) + offsets[:, :, 1]
    # grid_sample's -1 and 1 are the map's outer edges, as in boxes.py: align_corners=False. Pixel 0 has its
    # middle half a pixel from the edge. It wants columns first.
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], dim=-1)
    grid = rearrange(grid, "b keys h w xy -> b (keys h) w xy")
    found = F.grid_sample(x.to(grid.dtype), grid, padding_mode="border", align_corners=False).to(x.dtype)
    return rearrange(found, "b c (keys h) w -> b keys c h w", h=height)


class SidewaysAttention(nn.Module):
    """O^t(p) = sum over layers s <= t and keys j of a_sj(p) (R X^s)(p + offset_sj(p)).

    a = softmax over all keys of all layers. Logits and offsets are 1x1 convolutions of X^t; R, 1x1, is shared
    by the layers that are read. Keys belong to the distance t - s. At the start each layer's keys lie on a
    ring of `radius` pixels, and all weigh alike: an even mean.

    Source: arXiv 2203.03619, with the layer itself among those that are read. There a depthwise convolution,
    a norm and a sum follow; here they are the host's.

    Memory: the list of maps X^1..X^t. x and output (batch, channels, height, width).
    Raises ValueError if a stage has more than `most_layers` layers.
    """

    relu_after_norm = True

    def __init__(self, channels: int, head_dim: int | None = None, keys: int = 4, radius: float = 1.0,
                 most_layers: int = MOST_LAYERS):
        super().__init__()
        for name, number in (("channels", channels), ("keys", keys), ("most_layers", most_layers)):
            check_positive(name, number)
        if isinstance(radius, bool) or not isinstance(radius, int | float) or not 0 <= radius < math.inf:
            raise ValueError(f"radius must be a number of pixels of at least 0, not {radius!r}")
        self.channels, self.keys, self.most_layers = channels, keys, most_layers
        self.value = nn.Conv2d(channels, channels, 1, bias=False)
        self.offsets = nn.Conv2d(channels, most_layers * keys * 2, 1)
        self.logits = nn.Conv2d(channels, most_layers * keys, 1)
        angles = torch.arange(keys) * (2 * math.pi / keys)
        ring = radius * torch.stack([angles.sin(), angles.cos()], dim=1)                # (keys, 2)
        for part in (self.offsets, self.logits):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
        with torch.no_grad():
            self.offsets.bias.copy_(ring.flatten().repeat(most_layers))
        self.register_buffer("ring", ring, persistent=False)

    def forward(self, x: Tensor, memory: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        check_feature_map(x, self.channels)
        check_list_memory(memory, x)
        memory = [*(memory or []), x]                                       # X^1..X^t
        read = self.read(x, memory)                             # (batch, t keys, channels, height, width)
        weights = self.weigh(x, len(memory))                    # (batch, t keys, height, width)
        return (weights[:, :, None] * read).sum(dim=1), memory

    def read(self, x: Tensor, memory: list[Tensor]) -> Tensor:
        """All keys of all layers, the latest layer's first: (batch, t keys, channels, height, width)."""
        offsets = self.places(x, len(memory))
        return torch.cat([_read_at(self.value(earlier.to(x.dtype)), offsets[:, distance])
                          for distance, earlier in enumerate(reversed(memory))], dim=1)

    def places(self, x: Tensor, layers: int) -> Tensor:
        """The keys' offsets, the latest layer's first: (batch, layers, keys, 2, height, width), in pixels."""
        if layers > self.most_layers:
            raise ValueError(f"a stage may have {self.most_layers} layers, as most_layers says; "
                             f"here is layer {layers}")
        return rearrange(_first(self.offsets, x, 2 * self.keys * layers),
                         "b (layers keys two) h w -> b layers keys two h w", keys=self.keys, two=2)

    def weigh(self, x: Tensor, layers: int) -> Tensor:
        """The keys' weights at each pixel, which sum to 1, the latest layer's first.

        (batch, layers keys, height, width).
        """
        return _first(self.logits, x, layers * self.keys).softmax(dim=1)


class AdaptiveCrossLayerAttention(SidewaysAttention):
    """SidewaysAttention whose keys have gates: a key whose gate is shut drops out of the softmax.

    A gate is open where a 1x1 convolution of X^t is above 0. Forwards it is 1 or 0; backwards it has the
    gradient of a sigmoid, for which the paper has Gumbel noise. All start open. Where all are shut, the pixel
    gets 0.
    """

    def __init__(self, channels: int, head_dim: int | None = None, keys: int = 4, radius: float = 1.0,
                 most_layers: int = MOST_LAYERS):
        super().__init__(channels, head_dim, keys, radius, most_layers)
        self.gates = nn.Conv2d(channels, most_layers * keys, 1)
        nn.init.zeros_(self.gates.weight)
        nn.init.ones_(self.gates.bias)

    def weigh(self, x: Tensor, layers: int) -> Tensor:
        soft = _first(self.gates, x, layers * self.keys).sigmoid()          # (batch, layers keys, h, w)
        is_open = soft > 0.5
        gates = is_open.to(soft.dtype) + (soft - soft.detach())              # exactly 1 or 0
        logits = _first(self.logits, x, layers * self.keys)
        lowest = torch.finfo(logits.dtype).min
        largest = logits.detach().masked_fill(~is_open, lowest).amax(dim=1, keepdim=True)
        shares = gates * (logits - largest).clamp(max=0).exp()              # a shut key cannot overflow
        return shares / shares.sum(dim=1, keepdim=True).clamp(min=torch.finfo(shares.dtype).tiny)


NAMES: dict[str, type[nn.Module]] = {
    "sideways": SidewaysAttention,
    "acla": AdaptiveCrossLayerAttention,
}


def _first(convolution, x, many):
    """The first `many` channels of what a convolution makes of x: no others are computed."""
    return F.conv2d(x, convolution.weight[:many], convolution.bias[:many])
