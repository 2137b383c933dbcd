import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tiny import tiny_cifar

from mrla_minimal.lab import cli, cost_tables, data, engine, evidence
from mrla_minimal.lab.cli_train import config_of
from mrla_minimal.lab.engine import PRESETS, TrainConfig, read_checkpoint
from mrla_minimal.lab.engine import run as engine_run

TINY = ["--depth", "8", "--width", "4", "--steps", "3", "--batch-size", "16", "--device", "cpu"]


@pytest.fixture
def tiny_data(monkeypatch, tmp_path):
    monkeypatch.setattr(engine_run, "load_cifar", tiny_cifar)
    monkeypatch.setattr(data, "load_cifar", tiny_cifar)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parse(*options):
    return config_of(cli.build_parser().parse_args(["train", *options]))


def last_record(run_dir):
    return json.loads(Path(run_dir, "metrics.jsonl").read_text().splitlines()[-1])


def test_every_field_is_an_option_and_the_presets_give_defaults():
    assert parse() == TrainConfig() and parse("--preset", "standard") == TrainConfig(**PRESETS["standard"])
    assert parse("--preset", "standard", "--epochs", "3").epochs == 3
    values = {str: "x", int: "3", float: "0.25", int | None: "7", str | None: "x"}
    for field in dataclasses.fields(TrainConfig):
        flag = "--" + field.name.replace("_", "-")
        host = ["--model", "vit"] if field.metadata["help"].startswith("vit:") else []
        if field.type is bool:
            assert getattr(parse(flag), field.name) is True
            assert getattr(parse("--no-" + flag[2:]), field.name) is False
            continue
        choices = [choice for choice in field.metadata["choices"] or () if choice is not None]
        if field.name == "device":
            choices = ["cpu"]
        text = str(choices[-1]) if choices else values[field.type]
        kind = next((kind for kind in (float, int) if field.type in (kind, kind | None)), str)
        beside = {"trunk_epochs": ("--epochs", "9"), "trunk": ("--epochs", "9", "--trunk-epochs", "3")}
        found = parse(*host, *beside.get(field.name, ()), flag, text)
        assert getattr(found, field.name) == kind(text), field.name
    assert parse("--layer-attention", "none").layer_attention is None
    assert parse("--head-dim", "none").head_dim is None


def test_a_vision_transformer_has_a_preset_of_its_own():
    assert parse("--model", "vit") == parse("--preset", "vit") == TrainConfig(**PRESETS["vit"])
    assert parse("--model", "vit", "--preset", "vit-gpu") == TrainConfig(**PRESETS["vit-gpu"])
    assert all(PRESETS[name]["optimizer"] == "adamw" for name in ("vit", "vit-gpu"))


def test_the_standard_preset_is_the_usual_recipe():
    config = TrainConfig(**PRESETS["standard"])
    assert (config.epochs, config.batch_size, config.learning_rate) == (200, 128, 0.1)
    assert (config.weight_decay, config.warmup_epochs, config.schedule) == (5e-4, 5.0, "cosine")


def test_train_evaluate_and_resume(tiny_data, capsys):
    assert cli.main(["train", *TINY, "--name", "first"]) == 0
    output = capsys.readouterr().out
    last = output.strip().splitlines()[-1]
    accuracy = last_record("runs/first")["test_accuracy"]
    assert last == f"test accuracy {100 * accuracy:.2f} %" and "images/s" in output and "synthetic" in output
    assert cli.main(["evaluate", "runs/first"]) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1] == last
    assert cli.main(["train", "--resume", "runs/first"]) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1] == last


def test_the_word_synthetic_is_for_that_set_alone(tiny_data, capsys, monkeypatch):
    real = dataclasses.replace(tiny_cifar(), source="cifar10")
    monkeypatch.setattr(engine_run, "load_cifar", lambda *args: real)
    assert cli.main(["train", *TINY]) == 0
    captured = capsys.readouterr()
    assert "synthetic" not in (captured.out + captured.err).lower()


def test_names_that_are_not_given_do_not_collide(tiny_data, capsys):
    for name in ("resnet8-mrla-light-cifar10-seed0", "resnet8-mrla-light-cifar10-seed0-2"):
        assert cli.main(["train", *TINY]) == 0
        assert (tiny_data / "runs" / name / "checkpoint.pt").exists()


def test_a_run_goes_on_for_longer(tiny_data, capsys):
    epochs = ["--depth", "8", "--width", "4", "--batch-size", "16", "--device", "cpu", "--epochs"]
    assert cli.main(["train", *epochs, "1", "--name", "first"]) == 0
    assert cli.main(["train", "--resume", "runs/first", "--epochs", "3"]) == 0
    assert "begun for 1 epoch and goes on to 3 epochs" in capsys.readouterr().out
    assert last_record("runs/first")["epoch"] == 3 and engine.read_config("runs/first").epochs == 3
    assert cli.main(["train", "--resume", "runs/first"]) == 0
    assert "runs/first had ended" in capsys.readouterr().out.replace("\\", "/")
    assert cli.main(["train", "--resume", "runs/first", "--epochs", "2"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "begun for 18 steps" in captured.err and captured.err.count("\n") == 1
    assert last_record("runs/first")["epoch"] == 3


def test_what_is_said_before_a_run_goes_on_is_true_of_steps_too(tiny_data, capsys):
    tiny = ["--depth", "8", "--width", "4", "--batch-size", "16", "--device", "cpu", "--steps", "2"]
    assert cli.main(["train", *tiny, "--name", "first"]) == 0
    capsys.readouterr()
    for changes, words in ((["--epochs", "6"], "epochs has no effect on"),
                           (["--depth", "14"], "depth: stored 8"), (["--steps", "1"], "not end after 1")):
        assert cli.main(["train", "--resume", "runs/first", *changes]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and words in captured.err and captured.err.count("\n") == 1
    assert cli.main(["train", "--resume", "runs/first"]) == 0
    assert "--steps MORE goes on with it" in capsys.readouterr().out
    assert cli.main(["train", "--resume", "runs/first", "--steps", "3"]) == 0
    assert "begun for 2 steps and goes on to 3 steps" in capsys.readouterr().out


def test_a_run_folder_can_lie_anywhere(tiny_data, capsys):
    assert cli.main(["train", *TINY, "--out", "far/away"]) == 0
    assert (tiny_data / "far" / "away" / "checkpoint.pt").exists() and not (tiny_data / "runs").exists()
    assert cli.main(["train", *TINY, "--out", "far/away"]) == 2
    assert "far/away holds a run already" in capsys.readouterr().err.replace("\\", "/")
    assert cli.main(["train", "--resume", "far/away"]) == 0


@pytest.mark.parametrize("options, words", [
    (["--depth", "21"], ["depth", "6n + 2", "21"]), (["--batch-size", "0"], ["batch_size", "0", "positive"]),
    (["--dataset", "mnist"], ["dataset", "mnist", "cifar10"]),
    (["--layer-attention", "mrla"], ["layer_attention", "mrla-light", "'mrla'"]),
    (["--colour", "red"], ["--colour"]), (["--epochs", "two"], ["epochs", "two"]),
    (["--preset", "slow"], ["quick", "slow"]), (["--checkpoint-seconds", "nan"], ["positive", "nan"]),
    (["--resume", "runs/none"], ["runs/none", "config.json"]), (["--resume", ""], ["--resume", "empty"]),
    (["--resume", "x", "--name", "y"], ["--resume", "--name"]), (["--resume", "x", "--out", "y"], ["--out"]),
    (["--out", "x", "--name", "y"], ["--out", "--name"]), (["--out", ""], ["--out", "empty"]),
    (["--shortcut", "zero"], ["shortcut", "'pad'", "zero"]), (["--seed", "-1"], ["seed", "0 to", "-1"]),
    *[(["--name", name], ["--name", "one folder"])
      for name in ("", ".", "..", "../out", "a/b", "a\\b", "a\0b", "a\nb")],
    *[([flag, "9" * digits], [flag, "999"]) for flag in ("--steps", "--seed") for digits in (400, 5000)],
])
def test_bad_input_is_one_line_and_status_2(tiny_data, capsys, options, words):
    status = cli.main(["train", *options])
    captured = capsys.readouterr()
    assert status == 2 and captured.out == "" and captured.err.count("\n") == 1 and len(captured.err) < 500
    for word in words:
        assert word in captured.err.replace("\\", "/")
    assert not list(tiny_data.rglob("*.lock")) and not list(tiny_data.glob("runs/*"))   # nothing stays behind


def test_resuming_with_other_options_names_what_differs(tiny_data, capsys):
    assert cli.main(["train", *TINY, "--name", "first"]) == 0
    capsys.readouterr()
    assert cli.main(["train", "--resume", "runs/first", "--learning-rate", "0.3"]) == 2
    assert "learning_rate: stored 0.1, given 0.3" in capsys.readouterr().err
    assert cli.main(["train", *TINY, "--name", "first"]) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_training_images_are_no_validation_split(tiny_data, capsys):
    assert cli.main(["train", *TINY, "--name", "first"]) == 0
    capsys.readouterr()
    assert cli.main(["evaluate", "runs/first", "--split", "validation"]) == 2
    assert "none was held out" in capsys.readouterr().err


def test_a_diverged_run_exits_with_status_1(tiny_data, capsys):
    assert cli.main(["train", *TINY, "--steps", "30", "--learning-rate", "1e20", "--warmup-epochs", "0"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "step 2 of 30, learning rate 9.973e+19" in error and "checkpoint.pt" in error


@pytest.mark.parametrize("content", [None, b"junk"])
def test_evaluate_names_what_is_no_checkpoint(tiny_data, capsys, content):
    if content is not None:
        Path("thing.pt").write_bytes(content)
    assert cli.main(["evaluate", "thing.pt"]) == 2
    error = capsys.readouterr().err
    assert "thing.pt" in error and "checkpoint" in error and len(error.strip().splitlines()) == 1


def test_evaluate_of_a_checkpoint_of_another_model(tiny_data, capsys):
    assert cli.main(["train", *TINY, "--name", "first"]) == 0
    state = read_checkpoint("runs/first")
    state["config"]["depth"] = 14
    torch.save(state, "other.pt")
    capsys.readouterr()
    assert cli.main(["evaluate", "other.pt"]) == 2
    assert "other.pt holds the weights of another model" in capsys.readouterr().err


def test_evaluate_on_the_held_out_split(tiny_data, capsys):
    assert cli.main(["train", *TINY, "--name", "first", "--validation"]) == 0
    accuracy = last_record("runs/first")["validation_accuracy"]
    capsys.readouterr()
    assert cli.main(["evaluate", "runs/first", "--split", "validation"]) == 0
    assert capsys.readouterr().out.strip().endswith(f"validation accuracy {100 * accuracy:.2f} %")


def test_a_folder_that_cannot_be_written_is_named(tiny_data, capsys):
    Path("runs").write_text("a file where the folder of runs should be")
    assert cli.main(["train", *TINY, "--name", "first"]) == 2
    error = capsys.readouterr().err
    assert "runs" in error and len(error.strip().splitlines()) == 1


def test_a_plan_on_the_command_line(tiny_data, capsys, monkeypatch):
    recipe = {"depth": 8, "width": 4, "batch_size": 16, "steps": 3, "device": "cpu"}
    tiny = evidence.Suite("tiny", {"plain": {"layer_attention": None}}, recipe)
    monkeypatch.setitem(evidence.SUITES, "tiny", tiny)
    assert cli.main(["compare", "--suite", "tiny", "--plan", "--seeds", "0", "1", "--quiet"]) == 0
    assert "2 runs left" in capsys.readouterr().out
    assert cli.main(["compare", "--suite", "tiny", "--plan", "--report"]) == 2
    assert "--plan" in capsys.readouterr().err


def test_cost_prints_its_tables(capsys, monkeypatch):
    assert cli.main(["cost", "--layer-attention", "mrla-light", "--depth", "8", "--width", "4"]) == 0
    assert "ResNet-8" in (text := capsys.readouterr().out) and "mrla-light" in text
    vit = ["--model", "vit", "--depth", "2", "--dim", "16", "--heads", "2", "--patch", "8"]
    assert cli.main(["cost", "--layer-attention", "mrla-base", *vit]) == 0
    assert "ViT-2 for 32 x 32 images, dim 16" in capsys.readouterr().out
    monkeypatch.setattr(cost_tables, "paper_text", lambda: "the paper's rows")
    assert cli.main(["cost", "--paper"]) == 0
    assert capsys.readouterr().out == "the paper's rows\n"
    for option in (["--depth", "56"], ["--model", "vit"], ["--measure"], ["--layer-attention", "mrla-base"]):
        assert cli.main(["cost", "--paper", *option]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith(f"mrla: {option[0]} does not go with --paper") and not captured.out


def test_a_home_that_is_none_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["fetch", "cifar10", "--data-root", "~nobody-of-this-name/x"]) == 2
    error = capsys.readouterr().err
    assert "~nobody-of-this-name/x" in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_fetch_offline_says_how_to_get_the_data(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MRLA_OFFLINE", "1")
    assert cli.main(["fetch", "cifar10", "--data-root", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "MRLA_OFFLINE" in error and len(error.strip().splitlines()) == 1
