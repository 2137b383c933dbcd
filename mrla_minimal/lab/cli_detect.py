"""Detectors on the command line: `mrla detect`, and what `mrla evaluate` says of one."""

import argparse
from pathlib import Path

from torch import nn

from mrla_minimal.lab import engine
from mrla_minimal.lab.cli_parser import add_command, json_option, trust_option
from mrla_minimal.lab.engine import TrainConfig
from mrla_minimal.lab.engine.detection import find_objects, precision_by_kind

NAMES = ("AP", "AP50", "AP75")


def add_detect_command(commands: argparse._SubParsersAction, devices: str) -> None:
    """Add `detect` to the subcommands of a parser; `devices` is the help of --device."""
    detect = add_command(
        commands, "detect", "draw what a trained detector finds in pictures of your own", run_detect,
        ("mrla detect cells.png --run runs/nuclei --out found",
         "mrla detect slides/*.png --run runs/nuclei --json"),
        "Each picture is shrunk until its shorter side is that of the training images, looked at through\n"
        "windows that overlap, and drawn with the boxes and masks of what scores at least 0.4.")
    detect.add_argument("images", metavar="IMAGE", nargs="+", help="a PNG or JPEG file")
    detect.add_argument("--run", required=True, metavar="RUN", help="a run folder or a checkpoint file")
    detect.add_argument("--out", metavar="FOLDER", default="found",
                        help="where the drawings go, one a picture (default: found)")
    detect.add_argument("--device", default="cpu", help=devices)
    trust_option(detect)
    json_option(detect)


def run_detect(arguments: argparse.Namespace) -> tuple[int, dict]:
    from mrla_minimal.lab.found import WINDOWS, draw, find_in, read_scene

    model, state = engine.load_model(arguments.run, arguments.device, arguments.trust)
    config = TrainConfig(**state["config"])
    if not config.detects:
        raise ValueError(f"{arguments.run} was trained to classify {config.dataset}, not to find objects: "
                         "mrla predict asks it")
    crop = engine.model.image_shape(config)[1]
    drawings = _drawings(arguments.images, Path(arguments.out))
    images = [read_scene(path, config.dataset, crop) for path in arguments.images]
    Path(arguments.out).mkdir(parents=True, exist_ok=True)
    answers = []
    for path, drawing, image in zip(arguments.images, drawings, images, strict=True):
        try:
            found = find_in(model, image, WINDOWS[config.dataset])
        except ValueError as error:
            raise ValueError(f"{arguments.run}: {error}") from None
        draw(image, found, drawing)
        names = [state["classes"][kind] for kind in found.classes.tolist()]
        counts = ", ".join(f"{name} {names.count(name)}" for name in state["classes"])
        print(f"{path}: {counts}; drawn in {drawing}")
        answers.append({"file": path, "drawing": str(drawing), "size": list(image.shape[:0:-1]),
                        "objects": [{"class": name, "score": score, "box": box} for name, score, box in zip(
                            names, found.scores.tolist(), found.boxes.tolist(), strict=True)]})
    return 0, {"run": arguments.run, "source": state["source"], "images": answers}


def _drawings(images: list[str], folder: Path) -> list[Path]:
    """Where each picture's drawing goes. ValueError if two would go to one file."""
    drawings = [folder / f"{Path(path).stem}-found.png" for path in images]
    for path, drawing in zip(images, drawings, strict=True):
        if drawings.count(drawing) > 1:
            raise ValueError(f"two pictures would be drawn in {drawing}, one of them {path}: "
                             "give them different names")
    return drawings


def evaluate_detector(arguments: argparse.Namespace, model: nn.Module, state: dict,
                      described: str) -> tuple[int, dict]:
    """What `mrla evaluate` does with a detector: average precision of boxes and masks, by kind of image.

    Raises ValueError for one that was trained on images of one's own, or on others than are here.
    """
    from mrla_minimal.lab.data.scenes import load_scenes, views

    config = TrainConfig(**state["config"])
    scenes = load_scenes(config.dataset, arguments.data_root or engine.usable_root(config.data_root))
    if (scenes.source, scenes.fingerprint) != (state["source"], state["fingerprint"]):
        raise ValueError(f"{arguments.run} was trained on other images ({state['source']}) than this "
                         f"package's {config.dataset}; in Python: find_objects(load_model(RUN)[0], views)")
    seen = list(views(getattr(scenes, arguments.split), scenes.crop))
    found = find_objects(model, seen, progress=not arguments.quiet)
    scores = precision_by_kind(found, [view.kind for view in seen])
    if not arguments.quiet:
        print(f"{arguments.run}: {described}, {scenes.source}, {len(seen)} images of the {arguments.split} "
              "split")
    print(precision_text(scores))
    return 0, {"run": arguments.run, "model": described, "source": scenes.source, "split": arguments.split,
               "images": len(seen), "precision": scores}


def precision_text(scores: dict[str, float], prefix: str = "") -> str:
    """Average precision as a table: a row for all images and one a kind of image, boxes and masks beside.

    scores: as `precision_by_kind` gives them, or an epoch's metrics with "test_" as their prefix.
    """
    scores = {name.removeprefix(prefix): value for name, value in scores.items() if name.startswith(prefix)}
    kinds = dict.fromkeys(name.removesuffix("box_AP") for name in scores if name.endswith("box_AP"))
    measured = [what for what in ("box", "mask") if f"{what}_AP" in scores]
    heads = [f"{what} {name}" if name == "AP" else name for what in measured for name in NAMES]
    lines = [f"{'':<14}" + "".join(f"{head:>9}" for head in heads)]
    for kind in kinds:
        row = [scores[f"{kind}{what}_{name}"] for what in measured for name in NAMES]
        cells = "".join(f"{100 * value:>9.1f}" for value in row)
        lines.append(f"{kind.rstrip('_') or 'all images':<14}{cells}")
    return "\n".join(lines)
