"""`mrla train`: every field of TrainConfig is an option, and a run goes on where it was interrupted."""

import argparse
import dataclasses
import math
import os
import types
from pathlib import Path

from mrla_minimal.lab import engine
from mrla_minimal.lab.cli_detect import precision_text
from mrla_minimal.lab.cli_parser import (
    add_command,
    folder_name,
    hushed,
    json_option,
    or_none,
    positive,
    quiet_option,
    trust_option,
    whole,
)
from mrla_minimal.lab.cli_runs import describe_run
from mrla_minimal.lab.engine import PRESETS, TrainConfig
from mrla_minimal.lab.engine.folder import going_on
from mrla_minimal.lab.engine.presets import preset_for

EXAMPLES = (
    "mrla train --layer-attention mrla-base --epochs 3 --name base",
    "mrla train --resume runs/base",
    "mrla train --resume runs/base --epochs 6",
)


def add_train_command(commands: argparse._SubParsersAction) -> None:
    train = add_command(commands, "train", "train one model", run_train, EXAMPLES,
                        "Train one model; the folder runs/NAME keeps it.")
    train.add_argument("--preset", choices=list(PRESETS),
                       help="where the defaults come from (default: quick; vit with --model vit, nuclei "
                       "with --dataset nuclei, ...)")
    train.add_argument("--name", type=folder_name,
                       help="the run's folder under runs/ (default: after the model, the data and the seed)")
    train.add_argument("--out", metavar="FOLDER", help="the run's folder, anywhere, in place of runs/NAME")
    train.add_argument("--resume", metavar="RUN", help="go on with the run in this folder; with more "
                       "--epochs or --steps for longer, on the schedule of the new length")
    trust_option(train)
    train.add_argument("--checkpoint-seconds", type=positive(float), default=60.0,
                       help="write a checkpoint this often (default: 60)")
    json_option(train)
    quiet_option(train)
    add_config_options(train)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """One option a field of TrainConfig.

    What is not given stays out of the result, so that presets and --resume can tell.
    """
    for entry in dataclasses.fields(TrainConfig):
        flag = "--" + entry.name.replace("_", "-")
        shown = "none" if entry.default is None else entry.default
        options = {"dest": entry.name, "default": argparse.SUPPRESS,
                   "help": f"{entry.metadata['help']} (default: {shown})"}
        if entry.type is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
            continue
        kind, allows_none = entry.type, isinstance(entry.type, types.UnionType)
        if allows_none:
            kind = next(part for part in kind.__args__ if part is not types.NoneType)
        kind = whole if kind is int else kind
        if entry.metadata["choices"]:
            names = ("none" if choice is None else choice for choice in entry.metadata["choices"])
            options["metavar"] = "{" + ",".join(map(str, names)) + "}"
        parser.add_argument(flag, type=or_none(kind) if allows_none else kind, **options)


def config_of(arguments: argparse.Namespace, base: TrainConfig | None = None) -> TrainConfig:
    """`base`, or else the preset, with what was given on the command line in place of its own.

    Without a preset it is the own short one of the model, or of the dataset.
    """
    names = {entry.name for entry in dataclasses.fields(TrainConfig)}
    given = {name: value for name, value in vars(arguments).items() if name in names}
    base = base or TrainConfig(**PRESETS[arguments.preset or preset_for(given)])
    return dataclasses.replace(base, **given)


def _run_dir(arguments: argparse.Namespace) -> Path | None:
    """The folder asked for; None for one that is named after the model."""
    for flag in ("out", "resume"):
        if getattr(arguments, flag) == "":
            raise ValueError(f"--{flag} must name a run folder, not be empty")
    if arguments.resume is not None and (arguments.name or arguments.preset or arguments.out):
        raise ValueError("--resume continues a run as it was begun: it takes no --name, --out or --preset")
    if arguments.out is not None and arguments.name:
        raise ValueError("--out is the whole path of the run's folder: it takes no --name")
    if arguments.name:
        return Path("runs") / arguments.name
    folder = arguments.resume or arguments.out
    return Path(folder) if folder else None


def _resume_note(run_dir: Path, stored: TrainConfig, config: TrainConfig, trust: bool) -> str | None:
    """What is worth knowing before a run goes on: that it does so for longer, or that it had ended.

    Raises ValueError, as the engine would after it, for a run that does not go on so.
    """
    with hushed(True):
        going_on(config, run_dir, trust)
    lengths = [(one.steps, "step") if one.steps else (one.epochs, "epoch") for one in (stored, config)]
    before, now = (f"{count} {unit}{'s' * (count > 1)}" for count, unit in lengths)
    (earlier, old), (count, unit) = lengths
    if unit != old or count > earlier:
        return (f"{run_dir} was begun for {before} and goes on to {now}: from here on, the learning rate "
                "follows the schedule of the new length")
    if before == now and describe_run(run_dir, run_dir.parent).get("finished"):
        return f"{run_dir} had ended: nothing is left to train (--{unit}s MORE goes on with it)"
    return None


def run_train(arguments: argparse.Namespace) -> int | tuple[int, dict]:
    run_dir, resuming = _run_dir(arguments), arguments.resume is not None
    stored = engine.read_config(run_dir) if resuming else None
    config = config_of(arguments, stored)
    first = os.environ.get("RANK", "0") == "0"
    note = _resume_note(run_dir, stored, config, arguments.trust) if resuming and first else None
    with hushed(arguments.quiet):
        if note:
            print(note)
        result = engine.train(config, run_dir, resume=resuming, progress=not arguments.quiet,
                              trust=arguments.trust, checkpoint_seconds=arguments.checkpoint_seconds)
    if not first:
        return 0
    if result.source == "synthetic":
        print("trained and tested on the synthetic images: this is no CIFAR accuracy")
    if not arguments.quiet:
        names = ("config.json", "metrics.jsonl", "timing.jsonl", "checkpoint.pt", "curves.png")
        there = [name for name in names if (result.run_dir / name).exists()]
        print(f"run folder {result.run_dir}: {', '.join(there)}")
    last = result.metrics[-1]
    if config.detects:
        print(f"average precision on test, in per cent\n{precision_text(last, 'test_')}")
        reached = {name: value for name, value in last.items() if "AP" in name}
    else:
        print(f"test accuracy {100 * result.test_accuracy:.2f} %")
        reached = {"test_accuracy": result.test_accuracy, "test_loss": last["test_loss"]}
    speed = result.images_per_second
    return 0, {"run": str(result.run_dir), "source": result.source, "precision": result.precision,
               **reached, "epoch": last["epoch"], "step": last["step"],
               "parameters": result.parameters, "training_seconds": result.seconds,
               "images_per_second": speed if math.isfinite(speed) else None}
