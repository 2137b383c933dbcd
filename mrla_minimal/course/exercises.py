"""Where the exercises are in a notebook: the calls of their checkers, `check_rows(softmax_rows)`."""

import ast
import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from mrla_minimal.course import checks

PACKAGE = checks.__name__


@dataclass(frozen=True)
class CheckCall:
    """A line of a cell that calls a checker: the checker's name, the answer's expression, and the line."""

    checker: str
    answer: str
    line: int


def check_calls(source: str) -> list[CheckCall]:
    """The calls `check_NAME(answer)` that stand alone on a line of a code cell; none if it is no Python."""
    # a magic or a shell line is no Python; in its place the lines keep their numbers
    lines = ["pass" if line.startswith(("%", "!")) else line for line in source.splitlines()]
    try:
        tree = ast.parse("\n".join(lines))
    except (SyntaxError, ValueError, RecursionError):
        return []
    calls = [statement.value for statement in tree.body
             if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)]
    return [CheckCall(call.func.id, ast.unparse(call.args[0]), call.lineno) for call in calls
            if isinstance(call.func, ast.Name) and call.func.id.startswith("check_")
            and len(call.args) == 1 and not call.keywords and call.lineno == call.end_lineno]


def without_checks(source: str) -> str:
    """A cell without its calls of checkers, and without what asserts that they passed; its lines keep their
    numbers."""
    lines = source.splitlines()
    calls = {call.line for call in check_calls(source)}
    return "\n".join("pass" if number in calls or re.match(r"assert check_\w+\.judge\(", line) else line
                     for number, line in enumerate(lines, start=1))


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
