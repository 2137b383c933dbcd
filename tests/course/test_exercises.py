"""Every exercise of every notebook: its stub is not attempted, its solution passes.

What is wrong is in test_checks_NN.py.
"""

import importlib
from pathlib import Path

import pytest
from notebook_answers import LESSONS, read_answers

import mrla_minimal.course.checks as checks


def library_checks():
    """Every checker that the library holds."""
    for path in Path(checks.__file__).parent.glob("*.py"):
        module = importlib.import_module(f"{checks.__name__}.{path.stem}")
        yield from (
            value
            for name, value in vars(module).items()
            if name.startswith("check_") and hasattr(value, "judge")
        )


@pytest.mark.parametrize("name", LESSONS)
def test_stubs_are_not_attempted(name):
    answers = read_answers(name, "exercise")
    assert len(answers) >= 2
    for check, stub in answers.items():
        assert check.judge(stub) == ("not attempted", "not attempted yet"), check.__name__


@pytest.mark.parametrize("name", LESSONS)
def test_solutions_pass_and_say_so(name, capsys):
    for check, solution in read_answers(name, "solution").items():
        assert check.judge(solution) == ("passed", "passed"), check.__name__
        check(solution)
        assert capsys.readouterr().out.endswith(": passed\n")


def test_each_checker_serves_one_exercise_and_each_exercise_has_its_solution():
    stubs = [check for name in LESSONS for check in read_answers(name, "exercise")]
    solved = [check for name in LESSONS for check in read_answers(name, "solution")]
    assert stubs == solved and len(set(stubs)) == len(stubs)
    assert set(stubs) == set(library_checks())
