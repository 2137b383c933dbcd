"""Tables of what models cost: `mrla cost`, and `mrla cost --paper` beside the paper's claim."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn

from mrla_minimal.hosting import CHANNEL_ATTENTIONS, FAMILY_ATTENTIONS, LAYER_ATTENTIONS
from mrla_minimal.lab.cost import count_macs, count_parameters, saved_activation_bytes, step_times
from mrla_minimal.lab.plugins import OwnAttention
from mrla_minimal.resnet import cifar_resnet, imagenet_resnet
from mrla_minimal.shapes import check_choice
from mrla_minimal.vit import cifar_vit, deit

BATCH = 32      # images behind the saved activations and the step times of a table


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


def cost_table(models: Mapping[str, nn.Module], image_size: int, images: torch.Tensor | None = None,
               measure: bool = False) -> list[CostRow]:
    """A CostRow for each of `models` (name -> model), compared with the first.

    Saved activations need `images` (batch, 3, image_size, image_size); step times are taken if `measure` is
    set too.
    """
    plain = next(iter(models.values()))
    plain_parameters, plain_macs = count_parameters(plain), count_macs(plain, image_size)
    times = step_times(list(models.values()), images) if measure else [None] * len(models)
    rows = []
    for (name, model), model_times in zip(models.items(), times, strict=True):
        parameters, macs = count_parameters(model), count_macs(model, image_size)
        saved = None if images is None else saved_activation_bytes(model, images)
        ratio = None
        if measure:
            ratio = median(seconds / plains for seconds, plains in zip(model_times, times[0], strict=True))
        extra_parameters, extra_macs = parameters - plain_parameters, macs - plain_macs
        rows.append(CostRow(name, parameters, extra_parameters, macs, extra_macs, saved, ratio))
    return rows


def format_table(rows: Sequence[CostRow], unit: str = "M") -> str:
    """The rows as text in columns, if measured; multiply-adds in millions ("M") or billions ("G")."""
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


def _host(model: str, sizes: Mapping, image_size: int) -> tuple[Callable[..., nn.Module], str]:
    """What builds a host with further arguments, and what to call it. ValueError for sizes of another one."""
    hosts = {"resnet": (cifar_resnet, {"depth": 20, "block": "basic", "width": 16}),
             "vit": (cifar_vit, {"depth": 12, "dim": 96, "heads": 3, "patch": 4})}
    check_choice("model", model, hosts)
    build, defaults = hosts[model]
    for name in sizes:
        if name not in defaults:
            raise ValueError(f"{name} is no size of model {model!r}, which has {', '.join(defaults)}")
    sizes = defaults | sizes
    size = f"{sizes['depth']} for {image_size} x {image_size} images"
    if model == "vit":
        text = f"ViT-{size}, dim {sizes['dim']}, {sizes['heads']} heads, patches of {sizes['patch']}"
        return functools.partial(build, image_size=image_size, **sizes), text
    text = f"ResNet-{size}, {sizes['block']} blocks, width {sizes['width']}"
    return functools.partial(build, **sizes), text


def cost_rows(variants: Iterable[str] | None = None, image_size: int = 32, measure: bool = False,
              model: str = "resnet", **sizes: object) -> list[CostRow]:
    """Small nets for square images with each of `variants`, below the plain net.

    A variant is the name of a layer attention, also of one in a file of your own (FILE.py, FILE.py:CLASS), or
    of a channel attention ("se", "eca", in a ResNet); None stands for all but the family's. `sizes` are
    depth, block and width of a "resnet", or depth, dim, heads and patch of a "vit". With `measure` step times
    are taken too, which needs some seconds. Raises ValueError for a name or a size that is none.
    """
    build, _ = _host(model, sizes, image_size)
    places = dict.fromkeys(LAYER_ATTENTIONS | FAMILY_ATTENTIONS, "layer_attention")
    if model == "resnet":
        places |= dict.fromkeys(CHANNEL_ATTENTIONS, "channel_attention")
    models = {"plain": build()}
    every = [name for name in places if name not in FAMILY_ATTENTIONS]
    for name in every if variants is None else variants:
        own = OwnAttention.parse(name)
        if own:
            label = own.short_name if own.short_name not in models else name
            models[label] = build(layer_attention=own.load())
            continue
        if name not in places:
            allowed = ", ".join(map(repr, places))
            raise ValueError(f"a variant must be one of {allowed}, or FILE.py or FILE.py:CLASS, not {name!r}")
        models[name] = build(**{places[name]: name})
    like = next(models["plain"].parameters())       # the program may have set another type or device
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, image_size, image_size, generator=generator, device="cpu").to(like)
    return cost_table(models, image_size, images, measure)


def cost_text(variants: Iterable[str] | None = None, image_size: int = 32, measure: bool = False,
              model: str = "resnet", **sizes: object) -> str:
    """What `mrla cost` prints: the rows of `cost_rows` as a table, and what its columns count."""
    rows = cost_rows(variants, image_size, measure, model, **sizes)
    lines = [f"{_host(model, sizes, image_size)[1]}, 10 classes", "", format_table(rows), "",
             "MACs: multiply-adds of one image. Saved: what autograd "
             f"keeps for the backward pass of {BATCH} images.",
             "The paper's claim, for another net: a ResNet-50 and +0.16 M parameters, +0.07 B FLOPs; "
             "mrla cost --paper counts that one."]
    if any(map(OwnAttention.parse, variants or ())):
        lines.append("MACs of your own attention: its convolutions and "
                     "linear maps, not what it multiplies map by map.")
    if measure:
        lines += [f"Step time: forward + backward of {BATCH} images "
                  "over that of plain, here and now, on the CPU with",
                  f"torch.get_num_threads() = {torch.get_num_threads()}; "
                  "another machine gives another ratio."]
    return "\n".join(lines)


_DEIT = {"": {}, "+ MRLA-light": {"layer_attention": "mrla-light-released"},
         "+ MRLA-base": {"layer_attention": "mrla-base"}}
PAPER_MODELS = {
    50: {"ResNet-50": {},
         "+ SE": {"channel_attention": "se"},
         "+ ECA": {"channel_attention": "eca"},
         "+ MRLA-light": {"layer_attention": "mrla-light-released"},
         "+ MRLA-base": {"layer_attention": "mrla-base"},
         "+ MRLA-base, deep stem": {"layer_attention": "mrla-base", "stem": "deep"},
         "+ Eq. 4": {"layer_attention": "layer"},
         "+ depthwise": {"layer_attention": "depthwise"}},
    101: {"ResNet-101": {},
          "+ MRLA-light": {"layer_attention": "mrla-light-released"}},
    **{size: {name or f"DeiT-{size}": options for name, options in _DEIT.items()}
       for size in ("tiny", "small")},
}


def paper_table() -> list[CostRow]:
    """[CostRow] of ResNet-50 and -101, DeiT-tiny and -small at 224 x 224, each beside its plain net."""
    rows = []
    with torch.device("meta"):      # nets of shapes alone, without numbers: enough to count, and no memory
        for size, variants in PAPER_MODELS.items():
            build = deit if isinstance(size, str) else imagenet_resnet
            models = {name: build(size, **options) for name, options in variants.items()}
            rows += cost_table(models, image_size=224)
    return rows


def paper_text() -> str:
    """What `mrla cost --paper` prints: paper_table, the paper's claim beside it, and why the two differ."""
    rows = paper_table()
    plain, added = rows[0], next(row for row in rows if row.name == "+ MRLA-light")
    with torch.device("meta"):
        light = imagenet_resnet(50, layer_attention="mrla-light-released")
    every_product = count_macs(light, 224, every_product=True)
    # of all lambda_o, and of all q.k
    channels = sum(block.channels for stage in light.stages for block in stage)
    elements = (every_product - added.macs) // 2        # of all attended maps: light scales each twice
    by_modules = added.extra_macs - channels + 3 * elements
    return "\n".join([
        "Nets for 224 x 224 images, 1000 classes. MACs are multiply-adds, which many papers call FLOPs.",
        "",
        format_table(rows, "G"), "",
        "The paper's claim for ResNet-50: +0.16 M parameters, +0.07 B FLOPs.",
        f"MRLA-light really adds {added.extra_parameters / 1e6:.3f} M and {added.extra_macs / 1e9:.3f} G, or "
        f"{(every_product - plain.macs) / 1e9:.3f} G with its gate and lambda products.",
        "A counter that goes module by module, like the thop "
        "of its day, never meets lambda_o, a bare parameter of",
        f"{channels:,} numbers in all, and reports "
        f"+{(added.extra_parameters - channels) / 1e6:.3f} M. It misses "
        "products outside modules as well, but counts",
        "two operations an element for a norm and one for a "
        f"pooling, and so reports +{by_modules / 1e9:.3f} G."])
