"""The curve of notebook 13b: what its records hold, how they are gone on with, and what is committed."""

import json

import pytest
from tiny_scenes import tiny_scenes

from mrla_minimal.course import detector_curve
from mrla_minimal.course.detector_curve import curve_records, curve_table
from mrla_minimal.lab.engine import PRESETS

SHORT = PRESETS["nuclei"] | {"depth": 8, "width": 8, "batch_size": 4, "steps": 3, "device": "cpu"}


def test_a_curve_has_the_average_precision_after_each_epoch(tmp_path):
    (record,) = curve_records([1], runs=tmp_path, recipe=SHORT, data=tiny_scenes())
    assert record["curve"][-1][0] == 3 and record["seed"] == 1 and len(record["id"]) == 12
    kept = [json.loads(line) for line in (tmp_path / "seed1/metrics.jsonl").read_text().splitlines()]
    assert record["curve"] == [[line["step"], line["validation_box_AP"], line["validation_mask_AP"]]
                               for line in kept]
    assert "test_mask_AP" in kept[-1], "the test images are looked at once, at the end"
    assert list(curve_records([1], known=[record], recipe=SHORT)) == []


def test_a_run_that_was_interrupted_goes_on(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(detector_curve, "train", lambda config, folder, **options: asked.append(
        (config.seed, config.validation, options["resume"])) or pytest.fail("enough"))
    (tmp_path / "seed2").mkdir()
    (tmp_path / "seed2/config.json").write_text("{}")
    for seed, resumed in ((0, False), (2, True)):
        with pytest.raises(pytest.fail.Exception):
            list(curve_records([seed], runs=tmp_path, recipe=SHORT))
        assert asked.pop() == (seed, True, resumed)


def test_the_table_has_a_column_a_seed():
    records = [{"seed": seed, "curve": [[95, 0.5, mask], [190, 0.6, mask + 0.1]]}
               for seed, mask in ((0, 0.25), (3, 0.305))]
    assert [line.split() for line in curve_table(records).splitlines()] == [
        ["step", "seed", "0", "seed", "3"], ["95", "25.0", "30.5"], ["190", "35.0", "40.5"]]


def test_a_wrong_seed():
    with pytest.raises(ValueError, match="seed must be an integer from 0 to 2147483647, not -1"):
        list(curve_records([-1]))
