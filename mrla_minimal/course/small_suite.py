"""The capstone's small suite: three seeds of the corridor's late question, in the module form.

    python -m mrla_minimal.course.small_suite       # makes what is missing of data/results/capstone.jsonl

Each run is one attention as eight rooms and an exit, 300 steps, some CPU-seconds. All attentions of a seed
see the same corridors, so that differences are paired.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from mrla_minimal.controls import UniformMean
from mrla_minimal.course.quiz import ROOMS, SIGNS, train_module_quiz
from mrla_minimal.lab.evidence.intervals import Interval, paired_interval, shared_seeds
from mrla_minimal.lab.files import append_record, read_records, repository_root
from mrla_minimal.lab.plugins import load_class
from mrla_minimal.layer_attention import MRLABase

SEEDS, QUESTION = (1, 2, 3), "late"
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


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, choices=SEEDS, metavar="SEED",
                        help="of 1 to 3; all if left out")
    seeds, root = parser.parse_args().seeds, repository_root()
    if root is None:
        raise SystemExit(f"{Path.cwd()} lies in no copy of the repository")
    path = root / "data/results/capstone.jsonl"
    records = read_records(path)[0] if path.exists() else []
    done = {(record["variant"], record["seed"]) for record in records}
    for seed in seeds:
        for name, attention in attentions(root / "notebooks/capstone").items():
            if (name, seed) not in done:
                result = train_module_quiz(attention, QUESTION, seed=seed)
                append_record(path, {"suite": "capstone", "variant": name, "question": QUESTION, "seed": seed,
                                     "accuracy": result.accuracy, "torch": torch.__version__})


if __name__ == "__main__":
    main()
