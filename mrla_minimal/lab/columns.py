"""Columns of a printed table, as wide as what stands in them."""

from collections.abc import Iterable


def first_column(names: Iterable[str], least: int) -> int:
    """Its width, in characters: `least`, or more where a name is longer, so that columns stay columns."""
    return max(least, *map(len, names), 0)


def row(name: str, cells: Iterable[str], wide: int, each: int) -> str:
    """A line: a name, `wide` characters, a space, then cells of `each`, all of them from the left."""
    return f"{name:<{wide}} " + "".join(f"{cell:<{each}}" for cell in cells).rstrip()
