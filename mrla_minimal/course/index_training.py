"""Trains a small language model, then its indexers, and prices patterns: what 16's records are made of."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from mrla_minimal.course.seeds import seeded
from mrla_minimal.family.index_cache import averaged_loss, overlap, recorded, set_pattern
from mrla_minimal.family.language_model import TinyLanguageModel
from mrla_minimal.family.patterns import check_pattern, served_by
from mrla_minimal.shapes import check_choice, check_positive

Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]      # count, generator -> tokens, answers
Batches = list[tuple[Tensor, Tensor]]
SERVES = ("own", "all")
UNASKED = -100                          # where no answer is asked for: torch's cross entropy leaves it out


def drawn(draw: Draw, batches: int, count: int, generator: torch.Generator) -> Batches:
    """A list of fixed batches, to measure on."""
    return [draw(count, generator) for _ in range(batches)]


def train(model: TinyLanguageModel, draw: Draw, steps: int, batch: int, learning_rate: float,
          generator: torch.Generator) -> list[float]:
    """Train all but the indexers, with the pattern that the model has; returns each step's loss.

    AdamW; the learning rate rises over 50 steps, stays, and falls to 0 over the last three tenths.
    draw(batch, generator) gives tokens (batch, tokens) and as many answers.
    """
    parameters = [part for name, part in model.named_parameters() if ".indexer." not in name]

    def loss_of(tokens: Tensor, answers: Tensor) -> Tensor:
        return F.cross_entropy(model(tokens).flatten(0, 1), answers.flatten())

    return _descend(parameters, loss_of, draw, steps, batch, learning_rate, generator)


def distil(model: TinyLanguageModel, draw: Draw, pattern: str, steps: int, batch: int, learning_rate: float,
           generator: torch.Generator, serves: str = "own") -> list[float]:
    """Train the indexers of a pattern's F layers towards what the dense model attends to; the rest is frozen.

    serves: "own", a layer's own weights; "all", the mean of the weights of all layers that use its set, which
    has the gradient of the multi-layer loss. Returns each step's loss, summed over the F layers, and leaves
    the model with this pattern. Raises ValueError for another `serves`, and as `check_pattern` does, before
    it changes anything.
    """
    check_pattern(pattern, len(model.layers))
    check_choice("serves", serves, SERVES)
    served = {layer: users if serves == "all" else [layer] for layer, users in served_by(pattern).items()}
    indexers = [model.layers[layer].attention.indexer for layer in served]
    set_pattern(model, "F" * len(model.layers), "all")                      # dense

    def loss_of(tokens: Tensor, answers: Tensor) -> Tensor:
        with torch.no_grad(), recorded(model) as seen:
            model(tokens)
        losses = []
        for indexer, (layer, users) in zip(indexers, served.items(), strict=True):
            scores = indexer(seen[layer]["input"])                          # (batch, tokens, tokens)
            losses.append(averaged_loss(scores, [seen[user]["weights"] for user in users]))
        return sum(losses)

    parameters = nn.ModuleList(indexers).parameters()
    losses = _descend(parameters, loss_of, draw, steps, batch, learning_rate, generator)
    set_pattern(model, pattern)
    return losses


def measure(model: TinyLanguageModel, batches: Batches) -> dict[str, float]:
    """{"loss", "accuracy"} over all answers of some batches, each as the mean over the batches."""
    losses, accuracies = [], []
    with torch.no_grad():
        for tokens, answers in batches:
            logits = model(tokens)
            losses.append(F.cross_entropy(logits.flatten(0, 1), answers.flatten()).item())
            right = logits.argmax(dim=-1) == answers
            accuracies.append((right.sum() / (answers >= 0).sum()).item())
    return {"loss": sum(losses) / len(losses), "accuracy": sum(accuracies) / len(accuracies)}


def price(model: TinyLanguageModel, pattern: str, batches: Batches,
          chosen_by: str = "indexer") -> dict[str, float]:
    """`measure` with a pattern, and with F layers that choose in some way; random ones always alike."""
    set_pattern(model, pattern, chosen_by)
    with seeded(0):
        return measure(model, batches)


def overlaps(model: TinyLanguageModel, tokens: Tensor) -> list[list[float]]:
    """`overlap` of every two layers' sets, all layers F: a row and a column a layer."""
    set_pattern(model, "F" * len(model.layers))
    with torch.no_grad(), recorded(model) as seen:
        model(tokens)
    sets = [of_layer["positions"] for of_layer in seen]
    return [[overlap(first, second) for second in sets] for first in sets]


def fresh_indexers(model: TinyLanguageModel, seed: int) -> None:
    """Draw all indexers anew, as they are in a new model."""
    with seeded(seed):
        for layer in model.layers:
            for part in layer.attention.indexer.children():
                part.reset_parameters()


def _descend(parameters: Iterable[nn.Parameter], loss_of: Callable[[Tensor, Tensor], Tensor], draw: Draw,
             steps: int, batch: int, learning_rate: float, generator: torch.Generator) -> list[float]:
    check_positive("steps", steps)
    optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01)
    schedule = LambdaLR(optimiser, lambda step: min(1.0, (step + 1) / 50, (steps - step) / (0.3 * steps)))
    losses = []
    for _ in range(steps):
        loss = loss_of(*draw(batch, generator))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return losses
