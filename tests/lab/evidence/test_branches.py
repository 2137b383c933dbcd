"""Suites of branches: one trunk a seed, trained once, shared, and named in every record."""

import dataclasses
import types

import pytest
from filelock import FileLock
from tiny_suites import run_tiny, tiny_suite

from mrla_minimal.lab.engine import Run, read_checkpoint
from mrla_minimal.lab.evidence import SUITES, load_records, running, summarise
from mrla_minimal.lab.evidence.jobs import final_jobs, trunk_job
from mrla_minimal.lab.files import append_record

RECIPE = {"depth": 14, "width": 4, "batch_size": 16, "device": "cpu", "epochs": 2, "trunk_epochs": 1,
          "trunk": "uniform"}
VARIANTS = {"uniform": {"layer_attention": "uniform"},
            "base-zero-query": {"layer_attention": "base-zero-query"},
            "uniform-reordered": {"layer_attention": "uniform", "order": 1000}}
SUITE = tiny_suite(variants=VARIANTS, recipe=RECIPE, contrasts=(), baseline="uniform",
                   primary=(("base-zero-query", "uniform"),))


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """(records, folder, (attention, epoch) of every step trained) of SUITE."""
    folder, steps, original = tmp_path_factory.mktemp("branches"), [], Run.train_step

    def counted(run):
        steps.append((run.config.seed, run.config.trunk, run.config.layer_attention))
        original(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "train_step", counted)
        records = run_tiny(folder, SUITE)
    return records, folder, steps


def test_a_seeds_branches_share_one_trunk_that_is_trained_once(ran):
    records, folder, steps = ran
    assert len(records) == 6
    for seed in SUITE.seeds:
        assert steps.count((seed, None, "uniform")) == 6        # an epoch of the trunk, once
        assert steps.count((seed, "uniform", "uniform")) == 12      # two branches
        assert steps.count((seed, "uniform", "base-zero-query")) == 6
        (trunk,) = {(r["trunk"]["id"], r["trunk"]["weights"]) for r in records if r["seed"] == seed}
        (found,) = (folder / "runs" / "tiny").glob(f"trunk-uniform-seed{seed}-*-{trunk[0]}")
        state = read_checkpoint(found)
        assert state["step"] == 6 and state["config"]["trunk"] is None
        for record in (record for record in records if record["seed"] == seed):
            assert record["trunk"]["step"] == 6 and record["metrics"][0] == state["metrics"][0]
            assert record["trunk"]["train_loss"] == state["metrics"][0]["train_loss"]
    assert len({record["trunk"]["id"] for record in records}) == 2
    assert "trunk" not in {record["variant"] for record in records}


def test_ids_and_recipes_know_the_branch(ran):
    records, _, _ = ran
    jobs = final_jobs(SUITE, tuple(SUITE.variants), SUITE.seeds, None)
    assert {job.id for job in jobs} == {record["id"] for record in records}
    assert len({job.id for job in jobs}) == 6
    assert len({trunk_job(SUITE, job).id for job in jobs}) == 2
    other = dataclasses.replace(SUITE, recipe={**RECIPE, "epochs": 3})
    again = final_jobs(other, tuple(other.variants), (0,), None)[0]
    assert trunk_job(other, again).id != trunk_job(SUITE, jobs[0]).id
    assert records[0]["recipe"]["trunk"] == "uniform" and records[0]["recipe"]["trunk_epochs"] == 1
    plain = tiny_suite()
    assert trunk_job(plain, final_jobs(plain, ("plain",), (0,), None)[0]) is None


def test_branches_are_summarised_and_those_of_two_trainings_of_a_trunk_are_refused(ran):
    records, _, _ = ran
    summary = summarise(records, SUITE)
    assert [(row.a, row.b, row.n, row.primary) for row in summary.contrasts] == [
        ("base-zero-query", "uniform", 2, True), ("uniform-reordered", "uniform", 2, False)]
    changed = [{**records[0], "trunk": {**records[0]["trunk"], "weights": "other"}}, *records[1:]]
    with pytest.raises(ValueError, match="tiny, seed 0: branches of two trainings of the trunk .{12} are"):
        summarise(changed, SUITE)
    changed[0]["trunk"]["id"] = "another"
    with pytest.raises(ValueError, match="tiny, seed 0: branches of two trunks, another and .{12}, are not"):
        summarise(changed, SUITE)


def test_branches_of_two_trunks_are_no_suite():
    for wide, told in ({"width": 8}, r"width \(4, 8\)"), ({"learning_rate": 0.2}, "learning_rate"):
        wide = {**VARIANTS["base-zero-query"], **wide}
        with pytest.raises(ValueError, match="suite 'tiny': branches must leave one trunk; those of uniform "
                                             f"and base-zero-query differ in {told}"):
            dataclasses.replace(SUITE, variants={**VARIANTS, "base-zero-query": wide})


@pytest.mark.parametrize("trunk, message", [
    ("uniform", "trunk must be a table"), ({}, "trunk: id must be a text"),
    ({"id": "a", "weights": 3}, "trunk: weights must be a text"),
])
def test_a_damaged_trunk_in_a_record_is_told(ran, tmp_path, trunk, message):
    append_record(tmp_path / "r.jsonl", {**ran[0][0], "trunk": trunk})
    with pytest.raises(ValueError, match=f"record 1: {message}"):
        load_records(tmp_path / "r.jsonl")


def test_a_process_waits_for_a_trunk_that_another_trains(tmp_path, monkeypatch):
    """It takes what else there is meanwhile, here nothing, and looks again: by then the other is done."""
    suite = dataclasses.replace(SUITE, seeds=(0,), variants={"uniform": VARIANTS["uniform"]}, primary=())
    (job,) = final_jobs(suite, ("uniform",), (0,), None)
    folder = tmp_path / "runs" / "tiny" / trunk_job(suite, job).folder
    folder.mkdir(parents=True)
    lock, waited = FileLock(folder / ".lock"), []
    lock.acquire()
    monkeypatch.setattr(running, "time", types.SimpleNamespace(
        sleep=lambda seconds: (waited.append(seconds), lock.release())))
    assert len(run_tiny(tmp_path, suite, wait=7.0)) == 1 and waited == [7.0]


def test_the_declared_branches_start_with_their_trunks_outputs():
    """Only these pairs do (tests/lab/engine/test_branch.py); the noise differs in its order alone."""
    starts = {"branch-choice": ("uniform", {"uniform", "base-zero-query"}),
              "branch-memory": ("depthwise", {"depthwise", "depthwise-carry-lambda0", "light-zero-query"})}
    for name, (trunk, attentions) in starts.items():
        suite = SUITES[name]
        assert suite.recipe["trunk"] == trunk and suite.recipe["augment"] == "on" and suite.margin == 0.3
        assert {fields["layer_attention"] for fields in suite.variants.values()} == attentions
        assert suite.variants[f"{trunk}-reordered"] == {"layer_attention": trunk, "order": 1000}
        assert max(suite.seeds) < 1000
