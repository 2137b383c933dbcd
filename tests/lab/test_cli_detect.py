"""Detectors on the command line: trained, evaluated, asked about pictures; what is refused, in one line."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_cifar
from tiny_scenes import tiny_scenes

from mrla_minimal.boxes import box_iou
from mrla_minimal.detector import Detections
from mrla_minimal.lab import bench, cli, engine
from mrla_minimal.lab.cli_detect import precision_text
from mrla_minimal.lab.cli_train import config_of
from mrla_minimal.lab.data import normalise, nuclei, scenes
from mrla_minimal.lab.data.zipped import find_zip, read_pictures
from mrla_minimal.lab.engine import PRESETS, TrainConfig, detection
from mrla_minimal.lab.engine import run as engine_run
from mrla_minimal.lab.found import SURE, draw, find_in, read_scene, windows

ROOT = Path(__file__).parents[2]
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
    monkeypatch.setattr("mrla_minimal.lab.found.find_in", lambda *_: answer)
    picture = write_picture(Path("cells.png"))
    assert cli.main(["detect", picture, "--run", "runs/first", "--out", "drawn/here", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    found, = record["images"]
    assert found["size"] == [160, 140] and found["objects"][1]["box"] == [40, 40, 60, 90]
    assert found["objects"][0] == {"class": "disc", "score": pytest.approx(0.9), "box": [5, 10, 25, 30]}
    with Image.open(found["drawing"]) as drawing:
        assert drawing.size == (480, 420)
    assert cli.main(["detect", picture, "--run", "runs/first"]) == 0
    assert "cells.png: disc 2; drawn in found" in capsys.readouterr().out


@pytest.fixture(scope="module")
def committed():
    """A committed detector, and a tile of a test image in which it finds thirteen nuclei."""
    zipped = find_zip("nuclei", nuclei.SHA256, ROOT / "data")
    image, = read_pictures(zipped, ["images/5908488d94.webp"], colour=True)
    model, _ = engine.load_model(ROOT / "data" / "checkpoints" / "nuclei-cpu-mrla-light.pt")
    return model, image[:, :128, :128].contiguous()


def test_a_picture_of_one_crop_gives_what_detect_gives(committed):
    model, tile = committed
    one, (same,) = find_in(model, tile, 128), model.detect(normalise(tile[None]), least=SURE)
    assert len(one.scores) > 8
    for name in ("boxes", "scores", "classes", "masks"):
        assert torch.equal(getattr(one, name), getattr(same, name))


def test_a_picture_of_four_tiles_holds_four_times_the_finds(committed):
    model, tile = committed
    once, found = find_in(model, tile, 128), find_in(model, tile.repeat(1, 2, 2), 128)
    assert len(found.scores) == pytest.approx(4 * len(once.scores), rel=0.15)
    assert (found.scores.diff() <= 0).all() and found.masks.shape == (len(found.scores), 256, 256)
    for box, mask in zip(found.boxes, found.masks, strict=True):
        y, x = mask.nonzero().float().add(0.5).mean(0)
        assert box[0] <= x <= box[2] and box[1] <= y <= box[3]
    for shift in ((0, 0), (128, 0), (0, 128), (128, 128)):      # each tile's are found where it lies
        overlap = box_iou(once.boxes + torch.tensor(2 * shift), found.boxes)
        assert (overlap.amax(1) > 0.5).float().mean() > 0.8     # some at an edge are joined


class FindsSquares(torch.nn.Linear):
    """As a detector, but it finds whole bright squares of 9 pixels, and what an edge leaves of them."""

    def detect(self, images, least, overlap, most):
        bright = images[0, 0] > 1
        seen = torch.zeros_like(bright)
        boxes = []
        for y, x in bright.nonzero().tolist():
            if not seen[y, x]:
                height, width = bright[y : y + 9, x].sum(), bright[y, x : x + 9].sum()
                seen[y : y + height, x : x + width] = True
                boxes.append([x, y, x + width, y + height])
        boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        return [Detections(boxes, torch.full((len(boxes),), 0.9), torch.zeros(len(boxes), dtype=torch.int64),
                           None)]


@pytest.mark.parametrize("height, width", [(130, 150), (128, 257), (128, 120), (300, 190)])
def test_each_object_is_found_once_and_whole(height, width):
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    true = [[x, y, x + 9, y + 9] for y in range(2, height - 9, 13) for x in range(1, width - 9, 13)]
    for x0, y0, x1, y1 in true:
        image[:, y0:y1, x0:x1] = 255
    found = find_in(FindsSquares(1, 1), image, 128)
    assert sorted(found.boxes.tolist()) == sorted(true)


def test_windows_overlap_by_half_and_leave_nothing_out():
    assert windows(100, 128) == windows(100, 100) == [(0, 100, -math.inf, math.inf)]
    assert [window[:2] for window in windows(256, 128)] == [(0, 128), (64, 192), (128, 256)]
    for length in range(129, 400):
        some = windows(length, 128)
        assert some[0][0] == 0 and some[-1][1] == length
        for (_, stop, _, end), (start, _, own, _) in zip(some, some[1:], strict=False):
            assert stop - start >= 64 and start + 24 <= own < end <= stop - 24


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
    for channel in range(3):        # as a camera's colour for one dye, and a JPEG's traces in the others
        pixels = np.zeros((140, 160, 3), np.uint8)
        pixels[..., channel] = grey[0].numpy() // 3
        for name in ("dye.png", "dye.jpg"):
            Image.fromarray(pixels).save(tmp_path / name)
            dyed = read_scene(tmp_path / name, "nuclei", 128)
            assert (dyed == dyed[:1]).all() and dyed.max() == 255
            assert name == "dye.jpg" or (dyed[0].int() - grey[0]).abs().max() <= 3
    assert read_scene(tmp_path / "dye.png", "blood", 96)[:2].max() == 0
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
    assert error_of(capsys, *detect, picture, "--out", "text.png") == (
        "mrla: text.png is a file, not a folder\n")
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
