"""Records: one finished run is one line of a JSON-lines file, with everything needed to compare it and to make it again.

Beside a suite's records lie those of its interventions, a line each (`interventions.py` makes them): SUITE.jsonl and
SUITE-interventions.jsonl. Records outlive the code, and travel between machines: what is read is checked first.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mrla_minimal.lab.evidence.suites import beyond_defaults
from mrla_minimal.lab.files import append_record, exclusive, read_records, replace_file, to_line

INTERVENTIONS = "-interventions"        # what the name of a file of interventions ends with


def record_id(suite: str, variant: str, seed: int, config: dict) -> str:
    """The first 12 hex digits of the SHA-256 of suite, variant, seed, and what the configuration has beyond the defaults.

    The device and paths do not count.
    """
    kept = {name: value for name, value in beyond_defaults(config).items()
            if name not in ("device", "data_root", "source")}
    text = json.dumps([suite, variant, seed, kept], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# What a record must hold: (is it right, what it must be)

def _is_number(value: Any, low: float = 0.0, high: float = float("inf")) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


_TEXT = (lambda value: isinstance(value, str), "a text")
_COUNT = (lambda value: isinstance(value, int) and _is_number(value), "an integer from 0 on")
_SHARE = (lambda value: _is_number(value, high=1.0), "a number from 0 to 1")
_RATE = (lambda value: _is_number(value) and 0 < value < float("inf"), "a positive number")
_TABLE = (lambda value: isinstance(value, dict), "a table of names and values")
_PHASE = (lambda value: value in ("tuning", "final"), "'tuning' or 'final'")
_NOTHING = (lambda value: value is None, "null, for the run diverged")
_TUNED = (lambda value: isinstance(value, list) and len(value) > 0 and isinstance(value[-1], dict)
          and _SHARE[0](value[-1].get("validation_accuracy")), "epochs, the last with a validation accuracy from 0 to 1")
_CHANGES = (lambda value: isinstance(value, dict) and all(
    isinstance(pair, list) and len(pair) == 2 and all(_COUNT[0](number) for number in pair)
    for pair in (value.get(how) for how in ("mean", "shuffle", "uniform", "uniform_refitted"))),
    "answers lost and gained by each intervention")

_WHICH = {"id": _TEXT, "suite": _TEXT, "variant": _TEXT, "seed": _COUNT}
_RUN = {**_WHICH, "phase": _PHASE, "test_accuracy": _SHARE, "config": _TABLE, "learning_rate": _RATE, "source": _TEXT,
        "fingerprint": _TEXT}
_TUNING = {**_RUN, "metrics": _TUNED}
_DIVERGED = {**_WHICH, "phase": _PHASE, "test_accuracy": _NOTHING, "diverged": _TEXT, "config": _TABLE, "learning_rate": _RATE}
_OLD_INTERVENTION = {**_WHICH, "learned": _SHARE, "mean": _SHARE, "shuffle": _SHARE, "uniform": _SHARE}
_INTERVENTION = {**_OLD_INTERVENTION, "learned_refitted": _SHARE, "uniform_refitted": _SHARE, "changed": _CHANGES,
                 "images": (lambda value: _COUNT[0](value) and value > 0, "a positive integer")}


def _check(record: dict, fields: dict, where: str) -> dict:
    missing = [name for name in fields if name not in record]
    if missing:
        raise ValueError(f"{where}: lacks {', '.join(missing)}")
    for name, (right, wanted) in fields.items():
        if not right(record[name]):
            raise ValueError(f"{where}: {name} must be {wanted}, not {json.dumps(record[name])[:60]}")
    return record


def _fields_of_run(record: dict) -> dict:
    if "diverged" in record:
        return _DIVERGED
    return _TUNING if record.get("phase") == "tuning" else _RUN


def _fields_of_intervention(record: dict) -> dict:
    return _INTERVENTION if "changed" in record else _OLD_INTERVENTION


# Reading

_TOLD = set()       # what this process has complained about


def _read(path: str | Path, kind: str, fields_of: Callable[[dict], dict]) -> list[dict]:
    if not Path(path).exists():
        return []
    records, complaints = read_records(path)
    for complaint in complaints:
        if complaint not in _TOLD:      # a suite reads its records before every run
            _TOLD.add(complaint)
            print(f"note: {complaint}", file=sys.stderr)
    return [_check(record, fields_of(record), f"{path} does not hold {kind}: record {number}")
            for number, record in enumerate(records, start=1)]


def load_records(path: str | Path) -> list[dict]:
    """The records of a file of runs, [] if it does not exist.

    A line that is no whole record is left out, and said on stderr. Raises ValueError, naming record and field, for one
    that lacks what a record of a suite holds, or has something else in its place.
    """
    return _read(path, "records of a suite", _fields_of_run)


def load_every_intervention(path: str | Path) -> list[dict]:
    """All records of a file of interventions, also those that a later line took the place of. As `load_records`."""
    return _read(path, "interventions", _fields_of_intervention)


def load_interventions(path: str | Path) -> list[dict]:
    """The records of interventions, the latest of each run: what is measured anew, and more fully, stands below the old."""
    return list({record["id"]: record for record in load_every_intervention(path)}.values())


def whole_interventions(path: str | Path) -> list[dict]:
    """Those of today's form: older ones held four accuracies alone."""
    return [record for record in load_interventions(path) if "changed" in record]


def interventions_path(records_path: str | Path) -> Path:
    """Where the interventions on a suite's nets are recorded: beside its records."""
    return Path(records_path).with_name(f"{Path(records_path).stem}{INTERVENTIONS}.jsonl")


# Writing

def append_once(path: str | Path, record: dict, load: Callable[[str | Path], list[dict]]) -> None:
    """Add a record to its file, unless `load` finds its id there; one process at a time."""
    with exclusive(f"{path}.lock"):
        if record["id"] not in {known["id"] for known in load(path)}:
            append_record(path, record)


def merge_records(paths: Iterable[str | Path], target: str | Path) -> list[dict]:
    """Add the records of several files to `target`, and return all that it then holds.

    Of runs, each id is kept once. Interventions (files whose names end in -interventions, then all of them) are kept
    once each; those of an older form go first, since the later line of a run counts. Raises ValueError, and writes
    nothing, if a file is not there or holds something else, or if two records of one id have different accuracies.
    """
    paths = [Path(path) for path in paths]
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path}: no such file of records")
    kinds = {is_interventions(path) for path in (target, *paths)}
    if len(kinds) > 1:
        raise ValueError(f"runs and interventions are kept apart: {target}, {', '.join(map(str, paths))} are of both kinds "
                         f"(interventions are in files named *{INTERVENTIONS}.jsonl)")
    load, compared = load_records, ("test_accuracy", "fingerprint")
    if kinds == {True}:
        load, compared = load_every_intervention, ("fingerprint", "learned", "mean", "shuffle", "uniform", "changed")
    with exclusive(f"{target}.lock"):
        first, merged = {}, {}
        for path in (target, *paths):
            for record in load(path):
                form = record["id"], "changed" in record
                other = first.setdefault(form, record)
                if any(other.get(name) != record.get(name) for name in compared):
                    raise ValueError(f"{path}: record {record['id']} ({record['variant']}, seed {record['seed']}) differs "
                                     "from the one of the same id that was read before; keep one of them")
                merged[form] = other
        kept = sorted(merged.values(), key=lambda record: "changed" in record) if kinds == {True} else list(merged.values())
        replace_file(target, lambda file: file.write("".join(map(to_line, kept)).encode()))
    return kept


def is_interventions(path: str | Path) -> bool:
    """Whether a file's name says that it holds interventions."""
    return Path(path).stem.endswith(INTERVENTIONS)
