import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from mrla_minimal.lab.arguments import (
    LARGEST,
    below_one,
    boolean,
    integer,
    not_negative,
    one_of,
    or_none,
    positive,
    share,
    shown,
    text,
)

NO_NUMBERS = (True, np.bool_(True), None, "1", b"1", [1], 1j, torch.ones(1), math.nan, math.inf, -math.inf,
              np.float32("nan"), 10**400, object())


@pytest.mark.parametrize("check, allowed, refused", [
    (positive, (1, 0.5, np.float16(2), np.int8(3), Fraction(1, 4), 5e-324), (0, -0.0, -1, np.float64(-2))),
    (not_negative, (0, 0.5, 2**900), (-1e-300, -1)),
    (below_one, (0, 0.999, np.float32(0.5)), (1, 1.5, -0.1)),
    (share, (0, 1, 0.5), (1.0000001, -1e-9)),
])
def test_numbers_become_floats_and_what_is_outside_is_named(check, allowed, refused):
    for value in allowed:
        assert check("rate", value) == value and type(check("rate", value)) is float
    for value in (*refused, *NO_NUMBERS):
        with pytest.raises(ValueError, match="^rate must be a .*number.*, not .{1,70}$"):
            check("rate", value)


def test_integers_within_their_bounds():
    for value in (1, np.int64(1), np.uint8(255), LARGEST):
        assert integer("epochs", value) == value and type(integer("epochs", value)) is int
    for value in (0, -1, 1.0, np.float64(1), LARGEST + 1, *NO_NUMBERS):
        said = r"^epochs must be a positive integer, at most 2\d*, not .{,70}$"
        with pytest.raises(ValueError, match=said):
            integer("epochs", value)
    assert integer("seed", 0, least=0, most=3) == 0
    for value in (-1, 4):
        with pytest.raises(ValueError, match=f"^seed must be an integer from 0 to 3, not {value}$"):
            integer("seed", value, least=0, most=3)


def test_booleans_are_no_texts_and_no_numbers():
    assert boolean("amp", np.bool_(False)) is False and boolean("amp", True) is True
    for value in ("false", "True", 0, 1, None, [], torch.tensor(True)):
        with pytest.raises(ValueError, match="^amp must be True or False, not "):
            boolean("amp", value)


def test_texts(tmp_path):
    assert text("folder", tmp_path) == str(tmp_path) and type(text("name", np.str_("a"))) is str
    for value in ("", b"a", 3, None, ["a"]):
        with pytest.raises(ValueError, match="^name must be a text, not "):
            text("name", value)


def test_one_of_a_few():
    assert one_of("block", np.str_("basic"), ("basic", None)) == "basic"
    assert one_of("block", None, ("basic", None)) is None
    for value in ("Basic", 1, ["basic"], np.array(["basic", "basic"]), torch.ones(2), True):
        with pytest.raises(ValueError, match="^block must be one of 'basic', none, not "):
            one_of("block", value, ("basic", None))


def test_none_may_be_allowed():
    steps = or_none(integer)
    assert steps("steps", None) is None and steps("steps", np.int64(3)) == 3
    with pytest.raises(ValueError, match="^steps must be .*, at most 2147483647, or none, not 'not 3'$"):
        steps("steps", "not 3")


def test_what_was_given_is_shown_on_one_short_line():
    assert shown(np.int64(3)) == "3" and shown("a\nb") == r"'a\nb'"
    assert shown(torch.zeros(2, 3)) == "a tensor (2, 3) of torch.float32"
    assert shown(np.zeros((3, 3))).count("\n") == 0
    for large in ("x" * 1000, [0] * 1000, 10**400, 10**5000):
        assert len(shown(large)) < 80
