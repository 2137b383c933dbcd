"""Boxes and masks as tensors: overlap, suppression, and the way from a feature map to a box and back.

A box is (x0, y0, x1, y1) in pixels, measured along the pixels' edges: the box of the single pixel in row 2,
column 5 is (5, 2, 6, 3), and the centre of that pixel is (5.5, 2.5). Counting from pixel centres instead
makes every box one pixel short.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mrla_minimal.shapes import (
    check_floats,
    check_positive,
    check_range,
    check_same_shape,
    described,
    has_shape,
)


def check_boxes(name: str, boxes: Tensor) -> None:
    """boxes must be a floating-point tensor (..., 4)."""
    is_tensor = isinstance(boxes, Tensor)
    if not is_tensor or boxes.dim() < 2 or boxes.shape[-1] != 4 or not boxes.is_floating_point():
        given = f"{boxes.dtype} {tuple(boxes.shape)}" if is_tensor else repr(boxes)
        raise ValueError(f"{name} must be a floating-point tensor (boxes, 4) of x0, y0, x1, y1, not {given}")


def box_area(boxes: Tensor) -> Tensor:
    """(..., 4) -> (...), in square pixels; 0 where a box has no width or no height.

    Half precision gives float32, here and in what follows from it: float16 ends below 300 x 300 pixels.
    """
    boxes = _precise(boxes)
    width, height = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).unbind(-1)
    return width * height


def _precise(x: Tensor) -> Tensor:
    """Half precision as float32: its three digits are too few for places of pixels."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, and where the whole is 0, 0 with a gradient of 0: that of 0 / 0 would be NaN."""
    some = whole != 0       # not `> 0`: a NaN stays one, so that a training that diverged is told
    return torch.where(some, part, 0) / torch.where(some, whole, 1)


def _shared_area(first: Tensor, second: Tensor) -> Tensor:
    return box_area(torch.cat([torch.maximum(first[..., :2], second[..., :2]),
                               torch.minimum(first[..., 2:], second[..., 2:])], dim=-1))


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of every box (n, 4) with every box (m, 4), each with any batch before: (n, m).

    Two boxes that do not meet have 0, also where both are empty. Raises ValueError for another shape.
    """
    check_boxes("first", first)
    check_floats("second", second, (*first.shape[:-2], "boxes", 4))
    first, second = first[..., :, None, :], second[..., None, :, :]
    shared = _shared_area(first, second)
    return _share(shared, box_area(first) + box_area(second) - shared)


def generalised_iou(first: Tensor, second: Tensor) -> Tensor:
    """Of each box (..., n, 4) with its partner (..., n, 4): (..., n), from -1 to 1.

    IoU, less the share of the smallest box around both that neither covers. So boxes that do not meet still
    have a gradient towards each other. Source: H. Rezatofighi et al., Generalized Intersection over Union,
    CVPR 2019. Raises ValueError for another shape.
    """
    check_boxes("first", first)
    check_same_shape("second", second, first)
    shared = _shared_area(first, second)
    around = box_area(torch.cat([torch.minimum(first[..., :2], second[..., :2]),
                                 torch.maximum(first[..., 2:], second[..., 2:])], dim=-1))
    union = box_area(first) + box_area(second) - shared
    return _share(shared, union) - _share(around - union, around)


def mask_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of every mask (n, height, width) with every mask (m, height, width): (n, m).

    Boolean masks in, float64 out: pixels are counted exactly, since an IoU may equal a threshold. In float32
    the average precision is off by up to 0.03 points. Raises ValueError for other masks.
    """
    are_masks = all(has_shape(masks, ("n", "height", "width")) and masks.dtype == torch.bool
                    for masks in (first, second))
    if not are_masks or first.shape[1:] != second.shape[1:]:
        raise ValueError("masks must be boolean (n, height, width) and of one size, not "
                         f"{described(first)} and {described(second)}")
    first, second = first.flatten(1).double(), second.flatten(1).double()
    shared = first @ second.T
    union = first.sum(1)[:, None] + second.sum(1) - shared
    return torch.where(shared > 0, shared / union, 0.0)


def non_maximum_suppression(boxes: Tensor, scores: Tensor, threshold: float = 0.5) -> Tensor:
    """The indices of the boxes (n, 4) that stay, best score first; scores (n,).

    From the best on, each box that stays removes all later ones whose IoU with it is above the threshold.
    Of equal scores the earlier box comes first. It runs on the CPU: each step waits for the one before.
    Raises ValueError for another shape, and for a threshold that is no number of at least 0.
    """
    check_floats("boxes", boxes, ("boxes", 4))
    if not has_shape(scores, boxes.shape[:1]):
        raise ValueError(f"scores must be {tuple(boxes.shape[:1])}, one a box, not {described(scores)}")
    check_range("threshold", threshold, 0, math.inf)
    overlap = box_iou(boxes, boxes).cpu()
    left = scores.cpu().argsort(descending=True, stable=True)
    stay = []
    while len(left):
        best, left = left[0], left[1:]
        stay.append(int(best))
        left = left[overlap[best, left] <= threshold]
    return torch.tensor(stay, dtype=torch.int64, device=boxes.device)


def suppress_in_classes(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float,
                        longest: int) -> Tensor:
    """`non_maximum_suppression`, but only a box of the same class removes another; classes int64 (n,).

    longest: the image's longer side in pixels; its boxes do not reach beyond. Those of different classes are
    moved apart by twice that, so that none meets another class's.
    """
    return non_maximum_suppression(boxes + 2 * longest * classes[:, None], scores, threshold)


def roi_align(features: Tensor, boxes: Tensor, size: int, stride: float = 1.0) -> Tensor:
    """A size x size patch of the map for each box, read between its cells by bilinear interpolation.

    features (batch, channels, height, width), one cell every `stride` pixels; boxes (batch, n, 4) in pixels
    -> (batch, n, channels, size, size). Each box is cut into size x size equal parts, each read once, at its
    middle. Beyond the border the map goes on as its last cells are. Boxes of no size give their one point.
    Source: K. He et al., Mask R-CNN, ICCV 2017. Raises ValueError for another shape, and for a size that is
    no positive integer.
    """
    check_floats("features", features, ("batch", "channels", "height", "width"))
    check_floats("boxes", boxes, (len(features), "n", 4))
    check_positive("size", size)
    boxes = _precise(boxes)
    count = boxes.shape[1]
    height, width = features.shape[2:]
    middles = (torch.arange(size, device=boxes.device, dtype=boxes.dtype) + 0.5) / size
    corner, sides = boxes[..., :2, None], (boxes[..., 2:] - boxes[..., :2])[..., None]
    x, y = (corner + sides * middles).unbind(2)                             # (batch, n, size) each
    # grid_sample's -1 and 1 are the map's outer edges, as ours are: align_corners=False.
    x, y = 2 * x / (stride * width) - 1, 2 * y / (stride * height) - 1
    grid = torch.stack(torch.broadcast_tensors(x[:, :, None, :], y[..., None]), dim=-1)
    precise = _precise(features)
    patches = F.grid_sample(precise, grid.flatten(1, 2).to(precise.dtype), mode="bilinear",
                            padding_mode="border", align_corners=False)     # (batch, channels, n size, size)
    return patches.to(features.dtype).unflatten(2, (count, size)).transpose(1, 2)


def paste_masks(patches: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """The way back of `roi_align`: patches (n, size, size) laid into their boxes (n, 4): (n, height, width).

    Every pixel whose centre lies in the box reads the patch there, between its parts by bilinear
    interpolation; all others are 0. Raises ValueError for another shape.
    """
    check_floats("patches", patches, ("n", "size", "size"))
    check_floats("boxes", boxes, (len(patches), 4))
    boxes, precise = _precise(boxes), _precise(patches)
    like = {"device": boxes.device, "dtype": boxes.dtype}
    x, y = torch.arange(width, **like) + 0.5, torch.arange(height, **like) + 0.5
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=torch.finfo(boxes.dtype).eps)
    x = 2 * (x - boxes[:, 0:1]) / sides[:, 0:1] - 1         # (n, width): -1 to 1 inside
    y = 2 * (y - boxes[:, 1:2]) / sides[:, 1:2] - 1         # (n, height)
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1)
    pasted = F.grid_sample(precise[:, None], grid.to(precise.dtype), mode="bilinear", padding_mode="border",
                           align_corners=False)[:, 0]
    inside = (x.abs() <= 1)[:, None, :] & (y.abs() <= 1)[:, :, None]
    return pasted.to(patches.dtype) * inside


def label_boxes(labels: Tensor, most: int) -> Tensor:
    """The boxes of objects in label maps: integers (batch, height, width) -> (batch, most, 4).

    Pixel 0 is background, k belongs to object k of 1 to `most`. float32, along the pixels' edges; an object
    without a pixel has a box of zeros.
    Raises ValueError for other maps, and for a number outside 0 to `most`.
    """
    if not has_shape(labels, ("batch", "height", "width")) or labels.is_floating_point():
        raise ValueError(f"labels must be integers (batch, height, width), not {described(labels)}")
    batch, height, width = labels.shape
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) <= most:
        raise ValueError(f"labels must lie in 0 to {most}, not {int(labels.min())} to {int(labels.max())}")
    places = labels.flatten(1).long()                                                   # (batch, pixels)
    rows = torch.arange(height, device=labels.device).repeat_interleave(width).expand_as(places)
    columns = torch.arange(width, device=labels.device).repeat(height).expand_as(places)
    nowhere = torch.full((batch, most + 1), -1, device=labels.device)

    def reached(values: Tensor) -> Tensor:      # the largest value at each object's pixels, -1 without one
        return nowhere.scatter_reduce(1, places, values, "amax")[:, 1:]

    x1, y1 = reached(columns) + 1, reached(rows) + 1
    x0, y0 = width - 1 - reached(width - 1 - columns), height - 1 - reached(height - 1 - rows)
    return (torch.stack([x0, y0, x1, y1], dim=-1) * (x1 > 0)[..., None]).float()
