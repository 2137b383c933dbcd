"""The checkers of notebook 12: plausible mistakes are named."""

import pytest
import torch
from notebook_answers import assert_wrong
from torch import nn

from mrla_minimal import cifar_vit
from mrla_minimal.course.checks.transformer import check_entries, check_fading, check_mended


def fading(step):
    """A class whose forward is step(value, memory) -> (output, memory)."""
    class Layer(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.value = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)

        def forward(self, x, memory=None):
            return step(self.value(x), memory)

    return Layer


def both(output):
    return output, output


def hidden(value, memory, kept=None):
    kept = HIDDEN.get(value.shape)
    HIDDEN[value.shape] = value.detach()
    return both(value if kept is None else value + kept / 2)


HIDDEN = {}


class NoValue(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x, memory=None):
        return both(self.convolution(x) if memory is None else self.convolution(x) + memory / 2)


@pytest.mark.parametrize(("answer", "words"), [
    (fading(lambda value, memory: both(value)), "v alone"),
    (fading(lambda value, memory: (value if memory is None else value + memory / 2, value)),
     "the last value"),
    (fading(lambda value, memory: both(value if memory is None else value + memory)), "should be halved"),
    (fading(lambda value, memory: both((value if memory is None else value + memory / 2) / 2)), "layer 1"),
    (fading(lambda value, memory: both(value if memory is None else value + memory / 3)), "layer 1 is right"),
    (fading(lambda value, memory: value), "two things"),
    (fading(lambda value, memory: both(value.mean(dim=1))), "shape"),
    (fading(lambda value, memory: both(value * float("nan"))), "NaN"),
    (fading(lambda value, memory: both(value + memory / 2)), "your code raises"),
    (fading(hidden), "layer 1"),
    (NoValue, "self.value"),
])
def test_wrong_memories_are_named(answer, words):
    assert_wrong(check_fading, answer, words)


def mended(read="mean", block=-1, size=lambda gradients: max(g.abs().max().item() for g in gradients),
           attention=lambda name: name, depth=3):
    def answer(images, name):
        model = cifar_vit(depth, dim=16, heads=2, patch=8, layer_attention=attention(name), read=read)
        model(images).square().sum().backward()
        layers = model.stages[0][block].layer_attention
        return model, size([p.grad for p in layers.parameters()] if layers is not None else [torch.ones(1)])

    return answer


def test_a_mended_net_passes():
    assert check_mended.judge(mended()) == ("passed", "passed")


@pytest.mark.parametrize(("answer", "words"), [
    (mended(read="cls"), "still dead"),
    (mended(block=0), "first block's"),
    (mended(size=lambda gradients: 0.0), "the largest absolute gradient in its last block's attention is"),
    (mended(size=lambda gradients: sum(g.abs().sum().item() for g in gradients)), "the largest absolute"),
    (mended(size=lambda gradients: float("nan")), "one number, not nan"),
    (mended(size=lambda gradients: gradients), "as one number"),
    (mended(attention=lambda name: None), "no layer attention"),
    (mended(depth=1), "two blocks"),
    (lambda images, name: mended()(images, name)[0], "return two things"),
    (lambda images, name: (nn.Linear(2, 2), 1.0), "cifar_vit"),
])
def test_nets_that_are_not_mended_are_named(answer, words):
    assert_wrong(check_mended, answer, words)


@pytest.mark.parametrize(("answer", "words"), [
    (lambda layers, every: list(range(1, layers + 1)), "go on growing"),
    (lambda layers, every: [t % (every or layers) for t in range(layers)], "own entry too"),
    (lambda layers, every: [1, *((t - 1) % (every or layers) + 2 for t in range(1, layers))],
     "own entry is alone"),
    (lambda layers, every: sum(range(layers)), "a number for each block"),
    (lambda layers, every: [1] * (layers - 1), "one a block"),
    (lambda layers, every: [t % every + 1 for t in range(layers)], "your code raises"),
    (lambda layers, every: [min(t + 1, every or layers) for t in range(layers)], "it should be"),
    (lambda layers, every: [float("nan")] * layers, "it should be"),
])
def test_wrong_counts_are_named(answer, words):
    assert_wrong(check_entries, answer, words)
