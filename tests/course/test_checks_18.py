"""The checkers of notebook 18: plausible mistakes are named."""

import pytest
import torch
from notebook_answers import assert_wrong

from mrla_minimal.course.checks.words_and_layers import check_joint, check_shortcuts, check_without_question


def mixed(weights_of):
    return lambda layers, logits: torch.einsum("l,blnd->bnd", weights_of(logits), layers)


@pytest.mark.parametrize(("answer", "words"), [
    (lambda layers, logits: layers.mean(dim=1), "the plain mean"),
    (mixed(lambda logits: logits), "take the softmax"),
    (mixed(lambda logits: logits.exp()), "half a softmax"),
    (mixed(lambda logits: logits.softmax(0).flip(0)), "the last one's weight"),
    (mixed(lambda logits: logits.softmax(0) / 3), "divided by their number"),
    (lambda layers, logits: layers[:, -1], "softmax(logits) times"),
    (lambda layers, logits: layers, "shape of your tokens"),
    (lambda layers, logits: layers.mul_(2).mean(1), "in place"),
    (mixed(lambda logits: logits.softmax(0) * float("nan")), "NaN"),
])
def test_wrong_weights_without_a_question_are_named(answer, words):
    assert_wrong(check_without_question, answer, words)


def joint(softmax, factor=15, one=1.0, root=2.0):
    def answer(question, layers):
        logits = torch.einsum("bd,blnd->bln", question, layers) / root
        return layers * (one + factor * softmax(logits))[..., None]
    return answer


def together(logits):
    return logits.flatten(1).softmax(dim=1).view_as(logits)


@pytest.mark.parametrize(("answer", "words"), [
    (joint(lambda logits: logits.softmax(2)), "over each layer's patches"),
    (joint(lambda logits: logits.softmax(1)), "over the layers at each patch"),
    (joint(lambda logits: logits.flatten().softmax(0).view_as(logits)), "over the batch too"),
    (joint(together, factor=1), "the factor L N is missing"),
    (joint(together, factor=3), "and is L"),
    (joint(together, factor=5), "and is N"),
    (joint(together, one=0.0), "what gets no weight is lost"),
    (joint(together, root=1.0), "the root of dim"),
    (lambda question, layers: layers, "times (1 + L N A)"),
    (lambda question, layers: layers.flatten(1, 2), "shape of your layers"),
    (lambda question, layers: layers @ question, "your code raises"),
])
def test_wrong_weights_over_layers_and_patches_are_named(answer, words):
    assert_wrong(check_joint, answer, words)


def collected(add, first=True):
    def answer(x, blocks):
        found = [x]
        for block in blocks:
            found.append(add(x, found[-1], block(found[-1])))
        return found if first else found[1:]
    return answer


def adds_in_place(x, blocks):
    found = [x]
    for block in blocks:
        x += block(x)
        found.append(x)
    return found


@pytest.mark.parametrize(("answer", "words"), [
    (collected(lambda x, before, new: new), "the plain encoder"),
    (collected(lambda x, before, new: x + new), "adds to the first map"),
    (collected(lambda x, before, new: (before + new) / 2), "do not take the mean"),
    (collected(lambda x, before, new: before + new, first=False), "begin with x itself"),
    (lambda x, blocks: [x, *(x + block(x) for block in blocks)], "not the first one"),
    (lambda x, blocks: [x, x], "should hold 4 maps, not 2"),
    (lambda x, blocks: x, "a list of maps"),
    (collected(lambda x, before, new: before - new), "the one before plus"),
    (adds_in_place, "in place"),
])
def test_wrong_shortcuts_are_named(answer, words):
    assert_wrong(check_shortcuts, answer, words)


def test_right_answers_pass():
    right = {check_without_question: mixed(lambda logits: logits.softmax(0)), check_joint: joint(together),
             check_shortcuts: collected(lambda x, before, new: before + new)}
    for check, answer in right.items():
        assert check.judge(answer) == ("passed", "passed")
        assert check.judge(lambda *given: None)[0] == "not attempted"
