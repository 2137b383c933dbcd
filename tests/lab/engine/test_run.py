import math

import pytest
import torch
from tiny import tiny_cifar, tiny_config, tiny_run, tiny_train
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mrla_minimal.lab.data import hold_out, normalise, plan_epoch, take_batch
from mrla_minimal.lab.device import World
from mrla_minimal.lab.engine import Run, TrainingDiverged, build_model, evaluate, read_checkpoint, run


def test_the_engine_equals_a_loop_written_out(tmp_path):
    config = tiny_config(drop_path=0.0, label_smoothing=0.1, epochs=1, channels_last=False, augment="on")
    result = tiny_train(config, tmp_path / "run")
    data = tiny_cifar()
    model = build_model(config, 10)
    optimizer = torch.optim.SGD(
        [{"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 5e-4},
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
    logits = model(normalise(data.test.images))
    assert result.test_accuracy == (logits.argmax(1) == data.test.labels).double().mean().item()
    loss = -logits.log_softmax(1)[torch.arange(40), data.test.labels].mean().item()
    assert result.metrics[0]["test_loss"] == pytest.approx(loss, abs=1e-5)


def test_the_loss_within_an_epoch_is_kept_as_the_means_of_its_tenths(tmp_path):
    assert run.means_of_parts(list(range(20))) == [0.5 + 2 * part for part in range(10)]
    assert run.means_of_parts([3.0, 5.0, 1.0]) == [3.0, 5.0, 1.0]
    record = tiny_train(tiny_config(epochs=1), tmp_path / "run").metrics[0]
    parts = record["train_loss_parts"]
    assert len(parts) == 6 and sum(parts) / 6 == pytest.approx(record["train_loss"])


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
    runs = [tiny_run(layer_attention=name) for name in (None, "mrla-light", "mrla-base")]
    host = runs[0].model.state_dict()
    for other in runs[1:]:
        assert all(torch.equal(value, other.model.state_dict()[name]) for name, value in host.items())
    batches = [each.batch() for each in runs]
    for images, labels in batches[1:]:
        assert torch.equal(batches[0][0], images) and torch.equal(batches[0][1], labels)
    other = tiny_run(layer_attention=None, seed=1)
    assert not torch.equal(other.batch()[0], batches[0][0])


def test_images_that_are_seen_once_are_not_augmented_unless_asked():
    plain = take_batch(tiny_cifar().train, plan_epoch(96, 0, 0, augment=False), 0, 16)[0]
    moved = take_batch(tiny_cifar().train, plan_epoch(96, 0, 0), 0, 16)[0]
    for changes, expected in (({"epochs": 1}, plain), ({"epochs": 2}, moved),
                              ({"epochs": 1, "augment": "on"}, moved),
                              ({"epochs": 2, "augment": "off"}, plain),
                              ({"steps": 6}, plain), ({"steps": 7}, moved)):
        assert torch.equal(tiny_run(**changes).batch()[0], expected), changes


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_rate_and_checkpoint(tmp_path, monkeypatch):
    original = Run.batch

    def batch(run):
        images, labels = original(run)
        return (images * math.nan if run.step == 7 else images), labels

    monkeypatch.setattr(Run, "batch", batch)
    with pytest.raises(TrainingDiverged) as error:
        tiny_train(tiny_config(), tmp_path / "run")
    text = str(error.value)
    assert "step 8 of 12" in text and "learning rate 0.0933" in text
    assert str(tmp_path / "run" / "checkpoint.pt") in text
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
    with pytest.raises(TrainingDiverged, match="no longer finite after step 6 of 12: classifier.weight"):
        tiny_train(tiny_config(), tmp_path / "run")
    assert read_checkpoint(tmp_path / "run")["step"] == 0


def test_evaluate_leaves_every_module_in_the_mode_that_it_was_in():
    model, data = build_model(tiny_config(), 10).train(), tiny_cifar()
    frozen = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d)).eval()
    modes = [module.training for module in model.modules()]
    statistics = frozen.running_mean.clone()
    evaluate(model, data.test)
    assert [module.training for module in model.modules()] == modes and not frozen.training
    assert torch.equal(frozen.running_mean, statistics)
    assert evaluate(model, data.test) == evaluate(model.eval(), data.test) and not model.training


def test_a_net_whose_numbers_are_not_finite_has_no_accuracy():
    model = build_model(tiny_config(), 10)
    with torch.no_grad():
        model.classifier.bias[3] = math.nan
    with pytest.raises(TrainingDiverged, match="the mean loss over 40 images is nan"):
        evaluate(model, tiny_cifar().test)


def test_no_images_have_no_accuracy():
    test = tiny_cifar().test
    with pytest.raises(ValueError, match="split must hold at least one image"):
        evaluate(build_model(tiny_config(), 10), type(test)(test.images[:0], test.labels[:0]))


def test_statistics_that_are_not_finite_are_never_saved_or_measured(tmp_path, monkeypatch):
    original = Run.train_step

    def train_step(run):
        original(run)
        if run.step == 12:
            run.model.stem.norm.running_var[0] = math.inf

    monkeypatch.setattr(Run, "train_step", train_step)
    with pytest.raises(TrainingDiverged, match="after step 12 of 12: stem.norm.running_var; the last good"):
        tiny_train(tiny_config(), tmp_path / "run")
    assert read_checkpoint(tmp_path / "run")["step"] == 6
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_run_that_explodes_in_its_last_step_has_no_result(tmp_path):
    config = tiny_config(layer_attention=None, steps=6, warmup_epochs=0.0, learning_rate=3e4)
    with pytest.raises(TrainingDiverged):
        tiny_train(config, tmp_path / "run")


class _Watch(TorchDispatchMode):
    """Fails when a value is read back to the host, and when a tensor goes from one device to another."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        assert function is not torch.ops.aten._local_scalar_dense.default, "a value is read back"
        result = function(*arguments, **(keywords or {}))
        tensors = [value for value in (*arguments, result) if isinstance(value, torch.Tensor)]
        assert len({tensor.device for tensor in tensors}) <= 1, f"{function} goes from one device to another"
        return result


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_step_never_waits_for_the_device(monkeypatch, precision):
    """Reading a value back would make the host wait for the GPU at every step."""
    monkeypatch.setattr(run, "choose_precision", lambda device, amp: precision)
    state = tiny_run(layer_attention="mrla-base", augment="on", label_smoothing=0.1)
    state.train_step()          # the plan of an epoch is drawn on the host, once
    before = state.model.classifier.weight.clone()
    with _Watch():
        state.train_step()
    assert state.step == 2 and not torch.equal(state.model.classifier.weight, before)
    with pytest.raises(AssertionError, match="read back"), _Watch():
        state.model.classifier.weight.sum().item()


def test_a_step_moves_nothing_between_devices():
    """On the meta device, which has shapes alone: nothing can be read, and what the host makes is
    elsewhere."""
    state = Run(tiny_config(layer_attention="mrla-light", augment="on"), World(0, 1, torch.device("meta")),
                data=tiny_cifar())
    state.batch()
    with _Watch():
        state.train_step()
    assert state.step == 1
    with pytest.raises(AssertionError, match="from one device to another"), _Watch():
        torch.tensor(1.0).to("meta")
    with pytest.raises((NotImplementedError, RuntimeError)):
        state.read_losses()


def test_a_net_in_double_precision_is_trained_in_it(monkeypatch):
    monkeypatch.setattr(run, "build_model", lambda *arguments: build_model(*arguments).double())
    state = tiny_run()
    state.train_step()
    state.read_losses()
    assert next(iter(state.optimizer.state.values()))["momentum_buffer"].dtype == torch.float64
