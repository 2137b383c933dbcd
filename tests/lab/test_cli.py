import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny_cifar

from mrla_minimal.lab import cli, data, engine, evidence
from mrla_minimal.lab.cli_train import config_of
from mrla_minimal.lab.engine import PRESETS, TrainConfig, read_checkpoint
from mrla_minimal.lab.engine import run as engine_run

PATHS = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, PATHS))}
TINY = ["--depth", "8", "--width", "4", "--steps", "3", "--batch-size", "16", "--device", "cpu"]


@pytest.fixture
def tiny_data(monkeypatch, tmp_path):
    monkeypatch.setattr(engine_run, "load_cifar", tiny_cifar)
    monkeypatch.setattr(data, "load_cifar", tiny_cifar)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parse(*options):
    return config_of(cli.build_parser().parse_args(["train", *options]))


def test_every_field_is_an_option_and_the_presets_give_defaults():
    assert parse() == TrainConfig() and parse("--preset", "standard") == TrainConfig(**PRESETS["standard"])
    assert parse("--preset", "standard", "--epochs", "3").epochs == 3
    values = {str: "x", int: "3", float: "0.25", int | None: "7", str | None: "x"}
    for field in dataclasses.fields(TrainConfig):
        flag = "--" + field.name.replace("_", "-")
        if field.type is bool:
            assert getattr(parse(flag), field.name) is True and getattr(parse("--no-" + flag[2:]), field.name) is False
            continue
        choices = [choice for choice in field.metadata["choices"] or () if choice is not None]
        if field.name == "device":
            choices = ["cpu"]
        text = choices[-1] if choices else values[field.type]
        expected = text if choices or field.type in (str, str | None) else float(text) if field.type is float else int(text)
        assert getattr(parse(flag, text), field.name) == expected, field.name
    assert parse("--layer-attention", "none").layer_attention is None and parse("--head-dim", "none").head_dim is None


def test_the_standard_preset_is_the_usual_recipe():
    config = TrainConfig(**PRESETS["standard"])
    assert (config.epochs, config.batch_size, config.learning_rate, config.weight_decay, config.warmup_epochs, config.schedule) == \
        (200, 128, 0.1, 5e-4, 5.0, "cosine")


def test_train_evaluate_and_resume(tiny_data, capsys):
    assert cli.main(["train", *TINY, "--name", "first"]) == 0
    output = capsys.readouterr().out
    last = output.strip().splitlines()[-1]
    accuracy = json.loads((tiny_data / "runs" / "first" / "metrics.jsonl").read_text().splitlines()[-1])["test_accuracy"]
    assert last == f"test accuracy {100 * accuracy:.2f} %" and "images/s" in output and "synthetic" in output
    assert cli.main(["evaluate", "runs/first"]) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1] == last
    assert cli.main(["train", "--resume", "runs/first"]) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1] == last


def test_the_word_synthetic_is_for_that_set_alone(tiny_data, capsys, monkeypatch):
    monkeypatch.setattr(engine_run, "load_cifar", lambda *args: dataclasses.replace(tiny_cifar(), source="cifar10"))
    assert cli.main(["train", *TINY]) == 0
    captured = capsys.readouterr()
    assert "synthetic" not in (captured.out + captured.err).lower()


def test_names_that_are_not_given_do_not_collide(tiny_data, capsys):
    for name in ("resnet8-mrla-light-cifar10-seed0", "resnet8-mrla-light-cifar10-seed0-2"):
        assert cli.main(["train", *TINY]) == 0
        assert (tiny_data / "runs" / name / "checkpoint.pt").exists()


@pytest.mark.parametrize("options, words", [
    (["--depth", "21"], ["depth", "6n + 2", "21"]), (["--batch-size", "0"], ["batch_size", "0", "positive"]),
    (["--dataset", "mnist"], ["dataset", "mnist", "cifar10"]), (["--layer-attention", "mrla"], ["layer_attention", "mrla-light", "'mrla'"]),
    (["--colour", "red"], ["--colour"]), (["--epochs", "two"], ["epochs", "two"]), (["--preset", "slow"], ["quick", "slow"]),
    (["--resume", "runs/none"], ["runs/none", "config.json"]), (["--resume", "x", "--name", "y"], ["--resume", "--name"]),
    (["--shortcut", "zero"], ["shortcut", "'pad'", "zero"]), (["--resume", ""], ["--resume", "empty"]),
    (["--name", "../out"], ["--name", "../out"]), (["--name", ""], ["--name", "''"]),
    (["--checkpoint-seconds", "nan"], ["positive", "nan"]),
])
def test_bad_input_is_one_line_and_status_2(tiny_data, capsys, options, words):
    try:
        status = cli.main(["train", *options])
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    assert status == 2 and captured.out == "" and len(captured.err.strip().splitlines()) == 1
    for word in words:
        assert word in captured.err.replace("\\", "/")
    assert not list(tiny_data.rglob("*.lock")) and not list(tiny_data.glob("runs/*"))       # nothing is left behind


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
    record = json.loads((tiny_data / "runs" / "first" / "metrics.jsonl").read_text().splitlines()[-1])
    capsys.readouterr()
    assert cli.main(["evaluate", "runs/first", "--split", "validation"]) == 0
    assert capsys.readouterr().out.strip().endswith(f"validation accuracy {100 * record['validation_accuracy']:.2f} %")


def test_a_folder_that_cannot_be_written_is_named(tiny_data, capsys):
    Path("runs").write_text("a file where the folder of runs should be")
    assert cli.main(["train", *TINY, "--name", "first"]) == 2
    error = capsys.readouterr().err
    assert "runs" in error and len(error.strip().splitlines()) == 1


class NoCompiler(RuntimeError):
    __module__ = "torch._inductor.exc"


@pytest.mark.parametrize("error, words", [
    (torch.cuda.OutOfMemoryError("CUDA out of memory.\nMore about it."), "CUDA out of memory.). A smaller batch, width or depth"),
    (NoCompiler("no compiler\nand more"), "torch.compile failed (no compiler); leave --compile out"),
])
def test_what_the_machine_lacks_is_one_line_and_status_1(tiny_data, capsys, monkeypatch, error, words):
    def lacking(config, *_, **__):
        raise error

    monkeypatch.setattr(engine, "train", lacking)
    assert cli.main(["train"]) == 1
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.count("\n") == 1


def test_a_bug_keeps_its_traceback(tiny_data, monkeypatch):
    def wrong(config, *_, **__):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(engine, "train", wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        cli.main(["train"])


def test_a_plan_on_the_command_line(tiny_data, capsys, monkeypatch):
    monkeypatch.setitem(evidence.SUITES, "tiny", evidence.Suite(
        "tiny", {"plain": {"layer_attention": None}}, {"depth": 8, "width": 4, "batch_size": 16, "steps": 3, "device": "cpu"}))
    assert cli.main(["compare", "--suite", "tiny", "--plan", "--seeds", "0", "1", "--quiet"]) == 0
    assert "2 runs left" in capsys.readouterr().out
    assert cli.main(["compare", "--suite", "tiny", "--plan", "--report"]) == 2
    assert "--plan" in capsys.readouterr().err


def test_cost_prints_its_tables(capsys):
    assert cli.main(["cost", "--layer-attention", "mrla-light", "--depth", "8", "--width", "4"]) == 0
    assert "ResNet-8" in (text := capsys.readouterr().out) and "mrla-light" in text
    assert cli.main(["cost", "--paper"]) == 0
    assert "+ MRLA-light" in capsys.readouterr().out


def test_fetch_offline_says_how_to_get_the_data(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MRLA_OFFLINE", "1")
    assert cli.main(["fetch", "cifar10", "--data-root", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "MRLA_OFFLINE" in error and len(error.strip().splitlines()) == 1


def test_the_module_and_the_script_are_one_program(tmp_path):
    command = [sys.executable, "-m", "mrla_minimal", "--version"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("mrla-minimal ")


def test_a_bare_machine_can_train(tmp_path):
    """torch, numpy, einops, tqdm (and filelock, which torch itself needs) are enough: nothing else is imported before the end."""
    script = "import sys; import mrla_minimal.lab.engine.training, mrla_minimal.lab.cli; " \
             "print([m for m in ('matplotlib', 'scipy', 'PIL', 'requests', 'platformdirs', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
