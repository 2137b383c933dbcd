"""The command line. Each subcommand is a few lines over a function of the lab.

Wrong input is one line on stderr and exit status 2; a failed check, a diverged run, a machine too small for it 1; Ctrl-C 130.
"""

import argparse
import dataclasses
import os
import sys
import types
from pathlib import Path

import torch

from mrla_minimal import __version__
from mrla_minimal.lab import engine
from mrla_minimal.lab.cli_suite import run_compare
from mrla_minimal.lab.engine import PRESETS, TrainConfig
from mrla_minimal.lab.engine.config import DATASETS
from mrla_minimal.lab.plugins import OwnAttention


class Parser(argparse.ArgumentParser):
    """argparse, with its error on one line."""

    def error(self, message):
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(2)


def _or_none(kind):
    def convert(text):
        return None if text == "none" else kind(text)

    convert.__name__ = f"{kind.__name__} or none"
    return convert


def _positive(kind):
    def convert(text):
        number = kind(text)
        if not 0 < number < float("inf"):
            raise ValueError
        return number

    convert.__name__ = f"positive {kind.__name__}"
    return convert


def _add_config_options(parser):
    """One option a field of TrainConfig; what is not given stays out of the result, so that presets and --resume can tell."""
    for entry in dataclasses.fields(TrainConfig):
        flag = "--" + entry.name.replace("_", "-")
        shown = "none" if entry.default is None else entry.default
        options = {"dest": entry.name, "default": argparse.SUPPRESS, "help": f"{entry.metadata['help']} (default: {shown})"}
        if entry.type is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
            continue
        kind = entry.type
        if isinstance(kind, types.UnionType):
            kind = _or_none(next(part for part in kind.__args__ if part is not types.NoneType))
        if entry.metadata["choices"]:
            options["metavar"] = "{" + ",".join("none" if c is None else c for c in entry.metadata["choices"]) + "}"
        parser.add_argument(flag, type=kind, **options)


def _config_of(arguments, base=None):
    """(TrainConfig, its fields that were given on the command line)."""
    names = {entry.name for entry in dataclasses.fields(TrainConfig)}
    given = {name: value for name, value in vars(arguments).items() if name in names}
    base = base or TrainConfig(**PRESETS[arguments.preset or "quick"])
    return dataclasses.replace(base, **given), given


def run_train(arguments):
    if arguments.resume is not None:
        if arguments.name or arguments.preset:
            raise ValueError("--resume continues a run as it was begun: it takes no --name and no --preset")
        if not arguments.resume:
            raise ValueError("--resume must name a run folder, not be empty")
        run_dir = Path(arguments.resume)
        config, _ = _config_of(arguments, engine.read_config(run_dir))
    else:
        config, _ = _config_of(arguments)
        name = arguments.name
        if name is not None and (not name or Path(name).is_absolute() or ".." in Path(name).parts):
            raise ValueError(f"--name must be a name below runs/, not {name!r}")
        run_dir = None if name is None else Path("runs") / name
    result = engine.train(config, run_dir, resume=arguments.resume is not None, checkpoint_seconds=arguments.checkpoint_seconds)
    if os.environ.get("RANK", "0") != "0":
        return 0
    if result.source == "synthetic":
        print("trained and tested on the synthetic images: this is no CIFAR accuracy")
    print(f"run folder {result.run_dir}: config.json, metrics.jsonl, timing.jsonl, checkpoint.pt, curves.png")
    print(f"test accuracy {100 * result.test_accuracy:.2f} %")
    return 0


def run_evaluate(arguments):
    from mrla_minimal.lab.data import hold_out, load_cifar

    model, state = engine.load_model(arguments.run, arguments.device)
    config = state["config"]
    source = "synthetic" if state["source"] == "synthetic" else "real"
    data = load_cifar(config["dataset"], arguments.data_root or config["data_root"], source)
    if data.fingerprint != state["fingerprint"]:
        raise ValueError(f"{arguments.run} was trained on other images than these {data.source} ones")
    trained_on, held_out = hold_out(data.train, seed=0) if config["validation"] else (data.train, None)
    split = {"test": data.test, "train": trained_on, "validation": held_out}[arguments.split]
    if split is None:
        raise ValueError(f"--split validation: {arguments.run} was trained on all training images, none was held out")
    device = next(model.parameters()).device
    loss, accuracy = engine.evaluate(model, split.to(device))
    attention = config["layer_attention"] or "none"
    print(f"{arguments.run}: ResNet-{config['depth']}, layer attention {attention}, {data.source}, {len(split)} images")
    print(f"{arguments.split} loss {loss:.4f}")
    print(f"{arguments.split} accuracy {100 * accuracy:.2f} %")
    return 0


def run_fetch(arguments):
    from mrla_minimal.lab.data import fetch_cifar

    print(f"{arguments.dataset}: {fetch_cifar(arguments.dataset, arguments.data_root)}")
    return 0


def run_doctor(arguments):
    from mrla_minimal.lab.doctor import run_doctor

    return run_doctor()


def run_cost(arguments):
    from mrla_minimal.lab import cost_tables

    if arguments.paper:
        print(cost_tables.paper_text())
    else:
        print(cost_tables.cost_text(arguments.layer_attention, depth=arguments.depth, block=arguments.block,
                                    width=arguments.width, measure=arguments.measure))
    return 0


def run_check(arguments):
    from mrla_minimal.course.checks.coursework import grade, report

    named = OwnAttention.parse(arguments.file)
    file, class_name = (named.path, named.class_name) if named else (arguments.file, None)
    results = grade(file, arguments.class_name or class_name)
    print(report(results))
    return 1 if any(passed is False for passed, _ in results) else 0


def run_bench(arguments):
    from mrla_minimal.lab import bench

    bench.BENCHMARKS[arguments.what]()
    return 0


def build_parser():
    parser = Parser(prog="mrla", description="Attention across layers: train, evaluate and measure it.")
    parser.add_argument("--version", action="version", version=f"mrla-minimal {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    train = commands.add_parser("train", help="train one model", description="Train one model; the folder runs/NAME keeps it.")
    train.add_argument("--preset", choices=list(PRESETS), help="where the defaults come from (default: quick)")
    train.add_argument("--name", help="the run's folder under runs/ (default: made from the model, the data and the seed)")
    train.add_argument("--resume", metavar="RUN", help="go on with the run in this folder")
    train.add_argument("--checkpoint-seconds", type=_positive(float), default=60.0, help="write a checkpoint this often (default: 60)")
    _add_config_options(train)
    train.set_defaults(function=run_train)

    evaluate = commands.add_parser("evaluate", help="accuracy of a run or a checkpoint")
    evaluate.add_argument("run", metavar="RUN", help="a run folder or a checkpoint file")
    evaluate.add_argument("--split", choices=["test", "validation", "train"], default="test")
    evaluate.add_argument("--device", default="cpu", help="auto, cuda, mps or cpu (default: cpu)")
    evaluate.add_argument("--data-root", help="folder of the data files")
    evaluate.set_defaults(function=run_evaluate)

    fetch = commands.add_parser("fetch", help="download a data set")
    fetch.add_argument("dataset", choices=DATASETS)
    fetch.add_argument("--data-root", help="folder to keep it in")
    fetch.set_defaults(function=run_fetch)

    doctor = commands.add_parser("doctor", help="check this machine")
    doctor.set_defaults(function=run_doctor)

    compare = commands.add_parser("compare", help="run a suite of variants and seeds, and compare them")
    compare.add_argument("--suite", default="smoke", help="which suite, or FILE.py that makes one (default: smoke, a few steps)")
    compare.add_argument("--plan", action="store_true", help="only time a few steps of each variant, and say how long the suite would take")
    compare.add_argument("--report", action="store_true", help="run nothing: the table and the figure of the records there are")
    compare.add_argument("--export", action="store_true", help="run nothing: write a small checkpoint a variant to data/checkpoints/")
    compare.add_argument("--records", metavar="FILE", help="the JSON-lines file of records (default: data/results/SUITE.jsonl; "
                         "of a suite in FILE.py: runs/SUITE/records.jsonl)")
    compare.add_argument("--variants", nargs="+", help="only these variants")
    compare.add_argument("--seeds", nargs="+", type=int, help="these seeds instead of the suite's")
    compare.add_argument("--jobs", type=_positive(int), default=1, help="processes side by side (default: 1)")
    compare.add_argument("--quiet", action="store_true", help="run, and print neither progress nor table")
    compare.add_argument("--steps", type=int, help="try the suite with this many steps a run; recorded apart")
    compare.add_argument("--device", help="where to train")
    compare.add_argument("--data-root", help="folder of the data files")
    compare.add_argument("--merge", nargs="+", metavar="FILE", help="write the records of these files to --records")
    compare.set_defaults(function=run_compare)

    cost = commands.add_parser("cost", help="parameters, multiply-adds, activations")
    cost.add_argument("--paper", action="store_true", help="the ResNet-50 and ResNet-101 rows beside the paper's claim")
    cost.add_argument("--layer-attention", nargs="*", help="which attentions (default: all)")
    cost.add_argument("--depth", type=int, default=20)
    cost.add_argument("--block", default="basic")
    cost.add_argument("--width", type=int, default=16)
    cost.add_argument("--measure", action="store_true", help="time a step too, as a ratio to the plain net")
    cost.set_defaults(function=run_cost)

    check = commands.add_parser("check", help="grade a layer attention of your own")
    check.add_argument("file", metavar="FILE", help="a Python file with an nn.Module class built as Class(channels); or FILE:CLASS")
    check.add_argument("--class", dest="class_name", metavar="NAME", help="which class, if the file holds several")
    check.set_defaults(function=run_check)

    bench = commands.add_parser("bench", help="ratios measured on this machine")
    bench.add_argument("what", choices=["data", "attention", "engine"])
    bench.set_defaults(function=run_bench)
    return parser


def _what_this_machine_lacks(error):
    """One line for an error of torch that its user can do something about; None for any other, whose traceback is wanted."""
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return f"{first} A smaller batch or width needs less memory."
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"torch.compile failed ({first}); leave --compile out, or see that a C++ compiler is installed"
    return None


def main(arguments=None):
    """Run one command; returns the exit status."""
    try:
        arguments = build_parser().parse_args(arguments)
        return arguments.function(arguments)
    except engine.TrainingInterrupted as interrupt:
        print(f"mrla: {interrupt}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("mrla: interrupted", file=sys.stderr)
        return 130
    except engine.TrainingDiverged as error:
        print(f"mrla: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"mrla: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        text = _what_this_machine_lacks(error)
        if text is None:
            raise
        print(f"mrla: {text}", file=sys.stderr)
        return 1
