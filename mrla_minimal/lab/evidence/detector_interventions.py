"""Does it matter to a detector what its attention chooses? As interventions.py, with average precision.

The error is a bootstrap's, paired: the net with its choices and the net without, on the same fields of view.
"""

import copy
import statistics
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mrla_minimal.detector import Detector
from mrla_minimal.lab.data import normalise
from mrla_minimal.lab.data.scenes import Scenes, training_batch, views
from mrla_minimal.lab.engine.config import TrainConfig
from mrla_minimal.lab.engine.detection import find_objects
from mrla_minimal.lab.engine.inputs import steps_asked_for
from mrla_minimal.lab.evidence.interventions import INTERVENTIONS, REFIT_BATCHES, chooses, refitted_norms
from mrla_minimal.lab.fields import ByField, by_field
from mrla_minimal.lab.precision import Found
from mrla_minimal.looking import freeze_attention

MEAN_BATCHES = 10       # the last of those for the norms: what "mean" and a gate's "uniform" are taken over
DRAWS = 200             # of the fields of view


def last_crops(config: TrainConfig, data: Scenes, count: int = REFIT_BATCHES) -> list[Tensor]:
    """The images of a run's last training steps, as they were trained on: normalised, a tensor a step."""
    room = data.train.images[:, 0].numel() // data.crop**2
    steps = steps_asked_for(config, max(1, room // config.batch_size))
    seed = config.seed if config.order is None else config.order
    return [normalise(training_batch(data.train, seed, step, config.batch_size, data.crop)[0])
            for step in range(max(0, steps - count), steps)]


def by_class(found: Sequence[Found], fields: Sequence[str]) -> list[ByField]:
    """What was found of each class, field by field: as `by_field`, which is for one class."""
    kinds = sorted({int(kind) for image in found for kind in image.true_classes})
    return [by_field([Found(image.overlaps[image.classes == kind][:, image.true_classes == kind],
                            image.scores[image.classes == kind], image.classes[image.classes == kind],
                            image.true_classes[image.true_classes == kind]) for image in found], fields)
            for kind in kinds]


def precision_of(kept: Sequence[ByField], counts: np.ndarray | None = None) -> float:
    """AP, the mean over the classes that have an object left where field k counts counts[k] times."""
    return statistics.fmean(one.average_precision(counts)["AP"] for one in kept
                            if counts is None or counts @ one.truths > 0)


def intervene_on_detector(model: Detector, data: Scenes, config: TrainConfig,
                          progress: bool = False) -> dict[str, Any] | None:
    """Average precision on test of a trained detector with its attention's choices taken away.

    data, config: what it was trained on, and how. None if it chooses nothing. Otherwise

    learned, mean, shuffle, uniform     {"box_AP", "mask_AP"} (no masks, where it has none), fractions of 1:
              as `interventions.intervene` says, where "mean" is taken over the last 10 training steps' crops,
              and "shuffle" gives each picture the weights of one of 31 others
    errors    {mean, shuffle, uniform: the same}: standard errors of the changes against learned, over 200
              draws of the fields of view
    images, fields      how many pictures there were to look at, and of how many fields of view
    refitted  {learned, mean, shuffle, uniform, errors}: the same with the norms of each net refitted on the
              last 50 steps' crops. The error of learned is of its change against learned as trained

    The test set is opened eight times, and nothing is chosen by it. `progress` shows a bar of the four ways.
    Raises TrainingDiverged, as `find_objects`.
    """
    if not chooses(model):
        return None
    device = next(model.parameters()).device
    original = copy.deepcopy(model)
    crops = [images.to(device) for images in last_crops(config, data)]
    mean_over = torch.cat(crops[-MEAN_BATCHES:])
    seen = list(views(data.test, data.crop))
    # Tiles of one picture lie side by side, and a shuffle among them would hardly be one.
    seen = [seen[place] for place in torch.randperm(len(seen), generator=torch.Generator().manual_seed(0))]
    fields = [view.field for view in seen]

    def look() -> dict[str, list[ByField]]:
        return {f"{what}_AP": by_class(found, fields) for what, found in find_objects(model, seen).items()}

    kept = {False: {}, True: {}}        # by whether norms are refitted, and how
    for how in tqdm(("learned", *INTERVENTIONS), disable=not progress, unit="way", desc="interventions",
                    leave=False):
        frozen = nullcontext() if how == "learned" else freeze_attention(model, how, mean_over, original)
        with frozen:
            kept[False][how] = look()
            with refitted_norms(model, crops):
                kept[True][how] = look()
    trained, refitted = ({how: {what: precision_of(one) for what, one in found.items()}
                          for how, found in ways.items()} for ways in kept.values())
    draws = drawn_fields(kept[False]["learned"]["box_AP"])
    trained["errors"] = {how: _errors(kept[False]["learned"], kept[False][how], draws)
                         for how in INTERVENTIONS}
    refitted["errors"] = {how: _errors(kept[True]["learned"], kept[True][how], draws)
                          for how in INTERVENTIONS}
    refitted["errors"]["learned"] = _errors(kept[False]["learned"], kept[True]["learned"], draws)
    return trained | {"images": len(seen), "fields": len(set(fields)), "refitted": refitted}


def drawn_fields(kept: Sequence[ByField], draws: int = DRAWS) -> list[np.ndarray]:
    """How often each field of view comes, in draws with replacement that leave an object."""
    truths, generator, drawn = sum(one.truths for one in kept), np.random.default_rng(0), []
    while len(drawn) < draws:
        counts = np.bincount(generator.integers(len(truths), size=len(truths)), minlength=len(truths))
        if counts @ truths > 0:
            drawn.append(counts)
    return drawn


def _errors(before: dict[str, list[ByField]], after: dict[str, list[ByField]],
            draws: Sequence[np.ndarray]) -> dict[str, float]:
    """The standard deviation of each change in AP over draws of the fields."""
    return {what: statistics.stdev(precision_of(after[what], counts) - precision_of(before[what], counts)
                                   for counts in draws) for what in before}
