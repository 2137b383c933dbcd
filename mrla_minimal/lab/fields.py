"""What was found in a test set, field of view by field of view: enough to draw its fields anew.

    found = [Found(...), ...]                               # one for each tile
    kept = by_field(found, fields)          # fields: the field of view of each tile, by name
    kept.average_precision()                # as average_precision(found), of one class
    kept.average_precision(counts)          # as if field k had been photographed counts[k] times
    from_text(to_text(kept))                # some 20 kB for the whole test split of nuclei

A net's record holds it at metrics[-1]["test_mask_fields"], in the form of `to_text`: the noise of images is
what AP does when fields are drawn with replacement. Images of one field are no independent draws, so fields
are drawn.
"""

import base64
import json
import statistics
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mrla_minimal.lab.precision import THRESHOLDS, Found, precision_at, summed_up


@dataclass(frozen=True, eq=False)
class ByField:
    """The detections of all images in one order, best score first; fields are numbered in their names' order.

    field (detections,) integers, where each was found; hits (10, detections) boolean, whether it is true at
    each threshold of IoU; truths (fields,) integers, how many objects each field holds.
    """

    field: np.ndarray
    hits: np.ndarray
    truths: np.ndarray

    @cached_property
    def _places(self) -> list[np.ndarray]:
        """Where in the order the true detections stand, at each threshold."""
        return [np.flatnonzero(row) for row in self.hits]

    def average_precision(self, counts: np.ndarray | None = None) -> dict[str, float]:
        """{"AP", "AP50", "AP75"}, from 0 to 1, where field k counts counts[k] times.

        counts (fields,), None for once each.
        Raises ValueError if no object is left.
        """
        counts = np.ones(len(self.truths)) if counts is None else np.asarray(counts, float)
        total = float(counts @ self.truths)
        if total <= 0:
            raise ValueError("these fields hold no object: the average precision is not defined")
        all_so_far = counts[self.field].cumsum()
        read = [precision_at(counts[self.field[places]].cumsum(), all_so_far[places], total).mean()
                for places in self._places]
        return summed_up(np.array(read))


def by_field(found: Sequence[Found], fields: Sequence[str], levels: int | None = None) -> ByField:
    """What was found in images of one class of object, and in which of the fields, one name an image.

    levels: round scores to so many parts of 1, and take what then is equal field by field. What takes room in
    a text is the order of fields: with 200 levels it is a quarter as long, and AP moves by 0.01 points.
    Raises ValueError if there are several classes, or another number of names.
    """
    if len(found) != len(fields):
        raise ValueError(f"fields must be one name for each of {len(found)} images, not {len(fields)}")
    if len({int(kind) for image in found for kind in (*image.classes, *image.true_classes)}) > 1:
        raise ValueError("by_field is for one class of object, and here are several")
    number = {name: place for place, name in enumerate(sorted(set(fields)))}
    truths = np.zeros(len(number), int)
    scores, hits, places = [], [], []
    for image, name in zip(found, fields, strict=True):
        truths[number[name]] += len(image.true_classes)
        its_scores, its_hits = image.judged()
        scores.append(its_scores)
        hits.append(its_hits)
        places.append(np.full(len(its_scores), number[name]))
    scores, places = np.concatenate(scores), np.concatenate(places)
    order = np.argsort(-scores, kind="stable") if levels is None else \
        np.lexsort((places, -np.round(levels * scores)))
    return ByField(places[order], np.concatenate(hits, axis=1)[:, order], truths)


def by_class(found: Sequence[Found], fields: Sequence[str]) -> list[ByField]:
    """What was found of each class that is there, field by field: as `by_field`, which is for one class."""
    kinds = sorted({int(kind) for image in found for kind in image.true_classes})
    return [by_field([image.of_class(kind) for image in found], fields) for kind in kinds]


def mean_precision(kept: Sequence[ByField], counts: np.ndarray | None = None) -> float:
    """AP, the mean over the classes that have an object left where field k counts counts[k] times."""
    return statistics.fmean(one.average_precision(counts)["AP"] for one in kept
                            if counts is None or counts @ one.truths > 0)


def to_text(kept: ByField) -> str:
    """A ByField as a line of JSON: counts, and the detections packed (two bytes for field, two for hits)."""
    bits = (kept.hits * (1 << np.arange(len(THRESHOLDS)))[:, None]).sum(axis=0)
    packed = np.stack([kept.field, bits]).astype("<u2").tobytes()
    return json.dumps({"truths": kept.truths.tolist(),
                       "detections": base64.b64encode(zlib.compress(packed, 9)).decode()})


def from_text(text: str) -> ByField:
    """The ByField that `to_text` wrote. ValueError for anything else."""
    try:
        read = json.loads(text)
        packed = np.frombuffer(zlib.decompress(base64.b64decode(read["detections"], validate=True)), "<u2")
        field, bits = packed.astype(int).reshape(2, -1)
        truths = np.array(read["truths"], int)
        sound = truths.ndim == 1 and (truths >= 0).all() and (field < len(truths)).all()
    except (ValueError, TypeError, KeyError, OverflowError, zlib.error):
        sound = False
    if not sound:
        raise ValueError("this is no text of what was found field by field")
    return ByField(field, (bits >> np.arange(len(THRESHOLDS))[:, None] & 1).astype(bool), truths)
