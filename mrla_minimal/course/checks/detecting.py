"""Checkers of notebook 13b: points that answer, a patch read between cells, an attention in a detector."""

import torch
from torch import Tensor

from mrla_minimal.boxes import roi_align
from mrla_minimal.course.checks.as_trained import take_steps
from mrla_minimal.course.checks.common import Wrong, blame, checker, numbers, outputs_and_values, run, tensor
from mrla_minimal.detector import Detector
from mrla_minimal.targets import LARGE, NEAR, STRIDES, Targets, assign, points_of

CHANNELS, LAYERS, HEIGHT, WIDTH = 6, 4, 3, 5
# Small, large, long and thin, exactly at the limit; none of their centres lies on a point.
BOXES = ((9.0, 21.0, 20.0, 35.0), (3.0, 10.0, 45.0, 43.0), (30.0, 5.0, 40.0, 38.0),
         (11.0, 13.0, 35.0, 26.0))
DEVICE = torch.device("cpu")


def _all_points():
    """The points of a picture of 64 x 48 pixels on both levels: (points, 3)."""
    return torch.cat([points_of(48 // stride, 64 // stride, stride, DEVICE) for stride in STRIDES])


def _stride_of(longer):
    return STRIDES[0] if longer < LARGE else STRIDES[1]


def _near(points, box, by_circle=False, shorter=False, any_level=False, one_stride=None):
    """Which points answer for a box: rightly, or with one mistake."""
    sides, middle = box[2:] - box[:2], (box[:2] + box[2:]) / 2
    length = sides.min() if shorter else sides.max()
    stride = _stride_of(length)
    apart = (points[:, :2] - middle).abs()
    apart = apart.norm(dim=1) if by_circle else apart.amax(dim=1)
    limit = NEAR * (points[:, 2] if one_stride is None else one_stride)
    return (apart <= limit) & (any_level | (points[:, 2] == stride))


@checker("exercise 1")
def check_points(answer: object) -> None:
    """answer(points (n, 3) of x, y, stride; box (4,)) -> boolean (n,): which points answer for the box."""
    points = _all_points()
    for corners in BOXES:
        box = torch.tensor(corners)
        given = tensor(run(answer, points, box), (len(points),), "answer")
        if given.dtype != torch.bool:
            raise Wrong(f"return booleans, one a point, not {given.dtype}")
        wanted = assign(points, box[None, None], torch.ones(1, 1, dtype=torch.bool))[0][0]
        inside = ((points[:, :2] > box[:2]) & (points[:, :2] < box[2:])).all(dim=1)
        width, height = (box[2:] - box[:2]).tolist()
        blame(given, wanted, [
            (_near(points, box, any_level=True),
             "both levels answer for your box: its longer side says which stride it belongs to"),
            (_near(points, box, shorter=True),
             "the longer side says which level a box belongs to, not the shorter one"),
            (_near(points, box, by_circle=True),
             "the distance is asked in x and in y, each by itself: near points form a square, not a circle"),
            (_near(points, box, one_stride=1.0), f"{NEAR} strides of the point's level, not {NEAR} pixels"),
            (_near(points, box, one_stride=STRIDES[0]),
             f"{NEAR} strides are of the point's own level: {NEAR * STRIDES[1]:g} pixels "
             f"on stride {STRIDES[1]}"),
            (inside, "a point in the box is not enough: it must be near the box's centre"),
            (inside & (points[:, 2] == _stride_of(max(width, height))),
             "a point in the box is not enough: it must be near the box's centre"),
        ], f"for a box of {width:g} x {height:g} pixels {int(wanted.sum())} points answer; you give "
           f"{int(given.sum())}, or others")


def _read(image, box, size, shift=0.0, place=0.5, ends=False, nearest=False):
    """`roi_align` of one box by indices: rightly, or with one mistake. No part of the box is at a border."""
    steps = torch.linspace(0, 1, size, dtype=image.dtype) if ends else \
        (torch.arange(size, dtype=image.dtype) + place) / size
    x, y = (box[:2, None] + (box[2:] - box[:2])[:, None] * steps - 0.5 + shift).unbind(0)
    if nearest:
        return image[y.round().long()[:, None], x.round().long()]
    top, left = y.floor().long(), x.floor().long()
    down, right = (y - top)[:, None], x - left
    rows = [image[top + step][:, left] * (1 - right) + image[top + step][:, left + 1] * right
            for step in (0, 1)]
    return rows[0] * (1 - down) + rows[1] * down


@checker("exercise 2")
def check_patch(answer: object) -> None:
    """answer(image (height, width), box (4,), size) -> the patch (size, size), read at the parts' middles."""
    ramp = 3.0 * torch.arange(17, dtype=torch.float64)[:, None] + 0.5 * torch.arange(23, dtype=torch.float64)
    for image, corners, size in ((ramp, (3.0, 2.0, 13.0, 9.0), 5),
                                 (numbers(17, 23), (4.3, 2.6, 18.1, 13.2), 4),
                                 (numbers(19, 11, seed=1), (2.2, 5.7, 7.9, 15.4), 7)):
        box = torch.tensor(corners, dtype=torch.float64)
        given = tensor(run(answer, image, box, size), (size, size), "patch")
        wanted = roi_align(image[None, None], box[None, None], size)[0, 0, 0]
        blame(given, wanted, [
            (wanted.T, "your patch is turned: rows go along y, columns along x"),
            (_read(image, box, size, shift=0.5),
             "half a pixel off: the centre of image[i, j] lies at x = j + 0.5, y = i + 0.5"),
            (_read(image, box, size, shift=1.0),
             "half a pixel off, to the wrong side: subtract 0.5 to come from pixels to indices"),
            (_read(image, box, size, place=0.0),
             "you read at the upper left corner of each part; read at its middle"),
            (_read(image, box, size, ends=True),
             "you read from edge to edge of the box; read at the middles of its parts"),
            (_read(image, box, size, nearest=True),
             "you take the nearest pixel; read between four pixels, each by its share"),
        ], "on the ramp 3 y + x / 2, where every value is known, your patch is wrong" if image is ramp else
           "right on a ramp, and not on other images: are your four shares right?")


def _halves(values, of_outputs=False, share=0.5):
    """O^t = share (v^t + v^{t-1}); or, with of_outputs, share (v^t + O^{t-1})."""
    outputs = [values[0]]
    for before, value in zip(values, values[1:], strict=False):
        outputs.append(share * (value + (outputs[-1] if of_outputs else before)))
    return torch.stack(outputs)


def _squares() -> tuple[Tensor, Targets]:
    """Two images of 32 x 32 pixels with a bright square each, and what they hold."""
    images = 0.1 * numbers(2, 3, 32, 32).float()
    boxes = torch.tensor([[[5.0, 8.0, 17.0, 20.0]], [[12.0, 3.0, 28.0, 30.0]]])
    masks = torch.zeros(2, 1, 32, 32, dtype=torch.bool)
    for image, (x0, y0, x1, y1) in enumerate(boxes[:, 0].int().tolist()):
        masks[image, 0, y0:y1, x0:x1] = True
        images[image, :, y0:y1, x0:x1] += 1.0
    slots = torch.tensor([0, 1]), torch.tensor([0, 0])
    return images, Targets(boxes, torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1, dtype=torch.bool),
                           masks, boxes, *slots)


def _train(answer):
    """Two steps of a small detector with the student's attention in it."""
    detector = Detector(8, width=8, layer_attention=answer)
    images, targets = _squares()
    take_steps(torch.optim.AdamW(detector.parameters(), lr=1e-3),
               lambda: sum(detector.losses(images, targets).values()), 2,
               "Detector(8, width=8, layer_attention=...)")


@checker("exercise 3")
def check_last_two(answer: object) -> None:
    """answer(channels) -> a module with O^t = (v^t + v^{t-1}) / 2 and O^1 = v^1, v^t its own `value`."""
    maps = numbers(LAYERS, 2, CHANNELS, HEIGHT, WIDTH).float()
    given, values = outputs_and_values(answer, maps)
    wanted = _halves(values)
    blame(given, wanted, [
        (values, "your output is v alone: nothing of the memory is in it"),
        (_halves(values, of_outputs=True),
         "you carry the last output, in which older values live on; carry the last value"),
        (_halves(values, share=1.0), "take the mean of the two values, not their sum"),
        (torch.cat([values[:1] / 2, wanted[1:]]),
         "layer 1 has one value only, and its mean is that value, not half of it"),
        (torch.stack([values[: t + 1].mean(dim=0) for t in range(LAYERS)]),
         "that is the mean of all values so far; take this layer's and the one before it"),
    ], "O^1 should be v^1, and each later one the mean of v^t and v^{t-1}")
    _train(answer)
