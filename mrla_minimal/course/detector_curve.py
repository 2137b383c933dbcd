"""When does a detector overtake the watershed? The curve of notebook 13b, made by one command.

    python -m mrla_minimal.course.detector_curve        # makes data/results/nuclei-curve.jsonl, or what is
                                                        # missing of it, and prints its table

The plain detector of the preset `nuclei`, its average precision measured on the validation images after each
epoch of 95 steps. The rival's own figures on these images are in nuclei-rival.json: it was tuned there, which
flatters it.
"""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

from mrla_minimal.course.made_records import made_with, print_or_refuse, run_id, write_missing
from mrla_minimal.lab.data.scenes import Scenes
from mrla_minimal.lab.engine import PRESETS, TrainConfig, train
from mrla_minimal.lab.evidence.provenance import source_commit, versions
from mrla_minimal.lab.evidence.suites import check_seeds

SEEDS = (0, 1, 2)
SUITE = "nuclei-curve"
MEASURED = ("validation_box_AP", "validation_mask_AP")


def curve_records(seeds: Iterable[int] = SEEDS, known: Iterable[dict] = (),
                  runs: str | Path = f"runs/{SUITE}", recipe: dict = PRESETS["nuclei"],
                  data: Scenes | None = None) -> Iterator[dict]:
    """Yield a plain dict a seed, without those that `known` holds; a run that was interrupted goes on.

    `curve` is a list of [step, box AP, mask AP], fractions of 1. Raises ValueError for seeds below 0 or
    repeated.
    """
    seeds, commit = check_seeds("seed", seeds), source_commit()
    for seed in seeds:
        setting = {"suite": SUITE, "variant": "plain", "seed": seed, "recipe": recipe}
        if made_with(setting, known):
            continue
        folder = Path(runs) / f"seed{seed}"
        result = train(TrainConfig(**recipe, seed=seed, validation=True), folder, data=data,
                       resume=(folder / "config.json").exists())
        yield {"id": run_id(setting), **setting,
               "curve": [[line["step"], *(line[name] for name in MEASURED)] for line in result.metrics],
               "source": result.source, "fingerprint": result.fingerprint, "commit": commit,
               "versions": versions()}


def curve_table(records: Iterable[dict]) -> str:
    """Mask AP in points at each measured step, a column a seed, as text."""
    records = list(records)
    lines = ["step    " + "".join(f"{'seed ' + str(record['seed']):>8}" for record in records)]
    for row in zip(*(record["curve"] for record in records), strict=True):
        lines.append(f"{row[0][0]:<8}" + "".join(f"{100 * mask:>8.1f}" for _, _, mask in row))
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the detector's curve, or what is missing of it.")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, metavar="SEED",
                        help="default: 0 1 2")
    parser.add_argument("--out", default=f"data/results/{SUITE}.jsonl",
                        help="file of JSON lines (default: %(default)s)")
    given = parser.parse_args()
    print_or_refuse(parser, lambda: curve_table(made_with({"suite": SUITE}, write_missing(
        given.out, lambda known: curve_records(given.seeds, known)))))
