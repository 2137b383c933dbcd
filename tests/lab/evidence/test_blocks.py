"""Blocks: which are complete, in which order they come, and what a report says of how they ended."""

import itertools

import pytest
from tiny_suites import diverged, record, tiny_suite

from mrla_minimal.lab.evidence.blocks import (
    append_stop,
    complete_seeds,
    how_it_stopped,
    load_stops,
    merge_stops,
    seeds_in_order,
)

SUITE = tiny_suite(name="s", seeds=(0, 1, 2))
BOTH = ("plain", "mrla-light")


def runs(*seeds, variants=BOTH):
    return [record(variant, seed, 0.5) for seed in seeds for variant in variants]


def stop(how, complete, minutes=60.0, **more):
    return {"suite": "s", "variants": list(BOTH), "how": how, "minutes": minutes, "jobs": 2,
            "complete": complete, **more}


def test_a_block_is_complete_when_every_variant_has_ended_with_an_accuracy_or_not():
    records = [*runs(2, 0), record("plain", 1, 0.5), *runs(3, variants=("plain",)), diverged("mrla-light", 3)]
    assert complete_seeds("s", BOTH, records) == [0, 2, 3]
    assert complete_seeds("s", ("plain",), records) == [0, 1, 2, 3]
    tuning = {**record("mrla-light", 1, 0.5), "phase": "tuning"}
    assert complete_seeds("s", BOTH, [*records, tuning]) == [0, 2, 3]


def test_seeds_come_incomplete_first_then_declared_then_counting():
    records = [*runs(0), record("plain", 7, 0.5), record("plain", 1, 0.5)]
    order = seeds_in_order(SUITE, BOTH, None, records)
    assert list(itertools.islice(order, 7)) == [1, 7, 0, 2, 3, 4, 5]
    assert list(seeds_in_order(SUITE, BOTH, (5, 1), records)) == [1, 5]
    assert list(itertools.islice(seeds_in_order(SUITE, ("mrla-light",), None, records), 3)) == [0, 1, 2]


@pytest.mark.parametrize("records, stops, text", [
    (runs(0, 1, 2), [], "3 complete blocks (all variants of a seed): all 3 declared seeds."),
    (runs(0), [], "1 complete block (all variants of a seed); 3 seeds were declared. The blocks were made "
     "without a time limit, or by a command that was cut off."),
    (runs(0, 1, 2, 3), [stop("time", [2, 3]), stop("time", [0, 1])],       # two machines, merged
     "4 complete blocks (all variants of a seed): all 3 declared seeds, and 1 more. Stopped by time, within "
     "60 minutes; then by time, within 60 minutes."),
    (runs(0), [stop("time", [0], took=41.26)],
     "1 complete block (all variants of a seed); 3 seeds were declared. Stopped by time, after 41.3 of 60 "
     "minutes."),
    (runs(0, 1), [stop("time", [0, 1])], "2 complete blocks (all variants of a seed); 3 seeds were declared. "
     "Stopped by time, within 60 minutes."),
    (runs(0, 1, 2, 3), [stop("time", [0, 1], 30.0), stop("time", [0, 1, 2, 3], 45.5)],
     "4 complete blocks (all variants of a seed): all 3 declared seeds, and 1 more. Stopped by time, within "
     "30 minutes; then by time, within 45.5 minutes."),
    (runs(0, 1), [stop("interrupted", [0], 30.0), stop("time", [0, 1])],      # what ended each is told
     "2 complete blocks (all variants of a seed); 3 seeds were declared. Stopped by hand (interrupted), "
     "within 30 minutes; then by time, within 60 minutes."),
    (runs(0, 1), [stop("interrupted", [0, 1])], "2 complete blocks (all variants of a seed); 3 seeds were "
     "declared. Stopped by hand (interrupted), within 60 minutes."),
    ([record("plain", 0, 0.5)], [stop("error", [])],
     "0 complete blocks (all variants of a seed); 3 seeds were declared. Stopped by an "
     "error, within 60 minutes.\nnot complete: seed 0 (1 of 2 variants)."),
    ([*runs(0, 1), record("plain", 2, 0.5)], [stop("count", [0])],
     "2 complete blocks (all variants of a seed); 3 seeds were declared. Stopped by count, all seeds that "
     "were asked for being done, within 60 minutes; other blocks were made without a time limit, or by a "
     "command that was cut off.\nnot complete: seed 2 (1 of 2 variants)."),
])
def test_a_report_says_how_many_blocks_and_what_ended_them(records, stops, text):
    assert how_it_stopped(SUITE, records, stops) == text


def test_stops_are_kept_beside_the_records_a_suites_own(tmp_path):
    path = tmp_path / "s.jsonl"
    assert load_stops(path, "s") == []
    append_stop(path, stop("time", [0]))
    append_stop(path, {**stop("time", [0]), "suite": "other"})
    assert load_stops(path, "s") == [stop("time", [0])] and (tmp_path / "s-stops.jsonl").exists()


def test_stops_of_files_that_can_be_listed_only_once_are_merged(tmp_path):
    append_stop(tmp_path / "one.jsonl", stop("time", [0]))
    merged = merge_stops(iter([tmp_path / "one-stops.jsonl"]), tmp_path / "s.jsonl")
    assert merged == load_stops(tmp_path / "s.jsonl", "s") == [stop("time", [0])]


@pytest.mark.parametrize(("wrong", "told"), [
    ({"how": "quit"}, "how must be one of .*, not 'quit'"), ({"how": None}, "how must be one of"),
    ({"minutes": 0}, "minutes must be a positive number"), ({"complete": 0}, "complete must be a list"),
    ({"complete": ["0"]}, "complete must be an integer"), ({"variants": "plain"}, "variants must be a list"),
    ({"suite": None}, "suite must be a text"),
])
def test_a_line_that_is_no_stop_is_told_where_stops_are_read_or_merged(tmp_path, wrong, told):
    append_stop(tmp_path / "s.jsonl", stop("time", [0]))
    append_stop(tmp_path / "s.jsonl", {**stop("time", [1]), **wrong})
    for act in (lambda: load_stops(tmp_path / "s.jsonl", "s"),
                lambda: merge_stops([tmp_path / "s-stops.jsonl"], tmp_path / "all.jsonl")):
        with pytest.raises(ValueError, match=f"s-stops.jsonl does not hold stops: record 2: {told}"):
            act()
    assert not (tmp_path / "all-stops.jsonl").exists()


def test_stops_are_not_merged_into_those_of_another_suite(tmp_path):
    append_stop(tmp_path / "one.jsonl", stop("time", [0]))
    append_stop(tmp_path / "other.jsonl", {**stop("time", [0]), "suite": "other"})
    before = (tmp_path / "other-stops.jsonl").read_bytes()
    for suite in ("s", None):
        with pytest.raises(ValueError, match="holds a line of suite"):
            merge_stops([tmp_path / "one-stops.jsonl"], tmp_path / "other.jsonl", suite)
    assert (tmp_path / "other-stops.jsonl").read_bytes() == before
