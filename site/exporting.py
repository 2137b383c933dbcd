"""What the scripts that make a page's numbers share: digits cut off, and numbers written as a script."""

import json
from collections.abc import Callable
from pathlib import Path

STATIC = Path(__file__).resolve().parent / "static"


def rounded(numbers: list | float, shorten: Callable[[float], float]) -> list | float:
    """Nested lists of numbers, each as `shorten` makes it."""
    return [rounded(each, shorten) for each in numbers] if isinstance(numbers, list) else shorten(numbers)


def five_digits(number: float) -> float:
    """The number to five significant digits."""
    return float(f"{number:.5g}")


def six_decimals(number: float) -> float | int:
    """The number to six decimals; a whole one without any."""
    short = round(number, 6)
    return int(short) if short == int(short) else short


def write(file: str, name: str, numbers: dict, said: str) -> None:
    """Write numbers into a file of site/static, a script that sets `name`; a page loads it, and node too.

    said: its first line, how it was made.
    """
    lines = [f"// Made by {said}.", f"const {name} = {json.dumps(numbers, separators=(',', ':'))};",
             f'if (typeof module !== "undefined") module.exports = {name};', ""]
    (STATIC / file).write_text("\n".join(lines), encoding="utf-8")
