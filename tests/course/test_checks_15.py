"""The checkers of notebook 15: plausible mistakes are named."""

import pytest
import torch
from notebook_answers import assert_wrong

from mrla_minimal.course.checks.rewriting import check_mixes_images, check_open_gates, check_versions
from mrla_minimal.family.dynamic import DLABase


def mixes(images=None, layers=slice(None), together=lambda outputs: outputs):
    """A test that looks at some of the images and layers only."""
    def outputs(stack, maps):
        memory, found = None, []
        for layer, x in zip(stack, maps, strict=True):
            output, memory = layer(x, memory)
            found.append(output)
        return torch.stack(found)[layers]

    def answer(stack, maps):
        whole = together(outputs(stack, maps))
        for image in range(len(maps[0])) if images is None else images:
            alone = outputs(stack, [x[image : image + 1] for x in maps])
            if (alone - whole[:, image : image + 1]).abs().max() > 1e-9:
                return True
        return False

    return answer


def test_a_test_of_all_images_and_layers_passes():
    assert check_mixes_images.judge(mixes()) == ("passed", "passed")


@pytest.mark.parametrize(("answer", "words"), [
    (mixes(images=[0]), "DLABase with the first image's state, as released mixes"),
    (mixes(layers=slice(1)), "as released mixes"),
    (mixes(images=[3]), "image 2 see image 4"),
    (mixes(layers=slice(2)), "image 2 see image 4"),
    (mixes(layers=slice(-1, None)), "first layer lets image 1 see image 3"),
    (mixes(together=lambda outputs: outputs + 1), "MRLABase does not mix"),
    (lambda layers, maps: True, "MRLABase does not mix"),
    (lambda layers, maps: False, "as released mixes"),
    (lambda layers, maps: "yes", "True or False"),
    (lambda layers: True, "your code raises"),
])
def test_tests_that_miss_a_fault_are_named(answer, words):
    assert_wrong(check_mixes_images, answer, words)


@pytest.mark.parametrize(("answer", "words"), [
    (lambda layers: (layers * (layers + 1) // 2, layers * (layers + 1) // 2), "a layer's own map"),
    (lambda layers: (layers - 1, layers), "the last layer alone"),
    (lambda layers: (layers * (layers - 1) // 2,) * 2, "first written"),
    (lambda layers: (layers * (layers - 1) // 2, layers**2), "should be 15, not 25"),
    (lambda layers: (float("nan"), 1), "should be 0, not nan"),
    (lambda layers: layers, "return two things"),
    (lambda layers: ("none", 1), "should be a number"),
])
def test_wrong_counts_are_named(answer, words):
    assert_wrong(check_versions, answer, words)


def opened(step):
    class OpenDLA(DLABase):
        def rewritten(self, key, value, state):
            return step(key, value, *super().rewritten(key, value, state))

    return OpenDLA


class OpensTheContext(DLABase):
    def rewritten(self, key, value, state):
        key, value = super().rewritten(key, value, state)
        return 2 * key, 2 * value

    def refresh(self, x, memory):
        (h, c), cache = super().refresh(x, memory)
        return (2 * h, c), cache and [(key, value + 1) for key, value in cache]


@pytest.mark.parametrize(("answer", "words"), [
    (opened(lambda key, value, *new: new), "the new key: the gates still start at one half"),
    (opened(lambda key, value, *new: (2 * new[0], new[1])), "the new value: the gates still"),
    (opened(lambda key, value, *new: (key, value)), "nothing is rewritten"),
    (opened(lambda key, value, *new: (4 * new[0], 4 * new[1])), "not 4 sigmoid"),
    (opened(lambda key, value, *new: (new[0] + 0.5 * key, new[1] + 0.5 * value)), "times 2 sigmoid"),
    (opened(lambda key, value, *new: (new[0].flatten(1), new[1])), "a tensor of shape"),
    (opened(lambda key, value, *new: (2 * new[0] * float("nan"), new[1])), "times 2 sigmoid"),
    (opened(lambda key, value, *new: 2 * new[0]), "two things"),
    (OpensTheContext, "should be MRLABase"),
    (torch.nn.Identity, "should be a DLABase"),
])
def test_gates_that_are_not_open_are_named(answer, words):
    assert_wrong(check_open_gates, answer, words)
