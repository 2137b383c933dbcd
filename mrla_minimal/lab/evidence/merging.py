"""Records of several machines in one file: of one suite, each once, and none that contradicts another."""

from collections.abc import Iterable
from pathlib import Path

from mrla_minimal.lab.arguments import shown
from mrla_minimal.lab.evidence.records import (
    ACCURACIES,
    INTERVENTIONS,
    is_interventions,
    is_whole,
    load_every_intervention,
    load_records,
    result_of,
)
from mrla_minimal.lab.files import exclusive, replace_file, to_line


def merge_records(paths: Iterable[str | Path], target: str | Path, suite: str | None = None) -> list[dict]:
    """Add the records of several files to `target`, and return all that it then holds.

    suite       whose records they must all be; None: that of the first

    Each id is kept once; of interventions (all files are named *-interventions.jsonl then) one of an older
    form goes where there is one of today's. Raises ValueError, and writes nothing, if a file is not there or
    holds something else, such as a record of another suite, or if records of one id and form have different
    accuracies.
    """
    paths = existing(paths)
    of_interventions = is_interventions(target)
    strangers = [str(path) for path in paths if is_interventions(path) != of_interventions]
    if strangers:
        raise ValueError(f"runs and interventions are kept apart: {', '.join(strangers)} cannot go to "
                         f"{target} (interventions are in files named *{INTERVENTIONS}.jsonl)")
    load, compared = load_records, ()
    if of_interventions:
        load, compared = load_every_intervention, (*ACCURACIES, "changed", "errors", "refitted")
    with exclusive(f"{target}.lock"):
        merged = {}
        for path in (target, *paths):
            for record in load(path):
                suite = suite or record["suite"]
                check_suite(path, record, suite)
                other = merged.setdefault((record["id"], is_whole(record)), record)
                differ = any(other.get(name) != record.get(name) for name in ("fingerprint", *compared))
                if differ or result_of(other) != result_of(record):
                    which = f"record {record['id']} ({record['variant']}, seed {record['seed']})"
                    raise ValueError(f"{path}: {which} differs from the one of the same id that was read "
                                     "before; keep one of them")
        kept = [record for (id, whole), record in merged.items() if whole or (id, True) not in merged]
        replace_file(target, lambda file: file.write("".join(map(to_line, kept)).encode()))
    return kept


def existing(paths: Iterable[str | Path]) -> list[Path]:
    """The paths of files that are to be merged; ValueError for the first that is not there."""
    paths = [Path(path) for path in paths]
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path}: no such file of records")
    return paths


def check_suite(path: str | Path, line: dict, suite: str) -> None:
    """Raise ValueError if a line that is to be merged is not of that suite: a file holds one suite's."""
    if line.get("suite") != suite:
        raise ValueError(f"{path} holds a line of suite {shown(line.get('suite'))}, which does not go with "
                         f"those of {suite}")
