"""What stands in the grader for the things of a submission's process: checkers use it as the thing itself.

    with Remote(seconds=120, memory=4 * 2**30) as remote:
        attention = remote.load("my_attention.py")      # a class
        output, memory = attention(16)(x, None)         # computed over there; gradients come back as well

A class or function is called over there. A module keeps its parameters and buffers here, where optimisers and
checkers change them, and sends them along with every call; autograd crosses by a function of its own. What
the submission's process holds is never believed of a verdict: it is asked for arrays, and those are judged.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn

from mrla_minimal.course.apart.process import Process, visible
from mrla_minimal.course.apart.things import FOUL, described, made, write_back
from mrla_minimal.course.apart.wire import outline, pack, unpack
from mrla_minimal.lab.own_files import Told


class _ToldRuntimeError(Told, RuntimeError):
    """torch's own, for whoever asks."""


ALONE = "submission.py"         # not the file's own name: einops.py shall find einops, and not itself
ERRORS = {"RuntimeError": _ToldRuntimeError}


class Remote:
    """A process with limits, and its things: `with Remote(seconds, memory) as remote:`."""

    def __init__(self, seconds: float, memory: int):
        self.process = Process(seconds, memory)
        self._spelt = {}                # what a file is called over there -> what the messages here call it
        self.counted = None             # multiply-adds of the calls, where somebody counts
        self.parameters = WeakValueDictionary()     # by the number of each over there
        self._numbers = itertools.count(1)
        self._forgotten = []            # calls whose gradients nobody can ask for any more

    def __enter__(self) -> "Remote":
        self.process.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.__exit__(*exception)

    def start_the_clock(self) -> None:
        """From here on its seconds count: it has come up, which a cold disk makes slow."""
        self.ask("ready")
        self.process.start_the_clock()

    def load(self, path: str | Path, class_name: str | None = None, alone: bool = False) -> type[nn.Module]:
        """What stands for the nn.Module class of a Python file.

        `alone`: a copy of it is loaded, from the process's own folder, so that it imports nothing that lies
        beside the file. Raises ValueError as `load_class` does; messages name `path` as it was given.
        """
        there = Path(path).resolve()
        if alone:
            there = self.process.folder.resolve() / ALONE
            there.write_bytes(Path(path).read_bytes())
        self._spelt = {str(there): str(path), there.name: Path(path).name}
        try:
            return self.ask("load", path=str(there), class_name=class_name)["value"]
        except Told as error:
            raise ValueError(error.text.removeprefix("ValueError: ")) from None

    @contextmanager
    def counting(self) -> Iterator[list[int]]:
        """Within it the multiply-adds of each call over there are added to the list."""
        self.counted = []
        try:
            yield self.counted
        finally:
            self.counted = None

    def ask(self, what: str, instead: Any = list, **question: Any) -> Any:
        """The answer to a question of worker.py. Raises Ended, and as `Told` what was raised over there."""
        forgotten, self._forgotten = self._forgotten, []
        message, _ = pack({"do": what, "forget": forgotten, **question}, described)
        answer = self.process.ask(message)
        try:
            told = unpack(answer, self._restored, instead)
            error = told.get("error") if isinstance(told, dict) else None
            if error is None:
                return told
            kind, text, place = (_clean(part, self._spelt) for part in error)
        except FOUL as foul:
            raise self.process.foul(foul) from foul
        if kind == "NotImplementedError":
            raise NotImplementedError(text)
        raise ERRORS.get(kind, Told)(text, place)

    def call(self, number: int, arguments: tuple, named: dict, state: dict | None = None,
             watch: Sequence[str] = ()) -> dict:
        """The answer to "call" of a thing; what a call changes in its arguments is changed here as well.

        `state` is that of a module (anything else may draw random numbers: it goes on where they are here),
        and `watch` names those of its parts whose outputs are wanted.
        """
        settings = {
            "state": {name: value.detach() for name, value in (state or {}).items()}, "watch": list(watch),
            "gradients": torch.is_grad_enabled(), "count": self.counted is not None,
            "random": torch.get_rng_state() if state is None else None,
            "autocast": str(torch.get_autocast_dtype("cpu")).removeprefix("torch.")
            if torch.is_autocast_enabled("cpu") else None}
        graph = _Graph(self, next(self._numbers))
        _, tensors = outline([list(arguments), named], described)
        tensors += {id(tensor): tensor for tensor in (state or {}).values()}.values()
        inputs = [tensor for tensor in tensors if tensor.requires_grad]

        def joined(outputs):
            return _Crossing.apply(graph, outputs, *inputs) if outputs else []

        answer = self.ask("call", joined, target=number, arguments=list(arguments), named=named,
                          settings=settings, graph=graph.number)
        try:
            if answer["arguments"] is not None:
                write_back([list(arguments), named], answer["arguments"])
            if answer["random"] is not None:
                torch.set_rng_state(answer["random"])
            if self.counted is not None:
                self.counted.append(int(answer["macs"]))
            return {"value": answer["value"], "state": answer["state"], "seen": answer["seen"]}
        except FOUL as foul:
            raise self.process.foul(foul) from foul

    def forget(self, number: int) -> None:
        """Let the graph of a call go."""
        self._forgotten.append(number)

    def _restored(self, told):
        return made(self, told)


class _Graph:
    """A call whose gradients can be asked for as long as somebody holds this."""

    def __init__(self, remote, number):
        self.remote, self.number = remote, number

    def __del__(self):
        self.remote.forget(self.number)


class _Crossing(torch.autograd.Function):
    """From the inputs and parameters of a call to its outputs, which were computed over there."""

    @staticmethod
    def forward(ctx, graph, outputs, *inputs):
        ctx.graph, ctx.count = graph, len(inputs)
        ctx.set_materialize_grads(False)
        return tuple(output.detach() for output in outputs)

    @staticmethod
    def backward(ctx, *gradients):
        remote = ctx.graph.remote
        given = [None if gradient is None else gradient.detach() for gradient in gradients]
        answer = remote.ask("backward", call=ctx.graph.number, gradients=given)
        if not isinstance(answer, list) or len(answer) != ctx.count:
            raise remote.process.foul("other gradients than were asked for")
        return None, None, *answer


def _clean(text, spelt):
    text = text[:1000]
    if spelt:
        wanted = "|".join(map(re.escape, spelt))        # the path first, which ends in the name
        text = re.sub(rf"(?<![\w.-])(?:{wanted})", lambda found: spelt[found[0]], text)
    return "".join(map(visible, text)).replace("\n", " ")
