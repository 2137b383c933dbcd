"""The rival of the detectors of nuclei, which nobody has to train: what it reaches, and what a net has more.

data/nuclei/rival.py tunes and tests it; lab/watershed.py is what it does.
"""

import json
from collections.abc import Mapping

from mrla_minimal.lab.evidence.intervals import Interval, paired_interval
from mrla_minimal.lab.files import repository_root

RIVAL = "Otsu + watershed"


def rival_on(source: str) -> dict[str, float]:
    """What the rival reaches on these images: {"test_mask_AP": ..., "test_stained_mask_AP": ...}.

    Fractions of 1, as recorded; {} where it was not tried.
    """
    root = repository_root()
    path = root and root / "data" / "results" / f"{source}-rival.json"
    if path is None or not path.is_file():
        return {}
    recorded = json.loads(path.read_text(encoding="utf-8"))
    return {name: value for name, value in recorded.items() if isinstance(value, float)}


def against_rival(values: Mapping[str, Mapping[int, float]], baseline: str,
                  rival: float | None) -> tuple[float, Interval | None] | None:
    """(mean, 95 % interval over seeds) of what the baseline has more than the rival; None without either.

    values: variant -> seed -> value.
    """
    runs = values.get(baseline, {})
    if rival is None or not runs:
        return None
    return paired_interval([value - rival for value in runs.values()])[:2]
