"""What a detector is to learn: the objects of a batch, and which point of a map answers for which of them."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from mrla_minimal.shapes import check_floats, check_positive, described, has_shape

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
    Raises ValueError for labels, boxes or counts of different batches.
    """
    one_batch = (has_shape(labels, ("batch", "height", "width"))
                 and has_shape(boxes, (len(labels), "most", 4)) and has_shape(counts, (len(labels),)))
    if not one_batch:
        raise ValueError("labels (batch, height, width), boxes (batch, most, 4) and counts (batch,) must be "
                         f"of one batch, not {described(labels)}, {described(boxes)} and {described(counts)}")
    numbers = torch.arange(1, boxes.shape[1] + 1)
    present = numbers <= counts[:, None]
    image, slot = present.nonzero(as_tuple=True)
    sides = (boxes[..., 2:] - boxes[..., :2]).repeat(1, 1, 2)
    regions = boxes + sides * shake * (2 * torch.rand(boxes.shape, generator=generator) - 1)
    return Targets(boxes, torch.zeros_like(present, dtype=torch.int64), present,
                   labels[:, None] == numbers[:, None, None], regions, image, slot)


def box_targets(boxes: list[Tensor], classes: list[Tensor], num_classes: int | None = None) -> Targets:
    """Targets without masks from the boxes (n, 4) and classes (n,) of each image, on the CPU.

    With `num_classes`, the detector's, a class that it does not have is found here: its losses cannot look,
    since they would wait for the device.
    Raises ValueError for lists of two lengths, for boxes and classes of two numbers, and for other classes.
    """
    if len(boxes) != len(classes):
        raise ValueError(f"boxes and classes must be of as many images, not {len(boxes)} and {len(classes)}")
    if num_classes is not None:
        check_positive("num_classes", num_classes)
    for some, kinds in zip(boxes, classes, strict=True):
        check_floats("boxes", some, ("n", 4))
        _check_classes(kinds, len(some), num_classes)
    most = max(map(len, boxes), default=0)
    padded_boxes = torch.zeros(len(boxes), most, 4)
    padded_classes = torch.zeros(len(boxes), most, dtype=torch.int64)
    present = torch.zeros(len(boxes), most, dtype=torch.bool)
    for row, (some, kinds) in enumerate(zip(boxes, classes, strict=True)):
        count = len(some)
        padded_boxes[row, :count], padded_classes[row, :count], present[row, :count] = some, kinds, True
    return Targets(padded_boxes, padded_classes, present)


def _check_classes(kinds, count, num_classes):
    """`count` whole numbers from 0 on, below num_classes unless that is None; none may be of any type."""
    if not has_shape(kinds, (count,)) or (count and kinds.is_floating_point()):
        raise ValueError(f"classes must be integers of shape ({count},), one a box, not {described(kinds)}")
    if count and not 0 <= kinds.min() <= kinds.max() < (num_classes or torch.inf):
        allowed = "at least 0" if num_classes is None else f"from 0 to {num_classes - 1}"
        raise ValueError(f"classes must be {allowed}, not from {kinds.min()} to {kinds.max()}")


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
