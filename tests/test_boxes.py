"""Boxes and masks: overlaps by hand, suppression against a double loop, RoIAlign on a ramp and back."""

import itertools
import math

import pytest
import torch

from mrla_minimal.boxes import (
    box_area,
    box_iou,
    generalised_iou,
    label_boxes,
    mask_iou,
    non_maximum_suppression,
    paste_masks,
    roi_align,
    suppress_in_classes,
)


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)


def some_boxes(count, seed=0, size=32):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * (size - 8)
    return torch.cat([corner, corner + 2 + 6 * torch.rand(count, 2, generator=generator)], dim=1)


def disc(size, x, y, radius):
    rows, columns = (torch.arange(size) + 0.5).unsqueeze(1), torch.arange(size) + 0.5
    return (columns - x) ** 2 + (rows - y) ** 2 < radius**2


def test_iou_by_hand():
    first, second = boxes((0, 0, 4, 2)), boxes((2, 0, 6, 2), (0, 0, 4, 2), (4, 0, 5, 1), (9, 9, 9, 9))
    assert box_iou(first, second).tolist() == [[1 / 3, 1.0, 0.0, 0.0]]
    assert box_iou(second[3:], second[3:]).tolist() == [[0.0]]          # 0 / 0 is no overlap, and no NaN
    assert box_area(boxes((3, 3, 2, 9))).tolist() == [0.0]


def test_generalised_iou_by_hand():
    """Two unit squares with a gap of 1 between them: the box around both is 3, a third of it in neither."""
    first, second = boxes((0, 0, 1, 1)), boxes((2, 0, 3, 1))
    assert generalised_iou(first, second).item() == pytest.approx(-1 / 3)
    assert generalised_iou(first, first).item() == 1.0
    many, others = some_boxes(20), some_boxes(20, seed=1)
    assert (generalised_iou(many, others) <= box_iou(many, others).diagonal()).all()


def test_generalised_iou_of_empty_boxes_is_finite_with_its_gradient():
    empty = torch.zeros(2, 4, requires_grad=True)
    value = generalised_iou(empty, torch.zeros(2, 4))
    value.sum().backward()
    assert value.isfinite().all() and empty.grad.isfinite().all()


def test_boxes_that_are_no_numbers_have_no_overlap_that_is_one():
    box, broken = torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.full((1, 4), math.nan)
    assert generalised_iou(broken, box).isnan().all()


@pytest.mark.parametrize("overlap", [box_iou, generalised_iou])
@pytest.mark.parametrize("box", [(0, 0, 0, 0), (0, 0, 0, 10), (5, 5, 2, 9)])
def test_boxes_of_no_area_pass_no_gradient_that_is_nan(overlap, box):
    first, second = boxes(box, box).float().requires_grad_(), boxes(box, box).float()
    overlap(first, second).sum().backward()
    assert first.grad.isfinite().all()


@pytest.mark.parametrize("overlap", [box_iou, generalised_iou])
def test_half_precision_knows_boxes_of_300_pixels(overlap):
    first, second = boxes((0, 0, 300, 300)), boxes((0, 100, 300, 400))
    for dtype in (torch.float16, torch.bfloat16):
        first, second = first.to(dtype), second.to(dtype)
        found = overlap(first, second)
        assert found.dtype == torch.float32 and found.item() == pytest.approx(0.5, abs=1e-6)
    assert box_area(first).item() == 90_000


def test_boxes_apart_are_drawn_together():
    apart = boxes((0, 0, 1, 1)).requires_grad_()
    generalised_iou(apart, boxes((5, 0, 6, 1))).sum().backward()
    assert apart.grad[0, 2] > 0         # a larger x1 is better


def test_mask_iou_by_hand():
    first, second = torch.zeros(2, 3, 3, dtype=torch.bool), torch.zeros(1, 3, 3, dtype=torch.bool)
    first[0, 0], second[0, :2, :2] = True, True
    overlap = mask_iou(first, second)
    assert overlap.dtype == torch.float64 and overlap.tolist() == [[2 / 5], [0.0]]


def by_double_loop(boxes, scores, threshold):
    """Suppression as one would write it down: who is beaten by whom, pair by pair, with plain numbers."""
    order = sorted(range(len(scores)), key=lambda index: (-scores[index].item(), index))
    stay = []
    for index in order:
        beaten = False
        for better in stay:
            (a0, b0, a1, b1), (c0, d0, c1, d1) = boxes[index].tolist(), boxes[better].tolist()
            shared = max(0.0, min(a1, c1) - max(a0, c0)) * max(0.0, min(b1, d1) - max(b0, d0))
            beaten |= shared / ((a1 - a0) * (b1 - b0) + (c1 - c0) * (d1 - d0) - shared) > threshold
        if not beaten:
            stay.append(index)
    return stay


@pytest.mark.parametrize("seed, threshold", list(itertools.product(range(4), (0.1, 0.5, 0.8))))
def test_suppression_is_the_double_loop(seed, threshold):
    given = some_boxes(60, seed, size=24)
    scores = (torch.rand(60, generator=torch.Generator().manual_seed(seed)) * 10).round()       # many tie
    stay = non_maximum_suppression(given, scores, threshold)
    assert stay.tolist() == by_double_loop(given, scores, threshold)
    assert 1 < len(stay) < 60 or threshold == 0.8


def test_a_box_that_is_removed_removes_none():
    """A chain: the second falls to the first, so the third, which only the second overlaps, stays."""
    chain = boxes((0, 0, 10, 1), (3, 0, 13, 1), (6, 0, 16, 1))
    assert non_maximum_suppression(chain, torch.tensor([0.9, 0.8, 0.7])).tolist() == [0, 2]
    assert non_maximum_suppression(boxes(), torch.zeros(0)).tolist() == []


def test_only_a_box_of_the_same_class_removes_another():
    given, generator = some_boxes(60, size=24), torch.Generator().manual_seed(1)
    scores, classes = torch.rand(60, generator=generator), torch.randint(3, (60,), generator=generator)
    stay = suppress_in_classes(given, scores, classes, 0.5, 24)
    apart = [place for kind in range(3) for place in (classes == kind).nonzero()[:, 0][
        non_maximum_suppression(given[classes == kind], scores[classes == kind], 0.5)].tolist()]
    assert stay.tolist() == sorted(apart, key=lambda place: -scores[place])
    assert len(stay) > len(non_maximum_suppression(given, scores, 0.5))


@pytest.mark.parametrize("stride", [1, 2])
def test_roi_align_of_a_ramp_is_exact(stride):
    """Channel 0 rises along x, channel 1 along y: the patches must hold the coordinates of their parts."""
    cells = (torch.arange(16, dtype=torch.float64) + 0.5) * stride
    ramp = torch.stack([cells.expand(16, 16), cells[:, None].expand(16, 16)]).expand(2, -1, -1, -1)
    rois = torch.stack([boxes((2, 3, 9, 13.5), (1.25, 4, 4.75, 6)), boxes((5, 5, 6, 6), (0.5, 0.5, 15.5, 8))])
    rois = stride * rois
    patches = roi_align(ramp, rois, 7, stride)
    assert patches.shape == (2, 2, 2, 7, 7)
    for image, box in itertools.product(range(2), range(2)):
        x0, y0, x1, y1 = rois[image, box].tolist()
        steps = (torch.arange(7, dtype=torch.float64) + 0.5) / 7
        torch.testing.assert_close(patches[image, box, 0], (x0 + steps * (x1 - x0)).expand(7, 7))
        torch.testing.assert_close(patches[image, box, 1], (y0 + steps * (y1 - y0))[:, None].expand(7, 7))


def test_roi_align_reads_each_image_of_the_batch_and_has_a_gradient():
    maps = torch.zeros(2, 1, 8, 8)
    maps[1] = 1.0
    maps.requires_grad_()
    patches = roi_align(maps, torch.tensor([[[1.0, 1, 5, 5]]] * 2), 3)
    assert (patches[0] == 0).all() and (patches[1] == 1).all()
    patches.sum().backward()
    assert maps.grad[0, 0, 3, 3] > 0 and maps.grad[0, 0, 7, 7] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_places_are_precise_where_maps_are_not(dtype):
    """At column 450 of 512, half precision is off by up to a pixel; the maps' values are exact in it."""
    stripes = ((torch.arange(512) // 2) % 2).float().expand(1, 1, 8, 512)
    box = torch.tensor([[[449.0, 0, 463, 7]]])
    patch = roi_align(stripes.to(dtype), box, 7)
    assert patch.dtype == dtype and torch.equal(patch.float(), roi_align(stripes, box, 7))
    pasted = paste_masks(patch[0, :, 0], box[0], 8, 512)
    wanted = paste_masks(patch[0, :, 0].float(), box[0], 8, 512)
    assert pasted.dtype == dtype and (pasted.float() - wanted).abs().max() < 0.005
    whole = roi_align(stripes.to(dtype), box.to(torch.float16), 7)          # 449 and 463 are exact in float16
    assert torch.equal(whole, patch)


@pytest.mark.parametrize("x, y", [(16.0, 16.0), (14.3, 17.6)])
def test_a_disc_of_16_pixels_survives_the_way_there_and_back(x, y):
    mask = disc(32, x, y, 8)
    box = label_boxes(mask.long()[None], 1)
    patch = roi_align(mask.float()[None, None], box, 14)[0, :, 0]
    back = paste_masks(patch, box[0], 32, 32) > 0.5
    assert mask_iou(back, mask[None]).item() > 0.95


def test_nothing_is_pasted_outside_a_box():
    pasted = paste_masks(torch.ones(2, 14, 14), torch.tensor([[2.0, 3, 5, 4], [0.0, 0, 0, 0]]), 6, 7)
    assert pasted.shape == (2, 6, 7)
    assert pasted[0].nonzero().tolist() == [[3, 2], [3, 3], [3, 4]] and not pasted[1].any()


def test_boxes_of_labels_run_along_the_pixels_edges():
    labels = torch.zeros(2, 6, 8, dtype=torch.int16)
    labels[0, 2, 5], labels[0, 1:3, 0:2], labels[1, 5, 7] = 1, 3, 2
    expected = [[[5, 2, 6, 3], [0, 0, 0, 0], [0, 1, 2, 3]], [[0, 0, 0, 0], [7, 5, 8, 6], [0, 0, 0, 0]]]
    assert label_boxes(labels, 3).tolist() == expected


@pytest.mark.parametrize("call, message", [
    (lambda: box_iou(torch.ones(2, 3), torch.ones(2, 4)), "first must be a floating-point tensor"),
    (lambda: box_iou(torch.ones(2, 4), torch.ones(2, 4).long()), "second must be a floating-point tensor"),
    (lambda: box_iou([[0, 0, 1, 1]], torch.ones(2, 4)), "first must be a floating-point tensor"),
    (lambda: mask_iou(torch.ones(1, 2, 2), torch.ones(1, 2, 2)), "masks must be boolean"),
    (lambda: non_maximum_suppression(torch.ones(2, 4), torch.ones(3)), "scores must be"),
    (lambda: box_iou(torch.ones(2, 3, 4), torch.ones(3, 3, 4)), r"second must be .* \(2, boxes, 4\), not"),
    (lambda: generalised_iou(torch.ones(3, 4), torch.ones(2, 4)), r"second must be .*\(3, 4\), not \(2, 4"),
    (lambda: generalised_iou(torch.ones(3, 4), torch.ones(1, 4)), r"second must be .*\(3, 4\), not \(1, 4"),
    (lambda: mask_iou(*[torch.ones(3, 2, dtype=torch.bool)] * 2), r"masks must be boolean .*not \(3, 2\)"),
    (lambda: mask_iou(None, None), "masks must be boolean .*not NoneType and NoneType"),
    (lambda: non_maximum_suppression(torch.ones(2, 3, 4), torch.ones(2)), r"boxes must be .*not \(2, 3, 4\)"),
    (lambda: non_maximum_suppression(torch.ones(2, 4), [1, 2]), "scores must be .*, one a box, not list"),
    (lambda: non_maximum_suppression(torch.ones(2, 4), torch.ones(2), math.nan), "threshold must be"),
    (lambda: roi_align(torch.ones(1, 1, 4, 4), torch.ones(2, 1, 4), 7), r"boxes must be .* \(1, n, 4\), not"),
    (lambda: roi_align(None, torch.ones(2, 1, 4), 7), "features must be a floating-point tensor"),
    (lambda: roi_align(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4), 0), "size must be a positive integer"),
    (lambda: paste_masks(torch.ones(2, 7, 7), torch.ones(1, 4), 8, 8), r"boxes must be .* \(2, 4\), not"),
    (lambda: paste_masks(torch.ones(7, 7), torch.ones(7, 4), 8, 8), "patches must be a floating-point"),
    (lambda: label_boxes(None, 1), r"labels must be integers \(batch, height, width\), not NoneType"),
    (lambda: label_boxes(torch.ones(1, 4, 4), 1), "labels must be integers"),
    (lambda: label_boxes(torch.full((1, 4, 4), 5), 4), "labels must lie in 0 to 4, not 5 to 5"),
])
def test_wrong_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
