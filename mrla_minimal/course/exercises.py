"""Where the exercises are in a notebook: the calls of their checkers, `check_rows(softmax_rows)`."""

import ast
import importlib
import re
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from mrla_minimal.course import checks

PACKAGE = checks.__name__
# Empty lines and a cell magic, `%%time`, at the beginning: how a cell is run, and not what
NOT_READ = re.compile(r"(?:[^\S\n]*\n|%%.*\n)*")


@dataclass(frozen=True)
class CheckCall:
    """A statement that calls a checker: the checker's name, the answer's expression, and the cell's line."""

    checker: str
    answer: str
    line: int


def check_calls(source: str) -> list[CheckCall]:
    """The calls `check_NAME(answer)` or `module.check_NAME(answer)` of a code cell.

    Only those that are statements of their own, and not indented; none if the cell is no Python.
    """
    return [call for call, _ in _calls(*_as_python(source))]


def named_checkers(source: str) -> set[str]:
    """The names `check_NAME` in a cell, be it Python or not."""
    return set(re.findall(r"\bcheck_\w+", source))


def called_checkers(source: str) -> set[str]:
    """Those of them that have a bracket behind them, and stand in no comment."""
    return set(re.findall(r"(?m)^[^#\n]*?\b(check_\w+)\s*\(", source))


def syntax_error(source: str) -> str | None:
    """Why a cell that names a checker is no Python (magics and shell lines apart), and where; or None."""
    head, body = _as_python(source)
    try:
        ast.parse(body)
    except SyntaxError as error:
        return f"{type(error).__name__}: {error.msg}, line {head.count(chr(10)) + (error.lineno or 1)}"
    except (ValueError, RecursionError, MemoryError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def without_checks(source: str, checkers: Container[str] | None = None) -> str:
    """A cell without its calls of checkers, and without what asserts that they passed.

    `checkers`: only those of these names, for a student may have a function `check_x`, too. The lines keep
    their numbers.
    """
    head, body = _as_python(source)
    code = body.encode(errors="surrogatepass")      # Python counts columns in bytes
    starts = [0, *(line.end() for line in re.finditer(rb"\n", code))]
    for found, call in reversed(_calls(head, body)):
        if checkers is not None and found.checker not in checkers:
            continue
        first, last = (starts[line - 1] + column for line, column in (
            (call.lineno, call.col_offset), (call.end_lineno, call.end_col_offset)))
        breaks = b"\n" * (call.end_lineno - call.lineno)
        code = code[:first] + (b"(None" + breaks + b")" if breaks else b"pass") + code[last:]
    return head + re.sub(r"(?m)^assert check_\w+\.judge\(.*", "pass", code.decode(errors="surrogatepass"))


def _as_python(source):
    """A cell's beginning that is not read, and the rest with its magics and shell lines as Python.

    As IPython writes them; where it is not installed, no notebook is run, and those lines stay as they are.
    So does a cell that names no checker: who reads it asks for nothing else, and a long one takes seconds.
    """
    if not named_checkers(source):
        return "", source
    source = re.sub(r"\r\n?", "\n", source)
    head = NOT_READ.match(source)[0]
    body = source[len(head) :]
    try:
        from IPython.core.inputtransformer2 import TransformerManager

        python = TransformerManager().transform_cell(body)
    except (ImportError, SyntaxError, RuntimeError):        # RuntimeError: hundreds of magics in one cell
        return head, body
    return head, python if body.endswith("\n") else python.removesuffix("\n")


def _calls(head, body):
    """[(CheckCall, its place in the body's tree)]"""
    found = []
    try:
        for statement in ast.parse(body).body:
            call = statement.value if isinstance(statement, ast.Expr) else None
            if not isinstance(call, ast.Call) or len(call.args) != 1 or call.keywords:
                continue
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))     # module.check_x, or check_x
            if name.startswith("check_"):
                line = head.count("\n") + call.lineno
                found.append((CheckCall(name, ast.unparse(call.args[0]), line), call))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return found


def checkers_of(module: ModuleType) -> dict[str, Callable]:
    """The checkers that a module of checks offers a notebook, by name."""
    offered = {name: value for name, value in vars(module).items()
               if name.startswith("check_") and hasattr(value, "judge")}
    return {name: offered[name] for name in getattr(module, "__all__", offered) if name in offered}


def lesson_of(names: set[str]) -> dict[str, Callable]:
    """All checkers of the lesson that has most of these names: {} if none has any."""
    lessons = [checkers_of(importlib.import_module(f"{PACKAGE}.{path.stem}"))
               for path in sorted(Path(checks.__file__).parent.glob("*.py")) if path.stem != "__init__"]
    # of two that share one, the lesson that offers it beside others
    return max(lessons, key=lambda lesson: (len(names & lesson.keys()), len(lesson))) if any(
        names & lesson.keys() for lesson in lessons) else {}
