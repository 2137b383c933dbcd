"""What the commands share: a parser with errors on one line, commands with examples, and kinds of values."""

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any

LONGEST_ERROR = 400     # characters: what was typed may be of any length

Outcome = tuple[int, dict[str, Any]]        # of a command: exit status, and what --json prints


class Parser(argparse.ArgumentParser):
    """argparse, with its error on one line and exit status 2."""

    def error(self, message: str) -> None:
        line = " ".join(message.split())
        self.exit(2, f"{self.prog}: {line if len(line) <= LONGEST_ERROR else line[:LONGEST_ERROR] + '...'}\n")


def add_command(
    commands: argparse._SubParsersAction,
    name: str,
    text: str,
    function: Callable,
    examples: Sequence[str],
    description: str | None = None,
) -> argparse.ArgumentParser:
    """A subcommand: `text` describes it in the list of commands, `examples` (command lines) end its own help.

    `function` is called with the parsed arguments. It returns the exit status, or (exit status, record): a
    dictionary for --json, which `json_option` adds.
    """
    epilog = "\n".join(["examples:", *(f"  {example}" for example in examples)])
    command = commands.add_parser(name, help=text, description=description or f"{text[0].upper()}{text[1:]}.",
                                  epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.set_defaults(function=function)
    return command


def json_option(command: argparse.ArgumentParser) -> None:
    """--json: main() sends what a command prints to stderr, and its record alone to stdout."""
    command.add_argument("--json", action="store_true", help="print one JSON object, and all else to stderr")


def quiet_option(command: argparse.ArgumentParser) -> None:
    """--quiet: neither progress nor notes."""
    command.add_argument("--quiet", action="store_true", help="print the result alone: no progress, no notes")


def trust_option(command: argparse.ArgumentParser) -> None:
    """--trust: the Python file that a run folder names may run."""
    command.add_argument("--trust", action="store_true",
                         help="run the Python file that this run's attention comes from, whoever wrote it")


@contextmanager
def hushed(quiet: bool) -> Iterator[None]:
    """Within it, if `quiet`, nothing is printed. An exception passes, and main() tells it all the same."""
    if not quiet:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as sink, redirect_stdout(sink), redirect_stderr(sink):
        yield


def whole(text: str) -> int:
    """A whole number of at most 18 digits: enough for any count, size or seed."""
    number = int(text)
    if abs(number) >= 10**18:
        raise argparse.ArgumentTypeError(f"{text[:20]}... is too large a number")
    return number


def positive(kind: Callable, allowed: str = "a positive number") -> Callable:
    """A number of that kind that is above 0 and finite; `allowed` says so where it is not."""

    def convert(text: str) -> float:
        with suppress(ValueError):
            number = kind(text)
            if 0 < number < float("inf"):
                return number
        raise argparse.ArgumentTypeError(f"must be {allowed}, not {text!r}")

    return convert


def jobs(text: str) -> int | None:
    """A number of processes above 0; None for the word auto."""
    return None if text == "auto" else positive(whole, "a positive whole number or auto")(text)


def or_none(kind: Callable) -> Callable:
    """A value of that kind, or the word none."""

    def convert(text: str) -> object:
        return None if text == "none" else kind(text)

    convert.__name__ = f"{kind.__name__} or none"
    return convert


def folder_name(text: str) -> str:
    """The name of one folder: no path, nothing that cannot be printed."""
    if text in ("", ".", "..") or not text.isprintable() or any(letter in text for letter in "/\\:"):
        raise argparse.ArgumentTypeError(f"must be the name of one folder, without slashes, not {text!r}")
    return text
