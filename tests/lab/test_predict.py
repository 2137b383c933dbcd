import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_cifar

from mrla_minimal.lab import cli, engine
from mrla_minimal.lab.data import normalise
from mrla_minimal.lab.data.corridors import ANIMALS, VEHICLES
from mrla_minimal.lab.data.images import averaged
from mrla_minimal.lab.engine import run as engine_run
from mrla_minimal.lab.predict import probabilities, read_image

TINY = ["--depth", "8", "--width", "4", "--steps", "3", "--batch-size", "16", "--device", "cpu", "--quiet"]


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(array, path):
    Image.fromarray(array).save(path)
    return path


@pytest.mark.parametrize("lying", [True, False])
def test_the_central_square_is_shrunk_by_area(tmp_path, lying):
    pixels = noise(64, 130, 3)
    square = pixels[:, 33:97].astype(float)
    expected = square.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    if not lying:
        pixels, expected = pixels.swapaxes(0, 1), expected.swapaxes(0, 1)
    image = read_image(write(pixels, tmp_path / "picture.png"))
    assert image.dtype == torch.uint8 and image.shape == (3, 32, 32) and image.is_contiguous()
    assert np.abs(image.permute(1, 2, 0).numpy() - expected).max() <= 1     # PIL rounds twice


def test_pictures_of_any_size_and_a_picture_of_32_by_32_as_it_is(tmp_path):
    pixels = noise(32, 32, 3)
    assert (read_image(write(pixels, tmp_path / "a.png")).permute(1, 2, 0).numpy() == pixels).all()
    small = noise(16, 16, 3)
    repeated = small.repeat(2, axis=0).repeat(2, axis=1)
    assert (read_image(write(small, tmp_path / "b.png")).permute(1, 2, 0).numpy() == repeated).all()
    assert read_image(write(noise(1, 500, 3), tmp_path / "c.jpg")).shape == (3, 32, 32)


def test_grey_deep_and_transparent_pictures(tmp_path):
    grey = noise(32, 32)
    assert (read_image(write(grey, tmp_path / "grey.png")).numpy() == grey).all()
    deep = grey.astype(np.uint16) * 257
    assert (read_image(write(deep, tmp_path / "deep.png")).numpy() == grey).all()
    clear = np.dstack([noise(32, 32, 3), np.zeros((32, 32), np.uint8)])
    assert (read_image(write(clear, tmp_path / "clear.png")) == 255).all()


def test_a_picture_that_says_how_it_lies_is_turned(tmp_path):
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 255                                   # bright above
    exif = Image.Exif()
    exif[0x0112] = 3                                    # to be shown upside down
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    image = read_image(tmp_path / "turned.jpg").float()
    assert image[:, :15].mean() < 10 and image[:, 17:].mean() > 245


def test_what_is_no_picture_is_named(tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    Image.fromarray(noise(64, 64, 3)).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:5000])
    Image.fromarray(noise(64, 64, 3)).save(tmp_path / "other.bmp")
    (tmp_path / "folder.png").mkdir()
    for name in ("text.png", "half.png", "other.bmp", "folder.png", "none.png"):
        with pytest.raises(ValueError, match=name.replace(".", "\\.")) as error:
            read_image(tmp_path / name)
        assert "PNG or JPEG" in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def trained(monkeypatch, tmp_path, capsys):
    """A working directory with a run in runs/first, and two of the tiny images as picture files."""
    monkeypatch.setattr(engine_run, "load_cifar", tiny_cifar)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *TINY, "--name", "first"]) == 0
    for number, image in enumerate(tiny_cifar().test.images[:2]):
        write(image.permute(1, 2, 0).numpy(), f"{number}.png")
    capsys.readouterr()


def test_predict_tells_the_likeliest_classes(trained, capsys):
    assert cli.main(["predict", "runs/first", "0.png", "1.png", "--top", "99", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    model, state = engine.load_model("runs/first")
    with torch.no_grad():
        expected = model(normalise(tiny_cifar().test.images[:2])).softmax(dim=1)
    assert [image["file"] for image in record["images"]] == ["0.png", "1.png"]
    for image, row in zip(record["images"], expected, strict=True):
        found = {one["class"]: one["probability"] for one in image["classes"]}
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert [found[name] for name in state["classes"]] == pytest.approx(row.tolist(), abs=1e-6)

    assert cli.main(["predict", "runs/first", "1.png"]) == 0
    note, line = capsys.readouterr().out.splitlines()
    best = record["images"][1]["classes"][:3]
    assert line == "1.png: " + ", ".join(f"{one['class']} {100 * one['probability']:.1f} %" for one in best)
    assert "synthetic" in note


def test_predict_names_what_it_cannot_read(trained, capsys):
    open("text.jpg", "w").close()
    for arguments, word in (("runs/first 0.png text.jpg", "text.jpg"), ("runs/none 0.png", "runs/none"),
                            ("runs/first 0.png --top 0", "--top")):
        assert cli.main(["predict", *arguments.split()]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and word in captured.err and captured.err.count("\n") == 1


def test_probabilities_of_many_images_are_of_each_alone(trained):
    model, _ = engine.load_model("runs/first")
    images = torch.from_numpy(noise(150, 3, 32, 32))
    several = probabilities(model, images)
    assert several.shape == (150, 10) and torch.allclose(several.sum(dim=1), torch.ones(150))
    assert torch.allclose(several[120:121], probabilities(model, images[120:121]), atol=1e-6)


def test_predict_runs_strangers_code_only_with_trust(trained, capsys):
    open("own.py", "w").write("from mrla_minimal import MRLALight\n\n\nclass Own(MRLALight):\n    pass\n")
    assert cli.main(["train", *TINY, "--layer-attention", "own.py", "--name", "own"]) == 0
    capsys.readouterr()
    assert cli.main(["predict", "runs/own", "0.png"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "own.py" in captured.err and "--trust" in captured.err
    assert cli.main(["predict", "runs/own", "0.png", "--trust"]) == 0
    assert "0.png: " in capsys.readouterr().out


def test_a_run_at_a_lower_resolution_is_given_pictures_of_that_size(trained, capsys):
    assert cli.main(["train", *TINY, "--resolution", "16", "--name", "small"]) == 0
    capsys.readouterr()
    assert cli.main(["predict", "runs/small", "0.png", "--top", "10", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["images"]
    model, state = engine.load_model("runs/small")
    with torch.no_grad():
        (expected,) = model(normalise(averaged(tiny_cifar().test.images[:1], 16))).softmax(dim=1).tolist()
    values = {one["class"]: one["probability"] for one in found["classes"]}
    assert [values[name] for name in state["classes"]] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("options, words", [
    (["--model", "corridor", "--depth", "20", "--layer-attention", "mrla-base"], "corridors"),
    (["--wipe", "0.3"], "wipe 0.3"),
])
def test_a_run_that_cannot_be_asked_about_one_picture_is_refused(
    trained, monkeypatch, capsys, options, words
):
    named = replace(tiny_cifar(), classes=ANIMALS + VEHICLES)
    monkeypatch.setattr(engine_run, "load_cifar", lambda *arguments: named)
    assert cli.main(["train", *TINY, *options, "--name", "control"]) == 0
    capsys.readouterr()
    assert cli.main(["predict", "runs/control", "0.png"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "runs/control" in captured.err and words in captured.err
    assert captured.err.count("\n") == 1


def test_logits_that_are_not_finite_are_no_answer(trained, capsys):
    state = torch.load("runs/first/checkpoint.pt", weights_only=True)
    for name, tensor in state["model"].items():             # finite, as a checkpoint's weights must be
        if tensor.is_floating_point():
            tensor.fill_(3e38 if name == "classifier.weight" else 1.0)
    torch.save(state, "runs/first/checkpoint.pt")
    for json_option in ([], ["--json"]):
        assert cli.main(["predict", "runs/first", "0.png", "1.png", *json_option]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1
        assert "runs/first: the model's logits are not finite for 2 of 2 images" in captured.err
