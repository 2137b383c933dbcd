"""The checkers of notebook 13a: plausible mistakes are named."""

import pytest
import torch
from notebook_answers import assert_wrong

from mrla_minimal.boxes import box_iou
from mrla_minimal.course.checks.boxes_and_masks import check_boxes, check_precision, check_suppression


def boxes(make):
    """An answer that gives make(first column, first row, last column, last row) of every mask."""
    def answer(masks):
        rows = []
        for mask in masks:
            y, x = mask.nonzero().unbind(1)
            rows.append(make(x.min(), y.min(), x.max(), y.max()))
        return torch.tensor(rows, dtype=torch.float32)

    return answer


def test_right_boxes_pass():
    assert check_boxes.judge(boxes(lambda x, y, u, v: (x, y, u + 1, v + 1))) == ("passed", "passed")


@pytest.mark.parametrize(("answer", "words"), [
    (boxes(lambda x, y, u, v: (x, y, u, v)), "one pixel short"),
    (boxes(lambda x, y, u, v: (x + 0.5, y + 0.5, u + 0.5, v + 0.5)), "from the centre"),
    (boxes(lambda x, y, u, v: (y, x, v + 1, u + 1)), "x counts columns and comes first; y counts rows"),
    (boxes(lambda x, y, u, v: (y, x, v, u)), "and the far corner is one pixel short"),
    (boxes(lambda x, y, u, v: (x, y, u + 1 - x, v + 1 - y)), "not the width"),
    (boxes(lambda x, y, u, v: (x - 1, y - 1, u + 1, v + 1)), "not all boxes are right"),
    (boxes(lambda x, y, u, v: (x, y, u + 1, float("nan"))), "NaN"),
    (boxes(lambda x, y, u, v: (x, y, u + 1)), "shape"),
    (lambda masks: masks.zero_().float(), "in place"),
])
def test_wrong_boxes_are_named(answer, words):
    assert_wrong(check_boxes, answer, words)


def suppress(by_score=True, of_removed=False, strict=False, result=lambda stay: stay):
    def answer(boxes, scores, threshold):
        order = scores.argsort(descending=True).tolist() if by_score else range(len(scores))
        overlap, stay, seen = box_iou(boxes, boxes), [], []
        for box in order:
            compared = seen if of_removed else stay
            if all(overlap[box, other] <= threshold * (1 - strict) for other in compared):
                stay.append(box)
            seen.append(box)
        return result(stay)

    return answer


@pytest.mark.parametrize("result", [list, tuple, torch.tensor])
def test_right_suppression_passes(result):
    assert check_suppression.judge(suppress(result=result)) == ("passed", "passed")


@pytest.mark.parametrize(("answer", "words"), [
    (suppress(by_score=False), "begin with the best score"),
    (suppress(of_removed=True), "only boxes that stay"),
    (suppress(strict=True), "should stay"),
    (suppress(result=sorted), "in another order"),
    (lambda boxes, scores, threshold: scores.argsort(descending=True), "nothing was removed"),
    (lambda boxes, scores, threshold: 3, "return a list"),
    (lambda boxes, scores, threshold: [float("nan")], "should stay"),
    (lambda boxes, scores, threshold: boxes[99], "your code raises"),
])
def test_wrong_suppression_is_named(answer, words):
    assert_wrong(check_suppression, answer, words)


def precision(order=True, best_later=True, reach=None, recalls=101, at_hits=False, times=1):
    def answer(scores, hits, truths):
        hits = hits[scores.argsort(descending=True)] if order else hits
        shares, true = [], 0
        for place, hit in enumerate(hits.tolist(), start=1):
            true += hit
            shares.append((true / (truths if reach is None else int(hits.sum())), true / place))
        if at_hits:
            return sum(share for (_, share), hit in zip(shares, hits, strict=True) if hit) / int(hits.sum())
        total = 0.0
        for point in range(recalls):
            reached = [share for recall, share in shares if recall >= point / (recalls - 1) - 1e-12]
            total += (max(reached) if best_later else reached[0]) if reached else 0.0
        return times * total / recalls

    return answer


def test_a_right_precision_passes():
    assert check_precision.judge(precision()) == ("passed", "passed")


@pytest.mark.parametrize(("answer", "words"), [
    (precision(order=False), "in order first"),
    (precision(best_later=False), "there or later"),
    (precision(reach="hits"), "divide by truths"),
    (precision(at_hits=True), "never found count as 0"),
    (precision(times=101), "not the sum"),
    (precision(recalls=11), "objects it is"),
    (precision(times=float("nan")), "NaN"),
    (lambda scores, hits, truths: [0.5, 0.5], "shape"),
])
def test_a_wrong_precision_is_named(answer, words):
    assert_wrong(check_precision, answer, words)
