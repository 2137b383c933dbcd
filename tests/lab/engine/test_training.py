import csv
import dataclasses
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiny
import torch
from tiny import tiny_cifar, tiny_config, tiny_train

from mrla_minimal.lab import figures, files
from mrla_minimal.lab.data import Cifar, Split
from mrla_minimal.lab.engine import Run, load_model, run
from mrla_minimal.lab.engine.folder import new_run_dir


def test_depth_21_is_refused_before_any_data_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "load_cifar", lambda *args: pytest.fail("data was loaded"))
    with pytest.raises(ValueError, match="6n \\+ 2.*21"):
        tiny_train(tiny_config(depth=21), tmp_path / "run", data=None)


def test_it_learns_what_can_be_learnt(tmp_path):
    config = tiny_config(epochs=8, layer_attention="mrla-light-released", drop_path=0.0)
    result = tiny_train(config, tmp_path / "run")
    assert result.test_accuracy > 0.5 and result.metrics[-1]["train_loss"] < result.metrics[0]["train_loss"]


def test_the_run_folder_holds_what_is_promised(tmp_path):
    config = tiny_config()
    result = tiny_train(config, tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()} - {".lock"}
    assert names == {"config.json", "metrics.jsonl", "timing.jsonl", "checkpoint.pt", "curves.png"}
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == dataclasses.asdict(config)
    records, complaints = files.read_records(tmp_path / "run" / "metrics.jsonl")
    assert records == result.metrics and not complaints and [record["epoch"] for record in records] == [1, 2]
    assert records[-1]["test_accuracy"] == result.test_accuracy
    assert not any("second" in key for record in records for key in record)
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_two_runs_do_not_share_a_folder(tmp_path, monkeypatch):
    original = Run.train_step

    def train_step(run):
        original(run)
        if run.step == 1:
            with pytest.raises(ValueError, match=f"{tmp_path / 'run'} is in use by another run"):
                tiny_train(tiny_config(), tmp_path / "run", resume=True)

    monkeypatch.setattr(Run, "train_step", train_step)
    tiny_train(tiny_config(epochs=1), tmp_path / "run")


def own_images(channels=3, size=32, **changes):
    """Images of one's own: 48 + 12 of any size in three classes, told apart by their brightness."""
    splits = []
    for count in (48, 12):
        labels = torch.arange(count) % 3
        images = (60 * labels + 20).to(torch.uint8)[:, None, None, None].expand(-1, channels, size, size)
        splits.append(Split(images.clone(), labels))
    parts = {"train": splits[0], "test": splits[1], "classes": ("dark", "grey", "light"), "source": "own"}
    return Cifar(**{**parts, "fingerprint": "own 1", **changes})


@pytest.mark.parametrize("channels, size", [(1, 32), (3, 40), (5, 28)])
def test_images_of_ones_own_decide_classes_channels_and_size(tmp_path, channels, size):
    data = own_images(channels, size)
    result = tiny_train(tiny_config(epochs=1, augment="on"), tmp_path / "run", data=data)
    assert (result.source, result.fingerprint) == ("own", "own 1")
    model, state = load_model(tmp_path / "run")
    assert model(torch.zeros(1, channels, size, size)).shape == (1, 3) and state["in_channels"] == channels
    again = tiny_train(tiny_config(epochs=1, augment="on"), tmp_path / "run", data=data, resume=True)
    assert again.metrics == result.metrics


def test_images_of_ones_own_name_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = tiny_train(tiny_config(epochs=1), None, data=own_images())
    assert result.run_dir.name == "resnet8-mrla-light-own-seed0"
    result = tiny_train(tiny_config(epochs=1), None, data=own_images(source="../my pets"))
    assert result.run_dir == Path("runs/resnet8-mrla-light-..-my-pets-seed0")
    assert result.source == "../my pets"


FEW = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
TWO = torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize("change, complaint", [
    ({"train": Split(FEW.float(), TWO)}, "data.train.images must .* not a tensor .* of torch.float32"),
    ({"test": Split(FEW, TWO[:1])}, "data.test.labels must be .* .2,., not a tensor .1,. of torch.int64"),
    ({"test": Split(FEW[..., :8, :8], TWO)}, "images of one shape, not .3, 32, 32. and .3, 8, 8."),
    ({"classes": ("a", "b")}, "data.train.labels must be from 0 to 1.*they go from 0 to 2"),
    ({"train": None}, "data.train.images must be a uint8 tensor .*not None"),
    ({"classes": ("a", "", "c")}, "a name in data.classes must be a text, not ''"),
    ({"classes": "abc"}, "data.classes must be a tuple of names, not 'abc'"),
    ({"source": None}, "data.source must be a text, not None"),
    ({"fingerprint": ""}, "data.fingerprint must be a text, not ''"),
])
def test_images_that_cannot_be_trained_on_are_named_before_anything_is_written(tmp_path, change, complaint):
    with pytest.raises(ValueError, match=complaint):
        tiny_train(tiny_config(), tmp_path / "run", data=own_images(**change))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("set_default, back", [
    (lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_dtype(torch.float32)),
    (lambda: torch.set_default_device("meta"), lambda: torch.set_default_device(None)),
], ids=["dtype", "device"])
def test_what_a_program_has_set_for_its_own_tensors_changes_nothing(tmp_path, set_default, back):
    expected = tiny_train(tiny_config(epochs=1), tmp_path / "expected")
    data = tiny_cifar()
    set_default()
    try:
        result = tiny_train(tiny_config(epochs=1), tmp_path / "run", data=data)
        model, _ = load_model(tmp_path / "run")
    finally:
        back()
    assert result.metrics == expected.metrics
    kinds = {(parameter.dtype, parameter.device.type) for parameter in model.parameters()}
    assert kinds == {(torch.float32, "cpu")}


def test_two_runs_that_start_together_get_two_folders(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: new_run_dir(tiny_config(), tmp_path), range(24)))
    assert len(set(folders)) == 24 and all(folder.is_dir() for folder in folders)
    assert {folder.name for folder in folders} == {"resnet8-mrla-light-cifar10-seed0"} | {
        f"resnet8-mrla-light-cifar10-seed0-{number}" for number in range(2, 25)}


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("gone"), lambda path: path.write_text("")])
def test_runs_that_can_be_no_folder_are_told(tmp_path, make):
    runs = tmp_path / "runs"
    make(runs)
    with pytest.raises(FileExistsError) as error:       # it once counted names without end
        new_run_dir(tiny_config(), runs)
    assert error.value.filename == str(runs)


def test_a_refused_run_gives_its_new_folder_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="at most the 96"):
        tiny_train(tiny_config(batch_size=97), None)
    assert not list((tmp_path / "runs").iterdir())


def test_runs_are_called_by_what_they_are(tmp_path):
    folder = new_run_dir(tiny_config(layer_attention=None, channel_attention="se"), tmp_path)
    assert folder.name.startswith("resnet8-se-")
    assert "synthetic" in new_run_dir(tiny_config(source="synthetic"), tmp_path).name


def test_batches_larger_than_the_data_and_missing_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at most the 96 training images, not 97"):
        tiny_train(tiny_config(batch_size=97), tmp_path / "run")
    with pytest.raises(ValueError, match="not a run folder"):
        tiny_train(tiny_config(), tmp_path / "nothing", resume=True)
    with pytest.raises(ValueError, match="no such checkpoint"):
        load_model(tmp_path / "absent.pt")


def test_a_failed_start_leaves_no_run_behind(tmp_path):
    with pytest.raises(ValueError):
        tiny_train(tiny_config(batch_size=97), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    tiny_train(tiny_config(epochs=1), tmp_path / "run")


def test_a_figure_that_fails_does_not_cost_the_run(tmp_path, monkeypatch, capsys):
    def plot_curves(*args, **kw):
        raise ModuleNotFoundError("No module named 'no_such_backend'\nand more")

    monkeypatch.setattr(figures, "plot_curves", plot_curves)
    result = tiny_train(tiny_config(epochs=1), tmp_path / "run")
    assert capsys.readouterr().out == (
        f"note: {tmp_path / 'run' / 'curves.png'} could not be drawn "
        "(ModuleNotFoundError: No module named 'no_such_backend'); all else is there\n")
    assert files.read_records(tmp_path / "run" / "metrics.jsonl")[0] == result.metrics
    assert load_model(tmp_path / "run")[1]["step"] == 6


@pytest.mark.slow
def test_a_backend_that_does_not_exist_costs_the_figure_alone(tmp_path):
    done = subprocess.run([sys.executable, tiny.__file__, str(tmp_path / "run")], capture_output=True,
                          env={**os.environ, "MPLBACKEND": "module://no_such_backend"}, text=True, timeout=99)
    assert done.returncode == 0 and "curves.png could not be drawn (" in done.stdout, done.stderr
    assert load_model(tmp_path / "run")[1]["step"] == 12 and not (tmp_path / "run" / "curves.png").exists()


def test_each_record_is_handed_on_once_it_is_on_the_disk(tmp_path):
    seen = []

    def on_record(record):
        on_disk = files.read_records(tmp_path / "run" / "metrics.jsonl")[0]
        seen.append((record, on_disk[-1], load_model(tmp_path / "run")[1]["step"]))

    result = tiny_train(tiny_config(), tmp_path / "run", on_record=on_record)
    assert seen == [(record, record, record["step"]) for record in result.metrics] and len(seen) == 2


def test_records_make_a_table_as_the_docstring_says(tmp_path):
    with open(tmp_path / "table.csv", "w", newline="") as file:
        table = csv.DictWriter(file, ["epoch", "train_loss", "test_accuracy"], extrasaction="ignore")
        result = tiny_train(tiny_config(), tmp_path / "run", on_record=table.writerow)
    names = ("epoch", "train_loss", "test_accuracy")
    rows = list(csv.reader(open(tmp_path / "table.csv")))
    assert rows == [[str(record[name]) for name in names] for record in result.metrics]


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf, "60"])
def test_seconds_between_checkpoints_are_checked(tmp_path, seconds):
    with pytest.raises(ValueError, match="^checkpoint_seconds must be a number from 0 on, not"):
        tiny_train(tiny_config(), tmp_path / "run", checkpoint_seconds=seconds)
    assert not (tmp_path / "run").exists()
