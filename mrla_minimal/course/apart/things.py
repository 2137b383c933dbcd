"""What stands in the grader for the things of a submission's process: see remote.py."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mrla_minimal.course.apart.whole import become, is_whole, put_together, state_of, taken_apart
from mrla_minimal.course.apart.worker import LAYERS

if TYPE_CHECKING:
    from mrla_minimal.course.apart.remote import Remote

PARTS = {kind.__name__: kind for kind in (nn.Conv1d, nn.Conv2d, nn.Linear, nn.Identity)}
# What an answer of the wrong kind may do to the code that reads it: whoever holds the other end may send it
FOUL = Exception


class RemoteModule(nn.Module):
    """A module whose parameters are here and whose forward runs over there.

    Its parts have their names, and are torch's own where they are plain convolutions, linear maps or
    nn.Identity; hooks of an nn.Identity see what passes through it over there.
    """

    def __init__(self, told: dict):
        super().__init__()
        self._number = int(told["number"])
        self._make(told)

    def _make(self, told):
        """Parts, parameters and buffers as they are told; what is here already keeps its place."""
        for name, value in told["said"].items():
            setattr(self, name, value is True)
        here = state_of(self)
        for part in told["modules"]:
            module = _part(self, part)
            for name, tensor, needs_gradient, number in part["parameters"]:
                if f"{part['name']}.{name}".lstrip(".") not in here:
                    known = self._remote.parameters.setdefault(
                        int(number), nn.Parameter(tensor, needs_gradient is True))
                    module.register_parameter(name, known)
            for name, tensor, persistent in part["buffers"]:
                if f"{part['name']}.{name}".lstrip(".") not in here:
                    module.register_buffer(name, tensor, persistent is True)
        super().train(told["training"] is True)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """What the module over there returns."""
        watch = [name for name, part in self.named_modules() if part._forward_hooks and name]
        answer = self._remote.call(self._number, arguments, named, state_of(self), watch)
        try:
            self._take(answer["state"])
            for name, output in answer["seen"]:
                self.get_submodule(name)(output)
        except FOUL as foul:
            raise self._remote.process.foul(foul) from foul
        return answer["value"]

    @torch.no_grad()
    def _take(self, state):
        """What a call has changed in the state."""
        if state is not None and "modules" in state:
            self._make(state)
            state = {f"{part['name']}.{name}".lstrip("."): value for part in state["modules"]
                     for name, value, *_ in [*part["parameters"], *part["buffers"]]}
        here = state_of(self)
        for name, value in (state or {}).items():
            here[name].copy_(value)

    def train(self, mode: bool = True) -> "RemoteModule":
        """Training or evaluation mode, here and over there."""
        self._remote.ask("mode", target=self._number, training=bool(mode))
        return super().train(mode)

    def __deepcopy__(self, memo: dict) -> "RemoteModule":
        twin = self._remote.ask("duplicate", target=self._number)["value"]
        theirs = state_of(twin)
        for name, tensor in state_of(self).items():
            theirs[name].data = tensor.detach().clone()
        return twin


class _Class(type):
    """A class over there: to make an instance of it is a call."""

    def __call__(cls, *arguments, **named):
        return cls._remote.call(cls._number, arguments, named)["value"]

    def layers(cls, channels: int, count: int) -> RemoteModule:
        """`Layers` of the class, asked as one."""
        return cls._remote.call(LAYERS, (cls, channels, count), {})["value"]

    def counting(cls):
        """See `Remote.counting`."""
        return cls._remote.counting()


class _Function:
    def __init__(self, remote, number):
        self._remote, self._number = remote, number

    def __call__(self, *arguments, **named):
        return self._remote.call(self._number, arguments, named)["value"]


class _Sequence(tuple):
    @classmethod
    def _made(cls, parts):
        return cls(parts)


class _Mapping(dict):
    @classmethod
    def _made(cls, parts):
        return cls(parts)


class _Object:
    @classmethod
    def _made(cls, parts):
        made = cls()
        vars(made).update(parts or {})
        return made


def made(remote: "Remote", told: dict) -> object:
    """What stands here for a thing of which this is told (`_describe` in worker.py)."""
    if "whole" in told:
        return put_together(told["whole"])
    kind, name, number = told["kind"], _identifier(told["name"]), int(told["number"])
    if kind == "class":
        shared = {"shared_part": told["shared_part"]} if told["shared_part"] is not None else {}
        return _Class(name, (RemoteModule,), {"_remote": remote, "_number": number, **shared})
    if kind == "module":
        return type(name, (RemoteModule,), {"_remote": remote})(told)
    if kind == "function":
        return type(name, (_Function,), {"__name__": name})(remote, number)
    base = {"sequence": _Sequence, "mapping": _Mapping, "object": _Object}[kind]
    return type(name, (base,), {"_number": number})._made(told.get("parts"))


def described(thing: object) -> dict:
    """What is told over there of a thing that stands here for one of theirs."""
    if isinstance(thing, _Sequence):
        return {"number": thing._number, "parts": list(thing)}
    if isinstance(thing, _Mapping):
        return {"number": thing._number, "parts": dict(thing)}
    if isinstance(thing, _Object):
        return {"number": thing._number, "parts": dict(vars(thing))}
    if isinstance(thing, RemoteModule | _Class | _Function):
        return {"number": thing._number}
    if isinstance(thing, nn.Module) and is_whole(thing):
        return {"whole": taken_apart(thing)}
    raise ValueError(f"a {type(thing).__name__} cannot be handed over")


def _part(module, told):
    """The part of a module that bears this name, made if it is not there."""
    if not told["name"]:
        return module
    *above, name = told["name"].split(".")
    holder = module.get_submodule(".".join(above))
    if name not in holder._modules:
        kind = PARTS.get(told["kind"])
        if kind is None:
            made = nn.Module()
        elif kind is nn.Identity:
            made = nn.Identity()
        else:
            bias = any(of == "bias" for of, *_ in told["parameters"])
            made = kind(**told["sizes"], bias=bias, device="meta")
            for of in list(made._parameters):
                made._parameters[of] = None     # theirs is registered in its place
        holder.add_module(name, made)
    return holder._modules[name]


def write_back(old: Any, new: Any) -> None:
    """Change `old` in place into what it has become over there."""
    if isinstance(old, torch.Tensor):
        old.data.copy_(new)
    elif isinstance(old, nn.Module):
        if is_whole(old):
            become(old, new)
    elif isinstance(old, list):
        for before, after in zip(old, new, strict=False):
            write_back(before, after)
        old[:] = [*old[: len(new)], *new[len(old) :]]
    elif isinstance(old, tuple):
        for before, after in zip(old, new, strict=True):
            write_back(before, after)
    elif isinstance(old, dict) or isinstance(old, _Object):
        here, there = (value if isinstance(value, dict) else vars(value) for value in (old, new))
        for key in [key for key in here if key not in there]:
            del here[key]
        for key, after in there.items():
            if key in here:
                write_back(here[key], after)
            else:
                here[key] = after


def _identifier(name):
    return name if isinstance(name, str) and name.isidentifier() and len(name) < 100 else "Thing"
