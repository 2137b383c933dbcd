"""What the net of a configuration is given: images held out or not, averaged down, or hung in corridors."""

from dataclasses import dataclass

from mrla_minimal.lab.data import Cifar, Split, averaged, hold_out
from mrla_minimal.lab.data.corridors import KINDS, hang, require_cifar10
from mrla_minimal.lab.data.images import PADDING
from mrla_minimal.lab.engine.config import TrainConfig


@dataclass(frozen=True, eq=False)
class Inputs:
    """What is trained on, validated with (None, if nothing is held out) and tested on."""

    train: Split
    validation: Split | None
    test: Split
    classes: tuple[str, ...]


def crop_padding(config: TrainConfig) -> int:
    """Pixels of padding before a random crop: an eighth of the resolution, rounded down."""
    return PADDING * config.resolution // 32


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
