"""Interventions on trained nets: what they do, and when a suite records them."""

import copy
import dataclasses
import json
import math
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from tiny import tiny_cifar
from tiny_suites import export_nets, run_nets

from mrla_minimal import cifar_resnet, freeze_attention, record_attention
from mrla_minimal.lab.data import Cifar, Split, normalise, plan_epoch
from mrla_minimal.lab.device import World
from mrla_minimal.lab.engine import Run, TrainConfig, TrainingDiverged
from mrla_minimal.lab.engine.inputs import is_augmented, prepared
from mrla_minimal.lab.evidence import intervention_means, interventions, report_interventions
from mrla_minimal.lab.evidence.interventions import (
    intervene,
    refitted_norms,
    right_answers,
    standard_error,
    training_batches,
)
from mrla_minimal.lab.evidence.records import load_interventions
from mrla_minimal.lab.files import read_records
from mrla_minimal.lab.positive_controls import wipe_streams


def by_hand(model, images, labels, replace):
    """Accuracy with each layer's weights passed through replace(stage, layer, weights)."""
    return answers(model, images, labels, replace).double().mean().item()


def answers(model, images, labels, replace):
    """Which images are answered rightly so: boolean (N,)."""
    hooks = []
    for s, stage in enumerate(model.stages):
        for t, block in enumerate(stage):
            place = block.layer_attention.weights
            hooks.append(place.register_forward_hook(lambda m, i, w, s=s, t=t: replace(s, t, w)))
    with torch.no_grad():
        hits = model(images).argmax(dim=1) == labels
    for hook in hooks:
        hook.remove()
    return hits


@pytest.mark.parametrize("name", ["mrla-base", "mrla-light"])
def test_each_intervention_does_what_it_says(name):
    torch.manual_seed(3)
    model = cifar_resnet(14, width=4, layer_attention=name, head_dim=2)
    for label, parameter in model.named_parameters():
        if "query" in label or "key" in label:
            torch.nn.init.normal_(parameter, std=3.0)       # untrained weights hardly choose: these do
        elif "norm.weight" in label or "norm2.weight" in label:
            torch.nn.init.ones_(parameter)
    noise = []
    for count in (60, 50):      # some of them dark
        pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
        shade = torch.randint(1, 9, (count, 3, 1, 1)).to(torch.uint8)
        noise.append(Split(pixels // shade, torch.zeros(count, dtype=torch.int64)))
    model.train()
    for _ in range(40):
        model(normalise(noise[0].images))      # running statistics that fit the weights
    model.eval()
    x = normalise(noise[1].images)
    with torch.no_grad():
        model.classifier.bias -= model(x).mean(dim=0)       # no class is everyone's favourite
        labels = model(x).argmax(dim=1)                     # so that it is always right, as learned
    images = Cifar(noise[0], Split(noise[1].images, labels), tuple("abcdefghij"), "synthetic", "noise")
    # no crops, no flips, one batch of all: norms are refitted on these images as they are
    found = intervene(model, images, TrainConfig(batch_size=60, augment="off", epochs=3), mean_over=30)
    seen = {}

    def keep(s, t, weights):
        seen[s, t] = weights.mean(dim=0, keepdim=True)

    by_hand(model, normalise(noise[0].images[:30]), noise[0].labels[:30], keep)
    mean = by_hand(model, x, labels, lambda s, t, w: seen[s, t].expand_as(w))

    def level(s, t, weights):
        return torch.full_like(weights, seen[s, t].mean() if name == "mrla-light" else 1 / weights.shape[-1])

    uniform = by_hand(model, x, labels, level)
    assert set(found) == {"learned", "mean", "shuffle", "uniform", "changed", "images", "refitted"}
    assert found["images"] == 50 and not found["refitted"]["augmented"]
    # shuffled: the weights that another image has when left alone
    with torch.no_grad(), record_attention(model) as own:
        model(x)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    other = torch.empty_like(order)
    other[order] = order.roll(1)
    own = [[weights.clone() for weights in row] for row in own]
    assert found["shuffle"] == pytest.approx(by_hand(model, x, labels, lambda s, t, w: own[s][t][other]))
    # All were right: answers can only be lost.
    assert found["changed"]["mean"] == [round(50 * (1 - found["mean"])), 0]
    assert found["mean"] == pytest.approx(mean) and found["uniform"] == pytest.approx(uniform)
    assert max(found["mean"], found["shuffle"], found["uniform"]) < found["learned"] == 1.0, found

    # Once more by hand, the norms of each of these nets fitted to the training images.
    whole = normalise(noise[0].images)[plan_epoch(60, seed=0, epoch=2).order]       # the last epoch's
    constant = {"mean": lambda s, t, w: seen[s, t].expand_as(w), "uniform": level}
    with torch.no_grad(), record_attention(model) as own_of_whole:
        model(whole)
    own_of_whole = [[weights.clone() for weights in row] for row in own_of_whole]
    # the shuffle goes on drawing: after the 50 test images, for the 60 of the fit, and for the 50 again
    generator, drawn = torch.Generator().manual_seed(0), []
    for count in (50, 60, 50):
        order = torch.randperm(count, generator=generator)
        drawn.append(torch.empty_like(order))
        drawn[-1][order] = order.roll(1)
    hits = {}
    for how in ("learned", "mean", "shuffle", "uniform"):
        copied = copy.deepcopy(model)
        for norm in [module for module in copied.modules() if isinstance(module, torch.nn.BatchNorm2d)]:
            norm.reset_running_stats()
            norm.momentum = 1.0         # one batch: the last is all
        if how == "shuffle":
            by_hand(copied.train(), whole, noise[0].labels, lambda s, t, w: own_of_whole[s][t][drawn[1]])
            hits[how] = answers(copied.eval(), x, labels, lambda s, t, w: own[s][t][drawn[2]])
        else:
            replace = constant.get(how, lambda s, t, w: w)
            by_hand(copied.train(), whole, noise[0].labels, replace)
            hits[how] = answers(copied.eval(), x, labels, replace)
    refitted = found["refitted"]
    assert {how: refitted[how] for how in hits} == \
        {how: pytest.approx(right.double().mean().item()) for how, right in hits.items()}
    assert len({refitted[how] for how in hits}) > 2 and refitted["mean"] != found["mean"]
    changed = {how: [int((hits["learned"] & ~right).sum()), int((~hits["learned"] & right).sum())]
               for how, right in hits.items()}
    assert refitted["changed"] == changed | {"learned": [round(50 * (1 - refitted["learned"])), 0]}
    assert changed["uniform"][0] > changed["uniform"][1]
    for part, base in ((found, 1.0), (refitted, refitted["learned"])):
        for how in ("mean", "shuffle", "uniform"):
            lost, gained = part["changed"][how]
            assert (gained - lost) / 50 == pytest.approx(part[how] - base)


def norms_of(model):
    return [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]


def test_refitted_norms_are_those_of_the_images_and_of_the_net_as_it_runs():
    """Of the net under an intervention, too. By hand: torch's own norms, in a net of the same weights."""
    torch.manual_seed(0)
    model = cifar_resnet(14, width=4, layer_attention="mrla-base", head_dim=2, drop_path=0.5).train()
    by_torch = cifar_resnet(14, width=4, layer_attention="mrla-base", head_dim=2)       # drops nothing
    images = torch.randn(60, 3, 32, 32) * torch.arange(1, 4).repeat_interleave(20)[:, None, None, None]
    for _ in range(3):
        model(images[:8])
    # a mode that is not the model's own has to survive, too
    model.stages[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    modes = [module.training for module in model.modules()]
    by_torch.load_state_dict(before)
    with freeze_attention(by_torch, "uniform"), torch.no_grad():
        torch.optim.swa_utils.update_bn(images.split(20), by_torch)     # three batches, which count equally
    with freeze_attention(model, "uniform"), refitted_norms(model, images.split(20)):
        assert not any(module.training for module in model.modules())
        for norm, expected in zip(norms_of(model), norms_of(by_torch), strict=True):
            assert torch.allclose(norm.running_mean, expected.running_mean, atol=1e-5)
            assert torch.allclose(norm.running_var, expected.running_var, rtol=1e-4)
    assert not torch.allclose(norm.running_mean, expected.running_mean, atol=1e-2)

    def assert_as_it_was():
        assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
        assert all(norm.momentum == 0.1 for norm in norms_of(model))
        assert [module.training for module in model.modules()] == modes
        assert torch.equal(torch.get_rng_state(), random)

    assert_as_it_was()
    with pytest.raises(KeyError), refitted_norms(model, [images]):
        raise KeyError
    with pytest.raises(ValueError, match="needs images"), refitted_norms(model, []):
        pass
    assert_as_it_was()


def test_the_amnesia_hosts_streams_are_wiped_while_norms_are_refitted():
    torch.manual_seed(0)
    model = wipe_streams(cifar_resnet(14, width=4, layer_attention="mrla-light"), 0.5).eval()
    images = torch.rand(64, 3, 32, 32)
    whole = cifar_resnet(14, width=4, layer_attention="mrla-light")
    whole.load_state_dict(model.state_dict())
    means = []
    for seed, net in enumerate((model, model, whole)):
        torch.manual_seed(seed)         # what a program has drawn before makes no difference
        with refitted_norms(net, images.split(16)):
            # what a stage's second block is given, before any norm of its own
            means.append(norms_of(net.stages[0][1])[0].running_mean.clone())
    assert torch.equal(means[0], means[1])          # the same ones each time
    assert not torch.allclose(means[0], means[2], rtol=0.2)


def trained(attention):
    """(the finished run, its images): four classes told apart by brightness, seen in crops and flips."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(640) % 4
    images = torch.randint(0, 60, (640, 3, 32, 32), generator=generator)
    images += 40 * labels[:, None, None, None]
    split = Split(images.to(torch.uint8), labels)
    data = Cifar(split, Split(split.images[:200], labels[:200]), tuple("abcd"), "synthetic", "bright")
    config = TrainConfig(depth=8, width=4, layer_attention=attention, epochs=3, batch_size=32,
                         warmup_epochs=0.5, learning_rate=0.05, device="cpu")
    run = Run(config, World(0, 1, torch.device("cpu")), data=data)
    while not run.finished:
        run.train_step()
    return run, data


def test_a_trained_net_keeps_its_statistics_and_its_answers_on_its_own_batches_and_not_on_whole_images():
    """Padding of crops is darker than any image: norms that never saw it are others'."""
    run, data = trained("mrla-base")
    model, config = run.model, run.config
    inputs = prepared(config, data)
    own = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms_of(model)]
    learned = right_answers(model, data.test)
    assert learned.double().mean() > 0.6        # by guessing: 0.25
    distances = {}
    for name, batches in (("augmented", training_batches(config, inputs.train)),
                          ("whole", normalise(inputs.train.images).split(32))):
        with refitted_norms(model, batches):
            distances[name] = max(((norm.running_mean - mean).abs() / var.sqrt()).max().item()
                                  for norm, (mean, var) in zip(norms_of(model), own, strict=True))
            after = right_answers(model, data.test)
        if name == "augmented":
            assert (learned & ~after).sum() + (~learned & after).sum() <= 6       # of 200
    assert distances["augmented"] < 0.1 and 2 * distances["augmented"] < distances["whole"], distances


def test_norms_are_refitted_on_what_the_last_epoch_trained_on():
    data = tiny_cifar()
    for changes, augmented in (({"epochs": 3}, True), ({"epochs": 1}, False), ({"steps": 14}, True),
                               ({"epochs": 3, "augment": "off"}, False)):
        config = TrainConfig(batch_size=16, seed=5, **changes)
        assert is_augmented(config, 96) is augmented
        run = Run(dataclasses.replace(config, device="cpu"), World(0, 1, torch.device("cpu")), data=data)
        run.step = (run.total_steps - 1) // 6 * 6
        batches = list(training_batches(config, data.train))
        assert len(batches) == 6
        for batch in batches:
            assert torch.equal(batch, run.batch()[0])
            run.step += 1
        two = list(training_batches(config, data.train, count=2))
        assert len(two) == 2 and torch.equal(two[1], batches[1])


def test_a_run_of_a_few_steps_is_looked_into_with_no_more_images_than_it_saw(monkeypatch):
    data, config, given = tiny_cifar(), TrainConfig(batch_size=16, steps=2), []
    assert [len(batch) for batch in training_batches(config, data.train)] == [16, 16]
    monkeypatch.setattr(interventions, "freeze_attention",
                        lambda model, how, images, original: given.append(len(images)) or nullcontext())
    intervene(cifar_resnet(14, width=4, layer_attention="mrla-base"), data, config)
    assert given == [32, 32, 32]


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (12, 3), (7, 7), (0, 40)])
def test_the_standard_error_is_that_of_a_mean_of_changes(lost, gained):
    changes = torch.tensor([-1.0] * lost + [1.0] * gained + [0.0] * (200 - lost - gained),
                           dtype=torch.float64)
    assert standard_error(lost, gained, 200) == pytest.approx((changes.var(correction=0) / 200).sqrt().item())


def test_nets_that_choose_nothing_have_no_interventions():
    for name in (None, "depthwise", "depthwise-carry", "uniform"):
        assert intervene(cifar_resnet(8, width=4, layer_attention=name), tiny_cifar(),
                         TrainConfig(batch_size=16)) is None


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_net_whose_numbers_are_not_finite_has_no_accuracy(number):
    model = cifar_resnet(8, layer_attention="mrla-base", width=4)
    with torch.no_grad():
        model.classifier.bias[3] = number
    with pytest.raises(TrainingDiverged, match="not all logits of 40 images are finite"):
        intervene(model, tiny_cifar(), TrainConfig(batch_size=16))


def test_a_suite_records_them_once_for_each_net_that_chooses(repository):
    records = run_nets(("plain", "mrla-base", "mrla-light"), seeds=(0, 1))
    found = read_records("data/results/tiny-interventions.jsonl")[0]
    expected = [(seed, variant) for seed in (0, 1) for variant in ("mrla-base", "mrla-light")]
    assert [(r["seed"], r["variant"]) for r in found] == expected
    accuracies = {record["id"]: record["test_accuracy"] for record in records}
    for record in found:
        assert record["learned"] == pytest.approx(accuracies[record["id"]])
        assert record["note"] == "a test" and record["fingerprint"] == "tiny"
    run_nets(("plain", "mrla-base", "mrla-light"), seeds=(0, 1))
    assert read_records("data/results/tiny-interventions.jsonl")[0] == found
    text = report_interventions(found)
    assert text.count("\nmrla-base  ") == 2
    assert f"{100 * (found[0]['mean'] - found[0]['learned']):+.2f} (" in text


def test_where_the_run_folder_is_gone_the_committed_checkpoint_serves_if_it_is_of_that_run(repository):
    records = run_nets(variants=("mrla-base",), seeds=(0, 1))
    export_nets(records)
    path = Path("data/results/tiny-interventions.jsonl")
    before = {record["seed"]: record for record in read_records(path)[0]}
    path.unlink()
    shutil.rmtree("runs")
    run_nets(variants=("mrla-base",), seeds=(0, 1))
    (found,) = read_records(path)[0]        # the checkpoint is of seed 0's run: of seed 1 nothing is left
    assert found["seed"] == 0 and found["weights"] == "float16" and before[0]["weights"] == "float32"
    assert found["learned"] == pytest.approx(before[0]["learned"], abs=0.05)


def test_a_committed_checkpoint_that_was_changed_is_not_looked_into(repository):
    export_nets(run_nets(variants=("mrla-base",)))
    Path("data/results/tiny-interventions.jsonl").unlink()
    shutil.rmtree("runs")
    path, index = Path("data/checkpoints/tiny-mrla-base.pt"), Path("data/results/checkpoints.jsonl")
    state = torch.load(path, weights_only=True)
    torch.save({**state, "fingerprint": "other"}, path)         # a whole checkpoint, and another one
    with pytest.raises(ValueError, match="tiny-mrla-base.pt is not the file that was published"):
        run_nets(variants=("mrla-base",))
    index.unlink()          # what no index names is no evidence
    run_nets(variants=("mrla-base",))
    assert not Path("data/results/tiny-interventions.jsonl").exists()


def test_interventions_of_an_older_form_are_shown_without_their_refit_and_measured_anew(repository):
    run_nets(variants=("mrla-base",))
    path = Path("data/results/tiny-interventions.jsonl")
    (whole,) = read_records(path)[0]
    old = {name: value for name, value in whole.items() if name != "refitted"}
    old |= {"learned_refitted": 0.5, "uniform_refitted": 0.25}
    old["changed"] = whole["changed"] | {"uniform_refitted": [10, 0]}
    path.write_text(json.dumps(old) + "\n")
    (shown,) = load_interventions(path)
    assert not [name for name in (*shown, *shown["changed"]) if "refitted" in name]
    assert shown["changed"] == whole["changed"]
    (line,) = [line for line in report_interventions(load_interventions(path)).splitlines()
               if line.startswith("mrla-base  ")]
    assert line.split()[-4:] == ["-"] * 4 and line.count("(") == 3
    assert not any(row.norms_refitted for row in intervention_means([old]))
    for _ in range(2):
        run_nets(variants=("mrla-base",))
        lines = read_records(path)[0]
        assert lines == [old, whole] and load_interventions(path) == [whole]
    path.write_text(json.dumps(whole) + "\n" + json.dumps(old) + "\n")        # another order, as by hand
    assert load_interventions(path) == [whole]
    Path("runs/tiny").rename("runs/gone")           # an older line is kept where there is no net any more
    path.write_text(json.dumps(old) + "\n")
    run_nets(variants=("mrla-base",))
    assert read_records(path)[0] == [old]


def made_up(variant, seed, plain, refitted):
    """A record of 1,000 images: answers lost by mean, shuffle, uniform; once refitted, by learned too."""
    def part(lost):
        return {"learned": 0.8, "changed": {how: [count, 10] for how, count in lost.items()},
                **{how: 0.8 - (count - 10) / 1000 for how, count in lost.items()}}
    names = ("mean", "shuffle", "uniform")
    record = {"id": f"{variant}{seed}", "variant": variant, "seed": seed, "images": 1000,
              **part(dict(zip(names, plain, strict=True)))}
    if refitted is not None:
        again = part(dict(zip(("learned", *names), refitted, strict=True)))
        record["refitted"] = {"augmented": True, **again}
    return record


def test_the_table_gives_each_net_and_the_means_over_nets_as_worked_by_hand():
    records = [made_up("mrla-base", 0, (20, 30, 510), (10, 15, 25, 110)),
               made_up("mrla-base", 1, (40, 50, 610), (12, 25, 35, 210)),
               made_up("mrla-light", 7, (30, 40, 30), None)]
    text = report_interventions(records[::-1]).splitlines()
    lines = [line.split() for line in text]
    # (20 - 10) / 1000 lost, its error sqrt(30 - 10^2 / 1000) / 1000
    assert lines[4][:5] == ["mrla-base", "0", "80.00", "-1.00", "(0.55)"]
    assert lines[4][9:13] == ["+0.00", "(0.45)", "-0.50", "(0.50)"]
    assert lines[6][-4:] == ["-"] * 4
    means = {(row.variant, row.intervention, row.norms_refitted): row for row in intervention_means(records)}
    row = means["mrla-base", "mean", False]
    assert (row.nets, row.mean) == (2, pytest.approx(-0.02))
    # t of one degree of freedom: 12.706 * (0.01414 / sqrt 2) to each side
    assert row.interval == pytest.approx((-0.02 - 0.12706, -0.02 + 0.12706), abs=1e-4)
    assert means["mrla-base", "learned", True].mean == pytest.approx(-0.001)
    assert means["mrla-light", "shuffle", False].interval is None
    assert ("mrla-light", "mean", True) not in means and len(means) == 3 + 4 + 3
    assert "mrla-base, mean                                  2   -2.00  -14.71 to +10.71" in text
    assert "mrla-base, uniform, norms refitted               2  -15.00  -78.53 to +48.53" in text
    assert "mrla-light, mean                                 1   -2.00  too few nets" in text
    head, = [line for line in text if line.startswith("mean over the nets")]
    row, = [line for line in text if line.startswith("mrla-light, mean  ")]
    assert [head.rindex(name) + len(name) for name in ("nets", "points")] == [
        row.index(value) + len(value) for value in (" 1", "-2.00")]
    assert head.index("95 %") == row.index("too few")
    over, heads = text[2:4]
    assert len(over) == len(heads) and over.index("-") > heads.index("uniform") + 8


def test_the_mean_of_equal_changes_has_no_interval_and_that_is_not_for_want_of_nets():
    changed = {"mean": [3, 1], "shuffle": [5, 5], "uniform": [0, 0]}
    nets = [{"variant": "mrla-base", "seed": seed, "learned": 0.5, "images": 100, "changed": changed}
            for seed in (0, 1)]
    for records, why in ((nets, "no scatter"), (nets[:1], "too few nets")):
        assert report_interventions(records).count(why) == 3


def test_what_an_interrupted_suite_lacks_is_made_from_its_run_folders(repository):
    run_nets(("mrla-base", "mrla-light"))
    path = Path("data/results/tiny-interventions.jsonl")
    before = read_records(path)[0]
    path.unlink()
    (gone,) = Path("runs/tiny").glob("mrla-light-*/checkpoint.pt")
    gone.unlink()
    # One run folder is gone: its interventions cannot be made, the other's are.
    run_nets(("mrla-base", "mrla-light"))
    assert [r["variant"] for r in read_records(path)[0]] == ["mrla-base"]
    assert read_records(path)[0][0]["mean"] == before[0]["mean"]
