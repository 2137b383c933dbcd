"""Are all variants equal? One test of a whole suite, before any pair of them is looked at."""

from collections.abc import Mapping
from dataclasses import dataclass

from mrla_minimal.lab.evidence.intervals import shared_seeds

PERMUTATIONS = 10_000


@dataclass(frozen=True)
class Omnibus:
    """A two-way analysis of variance: variants, with seeds as blocks.

    f           mean square of variants over that of the residuals, with `degrees` of freedom
    p           of the F distribution: exact if residuals are normal and alike
    permuted    the share of ways to relabel the runs within each seed that give as large an F, from
                PERMUTATIONS random ones and the real one: assumes only that labels mean nothing
    """

    variants: int
    seeds: int
    f: float
    degrees: tuple[int, int]
    p: float
    permuted: float


def omnibus(values: Mapping[str, Mapping[int, float]], permutations: int = PERMUTATIONS) -> Omnibus | None:
    """The test that all variants have one mean, from the seeds that all of them share.

    values: variant -> seed -> value. The permutations are the same ones each time. None for fewer than
    three variants (two are a contrast) or two shared seeds, and where nothing is left that scatters. Raises
    ValueError for values that are not finite.
    """
    import numpy
    from scipy import stats

    if len(values) < 3:
        return None
    seeds = shared_seeds(values.values())
    if len(seeds) < 2:
        return None
    table = numpy.array([[runs[seed] for runs in values.values()] for seed in seeds])   # (seeds, variants)
    if not numpy.isfinite(table).all():
        raise ValueError("the values of the variants must be finite")
    blocks, variants = table.shape
    table = table - table.mean(axis=1, keepdims=True)       # without the seeds' effects
    degrees = variants - 1, (variants - 1) * (blocks - 1)
    total = (table**2).sum()
    between = blocks * (table.mean(axis=0) ** 2).sum()
    if total - between <= 1e-12 * total or total < 1e-18:
        return None
    f = (between / degrees[0]) / ((total - between) / degrees[1])
    copies = numpy.broadcast_to(table, (permutations, *table.shape))
    relabelled = numpy.random.default_rng(0).permuted(copies, axis=2)
    # The total stays, so F is as large where the variation between variants is; up to rounding.
    as_large = blocks * (relabelled.mean(axis=1) ** 2).sum(axis=1) >= between * (1 - 1e-9)
    return Omnibus(variants, blocks, float(f), degrees, float(stats.f.sf(f, *degrees)),
                   (int(as_large.sum()) + 1) / (permutations + 1))
