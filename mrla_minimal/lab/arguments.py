"""One way of checking what is given.

Each check takes a name and a value, and returns the value in Python's own type: numpy's integers, floats
and booleans are welcome, and JSON can hold what comes out. What is not allowed is a ValueError that says
its name, what was given and what is allowed.
"""

import math
import numbers
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from mrla_minimal.lab.data import Cifar

LARGEST = 2**31 - 1


def one_of(name: str, value: object, allowed: Iterable) -> str | None:
    """One of a few values (texts, None); returned as it is."""
    for choice in allowed:
        if value is choice or (isinstance(value, type(choice)) and value == choice):
            return choice
    raise ValueError(f"{name} must be one of {', '.join(map(_choice, allowed))}, not {shown(value)}")


def boolean(name: str, value: object) -> bool:
    """True or False; a text, or a 1, is neither."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, not {shown(value)}")
    return bool(value)


def text(name: str, value: object) -> str:
    """A text that is not empty; of a path, its text."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise ValueError(f"{name} must be a text, not {shown(value)}")
    return str(os.fspath(value))


def integer(name: str, value: object, least: int = 1, most: int = LARGEST) -> int:
    """An integer from `least` to `most`."""
    if not _is(value, numbers.Integral) or not least <= value <= most:
        allowed = f"an integer from {least} to {most},"
        if least == 1:
            allowed = f"a positive integer, at most {most},"
        raise ValueError(f"{name} must be {allowed} not {shown(value)}")
    return int(value)


def integer_of(allowed: tuple[int, ...]) -> Callable:
    """The check that an integer is one of a few."""
    def checked(name, value):
        if not _is(value, numbers.Integral) or value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, not {shown(value)}")
        return int(value)
    return checked


def positive(name: str, value: object) -> float:
    """A finite number above 0."""
    return _number(name, value, lambda number: number > 0, "a positive number")


def not_negative(name: str, value: object) -> float:
    """A finite number from 0 on."""
    return _number(name, value, lambda number: number >= 0, "a number from 0 on")


def below_one(name: str, value: object) -> float:
    """A number that is at least 0 and below 1, such as a probability of leaving something out."""
    return _number(name, value, lambda number: 0 <= number < 1, "a number of at least 0 and below 1")


def share(name: str, value: object) -> float:
    """A number from 0 to 1, such as an accuracy."""
    return _number(name, value, lambda number: 0 <= number <= 1, "a number from 0 to 1")


def or_none(check: Callable) -> Callable:
    """The check that lets None through as well."""
    def checked(name, value):
        try:
            return None if value is None else check(name, value)
        except ValueError as error:
            allowed, _, given = str(error).partition("not ")
            raise ValueError(f"{allowed}or none, not {given}") from None
    return checked


def images(name: str, data: object) -> "Cifar":
    """Images of one's own, given as a `Cifar`; returned as they are.

    Both splits need images uint8 (N, channels, height, width), of one shape, and labels int64 (N,) from 0
    to the number of classes - 1. Classes, source and fingerprint are texts.
    """
    for what in ("source", "fingerprint"):
        text(f"{name}.{what}", getattr(data, what, None))
    classes = getattr(data, "classes", None)
    if not isinstance(classes, tuple | list) or not classes:
        raise ValueError(f"{name}.classes must be a tuple of names, not {shown(classes)}")
    for each in classes:
        text(f"a name in {name}.classes", each)
    for part in ("train", "test"):
        split = getattr(data, part, None)
        pixels, labels = getattr(split, "images", None), getattr(split, "labels", None)
        if not _is_tensor(pixels, torch.uint8) or pixels.dim() != 4 or not len(pixels):
            raise ValueError(f"{name}.{part}.images must be a uint8 tensor (N, channels, height, width), "
                             f"not {shown(pixels)}")
        if not _is_tensor(labels, torch.int64) or labels.shape != pixels.shape[:1]:
            raise ValueError(f"{name}.{part}.labels must be an int64 tensor ({len(pixels)},), "
                             f"not {shown(labels)}")
        if labels.min() < 0 or labels.max() >= len(classes):
            raise ValueError(f"{name}.{part}.labels must be from 0 to {len(classes) - 1}, for "
                             f"{name}.classes holds {len(classes)} names; "
                             f"they go from {labels.min()} to {labels.max()}")
    sizes = [tuple(split.images.shape[1:]) for split in (data.train, data.test)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"{name}.train and {name}.test must hold images of one shape, "
                         f"not {sizes[0]} and {sizes[1]}")
    return data


def _is_tensor(value, dtype):
    return isinstance(value, torch.Tensor) and value.dtype == dtype


def shown(value: object, length: int = 60) -> str:
    """What was given, short enough for a message of one line."""
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"
    try:
        whole = repr(value.item() if isinstance(value, np.generic) else value)
    except Exception as error:      # Python itself refuses to write out an integer of over 4300 digits
        whole = f"a {type(value).__name__} that cannot be shown ({type(error).__name__})"
    return " ".join(whole.split()) if len(whole) <= length else f"{' '.join(whole.split())[:length]}..."


def _choice(value):
    return "none" if value is None else repr(value)


def _is(value, kind):
    return isinstance(value, kind) and not isinstance(value, bool | np.bool_)


def _number(name, value, inside, allowed):
    """The value as a float, if it is a finite number inside the range."""
    try:
        number = float(value) if _is(value, numbers.Real) else math.nan
    except OverflowError:       # an integer of over 300 digits
        number = math.nan
    if not math.isfinite(number) or not inside(number):
        raise ValueError(f"{name} must be {allowed}, not {shown(value)}")
    return number
