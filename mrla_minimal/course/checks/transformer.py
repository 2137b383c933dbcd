"""Checkers of notebook 12: a memory that fades, the block that nothing teaches, an emptied cache."""

import torch

from mrla_minimal.course.checks.as_trained import check_transformer
from mrla_minimal.course.checks.common import (
    Wrong,
    blame,
    checker,
    close,
    numbers,
    outputs_and_values,
    pair,
    run,
)
from mrla_minimal.vit import VisionTransformer

CHANNELS, LAYERS, SIDE = 6, 4, 3


def _faded(values, share=0.5, carry=True):
    """O^t = v^t + share O^{t-1}; or, with carry False, share v^{t-1}."""
    outputs = [values[0]]
    for before, value in zip(values, values[1:], strict=False):
        outputs.append(value + share * (outputs[-1] if carry else before))
    return torch.stack(outputs)


@checker("exercise 1")
def check_fading(answer: object) -> None:
    """answer(channels) -> a module with O^t = v^t + O^{t-1} / 2, v^t its own depthwise `value`, O^0 = 0."""
    maps = numbers(LAYERS, 2, CHANNELS, SIDE, SIDE).float()
    given, values = outputs_and_values(answer, maps)
    wanted = _faded(values)
    blame(given, wanted, [
        (values, "your output is v alone: nothing of the memory is in it"),
        (_faded(values, carry=False), "you carry the last value; carry the last output, which holds all "
                                      "that came before"),
        (_faded(values, share=1.0), "what is carried should be halved, or it never fades"),
        (wanted / 2, "halve what is carried, not the new value"),
    ], "layer 1 is right, and a later one is not: O^t = v^t + O^{t-1} / 2" if close(given[0], wanted[0]) else
        "layer 1's output should be v^1: there is nothing to carry yet")
    check_transformer(answer)


def _largest_gradient(model, images, t):
    model.zero_grad()
    model(images).square().sum().backward()
    gradients = [p.grad for p in model.stages[0][t].layer_attention.parameters()]
    return max(0.0 if gradient is None else gradient.abs().max().item() for gradient in gradients)


@checker("exercise 2")
def check_mended(answer: object) -> None:
    """answer(images, name) -> (a cifar_vit with that attention whose last block learns, its gradient).

    The gradient is the largest absolute one of the last block's attention, for the loss
    model(images).square().sum(). images (batch, 3, 32, 32).
    """
    images = numbers(2, 3, 32, 32).float()
    for name in ("mrla-light", "uniform"):
        model, gradient = pair(run(answer, images, name), "the model", "the gradient")
        if not isinstance(model, VisionTransformer):
            raise Wrong(f"first return the model that cifar_vit makes, not a {type(model).__name__}")
        if any(block.layer_attention is None for block in model.stages[0]):
            raise Wrong(f"the blocks of your model have no layer attention; asked for was {name!r}")
        if len(model.stages[0]) < 2:
            raise Wrong("make a model of at least two blocks")
        if isinstance(gradient, torch.Tensor) and gradient.numel() == 1:
            gradient = gradient.item()
        if not isinstance(gradient, float) or gradient != gradient:
            raise Wrong(f"then return the gradient's size as one number, not {gradient!r}")
        wanted = _largest_gradient(model, images, -1)
        if wanted == 0.0:
            raise Wrong("your model's last block is still dead: its attention has gradient 0 "
                        "(which tokens does the classifier read?)")
        if not close(gradient, wanted, 1e-4 * wanted):
            if close(gradient, _largest_gradient(model, images, 0), 1e-4 * wanted):
                raise Wrong("that is the gradient of the first block's attention, not of the last one's")
            raise Wrong(f"for your model, the largest absolute gradient in its last block's attention is "
                        f"{wanted:.6g}, and not {gradient:.6g}")


def _entries(layers, every):
    return [(t % every if every else t) + 1 for t in range(layers)]


@checker("exercise 3")
def check_entries(answer: object) -> None:
    """answer(layers, reset_every) -> the entries in base's cache after each block; None: never emptied."""
    for layers, every in ((12, 4), (12, None), (7, 3), (5, 1), (4, 9)):
        given, wanted = run(answer, layers, every), _entries(layers, every)
        where = f"for {layers} blocks and reset_every={every}"
        if isinstance(given, torch.Tensor):
            given = given.tolist()
        if not isinstance(given, list | tuple):
            raise Wrong(f"return a list, a number for each block, not a {type(given).__name__}")
        if len(given) != layers:
            raise Wrong(f"{where} your list has {len(given)} numbers, one a block would be {layers}")
        if list(given) == wanted:
            continue
        if list(given) == [count - 1 for count in wanted]:
            raise Wrong(f"{where}: count the block's own entry too; it is appended before it is read")
        if every and list(given) == [t + 1 for t in range(layers)]:
            raise Wrong(f"{where} the cache is emptied, and your counts go on growing")
        if every and list(given) == [1, *((t - 1) % every + 2 for t in range(1, layers))]:
            raise Wrong(f"{where}: the cache is emptied before a block, so that block's own entry is alone")
        raise Wrong(f"{where} it should be {wanted}, not {list(given)}")
