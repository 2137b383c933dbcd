"""How far an average precision depends on which images were tested: fields of view drawn anew, many times.

    noise = image_noise(from_text(text), from_text(other_text))
    noise.paired, noise.unpaired        # of a difference, on the same fields or on different ones

Whole fields are drawn, since the images of one field are no independent draws. This is the noise of images
for two nets that are given; the noise of seeds is not in it.
Source: B. Efron, Bootstrap methods: another look at the jackknife, Annals of Statistics 7 (1979).
"""

from dataclasses import dataclass

import numpy as np

from mrla_minimal.lab.fields import ByField


@dataclass(frozen=True, eq=False)
class ImageNoise:
    """Average precision, from 0 to 1, of two nets on each draw of the fields: both arrays (draws,).

    Draw i is the same fields for both.
    """

    first: np.ndarray
    second: np.ndarray

    @property
    def paired(self) -> float:
        """Standard deviation of second - first where both are tested on the same fields."""
        return float((self.second - self.first).std(ddof=1))

    @property
    def unpaired(self) -> float:
        """The same where each net is tested on fields of its own: two noises that know nothing of each other.
        """
        return float(np.hypot(self.first.std(ddof=1), self.second.std(ddof=1)))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Where the paired difference lies in a share `level` of the draws."""
        low, high = np.quantile(self.second - self.first, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)


def image_noise(first: ByField, second: ByField, draws: int = 1000, seed: int = 0) -> ImageNoise:
    """As many fields as there are, drawn with replacement, `draws` times, for two nets on the same test set.

    Raises ValueError if their fields do not hold the same objects, and for fewer than two draws. A draw
    without any object is drawn again.
    """
    if not np.array_equal(first.truths, second.truths):
        raise ValueError("these were tested on different fields: nothing about them can be paired")
    if draws < 2:
        raise ValueError(f"draws must be at least 2, not {draws}")
    fields, generator = len(first.truths), np.random.default_rng(seed)
    reached = []
    while len(reached) < draws:
        counts = np.bincount(generator.integers(fields, size=fields), minlength=fields)
        if counts @ first.truths > 0:
            reached.append([net.average_precision(counts)["AP"] for net in (first, second)])
    return ImageNoise(*np.array(reached).T)
