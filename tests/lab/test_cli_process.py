"""The command line as a process: what it prints where, on any terminal, and the status it ends with."""

import io
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny_cifar

from mrla_minimal.course.checks import coursework
from mrla_minimal.lab import cli, data, doctor, engine
from mrla_minimal.lab.engine import run as engine_run

ROOT = str(Path(__file__).parents[2])
PATHS = filter(None, [ROOT, os.environ.get("PYTHONPATH")])
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS), "PYTHONUNBUFFERED": ""}
TINY = ["--depth", "8", "--width", "4", "--steps", "3", "--batch-size", "16", "--device", "cpu"]
OWN = """from torch import nn


class Forgetful(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.scale = nn.BatchNorm2d(channels)

    def forward(self, x, memory=None):
        return self.scale(x), None      # what stands in the memory is never read
"""


@pytest.fixture
def tiny_data(monkeypatch, tmp_path):
    monkeypatch.setattr(engine_run, "load_cifar", tiny_cifar)
    monkeypatch.setattr(data, "load_cifar", tiny_cifar)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(*arguments, folder, **options):
    command = [sys.executable, "-m", "mrla_minimal", *arguments]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, text=True, stderr=subprocess.PIPE, **options)


def test_the_module_and_the_script_are_one_program(tmp_path):
    done = start("--version", folder=tmp_path, stdout=subprocess.PIPE)
    assert done.returncode == 0 and done.stdout.startswith("mrla-minimal ")


def test_files_named_like_pythons_own_modules_stand_in_for_none(tmp_path):
    for name in sys.stdlib_module_names:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('the {name}.py here was run')\n")
    done = start("cost", "--layer-attention", "mrla-light", folder=tmp_path, stdout=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, "") and "mrla-light" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps a folder that a process works in")
def test_a_working_directory_that_is_gone_is_one_line(tmp_path):
    script = "import os, sys; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone'); " \
             "os.execv(sys.executable, [sys.executable, '-m', 'mrla_minimal', 'runs'])"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, text=True, capture_output=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "mrla: the working directory is gone: change to one that exists\n"


@pytest.mark.skipif(sys.platform == "win32", reason="on Windows a closed pipe is another error")
def test_a_reader_that_went_away_ends_it_quietly(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    done = start("runs", folder=tmp_path, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_output_to_a_full_disk_is_one_line_that_names_it(tmp_path, options):
    with open("/dev/full", "w") as full:
        done = start("runs", *options, folder=tmp_path, stdout=full)
    told = "mrla: standard output: No space left on device\n"
    assert done.returncode == 2 and done.stderr.endswith(told)


def test_a_terminal_without_a_letter_costs_no_result(tiny_data, monkeypatch):
    bytes_out, bytes_err = io.BytesIO(), io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(bytes_out, encoding="ascii"))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(bytes_err, encoding="ascii"))
    assert cli.main(["train", *TINY, "--name", "größe"]) == 0
    assert cli.main(["evaluate", "runs/größe"]) == 0
    assert cli.main(["runs"]) == 0
    assert cli.main(["evaluate", "runs/größer"]) == 2
    output = bytes_out.getvalue().decode("ascii")
    assert output.count("test accuracy") == 2 and "gr\\xf6\\xdfe  " in output
    assert bytes_err.getvalue().decode("ascii").splitlines()[-1].startswith("mrla: runs/gr\\xf6\\xdfer")


def test_every_example_in_the_help_is_a_command_that_parses():
    parser = cli.build_parser()
    (commands,) = [action for action in parser._actions if hasattr(action, "choices") and action.choices]
    for name, command in commands.choices.items():
        examples = [line for line in (command.epilog or "").splitlines() if line.startswith("  mrla ")]
        assert len(examples) >= 2 or name in {"compare", "suite"}, name
        for example in examples:
            assert parser.parse_args(shlex.split(example)[1:]).command == name


def json_of(capsys, *arguments, status=0):
    """The record that a command prints with --json: all of its stdout."""
    capsys.readouterr()
    assert cli.main([*arguments, "--json"]) == status
    output = capsys.readouterr().out
    record = json.loads(output)
    assert isinstance(record, dict) and output.count("\n") == 1
    return record


def test_json_is_all_that_stands_on_stdout(tiny_data, capsys, monkeypatch):
    trained = json_of(capsys, "train", *TINY, "--name", "first")
    assert trained["run"] == str(Path("runs/first")) and trained["source"] == "synthetic"
    assert trained["step"] == 3
    evaluated = json_of(capsys, "evaluate", "runs/first")
    assert evaluated["accuracy"] == trained["test_accuracy"] and evaluated["loss"] == trained["test_loss"]
    assert (evaluated["split"], evaluated["images"]) == ("test", 40)
    assert evaluated["model"] == "ResNet-8 + mrla-light"

    listed = json_of(capsys, "runs")
    assert [run["run"] for run in listed["runs"]] == ["first"] and listed["runs"][0]["finished"] is True
    costs = json_of(capsys, "cost", "--layer-attention", "mrla-light", "--depth", "8", "--width", "4")
    plain, light = costs["models"]
    assert (plain["name"], light["name"]) == ("plain", "mrla-light")
    assert light["parameters"] == plain["parameters"] + light["extra_parameters"] == trained["parameters"]
    monkeypatch.setattr(doctor, "examine", lambda: iter([("OK", "Python"), ("FAIL", "no room")]))
    checks = json_of(capsys, "doctor", status=1)
    assert checks["ready"] is False
    assert checks["checks"] == [{"status": "OK", "text": "Python"}, {"status": "FAIL", "text": "no room"}]
    Path("own.py").write_text(OWN)
    monkeypatch.setattr(coursework, "QUESTIONS", ())
    graded = json_of(capsys, "check", "own.py", status=1)
    assert graded["passed"] is False
    assert {check["passed"] for check in graded["checks"]} == {True, False, None}


def test_a_fault_leaves_stdout_empty_for_json_too(tiny_data, capsys):
    assert cli.main(["evaluate", "runs/none", "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1


def test_quiet_prints_the_result_alone(tiny_data, capsys):
    assert cli.main(["train", *TINY, "--name", "first", "--quiet"]) == 0
    captured = capsys.readouterr()
    first, last = captured.out.splitlines()
    assert "no CIFAR accuracy" in first and last.startswith("test accuracy ") and captured.err == ""
    assert cli.main(["evaluate", "runs/first", "--quiet"]) == 0
    assert capsys.readouterr() == (last + "\n", "")
    assert cli.main(["evaluate", "runs/first"]) == 0
    captured = capsys.readouterr()
    assert captured.out.endswith(last + "\n") and "evaluating" in captured.err


def test_fetch_can_be_quiet_but_not_about_what_is_wrong(tmp_path, capsys, monkeypatch):
    def noisy(name, root):
        print("getting about 170 MB")
        print("100%", file=sys.stderr)
        if root is None:
            raise ValueError("no source gave the file")
        return Path(root)

    monkeypatch.setattr(data, "fetch_cifar", noisy)
    assert cli.main(["fetch", "cifar10", "--data-root", "there", "--quiet"]) == 0
    assert capsys.readouterr() == ("cifar10: there\n", "")
    assert cli.main(["fetch", "cifar10", "--quiet"]) == 2
    assert capsys.readouterr() == ("", "mrla: no source gave the file\n")


class NoCompiler(RuntimeError):
    __module__ = "torch._inductor.exc"


def lack_of_memory():
    torch.empty(2**60)


def more_than_can_be_counted():
    torch.empty(2**62, 2**40)


def fails_with(error):
    def failing():
        raise error

    return failing


@pytest.mark.parametrize("failing, words", [
    (fails_with(torch.cuda.OutOfMemoryError("CUDA is full.\nMore.")), "out of memory (CUDA is full.)"),
    (fails_with(RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)")), "out of memory (MPS"),
    (fails_with(MemoryError()), "out of memory (MemoryError). A smaller batch, width or depth"),
    (lack_of_memory, "A smaller batch, width or depth needs less"),
    (more_than_can_be_counted, "A smaller batch, width or depth needs less"),
    (fails_with(NoCompiler("none\nand more")), "torch.compile failed (none); leave --compile out"),
    (fails_with(RuntimeError("torch.compile is not supported on Python 3.99+")), "leave --compile out"),
])
def test_what_the_machine_lacks_is_one_line_and_status_1(tiny_data, capsys, monkeypatch, failing, words):
    monkeypatch.setattr(engine, "train", lambda *_, **__: failing())
    assert cli.main(["train"]) == 1
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.count("\n") == 1


def test_a_bug_keeps_its_traceback(tiny_data, monkeypatch):
    monkeypatch.setattr(engine, "train", lambda *_, **__: fails_with(RuntimeError("shapes do not match"))())
    with pytest.raises(RuntimeError, match="shapes"):
        cli.main(["train"])


@pytest.mark.parametrize("attention, trust", [("mrla-light", []), ("own.py", ["--trust"])])
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_how_to_go_on(tiny_data, capsys, monkeypatch, number, status, attention,
                                              trust):
    Path("own.py").write_text(OWN)
    batch = engine_run.Run.batch

    def interrupted_batch(run):
        if run.step == 1:
            signal.raise_signal(number)
        return batch(run)

    monkeypatch.setattr(engine_run.Run, "batch", interrupted_batch)
    begin = ["train", *TINY, "--layer-attention", attention, "--name", "first", "--quiet"]
    assert cli.main(begin) == status
    told, how = capsys.readouterr().err.removesuffix("\n").split("; to go on: ")
    assert told == "mrla: interrupted at step 2 of 3"
    assert how == " ".join(["mrla train --resume", shlex.quote(str(Path("runs/first"))), *trust])
    monkeypatch.setattr(engine_run.Run, "batch", batch)
    assert cli.main(shlex.split(how)[1:]) == 0


def test_a_bare_machine_can_train(tmp_path):
    """torch, numpy, einops, tqdm (and filelock, which torch needs) are enough: the rest is for the end."""
    script = ("import sys; import mrla_minimal.lab.engine.training, mrla_minimal.lab.cli; "
              "rest = {'matplotlib', 'scipy', 'platformdirs', 'PIL', 'requests', 'pandas'}; "
              "print(sorted(rest & set(sys.modules)))")
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
