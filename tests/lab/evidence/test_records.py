"""Ids and recipes, and what they owe to records that are older than the code."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
from tiny_suites import run_tiny

from mrla_minimal.lab.engine import TrainConfig, read_checkpoint
from mrla_minimal.lab.evidence import SUITES, load_records, merge_records, suites, summarise
from mrla_minimal.lab.evidence.contrasts import check_definition
from mrla_minimal.lab.evidence.jobs import final_jobs
from mrla_minimal.lab.evidence.records import record_id
from mrla_minimal.lab.files import append_record, read_records

DATA = Path(__file__).parents[3] / "data"
PILOT = SUITES["cifar10-thin56-cpu"]

# What records leave out of their ids. A default that changed would give recorded runs another meaning: a field that is new
# is added here, and no value is ever altered.
DEFAULTS = {
    "dataset": "cifar10", "depth": 20, "block": "basic", "width": 16, "layer_attention": "mrla-light", "channel_attention": None,
    "head_dim": None, "shortcut": None, "drop_path": 0.0, "epochs": 1, "steps": None, "batch_size": 64, "learning_rate": 0.1,
    "schedule": "cosine", "warmup_epochs": 0.2, "augment": "auto", "weight_decay": 5e-4, "decay_all": False, "label_smoothing": 0.0,
    "validation": False, "seed": 0, "amp": True, "channels_last": True, "compile": False,
}
NO_PART = {"source", "data_root", "device"}


def test_the_defaults_that_ids_leave_out_are_what_they_were():
    now = {entry.name: entry.default for entry in dataclasses.fields(TrainConfig) if entry.name not in NO_PART}
    assert now == DEFAULTS


def test_the_id_depends_on_what_makes_the_run_and_on_nothing_else():
    config = dataclasses.asdict(TrainConfig())
    same = record_id("s", "v", 0, {**config, "device": "cuda", "data_root": "elsewhere", "source": "real"})
    assert record_id("s", "v", 0, config) == same and len(same) == 12
    for changed in (("t", "v", 0, config), ("s", "w", 0, config), ("s", "v", 1, config), ("s", "v", 0, {**config, "depth": 56})):
        assert record_id(*changed) != same


def test_a_field_at_its_default_is_no_part_of_id_or_recipe():
    config = dataclasses.asdict(TrainConfig(depth=56))
    assert record_id("s", "v", 0, {"depth": 56}) == record_id("s", "v", 0, config)
    assert PILOT.recipe_of(dataclasses.asdict(PILOT.config("plain", 0))) == {
        "depth": 56, "width": 8, "epochs": 4, "batch_size": 128, "warmup_epochs": 0.8}
    assert record_id("s", "v", 0, {**config, "no_field": 1}) != record_id("s", "v", 0, config)     # of an option that is gone


@pytest.fixture
def one_more_field(monkeypatch):
    """TrainConfig as a later version may have it: with one option more, off."""
    option = dataclasses.field(default=False, metadata={"help": "", "choices": None})
    wider = dataclasses.make_dataclass("TrainConfig", [("mixup", bool, option)], bases=(TrainConfig,), frozen=True)
    monkeypatch.setattr(suites, "TrainConfig", wider)


def test_an_option_that_is_new_and_off_changes_no_id_and_no_comparison(one_more_field):
    path = DATA / "results" / "cifar10-thin56-cpu.jsonl"
    old = load_records(path)
    jobs = {job.id: job for job in final_jobs(PILOT, tuple(PILOT.variants), PILOT.seeds, dict.fromkeys(PILOT.variants, 0.2))}
    final = [record for record in old if record["phase"] == "final"]
    assert {record["id"] for record in final} == set(jobs) and len(jobs) == 18
    config = dataclasses.asdict(jobs[final[0]["id"]].config)
    assert config["mixup"] is False and "mixup" not in final[0]["config"]
    new = [{**record, "config": dataclasses.asdict(jobs[record["id"]].config)} if record["seed"] else record for record in final]
    assert summarise(new, PILOT) == summarise(old, PILOT)       # seeds 1 and 2 as if they were run with the option there
    for record in final:
        check_definition(PILOT, record, list(config), dataclasses.asdict(PILOT.config(record["variant"], record["seed"],
                                                                                       learning_rate=0.2)) | {"source": "real"})
    on = {**final[0], "config": {**config, "mixup": True}}
    with pytest.raises(ValueError, match="different recipe are not compared: {'mixup': False} and {'mixup': True}"):
        summarise([*final[1:], on], PILOT)


# Files of several machines, and damaged ones

def test_merging_two_machines_files_gives_one_table(tmp_path):
    first = run_tiny(tmp_path / "a", seeds=(0,))
    second = run_tiny(tmp_path / "b", seeds=(1,))
    files = [tmp_path / "a" / "records.jsonl", tmp_path / "b" / "records.jsonl"]
    merged = merge_records([*files, files[0]], tmp_path / "merged.jsonl")
    assert merged == first + second == read_records(tmp_path / "merged.jsonl")[0]
    altered = {**first[0], "test_accuracy": 0.123}
    append_record(tmp_path / "other.jsonl", altered)
    with pytest.raises(ValueError, match=f"record {first[0]['id']}.*differs"):
        merge_records([files[0], tmp_path / "other.jsonl"], tmp_path / "merged.jsonl")
    assert read_records(tmp_path / "merged.jsonl")[0] == merged
    with pytest.raises(ValueError, match="absent.jsonl: no such file"):
        merge_records([tmp_path / "absent.jsonl"], tmp_path / "merged.jsonl")


def test_merging_keeps_what_the_target_already_holds(tmp_path):
    first, second = run_tiny(tmp_path / "a", seeds=(0,)), run_tiny(tmp_path / "b", seeds=(1,))
    target = tmp_path / "a" / "records.jsonl"
    assert merge_records([tmp_path / "b" / "records.jsonl"], target) == first + second
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n')
    with pytest.raises(ValueError, match="metrics.jsonl does not hold records of a suite.*id"):
        merge_records([tmp_path / "metrics.jsonl"], target)
    assert read_records(target)[0] == first + second


def test_a_broken_last_line_costs_its_own_run_only(tmp_path, capsys):
    run_tiny(tmp_path, seeds=(0,))
    with open(tmp_path / "records.jsonl", "a") as file:
        file.write('{"id": "half')
    assert len(run_tiny(tmp_path, seeds=(0, 1))) == 4
    assert capsys.readouterr().err.count("not a whole record") == 1


# What is committed

INDEX = {line["file"]: line for line in read_records(DATA / "results" / "checkpoints.jsonl")[0]}
COMMITTED = sorted((DATA / "checkpoints").glob("*.pt"))


def test_committed_records_are_of_the_real_images_and_their_ids_are_their_contents():
    for path in sorted((DATA / "results").glob("cifar*.jsonl")):
        records, complaints = read_records(path)
        assert records and not complaints
        for record in records:
            assert record.get("source", "cifar10") == "cifar10" and record["suite"] in SUITES
            assert record["variant"] in SUITES[record["suite"]].variants
            if "config" in record:
                assert record["id"] == record_id(record["suite"], record["variant"], record["seed"], record["config"])
                assert record["recipe"] == SUITES[record["suite"]].recipe_of(record["config"])
            assert not [word for word in ("/home", "/root", "/tmp", "/work") if word in json.dumps(record)]


def test_every_committed_intervention_is_of_a_committed_run():
    for path in sorted((DATA / "results").glob("*-interventions.jsonl")):
        runs = {run["id"]: run for run in load_records(path.with_name(path.name.replace("-interventions", "")))}
        for record in read_records(path)[0]:
            assert (record["variant"], record["seed"]) == (runs[record["id"]]["variant"], runs[record["id"]]["seed"])


def test_every_committed_checkpoint_has_its_line_and_its_record():
    assert set(INDEX) == {path.name for path in COMMITTED}
    for path in COMMITTED:
        line = INDEX[path.name]
        assert path.name == f"{line['suite']}-{line['variant']}.pt"
        assert path.stat().st_size < 1_500_000 and hashlib.sha256(path.read_bytes()).hexdigest() == line["sha256"]
        records = {r["id"]: r for r in load_records(DATA / "results" / f"{line['suite']}.jsonl")}
        assert records[line["id"]]["test_accuracy"] == line["test_accuracy"]
        assert abs(line["rounded_test_accuracy"] - line["test_accuracy"]) < 0.002
        state = read_checkpoint(path)
        assert state["id"] == line["id"] == record_id(line["suite"], line["variant"], line["seed"], state["config"])


def test_the_pilots_renamed_records_keep_their_old_names_and_nothing_of_the_option_that_is_gone():
    renamed = {"mrla-light": "mrla-light-released", "mrla-light-own": "mrla-light"}
    former = set()
    for name in ("cifar10-thin56-cpu.jsonl", "cifar10-thin56-cpu-interventions.jsonl", "checkpoints.jsonl"):
        for record in read_records(DATA / "results" / name)[0]:
            was = record["formerly"]
            assert record["variant"] == renamed.get(was["variant"], was["variant"]) and record["id"] != was["id"]
            former.add((record["id"], was["id"]))
    assert len(former) == len({new for new, _ in former}) == len({old for _, old in former}) == 21
    assert not [path for path in DATA.rglob("*") if path.is_file() and path.suffix != ".md" and b"light_carry" in path.read_bytes()]
