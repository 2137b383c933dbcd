"""The tables, as text."""

import json

from tiny_suites import diverged, four_variants, measured_records, record

from mrla_minimal.lab.evidence import report, summarise
from mrla_minimal.lab.evidence.report import ranges, summary_as_json
from mrla_minimal.lab.evidence.suites import Suite


def test_a_final_run_that_diverged_is_in_the_report_and_so_is_a_variant_that_is_gone():
    suite, _, records = four_variants()
    gone = record("old-name", 0, 0.9)
    text = report(summarise([*records, gone, diverged("uniform", 9)], suite))
    assert "old-name             not of this suite any more: seeds 0" in text
    assert "uniform              diverged: seeds 9" in text


def test_one_seed_gives_no_interval_and_the_report_says_so():
    suite, _, records = four_variants()
    summary = summarise([r for r in records if r["seed"] == 0], suite)
    assert all(c.interval is None and c.p is None and c.adjusted is None for c in summary.contrasts)
    assert "one seed  " in report(summary) and "are all" not in report(summary)


def test_the_report_prints_every_variant_and_contrast():
    suite, values, records = four_variants()
    text = report(summarise(records, suite))
    for name in values:
        assert name in text
    assert "mrla-light - depthwise *" in text and "depthwise - plain  " in text and "cifar10" in text
    assert f"{100 * sum(values['plain']) / 8:.2f}" in text and "not\nthe choice of the test images" in text
    assert "are all 4 variants equal? F(3, 21) = " in text and "within each of 8 seeds" in text


def test_columns_stay_columns_under_long_names():
    names = ("plain", "light-zero-query", "depthwise-carry-lambda0")
    suite = Suite("s", {name: {"layer_attention": name if name != "plain" else None} for name in names},
                  recipe={}, primary=(names[1:],))
    records = [record(name, seed, 0.7 + 0.01 * seed) for name in names for seed in (0, 1)]
    tables = [table.splitlines() for table in report(summarise(records, suite)).split("\n\n")]
    for heading, column, shown in (("variant ", "seeds", "0-1 "), ("contrast (", "reading", "an estimate")):
        head, *rows = next(table for table in tables if table[0].startswith(heading))
        assert len(rows) == 3
        assert all(row[head.index(column):].startswith(shown) for row in rows), rows


def test_below_eight_seeds_no_p_value_of_a_contrast_is_printed():
    suite, _, records = four_variants()
    few = report(summarise([r for r in records if r["seed"] < 7], suite))
    assert "  p   Holm  reading" in report(summarise(records, suite)) and "Holm" not in few
    assert "an estimate, not a test" in few and "Fewer than 8 seeds" in few and "Margin" not in few


def test_every_contrast_stands_beside_itself_on_every_measure():
    suite, _, _ = four_variants()
    means = {"plain": (2.0, 0.5), "mrla-light": (1.5, 0.6), "depthwise": (1.9, 0.5), "uniform": (1.9, 0.5)}
    text = report(summarise(measured_records(means), suite))
    head, row = (next(line for line in text.splitlines() if line.startswith(start))
                 for start in ("on every measure", "mrla-light - depthwise *               +10"))
    assert "accuracy, points (higher is better)" in head and "epoch-1 loss, nat (lower is better)" in head
    assert [cell.split(" (")[0].split()[-1] for cell in row.split(")")[:3]] == ["+10.00", "-0.100", "-0.400"]
    # A suite asked of a loss says so, and which side is better.
    asked, _, _ = four_variants(measure="first_epoch_loss")
    text = report(summarise(measured_records(means), asked))
    assert "asked of the mean training loss of the first epoch: lower is better" in text
    assert "contrast (nat)" in text and "a's loss is lower" in text and "Margin" not in text


def test_how_a_suite_stopped_is_told_where_all_of_its_records_are_there():
    suite, _, records = four_variants(seeds=range(10))
    stop = {"suite": "s", "variants": list(suite.variants), "how": "time", "minutes": 30, "jobs": 2,
            "complete": list(range(8)), "commit": ""}
    summary = summarise(records, suite, [stop])
    assert "8 complete blocks" in summary.stopped and "Stopped by time, within 30 minutes" in summary.stopped
    head = report(summary).splitlines()[2:4]
    assert " ".join(head).startswith(summary.stopped) and max(map(len, head)) <= 100
    assert summarise(records, suite).stopped == "" and "complete" not in report(summarise(records, suite))


def test_seeds_are_shown_in_short():
    assert ranges([]) == "" and ranges([3]) == "3" and ranges([5, 0, 1, 2, 7, 8]) == "0-2 5 7-8"


def test_a_contrast_with_a_diverged_run_is_not_read():
    suite, _, records = four_variants()
    for variant, touched in (("uniform", {("uniform", "plain")}),
                             ("depthwise", {("mrla-light", "depthwise"), ("depthwise", "plain")})):
        summary = summarise([*records, diverged(variant, 9)], suite)
        unread = {(row.a, row.b) for row in summary.contrasts if row.reading == "not read: a run diverged"}
        assert unread == touched
        assert "not read: a run diverged" in report(summary)


def test_the_summary_as_json_holds_what_the_table_does():
    suite, values, records = four_variants()
    summary = summarise(records, suite)
    intervention = {"variant": "mrla-light", "images": 100,
                    "changed": {"mean": [6, 1], "shuffle": [9, 2], "uniform": [6, 1]}}
    plain = json.loads(json.dumps(summary_as_json(summary, iter([intervention]))))
    assert plain["accuracies"]["plain"] == {str(seed): value for seed, value in enumerate(values["plain"])}
    assert [row["reading"] for row in plain["contrasts"]] == [row.reading for row in summary.contrasts]
    assert plain["contrasts"][0]["interval"] == list(summary.contrasts[0].interval)
    assert plain["contrasts"][0]["n"] == 8 and plain["contrasts"][0]["name"] == "mrla-light - depthwise"
    assert plain["interventions"] == [intervention]
    assert plain["intervention_means"][1] == {"variant": "mrla-light", "intervention": "shuffle",
                                              "norms_refitted": False, "nets": 1, "mean": -0.07,
                                              "interval": None, "measure": "test_accuracy"}
