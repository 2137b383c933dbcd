"""How a contrast is read: the words that its intervals, its p value and the margin allow."""

from mrla_minimal.lab.evidence.intervals import LEVEL, Interval

TEST_FROM = 8       # seeds: from here on a paired t is a test; below, its interval's width is mostly luck
ESTIMATE = "an estimate, not a test"


def amount(number: float, unit: str) -> str:
    """"0.3 points", "1 point"."""
    return f"{number:g} {unit.removesuffix('s') if number == 1 else unit}"


def read_interval(interval: Interval, narrow: Interval, adjusted: float, margin: float | None,
                  sides: tuple[str, str], unit: str) -> str:
    """What may be said of a difference: one of `sides`, within the margin, or "undecided".

    interval    its 95 % interval; `adjusted`, the p value that goes with it, after Holm
    narrow      its 90 % interval: inside the margin, it rejects both that the difference is as large as the
                margin and that it is as far below (two one-sided tests at 5 %, Schuirmann 1987)
    margin      in the interval's own unit, which is `unit`; None: nothing is called nothing
    sides       the words for a difference above 0, and below
    """
    low, high = interval
    within = margin is not None and -margin < narrow[0] and narrow[1] < margin
    size = amount(margin, unit) if margin is not None else ""
    if adjusted < LEVEL:
        words = sides[0] if low > 0 else sides[1]
        if margin is not None and (low > margin or high < -margin):
            return f"{words} by more than {size}"
        return f"{words}, by less than {size}" if within else words
    if within:
        return f"within {size}: as good as nothing"
    return "undecided" if low <= 0 <= high else "undecided after Holm"
