import dataclasses
import errno
import json
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
from tiny import tiny_cifar, tiny_config
from torch.nn import functional as F

from mrla_minimal.lab import files, training
from mrla_minimal.lab.data import hold_out, normalise, plan_epoch, take_batch
from mrla_minimal.lab.device import World, choose_device
from mrla_minimal.lab.engine.training import (
    Run,
    TrainConfig,
    TrainingDiverged,
    build_model,
    build_optimizer,
    evaluate,
    learning_rate_at,
    train,
)

CPU = World(0, 1, torch.device("cpu"))
needs_sigkill = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL or SIGINT for another process")


@pytest.fixture(autouse=True)
def tiny_data(monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(training, "load_cifar", tiny_cifar)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("field, value, allowed", [
    ("dataset", "mnist", "'cifar10', 'cifar100'"), ("layer_attention", "mrla", "'mrla-light'"),
    ("channel_attention", "cbam", "'se', 'eca', none"),
    ("batch_size", 0, "positive integer"), ("epochs", 0, "positive integer"), ("steps", 0, "positive integer or none"),
    ("learning_rate", -0.1, "positive number"), ("learning_rate", math.nan, "positive number"), ("drop_path", 1.0, "below 1"),
    ("label_smoothing", -0.1, "at least 0"), ("schedule", "linear", "'cosine', 'steps'"), ("device", "tpu", "'cuda', 'mps', 'cpu'"),
    ("seed", -1, "0 to"), ("weight_decay", -1.0, "from 0"), ("source", "web", "'real'"),
])
def test_a_wrong_field_is_named_with_what_is_allowed(field, value, allowed):
    with pytest.raises(ValueError) as error:
        TrainConfig(**{field: value})
    assert field in str(error.value) and repr(value) in str(error.value) and allowed in str(error.value)


def test_depth_21_is_refused_before_any_data_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr(training, "load_cifar", lambda *args: pytest.fail("data was loaded"))
    with pytest.raises(ValueError, match="6n \\+ 2.*21"):
        train(tiny_config(depth=21), tmp_path / "run", progress=False)


def test_learning_rate_warms_up_linearly_and_falls_to_zero_by_a_cosine():
    config = TrainConfig(learning_rate=0.4, warmup_epochs=2.0, epochs=10)
    rates = [learning_rate_at(config, step, 5, 50) for step in range(50)]
    assert rates[:10] == pytest.approx([0.04 * (step + 1) for step in range(10)])
    assert rates[10] == pytest.approx(0.4) and rates[30] == pytest.approx(0.2)
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False)) and 0 < rates[-1] < 0.001


def test_step_schedule_divides_by_ten_at_half_and_three_quarters():
    config = TrainConfig(learning_rate=1.0, warmup_epochs=0.0, schedule="steps")
    rates = [learning_rate_at(config, step, 10, 100) for step in (0, 49, 50, 74, 75, 99)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("decay_all", [False, True])
def test_weight_decay_spares_biases_norms_and_lambda_unless_asked(decay_all):
    config = tiny_config(layer_attention="mrla-light", decay_all=decay_all, weight_decay=0.3)
    model = build_model(config, 10)
    decay = {id(p): group["weight_decay"] for group in build_optimizer(config, model).param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        spared = name.endswith(("bias", "lambda_o")) or "norm" in name
        assert decay[id(parameter)] == (0.3 if decay_all or not spared else 0.0), name
    assert len(decay) == len(list(model.parameters()))


def test_the_engine_equals_a_loop_written_out(tmp_path):
    config = tiny_config(drop_path=0.0, label_smoothing=0.1, epochs=1, channels_last=False, augment="on")
    result = train(config, tmp_path / "run", progress=False)
    data = tiny_cifar()
    model = build_model(config, 10)
    optimizer = torch.optim.SGD([{"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 5e-4},
                                 {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0}],
                                lr=1.0, momentum=0.9, nesterov=True)
    plan, losses = plan_epoch(96, 0, 0), []
    model.train()
    for step in range(6):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (step + 1) / 6
        images, labels = take_batch(data.train, plan, 16 * step, 16 * step + 16)
        loss = F.cross_entropy(model(images), labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert result.metrics[0]["train_loss"] == pytest.approx(sum(losses) / 6, abs=1e-6)
    model.eval()
    accuracy = (model(normalise(data.test.images)).argmax(1) == data.test.labels).double().mean().item()
    assert result.test_accuracy == accuracy


def test_the_loss_within_an_epoch_is_kept_as_the_means_of_its_tenths(tmp_path):
    assert training._means_of_parts(list(range(20))) == [0.5 + 2 * part for part in range(10)]
    assert training._means_of_parts([3.0, 5.0, 1.0]) == [3.0, 5.0, 1.0]
    record = train(tiny_config(epochs=1), tmp_path / "run", progress=False).metrics[0]
    assert len(record["train_loss_parts"]) == 6 and sum(record["train_loss_parts"]) / 6 == pytest.approx(record["train_loss"])


def test_it_learns_what_can_be_learnt(tmp_path):
    result = train(tiny_config(epochs=8, layer_attention="mrla-light", drop_path=0.0), tmp_path / "run", progress=False)
    assert result.test_accuracy > 0.5 and result.metrics[-1]["train_loss"] < result.metrics[0]["train_loss"]


def test_the_run_folder_holds_what_is_promised(tmp_path):
    config = tiny_config()
    result = train(config, tmp_path / "run", progress=False)
    names = {path.name for path in (tmp_path / "run").iterdir()} - {".lock"}
    assert names == {"config.json", "metrics.jsonl", "timing.jsonl", "checkpoint.pt", "curves.png"}
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == dataclasses.asdict(config)
    records, complaints = files.read_records(tmp_path / "run" / "metrics.jsonl")
    assert records == result.metrics and not complaints and [record["epoch"] for record in records] == [1, 2]
    assert records[-1]["test_accuracy"] == result.test_accuracy
    assert not any("second" in key for record in records for key in record)
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_validation_trains_on_the_rest_and_opens_the_test_set_once(tmp_path, monkeypatch):
    seen = []
    original = evaluate

    def counted(model, split, *args, **kw):
        seen.append(len(split))
        return original(model, split, *args, **kw)

    monkeypatch.setattr(training, "evaluate", counted)
    result = train(tiny_config(validation=True, epochs=3), tmp_path / "run", progress=False)
    held_out = len(hold_out(tiny_cifar().train)[1])
    assert seen == [held_out] * 3 + [40]
    assert ["test_accuracy" in record for record in result.metrics] == [False, False, True]
    assert result.metrics[0]["step"] == (96 - held_out) // 16


def test_evaluate_counts_every_image_once_whatever_the_batch():
    model, data = build_model(tiny_config(), 10).eval(), tiny_cifar()
    loss, accuracy = evaluate(model, data.test, batch_size=500)
    assert evaluate(model, data.test, batch_size=7) == (pytest.approx(loss, abs=1e-6), accuracy)
    shares = [evaluate(model, data.test, _Rank(rank), batch_size=7) for rank in range(3)]
    assert sum(hits for _, hits in shares) == pytest.approx(accuracy * 40)


class _Rank(World):
    """One of three processes whose sums are not exchanged: its own share of the counts, not divided."""

    def __init__(self, rank):
        super().__init__(rank, 3, torch.device("cpu"))

    def sum(self, tensor):
        return torch.tensor([tensor[0], tensor[1], 1.0])


def test_variants_of_one_seed_share_host_weights_and_data_order():
    runs = [Run(tiny_config(layer_attention=name), CPU) for name in (None, "mrla-light", "mrla-base")]
    host = runs[0].model.state_dict()
    for run in runs[1:]:
        assert all(torch.equal(value, run.model.state_dict()[name]) for name, value in host.items())
    batches = [run.batch() for run in runs]
    assert all(torch.equal(batches[0][0], images) and torch.equal(batches[0][1], labels) for images, labels in batches[1:])
    other = Run(tiny_config(layer_attention=None, seed=1), CPU)
    assert not torch.equal(other.batch()[0], batches[0][0])


def test_images_that_are_seen_once_are_not_augmented_unless_asked():
    plain = take_batch(tiny_cifar().train, plan_epoch(96, 0, 0, augment=False), 0, 16)[0]
    moved = take_batch(tiny_cifar().train, plan_epoch(96, 0, 0), 0, 16)[0]
    for changes, expected in (({"epochs": 1}, plain), ({"epochs": 2}, moved), ({"epochs": 1, "augment": "on"}, moved),
                              ({"epochs": 2, "augment": "off"}, plain), ({"steps": 6}, plain), ({"steps": 7}, moved)):
        assert torch.equal(Run(tiny_config(**changes), CPU).batch()[0], expected), changes


def _interrupt_after(monkeypatch, steps):
    original = Run.train_step

    def train_step(run):
        original(run)
        if run.step == steps:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Run, "train_step", train_step)


@pytest.mark.parametrize("stop_at", [2, 6, 8])
def test_ctrl_c_saves_and_a_resumed_run_is_bitwise_the_same(tmp_path, monkeypatch, stop_at):
    config = tiny_config(layer_attention="mrla-light")
    train(config, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        _interrupt_after(patch, stop_at)
        with pytest.raises(training.TrainingInterrupted, match=f"step {stop_at} of 12.*--resume"):
            train(config, tmp_path / "parts", progress=False)
    train(config, tmp_path / "parts", resume=True, progress=False)
    assert same(tmp_path / "whole", tmp_path / "parts")


def test_lines_written_after_the_checkpoint_are_cut(tmp_path, monkeypatch):
    config = tiny_config()
    train(config, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        _interrupt_after(patch, 8)
        with pytest.raises(training.TrainingInterrupted):
            train(config, tmp_path / "parts", progress=False)
    with open(tmp_path / "parts" / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 2, "step": 12, "train_loss": 9.0}\n{"epoch": 3, "st')
    train(config, tmp_path / "parts", resume=True, progress=False)
    assert same(tmp_path / "whole", tmp_path / "parts")


@needs_sigkill
def test_a_killed_run_resumes_bitwise():
    assert kill_and_resume(1) == 0


@needs_sigkill
@pytest.mark.slow
def test_ten_kills_ten_equal():
    assert kill_and_resume(10, seed=1) == 0


@needs_sigkill
def test_ctrl_c_in_a_process_of_its_own(tmp_path):
    script = Path(tiny.__file__)
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path / "run"), "--pause", "0.2"], stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "run" / "checkpoint.pt").exists():
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and f"mrla train --resume {tmp_path / 'run'}" in output


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_rate_and_checkpoint(tmp_path, monkeypatch):
    original = Run.batch

    def batch(run):
        images, labels = original(run)
        return (images * math.nan if run.step == 7 else images), labels

    monkeypatch.setattr(Run, "batch", batch)
    with pytest.raises(TrainingDiverged) as error:
        train(tiny_config(), tmp_path / "run", progress=False)
    text = str(error.value)
    assert "step 8 of 12" in text and "learning rate 0.0933" in text and str(tmp_path / "run" / "checkpoint.pt") in text
    state = training.read_checkpoint(tmp_path / "run")
    assert state["step"] == 6 and all(torch.isfinite(value).all() for value in state["model"].values())


def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch):
    original = Run.train_step

    def train_step(run):
        original(run)
        if run.step == 6:
            with torch.no_grad():
                run.model.classifier.weight[0, 0] = math.inf

    monkeypatch.setattr(Run, "train_step", train_step)
    monkeypatch.setattr(training, "evaluate", lambda *args, **kw: (0.0, 0.0))
    with pytest.raises(TrainingDiverged, match="a weight is no longer finite after step 6"):
        train(tiny_config(), tmp_path / "run", progress=False)
    assert training.read_checkpoint(tmp_path / "run")["step"] == 0


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    saves = []
    original = torch.save

    def save(state, file):
        saves.append(state["step"])
        if len(saves) == 2:
            file.write(b"half a checkpoint")
            raise OSError(errno.ENOSPC, "No space left on device", "checkpoint.pt")
        original(state, file)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError, match="No space left"):
        train(tiny_config(), tmp_path / "run", progress=False)
    assert training.read_checkpoint(tmp_path / "run")["step"] == 0
    assert not list((tmp_path / "run").glob("*.part")) and not list((tmp_path / "run").glob(".*.part"))
    result = train(tiny_config(), tmp_path / "run", resume=True, progress=False)
    assert result.metrics[-1]["step"] == 12


def test_a_disk_that_fills_while_the_checkpoint_is_flushed(tmp_path, monkeypatch):
    flushed = []

    def fsync(descriptor):
        flushed.append(descriptor)
        if len(flushed) == 6:       # config, metrics, checkpoint; after the first epoch metrics, timing, checkpoint
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        train(tiny_config(), tmp_path / "run", progress=False)
    assert training.read_checkpoint(tmp_path / "run")["step"] == 0 and not list((tmp_path / "run").glob(".*.part"))
    assert train(tiny_config(), tmp_path / "run", resume=True, progress=False).metrics[-1]["step"] == 12


def test_two_runs_do_not_share_a_folder(tmp_path, monkeypatch):
    original = Run.train_step

    def train_step(run):
        original(run)
        if run.step == 1:
            with pytest.raises(ValueError, match=f"{tmp_path / 'run'} is in use by another run"):
                train(tiny_config(), tmp_path / "run", resume=True, progress=False)

    monkeypatch.setattr(Run, "train_step", train_step)
    train(tiny_config(epochs=1), tmp_path / "run", progress=False)


def test_a_finished_run_is_not_overwritten_and_resuming_it_gives_its_result(tmp_path):
    result = train(tiny_config(), tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="holds a run already"):
        train(tiny_config(), tmp_path / "run", progress=False)
    again = train(tiny_config(), tmp_path / "run", resume=True, progress=False)
    assert (again.metrics, again.test_accuracy) == (result.metrics, result.test_accuracy)


def test_resuming_with_another_configuration_names_the_fields(tmp_path):
    train(tiny_config(), tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="epochs: stored 2, given 3; .*learning_rate: stored 0.1, given 0.2"):
        train(tiny_config(epochs=3, learning_rate=0.2), tmp_path / "run", resume=True, progress=False)


def test_a_checkpoint_of_another_run_is_not_resumed(tmp_path):
    train(tiny_config(seed=1), tmp_path / "one", progress=False)
    train(tiny_config(), tmp_path / "two", progress=False)
    shutil.copy(tmp_path / "one" / "checkpoint.pt", tmp_path / "two" / "checkpoint.pt")
    with pytest.raises(ValueError, match="is of another run: seed: stored 1, given 0"):
        train(tiny_config(), tmp_path / "two", resume=True, progress=False)


def test_a_checkpoint_that_lacks_a_part_is_named(tmp_path):
    torch.save({"format": training.CHECKPOINT_FORMAT}, tmp_path / "part.pt")
    with pytest.raises(ValueError, match="part.pt is not a whole checkpoint: it lacks config, classes, source, fingerprint, model"):
        training.load_model(tmp_path / "part.pt")


def test_runs_are_called_by_what_they_are(tmp_path):
    assert training.new_run_dir(tiny_config(layer_attention=None, channel_attention="se"), tmp_path).name.startswith("resnet8-se-")
    assert "synthetic" in training.new_run_dir(tiny_config(source="synthetic"), tmp_path).name


def test_resuming_on_other_images_is_refused(tmp_path, monkeypatch):
    train(tiny_config(), tmp_path / "run", progress=False)
    monkeypatch.setattr(training, "load_cifar", lambda *args: dataclasses.replace(tiny_cifar(), fingerprint="other"))
    with pytest.raises(ValueError, match="other images"):
        train(tiny_config(), tmp_path / "run", resume=True, progress=False)


def test_resuming_with_another_thread_count_is_said(tmp_path, capsys):
    train(tiny_config(), tmp_path / "run", progress=False)
    torch.set_num_threads(2)
    train(tiny_config(), tmp_path / "run", resume=True, progress=False)
    assert "1 threads, here are 2" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 broken"])
def test_what_is_no_checkpoint_is_named(tmp_path, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(ValueError, match="checkpoint.pt is not a checkpoint"):
        training.load_model(tmp_path)


class _RunsCode:
    def __reduce__(self):
        return print, ("this must never run",)


def test_a_checkpoint_cannot_run_code(tmp_path, capsys):
    torch.save({"format": _RunsCode()}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="checkpoint.pt is not a checkpoint"):
        training.load_model(tmp_path)
    assert "never" not in capsys.readouterr().out


def test_a_truncated_checkpoint_is_named(tmp_path):
    train(tiny_config(epochs=1), tmp_path / "run", progress=False)
    path = tmp_path / "run" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="checkpoint.pt is not a checkpoint"):
        train(tiny_config(epochs=1), tmp_path / "run", resume=True, progress=False)


def test_a_checkpoint_of_another_model_is_named(tmp_path):
    train(tiny_config(epochs=1), tmp_path / "run", progress=False)
    state = training.read_checkpoint(tmp_path / "run")
    state["config"]["width"] = 8
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="other.pt holds the weights of another model"):
        training.load_model(tmp_path / "other.pt")


def test_load_model_gives_back_the_trained_net(tmp_path):
    result = train(tiny_config(), tmp_path / "run", progress=False)
    model, state = training.load_model(tmp_path / "run")
    assert not model.training and evaluate(model, tiny_cifar().test)[1] == result.test_accuracy and state["step"] == 12


def test_batches_larger_than_the_data_and_missing_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at most the 96 training images, not 97"):
        train(tiny_config(batch_size=97), tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="not a run folder"):
        train(tiny_config(), tmp_path / "nothing", resume=True, progress=False)
    with pytest.raises(ValueError, match="no such checkpoint"):
        training.load_model(tmp_path / "absent.pt")


def test_a_failed_start_leaves_no_run_behind(tmp_path):
    with pytest.raises(ValueError):
        train(tiny_config(batch_size=97), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    train(tiny_config(epochs=1), tmp_path / "run", progress=False)


def test_choose_device():
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="'tpu'"):
        choose_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="'cuda' is not available here"):
            choose_device("cuda")
