"""What every exercise's checker is made of.

A checker runs the answer on inputs of its own, and says in one line, in the student's terms, what it found:

    @checker("exercise 1")
    def check_rows(answer):
        weights = tensor(run(answer, logits), (3, 5), "weights")
        if not close(weights.sum(dim=1), torch.ones(3)):
            raise Wrong("each query's weights should sum to 1")

    check_rows(my_function)          # prints "exercise 1: passed", or what is wrong, or "not attempted yet"
    check_rows.judge(my_function)    # the same as a pair (status, message), for tests
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from mrla_minimal.course.seeds import seeded
from mrla_minimal.lab.device import plain_defaults
from mrla_minimal.lab.own_files import first_line


class NotAttempted(Exception):
    """The answer is still the stub."""


class Wrong(Exception):
    """The answer is not right; the message says what is wrong."""


def _is_stub(value):
    """None or ..., or a tuple of nothing else: what a stub returns."""
    if isinstance(value, tuple):
        return len(value) > 0 and all(_is_stub(part) for part in value)
    return value is None or value is Ellipsis


def checker(title: str) -> Callable[[Callable[[object], object]], Callable[[object], None]]:
    """Decorator: turn a function that raises Wrong (or returns) into one that prints a line and returns None.

    The function gains `.judge(answer) -> (status, message)`, status one of "not attempted", "wrong",
    "passed". Neither lets an exception through, nor an answer that leaves the program, so that Run All
    reaches the notebook's end; only an interrupt passes. Neither touches torch's global random state, and
    neither minds other default types and devices.
    """
    def decorate(body):
        def judge(answer):
            if _is_stub(answer):
                return "not attempted", "not attempted yet"
            try:
                with seeded(0), plain_defaults():
                    body(answer)
            except (NotAttempted, NotImplementedError):
                return "not attempted", "not attempted yet"
            except Wrong as wrong:
                return "wrong", f"not yet: {wrong}"
            except (Exception, SystemExit) as error:    # an answer of a kind that the checker did not foresee
                return "wrong", f"not yet: the checker cannot use your answer ({first_line(error)})"
            return "passed", "passed"

        @functools.wraps(body)
        def check(answer):
            print(f"{title}: {judge(answer)[1]}")

        check.judge = judge
        return check

    return decorate


def _copy(value):
    """A copy of tensors, also inside lists and tuples; anything else as it is. Gradients reach the originals.
    """
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, (list, tuple)):
        return type(value)(_copy(part) for part in value)
    return value


def _same(a, b):
    """Whether two values that were equal still are: tensors by their numbers, lists by length and entries."""
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return True


def run(answer: object, *inputs: object) -> Any:
    """The answer's output on copies of `inputs`.

    Raises NotAttempted for a stub (the answer, or what it returns, is None or ...; or it raises
    NotImplementedError), and Wrong if the answer cannot be called, raises, or changes an input in place.
    """
    if _is_stub(answer):
        raise NotAttempted
    if not callable(answer):
        raise Wrong(f"your answer should be a function, not of type {type(answer).__name__}")
    copies = _copy(inputs)
    try:
        output = answer(*copies)
    except NotImplementedError:
        raise NotAttempted from None
    except (Exception, SystemExit) as error:
        raise Wrong(f"your code raises {first_line(error)}") from error
    if _is_stub(output):
        raise NotAttempted
    for number, (given, after) in enumerate(zip(inputs, copies, strict=True), start=1):
        if not _same(given, after):
            kind = "list" if isinstance(given, list) else "tensor"
            raise Wrong(f"your code changes its input number {number} "
                        f"(a {kind}) in place; make a new one instead")
    return output


def tensor(output: object, shape: Iterable[int], name: str = "output") -> torch.Tensor:
    """`output`, if it is a tensor of that shape with finite numbers only; else raises Wrong."""
    shape = tuple(shape)
    if not isinstance(output, torch.Tensor):
        raise Wrong(f"your {name} should be a tensor, not of type {type(output).__name__}")
    if tuple(output.shape) != shape:
        raise Wrong(f"the shape of your {name} is {tuple(output.shape)}, it should be {shape}")
    if output.isnan().any():
        raise Wrong(f"your {name} contains NaN")
    if output.isinf().any():
        raise Wrong(f"your {name} contains infinite numbers")
    return output


def pair(output: object, first: str = "the output", second: str = "the memory for the next layer") -> tuple:
    """`output`, if it is a tuple of two things, called `first` and `second`; NotAttempted if both are None.
    """
    if not isinstance(output, tuple) or len(output) != 2:
        raise Wrong(f"return two things, {first} and {second}, in this order")
    if output[0] is None and output[1] is None:
        raise NotAttempted
    return output


def three_numbers(output: object, names: str) -> tuple[float, float, float]:
    """`output` as three floats, if it is three numbers (`names` says which); else raises Wrong.

    A NaN stays one.
    """
    if not isinstance(output, (tuple, list)) or len(output) != 3:
        raise Wrong(f"your function should return three numbers: {names}")
    if not all(isinstance(number, (int, float)) or getattr(number, "shape", None) == () for number in output):
        raise Wrong("each of the three should be one number")
    return tuple(float(number) for number in output)


def built(answer: object, channels: int, shape: Iterable[int]) -> nn.Module:
    """A new answer(channels), once another was found to be a module, and no stub, on a map of `shape`.

    Raises NotAttempted or Wrong if it is none.
    """
    layer = run(answer, channels)
    if not isinstance(layer, nn.Module):
        raise Wrong(f"your answer(channels) should make a module, not a {type(layer).__name__}")
    run(layer, numbers(*shape).float(), None)       # a stub is a stub before it is a wrong module
    return run(answer, channels)        # nothing that the first one kept


def outputs_and_values(answer: object, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A stack of new answer(channels), one a map, each given what the one before handed on.

    maps (layers, batch, channels, height, width) -> the outputs, and what each layer's convolution `value`
    makes of its map, of the same shape. Each `value` has weights of its own. Raises NotAttempted or Wrong, as
    `built` does, also for a class without such a convolution.
    """
    layers = [built(answer, maps.shape[2], maps.shape[1:]) for _ in maps]
    if not all(isinstance(getattr(layer, "value", None), nn.Conv2d) for layer in layers):
        raise Wrong("your class should keep its depthwise convolution as self.value")
    outputs, memory, values = [], None, []
    for layer, x in zip(layers, maps, strict=True):
        with torch.no_grad():
            layer.value.weight.normal_(std=0.5)
        output, memory = pair(run(layer.float(), x, memory))
        outputs.append(tensor(output, x.shape))
        values.append(layer.value(x))
    return torch.stack(outputs), torch.stack(values)


def close(a: torch.Tensor | float, b: torch.Tensor | float, tolerance: float = 1e-8) -> bool:
    """Whether two tensors (or numbers) agree in shape and in every entry.

    The tolerance is relative to b's largest number, or to 1.

    False wherever a NaN is. Where one is float32 (torch.zeros makes it so) its own precision is asked, not
    `tolerance`.
    """
    a, b = torch.as_tensor(a).detach(), torch.as_tensor(b).detach()
    if a.shape != b.shape:
        return False
    if a.numel() == 0:
        return True
    if torch.float32 in (a.dtype, b.dtype):
        tolerance = max(tolerance, 1e-5)
    a, b = a.double(), b.double()
    return bool(((a - b).abs() <= tolerance * max(1.0, b.abs().max().item())).all())


def blame(given: torch.Tensor | float, right: torch.Tensor | float, mistakes: dict | Iterable[tuple],
          otherwise: str, prefix: str = "") -> None:
    """Raises Wrong unless `given` is `right`, with the message of the first mistake that gives the same.

    mistakes: pairs (what the mistake gives, message), or a dictionary message -> what the mistake gives;
    `otherwise` is the message if none of them fits. `prefix` goes before any of them.
    """
    if close(given, right):
        return
    if isinstance(mistakes, dict):
        mistakes = ((wrong, message) for message, wrong in mistakes.items())
    for wrong, message in mistakes:
        if close(given, wrong) and not close(wrong, right):
            raise Wrong(prefix + message)
    raise Wrong(prefix + otherwise)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    """Fixed normal numbers, float64, the same on every machine; torch's own random state stays as it is."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
