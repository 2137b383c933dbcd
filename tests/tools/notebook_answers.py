"""Reads the exercises out of the notebooks: the lesson's stubs, and the solutions."""

import json
from pathlib import Path

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
LESSONS = sorted(path.name for path in (NOTEBOOKS / "solutions").glob("*.ipynb"))


def code_cells(path):
    """[(source, tags)] of a notebook's code cells."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    cells = [cell for cell in cells if cell["cell_type"] == "code"]
    return [("".join(cell["source"]), cell["metadata"].get("tags", [])) for cell in cells]


def read_answers(name, tag):
    """{check: answer} of a lesson's cells tagged "exercise", or of its solutions' cells tagged "solution".

    Each of them ends in check(answer). The cells run after the imports of the solutions notebook, so that a
    solution can use no more than those.
    """
    solutions = code_cells(NOTEBOOKS / "solutions" / name)
    (imports,) = [source for source, tags in solutions if not tags]
    answers = {}
    for source, tags in code_cells(NOTEBOOKS / name) if tag == "exercise" else solutions:
        if tag in tags:
            names = {}
            exec(imports, names)
            exec(source, names)
            check, answer = source.splitlines()[-1].rstrip(")").split("(")
            answers[names[check]] = names[answer]
    return answers


def assert_wrong(check, answer, words):
    """The checker finds the answer wrong, and says so with these words."""
    status, message = check.judge(answer)
    assert (status, words in message) == ("wrong", True), message
