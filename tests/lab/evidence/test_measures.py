"""What is measured of a run."""

import math

import pytest
from tiny_suites import record

from mrla_minimal.lab.evidence.measures import MEASURES


def read(name, metrics, **config):
    return MEASURES[name].of(record("plain", 0, 0.5, metrics=metrics, config=config))


def test_the_test_loss_is_the_last_epochs():
    assert read("test_loss", [{"epoch": 1, "test_loss": 2.0}, {"epoch": 2, "test_loss": 1.5}]) == 1.5
    assert read("test_loss", [{"epoch": 1}]) is None and read("test_loss", []) is None
    assert MEASURES["test_loss"].of(record("plain", 0, 0.5)) is None       # without any metrics


def test_the_first_epoch_counts_only_if_it_is_whole():
    one, two = {"epoch": 1, "train_loss": 2.0}, {"epoch": 2, "train_loss": 1.0}
    assert read("first_epoch_loss", [one, two]) == 2.0
    assert read("first_epoch_loss", [one], steps=None) == 2.0 == read("first_epoch_loss", [one])
    assert read("first_epoch_loss", [one, two], steps=500) == 2.0
    assert read("first_epoch_loss", [one], steps=300) is None              # nobody knows
    assert read("first_epoch_loss", [one, two], trunk="uniform") is None   # all branches of a trunk share it
    assert read("first_epoch_loss", [two]) is None and read("first_epoch_loss", []) is None


def test_a_number_that_is_not_finite_is_no_result():
    for wrong in (math.nan, math.inf):
        with pytest.raises(ValueError, match="the test loss of .* plain, seed 0 is .* no result"):
            read("test_loss", [{"epoch": 1, "test_loss": wrong}])


def test_differences_are_printed_in_points_and_in_nat():
    assert MEASURES["test_accuracy"].difference(-0.0123) == "-1.23"
    assert MEASURES["first_epoch_loss"].difference(0.0567) == "+0.057"
    assert MEASURES["test_accuracy"].ends((-0.0123, 0.5)) == "-1.23 to +50.00"
    assert MEASURES["test_accuracy"].ends(None) == ""
