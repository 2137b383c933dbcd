"""Modules that cross whole: those made of the library's and torch's own classes alone, which both ends have.

Pickle would run what the sender names. Here nothing but attributes cross: the receiver makes objects of
classes that it knows already, without calling them, and gives them numbers, texts and tensors.
"""

import sys
from typing import Any

import torch
from torch import nn

OURS, TORCHS = "mrla_minimal.", "torch.nn.modules."


def is_whole(module: nn.Module) -> bool:
    """Whether a module is of the library's own class, and all its parts of the library's or of torch's."""
    return type(module).__module__.startswith(OURS) and all(
        type(part).__module__.startswith((OURS, TORCHS)) for part in module.modules())


def taken_apart(module: nn.Module) -> list[dict]:
    """What `put_together` makes the module of again: its parts, each after the one that it lies in."""
    known, parts = {}, []

    def crossing(tensor):
        """Without its graph, and the same for one that is there under two names."""
        return None if tensor is None else known.setdefault(id(tensor), tensor.detach())

    for name, part in module.named_modules(remove_duplicate=False):
        parts.append({
            "name": name, "module": type(part).__module__, "class": type(part).__qualname__,
            "plain": _plain_of(part),
            "parameters": {of: [crossing(tensor), tensor is not None and tensor.requires_grad]
                           for of, tensor in part._parameters.items()},
            "buffers": {of: [crossing(tensor), of not in part._non_persistent_buffers_set]
                        for of, tensor in part._buffers.items()},
            "missing": [of for of, inner in part._modules.items() if inner is None]})
    return parts


def put_together(parts: list[dict]) -> nn.Module:
    """The module again. Raises ValueError for a class that is neither the library's nor torch's, and others
    of those in things.FOUL for parts that `taken_apart` does not make."""
    known, whole = {}, None
    for told in parts:
        part = _class_of(told["module"], told["class"])
        made = part.__new__(part)
        nn.Module.__init__(made)
        for name, value in told["plain"].items():
            if not name.startswith("_") and _plain(value):
                vars(made)[name] = value
        for name, (tensor, needs_gradient) in told["parameters"].items():
            if tensor is not None:
                tensor = known.setdefault(id(tensor), nn.Parameter(tensor, needs_gradient is True))
            made.register_parameter(name, tensor)
        for name, (tensor, persistent) in told["buffers"].items():
            made.register_buffer(name, tensor, persistent is True)
        for name in told["missing"]:
            made.register_module(name, None)
        if told["name"]:
            *above, name = told["name"].split(".")
            whole.get_submodule(".".join(above)).add_module(name, made)
        else:
            whole = made
    return whole


def become(module: nn.Module, other: nn.Module) -> None:
    """Change a module in place into what another with the same parts is."""
    module.load_state_dict(other.state_dict())
    for name, part in other.named_modules():
        vars(module.get_submodule(name)).update(_plain_of(part))


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """A module's parameters and buffers, all of them, by all their names."""
    return {**dict(module.named_parameters(remove_duplicate=False)),
            **dict(module.named_buffers(remove_duplicate=False))}


def _plain_of(module):
    return {name: value for name, value in vars(module).items() if not name.startswith("_") and _plain(value)}


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return type(value) in (list, tuple) and all(map(_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def _class_of(module, name):
    found = getattr(sys.modules.get(module), name, None) if module.startswith((OURS, TORCHS)) else None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"{module}.{name} is no module of the library")
    return found
