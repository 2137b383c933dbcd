"""Suites run by time: which blocks are begun, what is left behind, and that the same command goes on."""

import dataclasses
import threading
import time
from types import SimpleNamespace

import pytest
from filelock import FileLock
from test_branches import SUITE as BRANCHES
from tiny import tiny_cifar
from tiny_suites import run_tiny, tiny_suite

from mrla_minimal.lab.engine import Run, training
from mrla_minimal.lab.evidence import board, run_suite, running, sitting, timed
from mrla_minimal.lab.evidence.blocks import load_stops
from mrla_minimal.lab.evidence.jobs import final_jobs, trunk_job
from mrla_minimal.lab.evidence.pacing import Pace
from mrla_minimal.lab.evidence.records import load_records


class Clock:
    """The clock of all that runs by time: its seconds pass only when they are told to."""

    def __init__(self, monkeypatch, **takes):
        """takes: the seconds of a run by its attention, where they are not 10."""
        self.now = 1000.0
        own = SimpleNamespace(monotonic=lambda: self.now, sleep=lambda seconds: None,
                              time=lambda: time.time(), perf_counter=time.perf_counter)
        for module in (board, running, timed, training):
            monkeypatch.setattr(module, "time", own)
        original = Run.train_step

        def step(run):
            original(run)
            whole = takes.get(run.config.layer_attention or "plain", 10.0)
            self.now += whole / (run.last_step - run.first_step)

        monkeypatch.setattr(training, "_draw", lambda *_: None)     # of all that a run does, the slowest
        monkeypatch.setattr(Run, "train_step", step)
        monkeypatch.setattr(timed, "estimate", lambda config, data, sitting, kind:
                            Pace(sitting, kind, 8.0, 0, 3, False))


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def order(records):
    return [(record["seed"], record["variant"]) for record in records]


def blocks_of(*seeds):
    """In a block the longest run first; of equally long ones in the suite's order."""
    return [(seed, variant) for seed in seeds for variant in ("plain", "mrla-light")]


def test_blocks_are_run_as_long_as_the_next_one_can_end_beyond_the_declared_seeds(tmp_path, clock):
    records = run_tiny(tmp_path, minutes=1.2)       # 72 s; a block takes 20, and 22 must be left for it
    assert order(records) == blocks_of(0, 1, 2) and clock.now == pytest.approx(1060.0)
    (stop,) = load_stops(tmp_path / "records.jsonl", "tiny")
    assert (stop["how"], stop["complete"], stop["minutes"], stop["jobs"]) == ("time", [0, 1, 2], 1.2, 1)
    records = run_tiny(tmp_path, minutes=0.4)       # 24 s: one block more
    assert order(records) == blocks_of(0, 1, 2, 3)


def test_seeds_that_are_given_are_all_that_there_are(tmp_path, clock):
    records = run_tiny(tmp_path, minutes=60.0, seeds=(7, 2))
    assert order(records) == blocks_of(7, 2)
    (stop,) = load_stops(tmp_path / "records.jsonl", "tiny")
    assert (stop["how"], stop["complete"]) == ("count", [2, 7])
    assert run_tiny(tmp_path, minutes=0.01, seeds=(7, 2)) == records        # nothing to do needs no time


def test_minutes_that_are_too_few_for_a_block_say_what_one_takes(tmp_path, clock):
    with pytest.raises(ValueError, match=r"^0.25 minutes are too few: one block of suite tiny takes about "
                                         r"0.4 minutes here with 1 job; nothing was begun$"):
        run_tiny(tmp_path, minutes=0.25)        # twice 8 s, and a third for what is untried
    assert load_records(tmp_path / "records.jsonl") == [] and not list(tmp_path.rglob("checkpoint.pt"))
    assert load_stops(tmp_path / "records.jsonl", "tiny") == []


@pytest.mark.parametrize("minutes", [0, -1.0, float("nan"), float("inf"), "2", True])
def test_minutes_must_be_a_positive_number(tmp_path, minutes):
    with pytest.raises(ValueError, match="minutes must be a positive number, not"):
        run_tiny(tmp_path, minutes=minutes)


def test_incomplete_blocks_are_finished_first(tmp_path, clock):
    run_tiny(tmp_path, seeds=(5,), variants=("mrla-light",))
    records = run_tiny(tmp_path, minutes=0.8)
    assert order(records) == [(5, "mrla-light"), (5, "plain"), *blocks_of(0)]


def test_a_run_that_is_not_done_in_time_stops_with_a_checkpoint_and_is_gone_on_with(tmp_path, monkeypatch):
    whole = run_tiny(tmp_path / "whole", seeds=(0,))
    with monkeypatch.context() as patch:
        clock = Clock(patch, **{"mrla-light": 30.0})        # estimated: 10, after plain
        records = run_tiny(tmp_path, minutes=0.5)
        assert order(records) == [(0, "plain")] and clock.now == pytest.approx(1030.0)
        assert len(list(tmp_path.glob("runs/tiny/mrla-light-seed0-*/checkpoint.pt"))) == 1
    steps, original = [], Run.train_step
    monkeypatch.setattr(Run, "train_step", lambda run: steps.append(run.step) or original(run))
    records = run_tiny(tmp_path, seeds=(0,))
    assert steps == [2] and [r["metrics"] for r in records] == [r["metrics"] for r in whole]


def test_rates_are_tuned_first_and_only_if_that_can_end(tmp_path, clock):
    suite = tiny_suite(rates=(0.01, 0.1))
    with pytest.raises(ValueError, match="the tuning of suite tiny takes about 0.7 minutes"):
        run_tiny(tmp_path, suite, minutes=0.5)
    records = run_tiny(tmp_path, suite, minutes=0.75)       # four runs fit, and no block after them
    assert [record["phase"] for record in records] == ["tuning"] * 4
    records = run_tiny(tmp_path, suite, minutes=0.45)
    assert order(records[4:]) == blocks_of(0)


@pytest.mark.parametrize("what, how", [(KeyboardInterrupt, "interrupted"), (OSError, "error")])
def test_an_interruption_or_an_error_is_said_in_what_ended_the_suite(tmp_path, clock, monkeypatch, what, how):
    original = running.train

    def interrupted(config, *arguments, **options):
        if config.seed == 1:
            raise what
        return original(config, *arguments, **options)

    monkeypatch.setattr(running, "train", interrupted)
    with pytest.raises(what):
        run_tiny(tmp_path, minutes=10.0)
    (stop,) = load_stops(tmp_path / "records.jsonl", "tiny")
    assert (stop["how"], stop["complete"]) == (how, [0])


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_a_wall_clock_that_is_set_changes_nothing(tmp_path, clock, monkeypatch, jump):
    original, calls = time.time, []

    def jumping():
        calls.append(1)
        return original() + jump * (len(calls) % 2)

    monkeypatch.setattr(time, "time", jumping)
    assert order(run_tiny(tmp_path, minutes=1.2)) == blocks_of(0, 1, 2)


def run_beside_another(tmp_path, suite, job, minutes):
    """The records, while a process without a time limit is at a job: it is nowhere on the board."""
    folder = tmp_path / "runs" / "tiny" / job.folder
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        return run_tiny(tmp_path, suite, minutes=minutes)


def test_a_run_that_another_process_is_at_is_left_to_it(tmp_path, clock):
    suite = tiny_suite()
    records = run_beside_another(tmp_path, suite, final_jobs(suite, ("plain",), (0,), None)[0], 0.8)
    assert order(records) == [(0, "mrla-light"), *blocks_of(1)]
    assert load_stops(tmp_path / "records.jsonl", "tiny")[0]["complete"] == [1]


def test_the_branches_of_a_trunk_that_another_process_is_at_are_left_too(tmp_path, clock):
    branch = final_jobs(BRANCHES, ("uniform",), (0,), None)[0]
    records = run_beside_another(tmp_path, BRANCHES, trunk_job(BRANCHES, branch), 0.8)
    assert order(records) == [(1, variant) for variant in BRANCHES.variants]


def test_a_line_a_minute_says_how_it_stands(tmp_path, monkeypatch, capsys):
    """The thread that prints it is given its turns here by the runs."""
    Clock(monkeypatch)
    told, original, describe = threading.Semaphore(0), running.train, timed.Blocks.describe

    def train(config, *arguments, **options):
        told.acquire(timeout=60)
        return original(config, *arguments, **options)

    def described(blocks):
        text = describe(blocks)
        told.release()
        return text

    monkeypatch.setattr(sitting, "EVERY", 0.001)
    monkeypatch.setattr(running, "train", train)
    monkeypatch.setattr(timed.Blocks, "describe", described)
    run_suite(tiny_suite(), tmp_path / "records.jsonl", runs=tmp_path / "runs", data=tiny_cifar(),
              minutes=0.5)
    first, *lines, last_but_one, last = capsys.readouterr().out.splitlines()
    assert first == "tiny: 0.5 minutes with 1 job; first, a few steps of each variant are timed"
    assert "tiny: 0 complete blocks, 0 runs in 0.0 minutes; now plain seed 0; 0.5 minutes left; " \
        "what is begun ends in 0.3" in lines
    assert last_but_one.startswith("tiny: 1 complete block, 2 runs in ")
    assert last == "tiny: no other block would end in time; the same command goes on"


def test_branches_wait_for_their_trunk_which_is_trained_once(tmp_path, clock):
    """A trunk of 10 s and three branches of 10 s each make a block: 40 s."""
    steps, original = [], Run.train_step

    def counted(run):
        steps.append(run.config.trunk)
        original(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "train_step", counted)
        records = run_tiny(tmp_path, BRANCHES, minutes=0.8)
    assert order(records) == [(0, variant) for variant in BRANCHES.variants]
    assert steps == [None] * 6 + ["uniform"] * 18
    assert len({record["trunk"]["weights"] for record in records}) == 1
    with pytest.raises(ValueError, match="one block of suite tiny takes about"):
        run_tiny(tmp_path, BRANCHES, minutes=0.5)


def test_a_trunk_that_diverges_ends_its_block(tmp_path, clock):
    suite = dataclasses.replace(BRANCHES, recipe={**BRANCHES.recipe, "learning_rate": 1e20})
    records = run_tiny(tmp_path, suite, minutes=20.0, seeds=(0,))
    assert len(records) == 3 and all("diverged" in record for record in records)


def test_while_kinds_are_still_timed_nothing_is_said_of_when_what_is_begun_ends(tmp_path, monkeypatch):
    """A seed was begun earlier, its variants have no paces yet, and another command is at the same suite."""
    with monkeypatch.context() as patch:
        Clock(patch, plain=60.0)
        run_tiny(tmp_path, minutes=0.5)             # stops within plain
    Clock(monkeypatch).now = 2000.0
    said, original = [], timed.Blocks._time

    def timing(blocks, job):
        said.append(blocks.describe())
        original(blocks, job)

    monkeypatch.setattr(timed.Blocks, "_time", timing)
    with board.Board(tmp_path / "runs" / "tiny", 5.0) as other:
        other.show(board.Activity(5.0, "id", "plain seed 3", 2000.0, 9.0))
        run_tiny(tmp_path, minutes=0.5)
    assert said == [f"now a few steps of {kind}, timed, plain seed 3; 0.5 minutes left"
                    for kind in ("plain", "mrla-light")]
