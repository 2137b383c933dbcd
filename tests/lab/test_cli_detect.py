"""Detectors on the command line: trained, evaluated, asked about pictures; what is refused, in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_cifar
from tiny_scenes import tiny_scenes

from mrla_minimal.detector import Detections
from mrla_minimal.lab import bench, cli, engine
from mrla_minimal.lab.cli_detect import precision_text
from mrla_minimal.lab.cli_train import config_of
from mrla_minimal.lab.data import scenes
from mrla_minimal.lab.engine import PRESETS, TrainConfig, detection
from mrla_minimal.lab.engine import run as engine_run
from mrla_minimal.lab.found import draw, read_scene

SMALL = "--dataset nuclei --depth 8 --width 8 --batch-size 4 --steps 2 --device cpu".split()


@pytest.fixture(autouse=True)
def discs_for_nuclei(monkeypatch, tmp_path):
    """Discs in place of the nuclei that are loaded, and a working directory of its own."""
    def load(name, root=None):
        return scenes.Scenes(**{**vars(tiny_scenes()), "source": name})

    monkeypatch.setattr(detection, "load_scenes", load)
    monkeypatch.setattr(scenes, "load_scenes", load)
    monkeypatch.chdir(tmp_path)


def write_picture(path, width=160, height=140, colour=True, value=None):
    pixels = np.arange(height * width * 3).reshape(height, width, 3) % 100
    pixels = pixels if colour else np.broadcast_to(pixels[..., :1], pixels.shape)
    Image.fromarray((pixels if value is None else np.full_like(pixels, value)).astype(np.uint8)).save(path)
    return str(path)


def error_of(capsys, *arguments):
    """What a command that ends with status 2 says on stderr, one line."""
    assert cli.main(list(arguments)) == 2
    text = capsys.readouterr().err
    assert text.startswith("mrla: ") and text.count("\n") == 1
    return text


def test_each_set_has_a_preset_of_its_own():
    def parse(*options):
        return config_of(cli.build_parser().parse_args(["train", *options]))

    for name in ("nuclei", "blood"):
        assert parse("--dataset", name) == parse("--preset", name) == TrainConfig(**PRESETS[name])
        assert (PRESETS[name]["steps"], PRESETS[name]["learning_rate"]) == (480, 6e-3)
    assert parse("--dataset", "nuclei", "--steps", "160").steps == 160
    assert parse("--dataset", "cifar100") == TrainConfig(dataset="cifar100")


def test_train_and_evaluate_print_one_table(capsys):
    assert cli.main(["train", *SMALL, "--name", "first"]) == 0
    trained = capsys.readouterr().out
    assert "box AP" in trained and "run folder runs/first: config.json" in trained.replace("\\", "/")
    table = trained[trained.index("average precision on test, in per cent\n") :].splitlines()[1:]
    assert [line.split("  ")[0] for line in table[1:]] == ["all images", "fluorescence", "stained"]
    assert table[0].split() == ["box", "AP", "AP50", "AP75", "mask", "AP", "AP50", "AP75"]
    assert cli.main(["evaluate", "runs/first"]) == 0
    evaluated = capsys.readouterr().out.splitlines()
    assert evaluated[0].startswith("runs/first: detector on ResNet-8 + mrla-light, nuclei, 32 images")
    assert evaluated[1:] == table
    assert cli.main(["evaluate", "runs/first", "--split", "validation", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["images"] == 16 and 0 <= record["precision"]["stained_mask_AP75"] <= 1
    assert cli.main(["runs", "--json"]) == 0
    listed, = json.loads(capsys.readouterr().out)["runs"]
    assert listed["finished"] and listed["model"] == "detector on ResNet-8 + mrla-light"


def test_detect_draws_and_tells(capsys, monkeypatch):
    assert cli.main(["train", *SMALL, "--quiet", "--name", "first"]) == 0
    capsys.readouterr()
    masks = torch.zeros(2, 140, 160, dtype=torch.bool)
    masks[0, 10:30, 5:25] = True
    answer = Detections(torch.tensor([[5.0, 10, 25, 30], [40, 40, 60, 90]]), torch.tensor([0.9, 0.5]),
                        torch.zeros(2, dtype=torch.int64), masks)
    monkeypatch.setattr("mrla_minimal.detector.Detector.detect", lambda *_, **__: [answer])
    picture = write_picture(Path("cells.png"))
    assert cli.main(["detect", picture, "--run", "runs/first", "--out", "drawn/here", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    found, = record["images"]
    assert found["size"] == [160, 140] and found["objects"][1]["box"] == [40, 40, 60, 90]
    assert found["objects"][0] == {"class": "disc", "score": pytest.approx(0.9), "box": [5, 10, 25, 30]}
    with Image.open(found["drawing"]) as drawing:
        assert drawing.size == (480, 420)
    assert cli.main(["detect", picture, "--run", "runs/first"]) == 0
    assert "cells.png: 2 disc; drawn in found" in capsys.readouterr().out


def test_a_drawing_changes_the_picture_where_something_was_found(tmp_path):
    image = torch.full((3, 20, 30), 100, dtype=torch.uint8)
    masks = torch.zeros(1, 20, 30, dtype=torch.bool)
    masks[0, 4:8, 10:14] = True
    box = torch.tensor([[10.0, 4, 14, 8]])
    draw(image, Detections(box, torch.ones(1), torch.zeros(1, dtype=torch.int64), masks), tmp_path / "a.png")
    draw(image, Detections(box, torch.ones(1), torch.ones(1, dtype=torch.int64), None), tmp_path / "b.png")
    with_mask, without = (np.array(Image.open(tmp_path / name)) for name in ("a.png", "b.png"))
    changed = (with_mask != 100).any(-1)
    assert changed[12:24, 30:42].all() and changed.sum() == 144
    changed = (without != 100).any(-1)
    assert changed.sum() == 4 * 12 - 4 and changed[12, 30] and not changed[13, 31]


def test_a_picture_is_read_as_the_sets_pictures_are(tmp_path):
    grey = read_scene(write_picture(tmp_path / "grey.png", colour=False), "nuclei", 128)
    assert grey.shape == (3, 140, 160) and grey.min() == 0 and grey.max() == 255
    colour = read_scene(write_picture(tmp_path / "colour.png"), "nuclei", 128)
    assert colour.max() == 99                       # what is stained keeps its colours
    large = read_scene(write_picture(tmp_path / "large.png", 640, 512), "nuclei", 128)
    assert large.shape == (3, 256, 320)
    assert read_scene(write_picture(tmp_path / "flat.png", value=7), "nuclei", 128).max() == 0
    assert read_scene(write_picture(tmp_path / "blood.png", 640, 480), "blood", 96).shape == (3, 120, 160)


def test_what_cannot_be_asked_is_told_in_one_line(capsys, monkeypatch):
    monkeypatch.setattr(engine_run, "load_cifar", tiny_cifar)
    assert cli.main(["train", *SMALL, "--quiet", "--name", "finds"]) == 0
    classifier = "--depth 8 --width 4 --steps 1 --batch-size 16 --device cpu --name names"
    assert cli.main(["train", *classifier.split(), "--quiet"]) == 0
    capsys.readouterr()
    picture = write_picture(Path("cells.png"))
    small, long = write_picture(Path("small.png"), 160, 127), write_picture(Path("long.png"), 600, 130)
    Path("text.png").write_text("no picture")
    Path("other").mkdir()
    twin = write_picture(Path("other/cells.png"))
    detect = ("detect", "--run", "runs/finds")
    assert "was trained to classify cifar10, not to find" in error_of(capsys, "detect", picture, "--run",
                                                                        "runs/names")
    assert "mrla detect asks it" in error_of(capsys, "predict", "runs/finds", picture)
    assert "160 x 127 pixels: it must be at least 128" in error_of(capsys, *detect, small)
    assert "more than 4 times as long" in error_of(capsys, *detect, long)
    assert "is no PNG or JPEG picture" in error_of(capsys, *detect, "text.png")
    assert "No such file" in error_of(capsys, *detect, picture, "nowhere.png")
    assert "two pictures would be drawn in" in error_of(capsys, *detect, picture, twin)
    assert "no such checkpoint" in error_of(capsys, "detect", picture, "--run", "nowhere")
    assert not Path("found").exists()
    monkeypatch.setattr(scenes, "load_scenes", lambda *_: tiny_scenes())
    assert "trained on other images (nuclei)" in error_of(capsys, "evaluate", "runs/finds")


def test_the_files_of_the_set_are_asked_for_in_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setenv("MRLA_DATA", str(tmp_path))
    for text in (None, b"not the zip"):
        if text is not None:
            (tmp_path / "nuclei").mkdir()
            (tmp_path / "nuclei" / "nuclei.zip").write_bytes(text)
        message = error_of(capsys, "train", *SMALL, "--out", str(tmp_path / "run"), "--data-root",
                           str(tmp_path))
        assert ("no nuclei.zip" if text is None else "is damaged or another file") in message
        assert not (tmp_path / "run").exists()


def test_steps_a_second_are_printed_with_their_ratio(capsys, monkeypatch):
    monkeypatch.setattr(bench, "load_scenes", scenes.load_scenes)       # the discs
    small = {**PRESETS["nuclei"], "depth": 8, "width": 8, "batch_size": 2, "device": "cpu"}
    monkeypatch.setitem(PRESETS, "nuclei", small)
    bench.bench_detector(steps=1, rounds=1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("detector of nuclei, 2 crops a step, ")
    plain, base = (float(line.split()[1]) for line in lines[1:3])
    assert float(lines[3].split()[3]) == pytest.approx(base / plain, rel=0.1)


def test_a_set_of_boxes_alone_has_half_a_table():
    scores = {f"test_box_{name}": 0.25 for name in ("AP", "AP50", "AP75")} | {"test_loss": 1.0}
    assert precision_text(scores, "test_").splitlines() == [
        f"{'':<14}   box AP     AP50     AP75", f"{'all images':<14}     25.0     25.0     25.0"]
    assert engine.TrainConfig(dataset="blood").host_text == "detector on ResNet-20"
