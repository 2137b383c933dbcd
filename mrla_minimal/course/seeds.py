"""Numbers drawn by a seed, beside torch's own random state."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's random state is that of `seed` within, and afterwards what it was before. On the CPU alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
