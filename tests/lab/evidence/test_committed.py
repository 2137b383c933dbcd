"""Interventions on trained nets, small checkpoints, and reading what is committed."""

import copy
import hashlib
import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from tiny import tiny_cifar

from mrla_minimal import cifar_resnet, freeze_attention, record_attention
from mrla_minimal.lab import cli, data, evidence, experiments, interventions, quiz, training
from mrla_minimal.lab.data import Cifar, Split
from mrla_minimal.lab.evidence import Suite, detectable_difference, reading, report_interventions, run_suite
from mrla_minimal.lab.evidence.interventions import intervene, refitted_norms, standard_error
from mrla_minimal.lab.files import append_record, read_records, replace_file

ROOT = Path(__file__).parents[3]
RECIPE = {"depth": 14, "width": 4, "batch_size": 16, "steps": 6, "device": "cpu", "source": "synthetic"}
VARIANTS = {name: {"layer_attention": None if name == "plain" else name} for name in ("plain", "mrla-base", "mrla-light", "depthwise")}
SUITE = Suite("tiny", VARIANTS, RECIPE, seeds=(0, 1), note="a test")


@pytest.fixture(autouse=True)
def tiny_data(monkeypatch):
    for module in (training, experiments, evidence, data):
        monkeypatch.setattr(module, "load_cifar", tiny_cifar)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """An empty repository as the working directory, in which SUITE is a suite like any other."""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "mrla-minimal"\n')
    monkeypatch.setitem(experiments.SUITES, "tiny", SUITE)
    monkeypatch.setitem(experiments.SUITES, "large", Suite("large", VARIANTS, RECIPE))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(variants=tuple(VARIANTS), seeds=(0,)):
    return run_suite(SUITE, Path("data/results/tiny.jsonl"), variants=variants, seeds=seeds, progress=False)


# Interventions

def by_hand(model, images, labels, replace):
    """Accuracy with each layer's weights passed through replace(stage, layer, weights)."""
    hooks = []
    for s, stage in enumerate(model.stages):
        for t, block in enumerate(stage):
            hooks.append(block.layer_attention.weights.register_forward_hook(lambda m, i, w, s=s, t=t: replace(s, t, w)))
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
    noise = [Split(torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8) // torch.randint(1, 9, (count, 3, 1, 1)).to(torch.uint8),
                   torch.zeros(count, dtype=torch.int64)) for count in (60, 50)]
    model.train()
    for _ in range(20):
        model(data.normalise(noise[0].images))      # running statistics that fit the weights
    model.eval()
    x = data.normalise(noise[1].images)
    with torch.no_grad():
        model.classifier.bias -= model(x).mean(dim=0)       # no class is everyone's favourite
        labels = model(x).argmax(dim=1)                     # so that it is always right, as learned
    images = Cifar(noise[0], Split(noise[1].images, labels), tuple("abcdefghij"), "synthetic", "noise")
    found = intervene(model, images, mean_over=30)
    seen = {}

    def keep(s, t, weights):
        seen[s, t] = weights.mean(dim=0, keepdim=True)

    by_hand(model, data.normalise(noise[0].images[:30]), noise[0].labels[:30], keep)
    mean = by_hand(model, x, labels, lambda s, t, w: seen[s, t].expand_as(w))
    uniform = by_hand(model, x, labels, lambda s, t, w: torch.full_like(w, seen[s, t].mean() if name == "mrla-light" else 1 / w.shape[-1]))
    accuracies = {"learned", "mean", "shuffle", "uniform", "learned_refitted", "uniform_refitted"}
    assert set(found) == {*accuracies, "changed", "images"} and found["images"] == 50
    against = {"mean": "learned", "shuffle": "learned", "uniform": "learned", "uniform_refitted": "learned_refitted"}
    assert set(found["changed"]) == set(against)
    hits = {}
    for how in ("learned", "uniform"):      # by hand: the norms of the net under this `how`, fitted to the training images
        copied, fitted_to = copy.deepcopy(model), data.normalise(noise[0].images[:30])
        with torch.no_grad(), freeze_attention(copied, "uniform", fitted_to) if how == "uniform" else nullcontext():
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
    assert len({found["learned"], found["learned_refitted"], found["uniform"], found["uniform_refitted"]}) > 2     # the cases differ
    for how, base in against.items():
        lost, gained = found["changed"][how]
        assert (gained - lost) / 50 == pytest.approx(found[how] - found[base])
    with torch.no_grad(), record_attention(model) as own:       # shuffled: the weights that another image has when left alone
        model(x)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    other = torch.empty_like(order)
    other[order] = order.roll(1)
    own = [[weights.clone() for weights in row] for row in own]
    assert found["shuffle"] == pytest.approx(by_hand(model, x, labels, lambda s, t, w: own[s][t][other]))
    assert found["changed"]["mean"] == [round(50 * (1 - found["mean"])), 0]     # all were right: answers can only be lost
    assert found["mean"] == pytest.approx(mean) and found["uniform"] == pytest.approx(uniform)
    assert max(found["mean"], found["shuffle"], found["uniform"]) < found["learned"] == 1.0, found


def test_refitted_norms_are_those_of_the_images_and_of_the_net_as_it_runs(monkeypatch):
    """Of the net under an intervention, too; by hand: the inputs that each batch norm sees, layer by layer."""
    torch.manual_seed(0)
    monkeypatch.setattr(interventions, "BATCH", 20)         # three batches: all of them count, and equally
    model = cifar_resnet(14, width=4, layer_attention="mrla-base", head_dim=2, drop_path=0.5).train()
    images = torch.randn(60, 3, 32, 32) * torch.arange(1, 4).repeat_interleave(20)[:, None, None, None]
    for _ in range(3):
        model(images[:8])
    model.stages[1].eval()                                  # a mode that is not the model's own has to survive, too
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    with freeze_attention(model, "uniform"), refitted_norms(model, images):
        seen = {}
        hooks = [norm.register_forward_hook(lambda module, inputs, _: seen.__setitem__(module, inputs[0])) for norm in norms]
        assert not model.training and not any(norm.training for norm in norms)
        with torch.no_grad():
            model(images)
        for hook in hooks:
            hook.remove()
        first = norms[0]                # what it is fed depends on no other norm
        parts = [part.transpose(0, 1).flatten(1) for part in seen[first].split(20)]
        assert torch.allclose(first.running_mean, torch.stack([part.mean(dim=1) for part in parts]).mean(dim=0), atol=1e-5)
        assert torch.allclose(first.running_var, torch.stack([part.var(dim=1) for part in parts]).mean(dim=0), rtol=1e-4)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert all(norm.momentum == 0.1 for norm in norms) and [module.training for module in model.modules()] == modes
    with pytest.raises(KeyError), refitted_norms(model, images):
        raise KeyError
    with pytest.raises(ValueError, match="needs images"), refitted_norms(model, images[:0]):
        pass
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (12, 3), (7, 7), (0, 40)])
def test_the_standard_error_is_that_of_a_mean_of_changes(lost, gained):
    changes = torch.tensor([-1.0] * lost + [1.0] * gained + [0.0] * (200 - lost - gained), dtype=torch.float64)
    assert standard_error(lost, gained, 200) == pytest.approx((changes.var(correction=0) / 200).sqrt().item())


def test_nets_that_choose_nothing_have_no_interventions():
    for name in (None, "depthwise", "depthwise-carry", "uniform"):
        assert intervene(cifar_resnet(8, width=4, layer_attention=name), tiny_cifar()) is None


def test_a_suite_records_them_once_for_each_net_that_chooses(repository):
    records = run(seeds=(0, 1))
    found = read_records("data/results/tiny-interventions.jsonl")[0]
    assert [(r["seed"], r["variant"]) for r in found] == [(0, "mrla-base"), (0, "mrla-light"), (1, "mrla-base"), (1, "mrla-light")]
    accuracies = {record["id"]: record["test_accuracy"] for record in records}
    for record in found:
        assert record["learned"] == pytest.approx(accuracies[record["id"]])
        assert record["note"] == "a test" and record["fingerprint"] == "tiny"
    run(seeds=(0, 1))
    assert read_records("data/results/tiny-interventions.jsonl")[0] == found
    text = report_interventions(found)
    assert text.count("mrla-base") == 2 and f"{100 * (found[0]['mean'] - found[0]['learned']):+.2f} (" in text


def test_where_the_run_folder_is_gone_the_committed_checkpoint_serves_if_it_is_of_that_run(repository):
    records = run(variants=("mrla-base",), seeds=(0, 1))
    evidence.export_checkpoints(SUITE, records, "runs", Path("data/checkpoints"), Path("data/results/checkpoints.jsonl"))
    path = Path("data/results/tiny-interventions.jsonl")
    before = {record["seed"]: record for record in read_records(path)[0]}
    path.unlink()
    shutil.rmtree("runs")
    run(variants=("mrla-base",), seeds=(0, 1))
    (found,) = read_records(path)[0]        # the checkpoint is of seed 0's run: of seed 1 nothing is left
    assert found["seed"] == 0 and found["weights"] == "float16" and before[0]["weights"] == "float32"
    assert found["learned"] == pytest.approx(before[0]["learned"], abs=0.05)


def test_interventions_of_an_older_form_are_shown_and_measured_anew_beside_them(repository):
    run(variants=("mrla-base",))
    path = Path("data/results/tiny-interventions.jsonl")
    (whole,) = read_records(path)[0]
    old = {name: value for name, value in whole.items() if name not in ("changed", "images", "learned_refitted", "uniform_refitted")}
    path.write_text(json.dumps(old) + "\n")
    (line,) = [line for line in report_interventions(experiments.load_interventions(path)).splitlines() if line.startswith("mrla-base")]
    assert line.split()[-2:] == ["-", "-"] and "(" not in line
    run(variants=("mrla-base",))
    lines = read_records(path)[0]
    assert lines[0] == old and len(lines) == 2 and lines[1]["changed"] == whole["changed"]
    assert experiments.load_interventions(path) == [lines[1]]


def test_what_an_interrupted_suite_lacks_is_made_from_its_run_folders(repository):
    run()
    path = Path("data/results/tiny-interventions.jsonl")
    before = read_records(path)[0]
    path.unlink()
    (Path("runs/tiny") / next(p.name for p in Path("runs/tiny").iterdir() if "mrla-light" in p.name) / "checkpoint.pt").unlink()
    run()       # one run folder is gone: its interventions cannot be made, the other's are
    assert [r["variant"] for r in read_records(path)[0]] == ["mrla-base"]
    assert read_records(path)[0][0]["mean"] == before[0]["mean"]


# Checkpoints

def export(records):
    return evidence.export_checkpoints(SUITE, records, "runs", Path("data/checkpoints"), Path("data/results/checkpoints.jsonl"))


def test_an_exported_checkpoint_is_small_and_reaches_what_its_line_says(repository):
    records = run(seeds=(1, 0))
    lines = export(records)
    assert [line["variant"] for line in lines] == list(VARIANTS) and {line["seed"] for line in lines} == {0}
    for line in lines:
        path = Path("data/checkpoints") / line["file"]
        assert line["file"] == f"tiny-{line['variant']}.pt" and hashlib.sha256(path.read_bytes()).hexdigest() == line["sha256"]
        record = next(record for record in records if record["id"] == line["id"])
        assert (record["variant"], record["seed"]) == (line["variant"], 0) and line["test_accuracy"] == record["test_accuracy"]
        model, state = training.load_model(path)
        assert training.evaluate(model, tiny_cifar().test)[1] == line["rounded_test_accuracy"]
        assert state["id"] == line["id"] and state["config"]["data_root"] is None and "optimizer" not in state
        whole = training.read_checkpoint(experiments.run_folder(SUITE, record))["model"]
        for name, tensor in state["model"].items():
            kept = tensor.dtype if "running_" in name or not tensor.is_floating_point() else torch.float16
            assert tensor.dtype == kept and torch.equal(tensor, whole[name].to(kept)), name
    before = {path: path.read_bytes() for path in Path("data").rglob("*.*")}
    assert export(records) == [] and before == {path: path.read_bytes() for path in Path("data").rglob("*.*")}


def test_export_and_evaluate_on_the_command_line(repository, capsys):
    run(variants=("mrla-light",))
    assert cli.main(["compare", "--suite", "tiny", "--export"]) == 0
    line = read_records("data/results/checkpoints.jsonl")[0][0]
    assert "1 checkpoints written" in capsys.readouterr().out
    assert cli.main(["evaluate", "data/checkpoints/tiny-mrla-light.pt"]) == 0
    assert f"test accuracy {100 * line['rounded_test_accuracy']:.2f} %" in capsys.readouterr().out


def test_a_net_too_large_or_a_run_folder_gone_is_refused(repository, monkeypatch):
    records = run(variants=("plain",))
    monkeypatch.setattr(evidence, "LARGEST_CHECKPOINT", 1000)
    with pytest.raises(ValueError, match="at most 1000 are committed"):
        export(records)
    assert not Path("data/checkpoints").exists()
    with pytest.raises(ValueError, match="no such checkpoint"):
        evidence.export_checkpoints(SUITE, records, "elsewhere", Path("data/checkpoints"), Path("data/results/checkpoints.jsonl"))


def test_weights_alone_are_not_resumed(repository):
    records = run(variants=("plain",))
    export(records)
    folder = experiments.run_folder(SUITE, records[0])
    replace_file(folder / "checkpoint.pt", lambda file: file.write(Path("data/checkpoints/tiny-plain.pt").read_bytes()))
    with pytest.raises(ValueError, match="holds weights alone"):
        training.train(training.read_config(folder), folder, resume=True, progress=False)


# Reading

def test_what_is_not_there_is_said_and_the_pilot_takes_its_place(repository, capsys):
    assert evidence.committed_records("tiny") == [] and evidence.committed_records("anything") == []
    assert evidence.read_suite("large", pilot="tiny") is None
    assert capsys.readouterr().out == ("large: no records yet; to make them: mrla compare --suite large\n"
                                       "tiny: no records yet; to make them: mrla compare --suite tiny\n")
    assert evidence.load_committed("plain", ("large", "tiny")) is None
    assert capsys.readouterr().out == "plain: no checkpoint yet; to make it: mrla compare --suite large --export\n"
    records = run()
    export(records)
    capsys.readouterr()
    summary = evidence.read_suite("large", pilot="tiny")
    assert summary.suite == "tiny" and set(summary.accuracies) == set(VARIANTS)
    assert capsys.readouterr().out.endswith("shown in its place: tiny, a test\n")
    assert evidence.suite_records("large", pilot="tiny") == ("tiny", records)
    assert [r["variant"] for r in evidence.read_interventions("large", pilot="tiny")] == ["mrla-base", "mrla-light"]
    model, state = evidence.load_committed("mrla-base", ("large", "tiny"))
    assert not model.training and state["config"]["layer_attention"] == "mrla-base"
    assert evidence.read_interventions("large") == [] and evidence.suite_records("large") == ("large", [])


def test_own_records_come_before_the_pilots_and_unfinished_ones_do_not_count(repository, capsys):
    run(variants=("plain",))
    (record,) = read_records("data/results/tiny.jsonl")[0]
    append_record("data/results/large.jsonl", {**record, "suite": "large", "phase": "tuning"})
    assert evidence.suite_records("large", pilot="tiny")[0] == "tiny"
    append_record("data/results/large.jsonl", {**record, "suite": "large", "id": "other"})
    assert evidence.suite_records("large", pilot="tiny")[0] == "large"
    assert "no records yet" not in capsys.readouterr().out.splitlines()[-1]


def test_outside_of_a_repository_there_is_nothing_to_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="lies in no copy of the repository"):
        evidence.committed_records("tiny")


# Statistics that the reading needs

@pytest.mark.parametrize(("n", "low", "high"), [(3, 0.92, 1.39), (5, 0.47, 0.72), (10, 0.28, 0.43)])
def test_the_detectable_difference_is_found_as_often_as_it_says(n, low, high):
    """For seed deviations of 0.2 and 0.3 points, uncorrelated between variants; checked by drawing, not by the formula."""
    found = [detectable_difference(deviation * 2**0.5, n) for deviation in (0.2, 0.3)]
    assert low <= found[0] < found[1] <= high
    generator = torch.Generator().manual_seed(0)
    draws = found[0] + 0.2 * 2**0.5 * torch.randn(40_000, n, generator=generator, dtype=torch.float64)
    intervals = draws.mean(dim=1).abs() / (draws.std(dim=1) / n**0.5)
    critical = {3: 4.3027, 5: 2.7764, 10: 2.2622}[n]         # Student's t, 0.975, from a printed table
    assert (intervals > critical).double().mean().item() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("wrong", [(1.0, 1), (0.0, 5), (-1.0, 5), (1.0, 5, 1.0)])
def test_a_detectable_difference_of_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match="n must be at least 2"):
        detectable_difference(*wrong)


@pytest.mark.parametrize(("interval", "words"), [
    (None, "too few seeds"), ((0.001, 0.009), "a above b"), ((-0.009, -0.001), "a below b"),
    ((-0.002, 0.001), "within 0.3 points"),
    ((0.001, 0.002), "a above b, within 0.3 points"),
    ((0.004, 0.011), "a above b by more than 0.3 points"),
    ((-0.011, -0.004), "a below b by more than 0.3 points"), ((-0.002, -0.001), "a below b, within 0.3 points"),
    ((-0.004, 0.001), "undecided"), ((-0.001, 0.003), "undecided")])
def test_an_interval_is_read_against_zero_and_against_the_margin(interval, words):
    assert reading(interval) == words


# What is committed

COMMITTED = sorted((ROOT / "data" / "checkpoints").glob("*.pt"))


def test_every_committed_checkpoint_has_its_line_and_its_record():
    index = ROOT / "data" / "results" / "checkpoints.jsonl"
    lines = {line["file"]: line for line in read_records(index)[0]} if index.exists() else {}
    assert set(lines) == {path.name for path in COMMITTED}
    for path in COMMITTED:
        line = lines[path.name]
        assert path.stat().st_size < 1_500_000 and hashlib.sha256(path.read_bytes()).hexdigest() == line["sha256"]
        records = {r["id"]: r for r in experiments.load_records(ROOT / "data" / "results" / f"{line['suite']}.jsonl")}
        assert records[line["id"]]["test_accuracy"] == line["test_accuracy"]
        assert abs(line["rounded_test_accuracy"] - line["test_accuracy"]) < 0.002
        state = training.read_checkpoint(path)
        assert state["id"] == line["id"]
        assert state["id"] == experiments.record_id(line["suite"], line["variant"], line["seed"], state["config"])


def test_committed_records_are_of_the_real_images_and_their_ids_are_their_contents():
    for path in sorted((ROOT / "data" / "results").glob("cifar*.jsonl")):
        records, complaints = read_records(path)
        assert records and not complaints
        for record in records:
            assert record.get("source", "cifar10") == "cifar10" and record["suite"] in experiments.SUITES
            if "config" in record:
                assert record["id"] == experiments.record_id(record["suite"], record["variant"], record["seed"], record["config"])
            assert not [word for word in ("/home", "/root", "/tmp", "/work") if word in json.dumps(record)]


@pytest.mark.slow
@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_committed_checkpoint_reaches_what_its_line_says(path, monkeypatch):
    monkeypatch.undo()      # the real images, not the tiny ones
    try:
        cifar = data.load_cifar("cifar10", source="real")
    except (ValueError, OSError) as error:
        pytest.skip(f"needs the real CIFAR-10: {error}")
    line = next(line for line in read_records(ROOT / "data" / "results" / "checkpoints.jsonl")[0] if line["file"] == path.name)
    model, _ = training.load_model(path)
    assert training.evaluate(model, cifar.test)[1] == pytest.approx(line["rounded_test_accuracy"], abs=2e-4)


def test_the_reading_of_the_results_quotes_the_tables_of_the_records():
    """data/results/README.md: each suite's table stands there as `mrla compare --report` prints it from what is committed."""
    text = (ROOT / "data" / "results" / "README.md").read_text(encoding="utf-8")
    for name, suite in experiments.SUITES.items():
        path = ROOT / "data" / "results" / f"{name}.jsonl"
        if path.exists():
            assert experiments.report(experiments.summarise(experiments.load_records(path), suite)) in text, f"table of {name}"
            found = experiments.load_interventions(experiments.interventions_path(path))
            assert not found or report_interventions(found) in text, f"interventions of {name}"
    quiz_records = read_records(ROOT / "data" / "results" / "quiz.jsonl")[0]
    assert len(quiz_records) == 350 and quiz.quiz_table(quiz_records) in text


def test_the_quiz_table_by_hand():
    make = {"question": "late", "key_dim": 8, "steps": 5}
    records = [{**make, "method": "base", "width": width, "accuracy": a, "accuracy_mean": 0.25, "accuracy_shuffle": b}
               for width, a, b in ((4, 0.5, 0.1), (4, 0.75, 0.2), (8, 1.0, 0.3))]
    records.append({**make, "method": "mean", "width": 8, "accuracy": 0.4, "accuracy_mean": None, "accuracy_shuffle": None})
    lines = quiz.quiz_table(records).splitlines()
    assert lines[1].split() == ["late,", "8,", "5", "base", "0.50-0.75", "1.00-1.00", "0.25-0.25,", "0.10-0.20"]
    assert lines[2].split() == ["late,", "8,", "5", "mean", "-", "0.40-0.40", "-,", "-"]
