import dataclasses
import errno
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiny
import torch
from kill_and_resume import main as kill_and_resume
from kill_and_resume import same
from tiny import tiny_cifar, tiny_config, tiny_train
from torch.nn import functional as F

from mrla_minimal.lab import files
from mrla_minimal.lab.data import Cifar, Split, hold_out, normalise, plan_epoch, take_batch
from mrla_minimal.lab.device import World, choose_device
from mrla_minimal.lab.engine import (
    Run,
    TrainConfig,
    TrainingDiverged,
    TrainingInterrupted,
    build_model,
    build_optimizer,
    evaluate,
    learning_rate_at,
    load_model,
    read_checkpoint,
    run,
)
from mrla_minimal.lab.engine.checkpoint import CHECKPOINT_FORMAT
from mrla_minimal.lab.engine.training import new_run_dir

CPU = World(0, 1, torch.device("cpu"))
needs_sigkill = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL or SIGINT for another process")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
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
    monkeypatch.setattr(run, "load_cifar", lambda *args: pytest.fail("data was loaded"))
    with pytest.raises(ValueError, match="6n \\+ 2.*21"):
        tiny_train(tiny_config(depth=21), tmp_path / "run", data=None)


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
    result = tiny_train(config, tmp_path / "run")
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
    assert run._means_of_parts(list(range(20))) == [0.5 + 2 * part for part in range(10)]
    assert run._means_of_parts([3.0, 5.0, 1.0]) == [3.0, 5.0, 1.0]
    record = tiny_train(tiny_config(epochs=1), tmp_path / "run").metrics[0]
    assert len(record["train_loss_parts"]) == 6 and sum(record["train_loss_parts"]) / 6 == pytest.approx(record["train_loss"])


def test_it_learns_what_can_be_learnt(tmp_path):
    result = tiny_train(tiny_config(epochs=8, layer_attention="mrla-light-released", drop_path=0.0), tmp_path / "run")
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


def test_validation_trains_on_the_rest_and_opens_the_test_set_once(tmp_path, monkeypatch):
    seen = []
    original = evaluate

    def counted(model, split, *args, **kw):
        seen.append(len(split))
        return original(model, split, *args, **kw)

    monkeypatch.setattr(run, "evaluate", counted)
    result = tiny_train(tiny_config(validation=True, epochs=3), tmp_path / "run")
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
    runs = [Run(tiny_config(layer_attention=name), CPU, data=tiny_cifar()) for name in (None, "mrla-light", "mrla-base")]
    host = runs[0].model.state_dict()
    for other in runs[1:]:
        assert all(torch.equal(value, other.model.state_dict()[name]) for name, value in host.items())
    batches = [each.batch() for each in runs]
    assert all(torch.equal(batches[0][0], images) and torch.equal(batches[0][1], labels) for images, labels in batches[1:])
    other = Run(tiny_config(layer_attention=None, seed=1), CPU, data=tiny_cifar())
    assert not torch.equal(other.batch()[0], batches[0][0])


def test_images_that_are_seen_once_are_not_augmented_unless_asked():
    plain = take_batch(tiny_cifar().train, plan_epoch(96, 0, 0, augment=False), 0, 16)[0]
    moved = take_batch(tiny_cifar().train, plan_epoch(96, 0, 0), 0, 16)[0]
    for changes, expected in (({"epochs": 1}, plain), ({"epochs": 2}, moved), ({"epochs": 1, "augment": "on"}, moved),
                              ({"epochs": 2, "augment": "off"}, plain), ({"steps": 6}, plain), ({"steps": 7}, moved)):
        assert torch.equal(Run(tiny_config(**changes), CPU, data=tiny_cifar()).batch()[0], expected), changes


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
    tiny_train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        _interrupt_after(patch, stop_at)
        with pytest.raises(TrainingInterrupted, match=f"step {stop_at} of 12.*--resume"):
            tiny_train(config, tmp_path / "parts")
    tiny_train(config, tmp_path / "parts", resume=True)
    assert same(tmp_path / "whole", tmp_path / "parts")


def test_lines_written_after_the_checkpoint_are_cut(tmp_path, monkeypatch):
    config = tiny_config()
    tiny_train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        _interrupt_after(patch, 8)
        with pytest.raises(TrainingInterrupted):
            tiny_train(config, tmp_path / "parts")
    with open(tmp_path / "parts" / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 2, "step": 12, "train_loss": 9.0}\n{"epoch": 3, "st')
    tiny_train(config, tmp_path / "parts", resume=True)
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
        tiny_train(tiny_config(), tmp_path / "run")
    text = str(error.value)
    assert "step 8 of 12" in text and "learning rate 0.0933" in text and str(tmp_path / "run" / "checkpoint.pt") in text
    state = read_checkpoint(tmp_path / "run")
    assert state["step"] == 6 and all(torch.isfinite(value).all() for value in state["model"].values())


def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch):
    original = Run.train_step

    def train_step(run):
        original(run)
        if run.step == 6:
            with torch.no_grad():
                run.model.classifier.weight[0, 0] = math.inf

    monkeypatch.setattr(Run, "train_step", train_step)
    monkeypatch.setattr(run, "evaluate", lambda *args, **kw: (0.0, 0.0))
    with pytest.raises(TrainingDiverged, match="a weight is no longer finite after step 6"):
        tiny_train(tiny_config(), tmp_path / "run")
    assert read_checkpoint(tmp_path / "run")["step"] == 0


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
        tiny_train(tiny_config(), tmp_path / "run")
    assert read_checkpoint(tmp_path / "run")["step"] == 0
    assert not list((tmp_path / "run").glob("*.part")) and not list((tmp_path / "run").glob(".*.part"))
    result = tiny_train(tiny_config(), tmp_path / "run", resume=True)
    assert result.metrics[-1]["step"] == 12


def test_a_disk_that_fills_while_the_checkpoint_is_flushed(tmp_path, monkeypatch):
    flushed = []

    def fsync(descriptor):
        flushed.append(descriptor)
        if len(flushed) == 6:       # config, metrics, checkpoint; after the first epoch metrics, timing, checkpoint
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        tiny_train(tiny_config(), tmp_path / "run")
    assert read_checkpoint(tmp_path / "run")["step"] == 0 and not list((tmp_path / "run").glob(".*.part"))
    assert tiny_train(tiny_config(), tmp_path / "run", resume=True).metrics[-1]["step"] == 12


def test_two_runs_do_not_share_a_folder(tmp_path, monkeypatch):
    original = Run.train_step

    def train_step(run):
        original(run)
        if run.step == 1:
            with pytest.raises(ValueError, match=f"{tmp_path / 'run'} is in use by another run"):
                tiny_train(tiny_config(), tmp_path / "run", resume=True)

    monkeypatch.setattr(Run, "train_step", train_step)
    tiny_train(tiny_config(epochs=1), tmp_path / "run")


def test_a_finished_run_is_not_overwritten_and_resuming_it_gives_its_result(tmp_path):
    result = tiny_train(tiny_config(), tmp_path / "run")
    with pytest.raises(ValueError, match="holds a run already"):
        tiny_train(tiny_config(), tmp_path / "run")
    again = tiny_train(tiny_config(), tmp_path / "run", resume=True)
    assert (again.metrics, again.test_accuracy) == (result.metrics, result.test_accuracy)


def test_resuming_with_another_configuration_names_the_fields(tmp_path):
    tiny_train(tiny_config(), tmp_path / "run")
    with pytest.raises(ValueError, match="epochs: stored 2, given 3; .*learning_rate: stored 0.1, given 0.2"):
        tiny_train(tiny_config(epochs=3, learning_rate=0.2), tmp_path / "run", resume=True)


def test_a_checkpoint_of_another_run_is_not_resumed(tmp_path):
    tiny_train(tiny_config(seed=1), tmp_path / "one")
    tiny_train(tiny_config(), tmp_path / "two")
    shutil.copy(tmp_path / "one" / "checkpoint.pt", tmp_path / "two" / "checkpoint.pt")
    with pytest.raises(ValueError, match="is of another run: seed: stored 1, given 0"):
        tiny_train(tiny_config(), tmp_path / "two", resume=True)


def test_a_checkpoint_that_lacks_a_part_is_named(tmp_path):
    torch.save({"format": CHECKPOINT_FORMAT}, tmp_path / "part.pt")
    with pytest.raises(ValueError, match="part.pt is not a whole checkpoint: it lacks config, classes, source, fingerprint, model"):
        load_model(tmp_path / "part.pt")


def own_images(channels=3, size=32, **changes):
    """Images of one's own: 48 + 12 of any size in three classes, told apart by their brightness."""
    splits = []
    for count in (48, 12):
        labels = torch.arange(count) % 3
        images = (60 * labels + 20).to(torch.uint8)[:, None, None, None].expand(-1, channels, size, size).clone()
        splits.append(Split(images, labels))
    parts = {"train": splits[0], "test": splits[1], "classes": ("dark", "grey", "light"), "source": "own"}
    return Cifar(**{**parts, "fingerprint": "own 1", **changes})


@pytest.mark.parametrize("channels, size", [(3, 32), (3, 40)])
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
    assert tiny_train(tiny_config(epochs=1), None, data=own_images()).run_dir.name == "resnet8-mrla-light-own-seed0"


FEW = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
TWO = torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize("change, complaint", [
    ({"train": Split(FEW.float(), TWO)}, "data.train.images must be a uint8 tensor .*not .2, 3, 32, 32. of torch.float32"),
    ({"test": Split(FEW, TWO[:1])}, "data.test.labels must be an int64 tensor .2,., not .1,. of torch.int64"),
    ({"test": Split(FEW[..., :8, :8], TWO)}, "images of one shape, not .3, 32, 32. and .3, 8, 8."),
    ({"classes": ("a", "b")}, "data.train.labels must be from 0 to 1.*they go from 0 to 2"),
    ({"train": None}, "data.train.images must be a uint8 tensor .*not None"),
])
def test_images_that_cannot_be_trained_on_are_named_before_anything_is_written(tmp_path, change, complaint):
    with pytest.raises(ValueError, match=complaint):
        tiny_train(tiny_config(), tmp_path / "run", data=own_images(**change))
    assert not (tmp_path / "run").exists()


def test_two_runs_that_start_together_get_two_folders(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: new_run_dir(tiny_config(), tmp_path), range(24)))
    assert len(set(folders)) == 24 and all(folder.is_dir() for folder in folders)
    assert {folder.name for folder in folders} == {"resnet8-mrla-light-cifar10-seed0"} | {
        f"resnet8-mrla-light-cifar10-seed0-{number}" for number in range(2, 25)}


def test_a_refused_run_gives_its_new_folder_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="at most the 96"):
        tiny_train(tiny_config(batch_size=97), None)
    assert not list((tmp_path / "runs").iterdir())


def test_runs_are_called_by_what_they_are(tmp_path):
    assert new_run_dir(tiny_config(layer_attention=None, channel_attention="se"), tmp_path).name.startswith("resnet8-se-")
    assert "synthetic" in new_run_dir(tiny_config(source="synthetic"), tmp_path).name


def test_resuming_on_other_images_is_refused(tmp_path):
    tiny_train(tiny_config(), tmp_path / "run")
    with pytest.raises(ValueError, match="other images"):
        tiny_train(tiny_config(), tmp_path / "run", resume=True, data=dataclasses.replace(tiny_cifar(), fingerprint="other"))


def test_resuming_with_another_thread_count_is_said(tmp_path, capsys):
    tiny_train(tiny_config(), tmp_path / "run")
    torch.set_num_threads(2)
    tiny_train(tiny_config(), tmp_path / "run", resume=True)
    assert "1 threads, here are 2" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 broken"])
def test_what_is_no_checkpoint_is_named(tmp_path, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(ValueError, match="checkpoint.pt is not a checkpoint"):
        load_model(tmp_path)


class _RunsCode:
    def __reduce__(self):
        return print, ("this must never run",)


def test_a_checkpoint_cannot_run_code(tmp_path, capsys):
    torch.save({"format": _RunsCode()}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="checkpoint.pt is not a checkpoint"):
        load_model(tmp_path)
    assert "never" not in capsys.readouterr().out


def test_a_truncated_checkpoint_is_named(tmp_path):
    tiny_train(tiny_config(epochs=1), tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="checkpoint.pt is not a checkpoint"):
        tiny_train(tiny_config(epochs=1), tmp_path / "run", resume=True)


def test_a_checkpoint_of_another_model_is_named(tmp_path):
    tiny_train(tiny_config(epochs=1), tmp_path / "run")
    state = read_checkpoint(tmp_path / "run")
    state["config"]["width"] = 8
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="other.pt holds the weights of another model"):
        load_model(tmp_path / "other.pt")


def test_load_model_gives_back_the_trained_net(tmp_path):
    result = tiny_train(tiny_config(), tmp_path / "run")
    model, state = load_model(tmp_path / "run")
    assert not model.training and evaluate(model, tiny_cifar().test)[1] == result.test_accuracy and state["step"] == 12


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


def test_choose_device():
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="'tpu'"):
        choose_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="'cuda' is not available here"):
            choose_device("cuda")
