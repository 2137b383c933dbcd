"""`mrla suite`: suites of runs listed, planned, run, reported, exported, merged; `mrla compare` for short."""

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from mrla_minimal.lab import evidence
from mrla_minimal.lab.cli_parser import Outcome
from mrla_minimal.lab.cli_suite_options import OPTIONS, RUN, TAKES, add_options, check_out, check_taken
from mrla_minimal.lab.cli_summary import add_summary_commands
from mrla_minimal.lab.device import choose_device
from mrla_minimal.lab.engine import TrainingInterrupted
from mrla_minimal.lab.evidence import SUITES, Suite, Summary
from mrla_minimal.lab.evidence.blocks import is_stops, load_stops, merge_stops, read_stops, stops_path
from mrla_minimal.lab.evidence.contrasts import NoRuns
from mrla_minimal.lab.evidence.jobs import choose_parts
from mrla_minimal.lab.evidence.merging import check_suite, existing
from mrla_minimal.lab.evidence.records import interventions_path, is_interventions
from mrla_minimal.lab.evidence.report import summary_as_json
from mrla_minimal.lab.evidence.timed import Sitting
from mrla_minimal.lab.files import repository_root
from mrla_minimal.lab.own_files import first_line
from mrla_minimal.lab.plugins import load_one
from mrla_minimal.lab.processes import fitting_jobs, start_helpers, stop_helpers, threads_each

DEFAULT = "smoke"       # the suite of `mrla compare`


def add_suite_commands(commands: argparse._SubParsersAction) -> None:
    """Add `suite` and `compare` to the subcommands of a parser."""
    names = "\n".join(f"  {suite.name:<24} {suite.about}" for suite in SUITES.values())
    more = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    examples = ("mrla suite run smoke", "mrla suite report cifar10-thin56-cpu --out pilot.png",
                "mrla suite plan my_suite.py", "mrla suite run my_suite.py --minutes 60 --jobs auto")
    suite = commands.add_parser("suite", help="run a suite of variants and seeds, report it, ...",
                                description="Suites of runs, and what may be concluded from them.",
                                epilog="\n  ".join([f"suites:\n{names}\n\nexamples:", *examples]), **more)
    verbs = suite.add_subparsers(dest="verb", required=True, metavar="VERB")
    listed = verbs.add_parser("list", help="which suites there are")
    add_options(listed, "--json")
    listed.set_defaults(function=run_list)
    for verb, function, text in (
            ("plan", run_plan, "time a few steps of each variant, and say how long the rest would take"),
            ("run", run_run, "run what has no record yet, and report"),
            ("report", run_report, "the table and the figure of the records there are"),
            ("export", run_export, "write a small checkpoint of each variant to data/checkpoints/"),
            ("merge", run_merge,
             "add what other files hold to the suite's records; *-interventions.jsonl to its interventions, "
             "*-stops.jsonl to what ended its runs by time")):
        parser = verbs.add_parser(verb, help=text, description=f"{text[0].upper()}{text[1:]}.",
                                  epilog=f"suites:\n{names}", **more)
        parser.add_argument("suite", metavar="NAME", help="a suite's name, or FILE.py that makes one")
        if verb == "merge":
            parser.add_argument("files", nargs="+", metavar="FILE", help="a file of records")
        add_options(parser, *TAKES[verb])
        parser.set_defaults(function=function)
    add_summary_commands(verbs)

    compare = commands.add_parser("compare", help="short for mrla suite run, or for another of its verbs",
                                  description="Run a suite of variants and seeds, and compare them.",
                                  epilog=f"suites:\n{names}", **more)
    compare.add_argument("--suite", metavar="NAME",
                         help=f"which suite, or FILE.py that makes one (default: {DEFAULT})")
    for verb in ("plan", "report", "export"):
        compare.add_argument(f"--{verb}", action="store_true", help=f"run nothing: as mrla suite {verb}")
    compare.add_argument("--merge", nargs="+", dest="files", metavar="FILE",
                         help="run nothing: add these files to --records, as mrla suite merge")
    add_options(compare, *OPTIONS)
    compare.set_defaults(function=run_compare)


# What they do

def run_compare(arguments: argparse.Namespace) -> Outcome:
    verbs = {"plan": run_plan, "report": run_report, "export": run_export, "merge": run_merge}
    asked = [name for name in verbs if getattr(arguments, "files" if name == "merge" else name)]
    if len(asked) > 1:
        raise ValueError(f"--{asked[0]} does not go with --{asked[1]}: one thing at a time")
    if asked == ["merge"] and not arguments.records:
        raise ValueError("--merge needs --records FILE, the file to write")
    if asked != ["merge"]:          # which takes any suite's records if none is named
        arguments.suite = arguments.suite or DEFAULT
    if asked:
        check_taken(arguments, asked[0])
    return (verbs[asked[0]] if asked else run_run)(arguments)


def run_list(arguments: argparse.Namespace) -> Outcome:
    for suite in SUITES.values():
        size = f"{len(suite.variants)} variants, {len(suite.seeds)} seeds"
        print(f"{suite.name:<24} {suite.about} ({size})")
    return 0, {"suites": [dataclasses.asdict(suite) for suite in SUITES.values()]}


def run_plan(arguments: argparse.Namespace) -> int:
    suite, path = _suite_and_records(arguments)
    print(evidence.plan_suite(suite, evidence.load_records(path), variants=arguments.variants,
                              seeds=arguments.seeds, progress=not arguments.quiet, **_changes(arguments)))
    return 0


def run_run(arguments: argparse.Namespace) -> Outcome:
    suite, path = _suite_and_records(arguments)
    check_out(arguments)
    changes = _changes(arguments)
    choose_parts(suite, arguments.variants, arguments.seeds, **changes)     # told once, not by every process
    steps = "" if arguments.steps is None else f"{suite.name}-{arguments.steps}-steps"
    helpers, threads = [], torch.get_num_threads()
    jobs = fitting_jobs(choose_device(arguments.device or "auto")) if arguments.jobs is None \
        else arguments.jobs
    sitting = _sitting(arguments, jobs)
    try:
        if jobs > 1 and arguments.until is None:
            share = threads_each(jobs)
            torch.set_num_threads(share)
            helpers = start_helpers(_as_options(arguments, sitting), jobs - 1, share)
        evidence.run_suite(suite, path, variants=arguments.variants, seeds=arguments.seeds, sitting=sitting,
                           runs=Path("runs") / steps, progress=not arguments.quiet, **changes)
        failed = sum(helper.wait() != 0 for helper in helpers)
    except TrainingInterrupted as interrupt:
        interrupt.args = (f"{str(interrupt).split(';')[0]}; the same command goes on",)
        raise
    finally:
        stop_helpers(helpers)
        torch.set_num_threads(threads)
    if failed:
        raise ValueError(f"{failed} of {jobs} processes failed; what they finished is recorded")
    if arguments.quiet and not (arguments.json or arguments.out):
        return 0, {}        # as every helper does: it may be done before any run is
    return _report(arguments, suite, path, evidence.load_records(path),
                   evidence.load_interventions(interventions_path(path)))


def run_report(arguments: argparse.Namespace) -> Outcome:
    suite, path = _suite_and_records(arguments)
    check_out(arguments)
    records = _chosen(evidence.load_records(path), suite, arguments)
    return _report(arguments, suite, path, records,
                   _chosen(evidence.load_interventions(interventions_path(path)), suite, arguments))


def run_export(arguments: argparse.Namespace) -> Outcome:
    from mrla_minimal.lab.evidence import committed

    suite, path = _suite_and_records(arguments)
    if not suite.committed:
        raise ValueError(f"only suites whose records are committed are exported; {suite.name} is none")
    data = committed.data_folder()
    records = _chosen(evidence.load_records(path), suite, arguments)
    lines = committed.export_checkpoints(suite, records, "runs", data / "checkpoints",
                                         data / "results" / "checkpoints.jsonl", arguments.data_root)
    for line in lines:
        name = next(name for name in line if name.startswith("test_"))
        rounded, before = 100 * line[f"rounded_{name}"], 100 * line[name]
        print(f"{data / 'checkpoints' / line['file']}: {name.replace('_', ' ')} {rounded:.2f} %, "
              f"before rounding {before:.2f} %")
    print(f"{len(lines)} checkpoints written; those that were there already are left as they are")
    return 0, {"written": lines}


def run_merge(arguments: argparse.Namespace) -> Outcome:
    suite, target = _suite_and_records(arguments)
    beside = target if is_interventions(target) else interventions_path(target)
    named = _suite_of_all((target, beside, stops_path(target)), arguments.files,
                          suite.name if arguments.suite else None)
    counts, stops = {}, [file for file in arguments.files if is_stops(file)]
    for path, wanted in ((target, False), (beside, True)):
        files = [file for file in arguments.files if file not in stops and is_interventions(file) == wanted]
        if files:
            path.parent.mkdir(parents=True, exist_ok=True)
            counts[str(path)] = len(evidence.merge_records(files, path, named))
    if stops:
        counts[str(stops_path(target))] = len(merge_stops(stops, target, named))
    for path, count in counts.items():
        print(f"{path}: {count} records")
    return 0, {"records": counts}


def _suite_of_all(targets: Sequence[Path], files: Sequence[str], named: str | None) -> str | None:
    """The one suite whose lines all these files hold, which are read once before the first is written to.

    Raises ValueError for a file that is not there, and for a line of another suite or of none of the kinds.
    """
    for path in (*targets, *existing(files)):
        load = read_stops if is_stops(path) else (
            evidence.load_interventions if is_interventions(path) else evidence.load_records)
        for line in load(path):
            named = named or line["suite"]
            check_suite(path, line, named)
    return named


# What they share

def records_path(suite: Suite, steps: int | None = None) -> Path:
    """Where a suite's records belong: data/results/ of the repository; runs/ for what is never committed."""
    root = repository_root()
    if not suite.committed or steps is not None or root is None:
        folder = suite.name if steps is None else f"{suite.name}-{steps}-steps"
        return Path("runs") / folder / "records.jsonl"
    return root / "data" / "results" / f"{suite.name}.jsonl"


def _suite_and_records(arguments: argparse.Namespace) -> tuple[Suite, Path]:
    name = arguments.suite or DEFAULT
    if name.endswith(".py"):
        suite = dataclasses.replace(load_one(name, Suite), committed=False)
        if suite.name in SUITES:        # their records would be taken for one another's
            raise ValueError(f"{name}: {suite.name!r} is the name of one of the course's suites; give yours "
                             "another")
    elif name in SUITES:
        suite = SUITES[name]
    else:
        raise ValueError(f"a suite must be one of {', '.join(SUITES)}, or a Python file that makes one, "
                         f"not {name}")
    return suite, Path(arguments.records) if arguments.records else records_path(suite, arguments.steps)


def _changes(arguments: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(arguments, name) for name in ("steps", "device", "data_root", "cuda_graph")}
    return {name: value for name, value in given.items() if value is not None}


def _sitting(arguments: argparse.Namespace, jobs: int) -> Sitting | None:
    """The time that is asked for; a helper is told when it is over, and does not lead."""
    if arguments.minutes is None:
        return None
    until = time.monotonic() + 60 * arguments.minutes if arguments.until is None else arguments.until
    return Sitting(arguments.minutes, until, jobs, leads=arguments.until is None)


def _as_options(arguments: argparse.Namespace, sitting: Sitting | None) -> list[str]:
    """The command line that does a helper's part of what these arguments ask for."""
    options = ["suite", "run", arguments.suite, "--quiet"]
    for flag in RUN:
        value = getattr(arguments, flag.strip("-").replace("-", "_"))
        if value is True:
            options += [flag]
        elif value is not None:
            options += [flag, *map(str, value if isinstance(value, list) else [value])]
    if sitting is not None:
        options += ["--minutes", repr(sitting.minutes), "--until", repr(sitting.until),
                    "--jobs", str(sitting.jobs)]
    return options


def _chosen(records: Iterable[dict], suite: Suite, arguments: argparse.Namespace) -> list[dict]:
    """The records of the variants and seeds that are asked for; of all, where none are."""
    variants, seeds = choose_parts(suite, arguments.variants, arguments.seeds)
    return [record for record in records if (arguments.variants is None or record["variant"] in variants)
            and (arguments.seeds is None or record["seed"] in seeds)]


def _report(arguments: argparse.Namespace, suite: Suite, path: Path, records: list[dict],
            interventions: list[dict]) -> Outcome:
    """Print what the records say, and draw the suite's figure; with --json, only to --out."""
    try:
        part = arguments.variants is not None or arguments.seeds is not None
        steps = {} if arguments.steps is None else {"steps": arguments.steps}
        summary = evidence.summarise(records, suite, None if part else load_stops(path, suite.name), steps)
    except NoRuns as error:
        more = f" --records {arguments.records}" if arguments.records else ""
        raise ValueError(f"{error}, in {path}; to make them: mrla suite run {arguments.suite}{more}"
                         ) from None
    silent = arguments.json or arguments.quiet
    if not silent:
        print(evidence.report(summary))
        if interventions:
            print("\n" + evidence.report_interventions(interventions))
        print(f"\nrecords {path}")
    status = 0
    if arguments.out is not None or not arguments.json:
        steps = "" if arguments.steps is None else f"-{arguments.steps}-steps"
        figure = Path(arguments.out or Path("runs") / f"{suite.name}{steps}.png")
        drawn = _draw(summary, figure)
        status = int(arguments.out is not None and not drawn)       # 1 only if it was asked for
        if drawn and not silent:
            print(f"figure {figure}")
    return status, summary_as_json(summary, interventions)


def _draw(summary: Summary, figure: Path) -> bool:
    """Draw the suite's figure; whether that went well, told if not: the results do not depend on it."""
    try:
        from mrla_minimal.lab.figures import plot_suite

        figure.parent.mkdir(parents=True, exist_ok=True)
        plot_suite(summary, figure)
    except Exception as error:      # matplotlib's back ends raise anything
        print(f"mrla: the figure {figure} was not drawn: {first_line(error)}", file=sys.stderr)
        return False
    return True
