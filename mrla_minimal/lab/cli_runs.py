"""What is done with runs that there are: `mrla evaluate`, `mrla predict`, `mrla runs`."""

import argparse
import functools
from pathlib import Path

from mrla_minimal.lab import engine
from mrla_minimal.lab.arguments import integer, share, text
from mrla_minimal.lab.cli_detect import add_detect_command, evaluate_detector
from mrla_minimal.lab.cli_parser import (
    add_command,
    hushed,
    json_option,
    positive,
    quiet_option,
    trust_option,
    whole,
)
from mrla_minimal.lab.engine import TrainConfig
from mrla_minimal.lab.engine.inputs import prepared
from mrla_minimal.lab.files import read_records
from mrla_minimal.lab.plugins import OwnAttention

# What `mrla runs` tells of a run's last line of metrics, each if it is there.
LISTED = {"source": text, **dict.fromkeys(("epoch", "step"), functools.partial(integer, least=0)),
          **{f"{part}_accuracy": share for part in ("train", "validation", "test")}}
DEVICES = "auto, cuda, cuda:1, mps or cpu (default: cpu)"


def add_run_commands(commands: argparse._SubParsersAction) -> None:
    evaluate = add_command(commands, "evaluate", "accuracy, or average precision, of a run", run_evaluate,
                           ("mrla evaluate runs/base",
                            "mrla evaluate runs/base --split train --device auto --json"))
    evaluate.add_argument("run", metavar="RUN", help="a run folder or a checkpoint file")
    evaluate.add_argument("--split", choices=["test", "validation", "train"], default="test")
    evaluate.add_argument("--device", default="cpu", help=DEVICES)
    evaluate.add_argument("--data-root", help="folder of the data files")
    trust_option(evaluate)
    json_option(evaluate)
    quiet_option(evaluate)

    predict = add_command(
        commands, "predict", "what a trained model sees in pictures of your own", run_predict,
        ("mrla predict runs/base cat.jpg", "mrla predict runs/base holiday/*.png --top 1 --json"),
        "The three likeliest classes of each picture, with their probabilities. The largest square about\n"
        "the picture's centre is shrunk to 32 x 32 pixels by area: each the mean of those it stands for.\n"
        "A run at another --resolution gets them averaged down further, as its training images were.")
    predict.add_argument("run", metavar="RUN", help="a run folder or a checkpoint file")
    predict.add_argument("images", metavar="IMAGE", nargs="+", help="a PNG or JPEG file")
    predict.add_argument("--top", type=positive(whole), default=3,
                         help="how many classes a picture (default: 3)")
    predict.add_argument("--device", default="cpu", help=DEVICES)
    trust_option(predict)
    json_option(predict)

    add_detect_command(commands, DEVICES)

    runs = add_command(commands, "runs", "list the runs in a folder", run_runs,
                       ("mrla runs", "mrla runs results --json"))
    runs.add_argument("folder", metavar="FOLDER", nargs="?",
                      help="where to look, in its folders too (default: runs)")
    json_option(runs)


def model_text(config: TrainConfig) -> str:
    """What to call a net in a line of text: "ResNet-20 + mrla-light + eca"."""
    own = OwnAttention.parse(config.layer_attention)
    attentions = (own.short_name if own else config.layer_attention, config.channel_attention)
    return " + ".join([config.host_text, *filter(None, attentions)])


def _model_of(state: dict) -> str:
    return model_text(TrainConfig(**state["config"]))


def run_evaluate(arguments: argparse.Namespace) -> tuple[int, dict]:
    from mrla_minimal.lab.data import load_cifar

    model, state = engine.load_model(arguments.run, arguments.device, arguments.trust)
    config = state["config"]
    if TrainConfig(**config).detects:
        return evaluate_detector(arguments, model, state, _model_of(state))
    if state["source"] not in (config["dataset"], "synthetic"):
        raise ValueError(f"{arguments.run} was trained on images of your own ({state['source']}), which "
                         "this command does not know; in Python: evaluate(load_model(RUN)[0], split)")
    source = "synthetic" if state["source"] == "synthetic" else "real"
    with hushed(arguments.quiet):
        root = arguments.data_root or engine.usable_root(config["data_root"])
        data = load_cifar(config["dataset"], root, source)
    if data.fingerprint != state["fingerprint"]:
        raise ValueError(f"{arguments.run} was trained on other images than these {data.source} ones")
    split = getattr(prepared(TrainConfig(**config), data), arguments.split)
    if split is None:
        raise ValueError(f"--split validation: {arguments.run} was trained on all training images, "
                         "none was held out")
    device = next(model.parameters()).device
    loss, accuracy = engine.evaluate(model, split.to(device), progress=not arguments.quiet)
    if not arguments.quiet:
        print(f"{arguments.run}: {_model_of(state)}, {data.source}, {len(split)} images")
        print(f"{arguments.split} loss {loss:.4f}")
    print(f"{arguments.split} accuracy {100 * accuracy:.2f} %")
    return 0, {"run": arguments.run, "model": _model_of(state), "source": data.source,
               "split": arguments.split, "images": len(split), "loss": loss, "accuracy": accuracy}


def run_predict(arguments: argparse.Namespace) -> tuple[int, dict]:
    import torch

    from mrla_minimal.lab.data.images import averaged
    from mrla_minimal.lab.predict import probabilities, read_image, require_pictures

    images = torch.stack([read_image(path) for path in arguments.images])
    model, state = engine.load_model(arguments.run, arguments.device, arguments.trust)
    if state.get("in_channels", 3) != 3:
        raise ValueError(f"{arguments.run} was trained on images of {state['in_channels']} channels, "
                         "not on colour pictures")
    config = TrainConfig(**state["config"])
    require_pictures(config, arguments.run)
    try:
        found = probabilities(model, averaged(images, config.resolution))
    except ValueError as error:
        raise ValueError(f"{arguments.run}: {error}") from None
    best = found.topk(min(arguments.top, len(state["classes"])))
    if state["source"] == "synthetic":
        print("this model knows the shapes and stripes of the synthetic images, and no real pictures")
    answers = []
    for path, values, indices in zip(arguments.images, *map(torch.Tensor.tolist, best), strict=True):
        ranked = [{"class": state["classes"][index], "probability": value}
                  for index, value in zip(indices, values, strict=True)]
        print(f"{path}: " + ", ".join(f"{one['class']} {100 * one['probability']:.1f} %" for one in ranked))
        answers.append({"file": path, "classes": ranked})
    return 0, {"run": arguments.run, "model": _model_of(state), "source": state["source"], "images": answers}


def run_runs(arguments: argparse.Namespace) -> tuple[int, dict]:
    folder = Path(arguments.folder or "runs")
    if arguments.folder and not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    runs = [describe_run(path.parent, folder) for path in sorted(folder.rglob("config.json"))]
    print(runs_text(runs) if runs else f"no runs in {folder}")
    return 0, {"folder": str(folder), "runs": runs}


def describe_run(run_dir: Path, folder: Path) -> dict:
    """A run as --json shows it, from its config.json and metrics.jsonl.

    One that cannot be read has its name and a "problem" alone.
    """
    name = run_dir.relative_to(folder).as_posix()
    try:
        config = engine.read_config(run_dir)
        metrics = run_dir / "metrics.jsonl"
        records = read_records(metrics)[0] if metrics.is_file() else []
        last = records[-1] if records else {}
        for field, check in LISTED.items():
            if last.get(field) is not None:
                check(f"{metrics}: {field}", last[field])
    except (ValueError, OSError) as error:
        return {"run": name, "problem": " ".join(str(error).split())}
    return {"run": name, "model": model_text(config),
            "source": last.get("source"), "epoch": last.get("epoch") or 0, "epochs": config.epochs,
            "step": last.get("step") or 0, "steps": config.steps, "finished": _is_finished(last, config),
            **{f"{part}_accuracy": last.get(f"{part}_accuracy") for part in ("train", "validation", "test")}}


def _is_finished(last: dict, config: TrainConfig) -> bool:
    if config.steps is not None:
        return (last.get("step") or 0) >= config.steps
    return (last.get("epoch") or 0) >= (config.trunk_epochs if config.is_trunk else config.epochs)


def runs_text(runs: list[dict]) -> str:
    """The list of runs as a table; what there is no number of is a dash."""
    lines = [("run", "model", "trained on", "epochs", "train", "validation", "test", "")]
    for run in runs:
        if "problem" in run:
            continue
        done = f"step {run['step']}/{run['steps']}" if run["steps"] else f"{run['epoch']}/{run['epochs']}"
        accuracies = [run[f"{part}_accuracy"] for part in ("train", "validation", "test")]
        lines.append((run["run"], run["model"], run["source"] or "-", done,
                      *("-" if value is None else f"{100 * value:.2f} %" for value in accuracies),
                      "finished" if run["finished"] else "not finished"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join([*table, *(f"{run['run']}: {run['problem']}" for run in runs if "problem" in run)])
