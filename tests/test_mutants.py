"""Each mutant of mutants.py must be caught by its named test: three in every run, the others when slow."""

import ast

import pytest
from mutants import MUTANTS, SOURCE, mutate, try_mutant, try_original

IN_EVERY_RUN = ("heads interleaved", "cache appended in place", "lambda of the head")


def as_parameter(mutant):
    marks = [] if mutant.name in IN_EVERY_RUN else [pytest.mark.slow]
    return pytest.param(mutant, id=mutant.name, marks=marks)


def test_the_list_fits_the_source():
    source = SOURCE.read_text(encoding="utf-8")
    names = [mutant.name for mutant in MUTANTS]
    assert len(MUTANTS) >= 20 and len(set(names)) == len(names) and set(IN_EVERY_RUN) <= set(names)
    for mutant in MUTANTS:
        assert ast.dump(ast.parse(mutate(mutant, source))) != ast.dump(ast.parse(source))


@pytest.mark.parametrize("mutant", [as_parameter(mutant) for mutant in MUTANTS])
def test_a_mutant_is_caught(mutant):
    caught, line = try_mutant(mutant)
    assert caught, line


@pytest.mark.slow
def test_the_named_tests_pass_without_a_mutant():
    passed, line = try_original()
    assert passed, line
