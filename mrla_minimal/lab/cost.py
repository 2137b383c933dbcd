"""What a model costs: parameters, multiply-adds, the activations that training keeps, and the time of one step.

The first two are exact and the same everywhere; saved bytes are exact for one way of writing the model down. A step
time is true of one machine at one moment, so tables show only the ratio of two of them.
"""

import time
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mrla_minimal.channel_attention import EfficientChannelAttention, SqueezeExcitation
from mrla_minimal.controls import DepthwiseCarry, DepthwiseGated, DepthwiseValue, UniformMean
from mrla_minimal.lab.own import is_own, load_attention, short_name, with_sum
from mrla_minimal.layer_attention import LayerAttention, MRLABase, MRLALight
from mrla_minimal.resnet import CHANNEL_ATTENTIONS, LAYER_ATTENTIONS, cifar_resnet, imagenet_resnet

BATCH = 32      # images behind the saved activations and the step times of a table

# How many (channels, height, width) maps of products one call makes, beyond convolutions, linear maps and q.k.
# First by the convention (the sums over the cached layers, once there is more than one), then the others.
MAPS_OF_PRODUCTS = {
    LayerAttention: lambda layers: (layers, 0) if layers > 1 else (0, 1),
    MRLABase: lambda layers: (layers, 0) if layers > 1 else (0, 1),
    MRLALight: lambda layers: (0, 2),                   # gate * v, lambda * carried
    DepthwiseValue: lambda layers: (0, 0),
    DepthwiseGated: lambda layers: (0, 1),
    DepthwiseCarry: lambda layers: (0, 1),
    UniformMean: lambda layers: (0, 1),                 # a sum is no product, its division by t is
    SqueezeExcitation: lambda layers: (0, 1),
    EfficientChannelAttention: lambda layers: (0, 1),
}


@contextmanager
def undisturbed(model, training, device):
    """Train or evaluate `model` inside; afterwards its modes, buffers, gradients and the random state are as before."""
    module = model if isinstance(model, nn.Module) else nn.Module()     # a plain function has nothing to put back
    modes = [(part, part.training) for part in module.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            module.train(training)
            for parameter, _ in gradients:
                parameter.grad = None       # a backward pass would add to it in place
            yield
        finally:
            for part, mode in modes:
                part.training = mode
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
            for parameter, gradient in gradients:
                parameter.grad = gradient


def count_parameters(model):
    """How many numbers the model learns; one that is shared counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _attention_products(attention, x, memory, every_product):
    """Multiply-adds of one call for one image: its q.k and its products of maps, not its convolutions."""
    _, channels, height, width = x.shape
    layers = len(memory) if isinstance(memory, list) else 1
    counted, others = next(rule for kind, rule in MAPS_OF_PRODUCTS.items() if isinstance(attention, kind))(layers)
    query_key = layers * channels if hasattr(attention, "query") else 0
    return query_key + (counted + others * every_product) * channels * height * width


def count_macs(model, image_size, every_product=False):
    """Multiply-adds of one forward pass for one image of (3, image_size, image_size).

    Counted: convolutions, linear maps, each q.k, and the weighted sums of MRLABase and LayerAttention over two or more
    layers. With `every_product` also the maps that any attention of this package scales: gates, lambdas, the one weight
    of a first layer, a mean's division. Never counted: norms, pooling, additions, and what a module from elsewhere
    multiplies map by map. The model may be on any device, meta included, and is left as it was.
    Raises ValueError for an image_size that is no positive integer.
    """
    if not isinstance(image_size, int) or isinstance(image_size, bool) or image_size < 1:
        raise ValueError(f"image_size must be a positive integer (pixels a side), not {image_size!r}")
    like = next(model.parameters())
    image = torch.zeros(1, 3, image_size, image_size, dtype=like.dtype, device=like.device)
    counter = FlopCounterMode(display=False)
    products, seen, hooks = [], [], []

    # torch's counter sees convolutions and matrix products, and never a broadcast product. Whether it sees a q.k
    # depends on how that was written (a sum of products, or an einsum, which is a matrix product unless heads are one
    # channel wide). So attentions are counted by formula, and the matrix products seen inside them are taken back.
    def matrix_products():
        return counter.get_flop_counts()["Global"].get(torch.ops.aten.bmm, 0) // 2

    def enter(attention, inputs):
        seen.append(-matrix_products())

    def leave(attention, inputs, output):
        seen.append(matrix_products())
        memory = output[1] if isinstance(output, tuple) else None
        products.append(_attention_products(attention, inputs[0], memory, every_product))

    try:
        for module in model.modules():
            if isinstance(module, tuple(MAPS_OF_PRODUCTS)):
                hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        with undisturbed(model, training=False, device=image.device), torch.no_grad(), counter:
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return counter.get_total_flops() // 2 - sum(seen) + sum(products)      # torch counts a multiply-add as two


def saved_activation_bytes(model, images):
    """Bytes that autograd keeps between the forward and the backward pass of model(images), in training mode.

    Each storage counts once, however many operations keep it or a view of it. Parameters and buffers do not count, the
    images do. `model` may be any callable; it is left as it was (of one that is no Module, buffers are not known).
    Raises ValueError for images on the meta device.
    """
    if images.device.type == "meta":
        raise ValueError("images must be on a device with memory, not on meta: storages are told apart by address")
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    known = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        owner = tensor if tensor._base is None else tensor._base
        if not isinstance(owner, nn.Parameter) and storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage      # holding it: its address is not given out again while we count
        return tensor.detach()                      # not the tensor itself, which would own the graph that owns it

    with (undisturbed(model, training=True, device=images.device), torch.enable_grad(),
          torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)):
        model(images)
    return sum(storage.nbytes() for storage in kept.values())


def _one_step(model, images):
    """Seconds of one forward and backward pass, until the device is done."""
    accelerator = {"cuda": torch.cuda, "mps": torch.mps}.get(images.device.type)
    with undisturbed(model, training=True, device=images.device), torch.enable_grad():
        if accelerator:
            accelerator.synchronize()
        start = time.perf_counter()
        output = model(images)
        (output[0] if isinstance(output, tuple) else output).sum().backward()
        if accelerator:
            accelerator.synchronize()
        return time.perf_counter() - start


def step_times(models, images, repeats=7, warm_up=2):
    """Seconds of `repeats` training steps (forward + backward) of each model: a list for each, taken in turns.

    In turns, whatever else the machine does falls on all of them alike: trust the ratio of two times of one round.
    `warm_up` untimed rounds come first. The models are left as they were.
    Raises ValueError if repeats < 1 or warm_up < 0.
    """
    if repeats < 1 or warm_up < 0:
        raise ValueError(f"repeats must be at least 1 and warm_up at least 0, not {repeats!r} and {warm_up!r}")
    rounds = [[_one_step(model, images) for model in models] for _ in range(warm_up + repeats)]
    return [list(times) for times in zip(*rounds[warm_up:], strict=True)]


def step_time(model, images, repeats=7, warm_up=2):
    """Seconds of one training step of model(images), forward + backward, without optimiser: the median of `repeats`."""
    return median(step_times([model], images, repeats, warm_up)[0])


@dataclass(frozen=True)
class CostRow:
    """What one model costs, and how much more than the one it is compared with; None was not measured."""

    name: str
    parameters: int
    extra_parameters: int
    macs: int                           # of one image
    extra_macs: int
    saved_bytes: int | None = None      # of a batch
    time_ratio: float | None = None     # of its step time to the other's


def cost_table(models, image_size, images=None, measure=False):
    """A CostRow for each of `models` (name -> model), compared with the first.

    Saved activations need `images` (batch, 3, image_size, image_size); step times are taken if `measure` is set too.
    """
    plain = next(iter(models.values()))
    plain_parameters, plain_macs = count_parameters(plain), count_macs(plain, image_size)
    times = step_times(list(models.values()), images) if measure else [None] * len(models)
    rows = []
    for (name, model), own_times in zip(models.items(), times, strict=True):
        parameters, macs = count_parameters(model), count_macs(model, image_size)
        saved = None if images is None else saved_activation_bytes(model, images)
        ratio = median(own / other for own, other in zip(own_times, times[0], strict=True)) if measure else None
        rows.append(CostRow(name, parameters, parameters - plain_parameters, macs, macs - plain_macs, saved, ratio))
    return rows


def format_table(rows, unit="M"):
    """The rows as text in columns, multiply-adds in millions ("M") or billions ("G"), without columns not measured."""
    scale, digits = {"M": (1e6, 2), "G": (1e9, 4)}[unit]
    columns = [("", [row.name for row in rows]),
               ("parameters", [f"{row.parameters:,}" for row in rows]),
               ("+", [f"{row.extra_parameters:+,}" for row in rows]),
               (f"MACs ({unit})", [f"{row.macs / scale:.{digits}f}" for row in rows]),
               ("+", [f"{row.extra_macs / scale:+.{digits}f}" for row in rows])]
    if rows[0].saved_bytes is not None:
        columns.append(("saved (MiB)", [f"{row.saved_bytes / 2**20:.1f}" for row in rows]))
    if rows[0].time_ratio is not None:
        columns.append(("step time", [f"x {row.time_ratio:.2f}" for row in rows]))
    aligned = []
    for title, cells in columns:
        width = max(len(cell) for cell in [title, *cells])
        aligned.append([cell.rjust(width) if title else cell.ljust(width) for cell in [title, *cells]])
    return "\n".join("  ".join(line) for line in zip(*aligned, strict=True))


def cost_text(variants=None, depth=20, block="basic", width=16, image_size=32, measure=False):
    """What `mrla cost` prints: CIFAR ResNets with each of `variants`, below the plain net.

    A variant is the name of a layer attention, also of one in a file of your own (FILE.py, FILE.py:CLASS), or of a channel
    attention ("se", "eca"); None stands for all that the library has.
    With `measure` step times are taken too, which needs some seconds. Raises ValueError for a name that is none.
    """
    places = dict.fromkeys(LAYER_ATTENTIONS, "layer_attention") | dict.fromkeys(CHANNEL_ATTENTIONS, "channel_attention")
    models = {"plain": cifar_resnet(depth, block=block, width=width)}
    for name in places if variants is None else variants:
        if is_own(name):
            label = short_name(name) if short_name(name) not in models else name
            models[label] = cifar_resnet(depth, block=block, width=width, layer_attention=load_attention(with_sum(name)))
            continue
        if name not in places:
            raise ValueError(f"a variant must be one of {', '.join(map(repr, places))}, or FILE.py or FILE.py:CLASS, not {name!r}")
        models[name] = cifar_resnet(depth, block=block, width=width, **{places[name]: name})
    images = torch.randn(BATCH, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    lines = [f"ResNet-{depth} for {image_size} x {image_size} images, {block} blocks, width {width}, 10 classes", "",
             format_table(cost_table(models, image_size, images, measure)), "",
             f"MACs: multiply-adds of one image. Saved: what autograd keeps for the backward pass of {BATCH} images.",
             "The paper's claim, for another net: a ResNet-50 and +0.16 M parameters, +0.07 B FLOPs; mrla cost --paper counts that one."]
    if any(map(is_own, variants or ())):
        lines.append("MACs of your own attention: its convolutions and linear maps, not what it multiplies map by map.")
    if measure:
        lines += [f"Step time: forward + backward of {BATCH} images over that of plain, here and now, on the CPU with",
                  f"torch.get_num_threads() = {torch.get_num_threads()}; another machine gives another ratio."]
    return "\n".join(lines)


PAPER_MODELS = {
    50: {"ResNet-50": {},
         "+ SE": {"channel_attention": "se"},
         "+ ECA": {"channel_attention": "eca"},
         "+ MRLA-light": {"layer_attention": "mrla-light"},
         "+ MRLA-base": {"layer_attention": "mrla-base"},
         "+ MRLA-base, deep stem": {"layer_attention": "mrla-base", "stem": "deep"},
         "+ layer attention (Eq. 4)": {"layer_attention": "layer"},
         "+ depthwise control": {"layer_attention": "depthwise"}},
    101: {"ResNet-101": {},
          "+ MRLA-light": {"layer_attention": "mrla-light"}},
}


def paper_table():
    """[CostRow] of ResNet-50 and ResNet-101 at 224 x 224, each compared with its plain net."""
    rows = []
    with torch.device("meta"):      # nets of shapes alone, without numbers: enough to count, and no memory
        for depth, variants in PAPER_MODELS.items():
            models = {name: imagenet_resnet(depth, **options) for name, options in variants.items()}
            rows += cost_table(models, image_size=224)
    return rows


def paper_text():
    """What `mrla cost --paper` prints: paper_table, the paper's claim beside it, and why the two differ."""
    rows = paper_table()
    plain, added = rows[0], next(row for row in rows if row.name == "+ MRLA-light")
    with torch.device("meta"):
        light = imagenet_resnet(50, layer_attention="mrla-light")
    every_product = count_macs(light, 224, every_product=True)
    channels = sum(block.channels for stage in light.stages for block in stage)     # of all lambda_o, and of all q.k
    elements = (every_product - added.macs) // 2        # of all attended maps: light scales each twice
    by_modules = added.extra_macs - channels + 3 * elements
    return "\n".join([
        "ResNets for 224 x 224 images, 1000 classes. MACs are multiply-adds, which many papers call FLOPs.", "",
        format_table(rows, "G"), "",
        "The paper's claim for ResNet-50: +0.16 M parameters, +0.07 B FLOPs.",
        f"MRLA-light really adds {added.extra_parameters / 1e6:.3f} M and {added.extra_macs / 1e9:.3f} G, or "
        f"{(every_product - plain.macs) / 1e9:.3f} G with its gate and lambda products.",
        "A counter that goes module by module, like the thop of its day, never meets lambda_o, a bare parameter of",
        f"{channels:,} numbers in all, and reports +{(added.extra_parameters - channels) / 1e6:.3f} M. It misses "
        "products outside modules as well, but counts",
        f"two operations an element for a norm and one for a pooling, and so reports +{by_modules / 1e9:.3f} G."])
