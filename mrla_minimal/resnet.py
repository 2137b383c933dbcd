"""Residual networks that host any layer attention.

A stage is the same loop whatever the attention:   for block in stage: x, memory = block(x, memory)

Sources: K. He et al., Deep Residual Learning for Image Recognition, CVPR 2016 (the nets, CIFAR and ImageNet);
Y. Fang et al., arXiv 2302.03985 (where the attention sits in the block).
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mrla_minimal.hosting import CHANNEL_ATTENTIONS, AttentionFactory, DropPath, attention_factory
from mrla_minimal.shapes import check_choice, check_images, check_positive, check_range, is_positive

BLOCKS = ("basic", "bottleneck")
SHORTCUTS = ("pad", "conv")
STEMS = ("conv7", "deep")


class PadShortcut(nn.Module):
    """A shortcut without parameters ("option A"): every stride-th pixel, and zeros in the new channels.

    (batch, channels, height, width) -> (batch, channels + extra_channels, height / stride, width / stride).
    """

    def __init__(self, extra_channels: int, stride: int):
        super().__init__()
        self.extra_channels, self.stride = extra_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.extra_channels))


class ResidualBlock(nn.Module):
    """One layer of a stage: a residual block, and the layer attention if there is one.

    X^t = relu(F(x) + shortcut(x)), output = X^t + DropPath(BN(attention(X^t, memory))); with a ReLU after
    that BN where the attention asks for it.

    forward(x, memory) -> (output, memory); x (batch, channels before, height, width), output as X^t is.
    `residual` is F, `channels` the channels of X^t. What the block must know of an attention it reads off
    its attributes `relu_after_norm` and `takes_block_input`, see `layer_attention.py`.
    """

    def __init__(self, residual: nn.Module, shortcut: nn.Module, channels: int):
        super().__init__()
        self.residual = residual
        self.shortcut = shortcut
        self.channels = channels
        self.channel_attention = nn.Identity()
        self.layer_attention = None

    def add_layer_attention(self, attention: nn.Module, drop_path: float = 0.0) -> None:
        self.layer_attention = attention
        self.attention_norm = nn.BatchNorm2d(self.channels)
        self.relu_after_norm = getattr(attention, "relu_after_norm", False)
        self.takes_block_input = getattr(attention, "takes_block_input", False)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, memory: object = None) -> tuple[Tensor, object]:
        shortcut = self.shortcut(x)                                         # (batch, channels, height, width)
        x = torch.relu(self.channel_attention(self.residual(x)) + shortcut)             # X^t
        if self.layer_attention is None:
            return x, None
        attended, memory = self.layer_attention(x, shortcut if self.takes_block_input else memory)      # O^t
        attended = self.attention_norm(attended)
        if self.relu_after_norm:
            attended = torch.relu(attended)
        return x + self.drop_path(attended), memory


class ResNet(nn.Module):
    """A stem, stages of residual blocks, and a linear classifier.

    images (batch, in_channels, height, width) -> logits (batch, classes). `cifar_resnet` and
    `imagenet_resnet` build it. The memory lives inside one stage: it starts empty at its first block.

    Raises ValueError for images of another shape, or that hold no floating-point numbers.
    """

    def __init__(self, stem: nn.Module, stages: Sequence[Sequence[ResidualBlock]], *, in_channels: int,
                 channels: int, num_classes: int):
        super().__init__()
        self.in_channels = in_channels
        self.stem = stem
        self.stages = nn.ModuleList(nn.ModuleList(stage) for stage in stages)
        self.classifier = nn.Linear(channels, num_classes)

    def features(self, images: Tensor) -> list[Tensor]:
        """The map that each stage ends in: (batch, channels of the stage, height, width) each."""
        check_images(images, self.in_channels)
        x, maps = self.stem(images), []
        for stage in self.stages:
            memory = None
            for block in stage:
                x, memory = block(x, memory)
            maps.append(x)
        return maps

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images)[-1].mean(dim=(2, 3)))


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


def _residual(kind: str, inputs: int, planes: int, outputs: int, stride: int) -> nn.Sequential:
    """F of a block: convolution, BN and ReLU in turn, no ReLU after the last BN.

    The bottleneck strides in its 3x3 convolution.
    """
    if kind == "basic":
        kernels = [(3, inputs, planes, stride), (3, planes, outputs, 1)]
    else:
        kernels = [(1, inputs, planes, 1), (3, planes, planes, stride), (1, planes, outputs, 1)]
    layers = OrderedDict()
    for number, (size, channels_in, channels_out, step) in enumerate(kernels, start=1):
        if number > 1:
            layers[f"relu{number - 1}"] = nn.ReLU(inplace=True)
        layers[f"conv{number}"] = _convolution(channels_in, channels_out, size, step)
        layers[f"norm{number}"] = nn.BatchNorm2d(channels_out)
    return nn.Sequential(layers)


def _shortcut(kind: str, inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    if kind == "pad":
        return PadShortcut(outputs - inputs, stride)
    convolution = _convolution(inputs, outputs, 1, stride)
    return nn.Sequential(OrderedDict(conv=convolution, norm=nn.BatchNorm2d(outputs)))


def _stages(block: str, shortcut: str, inputs: int, widths: Sequence[int],
            lengths: Sequence[int]) -> tuple[list[list[ResidualBlock]], int]:
    """The stages' blocks, and the channels that the last of them leaves."""
    expansion = 1 if block == "basic" else 4
    stages = []
    for number, (planes, length) in enumerate(zip(widths, lengths, strict=True)):
        stage = []
        for position in range(length):
            stride = 2 if number > 0 and position == 0 else 1
            outputs = planes * expansion
            residual = _residual(block, inputs, planes, outputs, stride)
            stage.append(ResidualBlock(residual, _shortcut(shortcut, inputs, outputs, stride), outputs))
            inputs = outputs
        stages.append(stage)
    return stages, inputs


def _initialise_host(model: ResNet) -> None:
    """He initialisation; the last BN of a residual branch starts at 0, and so each block as its shortcut.

    Except where the shortcut is padded: its new channels would then be exactly 0 in every layer of the stage,
    and the BN after an attention multiplies their gradients by 1 / sqrt(1e-5) = 316 a layer. There it is 1.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    for stage in model.stages:
        for block in stage:
            if not isinstance(block.shortcut, PadShortcut):
                nn.init.zeros_(block.residual[-1].weight)


def _add_attentions(
    model: ResNet, layer_attention: str | AttentionFactory | None, channel_attention: str | None,
    head_dim: int | None, drop_path: float,
) -> None:
    """Give every block its attentions, once the host is initialised.

    So every variant of one seed shares the parameters that its host starts with.
    """
    check_choice("channel_attention", channel_attention, (None, *CHANNEL_ATTENTIONS))
    check_range("drop_path", drop_path, 0, 1)
    blocks = [block for stage in model.stages for block in stage]
    if channel_attention is not None:
        for block in blocks:
            block.channel_attention = CHANNEL_ATTENTIONS[channel_attention](block.channels)
    if layer_attention is not None:
        factory = attention_factory(layer_attention, head_dim)
        for block in blocks:
            block.add_layer_attention(factory(block.channels), drop_path)
    elif head_dim is not None:
        raise ValueError(f"head_dim={head_dim!r} needs a layer_attention, which is None")


def cifar_resnet(
    depth: int = 20, *, block: str = "basic", num_classes: int = 10,
    layer_attention: str | AttentionFactory | None = None, channel_attention: str | None = None,
    head_dim: int | None = None, shortcut: str | None = None, width: int = 16, drop_path: float = 0.0,
    in_channels: int = 3, stem_stride: int = 1,
) -> ResNet:
    """A ResNet for 32 x 32 images: a 3x3 stem and three stages of `width`, 2 width and 4 width channels.

    depth             6n + 2 with basic blocks, 9n + 2 with bottlenecks (stages end in 4 times the channels)
    layer_attention   None, "layer" (Eq. 4), "mrla-base" (Eq. 6), "mrla-light" (Eq. 8), "mrla-light-released"
                      (the public code's wiring); a control: "depthwise", "depthwise-gated",
                      "depthwise-carry", "depthwise-carry-released", "uniform"; a name of the family
                      (`family/`), as "dla-base"; or any callable channels -> module with the signature
                      output, memory = attention(x, memory)
    channel_attention None, "se" or "eca", on the residual branch before the sum
    head_dim          channels a head of the layer attention; None: its own default
    shortcut          "pad" (no parameters; default for basic) or "conv" (1x1 and BN; for bottleneck)
    drop_path         probability of dropping the attention branch of a sample while training
    in_channels       channels of the images, 3 for RGB
    stem_stride       of the stem's convolution; 2 halves every map, for larger images

    Raises ValueError naming the argument, what was given and what is allowed.
    """
    check_choice("block", block, BLOCKS)
    check_positive("width", width)
    check_positive("num_classes", num_classes)
    check_positive("in_channels", in_channels)
    check_positive("stem_stride", stem_stride)
    convolutions = 6 if block == "basic" else 9
    if not is_positive(depth) or depth < convolutions + 2 or (depth - 2) % convolutions:
        examples = ", ".join(str(convolutions * n + 2) for n in (1, 2, 3, 4, 6, 9, 12, 18))
        raise ValueError(f"depth must be {convolutions}n + 2 with {block} blocks ({examples}, ...), "
                         f"not {depth!r}")
    if shortcut is None:
        shortcut = "pad" if block == "basic" else "conv"
    check_choice("shortcut", shortcut, SHORTCUTS)
    stem = nn.Sequential(OrderedDict(
        conv=_convolution(in_channels, width, 3, stem_stride), norm=nn.BatchNorm2d(width), relu=nn.ReLU()))
    lengths = [(depth - 2) // convolutions] * 3
    stages, channels = _stages(block, shortcut, width, (width, 2 * width, 4 * width), lengths)
    model = ResNet(stem, stages, in_channels=in_channels, channels=channels, num_classes=num_classes)
    _initialise_host(model)
    _add_attentions(model, layer_attention, channel_attention, head_dim, drop_path)
    return model


def imagenet_resnet(
    depth: int = 50, *, num_classes: int = 1000, layer_attention: str | AttentionFactory | None = None,
    channel_attention: str | None = None, stem: str = "conv7", head_dim: int | None = None,
    drop_path: float = 0.0, in_channels: int = 3,
) -> ResNet:
    """ResNet-50 or ResNet-101 for 224 x 224 images: bottlenecks in four stages of 256 to 2048 channels.

    stem              "conv7": one 7x7 convolution; "deep": three 3x3 ones (to 32 channels with stride 2, to
                      32, to 64), as in the released MRLA-base nets; a 3x3 max-pooling follows

    The other arguments are `cifar_resnet`'s; `released.py` renames published weights for this net.
    Raises ValueError naming the argument, what was given and what is allowed.
    """
    lengths = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
    check_choice("depth", depth, lengths)
    check_choice("stem", stem, STEMS)
    check_positive("num_classes", num_classes)
    check_positive("in_channels", in_channels)
    kernels = [(in_channels, 64, 7, 2)]
    if stem == "deep":
        kernels = [(in_channels, 32, 3, 2), (32, 32, 3, 1), (32, 64, 3, 1)]
    layers = []
    for inputs, outputs, size, stride in kernels:
        layers += [_convolution(inputs, outputs, size, stride), nn.BatchNorm2d(outputs), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, stride=2, padding=1))
    stages, channels = _stages("bottleneck", "conv", 64, (64, 128, 256, 512), lengths[depth])
    model = ResNet(nn.Sequential(*layers), stages, in_channels=in_channels, channels=channels,
                   num_classes=num_classes)
    _initialise_host(model)
    _add_attentions(model, layer_attention, channel_attention, head_dim, drop_path)
    return model
