"""What the net of a configuration is given: images held out or not, averaged down, or hung in corridors.

And in which order, cropped and flipped how.
"""

from dataclasses import dataclass

from mrla_minimal.lab.data import Cifar, EpochPlan, Split, averaged, hold_out, load_cifar, plan_epoch
from mrla_minimal.lab.data.corridors import KINDS, hang, require_cifar10
from mrla_minimal.lab.data.images import PADDING
from mrla_minimal.lab.data.scenes import Scenes, load_scenes
from mrla_minimal.lab.engine.config import TrainConfig


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


def steps_asked_for(config: TrainConfig, steps_per_epoch: int) -> int:
    """How many optimiser steps a configuration asks for."""
    return config.steps or config.epochs * steps_per_epoch


def is_augmented(config: TrainConfig, size: int) -> bool:
    """Whether training on `size` images crops and flips them.

    With augment "auto": where each image is seen more than once, but no corridor.
    """
    steps_per_epoch = size // config.batch_size     # the incomplete last batch of an epoch is left out
    by_itself = steps_asked_for(config, steps_per_epoch) > steps_per_epoch and config.model != "corridor"
    return config.augment == "on" or (config.augment == "auto" and by_itself)


def planned_epoch(config: TrainConfig, size: int, epoch: int) -> EpochPlan:
    """The plan of one epoch, counted from 0, of training on `size` images: their order, crops and flips."""
    seed = config.seed if config.order is None else config.order
    return plan_epoch(size, seed, epoch, is_augmented(config, size), crop_padding(config))


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
