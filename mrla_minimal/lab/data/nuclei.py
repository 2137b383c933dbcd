"""Nuclei: 642 microscope images of 256 x 256 pixels, nuclei outlined one by one.

data/nuclei/README.md tells more.

    nuclei = load_nuclei("train")
    images, labels = nuclei.crops(seed=0, step=0)
    labels, boxes, counts = instances(labels)

Source: image set BBBC038v1, J. C. Caicedo et al., Nature Methods 16, 1247 (2019); CC0.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mrla_minimal.boxes import label_boxes
from mrla_minimal.lab.data.crops import cut, cut_tiles, plan_crops
from mrla_minimal.lab.data.zipped import check_pictures, find_zip, read_index, read_pictures

SHA256 = "3ffaeb46e95512b87b57403cc7c1fb48ae7a7802d39816df0c7a7b3cacdfcbda"
SMALLEST = 10       # pixels; what a border leaves less of is no object


@dataclass(frozen=True, eq=False)
class Nuclei:
    """Images with an outline of every nucleus.

    images uint8 (N, 3, height, width); labels int16 (N, height, width), 0 background, k nucleus k; for each
    image its name, its kind ("fluorescence" or "stained") and the field of view that it was cut from.
    Raises ValueError if the labels are of another size or are no such integers.
    """

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    fields: tuple[str, ...]

    def __post_init__(self):
        check_pictures(self.images)
        images, labels = tuple(self.images.shape), tuple(self.labels.shape)
        if labels != (images[0], *images[2:]):
            raise ValueError(f"labels must be {(images[0], *images[2:])}, a number for each pixel of the "
                             f"images, not {labels}")
        if self.labels.is_floating_point() or (self.labels < 0).any():
            raise ValueError("labels must be integers of at least 0")
        if {len(self.names), len(self.kinds), len(self.fields)} != {len(self.images)}:
            raise ValueError(f"names, kinds and fields must be one for each of {len(self.images)} images")

    def __len__(self) -> int:
        return len(self.images)

    def crops(self, seed: int, step: int, count: int = 16, size: int = 128) -> tuple[Tensor, Tensor]:
        """A training step's images (count, 3, size, size) and labels (count, size, size).

        Each a random place of a random image in one of the eight symmetries, by (seed, step) alone.
        Raises ValueError if the images are smaller than a crop.
        """
        crops = plan_crops(self.images, size, count, seed, step)
        return cut(self.images, crops), cut(self.labels, crops)

    def tiles(self, size: int = 128) -> tuple[Tensor, Tensor, Tensor]:
        """Every pixel once: images (tiles, 3, size, size), labels (tiles, size, size), which image (tiles,).

        Raises ValueError unless `size` divides the images' height and width.
        """
        images, labels = cut_tiles(self.images, size), cut_tiles(self.labels, size)
        return images, labels, torch.arange(len(self)).repeat_interleave(len(images) // max(1, len(self)))


def instances(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What nuclei a crop or tile holds: labels (b, height, width) -> labels, boxes, counts.

    The labels anew, int64, each image's nuclei numbered from 1 without a gap, pieces of fewer than 10 pixels
    made background; their boxes (b, most, 4), padded with zeros; how many there are (b,). On the device that
    the labels lie on.
    """
    most, places = int(labels.max()) if labels.numel() else 0, labels.long().flatten(1)
    pixels = torch.zeros(len(labels), most + 1, dtype=torch.int64, device=labels.device)
    pixels.scatter_add_(1, places, torch.ones_like(places))
    kept = pixels >= SMALLEST
    kept[:, 0] = False
    numbers = kept.cumsum(1) * kept                 # (b, most + 1): the new number of each old one
    counts = kept.sum(1)
    labels = numbers.gather(1, places).view_as(labels)
    return labels, label_boxes(labels, int(counts.max()) if len(counts) else 0), counts


def masks_of(labels: Tensor, count: int) -> Tensor:
    """Objects 1 to count of a label map (height, width), each as a mask: boolean (count, height, width)."""
    return labels == torch.arange(1, count + 1, device=labels.device)[:, None, None]


def load_nuclei(split: str = "train", root: str | Path | None = None) -> Nuclei:
    """"train" (380 images), "val" (101) or "test" (161). No field of view has images in two of them.

    Raises ValueError for another split, and for a file that is missing or damaged.
    """
    path = find_zip("nuclei", SHA256, root)
    entries = read_index(path, split)
    names = tuple(entry["name"] for entry in entries)
    return Nuclei(
        images=read_pictures(path, [f"images/{name}.webp" for name in names], colour=True),
        labels=read_pictures(path, [f"labels/{name}.png" for name in names], colour=False),
        names=names,
        kinds=tuple("stained" if entry["kind"] == "stained" else "fluorescence" for entry in entries),
        fields=tuple(entry["group"] for entry in entries),
    )
