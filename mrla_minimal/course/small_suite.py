"""The capstone's small suite: three seeds of the corridor's late question, in the module form.

    python -m mrla_minimal.course.small_suite       # makes what is missing of data/results/capstone.jsonl

Each run is one attention as eight rooms and an exit, 300 steps, some CPU-seconds. All attentions of a seed
see the same corridors, so that differences are paired.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from statistics import fmean

from torch import nn

from mrla_minimal.controls import UniformMean
from mrla_minimal.course.made_records import made_with, print_or_refuse, run_id, write_missing
from mrla_minimal.course.quiz import ROOMS, SIGNS, train_module_quiz
from mrla_minimal.lab.evidence.intervals import Interval, paired_interval, shared_seeds
from mrla_minimal.lab.evidence.provenance import source_commit, versions
from mrla_minimal.lab.evidence.suites import check_seeds
from mrla_minimal.lab.plugins import load_class
from mrla_minimal.layer_attention import MRLABase

SEEDS, QUESTION = (1, 2, 3), "late"
SUITE = {"suite": "capstone", "question": QUESTION}
Attentions = dict[str, Callable[[int], nn.Module]]


def attentions(folder: str | Path) -> Attentions:
    """Those of the three worked submissions in `folder`, and their controls, by the names of the records."""
    files = (Path(folder) / f"{name}.py" for name in ("good", "fair", "wrong"))
    newest_three, newest_five, loud = map(load_class, files)
    return {"mrla-base": MRLABase, "uniform": UniformMean, "window-3": newest_three,
            "window-5": newest_five, "loud": loud}


def expected_accuracy(window: int) -> float:
    """Of a reader that knows the signs of the last window - 1 rooms, and guesses where another is asked for.

    Raises ValueError for a window that is not from 1 to ROOMS + 1.
    """
    if not 1 <= window <= ROOMS + 1:
        raise ValueError(f"window must be from 1 to {ROOMS + 1}, not {window!r}")
    known = (window - 1) / ROOMS
    return known + (1 - known) / SIGNS


def accuracies_of(records: Iterable[dict]) -> dict[str, dict[int, float]]:
    """{attention: {seed: accuracy}}."""
    found: dict[str, dict[int, float]] = {}
    for record in records:
        found.setdefault(record["variant"], {})[record["seed"]] = record["accuracy"]
    return found


def contrast(accuracies: Mapping[str, Mapping[int, float]], one: str,
             other: str) -> tuple[list[float], float, Interval | None]:
    """(paired differences one - other, seed by seed; their mean; its 95 % interval, or None)."""
    seeds = shared_seeds([accuracies[one], accuracies[other]])
    differences = [accuracies[one][seed] - accuracies[other][seed] for seed in seeds]
    return differences, *paired_interval(differences)[:2]


def suite_records(folder: str | Path, seeds: Iterable[int] = SEEDS,
                  known: Iterable[dict] = ()) -> Iterator[dict]:
    """Yield a plain dict a run, without those that `known` holds; each names the commit of its code.

    Raises ValueError for seeds below 0 or repeated.
    """
    seeds, known, commit = check_seeds("seed", seeds), list(known), source_commit()
    for seed in seeds:
        for name, attention in attentions(folder).items():
            setting = SUITE | {"variant": name, "seed": seed}
            if not made_with(setting, known):
                result = train_module_quiz(attention, QUESTION, seed=seed)
                yield {"id": run_id(setting), **setting, "accuracy": result.accuracy, "commit": commit,
                       "versions": versions()}


def suite_table(records: Iterable[dict]) -> str:
    """Each attention's mean accuracy and that of each seed, as text."""
    accuracies = accuracies_of(records)
    seeds = sorted(set().union(*accuracies.values()))
    lines = [f"{'attention':<12}{'mean':<8}" + " ".join(f"seed {seed:<3}" for seed in seeds).rstrip()]
    for name, of_seed in accuracies.items():
        by_seed = " ".join(f"{of_seed[seed]:<8.3f}" if seed in of_seed else f"{'-':<8}"
                           for seed in seeds).rstrip()
        lines.append(f"{name:<12}{fmean(of_seed.values()):<8.3f}{by_seed}")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the capstone's records, or those still missing.")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, choices=SEEDS, metavar="SEED",
                        help="of 1 to 3; all if left out")
    parser.add_argument("--out", default="data/results/capstone.jsonl",
                        help="file of JSON lines (default: %(default)s)")
    given = parser.parse_args()
    print_or_refuse(parser, lambda: suite_table(made_with(SUITE, write_missing(
        given.out, lambda known: suite_records("notebooks/capstone", given.seeds, known)))))
