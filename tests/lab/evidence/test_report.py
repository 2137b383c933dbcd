"""The tables, as text."""

from tiny_suites import diverged, four_variants

from mrla_minimal.lab.evidence import report, summarise


def test_a_final_run_that_diverged_is_in_the_report():
    suite, _, records = four_variants()
    assert "uniform              diverged: seeds 9" in report(summarise([*records, diverged("uniform", 9)], suite))


def test_one_seed_gives_no_interval_and_the_report_says_so():
    suite, _, records = four_variants()
    summary = summarise([r for r in records if r["seed"] == 0], suite)
    assert all(c.interval is None and c.pooled is None and c.p is None and c.adjusted is None for c in summary.contrasts)
    assert "too few seeds" in report(summary)


def test_the_report_prints_every_variant_and_contrast():
    suite, values, records = four_variants()
    text = report(summarise(records, suite))
    for name in values:
        assert name in text
    assert "mrla-light - depthwise" in text and "primary" in text and "cifar10" in text
    assert f"{100 * sum(values['plain']) / 4:.2f}" in text and "not the choice of the test images" in text


def test_a_contrast_with_a_diverged_run_is_not_read():
    suite, _, records = four_variants()
    for variant, touched in (("uniform", {("uniform", "plain")}),
                             ("depthwise", {("mrla-light", "depthwise"), ("depthwise", "plain")})):
        summary = summarise([*records, diverged(variant, 9)], suite)
        assert {(row.a, row.b) for row in summary.contrasts if row.reading == "not read: a run diverged"} == touched
        assert "not read: a run diverged" in report(summary)
