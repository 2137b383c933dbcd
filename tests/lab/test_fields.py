"""What a record keeps of every field: the average precision of any draw of fields, out of a line of text."""

import json

import numpy as np
import pytest

from mrla_minimal.lab.fields import by_field, from_text, to_text
from mrla_minimal.lab.precision import Found, average_precision

FIELDS = ("b", "a", "b", "c", "a", "d")


def found(seed=0):
    """Six images of the fields a to d, with ties of scores; one without truths, one without detections."""
    rng, images = np.random.default_rng(seed), []
    for truths, detections in ((4, 6), (3, 5), (0, 2), (5, 0), (2, 7), (1, 1)):
        images.append(Found(rng.choice([0.0, 0.5, 0.6, 0.77, 0.9], (detections, truths)),
                            rng.integers(0, 6, detections) / 6, np.zeros(detections, int),
                            np.zeros(truths, int)))
    return images


def drawn(images, counts):
    """The images, those of each field as often as it was drawn."""
    return [image for image, name in zip(images, FIELDS, strict=True)
            for _ in range(counts["abcd".index(name)])]


def test_it_is_the_average_precision_of_the_images():
    kept = by_field(found(), FIELDS)
    assert kept.average_precision() == average_precision(found()) == kept.average_precision(np.ones(4))
    assert kept.truths.tolist() == [5, 4, 5, 1]


@pytest.mark.parametrize("counts", [(0, 1, 1, 0), (1, 0, 1, 1), (0, 1, 0, 0)])
def test_fields_that_are_left_out(counts):
    kept, expected = by_field(found(), FIELDS), average_precision(drawn(found(), counts))
    assert kept.average_precision(counts) == pytest.approx(expected, abs=1e-12)


def test_a_field_drawn_twice_counts_twice():
    """Of the two copies of a detection the first comes a little earlier: an order without a meaning."""
    counts = (2, 1, 0, 3)
    kept, expected = by_field(found(), FIELDS), average_precision(drawn(found(), counts))
    assert kept.average_precision(counts) == pytest.approx(expected, abs=0.03)
    assert kept.average_precision(counts) != kept.average_precision()


def test_the_text_holds_it_all_and_is_small():
    kept = by_field(found(), FIELDS)
    again = from_text(to_text(kept))
    for name in ("field", "hits", "truths"):
        assert np.array_equal(getattr(again, name), getattr(kept, name))
    assert len(to_text(kept)) < 200 and again.average_precision() == kept.average_precision()


def test_rounded_scores_are_taken_field_by_field():
    kept = by_field(found(), FIELDS, 3)
    rounded = [np.round(3 * image.scores) for image in found()]
    for level in range(3):
        first = sum(int((scores > level).sum()) for scores in rounded)
        some = kept.field[first : first + sum(int((scores == level).sum()) for scores in rounded)]
        assert len(some) and (np.diff(some) >= 0).all()
    assert np.array_equal(kept.hits.sum(1), by_field(found(), FIELDS).hits.sum(1))
    assert kept.average_precision() == pytest.approx(by_field(found(), FIELDS).average_precision(), abs=0.1)


@pytest.mark.parametrize("wrong", [
    "", "[]", "7", '{"truths": [1]}', '{"truths": [1], "detections": "AAAA"}',
    json.dumps({**json.loads(to_text(by_field(found(), FIELDS))), "truths": [5]}),
    json.dumps({**json.loads(to_text(by_field(found(), FIELDS))), "truths": [5, 4, 5, -1]}),
])
def test_another_text_is_refused(wrong):
    with pytest.raises(ValueError, match="no text of what was found"):
        from_text(wrong)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="one name for each of 6 images, not 5"):
        by_field(found(), FIELDS[:5])
    with pytest.raises(ValueError, match="several"):
        by_field([Found(np.zeros((1, 1)), np.ones(1), np.ones(1, int), np.zeros(1, int))], "a")
    with pytest.raises(ValueError, match="hold no object"):
        by_field(found(), FIELDS).average_precision((0, 0, 0, 0))
