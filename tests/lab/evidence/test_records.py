"""Ids and recipes, and what they owe to records that are older than the code."""

import dataclasses
import hashlib
import json
import math
import os
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock
from tiny_suites import run_tiny

from mrla_minimal.lab import cli
from mrla_minimal.lab.arguments import boolean
from mrla_minimal.lab.engine import TrainConfig, read_checkpoint
from mrla_minimal.lab.evidence import SUITES, load_records, merge_records, suites, summarise
from mrla_minimal.lab.evidence.jobs import check_definitions, final_jobs, tuning_jobs
from mrla_minimal.lab.evidence.records import append_once, interventions_path, load_interventions, record_id
from mrla_minimal.lab.files import append_record, read_records, to_line

DATA = Path(__file__).parents[3] / "data"
PILOT = SUITES["cifar10-thin56-cpu"]

# What records leave out of their ids. A default that changed would give recorded runs another meaning: a
# field that is new is added here, and no value is ever altered.
DEFAULTS = {
    "dataset": "cifar10", "resolution": 32, "model": "resnet", "wipe": 0.0, "optimizer": "sgd", "depth": 20,
    "dim": 96, "heads": 3, "patch": 4, "read": "mean", "reset_every": None,
    "block": "basic", "width": 16, "layer_attention": "mrla-light", "channel_attention": None,
    "head_dim": None, "shortcut": None, "drop_path": 0.0, "epochs": 1, "steps": None, "batch_size": 64,
    "learning_rate": 0.1, "schedule": "cosine", "warmup_epochs": 0.2, "augment": "auto",
    "weight_decay": 5e-4, "decay_all": False, "label_smoothing": 0.0, "validation": False, "seed": 0,
    "amp": True, "channels_last": True, "compile": False, "cuda_graph": False,
    "trunk_epochs": 0, "trunk": None, "order": None,
}
NO_PART = {"source", "data_root", "device"}


def test_the_defaults_that_ids_leave_out_are_what_they_were():
    now = {entry.name: entry.default for entry in dataclasses.fields(TrainConfig)
           if entry.name not in NO_PART}
    assert now == DEFAULTS


def test_the_id_depends_on_what_makes_the_run_and_on_nothing_else():
    config = dataclasses.asdict(TrainConfig())
    same = record_id("s", "v", 0, {**config, "device": "cuda", "data_root": "elsewhere", "source": "real",
                                   "cuda_graph": True})
    assert record_id("s", "v", 0, config) == same and len(same) == 12
    for changed in (("t", "v", 0, config), ("s", "w", 0, config), ("s", "v", 1, config),
                    ("s", "v", 0, {**config, "depth": 56})):
        assert record_id(*changed) != same


def test_a_field_at_its_default_is_no_part_of_id_or_recipe():
    config = dataclasses.asdict(TrainConfig(depth=56))
    assert record_id("s", "v", 0, {"depth": 56}) == record_id("s", "v", 0, config)
    assert PILOT.recipe_of(dataclasses.asdict(PILOT.config("plain", 0))) == {
        "depth": 56, "width": 8, "epochs": 4, "batch_size": 128, "warmup_epochs": 0.8}
    gone = {**config, "no_field": 1}        # of an option that there is no more
    assert record_id("s", "v", 0, gone) != record_id("s", "v", 0, config)


@pytest.fixture
def one_more_field(monkeypatch):
    """TrainConfig as a later version may have it: with one option more, off."""
    option = dataclasses.field(default=False, metadata={"help": "", "choices": None, "check": boolean})
    wider = dataclasses.make_dataclass("TrainConfig", [("mixup", bool, option)], bases=(TrainConfig,),
                                       frozen=True)
    monkeypatch.setattr(suites, "TrainConfig", wider)


def test_an_option_that_is_new_and_off_changes_no_id_and_no_comparison(one_more_field):
    path = DATA / "results" / "cifar10-thin56-cpu.jsonl"
    old = load_records(path)
    rates = dict.fromkeys(PILOT.variants, 0.2)
    jobs = {job.id: job for job in final_jobs(PILOT, tuple(PILOT.variants), PILOT.seeds, rates)}
    final = [record for record in old if record["phase"] == "final"]
    assert {record["id"] for record in final} == set(jobs) and len(jobs) == 18
    tuned = {job.id for job in tuning_jobs(PILOT, ())}
    assert {record["id"] for record in old if record["phase"] == "tuning"} == tuned
    config = dataclasses.asdict(jobs[final[0]["id"]].config)
    assert config["mixup"] is False and "mixup" not in final[0]["config"]
    new = [{**record, "config": dataclasses.asdict(jobs[record["id"]].config)} if record["seed"] else record
           for record in final]
    # seeds 1 and 2 as if they were run with the option there
    assert summarise(new, PILOT) == summarise(old, PILOT)
    check_definitions(PILOT, PILOT.variants, final)
    on = {**final[0], "config": {**config, "mixup": True}}
    with pytest.raises(ValueError,
                       match="different recipe are not compared: {'mixup': False} and {'mixup': True}"):
        summarise([*final[1:], on], PILOT)


# Damaged records: one line that says what is wrong

PILOT_RUNS = DATA / "results" / "cifar10-thin56-cpu.jsonl"
FINAL, TUNING = 5, 0        # lines of that file
DEEP = "[" * 100_000


def write_changed(path, file, number, **changes):
    """A copy of a file of records, one with some fields given as JSON text; None takes a field out."""
    lines = file.read_text().splitlines()
    record = json.loads(lines[number])
    fields = {name: json.dumps(value) for name, value in record.items()} | changes
    lines[number] = "{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()
                                    if value is not None) + "}"
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("number, field, value, words", [
    (FINAL, "test_accuracy", "5", "must be a number from 0 to 1, not 5"),
    (FINAL, "test_accuracy", "-1", "from 0 to 1, not -1"),
    (FINAL, "test_accuracy", "null", "from 0 to 1, not None"),
    (FINAL, "test_accuracy", '"0.7"', "from 0 to 1, not '0.7'"),
    (FINAL, "test_accuracy", "true", "from 0 to 1, not True"),
    (FINAL, "test_accuracy", None, "lacks test_accuracy"),
    (FINAL, "test_accuracy", "1" + "0" * 400, "from 0 to 1, not 1000"),
    (FINAL, "id", "7", "id must be a text"),
    (FINAL, "suite", "null", "suite must be a text"), (FINAL, "variant", "[1]", "variant must be a text"),
    (FINAL, "seed", "0.5", "seed must be an integer"), (FINAL, "seed", '"0"', "seed must be an integer"),
    (FINAL, "phase", '"later"', "phase must be one of 'tuning', 'final'"),
    (FINAL, "phase", "{}", "phase must be one of"),
    (FINAL, "config", "[]", "config must be a table"),
    (FINAL, "learning_rate", '"0.2"', "learning_rate must be a positive number"),
    (FINAL, "learning_rate", "0", "learning_rate must be a positive number"),
    (FINAL, "source", "1", "source must be a text"),
    (FINAL, "fingerprint", "{}", "fingerprint must be a text"), (FINAL, "config", None, "lacks config"),
    (FINAL, "diverged", '"nan"', "test_accuracy must be one of none, not 0.7079"),
    (TUNING, "metrics", "[]", "metrics must be a list of epochs"),
    (TUNING, "metrics", "7", "metrics must be a list of epochs"),
    (TUNING, "metrics", '[{"validation_accuracy": "high"}]',
     "validation_accuracy must be a number from 0 to 1"),
    *((FINAL, "metrics", value, f"metrics must be a list of epochs, not {given}")
      for value, given in (('{"a": 1}', "{'a': 1}"), ('"text"', "'text'"), ("true", "True"))),
    *((FINAL, "metrics", value, "metrics: an epoch must be a table")
      for value in ("[1]", "[null]", '[null, {"test_loss": 1.0}]', '[{"test_loss": 1.0}, true]')),
    (FINAL, "metrics", '[{"test_loss": "low"}]', "test_loss must be a number from 0 on, not 'low'"),
    (FINAL, "metrics", '[{"test_loss": null}]', "test_loss must be a number from 0 on, not None"),
    (FINAL, "metrics", '[{"epoch": 1, "train_loss": []}]', "train_loss must be a number from 0 on, not []"),
    (FINAL, "metrics", '[{"test_stained_box_AP": "low"}]', "test_stained_box_AP must be a number from 0 to"),
    (FINAL, "metrics", '[{"test_mask_fields": 1}]', "test_mask_fields must be a text, not 1"),
    (TUNING, "metrics", '[1, {"validation_accuracy": 0.5}]', "metrics: an epoch must be a table"),
])
def test_a_record_with_something_else_in_a_field_is_told(tmp_path, capsys, number, field, value, words):
    path = tmp_path / "records.jsonl"
    write_changed(path, PILOT_RUNS, number, **{field: value})
    assert cli.main(["suite", "report", "cifar10-thin56-cpu", "--records", str(path)]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"mrla: {path} does not hold records of a suite: record {number + 1}: ")
    assert words in line
    assert line.count("\n") == 1 and len(line) < 400


@pytest.mark.parametrize("field, value", [
    ("test_accuracy", "NaN"), ("test_accuracy", "1e999"), ("metrics", DEEP), ("seconds", "Infinity"),
    ("test_accuracy", "1" * 5000),
], ids=["nan", "1e999", "deep", "inf", "digits"])
def test_a_line_that_is_no_json_of_finite_numbers_is_left_out_and_said(tmp_path, capsys, field, value):
    path = tmp_path / "records.jsonl"
    write_changed(path, PILOT_RUNS, FINAL, **{field: value})
    assert len(load_records(path)) == len(load_records(PILOT_RUNS)) - 1
    told = capsys.readouterr().err
    assert told.startswith(f"note: {path}, line {FINAL + 1}: not a whole record: ")
    assert told.count("\n") == 1


REFITTED = {"learned": 0.5, "mean": 0.5, "shuffle": 0.5, "uniform": 0.5, "augmented": True,
            "changed": {"learned": [0, 0], "mean": [0, 0], "shuffle": [0, 0], "uniform": [0, 0]}}


@pytest.mark.parametrize("field, value, words", [
    ("learned", "2", "learned must be a number from 0 to 1"), ("uniform", None, "lacks uniform"),
    ("refitted", "[]", "refitted must be a table"),
    ("refitted", '{"learned": 0.5, "mean": 0.5, "shuffle": 0.5}',
     "refitted: lacks uniform, augmented, changed"),
    ("refitted", json.dumps({**REFITTED, "mean": "x"}), "refitted: mean must be a number"),
    ("refitted", json.dumps({**REFITTED, "augmented": 1}), "refitted: augmented must be True or False"),
    ("refitted", json.dumps({**REFITTED, "changed": {"mean": [1, 2]}}),
     "refitted: changed must hold two counts for learned"),
    ("images", "0", "images must be a positive integer"),
    ("changed", "[]", "changed must be a table"),
    ("changed", '{"mean": [1, 2]}', "changed must hold two counts for shuffle"),
    ("changed", '{"mean": [1, -2]}', "changed: mean must be an integer from 0"),
    ("seed", "null", "seed must be an integer"),
])
def test_interventions_are_checked_too(tmp_path, field, value, words):
    path = tmp_path / "records-interventions.jsonl"
    write_changed(path, interventions_path(PILOT_RUNS), 7, **{field: value})
    with pytest.raises(ValueError, match=f"{path} does not hold interventions: record 8: {words}"):
        load_interventions(path)


def test_a_number_that_is_not_finite_is_never_written(tmp_path):
    path = tmp_path / "records.jsonl"
    with pytest.raises(ValueError, match="metrics.0..test_loss is nan"):
        append_once(path, {**load_records(PILOT_RUNS)[0], "metrics": [{"test_loss": math.nan}]}, load_records)
    assert load_records(path) == []


def test_a_broken_last_line_costs_its_own_run_only(tmp_path, capsys):
    run_tiny(tmp_path, seeds=(0,))
    with open(tmp_path / "records.jsonl", "a") as file:
        file.write('{"id": "half')
    assert len(run_tiny(tmp_path, seeds=(0, 1))) == 4
    assert capsys.readouterr().err.count("not a whole record") == 1


# Files that several write

def test_records_are_added_by_one_process_at_a_time(tmp_path):
    """What another process adds while it holds the lock is seen, and not added twice."""
    path = tmp_path / "records.jsonl"
    one, other = load_records(PILOT_RUNS)[:2]
    lock = FileLock(f"{path}.lock", thread_local=False)
    lock.acquire()
    waiting = threading.Thread(target=append_once, args=(path, one, load_records))
    waiting.start()
    time.sleep(0.3)
    assert waiting.is_alive()
    for record in (other, one):
        append_record(path, record)
    lock.release()
    waiting.join()
    assert load_records(path) == [other, one]


def test_a_lock_that_cannot_be_taken_is_named(tmp_path):
    path = tmp_path / "records.jsonl"
    (tmp_path / "records.jsonl.lock").mkdir()       # as unusable as another user's
    with pytest.raises(OSError, match="records.jsonl.lock"):
        append_once(path, load_records(PILOT_RUNS)[0], load_records)


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
def test_a_records_file_that_is_a_link_stays_one(tmp_path):
    (tmp_path / "elsewhere.jsonl").write_text("")
    path = tmp_path / "records.jsonl"
    path.symlink_to("elsewhere.jsonl")
    first, second = load_records(PILOT_RUNS)[:2]
    append_once(path, first, load_records)
    (tmp_path / "more.jsonl").write_text(json.dumps(second) + "\n")
    merge_records([tmp_path / "more.jsonl"], path)
    assert path.is_symlink() and load_records(tmp_path / "elsewhere.jsonl") == [first, second]


def test_merging_two_machines_files_gives_one_table(tmp_path):
    runs = load_records(PILOT_RUNS)
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path, part in zip(files, (runs[:12], runs[10:]), strict=True):
        path.write_text("".join(map(to_line, part)))
    target = tmp_path / "merged.jsonl"
    assert merge_records([*files, files[0]], target) == runs == load_records(target)
    altered = {**runs[0], "test_accuracy": 0.123}
    append_record(tmp_path / "other.jsonl", altered)
    with pytest.raises(ValueError, match=f"record {runs[0]['id']}.*differs"):
        merge_records([files[0], tmp_path / "other.jsonl"], target)
    assert load_records(target) == runs
    assert merge_records([files[1]], files[0]) == runs       # what the target holds stays
    with pytest.raises(ValueError, match="absent.jsonl: no such file"):
        merge_records([tmp_path / "absent.jsonl"], target)
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n')
    with pytest.raises(ValueError,
                       match="metrics.jsonl does not hold records of a suite: record 1: lacks id"):
        merge_records([tmp_path / "metrics.jsonl"], target)
    assert load_records(target) == runs


def test_interventions_are_merged_by_their_own_rule(tmp_path):
    """Each net once: its line of today's form, if there is one, in place of an older one."""
    source = read_records(interventions_path(PILOT_RUNS))[0]
    old = [{name: value for name, value in record.items() if name != "refitted"} for record in source]
    whole = [{**record, "refitted": REFITTED} for record in old[:3]]
    files = [tmp_path / "a-interventions.jsonl", tmp_path / "b-interventions.jsonl"]
    for path, part in zip(files, ([*whole[:2], *old[:5]], [*old, whole[2], whole[0]]), strict=True):
        path.write_text("".join(map(to_line, part)))
    target = tmp_path / "all-interventions.jsonl"
    merged = merge_records(files, target)
    by_id = {record["id"]: record for record in merged}
    assert len(merged) == len(old) == len(by_id) and read_records(target)[0] == merged
    assert by_id == {record["id"]: record for record in (*old, *whole)}
    append_record(files[1], {**whole[0], "refitted": {**REFITTED, "mean": 0.1}})
    with pytest.raises(ValueError, match=f"record {whole[0]['id']} .*differs"):
        merge_records(files, target)
    with pytest.raises(ValueError, match="runs and interventions are kept apart"):
        merge_records([PILOT_RUNS], target)


# What is committed

INDEX = {line["file"]: line for line in read_records(DATA / "results" / "checkpoints.jsonl")[0]}
COMMITTED = sorted((DATA / "checkpoints").glob("*.pt"))


def test_committed_records_are_of_the_real_images_and_their_ids_are_their_contents():
    paths = [path for path in sorted((DATA / "results").glob("*.jsonl"))
             if path.stem.removesuffix("-interventions").removesuffix("-stops") in SUITES]
    assert len(paths) > 10
    for path in paths:
        suite = SUITES[path.stem.removesuffix("-interventions").removesuffix("-stops")]
        records, complaints = read_records(path)
        assert records and not complaints
        for record in records:
            assert record["suite"] == suite.name
            images = suite.recipe.get("dataset", "cifar10")
            assert record.get("source", images) == images       # of stops, none is told
            assert set(record.get("variants") or [record["variant"]]) <= suite.variants.keys()
            if "config" in record:
                assert record["id"] == record_id(suite.name, record["variant"], record["seed"],
                                                 record["config"])
                assert record["recipe"] == suite.recipe_of(record["config"])
            assert not [word for word in ("/home", "/root", "/tmp", "/work") if word in json.dumps(record)]


def test_every_committed_intervention_is_of_a_committed_run():
    for path in sorted((DATA / "results").glob("*-interventions.jsonl")):
        runs = load_records(path.with_name(path.name.replace("-interventions", "")))
        which = {run["id"]: (run["variant"], run["seed"]) for run in runs}
        for record in read_records(path)[0]:
            assert (record["variant"], record["seed"]) == which[record["id"]]


def test_every_committed_checkpoint_has_its_line_and_its_record():
    assert set(INDEX) == {path.name for path in COMMITTED}
    for path in COMMITTED:
        line = INDEX[path.name]
        assert path.name == f"{line['suite']}-{line['variant']}.pt"
        assert path.stat().st_size < 1_500_000
        assert hashlib.sha256(path.read_bytes()).hexdigest() == line["sha256"]
        records = {r["id"]: r for r in load_records(DATA / "results" / f"{line['suite']}.jsonl")}
        record, name = records[line["id"]], next(name for name in line if name.startswith("test_"))
        reached = record["metrics"][-1] if name == "test_mask_AP" else record
        assert reached[name] == line[name] and abs(line[f"rounded_{name}"] - line[name]) < 0.002
        state = read_checkpoint(path)
        assert state["id"] == line["id"] == record_id(line["suite"], line["variant"], line["seed"],
                                                      state["config"])


def test_the_pilots_renamed_records_keep_their_old_names_and_nothing_of_the_option_that_is_gone():
    renamed = {"mrla-light": "mrla-light-released", "mrla-light-own": "mrla-light"}
    former = set()
    for name in ("cifar10-thin56-cpu.jsonl", "cifar10-thin56-cpu-interventions.jsonl", "checkpoints.jsonl"):
        for record in read_records(DATA / "results" / name)[0]:
            if record["suite"] != "cifar10-thin56-cpu" or "refitted" in record:     # made or measured since
                continue
            was = record["formerly"]
            assert record["variant"] == renamed.get(was["variant"], was["variant"])
            assert record["id"] != was["id"]
            former.add((record["id"], was["id"]))
    assert len(former) == len({new for new, _ in former}) == len({old for _, old in former}) == 21
    assert not [path for path in DATA.rglob("*") if path.is_file() and path.suffix != ".md"
                and b"light_carry" in path.read_bytes()]
