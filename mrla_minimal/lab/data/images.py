"""Images as tensors: splits, held-out parts, and augmented batches.

    plan = plan_epoch(len(split), seed=0, epoch=3)
    images, labels = take_batch(split, plan, 0, 128)
"""

import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F

# Mean and standard deviation of CIFAR-10's training pixels, per channel, in [0, 1] units. Every set is normalised by
# these: a model's input scale must not depend on which set it happens to see.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
PADDING = 4


@dataclass(frozen=True, eq=False)
class Split:
    """images uint8 (N, channels, height, width), CIFAR's (N, 3, 32, 32), and labels int64 (N,)."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self):
        return len(self.labels)

    def to(self, device):
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Cifar:
    """Both splits in canonical order; source: "cifar10", "cifar100" or "synthetic"; fingerprint: sha256, hex.

    Images of one's own come as such a value too, with a source and a fingerprint of one's own choice: a run goes on
    only with images of the same fingerprint.
    """

    train: Split
    test: Split
    classes: tuple[str, ...]
    source: str
    fingerprint: str


def hold_out(split, size=None, seed=0):
    """Take `size` images (None: a tenth) out of a split: (the rest, those taken), each in the split's order.

    Stratified: every class gives its share, and what whole numbers leave over goes to the largest remainders, among
    equal ones by a draw. The same seed takes the same images. Raises ValueError unless 1 <= size < len(split).
    """
    total = len(split)
    size = total // 10 if size is None else size
    if not 1 <= size < total:
        raise ValueError(f"size must be between 1 and {total - 1} for a split of {total} images, got {size}")
    generator = torch.Generator().manual_seed(seed)
    labels = split.labels.cpu()
    counts = labels.bincount()
    share, remainder = size * counts // total, size * counts % total
    draw = torch.randperm(len(counts), generator=generator)
    by_remainder = draw[remainder[draw].argsort(descending=True, stable=True)]
    share[by_remainder[:size - share.sum()]] += 1

    shuffled = torch.randperm(total, generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    place = torch.arange(total) - (counts.cumsum(0) - counts).repeat_interleave(counts)  # within its class
    taken = torch.zeros(total, dtype=torch.bool)
    taken[by_class[place < share.repeat_interleave(counts)]] = True
    taken = taken.to(split.labels.device)
    return Split(split.images[~taken], split.labels[~taken]), Split(split.images[taken], split.labels[taken])


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """All of an epoch's chance, by position in it: order int64 (N,), shift int64 (N, 2) in 0..8, flip bool (N,)."""

    order: torch.Tensor
    shift: torch.Tensor
    flip: torch.Tensor

    def to(self, device):
        return EpochPlan(self.order.to(device), self.shift.to(device), self.flip.to(device))


def plan_epoch(size, seed, epoch, augment=True):
    """The plan for `size` images, a function of (seed, epoch) alone; without augment: centred crops, no flips.

    It is drawn on the CPU so that every device sees the same images, and at once so that a resumed run needs to know
    no more than its step number. Raises ValueError for a size below 1.
    """
    if size < 1:
        raise ValueError(f"an epoch needs at least 1 image, got {size}")
    # torch's CPU generator takes the low 32 bits of a seed, so seed and epoch are mixed by a hash.
    mixed = hashlib.blake2b(f"{seed}, {epoch}".encode(), digest_size=4).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(mixed, "little"))
    order = torch.randperm(size, generator=generator)
    if not augment:
        return EpochPlan(order, torch.full((size, 2), PADDING), torch.zeros(size, dtype=torch.bool))
    shift = torch.randint(0, 2 * PADDING + 1, (size, 2), generator=generator)
    return EpochPlan(order, shift, torch.randint(0, 2, (size,), generator=generator).bool())


def take_batch(split, plan, start, stop):
    """Positions start..stop of the epoch: images float32 (b, channels, height, width), normalised; labels (b,).

    A random crop after padding with 4 zeros on each side, then a flip from left to right where the plan says so.
    split and plan lie on the same device.
    """
    chosen, shift, flip = plan.order[start:stop], plan.shift[start:stop], plan.flip[start:stop]
    channels, height, width = split.images.shape[1:]
    padded = F.pad(split.images[chosen], (PADDING,) * 4)  # (b, channels, height + 8, width + 8)
    line = torch.arange(width, device=chosen.device)
    rows = shift[:, :1] + torch.arange(height, device=chosen.device)
    columns = shift[:, 1:] + torch.where(flip[:, None], width - 1 - line, line)
    # Places in a plane: (b, height * width).
    pixels = (padded.shape[3] * rows[:, :, None] + columns[:, None, :]).flatten(1)
    images = padded.flatten(2).gather(2, pixels[:, None].expand(-1, channels, -1)).unflatten(2, (height, width))
    return normalise(images), split.labels[chosen]


def normalise(images):
    """uint8 (b, channels, height, width) -> float32, about 0 and of deviation about 1.

    Three channels are colours: each gets mean 0 and deviation 1 over CIFAR-10's training pixels. Of any other number,
    every channel is taken as grey, and gets the means of those three constants. What is left of a scale or a shift, the
    net's first batch norm takes out.
    """
    images = images.to(torch.float32)
    colours = images.shape[1] == len(MEAN)
    means = MEAN if colours else [sum(MEAN) / len(MEAN)] * images.shape[1]
    deviations = STD if colours else [sum(STD) / len(STD)] * images.shape[1]
    for channel, (mean, std) in enumerate(zip(means, deviations, strict=True)):
        # Plain numbers: a constant tensor would have to be copied to the device, which makes the host wait.
        images[:, channel].sub_(255 * mean).mul_(1 / (255 * std))
    return images
