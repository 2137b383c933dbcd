"""The table of three questions and its 2 x 2: from made-up records, and from those that are committed."""

from pathlib import Path

from mrla_minimal.course import who_knows
from mrla_minimal.course.quiz import METHODS
from mrla_minimal.lab.files import read_records

COMMITTED = Path(__file__).parents[2] / "data" / "results" / "who-knows.jsonl"


def records_of(method, number, lamp, colour):
    return [{"method": method, "question": question, "accuracy": accuracy}
            for question, accuracies in (("late", number), ("lamp", lamp), ("colour", colour))
            for accuracy in accuracies]


def test_a_question_is_solved_if_every_seed_solves_it():
    records = [*records_of("base", (0.99, 1.0), (0.99, 0.9), (0.3, 0.99)),
               *records_of("mudd", (0.5, 0.3), (), ())]
    assert who_knows.verdicts(records) == {
        "base": {"number": "solved", "lamp": "between", "colour": "between"},
        "mudd": {"number": "not solved"}}


def test_the_2_x_2_fills_from_the_records():
    records = [*records_of("neither", (0.3,), (0.3,), (0.3,)), *records_of("reader", (1.0,), (0.3,), (0.3,)),
               *records_of("writer", (0.3,), (1.0,), (0.3,)), *records_of("both", (1.0,), (1.0,), (1.0,)),
               *records_of("odd", (0.7,), (1.0,), (0.99,))]
    places = who_knows.cells(who_knows.verdicts(records))
    assert places == {(False, False): ["neither"], (True, False): ["reader"],
                      (False, True): ["writer", "odd"], (True, True): ["both"]}
    assert who_knows.two_by_two(records).splitlines()[1:] == [
        "the reader adds nothing neither                             writer",
        "                                                            odd (number between, colour solved)",
        "the reader adds a query reader                              both"]


def test_the_table_shows_the_lowest_and_the_highest_seed():
    _, row = who_knows.three_questions_table(
        records_of("odd", (0.7, 0.62), (1.0, 1.0), (0.3, 0.28))).splitlines()
    assert row.split() == "odd 0.62-0.70 between 1.00-1.00 solved 0.28-0.30 not solved 2".split()


def test_an_empty_cell_has_its_row():
    assert len(who_knows.two_by_two(records_of("neither", (0.3,), (0.3,), (0.3,))).splitlines()) == 3


def test_records_that_are_partly_made_have_their_tables():
    records = [*records_of("base", (1.0,), (0.3,), ()), *records_of("mudd", (), (0.3,), (0.3,)),
               {"method": "rla", "question": "early", "accuracy": 1.0}]
    assert who_knows.verdicts(records).keys() == {"base", "mudd"}
    assert "base" in who_knows.two_by_two(records) and "mudd" not in who_knows.two_by_two(records)
    *_, row = who_knows.three_questions_table(records).splitlines()
    assert row.split() == "mudd - 0.30-0.30 not solved 0.30-0.30 not solved 1".split()


def test_the_committed_records_fill_the_2_x_2():
    records, complaints = read_records(COMMITTED)
    assert not complaints and len(records) == 5 * 3 * len(who_knows.MEMORIES)
    assert set(who_knows.MEMORIES) <= set(METHODS)
    assert {record["steps"] for record in records} == {500} and {record["width"] for record in records} == {4}
    found = who_knows.verdicts(records)
    expected = {"denseformer": (False, False), "mudd": (True, False), "attnres": (False, True),
                "light": (False, True), "kcla": (False, True), "base": (True, True)}
    for method, (reader, writer) in expected.items():
        said = {"number": reader, "lamp": writer, "colour": reader and writer}
        assert found[method] == {name: "solved" if yes else "not solved" for name, yes in said.items()}
    assert found["hyper-connections"]["number"] != "solved" and found["hyper-connections"]["lamp"] == "solved"
