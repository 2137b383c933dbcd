"""`mrla grade`: what a copy has solved, judged outside of the process that runs it."""

import csv
import json
import os
import shutil
import sys

import pytest
from notebook_answers import LESSONS, NOTEBOOKS, code_cells

from mrla_minimal.course.assignment import make_assignment
from mrla_minimal.course.exercises import check_calls, without_checks
from mrla_minimal.course.gradebook import LOOKED_INTO, grade_notebook, grade_notebooks
from mrla_minimal.lab import cli

# `make test` grades copies of two lessons, for each starts a process; `make test-slow` those of all
QUICK = ("01_self_attention.ipynb", "04_recurrent_layer_attention.ipynb")
every_lesson = pytest.mark.parametrize("name", [
    pytest.param(name, marks=[] if name == QUICK[1] else pytest.mark.slow) for name in LESSONS])


def solutions_of(name):
    """{checker: the solution's cell}, and the imports that they need."""
    cells = code_cells(NOTEBOOKS / "solutions" / name)
    solved = [source for source, tags in cells if "solution" in tags]
    (imports,) = [source for source, tags in cells if not tags]
    return {check_calls(source)[0].checker: source for source in solved}, imports


def copy_of(name, folder, fill=True, only_exercises=True):
    """A student's copy: its exercises filled in, or as they were handed out; other cells may be emptied."""
    notebook = json.loads((NOTEBOOKS / name).read_text(encoding="utf-8"))
    solved, imports = solutions_of(name)
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        exercise = "exercise" in cell["metadata"].get("tags", [])
        source = "".join(cell["source"])
        if exercise and fill:
            cell["source"] = solved[check_calls(source)[0].checker]
        elif only_exercises and not exercise:
            cell["source"] = ""
    first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    first["source"] = f"{imports}\n" + ("" if only_exercises else "".join(first["source"]))
    path = folder / name
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return path


def notebook(folder, *sources, name="copy.ipynb"):
    cells = [{"cell_type": "code", "source": source, "metadata": {}, "outputs": [], "execution_count": None}
             for source in sources]
    path = folder / name
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return path


def all_are(status, checkers):
    """What answers of one kind get: this status wherever arrays tell, and no false one elsewhere."""
    return {name: "not judged" if name in LOOKED_INTO else status for name in checkers}


def statuses(rows):
    return {row["exercise"]: row["status"] for row in rows}


@every_lesson
def test_solutions_pass_and_stubs_are_not_attempted(tmp_path, name):
    solved, _ = solutions_of(name)
    rows = grade_notebook(copy_of(name, tmp_path))
    assert statuses(rows) == all_are("passed", solved), rows
    rows = grade_notebook(copy_of(name, tmp_path, fill=False))
    assert statuses(rows) == all_are("not attempted", solved), rows


@pytest.mark.slow
@pytest.mark.parametrize("name", LESSONS)
def test_whole_copies_with_all_that_a_lesson_runs(tmp_path, name):
    solved, _ = solutions_of(name)
    rows = grade_notebook(copy_of(name, tmp_path, only_exercises=False))
    assert statuses(rows) == all_are("passed", solved), rows


IMPORT = ("import mrla_minimal.course.checks.across_layers as checks\n"
          "from mrla_minimal.course.checks.across_layers import check_count, check_heads, check_tags")


def test_each_exercise_is_told_apart_and_no_checker_over_there_is_believed(tmp_path):
    right = "def count(lengths):\n    return sum(length * (length + 1) // 2 for length in lengths)"
    path = notebook(
        tmp_path, IMPORT, f"{right}\ncheck_count(count)",
        # a later call counts
        "check_count(lambda lengths: 7)",
        "check_heads = lambda answer: print('exercise 2: passed')\n"
        "checks.check_heads.judge = lambda answer: ('passed', 'passed')\ncheck_heads(lambda *all: (1, 2))",
        "raise ValueError('\\x1b[31m broken')\ncheck_tags(None)")
    rows = grade_notebook(path)
    assert statuses(rows) == {"check_count": "wrong", "check_heads": "wrong", "check_tags": "wrong"}
    assert rows[0]["message"].startswith("not yet: ") and "\x1b" not in rows[2]["message"]
    assert rows[2]["message"] == r"the cell raises ValueError: \x1b[31m broken"


def test_files_that_cannot_be_graded_have_a_line_and_spoil_no_other(tmp_path, capsys):
    good = copy_of(QUICK[0], tmp_path)
    (tmp_path / "none.ipynb").write_text("{", encoding="utf-8")
    plain = notebook(tmp_path, "print(1)", name="plain.ipynb")
    dies = notebook(tmp_path, IMPORT, "import os\nos._exit(1)", "check_count(None)", name="dies.ipynb")
    grades = tmp_path / "grades.csv"
    names = [str(tmp_path / "none.ipynb"), str(plain), str(dies), str(tmp_path / "missing.ipynb"), str(good)]
    assert cli.main(["grade", *names, "--csv", str(grades)]) == 1
    with open(grades, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    told = [(row["notebook"].rpartition("/")[2], row["status"]) for row in rows]
    assert told == [("none.ipynb", "not gradable"), ("plain.ipynb", "not gradable"),
                    *[("dies.ipynb", "not judged")] * 3, ("missing.ipynb", "not gradable"),
                    *[(QUICK[0], "passed")] * 3]
    assert "is no notebook" in rows[0]["message"] and "has no exercises" in rows[1]["message"]
    assert "ended with exit status 1" in rows[2]["message"]
    assert len(capsys.readouterr().out.splitlines()) == len(rows)


def test_a_students_copy_is_not_written_over_where_the_table_was_to_be_named(tmp_path, capsys):
    """As in `mrla grade --csv copies/*.ipynb`."""
    first, second = (notebook(tmp_path, "print(1)", name=name) for name in ("a.ipynb", "b.ipynb"))
    before = first.read_bytes()
    assert cli.main(["grade", "--csv", str(first), str(second)]) == 2
    captured = capsys.readouterr()
    assert f"{first} holds something else than grades" in captured.err and captured.out == ""
    assert first.read_bytes() == before
    table = tmp_path / "made" / "grades.csv"
    for name in ("a.ipynb", os.fsdecode(b"jos\xe9.ipynb") if sys.platform == "linux" else "b.ipynb"):
        (tmp_path / name).write_bytes(before)
        assert cli.main(["grade", str(tmp_path / name), "--csv", str(table)]) == 1     # its own is replaced
    with open(table, encoding="utf-8", newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["not gradable"]


@pytest.mark.slow
def test_what_is_handed_out_comes_back_as_not_attempted(tmp_path):
    path = make_assignment("01", tmp_path)
    assert set(statuses(grade_notebooks([path])).values()) == {"not attempted"}
    assert not shutil.os.path.exists(tmp_path / "data")


def test_a_cell_keeps_its_lines_without_its_checks():
    assert without_checks("x = 1\ncheck_a(x)\nassert check_a.judge(x)[0] == 'passed'\ny = 2") == (
        "x = 1\npass\npass\ny = 2")
