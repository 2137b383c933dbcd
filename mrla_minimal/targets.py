"""What a detector is to learn: the objects of a batch, and which point of a map answers for which of them."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

STRIDES = (4, 8)        # pixels between the points of the two levels that find objects
LARGE = 24.0            # pixels: from this longer side on, an object belongs to stride 8
NEAR = 1.5              # strides between a point and the centre of an object that it answers for, each way


@dataclass(frozen=True, eq=False)
class Targets:
    """What a batch holds, padded to the same number of objects an image; all on one device.

    boxes (batch, most, 4) in pixels; classes (batch, most) int64; present (batch, most) boolean.
    For masks also: masks (batch, most, height, width) boolean; regions (batch, most, 4), the boxes that the
    mask branch is shown; image and slot (objects,) int64, the places where `present` is True: their number is
    known without asking the device.
    """

    boxes: Tensor
    classes: Tensor
    present: Tensor
    masks: Tensor | None = None
    regions: Tensor | None = None
    image: Tensor | None = None
    slot: Tensor | None = None

    def to(self, device: torch.device | str) -> "Targets":
        values = (getattr(self, field.name) for field in fields(self))
        return Targets(*(None if value is None else value.to(device) for value in values))


def mask_targets(labels: Tensor, boxes: Tensor, counts: Tensor, generator: torch.Generator,
                 shake: float = 0.1) -> Targets:
    """Targets of one class from label maps, on the CPU: pixel k of labels (batch, height, width) is object k.

    boxes (batch, most, 4), counts (batch,). `regions` are the boxes with every side shifted by up to `shake`
    of the box's width or height, since the detector's own boxes will not be exact either.
    Raises ValueError for labels and boxes of different batches.
    """
    if labels.dim() != 3 or boxes.dim() != 3 or len(labels) != len(boxes):
        raise ValueError("labels (batch, height, width) and boxes (batch, most, 4) must be of one batch, not "
                         f"{tuple(labels.shape)} and {tuple(boxes.shape)}")
    numbers = torch.arange(1, boxes.shape[1] + 1)
    present = numbers <= counts[:, None]
    image, slot = present.nonzero(as_tuple=True)
    sides = (boxes[..., 2:] - boxes[..., :2]).repeat(1, 1, 2)
    regions = boxes + sides * shake * (2 * torch.rand(boxes.shape, generator=generator) - 1)
    return Targets(boxes, torch.zeros_like(present, dtype=torch.int64), present,
                   labels[:, None] == numbers[:, None, None], regions, image, slot)


def box_targets(boxes: list[Tensor], classes: list[Tensor]) -> Targets:
    """Targets without masks from the boxes (n, 4) and classes (n,) of each image, on the CPU."""
    most = max(map(len, boxes), default=0)
    padded_boxes = torch.zeros(len(boxes), most, 4)
    padded_classes = torch.zeros(len(boxes), most, dtype=torch.int64)
    present = torch.zeros(len(boxes), most, dtype=torch.bool)
    for row, (some, kinds) in enumerate(zip(boxes, classes, strict=True)):
        count = len(some)
        padded_boxes[row, :count], padded_classes[row, :count], present[row, :count] = some, kinds, True
    return Targets(padded_boxes, padded_classes, present)


def points_of(height: int, width: int, stride: int, device: torch.device) -> Tensor:
    """The middles of a map's cells, row by row, with their stride: (height * width, 3) of x, y, stride."""
    y, x = ((torch.arange(length, device=device) + 0.5) * stride for length in (height, width))
    x, y = x.expand(height, width), y[:, None].expand(height, width)
    return torch.stack([x, y, torch.full_like(x, stride)], dim=-1).flatten(0, 1)


def assign(points: Tensor, boxes: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Which object each point answers for: points (points, 3), boxes (batch, most, 4), present (batch, most).

    A point answers for an object of its level whose centre is at most 1.5 strides away, in x and in y; of
    several for the smallest. Returns (is positive, object), each (batch, points); the object is 0 if none.
    """
    sides = boxes[..., 2:] - boxes[..., :2]
    strides = torch.where(sides.amax(-1) < LARGE, STRIDES[0], STRIDES[1])                   # (batch, most)
    apart = ((boxes[..., :2] + boxes[..., 2:])[:, None] / 2 - points[:, None, :2]).abs().amax(-1)
    fits = (strides[:, None] == points[:, 2:]) & (apart <= NEAR * points[:, 2:]) & present[:, None]
    areas = torch.where(fits, sides.prod(-1)[:, None], torch.inf)               # (batch, points, most)
    return fits.any(-1), areas.argmin(-1)
