"""Statistics: intervals, families of tests, and which records may be compared."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import stats
from tiny_suites import four_variants, measured_records, record

from mrla_minimal.lab.evidence import (
    Effect,
    Suite,
    detectable_difference,
    holm,
    paired_interval,
    pooled_error,
    report,
    summarise,
)
from mrla_minimal.lab.evidence.contrasts import NoRuns
from mrla_minimal.lab.evidence.readings import ESTIMATE


def test_a_variant_whose_definition_changed_midway_is_refused():
    suite, _, records = four_variants()
    changed = record("plain", 9, 0.9, config={"layer_attention": "uniform"})
    with pytest.raises(ValueError,
                       match="plain was recorded with layer_attention 'uniform', and has None now"):
        summarise([*records, changed], suite)


def test_contrasts_without_runs_still_count_for_holm():
    suite, _, records = four_variants()
    kept = [r for r in records if r["variant"] != "uniform"]
    contrast = next(c for c in summarise(kept, suite).contrasts if c.a == "depthwise")
    # two of the three that were declared
    ps = sorted(c.p for c in summarise(kept, suite).contrasts if not c.primary)
    expected = 3 * ps[0] if contrast.p == ps[0] else max(3 * ps[0], 2 * ps[1])
    assert len(ps) == 2 and contrast.adjusted == pytest.approx(min(1.0, expected))


def test_contrasts_agree_with_scipy():
    suite, values, records = four_variants()
    summary = summarise(records, suite)
    pairs = {("mrla-light", "depthwise"), ("mrla-light", "plain"), ("depthwise", "plain"),
             ("uniform", "plain")}
    assert {(c.a, c.b) for c in summary.contrasts} == pairs
    for contrast in summary.contrasts:
        test = stats.ttest_rel(values[contrast.a], values[contrast.b])
        interval = test.confidence_interval(0.95)
        assert contrast.p == pytest.approx(test.pvalue)
        assert contrast.interval == pytest.approx((interval.low, interval.high))
        assert contrast.primary == (contrast.b == "depthwise")
    for primary, factors in ((True, (1,)), (False, (3, 2, 1))):
        family = [c for c in summary.contrasts if c.primary == primary]
        expected, running = {}, 0.0
        for factor, contrast in zip(factors, sorted(family, key=lambda c: c.p), strict=True):
            running = max(running, min(1.0, factor * contrast.p))
            expected[contrast.a] = running
        assert {c.a: c.adjusted for c in family} == pytest.approx(expected)


def test_in_worlds_without_differences_the_primary_contrasts_find_one_in_twenty():
    """Two primary contrasts, eight seeds: unadjusted, they find something in a tenth of such worlds."""
    draws = np.random.default_rng(0).normal(0.75, 0.01, (4000, 4, 8))       # (worlds, variants, seeds)
    names = ("mrla-light", "depthwise", "mrla-base", "uniform")
    p = stats.ttest_rel(draws[:, ::2], draws[:, 1::2], axis=2).pvalue       # (worlds, 2)
    adjusted = np.array([holm(list(row)) for row in p])
    error = (adjusted < 0.05).any(axis=1).mean()
    assert error < 0.05 + 2 * (0.05 * 0.95 / 4000) ** 0.5 and (p < 0.05).any(axis=1).mean() > 0.085
    suite = Suite("s", {name: {"layer_attention": name} for name in names}, {},
                  primary=(names[:2], names[2:]), baseline="uniform")
    chosen = [*np.flatnonzero((adjusted < 0.05).any(axis=1))[:20],
              *np.flatnonzero(((p < 0.05) & (adjusted >= 0.05)).any(axis=1))[:20]]
    for world in chosen:
        records = [record(name, seed, draws[world, row, seed]) for row, name in enumerate(names)
                   for seed in range(8)]
        for row, own_p, own_adjusted in zip(summarise(records, suite).contrasts[:2], p[world],
                                            adjusted[world], strict=True):
            assert row.primary and (row.p, row.adjusted) == pytest.approx((own_p, own_adjusted))
            assert ("above" in row.reading) == (own_adjusted < 0.05)
            assert ("after Holm" in row.reading) == (own_p < 0.05 <= own_adjusted)


def test_the_pooled_error_is_that_of_the_two_way_layout():
    _, values, _ = four_variants()
    variance, degrees = pooled_error({name: dict(enumerate(row)) for name, row in values.items()})
    table = torch.tensor(list(values.values()), dtype=torch.float64)
    residual = table - table.mean(1, keepdim=True) - table.mean(0, keepdim=True) + table.mean()
    assert degrees == 21 and variance == pytest.approx((residual.square().sum() / 21).item())
    # Of two variants, it gives the paired t itself.
    two = pooled_error({"a": {0: 0.5, 1: 0.6, 2: 0.8}, "b": {0: 0.4, 1: 0.7, 2: 0.75}})
    mean, interval, _ = paired_interval([0.1, -0.1, 0.05])
    assert stats.t.ppf(0.975, two[1]) * math.sqrt(2 * two[0] / 3) == pytest.approx(interval[1] - mean)


def test_unequal_seeds_are_paired_where_they_meet():
    suite, _, records = four_variants()
    kept = [r for r in records if r["seed"] < 4 and not (r["variant"] == "depthwise" and r["seed"] in (0, 3))]
    contrast = next(c for c in summarise(kept, suite).contrasts if c.primary)
    assert contrast.n == 2 and contrast.mean == pytest.approx((0.93 - 0.915 + 0.925 - 0.93) / 2)


@pytest.mark.parametrize("change, what", [
    ({"config": {"layer_attention": None, "depth": 56}}, "recipe"), ({"fingerprint": "g"}, "data"),
    ({"source": "synthetic"}, "data"),
    ({"learning_rate": 0.2}, "learning rate \\(plain\\)"),
])
def test_records_of_different_recipe_data_or_rate_are_never_compared(change, what):
    suite, _, records = four_variants()
    with pytest.raises(ValueError, match=f"records of different {what} are not compared"):
        summarise([*records, record("plain", 9, 0.9, **change)], suite)


def test_nothing_to_summarise_is_said():
    suite, _, records = four_variants()
    with pytest.raises(NoRuns,
                       match=r"no finished runs of suite s \(mrla-light, depthwise, uniform, plain\) yet$"):
        summarise([], suite)
    renamed = [{**record, "variant": f"old-{record['variant']}"} for record in records]
    others = "old-plain, old-mrla-light, old-depthwise, old-uniform"
    with pytest.raises(NoRuns, match=f"yet, but of {others}, which it no longer has"):
        summarise(renamed, suite)


def test_two_records_of_one_seed_are_refused():
    suite, _, records = four_variants()
    with pytest.raises(ValueError, match="two records of one seed"):
        summarise([*records, record("plain", 0, 0.5)], suite)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_p_values_are_checked():
    for wrong in (math.nan, -0.1, 1.1):
        with pytest.raises(ValueError, match="p values must lie between 0 and 1"):
            holm([0.5, wrong])
    with pytest.raises(ValueError, match="family must be at least the 3 p values that are given, not 1"):
        holm([0.01, 0.02, 0.03], family=1)


def test_equal_differences_and_a_single_one_have_no_interval():
    assert paired_interval([0.5, 0.5, 0.5]) == (0.5, None, None) == paired_interval([0.5])
    a, b = (0.6759, 0.7271, 0.6701), (0.6749, 0.7261, 0.6691)      # ten images each, which floats do not know
    assert paired_interval([x - y for x, y in zip(a, b, strict=True)])[1:] == (None, None)
    suite, _, _ = four_variants()
    ten = [record(name, seed, value) for name, row in (("mrla-light", 3 * a), ("depthwise", 3 * b))
           for seed, value in enumerate(row)]
    (row,) = summarise(ten, suite).contrasts
    assert row.reading == "no scatter" and "no scatter  " in report(summarise(ten, suite))


def test_differences_that_are_not_finite_are_refused():
    for wrong in (math.nan, math.inf):
        with pytest.raises(ValueError, match="differences must be finite"):
            paired_interval([0.1, wrong, 0.2])
        with pytest.raises(ValueError, match="test accuracy of the last epoch of plain, seed 0 is"):
            summarise([record("plain", 0, wrong)], four_variants()[0])
    with pytest.raises(ValueError, match="differences must be at least one, not none"):
        paired_interval([])


def test_below_eight_seeds_there_are_intervals_and_no_tests():
    suite, _, records = four_variants()
    for n in (7, 8):
        rows = summarise([r for r in records if r["seed"] < n], suite).contrasts
        assert all(row.n == n and row.interval and (row.p is None) == (row.adjusted is None) == (n < 8)
                   and (row.reading == ESTIMATE) == (n < 8) for row in rows)


def test_the_readings_of_a_suite():
    suite, _, records = four_variants()
    rows = {row.a: row for row in summarise(records, suite).contrasts if not row.primary}
    assert rows["mrla-light"].reading == "a above b by more than 0.3 points"
    assert rows["depthwise"].p < 0.05 < rows["depthwise"].adjusted
    assert rows["depthwise"].reading == "undecided after Holm"
    # Its 95 % interval leaves the margin, its 90 % interval does not: two one-sided tests at 5 %.
    assert rows["uniform"].interval[1] > 0.003 > rows["uniform"].narrow[1]
    assert rows["uniform"].reading == "within 0.3 points: as good as nothing"
    assert dataclasses.replace(rows["mrla-light"], adjusted=0.06).reading == "undecided after Holm"


@pytest.mark.parametrize(("margin", "expected"), [(0.5, 0.005), (None, 0.003)])
def test_the_margin_of_an_accuracy_is_in_points(margin, expected):
    suite, _, records = four_variants(margin=margin)
    assert summarise(records, suite).margin == pytest.approx(expected)
    assert f"within {100 * expected:g} points" in report(summarise(records, suite))


def test_an_effect_is_the_difference_of_two_means_in_each_seed():
    effect = Effect("memory", plus=("mrla-light", "depthwise"), minus=("uniform", "plain"))
    suite, values, records = four_variants(effects=(effect, dataclasses.replace(effect, name="more",
                                                                                primary=False)))
    expected = (np.add(values["mrla-light"], values["depthwise"])
                - np.add(values["uniform"], values["plain"])) / 2
    rows = {row.name: row for row in summarise(records, suite).contrasts}
    row = rows["memory"]
    assert list(row.differences.values()) == pytest.approx(list(expected)) and row.primary
    assert row.p == pytest.approx(stats.ttest_1samp(expected, 0).pvalue) and row.reading.startswith("above 0")
    # It counts in its family: the smaller p of two is doubled.
    assert row.adjusted == pytest.approx(2 * row.p) and row.p < rows["mrla-light - depthwise"].p
    assert not rows["more"].primary and "memory *" in report(summarise(records, suite))
    assert "memory" not in {row.name for row in summarise(records[8:], suite).contrasts}


def test_contrasts_are_asked_of_the_measure_that_the_suite_declares():
    suite, _, _ = four_variants(measure="first_epoch_loss", margin=0.02)
    records = measured_records({"plain": (2.0, 0.1), "mrla-light": (1.5, 0.2), "depthwise": (1.9, 0.1),
                                "uniform": (1.9, 0.1)})
    summary = summarise(records, suite)
    row = next(row for row in summary.contrasts if row.primary)
    assert row.measure == "first_epoch_loss" and row.mean == pytest.approx(-0.4)
    assert row.reading == "a's loss is lower by more than 0.02 nat" and row.margin == 0.02
    assert list(summary.further) == ["test_accuracy", "test_loss"]
    accuracy = next(row for row in summary.further["test_accuracy"] if row.primary)
    assert accuracy.mean == pytest.approx(0.1) and accuracy.margin is None and accuracy.adjusted is None
    assert accuracy.p is not None and accuracy.reading == ESTIMATE
    assert summarise(records, dataclasses.replace(suite, margin=None)).contrasts[0].margin is None
    bare = [{**record, "metrics": []} for record in records]
    with pytest.raises(NoRuns, match="have the mean training loss of the first epoch yet"):
        summarise(bare, suite)


@pytest.mark.parametrize(("n", "low", "high"), [(3, 0.92, 1.39), (5, 0.47, 0.72), (10, 0.28, 0.43)])
def test_the_detectable_difference_is_found_as_often_as_it_says(n, low, high):
    """For seed deviations of 0.2 and 0.3 points, uncorrelated between variants; checked by drawing."""
    found = [detectable_difference(deviation * 2**0.5, n) for deviation in (0.2, 0.3)]
    assert low <= found[0] < found[1] <= high
    generator = torch.Generator().manual_seed(0)
    draws = found[0] + 0.2 * 2**0.5 * torch.randn(40_000, n, generator=generator, dtype=torch.float64)
    intervals = draws.mean(dim=1).abs() / (draws.std(dim=1) / n**0.5)
    critical = {3: 4.3027, 5: 2.7764, 10: 2.2622}[n]         # Student's t, 0.975, from a printed table
    assert (intervals > critical).double().mean().item() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("wrong", [(1.0, 1), (0.0, 5), (-1.0, 5), (1.0, 5, 1.0)])
def test_a_detectable_difference_of_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match="n must be at least 2"):
        detectable_difference(*wrong)
