"""What the hosts of a layer attention share: the names of the attentions, and a branch that can drop out."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mrla_minimal.channel_attention import EfficientChannelAttention, SqueezeExcitation
from mrla_minimal.controls import (
    DepthwiseCarry,
    DepthwiseCarryReleased,
    DepthwiseGated,
    DepthwiseValue,
    UniformMean,
)
from mrla_minimal.layer_attention import LayerAttention, MRLABase, MRLALight, MRLALightReleased
from mrla_minimal.shapes import check_range, choose_head_dim

AttentionFactory = Callable[[int], nn.Module]       # channels -> a layer attention

LAYER_ATTENTIONS = {
    "layer": LayerAttention,
    "mrla-base": MRLABase,
    "mrla-light": MRLALight,
    "mrla-light-released": MRLALightReleased,
    "depthwise": DepthwiseValue,
    "depthwise-gated": DepthwiseGated,
    "depthwise-carry": DepthwiseCarry,
    "depthwise-carry-released": DepthwiseCarryReleased,
    "uniform": UniformMean,
}
FAMILY_ATTENTIONS: dict[str, type[nn.Module]] = {}      # filled by `mrla_minimal.family`, which stands above
CHANNEL_ATTENTIONS = {"se": SqueezeExcitation, "eca": EfficientChannelAttention}


def attention_factory(layer_attention: str | AttentionFactory, head_dim: int | None) -> AttentionFactory:
    """A callable channels -> module for the layers of one net, from a name or from such a callable itself.

    A name is one of LAYER_ATTENTIONS or FAMILY_ATTENTIONS. Where the class has a `shared_part`, layers of as
    many channels share one (`sharing`).

    Raises ValueError for anything else, and for a head_dim beside a callable.
    """
    if isinstance(layer_attention, nn.Module):
        raise ValueError("layer_attention must be a class, or another callable channels -> module, and not "
                         f"one module: every block needs its own; here is a {type(layer_attention).__name__}")
    if callable(layer_attention):
        if head_dim is not None:
            raise ValueError(f"head_dim={head_dim!r} is for the named attentions; "
                             "give it to your own in the callable")
        return functools.partial(_module_of, sharing(layer_attention))
    named = LAYER_ATTENTIONS | FAMILY_ATTENTIONS
    if not isinstance(layer_attention, str) or layer_attention not in named:
        raise ValueError(f"layer_attention must be None, one of {', '.join(map(repr, named))}, "
                         f"or a callable channels -> module, not {layer_attention!r}")
    attention = sharing(named[layer_attention])

    def build(channels: int) -> nn.Module:
        if head_dim is not None:        # a control without heads would not notice a wrong one
            choose_head_dim(channels, head_dim, largest=channels)
        return attention(channels, head_dim=head_dim)

    return build


def sharing(attention: AttentionFactory) -> AttentionFactory:
    """`attention` for the layers of one net: those of as many channels get one `shared_part` between them.

    An attention class that learns something for a whole stage names a callable channels -> module,
    `shared_part`, and takes what it makes as the argument `shared`; so does a functools.partial of such a
    class, unless it holds a `shared` itself. Any other comes back as it is.
    """
    is_partial = isinstance(attention, functools.partial)
    shared_part = getattr(attention, "shared_part", None)
    if shared_part is None and is_partial:
        shared_part = getattr(attention.func, "shared_part", None)
    if shared_part is None or (is_partial and "shared" in attention.keywords):
        return attention
    parts = {}

    def build(channels: int, **further: object) -> nn.Module:
        if channels not in parts:
            parts[channels] = shared_part(channels)
        return attention(channels, shared=parts[channels], **further)

    return build


def _module_of(factory: AttentionFactory, channels: int) -> nn.Module:
    attention = factory(channels)
    if not isinstance(attention, nn.Module):
        raise ValueError(f"layer_attention must return a module for {channels} channels, not {attention!r}")
    return attention


class DropPath(nn.Module):
    """While training, drops a branch for whole samples, each with probability `rate`.

    What stays is scaled by 1 / (1 - rate), which keeps the mean. (batch, ...) -> the same shape.
    Source: G. Huang et al., Deep Networks with Stochastic Depth, ECCV 2016.

    Raises ValueError if the rate is not at least 0 and below 1.
    """

    def __init__(self, rate: float):
        super().__init__()
        check_range("drop_path", rate, 0, 1)
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = torch.empty(len(x), *[1] * (x.dim() - 1), dtype=x.dtype, device=x.device)
        return x * keep.bernoulli_(1.0 - self.rate).div_(1.0 - self.rate)
