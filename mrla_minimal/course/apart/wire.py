"""What crosses between the grader and the process that runs a stranger's code: numbers, and names of things.

A message is a header of JSON and the bytes of its tensors. Reading one runs no code, as unpickling would, and
takes no more memory than the message: whoever holds the other end may send anything.

Tensors, lists, tuples, dictionaries, numbers and texts cross as they are. Whatever else there is stays where
it is; `describe` gives what is told of it, and `restore` makes of that what stands for it at the other end.
"""

import json
import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

LARGEST_HEADER = 2**24
LARGEST = 2**28         # bytes of a message: a batch of the largest maps takes a hundredth
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16,
    torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Foul(Exception):
    """Not a message that this module makes."""


def outline(value: Any, describe: Callable[[object], Any] | None = None) -> tuple[Any, list[torch.Tensor]]:
    """(what JSON can hold of `value`, its tensors in the order in which that names them).

    `describe(object)` gives a value that stands for an object of another kind. Raises ValueError for such an
    object without `describe`.
    """
    tensors, places = [], {}

    def node(value):
        if value is None or isinstance(value, bool) or type(value) in (int, float, str):
            return value
        if isinstance(value, torch.Tensor):
            if id(value) not in places:
                places[id(value)] = len(tensors)
                tensors.append(value)
            return ["tensor", places[id(value)]]
        if isinstance(value, np.generic):
            return node(value.item())
        if value is Ellipsis:
            return ["..."]
        if type(value) in (list, tuple):
            return [type(value).__name__, [node(part) for part in value]]
        if type(value) is dict:
            return ["dict", [[node(key), node(part)] for key, part in value.items()]]
        if describe is None:
            raise ValueError(f"a {type(value).__name__} cannot be handed over")
        return ["thing", node(describe(value))]

    return node(value), tensors


def pack(value: Any, describe: Callable[[object], Any] | None = None) -> tuple[bytes, list[torch.Tensor]]:
    """(a message that holds `value`, those of its tensors that require gradients). See `outline`.

    A tensor that is in it twice crosses once. Raises ValueError also for a tensor of an unusual kind, and for
    more than LARGEST bytes.
    """
    tree, tensors = outline(value, describe)
    listed, parts = [], []
    for tensor in tensors:
        order, data = _bytes_of(tensor)
        listed.append([NAMES[tensor.dtype], list(tensor.shape), order, tensor.requires_grad])
        parts.append(data)
    header = json.dumps([tree, listed]).encode()
    if len(header) > LARGEST_HEADER:
        raise ValueError(f"what is handed over has too many parts ({len(tensors)} tensors)")
    message = b"".join([struct.pack("<I", len(header)), header, *parts])
    if len(message) > LARGEST:
        raise ValueError(f"{len(message)} bytes are more than can be handed over ({LARGEST})")
    return message, [tensor for tensor in tensors if tensor.requires_grad]


def _bytes_of(tensor):
    """(the order of its dimensions in memory, or None; its numbers): channels last stays channels last."""
    if tensor.layout != torch.strided or tensor.dtype not in NAMES or tensor.device.type != "cpu":
        raise ValueError(f"a tensor of {tensor.dtype}, {tensor.layout}, on {tensor.device} "
                         "cannot be handed over")
    tensor, order = tensor.detach(), None
    if not tensor.is_contiguous():
        tensor = tensor.resolve_conj().resolve_neg()
        order = sorted(range(tensor.dim()), key=lambda dim: -tensor.stride(dim))
        order = order if tensor.permute(order).is_contiguous() else None
        tensor = (tensor.permute(order) if order else tensor).contiguous()
    return order, tensor.flatten().view(torch.uint8).numpy().tobytes()


def unpack(message: bytes, restore: Callable[[Any], object] | None = None,
           instead: Callable[[list[torch.Tensor]], Sequence[torch.Tensor]] = list) -> Any:
    """What a message holds.

    `restore(value)` makes something of what `describe` gave. `instead` is given the tensors that require
    gradients, as leaves, in the order in which `pack` gave them, and returns what stands in their place.
    Raises Foul for anything that `pack` does not make.
    """
    try:
        (length,) = struct.unpack_from("<I", message)
        if length > LARGEST_HEADER:     # a few bytes of JSON are many of Python's
            raise Foul(f"a header of {length} bytes")
        tree, listed = json.loads(message[4 : 4 + length].decode())
        tensors, place = [], 4 + length
        for name, shape, order, needs_gradient in listed:
            tensor, place = _tensor(message, place, DTYPES[name], shape, order)
            tensors.append(tensor.requires_grad_(needs_gradient is True))
        places = [place for place, tensor in enumerate(tensors) if tensor.requires_grad]
    except Foul:
        raise
    except Exception as error:
        raise Foul(f"{type(error).__name__} in a message") from error
    for place, tensor in zip(places, instead([tensors[place] for place in places]), strict=True):
        tensors[place] = tensor
    try:
        return _value(tree, tensors, restore)
    except Exception as error:
        raise Foul(f"{type(error).__name__} in a message") from error


def _tensor(message, place, dtype, shape, order):
    if not all(type(size) is int and size >= 0 for size in shape):
        raise Foul(f"a tensor of shape {shape}")
    if order is not None and sorted(order) != list(range(len(shape))):
        raise Foul(f"a tensor in order {order}")
    end = place + math.prod(shape) * dtype.itemsize
    if end > len(message):
        raise Foul("a tensor without its numbers")
    laid_out = shape if order is None else [shape[dim] for dim in order]
    data = bytearray(message[place:end])
    if not data:
        tensor = torch.empty(laid_out, dtype=dtype)
    elif dtype == torch.bool:       # a byte of 2 would be neither true nor false
        tensor = torch.frombuffer(data, dtype=torch.uint8).view(laid_out) != 0
    else:
        tensor = torch.frombuffer(data, dtype=dtype).view(laid_out)
    return tensor if order is None else tensor.permute([order.index(dim) for dim in range(len(order))]), end


def _value(node, tensors, restore):
    if not isinstance(node, list):
        if isinstance(node, dict):
            raise Foul("a bare object")
        return node
    kind, *rest = node
    if kind == "tensor":
        return tensors[rest[0]]
    if kind == "...":
        return Ellipsis
    if kind in ("list", "tuple"):
        parts = [_value(part, tensors, restore) for part in rest[0]]
        return parts if kind == "list" else tuple(parts)
    if kind == "dict":
        return {_value(key, tensors, restore): _value(part, tensors, restore) for key, part in rest[0]}
    if kind == "thing" and restore is not None:
        return restore(_value(rest[0], tensors, restore))
    raise Foul(f"{kind!r} is no kind of value")
