"""What a detector is to learn: which point answers for which object, by hand; padding; shaken regions."""

import pytest
import torch

from mrla_minimal.targets import STRIDES, assign, box_targets, mask_targets, points_of


def all_points(size):
    return torch.cat([points_of(size // stride, size // stride, stride, "cpu") for stride in STRIDES])


def answering(boxes, size=64):
    """{object: [(x, y, stride), ...]} of one image."""
    boxes = torch.tensor([boxes], dtype=torch.float32)
    points = all_points(size)
    positive, chosen = assign(points, boxes, torch.ones(boxes.shape[:2], dtype=torch.bool))
    return {number: [tuple(point) for point in points[positive[0] & (chosen[0] == number)].tolist()]
            for number in range(boxes.shape[1])}


def test_points_are_the_middles_of_cells():
    expected = [[2, 2, 4], [6, 2, 4], [10, 2, 4], [2, 6, 4], [6, 6, 4], [10, 6, 4]]
    assert points_of(2, 3, 4, "cpu").tolist() == expected


def test_a_small_object_has_the_nine_points_around_its_centre():
    """Centre (18, 22), itself a point of stride 4; a neighbour is 4 away, the next 8, and 6 are allowed."""
    assert answering([[13, 17, 23, 27]])[0] == [(x, y, 4) for y in (18, 22, 26) for x in (14, 18, 22)]


def test_an_object_of_24_pixels_belongs_to_the_coarse_level():
    fine, coarse = answering([[0, 0, 23.9, 10]])[0], answering([[0, 0, 10, 24]])[0]
    assert {stride for *_, stride in fine} == {4} and {stride for *_, stride in coarse} == {8}


def test_of_two_objects_a_point_takes_the_smaller_one():
    points = answering([[8, 8, 28, 28], [14, 14, 22, 22]])
    assert not points[0] and len(points[1]) == 9            # they have one centre


def test_a_tiny_object_between_points_has_points_outside_it():
    assert len(answering([[19.5, 19.5, 20.5, 20.5]])[0]) == 16      # centres 2 or 6 away are near


def test_what_is_not_present_has_no_point():
    boxes = torch.tensor([[[13.0, 17, 23, 27], [40, 40, 50, 50]]]).expand(2, -1, -1)
    present = torch.tensor([[True, False], [False, False]])
    positive, chosen = assign(all_points(64), boxes, present)
    assert positive.sum(1).tolist() == [9, 0] and (chosen[positive] == 0).all()


def test_targets_from_label_maps():
    labels = torch.zeros(2, 8, 8, dtype=torch.int64)
    labels[0, 1:4, 2:6], labels[0, 5:7, 0:2], labels[1, 0:4, 0:4] = 1, 2, 1
    boxes = torch.tensor([[[2.0, 1, 6, 4], [0, 5, 2, 7]], [[0, 0, 4, 4], [0, 0, 0, 0]]])
    targets = mask_targets(labels, boxes, torch.tensor([2, 1]), torch.Generator().manual_seed(0))
    assert targets.present.tolist() == [[True, True], [True, False]]
    assert list(zip(targets.image.tolist(), targets.slot.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 0)]
    assert torch.equal(targets.masks[0, 1], labels[0] == 2) and not targets.masks[1, 1].any()
    shift = (targets.regions - boxes).abs() / torch.tensor([4.0, 3, 4, 3])
    assert (shift[0, 0] <= 0.1).all() and (shift[0, 0] > 0).all() and (shift[1, 1] == 0).all()
    again = mask_targets(labels, boxes, torch.tensor([2, 1]), torch.Generator().manual_seed(0))
    assert torch.equal(targets.regions, again.regions)
    assert targets.to("cpu").masks.dtype == torch.bool


def test_targets_from_boxes_alone():
    boxes = [torch.ones(2, 4), torch.zeros(0, 4), torch.full((1, 4), 3.0)]
    targets = box_targets(boxes, [torch.tensor([2, 1]), torch.tensor([]), torch.tensor([0])])
    assert targets.boxes.shape == (3, 2, 4) and targets.masks is None
    assert targets.present.tolist() == [[True, True], [False, False], [True, False]]
    assert targets.classes.tolist() == [[2, 1], [0, 0], [0, 0]]
    assert targets.to("cpu").image is None


def test_labels_and_boxes_of_different_batches_are_refused():
    labels, boxes = torch.zeros(2, 8, 8).long(), torch.zeros(2, 1, 4)
    one = torch.zeros(1)
    for wrong in ((labels, boxes[:1], one), (labels, boxes, one), (labels, boxes, None)):
        with pytest.raises(ValueError, match="must be of one batch"):
            mask_targets(*wrong, torch.Generator())


@pytest.mark.parametrize("boxes, classes, num_classes, message", [
    ([torch.ones(2, 4)], [torch.tensor([0, 1, 0])], None, r"classes must be .*\(2,\).*not \(3,\)"),
    ([torch.ones(2, 4)] * 2, [torch.tensor([0, 1])], None, "of as many images, not 2 and 1"),
    ([torch.ones(2, 3)], [torch.tensor([0, 1])], None, r"boxes must be .*\(n, 4\), not \(2, 3\)"),
    ([torch.ones(2, 4)], [torch.tensor([0.0, 1.0])], None, "classes must be integers .* of torch.float32"),
    ([torch.ones(2, 4)], [torch.tensor([0, -1])], None, "classes must be at least 0, not from -1 to 0"),
    ([torch.ones(2, 4)], [torch.tensor([0, 3])], 3, "classes must be from 0 to 2, not from 0 to 3"),
    ([torch.ones(2, 4)], [torch.tensor([0, 1])], 0, "num_classes must be a positive integer, not 0"),
])
def test_boxes_and_classes_that_do_not_fit_are_refused(boxes, classes, num_classes, message):
    with pytest.raises(ValueError, match=message):
        box_targets(boxes, classes, num_classes)
