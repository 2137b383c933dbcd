"""Do words choose layers? The records of notebook 18, made by one command, and what they say.

    python -m mrla_minimal.course.words_records                 # makes data/results/words.jsonl, or what is
                                                                # missing of it, and prints its tables
    python -m mrla_minimal.course.words_records --minutes 9     # begins no further run after nine minutes

Drawn scenes, one thread. Of each seed a plain and a residual encoder, each probed layer by layer; and
readers:

    objects     seven fusions on the plain encoder, a reading of 24 numbers
    residual    three of them, on the residual encoder
    places      planted: three of them, where a question needs one layer and a reading brings back 2 numbers
"""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean

import torch

from mrla_minimal.course.made_records import difference_cells, made_with, print_or_refuse, run_id, write_asked
from mrla_minimal.course.words_reading import examine, look_at_scenes, probe, train_encoder, train_reader
from mrla_minimal.course.words_scenes import KINDS
from mrla_minimal.family.regional import FUSIONS
from mrla_minimal.lab.arguments import integer
from mrla_minimal.lab.evidence.intervals import shared_seeds
from mrla_minimal.lab.evidence.provenance import source_commit, versions
from mrla_minimal.lab.evidence.suites import check_seeds
from mrla_minimal.shapes import check_choice

SEEDS = range(5)
STEPS = 1000
# part: the encoder, its questions, the width of a reading, the fusions
PARTS = {
    "objects": (False, "objects", 24, tuple(FUSIONS)),
    "places": (False, "places", 2, ("mean", "learned", "layers")),
    "residual": (True, "objects", 24, ("last", "mean", "layers")),
}
CHOOSING = ("layers", "layers-patches", "joint", "progressive")            # whose weights see the question
# What is asked of the records: (part, a, b), the difference a - b in points.
ASKED = (("objects", "mean", "last"), ("objects", "learned", "mean"),
         *(("objects", fusion, control) for fusion in CHOOSING for control in ("mean", "learned")),
         ("places", "layers", "mean"), ("places", "layers", "learned"),
         ("residual", "mean", "last"), ("residual", "layers", "mean"))


def words_records(seeds: Iterable[int] = SEEDS, parts: Iterable[str] = tuple(PARTS), steps: int = STEPS,
                  known: Iterable[dict] = ()) -> Iterator[dict]:
    """Yield a plain dict a run, without those that `known` holds: seed by seed, plain encoders first.

    Of each encoder first its probes, then its readers. Each names the commit of the code that made it, with
    "+changes" if that was not committed. Raises ValueError for an unknown part, or seeds below 0 or repeated.
    """
    settings, known, commit = asked_runs(seeds, parts, steps), list(known), source_commit()
    seen_by = {}
    for setting in settings:
        if made_with(setting, known):
            continue
        encoder = setting["seed"], setting["residual"]
        if encoder not in seen_by:
            seen_by = {encoder: look_at_scenes(train_encoder(*encoder), setting["seed"])}
        found = _measured(setting, *seen_by[encoder])
        yield {"id": run_id(["words", setting]), "suite": "words", **setting, **found, "commit": commit,
               "versions": versions()}


def asked_runs(seeds: Iterable[int] = SEEDS, parts: Iterable[str] = tuple(PARTS),
               steps: int = STEPS) -> list[dict]:
    """The settings of the runs that `words_records` makes, in its order; it raises what that does."""
    seeds, parts = check_seeds("seed", seeds), tuple(parts)
    for part in parts:
        check_choice("part", part, PARTS)
    return [setting for residual in (False, True) for seed in seeds
            for setting in _settings(seed, residual, parts, integer("steps", steps))]


def _settings(seed, residual, parts, steps):
    """Of one encoder: the probes, then the readers of each of `parts` that has it."""
    readers = [dict(what="reader", part=part, fusion=fusion, questions=questions, width=width, seed=seed,
                    residual=residual, steps=steps)
               for part, (on_residual, questions, width, fusions) in PARTS.items()
               if part in parts and on_residual == residual for fusion in fusions]
    return [dict(what="probes", seed=seed, residual=residual), *readers] if readers else []


def _measured(setting, seen, unseen):
    if setting["what"] == "probes":
        return {kind: probe(seen, unseen, kind) for kind in KINDS} | {
            "covered": unseen.scenes.covered.float().mean().item()}
    task = setting["questions"]
    reader, history = train_reader(seen, setting["fusion"], task, setting["width"], setting["seed"],
                                   setting["steps"])
    found = examine(reader, unseen, task)
    accuracy = fmean(found[kind]["accuracy"] for kind in KINDS)
    return {"accuracy": accuracy, **found, "learned": history}


def write_words_records(path: str | Path, minutes: float | None = None, seeds: Iterable[int] = SEEDS,
                        parts: Iterable[str] = tuple(PARTS), steps: int = STEPS) -> list[dict]:
    """Make the records in one file of JSON lines; go on where an earlier call stopped.

    Returns those that were asked for, as far as they are made. After `minutes` no further run is begun.
    Raises ValueError, and changes nothing, as `words_records` does, if the file holds something that is no
    record, and for minutes that are no positive number.
    """
    seeds, parts = tuple(seeds), tuple(parts)
    return write_asked(path, asked_runs(seeds, parts, steps),
                       lambda known: words_records(seeds, parts, steps, known), minutes)


def readers_of(records: Iterable[dict], part: str) -> dict[str, dict[int, dict]]:
    """{fusion: {seed: record}} of one part."""
    found = {fusion: {} for fusion in PARTS[part][3]}
    for record in records:
        if record["what"] == "reader" and record["part"] == part:
            found[record["fusion"]][record["seed"]] = record
    return found


def differences(records: Iterable[dict], part: str, a: str, b: str) -> list[float]:
    """Accuracy of fusion a minus that of b, in points, a seed each, for the seeds that both have."""
    runs = readers_of(records, part)
    return [100 * (runs[a][seed]["accuracy"] - runs[b][seed]["accuracy"])
            for seed in shared_seeds([runs[a], runs[b]])]


def readers_table(records: Iterable[dict]) -> str:
    """Lowest and highest seed of each reader as text: both accuracies, and where it looked."""
    records = list(records)
    titles = ("colour asked", "shape asked", "looked, colour", "looked, shape")
    lines = [f"{'part':<10}{'tokens':<16}" + "".join(f"{title:<16}" for title in titles) + "seeds"]
    for part in PARTS:
        for fusion, runs in readers_of(records, part).items():
            cells = [[run[kind][what] for run in runs.values()]
                     for what in ("accuracy", "looked") for kind in KINDS]
            if runs:
                spans = "".join(f"{f'{min(cell):.2f}-{max(cell):.2f}':<16}" for cell in cells)
                lines.append(f"{part:<10}{fusion:<16}{spans}{len(runs)}")
    return "\n".join(lines)


def differences_table(records: Iterable[dict]) -> str:
    """What is asked, as text: mean differences in points over the seeds, 95 % intervals (Student's t)."""
    records = list(records)
    lines = [f"{'part':<10}{'difference':<26}{'mean':>7}   {'95 % interval':<20}{'seeds'}"]
    for part, a, b in ASKED:
        found = differences(records, part, a, b)
        if found:
            mean, ends = difference_cells(found, 2)
            lines.append(f"{part:<10}{f'{a} - {b}':<26}{mean:>7}   {ends:<20}{len(found)}")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the records of notebook 18, or those still missing, "
                                                 "and print what they say.")
    parser.add_argument("--minutes", type=float,
                        help="begin no further run after so many (default: no limit)")
    parser.add_argument("--out", default="data/results/words.jsonl",
                        help="file of JSON lines (default: %(default)s)")
    given = parser.parse_args()
    torch.set_num_threads(1)

    def tables() -> str:
        made = write_words_records(given.out, given.minutes)
        return f"{readers_table(made)}\n\n{differences_table(made)}"

    print_or_refuse(parser, tables)
