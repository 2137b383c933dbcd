"""A small denoiser of CIFAR images, whose layers may read each other's maps, and what it is compared with.

Gaussian noise of standard deviation 25/255 is added to images in [0, 1]; the net sees the sum, not clipped,
and predicts the noise. What is left is clipped to [0, 1]. Quality is PSNR in dB, averaged over images.

Three residual layers without downsampling. Behind each, what an attention reads is added to the stream,
through a depthwise convolution that starts at 0: so all variants of one seed begin as the same net.

    plain           nothing is read
    mean            the mean of the maps up to here, through ACLA's own 1x1 convolution
    same-layer      as many keys as `sideways` has, all in this layer's map
    sideways        four keys in each map up to here
    acla            the same, with a gate for each key
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mrla_minimal.course.seeds import seeded
from mrla_minimal.family.sideways import AdaptiveCrossLayerAttention, SidewaysAttention
from mrla_minimal.lab.data.images import Cifar
from mrla_minimal.shapes import (
    check_choice,
    check_feature_map,
    check_images,
    check_list_memory,
    check_positive,
)

SIGMA = 25 / 255
CHANNELS, LAYERS, KEYS = 16, 3, 4
STEPS, BATCH, CROP, LEARNING_RATE = 400, 16, 16, 4e-3
TEST_IMAGES = 256
VARIANTS = ("plain", "mean", "same-layer", "sideways", "acla")


class MeanOfMaps(nn.Module):
    """R times the mean of X^1..X^t: SidewaysAttention whose keys all stay at the pixel, at even weights.

    Memory: the list of maps X^1..X^t. x and output (batch, channels, height, width).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels
        self.value = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor, memory: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        check_feature_map(x, self.channels)
        check_list_memory(memory, x)
        memory = [*(memory or []), x]
        return self.value(sum(memory) / len(memory)), memory


class SameLayer(SidewaysAttention):
    """SidewaysAttention that reads its own layer's map alone; it hands on nothing."""

    def forward(self, x: Tensor, memory: None = None) -> tuple[Tensor, None]:
        return super().forward(x)[0], None


def attention_of(variant: str, channels: int, layer: int) -> nn.Module | None:
    """The attention of layer 1, 2, .. of a variant, or None. `same-layer` and `sideways` are equally large.

    Raises ValueError for an unknown variant.
    """
    check_choice("variant", variant, VARIANTS)
    if variant == "plain":
        return None
    if variant == "mean":
        return MeanOfMaps(channels)
    if variant == "same-layer":
        return SameLayer(channels, keys=KEYS * layer, most_layers=1)
    kind = AdaptiveCrossLayerAttention if variant == "acla" else SidewaysAttention
    return kind(channels, keys=KEYS, most_layers=layer)


class Denoiser(nn.Module):
    """Noisy images (batch, 3, height, width) -> the noise in them, of the same shape."""

    def __init__(self, variant: str = "plain", channels: int = CHANNELS, layers: int = LAYERS):
        super().__init__()
        check_choice("variant", variant, VARIANTS)
        check_positive("channels", channels)
        check_positive("layers", layers)
        self.enter = nn.Conv2d(3, channels, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(),
                          nn.Conv2d(channels, channels, 3, padding=1)) for _ in range(layers))
        self.leave = nn.Conv2d(channels, 3, 3, padding=1)
        # drawn after the host, which is therefore the same for all variants of a seed
        found = [attention_of(variant, channels, layer) for layer in range(1, layers + 1)]
        self.attentions = nn.ModuleList(each for each in found if each is not None)
        self.spread = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
                                    for _ in self.attentions)
        for convolution in self.spread:
            nn.init.zeros_(convolution.weight)

    def forward(self, noisy: Tensor) -> Tensor:
        check_images(noisy, 3)
        x, memory = self.enter(noisy), None                         # (batch, channels, height, width)
        for number, layer in enumerate(self.layers):
            x = x + layer(x)
            if self.attentions:
                read, memory = self.attentions[number](x, memory)
                x = x + self.spread[number](read)
        return self.leave(x)


def add_noise(images: Tensor, seed: int) -> Tensor:
    """Images in [0, 1] plus the noise of a seed, not clipped: the same shape."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return images + SIGMA * noise


def psnr(given: Tensor, wanted: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, in dB, for values in [0, 1]: (batch, ...) -> (batch,).

    10 log10(1 / mean squared error). Raises ValueError for two shapes.
    """
    if given.shape != wanted.shape:
        raise ValueError(f"both must have one shape, not {tuple(given.shape)} and {tuple(wanted.shape)}")
    return -10 * (given - wanted).square().flatten(1).mean(dim=1).log10()


@torch.no_grad()
def denoise(model: nn.Module, noisy: Tensor, block: int = 64) -> Tensor:
    """The images that a model finds in noisy ones, clipped to [0, 1]."""
    return torch.cat([(part - model(part)).clamp(0, 1) for part in noisy.split(block)])


def train_denoiser(cifar: Cifar, variant: str, seed: int = 0, steps: int = STEPS) -> Denoiser:
    """A denoiser trained on crops of CIFAR's training images: Adam, one cycle, mean squared error.

    Of one seed all variants begin as the same net and meet the same images and the same noise.
    """
    check_positive("steps", steps)
    with seeded(seed):
        model = Denoiser(variant)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    draw = torch.Generator().manual_seed(seed)
    for step in range(steps):
        chosen = torch.randint(len(cifar.train), (BATCH,), generator=draw)
        top, left = torch.randint(32 - CROP + 1, (2,), generator=draw).tolist()
        images = cifar.train.images[chosen, :, top : top + CROP, left : left + CROP] / 255
        noisy = add_noise(images, seed=100_000 * (seed + 1) + step)
        loss = F.mse_loss(model(noisy), noisy - images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def images_to_clean(cifar: Cifar, count: int = TEST_IMAGES) -> tuple[Tensor, Tensor]:
    """The first `count` test images, clean and noisy: the same noise at each call."""
    clean = cifar.test.images[:count] / 255
    return clean, add_noise(clean, seed=7)


@torch.no_grad()
def look_sideways(model: Denoiser, noisy: Tensor, block: int = 64) -> dict[str, list]:
    """Where the keys of a model lie and what they weigh, over all pixels of some images: an entry a layer.

    weights: the mean weight of each map that is read, X^1 first; moved: how many pixels a key lies from where
    it started, the mean, weighed as the keys are; varies: the standard deviation of a key's place from pixel
    to pixel, in pixels, the mean over keys; open: the share of the keys that are not shut.
    Raises ValueError for a model whose attentions have no keys.
    """
    if not model.attentions or not all(isinstance(each, SidewaysAttention) for each in model.attentions):
        raise ValueError("the model's attentions must have keys: same-layer, sideways or acla")
    seen = [[] for _ in model.attentions]
    hooks = [attention.register_forward_pre_hook(lambda attention, given, kept=kept: kept.append(given))
             for attention, kept in zip(model.attentions, seen, strict=True)]
    try:
        for part in noisy.split(block):
            model(part)
    finally:
        for hook in hooks:
            hook.remove()
    found = {"weights": [], "moved": [], "varies": [], "open": []}
    for attention, kept in zip(model.attentions, seen, strict=True):
        layers = len(kept[0][1] or []) + 1
        weights = torch.cat([attention.weigh(x, layers) for x, _ in kept]).unflatten(1, (layers, -1))
        places = torch.cat([attention.places(x, layers) for x, _ in kept])      # (n, layers, keys, 2, h, w)
        far = (places - attention.ring[None, None, :, :, None, None]).norm(dim=3)
        found["weights"].append(weights.sum(dim=2).mean(dim=(0, 2, 3)).flip(0).tolist())
        found["moved"].append((weights * far).sum(dim=(1, 2)).mean().item())
        found["varies"].append(places.var(dim=(0, 4, 5)).sum(dim=2).sqrt().mean().item())
        found["open"].append((weights > 0).float().mean().item())
    return found
