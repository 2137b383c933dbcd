"""Average precision is COCO's: held to its own evaluation code, and to what can be worked out by hand."""

import contextlib
import io

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mrla_minimal.boxes import box_iou, mask_iou
from mrla_minimal.lab.precision import Found, average_precision, match, precision_at_recalls

SIDE = 24


def scene(seed, images=6, classes=3, crowd=0):
    """Truths and detections of every image: corners and scores on a coarse grid, so that both tie often.

    The third image has no truth, the fourth no detection, the fifth neither. `crowd` more detections lie in
    the first image.
    """
    rng = np.random.default_rng(seed)

    def boxes(count):
        corner, sides = rng.integers(0, SIDE - 8, (count, 2)), rng.integers(2, 9, (count, 2))
        return torch.tensor(np.concatenate([corner, corner + sides], axis=1), dtype=torch.float64)

    for image in range(images):
        truths, detections = rng.integers(1, 9), rng.integers(5, 25) + crowd * (image == 0)
        truths, detections = truths * (image not in (2, 4)), detections * (image not in (3, 4))
        true_boxes, true_classes = boxes(truths), rng.integers(classes, size=truths)
        found_boxes, found_classes = boxes(detections), rng.integers(classes, size=detections)
        for near in range(min(truths, detections) - 1):         # some of them are nearly right
            found_boxes[near] = true_boxes[near] + torch.tensor(rng.integers(-1, 2, 4)) * (near % 3 > 0)
            found_classes[near] = true_classes[near]
        scores = rng.integers(0, 8, detections) / 8
        scores[: max(0, min(truths, detections) - 1)] += 0.5
        yield true_boxes, true_classes, found_boxes, found_classes, scores


def masks_of(boxes):
    """Boxes with their first corner cut off, as masks: other overlaps than the boxes have."""
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    x0, y0, x1, y1 = boxes.numpy().T[:, :, None, None]
    inside = (columns > x0) & (columns < x1) & (rows > y0) & (rows < y1)
    return torch.tensor(inside & ~((columns < x0 + 1) & (rows < y0 + 1)))


def of_pycocotools(scenes, kind, limit=1000):
    """AP, AP50, AP75 by COCO's own code, with its limit of detections an image set out of the way."""
    images, annotations, results = [], [], []

    def entry(box, mask, category, image):
        x0, y0, x1, y1 = box.tolist()
        encoded = rle.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
        return {"bbox": [x0, y0, x1 - x0, y1 - y0], "segmentation": encoded, "area": float(mask.sum()),
                "category_id": int(category), "image_id": image, "iscrowd": 0}

    for image, (true_boxes, true_classes, found_boxes, found_classes, scores) in enumerate(scenes):
        images.append({"id": image, "height": SIDE, "width": SIDE})
        for given in zip(true_boxes, masks_of(true_boxes), true_classes, strict=True):
            annotations.append(entry(*given, image) | {"id": len(annotations) + 1})
        for *given, score in zip(found_boxes, masks_of(found_boxes), found_classes, scores, strict=True):
            results.append(entry(*given, image) | {"id": len(results) + 1, "score": float(score)})
    categories = [{"id": category} for category in range(3)]
    with contextlib.redirect_stdout(io.StringIO()):
        truth, result = COCO(), COCO()
        truth.dataset = {"images": images, "annotations": annotations, "categories": categories}
        result.dataset = {"images": images, "annotations": results, "categories": categories}
        truth.createIndex()
        result.createIndex()
        evaluation = COCOeval(truth, result, kind)
        evaluation.params.maxDets = [limit]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, 0]         # (10, 101, classes); -1 without a truth
    return [part[part > -1].mean() for part in (precision, precision[0], precision[5])]


def ours(scenes, kind):
    found = []
    for true_boxes, true_classes, found_boxes, found_classes, scores in scenes:
        if kind == "bbox":
            overlaps = box_iou(found_boxes, true_boxes)
        else:
            overlaps = mask_iou(masks_of(found_boxes), masks_of(true_boxes))
        found.append(Found(overlaps, scores, found_classes, true_classes))
    return found


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(8))
def test_it_is_that_of_pycocotools(seed, kind):
    scenes = list(scene(seed, classes=1 + seed % 3, crowd=150 * (seed % 2)))
    expected = of_pycocotools(scenes, kind)
    assert 0.01 < expected[0] < expected[1] < 0.95
    measured = list(average_precision(ours(scenes, kind)).values())
    np.testing.assert_allclose(measured, expected, rtol=0, atol=1e-12)


def test_more_than_100_detections_of_an_image_all_count():
    """The only true one comes after 120 false ones: with COCO's limit it is not seen."""
    true, false = torch.tensor([[0.0, 0, 4, 4]]).double(), torch.tensor([[9.0, 9, 12, 12]]).double()
    found = torch.cat([false.expand(120, 4), true])
    scenes = [(true, [0], found, np.zeros(121, int), np.linspace(1, 0, 121))]
    assert of_pycocotools(scenes, "bbox", limit=100)[0] == 0
    assert average_precision(ours(scenes, "bbox"))["AP"] == pytest.approx(1 / 121)


def test_of_two_truths_that_it_overlaps_alike_a_detection_takes_the_last():
    """So the first is left for the next detection, which overlaps no other."""
    truths = torch.tensor([[0.0, 0, 8, 4], [4.0, 0, 12, 4]]).double()
    found = torch.tensor([[2.0, 0, 10, 4], [0.0, 0, 8, 4]]).double()
    scenes = [(truths, [0, 0], found, [0, 0], [0.9, 0.8])]
    assert average_precision(ours(scenes, "bbox"))["AP50"] == of_pycocotools(scenes, "bbox")[1] == 1.0


def found_at(overlaps, scores):
    overlaps = np.array(overlaps, dtype=np.float64)
    return Found(overlaps, scores, np.zeros(len(overlaps), int), np.zeros(overlaps.shape[1], int))


def test_half_of_two_objects_found():
    """Recall 0 to 0.5 are the first 51 of 101 points."""
    score = average_precision([found_at([[1.0, 0.0], [0.0, 0.3]], [0.9, 0.8])])
    assert list(score.values()) == pytest.approx([51 / 101] * 3)


def test_an_overlap_on_a_threshold_counts():
    score = average_precision([found_at([[0.75]], [0.5])])
    assert score["AP50"] == score["AP75"] == 1.0 and score["AP"] == pytest.approx(0.6)


def test_a_truth_is_found_once_and_the_better_score_has_it():
    assert match(np.array([[0.6], [0.9]]))[:, 0].sum() == 3         # 0.5, 0.55, 0.6
    assert match(np.array([[0.6], [0.9]]))[0].tolist() == [True, False]
    assert match(np.array([[0.6], [0.9]]))[5].tolist() == [False, True]


def test_the_precision_at_a_recall_is_the_best_from_there_on():
    """A false detection first: precision 0, then 1/2, then 2/3, which holds from recall 0 on."""
    found = found_at([[0, 0], [1, 0], [0, 1]], [0.9, 0.8, 0.7])
    assert (precision_at_recalls([found], 0) == 2 / 3).all()


def test_the_order_of_images_with_equal_scores_is_theirs():
    right, wrong = found_at([[1.0]], [0.5]), found_at([[0.0]], [0.5])
    assert average_precision([right, wrong])["AP"] > average_precision([wrong, right])["AP"]


def test_a_class_without_an_object_does_not_count():
    found = Found(np.ones((2, 1)), [0.9, 0.8], [0, 7], [0])
    assert average_precision([found]) == {"AP": 1.0, "AP50": 1.0, "AP75": 1.0}
    with pytest.raises(ValueError, match="no image holds an object of class 7"):
        precision_at_recalls([found], 7)


@pytest.mark.parametrize("given, message", [
    (dict(overlaps=np.ones((1, 2))), "overlaps must be"),
    (dict(scores=[0.5, 0.5]), "overlaps must be"),
    (dict(classes=[0, 0]), "a score and a class for each"),
    (dict(overlaps=np.ones((1, 1), np.float32)), "must be float64, not float32"),
    (dict(scores=[np.nan]), "scores must be finite"),
    (dict(overlaps=np.full((1, 1), np.nan)), "must lie in 0 to 1"),
    (dict(overlaps=np.full((1, 1), 1.1)), "must lie in 0 to 1"),
])
def test_wrong_input_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Found(**{"overlaps": np.ones((1, 1)), "scores": [0.5], "classes": [0], "true_classes": [0]} | given)


def test_without_any_object_there_is_no_average_precision():
    with pytest.raises(ValueError, match="no image holds an object"):
        average_precision([])
