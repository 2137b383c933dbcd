"""The one test of a whole suite."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mrla_minimal.lab.evidence import SUITES, load_records, summarise
from mrla_minimal.lab.evidence.omnibus import omnibus

PILOT = Path(__file__).parents[3] / "data" / "results" / "cifar10-thin56-cpu.jsonl"


def values_of(table):
    """variant -> seed -> value of an array (variants, seeds)."""
    return {f"v{row}": dict(enumerate(values)) for row, values in enumerate(table)}


def test_the_pilots_variants_are_not_equal():
    """An independent recomputation: F 7.1, p 0.0045, within seeds 0.004; first epoch's loss: F 70."""
    summary = summarise(load_records(PILOT), SUITES["cifar10-thin56-cpu"])
    test = summary.omnibus
    assert (test.variants, test.seeds, test.degrees) == (6, 3, (5, 10))
    assert test.f == pytest.approx(7.0908, abs=1e-3) and test.p == pytest.approx(0.00446, abs=1e-5)
    assert test.permuted == pytest.approx(0.0044, abs=0.0015)
    friedman = stats.friedmanchisquare(*(list(runs.values()) for runs in summary.accuracies.values()))
    assert friedman.pvalue == pytest.approx(0.024, abs=1e-3)        # by ranks, it says so too
    assert omnibus(summary.values["first_epoch_loss"]).f == pytest.approx(70.1, abs=0.1)


def test_of_two_way_data_the_f_is_that_of_the_residuals_by_hand():
    table = np.random.default_rng(0).normal(size=(4, 6)) + np.arange(6)
    residual = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    f = (6 * table.mean(1).var() * 4 / 3) / ((residual**2).sum() / 15)
    test = omnibus(values_of(table), permutations=10)
    assert test.f == pytest.approx(f) and test.p == pytest.approx(stats.f.sf(f, 3, 15))


def test_where_labels_mean_nothing_both_p_values_are_small_as_seldom_as_they_say():
    """Runs of one seed alike, and far from normal: within 2.6 standard errors of 5 and 20 %."""
    generator = np.random.default_rng(1)
    draws = generator.exponential(size=(400, 3, 5)) + 10 * generator.normal(size=(400, 1, 5))
    permuted = np.array([omnibus(values_of(table), permutations=199).permuted for table in draws])
    for level in (0.05, 0.2):
        assert abs((permuted <= level).mean() - level) < 2.6 * math.sqrt(level * (1 - level) / 400)


def test_the_permutations_are_the_same_each_time_and_count_the_real_one():
    table = np.arange(12.0).reshape(4, 3) + np.random.default_rng(0).normal(size=(4, 3)) / 100
    assert omnibus(values_of(table)) == omnibus(values_of(table))
    assert omnibus(values_of(table), permutations=9).permuted >= 0.1
    # Of two seeds of three variants, one way of six has the same order in both: p is 1 / 6 at best.
    two = omnibus(values_of([[1.0, 5.0], [2.0, 6.1], [3.1, 7.0]]))
    assert two.permuted == pytest.approx(1 / 6, abs=0.012)


def test_only_seeds_that_all_variants_have_count():
    values = values_of(np.random.default_rng(0).normal(size=(3, 4)))
    values["v1"].pop(2)
    whole = omnibus({name: {seed: runs[seed] for seed in (0, 1, 3)} for name, runs in values.items()})
    assert omnibus(values) == whole and whole.seeds == 3


@pytest.mark.parametrize("table", [
    [[1.0, 2.0], [2.0, 4.0]], [[1.0], [2.0], [4.0]], [[0.5, 0.6]] * 3, [[1.0, 2.0], [2.0, 3.0], [4.0, 5.0]]],
    ids=["two variants", "one seed", "all alike", "no residuals"])
def test_there_is_no_test_of_too_little(table):
    assert omnibus(values_of(table)) is None


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="must be finite"):
        omnibus(values_of([[1.0, math.nan], [2.0, 1.0], [2.0, 3.0]]))
