"""Branches: what they take over from their trunk, where they start, and what they see."""

import dataclasses
import math
import signal
import time
import types

import pytest
import torch
from filelock import FileLock
from kill_and_resume import same
from tiny import tiny_cifar, tiny_config, tiny_run, tiny_train
from torch import nn

from mrla_minimal.lab.engine import (
    Run,
    RunInUse,
    TrainingDiverged,
    TrainingInterrupted,
    TrainingOutOfTime,
    read_checkpoint,
    training,
)
from mrla_minimal.lab.engine.branch import branch_off, finished_trunk, trunk_of, weights_sum
from mrla_minimal.lab.engine.config import OPTIMIZERS
from mrla_minimal.lab.files import read_records

# 96 images in batches of 16: six steps an epoch, of three epochs, of which the trunk has two.
BRANCH = {"epochs": 3, "trunk_epochs": 2, "trunk": "uniform", "layer_attention": "uniform", "augment": "on",
          "learning_rate": 0.05, "depth": 14}
STARTS = (("depthwise", "depthwise-carry-lambda0"), ("uniform", "base-zero-query"),
          ("depthwise", "light-zero-query"), ("uniform", "uniform"))


def branch_config(**changes):
    return tiny_config(**{**BRANCH, **changes})


@pytest.mark.parametrize("fields, message", [
    ({"trunk_epochs": 3}, "trunk_epochs must be fewer than the epochs .*not 3 of 3 epochs"),
    ({"trunk_epochs": 4}, "trunk_epochs must be fewer than the epochs"),
    ({"steps": 9}, "trunk_epochs must be fewer than the epochs .*not 2 of 9 steps"),
    ({"trunk_epochs": 0}, "trunk_epochs must be at least 1 with a trunk \\('uniform'\\), not 0"),
    ({"trunk_epochs": -1}, "trunk_epochs must be an integer from 0"),
    ({"trunk": "unifrom"}, "trunk must be one of 'layer', .*'base-zero-query'.*or none, not 'unifrom'"),
    ({"trunk": "own.py:Own"}, "trunk must be one of"), ({"order": -1}, "order must be an integer from 0"),
])
def test_a_branch_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        branch_config(**fields)


def test_the_trunk_of_a_branch_is_the_same_run_but_for_its_attention_and_its_order():
    config = branch_config(layer_attention="base-zero-query", order=7)
    trunk = trunk_of(config)
    assert trunk == dataclasses.replace(config, layer_attention="uniform", trunk=None, order=None)
    with pytest.raises(ValueError, match="trunk must be the name of a layer attention"):
        trunk_of(trunk)
    run = tiny_run(**{**BRANCH, "trunk": None})
    assert (run.first_step, run.last_step, run.total_steps) == (0, 12, 18)
    run = tiny_run(**BRANCH)
    assert (run.first_step, run.last_step, run.total_steps) == (12, 18, 18)
    run = tiny_run(epochs=3)
    assert (run.first_step, run.last_step, run.total_steps) == (0, 18, 18)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_branch_that_changes_nothing_ends_as_the_run_that_never_branched(tmp_path, optimizer):
    """Weights, momenta, chance (drop_path) and images: all is as if the trunk had gone on."""
    config = branch_config(optimizer=optimizer)
    whole = tiny_train(dataclasses.replace(config, trunk=None, trunk_epochs=0), tmp_path / "whole")
    result = tiny_train(config, tmp_path / "branch")
    assert result.metrics == whole.metrics and len(result.metrics) == 3
    one, other = (read_checkpoint(tmp_path / name) for name in ("whole", "branch"))
    assert all(torch.equal(one["model"][name], tensor) for name, tensor in other["model"].items())
    for number, memory in other["optimizer"]["state"].items():
        wanted = one["optimizer"]["state"][number]
        assert all(torch.equal(wanted[name], value) for name, value in memory.items())
    trunk = read_checkpoint(tmp_path / "branch" / "trunk")
    assert trunk["step"] == 12 and trunk["metrics"] == whole.metrics[:2]
    assert result.trunk == {"step": 12, "train_loss": whole.metrics[1]["train_loss"],
                            "seconds": trunk["seconds"], "weights": weights_sum(trunk["model"])}
    assert whole.trunk is None and "trunk" not in one


@pytest.fixture(scope="module")
def trunks(tmp_path_factory):
    """attention -> the folder of its trunk, trained on the tiny images."""
    folder = tmp_path_factory.mktemp("trunks")
    for name in ("uniform", "depthwise"):
        tiny_train(trunk_of(branch_config(trunk=name)), folder / name)
    return {name: folder / name for name in ("uniform", "depthwise")}


def begun_branch(trunks, trunk, name, **changes):
    """(the Run of a branch at its start, that of its trunk)."""
    branch = tiny_run(**{**BRANCH, "trunk": trunk, "layer_attention": name, "drop_path": 0.0, **changes})
    other = finished_trunk(branch, trunks[trunk], tiny_cifar())
    branch_off(branch, other)
    return branch, other


@pytest.fixture
def without_drop_path(tmp_path):
    """As `trunks`, where no chance enters the net."""
    for name in ("uniform", "depthwise"):
        tiny_train(trunk_of(branch_config(trunk=name, drop_path=0.0)), tmp_path / name)
    return {name: tmp_path / name for name in ("uniform", "depthwise")}


def outputs(run, images, eps=None):
    """The logits of a Run's net in training and in evaluation, in float64."""
    model = run.model.double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and eps is not None:
            module.eps = eps
    found = []
    for training_mode in (False, True):     # training changes the norms' statistics: last
        model.train(training_mode)
        found.append(model(images).detach())
    return found


@pytest.mark.parametrize("trunk, name", STARTS)
def test_a_branch_starts_with_its_trunks_outputs(without_drop_path, trunk, name):
    branch, other = begun_branch(without_drop_path, trunk, name)
    images = tiny_run(**BRANCH).batch()[0].double()
    (evaluated, trained), (wanted_evaluated, wanted) = outputs(branch, images), outputs(other, images)
    scale = wanted.abs().max()
    if name == "light-zero-query":
        assert 0 < (trained - wanted).abs().max() < 1e-2 * scale        # the norm's eps
        assert (evaluated - wanted_evaluated).abs().max() > 1e-2 * scale        # its running statistics
    elif name == "base-zero-query":
        assert (trained - wanted).abs().max() < 1e-12 * scale
        assert (evaluated - wanted_evaluated).abs().max() < 1e-12 * scale
    else:
        assert torch.equal(trained, wanted) and torch.equal(evaluated, wanted_evaluated)


def test_but_for_the_norms_eps_light_starts_with_the_outputs_of_depthwise(without_drop_path):
    branch, other = begun_branch(without_drop_path, "depthwise", "light-zero-query")
    images = tiny_run(**BRANCH).batch()[0].double()
    wanted = outputs(other, images, eps=1e-18)[1]
    assert (outputs(branch, images, eps=1e-18)[1] - wanted).abs().max() < 1e-9 * wanted.abs().max()


def test_another_pair_does_not_start_there(without_drop_path):
    """So the tests above can fail: Eq. 8 with its own start is another net at once."""
    branch, other = begun_branch(without_drop_path, "depthwise", "mrla-light")
    images = tiny_run(**BRANCH).batch()[0].double()
    wanted = outputs(other, images, eps=1e-18)[1]
    assert (outputs(branch, images, eps=1e-18)[1] - wanted).abs().max() > 1e-2 * wanted.abs().max()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weights_and_momenta_are_taken_over_by_name_and_the_rest_starts_as_its_class(tmp_path, optimizer):
    tiny_train(trunk_of(branch_config(optimizer=optimizer)), tmp_path / "uniform")
    branch, trunk = begun_branch({"uniform": tmp_path / "uniform"}, "uniform", "base-zero-query",
                                 optimizer=optimizer, drop_path=0.2)
    theirs = dict(trunk.model.named_parameters())
    new = []
    for name, parameter in branch.model.named_parameters():
        if name not in theirs:
            assert not branch.optimizer.state[parameter]
            new.append(name)
            continue
        assert torch.equal(parameter, theirs[name])
        memory, wanted = branch.optimizer.state[parameter], trunk.optimizer.state[theirs[name]]
        assert memory.keys() == wanted.keys() and all(torch.equal(memory[key], wanted[key]) for key in wanted)
    assert len(new) == 12 and all(name.endswith(("query.weight", "key.weight")) for name in new)
    own = dict(tiny_run(**{**BRANCH, "layer_attention": "base-zero-query"}).model.named_parameters())
    parameters = dict(branch.model.named_parameters())
    assert all(torch.equal(parameters[name], own[name]) for name in new)
    statistics = {name for name in trunk.model.state_dict() if "running" in name}
    state, wanted = branch.model.state_dict(), trunk.model.state_dict()
    assert statistics and all(torch.equal(state[name], wanted[name]) for name in statistics)
    assert (branch.step, branch.metrics) == (12, trunk.metrics)


def test_branches_see_the_same_images_in_the_same_crops_unless_the_order_is_another():
    same_order, other_order, trunk = (
        tiny_run(**{**BRANCH, **changes}) for changes in ({}, {"order": 1}, {"trunk": None}))
    for run in (same_order, other_order, trunk):
        run.step = 13
    batch = trunk.batch()
    assert all(torch.equal(one, other) for one, other in zip(batch, same_order.batch(), strict=True))
    assert not torch.equal(batch[1], other_order.batch()[1])
    reordered = tiny_run(**{**BRANCH, "trunk": None, "order": 0, "seed": 5})
    reordered.step = 13
    assert torch.equal(reordered.batch()[0], batch[0])      # the order is that of seed 0, the weights are not
    assert not torch.equal(reordered.model.stem[0].weight, trunk.model.stem[0].weight)


def test_a_trunk_is_trained_once_for_all_its_branches(tmp_path, monkeypatch):
    steps, original = [], Run.train_step
    monkeypatch.setattr(Run, "train_step",
                        lambda run: (steps.append(run.config.layer_attention), original(run)))
    results = [tiny_train(branch_config(layer_attention=name, order=order), tmp_path / f"{name}{order}",
                          trunk_dir=tmp_path / "trunk")
               for name, order in (("uniform", None), ("base-zero-query", None), ("uniform", 1))]
    assert steps == ["uniform"] * 12 + ["uniform"] * 6 + ["base-zero-query"] * 6 + ["uniform"] * 6
    assert len({result.trunk["weights"] for result in results}) == 1
    assert results[0].metrics[:2] == results[1].metrics[:2] == results[2].metrics[:2]
    assert len({result.metrics[2]["train_loss"] for result in results}) == 3
    written = read_records(tmp_path / "uniform1" / "metrics.jsonl")[0]
    assert [record["epoch"] for record in written] == [1, 2, 3]


@pytest.mark.parametrize("stop_at", [4, 12, 14])
def test_a_branch_that_was_stopped_in_its_trunk_or_after_it_ends_the_same(tmp_path, monkeypatch, stop_at):
    config = branch_config(layer_attention="base-zero-query")
    tiny_train(config, tmp_path / "whole")
    original = Run.train_step

    def train_step(run):
        original(run)
        if run.step == stop_at:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "train_step", train_step)
        if stop_at == 12:       # the end of the trunk: it is whole, and the branch is begun
            patch.setattr(training, "branch_off", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt) as interrupt:
            tiny_train(config, tmp_path / "parts")
    if stop_at < 12:
        assert isinstance(interrupt.value, TrainingInterrupted) and interrupt.value.signal == signal.SIGINT
        assert str(interrupt.value).startswith("interrupted in its trunk; to go on: mrla train --resume ")
        assert str(interrupt.value).endswith("parts")
    result = tiny_train(config, tmp_path / "parts", resume=True)
    assert same(tmp_path / "whole", tmp_path / "parts")
    again = tiny_train(config, tmp_path / "parts", resume=True)
    assert again.trunk == result.trunk and again.metrics == result.metrics


def test_a_trunk_stops_when_its_time_is_over_and_is_gone_on_with(tmp_path):
    with pytest.raises(TrainingOutOfTime, match="in its trunk; to go on: mrla train --resume .*branch$"):
        tiny_train(branch_config(), tmp_path / "branch", until=time.monotonic())
    assert read_checkpoint(tmp_path / "branch" / "trunk")["step"] == 1
    assert len(tiny_train(branch_config(), tmp_path / "branch", resume=True).metrics) == 3


def test_a_trunk_that_another_process_trains_is_left_to_it(tmp_path):
    (tmp_path / "trunk").mkdir()
    with FileLock(tmp_path / "trunk" / ".lock"), pytest.raises(RunInUse, match="trunk is in use"):
        tiny_train(branch_config(), tmp_path / "branch", trunk_dir=tmp_path / "trunk")
    result = tiny_train(branch_config(), tmp_path / "branch", resume=True, trunk_dir=tmp_path / "trunk")
    assert len(result.metrics) == 3


@pytest.mark.parametrize("field, value", [("width", 8), ("depth", 8), ("resolution", 16), ("seed", 1),
                                          ("trunk_epochs", 1), ("learning_rate", 0.1), ("epochs", 4)])
def test_a_trunk_of_other_branches_is_refused(tmp_path, trunks, field, value):
    with pytest.raises(ValueError, match=f"no trunk of this branch: {field}: stored .*given {value}"):
        tiny_train(branch_config(**{field: value}), tmp_path / "branch", trunk_dir=trunks["uniform"])


def test_a_trunk_of_another_attention_or_of_other_images_is_refused(tmp_path, trunks):
    with pytest.raises(ValueError, match="no trunk of this branch: layer_attention: stored 'depthwise'"):
        tiny_train(branch_config(), tmp_path / "branch", trunk_dir=trunks["depthwise"])
    others = dataclasses.replace(tiny_cifar(), fingerprint="others")
    with pytest.raises(ValueError, match="was trained on other images"):
        tiny_train(branch_config(), tmp_path / "other", trunk_dir=trunks["uniform"], data=others)


def test_several_processes_do_not_train_one_branch(trunks):
    branch = tiny_run(**BRANCH)
    branch.world = types.SimpleNamespace(parallel=True, size=2)
    with pytest.raises(ValueError, match="a branch is trained by one process, not by 2"):
        finished_trunk(branch, trunks["uniform"], tiny_cifar())


def test_a_trunk_that_diverges_is_told_by_its_branch(tmp_path):
    with pytest.raises(TrainingDiverged, match="the last good checkpoint is .*trunk"):
        tiny_train(branch_config(learning_rate=1e30), tmp_path / "branch")


@pytest.mark.parametrize("trunk, message", [
    (None, "trunk must be a table"), ({}, "the trunk's step"), ({"step": 6}, "the trunk's step"),
    ({"step": 12, "train_loss": math.nan}, "the trunk's loss"),
    ({"step": 12, "train_loss": 1.0, "seconds": -1}, "the trunk's seconds"),
    ({"step": 12, "train_loss": 1.0, "seconds": 1.0, "weights": 3}, "the trunk's weights"),
])
def test_a_damaged_memory_of_the_trunk_is_refused(tmp_path, trunks, trunk, message):
    folder = tmp_path / "branch"
    tiny_train(branch_config(), folder, trunk_dir=trunks["uniform"])
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    torch.save({**state, "trunk": trunk}, folder / "checkpoint.pt")
    with pytest.raises(ValueError, match=f"checkpoint.pt is damaged: {message}"):
        tiny_train(branch_config(), folder, resume=True)


def test_a_trunk_that_has_ended_without_its_last_record_is_damaged(tmp_path, trunks):
    """The last step of a trunk is not that of its schedule."""
    state = torch.load(trunks["uniform"] / "checkpoint.pt", weights_only=True)
    cut = {"metrics": state["metrics"][:1], "losses": [1.0] * 6, "hits": [0.5] * 6}
    (tmp_path / "trunk").mkdir()
    torch.save({**state, **cut}, tmp_path / "trunk" / "checkpoint.pt")
    with pytest.raises(ValueError, match="is damaged: the run ended at step 12, and its metrics do not"):
        finished_trunk(tiny_run(**BRANCH), tmp_path / "trunk", tiny_cifar())


def test_throughput_counts_the_branchs_own_steps(trunks):
    run = tiny_run(**BRANCH)
    run.step, run.seconds = 15, 2.0
    assert run.images_per_second == 3 * 16 / 2.0
