"""Checkers of notebook 15: the test that finds a mixed batch, a cache's versions, gates that start open."""

import copy

import torch
from torch import nn

from mrla_minimal.course.checks.common import Wrong, blame, checker, close, numbers, pair, run
from mrla_minimal.family.dynamic import DLABase, DLALight, DynamicUnit
from mrla_minimal.hosting import sharing
from mrla_minimal.layer_attention import MRLABase

CHANNELS, HEAD_DIM = 6, 3


class _FirstImagesState(DLABase):
    def rewritten(self, key, value, state):
        return super().rewritten(key, value, tuple(part[:1].expand_as(part) for part in state))


class _Mixing(nn.Module):
    """Adds to one image's output a trace of another's map."""

    def __init__(self, channels: int, into: int, source: int):
        super().__init__()
        self.attention, self.into, self.source = MRLABase(channels), into, source

    def forward(self, x: torch.Tensor, memory: object = None) -> tuple[torch.Tensor, object]:
        output, memory = self.attention(x, memory)
        if len(x) > max(self.into, self.source):
            trace = torch.zeros_like(output)
            trace[self.into] = 1e-3 * x[self.source]
            output = output + trace
        return output, memory


def _stack(attention, layers=3):
    build = sharing(attention)
    stack = [build(CHANNELS).double().eval() for _ in range(layers)]
    for parameter in nn.ModuleList(stack).parameters():
        nn.init.normal_(parameter)
    return stack


def _one_of(stack, place, layer):
    return [*stack[:place], layer.double().eval(), *stack[place + 1 :]]


@checker("exercise 1")
def check_mixes_images(answer: object) -> None:
    """answer(layers, maps) -> whether any image's output depends on its batch-mates.

    layers: a stack of layer attentions; maps: a list of as many (batch, channels, height, width).
    """
    maps = list(numbers(3, 4, CHANNELS, 5, 2))
    base = _stack(MRLABase)
    right = {"MRLABase": base, "DLABase": _stack(DLABase), "DLALight": _stack(DLALight)}
    wrong = {
        "DLABase with the first image's state, as released": _stack(_FirstImagesState),
        "a stack whose last layer lets image 2 see image 4": _one_of(base, 2, _Mixing(CHANNELS, 1, 3)),
        "a stack whose first layer lets image 1 see image 3": _one_of(base, 0, _Mixing(CHANNELS, 0, 2)),
    }
    for mixes, stacks in ((False, right), (True, wrong)):
        for name, stack in stacks.items():
            given = run(answer, copy.deepcopy(stack), maps)
            if isinstance(given, torch.Tensor) and given.numel() == 1:
                given = given.item()
            if not isinstance(given, bool):
                raise Wrong(f"return True or False, not {given!r}")
            if given != mixes:
                raise Wrong(f"{name} {'mixes' if mixes else 'does not mix'} its images, "
                            f"and your function says {given}")


@checker("exercise 2")
def check_versions(answer: object) -> None:
    """answer(layers) -> (maps rewritten in a forward pass of a DLA-B stage, versions of all values)."""
    for layers in (1, 5, 2, 9):
        rewritten, versions = pair(run(answer, layers), "the maps rewritten", "the versions")
        wanted = layers * (layers - 1) // 2
        for name, given, right in (("rewritten", rewritten, wanted), ("versions", versions, wanted + layers)):
            where = f"for {layers} layers the second number, all versions," if name == "versions" else \
                f"for {layers} layers the first number, the maps rewritten,"
            if isinstance(given, bool) or not isinstance(given, int | float):
                raise Wrong(f"{where} should be a number, not {given!r}")
            if given == right:
                continue
            if name == "rewritten" and given == wanted + layers:
                raise Wrong(f"{where} counts a layer's own map, which nobody has rewritten yet")
            if name == "rewritten" and given == layers - 1 and layers > 2:
                raise Wrong(f"{where} is that of the last layer alone; every layer rewrites")
            if name == "versions" and given == wanted:
                raise Wrong(f"{where} leaves out each map as it was first written")
            raise Wrong(f"{where} should be {right}, not {given}")


@checker("exercise 3")
def check_open_gates(answer: object) -> None:
    """answer: a DLABase class whose `rewritten` scales by 2 sigmoid(c'), for keys and for values."""
    if not isinstance(answer, type) or not hasattr(answer, "rewritten"):    # a notebook has its own DLABase
        raise Wrong("your class should be a DLABase: class OpenDLA(DLABase)")
    shared = DynamicUnit(CHANNELS).double()
    layer = run(answer, CHANNELS, HEAD_DIM, None, shared).double()
    key, value = numbers(2, CHANNELS // HEAD_DIM, HEAD_DIM), numbers(2, CHANNELS, 4, 5, seed=1)
    state = tuple(numbers(2, 2, CHANNELS, seed=2))
    of_key, of_value = pair(run(layer.rewritten, key, value, state), "the new key", "the new value")
    once = DLABase(CHANNELS, HEAD_DIM, shared=shared).double().rewritten(key, value, state)
    rows = zip(("key", "value"), (of_key, of_value), (key, value), once, strict=True)
    for name, given, old, halved in rows:
        if not isinstance(given, torch.Tensor) or given.shape != old.shape:
            raise Wrong(f"the new {name} should be a tensor of shape {tuple(old.shape)}, as the old one")
        blame(given, 2 * halved, [
            (halved, "the gates still start at one half"),
            (old, "nothing is rewritten: it should be scaled by the unit"),
            (4 * halved, "the gate is 2 sigmoid(c'), not 4 sigmoid(c')"),
        ], "it should be the old one times 2 sigmoid(c')", f"the new {name}: ")
    with torch.no_grad():
        for part in shared.parameters():
            part.zero_()
    maps, memory, plain = numbers(3, 2, CHANNELS, 4, 5, seed=3), None, None
    base = MRLABase(CHANNELS, HEAD_DIM).double()
    base.load_state_dict(layer.state_dict(), strict=False)
    for x in maps:
        output, memory = layer(x, memory)
        wanted, plain = base(x, plain)
    if not close(output, wanted):
        raise Wrong("with a unit whose parameters are all 0 your class should be MRLABase; "
                    "leave the context and the reading as they are")
