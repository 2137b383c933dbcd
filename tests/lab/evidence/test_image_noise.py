"""The noise of images: what it is by hand where that can be worked out, and why pairing takes most of it."""

import numpy as np
import pytest

from mrla_minimal.lab.evidence.image_noise import drawn_fields, image_noise
from mrla_minimal.lab.fields import ByField


def net(found, misses=0, fields=12):
    """`found` of the 10 objects of each field are found, at all thresholds; so many more detections miss."""
    field = np.repeat(np.arange(fields), np.broadcast_to(found, fields))
    hits = np.ones((10, len(field)), bool)
    hits[:, :misses] = False
    return ByField(field, hits, np.full(fields, 10))


UNEVEN = np.array([0, 10, 3, 9, 1, 8, 2, 10, 5, 0, 7, 4])


def test_fields_that_are_all_alike_have_no_noise():
    noise = image_noise(net(6), net(8), draws=20)
    assert noise.paired == pytest.approx(0, abs=1e-12) and noise.unpaired == pytest.approx(0, abs=1e-12)
    assert noise.interval() == pytest.approx((20 / 101, 20 / 101), abs=0.02)


def test_the_noise_of_a_mean_over_fields():
    """Without misses AP is the share of objects that are found, here the mean over fields: its bootstrap has
    the standard deviation of the fields over the root of their number."""
    noise = image_noise(net(UNEVEN), net(UNEVEN), draws=400)
    expected = (UNEVEN / 10).std() / np.sqrt(len(UNEVEN))
    assert noise.first.std() == pytest.approx(expected, rel=0.15)
    assert noise.unpaired == pytest.approx(np.sqrt(2) * noise.first.std(ddof=1))


def test_pairing_takes_what_two_nets_share():
    noise = image_noise(net(UNEVEN), net(np.minimum(UNEVEN + 1, 10)), draws=200)
    assert noise.paired < noise.unpaired / 5
    low, high = noise.interval()
    assert 0 < low < high < 0.11 and image_noise(net(UNEVEN), net(UNEVEN)).interval() == (0.0, 0.0)


def test_a_seed_draws_the_same_fields():
    one, again, other = (image_noise(net(UNEVEN), net(5), draws=30, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.first, again.first) and not np.array_equal(one.first, other.first)


def test_fields_without_objects_are_no_obstacle():
    few = ByField(np.array([0, 0]), np.ones((10, 2), bool), np.array([2, 0, 0, 0]))
    assert image_noise(few, few, draws=50).first.tolist() == [1.0] * 50


def test_what_cannot_be_paired_is_refused():
    with pytest.raises(ValueError, match="different fields"):
        image_noise(net(5), net(5, fields=11))
    with pytest.raises(ValueError, match="draws must be at least 2, not 1"):
        image_noise(net(5), net(5), draws=1)
    empty = ByField(np.array([0]), np.zeros((10, 1), bool), np.array([0, 0]))
    with pytest.raises(ValueError, match="hold no object"):         # and does not draw forever
        image_noise(empty, empty, draws=2)


def test_draws_are_numpys_and_one_without_objects_is_drawn_again():
    """Committed numbers rest on these draws."""
    generator, objects, expected = np.random.default_rng(3), np.array([2, 0, 0, 1]), []
    while len(expected) < 40:
        counts = np.bincount(generator.integers(4, size=4), minlength=4)
        expected += [counts.tolist()] if counts[0] or counts[3] else []
    assert [counts.tolist() for counts in drawn_fields(objects, 40, seed=3)] == expected


def test_of_several_classes_it_is_the_mean_of_those_that_were_drawn():
    """One class is in all fields and is found, the other is in the first field alone and is not."""
    everywhere, rare = net(10), ByField(np.array([], int), np.zeros((10, 0), bool), np.eye(12, dtype=int)[0])
    noise = image_noise([everywhere, rare], [everywhere, rare], draws=50)
    drawn = [counts[0] > 0 for counts in drawn_fields(everywhere.truths + rare.truths, 50)]
    assert noise.first.tolist() == [0.5 if first else 1.0 for first in drawn] and any(drawn)
    assert not all(drawn) and noise.paired == 0.0
    with pytest.raises(ValueError, match="different fields"):
        image_noise([everywhere, rare], everywhere, draws=50)
