"""Does it matter to a detector what its attention chooses? As interventions.py, with average precision.

The error is a bootstrap's, paired: the net with its choices and the net without, on the same fields of view.
"""

from typing import Any

import torch
from torch import Tensor

from mrla_minimal.detector import Detector
from mrla_minimal.lab.data import normalise
from mrla_minimal.lab.data.scenes import Scenes, views
from mrla_minimal.lab.engine.config import TrainConfig
from mrla_minimal.lab.engine.detection import find_objects
from mrla_minimal.lab.engine.inputs import crops_at, steps_an_epoch_of_crops, steps_asked_for
from mrla_minimal.lab.evidence.image_noise import image_noise
from mrla_minimal.lab.evidence.interventions import INTERVENTIONS, REFIT_BATCHES, chooses, looked_at
from mrla_minimal.lab.fields import ByField, by_class, mean_precision

MEAN_BATCHES = 10       # the last of those for the norms: what "mean" and a gate's "uniform" are taken over
DRAWS = 200             # of the fields of view


def last_crops(config: TrainConfig, data: Scenes, count: int = REFIT_BATCHES) -> list[Tensor]:
    """The images of a run's last training steps, as they were trained on: normalised, a tensor a step."""
    steps = steps_asked_for(config, steps_an_epoch_of_crops(config, data.train, data.crop))
    return [normalise(crops_at(config, data.train, data.crop, step)[0])
            for step in range(max(0, steps - count), steps)]


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
    crops = [images.to(device) for images in last_crops(config, data)]
    seen = list(views(data.test, data.crop))
    # Tiles of one picture lie side by side, and a shuffle among them would hardly be one.
    seen = [seen[place] for place in torch.randperm(len(seen), generator=torch.Generator().manual_seed(0))]
    fields = [view.field for view in seen]

    def look() -> dict[str, list[ByField]]:
        return {f"{what}_AP": by_class(found, fields) for what, found in find_objects(model, seen).items()}

    kept, kept_refitted = looked_at(model, torch.cat(crops[-MEAN_BATCHES:]), lambda: crops, look, progress)
    trained, refitted = _compared(kept), _compared(kept_refitted)
    refitted["errors"]["learned"] = _errors(kept["learned"], kept_refitted["learned"])
    return trained | {"images": len(seen), "fields": len(set(fields)), "refitted": refitted}


def _compared(kept: dict[str, dict[str, list[ByField]]]) -> dict[str, Any]:
    """The average precisions, and the error of what each intervention changed against the net as learned."""
    reached = {how: {what: mean_precision(one) for what, one in found.items()} for how, found in kept.items()}
    return reached | {"errors": {how: _errors(kept["learned"], kept[how]) for how in INTERVENTIONS}}


def _errors(before: dict[str, list[ByField]], after: dict[str, list[ByField]]) -> dict[str, float]:
    """The standard deviation of each change in AP over draws of the fields."""
    return {what: image_noise(before[what], after[what], DRAWS).paired for what in before}
