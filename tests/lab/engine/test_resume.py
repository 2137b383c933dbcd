import dataclasses
import functools
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch
from kill_and_resume import main as kill_and_resume
from kill_and_resume import same
from tiny import tiny_cifar, tiny_config, tiny_train

from mrla_minimal.lab.engine import (
    Run,
    TrainingInterrupted,
    learning_rate_at,
    read_checkpoint,
    read_config,
    run,
)
from mrla_minimal.lab.engine.config import OPTIMIZERS
from mrla_minimal.lab.files import read_records

needs_sigkill = pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no signals to processes")


def _interrupt_after(monkeypatch, steps, number=signal.SIGINT):
    original = Run.train_step

    def train_step(run):
        original(run)
        if run.step == steps:
            signal.raise_signal(number)

    monkeypatch.setattr(Run, "train_step", train_step)


@pytest.mark.parametrize("stop_at, number", [(2, signal.SIGINT), (6, signal.SIGTERM), (8, signal.SIGINT)])
def test_a_signal_saves_and_a_resumed_run_is_bitwise_the_same(tmp_path, monkeypatch, stop_at, number):
    config = tiny_config(layer_attention="mrla-light")
    tiny_train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        _interrupt_after(patch, stop_at, number)
        with pytest.raises(TrainingInterrupted, match=f"step {stop_at} of 12.*--resume"):
            tiny_train(config, tmp_path / "parts")
    tiny_train(config, tmp_path / "parts", resume=True)
    assert same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimiser_goes_on_bitwise_with_all_that_it_remembers(tmp_path, monkeypatch, optimizer):
    config = tiny_config(layer_attention="mrla-light", optimizer=optimizer, learning_rate=0.01)
    result = tiny_train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        _interrupt_after(patch, 8)
        with pytest.raises(TrainingInterrupted):
            tiny_train(config, tmp_path / "parts")
    tiny_train(config, tmp_path / "parts", resume=True)
    assert same(tmp_path / "whole", tmp_path / "parts")
    assert tiny_train(config, tmp_path / "whole", resume=True).metrics == result.metrics     # it had ended
    memories = [read_checkpoint(tmp_path / name)["optimizer"]["state"] for name in ("whole", "parts")]
    assert len(memories[0]) == len(memories[1]) > 10 and [memory.keys() for memory in memories[0].values()] \
        == [memory.keys() for memory in memories[1].values()]


@pytest.mark.parametrize("name, value, complaint", [
    ("exp_avg", None, "exp_avg of parameter 0 must be .* finite numbers, not None"),
    ("exp_avg", math.nan, "exp_avg of parameter 0"),
    ("exp_avg_sq", -1.0, "exp_avg_sq of parameter 0 must be .* finite numbers from 0 on"),
    ("step", 2.0, "the steps of parameter 0 must be .* not 2.0"),
    ("step", torch.tensor(2.5), "the steps of parameter 0 must be .* an integer from 0 to 3"),
    ("step", torch.tensor(4.0), "an integer from 0 to 3"),
    ("step", torch.tensor(math.nan), "an integer from 0 to 3"),
])
def test_what_adamw_remembers_is_checked(tmp_path, name, value, complaint):
    config = tiny_config(optimizer="adamw", steps=3, layer_attention=None)
    tiny_train(config, tmp_path / "run")
    state = read_checkpoint(tmp_path / "run")
    memory = state["optimizer"]["state"][0]
    filled = isinstance(value, float) and name != "step"
    memory[name] = torch.full_like(memory[name], value) if filled else value
    torch.save(state, tmp_path / "run" / "checkpoint.pt")
    with pytest.raises(ValueError, match=f"checkpoint.pt is damaged: .*{complaint}"):
        tiny_train(config, tmp_path / "run", resume=True)


@pytest.mark.parametrize("name", ["resume", "trust"])
@pytest.mark.parametrize("value", ["no", 1, None])
def test_whether_to_go_on_and_to_trust_are_true_or_false(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name} must be True or False, not {value!r}"):
        tiny_train(tiny_config(), tmp_path / "run", **{name: value})
    assert not (tmp_path / "run").exists()


def test_lines_written_after_the_checkpoint_are_cut(tmp_path, monkeypatch):
    config = tiny_config()
    tiny_train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        _interrupt_after(patch, 8)
        with pytest.raises(TrainingInterrupted):
            tiny_train(config, tmp_path / "parts")
    for name, line in (("metrics.jsonl", '{"epoch": 2, "step": 12, "train_loss": 9.0}'),
                       ("timing.jsonl", '{"step": 12, "training_seconds": 9.0}')):
        with open(tmp_path / "parts" / name, "a") as file:
            file.write(line + '\n{"epoch": 3, "st')
    tiny_train(config, tmp_path / "parts", resume=True)
    assert same(tmp_path / "whole", tmp_path / "parts")
    timed, complaints = read_records(tmp_path / "parts" / "timing.jsonl")
    assert [record["step"] for record in timed] == [6, 12] and not complaints
    assert timed[1]["training_seconds"] != 9.0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_interrupts_at_once(tmp_path, monkeypatch, number):
    """So in the middle of a step, and without a checkpoint of it."""
    original, reached = Run.batch, []

    def batch(run):
        if run.step == 3:
            signal.raise_signal(signal.SIGINT)
            reached.append("after the first")
            signal.raise_signal(number)
            reached.append("after the second")
        return original(run)

    monkeypatch.setattr(Run, "batch", batch)
    with pytest.raises(KeyboardInterrupt) as interrupt:
        tiny_train(tiny_config(), tmp_path / "run")
    assert interrupt.type is KeyboardInterrupt and reached == ["after the first"]
    assert read_checkpoint(tmp_path / "run")["step"] == 0


def test_the_handlers_of_signals_are_put_back(tmp_path):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    tiny_train(tiny_config(epochs=1), tmp_path / "run")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


@needs_sigkill
def test_a_killed_run_resumes_bitwise():
    assert kill_and_resume(1) == 0


@needs_sigkill
@pytest.mark.slow
def test_ten_kills_ten_equal():
    assert kill_and_resume(10, seed=1) == 0


@needs_sigkill
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_a_process_of_its_own(tmp_path, number):
    script = Path(tiny.__file__)
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path / "run"), "--pause", "0.2"],
                               stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "run" / "checkpoint.pt").exists():
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and f"mrla train --resume {tmp_path / 'run'}" in output


def test_a_finished_run_is_not_overwritten_and_resuming_it_gives_its_result(tmp_path):
    result = tiny_train(tiny_config(), tmp_path / "run")
    with pytest.raises(ValueError, match="holds a run already"):
        tiny_train(tiny_config(), tmp_path / "run")
    again = tiny_train(tiny_config(), tmp_path / "run", resume=True)
    assert (again.metrics, again.test_accuracy) == (result.metrics, result.test_accuracy)


def test_resuming_with_another_configuration_names_the_fields(tmp_path):
    tiny_train(tiny_config(), tmp_path / "run")
    with pytest.raises(ValueError, match="width: stored 4, given 8; learning_rate: stored 0.1, given 0.2"):
        tiny_train(tiny_config(width=8, learning_rate=0.2), tmp_path / "run", resume=True)


def test_a_checkpoint_of_another_run_is_not_resumed(tmp_path):
    tiny_train(tiny_config(seed=1), tmp_path / "one")
    tiny_train(tiny_config(), tmp_path / "two")
    shutil.copy(tmp_path / "one" / "checkpoint.pt", tmp_path / "two" / "checkpoint.pt")
    with pytest.raises(ValueError, match="is of another run: seed: stored 1, given 0"):
        tiny_train(tiny_config(), tmp_path / "two", resume=True)


def test_resuming_on_other_images_is_refused(tmp_path):
    tiny_train(tiny_config(), tmp_path / "run")
    with pytest.raises(ValueError, match="other images"):
        others = dataclasses.replace(tiny_cifar(), fingerprint="other")
        tiny_train(tiny_config(), tmp_path / "run", resume=True, data=others)


def test_resuming_with_another_thread_count_is_said(tmp_path, capsys):
    tiny_train(tiny_config(), tmp_path / "run")
    torch.set_num_threads(2)
    tiny_train(tiny_config(), tmp_path / "run", resume=True)
    assert "1 threads, here are 2" in capsys.readouterr().out


def test_a_finished_run_goes_on_for_more_epochs(tmp_path):
    """As it would have been with the new length, but for the rates of the steps that were done."""
    first = tiny_train(tiny_config(epochs=1, augment="on"), tmp_path / "run")
    longer = tiny_train(tiny_config(epochs=3, augment="on"), tmp_path / "run", resume=True)
    assert [record["epoch"] for record in longer.metrics] == [1, 2, 3]
    assert longer.metrics[0] == first.metrics[0]
    assert read_records(tmp_path / "run" / "metrics.jsonl")[0] == longer.metrics
    assert read_config(tmp_path / "run") == tiny_config(epochs=3, augment="on")
    rates = [record["learning_rate"] for record in longer.metrics[1:]]
    assert rates == [learning_rate_at(tiny_config(epochs=3), step, 6, 18) for step in (11, 17)]
    assert tiny_train(read_config(tmp_path / "run"), tmp_path / "run", resume=True).metrics == longer.metrics


def test_an_interrupted_run_goes_on_for_more_steps(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        _interrupt_after(patch, 2)
        with pytest.raises(TrainingInterrupted):
            tiny_train(tiny_config(steps=4), tmp_path / "run")
    result = tiny_train(tiny_config(steps=8), tmp_path / "run", resume=True)
    assert [record["step"] for record in result.metrics] == [6, 8]
    longer = tiny_train(tiny_config(steps=None, epochs=2), tmp_path / "run", resume=True)
    assert [record["step"] for record in longer.metrics] == [6, 8, 12]
    assert len(longer.metrics[-1]["train_loss_parts"]) == 4         # the steps that no record held yet


def test_a_run_that_is_stopped_while_it_goes_on_longer_still_does(tmp_path, monkeypatch):
    tiny_train(tiny_config(epochs=1), tmp_path / "run")
    with monkeypatch.context() as patch:
        _interrupt_after(patch, 8)
        with pytest.raises(TrainingInterrupted, match="step 8 of 12"):
            tiny_train(tiny_config(epochs=2), tmp_path / "run", resume=True)
    assert tiny_train(read_config(tmp_path / "run"), tmp_path / "run", resume=True).metrics[-1]["step"] == 12


@pytest.mark.parametrize("changes, complaint", [
    ({"epochs": 1}, "was begun for 12 steps: it can go on for more, not end after 6"),
    ({"steps": 3}, "was begun for 12 steps: it can go on for more, not end after 3"),
])
def test_a_run_does_not_become_shorter(tmp_path, changes, complaint):
    tiny_train(tiny_config(), tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(ValueError, match=complaint):
        tiny_train(tiny_config(**changes), tmp_path / "run", resume=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_epochs_that_would_have_no_effect_are_refused(tmp_path):
    tiny_train(tiny_config(steps=3), tmp_path / "run")
    with pytest.raises(ValueError, match="epochs has no effect on .*run, which counts steps .3."):
        tiny_train(tiny_config(steps=3, epochs=9), tmp_path / "run", resume=True)


@pytest.fixture
def roots(monkeypatch):
    """The folders that load_cifar was asked to look in, one after the other."""
    monkeypatch.delenv("MRLA_DATA", raising=False)
    asked = []

    def load(name, root, source):
        asked.append(root)
        return tiny_cifar()

    monkeypatch.setattr(run, "load_cifar", load)
    return asked


def test_a_recorded_folder_of_data_is_used_where_it_is(tmp_path, monkeypatch, roots, capsys):
    here, gone, other = (tmp_path / name for name in ("here", "gone", "other"))
    here.mkdir()
    gone.mkdir()
    for name, folder in (("one", here), ("two", gone)):
        tiny_train(tiny_config(epochs=1, data_root=folder), tmp_path / name, data=None)
    gone.rmdir()
    go_on = functools.partial(tiny_train, data=None, resume=True)
    go_on(read_config(tmp_path / "one"), tmp_path / "one")
    go_on(read_config(tmp_path / "two"), tmp_path / "two")
    assert f"{gone}, is not here" in capsys.readouterr().out
    go_on(dataclasses.replace(read_config(tmp_path / "two"), data_root=str(other)), tmp_path / "two")
    monkeypatch.setenv("MRLA_DATA", str(other))
    go_on(read_config(tmp_path / "one"), tmp_path / "one")
    assert roots == [str(here), str(gone), str(here), None, str(other), None]
    assert read_config(tmp_path / "one").data_root == str(here)
