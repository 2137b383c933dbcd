"""Checker of notebook 10's layer attention without a choice: learned weights, the same for every image."""

import torch
from torch import nn

from mrla_minimal.course.checks.as_trained import AS_TRAINED
from mrla_minimal.course.checks.common import (
    Wrong,
    built,
    checker,
    close,
    first_line,
    numbers,
    pair,
    run,
    tensor,
)
from mrla_minimal.course.checks.signature import (
    check_batch,
    check_calls,
    check_gradients,
    check_memory_is_a_value,
)

CHANNELS = 32       # two heads of 16


@checker("exercise 3")
def check_fixed_weights(answer: object) -> None:
    """answer(channels) -> a module with .value and .weights: O^t = sum_s w_s v^s.

    w is a softmax of learned numbers, and not of the image.
    """
    _named_parts(built(answer, CHANNELS, (2, CHANNELS, 4, 5)))
    _fixed_layers(answer)
    _deep_enough(answer)
    for check in (check_memory_is_a_value, check_calls, check_batch, check_gradients, *AS_TRAINED):
        check(answer)


def _named_parts(module):
    if not isinstance(getattr(module, "weights", None), nn.Module):
        raise Wrong("your module should hold self.weights = nn.Identity() and "
                    "pass its weights through it; without it nobody can look")
    names = dict(module.named_parameters())
    if "value.weight" not in names or tuple(names["value.weight"].shape) != (CHANNELS, 1, 3, 3):
        raise Wrong("your module should hold self.value = value_convolution(channels)")
    if len(names) < 2:
        raise Wrong("your module has no parameter but the value's: which numbers are the weights learned in?")
    if not getattr(module, "relu_after_norm", False):
        raise Wrong("set relu_after_norm = True on your class, as base "
                    "has it: the block then puts a ReLU after the BN")
    if any(name.startswith(("query", "key")) for name in names):
        raise Wrong("your module has a query or a key; its weights should "
                    "come from learned numbers alone, whatever the image")


def _deep_enough(answer):
    """The deepest stage that the exercise speaks of: 32 layers, each reading all before it."""
    memory = None
    with torch.no_grad():
        for t in range(1, 33):
            layer = run(answer, CHANNELS)
            try:
                _, memory = layer(numbers(1, CHANNELS, 2, 2).float(), memory)
            except (Exception, SystemExit) as error:
                raise Wrong(f"at layer {t} of a stage of 32 your "
                            f"module raises {first_line(error)}") from error


def _fixed_layers(answer):
    """Three layers, called on two batches: the weights at each, and what the output is made of."""
    layers = [run(answer, CHANNELS).double() for _ in range(3)]
    seen = []
    with torch.no_grad():
        for number, layer in enumerate(layers):
            layer.weights.register_forward_hook(lambda module, inputs, output: seen.append(output))
            for place, (name, parameter) in enumerate(sorted(layer.named_parameters())):
                if name != "value.weight":
                    parameter.copy_(numbers(*parameter.shape, seed=100 * number + place))
                else:
                    parameter.copy_(numbers(*parameter.shape, seed=50 + number))
        kept = []
        for batch in (2, 3):
            memory, values, seen[:] = None, [], []
            for t, layer in enumerate(layers, start=1):
                x = numbers(batch, CHANNELS, 4, 5, seed=10 * batch + t)
                values.append(layer.value(x))
                before = len(seen)
                output, memory = pair(run(layer, x, memory))
                tensor(output, x.shape)
                if len(seen) == before:
                    raise Wrong("nothing passes through self.weights: write "
                                "weights = self.weights(...) in forward")
                _explain_fixed(output, tensor(seen[-1], (batch, 2, t), "weights tensor"), values, t)
            kept.append([weights[:1] for weights in seen])
    if not all(close(one, other) for one, other in zip(*kept, strict=True)):
        raise Wrong("your weights change with the images; they should depend on the layers alone")
    with torch.no_grad():
        for layer in layers:
            for name, parameter in layer.named_parameters():
                if name != "value.weight":
                    parameter.add_(0.7)
        memory, seen[:] = None, []
        for t, layer in enumerate(layers, start=1):
            _, memory = pair(run(layer, numbers(2, CHANNELS, 4, 5, seed=t), memory))
    if not all(close(one[:1], other) for one, other in zip(seen, kept[0], strict=True)):
        raise Wrong("with 0.7 added to all your learned numbers the weights change, which a softmax of them "
                    "would not do; take softmax(a), with a number for each layer (or distance) and head")


def _explain_fixed(output, weights, values, t):
    if not close(weights.sum(dim=-1), torch.ones_like(weights[:, :, 0])):
        over_heads = weights.shape[1] > 1 and close(weights.sum(dim=1), torch.ones_like(weights[:, 0]))
        axis = "the heads" if over_heads else "another axis"
        raise Wrong(f"at layer {t} the weights of a head do not sum to 1 over the {t} layers; is the softmax "
                    f"over {axis}, or taken before the layers that do not exist yet are cut off?")
    if not close(weights, weights[:1].expand_as(weights)):
        raise Wrong("your weights differ between the images of one "
                    "batch; they should depend on the layers alone")
    if t > 1:
        if close(weights, torch.full_like(weights, 1 / t)):
            raise Wrong("your weights are 1/t whatever the parameters are: "
                        "that is the uniform control; make them learnable")
        if close(weights[:, 0], weights[:, 1]):
            raise Wrong("both heads have the same weights; give each head numbers of its own")
    # (batch, channels, t)
    spread = weights.repeat_interleave(values[0].shape[1] // weights.shape[1], dim=1)
    wanted = sum(spread[:, :, s, None, None] * value for s, value in enumerate(values))
    if not close(output, wanted):
        flipped = spread.flip(-1)
        if close(output, sum(flipped[:, :, s, None, None] * value for s, value in enumerate(values))):
            raise Wrong("your values are in the opposite order of your weights: "
                        "entry s of the weights belongs to layer s")
        if close(output, spread[:, :, -1, None, None] * values[-1]):
            raise Wrong("your output has the newest value only; sum over all values in the memory")
        raise Wrong(f"at layer {t} your output is not the sum of weights[:, "
                    f"head, s] * v^s over the layers s = 1 .. {t}")
