"""The checkers of notebook 14: plausible mistakes are named."""

import math

import pytest
import torch
from notebook_answers import assert_wrong
from torch.nn import functional as F

from mrla_minimal.course.checks.relatives import check_one_number, check_reader, check_running_mean


def reader(query=lambda x, matrix: x @ matrix, key=lambda values: F.rms_norm(values, values.shape[-1:]),
           summed=lambda values: values, dim=1, scale=1.0):
    def answer(x, values, matrix):
        logits = scale * (key(values) * query(x, matrix)[:, None]).sum(dim=-1)
        return (logits.softmax(dim=dim)[:, :, None] * summed(values)).sum(dim=1)

    return answer


def test_a_reader_that_asks_passes():
    assert check_reader.judge(reader()) == ("passed", "passed")


@pytest.mark.parametrize(("answer", "words"), [
    (lambda x, values, matrix: values.mean(dim=1), "plain mean"),
    (reader(query=lambda x, matrix: (x @ matrix).mean(dim=0).expand(len(x), -1)), "its own x"),
    (reader(key=lambda values: values), "RMSNorm(v)"),
    (reader(key=lambda values: F.normalize(values, dim=-1)), "*mean* square"),
    (reader(summed=lambda values: F.rms_norm(values, values.shape[-1:])), "for the keys alone"),
    (reader(dim=0), "over the batch"),
    (reader(scale=1 / math.sqrt(3)), "no 1 / sqrt(d)"),
    (reader(scale=-1.0), "it is not the values"),
    (lambda x, values, matrix: x @ matrix * float("nan"), "NaN"),
    (lambda x, values, matrix: values, "shape"),
    (lambda x, values, matrix: matrix @ x, "your code raises"),
])
def test_readers_that_do_not_ask_are_named(answer, words):
    assert_wrong(check_reader, answer, words)


def test_the_one_number_passes():
    assert check_one_number.judge(lambda query, direction: query @ direction / 6**0.5) == ("passed", "passed")


@pytest.mark.parametrize(("answer", "words"), [
    (lambda query, direction: query @ direction, "scale is missing"),
    (lambda query, direction: query @ direction / 6, "not by d"),
    (lambda query, direction: query.norm(dim=1) / 6**0.5, "length of the query"),
    (lambda query, direction: F.normalize(query, dim=1) @ direction / 6**0.5, "louder"),
    (lambda query, direction: (query @ direction).abs() / 6**0.5, "keep the sign"),
    (lambda query, direction: query.sum(dim=1), "it is not the number"),
    (lambda query, direction: query * direction, "shape"),
])
def test_numbers_that_are_not_it_are_named(answer, words):
    assert_wrong(check_one_number, answer, words)


def right(mean, total, x, share):
    new = total + share
    return mean + (share / new)[:, None] * (x - mean), new


def test_a_running_mean_passes():
    assert check_running_mean.judge(right) == ("passed", "passed")


def in_place(mean, total, x, share):
    total += share
    return mean + (share / total)[:, None] * (x - mean), total


COUNT = {}


def plain(mean, total, x, share):
    COUNT["t"] = COUNT.get("t", 0) + 1 if total.any() else 1
    return mean + (x - mean) / COUNT["t"], total + share


@pytest.mark.parametrize(("answer", "words"), [
    (lambda mean, total, x, share: (mean + share[:, None] * x, total + share), "you add"),
    (plain, "plain mean"),
    (lambda mean, total, x, share: (x, total + share), "last layer alone"),
    (lambda mean, total, x, share: (right(mean, total, x, share)[0], total + 1), "not by 1"),
    (lambda mean, total, x, share: (right(mean, total, x, share)[0], share), "not the last one"),
    (in_place, "in place"),
    (lambda mean, total, x, share: (right(mean, total, x, share)[0] * float("nan"), total + share), "NaN"),
    (lambda mean, total, x, share: right(mean, total, x, share)[0], "return two things"),
    (lambda mean, total, x, share: (torch.zeros_like(x), total + share), "weighted by their shares"),
])
def test_means_that_run_wrong_are_named(answer, words):
    assert_wrong(check_running_mean, answer, words)
