import json
from pathlib import Path

import pytest
from tiny import tiny_cifar

from mrla_minimal.lab import cli
from mrla_minimal.lab.cli_runs import describe_run
from mrla_minimal.lab.engine import TrainConfig
from mrla_minimal.lab.engine import run as engine_run
from mrla_minimal.lab.files import write_json


@pytest.fixture(autouse=True)
def working_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def make_run(name, records, **config):
    """A run folder as an interrupted or finished run leaves it."""
    folder = Path("runs", name)
    folder.mkdir(parents=True)
    write_json(folder / "config.json", vars(TrainConfig(device="cpu", **config)))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def record(epoch, step, **accuracies):
    return {"source": "cifar10", "epoch": epoch, "step": step,
            **{f"{part}_accuracy": value for part, value in accuracies.items()}}


def test_the_list_of_runs(capsys):
    make_run("b", [record(1, 10, train=0.4, test=0.3), record(2, 20, train=0.5, test=0.45)], epochs=2)
    make_run("suite/a", [record(1, 10, train=0.25, validation=0.125)], epochs=3, validation=True,
             layer_attention=None, channel_attention="se")
    make_run("new", [], steps=40)
    make_run("c", [record(3, 40, train=0.4, test=0.3)], steps=40)
    Path("runs/odd").mkdir()
    Path("runs/odd/config.json").write_text("{")
    assert cli.main(["runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    light = "ResNet-20 + mrla-light"
    assert cells[0] == ["run", "model", "trained on", "epochs", "train", "validation", "test"]
    assert cells[1:-1] == [
        ["b", light, "cifar10", "2/2", "50.00 %", "-", "45.00 %", "finished"],
        ["c", light, "cifar10", "step 40/40", "40.00 %", "-", "30.00 %", "finished"],
        ["new", light, "-", "step 0/40", "-", "-", "-", "not finished"],
        ["suite/a", "ResNet-20 + se", "cifar10", "1/3", "25.00 %", "12.50 %", "-", "not finished"],
    ]
    assert lines[-1].startswith("odd: ") and "not JSON" in lines[-1]
    assert cli.main(["runs", "runs/suite"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["run", "a"]


@pytest.mark.parametrize("last, words", [
    ({"epoch": "three"}, "epoch must be an integer from 0"), ({"step": [1]}, "step must be"),
    ({"train_accuracy": "0.5"}, "train_accuracy must be a number from 0 to 1, not '0.5'"),
    ({"test_accuracy": 45.0}, "test_accuracy must be a number from 0 to 1, not 45.0"),
    ({"source": 3}, "source must be a text"),
])
def test_metrics_that_no_run_wrote_are_told_beside_the_other_runs(capsys, last, words):
    make_run("a", [record(1, 10) | last])
    make_run("b", [record(None, None, train=0.4)])
    assert cli.main(["runs"]) == 0
    head, good, problem = capsys.readouterr().out.splitlines()
    assert good.split()[0] == "b" and "0/1" in good and "40.00 %" in good
    assert problem.startswith("a: runs/a/metrics.jsonl: ") and words in problem


def test_a_folder_without_runs_and_none_at_all(capsys):
    assert cli.main(["runs"]) == 0
    assert capsys.readouterr().out == "no runs in runs\n"
    assert cli.main(["runs", "nowhere"]) == 2
    assert capsys.readouterr().err == "mrla: nowhere is no folder\n"


def test_a_run_as_training_leaves_it(monkeypatch):
    monkeypatch.setattr(engine_run, "load_cifar", tiny_cifar)
    tiny = "--depth 8 --width 4 --steps 3 --batch-size 16 --device cpu --quiet --name first"
    assert cli.main(["train", *tiny.split()]) == 0
    listed = describe_run(Path("runs/first"), Path("runs"))
    assert listed["finished"] and listed["step"] == listed["steps"] == 3 and listed["source"] == "synthetic"
    assert 0 <= listed["test_accuracy"] <= 1
