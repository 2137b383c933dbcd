"""Blocks: all variants of one seed. Which are complete, in which order they are run, and how a suite stopped.

Beside a suite's records, SUITE.jsonl, lies SUITE-stops.jsonl once it has been run by time: a line for each
command that ended, which says what ended it. So a report made of committed files can tell.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mrla_minimal.lab.evidence.records import check_suite
from mrla_minimal.lab.evidence.suites import Suite
from mrla_minimal.lab.files import append_record, exclusive, read_records

STOPS = "-stops"        # what the name of a file of stops ends with


def stops_path(records_path: str | Path) -> Path:
    """Where it is kept how a suite's timed commands ended: beside its records."""
    return Path(records_path).with_name(f"{Path(records_path).stem}{STOPS}.jsonl")


def load_stops(records_path: str | Path, suite: str) -> list[dict]:
    """What ended the timed commands of a suite, in order; [] if none was run."""
    path = stops_path(records_path)
    lines = read_records(path)[0] if path.exists() else []
    return [line for line in lines if line.get("suite") == suite]


def append_stop(records_path: str | Path, line: dict) -> None:
    """Add what ended a timed command to the file beside a suite's records."""
    path = stops_path(records_path)
    with exclusive(f"{path}.lock"):
        append_record(path, line)


def is_stops(path: str | Path) -> bool:
    """Whether a file's name says that it holds what ended timed commands."""
    return Path(path).stem.endswith(STOPS)


def merge_stops(paths: Iterable[str | Path], records_path: str | Path,
                suite: str | None = None) -> list[dict]:
    """Add the lines of several files to the one beside a suite's records, each once; all that it then holds.

    suite       whose lines they must all be; None: that of the first
    Raises ValueError, and writes nothing, if a file is not there or holds a line of another suite.
    """
    target, paths = stops_path(records_path), [Path(path) for path in paths]
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise ValueError(f"{missing[0]}: no such file of stops")
    target.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(f"{target}.lock"):
        known = read_records(target)[0] if target.exists() else []
        before = len(known)
        for path in paths:
            for line in read_records(path)[0]:
                suite = suite or (known[0] if known else line).get("suite")
                check_suite(path, line, suite)
                if line not in known:
                    known.append(line)
        for line in known[before:]:
            append_record(target, line)
    return known


def finished_runs(suite: str, records: Iterable[dict]) -> dict[int, set[str]]:
    """seed -> the variants whose final run has ended; one that diverged has ended, too."""
    found: dict[int, set[str]] = {}
    for record in records:
        if record["suite"] == suite and record["phase"] == "final":
            found.setdefault(record["seed"], set()).add(record["variant"])
    return found


def complete_seeds(suite: str, variants: Iterable[str], records: Iterable[dict]) -> list[int]:
    """The seeds of which every one of these variants has ended, in order: the complete blocks."""
    wanted = set(variants)
    return sorted(seed for seed, ended in finished_runs(suite, records).items() if wanted <= ended)


def seeds_in_order(suite: Suite, variants: Sequence[str], seeds: Sequence[int] | None,
                   records: Iterable[dict]) -> Iterator[int]:
    """The seeds of a timed run: those of incomplete blocks first, then the others.

    `seeds` are all that there are, if they are given. Otherwise those that the suite declares, and then on,
    counting, without end.
    """
    found = finished_runs(suite.name, records)
    begun = sorted(seed for seed, ended in found.items()
                   if not set(variants) <= ended and ended & set(variants)
                   and (seeds is None or seed in seeds))
    yield from begun
    declared = suite.seeds if seeds is None else seeds
    yield from (seed for seed in declared if seed not in begun)
    if seeds is None:
        yield from (seed for seed in itertools.count() if seed not in declared and seed not in begun)


def how_it_stopped(suite: Suite, records: Sequence[dict], stops: Sequence[dict]) -> str:
    """How many blocks are complete, and what ended their making: one line or more for the report."""
    variants, found = list(suite.variants), finished_runs(suite.name, records)
    complete = complete_seeds(suite.name, variants, records)
    declared = len(set(complete) & set(suite.seeds))
    text = f"{_count(len(complete), 'complete block')} (all variants of a seed)"
    if declared == len(suite.seeds):
        text += f": all {declared} declared seeds"
        text += f", and {len(complete) - declared} more" if len(complete) > declared else ""
    else:
        text += f"; {len(suite.seeds)} seeds were declared"
    sittings = [line for line in stops if set(line.get("variants", ())) == set(variants)]
    if sittings:
        # The minutes are those that were given: only a sitting that the clock ended has had them all.
        how = {"time": "by time, after",
               "count": "by count, all seeds that were asked for being done, within",
               "interrupted": "by hand (interrupted), within", "error": "by an error, within"}
        text += ". Stopped " + "; then ".join(
            f"{how[line['how']]} {line['minutes']:g} minutes" for line in sittings)
        if sittings[-1]["complete"] != complete:
            text += "; runs were added since without a time limit, or by a command that was cut off"
    parts = [f"seed {seed} ({len(found[seed] & set(variants))} of {len(variants)} variants)"
             for seed in sorted(found) if seed not in complete]
    return text + (f".\nnot complete: {', '.join(parts)}." if parts else ".")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
