import dataclasses
import json
import math
import re
import subprocess
import sys

import pytest
import torch
from scipy import stats
from tiny import tiny_cifar

from mrla_minimal.lab import experiments, training
from mrla_minimal.lab.evidence import SUITES, Suite, holm, merge_records, paired_interval, pooled_error, report, run_suite, summarise
from mrla_minimal.lab.files import append_record, read_records

RECIPE = {"depth": 8, "width": 4, "batch_size": 16, "steps": 3, "device": "cpu"}
VARIANTS = {"plain": {"layer_attention": None}, "mrla-light": {"layer_attention": "mrla-light"}}


@pytest.fixture(autouse=True)
def tiny_data(monkeypatch):
    monkeypatch.setattr(training, "load_cifar", tiny_cifar)
    monkeypatch.setattr(experiments, "load_cifar", tiny_cifar)


def tiny_suite(**changes):
    fields = {"name": "tiny", "variants": VARIANTS, "recipe": RECIPE, "seeds": (0, 1), "contrasts": (("mrla-light", "plain"),)}
    return Suite(**{**fields, **changes})


def run_tiny(tmp_path, suite=None, **changes):
    return run_suite(suite or tiny_suite(), tmp_path / "records.jsonl", runs=tmp_path / "runs", progress=False, **changes)


def test_a_suite_runs_all_variants_of_a_seed_before_the_next_seed(tmp_path):
    records = run_tiny(tmp_path)
    assert [(r["seed"], r["variant"]) for r in records] == [(0, "plain"), (0, "mrla-light"), (1, "plain"), (1, "mrla-light")]
    for record in records:
        assert record["source"] == "synthetic" and record["fingerprint"] == "tiny" and record["config"]["steps"] == 3
        assert record["metrics"][-1]["test_accuracy"] == record["test_accuracy"] and record["config"]["data_root"] is None
        assert record["macs"] > 0 and record["versions"]["torch"] == torch.__version__
    assert records[1]["parameters"] > records[0]["parameters"]
    assert len({record["id"] for record in records}) == 4
    assert "layer_attention" not in records[0]["recipe"] and "seed" not in records[0]["recipe"] and records[0]["recipe"]["depth"] == 8


def test_finished_runs_are_skipped_and_an_interrupted_suite_goes_on(tmp_path, monkeypatch):
    started = []
    original = experiments.train

    def counted(config, run_dir, **options):
        started.append(run_dir.name)
        if len(started) == 3:
            raise KeyboardInterrupt
        return original(config, run_dir, **options)

    monkeypatch.setattr(experiments, "train", counted)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(tmp_path)
    assert len(read_records(tmp_path / "records.jsonl")[0]) == 2
    assert len(run_tiny(tmp_path)) == 4 and len(started) == 5
    assert len(run_tiny(tmp_path)) == 4 and len(started) == 5


def test_a_run_that_was_begun_is_resumed_not_begun_again(tmp_path, monkeypatch):
    suite = tiny_suite()
    whole = run_tiny(tmp_path / "whole", suite)
    original = training.Run.train_step

    def stop_at_two(run):
        if run.step == 2:
            raise KeyboardInterrupt
        original(run)

    with monkeypatch.context() as patch:
        patch.setattr(training.Run, "train_step", stop_at_two)
        with pytest.raises(KeyboardInterrupt):
            run_tiny(tmp_path / "parts", suite, checkpoint_seconds=0.0)
    steps = []
    monkeypatch.setattr(training.Run, "train_step", lambda run: steps.append(run.step) or original(run))
    parts = run_tiny(tmp_path / "parts", suite)
    assert steps[0] == 2
    assert [record["metrics"] for record in parts] == [record["metrics"] for record in whole]


def test_a_run_that_another_process_is_at_is_left_to_it(tmp_path):
    from filelock import FileLock

    suite = tiny_suite()
    job = experiments.final_jobs(suite, ("plain",), (0,), None)[0]
    folder = tmp_path / "runs" / "tiny" / job.folder
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        records = run_tiny(tmp_path, suite)
    assert len(records) == 3 and job.id not in {record["id"] for record in records}


def test_learning_rates_are_tuned_on_the_validation_split_and_used(tmp_path):
    suite = tiny_suite(rates=(0.01, 0.1), seeds=(0,))
    records = run_tiny(tmp_path, suite)
    tuning = [record for record in records if record["phase"] == "tuning"]
    assert len(tuning) == 4 and all(r["config"]["validation"] and r["seed"] == suite.tuning_seed for r in tuning)
    for record in records[4:]:
        mine = [r for r in tuning if r["variant"] == record["variant"]]
        best = max(mine, key=lambda r: r["metrics"][-1]["validation_accuracy"])
        assert record["phase"] == "final" and not record["config"]["validation"]
        assert record["metrics"][-1]["test_accuracy"] == record["test_accuracy"]
        assert best["metrics"][-1]["validation_accuracy"] == \
            next(r for r in mine if r["learning_rate"] == record["learning_rate"])["metrics"][-1]["validation_accuracy"]


def test_rates_tuned_on_one_variant_serve_all(tmp_path):
    records = run_tiny(tmp_path, tiny_suite(rates=(0.01, 0.1), tuned_on="plain", seeds=(0,)))
    assert [record["variant"] for record in records if record["phase"] == "tuning"] == ["plain", "plain"]
    assert len({record["learning_rate"] for record in records if record["phase"] == "final"}) == 1


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


def test_a_rate_that_diverges_is_recorded_and_the_suite_goes_on(tmp_path, capsys):
    suite = tiny_suite(rates=(0.05, 1e20), seeds=(0,), recipe={**RECIPE, "warmup_epochs": 0.0})
    records = run_tiny(tmp_path, suite)
    assert [record["learning_rate"] for record in records if "diverged" in record] == [1e20, 1e20]
    assert all(record["learning_rate"] == 0.05 for record in records if record["phase"] == "final")
    assert run_tiny(tmp_path, suite) == records and capsys.readouterr().out.count("diverged: the loss is") == 2
    with pytest.raises(ValueError, match="every learning rate diverged for mrla-light, plain"):
        run_tiny(tmp_path / "other", tiny_suite(rates=(1e20,), seeds=(0,), recipe=suite.recipe))


def test_a_final_run_that_diverged_is_in_the_report():
    suite, _, records = three_variants()
    lost = {"id": "x", "suite": "s", "variant": "uniform", "seed": 9, "phase": "final", "learning_rate": 0.1, "test_accuracy": None,
            "diverged": "nan"}
    assert "uniform              diverged: seeds 9" in report(summarise([*records, lost], suite))


def test_a_variant_whose_definition_changed_midway_is_refused():
    suite, _, records = three_variants()
    changed = record("plain", 9, 0.9, config={"layer_attention": "uniform"})
    with pytest.raises(ValueError, match="plain was recorded with layer_attention 'uniform', and has None now"):
        summarise([*records, changed], suite)


def test_contrasts_without_runs_still_count_for_holm():
    suite, _, records = three_variants()
    kept = [r for r in records if r["variant"] != "uniform"]
    contrast = next(c for c in summarise(kept, suite).contrasts if c.a == "depthwise")
    ps = sorted(c.p for c in summarise(kept, suite).contrasts if not c.primary)      # two of the three that were declared
    expected = 3 * ps[0] if contrast.p == ps[0] else max(3 * ps[0], 2 * ps[1])
    assert len(ps) == 2 and contrast.adjusted == pytest.approx(min(1.0, expected))


def test_a_broken_last_line_costs_its_own_run_only(tmp_path, capsys):
    run_tiny(tmp_path, seeds=(0,))
    with open(tmp_path / "records.jsonl", "a") as file:
        file.write('{"id": "half')
    assert len(run_tiny(tmp_path, seeds=(0, 1))) == 4
    assert "not a whole record" in capsys.readouterr().out


@pytest.mark.parametrize("changes, message", [
    ({"seeds": 0}, "seeds must be a tuple"), ({"primary": ("mrla-light", "plain")}, "primary must be pairs of variants"),
    ({"seeds": (0, 0)}, "seeds given twice"), ({"primary": (("mrla", "plain"),)}, "unknown variant 'mrla'"),
    ({"baseline": "none"}, "unknown variant 'none'"),
    ({"variants": {"plain": {"layer_attention": "x"}}, "contrasts": ()}, "layer_attention must be one of"),
    ({"recipe": {"colour": 1}}, "colour"),
])
def test_a_wrong_suite_is_refused_when_it_is_written_down(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_suite(**changes)


def test_wrong_parts_of_a_suite_are_refused_before_any_run(tmp_path):
    with pytest.raises(ValueError, match="unknown variant 'base'.*plain, mrla-light"):
        run_tiny(tmp_path, variants=("base",))
    with pytest.raises(ValueError, match="seeds given twice: 1, 1"):
        run_tiny(tmp_path, seeds=(1, 1))
    assert not (tmp_path / "records.jsonl").exists()


# ---- statistics


def record(variant, seed, accuracy, **changes):
    return {"suite": "s", "variant": variant, "seed": seed, "phase": "final", "test_accuracy": accuracy, "recipe": {"depth": 8},
            "source": "cifar10", "fingerprint": "f", "learning_rate": 0.1, "id": f"{variant}{seed}",
            "config": {"layer_attention": None if variant == "plain" else variant}, **changes}


def three_variants():
    variants = {name: {"layer_attention": name} for name in ("mrla-light", "depthwise", "uniform")} | {"plain": {"layer_attention": None}}
    suite = Suite("s", variants, {}, primary=(("mrla-light", "depthwise"),))
    values = {"plain": (0.90, 0.91, 0.92, 0.905), "mrla-light": (0.915, 0.93, 0.925, 0.92), "depthwise": (0.91, 0.915, 0.93, 0.912),
              "uniform": (0.90, 0.912, 0.917, 0.901)}
    return suite, values, [record(name, seed, value) for name, row in values.items() for seed, value in enumerate(row)]


def test_contrasts_agree_with_scipy():
    suite, values, records = three_variants()
    summary = summarise(records, suite)
    pairs = {("mrla-light", "depthwise"), ("mrla-light", "plain"), ("depthwise", "plain"), ("uniform", "plain")}
    assert {(c.a, c.b) for c in summary.contrasts} == pairs
    for contrast in summary.contrasts:
        test = stats.ttest_rel(values[contrast.a], values[contrast.b])
        interval = test.confidence_interval(0.95)
        assert contrast.p == pytest.approx(test.pvalue) and contrast.interval == pytest.approx((interval.low, interval.high))
        assert contrast.primary == (contrast.b == "depthwise") and (contrast.adjusted is None) == contrast.primary
    others = [c for c in summary.contrasts if not c.primary]
    ordered = sorted(others, key=lambda c: c.p)
    expected, running = {}, 0.0
    for factor, contrast in zip((3, 2, 1), ordered, strict=True):
        running = max(running, min(1.0, factor * contrast.p))
        expected[contrast.a] = running
    assert {c.a: c.adjusted for c in others} == pytest.approx(expected)


def test_the_pooled_interval_is_that_of_the_two_way_layout():
    suite, values, records = three_variants()
    variance, degrees = pooled_error({name: dict(enumerate(row)) for name, row in values.items()})
    table = torch.tensor(list(values.values()), dtype=torch.float64)
    residual = table - table.mean(1, keepdim=True) - table.mean(0, keepdim=True) + table.mean()
    assert degrees == 9 and variance == pytest.approx((residual.square().sum() / 9).item())
    contrast = next(c for c in summarise(records, suite).contrasts if c.primary)
    half = stats.t.ppf(0.975, 9) * math.sqrt(2 * variance / 4)
    assert contrast.pooled == pytest.approx((contrast.mean - half, contrast.mean + half))
    two = pooled_error({"a": {0: 0.5, 1: 0.6, 2: 0.8}, "b": {0: 0.4, 1: 0.7, 2: 0.75}})      # two variants: the paired t itself
    mean, interval, _ = paired_interval([0.1, -0.1, 0.05])
    assert stats.t.ppf(0.975, two[1]) * math.sqrt(2 * two[0] / 3) == pytest.approx(interval[1] - mean)


def test_unequal_seeds_are_paired_where_they_meet():
    suite, _, records = three_variants()
    kept = [r for r in records if not (r["variant"] == "depthwise" and r["seed"] in (0, 3))]
    contrast = next(c for c in summarise(kept, suite).contrasts if c.primary)
    assert contrast.n == 2 and contrast.mean == pytest.approx((0.93 - 0.915 + 0.925 - 0.93) / 2)


def test_one_seed_gives_no_interval_and_the_report_says_so():
    suite, _, records = three_variants()
    summary = summarise([r for r in records if r["seed"] == 0], suite)
    assert all(c.interval is None and c.pooled is None and c.p is None and c.adjusted is None for c in summary.contrasts)
    assert "too few seeds" in report(summary)


def test_the_report_prints_every_variant_and_contrast():
    suite, values, records = three_variants()
    text = report(summarise(records, suite))
    for name in values:
        assert name in text
    assert "mrla-light - depthwise" in text and "primary" in text and "cifar10" in text
    assert f"{100 * sum(values['plain']) / 4:.2f}" in text and "not the choice of the test images" in text


@pytest.mark.parametrize("change, what", [
    ({"recipe": {"depth": 20}}, "recipe"), ({"fingerprint": "g"}, "data"), ({"source": "synthetic"}, "data"),
    ({"learning_rate": 0.2}, "learning rate \\(plain\\)"),
])
def test_records_of_different_recipe_data_or_rate_are_never_compared(change, what):
    suite, _, records = three_variants()
    with pytest.raises(ValueError, match=f"records of different {what} are not compared"):
        summarise([*records, record("plain", 9, 0.9, **change)], suite)


def test_nothing_to_summarise_is_said_with_the_command_that_makes_it():
    with pytest.raises(ValueError, match="mrla compare --suite s"):
        summarise([], three_variants()[0])


def test_two_records_of_one_seed_are_refused():
    suite, _, records = three_variants()
    with pytest.raises(ValueError, match="two records of one seed"):
        summarise([*records, record("plain", 0, 0.5)], suite)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_equal_differences_and_a_single_one_have_no_interval():
    assert paired_interval([0.5, 0.5, 0.5]) == (0.5, None, None) == paired_interval([0.5])
    a, b = (0.6759, 0.7271, 0.6701), (0.6749, 0.7261, 0.6691)      # ten images each, which floats do not know
    assert paired_interval([x - y for x, y in zip(a, b, strict=True)])[1:] == (None, None)
    suite, _, _ = three_variants()
    ten = [record(name, seed, value) for name, row in (("mrla-light", a), ("depthwise", b)) for seed, value in enumerate(row)]
    (row,) = summarise(ten, suite).contrasts
    assert row.reading == "no scatter" and "no scatter  " in report(summarise(ten, suite))


def test_a_finding_that_holm_does_not_bear_out_is_called_one_before_holm():
    suite, _, records = three_variants()
    rows = {(row.a, row.b): row for row in summarise(records, suite).contrasts}
    for row in rows.values():
        found = bool(row.interval[0] > 0 or row.interval[1] < 0)
        assert ("before Holm" in row.reading) is (found and not row.primary and row.adjusted >= 0.05)
    assert rows["mrla-light", "plain"].p < 0.05     # the case exists
    row = rows["mrla-light", "plain"]
    assert dataclasses.replace(row, adjusted=0.06).reading.startswith("a above b before Holm")
    assert "before Holm" not in dataclasses.replace(row, adjusted=0.04).reading
    assert "before Holm" not in dataclasses.replace(row, adjusted=None, primary=True).reading


def test_a_contrast_with_a_diverged_run_is_not_read():
    suite, _, records = three_variants()
    for variant, touched in (("uniform", {("uniform", "plain")}),
                             ("depthwise", {("mrla-light", "depthwise"), ("depthwise", "plain")})):
        lost = {"id": "x", "suite": "s", "variant": variant, "seed": 9, "phase": "final", "learning_rate": 0.1, "test_accuracy": None,
                "diverged": "the loss is nan"}
        summary = summarise([*records, lost], suite)
        assert {(row.a, row.b) for row in summary.contrasts if row.reading == "not read: a run diverged"} == touched
        assert "not read: a run diverged" in report(summary)


def test_the_correlation_waits_for_five_seeds():
    suite, values, records = three_variants()
    more = [record(name, 4, value) for name, value in {"plain": 0.91, "mrla-light": 0.915, "depthwise": 0.92, "uniform": 0.9}.items()]
    assert all(row.correlation is None for row in summarise(records, suite).contrasts)
    row = next(row for row in summarise([*records, *more], suite).contrasts if row.primary)
    assert row.correlation == pytest.approx(stats.pearsonr([*values["mrla-light"], 0.915], [*values["depthwise"], 0.92]).statistic)


def test_every_suite_is_sound_and_no_cifar_suite_may_use_the_built_in_set():
    for name, suite in SUITES.items():
        assert suite.name == name
        for variant in suite.variants:
            config = suite.config(variant, 0)
            assert training.build_model(config, 10) is not None
            assert not suite.committed or config.source == "real"
    assert SUITES["cifar10-thin56"].primary == (("mrla-light", "depthwise"), ("mrla-base", "uniform"))


def test_lambda_variants_start_where_their_names_say():
    for name, start in (("mrla-light-lambda0", 0.0), ("mrla-light-lambda1", 1.0)):
        model = training.build_model(training.TrainConfig(depth=8, layer_attention=name), 10)
        lambdas = [value for key, value in model.state_dict().items() if key.endswith("lambda_o")]
        assert len(lambdas) == 3 and all((value == start).all() for value in lambdas)


def test_the_id_depends_on_what_makes_the_run_and_on_nothing_else():
    config = dataclasses.asdict(training.TrainConfig())
    same = experiments.record_id("s", "v", 0, {**config, "device": "cuda", "data_root": "elsewhere", "source": "real"})
    assert experiments.record_id("s", "v", 0, config) == same and len(same) == 12
    for changed in (("t", "v", 0, config), ("s", "w", 0, config), ("s", "v", 1, config), ("s", "v", 0, {**config, "depth": 56})):
        assert experiments.record_id(*changed) != same


def test_the_plan_counts_what_is_left_and_writes_nothing(tmp_path):
    suite = tiny_suite(rates=(0.1, 0.2), tuned_on="plain")
    text = experiments.plan_suite(suite, [], timed_steps=2, progress=False)
    assert "6 runs left" in text and re.search(r"^plain .* 4$", text, re.M) and re.search(r"^mrla-light .* 2$", text, re.M)
    records = run_tiny(tmp_path, suite, seeds=(0,))
    before = sorted(tmp_path.rglob("*"))
    text = experiments.plan_suite(suite, records, timed_steps=2, progress=False)
    assert "2 runs left" in text and re.search(r"^plain .* 1$", text, re.M) and re.search(r"^mrla-light .* 1$", text, re.M)
    assert "no runs left" in experiments.plan_suite(suite, records, seeds=(0,), timed_steps=2, progress=False)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ValueError, match="unknown variant 'nope'"):
        experiments.plan_suite(suite, [], variants=("nope",))


def test_the_plans_minutes_follow_from_the_time_of_a_step(monkeypatch):
    monkeypatch.setattr(experiments, "_seconds_a_step", lambda run, steps: 0.5)
    text = experiments.plan_suite(tiny_suite(recipe={**RECIPE, "steps": 1200}), [], progress=False)
    assert re.search(r"^plain +32 +10.0 +2$", text, re.M)       # 16 images in 0.5 s; 1200 steps of 0.5 s are 10 minutes
    assert "4 runs left: 0.7 hours" in text


def test_the_time_of_a_step_is_one_steps_and_waits_for_all_of_them(monkeypatch):
    calls, clock = [], iter([0.0, 100.0, 130.0])

    class Run:
        train_step = staticmethod(lambda: calls.append("step"))
        read_losses = staticmethod(lambda: calls.append("wait"))

    monkeypatch.setattr(experiments.time, "perf_counter", lambda: next(clock))
    assert experiments._seconds_a_step(Run, 15, warm_up=2) == pytest.approx(2.0)        # (130 - 100) / 15
    assert calls == ["step"] * 2 + ["wait"] + ["step"] * 15 + ["wait"]


def test_a_recipe_that_was_changed_is_told_before_anything_is_run(tmp_path):
    records = run_tiny(tmp_path, seeds=(0,))
    for changed in (tiny_suite(recipe={**RECIPE, "steps": 4}), tiny_suite(variants={**VARIANTS, "plain": {"layer_attention": "uniform"}})):
        for act in (lambda suite: run_tiny(tmp_path, suite), lambda suite: experiments.plan_suite(suite, records, progress=False)):
            with pytest.raises(ValueError, match="was recorded with"):
                act(changed)
    assert read_records(tmp_path / "records.jsonl")[0] == records


def test_a_diverged_run_of_another_recipe_is_told_too(tmp_path):
    suite = tiny_suite(recipe={**RECIPE, "learning_rate": 1e30}, seeds=(0,))
    assert all("diverged" in record for record in run_tiny(tmp_path, suite))
    with pytest.raises(ValueError, match="was recorded with steps 3, and has 4 now"):
        run_tiny(tmp_path, tiny_suite(recipe={**RECIPE, "steps": 4}))


@pytest.mark.slow
def test_compare_on_the_command_line_interrupted_and_continued(tmp_path):
    command = [sys.executable, "-m", "mrla_minimal", "compare", "--suite", "smoke"]
    subprocess.run([*command, "--seeds", "0"], cwd=tmp_path, check=True, capture_output=True, timeout=300)
    records = tmp_path / "runs" / "smoke" / "records.jsonl"
    assert len(read_records(records)[0]) == 2
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=300)
    assert len(read_records(records)[0]) == 4 and done.stdout.count("contrast (points)") == 1
    again = subprocess.run([*command, "--report"], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=300)
    assert "mrla-light - plain" in again.stdout and (tmp_path / "runs" / "smoke.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(records.read_text().splitlines()[0])["note"] == "a few steps, to see the engine run"
