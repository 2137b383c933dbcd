"""Two ways to look at what a layer attention chose: record its weights, and take its choices away.

They know no host: a model is any module whose `stages` are lists of blocks with a `layer_attention` each.
"""

from contextlib import contextmanager

import torch
from torch import nn

from mrla_minimal.shapes import check_choice


def _weight_points(model):
    """[stage][t - 1]: the Identity that layer t's weights pass through, or None where its attention has no weights."""
    if not hasattr(model, "stages"):
        raise ValueError(f"model must have stages of blocks, as this package's nets do, not be a {type(model).__name__}")
    points = [[getattr(getattr(block, "layer_attention", None), "weights", None) for block in stage] for stage in model.stages]
    return [[point if isinstance(point, nn.Module) else None for point in row] for row in points]


@contextmanager
def record_attention(model):
    """with record_attention(model) as weights: model(images) fills weights[stage][t - 1] with layer t's attention weights.

    Each is a detached (batch, heads, t) tensor of the latest forward pass, (batch, heads, 1) for a gate, and None where the
    module has no weights. Weights frozen by `freeze_attention` are recorded as frozen if that was entered first.
    """
    points = _weight_points(model)
    recorded = [[None] * len(stage) for stage in points]
    hooks = []

    def keep(stage, layer):
        def hook(module, inputs, output):
            recorded[stage][layer] = output.detach()
        return hook

    try:
        for stage, row in enumerate(points):
            for layer, point in enumerate(row):
                if point is not None:
                    hooks.append(point.register_forward_hook(keep(stage, layer)))
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _looked_at(model):
    """Record the weights of a model that is neither trained nor changed by being looked at: evaluation mode, no gradients."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), record_attention(model) as recorded:
            yield recorded
    finally:
        for module, mode in modes:
            module.training = mode


def _mean_weights(model, images, batch_size=500):
    """[stage][t - 1]: the mean over `images` of the weights, (1, heads, t), in evaluation mode; None where there are none."""
    sums = [[None] * len(stage) for stage in model.stages]
    with _looked_at(model) as recorded:
        for start in range(0, len(images), batch_size):
            model(images[start : start + batch_size])
            for stage, row in enumerate(recorded):
                for layer, weights in enumerate(row):
                    if weights is not None:
                        total = weights.sum(dim=0, keepdim=True)
                        sums[stage][layer] = total if sums[stage][layer] is None else sums[stage][layer] + total
    return [[total if total is None else total / len(images) for total in row] for row in sums]


@contextmanager
def freeze_attention(model, how, images=None):
    """with freeze_attention(model, how): model(images) runs with its attention's choices taken away.

    how = "mean"      every image gets the mean weights of its layer and head over `images` (needed)
          "shuffle"   every image gets the weights that another image of its batch has when left alone (a forward pass of its
                      own, in evaluation mode, finds them): one permutation, the same at all layers
          "uniform"   1 / t for each of t layers; a gate gets its layer's mean over `images` (then needed) and heads
    If accuracy stays, what the attention chooses per image did not matter. Hooks do the work: call the model, not its `forward`.
    Raises ValueError for another `how`, for a model without attention weights, and where images are needed and not given.
    """
    check_choice("how", how, ("mean", "shuffle", "uniform"))
    points = _weight_points(model)
    attentions = [[getattr(block, "layer_attention", None) for block in stage] for stage in model.stages]
    if not any(point is not None for row in points for point in row):
        raise ValueError("the model has no attention weights to freeze")
    gated = any(getattr(attention, "is_gate", False) for row in attentions for attention in row)
    means = None
    if how == "mean" or (how == "uniform" and gated):
        if images is None or len(images) == 0:
            raise ValueError(f"freezing at {how!r} needs images to take the mean weights over")
        means = _mean_weights(model, images)
    generator = torch.Generator().manual_seed(0)
    own, permutation, looking = None, None, False

    def look_first(model, arguments, named_arguments):
        # The weights of a shuffled pass would not do: from the second layer on they are of an image that is shuffled itself.
        nonlocal own, permutation, looking
        if not looking:
            looking = True
            try:
                with _looked_at(model) as own:
                    count = len(model(*arguments, **named_arguments))
            finally:
                looking = False
            order = torch.randperm(count, generator=generator)
            permutation = torch.empty_like(order)
            permutation[order] = order.roll(1)      # one cycle through the batch: nobody keeps its own

    def replace(stage, layer):
        def hook(module, inputs, weights):
            if looking:
                return weights
            if how == "shuffle":
                return own[stage][layer][permutation.to(weights.device)].to(weights.dtype)
            if how == "mean":
                return means[stage][layer].to(weights.dtype).expand_as(weights)
            if getattr(attentions[stage][layer], "is_gate", False):
                return means[stage][layer].mean().to(weights.dtype).expand_as(weights)
            return torch.full_like(weights, 1.0 / weights.shape[-1])
        return hook

    hooks = [model.register_forward_pre_hook(look_first, with_kwargs=True)] if how == "shuffle" else []
    try:
        for stage, row in enumerate(points):
            for layer, point in enumerate(row):
                if point is not None:
                    hooks.append(point.register_forward_hook(replace(stage, layer)))
        yield model
    finally:
        for hook in hooks:
            hook.remove()
