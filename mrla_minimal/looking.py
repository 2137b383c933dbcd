"""Two ways to look at what a layer attention chose: record its weights, and take its choices away.

A model is any module whose `stages` are lists of blocks with a `layer_attention` each. An
attention shows its weights by an nn.Identity named `weights` that they pass through (`layer_attention.py`).
Forward hooks on these do the work, so call the model, not its `forward`. A copy of the model made inside a
context is an ordinary model of its own. Hooks cannot be pickled: inside a context, save the model's
state_dict(), or save the model itself outside of it.

A compiled model is refused, because torch.compile leaves out hooks that come later. If `compiled =
torch.compile(model)` was made before, look at `model` and call `model`: `compiled` shows nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.hooks import RemovableHandle

from mrla_minimal.shapes import check_choice, in_backward_pass

Weights = list[list[Tensor | None]]                 # [stage][t - 1]: those of layer t, None if it has none
OnWeights = Callable[[int, int, Tensor], Tensor | None]     # stage, layer t - 1, weights


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[nn.Module]:
    """with in_evaluation(model): it runs in evaluation mode; then each of its modules gets its mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def record_attention(model: nn.Module) -> Iterator[Weights]:
    """with record_attention(model) as weights: model(images) fills weights[stage][t - 1] with layer t's.

    Each is a detached (batch, heads, t) tensor of the latest forward pass, (batch, heads, 1) for a gate, and
    None where the module has no weights. Weights frozen by `freeze_attention` are recorded as frozen if that
    was entered first.

    Raises ValueError for a model that is compiled, or that has no stages of blocks.
    """
    net = _net_of(model)
    recorded = [[None] * len(stage) for stage in net.stages]

    def keep(stage: int, layer: int, weights: Tensor) -> None:
        recorded[stage][layer] = weights.detach()

    hooks = _hook_weights(net, keep)
    try:
        yield recorded
    finally:
        _remove(hooks)


@contextmanager
def freeze_attention(model: nn.Module, how: str, images: Tensor | None = None,
                     original: nn.Module | None = None) -> Iterator[nn.Module]:
    """with freeze_attention(model, how): model(images) runs with its attention's choices taken away.

    how = "mean"      every image gets the mean weights of its layer and head over `images` (needed)
          "shuffle"   every image gets the weights that another image of its batch has when left alone (a
                      forward pass of its own, in evaluation mode, finds them): one permutation, the same at
                      all layers; of a batch of one image, its own. That pass is one of `original`, or of the
                      model itself: give a copy of it if inside the context the model is changed further
          "uniform"   1 / t for each of t layers; a gate gets its layer's mean over `images` (then needed)
                      and heads

    If accuracy stays, what the attention chooses per image did not matter.

    Raises ValueError for another `how`, for a model that is compiled or has no attention weights, and where
    images are needed and not given.
    """
    check_choice("how", how, ("mean", "shuffle", "uniform"))
    net = _net_of(model)
    if not _places(net):
        raise ValueError("the model has no attention weights to freeze")
    if how == "shuffle":
        hooks = _hook_shuffling(net, net if original is None else _net_of(original))
    else:
        hooks = _hook_weights(net, _constant_weights(net, how, images))
    try:
        yield model
    finally:
        _remove(hooks)


def _net_of(model: nn.Module) -> nn.Module:
    """The net itself: inside AveragedModel, DataParallel or DistributedDataParallel, if in one of them."""
    for module in model.modules():
        if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
            raise ValueError("a compiled model runs without hooks, so its attention can be neither recorded "
                             "nor frozen: give the model as it was before torch.compile")
    while isinstance(model, (AveragedModel, nn.DataParallel, nn.parallel.DistributedDataParallel)):
        if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
            raise ValueError("DataParallel runs copies of the model, which show nothing: "
                             "give its `module`, and call that")
        model = model.module
    if not hasattr(model, "stages"):
        raise ValueError(f"model must have stages of blocks, as this package's nets do, "
                         f"not be a {type(model).__name__}")
    return model


def _attention_of(block: nn.Module) -> nn.Module | None:
    return getattr(block, "layer_attention", None)


def _places(net: nn.Module) -> dict[nn.Identity, list[tuple[int, int]]]:
    """Each Identity that weights pass through, with the layers (stage, t - 1) that it serves.

    These are several where blocks share one attention.
    """
    places = {}
    for stage, blocks in enumerate(net.stages):
        for layer, block in enumerate(blocks):
            point = getattr(_attention_of(block), "weights", None)
            if isinstance(point, nn.Identity):
                places.setdefault(point, []).append((stage, layer))
    return places


def _hook_weights(net: nn.Module, act: OnWeights) -> list[RemovableHandle]:
    """Call act(stage, layer, weights) whenever weights pass; what it returns, unless None, replaces them.

    Where blocks share one attention, the block that is running says which layer is asking; outside of it, or
    of a block that stands in several places, the number of its calls in this forward pass does. Checkpointing
    runs a block again in the backward pass, last one first: there a number would be wrong, and ValueError
    is raised.
    """
    places = _places(net)
    calls = dict.fromkeys(places, 0)
    layer_of, twice = {}, set()
    for stage, blocks in enumerate(net.stages):
        for layer, block in enumerate(blocks):
            if block in layer_of:
                twice.add(block)
            layer_of[block] = stage, layer
    shared = {place for served in places.values() if len(served) > 1 for place in served}
    telling = [block for block, place in layer_of.items() if place in shared and block not in twice]
    running = None

    def begin(module, arguments):
        nonlocal running
        if module is net:                   # not a copy of it, whose hooks these are as well
            running = None
            calls.update(dict.fromkeys(calls, 0))

    def enter(block, arguments):
        nonlocal running
        if block in layer_of:
            running = layer_of[block]

    def leave(block, arguments, output):
        nonlocal running
        running = None

    def pass_through(point, arguments, weights):
        if point not in places:
            return None
        served = places[point]
        if len(served) == 1:
            return act(*served[0], weights)
        if running in served:
            place = running
        elif in_backward_pass():
            raise ValueError("blocks share this attention, which a backward pass runs again outside of its "
                             "block: which layer is asking cannot be told; checkpoint whole blocks, each a "
                             "module of its own")
        else:
            place = served[calls[point] % len(served)]
        if not in_backward_pass():
            calls[point] += 1
        return act(*place, weights)

    return [net.register_forward_pre_hook(begin),
            *(block.register_forward_pre_hook(enter) for block in telling),
            *(block.register_forward_hook(leave, always_call=True) for block in telling),
            *(point.register_forward_hook(pass_through) for point in places)]


def _remove(hooks: list[RemovableHandle]) -> None:
    for hook in hooks:
        hook.remove()


def _constant_weights(net: nn.Module, how: str, images: Tensor | None) -> OnWeights:
    """What puts the same weights in for every image: "mean" or "uniform" of `freeze_attention`."""
    is_gate = [[getattr(_attention_of(block), "is_gate", False) for block in stage] for stage in net.stages]
    means = None
    if how == "mean" or any(map(any, is_gate)):
        if images is None or len(images) == 0:
            raise ValueError(f"freezing at {how!r} needs images to take the mean weights over")
        means = _mean_weights(net, images)

    def replace(stage: int, layer: int, weights: Tensor) -> Tensor:
        if how == "mean":
            return means[stage][layer].to(weights.dtype).expand_as(weights)
        if is_gate[stage][layer]:
            return means[stage][layer].mean().to(weights.dtype).expand_as(weights)
        return torch.full_like(weights, 1.0 / weights.shape[-1])

    return replace


def _mean_weights(net: nn.Module, images: Tensor, batch_size: int = 500) -> Weights:
    """The mean over `images` of each layer's weights, (1, heads, t), in evaluation mode.

    Added up in float32: the sum of some hundred bfloat16 gates has no digit left for the next one.
    """
    sums = [[0.0] * len(stage) for stage in net.stages]
    with torch.no_grad(), in_evaluation(net), record_attention(net) as recorded:
        for start in range(0, len(images), batch_size):
            net(images[start : start + batch_size])
            for stage, row in enumerate(recorded):
                for layer, weights in enumerate(row):
                    if weights is not None:
                        wide = torch.promote_types(weights.dtype, torch.float32)
                        sums[stage][layer] = sums[stage][layer] + weights.sum(dim=0, keepdim=True, dtype=wide)
    return [[total / len(images) for total in row] for row in sums]


def _hook_shuffling(net: nn.Module, original: nn.Module) -> list[RemovableHandle]:
    """Find, before each forward pass, the weights of images left alone; then give each image another one's.

    The weights of a shuffled pass would not do: from the second layer on they are of a shuffled image.
    """
    generator = torch.Generator(device="cpu").manual_seed(0)
    own, permutation, looking = None, None, False

    def look_first(module, arguments, named_arguments):
        nonlocal own, permutation, looking
        if looking or module is not net:
            return
        looking = True
        try:
            with torch.no_grad(), in_evaluation(original), record_attention(original) as own:
                original(*arguments, **named_arguments)
        finally:
            looking = False
        count = next(len(weights) for row in own for weights in row if weights is not None)
        order = torch.randperm(count, generator=generator, device="cpu")
        permutation = torch.empty_like(order)
        permutation[order] = order.roll(1)      # one cycle: none of two or more keeps its own

    def replace(stage: int, layer: int, weights: Tensor) -> Tensor | None:
        if looking:
            return None
        return own[stage][layer][permutation.to(weights.device)].to(weights.dtype)

    return [net.register_forward_pre_hook(look_first, with_kwargs=True), *_hook_weights(net, replace)]
