"""The corridor quiz's further methods: MRLA's relatives in the vector form, beside those of quiz_methods.py.

Each maps inputs (batch, LAYERS, INPUTS) to what the exit holds, (batch, width). Sources and deviations stand
with the map forms in `family/depth_weights.py`; hyper-connections and RLA change the host's own stream, and
are built here alone.
"""

import functools
from collections.abc import Callable

import torch
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from mrla_minimal.course.quiz_methods import INPUTS, LAYERS, OwnLinear


class VectorDenseFormer(nn.Module):
    """Neither knows: one learned number a layer, the same for every corridor. It starts as the exit alone."""

    def __init__(self, width: int, key_dim: int):
        super().__init__()
        self.value = OwnLinear(INPUTS, width)
        self.by_layer = nn.Parameter(exit_alone())
        self.weights = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weights(self.by_layer.expand(len(x), LAYERS))    # (batch, layers)
        return weighted(weights, self.value(x))                        # (batch, width)


class VectorMUDDFormer(nn.Module):
    """The reader knows: a small network of the exit's input makes one number a layer. No keys, no softmax."""

    def __init__(self, width: int, key_dim: int, hidden: int = 16):
        super().__init__()
        self.value = OwnLinear(INPUTS, width)
        self.enter = nn.Linear(INPUTS, hidden)
        self.leave = nn.Linear(hidden, LAYERS)
        nn.init.zeros_(self.leave.weight)
        with torch.no_grad():
            self.leave.bias.copy_(exit_alone())
        self.weights = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weights(self.leave(F.gelu(self.enter(x[:, -1]))))        # (batch, layers)
        return weighted(weights, self.value(x))                        # (batch, width)


class VectorAttentionResiduals(nn.Module):
    """The writer knows: a softmax over depth of w . RMSNorm(v^s), with a learned w that starts at 0.

    `query_of_input` lets the exit's input make the query in place of w; `own_keys` lets each layer make a key
    of its input in place of RMSNorm(v^s). With both this is Eq. 6: VectorBase, whose scale 1 / sqrt(key_dim)
    is left to the query here.
    """

    def __init__(self, width: int, key_dim: int, query_of_input: bool = False, own_keys: bool = False):
        super().__init__()
        size = key_dim if own_keys else width
        self.value = OwnLinear(INPUTS, width)
        self.key = OwnLinear(INPUTS, size) if own_keys else None
        self.query = nn.Linear(INPUTS, size) if query_of_input else nn.Parameter(torch.zeros(1, size))
        self.weights = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        values = self.value(x)                                          # (batch, layers, width)
        keys = F.rms_norm(values, values.shape[-1:]) if self.key is None else self.key(x)
        query = self.query(x[:, -1]) if isinstance(self.query, nn.Linear) else self.query
        logits = (keys * query[:, None]).sum(dim=-1)                    # (batch, layers)
        return weighted(self.weights(logits.softmax(dim=-1)), values)  # (batch, width)


class VectorBlockAttentionResiduals(nn.Module):
    """The same over the sums of blocks of `block` layers: the exit can choose a block, not a room in it."""

    def __init__(self, width: int, key_dim: int, block: int = 3):
        super().__init__()
        self.block = block
        self.value = OwnLinear(INPUTS, width)
        self.query = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        sums = torch.stack([part.sum(dim=1) for part in self.value(x).split(self.block, dim=1)], dim=1)
        logits = F.rms_norm(sums, sums.shape[-1:]) @ self.query         # (batch, blocks)
        return weighted(logits.softmax(dim=-1), sums)                  # (batch, width)


class VectorKeyCorrelatedAttention(nn.Module):
    """The writer knows: a mean of the inputs by the sizes of their keys, projected and gated by the exit.

    The running mean of KCLA, written at once: e^s / (e^1 + ... + e^t) is a softmax of the capped sizes.
    """

    def __init__(self, width: int, key_dim: int):
        super().__init__()
        self.query, self.key = OwnLinear(INPUTS, key_dim), OwnLinear(INPUTS, key_dim)
        self.value = nn.Linear(INPUTS, width)
        self.weights = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        keys, query = self.key(x), self.query(x)[:, -1]                 # (batch, layers, d), (batch, d)
        weights = self.weights(keys.norm(dim=-1).clamp(max=10.0).softmax(dim=-1))       # (batch, layers)
        gate = (query * F.normalize(keys[:, -1], dim=-1)).sum(dim=-1, keepdim=True).sigmoid()
        return gate * self.value(weighted(weights, x))                 # (batch, width)


class HyperConnections(nn.Module):
    """n streams in place of one: each layer writes into all, mixes all, and the exit reads a mix of them.

    H <- A^t H + b^t v^t (outer product), H (n, width) from 0; output = a . H at the exit. a, b, A are made of
    the layer's input: a = sigmoid(.), b = 2 sigmoid(.), A = exp(.), rows and columns scaled in turn until
    both sum to 1 (Sinkhorn).

    Source: Z. Xie et al., mHC, 2025, arXiv 2512.24880, its Eq. 3, 5 and what makes A doubly stochastic, after
    hyper-connections, arXiv 2409.19606. There a layer also reads the streams, and makes a, b, A of them; here
    it sees its room alone. A starts near the identity. 8 rounds of scaling in place of 20.
    """

    def __init__(self, width: int, key_dim: int, streams: int = 4, rounds: int = 8):
        super().__init__()
        self.rounds = rounds
        self.value = OwnLinear(INPUTS, width)
        self.read, self.write = OwnLinear(INPUTS, streams), OwnLinear(INPUTS, streams)
        self.mix = OwnLinear(INPUTS, streams * streams)
        with torch.no_grad():
            self.mix.bias.add_(4 * torch.eye(streams).flatten())

    def forward(self, x: Tensor) -> Tensor:
        values, write = self.value(x), 2 * self.write(x).sigmoid()
        # the long axis last, or the many sums over n would take longer than all else
        mix = rearrange(self.mix(x), "b layers (n m) -> n m (layers b)", n=write.shape[-1]).contiguous()
        mix = (mix - mix.amax(dim=(0, 1))).exp()
        for _ in range(self.rounds):                                    # Sinkhorn
            mix = mix / mix.sum(dim=1, keepdim=True)
            mix = mix / mix.sum(dim=0, keepdim=True)
        mix = rearrange(mix, "n m (layers b) -> layers b n m", layers=LAYERS)
        streams = values.new_zeros(len(x), write.shape[-1], values.shape[-1])       # (batch, n, width)
        for t in range(LAYERS):
            streams = mix[t] @ streams + write[:, t, :, None] * values[:, t, None]
        return weighted(self.read(x)[:, -1].sigmoid(), streams)        # (batch, width)


class RecurrentLayerAggregation(nn.Module):
    """RLA: one small recurrent state, updated in every layer by weights that all layers share.

    y = F^t([x^t; h]),  h <- W_r tanh(h + W_1 y); the exit holds the last h. F^t is a layer's own two-layer
    network, W_1 and W_r are shared.

    Source: J. Zhao et al., Recurrence along Depth, NeurIPS 2021, arXiv 2110.11852: the state beside the
    host's stream. Here the state is all there is, and it has no batch norm.
    """

    def __init__(self, width: int, key_dim: int, hidden: int = 16):
        super().__init__()
        self.enter, self.leave = OwnLinear(INPUTS + width, hidden), OwnLinear(hidden, width)
        self.write = nn.Linear(width, width, bias=False)
        self.recur = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), self.recur.in_features)             # h, (batch, width)
        for t in range(LAYERS):
            entered = torch.cat([x[:, t], state], dim=-1) @ self.enter.weight[t] + self.enter.bias[t]
            y = entered.relu() @ self.leave.weight[t] + self.leave.bias[t]
            state = self.recur(torch.tanh(state + self.write(y)))
        return state


def exit_alone() -> Tensor:
    """The weights (LAYERS,) that read the exit, the last layer, alone."""
    return F.one_hot(torch.tensor(LAYERS - 1), LAYERS).float()


def weighted(weights: Tensor, values: Tensor) -> Tensor:
    """(batch, layers) and (batch, layers, width) -> (batch, width)."""
    return einsum(weights, values, "b layers, b layers c -> b c")


FAMILY_METHODS: dict[str, Callable[[int, int], nn.Module]] = {
    "denseformer": VectorDenseFormer,
    "mudd": VectorMUDDFormer,
    "attnres": VectorAttentionResiduals,
    "attnres-query": functools.partial(VectorAttentionResiduals, query_of_input=True),
    "attnres-block": VectorBlockAttentionResiduals,
    "kcla": VectorKeyCorrelatedAttention,
    "hyper-connections": HyperConnections,
    "rla": RecurrentLayerAggregation,
}
