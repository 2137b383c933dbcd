"""Dynamic Layer Attention: later layers rewrite what earlier ones left behind.

Source: K. Wang, X. Xia, J. Liu, Z. Yi, T. He, Strengthening Layer Interaction via Dynamic Layer Attention,
IJCAI 2024, arXiv 2406.13392, and its code (tunantu/Dynamic-Layer-Attention, CIFAR part).

In MRLA a layer's key and value never change again. Here one small recurrent unit, shared by the layers of a
stage, works twice in each layer. Forwards it reads the layer's map and carries a context on. Backwards it is
asked, with that context, for a number a channel that scales what an earlier layer left; the next layer finds
the scaled entry, and scales it again.

    DynamicUnit       the unit, an LSTM cell with two edits
    DLABase           DLA-B: rewrites MRLABase's keys and values
    DLALight          DLA-L: rewrites MRLALight's carried map
    DLABaseReread     the control of DLABase, of equal size: it scales what it reads, and rewrites nothing
"""

import torch
from torch import Tensor, nn

from mrla_minimal.layer_attention import (
    KeyValues,
    MRLABase,
    MRLALight,
    pool,
    split_heads,
    value_convolution,
)
from mrla_minimal.shapes import (
    check_feature_map,
    check_key_value_memory,
    check_positive,
    check_same_shape,
    has_shape,
)

State = tuple[Tensor, Tensor]           # h and c, each (batch, channels)


class DynamicUnit(nn.Module):
    """The dynamic sharing unit: an LSTM cell without output gate, and with a sigmoid where LSTM has tanh.

    (i, f, g) = U_2 relu(U_1 y) + S_2 relu(S_1 h),
    c' = sigmoid(f) c + sigmoid(i) tanh(g),   h' = sigmoid(c').

    y (..., channels), state (h, c) of the same shape or None for zeros -> (h', c'); h' lies between 0 and 1.
    For y (batch, rows, channels) a state (batch, 1, channels) stands for all rows of a sample.
    U_1 and S_1 reduce to channels // reduction numbers, U_2 and S_2 make 3 channels of them; all have biases.

    The release defines a dropout that has no effect with one layer; here there is none.
    Raises ValueError if channels or reduction is no positive integer, or if y or the state has another shape.
    """

    def __init__(self, channels: int, reduction: int = 4):
        super().__init__()
        check_positive("channels", channels)
        check_positive("reduction", reduction)
        self.channels = channels
        reduced = max(1, channels // reduction)
        self.input_in = nn.Linear(channels, reduced)
        self.input_out = nn.Linear(reduced, 3 * channels)
        self.state_in = nn.Linear(channels, reduced)
        self.state_out = nn.Linear(reduced, 3 * channels)

    def forward(self, y: Tensor, state: State | None = None) -> State:
        if y.shape[-1] != self.channels:
            raise ValueError(f"y must end in {self.channels} channels, not {tuple(y.shape)}")
        zeros = torch.zeros_like(y)
        h, c = (zeros, zeros) if state is None else fitting_state(state, y)
        gates = self.input_out(self.input_in(y).relu()) + self.state_out(self.state_in(h).relu())
        write, keep, new = gates.chunk(3, dim=-1)                           # (..., channels) each: i, f, g
        c = keep.sigmoid() * c + write.sigmoid() * new.tanh()               # (..., channels)
        return c.sigmoid(), c


def fitting_state(state: object, y: Tensor) -> State:
    """h and c in the type of y. ValueError for a state that is no pair of y's shape, or of one row of it."""
    if not isinstance(state, tuple) or len(state) != 2:
        raise ValueError(f"the state must be a pair, h and c, not a {type(state).__name__}")
    for name, part in zip(("the state's h", "the state's c"), state, strict=True):
        one_row = y.dim() == 3 and has_shape(part, (len(y), 1, y.shape[-1]))
        check_same_shape(name, part, y[:, :1] if one_row else y)
    return tuple(part.to(y.dtype) for part in state)


class DLABase(MRLABase):
    """DLA-B: each layer scales every cached key and value, then asks them as MRLABase does.

    (h^t, c^t) = unit(pool(X^t); h^{t-1}, c^{t-1}),
    k^s <- k^s unit_h(k^s; h^t, c^t),  v^s <- v^s unit_h(pool(v^s); h^t, c^t) for s < t,   O^t as in Eq. 6.

    x (batch, channels, height, width) -> output of the same shape; weights (batch, heads, t).
    Memory: (state, cache), the state h^t and c^t (batch, channels), the cache the pairs of layers 1..t as
    MRLABase keeps them. `shared`: the stage's DynamicUnit; None: one of its own.
    Cost of layers 1..T: MRLABase's, and T (T - 1) / 2 maps rewritten, all of which the backward pass keeps.

    The release takes the first image's state for the whole batch; here each image has its own. head_dim is
    MRLABase's 16 where the release's CIFAR nets have 32.
    Raises ValueError as MRLABase, and for a unit of other channels.
    """

    shared_part = DynamicUnit

    def __init__(self, channels: int, head_dim: int | None = None, kernel_size: int | None = None,
                 shared: DynamicUnit | None = None):
        super().__init__(channels, head_dim, kernel_size)
        self.unit = check_shared(shared or DynamicUnit(channels), channels)

    def forward(self, x: Tensor, memory: tuple[State, KeyValues] | None = None,
                ) -> tuple[Tensor, tuple[State, KeyValues]]:
        state, cache = self.refresh(x, memory)
        output, cache = super().forward(x, cache)                           # Eq. 6
        return output, (state, cache)

    def refresh(self, x: Tensor, memory: tuple[State, KeyValues] | None,
                ) -> tuple[State, KeyValues | None]:
        """The context after this layer, and the rewritten cache: nothing of the memory changes in place."""
        state, cache = context_of(self.unit, x, memory)
        check_key_value_memory(cache, split_heads(pool(x), self.head_dim), x)
        return state, cache and [self.rewritten(*entry, state) for entry in cache]

    def rewritten(self, key: Tensor, value: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """One entry, scaled by the unit: key (batch, heads, head_dim) and value (batch, channels, h, w)."""
        dtype = state[0].dtype
        key_gate, _ = self.unit(key.flatten(1).to(dtype), state)            # (batch, channels)
        value_gate, _ = self.unit(pool(value)[:, 0].to(dtype), state)       # (batch, channels)
        key_gate = key_gate.reshape(key.shape).to(key.dtype)
        return key * key_gate, value * value_gate[:, :, None, None].to(value.dtype)


class DLABaseReread(DLABase):
    """The control: each layer scales what it reads as DLABase does, but hands on what was written.

    So an entry is scaled once, by the layer that asks, and not t - s times. Same parameters, same products.
    """

    def forward(self, x: Tensor, memory: tuple[State, KeyValues] | None = None,
                ) -> tuple[Tensor, tuple[State, KeyValues]]:
        output, (state, cache) = super().forward(x, memory)
        return output, (state, [*(memory and memory[1] or []), cache[-1]])


class RefreshedMap(nn.Module):
    """What the layers of a DLA-L stage share: the unit, and a depthwise 3x3 convolution E.

    forward(map, state) -> unit_h(pool(map); state) * map + E(map), of the map's shape.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.unit = DynamicUnit(channels)
        self.channels = self.unit.channels
        self.excite = value_convolution(channels)

    def forward(self, carried: Tensor, state: State) -> Tensor:
        carried = carried.to(state[0].dtype)
        gate, _ = self.unit(pool(carried)[:, 0], state)                     # (batch, channels)
        excited = self.excite(carried)                                      # under autocast of another type
        return gate[:, :, None, None].to(excited.dtype) * carried.to(excited.dtype) + excited


class DLALight(MRLALight):
    """DLA-L: each layer rewrites the carried map before MRLALight adds to it.

    (h^t, c^t) = unit(pool(X^t); h^{t-1}, c^{t-1}),
    M = unit_h(pool(O^{t-1}); h^t, c^t) O^{t-1} + E(O^{t-1}),  E the stage's depthwise 3x3 convolution,
    O^t = lambda_o^t M + sigmoid(q^t . k^t / sqrt(d)) v^t.

    x (batch, channels, height, width) -> output of the same shape; weights, a gate, (batch, heads, 1).
    Memory: (state, map), the state h^t and c^t (batch, channels), the map O^t. `shared`: the stage's
    RefreshedMap; None: one of its own. Cost of layers 1..T: MRLALight's, and T maps rewritten.

    As MRLALight does, this carries its own last output. The release puts the block's input in its place, and
    takes the first image's state for the whole batch.
    Raises ValueError as MRLALight, and for a shared part of other channels.
    """

    shared_part = RefreshedMap

    def __init__(self, channels: int, head_dim: int | None = None, kernel_size: int | None = None,
                 shared: RefreshedMap | None = None):
        super().__init__(channels, head_dim, kernel_size)
        self.refreshed = check_shared(shared or RefreshedMap(channels), channels)

    def forward(self, x: Tensor, memory: tuple[State, Tensor] | None = None,
                ) -> tuple[Tensor, tuple[State, Tensor]]:
        state, carried = context_of(self.refreshed.unit, x, memory)
        carried = torch.zeros_like(x) if carried is None else carried       # O^0
        check_same_shape("the memory's map", carried, x)
        carried = self.refreshed(carried, state)                            # M, of x's shape
        output, _ = super().forward(x, carried)                             # Eq. 8
        return output, (state, output)


def context_of(unit: DynamicUnit, x: Tensor, memory: tuple | None) -> tuple[State, object]:
    """The state after layer t, two of (batch, channels), and what else the memory holds (None at layer 1).

    x (batch, channels, height, width). Raises ValueError for an x of other channels, or if memory is no pair
    of a state of that shape and something more.
    """
    check_feature_map(x, unit.channels)
    row = pool(x)[:, 0]                                                     # (batch, channels)
    if memory is None:
        return unit(row), None
    if not isinstance(memory, tuple) or len(memory) != 2:
        raise ValueError("memory must be None or a pair, the state and what the layers left, "
                         f"not a {type(memory).__name__}")
    state, left = memory
    return unit(row, fitting_state(state, row)), left


def check_shared(shared: nn.Module, channels: int) -> nn.Module:
    """`shared`, the part of a stage; ValueError if it is for another number of channels than a layer's."""
    if shared.channels != channels:
        raise ValueError(f"a stage's layers share one unit: one of {shared.channels} channels cannot serve "
                         f"a layer of channels={channels}")
    return shared


NAMES = {"dla-base": DLABase, "dla-base-reread": DLABaseReread, "dla-light": DLALight}
