"""The checkers of notebook 17: plausible mistakes are named."""

import pytest
import torch
from notebook_answers import assert_wrong

from mrla_minimal.course.checks.sideways import check_gated_softmax, check_mix, check_offset_of


@pytest.mark.parametrize(("answer", "words"), [
    (lambda made, key: made[:, key : key + 2], "that is the released slice: key 1 shares a number"),
    (lambda made, key: made[:, 2 * key : 2 * key + 2].flip(1), "its row, then its column"),
    (lambda made, key: made[:, [key, 5 + key]], "the channels 0 and 1"),
    (lambda made, key: made[:, 2 * key : 2 * key + 1], "shape of your offset of key 0"),
    (lambda made, key: made[:, :2], "key 1 should have the channels 2 and 3"),
    (lambda made, key: made[:, 2 * key : 2 * key + 2] if key < 2 else made[:, [7, 6]], "are exchanged"),
    (lambda made, key: made[:, [key, 5 + key]] if key else made[:, :2], "all rows first"),
])
def test_a_wrong_slice_is_named(answer, words):
    assert_wrong(check_offset_of, answer, words)


def masked(logits, is_open, dim=1):
    return logits.masked_fill(~is_open, float("-inf")).softmax(dim=dim)


@pytest.mark.parametrize(("answer", "words"), [
    (lambda logits, is_open: (logits * is_open).softmax(dim=1), "exp(0) = 1"),
    (lambda logits, is_open: logits.softmax(dim=1) * is_open, "should sum to 1"),
    (lambda logits, is_open: logits.softmax(dim=1), "the gates are not used"),
    (lambda logits, is_open: masked(logits, ~is_open).nan_to_num(0), "the wrong way round"),
    (lambda logits, is_open: masked(logits, is_open, 3).nan_to_num(0), "over the image's width"),
    (lambda logits, is_open: logits.masked_fill(~is_open, -1e30).softmax(dim=1), "weights are even"),
    (masked, "where all keys are shut your weights are NaN"),
    (lambda logits, is_open: logits.softmax(dim=1) * float("nan"), "NaN"),
    (lambda logits, is_open: logits.softmax(dim=1)[:, 0], "shape of your weights"),
    (lambda logits, is_open: logits, "the softmax over the open keys"),
])
def test_wrong_gates_are_named(answer, words):
    assert_wrong(check_gated_softmax, answer, words)


def mixed(weigh):
    return lambda logits, read: (weigh(logits)[:, :, :, None] * read).sum(dim=(1, 2))


def together(logits):
    return logits.flatten(1, 2).softmax(dim=1).view_as(logits)


@pytest.mark.parametrize(("answer", "words"), [
    (mixed(lambda logits: logits.softmax(dim=-1)), "over the image's width"),
    (mixed(lambda logits: logits.softmax(dim=2)), "over the keys of each layer"),
    (mixed(lambda logits: logits.softmax(dim=1)), "over the layers, key by key"),
    (mixed(lambda logits: logits.softmax(dim=0)), "over the batch"),
    (mixed(lambda logits: logits), "take their softmax"),
    (mixed(lambda logits: together(logits) / 15), "sum to 1 already"),
    (lambda logits, read: read.mean(dim=(1, 2)), "the plain mean"),
    (lambda logits, read: read.sum(dim=(1, 2)), "weight times what was read"),
    (lambda logits, read: read, "shape of your output"),
])
def test_a_wrong_softmax_is_named(answer, words):
    assert_wrong(check_mix, answer, words)


def test_right_answers_pass():
    right = {check_offset_of: lambda made, key: made.unflatten(1, (-1, 2))[:, key],
             check_gated_softmax: lambda logits, is_open: masked(logits, is_open).nan_to_num(0.0),
             check_mix: lambda logits, read: torch.einsum("blkhw,blkchw->bchw", together(logits), read)}
    for check, answer in right.items():
        assert check.judge(answer) == ("passed", "passed")
        assert check.judge(lambda *given: None)[0] == "not attempted"
