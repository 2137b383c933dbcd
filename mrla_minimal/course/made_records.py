"""Files of records that a command makes run by run: what is there already is left out, and each run is kept.

A file is JSON lines, as those of lab/files.py. A run is known by its setting: the arguments that it was made
with, all of which its record holds.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mrla_minimal.lab.arguments import positive
from mrla_minimal.lab.evidence.intervals import paired_interval
from mrla_minimal.lab.files import append_record, exclusive, read_records


def run_id(setting: Any) -> str:
    """The first 12 hex digits of the SHA-256 of a setting, written as JSON with its keys in order."""
    return hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()[:12]


def made_with(setting: dict, records: Iterable[dict]) -> list[dict]:
    """The records of runs with this setting, which may be a part of theirs: a recipe without its seed."""
    return [record for record in records if setting.items() <= record.items()]


def write_missing(path: str | Path, make: Callable[[tuple[dict, ...]], Iterable[dict]]) -> list[dict]:
    """Append to a file what `make` yields, one by one; returns all records of the file.

    make: the records that are there -> those that are missing. Of two commands at once both may make a run:
    the file gets the one that is ready first. Raises ValueError if the file holds something that is no
    record: before the first run, and nothing is changed, or, of what another command left meanwhile, after
    the last.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for record in make(tuple(_whole_records(path))):
        with exclusive(f"{path}.lock"):
            if record["id"] not in {known.get("id") for known in _read(path)[0]}:
                append_record(path, record)
    return _whole_records(path)


def _read(path: Path) -> tuple[list[dict], list[str]]:
    return read_records(path) if path.exists() else ([], [])


def _whole_records(path: Path) -> list[dict]:
    with exclusive(f"{path}.lock"):
        records, complaints = _read(path)
    if complaints:
        raise ValueError(f"{complaints[0]}: mend or remove that line")
    return records


def write_asked(path: str | Path, asked: Sequence[dict], make: Callable[[tuple[dict, ...]], Iterable[dict]],
                minutes: float | None = None) -> list[dict]:
    """`write_missing`, which prints a line a run and begins none after `minutes`.

    asked: the settings of the runs that `make` makes. Returns their records, as far as they are made, in that
    order. Raises ValueError as `write_missing` does, and for minutes that are no positive number.
    """
    until = None if minutes is None else time.monotonic() + 60 * positive("minutes", minutes)
    names = dict.fromkeys(name for setting in asked for name in setting)

    def missing(known: tuple[dict, ...]) -> Iterator[dict]:
        for record in make(known):
            yield record
            print(record["id"], *(record[name] for name in names if name in record), flush=True)
            if until is not None and time.monotonic() > until:
                break

    records = write_missing(path, missing)
    return [record for setting in asked for record in made_with(setting, records)]


def difference_cells(differences: Sequence[float], decimals: int) -> tuple[str, str]:
    """Mean and 95 % interval (Student's t) of paired differences as text; "-" where one seed gives none."""
    mean, interval, _ = paired_interval(differences)
    ends = "-" if interval is None else " to ".join(f"{end:+.{decimals}f}" for end in interval)
    return f"{mean:+.{decimals}f}", ends


def print_or_refuse(parser: argparse.ArgumentParser, say: Callable[[], str]) -> None:
    """Print what a command has to say; wrong input ends it with one line and status 2."""
    try:
        print(say())
    except (ValueError, OSError) as error:
        parser.exit(2, f"{error}\n")
