"""Suites of detectors: run, recorded, compared by average precision, exported."""

import dataclasses
import json
import math
import statistics
from pathlib import Path

import numpy as np
import pytest
from tiny_scenes import tiny_scenes
from tiny_suites import record

from mrla_minimal.lab.engine import PRESETS
from mrla_minimal.lab.evidence import (
    SUITES,
    Effect,
    Suite,
    load_records,
    merge_records,
    report,
    run_suite,
    summarise,
)
from mrla_minimal.lab.evidence.committed import export_checkpoints
from mrla_minimal.lab.evidence.detection_table import DRAWS, answers, inside, noises
from mrla_minimal.lab.evidence.image_noise import image_noise
from mrla_minimal.lab.evidence.measures import MEASURES
from mrla_minimal.lab.evidence.pacing import estimate
from mrla_minimal.lab.evidence.report import summary_as_json
from mrla_minimal.lab.fields import ByField, from_text, to_text
from mrla_minimal.lab.files import to_line

ROOT = Path(__file__).parents[3]
FOUND = Suite("discs", {"plain": {"layer_attention": None}, "mrla-light": {"layer_attention": "mrla-light"}},
              {"dataset": "nuclei", "depth": 8, "width": 8, "batch_size": 4, "steps": 2, "device": "cpu",
               "optimizer": "adamw", "learning_rate": 6e-3}, seeds=(0,),
              primary=(("mrla-light", "plain"),), measure="mask_AP", margin=1.0)


def detection(variant, seed, box, mask, last=None, **changes):
    """A record of suite "discs", of a run that was never made; `last`: more of what it measured."""
    last = {"epoch": 1, "step": 2, "train_loss": 1.0, "test_box_AP": box, "test_mask_AP": mask} | (last or {})
    made = record(variant, seed, 0.0, suite="discs", metrics=[last], learning_rate=6e-3, source="nuclei",
                  config=dataclasses.asdict(FOUND.config(variant, seed)), **changes)
    del made["test_accuracy"]
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("discs")
    records = run_suite(FOUND, folder / "records.jsonl", runs=folder / "runs", data=tiny_scenes(),
                        progress=False)
    return folder, records


def test_a_record_says_what_was_found(made):
    folder, records = made
    assert [row["variant"] for row in records] == ["plain", "mrla-light"] == [
        row["variant"] for row in load_records(folder / "records.jsonl")]
    for row in records:
        last = row["metrics"][-1]
        assert "test_accuracy" not in row and row["source"] == "discs" and row["macs"] > 1e6
        kept = from_text(last["test_mask_fields"]).average_precision()
        assert kept["AP"] == pytest.approx(last["test_mask_AP"], abs=0.02)
        assert row["recipe"]["dataset"] == "nuclei"


def test_it_is_asked_of_masks_and_boxes_stand_beside(made):
    summary = summarise(made[1], FOUND)
    text = report(summary)
    assert "asked of the average precision of masks" in text and "detector on ResNet-8" in text
    assert "mask AP %" in text and "box AP %" in text and "accuracy" not in text
    assert summary_as_json(summary)["accuracies"] == {}


def test_differences_are_in_points_and_read_by_the_margin():
    records = [detection("plain", seed, 0.4 + 0.01 * seed, 0.5 + 0.001 * seed) for seed in range(9)]
    records += [detection("mrla-light", seed, 0.41 + 0.01 * seed, 0.5 + 0.001 * seed + 0.0005 * (seed % 3))
                for seed in range(9)]
    row, = summarise(records, FOUND).contrasts
    assert row.measure == "mask_AP" and MEASURES["mask_AP"].difference(row.mean) == "+0.05"
    assert row.reading == "a above b, by less than 1 point"
    assert summarise(records, FOUND).further["box_AP"][0].mean == pytest.approx(0.01)


def test_the_rival_stands_below_the_nets_that_saw_its_images(monkeypatch, tmp_path):
    records = [detection(variant, 0, 0.4, 0.5) for variant in FOUND.variants]
    monkeypatch.chdir(tmp_path)
    assert "Otsu" not in report(summarise(records, FOUND))          # no records are at hand here
    monkeypatch.chdir(ROOT)
    rival = json.loads((ROOT / "data" / "results" / "nuclei-rival.json").read_text(encoding="utf-8"))
    row, = [line.split() for line in report(summarise(records, FOUND)).splitlines()
            if line.startswith("Otsu")]
    values = [f"{100 * rival[f'test_{name}_AP']:.2f}" for name in ("mask", "box")]
    assert row == ["Otsu", "+", "watershed", "none", values[0], "-", values[1], "-", "-"]
    others = [{**one, "source": "discs"} for one in records]
    assert "Otsu" not in report(summarise(others, FOUND))


@pytest.mark.parametrize("changes, words", [
    ({"metrics": []}, "last epoch must be a table"), ({"metrics": [{}]}, "test_box_AP must be a number"),
    ({"metrics": [{"test_box_AP": 0.5, "test_mask_AP": 1.5}]}, "test_mask_AP must be a number from 0 to 1"),
    ({"metrics": None}, "metrics must be a list of epochs, not None"),
    ({"source": 1}, "source must be a text"),
])
def test_records_that_are_damaged(tmp_path, changes, words):
    (tmp_path / "a.jsonl").write_text(to_line({**detection("plain", 0, 0.4, 0.5), **changes}))
    with pytest.raises(ValueError, match=words):
        load_records(tmp_path / "a.jsonl")


@pytest.mark.parametrize(("metrics", "told"), [([], None), ({}, "metrics must be a list"), ([3], "an epoch")])
def test_a_run_that_diverged_before_an_epoch_ended_is_merged_or_its_metrics_are_told(tmp_path, metrics, told):
    run = {**detection("plain", 0, 0.4, 0.5), "diverged": "the loss is nan", "test_accuracy": None}
    (tmp_path / "a.jsonl").write_text(to_line({**run, "metrics": metrics}))
    if told is None:
        assert len(merge_records([tmp_path / "a.jsonl"], tmp_path / "all.jsonl")) == 1
        return
    with pytest.raises(ValueError, match=told):
        merge_records([tmp_path / "a.jsonl"], tmp_path / "all.jsonl")


def test_two_records_of_one_run_must_agree(tmp_path):
    one, two, other = (tmp_path / name for name in ("one.jsonl", "two.jsonl", "other.jsonl"))
    one.write_text(to_line(detection("plain", 0, 0.4, 0.5)))
    two.write_text(to_line(detection("plain", 0, 0.4, 0.5)) + to_line(detection("plain", 1, 0.4, 0.5)))
    other.write_text(to_line(detection("plain", 0, 0.4, 0.51)))
    assert len(merge_records([one, two], tmp_path / "all.jsonl")) == 2
    with pytest.raises(ValueError, match="differs from the one of the same id"):
        merge_records([one, other], tmp_path / "wrong.jsonl")


def test_a_checkpoint_is_tested_as_rounded(made):
    folder, records = made
    line, = export_checkpoints(FOUND, records[:1], folder / "runs", folder / "checkpoints",
                               folder / "index.jsonl", data=tiny_scenes())
    assert line["test_mask_AP"] == records[0]["metrics"][-1]["test_mask_AP"]
    assert line["rounded_test_mask_AP"] == pytest.approx(line["test_mask_AP"], abs=0.02)
    assert json.loads((folder / "index.jsonl").read_text()) == line
    assert (folder / "checkpoints" / "discs-plain.pt").stat().st_size < 1e6


def test_how_long_a_run_would_take_is_estimated():
    pace = estimate(FOUND.config("plain", 0), tiny_scenes(), 0.0, "plain")
    assert (pace.first, pace.last, pace.measured) == (0, 2, False) and pace.seconds > 0


def test_the_suites_are_the_presets_with_other_attentions():
    for name, seeds in (("nuclei", 9), ("blood", 9)):
        suite = SUITES[f"{name}-cpu"]
        assert len(suite.seeds) == seeds and suite.committed
        config = dataclasses.asdict(suite.config("mrla-light", 0))
        assert config | PRESETS[name] == config and config["source"] == "real"
    nuclei = SUITES["nuclei-cpu"]
    assert nuclei.primary == (("mrla-light", "depthwise"), ("mrla-base", "uniform"))
    assert nuclei.measure == "mask_AP" and set(nuclei.variants) == {
        "plain", "depthwise", "mrla-light", "mrla-light-released", "uniform", "mrla-base"}


def test_a_detectors_loss_is_no_measure(monkeypatch):
    """It has several parts. And the rival has none: a report of records of several epochs failed once."""
    monkeypatch.chdir(ROOT)
    records = [detection(variant, 0, 0.4, 0.5) for variant in FOUND.variants]
    for one in records:
        one["metrics"].insert(0, {"epoch": 1, "train_loss": 1.2})
    summary = summarise(records, FOUND)
    assert set(summary.values) == {"mask_AP", "box_AP"} and "Otsu" in report(summary)


def kinds(mask):
    """What a run reaches on two kinds of image: masks so, boxes a tenth less."""
    return {f"test_{kind}_{what}_AP": mask + more - 0.1 * (what == "box")
            for kind, more in (("glowing", 0.05), ("stained", -0.2)) for what in ("box", "mask")}


def test_each_kind_of_image_has_its_columns_and_its_differences(monkeypatch):
    monkeypatch.chdir(ROOT)
    records = [detection(variant, seed, 0.4, mask, kinds(mask)) for seed in range(2)
               for variant, mask in (("plain", 0.5 + 0.01 * seed), ("mrla-light", 0.52 + 0.03 * seed))]
    summary = summarise(records, FOUND)
    assert summary.kinds["stained"]["box_AP"]["plain"] == {0: pytest.approx(0.2), 1: pytest.approx(0.21)}
    lines = report(summary).splitlines()
    head, = [number for number, line in enumerate(lines) if line.startswith("by kind of image")]
    assert lines[head].split()[4:8] == ["glowing,", "mask", "AP", "%"]
    by_variant = {line.split()[0]: line.split()[1:] for line in lines[head + 1 : head + 3]}
    spread = 100 * statistics.stdev([0.52, 0.55])
    assert by_variant["mrla-light"][:2] == ["58.50", f"{spread:.2f}"]       # of glowing ones, masks
    assert by_variant["plain"][6] == "20.50"                                # of stained ones, boxes
    head, = [number for number, line in enumerate(lines) if line.startswith("mask AP by kind")]
    assert lines[head + 1].split()[:5] == ["mrla-light", "-", "plain", "*", "+3.00"]
    # what needs no training stands in each of these tables; it was never tried on a kind called glowing
    assert sum("Otsu + watershed" in line for line in lines) == 4


def test_a_kinds_value_that_is_not_finite_is_named():
    record = detection("plain", 3, 0.4, 0.5, {"test_stained_box_AP": math.nan})
    with pytest.raises(ValueError, match="of boxes on images of kind stained of plain, seed 3 is nan"):
        summarise([record], FOUND)


def test_effects_too_are_told_by_kind_and_without_primary_contrasts(monkeypatch):
    monkeypatch.chdir(ROOT)
    suite = dataclasses.replace(FOUND, primary=(), effects=(
        Effect("attention", ("mrla-light",), ("plain",), primary=False),))
    records = [detection(variant, seed, 0.4, mask, kinds(mask)) for seed in range(2)
               for variant, mask in (("plain", 0.5), ("mrla-light", 0.52 + 0.01 * seed))]
    del records[0]["metrics"][-1]["test_stained_mask_AP"]
    summary = summarise(records, suite)
    rows = {kind: {row.name: row for row in rows} for kind, rows in summary.of_kinds.items()}
    for kind, n in (("glowing", 2), ("stained", 1)):
        effect, pair = rows[kind]["attention"], rows[kind]["mrla-light - plain"]
        assert effect.n == n and effect.differences == pytest.approx(pair.differences)
        assert effect.adjusted is None and effect.margin is None
    assert rows["glowing"]["attention"].mean == pytest.approx(0.025)
    lines = report(summary).splitlines()
    head, = [number for number, line in enumerate(lines) if line.startswith("mask AP by kind")]
    line, = [line for line in lines[head:] if line.startswith("attention ")]
    assert line.split() == ["attention", *"+2.50 (-3.85 to +8.85)".split(), "+3.00"]
    shown = summary_as_json(summary)
    assert shown["of_kinds"]["glowing"][1]["name"] == "attention" and shown["answers"] == []


def test_only_what_the_rival_reached_is_taken_from_its_file(monkeypatch):
    monkeypatch.chdir(ROOT)
    records = [detection(variant, 0, 0.4, 0.5) for variant in FOUND.variants]
    rival = summary_as_json(summarise(records, FOUND))["rival"]
    assert rival["test_mask_AP"] > 0.4 and all(0 < value < 1 for value in rival.values())
    assert all(name.startswith("test_") for name in rival)


def test_the_rivals_columns_are_those_of_variants_with_long_names(monkeypatch):
    monkeypatch.chdir(ROOT)
    name = "one-whose-name-is-rather-long"
    suite = dataclasses.replace(FOUND, variants={name: {}, "other": {"layer_attention": None}},
                                baseline=name, primary=((name, "other"),))
    records = [detection("plain", seed, 0.4, 0.5, {"test_a_kind_of_a_long_name_mask_AP": 0.5,
                                                   "test_b_mask_AP": 0.5}) for seed in range(2)]
    records = [one | {"variant": variant, "config": dataclasses.asdict(suite.config(variant, one["seed"]))}
               for one in records for variant in suite.variants]
    tables = [table.splitlines() for table in report(summarise(records, suite)).split("\n\n")]
    for heading, ends in (("variant ", "mask AP %"), ("by kind of image", "b, mask AP %")):
        head, *rows = next(table for table in tables if table[0].startswith(heading))
        end = head.index(ends) + len(ends)
        cells = [row[:end].split()[-1] for row in rows]
        assert cells[:2] == ["50.00", "50.00"] and rows[2].startswith("Otsu + watershed")
        assert len({len(row) for row in (head, *rows)}) == 1
    head, *rows = next(table for table in tables if table[0].startswith("mask AP by kind"))
    assert {row[head.rindex(" b") + 1 :] for row in rows} == {"+0.00", "-"}


def test_two_questions_have_two_answers():
    assert [inside((-0.01, 0.02), value) for value in (-0.02, -0.01, 0.0, 0.03)] == [
        "outside, below it", "inside", "inside", "outside, above it"]
    gains = {"wide": (0.01, -0.03, 0.06, 0.02, -0.02), "small": (0.001, -0.002, 0.002, 0.001, 0.0),
             "large": (0.05, 0.052, 0.049, 0.05, 0.051)}
    said = {"wide": "0 is inside. +3 is inside.", "small": "0 is inside. +3 is outside, above it.",
            "large": "0 is outside, below it. +3 is outside, below it."}
    for name, by_seed in gains.items():
        records = [detection(variant, seed, 0.4, 0.5 + gain * (variant == "mrla-light"))
                   for seed, gain in enumerate(by_seed) for variant in FOUND.variants]
        summary = summarise(records, FOUND)
        assert answers(summary.contrasts[0], "plain").endswith(said[name]) and said[name] in report(summary)
    one = summarise([detection(variant, 0, 0.4, 0.5) for variant in FOUND.variants], FOUND)
    assert answers(one.contrasts[0], "plain") == "mrla-light - plain *: no interval from 1 seed."


def test_what_the_paper_claims_is_asked_of_contrasts_with_plain_alone():
    variants = FOUND.variants | {"depthwise": {"layer_attention": "depthwise"}}
    suite = dataclasses.replace(FOUND, variants=variants, primary=(("mrla-light", "depthwise"),))
    gains = {"plain": 0.0, "depthwise": 0.01, "mrla-light": 0.05}
    records = [detection("plain", seed, 0.4, 0.5 + gain * (1 + 0.1 * seed)) | {
        "variant": variant, "id": f"{variant}-{seed}",
        "config": dataclasses.asdict(suite.config(variant, seed))}
        for seed in range(3) for variant, gain in gains.items()]
    lines = report(summarise(records, suite)).splitlines()
    place, = [number for number, line in enumerate(lines) if line.startswith("is 0 inside, is +3 inside?")]
    assert lines[place + 1] == "gain over plain that the paper claims on COCO)"
    against_control, against_plain, of_boxes, after = lines[place + 2 : place + 6]
    assert against_control == "mrla-light - depthwise *, +3.41 to +5.39: 0 is outside, below it."
    assert against_plain.startswith("mrla-light - plain, ") and after == ""
    assert against_plain.endswith(": 0 is outside, below it. +3 is outside, below it.")
    # The claim is one of boxes, too.
    assert of_boxes == "box AP: mrla-light - plain: no interval from 3 seeds."         # all are alike


def test_the_claim_is_asked_of_each_kind_of_image():
    of_kind = {"test_stained_mask_AP": 0.5, "test_fluorescence_mask_AP": 0.5}
    records = [detection(variant, seed, 0.4, 0.5, {
        **of_kind, "test_stained_mask_AP": 0.5 + (variant == "mrla-light") * (0.03 + 0.01 * seed)})
        for seed in range(3) for variant in FOUND.variants]
    lines = report(summarise(records, FOUND)).splitlines()
    stained, = [line for line in lines if line.startswith("stained, mask AP: mrla-light - plain")]
    assert stained.endswith("0 is outside, below it. +3 is inside.")
    assert "fluorescence, mask AP: mrla-light - plain" in "\n".join(lines)


def some_fields(generator, chance):
    """Forty detections in six fields of view, each true with this chance at all thresholds."""
    hits = np.tile(generator.random(40) < chance, (10, 1))
    return ByField(generator.integers(6, size=40), hits, np.array([5, 9, 3, 7, 6, 10]))


def test_the_noise_of_seeds_and_of_images_by_hand():
    generator, kept, records = np.random.default_rng(0), {}, []
    for seed, (plain, light) in enumerate(((0.5, 0.51), (0.52, 0.5), (0.49, 0.53))):
        for variant, mask in (("plain", plain), ("mrla-light", light)):
            kept[variant, seed] = some_fields(generator, mask)
            records.append(detection(variant, seed, 0.4, mask,
                                     {"test_mask_fields": to_text(kept[variant, seed])}))
    summary = summarise(records, FOUND)
    row, = noises(summary)
    assert row.seeds == (pytest.approx(statistics.stdev([0.01, -0.02, 0.04])),
                         pytest.approx(math.hypot(statistics.stdev([0.51, 0.5, 0.53]),
                                                  statistics.stdev([0.5, 0.52, 0.49]))))
    drawn = [image_noise(kept["plain", seed], kept["mrla-light", seed], DRAWS) for seed in range(3)]
    assert row.images[0] == pytest.approx(math.sqrt(statistics.fmean(one.paired**2 for one in drawn)))
    assert row.images[1] == pytest.approx(math.sqrt(statistics.fmean(one.unpaired**2 for one in drawn)))
    line, = [line for line in report(summary).splitlines() if line.endswith(f"{100 * row.images[1]:.2f}")]
    assert line.split()[-4:] == [f"{100 * value:.2f}" for value in (*row.seeds, *row.images)]
    plain = summary_as_json(summary)
    assert "fields" not in plain and plain["noise"][0]["images"] == row.images
    del records[0]["metrics"][-1]["test_mask_fields"]       # of an older form
    assert noises(summarise(records, FOUND)) == []
