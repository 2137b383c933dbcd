"""`mrla assignment`: what is handed out has neither hints nor solutions, and nbgrader takes it."""

import json

import pytest
from notebook_answers import LESSONS, NOTEBOOKS

from mrla_minimal.course.assignment import make_assignment
from mrla_minimal.course.exercises import check_calls, checkers_of, lesson_of
from mrla_minimal.lab import cli


def cells_of(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@pytest.mark.parametrize("name", LESSONS)
def test_each_lesson_is_handed_out_without_hints_and_solutions(tmp_path, name):
    cells = cells_of(make_assignment(name.partition("_")[0], tmp_path))
    text = "\n".join("".join(cell["source"]) for cell in cells)
    assert "<summary>Hint" not in text and "<summary>Solution" not in text
    assert text.count("<details>") == text.count("</details>") > 3         # the answers of the quiz stay
    original = cells_of(NOTEBOOKS / name)
    exercises = [cell for cell in original if "exercise" in cell["metadata"].get("tags", [])]
    marked = [cell for cell in cells if "nbgrader" in cell["metadata"]]
    assert len(marked) == 2 * len(exercises) > 0
    for cell, answer, check in zip(exercises, marked[::2], marked[1::2], strict=True):
        (call,) = check_calls("".join(cell["source"]))
        assert "".join(answer["source"] + ["\n"]) in "".join(cell["source"]) and not answer["outputs"]
        assert "".join(check["source"]).splitlines() == [
            f"{call.checker}({call.answer})", f'assert {call.checker}.judge({call.answer})[0] == "passed"']
        assert answer["metadata"]["nbgrader"]["solution"] and check["metadata"]["nbgrader"]["points"] == 1
    ids = [cell["metadata"]["nbgrader"]["grade_id"] for cell in marked]
    assert len(set(ids)) == len(ids) and len({cell["id"] for cell in cells}) == len(cells)
    # all else is as it was
    assert [cell for cell in cells if cell["cell_type"] == "code" and "nbgrader" not in cell["metadata"]] == [
        cell for cell in original if cell["cell_type"] == "code" and cell not in exercises]


@pytest.mark.parametrize("name", LESSONS)
def test_the_lesson_of_a_copy_is_known_by_its_checkers(name):
    calls = [call for cell in cells_of(NOTEBOOKS / name) for call in check_calls("".join(cell["source"]))
             if "exercise" in cell["metadata"].get("tags", [])]
    assert list(lesson_of({calls[0].checker, calls[-1].checker})) and lesson_of(
        {call.checker for call in calls}).keys() == {call.checker for call in calls}


def test_nbgrader_takes_it(tmp_path):
    api = pytest.importorskip("nbgrader.nbgraderformat", reason="nbgrader is not installed (extra teach)")
    nbformat = pytest.importorskip("nbformat")
    from nbgrader.utils import determine_grade

    notebook = nbformat.read(make_assignment("04", tmp_path), as_version=4)
    nbformat.validate(notebook)
    api.MetadataValidator().validate_nb(notebook)
    checks = [cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("grade")]
    assert [determine_grade(cell)[:2] for cell in checks] == [(1.0, 1.0)] * 3      # none has failed yet
    checks[0].outputs = [nbformat.v4.new_output("error", ename="AssertionError", evalue="", traceback=[])]
    assert determine_grade(checks[0])[:2] == (0, 1.0)


def test_what_is_there_stays(tmp_path, capsys):
    path = make_assignment("04", tmp_path)
    assert cli.main(["assignment", "4", "--out", str(tmp_path)]) == 2          # the number is 04
    assert "one of 00, 01" in capsys.readouterr().err
    assert cli.main(["assignment", "04", "--out", str(tmp_path)]) == 0         # the same once more
    path.write_text("mine", encoding="utf-8")
    assert cli.main(["assignment", "04", "--out", str(tmp_path)]) == 2
    assert "is another" in capsys.readouterr().err and path.read_text(encoding="utf-8") == "mine"


def test_a_notebook_without_exercises_is_none_to_hand_out(tmp_path, capsys):
    assert cli.main(["assignment", "00", "--out", str(tmp_path / "new")]) == 2
    assert "has no exercises" in capsys.readouterr().err and not (tmp_path / "new").exists()


@pytest.mark.parametrize(("source", "calls"), [
    ("x = 1\ncheck_rows(rows)", [("check_rows", "rows", 2)]),
    ("%matplotlib inline\n!ls\ncheck_rows( f(1) )", [("check_rows", "f(1)", 3)]),
    ("if True:\n    check_rows(rows)", []), ("check_rows(a, b)", []), ("check_rows(", []), ("", []),
])
def test_a_call_of_a_checker_is_found_where_it_stands_alone(source, calls):
    assert [(call.checker, call.answer, call.line) for call in check_calls(source)] == calls


def test_a_module_without_checkers_of_exercises_offers_none():
    from mrla_minimal.course.checks import signature

    assert checkers_of(signature) == {} and lesson_of({"check_nothing"}) == {}
