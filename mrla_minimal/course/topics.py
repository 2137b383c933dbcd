"""English text that is on every machine: what Python's own help() prints about its language.

The standard library keeps it in `pydoc_data.topics`. Each version of Python has another text, so a record
names the SHA-256 of the one it was made on, and `text_drawer` works on any.
"""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

HELD_OUT = 0.1                          # the last tenth is the test text


def topics_text() -> str:
    """All topics, in the order of their names, with an empty line between two."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def fingerprint(text: str) -> str:
    """The first 12 hex digits of the text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def encode(text: str) -> tuple[Tensor, str]:
    """The text as integers (characters,), and its symbols in order: symbol number n is the n-th of them."""
    symbols = "".join(sorted(set(text)))
    number = {symbol: place for place, symbol in enumerate(symbols)}
    return torch.tensor([number[symbol] for symbol in text]), symbols


def split(encoded: Tensor) -> tuple[Tensor, Tensor]:
    """The text to learn from, and the last tenth of it, to be tested on."""
    border = int(len(encoded) * (1 - HELD_OUT))
    return encoded[:border], encoded[border:]


def text_drawer(encoded: Tensor, context: int) -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
    """A function (count, generator) -> tokens (count, context), and each one's next symbol, as many.

    Raises ValueError for a text that is too short.
    """
    if len(encoded) <= context:
        raise ValueError(f"a text of {len(encoded)} symbols holds no piece of {context} and the one after")

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(encoded) - context, (count, 1), generator=generator)
        pieces = encoded[starts + torch.arange(context + 1)]
        return pieces[:, :-1], pieces[:, 1:]

    return draw
