"""The tables, as text."""

import json

from tiny_suites import diverged, four_variants, record

from mrla_minimal.lab.evidence import report, summarise
from mrla_minimal.lab.evidence.report import summary_as_json


def test_a_final_run_that_diverged_is_in_the_report_and_so_is_a_variant_that_is_gone():
    suite, _, records = four_variants()
    gone = record("old-name", 0, 0.9)
    text = report(summarise([*records, gone, diverged("uniform", 9)], suite))
    assert "old-name             not of this suite any more: seeds 0" in text
    assert "uniform              diverged: seeds 9" in text


def test_one_seed_gives_no_interval_and_the_report_says_so():
    suite, _, records = four_variants()
    summary = summarise([r for r in records if r["seed"] == 0], suite)
    assert all(c.interval is None and c.pooled is None and c.p is None and c.adjusted is None
               for c in summary.contrasts)
    assert "too few seeds" in report(summary)


def test_the_report_prints_every_variant_and_contrast():
    suite, values, records = four_variants()
    text = report(summarise(records, suite))
    for name in values:
        assert name in text
    assert "mrla-light - depthwise *" in text and "depthwise - plain  " in text and "cifar10" in text
    assert f"{100 * sum(values['plain']) / 4:.2f}" in text and "not the choice of the test images" in text


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
    assert plain["interventions"] == [intervention]
    assert plain["intervention_means"][1] == {"variant": "mrla-light", "intervention": "shuffle",
                                              "norms_refitted": False, "nets": 1, "mean": -0.07,
                                              "interval": None}
