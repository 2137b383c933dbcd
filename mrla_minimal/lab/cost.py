"""What a model costs: parameters, multiply-adds, the activations that training keeps, the time of a step.

The first two are exact and the same everywhere; saved bytes are exact for one way of writing the model down.
A step time is true of one machine at one moment, so tables show only the ratio of two of them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from statistics import median

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mrla_minimal.channel_attention import EfficientChannelAttention, SqueezeExcitation
from mrla_minimal.controls import DepthwiseCarry, DepthwiseGated, DepthwiseValue, UniformMean
from mrla_minimal.family.depth_weights import (
    AttentionResiduals,
    BlockAttentionResiduals,
    DenseFormer,
    KeyCorrelatedAttention,
    MUDDFormer,
)
from mrla_minimal.family.dynamic import DLABase, DLALight
from mrla_minimal.family.sideways import SidewaysAttention
from mrla_minimal.lab.timing import take_turns
from mrla_minimal.layer_attention import LayerAttention, MRLABase, MRLALight
from mrla_minimal.looking import in_evaluation
from mrla_minimal.shapes import check_positive

Model = nn.Module | Callable[[torch.Tensor], torch.Tensor]

# How many (channels, height, width) maps of products one call makes, beyond convolutions, linear maps, q.k.
# First by the convention (the sums over the cached layers, once there is more than one), then the others.
# An attention with several `keys` a layer is asked for all of its readings.
# A class derived from one of these counts like it; the first that fits, counts.
MAPS_OF_PRODUCTS: dict[type[nn.Module], Callable[[int], tuple[int, int]]] = {
    DLABase: lambda layers: (layers, layers - 1) if layers > 1 else (0, 1),     # what it rewrites
    DLALight: lambda layers: (0, 3),                    # gate * v, lambda * carried, what it rewrites
    LayerAttention: lambda layers: (layers, 0) if layers > 1 else (0, 1),
    MRLABase: lambda layers: (layers, 0) if layers > 1 else (0, 1),
    MRLALight: lambda layers: (0, 2),                   # gate * v, lambda * carried
    DepthwiseValue: lambda layers: (0, 0),
    DepthwiseGated: lambda layers: (0, 1),
    DepthwiseCarry: lambda layers: (0, 1),
    **dict.fromkeys((DenseFormer, MUDDFormer, AttentionResiduals, BlockAttentionResiduals),
                    lambda layers: (layers, 0) if layers > 1 else (0, 1)),
    KeyCorrelatedAttention: lambda layers: (0, 2),      # gate * v, the share of what is new
    SidewaysAttention: lambda reads: (reads, 4 * reads),        # each reading lies between four pixels
    UniformMean: lambda layers: (0, 1),                 # a sum is no product, its division by t is
    SqueezeExcitation: lambda layers: (0, 1),
    EfficientChannelAttention: lambda layers: (0, 1),
}

# What runs in each of these, whatever their class, when they compute something themselves.
COMPUTING_PARTS = ("value", "excite", "convolution")


@contextmanager
def undisturbed(model: Model, training: bool, device: torch.device) -> Iterator[None]:
    """Train or evaluate `model` inside; then modes, buffers, gradients and random state are as before."""
    module = model if isinstance(model, nn.Module) else nn.Module()     # a function has nothing to restore
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), in_evaluation(module):
        try:
            module.train(training)
            for parameter, _ in gradients:
                parameter.grad = None       # a backward pass would add to it in place
            yield
        finally:
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
            for parameter, gradient in gradients:
                parameter.grad = gradient


# Parameters and multiply-adds

def count_parameters(model: nn.Module) -> int:
    """How many numbers the model learns; one that is shared counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _attention_products(attention, x, memory, every_product):
    """Multiply-adds of one call for one image: its q.k and its products of maps, not its convolutions."""
    _, channels, height, width = x.shape
    cache = memory[-1] if isinstance(memory, tuple) else memory         # beside DLA's context
    layers = len(cache) if isinstance(cache, list) else 1
    maps = next(rule for kind, rule in MAPS_OF_PRODUCTS.items() if isinstance(attention, kind))
    counted, others = maps(layers * getattr(attention, "keys", 1))
    query_key = layers * channels if hasattr(attention, "query") else 0
    return query_key + (counted + others * every_product) * channels * height * width


def _image_channels(model):
    """The channels that the model's first convolution takes; three if it has none."""
    return next((part.in_channels for part in model.modules() if isinstance(part, nn.Conv2d)), 3)


def count_macs(model: nn.Module, image_size: int, every_product: bool = False,
               in_channels: int | None = None) -> int:
    """Multiply-adds of one forward pass for one image of (in_channels, image_size, image_size).

    in_channels: None stands for what the model's first convolution takes. Counted: convolutions, linear maps,
    each q.k, and the weighted sums over two or more layers of MRLABase and its like. With
    `every_product` also the maps that any attention of this package scales: gates, lambdas, the one weight of
    a first layer, a mean's division. Never counted: norms, pooling, additions, and what a module from
    elsewhere multiplies map by map. The model may be on any device, meta included, and is left as it was.
    Raises ValueError for an image_size or in_channels that is no positive integer.
    """
    in_channels = _image_channels(model) if in_channels is None else in_channels
    check_positive("image_size", image_size)
    check_positive("in_channels", in_channels)
    like = next(model.parameters())
    image = torch.zeros(1, in_channels, image_size, image_size, dtype=like.dtype, device=like.device)
    counter = FlopCounterMode(display=False)
    products, seen, inside, hooks = [], [], [], []

    # torch's counter sees convolutions and matrix products, and never a broadcast product. Whether it sees a
    # q.k depends on how that was written (a sum of products, or an einsum, which is a matrix product unless
    # heads are one channel wide). So attentions are counted by formula, and the matrix products seen inside
    # them are taken back (once, where one attention calls another). One that only calls another has none of
    # its own: its own value convolution, or what a channel attention has in its place, did not run.
    def matrix_products():
        return counter.get_flop_counts().get("Global", {}).get(torch.ops.aten.bmm, 0) // 2

    def own_parts(attention):
        return [part for part in map(attention._modules.get, COMPUTING_PARTS) if part is not None]

    def enter(attention, inputs, named_inputs):
        for frame in inside:
            frame["calls another"] = True
        inside.append({"attention": attention, "before": matrix_products(), "calls another": False,
                       "computes": False})

    def compute(part, inputs):
        if inside and part in own_parts(inside[-1]["attention"]):
            inside[-1]["computes"] = True

    def leave(attention, inputs, named_inputs, output):
        frame = inside.pop()
        if not inside:
            seen.append(matrix_products() - frame["before"])
        if frame["calls another"] and not frame["computes"]:
            return
        x = inputs[0] if inputs else named_inputs["x"]
        memory = output[1] if isinstance(output, tuple) else None
        products.append(_attention_products(attention, x, memory, every_product))

    try:
        for module in model.modules():
            if isinstance(module, tuple(MAPS_OF_PRODUCTS)):
                hooks += [module.register_forward_pre_hook(enter, with_kwargs=True),
                          module.register_forward_hook(leave, with_kwargs=True),
                          *(part.register_forward_pre_hook(compute) for part in own_parts(module))]
        with undisturbed(model, training=False, device=image.device), torch.no_grad(), counter:
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    # torch counts a multiply-add as two
    return counter.get_total_flops() // 2 - sum(seen) + sum(products)


# Activations

def saved_activation_bytes(model: Model, images: torch.Tensor) -> int:
    """Bytes that autograd keeps between the forward and the backward pass of model(images), in training mode.

    Each storage counts once, however many operations keep it or a view of it. Parameters and buffers do not
    count, the images do. `model` may be any callable; it is left as it was (of one that is no Module, buffers
    are not known). Raises ValueError for images on the meta device.
    """
    if images.device.type == "meta":
        raise ValueError("images must be on a device with memory, not "
                         "on meta: storages are told apart by address")
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    known = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        owner = tensor if tensor._base is None else tensor._base
        if not isinstance(owner, nn.Parameter) and storage.data_ptr() not in known:
            # holding it: its address is not given out again while we count
            kept[storage.data_ptr()] = storage
        # not the tensor itself, which would own the graph that owns it
        return tensor.detach()

    with (undisturbed(model, training=True, device=images.device), torch.enable_grad(),
          torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)):
        model(images)
    return sum(storage.nbytes() for storage in kept.values())


# Time

def _step(model, images):
    """A function without arguments: one forward and backward pass, without optimiser."""
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []

    def step():
        for parameter in parameters:
            parameter.grad = None
        output = model(images)
        (output[0] if isinstance(output, tuple) else output).sum().backward()

    return step


def step_times(models: Sequence[Model], images: torch.Tensor, repeats: int = 7, warm_up: int = 2,
               progress: bool = False) -> list[list[float]]:
    """Seconds of `repeats` training steps (forward + backward) of each model: a list each, taken in turns.

    `warm_up` untimed rounds come first. The models are left as they were.
    Raises ValueError if repeats < 1 or warm_up < 0.
    """
    with ExitStack() as stack, torch.enable_grad():
        for model in models:
            stack.enter_context(undisturbed(model, training=True, device=images.device))
        steps = {number: _step(model, images) for number, model in enumerate(models)}
        return list(take_turns(steps, repeats, warm_up, images.device, progress).values())


def step_time(model: Model, images: torch.Tensor, repeats: int = 7, warm_up: int = 2) -> float:
    """Seconds of one training step, forward + backward, without optimiser: the median of `repeats`."""
    return median(step_times([model], images, repeats, warm_up)[0])
