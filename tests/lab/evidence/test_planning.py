"""How long a suite would take."""

import functools
import re

import pytest
import torch
from test_branches import SUITE as BRANCHES
from tiny import tiny_cifar
from tiny_suites import RECIPE, run_tiny, tiny_suite

from mrla_minimal.lab.engine import Run
from mrla_minimal.lab.evidence import plan_suite, planning


def test_the_plan_counts_what_is_left_and_writes_nothing(tmp_path):
    suite = tiny_suite(rates=(0.1, 0.2), tuned_on="plain")
    text = plan_suite(suite, [], data=tiny_cifar(), timed_steps=2, progress=False)
    assert "6 runs left" in text
    assert re.search(r"^plain .* 4$", text, re.M) and re.search(r"^mrla-light .* 2$", text, re.M)
    records = run_tiny(tmp_path, suite, seeds=(0,))
    before = sorted(tmp_path.rglob("*"))
    text = plan_suite(suite, records, data=tiny_cifar(), timed_steps=2, progress=False)
    assert "2 runs left" in text
    assert re.search(r"^plain .* 1$", text, re.M) and re.search(r"^mrla-light .* 1$", text, re.M)
    assert "no runs left" in plan_suite(suite, records, seeds=(0,), data=tiny_cifar(), timed_steps=2,
                                        progress=False)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ValueError, match="unknown variant 'nope'"):
        plan_suite(suite, [], variants=("nope",))
    with pytest.raises(ValueError, match="suite tiny: learning_rate is the suite's own to choose"):
        plan_suite(suite, [], learning_rate=0.1)


def test_the_plans_minutes_follow_from_the_time_of_a_step(monkeypatch):
    monkeypatch.setattr(planning, "seconds_a_step", lambda run, steps: 0.5)
    text = plan_suite(tiny_suite(recipe={**RECIPE, "steps": 1200}), [], data=tiny_cifar(), progress=False)
    # 16 images in 0.5 s; 1200 steps of 0.5 s are 10 minutes.
    assert re.search(r"^plain +32 +10.0 +2$", text, re.M)
    assert "4 runs left: 0.7 hours one after another; one of each, 20.0 minutes." in text


def test_a_branch_takes_its_own_steps_and_each_seed_its_trunks(monkeypatch, tmp_path):
    monkeypatch.setattr(planning, "seconds_a_step", lambda run, steps: 10.0)
    plan = functools.partial(plan_suite, BRANCHES, data=tiny_cifar(), progress=False)
    text = plan([])         # epochs of six steps: one for the trunk, and one for each of three branches
    assert re.findall(r"^(\S+) +2 +1.0 +2$", text, re.M) == [*BRANCHES.variants, "trunk-uniform"]
    assert "8 runs left: 0.1 hours one after another; one of each, 4.0 minutes." in text
    records = run_tiny(tmp_path, BRANCHES, seeds=(0,), variants=("uniform",))
    assert re.search(r"^trunk-uniform .* 1$", plan(records), re.M)
    assert "trunk" not in plan(records, seeds=(0,))


def test_torchs_defaults_change_no_plan(monkeypatch, odd_defaults):
    """What is timed is a net in float32, on the device that the recipe names."""
    timed = []

    def train_step(run):
        tensors = (run.batch()[0], *run.model.parameters())
        timed.extend((tensor.dtype, tensor.device.type) for tensor in tensors)
        original(run)

    original = Run.train_step
    monkeypatch.setattr(Run, "train_step", train_step)
    plan = functools.partial(plan_suite, tiny_suite(), [], timed_steps=2, progress=False)
    assert "4 runs left" in odd_defaults(lambda data: plan(data=data))
    assert set(timed) == {(torch.float32, "cpu")}
