"""One contrast over several suites: a random-effects model, integrated on a grid.

Suite i, a *cell* (its images, net and recipe), has a true difference theta_i of its own. Cells scatter about
the mean effect mu with standard deviation tau:

    estimate_i ~ theta_i + error_i * Student's t with n_i - 1 degrees of freedom
    theta_i    ~ Normal(mu, tau^2),     tau ~ half-normal(0.5 points),     mu flat

The t takes the doubt about a cell's own scatter along: few seeds have a wide say. All is in points.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mrla_minimal.lab.evidence.intervals import Interval

TAU = 0.5           # points: the scale of the half-normal prior of tau
RELEVANT = 0.3      # points: what the mean effect must pass to be worth its name
FEWEST = 3          # seeds of a cell: from two, t says next to nothing
MU, MIXTURE, TAUS = 601, 24, 32         # points of the grids
Chances = tuple[float, float, float]    # P(below -RELEVANT), P(within), P(above)


@dataclass(frozen=True)
class Cell:
    """What one suite says of a contrast: its mean difference over n seeds, and the mean's standard error."""

    suite: str
    host: str
    n: int
    mean: float
    error: float


@dataclass(frozen=True)
class MeanEffect:
    """What the cells say together.

    mean, interval  of mu: posterior mean, and the middle 95 %
    chances         of mu; `new`, of the true difference in another cell of the same kind
    tau             posterior mean
    """

    cells: tuple[Cell, ...]
    mean: float
    interval: Interval
    chances: Chances
    new: Chances
    tau: float


def random_effects(cells: Sequence[Cell], scale: float = TAU) -> MeanEffect:
    """The posterior of the model above, given one cell or more.

    Raises ValueError for none, for one of fewer than three seeds, and for numbers that are not finite or an
    error that is not positive.
    """
    import numpy
    from scipy import stats

    _check(cells)
    mu, width = _grid_of_mu(cells, scale)                   # (MU,), its weights for a sum
    tau, tau_weight = numpy.polynomial.legendre.leggauss(TAUS)
    tau, tau_weight = 4 * scale * (tau + 1), 4 * scale * tau_weight
    log = numpy.tile(stats.halfnorm.logpdf(tau, scale=scale)[:, None], (1, len(mu)))        # (TAUS, MU)
    for cell in cells:
        # Student's t is a normal whose precision is chi-squared; with the cells' scatter it stays a mixture.
        precision, share = _precisions(cell.n - 1)
        variance = tau[:, None] ** 2 + cell.error**2 / precision                           # (TAUS, MIXTURE)
        square = (mu - cell.mean)[None, :, None] ** 2 / variance[:, None, :]
        density = (share / numpy.sqrt(variance))[:, None, :] * numpy.exp(-square / 2)
        log += numpy.log(density.sum(axis=2) + 1e-300)
    joint = numpy.exp(log - log.max()) * tau_weight[:, None] * width                       # (TAUS, MU)
    joint /= joint.sum()
    of_mu, of_tau = joint.sum(axis=0), joint.sum(axis=1)
    below = numpy.cumsum(of_mu) - of_mu / 2

    def chances(up_to):
        low, high = float(up_to(-RELEVANT)), float(up_to(RELEVANT))
        return low, high - low, 1 - high

    low, high = numpy.interp((0.025, 0.975), below, mu)
    return MeanEffect(tuple(cells), float(of_mu @ mu), (float(low), float(high)),
                      chances(lambda end: numpy.interp(end, mu, below, left=0.0, right=1.0)),
                      chances(lambda end: (joint * stats.norm.cdf((end - mu) / tau[:, None])).sum()),
                      float(of_tau @ tau))


def _check(cells):
    if not cells:
        raise ValueError("a mean effect needs at least one cell")
    for cell in cells:
        if cell.n < FEWEST:
            raise ValueError(f"suite {cell.suite}: a cell needs {FEWEST} seeds or more, not {cell.n}")
        if not (math.isfinite(cell.mean) and 0 < cell.error < math.inf):
            raise ValueError(f"suite {cell.suite}: mean and error of a cell must be finite, the error "
                             f"positive; not {cell.mean} and {cell.error}")


def _grid_of_mu(cells, scale):
    """Values of mu, close where cells are exact and far apart in the tails, and how wide each stands."""
    import numpy
    from scipy import stats

    reach = max(abs(cell.mean - cells[0].mean) + stats.t.isf(1e-5, cell.n - 1) * cell.error for cell in cells)
    finest = min(math.hypot(cell.error, 0.1) for cell in cells)
    centre = sum(cell.mean / cell.error**2 for cell in cells) / sum(1 / cell.error**2 for cell in cells)
    end = math.asinh((reach + 8 * max(scale, TAU) + abs(centre - cells[0].mean)) / finest)
    steps = numpy.linspace(-end, end, MU)
    return centre + finest * numpy.sinh(steps), finest * numpy.cosh(steps) * (steps[1] - steps[0])


def _precisions(degrees):
    """Nodes and weights of the chi-squared of these degrees over them, dense where t has its tails."""
    import numpy
    from scipy import stats

    nodes, weights = numpy.polynomial.legendre.leggauss(MIXTURE)
    nodes, weights = (nodes + 1) / 2, weights / 2
    return stats.chi2.ppf(nodes**3, degrees) / degrees, 3 * nodes**2 * weights
