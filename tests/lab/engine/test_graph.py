"""Steps of a CUDA graph, as far as a CPU can tell: out of buffers, captured once, replayed.

tests/test_cuda.py captures real ones.
"""

import contextlib
import copy
from pathlib import Path
from unittest import mock

import pytest
import torch
from tiny import losses_of, tiny_cifar, tiny_config, tiny_run, tiny_train

from mrla_minimal.lab.device import World
from mrla_minimal.lab.engine import GraphRun, Run, TrainConfig, build_optimizer, graph, open_run, training
from mrla_minimal.lab.engine.precision import gradient_scaler
from mrla_minimal.lab.engine.resume import restore

CPU = torch.device("cpu")


def graph_run(**changes):
    return GraphRun(tiny_config(cuda_graph=True, **changes), World(0, 1, CPU), data=tiny_cifar())


class FakeGraph:
    """A graph that replays on the CPU: the step once more, its result where the captured one lies."""

    captured = 0

    def replay(self):
        self.outcome.copy_(self.run._step_on_buffers())


def faked(monkeypatch, state):
    """Make a GraphRun on the CPU go the way of a GPU, with a FakeGraph."""
    @contextlib.contextmanager
    def capture(fake, stream):
        """What is computed within is undone: capturing writes a step down, and computes nothing."""
        assert all(parameter.grad is None for parameter in state.model.parameters())
        before = [tensor.clone() for tensor in tensors(state)]
        yield
        for tensor, old in zip(tensors(state), before, strict=True):
            tensor.copy_(old)
        state._outcome.fill_(torch.nan)
        FakeGraph.captured += 1
        fake.run, fake.outcome = state, state._outcome

    monkeypatch.setattr(FakeGraph, "captured", 0)
    for name, value in (("CUDAGraph", FakeGraph), ("graph", capture), ("Stream", mock.Mock()),
                        ("current_stream", mock.Mock()), ("stream", lambda _: contextlib.nullcontext())):
        monkeypatch.setattr(torch.cuda, name, value)
    state._eager_steps = graph.STEPS_BEFORE
    return state


def tensors(state):
    memories = (entry["momentum_buffer"] for entry in state.optimizer.state.values())
    return [*state.model.state_dict().values(), *memories]


@pytest.mark.parametrize("attention", ["depthwise", "uniform", "mrla-base", "mrla-light"])
def test_steps_out_of_buffers_are_the_engines_steps(attention, monkeypatch):
    changes = {"layer_attention": attention, "augment": "on", "drop_path": 0.0}
    expected = losses_of(tiny_run(**changes))
    assert losses_of(graph_run(**changes)) == pytest.approx(expected, rel=0.02)
    # The fused optimiser rounds otherwise; with the engine's own all is equal bit for bit.
    monkeypatch.setattr(graph, "build_optimizer", lambda config, model, fused: build_optimizer(config, model))
    assert losses_of(graph_run(**changes)) == expected


def test_a_graph_is_captured_once_and_replayed_as_the_same_steps(monkeypatch):
    expected = losses_of(graph_run(drop_path=0.0))
    state = faked(monkeypatch, graph_run(drop_path=0.0))
    assert losses_of(state, graph.STEPS_BEFORE) == expected[:graph.STEPS_BEFORE]
    assert FakeGraph.captured == 0
    assert losses_of(state) == expected and FakeGraph.captured == 1


def test_a_run_of_graphs_is_resumed_also_as_one_without(monkeypatch):
    whole = graph_run(drop_path=0.0)
    losses_of(whole)
    begun = graph_run(drop_path=0.0)
    losses_of(begun, 5)
    state = begun.state()
    again = faked(monkeypatch, graph_run(drop_path=0.0))
    restore(again, copy.deepcopy(state), Path("checkpoint.pt"))
    assert losses_of(again) == whole.losses
    plain = tiny_run(drop_path=0.0)
    restore(plain, copy.deepcopy(state), Path("checkpoint.pt"))
    assert losses_of(plain) == pytest.approx(whole.losses, rel=0.02)


def test_its_record_of_an_epoch_is_one_of_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "open_run", GraphRun)
    result = tiny_train(tiny_config(cuda_graph=True), tmp_path / "run")
    monkeypatch.undo()
    expected = tiny_train(tiny_config(), tmp_path / "other")
    for record, other in zip(result.metrics, expected.metrics, strict=True):
        assert record["learning_rate"] == other["learning_rate"]
    assert tiny_train(tiny_config(epochs=3), tmp_path / "run", resume=True).metrics[-1]["epoch"] == 3


def test_only_a_gpu_captures():
    config = tiny_config(cuda_graph=True)
    assert type(open_run(config, World(0, 1, CPU), data=tiny_cifar())) is Run
    with mock.patch.object(graph, "GraphRun") as kind:
        open_run(config, World(0, 1, torch.device("cuda")))
        open_run(tiny_config(), World(0, 1, CPU), data=tiny_cifar())
    assert kind.call_count == 1


def test_what_no_graph_can_hold_is_refused(monkeypatch):
    for changes in ({"compile": True}, {"optimizer": "adamw"}):
        with pytest.raises(ValueError, match="cuda_graph must be False with compile, and with another"):
            TrainConfig(cuda_graph=True, **changes)
    with pytest.raises(ValueError, match="cuda_graph must be False with several processes"):
        GraphRun(tiny_config(cuda_graph=True), World(0, 2, CPU), data=tiny_cifar())
    monkeypatch.setattr("mrla_minimal.lab.engine.run.gradient_scaler",
                        lambda device, precision: gradient_scaler(device, "float16"))
    with pytest.raises(ValueError, match="cuda_graph must be False on a GPU without bfloat16"):
        graph_run()
