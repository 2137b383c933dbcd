"""The words for a contrast."""

import pytest

from mrla_minimal.lab.evidence.readings import read_interval

SIDES = ("a above b", "b above a")


@pytest.mark.parametrize(("interval", "narrow", "adjusted", "words"), [
    ((0.1, 0.9), (0.2, 0.8), 0.01, "a above b"),
    ((-0.9, -0.1), (-0.8, -0.2), 0.01, "b above a"),
    ((0.6, 1.2), (0.7, 1.1), 0.01, "a above b by more than 0.5 points"),
    ((-1.2, -0.6), (-1.1, -0.7), 0.01, "b above a by more than 0.5 points"),
    ((0.1, 0.55), (0.15, 0.45), 0.01, "a above b, by less than 0.5 points"),
    ((0.1, 0.9), (0.2, 0.8), 0.05, "undecided after Holm"),
    ((-0.1, 0.55), (-0.05, 0.49), 0.2, "within 0.5 points: as good as nothing"),
    ((-0.1, 0.55), (-0.05, 0.5), 0.2, "undecided"),
    ((-0.55, 0.1), (-0.5, 0.05), 0.2, "undecided"),
    ((-0.9, 0.9), (-0.8, 0.8), 0.9, "undecided"),
    ((0.01, 0.4), (0.05, 0.35), 0.08, "within 0.5 points: as good as nothing")])
def test_an_interval_is_read_against_zero_and_against_the_margin(interval, narrow, adjusted, words):
    assert read_interval(interval, narrow, adjusted, 0.5, SIDES, "points") == words


def test_without_a_margin_nothing_is_called_nothing():
    assert read_interval((-0.01, 0.01), (-0.005, 0.005), 0.9, None, SIDES, "nat") == "undecided"
    assert read_interval((0.6, 1.2), (0.7, 1.1), 0.01, None, SIDES, "nat") == "a above b"
