"""A stage without its network: layers of one attention, maps for them, and the loop that runs them.

And the arrays of the released code that they are held to.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

GOLDEN = Path(__file__).parents[1] / "golden"


def load_golden(name):
    """{name: tensor} of a file in golden/."""
    with np.load(GOLDEN / name) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays}


def make_layers(attention, count, channels, seed=0, **arguments):
    """`count` float64 layers, their parameters drawn large: no softmax is flat, no term too small."""
    torch.manual_seed(seed)
    layers = [attention(channels, **arguments).double() for _ in range(count)]
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
    return layers


def make_maps(count, batch, channels, height, width, seed=1, **arguments):
    """`count` float64 maps whose channels differ in their mean: pooling leaves something to attend to."""
    generator = torch.Generator().manual_seed(seed)
    maps = []
    for _ in range(count):
        noise = torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64)
        offset = torch.randn(batch, channels, 1, 1, generator=generator, dtype=torch.float64)
        maps.append((noise + offset).to(**arguments))
    return maps


def run_stage(layers, maps, memory=None):
    """The outputs of a stage's layers, each given the memory of the one before it."""
    outputs = []
    for layer, x in zip(layers, maps, strict=True):
        output, memory = layer(x, memory)
        outputs.append(output)
    return outputs


def hold_weights(layer, weights_of):
    """Replaces the layer's attention weights, through its `weights` identity, by weights_of(them)."""
    return layer.weights.register_forward_hook(lambda module, inputs, weights: weights_of(weights))


def assert_equal(given, wanted, tolerance=1e-10):
    torch.testing.assert_close(given, wanted, rtol=0, atol=tolerance)


def gradient_check(module, *inputs):
    """gradcheck of a module's output with respect to the inputs and to every parameter."""
    names, parameters = zip(*module.named_parameters(), strict=True)

    def output(*tensors):
        given, weights = tensors[: len(inputs)], tensors[len(inputs) :]
        result = torch.func.functional_call(module, dict(zip(names, weights, strict=True)), given)
        return result[0] if isinstance(result, tuple) else result

    leaves = [tensor.detach().clone().requires_grad_() for tensor in (*inputs, *parameters)]
    return torch.autograd.gradcheck(output, leaves)
