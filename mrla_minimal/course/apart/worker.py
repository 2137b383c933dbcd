"""The process at the other end: it loads a stranger's code, and does what it is asked with it.

It judges nothing and knows no expectation. Things that cannot cross, functions, classes and modules, stay
here under a number, and are asked for by it.
"""

import collections
import copy
import ctypes
import os
import struct
import sys
import threading
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import nn

from mrla_minimal.course.apart.whole import is_whole, put_together, state_of, taken_apart
from mrla_minimal.course.apart.wire import outline, pack, unpack
from mrla_minimal.course.quiz_methods import Layers
from mrla_minimal.hosting import sharing
from mrla_minimal.lab.cost import count_macs
from mrla_minimal.lab.device import plain_defaults
from mrla_minimal.lab.own_files import first_line, running_again, where
from mrla_minimal.lab.plugins import load_class

FILE_SIZE = 2**28
# The parts that a module of torch's own stands for at the other end, and what builds it
PARTS = {nn.Conv1d: ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
         nn.Linear: ("in_features", "out_features"), nn.Identity: ()}
PARTS[nn.Conv2d] = PARTS[nn.Conv1d]
SAID = ("relu_after_norm", "takes_block_input", "is_gate")      # what a class says of itself, see README.md
LAYERS = 0      # the number of what makes layers of a class
# An exception crosses as the nearest of these
ERRORS = ("NotImplementedError", "RuntimeError", "ValueError", "BaseException")


class Worker:
    """The things of one submission, and the questions that may be asked of them: its public methods."""

    def __init__(self):
        self.things = {LAYERS: _layers}
        self._parameters = {}   # by their id: (number, parameter), for one may be in several modules
        self._gives_whole, self._learning = True, []
        self.graphs = {}        # of calls whose gradients may be asked for: (outputs, inputs, parameters)
        self.beside = ExitStack()
        self._given = []        # the question's tensors that require gradients: (leaf, what stands for it)

    def answer(self, message: bytes) -> bytes:
        """What a question gives, packed: its value, or {"error": ...}; the graph of its tensors is kept."""
        question = unpack(message, self._restore, self._as_in_a_network)
        for number in question.pop("forget"):
            self.graphs.pop(number, None)
        ask, number, target = question.pop("do"), question.pop("graph", None), question.get("target")
        try:
            message, outputs = pack(getattr(self, ask)(**question), self._describe)
        except (Exception, SystemExit) as error:
            thing = self.things.get(target)
            attention = thing if thing is None or isinstance(thing, type) else type(thing)
            kind = next(base.__name__ for base in type(error).__mro__ if base.__name__ in ERRORS)
            return pack({"error": [kind, first_line(error), where(error, attention)]})[0]
        if outputs:
            self.graphs[number] = outputs, [leaf for leaf, _ in self._given] + self._learning
        return message

    # Questions

    def ready(self) -> None:
        """Nothing, as soon as all that this module imports is there."""

    def load(self, path: str, class_name: str | None) -> dict:
        """The class of a file; what it imports later is looked for beside the file too."""
        self.beside.close()
        loaded = load_class(path, class_name)
        self.beside.enter_context(running_again(loaded.__module__))
        return {"value": loaded}

    def work_in(self, folder: str, data: str | None) -> None:
        """Go to a folder. Images that were downloaded are looked for in `data`, if in nothing else by now."""
        os.chdir(folder)
        if data is not None:
            os.environ.setdefault("MRLA_DATA", data)

    def run_cell(self, source: str) -> str | None:
        """Run a notebook's cell; what it raises, on one line, or None."""
        from IPython.core.interactiveshell import InteractiveShell

        result = InteractiveShell.instance().run_cell(source)
        error = result.error_before_exec or result.error_in_exec
        return None if error is None else first_line(error)

    def value(self, expression: str) -> dict:
        """The value of an expression among a notebook's variables."""
        from IPython.core.interactiveshell import InteractiveShell

        return {"value": eval(expression, InteractiveShell.instance().user_ns)}

    def call(self, target: int, arguments: list, named: dict, settings: dict) -> dict:
        """What thing number `target` returns, and what the call has changed. `settings`: see remote.py."""
        thing, state = self.things[target], settings["state"]
        self._gives_whole = not isinstance(thing, type)     # what a class makes is asked for more
        self._learning = []
        with ExitStack() as stack:
            stack.enter_context(plain_defaults())
            if isinstance(thing, nn.Module):
                _take(thing, state)
                # not what the call makes: the other end does not know of it yet
                self._learning = [parameter for parameter in thing.parameters() if parameter.requires_grad]
            macs = None
            if settings["count"]:
                macs = count_macs(_OneCall(thing, arguments, named), 1, in_channels=1)
            if settings["random"] is not None:
                torch.set_rng_state(settings["random"])
            stack.enter_context(torch.set_grad_enabled(settings["gradients"]))
            if settings["autocast"]:
                stack.enter_context(torch.autocast("cpu", getattr(torch, settings["autocast"])))
            before, seen = self._seen_from_outside(arguments, named), []
            for name in settings["watch"]:
                hook = thing.get_submodule(name).register_forward_hook(
                    lambda module, given, output, name=name: seen.append([name, output.detach()]))
                stack.callback(hook.remove)
            value = thing(*arguments, **named)
        changed = before != self._seen_from_outside(arguments, named)
        return {"value": value, "macs": macs, "seen": seen,
                "arguments": self._without_graph([arguments, named]) if changed else None,
                "state": self._changed_state(thing, state) if isinstance(thing, nn.Module) else None,
                "random": torch.get_rng_state() if settings["random"] is not None else None}

    def backward(self, call: int, gradients: list) -> list:
        """Gradients of a call's inputs, then of the parameters, that require one; None where none comes."""
        outputs, wanted = self.graphs[call]
        pairs = [(output, gradient) for output, gradient in zip(outputs, gradients, strict=True)
                 if gradient is not None]
        if not pairs or not wanted:
            return [None] * len(wanted)
        reached, given = zip(*pairs, strict=True)
        return list(torch.autograd.grad(reached, wanted, given, retain_graph=True, allow_unused=True))

    def duplicate(self, target: int) -> dict:
        """A deep copy of a module."""
        return {"value": copy.deepcopy(self.things[target])}

    def mode(self, target: int, training: bool) -> None:
        """Put a module into training or evaluation mode."""
        self.things[target].train(training)

    # Things

    def _describe(self, thing):
        """What is told of a thing; of what is made of others, its parts, which cross with it."""
        told = {"name": type(thing).__name__}
        if isinstance(thing, nn.Module) and self._gives_whole and is_whole(thing):
            return {"whole": taken_apart(thing)}
        if isinstance(thing, nn.Module):
            return told | {"kind": "module", "number": self._number(thing), **self._parts_of(thing)}
        if callable(thing):
            a_class = isinstance(thing, type) and issubclass(thing, nn.Module)
            return {"kind": "class" if a_class else "function", "number": self._number(thing),
                    "name": str(getattr(thing, "__name__", told["name"])),
                    "shared_part": getattr(thing, "shared_part", None) if a_class else None}
        told["number"] = self._number(type(thing))
        if isinstance(thing, list | tuple | collections.deque):
            return told | {"kind": "sequence", "parts": list(thing)}
        if isinstance(thing, dict):
            return told | {"kind": "mapping", "parts": dict(thing)}
        if hasattr(thing, "__dict__"):
            return told | {"kind": "object", "parts": dict(vars(thing))}
        return told | {"kind": "object", "number": self._number(thing)}

    def _number(self, thing):
        number = next((number for number, known in self.things.items() if known is thing), len(self.things))
        self.things[number] = thing
        return number

    def _restore(self, told):
        """The thing of a number, a new one of that class with these parts, or a module that came whole."""
        if "whole" in told:
            return put_together(told["whole"])
        thing, parts = self.things[told["number"]], told.get("parts")
        if parts is None:
            return thing
        if issubclass(thing, list | tuple | collections.deque):
            return thing._make(parts) if hasattr(thing, "_make") else thing(parts)
        made = thing.__new__(thing)
        (made if isinstance(made, dict) else vars(made)).update(parts)
        return made

    def _as_in_a_network(self, leaves):
        """What a layer is given there is no leaf: it may be changed in place."""
        self._given = [(leaf, leaf.clone()) for leaf in leaves]
        return [clone for _, clone in self._given]

    def _seen_from_outside(self, *values):
        tree, tensors = outline(values, self._describe)
        return tree, [(id(tensor), tensor._version) for tensor in tensors]

    def _without_graph(self, value):
        message, _ = pack(value, self._describe)
        return unpack(message, self._restore, lambda tensors: [tensor.detach() for tensor in tensors])

    def _parts_of(self, module):
        """What stands for a module at the other end: its modules by name, with the state that each holds.

        A parameter has a number, by which one that is there twice, or in several modules, is known.
        """
        parts = []
        for name, part in module.named_modules(remove_duplicate=False):
            kind = type(part) if type(part) in PARTS else None
            sizes = {size: getattr(part, size) for size in PARTS[kind]} if kind else {}
            parameters = [[of, tensor.detach(), tensor.requires_grad, self._number_of(tensor)]
                          for of, tensor in part._parameters.items() if tensor is not None]
            buffers = [[of, tensor.detach(), of not in part._non_persistent_buffers_set]
                       for of, tensor in part._buffers.items() if tensor is not None]
            parts.append({"name": name, "kind": kind and kind.__name__, "sizes": sizes,
                          "parameters": parameters, "buffers": buffers})
        said = {name: bool(getattr(module, name)) for name in SAID if hasattr(module, name)}
        return {"modules": parts, "said": said, "training": module.training}

    def _number_of(self, parameter):
        return self._parameters.setdefault(id(parameter), (len(self._parameters), parameter))[0]

    def _changed_state(self, module, state):
        """The parts anew where a call has made parameters or buffers; else the values that it has changed."""
        now = state_of(module)
        if now.keys() != state.keys():
            return self._parts_of(module)
        changed = {name: value.detach() for name, value in now.items() if not torch.equal(value, state[name])}
        return changed or None


def _layers(attention, channels, count):
    return Layers(map(sharing(attention), [channels] * count))


class _OneCall(nn.Module):
    """A call with certain arguments as a model of an image, which count_macs asks for."""

    def __init__(self, thing, arguments, named):
        super().__init__()
        self.thing, self.arguments, self.named = thing, arguments, named
        self.something = nn.Parameter(torch.zeros(1))

    def forward(self, image):
        return self.thing(*self.arguments, **self.named)


def _take(module, state):
    """Let the module's parameters and buffers be those that the other end holds.

    By .data: of a value that is as before, autograd need not know.
    """
    for name, tensor in state_of(module).items():
        value = state.get(name)
        if value is not None and (value.dtype != tensor.dtype or not torch.equal(value, tensor)):
            tensor.data = value


def _limit(memory):
    """No more address space than there is now and `memory` bytes, no large files, no life without the grader.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, 9)       # PR_SET_PDEATHSIG, SIGKILL
        ctypes.CDLL(None).prctl(36, 1)      # PR_SET_CHILD_SUBREAPER: what its children leave is its own
    with suppress(ImportError, ValueError, OSError):        # Windows has none of it, macOS the first two
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, FILE_SIZE))
        with open("/proc/self/statm", encoding="ascii") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + memory, taken + memory))


def _pipes():
    """What questions come by and answers go by; what the code reads and prints is elsewhere from now."""
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    return questions, answers


def main(memory: int) -> Any:
    """Answer questions until there are no more. Each, and each answer, comes after its length."""
    questions, answers = _pipes()
    worker = Worker()
    torch.zeros(2, 2).requires_grad_().exp().sum().backward()       # torch's own room is not the code's
    _limit(memory)
    while len(length := questions.read(8)) == 8:
        answer = worker.answer(questions.read(*struct.unpack("<Q", length)))
        answers.write(struct.pack("<Q", len(answer)) + answer)
        answers.flush()
    worker.beside.close()
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    if all(thread.daemon for thread in others):
        os._exit(0)         # at once; else Python waits for what the code has started, and the grader sees it
