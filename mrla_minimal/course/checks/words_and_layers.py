"""Checkers of notebook 18: weights without a question, weights over layers and patches, layers that add."""

import torch
from torch import Tensor, nn

from mrla_minimal.course.checks.common import Wrong, blame, checker, numbers, run, tensor

BATCH, LAYERS, PATCHES, WIDTH = 2, 3, 5, 4


@checker("exercise 1")
def check_without_question(answer: object) -> None:
    """answer(layers, logits): layers (batch, L, N, dim), logits (L,) -> tokens (batch, N, dim)."""
    layers, logits = numbers(BATCH, LAYERS, PATCHES, WIDTH), 2 * numbers(LAYERS, seed=1)
    tokens = tensor(run(answer, layers, logits), (BATCH, PATCHES, WIDTH), "tokens")

    def mixed(weights: Tensor) -> Tensor:
        return torch.einsum("l,blnd->bnd", weights, layers)

    weights = logits.softmax(dim=0)
    blame(tokens, mixed(weights), {
        "that is the plain mean of the layers: the logits are not used": layers.mean(dim=1),
        "the weights should sum to 1: take the softmax of the logits": mixed(logits),
        "the weights should sum to 1: exp alone is half a softmax": mixed(logits.exp()),
        "the first layer got the last one's weight": mixed(weights.flip(0)),
        "sum over the layers; your tokens are divided by their number as well": mixed(weights) / LAYERS,
    }, "each token should be the sum over the layers of softmax(logits) times the layer's patch")


@checker("exercise 2")
def check_joint(answer: object) -> None:
    """answer(question, layers): question (batch, dim), layers (batch, L, N, dim) -> layers (1 + L N A)."""
    question, layers = 2 * numbers(BATCH, WIDTH, seed=2), numbers(BATCH, LAYERS, PATCHES, WIDTH)
    given = tensor(run(answer, question, layers), layers.shape, "layers")
    dots = torch.einsum("bd,blnd->bln", question, layers)
    logits = dots / WIDTH**0.5
    many = LAYERS * PATCHES

    def scaled(weights: Tensor, factor: float = many, one: float = 1.0) -> Tensor:
        return layers * (one + factor * weights)[..., None]

    together = logits.flatten(1).softmax(dim=1).view_as(logits)
    blame(given, scaled(together), {
        "softmax over layers and patches together: yours runs over each layer's patches": scaled(
            logits.softmax(dim=2)),
        "softmax over layers and patches together: yours runs over the layers at each patch": scaled(
            logits.softmax(dim=1)),
        "softmax over layers and patches of one sample: yours runs over the batch too": scaled(
            logits.flatten().softmax(dim=0).view_as(logits)),
        "the factor L N is missing": scaled(together, 1.0),
        "the factor should be L N, and is L": scaled(together, LAYERS),
        "the factor should be L N, and is N": scaled(together, PATCHES),
        "the 1 is missing: what gets no weight is lost": scaled(together, one=0.0),
        "divide the logits by the root of dim": scaled(dots.flatten(1).softmax(dim=1).view_as(dots)),
        "the weights themselves came back; scale the layers by them": together[..., None].expand_as(layers),
    }, "it should be the layers times (1 + L N A)")


class _Block(nn.Module):
    """A layer of rows: a module, since a student's process can be handed a module, and no function."""

    def __init__(self, matrix: Tensor):
        super().__init__()
        self.register_buffer("matrix", matrix)

    def forward(self, row: Tensor) -> Tensor:
        return (row @ self.matrix).relu()


@checker("exercise 3")
def check_shortcuts(answer: object) -> None:
    """answer(x, blocks): the maps [x, x + block_1(x), ...], each the one before plus its block's output."""
    x, matrices = numbers(BATCH, WIDTH), numbers(3, WIDTH, WIDTH, seed=3)
    blocks = [_Block(matrix) for matrix in matrices]

    def layers(add, start=True) -> list[Tensor]:
        found = [x]
        for block in blocks:
            found.append(add(found[-1], block(found[-1])))
        return found if start else found[1:]

    given = run(answer, x, blocks)
    if not isinstance(given, (list, tuple)):
        raise Wrong(f"return a list of maps, not a {type(given).__name__}")
    right = layers(lambda before, new: before + new)
    if len(given) == len(blocks):
        raise Wrong("the list should begin with x itself: the stem's map is a layer too")
    if len(given) != len(right):
        raise Wrong(f"with 3 blocks the list should hold 4 maps, not {len(given)}")
    given = [tensor(each, x.shape, f"map number {place}") for place, each in enumerate(given, start=1)]
    blame(torch.stack(given), torch.stack(right), [
        (torch.stack(layers(lambda before, new: new)), "nothing is added: that is the plain encoder"),
        (torch.stack(layers(lambda before, new: x + new)), "each block adds to the first map; it should add "
                                                           "to the one before it"),
        (torch.stack([x, *(x + block(x) for block in blocks)]), "each block should see the map before it, "
                                                                "not the first one"),
        (torch.stack(layers(lambda before, new: (before + new) / 2)), "add, and do not take the mean"),
    ], "each map should be the one before plus its block's output")
