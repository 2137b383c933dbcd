"""What is measured of a finished run: a few numbers of its record, each with its unit and its better side."""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mrla_minimal.lab.evidence.intervals import Interval


@dataclass(frozen=True)
class Measure:
    """A number of a record, and how it is printed.

    label       what it is; `short` heads a column
    unit        of differences: "points" or "nat"; a value times `scale` has it, printed to `decimals` places
    better      "higher" or "lower"
    reach       how far beyond the runs a figure's axis goes, in `unit`
    read        takes the number from a record; None where the record does not have it
    """

    name: str
    label: str
    short: str
    unit: str
    scale: float
    decimals: int
    better: str
    reach: float
    read: Callable[[dict], float | None]

    def of(self, record: dict) -> float | None:
        """The record's value, a fraction of 1 or nat; None if it has none. ValueError if it is not finite."""
        value = self.read(record)
        return None if value is None else _finite(value, self.label, record)

    def difference(self, value: float) -> str:
        """A difference as text, with its sign, in `unit`."""
        return f"{self.scale * value:+.{self.decimals}f}"

    def ends(self, interval: Interval | None) -> str:
        """An interval of differences as text, "-0.12 to +0.30"; "" where there is none."""
        return "" if interval is None else " to ".join(map(self.difference, interval))


def _finite(value: float, what: str, record: dict) -> float:
    if not math.isfinite(value):
        which = f"{record['variant']}, seed {record['seed']}"
        raise ValueError(f"the {what} of {which} is {value}: not finite, so no result")
    return value


def _test_accuracy(record: dict) -> float | None:
    return record.get("test_accuracy")


def _test_loss(record: dict) -> float | None:
    metrics = record.get("metrics") or [{}]
    return metrics[-1].get("test_loss")


def _first_epoch_loss(record: dict) -> float | None:
    """None too where the first epoch may have been cut short; for a branch, since it is its trunk's; and for
    a detector, whose loss is a sum of several and not in nat.
    """
    metrics, config = record.get("metrics") or [{}], record["config"]
    cut = config.get("steps") is not None and len(metrics) < 2
    if cut or config.get("trunk") is not None or "test_box_AP" in metrics[-1]:
        return None
    return None if metrics[0].get("epoch") != 1 else metrics[0].get("train_loss")


def _average_precision(name: str) -> Callable[[dict], float | None]:
    return lambda record: (record.get("metrics") or [{}])[-1].get(f"test_{name}")


MEASURES = {measure.name: measure for measure in (
    Measure("test_accuracy", "test accuracy of the last epoch", "accuracy", "points", 100.0, 2, "higher",
            1.0, _test_accuracy),
    Measure("test_loss", "test loss of the last epoch", "test loss", "nat", 1.0, 3, "lower", 0.1,
            _test_loss),
    # While every image is seen for the first time, the training loss is one of predicting what is new.
    Measure("first_epoch_loss", "mean training loss of the first epoch", "epoch-1 loss", "nat", 1.0, 3,
            "lower", 0.1, _first_epoch_loss),
    Measure("mask_AP", "average precision of masks", "mask AP", "points", 100.0, 2, "higher", 1.0,
            _average_precision("mask_AP")),
    Measure("box_AP", "average precision of boxes", "box AP", "points", 100.0, 2, "higher", 1.0,
            _average_precision("box_AP")),
)}


def measured(records: Iterable[dict], variants: Iterable[str]) -> dict[str, dict[str, dict[int, float]]]:
    """measure -> variant -> seed -> value of these records; without the measures that none of them has.

    variants: in which order they come.
    """
    values, order = {}, list(variants)
    for record in sorted(records, key=lambda record: order.index(record["variant"])):
        for measure in MEASURES.values():
            value = measure.of(record)
            if value is not None:
                runs = values.setdefault(measure.name, {}).setdefault(record["variant"], {})
                runs[record["seed"]] = value
    return {name: values[name] for name in MEASURES if name in values}


def kinds_of(records: Iterable[dict]) -> dict[str, dict[str, dict[str, dict[int, float]]]]:
    """What detectors reach on each kind of image: kind -> measure -> variant -> seed -> value.

    {} for records that tell no kinds apart. ValueError for a value that is not finite.
    """
    kinds = {}
    for record in records:
        for name, value in (record.get("metrics") or [{}])[-1].items():
            told = re.fullmatch(r"test_(\w+)_((?:mask|box)_AP)", name)
            if told:
                runs = kinds.setdefault(told[1], {}).setdefault(told[2], {})
                what = f"{MEASURES[told[2]].label} on images of kind {told[1]}"
                runs.setdefault(record["variant"], {})[record["seed"]] = _finite(value, what, record)
    return kinds


def fields_of(records: Iterable[dict]) -> dict[str, dict[int, str]]:
    """What detectors found field by field, as lab/fields.py writes it: variant -> seed -> text; or {}."""
    texts = {}
    for record in records:
        text = (record.get("metrics") or [{}])[-1].get("test_mask_fields")
        if text is not None:
            texts.setdefault(record["variant"], {})[record["seed"]] = text
    return texts
