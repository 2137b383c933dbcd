"""Images as tensors: splits, held-out parts, and augmented batches.

    plan = plan_epoch(len(split), seed=0, epoch=3)
    images, labels = take_batch(split, plan, 0, 128)
"""

import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F

# Mean and standard deviation of CIFAR-10's training pixels, per channel, in [0, 1] units. Every set is
# normalised by these: a model's input scale must not depend on which set it happens to see.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
PADDING = 4


@dataclass(frozen=True, eq=False)
class Split:
    """images uint8 (N, C, H, W), for CIFAR (N, 3, 32, 32), and labels int64 (N,)."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Split":
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Cifar:
    """Both splits in canonical order.

    source: "cifar10", "cifar100" or "synthetic"; fingerprint: the sha256 of the content, as hex. Images of
    one's own come as such a value too, with a source and a fingerprint of one's own choice: a run goes on
    only with images of the same fingerprint.
    """

    train: Split
    test: Split
    classes: tuple[str, ...]
    source: str
    fingerprint: str


def averaged(images: torch.Tensor, pixels: int) -> torch.Tensor:
    """uint8 images (N, C, H, W), averaged down to (N, C, pixels, pixels), rounded.

    Each new pixel is the mean of the square of old ones that it covers; where `pixels` does not divide the
    old size, squares share their borders. Raises ValueError unless 1 <= pixels <= H and W.
    """
    if not 1 <= pixels <= min(images.shape[2:]):
        raise ValueError(f"images of {tuple(images.shape[2:])} pixels can be averaged down to 1 to "
                         f"{min(images.shape[2:])}, not to {pixels!r}")
    if tuple(images.shape[2:]) == (pixels, pixels):
        return images
    parts = [F.adaptive_avg_pool2d(part.float(), pixels).round() for part in images.split(5000)]
    return torch.cat([part.to(torch.uint8) for part in parts])


def hold_out(split: Split, size: int | None = None, seed: int = 0) -> tuple[Split, Split]:
    """Take `size` images (None: a tenth) out of a split: (the rest, those taken), each in the split's order.

    Stratified: every class gives its share, and what whole numbers leave over goes to the largest remainders,
    among equal ones by a draw. The same seed takes the same images.
    Raises ValueError unless 1 <= size < len(split), and where a tenth is no image.
    """
    total = len(split)
    if size is None and total < 10:
        raise ValueError(f"to hold out a tenth takes at least 10 images, not {total}")
    size = total // 10 if size is None else size
    if not 1 <= size < total:
        raise ValueError(f"size must be between 1 and {total - 1} for a split of {total} images, got {size}")
    generator = torch.Generator("cpu").manual_seed(seed)
    labels = split.labels.cpu()
    counts = labels.bincount()
    share, remainder = size * counts // total, size * counts % total
    draw = torch.randperm(len(counts), generator=generator, device="cpu")
    by_remainder = draw[remainder[draw].argsort(descending=True, stable=True)]
    share[by_remainder[:size - share.sum()]] += 1

    # Each class is shuffled, and its first `share` images are taken.
    shuffled = torch.randperm(total, generator=generator, device="cpu")
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    place_in_class = torch.cat([torch.arange(count, device="cpu") for count in counts.tolist()])
    taken = torch.zeros(total, dtype=torch.bool, device="cpu")
    taken[by_class[place_in_class < share.repeat_interleave(counts)]] = True
    taken = taken.to(split.labels.device)
    return Split(split.images[~taken], split.labels[~taken]), Split(split.images[taken], split.labels[taken])


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """All of an epoch's chance, by position in it.

    order int64 (N,): which image; shift int64 (N, 2): where its crop begins, down and right, from 0 to twice
    the padding; flip bool (N,). `padding`: how many zeros stand on each side before the crop.
    """

    order: torch.Tensor
    shift: torch.Tensor
    flip: torch.Tensor
    padding: int = PADDING

    def to(self, device: torch.device | str) -> "EpochPlan":
        return EpochPlan(self.order.to(device), self.shift.to(device), self.flip.to(device), self.padding)


def plan_epoch(size: int, seed: int, epoch: int, augment: bool = True, padding: int = PADDING) -> EpochPlan:
    """The plan for `size` images, a function of (seed, epoch) alone.

    augment False: centred crops, no flips. The plan is drawn on the CPU so that every device sees the same
    images, and all at once so that a resumed run needs to know no more than its step number.
    Raises ValueError for a size below 1.
    """
    if size < 1:
        raise ValueError(f"an epoch needs at least 1 image, got {size}")
    # torch's CPU generator takes the low 32 bits of a seed, so seed and epoch are mixed by a hash.
    mixed = hashlib.blake2b(f"{seed}, {epoch}".encode(), digest_size=4).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(mixed, "little"))
    chance = {"generator": generator, "device": "cpu"}
    order = torch.randperm(size, **chance)
    if not augment:
        centred = torch.full((size, 2), padding, device="cpu")
        return EpochPlan(order, centred, torch.zeros(size, dtype=torch.bool, device="cpu"), padding)
    shift = torch.randint(0, 2 * padding + 1, (size, 2), **chance)
    return EpochPlan(order, shift, torch.randint(0, 2, (size,), **chance).bool(), padding)


def take_batch(split: Split, plan: EpochPlan, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions start..stop of the epoch: images float32 (b, C, H, W) and labels int64 (b,).

    The images are padded with zeros on each side, cropped where the plan says, flipped from left to right
    where it says so, and normalised. split and plan lie on the same device.
    """
    chosen, shift, flip = plan.order[start:stop], plan.shift[start:stop], plan.flip[start:stop]
    images = split.images[chosen]
    channels, height, width = images.shape[1:]
    padded = F.pad(images, (plan.padding,) * 4)  # (b, C, H + 2 * padding, W + 2 * padding)
    down, right = (torch.arange(length, device=chosen.device) for length in (height, width))
    rows = shift[:, :1] + down
    columns = shift[:, 1:] + torch.where(flip[:, None], width - 1 - right, right)
    # Where each pixel of the crop lies in its padded plane, counted row by row: (b, H * W)
    places = (padded.shape[3] * rows[:, :, None] + columns[:, None, :]).flatten(1)
    cropped = padded.flatten(2).gather(2, places[:, None].expand(-1, channels, -1))
    return normalise(cropped.unflatten(2, (height, width))), split.labels[chosen]


def normalise(images: torch.Tensor) -> torch.Tensor:
    """uint8 (b, C, H, W) -> float32, with mean about 0 and deviation about 1.

    Three channels are colours: each has mean 0 and deviation 1 over CIFAR-10's training pixels. Of any other
    number every channel is taken as grey, and gets the average of those constants. What is left of a scale
    or a shift, the first batch norm of the net takes out.
    """
    images = images.to(torch.float32)
    means, deviations = MEAN, STD
    if images.shape[1] != 3:
        means, deviations = ((sum(values) / 3,) * images.shape[1] for values in (MEAN, STD))
    for channel, (mean, std) in enumerate(zip(means, deviations, strict=True)):
        # Plain numbers: a constant tensor would be copied to the device, which makes the host wait.
        images[:, channel].sub_(255 * mean).mul_(1 / (255 * std))
    return images
