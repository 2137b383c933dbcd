"""What a suite's design is made of beside variants and pairs: effects of several variants, drawn recipes."""

import hashlib
from dataclasses import dataclass

from mrla_minimal.lab.arguments import boolean, positive, shown, text


@dataclass(frozen=True)
class Effect:
    """The mean of some variants minus the mean of others, under a name: what a pair of variants cannot ask.

    summed: the sums in place of the means. Of a 2 x 2, Effect("memory", plus=both variants with it,
    minus=both without) is the main effect; with the two diagonals in their place, and summed, it is the
    interaction: how much one gain changes with the other. Raises ValueError naming what is wrong.
    """

    name: str
    plus: tuple[str, ...]
    minus: tuple[str, ...]
    primary: bool = True
    summed: bool = False

    def __post_init__(self):
        object.__setattr__(self, "name", text("the name of an effect", self.name))
        for field in ("primary", "summed"):
            object.__setattr__(self, field, boolean(f"effect {self.name}: {field}", getattr(self, field)))
        for field in ("plus", "minus"):
            given = getattr(self, field)
            if not isinstance(given, tuple | list) or not given:
                raise ValueError(f"effect {self.name}: {field} must be several variants, not {shown(given)}")
            object.__setattr__(self, field, tuple(given))
        variants = (*self.plus, *self.minus)
        if any(variants.count(variant) > 1 for variant in variants):
            raise ValueError(f"effect {self.name}: each variant may stand once, in plus or in minus; not "
                             f"{shown(self.plus)} minus {shown(self.minus)}")

    @property
    def weights(self) -> dict[str, float]:
        """variant -> its weight: those of `plus` sum to 1, of `minus` to -1; summed, each is 1 or -1."""
        shares = (1, 1) if self.summed else (len(self.plus), len(self.minus))
        return {variant: 1 / shares[0] for variant in self.plus} | {
            variant: -1 / shares[1] for variant in self.minus}


@dataclass(frozen=True)
class LogUniform:
    """A number between `low` and `high` of which each doubling is as likely as the next.

    Raises ValueError unless 0 < low < high.
    """

    low: float
    high: float

    def __post_init__(self):
        for field in ("low", "high"):
            object.__setattr__(self, field, positive(field, getattr(self, field)))
        if not self.low < self.high:
            raise ValueError(f"low must be below high, not {self.low:g} and {self.high:g}")

    def draw(self, *labels: str | int) -> float:
        """The number that these labels draw, to three significant digits, never outside.

        It follows from their SHA-256, so it is the same on every machine and under every version of Python.
        """
        digest = hashlib.sha256("\n".join(map(str, labels)).encode()).digest()
        share = int.from_bytes(digest[:6], "big") / 2**48
        rounded = float(f"{self.low * (self.high / self.low) ** share:.3g}")
        return min(max(rounded, self.low), self.high)
