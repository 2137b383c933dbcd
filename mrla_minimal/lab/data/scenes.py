"""The two sets with objects in their pictures, nuclei and blood cells, as a detector is given them.

    scenes = load_scenes("nuclei")
    images, targets = training_batch(scenes.train, seed=0, step=0, count=16, size=scenes.crop)
    for view in views(scenes.test, scenes.crop): ...
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mrla_minimal.lab.data import blood, nuclei
from mrla_minimal.lab.data.crops import generator_of
from mrla_minimal.targets import Targets, box_targets, mask_targets

CROPS = {"nuclei": 128, "blood": 96}        # pixels a side of what is trained on
MASKED = ("nuclei",)
CLASSES = {"nuclei": ("nucleus",), "blood": blood.CLASSES}
Scene = nuclei.Nuclei | blood.Blood


@dataclass(frozen=True, eq=False)
class Scenes:
    """What is trained on, validated with and tested on. `crop`: the pixels a side of a training crop.

    Also for images of one's own: with a source and a fingerprint of one's own choice. A run goes on only with
    images of the same fingerprint.
    Raises ValueError for a box of a class that `classes` does not name.
    """

    train: Scene
    validation: Scene
    test: Scene
    classes: tuple[str, ...]
    source: str
    fingerprint: str
    crop: int

    def __post_init__(self) -> None:
        if self.masks:
            return      # all nuclei are of one class
        for split in (self.train, self.validation, self.test):
            most = max((int(kinds.max()) for kinds in split.classes if len(kinds)), default=-1)
            if most >= len(self.classes):       # a step cannot look: it would wait for the device
                raise ValueError(f"classes must name that of every box, not {', '.join(self.classes)} alone: "
                                 f"a box is of class {most}, counted from 0")

    @property
    def masks(self) -> bool:
        """Whether there are masks, and not boxes alone."""
        return isinstance(self.train, nuclei.Nuclei)


@dataclass(frozen=True, eq=False)
class View:
    """A picture as a detector is tested on it, and what it holds.

    image uint8 (3, height, width); boxes (n, 4); classes (n,); masks boolean (n, height, width), or None;
    its kind, or None where a set has no kinds; the field of view that it comes from.
    """

    image: Tensor
    boxes: Tensor
    classes: Tensor
    masks: Tensor | None
    kind: str | None
    field: str


def load_scenes(name: str, root: str | Path | None = None) -> Scenes:
    """"nuclei" or "blood". Raises ValueError if its file is missing or damaged."""
    module, load = (nuclei, nuclei.load_nuclei) if name == "nuclei" else (blood, blood.load_blood)
    return Scenes(*(load(split, root) for split in ("train", "val", "test")), CLASSES[name], name,
                  module.SHA256, CROPS[name])


def training_batch(split: Scene, seed: int, step: int, count: int, size: int) -> tuple[Tensor, Targets]:
    """A step's images uint8 (count, 3, size, size) and targets, by (seed, step) alone, on the CPU."""
    if isinstance(split, blood.Blood):
        images, boxes, classes = split.crops(seed, step, count, size)
        return images, box_targets(boxes, classes)
    images, labels = split.crops(seed, step, count, size)
    return images, mask_targets(*nuclei.instances(labels), generator_of("regions", seed, step))


def views(split: Scene, size: int) -> Iterator[View]:
    """What a detector is tested on: tiles of size x size pixels of nuclei, whole smears of blood.

    Tiles, since an attention's gates look at the whole picture: of nuclei it is tested on what it was trained
    on. Of blood it is not: it is trained on crops of 96 x 96 pixels, and a smear has 160 x 120.
    """
    if isinstance(split, blood.Blood):
        for row in zip(split.images, split.boxes, split.classes, split.names, strict=True):
            yield View(*row[:3], None, None, row[3])
        return
    images, labels, which = split.tiles(size)
    labels, boxes, counts = nuclei.instances(labels)
    for tile, (image, count) in enumerate(zip(which.tolist(), counts.tolist(), strict=True)):
        yield View(images[tile], boxes[tile, :count], torch.zeros(count, dtype=torch.int64),
                   nuclei.masks_of(labels[tile], count), split.kinds[image], split.fields[image])
