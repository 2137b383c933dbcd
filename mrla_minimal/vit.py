"""A vision transformer that hosts any layer attention: one long stage, and the loop of a ResNet's.

    for block in stage: x, memory = block(x, memory)

x holds tokens here, a layer attention works on feature maps: each block lays its patch tokens out as one,
(batch, dim, side, side), and what comes back as tokens. So the attentions are those of a ResNet, unchanged.

Sources: A. Dosovitskiy et al., An Image Is Worth 16x16 Words, ICLR 2021; H. Touvron et al., Training
data-efficient image transformers, ICML 2021 (DeiT); the public code of Y. Fang et al., arXiv 2302.03985.
"""

import math
from collections import OrderedDict

import torch
from einops import rearrange
from torch import Tensor, nn

from mrla_minimal.attention import MultiHeadSelfAttention
from mrla_minimal.hosting import AttentionFactory, DropPath, attention_factory
from mrla_minimal.layer_attention import MRLALight
from mrla_minimal.shapes import (
    check_choice,
    check_heads,
    check_images,
    check_positive,
    check_range,
    check_same_shape,
)

NORM_EPS = 1e-6                                     # of every LayerNorm, as in ViT and DeiT
READS = ("mean", "cls")
DEIT_SIZES = {"tiny": (192, 3), "small": (384, 6)}  # dim, heads


def to_map(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (batch, n, dim) -> the class token (batch, 0 or 1, dim), the patches (batch, dim, side, side).

    Patch (i, j) is token i * side + j, one further behind a class token. Whether there is one, the count
    says: n = side^2, or side^2 + 1. Raises ValueError for any other.
    """
    side = math.isqrt(tokens.shape[1])
    before = tokens.shape[1] - side * side
    if before > 1 or side == 0:
        near = max(side, 1)
        raise ValueError("tokens must be a square grid of patches, after a class token or not, so "
                         f"{near**2}, {near**2 + 1} or {(near + 1) ** 2} of them, not {tokens.shape[1]}")
    patches = rearrange(tokens[:, before:], "batch (h w) dim -> batch dim h w", h=side)
    return tokens[:, :before], patches


def to_tokens(class_token: Tensor, patches: Tensor) -> Tensor:
    """The inverse of `to_map`: (batch, 0 or 1, dim) and (batch, dim, side, side) -> (batch, n, dim)."""
    return torch.cat([class_token, rearrange(patches, "batch dim h w -> batch (h w) dim")], dim=1)


class TransformerBlock(nn.Module):
    """One layer: self-attention between tokens, a two-layer network, and a layer attention if there is one.

    x1 = x + SA(LN(x)),  y = x1 + MLP(LN(x1)),  output = y + layer_attention(LN(y), memory):
    the layer attention is a third residual, on the patches alone.

    forward(x, memory) -> (output, memory), x and output (batch, tokens, dim). An attention that
    `takes_block_input` gets x in place of the memory, through a LayerNorm of its own; no norm follows the
    attention, so `relu_after_norm` asks for nothing. Drop path is on the first two residuals alone, as
    released. `released` adds LN(y) to the class token; by default the third residual leaves it alone.

    Raises ValueError for tokens that are no grid, or an attention whose output has another shape than x.
    """

    def __init__(self, dim: int, heads: int, mlp_dim: int, drop_path: float = 0.0):
        super().__init__()
        self.dim = dim
        self.attention_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.self_attention = MultiHeadSelfAttention(dim, heads)
        self.mlp_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = nn.Sequential(OrderedDict(
            enter=nn.Linear(dim, mlp_dim), gelu=nn.GELU(), leave=nn.Linear(mlp_dim, dim)))
        self.drop_path = DropPath(drop_path)
        self.layer_attention = None

    def add_layer_attention(self, attention: nn.Module, released: bool = False) -> None:
        self.layer_attention = attention
        self.released = released
        self.layer_norm = nn.LayerNorm(self.dim, eps=NORM_EPS)
        self.takes_block_input = getattr(attention, "takes_block_input", False)
        if self.takes_block_input:
            self.carried_norm = nn.LayerNorm(self.dim, eps=NORM_EPS)

    def forward(self, x: Tensor, memory: object = None) -> tuple[Tensor, object]:
        block_input = x                                                     # (batch, tokens, dim)
        attended, _ = self.self_attention(self.attention_norm(x))
        x = x + self.drop_path(attended)
        y = x + self.drop_path(self.mlp(self.mlp_norm(x)))                  # (batch, tokens, dim)
        if self.layer_attention is None:
            return y, None
        third, memory = self.third_residual(y, block_input, memory)
        return y + third, memory

    def third_residual(self, y: Tensor, block_input: Tensor, memory: object) -> tuple[Tensor, object]:
        class_token, patches = to_map(self.layer_norm(y))                   # patches (batch, dim, side, side)
        if self.takes_block_input:
            _, memory = to_map(self.carried_norm(block_input))              # (batch, dim, side, side)
        attended, memory = self.layer_attention(patches, memory)            # O^t, (batch, dim, side, side)
        check_same_shape("the layer attention's output", attended, patches)
        if not self.released:
            class_token = torch.zeros_like(class_token)
        return to_tokens(class_token, attended), memory                     # (batch, tokens, dim)


class VisionTransformer(nn.Module):
    """Patches, one stage of transformer blocks, and a linear classifier.

    images (batch, in_channels, image_size, image_size) -> logits (batch, classes). `cifar_vit` and `deit`
    build it, and say what the arguments mean; mlp_dim is the width of a block's two-layer network. Weight
    decay should spare what `spared_from_decay` names.

    Raises ValueError for arguments that do not fit, and for images of another shape.
    """

    spared_from_decay = ("class_token", "position")

    def __init__(self, depth: int, dim: int, heads: int, mlp_dim: int, patch: int, image_size: int,
                 num_classes: int, read: str, reset_every: int | None, drop_path: float, in_channels: int):
        super().__init__()
        numbers = {"depth": depth, "patch": patch, "image_size": image_size, "num_classes": num_classes,
                   "in_channels": in_channels}
        for name, number in numbers.items():
            check_positive(name, number)
        check_heads(dim, heads)
        check_choice("read", read, READS)
        check_range("drop_path", drop_path, 0, 1)
        if reset_every is not None:
            check_positive("reset_every", reset_every)
        if image_size % patch:
            divisors = [size for size in range(1, image_size + 1) if image_size % size == 0]
            raise ValueError(f"patch must divide image_size={image_size} (one of {divisors}), not {patch}")
        self.in_channels, self.image_size, self.reset_every = in_channels, image_size, reset_every
        self.patches = nn.Conv2d(in_channels, dim, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim)) if read == "cls" else None
        tokens = (image_size // patch) ** 2 + (read == "cls")
        self.position = nn.Parameter(torch.zeros(1, tokens, dim))
        rates = [drop_path * t / max(1, depth - 1) for t in range(depth)]       # from 0, as in DeiT
        blocks = [TransformerBlock(dim, heads, mlp_dim, rate) for rate in rates]
        self.stages = nn.ModuleList([nn.ModuleList(blocks)])
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.classifier = nn.Linear(dim, num_classes)
        self._initialise()

    def _initialise(self) -> None:
        """As DeiT starts: linear maps, class token and positions at N(0, 0.02^2), biases at 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for parameter in (self.position, self.class_token):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)

    def tokens(self, images: Tensor) -> Tensor:
        """What enters the first block: images -> (batch, tokens, dim)."""
        patches = self.patches(images)                                      # (batch, dim, side, side)
        class_token = patches.new_zeros(len(patches), 0, patches.shape[1])
        if self.class_token is not None:
            class_token = self.class_token.expand(len(patches), -1, -1)     # (batch, 1, dim)
        return to_tokens(class_token, patches) + self.position              # (batch, tokens, dim)

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, self.in_channels, self.image_size, self.image_size)
        x = self.tokens(images)
        for stage in self.stages:
            memory = None
            for t, block in enumerate(stage):
                if self.reset_every is not None and t % self.reset_every == 0:
                    memory = None
                x, memory = block(x, memory)
        x = self.norm(x)
        x = x.mean(dim=1) if self.class_token is None else x[:, 0]          # (batch, dim)
        return self.classifier(x)


def as_released(attention: nn.Module) -> nn.Module:
    """The attention, its value as in the released transformers: started by torch's rule, GELU after light's.

    One without a `value` convolution stays as it is.
    """
    if isinstance(getattr(attention, "value", None), nn.Conv2d):
        attention.value.reset_parameters()      # standard deviation 0.19, in place of the small start
        if isinstance(attention, MRLALight):
            attention.value = nn.Sequential(OrderedDict(convolution=attention.value, gelu=nn.GELU()))
    return attention


def _add_attentions(model: VisionTransformer, layer_attention: str | AttentionFactory | None,
                    head_dim: int | None, released: bool) -> None:
    """Last, so that all variants of one seed share their host's start."""
    if layer_attention is None:
        if head_dim is not None:
            raise ValueError(f"head_dim={head_dim!r} needs a layer_attention, which is None")
        return
    build = attention_factory(layer_attention, head_dim)
    for block in model.stages[0]:
        attention = build(block.dim)
        block.add_layer_attention(as_released(attention) if released else attention, released)


def cifar_vit(
    depth: int = 12, *, dim: int = 96, heads: int = 3, patch: int = 4, image_size: int = 32,
    num_classes: int = 10, layer_attention: str | AttentionFactory | None = None,
    head_dim: int | None = None, reset_every: int | None = None, read: str = "mean",
    drop_path: float = 0.0, released: bool = False, in_channels: int = 3,
) -> VisionTransformer:
    """A vision transformer for small images: `depth` blocks on (image_size / patch)^2 tokens of size dim.

    heads             of the self-attention between tokens, which divide dim
    layer_attention   None, a name or a callable channels -> module, as of `cifar_resnet`
    head_dim          channels a head of the layer attention; None: its own default
    reset_every       empty the memory before blocks 1, 1 + reset_every, ...; None: before the first alone
    read              "mean" of the patch tokens, or "cls", a class token: then nothing teaches the last
                      block's layer attention, which reaches no logit
    drop_path         probability, while training, of dropping a residual of a sample in the last block;
                      it grows from 0 in the first
    released          as the public code: values start larger, light's go through a GELU, and every block
                      adds LN(y) to the class token

    In any case the release's LayerNorms stand before the attention and on a block input that is carried.
    By default this departs from the release in `read`, `released` and `reset_every`; `deit` does not. A
    block's two-layer network is 2 dim wide, half of DeiT's.

    Raises ValueError naming the argument, what was given and what is allowed.
    """
    check_positive("dim", dim)
    model = VisionTransformer(depth, dim, heads, 2 * dim, patch, image_size, num_classes, read, reset_every,
                              drop_path, in_channels)
    if reset_every is not None and layer_attention is None:
        raise ValueError(f"reset_every={reset_every!r} needs a layer_attention, which is None")
    _add_attentions(model, layer_attention, head_dim, released)
    return model


def deit(
    size: str = "tiny", *, num_classes: int = 1000, layer_attention: str | AttentionFactory | None = None,
    reset_every: int | None = 4, drop_path: float = 0.0, in_channels: int = 3,
) -> VisionTransformer:
    """DeiT-tiny or -small for 224 x 224 images: dim 192 or 384, twelve blocks, and a class token.

    layer_attention "mrla-light-released" and "mrla-base" are the release's nets: heads of 16 channels, and
    base's memory emptied every four blocks (the released light has none to empty).

    The other arguments are `cifar_vit`'s. Raises ValueError naming the argument, what was given and what is
    allowed.
    """
    check_choice("size", size, DEIT_SIZES)
    dim, heads = DEIT_SIZES[size]
    model = VisionTransformer(12, dim, heads, 4 * dim, 16, 224, num_classes, "cls", reset_every, drop_path,
                              in_channels)
    _add_attentions(model, layer_attention, 16 if isinstance(layer_attention, str) else None, released=True)
    return model
