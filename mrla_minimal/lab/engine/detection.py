"""A run that trains a detector: crops in place of an epoch's images, average precision in place of accuracy.

The rest is an ordinary Run's: its loop, folder, checkpoints, and how it goes on after being killed.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from mrla_minimal.detector import Detector, NotFinite
from mrla_minimal.lab.data import normalise
from mrla_minimal.lab.data.scenes import MASKED, Scenes, View, load_scenes, views
from mrla_minimal.lab.device import World
from mrla_minimal.lab.engine.config import TrainConfig
from mrla_minimal.lab.engine.inputs import crops_at, steps_an_epoch_of_crops
from mrla_minimal.lab.engine.precision import autocast
from mrla_minimal.lab.engine.run import Run, TrainingDiverged
from mrla_minimal.lab.fields import by_field, to_text
from mrla_minimal.lab.precision import Found, average_precision, found_by_overlap
from mrla_minimal.looking import in_evaluation
from mrla_minimal.targets import Targets

BATCH = 32          # views that are looked at together
LEVELS = 200        # of the scores that a record keeps


def find_objects(model: Detector, seen: Sequence[View], precision: str = "float32",
                 channels_last: bool = False, progress: bool = False) -> dict[str, list[Found]]:
    """{"box": ..., "mask": ...}: what a detector finds in each view, by overlap with what is there.

    "mask" only if it has a mask branch. Every module's own mode is put back. Raises TrainingDiverged if a
    score or a box is no finite number.
    """
    device, found = next(model.parameters()).device, {"box": [], "mask": []}
    with in_evaluation(model):
        for start in tqdm(range(0, len(seen), BATCH), desc="evaluating", unit="batch", leave=False,
                          disable=not progress):
            some = seen[start : start + BATCH]
            images = normalise(torch.stack([view.image for view in some]).to(device))
            if channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            try:
                with autocast(device, precision):
                    detections = model.detect(images)
            except NotFinite as error:      # what else is wrong is no divergence
                raise TrainingDiverged(str(error)) from None
            for view, one in zip(some, detections, strict=True):
                for what, image in found_by_overlap(one.boxes, one.masks, one.scores, one.classes,
                                                    view.boxes, view.masks, view.classes).items():
                    found[what].append(image)
    return {what: images for what, images in found.items() if images}


def precision_by_kind(found: dict[str, list[Found]], kinds: Sequence[str | None]) -> dict[str, float]:
    """{"box_AP", "box_AP50", "box_AP75", "mask_AP", ...}, from 0 to 1, of `find_objects`, over all images.

    Then the same of each kind of image that holds an object: "stained_box_AP", ...; kinds: one a view, None
    for a set that has no kinds.
    """
    scores = {}
    for kind in (None, *sorted({kind for kind in kinds if kind is not None})):
        for what, images in found.items():
            chosen = [image for image, its in zip(images, kinds, strict=True) if kind in (None, its)]
            if not any(len(image.true_classes) for image in chosen):
                continue
            prefix = f"{kind}_" * (kind is not None)
            scores |= {f"{prefix}{what}_{name}": value for name, value in average_precision(chosen).items()}
    return scores


class DetectionRun(Run):
    """A Run of a detector. `data` is a `Scenes` of one's own, or None for the set that is named.

    An epoch is as many crops as the training images have room for side by side. The average precision on test
    is measured once, at the end; that on the validation images after every epoch, if the configuration asks
    for it. Raises ValueError, as a Run does, and for several processes.
    """

    result, counts_right = "test_box_AP", False

    def __init__(self, config: TrainConfig, world: World, run_dir: Path | None = None,
                 data: Scenes | None = None):
        if world.parallel:
            raise ValueError(f"a detector is trained by one process, not by {world.size}")
        super().__init__(config, world, run_dir, data)

    def _load(self):
        return load_scenes(self.config.dataset, self.config.data_root)

    def _take_data(self, data):
        """The splits stay on the CPU, where crops are cut; the steps are counted."""
        if not isinstance(data, Scenes):
            raise ValueError(f"data must be Scenes for a detector, not a {type(data).__name__}")
        if data.masks != (self.config.dataset in MASKED):
            raise ValueError(f"data must hold {'boxes alone' if data.masks else 'masks'} with dataset "
                             f"{self.config.dataset!r}")
        self.source, self.fingerprint, self.classes = data.source, data.fingerprint, data.classes
        self.in_channels, self.crop = 3, data.crop
        self.training, self.test = data.train, data.test
        self.validation = data.validation if self.config.validation else None
        crops_at(self.config, self.training, self.crop, 0)      # images smaller than a crop are told now
        self.steps_per_epoch = steps_an_epoch_of_crops(self.config, self.training, self.crop)
        self.total_steps = self.steps_of(self.config)

    def batch(self) -> tuple[Tensor, Targets]:
        """The current step's images (normalised), and what they hold."""
        images, targets = crops_at(self.config, self.training, self.crop, self.step)
        images = normalise(images.to(self.world.device, non_blocking=True))
        if self.config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, targets.to(self.world.device)

    def update(self, images: Tensor, targets: Targets) -> Tensor:
        """Change the net by one batch; returns (1,): the sum of its losses."""
        self.model.train()
        with autocast(self.world.device, self.precision):
            loss = sum(self.model.losses(images, targets).values())
        self.descend(loss)
        return (loss.detach() * len(images))[None]

    def measured(self) -> dict:
        """What `precision_by_kind` names, after the split's; and what fields.py calls test_mask_fields."""
        splits = {"validation": self.validation} if self.validation is not None else {}
        splits |= {"test": self.test} if self.finished else {}
        reached = {}
        for name, split in splits.items():
            seen = list(views(split, self.crop))
            if name == "test" and self.progress:
                tqdm.write(f"testing on {len(seen)} images")
            found = find_objects(self.model, seen, self.precision, self.config.channels_last, self.progress)
            scores = precision_by_kind(found, [view.kind for view in seen])
            reached |= {f"{name}_{what}": value for what, value in scores.items()}
            if name == "test" and "mask" in found:
                kept = by_field(found["mask"], [view.field for view in seen], LEVELS)
                reached["test_mask_fields"] = to_text(kept)
        return reached
