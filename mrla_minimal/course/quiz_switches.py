"""The corridor with switches: what a room left behind is revised by what later rooms see.

Rooms 1 to 4 hold a sign and a colour, each of four colours once. Rooms 5 to 7 each hold a switch, which turns
one colour's light off. Room 8 is empty, and the exit is told nothing: which sign hangs in the room that is
still lit? The methods here have a context, or rewrite their memory by it:

    VectorDynamic          DLA-B's keys, which every layer rewrites (family/dynamic.py)
    VectorContextQuery     Eq. 6, and a query that has seen the corridor; nothing is rewritten
    VectorContext          what has seen the corridor alone, with no cache
    VectorMeanRewritten    the mean of values that every layer rewrites
"""

import functools
import math
from collections.abc import Callable

import torch
from einops import einsum
from torch import Tensor, nn
from torch.nn import functional as F

from mrla_minimal.course.quiz_methods import INPUTS, LAYERS, ROOMS, SIGNS, OwnLinear, VectorBase
from mrla_minimal.family.dynamic import DynamicUnit, State

COLOURS = 4                 # as many rooms have a sign and a colour; one room fewer holds a switch
_COLOUR, _SWITCH = slice(SIGNS, SIGNS + COLOURS), slice(SIGNS + COLOURS, SIGNS + 2 * COLOURS)


# The task

def draw_switches(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs (count, LAYERS, INPUTS) and answers (count,), the sign of the room still lit."""
    signs = torch.randint(SIGNS, (count, COLOURS), generator=generator)
    colours = torch.rand(count, COLOURS, generator=generator).argsort(dim=1)
    turned_off = torch.rand(count, COLOURS, generator=generator).argsort(dim=1)[:, 1:]
    inputs = torch.zeros(count, LAYERS, INPUTS)
    inputs[:, :COLOURS, :SIGNS] = F.one_hot(signs, SIGNS)
    inputs[:, :COLOURS, _COLOUR] = F.one_hot(colours, COLOURS)
    inputs[:, COLOURS : 2 * COLOURS - 1, _SWITCH] = F.one_hot(turned_off, COLOURS)
    lit = lit_rooms(inputs)[:, :COLOURS].argmax(dim=1, keepdim=True)
    return inputs, signs.gather(1, lit)[:, 0]


def lit_rooms(inputs: Tensor) -> Tensor:
    """The room that no switch turns off, one-hot: inputs (count, LAYERS, INPUTS) -> (count, ROOMS)."""
    on = 1 - inputs[:, :, _SWITCH].sum(dim=1)                           # (count, COLOURS)
    return einsum(inputs[:, :ROOMS, _COLOUR], on, "b rooms k, b k -> b rooms")


# The methods: inputs (batch, LAYERS, INPUTS) -> what the exit holds (batch, width)

def _contexts(unit: DynamicUnit, seen: Tensor) -> list[State]:
    """The unit's state after each layer, from what each puts in: (batch, LAYERS, channels)."""
    states = []
    for row in seen.unbind(dim=1):
        states.append(unit(row, states[-1] if states else None))
    return states


def _rewritten(unit: DynamicUnit, entries: Tensor, states: list[State], opening: float) -> Tensor:
    """What the exit finds of entries (batch, LAYERS, channels), which each layer rewrites in turn."""
    cache = entries[:, :1]
    for t in range(1, LAYERS):
        h, c = (part[:, None] for part in states[t])                    # (batch, 1, channels)
        gates, _ = unit(cache, (h, c))                                  # (batch, t, channels)
        cache = torch.cat([opening * gates * cache, entries[:, t : t + 1]], dim=1)
    return cache


def _asked(point: nn.Identity, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Eq. 6: query (batch, d), keys (batch, LAYERS, d), values (batch, LAYERS, width) -> (batch, width)."""
    logits = einsum(query, keys, "b d, b layers d -> b layers") / math.sqrt(query.shape[-1])
    weights = point(logits.softmax(dim=-1))                             # (batch, layers)
    return einsum(weights, values, "b layers, b layers c -> b c")       # (batch, width)


class VectorDynamic(VectorBase):
    """DLA-B's keys: every layer scales every key before it by the shared unit, then the exit asks.

    DLA-B scales the values too; here the keys alone decide, and values stay as they are. `opening` multiplies
    the gates: with 2 they start at about 1, and a key that nobody has a reason to change stays as it is.
    """

    def __init__(self, width: int, key_dim: int, opening: float = 1.0):
        super().__init__(width, key_dim)
        self.seen = OwnLinear(INPUTS, key_dim)
        self.unit = DynamicUnit(key_dim, reduction=1)
        self.opening = opening

    def forward(self, x: Tensor) -> Tensor:
        states = _contexts(self.unit, self.seen(x))
        keys = _rewritten(self.unit, self.key(x), states, self.opening)         # (batch, layers, key_dim)
        return _asked(self.weights, self.query(x)[:, -1], keys, self.value(x))


class VectorContextQuery(VectorBase):
    """Eq. 6 with a query that has seen the corridor: the sum of what each layer adds to it.

    Keys are made once and nothing is rewritten. In a residual net this sum is there anyway: X^t is one.
    """

    def __init__(self, width: int, key_dim: int):
        super().__init__(width, key_dim)
        self.seen = OwnLinear(INPUTS, key_dim)

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x)[:, -1] + self.seen(x).sum(dim=1)          # (batch, key_dim)
        return _asked(self.weights, query, self.key(x), self.value(x))


class VectorContext(nn.Module):
    """The context after the last layer: one shared recurrent unit, and no cache."""

    def __init__(self, width: int, key_dim: int):
        super().__init__()
        self.seen = OwnLinear(INPUTS, width)
        self.unit = DynamicUnit(width, reduction=1)

    def forward(self, x: Tensor) -> Tensor:
        return _contexts(self.unit, self.seen(x))[-1][0]                # (batch, width)


class VectorMeanRewritten(nn.Module):
    """The mean of all values, which every layer rewrites: the gate knows what is asked, the mean does not."""

    def __init__(self, width: int, key_dim: int):
        super().__init__()
        self.value = OwnLinear(INPUTS, width)
        self.seen = OwnLinear(INPUTS, width)
        self.unit = DynamicUnit(width, reduction=1)

    def forward(self, x: Tensor) -> Tensor:
        states = _contexts(self.unit, self.seen(x))
        return _rewritten(self.unit, self.value(x), states, 1.0).mean(dim=1)    # (batch, width)


DYNAMIC_METHODS: dict[str, Callable[[int, int], nn.Module]] = {
    "dla": VectorDynamic,
    "dla-open": functools.partial(VectorDynamic, opening=2.0),
    "base-context": VectorContextQuery,
    "context": VectorContext,
    "mean-dla": VectorMeanRewritten,
}
