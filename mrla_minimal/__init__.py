"""Attention across layers, from scratch: MRLA (ICLR 2023), its controls, and the nets that host them.

    from mrla_minimal import cifar_resnet
    model = cifar_resnet(20, layer_attention="mrla-light")
"""

import mrla_minimal._before_torch  # noqa: F401, I001
import mrla_minimal.family  # noqa: F401
from mrla_minimal.attention import MultiHeadSelfAttention, softmax_attention
from mrla_minimal.channel_attention import EfficientChannelAttention, SqueezeExcitation
from mrla_minimal.controls import (
    DepthwiseCarry,
    DepthwiseCarryReleased,
    DepthwiseGated,
    DepthwiseValue,
    UniformMean,
)
from mrla_minimal.detector import Detector
from mrla_minimal.layer_attention import LayerAttention, MRLABase, MRLALight, MRLALightReleased
from mrla_minimal.looking import freeze_attention, record_attention
from mrla_minimal.released import rename_weights
from mrla_minimal.resnet import cifar_resnet, imagenet_resnet
from mrla_minimal.shapes import eca_kernel_size
from mrla_minimal.vit import cifar_vit, deit

__version__ = "0.1.0"

__all__ = [
    "DepthwiseCarry",
    "DepthwiseCarryReleased",
    "DepthwiseGated",
    "DepthwiseValue",
    "Detector",
    "EfficientChannelAttention",
    "LayerAttention",
    "MRLABase",
    "MRLALight",
    "MRLALightReleased",
    "MultiHeadSelfAttention",
    "SqueezeExcitation",
    "UniformMean",
    "cifar_resnet",
    "cifar_vit",
    "deit",
    "eca_kernel_size",
    "freeze_attention",
    "imagenet_resnet",
    "record_attention",
    "rename_weights",
    "softmax_attention",
]
