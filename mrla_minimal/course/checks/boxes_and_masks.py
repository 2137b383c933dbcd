"""Checkers of notebook 13a: boxes that reach to the pixels' edges, suppression, average precision."""

import torch
from torch import Tensor

from mrla_minimal.boxes import box_iou, label_boxes, non_maximum_suppression
from mrla_minimal.course.checks.common import Wrong, blame, checker, numbers, run, tensor

MASKS, HEIGHT, WIDTH = 3, 9, 13


def _some_masks():
    """Three masks (3, 9, 13) whose boxes have eight different numbers or more; the last is one pixel."""
    labels = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.int64)
    labels[0, 2:5, 1:8], labels[0, 5:8, 4:6], labels[0, 8, 12] = 1, 2, 3
    labels[0, 2, 1] = 0                                     # a corner of the box that is not in the mask
    masks = labels[0] == torch.arange(1, MASKS + 1)[:, None, None]
    return masks, label_boxes(labels, MASKS)[0].double()


@checker("exercise 1")
def check_boxes(answer: object) -> None:
    """answer(masks), boolean (n, height, width) -> boxes (n, 4) along the pixels' edges: x0, y0, x1, y1."""
    masks, wanted = _some_masks()
    given = tensor(run(answer, masks), (MASKS, 4), "boxes").double()
    short, swapped = wanted - wanted.new_tensor([0, 0, 1, 1]), wanted[:, [1, 0, 3, 2]]
    blame(given, wanted, [
        (short, "the far corner is one pixel short: the last pixel has a right and a lower edge too"),
        (wanted + wanted.new_tensor([0.5, 0.5, -0.5, -0.5]),
         "these boxes go from the centre of the first pixel to the centre of the last; go to their edges"),
        (swapped, "x counts columns and comes first; y counts rows"),
        (swapped - wanted.new_tensor([0, 0, 1, 1]), "x counts columns and comes first; and the far corner is "
                                                    "one pixel short"),
        (torch.cat([wanted[:, :2], wanted[:, 2:] - wanted[:, :2]], dim=1),
         "give the far corner x1, y1, and not the width and the height"),
    ], "not all boxes are right: x0 and y0 are the first column and row of the mask, x1 and y1 lie behind "
       "the last ones")


def _mistaken(boxes, scores, threshold, removed_remove=False, by_score=True):
    """What stays if a box that is gone removes others too, or if the boxes are taken as they come."""
    order = scores.argsort(descending=True) if by_score else torch.arange(len(scores))
    overlap, stay = box_iou(boxes, boxes), []
    for place, box in enumerate(order.tolist()):
        before = order[:place].tolist() if removed_remove else stay
        if all(overlap[box, other] <= threshold for other in before):
            stay.append(box)
    return stay


def _chain(seed):
    """Twelve boxes in a row, each overlapping the next, with scores in a mixed order; two exact doubles."""
    left = torch.arange(12, dtype=torch.float64) * 1.5 + numbers(12, seed=seed) * 0.2
    left[7] = left[2]
    boxes = torch.stack([left, torch.zeros(12).double(), left + 4, 3 + 0 * left], dim=1)
    return boxes, numbers(12, seed=seed + 10).sigmoid()


@checker("exercise 2")
def check_suppression(answer: object) -> None:
    """answer(boxes, scores, threshold) -> the numbers of the boxes that stay, best score first."""
    for seed, threshold in ((0, 0.5), (1, 0.3), (2, 0.2)):
        boxes, scores = _chain(seed)
        given = run(answer, boxes, scores, threshold)
        wanted = non_maximum_suppression(boxes, scores, threshold).tolist()
        given = given.tolist() if isinstance(given, Tensor) else given
        if not isinstance(given, list | tuple):
            raise Wrong(f"return a list of the boxes' numbers, not a {type(given).__name__}")
        given = list(given)
        if given == wanted:
            continue
        if given == _mistaken(boxes, scores, threshold, removed_remove=True):
            raise Wrong("a box that was removed removes others here; only boxes that stay may do that")
        if given == _mistaken(boxes, scores, threshold, by_score=False):
            raise Wrong("you go through the boxes as they come; begin with the best score")
        if given == scores.argsort(descending=True).tolist():
            raise Wrong("nothing was removed")
        if sorted(given, key=str) == sorted(wanted, key=str):
            raise Wrong("the right boxes stay, but in another order; the best score comes first")
        raise Wrong(f"at threshold {threshold} the boxes {wanted} should stay, not {given}")


def _area(scores, hits, truths, ordered=True, best_later=True, reach=None):
    """The mean precision at 101 recalls: with a mistake, where one is asked for."""
    hits = hits[scores.argsort(descending=True)] if ordered else hits
    true = hits.double().cumsum(0)
    precision = true / torch.arange(1, len(hits) + 1)
    if best_later:
        precision = precision.flip(0).cummax(0).values.flip(0)
    recall = true / (truths if reach is None else reach)
    at = torch.searchsorted(recall, torch.linspace(0, 1, 101, dtype=torch.float64))
    return torch.cat([precision, precision.new_zeros(1)])[at].mean()


@checker("exercise 3")
def check_precision(answer: object) -> None:
    """answer(scores, hits, truths) -> AP at one threshold: the mean precision at the recalls 0, 0.01 ... 1.

    scores (n,), hits boolean (n,), in any order; truths, how many objects there are.
    """
    for seed, truths in ((0, 11), (3, 17), (5, 9)):
        scores, hits = numbers(16, seed=seed), numbers(16, seed=seed + 1) > 0.3
        given, wanted = run(answer, scores, hits, truths), _area(scores, hits, truths)
        given = torch.as_tensor(given, dtype=torch.float64)
        true = hits[scores.argsort(descending=True)].double().cumsum(0)
        sharp = (true / torch.arange(1, 17))[hits[scores.argsort(descending=True)]]
        blame(tensor(given, (), "AP"), wanted, [
            (_area(scores, hits, truths, ordered=False),
             "put the detections in order first, best score first"),
            (_area(scores, hits, truths, best_later=False),
             "the precision at a recall is the best that is reached there or later"),
            (_area(scores, hits, truths, reach=int(hits.sum())),
             "recall is the share of all objects, found or not: divide by truths"),
            (sharp.mean(), "that is the mean precision at the hits; objects that are never found count as 0"),
            (wanted * 101, "take the mean over the 101 recalls, not the sum"),
        ], f"for {int(hits.sum())} hits among 16 detections and {truths} objects it is {wanted:.4f}, "
           f"not {float(given):.4f}")
