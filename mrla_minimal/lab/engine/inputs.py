"""What the net of a configuration is given: images held out or not, averaged down, or hung in corridors.

And in which order, cropped and flipped how.
"""

from dataclasses import dataclass

from torch import Tensor

from mrla_minimal.lab.data import Cifar, EpochPlan, Split, averaged, hold_out, load_cifar, plan_epoch
from mrla_minimal.lab.data.corridors import KINDS, hang, require_cifar10
from mrla_minimal.lab.data.images import PADDING
from mrla_minimal.lab.data.scenes import Scene, Scenes, load_scenes, training_batch
from mrla_minimal.lab.engine.config import TrainConfig
from mrla_minimal.targets import Targets


@dataclass(frozen=True, eq=False)
class Inputs:
    """What is trained on, validated with (None, if nothing is held out) and tested on."""

    train: Split
    validation: Split | None
    test: Split
    classes: tuple[str, ...]


def load_data(config: TrainConfig, root: str | None, source: str) -> Cifar | Scenes:
    """The images that a configuration names, from another root and source than it says."""
    return load_scenes(config.dataset, root) if config.detects else load_cifar(config.dataset, root, source)


def crop_padding(config: TrainConfig) -> int:
    """Pixels of padding before a random crop: an eighth of the resolution, rounded down."""
    return PADDING * config.resolution // 32


def steps_an_epoch(config: TrainConfig, size: int) -> int:
    """How many steps an epoch of `size` images has: the incomplete last batch is left out."""
    return size // config.batch_size


def steps_an_epoch_of_crops(config: TrainConfig, split: Scene, crop: int) -> int:
    """A detector's: as many crops of crop x crop pixels as the training images have room for, side by side.

    At least 1.
    """
    return max(1, split.images[:, 0].numel() // crop**2 // config.batch_size)


def crops_at(config: TrainConfig, split: Scene, crop: int, step: int) -> tuple[Tensor, Targets]:
    """What a detector is trained on in one step, counted from 0, on the CPU: as `training_batch`."""
    return training_batch(split, config.order_seed, step, config.batch_size, crop)


def steps_asked_for(config: TrainConfig, steps_per_epoch: int) -> int:
    """How many optimiser steps a configuration asks for."""
    return config.steps or config.epochs * steps_per_epoch


def is_augmented(config: TrainConfig, size: int) -> bool:
    """Whether training on `size` images crops and flips them.

    With augment "auto": where each image is seen more than once, but no corridor.
    """
    steps_per_epoch = steps_an_epoch(config, size)
    by_itself = steps_asked_for(config, steps_per_epoch) > steps_per_epoch and config.model != "corridor"
    return config.augment == "on" or (config.augment == "auto" and by_itself)


def planned_epoch(config: TrainConfig, size: int, epoch: int) -> EpochPlan:
    """The plan of one epoch, counted from 0, of training on `size` images: their order, crops and flips."""
    return plan_epoch(size, config.order_seed, epoch, is_augmented(config, size), crop_padding(config))


def prepared(config: TrainConfig, data: Cifar) -> Inputs:
    """The splits of a configuration, made of the images that it names.

    Images are held out first, and hung in corridors or averaged down then: none is in two splits. Raises
    ValueError for images smaller than the configuration's resolution, or that make no corridors.
    """
    train, validation = hold_out(data.train, seed=0) if config.validation else (data.train, None)
    splits = {"train": train, "test": data.test} | ({"validation": validation} if validation else {})
    classes = tuple(data.classes)
    if config.model == "corridor":
        require_cifar10(classes)
        made = {name: hang(split, classes, seed)
                for seed, (name, split) in enumerate(splits.items())}
        classes = KINDS
    elif config.resolution < 32:
        made = {name: Split(averaged(split.images, config.resolution), split.labels)
                for name, split in splits.items()}
    else:
        made = splits       # also images of one's own, of any size
    return Inputs(made["train"], made.get("validation"), made["test"], classes)
