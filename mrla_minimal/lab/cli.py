"""The command line. Each subcommand is a few lines over a function of the lab.

Wrong input is one line on stderr and exit status 2. The status is 1 for a failed check, a diverged run or a
machine too small, 130 after Ctrl-C, 143 after SIGTERM, 141 if the reader went away (mrla ... | head).
"""

import argparse
import dataclasses
import json
import os
import signal
import sys
from contextlib import redirect_stdout, suppress

import torch

from mrla_minimal import __version__
from mrla_minimal.lab import engine
from mrla_minimal.lab.cli_parser import (
    Parser,
    add_command,
    hushed,
    json_option,
    quiet_option,
    whole,
)
from mrla_minimal.lab.cli_runs import add_run_commands
from mrla_minimal.lab.cli_suite import add_suite_commands
from mrla_minimal.lab.cli_teach import add_teaching_commands
from mrla_minimal.lab.cli_train import add_train_command
from mrla_minimal.lab.engine.config import DATASETS

# The sizes that `mrla cost` takes: what kind of value each is, and of which model.
COST_SIZES = {"depth": (whole, "either"), "block": (str, "a resnet"), "width": (whole, "a resnet"),
              "dim": (whole, "a vit"), "heads": (whole, "a vit"), "patch": (whole, "a vit")}


def run_fetch(arguments: argparse.Namespace) -> int:
    from mrla_minimal.lab.data import fetch_cifar

    with hushed(arguments.quiet):
        found = fetch_cifar(arguments.dataset, arguments.data_root)
    print(f"{arguments.dataset}: {found}")
    return 0


def run_doctor(arguments: argparse.Namespace) -> int | tuple[int, dict]:
    from mrla_minimal.lab import doctor

    if not arguments.json:
        return doctor.run_doctor()
    checks = list(doctor.examine())
    ready = all(status != "FAIL" for status, _ in checks)
    record = {"ready": ready, "checks": [{"status": status, "text": text} for status, text in checks]}
    return 0 if ready else 1, record


def run_cost(arguments: argparse.Namespace) -> int | tuple[int, dict]:
    from mrla_minimal.lab import cost_tables

    if arguments.paper:
        _check_paper(arguments)
        table, text, options = cost_tables.paper_table, cost_tables.paper_text, {}
    else:
        table, text = cost_tables.cost_rows, cost_tables.cost_text
        sizes = {name: getattr(arguments, name) for name in COST_SIZES}
        sizes = {name: size for name, size in sizes.items() if size is not None}
        options = {"variants": arguments.layer_attention, "measure": arguments.measure,
                   "model": arguments.model, **sizes}
    if arguments.json:
        return 0, {"models": [dataclasses.asdict(row) for row in table(**options)]}
    print(text(**options))
    return 0


def _check_paper(arguments: argparse.Namespace) -> None:
    """ValueError for what says another net than the paper's, or more than counts."""
    for name, unasked in {"layer_attention": None, "model": "resnet", "measure": False,
                          **dict.fromkeys(COST_SIZES)}.items():
        if getattr(arguments, name) != unasked:
            raise ValueError(f"--{name.replace('_', '-')} does not go with --paper, which counts nets of its "
                             "own, and times none")


def run_bench(arguments: argparse.Namespace) -> int:
    from mrla_minimal.lab import bench

    bench.BENCHMARKS[arguments.what]()
    return 0


def build_parser() -> Parser:
    parser = Parser(prog="mrla", description="Attention across layers: train, evaluate and measure it.",
                    epilog="mrla COMMAND --help tells each command's options, with examples.")
    parser.add_argument("--version", action="version", version=f"mrla-minimal {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    add_train_command(commands)
    add_run_commands(commands)

    fetch = add_command(commands, "fetch", "download a data set", run_fetch,
                        ("mrla fetch cifar10", "mrla fetch cifar100 --data-root data"))
    fetch.add_argument("dataset", choices=DATASETS)
    fetch.add_argument("--data-root", help="folder to keep it in")
    quiet_option(fetch)

    doctor = add_command(commands, "doctor", "check this machine", run_doctor,
                         ("mrla doctor", "mrla doctor --json"))
    json_option(doctor)

    add_suite_commands(commands)

    cost = add_command(commands, "cost", "parameters, multiply-adds, activations", run_cost,
                       ("mrla cost --layer-attention mrla-base mrla-light --measure", "mrla cost --paper",
                        "mrla cost --model vit --dim 64 --heads 2"))
    cost.add_argument("--paper", action="store_true",
                      help="ResNet-50 and -101, DeiT-tiny and -small beside the paper's claim")
    cost.add_argument("--layer-attention", nargs="*", help="which attentions (default: all)")
    cost.add_argument("--model", default="resnet", help="resnet (default) or vit")
    for name, (kind, of) in COST_SIZES.items():
        cost.add_argument(f"--{name}", type=kind, help=f"of {of}")
    cost.add_argument("--measure", action="store_true", help="time a step too, as a ratio to the plain net")
    json_option(cost)

    add_teaching_commands(commands)

    bench = add_command(commands, "bench", "ratios measured on this machine", run_bench,
                        ("mrla bench attention", "mrla bench engine"))
    bench.add_argument("what", choices=["data", "attention", "engine", "detector"])
    return parser


# How torch's RuntimeErrors say it, on a CPU, on Windows, of a size beyond counting, and on an Apple GPU.
NO_MEMORY = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed",
             "out of memory")


def _what_this_machine_lacks(error: Exception) -> str | None:
    """One line for an error that its user can mend; None for any other, whose traceback is wanted."""
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    no_memory = isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError))
    if no_memory or any(text in first for text in NO_MEMORY):
        return f"out of memory ({first}). A smaller batch, width or depth needs less"
    compiler = type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
    if compiler or "torch.compile" in first or "Dynamo is not supported" in first:
        return f"torch.compile failed ({first}); leave --compile out, or see that a C++ compiler is installed"
    return None


def _run(arguments: argparse.Namespace) -> int:
    """Run a command; with --json, what it prints goes to stderr, and its record alone to stdout."""
    if getattr(arguments, "json", False) is not True:       # or the name of a file to write it to
        outcome = arguments.function(arguments)
        return outcome[0] if isinstance(outcome, tuple) else outcome
    with redirect_stdout(sys.stderr):
        outcome = arguments.function(arguments)
    if isinstance(outcome, tuple):      # of several processes, the first alone has a record
        print(json.dumps(outcome[1], allow_nan=False))
        return outcome[0]
    return outcome


def _run_or_help(arguments: list[str] | None) -> int:
    try:
        parsed = build_parser().parse_args(arguments)
    except SystemExit as stop:      # argparse: --help, --version, or an error that it has told
        return stop.code
    return _run(parsed)


def _stdout_fails() -> bool:
    try:
        sys.stdout.flush()      # what could not be written is still in it, and fails again
    except (OSError, ValueError):
        return True
    return False


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is None and error.strerror and _stdout_fails():
        return f"standard output: {error.strerror}"
    if isinstance(error, FileExistsError) and error.filename and os.path.isfile(error.filename):
        return f"{os.fsdecode(error.filename)} is a file, not a folder"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _status_of(arguments: list[str] | None) -> int:
    """The exit status of one command, its errors told on stderr."""
    def tell(text: object, status: int) -> int:
        print(f"mrla: {text}", file=sys.stderr)
        return status

    try:
        status = _run_or_help(arguments)
        print(end="", flush=True)       # a full disk is told here, not in the interpreter's last moments
        return status
    except engine.TrainingInterrupted as interrupt:
        return tell(interrupt, 128 + interrupt.signal)
    except KeyboardInterrupt:
        return tell("interrupted", 128 + signal.SIGINT)
    except engine.TrainingDiverged as error:
        return tell(error, 1)
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        return tell(_one_line(error), 2)
    except (RuntimeError, MemoryError) as error:
        text = _what_this_machine_lacks(error)
        if text is None:
            raise
        return tell(text, 1)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if hasattr(stream, "reconfigure")]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")       # a letter that the terminal lacks costs no result
    try:
        status = _status_of(arguments)
    except BrokenPipeError:
        status = 128 + 13           # nobody reads on: the same as of a program that SIGPIPE ends
    for stream in streams:
        try:
            stream.flush()
        except OSError:
            with suppress(OSError):
                stream.close()      # what is left in it has nowhere to go
    return status
