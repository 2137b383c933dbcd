"""One contrast over several suites."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from mrla_minimal.lab.evidence import across
from mrla_minimal.lab.evidence.across import Cell, random_effects


def cell(n, mean, error, suite="s"):
    return Cell(suite, "ResNet-20", n, mean, error)


FOUR = (cell(3, -0.6, 1.3), cell(12, 0.05, 0.08), cell(12, 0.3, 0.1), cell(8, -0.2, 0.4))


@pytest.mark.parametrize("n", [3, 4, 8, 20])
def test_of_one_cell_and_no_scatter_between_cells_it_is_students_t(n):
    found = random_effects([cell(n, 1.3, 0.4)], scale=1e-4)
    t = stats.t(n - 1, 1.3, 0.4)
    assert found.interval == pytest.approx(t.ppf([0.025, 0.975]), abs=2e-3)
    assert found.chances == pytest.approx((t.cdf(-0.3), t.cdf(0.3) - t.cdf(-0.3), t.sf(0.3)), abs=1e-3)
    assert found.new == pytest.approx(found.chances, abs=1e-3)


def test_of_many_exact_cells_it_is_the_known_formula_for_a_known_tau():
    """Cells without error of their own: mu is normal about their mean, tau^2 / k wide."""
    cells = [cell(1000, mean, 1e-3) for mean in (0.2, 0.5, 0.1, 0.9, 0.3)]
    found = random_effects(cells)
    assert found.mean == pytest.approx(0.4, abs=1e-3)
    tau = np.linspace(0.02, 4, 4000)
    square = 4 * np.var([0.2, 0.5, 0.1, 0.9, 0.3], ddof=1)
    posterior = stats.halfnorm.pdf(tau, scale=0.5) * tau**-4 * np.exp(-square / (2 * tau**2))
    posterior /= posterior.sum()
    assert found.tau == pytest.approx(posterior @ tau, rel=0.01)
    for chance, deviation in ((found.chances[2], tau / 5**0.5), (found.new[2], tau * 1.2**0.5)):
        assert chance == pytest.approx(posterior @ stats.norm.sf(-0.1 / deviation), abs=2e-3)


def test_it_agrees_with_drawing_from_the_model():
    """Importance sampling, a million draws of mu, tau and the cells' own effects."""
    generator = np.random.default_rng(0)
    tau = abs(generator.normal(0, 0.5, 1_000_000))
    mu = generator.uniform(-6, 6, len(tau))
    weight = np.ones(len(tau))
    for one in FOUR:
        theta = generator.normal(mu, tau)
        weight *= stats.t.pdf((one.mean - theta) / one.error, one.n - 1)
    weight /= weight.sum()
    found = random_effects(FOUR)
    assert found.mean == pytest.approx(weight @ mu, abs=0.02)
    assert found.tau == pytest.approx(weight @ tau, abs=0.02)
    assert found.chances == pytest.approx(
        (weight[mu < -0.3].sum(), weight[abs(mu) < 0.3].sum(), weight[mu > 0.3].sum()), abs=0.02)
    assert found.new[2] == pytest.approx(weight @ stats.norm.sf((0.3 - mu) / tau), abs=0.02)


@pytest.mark.parametrize("scale", [0.5, 2.0, 5.0])
def test_of_one_cell_mu_is_as_wide_as_the_prior_of_tau(scale):
    """Drawn from the model: mu is the cell's mean, its error's t and tau's normal away."""
    generator = np.random.default_rng(0)
    tau = abs(generator.normal(0, scale, 1_000_000))
    drawn = generator.normal(0, tau) + 0.1 * generator.standard_t(39, len(tau))
    found = random_effects([cell(40, 0.0, 0.1)], scale)
    assert found.interval == pytest.approx(np.quantile(drawn, (0.025, 0.975)), rel=0.01)


def test_its_interval_holds_the_mean_effect_as_often_as_it_says(monkeypatch):
    """Worlds drawn from the model, whatever mu is: in 95 of 100, within 2.6 standard errors."""
    whole = random_effects(FOUR)
    for grid, points in (("MU", 161), ("MIXTURE", 10), ("TAUS", 12)):       # coarse, and so quick
        monkeypatch.setattr(across, grid, points)
    assert random_effects(FOUR).interval == pytest.approx(whole.interval, abs=0.01)
    generator = np.random.default_rng(1)
    worlds, held = 250, {"with t": 0, "as if the errors were known": 0}
    for _ in range(worlds):
        tau, cells = abs(generator.normal(0, 0.5)), []
        for n, deviation in ((3, 1.5), (4, 1.0), (3, 2.0)):
            runs = 0.2 + generator.normal(0, tau) + deviation * generator.normal(size=n)
            cells.append(cell(n, runs.mean(), runs.std(ddof=1) / n**0.5))
        known = [dataclasses.replace(one, n=1000) for one in cells]
        for name, of_world in zip(held, (cells, known), strict=True):
            low, high = random_effects(of_world).interval
            held[name] += low < 0.2 < high
    assert abs(held["with t"] / worlds - 0.95) < 2.6 * math.sqrt(0.95 * 0.05 / worlds)
    assert held["as if the errors were known"] / worlds < 0.92      # what Student's t is there for


def test_cells_far_apart_raise_tau_and_a_wide_cell_hardly_counts():
    apart = random_effects([cell(10, 14, 0.3), cell(10, -1, 0.3)])
    assert apart.tau > 2 and apart.mean == pytest.approx(6.5)
    exact = [cell(12, 0.1, 0.05), cell(12, 0.0, 0.05)]
    wide = random_effects([*exact, cell(3, 5, 4.0)])
    assert wide.mean == pytest.approx(random_effects(exact).mean, abs=0.1)


def test_turned_round_it_says_the_opposite():
    found = random_effects(FOUR)
    turned = random_effects([dataclasses.replace(one, mean=-one.mean) for one in FOUR])
    assert turned.mean == pytest.approx(-found.mean)
    assert turned.chances == pytest.approx(found.chances[::-1])
    assert sum(found.chances) == pytest.approx(1) == sum(found.new)


@pytest.mark.parametrize(("cells", "words"), [
    ([], "at least one cell"), ([cell(2, 0.1, 0.1)], "needs 3 seeds or more, not 2"),
    ([cell(8, math.nan, 0.1)], "must be finite"), ([cell(8, 0.1, 0.0)], "the error positive"),
    ([cell(8, 0.1, math.inf)], "must be finite")])
def test_what_is_no_cell_is_refused(cells, words):
    with pytest.raises(ValueError, match=words):
        random_effects(cells)
