"""Records: a finished run is a line of JSON, with all that it takes to compare it or make it again.

Beside a suite's records, SUITE.jsonl, lie those of its interventions, SUITE-interventions.jsonl, a line each
(`interventions.py` makes them). Records outlive the code, and travel between machines: they are checked when
they are read.
"""

import functools
import hashlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mrla_minimal.lab.arguments import boolean, integer, not_negative, one_of, positive, share, shown, text
from mrla_minimal.lab.engine.config import CIRCUMSTANCES, SCENES
from mrla_minimal.lab.evidence.suites import beyond_defaults
from mrla_minimal.lab.files import append_record, exclusive, read_records

INTERVENTIONS = "-interventions"        # what the name of a file of interventions ends with


def record_id(suite: str, variant: str, seed: int, config: dict) -> str:
    """The first 12 hex digits of the SHA-256 of suite, variant, seed and configuration.

    Of the configuration, what differs from the defaults counts; its circumstances do not.
    """
    kept = {name: value for name, value in beyond_defaults(config).items()
            if name not in CIRCUMSTANCES}
    whole = json.dumps([suite, variant, seed, kept], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()[:12]


# What a record must hold, and how it is checked

def _table(name: str, value: Any) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a table of names and values, not {shown(value)}")
    return value


_OF_EPOCH = {"epoch": integer, "train_loss": not_negative, "test_loss": not_negative,
             "test_mask_fields": text}


def _epochs(name: str, value: Any) -> list:
    """The metrics of a run: a table an epoch. What summaries read of one is checked where it is there."""
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list of epochs, not {shown(value)}")
    for epoch in value:
        for field, reached in _table(f"{name}: an epoch", epoch).items():
            precision = re.fullmatch(r"test_(\w+_)?(mask|box)_AP", field)
            check = share if precision else _OF_EPOCH.get(field)
            if check is not None:
                check(f"{name}: {field}", reached)
    return value


def _tuned(name: str, value: Any) -> list:
    """The metrics of a tuning run: the last epoch's validation accuracy is what chooses the rate."""
    if not _epochs(name, value):
        raise ValueError(f"{name} must be a list of epochs, not {shown(value)}")
    share(f"{name}: validation_accuracy", value[-1].get("validation_accuracy"))
    return value


def _detected(name: str, value: Any) -> list:
    """The metrics of a detector: the last epoch's average precision is its result."""
    last = value[-1] if _epochs(name, value) else None
    share(f"{name}: test_box_AP", _table(f"{name}: the last epoch", last).get("test_box_AP"))
    return value


def _changed(name: str, value: Any, hows: tuple[str, ...] = ("mean", "shuffle", "uniform")) -> dict:
    """Right answers lost and gained, of each intervention."""
    for how in hows:
        pair = _table(name, value).get(how)
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"{name} must hold two counts for {how}, not {shown(pair)}")
        for count in pair:
            integer(f"{name}: {how}", count, least=0)
    return value


def _refitted(name: str, value: Any) -> dict:
    """The interventions once more, with norms refitted: there "learned", too, is a change."""
    fields = {**ACCURACIES, "augmented": boolean,
              "changed": functools.partial(_changed, hows=("learned", "mean", "shuffle", "uniform"))}
    _check(_table(name, value), fields, f"{name}: ")
    return value


def _check(record: dict, fields: dict[str, Callable], where: str = "") -> None:
    missing = [field for field in fields if field not in record]
    if missing:
        raise ValueError(f"{where}lacks {', '.join(missing)}")
    for field, check in fields.items():
        check(f"{where}{field}", record[field])


def _left_at(name: str, value: Any) -> dict:
    """Which trunk a branch left, and which training of it."""
    for part in ("id", "weights"):
        text(f"{name}: {part}", _table(name, value).get(part))
    return value


_WHICH = {"id": text, "suite": text, "variant": text, "seed": functools.partial(integer, least=0)}
_HOW = {"phase": functools.partial(one_of, allowed=("tuning", "final")), "learning_rate": positive,
        "config": _table}
_DIVERGED = {**_WHICH, **_HOW, "test_accuracy": functools.partial(one_of, allowed=(None,)), "diverged": text}
_RUN = {**_WHICH, **_HOW, "test_accuracy": share, "source": text, "fingerprint": text}
_TUNING = {**_RUN, "metrics": _tuned}
_DETECTION = {**{field: check for field, check in _RUN.items() if field != "test_accuracy"},
              "metrics": _detected}
ACCURACIES = {"learned": share, "mean": share, "shuffle": share, "uniform": share}
_INTERVENTION = {**_WHICH, **ACCURACIES, "images": integer, "changed": _changed}


def _precisions(name: str, value: Any) -> dict:
    """The average precision of boxes, and of masks where there are any: of a detector, or its error."""
    for what in ("box_AP", "mask_AP"):
        reached = _table(name, value).get(what)
        if what == "box_AP" or reached is not None:
            share(f"{name}: {what}", reached)
    return value


def _errors(name: str, value: Any, hows: tuple[str, ...] = ("mean", "shuffle", "uniform")) -> dict:
    _check(_table(name, value), dict.fromkeys(hows, _precisions), f"{name}: ")
    return value


def _refitted_detector(name: str, value: Any) -> dict:
    errors = functools.partial(_errors, hows=("learned", "mean", "shuffle", "uniform"))
    _check(_table(name, value), {**_PRECISIONS, "errors": errors}, f"{name}: ")
    return value


_PRECISIONS = dict.fromkeys(ACCURACIES, _precisions)
_OF_DETECTOR = {**_WHICH, **_PRECISIONS, "errors": _errors, "images": integer, "fields": integer,
                "refitted": _refitted_detector}


def _detects(record: dict) -> bool:
    config = record.get("config")
    return isinstance(config, dict) and config.get("dataset") in SCENES


def result_of(record: dict) -> Any:
    """What two records of one run must agree on."""
    whole = _detects(record) and bool(record.get("metrics"))
    return record["metrics"][-1] if whole else record.get("test_accuracy")


def _fields_of_run(record: dict) -> dict:
    at_times = {"metrics": _epochs, "trunk": _left_at}
    if "diverged" in record:
        fields = _DIVERGED
    elif _detects(record):
        fields = _DETECTION
    else:
        fields = _TUNING if record.get("phase") == "tuning" else _RUN
    return {field: check for field, check in at_times.items() if field in record} | fields


def _fields_of_intervention(record: dict) -> dict:
    if "fields" in record:
        return _OF_DETECTOR
    return _INTERVENTION | ({"refitted": _refitted} if "refitted" in record else {})


# Reading

_TOLD = set()       # what this process has complained about


def read_checked(path: str | Path, kind: str, fields_of: Callable[[dict], dict]) -> list[dict]:
    """The records of a file, [] if it does not exist; each is held to its `fields_of`: field -> check.

    A line that is no whole record is left out, and said on stderr. Raises ValueError, naming record and
    field, for one that lacks a field, or has something else in its place.
    """
    if not Path(path).exists():
        return []
    records, complaints = read_records(path)
    for complaint in complaints:
        if complaint not in _TOLD:      # a suite reads its records before every run
            _TOLD.add(complaint)
            print(f"note: {complaint}; left out", file=sys.stderr)
    for number, record in enumerate(records, start=1):
        try:
            _check(record, fields_of(record))
        except ValueError as error:
            raise ValueError(f"{path} does not hold {kind}: record {number}: {error}") from None
    return records


def load_records(path: str | Path) -> list[dict]:
    """The records of a file of runs, as `read_checked`."""
    return read_checked(path, "records of a suite", _fields_of_run)


def load_every_intervention(path: str | Path) -> list[dict]:
    """All records of a file of interventions, as `load_records`: also those that another line replaces.

    Older ones refitted norms on images without training's crops and flips. That is an intervention of its
    own, which hurts: those numbers are left out. The rest of such a record holds.
    """
    records = read_checked(path, "interventions", _fields_of_intervention)
    for record in records:
        for name in ("learned_refitted", "uniform_refitted"):
            record.pop(name, None)
        record.get("changed", {}).pop("uniform_refitted", None)
    return records


def load_interventions(path: str | Path) -> list[dict]:
    """The records of interventions, one of each run: the latest of today's form, if there is one."""
    records = load_every_intervention(path)
    return list({record["id"]: record for record in sorted(records, key=is_whole)}.values())


def is_whole(intervention: dict) -> bool:
    """Whether it is of today's form, with norms refitted on images as training had them."""
    return "refitted" in intervention


def whole_interventions(path: str | Path) -> list[dict]:
    """Those of today's form: a net with none is measured anew, if it is at hand."""
    return list(filter(is_whole, load_interventions(path)))


def interventions_path(records_path: str | Path) -> Path:
    """Where the interventions on a suite's nets are recorded: beside its records."""
    return Path(records_path).with_name(f"{Path(records_path).stem}{INTERVENTIONS}.jsonl")


# Writing

def append_once(path: str | Path, record: dict, load: Callable[[str | Path], list[dict]]) -> None:
    """Add a record to its file, unless `load` finds its id there; one process at a time."""
    with exclusive(f"{path}.lock"):
        if record["id"] not in {known["id"] for known in load(path)}:
            append_record(path, record)


def is_interventions(path: str | Path) -> bool:
    """Whether a file's name says that it holds interventions."""
    return Path(path).stem.endswith(INTERVENTIONS)
