"""The images as the net of a configuration is given them: averaged down, or hung in corridors."""

from mrla_minimal.lab.data import Cifar, Split, averaged
from mrla_minimal.lab.data.corridors import corridors
from mrla_minimal.lab.data.images import PADDING
from mrla_minimal.lab.engine.config import TrainConfig


def crop_padding(config: TrainConfig) -> int:
    """Pixels of padding before a random crop: an eighth of the resolution, rounded down."""
    return PADDING * config.resolution // 32


def prepared(config: TrainConfig, data: Cifar) -> Cifar:
    """What is trained and tested on. The source and the fingerprint stay those of the images it is made of.

    Raises ValueError for images that are smaller than the configuration's resolution, or that make no
    corridors.
    """
    if config.model == "corridor":
        return corridors(data)
    if config.resolution == 32:
        return data         # also images of one's own, of any size
    train, test = (Split(averaged(split.images, config.resolution), split.labels)
                   for split in (data.train, data.test))
    return Cifar(train, test, data.classes, data.source, data.fingerprint)
