"""Everything that decides how a run ends: `TrainConfig`, and its form in a file."""

import dataclasses
import functools
from dataclasses import dataclass, field
from pathlib import Path

from mrla_minimal.hosting import CHANNEL_ATTENTIONS, FAMILY_ATTENTIONS, LAYER_ATTENTIONS
from mrla_minimal.lab.arguments import (
    below_one,
    boolean,
    integer,
    integer_of,
    not_negative,
    one_of,
    or_none,
    positive,
    shown,
    text,
)
from mrla_minimal.lab.device import DEVICES, device_text
from mrla_minimal.lab.engine.variants import FURTHER_ATTENTIONS
from mrla_minimal.lab.plugins import OwnAttention
from mrla_minimal.resnet import BLOCKS, SHORTCUTS
from mrla_minimal.vit import READS

DATASETS = ("cifar10", "cifar100")          # whole images are classified
SCENES = ("nuclei", "blood")                # objects are found in them: a detector on a resnet
SOURCES = ("auto", "real", "synthetic")
SCHEDULES = ("cosine", "steps")
OPTIMIZERS = ("sgd", "adamw")
MODELS = ("resnet", "vit", "corridor")
RESOLUTIONS = (32, 24, 20, 16)
AUGMENT = ("auto", "on", "off")
# Where a run finds its images and how it is computed: it may go on, and be compared, with others of these.
CIRCUMSTANCES = ("device", "data_root", "source", "cuda_graph")


def _named_attentions():
    """As they are now: a lesson may add its own to FURTHER_ATTENTIONS."""
    return (*LAYER_ATTENTIONS, *FAMILY_ATTENTIONS, *FURTHER_ATTENTIONS)


def _named_attention(name, value):
    return one_of(name, value, _named_attentions())


def _layer_attention(name, value):
    """A name of the library's, one of a file of one's own, or None.

    Which version of the file is settled here, once.
    """
    own = OwnAttention.parse(value)
    if own:
        return str(own.with_sum())
    try:
        return one_of(name, value, (*_named_attentions(), None))
    except ValueError:
        allowed = ", ".join(map(repr, (*LAYER_ATTENTIONS, *FAMILY_ATTENTIONS)))
        raise ValueError(f"{name} must be one of {allowed}, one of lab/engine/variants.py, none, "
                         f"or FILE.py or FILE.py:CLASS for one of your own, not {shown(value)}") from None


def _option(default, help, check=None, choices=None):
    """A field with its help, how it is checked, and the choices that its help lists."""
    check = check or functools.partial(one_of, allowed=choices)
    return field(default=default, metadata={"help": help, "choices": choices, "check": check})


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides how a run ends. The defaults are the quick preset; presets.py holds the others.

    Numbers and booleans may be numpy's; what is kept is Python's own, so that JSON can hold it.
    Raises ValueError naming the field, what was given and what is allowed.
    """

    dataset: str = _option(
        "cifar10", "which images; nuclei and blood train a detector", choices=(*DATASETS, *SCENES))
    source: str = _option(
        "auto", "auto: the real files, else a download, else the built-in set", choices=SOURCES)
    data_root: str | None = _option(
        None, "folder of the data files (else $MRLA_DATA, data/, the user's cache)", or_none(text))
    resolution: int = _option(
        32, "pixels a side that the images are averaged down to", integer_of(RESOLUTIONS), RESOLUTIONS)
    model: str = _option("resnet", "the host of the layer attention", choices=MODELS)
    wipe: float = _option(
        0.0, "probability that a sample's stream is wiped before a block, not before a stage's first",
        below_one)
    depth: int = _option(
        20, "layers: 6n + 2 with basic blocks, 9n + 2 with bottlenecks; blocks of a vit", integer)
    block: str = _option("basic", "residual block", choices=BLOCKS)
    width: int = _option(16, "channels of the first stage", integer)
    dim: int = _option(96, "vit: numbers a token", integer)
    heads: int = _option(3, "vit: heads of the attention between tokens", integer)
    patch: int = _option(4, "vit: pixels a side of a patch", integer)
    read: str = _option("mean", "vit: what the classifier reads, the mean of the patches or a class token",
                        choices=READS)
    reset_every: int | None = _option(
        None, "vit: empty the memory every so many blocks (none: never)", or_none(integer))
    layer_attention: str | None = _option(
        "mrla-light", "attention across layers; FILE.py or FILE.py:CLASS for one of your own",
        _layer_attention, (*LAYER_ATTENTIONS, None))
    channel_attention: str | None = _option(
        None, "attention inside a layer", choices=(*CHANNEL_ATTENTIONS, None))
    head_dim: int | None = _option(
        None, "channels a head of the layer attention (none: its own default)", or_none(integer))
    shortcut: str | None = _option(
        None, "shortcut where the shape changes (none: the block's own)", choices=(*SHORTCUTS, None))
    drop_path: float = _option(0.0, "probability of dropping the attention branch of a sample", below_one)
    epochs: int = _option(1, "passes over the training images", integer)
    steps: int | None = _option(None, "train for this many steps in place of whole epochs", or_none(integer))
    trunk_epochs: int = _option(
        0, "stop after so many of the epochs; with --trunk, branch off from it there",
        functools.partial(integer, least=0))
    trunk: str | None = _option(
        None, "layer attention of the net whose weights and momenta are gone on with after trunk_epochs",
        or_none(_named_attention),
        (*LAYER_ATTENTIONS, None))
    batch_size: int = _option(64, "images a step, over all processes", integer)
    optimizer: str = _option("sgd", "SGD with Nesterov momentum, or AdamW", choices=OPTIMIZERS)
    learning_rate: float = _option(0.1, "peak learning rate", positive)
    schedule: str = _option(
        "cosine", "after the warm-up: cosine to zero, or steps (a tenth at 1/2 and at 3/4)",
        choices=SCHEDULES)
    warmup_epochs: float = _option(0.2, "epochs of linear warm-up", not_negative)
    augment: str = _option(
        "auto", "crop and flip the training images; auto: if each is seen more than once, but no corridor",
        choices=AUGMENT)
    weight_decay: float = _option(5e-4, "weight decay", not_negative)
    decay_all: bool = _option(False, "decay biases, norms and lambda_o too", boolean)
    label_smoothing: float = _option(0.0, "probability spread over the other classes", below_one)
    validation: bool = _option(
        False, "train on nine tenths, evaluate on the held-out tenth, test once at the end", boolean)
    seed: int = _option(
        0, "of the initial weights, the order and the augmentation", functools.partial(integer, least=0))
    order: int | None = _option(
        None, "another seed for the order and the augmentation alone (none: the seed's)",
        or_none(functools.partial(integer, least=0)))
    device: str = _option("auto", "where to train; cuda:1 is the second GPU", device_text, DEVICES)
    amp: bool = _option(
        True, "on cuda, compute in the half precision that the GPU has (bfloat16 or float16)", boolean)
    channels_last: bool = _option(True, "keep images and feature maps channels last", boolean)
    compile: bool = _option(False, "compile the model with torch.compile", boolean)
    cuda_graph: bool = _option(
        False, "on cuda, launch each training step as one CUDA graph: quicker for small nets", boolean)

    def __post_init__(self):
        for entry in dataclasses.fields(self):
            checked = entry.metadata["check"](entry.name, getattr(self, entry.name))
            object.__setattr__(self, entry.name, checked)
        if self.cuda_graph and (self.compile or self.optimizer != "sgd"):
            raise ValueError("cuda_graph must be False with compile, and with another optimizer than 'sgd'")
        if self.trunk_epochs and (self.steps is not None or self.trunk_epochs >= self.epochs):
            length = f"{self.epochs} epochs" if self.steps is None else f"{self.steps} steps"
            raise ValueError(f"trunk_epochs must be fewer than the epochs (and steps none), not "
                             f"{self.trunk_epochs} of {length}")
        if self.trunk is not None and not self.trunk_epochs:
            raise ValueError(f"trunk_epochs must be at least 1 with a trunk ({self.trunk!r}), not 0")
        if self.detects:
            self._leave_alone("model", "wipe", "label_smoothing", "augment", "trunk_epochs",
                              "compile", "cuda_graph", given=f"dataset {self.dataset!r}")
            if self.resolution != 32:
                raise ValueError("resolution is CIFAR's, and must be left at 32 with dataset "
                                 f"{self.dataset!r}, whose crops have a size of their own, not "
                                 f"{self.resolution}")
            if self.source == "synthetic":
                raise ValueError(f"source must be 'auto' or 'real' with dataset {self.dataset!r}, "
                                 "not 'synthetic'")
        if self.model == "corridor":
            self._leave_alone("dataset", "resolution", "wipe", "depth", "block", "shortcut", "drop_path",
                              "channel_attention")
            if self.augment == "on":
                raise ValueError("augment must be 'off' or 'auto' with model 'corridor', not 'on'")
        if self.model == "vit":
            self._leave_alone("wipe", "block", "width", "shortcut", "channel_attention")
        else:
            self._leave_alone("dim", "heads", "patch", "read", "reset_every")
        if self.model != "resnet" and self.layer_attention == "depthwise-relu":
            raise ValueError(f"layer_attention must be another with model {self.model!r}, which has no norm "
                             "for the ReLU of 'depthwise-relu' to follow")

    @property
    def detects(self) -> bool:
        """Whether it trains a detector, and no classifier."""
        return self.dataset in SCENES

    @property
    def order_seed(self) -> int:
        """The seed of the order and the augmentation: `order`, or the run's own."""
        return self.seed if self.order is None else self.order

    @property
    def is_trunk(self) -> bool:
        """Whether it stops after `trunk_epochs`, for branches to go on from there."""
        return self.trunk_epochs > 0 and self.trunk is None

    @property
    def host_text(self) -> str:
        """What to call the net without its attentions: "ResNet-56", "ResNet-26 at 16 pixels, 15 % wiped"."""
        if self.model == "corridor":
            return f"corridor of {self.width} channels"
        if self.detects:
            return f"detector on ResNet-{self.depth}"
        pixels = "" if self.resolution == 32 else f" at {self.resolution} pixels"
        if self.model == "vit":
            emptied = f", emptied every {self.reset_every} blocks" if self.reset_every else ""
            return f"ViT-{self.depth} of dim {self.dim}, patches of {self.patch}{pixels}{emptied}"
        return f"ResNet-{self.depth}{pixels}" + (f", {100 * self.wipe:g} % wiped" if self.wipe else "")

    def _leave_alone(self, *names, given=None):
        """ValueError if one of these fields, of which the choice `given` makes no use, is not at its default.

        given: None for that of the model.
        """
        given = given or f"model {self.model!r}"
        for entry in dataclasses.fields(self):
            if entry.name in names and getattr(self, entry.name) != entry.default:
                raise ValueError(f"{entry.name} must be {shown(entry.default)} with {given}, "
                                 f"not {shown(getattr(self, entry.name))}")


def config_from_dict(values: dict, where: str | Path) -> TrainConfig:
    """A TrainConfig from a dictionary of its fields, as a file holds it.

    A field that is missing has its default: what was run before there was an option was run without it.
    Raises ValueError naming `where` for anything else than a dictionary, for unknown fields, and for values
    that are not allowed.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where} is not a configuration")
    known = {entry.name for entry in dataclasses.fields(TrainConfig)}
    unknown = sorted(shown(name) for name in set(values) - known)
    if unknown:
        raise ValueError(f"{where} is not a configuration: unknown fields {', '.join(unknown)}; if it is "
                         "of an earlier version of this package, its run must be trained anew")
    try:
        return TrainConfig(**values)
    except ValueError as error:
        raise ValueError(f"{where} is not a configuration: {error}") from None


def differing_fields(config: TrainConfig, stored: TrainConfig, free: tuple[str, ...]) -> list[str]:
    """["learning_rate: stored 0.1, given 0.2", ...]: the fields that differ and are not `free` to."""
    return [f"{entry.name}: stored {getattr(stored, entry.name)!r}, given {getattr(config, entry.name)!r}"
            for entry in dataclasses.fields(config)
            if entry.name not in free and getattr(stored, entry.name) != getattr(config, entry.name)]
