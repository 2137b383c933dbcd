"""The one clock: who is timed when, and that it waits for the device."""

import types

import pytest
import torch

from mrla_minimal.lab import timing


def test_taking_turns_times_every_candidate_in_every_round_after_the_warm_up(monkeypatch):
    clock, calls = iter(range(1_000)), []
    monkeypatch.setattr(timing, "seconds_of", lambda function, device: function() or next(clock))
    candidates = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    assert timing.take_turns(candidates, rounds=3, warm_up=1) == {"a": [2, 4, 6], "b": [3, 5, 7]}
    assert calls == ["a", "b"] * 4


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"warm_up": -1}])
def test_numbers_of_rounds_that_are_none_are_refused(wrong):
    with pytest.raises(ValueError, match="rounds must be at least 1 and warm_up at least 0"):
        timing.take_turns({"a": print}, **wrong)


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_the_clock_starts_when_an_accelerator_is_idle_and_stops_when_it_is_done(monkeypatch, device):
    said, clock = [], iter([100.0, 103.0])
    monkeypatch.setattr(timing, "torch", types.SimpleNamespace(
        cuda=types.SimpleNamespace(synchronize=lambda: said.append("cuda")),
        mps=types.SimpleNamespace(synchronize=lambda: said.append("mps"))))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: said.append("clock") or next(clock))
    assert timing.seconds_of(lambda: said.append("work"), torch.device(device)) == 3.0
    assert said == [device, "clock", "work", device, "clock"]


def test_on_the_cpu_nothing_is_waited_for():
    assert timing.seconds_of(lambda: None) >= 0 and timing.seconds_of(lambda: None, torch.device("cpu")) >= 0
