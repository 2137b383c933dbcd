"""Who must know which room is asked for? Eight memories, three questions, and the 2 x 2 that they fill.

    python -m mrla_minimal.course.who_knows     # prints both tables, from data/results/who-knows.jsonl,
                                                # and makes what is missing of it

The questions are the corridor quiz's: *number*, its late question, where the exit alone knows; *lamp*, where
the room alone knows; *colour*, where the two must meet. A memory stands in the row of those whose reader
knows if it solves *number*, and in the column of those whose writer knows if it solves *lamp*.
"""

import argparse
from collections.abc import Iterable, Mapping

from mrla_minimal.course.made_records import made_with, print_or_refuse
from mrla_minimal.course.quiz import verdict
from mrla_minimal.course.quiz_records import write_quiz_records

MEMORIES = ("denseformer", "attnres", "mudd", "base", "light", "kcla", "hyper-connections", "rla")
ASKED = {"number": "late", "lamp": "lamp", "colour": "colour"}      # here -> as the quiz names it
PART = dict(methods=MEMORIES, questions=tuple(ASKED.values()), widths=(4,), steps=500)      # five seeds


def verdicts(records: Iterable[dict]) -> dict[str, dict[str, str]]:
    """{method: {"number", "lamp", "colour": what its runs say}}, from quiz records, all seeds together.

    "solved" if each seed's run is above 0.95, "not solved" if each is below 0.6, "between" otherwise.
    Questions that a method has no runs of are left out, and so are the quiz's other questions.
    """
    found = {}
    for method, accuracies in _accuracies(records).items():
        said = {name: {verdict(accuracy) for accuracy in seeds} for name, seeds in accuracies.items()}
        found[method] = {name: each.pop() if len(each) == 1 else "between" for name, each in said.items()}
    return found


def cells(found: Mapping[str, Mapping[str, str]]) -> dict[tuple[bool, bool], list[str]]:
    """{(the reader knows, the writer knows): methods}, from `verdicts`: number solved, lamp solved.

    A method that has no runs of one of these two has no place yet.
    """
    places = {(reader, writer): [] for reader in (False, True) for writer in (False, True)}
    for method, said in found.items():
        if "number" in said and "lamp" in said:
            places[said["number"] == "solved", said["lamp"] == "solved"].append(method)
    return places


def three_questions_table(records: Iterable[dict]) -> str:
    """Lowest and highest accuracy over the seeds, and the verdict, of each memory and question, as text."""
    records = list(records)
    found, accuracies = verdicts(records), _accuracies(records)
    lines = [f"{'memory':<18}" + "".join(f"{name:<24}" for name in ASKED) + "seeds"]
    for method, said in found.items():
        row = [f"{min(accuracies[method][name]):.2f}-{max(accuracies[method][name]):.2f} {said[name]}"
               if name in said else "-" for name in ASKED]
        lines.append(f"{method:<18}" + "".join(f"{text:<24}" for text in row)
                     + str(min(map(len, accuracies[method].values()))))
    return "\n".join(lines)


def two_by_two(records: Iterable[dict]) -> str:
    """The 2 x 2 as text. What a memory does otherwise than its cell says stands behind it in brackets.

    The cell says: number is solved where the reader knows, lamp where the writer knows, colour where both do.
    """
    found = verdicts(records)
    places = cells(found)
    lines = [f"{'':<24}{'the writer adds nothing':<36}the writer adds what it holds"]
    for reader, title in ((False, "the reader adds nothing"), (True, "the reader adds a query")):
        columns = [[_with_exceptions(method, found[method], reader, writer)
                    for method in places[reader, writer]] for writer in (False, True)]
        for line in range(max(1, *map(len, columns))):
            left, right = (column[line] if line < len(column) else "" for column in columns)
            lines.append(f"{title if line == 0 else '':<24}{left:<36}{right}".rstrip())
    return "\n".join(lines)


def _accuracies(records):
    """{method: {number, lamp, colour: the runs' accuracies}}."""
    names = {question: name for name, question in ASKED.items()}
    found = {}
    for record in records:
        if record["question"] in names:
            of_method = found.setdefault(record["method"], {})
            of_method.setdefault(names[record["question"]], []).append(record["accuracy"])
    return found


def _with_exceptions(method, said, reader, writer):
    expected = {"number": reader, "lamp": writer, "colour": reader and writer}
    other = [f"{name} {said[name]}" for name, solved in expected.items()
             if name in said and said[name] != ("solved" if solved else "not solved")]
    return f"{method} ({', '.join(other)})" if other else method


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the records of the three questions, or those still "
                                                 "missing, and print what they say.")
    parser.add_argument("--out", default="data/results/who-knows.jsonl",
                        help="file of JSON lines (default: %(default)s)")
    out = parser.parse_args().out

    def tables() -> str:
        (width,) = PART["widths"]
        made = made_with({"width": width, "steps": PART["steps"]}, write_quiz_records(out, [PART]))
        return f"{three_questions_table(made)}\n\n{two_by_two(made)}"

    print_or_refuse(parser, tables)
