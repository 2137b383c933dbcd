"""Blood cells: 364 blood smears of 160 x 120 pixels, boxes of three classes; data/blood/README.md tells more.

    blood = load_blood("train")
    images, boxes, classes = blood.crops(seed=0, step=0)

Source: BCCD, https://github.com/Shenggan/BCCD_Dataset, MIT licence.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mrla_minimal.lab.data.crops import cut, cut_boxes, plan_crops
from mrla_minimal.lab.data.zipped import check_pictures, find_zip, read_index, read_pictures

SHA256 = "eae0143edd78f540a646e84cf7d4add0ad14ebd3a1ee67ab2a0fd543243fa878"
CLASSES = ("RBC", "WBC", "Platelets")       # red and white cells
SHORTEST = 3.0      # pixels: what a crop's border leaves less of, in height or width, is no object


@dataclass(frozen=True, eq=False)
class Blood:
    """Images with boxes: images uint8 (N, 3, height, width); for each image its name, boxes and classes.

    boxes float32 (n, 4), x0, y0, x1, y1 in pixels; classes int64 (n,), the places in CLASSES.
    Raises ValueError for a box without width or height or outside its image, and for an unknown class.
    """

    images: Tensor
    boxes: tuple[Tensor, ...]
    classes: tuple[Tensor, ...]
    names: tuple[str, ...]

    def __post_init__(self):
        check_pictures(self.images)
        if {len(self.boxes), len(self.classes), len(self.names)} != {len(self.images)}:
            raise ValueError(f"boxes, classes and names must be one for each of {len(self.images)} images")
        height, width = self.images.shape[2:]
        for name, boxes, classes in zip(self.names, self.boxes, self.classes, strict=True):
            if boxes.shape != (len(classes), 4):
                raise ValueError(f"{name}: boxes must be ({len(classes)}, 4), one a class, not "
                                 f"{tuple(boxes.shape)}")
            sound = (boxes[:, :2] >= 0).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
            sound &= (boxes[:, 2:] <= boxes.new_tensor([width, height])).all(1)
            if not sound.all():
                wrong = boxes[~sound][0].tolist()
                raise ValueError(f"{name}: the box {wrong} has no width or height, or reaches out of the "
                                 f"image of {width} x {height}")
            if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < len(CLASSES):
                raise ValueError(f"{name}: classes must lie in 0 to {len(CLASSES) - 1}, not "
                                 f"{classes.tolist()}")

    def __len__(self) -> int:
        return len(self.images)

    def crops(self, seed: int, step: int, count: int = 16,
              size: int = 96) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """A training step's images (count, 3, size, size), and the boxes and classes of each.

        Each a random place of a random image in one of the eight symmetries, by (seed, step) alone. Cells at
        the border are cut off there; what is left under 3 pixels wide or high is left out.
        Raises ValueError if the images are smaller than a crop.
        """
        crops = plan_crops(self.images, size, count, seed, step)
        boxes = [cut_boxes(self.boxes[crop.image], crop) for crop in crops]
        kept = [(some[:, 2:] - some[:, :2] >= SHORTEST).all(1) for some in boxes]
        return (cut(self.images, crops),
                [some[mask] for some, mask in zip(boxes, kept, strict=True)],
                [self.classes[crop.image][mask] for crop, mask in zip(crops, kept, strict=True)])


def load_blood(split: str = "train", root: str | Path | None = None) -> Blood:
    """"train" (205 images), "val" (87) or "test" (72), as the set itself divides them.

    Raises ValueError for another split, and for a file that is missing or damaged.
    """
    path = find_zip("blood", SHA256, root)
    entries = read_index(path, split)
    rows = [torch.tensor(entry["boxes"]).reshape(-1, 5) for entry in entries]       # class, x0, y0, x1, y1
    return Blood(
        images=read_pictures(path, [f"images/{entry['name']}.webp" for entry in entries], colour=True),
        boxes=tuple(row[:, 1:].float() for row in rows),
        classes=tuple(row[:, 0].long() for row in rows),
        names=tuple(entry["name"] for entry in entries),
    )
