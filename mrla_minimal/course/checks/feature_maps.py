"""Checkers of notebook 05: a convolution along the channels, a running mean, each layer's contribution."""

import torch
from einops import rearrange
from torch.nn import functional as F

from mrla_minimal.course.checks.common import Wrong, blame, checker, close, numbers, pair, run, tensor
from mrla_minimal.layer_attention import per_channel


@checker("exercise 1")
def check_channel_convolution(answer: object) -> None:
    """answer(row (batch, channels), taps (k,)) -> (batch, channels), k odd, zeros beyond both ends."""
    for batch, channels, size in ((2, 7, 3), (3, 9, 5), (2, 4, 1)):
        row, taps = numbers(batch, channels), numbers(size, seed=1)
        half = size // 2
        given = tensor(run(answer, row, taps), row.shape)

        def slide(taps, row=row, half=half, padding="constant"):
            return F.conv1d(F.pad(row[:, None], (half, half), padding), taps[None, None])[:, 0]

        if close(given, slide(taps)):
            continue
        if close(given, slide(taps.flip(0))):
            raise Wrong("your taps are in reverse order: torch's convolution multiplies taps[0] "
                        "with the channel before, taps[-1] with the channel after")
        if half and close(given, slide(taps, padding="circular")):
            raise Wrong("your first channel sees the last one: beyond "
                        "both ends there are zeros, the row is no circle")
        if half and close(given[:, half:-half], slide(taps)[:, half:-half]):
            raise Wrong("your inner channels are right, those at the two "
                        "ends are not: beyond the ends there are zeros")
        if size == 5:
            raise Wrong("your code is right with 3 taps and not with "
                        "5: the middle tap is taps[len(taps) // 2]")
        if size == 1:
            raise Wrong("your code fails with a single tap, where channel c is taps[0] * row[:, c]")
        raise Wrong(f"your output is not the sum over j of taps[j] * row[:, c + j - {half}]")


def _elements(memory):
    """How many numbers a memory holds, whatever it is made of."""
    if isinstance(memory, torch.Tensor):
        return memory.numel()
    if isinstance(memory, dict):
        memory = list(memory.values())
    if isinstance(memory, (list, tuple)):
        return sum(_elements(part) for part in memory)
    return 1


@checker("exercise 2")
def check_running_mean(answer: object) -> None:
    """answer(value, memory) -> (output, memory): the mean of all values so far.

    The memory is one map and a count.
    """
    values = [numbers(2, 3, 4, 5, seed=layer) for layer in range(5)]
    for stage in range(2):
        memory, outputs = None, []
        for layer, value in enumerate(values, start=1):
            output, memory = pair(run(answer, value, memory))
            outputs.append(tensor(output, value.shape))
            if not close(output, sum(values[:layer]) / layer):
                if stage:
                    raise Wrong("your code is right on its first five calls only: something outlives "
                                "the memory, which is None again at the first layer of a stage")
                _explain_mean(outputs, values, layer)
            if _elements(memory) > value.numel() + 2:
                raise Wrong(f"after {layer} layers your memory holds {_elements(memory)} numbers; "
                            f"one map has {value.numel()}, and beside it you need a count only")


def _explain_mean(outputs, values, layer):
    given = outputs[-1]
    if close(given, values[layer - 1]):
        raise Wrong(f"at layer {layer} your output is the newest value alone")
    if close(given, sum(values[:layer])):
        raise Wrong(f"at layer {layer} your output is the sum of the values; divide by the number of layers")
    if layer > 2 and close(given, (outputs[-2] + values[layer - 1]) / 2):
        raise Wrong("half old, half new is the mean of two layers only: "
                    "at layer 3 it gives the newest value 1/2, not 1/3")
    raise Wrong(f"at layer {layer} your output is not the mean of the {layer} values")


def _contributions(weights, values, spread="b (heads d) h w -> b heads d h w", over=(0, 2, 3, 4), size=None):
    """Shares (heads, t). `size` reduces a product to one number a head: by default, the root mean square."""
    size = size or (lambda product: product.square().mean(over).sqrt())
    heads = weights.shape[1]
    sizes = [size(weights[:, :, s, None, None, None] * rearrange(value, spread, heads=heads))
             for s, value in enumerate(values)]
    sizes = torch.stack(sizes, dim=-1)
    return sizes / sizes.sum(dim=-1, keepdim=True)


@checker("exercise 3")
def check_contributions(answer: object) -> None:
    """answer(weights (batch, heads, t), [t maps (batch, heads * d, h, w)]) -> (heads, t), rows summing to 1.
    """
    batch, heads, d, t = 5, 2, 3, 4
    weights = (2 * numbers(batch, heads, t)).softmax(dim=-1)
    # Values whose sizes differ by layer, head and sample, and whose means are not 0.
    values = [(s + 0.5) * numbers(batch, heads * d, 4, 6, seed=s) * numbers(batch, 1, 1, 1, seed=10 + s)
              * torch.linspace(1, 2 + s, heads * d, dtype=torch.float64)[:, None, None] + 0.2
              for s in range(1, t + 1)]
    given = tensor(run(answer, weights, values), (heads, t))
    if not close(given, _contributions(weights, values)):
        _explain_contributions(given, weights, values)
    alone = tensor(run(answer, weights[:, :, :1], values[:1]), (heads, 1))
    if not close(alone, torch.ones_like(alone)):
        raise Wrong("with one layer its share is 1 in every head")


def _explain_contributions(given, weights, values):
    heads = weights.shape[1]
    mean_weights = weights.mean(0)
    if close(given, mean_weights):
        raise Wrong("these are the mean weights; a large weight on a "
                    "faint value adds little, so the values must come in")
    if close(given, _contributions(weights, values, "b (d heads) h w -> b heads d h w")):
        raise Wrong("your heads are interleaved: channel c belongs to head c // d")
    if not close(given.sum(dim=1), torch.ones(heads)):
        if close(given.sum(dim=0), torch.ones(given.shape[1])):
            raise Wrong("your shares sum to 1 over the heads; within "
                        "each head they should sum to 1 over the layers")
        raise Wrong("your shares do not sum to 1 over the layers; divide by their sum in each head")
    whole = torch.stack([(per_channel(weights[:, :, s], value) * value).square().mean().sqrt()
                         for s, value in enumerate(values)])
    if close(given, (whole / whole.sum()).expand(heads, -1)):
        raise Wrong("you took one size for all heads together; each head has channels of its own")
    mistakes = {
        "you multiplied the mean weight by the value's size; "
        "multiply each sample's weight by its own value first": _contributions(
            mean_weights[None].expand_as(weights), values),
        "these are the shares of the mean squares; take the root before dividing": _contributions(
            weights, values, size=lambda product: product.square().mean((0, 2, 3, 4))),
        "these are the shares of the mean absolute products; "
        "the task asks for the root mean square": _contributions(
            weights, values, size=lambda product: product.abs().mean((0, 2, 3, 4))),
        "you averaged the products themselves, and what is "
        "negative cancels what is positive; square them first": _contributions(
            weights, values, size=lambda product: product.mean((0, 2, 3, 4))),
        "these are the sizes of the values alone; the weights must come in":
            _contributions(torch.ones_like(weights), values),
    }
    blame(given, _contributions(weights, values), mistakes,
          "your shares are not rms(weight * value), taken over samples, pixels and the head's channels, "
          "divided by their sum over the layers")
