import dataclasses
import itertools

import pytest
import torch
from kill_and_resume import same
from tiny import tiny_config, tiny_run, tiny_train

from mrla_minimal.lab.engine import TrainingDiverged, choose_precision, read_checkpoint, run
from mrla_minimal.lab.engine.config import OPTIMIZERS
from mrla_minimal.lab.engine.precision import PRECISIONS, for_loss


@pytest.fixture
def half(monkeypatch):
    """Train in a half precision on the CPU, where it is never chosen, as on the GPU that has it."""
    return lambda name: monkeypatch.setattr(run, "choose_precision", lambda device, amp: name)


@pytest.mark.parametrize("gpu, capability, expected", [
    ("A100", (8, 0), "bfloat16"), ("RTX 3060", (8, 6), "bfloat16"), ("H100", (9, 0), "bfloat16"),
    ("B200", (10, 0), "bfloat16"), ("T4", (7, 5), "float16"), ("V100", (7, 0), "float16"),
    ("P100", (6, 0), "float32"), ("GTX 1080", (6, 1), "float32"), ("K80", (3, 7), "float32"),
])
def test_the_gpu_decides_by_its_compute_capability(monkeypatch, gpu, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **kw: pytest.fail("True of a T4"))
    assert choose_precision(torch.device("cuda", 0)) == expected
    assert choose_precision(torch.device("cuda", 0), amp=False) == "float32"


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_other_devices_compute_in_float32(device):
    assert choose_precision(torch.device(device)) == "float32"


def test_a_loss_is_never_added_up_in_half_precision():
    for given, expected in ((torch.float16, torch.float32), (torch.bfloat16, torch.float32),
                            (torch.float32, torch.float32), (torch.float64, torch.float64)):
        assert for_loss(torch.zeros(2, dtype=given)).dtype == expected


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_step_computes_in_half_precision_and_keeps_losses_in_float32(monkeypatch, half, precision):
    half(precision)
    state = tiny_run(layer_attention="mrla-light")
    seen = {}
    state.model.classifier.register_forward_hook(lambda *given: seen.update(logits=given[-1].dtype))
    original = run.F.cross_entropy

    def cross_entropy(logits, *args, **kw):
        assert not torch.is_autocast_enabled("cpu")
        seen["loss"] = logits.dtype
        return original(logits, *args, **kw)

    monkeypatch.setattr(run.F, "cross_entropy", cross_entropy)
    state.train_step()
    assert seen == {"logits": getattr(torch, precision), "loss": torch.float32}
    assert {parameter.dtype for parameter in state.model.parameters()} == {torch.float32}
    assert state.scaler.is_enabled() == (precision == "float16") and state._unread[0].dtype == torch.float32


def test_float16_steps_are_those_of_float32_but_for_rounding(half):
    """The scale must be divided out again before the step: a forgotten one would be 65536 times too far."""
    states = {}
    for precision in ("float32", "float16"):
        half(precision)
        state = tiny_run(layer_attention="mrla-light", drop_path=0.0)
        for _ in range(3):
            state.train_step()
        states[precision] = state
    pairs = zip(*(state.model.parameters() for state in states.values()), strict=True)
    for single, scaled in pairs:
        assert torch.allclose(single, scaled, atol=0.02)


def test_a_step_whose_gradients_overflow_is_left_out_and_the_scale_halved(half):
    half("float16")
    state = tiny_run(layer_attention=None)
    state.train_step()
    before, scale = state.model.classifier.weight.clone(), state.scaler.get_scale()
    hook = state.model.classifier.weight.register_hook(lambda gradient: gradient * torch.inf)
    state.train_step()
    assert torch.equal(state.model.classifier.weight, before) and state.scaler.get_scale() == scale / 2
    hook.remove()
    state.train_step()
    assert not torch.equal(state.model.classifier.weight, before)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_first_step_that_is_left_out_leaves_no_memory(half, optimizer):
    """The scale begins high, so the first steps are those that are left out."""
    half("float16")
    state = tiny_run(layer_attention=None, optimizer=optimizer)
    hook = state.model.classifier.weight.register_hook(lambda gradient: gradient * torch.inf)
    unused = [torch.full_like(parameter, torch.nan) for parameter in state.model.parameters()]
    del unused          # memory that is not set to anything holds such numbers
    state.train_step()
    hook.remove()
    assert all(not tensor.any() for memory in state.optimizer.state.values() for tensor in memory.values())
    state.train_step()
    state.require_finite()


def test_a_run_whose_gradients_always_overflow_has_no_result(half, tmp_path, monkeypatch):
    half("float16")
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *args, **kw: scaler(*args, **kw, init_scale=2.0**-18))
    original = run.Run.train_step

    def train_step(state):
        if state.step == 0:
            state.model.classifier.weight.register_hook(lambda gradient: gradient * torch.inf)
        original(state)

    monkeypatch.setattr(run.Run, "train_step", train_step)
    with pytest.raises(TrainingDiverged, match="holds no step's gradients any more after step 3 of 3"):
        tiny_train(tiny_config(steps=3, layer_attention=None), tmp_path / "run")


def test_what_was_computed_in_is_said_kept_and_returned(half, tmp_path, capsys):
    half("bfloat16")
    result = tiny_train(tiny_config(epochs=1), tmp_path / "run", progress=True)
    assert result.precision == "bfloat16" and "training in bfloat16 on " in capsys.readouterr().out
    assert read_checkpoint(tmp_path / "run")["precision"] == "bfloat16"
    half("float32")
    assert tiny_train(tiny_config(epochs=1), tmp_path / "run", resume=True).precision == "float32"
    assert "was trained in bfloat16, and goes on in float32" in capsys.readouterr().out


def test_the_scale_of_gradients_survives_a_kill(half, tmp_path, monkeypatch):
    """Bit for bit, with a scale that changes every second step."""
    half("float16")
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *args, **kw: scaler(*args, **kw, growth_interval=2))
    config = tiny_config(layer_attention="mrla-light")
    tiny_train(config, tmp_path / "whole")
    original = run.Run.train_step

    def killed(state):
        if state.step == 9:
            raise SystemExit("killed")
        original(state)

    with monkeypatch.context() as patch:
        patch.setattr(run.Run, "train_step", killed)
        with pytest.raises(SystemExit):
            tiny_train(config, tmp_path / "parts", checkpoint_seconds=0.0)
    state = read_checkpoint(tmp_path / "parts")
    assert state["step"] == 9 and state["scaler"]["scale"] != 65536
    tiny_train(config, tmp_path / "parts", resume=True)
    assert same(tmp_path / "whole", tmp_path / "parts")
    scales = [read_checkpoint(tmp_path / name)["scaler"] for name in ("whole", "parts")]
    assert scales[0] == scales[1]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("before, after", list(itertools.product(PRECISIONS, PRECISIONS)))
def test_a_run_of_any_precision_goes_on_in_any_other(half, tmp_path, monkeypatch, before, after, optimizer):
    """As where a run goes from a CPU to a T4, and from there to an A100."""
    scaler = torch.amp.GradScaler       # a scale at which no step is left out
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *args, **kw: scaler(*args, **kw, init_scale=8.0))
    config = tiny_config(steps=3, optimizer=optimizer, layer_attention="mrla-light", learning_rate=0.01)
    half(before)
    tiny_train(config, tmp_path / "run")
    scale = read_checkpoint(tmp_path / "run")["scaler"]
    assert bool(scale) == (before == "float16")
    half(after)
    result = tiny_train(dataclasses.replace(config, steps=5), tmp_path / "run", resume=True)
    assert result.precision == after and result.metrics[-1]["step"] == 5
    state = read_checkpoint(tmp_path / "run")
    assert bool(state["scaler"]) == (after == "float16")
    if optimizer == "adamw":
        assert {memory["step"].item() for memory in state["optimizer"]["state"].values()} == {5.0}


def test_a_run_that_float16_has_left_no_step_of_goes_on_in_float32(half, tmp_path):
    """Its optimiser may remember nothing yet."""
    half("float16")
    config = tiny_config(steps=3, layer_attention=None)
    tiny_train(config, tmp_path / "run")
    state = read_checkpoint(tmp_path / "run")
    state["optimizer"]["state"] = {}
    torch.save(state, tmp_path / "run" / "checkpoint.pt")
    half("float32")
    longer = dataclasses.replace(config, steps=5)
    assert tiny_train(longer, tmp_path / "run", resume=True).metrics[-1]["step"] == 5
    state["scaler"] = {}
    torch.save(state, tmp_path / "run" / "checkpoint.pt")
    with pytest.raises(ValueError, match="optimizer must remember 3 steps, and remembers none"):
        tiny_train(longer, tmp_path / "run", resume=True)
