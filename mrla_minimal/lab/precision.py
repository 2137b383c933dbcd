"""Average precision of boxes or masks, as COCO defines it, from overlaps and scores.

    found = [Found(box_iou(boxes.double(), true_boxes.double()), scores, classes, true_classes), ...]
    average_precision(found)["AP50"]

Boxes and masks differ in their overlaps alone: `boxes.box_iou` or `boxes.mask_iou`, in float64.
Source: T.-Y. Lin et al., Microsoft COCO, ECCV 2014, and its evaluation code, with which this agrees to 1e-12;
but for that code's limit of 100 detections an image: here all count.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mrla_minimal.boxes import box_iou, mask_iou

THRESHOLDS = np.linspace(0.5, 0.95, 10)     # of IoU, from which on a detection counts as true
RECALLS = np.linspace(0.0, 1.0, 101)        # where the precision is read


@dataclass(frozen=True, eq=False)
class Found:
    """What was found in one image: arrays, or tensors on the CPU.

    overlaps (detections, truths), IoU in float64; scores (detections,); classes (detections,) and
    true_classes (truths,), integers. Raises ValueError for other shapes, an overlap outside 0 to 1 and a
    score that is not finite.
    """

    overlaps: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    true_classes: np.ndarray

    def __post_init__(self):
        for name in ("overlaps", "scores", "classes", "true_classes"):
            object.__setattr__(self, name, np.asarray(getattr(self, name)))
        shape = (*self.scores.shape, *self.true_classes.shape)
        if self.overlaps.shape != shape or len(shape) != 2 or self.classes.shape != self.scores.shape:
            raise ValueError("overlaps must be (detections, truths), with a score and a class for each "
                             f"detection and a class for each truth, not {self.overlaps.shape} with "
                             f"{self.scores.shape}, {self.classes.shape} and {self.true_classes.shape}")
        if self.overlaps.dtype != np.float64:
            raise ValueError(f"overlaps must be float64, not {self.overlaps.dtype}: an IoU may equal a "
                             "threshold")
        inside = (self.overlaps >= 0) & (self.overlaps <= 1 + 1e-9)
        if not np.isfinite(self.scores).all() or not inside.all():
            raise ValueError("scores must be finite, and overlaps must lie in 0 to 1")

    def of_class(self, kind: int) -> "Found":
        """The detections and the truths of one class alone."""
        mine, true = self.classes == kind, self.true_classes == kind
        return Found(self.overlaps[mine][:, true], self.scores[mine], self.classes[mine],
                     self.true_classes[true])

    def judged(self) -> tuple[np.ndarray, np.ndarray]:
        """(scores (detections,), hits (10, detections) of `match`), best score first, all of one class."""
        order = np.argsort(-self.scores, kind="stable")
        return self.scores[order], match(self.overlaps[order])


def found_by_overlap(boxes: Tensor, masks: Tensor | None, scores: np.ndarray | Tensor,
                     classes: np.ndarray | Tensor, true_boxes: Tensor, true_masks: Tensor | None,
                     true_classes: np.ndarray | Tensor) -> dict[str, Found]:
    """{"box": ..., "mask": ...}: what was found in one image, beside what is there; no "mask" without masks.

    boxes (detections, 4) and true_boxes (truths, 4) in pixels, masks boolean (..., height, width).
    """
    overlaps = {"box": box_iou(boxes.double(), true_boxes.double())}
    if masks is not None:
        overlaps["mask"] = mask_iou(masks, true_masks)
    return {what: Found(overlap, scores, classes, true_classes) for what, overlap in overlaps.items()}


def match(overlaps: np.ndarray) -> np.ndarray:
    """Which detections are true at each threshold: overlaps (detections, truths), best score first
    -> boolean (10, detections).

    In that order each detection takes, of the truths that are left and that it overlaps enough, the one that
    it overlaps most; of equal ones the last.
    """
    detections, truths = overlaps.shape
    hits = np.zeros((len(THRESHOLDS), detections), bool)
    if truths == 0:
        return hits
    free = np.ones((len(THRESHOLDS), truths), bool)
    for detection, overlap in enumerate(overlaps):
        open_to_it = np.where(free & (overlap >= THRESHOLDS[:, None]), overlap, -1.0)   # (10, truths)
        taken = truths - 1 - open_to_it[:, ::-1].argmax(axis=1)
        rows = np.flatnonzero(open_to_it.max(axis=1) >= 0)
        hits[rows, detection] = True
        free[rows, taken[rows]] = False
    return hits


def precision_at_recalls(found: Sequence[Found], kind: int) -> np.ndarray:
    """The precision of one class at 101 recalls, 0 to 1, for each of the ten thresholds: (10, 101).

    All images' detections are put in one order, by score, and the precision at a recall is the best that is
    reached there or later. 0 at recalls that are never reached.
    Raises ValueError if no image holds a truth of that class.
    """
    total = sum(int((image.true_classes == kind).sum()) for image in found)
    if total == 0:
        raise ValueError(f"no image holds an object of class {kind}: its precision is not defined")
    scores, hits = [], []
    for image in found:
        its_scores, its_hits = image.of_class(kind).judged()
        scores.append(its_scores)
        hits.append(its_hits)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    places = map(np.flatnonzero, np.concatenate(hits, axis=1)[:, order])
    return np.stack([precision_at(np.arange(1, len(true) + 1), true + 1, total) for true in places])


def precision_at(true: np.ndarray, all_so_far: np.ndarray, total: float) -> np.ndarray:
    """The precision at 101 recalls, (101,), of detections in one order, best score first.

    true and all_so_far (n,): at each of the n true detections, how many are true up to there, and how many
    there are at all, itself among them; total, how many truths there are. From one true detection to the
    next, precision only falls: at these alone it may be the best.
    """
    precision = true / np.where(all_so_far > 0, all_so_far, 1)      # before what counts 0 times there is none
    precision = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)    # after the last detection: 0
    return precision[np.searchsorted(true / total, RECALLS)]


def average_precision(found: Sequence[Found]) -> dict[str, float]:
    """{"AP", "AP50", "AP75"}, each from 0 to 1: the mean over recalls and classes.

    AP is the mean over the ten thresholds too, AP50 and AP75 are those of IoU 0.5 and 0.75. A class counts if
    any image holds a truth of it. Raises ValueError if there is none at all.
    """
    kinds = sorted({int(kind) for image in found for kind in image.true_classes})
    if not kinds:
        raise ValueError("no image holds an object: the average precision is not defined")
    return summed_up(np.mean([precision_at_recalls(found, kind) for kind in kinds], axis=(0, 2)))


def summed_up(by_threshold: np.ndarray) -> dict[str, float]:
    """{"AP", "AP50", "AP75"} of the mean precision at each of the ten thresholds, (10,)."""
    return {"AP": float(by_threshold.mean()), "AP50": float(by_threshold[0]), "AP75": float(by_threshold[5])}
