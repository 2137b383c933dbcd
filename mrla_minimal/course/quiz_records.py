"""The corridor quiz's records, as the course shows them: made, continued, and printed as a table.

    python -m mrla_minimal.course.quiz_records      # makes data/results/quiz.jsonl, or what is missing of it
    python -m mrla_minimal.course.quiz_records --switches       # the same for quiz-switches.jsonl
"""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from tqdm import tqdm

import mrla_minimal
from mrla_minimal.course import quiz_methods
from mrla_minimal.course.made_records import made_with, print_or_refuse, run_id, write_missing
from mrla_minimal.course.quiz import INTERVENTIONS, METHODS, accuracy_without_choice, train_quiz
from mrla_minimal.lab.evidence.suites import check_seeds
from mrla_minimal.shapes import check_choice

# What data/results/quiz.jsonl holds: the methods of 00 to 06, both of their questions, four widths; then what
# longer training does for a wide residual stream, and what the softmax buys when keys have two numbers.
CORRIDOR = ({}, dict(methods=("residual",), questions=("late",), steps=1500),
            dict(methods=("base", "base-no-softmax"), questions=("late",), widths=(4,), key_dim=2))
# What quiz-switches.jsonl holds: a question for a memory that is rewritten, and a mean put to the late one.
SWITCHES = (dict(questions=("switches",), methods=("base", "base-context", "dla-open", "dla"), widths=(4,),
                 key_dim=16),
            dict(questions=("late",), methods=("mean-dla",), widths=(4,)),
            dict(questions=("switches",), methods=("context",), widths=(4,), key_dim=16))


def quiz_records(seeds: Iterable[int] = range(5), widths: Iterable[int] = (4, 8, 16, 32),
                 methods: Iterable[str] = tuple(quiz_methods.METHODS),
                 questions: Iterable[str] = ("late", "early"), key_dim: int = 8, steps: int = 400,
                 known: Iterable[dict] = ()) -> Iterator[dict]:
    """Yield one plain dict a run, seed by seed, without the runs that `known` records hold.

    `id` is the first 12 hex digits of the SHA-256 of the setting. `accuracy_mean` and `accuracy_shuffle` are
    `accuracy_without_choice`, `asked_weight` is the mean diagonal of the weights map: each None where the
    method has no weights. Raises ValueError for arguments `train_quiz` refuses, and repeated seeds.
    """
    methods, questions, widths, known = map(tuple, (methods, questions, widths, known))
    for method in methods:
        check_choice("method", method, METHODS)
    seeds = check_seeds("seed", seeds)      # of numpy too, and JSON can hold them
    settings = [dict(method=method, question=question, width=width, key_dim=key_dim, seed=seed, steps=steps)
                for seed in seeds for question in questions for method in methods for width in widths]
    for setting in settings:
        if made_with(setting, known):
            continue
        result = train_quiz(**setting)
        asked_weight = None if result.weights_map is None else result.weights_map.diagonal().mean().item()
        yield {"id": run_id(["corridor-quiz", setting]), "suite": "corridor-quiz", **setting,
               "accuracy": result.accuracy,
               **{f"accuracy_{how}": accuracy_without_choice(result, how) for how in INTERVENTIONS},
               "asked_weight": asked_weight, "mrla_minimal": mrla_minimal.__version__,
               "torch": torch.__version__}


def write_quiz_records(path: str | Path, parts: Iterable[dict] = CORRIDOR) -> list[dict]:
    """Make the records that the course shows, in one file of JSON lines; go on where an earlier call stopped.

    parts: the arguments of one call of `quiz_records` after the other. Each run is one appended line.
    Returns all records of the quiz. Raises ValueError, and changes nothing, if the file holds something that
    is no record.
    """
    records = []
    for part in parts:
        records = write_missing(path, lambda known, part=part: tqdm(quiz_records(**part, known=known),
                                                                    unit="run"))
    return made_with({"suite": "corridor-quiz"}, records)


def quiz_table(records: Iterable[dict]) -> str:
    """Quiz records as text: lowest and highest accuracy over the seeds of each method and width.

    Beside them, what is left of it at the first width with the weights of all corridors averaged, or
    exchanged between corridors.
    """
    groups = {}
    for record in records:
        key = tuple(record[name] for name in ("question", "key_dim", "steps", "method", "width"))
        groups.setdefault(key, []).append(record)
    widths = sorted({width for *_, width in groups})
    titles = "".join(f"{f'width {width}':<12}" for width in widths)
    lines = [f"{'question, key dim, steps':<24} {'method':<16} {titles}"
             "frozen at mean, shuffled (first width)"]
    for row in dict.fromkeys(key[:4] for key in groups):
        def span(width, what, row=row):
            found = [record[what] for record in groups.get((*row, width), ())]
            return "-" if not found or None in found else f"{min(found):.2f}-{max(found):.2f}"
        first = next(width for width in widths if (*row, width) in groups)
        question, key_dim, steps, method = row
        accuracies = "".join(f"{span(width, 'accuracy'):<12}" for width in widths)
        lines.append(f"{f'{question}, {key_dim}, {steps}':<24} {method:<16} {accuracies}"
                     f"{span(first, 'accuracy_mean')}, {span(first, 'accuracy_shuffle')}")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the corridor quiz's records, or those still missing.")
    parser.add_argument("--switches", action="store_true", help="those of the corridor with switches")
    parser.add_argument("--out", help="file of JSON lines (default: data/results/quiz.jsonl, "
                                      "with --switches quiz-switches.jsonl there)")
    given = parser.parse_args()
    name, parts = ("quiz-switches", SWITCHES) if given.switches else ("quiz", CORRIDOR)
    out = given.out or f"data/results/{name}.jsonl"
    print_or_refuse(parser, lambda: quiz_table(write_quiz_records(out, parts)))
