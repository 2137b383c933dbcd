"""Reads the exercises out of the notebooks: the lesson's stubs, and the solutions."""

import json
from pathlib import Path

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def _code_cells(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [("".join(cell["source"]), cell["metadata"].get("tags", [])) for cell in cells if cell["cell_type"] == "code"]


def read_answers(name, tag, checks):
    """{check's name: the function it is called on}, from the cells with this tag, each ending in a line check(function).

    The cells run after the imports of the solutions notebook, so that a solution can use no more than those.
    """
    solutions = _code_cells(NOTEBOOKS / "solutions" / name)
    (imports,) = [source for source, tags in solutions if not tags]
    answers = {}
    for source, tags in _code_cells(NOTEBOOKS / name) if tag == "exercise" else solutions:
        if tag in tags:
            names = {}
            exec(imports, names)
            exec(source, names)
            check, function = source.splitlines()[-1].rstrip(")").split("(")
            assert names[check] is checks[check]
            answers[check] = names[function]
    assert set(answers) == set(checks)
    return answers
