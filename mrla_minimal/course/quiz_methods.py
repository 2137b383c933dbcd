"""The corridor quiz's methods: what the exit of a corridor can get at, made in one way after the other.

In the vector form a layer's input is a vector and each layer has linear maps of its own; in the module form
the library's own classes work on maps of one pixel. Each method gives the exit one vector.
"""

import functools
import math
from collections.abc import Callable

import torch
from einops import einsum, rearrange
from torch import Tensor, nn

from mrla_minimal.hosting import sharing

ROOMS = 8
SIGNS = 8
LAYERS = ROOMS + 1              # the exit is the ninth layer
# what a layer sees: a sign and the room asked for, one-hot, or zeros if it is not told
INPUTS = SIGNS + ROOMS


# The vector form: each method maps inputs (batch, LAYERS, INPUTS) to what the exit holds (batch, width)

class OwnLinear(nn.Module):
    """A linear map of its own for each layer: (batch, LAYERS, inputs) -> (batch, LAYERS, outputs)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        bound = 1 / math.sqrt(inputs)                                   # as nn.Linear starts
        self.weight = nn.Parameter(torch.empty(LAYERS, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(LAYERS, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return einsum(x, self.weight, "batch layers i, layers i o -> batch layers o") + self.bias


class LastAlone(nn.Module):
    """The exit's own value, nothing else: each layer has overwritten what the one before it held."""

    def __init__(self, width: int, key_dim: int):
        super().__init__()
        self.value = OwnLinear(INPUTS, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.value(x)[:, -1]                                     # (batch, width)


class MeanOfValues(nn.Module):
    """The mean of all layers' values: base with its weights held at 1 / LAYERS."""

    def __init__(self, width: int, key_dim: int):
        super().__init__()
        self.value = OwnLinear(INPUTS, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.value(x).mean(dim=1)                                # (batch, width)


class ResidualStream(nn.Module):
    """Each layer adds a two-layer ReLU network of its input to a stream that starts at 0."""

    def __init__(self, width: int, key_dim: int, hidden: int = 16):
        super().__init__()
        self.enter = OwnLinear(INPUTS, hidden)
        self.leave = OwnLinear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        added = self.leave(torch.relu(self.enter(x)))                   # (batch, layers, width)
        return added.sum(dim=1)                                         # (batch, width)


class VectorLayerAttention(nn.Module):
    """Eq. 4: the exit's own key and value projections read every layer's input.

    One encoder for all layers cannot tell which of them it reads, unless inputs carry a tag that says so
    (`tagged`).
    """

    def __init__(self, width: int, key_dim: int, tagged: bool = False):
        super().__init__()
        self.tagged = tagged
        inputs = INPUTS + LAYERS if tagged else INPUTS
        self.query = nn.Linear(inputs, key_dim)
        self.key = nn.Linear(inputs, key_dim)
        self.value = nn.Linear(inputs, width)
        # to look at the weights, or to replace them
        self.weights = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.tagged:
            tags = torch.eye(LAYERS).to(x).expand(len(x), LAYERS, LAYERS)
            x = torch.cat([x, tags], dim=-1)                            # (batch, layers, inputs + layers)
        query = self.query(x[:, -1])                                    # (batch, key_dim)
        keys = self.key(x)                                              # (batch, layers, key_dim)
        values = self.value(x)                                          # (batch, layers, width)
        logits = einsum(query, keys, "b d, b layers d -> b layers") / math.sqrt(query.shape[-1])
        weights = self.weights(logits.softmax(dim=-1))                  # (batch, layers)
        return einsum(weights, values, "b layers, b layers c -> b c")   # (batch, width), Eq. 4


class VectorBase(nn.Module):
    """Eq. 6: every layer makes its key and value once; the exit's query chooses among them when it *reads*.
    """

    def __init__(self, width: int, key_dim: int, softmax: bool = True):
        super().__init__()
        self.query = OwnLinear(INPUTS, key_dim)
        self.key = OwnLinear(INPUTS, key_dim)
        self.value = OwnLinear(INPUTS, width)
        self.softmax = softmax
        self.weights = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x)[:, -1]                                    # (batch, key_dim): the exit asks
        keys = self.key(x)                                              # (batch, layers, key_dim)
        values = self.value(x)                                          # (batch, layers, width)
        logits = einsum(query, keys, "b d, b layers d -> b layers") / math.sqrt(query.shape[-1])
        weights = self.weights(logits.softmax(dim=-1) if self.softmax else logits)
        return einsum(weights, values, "b layers, b layers c -> b c")   # (batch, width), Eq. 6


class VectorLight(nn.Module):
    """Eq. 8: every layer gates its own value when it *writes*, and adds it to the one vector carried on."""

    def __init__(self, width: int, key_dim: int):
        super().__init__()
        self.query = OwnLinear(INPUTS, key_dim)
        self.key = OwnLinear(INPUTS, key_dim)
        self.value = OwnLinear(INPUTS, width)
        self.lambda_o = nn.Parameter(torch.ones(LAYERS, width))
        self.weights = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        query, key = self.query(x), self.key(x)                         # (batch, layers, key_dim) each
        values = self.value(x)                                          # (batch, layers, width)
        logits = (query * key).sum(dim=-1) / math.sqrt(query.shape[-1])
        gates = self.weights(logits.sigmoid())                          # (batch, layers)
        output = torch.zeros_like(values[:, 0])                         # O^0, (batch, width)
        for t in range(LAYERS):
            output = self.lambda_o[t] * output + gates[:, t, None] * values[:, t]     # Eq. 8
        return output


METHODS: dict[str, Callable[[int, int], nn.Module]] = {
    "last": LastAlone,
    "mean": MeanOfValues,
    "residual": ResidualStream,
    "light": VectorLight,
    "layer": VectorLayerAttention,
    "layer-tagged": functools.partial(VectorLayerAttention, tagged=True),
    "base": VectorBase,
    "base-no-softmax": functools.partial(VectorBase, softmax=False),
}


# The module form

class Layers(nn.ModuleList):
    """Layer attentions one after the other: maps (layers, batch, channels, height, width) -> the last's.
    """

    def forward(self, features: Tensor) -> Tensor:
        memory = None
        for feature, attention in zip(features, self, strict=True):
            output, memory = attention(feature, memory)                 # (batch, channels, height, width)
        return output


class ModuleStack(nn.Module):
    """Nine layers of the library's kind on maps of one pixel: (batch, LAYERS, INPUTS) -> (batch, channels).

    A layer is a linear map of its input to a feature map, then attention_factory(channels); an attention that
    carries a map carries its own output. `hidden` puts a ReLU layer before the linear map: a layer can then
    gate by itself.
    """

    def __init__(self, attention_factory: Callable[[int], nn.Module], channels: int, hidden: bool):
        super().__init__()
        before = [OwnLinear(INPUTS, 16), nn.ReLU()] if hidden else []
        self.encoder = nn.Sequential(*before, OwnLinear(16 if hidden else INPUTS, channels))
        # where the modules are in another process, their stack is made there, and is asked as one
        stack = getattr(attention_factory, "layers", None)
        self.attentions = stack(channels, LAYERS) if stack else Layers(
            map(sharing(attention_factory), [channels] * LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        features = rearrange(self.encoder(x), "batch layers channels -> layers batch channels 1 1")
        output = self.attentions(features)                              # (batch, channels, 1, 1)
        if output.shape != features[0].shape:
            raise ValueError(f"the output must have x's shape {tuple(features[0].shape)}, "
                             f"not {tuple(output.shape)}")
        return output.flatten(1)                                        # (batch, channels)
