"""Interventions on trained nets: what they do, and when a suite records them."""

import copy
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
from mrla_minimal.lab.data import Cifar, Split, normalise
from mrla_minimal.lab.engine import TrainingDiverged
from mrla_minimal.lab.evidence import interventions, report_interventions
from mrla_minimal.lab.evidence.interventions import intervene, refitted_norms, standard_error
from mrla_minimal.lab.evidence.records import load_interventions
from mrla_minimal.lab.files import read_records


def by_hand(model, images, labels, replace):
    """Accuracy with each layer's weights passed through replace(stage, layer, weights)."""
    hooks = []
    for s, stage in enumerate(model.stages):
        for t, block in enumerate(stage):
            place = block.layer_attention.weights
            hooks.append(place.register_forward_hook(lambda m, i, w, s=s, t=t: replace(s, t, w)))
    with torch.no_grad():
        hits = model(images).argmax(dim=1) == labels
    for hook in hooks:
        hook.remove()
    return hits.double().mean().item()


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
    for _ in range(20):
        model(normalise(noise[0].images))      # running statistics that fit the weights
    model.eval()
    x = normalise(noise[1].images)
    with torch.no_grad():
        model.classifier.bias -= model(x).mean(dim=0)       # no class is everyone's favourite
        labels = model(x).argmax(dim=1)                     # so that it is always right, as learned
    images = Cifar(noise[0], Split(noise[1].images, labels), tuple("abcdefghij"), "synthetic", "noise")
    found = intervene(model, images, mean_over=30)
    seen = {}

    def keep(s, t, weights):
        seen[s, t] = weights.mean(dim=0, keepdim=True)

    by_hand(model, normalise(noise[0].images[:30]), noise[0].labels[:30], keep)
    mean = by_hand(model, x, labels, lambda s, t, w: seen[s, t].expand_as(w))

    def level(s, t, weights):
        return torch.full_like(weights, seen[s, t].mean() if name == "mrla-light" else 1 / weights.shape[-1])

    uniform = by_hand(model, x, labels, level)
    accuracies = {"learned", "mean", "shuffle", "uniform", "learned_refitted", "uniform_refitted"}
    assert set(found) == {*accuracies, "changed", "images"} and found["images"] == 50
    against = {"mean": "learned", "shuffle": "learned", "uniform": "learned",
               "uniform_refitted": "learned_refitted"}
    assert set(found["changed"]) == set(against)
    hits = {}
    # By hand: the norms of the net under each `how`, fitted to the training images.
    for how in ("learned", "uniform"):
        copied, fitted_to = copy.deepcopy(model), normalise(noise[0].images[:30])
        frozen = freeze_attention(copied, "uniform", fitted_to) if how == "uniform" else nullcontext()
        with torch.no_grad(), frozen:
            for norm in [module for module in copied.modules() if isinstance(module, torch.nn.BatchNorm2d)]:
                norm.reset_running_stats()
                norm.momentum = 1.0         # one batch: the last is all
                norm.train()
            copied(fitted_to)
            copied.eval()
            hits[how] = copied(x).argmax(dim=1) == labels
        assert found[f"{how}_refitted"] == pytest.approx(hits[how].double().mean().item())
    assert found["changed"]["uniform_refitted"] == [int((hits["learned"] & ~hits["uniform"]).sum()),
                                                    int((~hits["learned"] & hits["uniform"]).sum())]
    cases = ("learned", "learned_refitted", "uniform", "uniform_refitted")
    assert len({found[how] for how in cases}) > 2
    for how, base in against.items():
        lost, gained = found["changed"][how]
        assert (gained - lost) / 50 == pytest.approx(found[how] - found[base])
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


def test_refitted_norms_are_those_of_the_images_and_of_the_net_as_it_runs(monkeypatch):
    """Of the net under an intervention, too. By hand: the inputs that each batch norm sees."""
    torch.manual_seed(0)
    monkeypatch.setattr(interventions, "BATCH", 20)         # three batches: all of them count, and equally
    model = cifar_resnet(14, width=4, layer_attention="mrla-base", head_dim=2, drop_path=0.5).train()
    images = torch.randn(60, 3, 32, 32) * torch.arange(1, 4).repeat_interleave(20)[:, None, None, None]
    for _ in range(3):
        model(images[:8])
    # a mode that is not the model's own has to survive, too
    model.stages[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    with freeze_attention(model, "uniform"), refitted_norms(model, images):
        seen = {}
        hooks = [norm.register_forward_hook(lambda module, inputs, _: seen.__setitem__(module, inputs[0]))
                 for norm in norms]
        assert not model.training and not any(norm.training for norm in norms)
        with torch.no_grad():
            model(images)
        for hook in hooks:
            hook.remove()
        first = norms[0]                # what it is fed depends on no other norm
        parts = [part.transpose(0, 1).flatten(1) for part in seen[first].split(20)]
        assert torch.allclose(first.running_mean,
                              torch.stack([part.mean(dim=1) for part in parts]).mean(dim=0), atol=1e-5)
        assert torch.allclose(first.running_var, torch.stack([part.var(dim=1) for part in parts]).mean(dim=0),
                              rtol=1e-4)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert all(norm.momentum == 0.1 for norm in norms)
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(KeyError), refitted_norms(model, images):
        raise KeyError
    with pytest.raises(ValueError, match="needs images"), refitted_norms(model, images[:0]):
        pass
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (12, 3), (7, 7), (0, 40)])
def test_the_standard_error_is_that_of_a_mean_of_changes(lost, gained):
    changes = torch.tensor([-1.0] * lost + [1.0] * gained + [0.0] * (200 - lost - gained),
                           dtype=torch.float64)
    assert standard_error(lost, gained, 200) == pytest.approx((changes.var(correction=0) / 200).sqrt().item())


def test_nets_that_choose_nothing_have_no_interventions():
    for name in (None, "depthwise", "depthwise-carry", "uniform"):
        assert intervene(cifar_resnet(8, width=4, layer_attention=name), tiny_cifar()) is None


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_net_whose_numbers_are_not_finite_has_no_accuracy(number):
    model = cifar_resnet(8, layer_attention="mrla-base", width=4)
    with torch.no_grad():
        model.classifier.bias[3] = number
    with pytest.raises(TrainingDiverged, match="not all logits of 40 images are finite"):
        intervene(model, tiny_cifar())


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
    assert text.count("mrla-base") == 2 and f"{100 * (found[0]['mean'] - found[0]['learned']):+.2f} (" in text


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


def test_interventions_of_an_older_form_are_shown_and_measured_anew_beside_them(repository):
    run_nets(variants=("mrla-base",))
    path = Path("data/results/tiny-interventions.jsonl")
    (whole,) = read_records(path)[0]
    old = {name: value for name, value in whole.items()
           if name not in ("changed", "images", "learned_refitted", "uniform_refitted")}
    path.write_text(json.dumps(old) + "\n")
    (line,) = [line for line in report_interventions(load_interventions(path)).splitlines()
               if line.startswith("mrla-base")]
    assert line.split()[-2:] == ["-", "-"] and "(" not in line
    run_nets(variants=("mrla-base",))
    lines = read_records(path)[0]
    assert lines[0] == old and len(lines) == 2 and lines[1]["changed"] == whole["changed"]
    assert load_interventions(path) == [lines[1]]


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
