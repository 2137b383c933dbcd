"""`mrla assignment 04 --out FOLDER`: a notebook to hand out, without hints and solutions, ready for nbgrader.

Each exercise's cell becomes two, as nbgrader wants it: the answer, and its checker, which gives a point. The
checker prints what it finds, as ever, and then fails unless the answer passed: nbgrader gives points to cells
that do not fail. (The cell's tag lets Run All go on behind it.)
"""

import copy
import json
import re
from pathlib import Path

from mrla_minimal.course.exercises import check_calls
from mrla_minimal.lab.files import is_repository, replace_file, repository_root

FOLDED = re.compile(r"<details><summary>(?:Hint \d+|Solution)</summary>.*?</details>\s*", re.DOTALL)


def find_notebook(name: str) -> Path:
    """The course's notebook of a number or name, "04" or "04_recurrent_layer_attention".

    Raises ValueError if there is none, or where the course is not at hand: an installed package has no
    notebooks.
    """
    beside = Path(__file__).resolve().parents[2]
    root = repository_root() or (beside if is_repository(beside) else None)
    if root is None:
        raise ValueError("the notebooks are not here: go to a clone of the repository, and try again")
    there = {path.stem: path for path in sorted((root / "notebooks").glob("[0-9]*.ipynb"))}
    wanted = name.removesuffix(".ipynb")
    found = [path for stem, path in there.items() if wanted in (stem, stem.partition("_")[0])]
    if len(found) != 1:
        numbers = ", ".join(stem.partition("_")[0] for stem in there)
        raise ValueError(f"the notebook must be one of {numbers}, not {name!r}")
    return found[0]


def make_assignment(name: str, out: str | Path) -> Path:
    """Write the notebook into a folder, made if need be; returns its path.

    Raises ValueError as `find_notebook`, for a notebook without exercises, and where another file of its name
    is there.
    """
    source = find_notebook(name)
    notebook = json.loads(source.read_text(encoding="utf-8"))
    cells = [part for cell in notebook["cells"] for part in _handed_out(cell)]
    if not any("nbgrader" in cell["metadata"] for cell in cells):
        raise ValueError(f"{source.name} has no exercises: there is nothing to hand out")
    content = json.dumps(notebook | {"cells": cells}, indent=1, ensure_ascii=False).encode() + b"\n"
    path = Path(out) / source.name
    if path.exists() and path.read_bytes() != content:
        raise ValueError(f"{path} is there, and is another: move it away, or name another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda file: file.write(content))
    return path


def _handed_out(cell):
    """What a cell becomes: nothing, itself, or two cells."""
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        left = FOLDED.sub("", text)
        return [{**cell, "source": left.splitlines(keepends=True)}] if left.strip() else []
    if "exercise" not in cell["metadata"].get("tags", []):
        return [cell]
    (call,) = check_calls(text)
    answer, check = copy.deepcopy(cell), copy.deepcopy(cell)
    lines = text.splitlines(keepends=True)
    answer["source"] = "".join(lines[: call.line - 1]).rstrip().splitlines(keepends=True)
    asserted = f'\nassert {call.checker}.judge({call.answer})[0] == "passed"'
    check["source"] = ["".join(lines[call.line - 1 :]).rstrip(), asserted]
    check["source"] = "".join(check["source"]).splitlines(keepends=True)
    answer["metadata"]["nbgrader"] = _nbgrader(call.checker, "answer", solution=True)
    check["metadata"] = {"tags": ["raises-exception"],
                         "nbgrader": _nbgrader(call.checker, "points", solution=False) | {"points": 1}}
    check["id"] = f"{cell.get('id', call.checker)}-check"
    for part in (answer, check):
        part |= {"outputs": [], "execution_count": None}
    return [answer, check]


def _nbgrader(checker, what, solution):
    return {"grade": not solution, "grade_id": f"{checker}-{what}", "locked": not solution,
            "schema_version": 3, "solution": solution, "task": False}
