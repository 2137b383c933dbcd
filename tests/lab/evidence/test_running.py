"""Suites run, continued, shared between processes, and refused."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock
from tiny import tiny_cifar
from tiny_suites import RECIPE, VARIANTS, run_nets, run_tiny, tiny_suite

from mrla_minimal.lab.cost import count_macs, count_parameters
from mrla_minimal.lab.data import Split
from mrla_minimal.lab.engine import Run, TrainConfig, build_model, read_config, train
from mrla_minimal.lab.evidence import LogUniform, plan_suite, run_suite, running, summarise
from mrla_minimal.lab.evidence.committed import export_checkpoints
from mrla_minimal.lab.evidence.interventions import intervene
from mrla_minimal.lab.evidence.jobs import final_jobs, tuning_jobs
from mrla_minimal.lab.evidence.records import load_records
from mrla_minimal.lab.files import read_records
from mrla_minimal.lab.plugins import OwnAttention


def test_a_suite_runs_all_variants_of_a_seed_before_the_next_seed(tmp_path):
    records = run_tiny(tmp_path)
    expected = [(seed, variant) for seed in (0, 1) for variant in ("plain", "mrla-light")]
    assert [(r["seed"], r["variant"]) for r in records] == expected
    for record in records:
        assert (record["source"], record["fingerprint"]) == ("synthetic", "tiny")
        assert record["config"]["steps"] == 3 and record["config"]["data_root"] is None
        assert record["metrics"][-1]["test_accuracy"] == record["test_accuracy"]
        assert record["precision"] == "float32"
        model = build_model(TrainConfig(**record["config"]), 10)
        assert (record["parameters"], record["macs"]) == (count_parameters(model), count_macs(model, 32))
        assert record["versions"]["torch"] == torch.__version__
    assert records[1]["parameters"] > records[0]["parameters"]
    assert len({record["id"] for record in records}) == 4
    assert records[0]["recipe"] == {"depth": 8, "width": 4, "batch_size": 16, "steps": 3}


def test_finished_runs_are_skipped_and_an_interrupted_suite_goes_on(tmp_path, monkeypatch):
    started = []
    original = running.train

    def counted(config, run_dir, **options):
        started.append(run_dir.name)
        if len(started) == 3:
            raise KeyboardInterrupt
        return original(config, run_dir, **options)

    monkeypatch.setattr(running, "train", counted)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(tmp_path)
    assert len(read_records(tmp_path / "records.jsonl")[0]) == 2
    assert len(run_tiny(tmp_path)) == 4 and len(started) == 5
    assert len(run_tiny(tmp_path)) == 4 and len(started) == 5


def test_a_run_that_was_begun_is_resumed_not_begun_again(tmp_path, monkeypatch):
    suite = tiny_suite()
    whole = run_tiny(tmp_path / "whole", suite)
    original = Run.train_step

    def stop_at_two(run):
        if run.step == 2:
            raise KeyboardInterrupt
        original(run)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "train_step", stop_at_two)
        with pytest.raises(KeyboardInterrupt):
            run_tiny(tmp_path / "parts", suite, checkpoint_seconds=0.0)
    steps = []
    monkeypatch.setattr(Run, "train_step", lambda run: steps.append(run.step) or original(run))
    parts = run_tiny(tmp_path / "parts", suite)
    assert steps[0] == 2
    assert [record["metrics"] for record in parts] == [record["metrics"] for record in whole]


def test_a_run_that_another_process_is_at_is_left_to_it(tmp_path):
    suite = tiny_suite()
    job = final_jobs(suite, ("plain",), (0,), None)[0]
    folder = tmp_path / "runs" / "tiny" / job.folder
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        records = run_tiny(tmp_path, suite)
    assert len(records) == 3 and job.id not in {record["id"] for record in records}


def test_final_runs_wait_for_the_rates_that_another_process_is_tuning(tmp_path, monkeypatch):
    suite = tiny_suite(rates=(0.01, 0.1), tuned_on="plain", seeds=(0,))
    folder = tmp_path / "runs" / "tiny" / tuning_jobs(suite, ("plain",))[1].folder
    folder.mkdir(parents=True)
    lock, waited = FileLock(folder / ".lock"), []
    lock.acquire()

    def sleep(seconds):         # the other process stops meanwhile
        waited.append((seconds, [record["phase"] for record in load_records(tmp_path / "records.jsonl")]))
        lock.release()

    monkeypatch.setattr(running, "time", SimpleNamespace(sleep=sleep))
    records = run_tiny(tmp_path, suite, wait=7.0)
    assert waited == [(7.0, ["tuning"])]
    assert [record["phase"] for record in records] == ["tuning", "tuning", "final", "final"]


def test_a_net_that_another_process_looks_into_is_left_to_it(tmp_path, monkeypatch):
    """Looking takes long: two processes must not both do it. The one that comes second goes on."""
    looked = []
    monkeypatch.setattr(running, "intervene", lambda *_, **__: looked.append(1) or intervene(*_, **__))
    suite = tiny_suite(seeds=(0,))
    job = final_jobs(suite, ("mrla-light",), (0,), None)[0]
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    with FileLock(tmp_path / "runs" / "tiny" / f".{job.id}.lock"):
        run_tiny(tmp_path, suite)
    assert not looked and not (tmp_path / "records-interventions.jsonl").exists()
    for _ in range(2):
        run_tiny(tmp_path, suite)
        assert len(looked) == 1
    (found,) = read_records(tmp_path / "records-interventions.jsonl")[0]
    assert found["id"] == job.id


def test_learning_rates_are_tuned_on_the_validation_split_and_used(tmp_path):
    suite = tiny_suite(rates=(0.01, 0.1), seeds=(0,))
    records = run_tiny(tmp_path, suite)
    tuning = [record for record in records if record["phase"] == "tuning"]
    assert len(tuning) == 4 and all(r["config"]["validation"] and r["seed"] == suite.tuning_seed
                                    for r in tuning)
    for record in records[4:]:
        mine = [r for r in tuning if r["variant"] == record["variant"]]
        best = max(mine, key=lambda r: r["metrics"][-1]["validation_accuracy"])
        (chosen,) = [r for r in mine if r["learning_rate"] == record["learning_rate"]]
        assert record["phase"] == "final" and not record["config"]["validation"]
        assert record["metrics"][-1]["test_accuracy"] == record["test_accuracy"]
        assert best["metrics"][-1]["validation_accuracy"] == \
            chosen["metrics"][-1]["validation_accuracy"]


def test_rates_tuned_on_one_variant_serve_all(tmp_path):
    records = run_tiny(tmp_path, tiny_suite(rates=(0.01, 0.1), tuned_on="plain", seeds=(0,)))
    assert [record["variant"] for record in records if record["phase"] == "tuning"] == ["plain", "plain"]
    assert len({record["learning_rate"] for record in records if record["phase"] == "final"}) == 1


def test_a_rate_that_diverges_is_recorded_and_the_suite_goes_on(tmp_path, capsys):
    suite = tiny_suite(rates=(0.05, 1e20), seeds=(0,), recipe={**RECIPE, "warmup_epochs": 0.0})
    records = run_tiny(tmp_path, suite)
    assert [record["learning_rate"] for record in records if "diverged" in record] == [1e20, 1e20]
    assert all(record["learning_rate"] == 0.05 for record in records if record["phase"] == "final")
    assert run_tiny(tmp_path, suite) == records
    assert capsys.readouterr().out.count("diverged: the loss is") == 2
    with pytest.raises(ValueError, match="every learning rate diverged for mrla-light, plain"):
        run_tiny(tmp_path / "other", tiny_suite(rates=(1e20,), seeds=(0,), recipe=suite.recipe))


def test_wrong_parts_of_a_suite_are_refused_before_any_run(tmp_path):
    with pytest.raises(ValueError, match="unknown variant 'base'.*plain, mrla-light"):
        run_tiny(tmp_path, variants=("base",))
    with pytest.raises(ValueError, match="seeds given twice: 1, 1"):
        run_tiny(tmp_path, seeds=(1, 1))
    with pytest.raises(ValueError, match="seeds must be several numbers like .0, 1, 2., not 'a'"):
        run_tiny(tmp_path, seeds="a")
    with pytest.raises(ValueError,
                       match="variants must be some of plain, mrla-light, each once; not plain, plain"):
        run_tiny(tmp_path, variants=("plain", "plain"))
    tuned = tiny_suite(rates=(0.05, 0.1))
    for suite, name, value in ((tuned, "learning_rate", 0.1), (None, "seed", 3), (None, "validation", True),
                               (None, "variant", "plain")):
        with pytest.raises(ValueError, match=f"suite tiny: {name} is the suite's own to choose"):
            run_tiny(tmp_path, suite, **{name: value})
    drawn = tiny_suite(draws={"learning_rate": LogUniform(0.05, 0.3)})
    for suite, name, value in ((drawn, "learning_rate", 7.0), (None, "layer_attention", "mrla-base")):
        with pytest.raises(ValueError, match=f"suite tiny: {name} is the suite's own to choose"):
            run_tiny(tmp_path, suite, **{name: value})
    assert not (tmp_path / "records.jsonl").exists()


def test_a_recipe_that_was_changed_is_told_before_anything_is_run(tmp_path):
    records = run_tiny(tmp_path, seeds=(0,))
    for changed in (tiny_suite(recipe={**RECIPE, "steps": 4}),
                    tiny_suite(variants={**VARIANTS, "plain": {"layer_attention": "uniform"}})):
        for act in (lambda suite: run_tiny(tmp_path, suite),
                    lambda suite: plan_suite(suite, records, progress=False),
                    lambda suite: summarise(records, suite)):
            with pytest.raises(ValueError, match="was recorded with"):
                act(changed)
    other = tiny_suite(recipe={**RECIPE, "steps": 4})
    assert summarise(records, other, changes={"steps": 3}) == summarise(records, tiny_suite())
    assert read_records(tmp_path / "records.jsonl")[0] == records


def test_a_diverged_run_of_another_recipe_is_told_too(tmp_path):
    suite = tiny_suite(recipe={**RECIPE, "learning_rate": 1e30}, seeds=(0,))
    assert all("diverged" in record for record in run_tiny(tmp_path, suite))
    with pytest.raises(ValueError, match="was recorded with steps 3, and has 4 now"):
        run_tiny(tmp_path, tiny_suite(recipe={**RECIPE, "steps": 4}))


def test_seeds_of_numpy_make_the_same_runs(tmp_path):
    records = run_tiny(tmp_path, variants=["plain"], seeds=np.arange(1))
    assert run_tiny(tmp_path, variants=("plain",), seeds=(0,)) == records and len(records) == 1


def test_images_of_ones_own_may_be_of_any_size(tmp_path):
    small = tiny_cifar()
    small = dataclasses.replace(small, train=Split(small.train.images[:, :, :16, :20], small.train.labels),
                                test=Split(small.test.images[:, :, :16, :20], small.test.labels),
                                source="pets", fingerprint="small")
    suite = tiny_suite(variants={"plain": {"layer_attention": None}}, contrasts=(), seeds=(0,))
    (record,) = run_suite(suite, tmp_path / "records.jsonl", runs=tmp_path / "runs", data=small,
                          progress=False)
    assert (record["source"], record["fingerprint"], record["macs"]) == ("pets", "small", None)
    assert record["parameters"] > 0


def test_a_net_whose_numbers_are_not_finite_is_no_result(tmp_path):
    """It trains to the end with finite losses; on the test images they are NaN."""
    suite = tiny_suite(recipe={**RECIPE, "learning_rate": 300.0, "warmup_epochs": 0.0}, seeds=(0,),
                       contrasts=())
    records = run_tiny(tmp_path, suite)
    assert len(records) == 2 and all("diverged" in record and record["test_accuracy"] is None
                                     for record in records)
    assert run_tiny(tmp_path, suite) == records


STRANGER = """
import torch
from pathlib import Path

Path(__file__).with_name("it_ran").touch()


class Mine(torch.nn.Module):
    def forward(self, x, memory=None):
        return x, x
"""


def test_what_only_a_checkpoint_names_is_not_run(repository, monkeypatch, capsys):
    """Someone has put the checkpoint of another run, and its Python file, into a suite's run folder."""
    run_nets(("mrla-base",))
    (run_dir,) = Path("runs/tiny").glob("mrla-base-*")
    (run_dir / "mine.py").write_text(STRANGER)
    state = torch.load(run_dir / "checkpoint.pt", weights_only=True)
    state["config"]["layer_attention"] = str(OwnAttention(f"{run_dir}/mine.py").with_sum())
    torch.save(state, run_dir / "checkpoint.pt")
    path = Path("data/results/tiny-interventions.jsonl")
    path.unlink()
    run_nets(("mrla-base",))
    assert not (run_dir / "it_ran").exists() and not path.exists()
    said = capsys.readouterr().out
    assert f"note: {run_dir} is of another run, and is not looked into: layer_attention: stored" in said


def test_a_run_that_went_on_for_longer_is_not_the_records(repository, capsys):
    run_nets(("mrla-base",))
    (run_dir,) = Path("runs/tiny").glob("mrla-base-*")
    config = dataclasses.replace(read_config(run_dir), steps=9)
    train(config, run_dir, data=tiny_cifar(), resume=True, progress=False)
    path = Path("data/results/tiny-interventions.jsonl")
    path.unlink()
    run_nets(("mrla-base",))
    assert not path.exists() and "another run, and is not looked into: steps: stored 9, given 6" in \
        capsys.readouterr().out


def test_an_attention_of_ones_own_that_the_suite_names_is_looked_into(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("from mrla_minimal import MRLABase\n\n\nclass Mine(MRLABase):\n    pass\n")
    suite = tiny_suite(variants={"mine": {"layer_attention": "mine.py"}}, contrasts=(), seeds=(0,),
                       baseline="mine")
    run_tiny(tmp_path, suite)
    (found,) = read_records(tmp_path / "records-interventions.jsonl")[0]
    assert found["variant"] == "mine"


def test_torchs_defaults_change_no_record(tmp_path, odd_defaults):
    """Of the runs, of the interventions, and of the small checkpoints."""
    suite = tiny_suite(seeds=(0,))

    def results(data, where):
        records = run_suite(suite, where / "records.jsonl", runs=where / "runs", data=data, progress=False)
        lines = export_checkpoints(suite, records, where / "runs", where, where / "index.jsonl", data=data)
        looked = read_records(where / "records-interventions.jsonl")[0]
        assert len(records) == len(lines) == 2 and len(looked) == 1
        return [record["metrics"] for record in records], lines, looked

    expected = results(tiny_cifar(), tmp_path / "plain")
    assert odd_defaults(lambda data: results(data, tmp_path / "odd")) == expected


def test_a_net_whose_interventions_are_not_finite_has_none_and_the_suite_goes_on(repository, monkeypatch,
                                                                                  capsys):
    def broken(model, data, config, progress):
        with torch.no_grad():
            model.classifier.bias[0] = torch.nan
        return intervene(model, data, config, progress=progress)

    monkeypatch.setattr(running, "intervene", broken)
    assert len(run_nets(("mrla-base", "plain"))) == 2
    assert "has no interventions: not all logits of 40 images are finite" in capsys.readouterr().out
    assert not Path("data/results/tiny-interventions.jsonl").exists()
