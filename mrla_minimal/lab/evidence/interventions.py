"""Does it matter what an attention chooses? One trained net, the same images, with its choices taken away."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mrla_minimal.lab.cost import undisturbed
from mrla_minimal.lab.data import Cifar, Split, normalise
from mrla_minimal.lab.engine.run import TrainingDiverged
from mrla_minimal.looking import freeze_attention

INTERVENTIONS = ("mean", "shuffle", "uniform")      # as in freeze_attention
REFITTED = ("learned", "uniform")                   # what is tested with its norms taken anew, too
# Training images. Their order comes from a hash of their pixels, so the first ones are a random sample.
MEAN_OVER = 5000
BATCH = 500


def chooses(model: nn.Module) -> bool:
    """Whether any layer attention of the model weighs layers, or gates, by what it sees."""
    return any(isinstance(getattr(block.layer_attention, "weights", None), nn.Module)
               for stage in model.stages for block in stage)


@contextmanager
def refitted_norms(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Within it, every batch norm has the mean and variance that `images` now give; afterwards its own.

    images: (N, channels, height, width), normalised. A net whose attention is changed after training feeds
    its batch norms what they were not trained on. This takes that part of the damage away: no weight is
    changed, only these statistics are (averaged over batches of 500). The model is in evaluation mode inside.
    Raises ValueError without images.
    """
    if len(images) == 0:
        raise ValueError("refitting norms needs images")
    norms = [module for module in model.modules()
             if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    # torch's own update_bn would put all of the net in training mode, drop_path too, and keep what it found.
    with undisturbed(model, False, images.device):
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None        # a plain average over the batches
                norm.train()
            with torch.no_grad():
                for batch in images.split(BATCH):
                    model(batch)
            model.eval()
            yield
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


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


def intervene(model: nn.Module, data: Cifar, mean_over: int = MEAN_OVER,
              progress: bool = False) -> dict[str, Any] | None:
    """Test accuracies (fractions of 1) of a trained model with its attention's choices taken away.

    None if it chooses nothing. Otherwise

    learned   as trained, in float32
    mean      each layer and head has its mean weights over the first `mean_over` training images
    shuffle   each test image gets the weights of another one of its batch of 500
    uniform   1 / t for each of t layers; a gate has its layer's mean over those images and over heads
    learned_refitted, uniform_refitted      the same two after `refitted_norms` on those training images
    changed   {mean, shuffle, uniform, uniform_refitted: [right answers lost, gained]}, against learned,
              uniform_refitted against learned_refitted
    images    how many test images there were

    The test set is opened six times, and nothing is chosen by it. `progress` shows a bar of these six.
    Raises TrainingDiverged, as `right_answers`.
    """
    if not chooses(model):
        return None
    device = next(model.parameters()).device
    test = data.test.to(device)
    images = normalise(data.train.images[:mean_over].to(device))     # (mean_over, channels, height, width)
    passes = [(how, False) for how in ("learned", *INTERVENTIONS)] + [(how, True) for how in REFITTED]
    right = {}
    for how, refit in tqdm(passes, disable=not progress, unit="test", desc="interventions", leave=False):
        with ExitStack() as changes:
            if how != "learned":
                changes.enter_context(freeze_attention(model, how, images))
            if refit:
                changes.enter_context(refitted_norms(model, images))
            right[f"{how}_refitted" if refit else how] = right_answers(model, test)
    against = dict.fromkeys(INTERVENTIONS, "learned") | {"uniform_refitted": "learned_refitted"}
    changed = {how: [int((right[base] & ~right[how]).sum()), int((~right[base] & right[how]).sum())]
               for how, base in against.items()}
    accuracies = {how: answers.double().mean().item() for how, answers in right.items()}
    return accuracies | {"changed": changed, "images": len(test)}


def standard_error(lost: int, gained: int, images: int) -> float:
    """Of the change in accuracy, (gained - lost) / images, over the choice of the images.

    Only the answers that changed sides contribute.
    """
    return math.sqrt(max(0.0, lost + gained - (gained - lost) ** 2 / images)) / images
