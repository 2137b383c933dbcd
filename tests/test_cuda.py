"""What only a GPU can tell, in under a minute: training in every type, CUDA graphs, DDP, resuming.

Skipped where there is no CUDA. MRLA_TEST_DEVICE=cpu runs the same on the CPU, to see that the tests
themselves work.
"""

import contextlib
import os
import signal

import pytest
import torch
from kill_and_resume import same
from tiny import losses_of, tiny_cifar, tiny_config, tiny_train

from mrla_minimal.hosting import LAYER_ATTENTIONS
from mrla_minimal.lab.device import World
from mrla_minimal.lab.engine import GraphRun, Run, TrainingInterrupted, choose_precision, read_checkpoint, run
from mrla_minimal.lab.engine.precision import PRECISIONS, autocast

DEVICE = torch.device(os.environ.get("MRLA_TEST_DEVICE", "cuda"))
ON_GPU = DEVICE.type == "cuda"
pytestmark = pytest.mark.skipif(ON_GPU and not torch.cuda.is_available(), reason="there is no GPU with CUDA")
# The largest error of an output or a gradient, as a share of its largest number. In half precision it is
# 8 times the rounding of one number; in float32 more, for a GPU sums in another order.
TOLERANCES = {name: 8 * torch.finfo(dtype).eps for name, dtype in PRECISIONS.items()} | {"float32": 1e-4}


@pytest.fixture(params=PRECISIONS)
def precision(request, monkeypatch):
    """Each type in turn, whatever the GPU would choose by itself."""
    if ON_GPU and request.param == "bfloat16" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no bfloat16")
    monkeypatch.setattr(run, "choose_precision", lambda device, amp: request.param)
    return request.param


def config(**changes):
    return tiny_config(**{"device": DEVICE.type, "layer_attention": "mrla-light", **changes})


def results(layers, features, directions, precision):
    """Outputs of a stage of attentions alone, gradients of its inputs and parameters: a list in float64."""
    inputs = [feature.clone().requires_grad_() for feature in features]
    memory, outputs = None, []
    with autocast(DEVICE, precision):
        for layer, x in zip(layers, inputs, strict=True):
            given = x if getattr(layer, "takes_block_input", False) else memory
            output, memory = layer(x, given)
            outputs.append(output)
    pairs = zip(directions, outputs, strict=True)
    torch.autograd.backward(outputs, [direction.to(output) for direction, output in pairs])
    found = [*outputs, *(x.grad for x in inputs), *(parameter.grad for parameter in layers.parameters())]
    return [number.detach().double() for number in found]


@pytest.mark.parametrize("name", LAYER_ATTENTIONS)
def test_every_attention_is_that_of_float64(name, precision):
    torch.manual_seed(0)
    layers = torch.nn.ModuleList(LAYER_ATTENTIONS[name](32) for _ in range(3)).to(DEVICE)
    exact = torch.nn.ModuleList(LAYER_ATTENTIONS[name](32) for _ in range(3)).to(DEVICE).double()
    exact.load_state_dict(layers.state_dict())
    features = [torch.randn(4, 32, 14, 14, device=DEVICE).to(PRECISIONS[precision]) for _ in layers]
    directions = [torch.randn(4, 32, 14, 14, device=DEVICE).to(PRECISIONS[precision]) for _ in layers]
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if ON_GPU else contextlib.nullcontext():
        found = results(layers, features, directions, precision)
    expected = results(exact, [x.double() for x in features], directions, "float32")
    for number, wanted in zip(found, expected, strict=True):
        assert torch.isfinite(number).all()
        assert (number - wanted).abs().max() <= TOLERANCES[precision] * wanted.abs().max()


def test_a_short_epoch_in_every_type(precision, tmp_path):
    result = tiny_train(config(epochs=1), tmp_path / "run")
    assert result.precision == precision and result.metrics[0]["train_loss"] < 3
    assert read_checkpoint(tmp_path / "run")["precision"] == precision


def test_the_type_that_is_chosen_is_one_that_the_gpu_has(tmp_path):
    assert choose_precision(DEVICE, amp=False) == "float32"
    result = tiny_train(config(epochs=1), tmp_path / "run")
    assert result.precision == choose_precision(DEVICE) == ("float32" if not ON_GPU else result.precision)


@pytest.mark.skipif(not ON_GPU, reason="only CUDA tells when the host waits for the device")
def test_a_step_never_waits_for_the_gpu(precision):
    state = Run(config(augment="on"), World(0, 1, DEVICE), data=tiny_cifar())
    state.train_step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        state.train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    state.read_losses()
    assert len(state.losses) == 2


@pytest.mark.parametrize("name", ["depthwise", "uniform", "mrla-base", "mrla-light"])
def test_steps_of_one_cuda_graph_are_steps(name, precision):
    """The fourth and all after it are replayed."""
    changes = {"layer_attention": name, "drop_path": 0.0, "augment": "on"}
    if precision == "float16":
        with pytest.raises(ValueError, match="cuda_graph must be False on a GPU without bfloat16"):
            GraphRun(config(cuda_graph=True, **changes), World(0, 1, DEVICE), data=tiny_cifar())
        return
    steps, rel = (12, 0.02) if precision == "float32" else (6, 0.1)     # small differences grow
    losses = []
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if ON_GPU else contextlib.nullcontext():
        for state in (Run(config(**changes), World(0, 1, DEVICE), data=tiny_cifar()),
                      GraphRun(config(cuda_graph=True, **changes), World(0, 1, DEVICE), data=tiny_cifar())):
            losses.append(losses_of(state, steps))
    assert losses[1] == pytest.approx(losses[0], rel=rel)


class _Alone(World):
    """One process that trains as one of several: DDP, collectives and all."""

    parallel = True


@pytest.fixture
def alone(tmp_path):
    torch.distributed.init_process_group("nccl" if ON_GPU else "gloo", rank=0, world_size=1,
                                         init_method=f"file://{tmp_path / 'meeting'}")
    yield _Alone(0, 1, torch.device("cuda", 0) if ON_GPU else DEVICE)
    torch.distributed.destroy_process_group()


def test_ddp_on_one_device_is_training_without_it(alone, precision):
    """nccl on a GPU, gloo on the CPU."""
    losses = []
    for world in (World(0, 1, DEVICE), alone):
        state = Run(config(drop_path=0.0, epochs=1), world, data=tiny_cifar())
        while not state.finished:
            state.train_step()
        losses.append(state.close_epoch()["train_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=100 * TOLERANCES[precision])


def test_a_run_is_resumed_on_the_device(precision, tmp_path, monkeypatch):
    """As if never interrupted: bit for bit on the CPU, and on a GPU but for the order of its sums."""
    whole = tiny_train(config(), tmp_path / "whole")
    original = Run.train_step

    def train_step(state):
        original(state)
        if state.step == 6:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "train_step", train_step)
        with pytest.raises(TrainingInterrupted):
            tiny_train(config(), tmp_path / "parts")
    parts = tiny_train(config(), tmp_path / "parts", resume=True)
    assert parts.metrics[-1]["train_loss"] == pytest.approx(whole.metrics[-1]["train_loss"], rel=0.05)
    assert ON_GPU or same(tmp_path / "whole", tmp_path / "parts")
