"""`mrla compare`: a suite run, continued, planned, reported or exported from the command line."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

from mrla_minimal.lab import evidence
from mrla_minimal.lab.engine import TrainingInterrupted
from mrla_minimal.lab.evidence.records import interventions_path, load_interventions
from mrla_minimal.lab.files import repository_root
from mrla_minimal.lab.plugins import load_one


def records_path(suite, steps=None):
    """Where a suite's records belong: data/results/ of the repository, or runs/ for what is never committed."""
    root = repository_root()
    if not suite.committed or steps is not None or root is None:
        return Path("runs") / (suite.name if steps is None else f"{suite.name}-{steps}-steps") / "records.jsonl"
    return root / "data" / "results" / f"{suite.name}.jsonl"


def _suite(name):
    if name.endswith(".py"):
        return dataclasses.replace(load_one(name, evidence.Suite), committed=False)
    if name not in evidence.SUITES:
        raise ValueError(f"--suite must be one of {', '.join(evidence.SUITES)}, or a Python file that makes a Suite, not {name}")
    return evidence.SUITES[name]


def run_compare(arguments):
    if arguments.merge:
        if not arguments.records:
            raise ValueError("--merge needs --records FILE, the file to write")
        merged = evidence.merge_records(arguments.merge, arguments.records)
        print(f"{arguments.records}: {len(merged)} records")
        return 0
    suite = _suite(arguments.suite)
    path = Path(arguments.records) if arguments.records else records_path(suite, arguments.steps)
    if arguments.plan and (arguments.report or arguments.export):
        raise ValueError("--plan times what is left to run: it goes with neither --report nor --export")
    if not (arguments.report or arguments.export):
        changes = {name: getattr(arguments, name) for name in ("steps", "device", "data_root") if getattr(arguments, name) is not None}
        if arguments.plan:
            print(evidence.plan_suite(suite, evidence.load_records(path), variants=arguments.variants, seeds=arguments.seeds,
                                         progress=not arguments.quiet, **changes))
            return 0
        runs = Path("runs") if arguments.steps is None else Path("runs") / f"{suite.name}-{arguments.steps}-steps"
        others = _start_others(arguments.jobs - 1)
        try:
            evidence.run_suite(suite, path, variants=arguments.variants, seeds=arguments.seeds, runs=runs,
                                  progress=not arguments.quiet, **changes)
        except TrainingInterrupted as interrupt:
            _stop(others)
            raise TrainingInterrupted(f"{str(interrupt).split(';')[0]}; the same command goes on") from None
        except BaseException:
            _stop(others)
            raise
        failed = [process.wait() for process in others]
        if any(failed):
            raise ValueError(f"{sum(map(bool, failed))} of {arguments.jobs} processes failed; what they finished is recorded")
        if arguments.quiet:
            return 0
    records = evidence.load_records(path)
    if arguments.export:
        return _export(suite, records, arguments)
    summary = evidence.summarise(records, suite)
    print(evidence.report(summary))
    interventions = load_interventions(interventions_path(path))
    if interventions:
        print("\n" + evidence.report_interventions(interventions))
    from mrla_minimal.lab.figures import plot_suite

    figure = Path("runs") / f"{suite.name}{'' if arguments.steps is None else f'-{arguments.steps}-steps'}.png"
    figure.parent.mkdir(exist_ok=True)
    plot_suite(summary, figure)
    print(f"\nrecords {path}, figure {figure}")
    return 0


def _export(suite, records, arguments):
    from mrla_minimal.lab.evidence import committed

    if not suite.committed:
        raise ValueError(f"--export is for the suites whose records are committed; {suite.name} is none")
    data = committed.data_folder()
    lines = committed.export_checkpoints(suite, records, "runs", data / "checkpoints", data / "results" / "checkpoints.jsonl",
                                        arguments.data_root)
    for line in lines:
        print(f"{data / 'checkpoints' / line['file']}: test accuracy {100 * line['rounded_test_accuracy']:.2f} %, "
              f"before rounding {100 * line['test_accuracy']:.2f} %")
    print(f"{len(lines)} checkpoints written; those that were there already are left as they are")
    return 0


def _start_others(count):
    """The same command in `count` more processes: each takes runs of the suite that no other is at."""
    if count < 1:
        return []
    command = [sys.executable, "-m", "mrla_minimal", *sys.argv[1:], "--jobs", "1", "--quiet"]
    return [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(count)]


def _stop(processes):
    """Wait for those that a Ctrl-C in the terminal has reached too, and interrupt the others: their checkpoints are written."""
    for process in processes:
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
    for process in processes:
        process.wait()
