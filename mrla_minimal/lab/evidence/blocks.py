"""Blocks: all variants of one seed. Which are complete, in which order they are run, and how a suite stopped.

Beside a suite's records, SUITE.jsonl, lies SUITE-stops.jsonl once it has been run by time: a line for each
command that ended, which says what ended it. So a report made of committed files can tell.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mrla_minimal.lab.arguments import integer, not_negative, one_of, positive, shown, text
from mrla_minimal.lab.evidence.merging import check_suite, existing
from mrla_minimal.lab.evidence.records import read_checked
from mrla_minimal.lab.evidence.suites import Suite
from mrla_minimal.lab.files import append_record, exclusive

STOPS = "-stops"        # what the name of a file of stops ends with
# What ended a sitting, and how the report says it.
ENDINGS = {"time": "by time", "count": "by count, all seeds that were asked for being done",
           "interrupted": "by hand (interrupted)", "error": "by an error"}


def _list_of(check, name: str, value: Any) -> list:
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list, not {shown(value)}")
    return [check(name, one) for one in value]


_STOP = {"suite": text, "variants": functools.partial(_list_of, text),
         "how": functools.partial(one_of, allowed=tuple(ENDINGS)), "minutes": positive,
         "took": not_negative, "complete": functools.partial(_list_of, functools.partial(integer, least=0))}


def stops_path(records_path: str | Path) -> Path:
    """Where it is kept how a suite's timed commands ended: beside its records."""
    return Path(records_path).with_name(f"{Path(records_path).stem}{STOPS}.jsonl")


def load_stops(records_path: str | Path, suite: str) -> list[dict]:
    """What ended the timed commands of a suite, in order; [] if none was run.

    Raises ValueError as `read_checked`.
    """
    return [line for line in read_stops(stops_path(records_path)) if line["suite"] == suite]


def read_stops(path: str | Path) -> list[dict]:
    """All lines of a file of stops, of whatever suites, as `read_checked`."""
    return read_checked(path, "stops", lambda line: {
        field: check for field, check in _STOP.items() if field != "took" or field in line})


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
    Raises ValueError, and writes nothing, if a file is not there, or holds something else or a line of
    another suite.
    """
    target, paths = stops_path(records_path), existing(paths)
    target.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(f"{target}.lock"):
        known, found = read_stops(target), []
        for path in (target, *paths):
            for line in read_stops(path):
                suite = suite or line["suite"]
                check_suite(path, line, suite)
                if line not in known + found:
                    found.append(line)
        for line in found:
            append_record(target, line)
    return known + found


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
    said = f"{_count(len(complete), 'complete block')} (all variants of a seed)"
    if declared == len(suite.seeds):
        said += f": all {declared} declared seeds"
        said += f", and {len(complete) - declared} more" if len(complete) > declared else ""
    else:
        said += f"; {len(suite.seeds)} seeds were declared"
    sittings = [line for line in stops if set(line["variants"]) == set(variants)]
    if sittings:
        said += ". Stopped " + "; then ".join(
            f"{ENDINGS[line['how']]}, {_minutes(line)}" for line in sittings)
    timed = {seed for line in sittings for seed in line["complete"]}
    if not set(complete) <= timed and (sittings or declared < len(suite.seeds)):
        said += "; other blocks" if sittings else ". The blocks"
        said += " were made without a time limit, or by a command that was cut off"
    parts = [f"seed {seed} ({len(found[seed] & set(variants))} of {len(variants)} variants)"
             for seed in sorted(found) if seed not in complete]
    return said + (f".\nnot complete: {', '.join(parts)}." if parts else ".")


def _minutes(line: dict) -> str:
    """How long a sitting took; older lines tell only how long it was allowed to take."""
    allowed = f"{line['minutes']:g} minutes"
    return f"after {line['took']:.1f} of {allowed}" if "took" in line else f"within {allowed}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
