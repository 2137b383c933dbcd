"""Does it matter what an attention chooses? One trained net, the same images, with its choices taken away."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mrla_minimal.hosting import DropPath
from mrla_minimal.lab.cost import undisturbed
from mrla_minimal.lab.data import Split, normalise, take_batch
from mrla_minimal.lab.engine.config import TrainConfig
from mrla_minimal.lab.engine.inputs import (
    Inputs,
    is_augmented,
    planned_epoch,
    steps_an_epoch,
    steps_asked_for,
)
from mrla_minimal.lab.engine.run import TrainingDiverged
from mrla_minimal.looking import freeze_attention

INTERVENTIONS = ("mean", "shuffle", "uniform")      # as in freeze_attention
# Training images. Their order comes from a hash of their pixels, so the first ones are a random sample.
MEAN_OVER = 5000
BATCH = 500
# Training batches that norms are refitted on. Training's own moving averages, of momentum 0.1, rest on about
# 19 batches: these are steadier, and take an eighth of an epoch.
REFIT_BATCHES = 50
Seen = TypeVar("Seen")


def chooses(model: nn.Module) -> bool:
    """Whether any layer attention of the model weighs layers, or gates, by what it sees."""
    return any(isinstance(getattr(block.layer_attention, "weights", None), nn.Module)
               for stage in model.stages for block in stage)


def training_batches(config: TrainConfig, split: Split, count: int = REFIT_BATCHES) -> Iterator[Tensor]:
    """The first batches of a run's last epoch, as they were trained on: cropped and flipped, normalised.

    split: the training images. Each batch is (batch_size, channels, height, width); if the epoch has fewer
    than `count`, all of it comes, and never more than the run had steps.
    """
    steps_per_epoch = steps_an_epoch(config, len(split))
    steps = steps_asked_for(config, steps_per_epoch)
    last, count = (steps - 1) // steps_per_epoch, min(count, steps)
    plan = planned_epoch(config, len(split), last).to(split.images.device)
    for step in range(min(count, steps_per_epoch)):
        start = step * config.batch_size
        yield take_batch(split, plan, start, start + config.batch_size)[0]


@contextmanager
def refitted_norms(model: nn.Module, batches: Iterable[Tensor]) -> Iterator[None]:
    """Within it, every batch norm has the mean and variance that `batches` now give; afterwards its own.

    batches: normalised images, (batch, channels, height, width) each, cropped and flipped as in training: a
    net trained on crops loses points to norms fitted to whole images, even if nothing else is done to it.

    A net whose attention is changed after training feeds its batch norms what they were not trained on. This
    takes that part of the damage away: no weight is changed, only these statistics are, to plain averages
    over the batches. The net sees them as in training, but nothing is dropped at random. Inside, the model
    is in evaluation mode. Raises ValueError without images.
    """
    norms = [module for module in model.modules()
             if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    device, seen = next(model.parameters()).device, 0
    # torch's own update_bn would leave drop_path on, and keep what it found.
    with undisturbed(model, True, device):
        try:
            torch.manual_seed(0)        # of the amnesia host's wiped streams
            for module in model.modules():
                if isinstance(module, DropPath | nn.modules.dropout._DropoutNd):
                    module.eval()
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None        # a plain average over the batches
            with torch.no_grad():
                for batch in batches:
                    model(batch.contiguous(memory_format=torch.channels_last))
                    seen += len(batch)
            if not seen:
                raise ValueError("refitting norms needs images")
            model.eval()
            yield
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


def looked_at(model: nn.Module, mean_over: Tensor, batches: Callable[[], Iterable[Tensor]],
              look: Callable[[], Seen], progress: bool = False) -> tuple[dict[str, Seen], dict[str, Seen]]:
    """What `look` sees of the model as learned and under each intervention: two dictionaries, by how.

    The first with its norms as trained, the second with the norms of each net refitted on what `batches`
    gives, asked anew each time. mean_over: the normalised images that "mean" and a gate's "uniform" are taken
    over. `progress` shows a bar of the four ways.
    """
    original = copy.deepcopy(model)     # whose weights are shuffled: no norm of it is ever refitted
    trained, refitted = {}, {}
    for how in tqdm(("learned", *INTERVENTIONS), disable=not progress, unit="way", desc="interventions",
                    leave=False):
        with nullcontext() if how == "learned" else freeze_attention(model, how, mean_over, original):
            trained[how] = look()
            with refitted_norms(model, batches()):
                refitted[how] = look()
    return trained, refitted


@torch.no_grad()
def right_answers(model: nn.Module, split: Split) -> Tensor:
    """Which images of a Split the model answers rightly, in evaluation mode: boolean (N,).

    Raises TrainingDiverged if a logit is not finite: the largest of logits that are no numbers is no answer.
    """
    parts, finite = [], []
    with undisturbed(model, False, split.images.device):
        for start in range(0, len(split), BATCH):
            images = normalise(split.images[start : start + BATCH])
            logits = model(images.contiguous(memory_format=torch.channels_last))
            finite.append(torch.isfinite(logits).all())
            parts.append(logits.argmax(dim=1) == split.labels[start : start + BATCH])
    if not torch.stack(finite).all():
        raise TrainingDiverged(f"not all logits of {len(split)} images are finite")
    return torch.cat(parts)


def intervene(model: nn.Module, data: Inputs, config: TrainConfig, mean_over: int = MEAN_OVER,
              progress: bool = False) -> dict[str, Any] | None:
    """Test accuracies (fractions of 1) of a trained model with its attention's choices taken away.

    data, config: what it was trained on, and how. `mean_over` and the refit take no more images than the run
    saw, so that looking into a run of a few steps takes seconds. None if it chooses nothing. Otherwise

    learned   as trained, in float32
    mean      each layer and head has its mean weights over the first `mean_over` training images
    shuffle   each test image gets the weights of another one of its batch of 500
    uniform   1 / t for each of t layers; a gate has its layer's mean over those images and over heads
    changed   {mean, shuffle, uniform: [right answers lost, gained]}, against learned
    images    how many test images there were
    refitted  {learned, mean, shuffle, uniform, changed}: the same with the norms of each net refitted, on
              `training_batches`. The changes are against learned of these; that of learned itself, the
              control, is against learned as trained. `augmented` says if training cropped and flipped

    The test set is opened eight times, and nothing is chosen by it. `progress` shows a bar of the four ways.
    Raises TrainingDiverged, as `right_answers`.
    """
    if not chooses(model):
        return None
    device = next(model.parameters()).device
    test, train = data.test.to(device), data.train.to(device)
    seen = steps_asked_for(config, steps_an_epoch(config, len(train))) * config.batch_size
    images = normalise(train.images[: min(mean_over, seen)])        # (images, channels, height, width)
    right, right_refitted = looked_at(model, images, lambda: training_batches(config, train),
                                      lambda: right_answers(model, test), progress)
    refitted = _compared(right_refitted)
    refitted["changed"]["learned"] = _lost_and_gained(right["learned"], right_refitted["learned"])
    refitted["augmented"] = is_augmented(config, len(train))
    return _compared(right) | {"images": len(test), "refitted": refitted}


def _compared(right: dict[str, Tensor]) -> dict[str, Any]:
    """The accuracies, and what each intervention changed against the net as learned."""
    accuracies = {how: answers.double().mean().item() for how, answers in right.items()}
    return accuracies | {"changed": {how: _lost_and_gained(right["learned"], right[how])
                                     for how in INTERVENTIONS}}


def _lost_and_gained(before: Tensor, after: Tensor) -> list[int]:
    """How many answers, of boolean (images,), were right before alone, and after alone."""
    return [int((before & ~after).sum()), int((~before & after).sum())]


def standard_error(lost: int, gained: int, images: int) -> float:
    """Of the change in accuracy, (gained - lost) / images, over the choice of the images.

    Only the answers that changed sides contribute.
    """
    return math.sqrt(max(0.0, lost + gained - (gained - lost) ** 2 / images)) / images
