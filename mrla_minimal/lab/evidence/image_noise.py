"""How far an average precision depends on which images were tested: fields of view drawn anew, many times.

    noise = image_noise(from_text(text), from_text(other_text))
    noise.paired, noise.unpaired        # of a difference, on the same fields or on different ones

Whole fields are drawn, since the images of one field are no independent draws. This is the noise of images
for two nets that are given; the noise of seeds is not in it.
Source: B. Efron, Bootstrap methods: another look at the jackknife, Annals of Statistics 7 (1979).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mrla_minimal.lab.fields import ByField, mean_precision


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


def image_noise(first: ByField | Sequence[ByField], second: ByField | Sequence[ByField], draws: int = 1000,
                seed: int = 0) -> ImageNoise:
    """As many fields as there are, drawn with replacement, `draws` times, for two nets on the same test set.

    first, second: what each net found; of several classes, a ByField each, and then AP is their mean.
    Raises ValueError if their fields do not hold the same objects, or none, and for fewer than two draws.
    """
    nets = [[net] if isinstance(net, ByField) else list(net) for net in (first, second)]
    truths, others = ([one.truths.tolist() for one in net] for net in nets)
    if truths != others:
        raise ValueError("these were tested on different fields: nothing about them can be paired")
    if draws < 2:
        raise ValueError(f"draws must be at least 2, not {draws}")
    objects = np.sum(truths, axis=0)
    return ImageNoise(*np.array([[mean_precision(net, counts) for net in nets]
                                 for counts in drawn_fields(objects, draws, seed)]).T)


def drawn_fields(objects: np.ndarray, draws: int, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each field of view comes, (fields,), in as many draws with replacement.

    objects (fields,): how many each of them holds. A draw without any is drawn again. Raises ValueError if
    there are none at all.
    """
    if not np.sum(objects) > 0:
        raise ValueError("these fields hold no object: the average precision is not defined")
    fields, generator = len(objects), np.random.default_rng(seed)
    while draws:
        counts = np.bincount(generator.integers(fields, size=fields), minlength=fields)
        if counts @ objects > 0:
            draws -= 1
            yield counts
