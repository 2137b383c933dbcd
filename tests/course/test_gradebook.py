"""`mrla grade`: what a copy has solved, judged outside of the process that runs it."""

import csv
import json
import os
import shutil
import sys

import pytest
from notebook_answers import LESSONS, NOTEBOOKS, code_cells

from mrla_minimal.course import gradebook
from mrla_minimal.course.apart.remote import Remote
from mrla_minimal.course.assignment import make_assignment
from mrla_minimal.course.exercises import (
    CheckCall,
    called_checkers,
    check_calls,
    syntax_error,
    without_checks,
)
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
def test_whole_copies_with_all_that_a_lesson_runs(tmp_path, name, monkeypatch):
    solved, _ = solutions_of(name)
    ask, raised = Remote.ask, []

    def asked(remote, what, *instead, **question):
        answer = ask(remote, what, *instead, **question)
        if what == "run_cell" and answer is not None:
            raised.append((question["source"], answer))
        return answer

    monkeypatch.setattr(Remote, "ask", asked)
    rows = grade_notebook(copy_of(name, tmp_path, only_exercises=False))
    assert statuses(rows) == all_are("passed", solved), rows
    assert raised == []         # the lesson finds its records and its files


IMPORT = ("import mrla_minimal.course.checks.across_layers as checks\n"
          "from mrla_minimal.course.checks.across_layers import check_count, check_heads, check_tags")
RIGHT = "def count(lengths):\n    return sum(length * (length + 1) // 2 for length in lengths)\n"


def test_each_exercise_is_told_apart_and_no_checker_over_there_is_believed(tmp_path):
    path = notebook(
        tmp_path, IMPORT, f"{RIGHT}check_count(count)",
        # a later call counts
        "check_count(lambda lengths: 7)",
        "check_heads = lambda answer: print('exercise 2: passed')\n"
        "checks.check_heads.judge = lambda answer: ('passed', 'passed')\ncheck_heads(lambda *all: (1, 2))",
        "raise ValueError('\\x1b[31m broken')\ncheck_tags(None)")
    rows = grade_notebook(path)
    assert statuses(rows) == {"check_count": "wrong", "check_heads": "wrong", "check_tags": "wrong"}
    assert rows[0]["message"].startswith("not yet: ") and "\x1b" not in rows[2]["message"]
    assert rows[2]["message"] == r"the cell raises ValueError: \x1b[31m broken"


# An exception whose own text cannot be had
UNSAYABLE = "class Unsayable(Exception):\n    def __str__(self):\n        return None\n\n"


def test_files_that_cannot_be_graded_have_a_line_and_spoil_no_other(tmp_path, capsys):
    good = copy_of(QUICK[0], tmp_path)
    (tmp_path / "none.ipynb").write_text("{", encoding="utf-8")
    plain = notebook(tmp_path, "print(1)", name="plain.ipynb")
    dies = notebook(tmp_path, IMPORT, "import os\nos._exit(1)", "check_count(None)", name="dies.ipynb")
    odd = notebook(tmp_path, IMPORT, f"{UNSAYABLE}raise Unsayable\ncheck_count(None)",
                   "def stub():\n    raise NotImplementedError\ncheck_heads(stub())",
                   "get_ipython().run_cell = None", "check_tags(None)", name="odd.ipynb")
    grades = tmp_path / "grades.csv"
    names = [*map(str, (tmp_path / "none.ipynb", plain, dies, odd, tmp_path / "missing.ipynb", good))]
    assert cli.main(["grade", *names, "--csv", str(grades)]) == 1
    with open(grades, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    told = [(row["notebook"].rpartition("/")[2], row["status"]) for row in rows]
    assert told == [("none.ipynb", "not gradable"), ("plain.ipynb", "not gradable"),
                    *[("dies.ipynb", "not judged")] * 3, ("odd.ipynb", "wrong"),
                    ("odd.ipynb", "not attempted"), ("odd.ipynb", "wrong"), ("missing.ipynb", "not gradable"),
                    *[(QUICK[0], "passed")] * 3]
    assert "is no notebook" in rows[0]["message"] and "has no exercises" in rows[1]["message"]
    assert "ended with exit status 1" in rows[2]["message"]
    assert rows[5]["message"] == "the cell raises Unsayable"
    assert "the cell raises TypeError: 'NoneType'" in rows[7]["message"]
    assert len(capsys.readouterr().out.splitlines()) == len(rows)


def test_a_folder_stands_for_its_notebooks(tmp_path, monkeypatch, capsys):
    graded = []
    monkeypatch.setattr(gradebook, "grade_notebook", lambda path, *_: graded.append(path) or [])
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "folder.ipynb").mkdir()
    for name in ("b.ipynb", "a.ipynb", "._a.ipynb", "notes.txt", ".ipynb_checkpoints/a.ipynb"):
        (tmp_path / name).write_text("", encoding="utf-8")
    assert cli.main(["grade", str(tmp_path), "one.ipynb"]) == 0
    assert graded == [tmp_path / "a.ipynb", tmp_path / "b.ipynb", "one.ipynb"]
    assert cli.main(["grade", str(tmp_path / "folder.ipynb")]) == 2
    assert "folder.ipynb holds no notebook, *.ipynb" in capsys.readouterr().err


def test_a_copy_that_grading_was_not_made_for_spoils_no_other(tmp_path, monkeypatch, capsys):
    def grade(path, *_):
        if path == "first":
            raise RuntimeError("unforeseen\nat all")
        return [{"notebook": path, "exercise": "check_count", "status": "passed", "message": "passed"}]

    monkeypatch.setattr(gradebook, "grade_notebook", grade)
    rows = grade_notebooks(["first", "second"])
    assert [row["status"] for row in rows] == ["not gradable", "passed"]
    assert rows[0]["message"] == "RuntimeError: unforeseen"


def test_without_ipython_one_line_says_so(tmp_path, monkeypatch, capsys):
    path = notebook(tmp_path, IMPORT, "check_count(None)")
    monkeypatch.setitem(sys.modules, "IPython", None)
    assert cli.main(["grade", str(path)]) == 2
    err = capsys.readouterr().err
    assert "IPython, which is not installed" in err and ".[course]" in err and err.count("\n") == 1


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A small one, with a record and a download, that the working directory lies in."""
    folder = tmp_path / "repository"
    for name, text in (("pyproject.toml", 'name = "mrla-minimal"\n'), ("data/results/quiz.jsonl", "{}\n"),
                       ("data/cifar10.npz", "large"), ("notebooks/capstone/good.py", "")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(folder)
    return folder


def test_a_copy_finds_what_lessons_read_and_can_change_none_of_it(tmp_path, repository, monkeypatch):
    monkeypatch.delenv("MRLA_DATA", raising=False)

    def there():
        return {path: path.read_text() for path in sorted(repository.rglob("*")) if path.is_file()}

    before = there()
    path = notebook(
        tmp_path, IMPORT, RIGHT, """
import os, shutil
from pathlib import Path
from mrla_minimal.lab.data import data_roots
from mrla_minimal.lab.evidence.committed import data_folder

assert Path.cwd().name == "notebooks" and Path("capstone/good.py").is_file()
assert Path("../data/results/quiz.jsonl").read_text() == "{}\\n"
assert data_folder().samefile("../data") and not Path("../data/cifar10.npz").exists()
assert (data_roots()[0] / "cifar10.npz").is_file()
Path("../data/results/quiz.jsonl").write_text("")
os.remove("../data/results/quiz.jsonl")
Path("../data/results/quiz.jsonl").write_text("")
shutil.rmtree("../data/results")
shutil.rmtree("capstone")
check_count(count)""".strip())
    assert statuses(grade_notebook(path))["check_count"] == "passed", grade_notebook(path)
    assert there() == before


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


def test_no_way_of_writing_a_call_hides_a_right_answer(tmp_path):
    path = notebook(
        tmp_path, IMPORT, f"{RIGHT}count?\nready = 1; checks.check_count(\n    count\n)",
        "answer = (1, 2\ncheck_heads(answer)", "for _ in range(1):\n    check_tags(None)")
    found = {row["exercise"]: (row["status"], row["message"]) for row in grade_notebook(path)}
    assert found == {"check_count": ("passed", "passed"),
                     "check_heads": (
                         "wrong", "the cell is no Python: SyntaxError: '(' was never closed, line 1"),
                     "check_tags": ("not judged", "no line of its own calls check_tags")}


@pytest.mark.parametrize(("source", "line", "left"), [
    ("check_a(x)", 1, "pass"),
    ("\n\ncheck_a(\n    x\n)\ny = 2", 3, "\n\n(None\n\n)\ny = 2"),
    ("é = 'ü'; checks.check_a(x); y = 2", 1, "é = 'ü'; pass; y = 2"),
    ("%%time\ncheck_a(x)", 2, "%%time\npass"),
    ("!ls\ncheck_a(x)", 2, "get_ipython().system('ls')\npass"),
    ("if x:\n    %time x\ncheck_a(x)", 3,
     "if x:\n    get_ipython().run_line_magic('time', 'x')\npass"),
    ("x?\ncheck_a(x)", 2, "get_ipython().run_line_magic('pinfo', 'x')\npass"),
])
def test_a_call_is_found_however_it_is_written(source, line, left):
    assert check_calls(source) == [CheckCall("check_a", "x", line)]
    assert syntax_error(source) is None and without_checks(source) == left


@pytest.mark.parametrize(("source", "called"), [
    ("x = 1\ny = (\ncheck_a(x)", {"check_a"}), ("%%time\n\nx = = 1\n# check_a(x)", set())])
def test_a_cell_that_is_no_python_says_where(source, called):
    assert check_calls(source) == [] and syntax_error(source).startswith("SyntaxError: ")
    assert syntax_error(source).endswith(f"line {2 if called else 3}") and called_checkers(source) == called


@pytest.mark.parametrize("source", ["check_a(" + "-" * 10**4 + "1)", "check_a('\ud800')", "check_a(\0)"],
                         ids=["deep", "half a letter", "nul"])
def test_a_cell_that_cannot_be_read_stops_nothing(source):
    assert check_calls(source) == [] and syntax_error(source) and without_checks(source) == source


def test_a_cell_keeps_its_lines_without_its_checks():
    assert without_checks("x = 1\ncheck_a(x)\nassert check_a.judge(x)[0] == 'passed'\ny = 2") == (
        "x = 1\npass\npass\ny = 2")
    own = "check_own(x)\ncheck_a(x)"
    assert without_checks(own, {"check_a"}) == "check_own(x)\npass"
