"""How long runs take, and when those that share processes would be done."""

import pytest
import torch
from tiny import tiny_cifar, tiny_config, tiny_train

from mrla_minimal.lab import timing
from mrla_minimal.lab.device import World
from mrla_minimal.lab.engine import TrainingDiverged
from mrla_minimal.lab.evidence import pacing
from mrla_minimal.lab.evidence.pacing import Pace, Task, estimate, load_paces, note_pace, when_done


def tasks(*seconds, after=None):
    return [Task(f"run {number} of {seconds}", each, after) for number, each in enumerate(seconds)]


@pytest.mark.parametrize("blocks, free, expected", [
    ([tasks(3.0, 5.0, 2.0)], [0.0], 10.0),
    ([tasks(3.0, 5.0, 2.0)], [0.0, 0.0], 5.0),          # 5 beside 3 and 2
    ([tasks(2.0, 3.0, 3.0, 2.0)], [0.0, 4.0], 8.0),     # 3, 3, 2 on the first; 2 on the second
    ([tasks(1.0), tasks(4.0)], [0.0, 0.0], 4.0),        # the second block needs not wait for the first
    ([], [0.0, 7.0], 7.0), ([tasks()], [1.0], 1.0),
])
def test_the_longest_run_goes_to_the_process_that_is_free_first(blocks, free, expected):
    assert when_done(blocks, free) == pytest.approx(expected)


def test_branches_wait_for_their_trunk_and_another_block_is_begun_meanwhile():
    first = [Task("trunk 0", 6.0), *tasks(2.0, 2.0, 2.0, after="trunk 0")]
    second = [Task("trunk 1", 6.0), *tasks(2.0, 2.0, 1.9, after="trunk 1")]
    assert when_done([first], [0.0, 0.0]) == pytest.approx(10.0)
    assert when_done([first, second], [0.0, 0.0]) == pytest.approx(12.0)    # not 20
    assert when_done([first[1:]], [0.0, 3.0], {"trunk 0": 3.0}) == pytest.approx(7.0)


def test_an_estimate_is_corrected_by_what_runs_took(tmp_path):
    path = tmp_path / "paces.jsonl"
    assert load_paces(path, 1.0) == {}
    for kind, seconds in (("plain", 10.0), ("light", 20.0)):
        note_pace(path, Pace(1.0, kind, seconds, 0, 9, False))
    note_pace(path, Pace(2.0, "plain", 99.0, 0, 9, True))       # of another sitting
    untried = {kind: pace.seconds for kind, pace in load_paces(path, 1.0).items()}
    assert untried == pytest.approx({"plain": 11.5, "light": 23.0})
    for seconds in (30.0, 12.0, 15.0, 14.0):
        note_pace(path, Pace(1.0, "plain", seconds, 0, 9, True))
    paces = load_paces(path, 1.0)
    assert paces["plain"].measured and paces["plain"].seconds == 15.0       # the slowest of the last three
    assert not paces["light"].measured and paces["light"].seconds == pytest.approx(30.0)


@pytest.mark.parametrize("attention, looks", [("mrla-base", True), ("depthwise", False)])
def test_an_estimate_counts_steps_tests_and_interventions(monkeypatch, attention, looks):
    monkeypatch.setattr(pacing, "seconds_a_step", lambda run, steps, warm_up: 0.5)
    monkeypatch.setattr(pacing, "_seconds_of_test", lambda run, few: 2.0)
    monkeypatch.setattr(pacing.time, "perf_counter", lambda: 0.0)
    pace = estimate(tiny_config(layer_attention=attention, depth=14), tiny_cifar(), 1.0, "kind")
    assert (pace.first, pace.last, pace.measured) == (0, 12, False)     # two epochs of six steps
    assert pace.seconds == pytest.approx(12 * 0.5 + 2 * 2.0 + looks * pacing.LOOKS * 2.0)
    branch = estimate(tiny_config(layer_attention=attention, depth=14, epochs=3, trunk_epochs=1,
                                  trunk="uniform"), tiny_cifar(), 1.0, "kind")
    assert (branch.first, branch.last) == (6, 18)
    trunk = estimate(tiny_config(layer_attention=attention, depth=14, epochs=3, trunk_epochs=1),
                     tiny_cifar(), 1.0, "kind")
    assert (trunk.first, trunk.last) == (0, 6)
    assert trunk.seconds == pytest.approx(6 * 0.5 + 2.0)        # one epoch, and nobody looks into a trunk


def test_the_time_of_a_step_is_one_steps_and_waits_for_all_of_them(monkeypatch):
    calls, clock = [], iter([100.0, 130.0])

    class Run:
        world = World(0, 1, torch.device("cpu"))
        train_step = staticmethod(lambda: calls.append("step"))
        read_losses = staticmethod(lambda: calls.append("wait"))

    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    assert pacing.seconds_a_step(Run, 15, warm_up=2) == pytest.approx(2.0)        # (130 - 100) / 15
    assert calls == ["step"] * 2 + ["wait"] + ["step"] * 15 + ["wait"]


def test_a_run_that_diverges_at_once_is_timed_as_any_other(tmp_path):
    """What is said of it is its run's to say; an error here would end the whole suite."""
    config = tiny_config(learning_rate=1e30, warmup_epochs=0.0)
    with pytest.raises(TrainingDiverged):
        tiny_train(config, tmp_path)
    assert estimate(config, tiny_cifar(), 1.0, "kind").seconds > 0


def test_torchs_defaults_change_no_estimate(odd_defaults):
    pace = odd_defaults(lambda data: estimate(tiny_config(), data, 1.0, "kind"))
    assert pace.seconds > 0 and torch.get_default_dtype() == torch.float32
