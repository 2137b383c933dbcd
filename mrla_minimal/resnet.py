"""Residual networks that host any layer attention.

A stage is the same loop whatever the attention:   for block in stage: x, memory = block(x, memory)

Sources: K. He et al., Deep Residual Learning for Image Recognition, CVPR 2016 (the nets, CIFAR and ImageNet);
Y. Fang et al., arXiv 2302.03985 (where the attention sits in the block).
"""

import functools
from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F

from mrla_minimal.channel_attention import EfficientChannelAttention, SqueezeExcitation
from mrla_minimal.controls import (
    DepthwiseCarry,
    DepthwiseCarryReleased,
    DepthwiseGated,
    DepthwiseValue,
    UniformMean,
)
from mrla_minimal.layer_attention import LayerAttention, MRLABase, MRLALight, MRLALightReleased
from mrla_minimal.shapes import check_choice

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
CHANNEL_ATTENTIONS = {"se": SqueezeExcitation, "eca": EfficientChannelAttention}
BLOCKS = ("basic", "bottleneck")
SHORTCUTS = ("pad", "conv")
STEMS = ("conv7", "deep")


class DropPath(nn.Module):
    """While training, drops a branch for a whole sample with probability `rate`, and scales what stays by 1 / (1 - rate).

    (batch, ...) -> the same shape. Source: G. Huang et al., Deep Networks with Stochastic Depth, ECCV 2016.
    """

    def __init__(self, rate):
        super().__init__()
        if not isinstance(rate, (int, float)) or not 0.0 <= rate < 1.0:
            raise ValueError(f"drop_path must be at least 0 and below 1, not {rate!r}")
        self.rate = rate

    def forward(self, x):
        if not self.training or self.rate == 0.0:
            return x
        keep = torch.empty(len(x), *[1] * (x.dim() - 1), dtype=x.dtype, device=x.device)
        return x * keep.bernoulli_(1.0 - self.rate).div_(1.0 - self.rate)


class PadShortcut(nn.Module):
    """A shortcut without parameters ("option A"): keep every stride-th pixel, and fill the new channels with zeros."""

    def __init__(self, extra_channels, stride):
        super().__init__()
        self.extra_channels, self.stride = extra_channels, stride

    def forward(self, x):
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.extra_channels))              # (batch, channels + extra, height', width')


class ResidualBlock(nn.Module):
    """One layer of a stage: X^t = relu(F(x) + shortcut(x)), and then, if there is one, the layer attention:

    output = X^t + DropPath(BN(attention(X^t, memory))), with a ReLU after that BN where the attention asks for it.

    forward(x, memory) -> (output, memory). `residual` is F, `channels` its output channels. The attention's class says
    what the block must know of it: `relu_after_norm`, and `takes_block_input`: the memory it is given is then the block's
    shortcut, as in the released code, in place of what the attention left at the layer before. An attention that has
    neither attribute has neither property.
    """

    def __init__(self, residual, shortcut, channels):
        super().__init__()
        self.residual = residual
        self.shortcut = shortcut
        self.channels = channels
        self.channel_attention = nn.Identity()
        self.layer_attention = None

    def add_layer_attention(self, attention, drop_path=0.0):
        self.layer_attention = attention
        self.attention_norm = nn.BatchNorm2d(self.channels)
        self.relu_after_norm = getattr(attention, "relu_after_norm", False)
        self.takes_block_input = getattr(attention, "takes_block_input", False)
        self.drop_path = DropPath(drop_path)

    def forward(self, x, memory=None):
        shortcut = self.shortcut(x)                                                      # (batch, channels, height, width)
        x = torch.relu(self.channel_attention(self.residual(x)) + shortcut)              # X^t
        if self.layer_attention is None:
            return x, None
        attended, memory = self.layer_attention(x, shortcut if self.takes_block_input else memory)   # O^t
        attended = self.attention_norm(attended)
        if self.relu_after_norm:
            attended = torch.relu(attended)
        return x + self.drop_path(attended), memory


class ResNet(nn.Module):
    """A stem, stages of residual blocks, and a linear classifier: images (batch, 3, height, width) -> logits (batch, classes).

    `cifar_resnet` and `imagenet_resnet` build it. The memory lives inside one stage: it starts empty at its first block.
    """

    def __init__(self, stem, stages, channels, num_classes):
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(nn.ModuleList(stage) for stage in stages)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images):
        if not isinstance(images, torch.Tensor):
            raise ValueError(f"images must be a tensor of shape (batch, 3, height, width), not {type(images).__name__}")
        if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(f"images must be floating-point, of shape (batch, 3, height, width), "
                             f"not {tuple(images.shape)} of {images.dtype}")
        x = self.stem(images)
        for stage in self.stages:
            memory = None
            for block in stage:
                x, memory = block(x, memory)
        return self.classifier(x.mean(dim=(2, 3)))


def _residual(kind, inputs, planes, outputs, stride):
    """F of a block: convolution, BN and ReLU in turn, no ReLU after the last BN. The bottleneck strides in its 3x3 convolution."""
    if kind == "basic":
        kernels = [(3, inputs, planes, stride), (3, planes, outputs, 1)]
    else:
        kernels = [(1, inputs, planes, 1), (3, planes, planes, stride), (1, planes, outputs, 1)]
    layers = OrderedDict()
    for number, (size, channels_in, channels_out, step) in enumerate(kernels, start=1):
        if number > 1:
            layers[f"relu{number - 1}"] = nn.ReLU(inplace=True)
        layers[f"conv{number}"] = nn.Conv2d(channels_in, channels_out, size, step, padding=size // 2, bias=False)
        layers[f"norm{number}"] = nn.BatchNorm2d(channels_out)
    return nn.Sequential(layers)


def _shortcut(kind, inputs, outputs, stride):
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    if kind == "pad":
        return PadShortcut(outputs - inputs, stride)
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm=nn.BatchNorm2d(outputs)))


def _stages(block, shortcut, inputs, widths, lengths):
    expansion = 1 if block == "basic" else 4
    stages = []
    for number, (planes, length) in enumerate(zip(widths, lengths, strict=True)):
        stage = []
        for position in range(length):
            stride = 2 if number > 0 and position == 0 else 1
            outputs = planes * expansion
            stage.append(ResidualBlock(_residual(block, inputs, planes, outputs, stride),
                                       _shortcut(shortcut, inputs, outputs, stride), outputs))
            inputs = outputs
        stages.append(stage)
    return stages, inputs


def _initialise_host(model):
    """He initialisation; the last BN of a residual branch starts at 0, so that each block starts as its shortcut.

    Except where the shortcut is padded: there the new channels would be exactly 0 in every layer of the stage, and the BN
    after an attention multiplies their gradients by 1 / sqrt(1e-5) = 316 a layer. Such a block starts its last BN at 1.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    for stage in model.stages:
        for block in stage:
            if not isinstance(block.shortcut, PadShortcut):
                last_norm = block.residual[-1]
                nn.init.zeros_(last_norm.weight)


def _attention_factory(layer_attention, head_dim):
    """A callable channels -> module, from a name of LAYER_ATTENTIONS or from such a callable itself."""
    if isinstance(layer_attention, nn.Module):
        raise ValueError("layer_attention must be a class, or another callable channels -> module, and not one module: "
                         f"every block needs its own; here is a {type(layer_attention).__name__}")
    if callable(layer_attention):
        if head_dim is not None:
            raise ValueError(f"head_dim={head_dim!r} is for the named attentions; give it to your own in the callable")
        return layer_attention
    if not isinstance(layer_attention, str) or layer_attention not in LAYER_ATTENTIONS:
        raise ValueError(f"layer_attention must be None, one of {', '.join(map(repr, LAYER_ATTENTIONS))}, "
                         f"or a callable channels -> module, not {layer_attention!r}")
    return functools.partial(LAYER_ATTENTIONS[layer_attention], head_dim=head_dim)


def _add_attentions(model, layer_attention, channel_attention, head_dim, drop_path):
    """Only now, so that every variant of one seed shares the parameters that its host starts with."""
    check_choice("channel_attention", channel_attention, (None, *CHANNEL_ATTENTIONS))
    DropPath(drop_path)     # a wrong rate is an error without a layer attention, too
    blocks = [block for stage in model.stages for block in stage]
    if channel_attention is not None:
        for block in blocks:
            block.channel_attention = CHANNEL_ATTENTIONS[channel_attention](block.channels)
    if layer_attention is not None:
        factory = _attention_factory(layer_attention, head_dim)
        for block in blocks:
            attention = factory(block.channels)
            if not isinstance(attention, nn.Module):
                raise ValueError(f"layer_attention must return a module for {block.channels} channels, not {attention!r}")
            block.add_layer_attention(attention, drop_path)
    elif head_dim is not None:
        raise ValueError(f"head_dim={head_dim!r} needs a layer_attention, which is None")


def _positive(name, number):
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ValueError(f"{name} must be a positive integer, not {number!r}")


def cifar_resnet(depth=20, *, block="basic", num_classes=10, layer_attention=None, channel_attention=None, head_dim=None,
                 shortcut=None, width=16, drop_path=0.0):
    """A ResNet for 32 x 32 images: a 3x3 stem and three stages of `width`, 2 width and 4 width channels.

    depth             6n + 2 with basic blocks, 9n + 2 with bottlenecks (whose stages end in four times those channels)
    layer_attention   None, "layer" (Eq. 4), "mrla-base" (Eq. 6), "mrla-light" (Eq. 8), "mrla-light-released" (the public
                      code's wiring); a control: "depthwise", "depthwise-gated", "depthwise-carry",
                      "depthwise-carry-released", "uniform"; or any callable channels -> module with the signature
                      output, memory = attention(x, memory)
    channel_attention None, "se" or "eca", on the residual branch before the sum
    head_dim          channels a head of the layer attention; None: its own default
    shortcut          "pad" (no parameters; the default for basic) or "conv" (1x1 convolution and BN; for bottleneck)
    drop_path         probability of dropping the attention branch of a sample while training

    Raises ValueError naming the argument, what was given and what is allowed.
    """
    check_choice("block", block, BLOCKS)
    _positive("width", width)
    _positive("num_classes", num_classes)
    convolutions = 6 if block == "basic" else 9
    if not isinstance(depth, int) or depth < convolutions + 2 or (depth - 2) % convolutions:
        examples = ", ".join(str(convolutions * n + 2) for n in (1, 2, 3, 4, 6, 9, 12, 18))
        raise ValueError(f"depth must be {convolutions}n + 2 with {block} blocks ({examples}, ...), not {depth!r}")
    if shortcut is None:
        shortcut = "pad" if block == "basic" else "conv"
    check_choice("shortcut", shortcut, SHORTCUTS)
    stem = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, width, 3, padding=1, bias=False), norm=nn.BatchNorm2d(width), relu=nn.ReLU()))
    stages, channels = _stages(block, shortcut, width, (width, 2 * width, 4 * width), [(depth - 2) // convolutions] * 3)
    model = ResNet(stem, stages, channels, num_classes)
    _initialise_host(model)
    _add_attentions(model, layer_attention, channel_attention, head_dim, drop_path)
    return model


def imagenet_resnet(depth=50, *, num_classes=1000, layer_attention=None, channel_attention=None, stem="conv7", head_dim=None,
                    drop_path=0.0):
    """ResNet-50 or ResNet-101 for 224 x 224 images: bottlenecks, 1x1 convolution shortcuts, four stages of 256 to 2048 channels.

    stem              "conv7": one 7x7 convolution; "deep": three 3x3 ones (3-32 with stride 2, 32-32, 32-64), as in the
                      released MRLA-base nets; a 3x3 max-pooling follows
    The other arguments are `cifar_resnet`'s. Raises ValueError naming the argument, what was given and what is allowed.
    """
    lengths = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
    check_choice("depth", depth, tuple(lengths))
    check_choice("stem", stem, STEMS)
    _positive("num_classes", num_classes)
    kernels = [(7, 3, 64, 2)] if stem == "conv7" else [(3, 3, 32, 2), (3, 32, 32, 1), (3, 32, 64, 1)]
    layers = []
    for size, channels_in, channels_out, stride in kernels:
        layers.append(nn.Conv2d(channels_in, channels_out, size, stride, padding=size // 2, bias=False))
        layers += [nn.BatchNorm2d(channels_out), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, stride=2, padding=1))
    stages, channels = _stages("bottleneck", "conv", 64, (64, 128, 256, 512), lengths[depth])
    model = ResNet(nn.Sequential(*layers), stages, channels, num_classes)
    _initialise_host(model)
    _add_attentions(model, layer_attention, channel_attention, head_dim, drop_path)
    return model
