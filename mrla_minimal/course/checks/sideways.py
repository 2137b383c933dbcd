"""Checkers of notebook 17: a key's own two numbers, gates that shut keys, a softmax over layers and keys."""

import torch
from torch import Tensor

from mrla_minimal.course.checks.common import Wrong, blame, checker, close, numbers, run, tensor

BATCH, LAYERS, KEYS, CHANNELS, HEIGHT, WIDTH = 2, 3, 5, 4, 6, 7


@checker("exercise 1")
def check_offset_of(answer: object) -> None:
    """answer(made, key) -> the offset of one key, (batch, 2, height, width).

    made (batch, 2 keys, height, width): row and column of key 0, then those of key 1, and so on.
    """
    made = numbers(BATCH, 2 * KEYS, HEIGHT, WIDTH)
    for key in (0, 1, 3):
        given = tensor(run(answer, made, key), (BATCH, 2, HEIGHT, WIDTH), f"offset of key {key}")
        if key == 0 and not close(given, made[:, :2]):
            raise Wrong("key 0 should have the channels 0 and 1: its row, then its column")
        if key:
            blame(given, made[:, 2 * key : 2 * key + 2], {
                f"that is the released slice: key {key} shares a number with its neighbour":
                    made[:, key : key + 2],
                "row and column are exchanged": made[:, 2 * key : 2 * key + 2].flip(1),
                "that reads all rows first and all columns after; here each key's two stand together":
                    made[:, [key, KEYS + key]],
            }, f"key {key} should have the channels {2 * key} and {2 * key + 1}")


@checker("exercise 2")
def check_gated_softmax(answer: object) -> None:
    """answer(logits, is_open) -> weights, all (batch, keys, height, width); is_open is boolean."""
    logits = 2 * numbers(BATCH, KEYS, HEIGHT, WIDTH)
    is_open = numbers(BATCH, KEYS, HEIGHT, WIDTH, seed=1) > -0.3
    is_open[:, :, 0, 0], is_open[:, :, 0, 1] = False, True          # a pixel with no key, and one with all
    raw = run(answer, logits, is_open)
    if isinstance(raw, Tensor) and raw.shape == logits.shape:
        if torch.equal(raw.isnan(), ~is_open.any(dim=1, keepdim=True).expand_as(is_open)):
            raise Wrong("where all keys are shut your weights are NaN: such a pixel should get 0")
    given = tensor(raw, logits.shape, "weights")
    whole = logits.softmax(dim=1)

    def shut(dim: int) -> Tensor:
        return logits.masked_fill(~is_open, float("-inf")).softmax(dim=dim).nan_to_num(0.0)

    even = logits.masked_fill(~is_open, torch.finfo(logits.dtype).min).softmax(dim=1)
    blame(given, shut(1), {
        "a logit of 0 is no gate: exp(0) = 1, so a shut key still weighs something": (
            logits * is_open).softmax(dim=1),
        "the open keys' weights should sum to 1: take the shut ones out before the softmax": whole * is_open,
        "the gates are not used": whole,
        "the gates are the wrong way round": logits.masked_fill(is_open, float("-inf")).softmax(
            dim=1).nan_to_num(0.0),
        "that is a softmax over the image's width; the keys are axis 1": shut(3),
        "where all keys are shut your weights are even: such a pixel should get 0": even,
    }, "it should be the softmax over the open keys, and 0 for the shut ones")


@checker("exercise 3")
def check_mix(answer: object) -> None:
    """answer(logits, read) -> the output, (batch, channels, height, width).

    logits (batch, layers, keys, height, width); read the same, with channels after keys.
    """
    logits = 2 * numbers(BATCH, LAYERS, KEYS, HEIGHT, WIDTH)
    read = numbers(BATCH, LAYERS, KEYS, CHANNELS, HEIGHT, WIDTH, seed=1)
    given = tensor(run(answer, logits, read), (BATCH, CHANNELS, HEIGHT, WIDTH), "output")

    def mixed(weights: Tensor) -> Tensor:
        return torch.einsum("blkhw,blkchw->bchw", weights, read)

    blame(given, mixed(logits.flatten(1, 2).softmax(dim=1).view_as(logits)), {
        "that is a softmax over the image's width, as in the release; it should run over layers and keys":
            mixed(logits.softmax(dim=4)),
        "your softmax runs over the keys of each layer: the weights of all layers should sum to 1":
            mixed(logits.softmax(dim=2)),
        "your softmax runs over the layers, key by key: all keys of all layers should sum to 1":
            mixed(logits.softmax(dim=1)),
        "your softmax runs over the batch": mixed(logits.softmax(dim=0)),
        "the logits are no weights yet: take their softmax": mixed(logits),
        "that is the plain mean": read.mean(dim=(1, 2)),
        "divide by nothing: the weights sum to 1 already": mixed(
            logits.flatten(1, 2).softmax(dim=1).view_as(logits)) / (LAYERS * KEYS),
    }, "it should be the sum over layers and keys of weight times what was read")
