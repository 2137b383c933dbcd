"""Everything that decides how a run ends: `TrainConfig`, its presets, and its form in a file."""

import dataclasses
import functools
import math
from dataclasses import dataclass, field

from torch import nn

from mrla_minimal.hosting import CHANNEL_ATTENTIONS, LAYER_ATTENTIONS
from mrla_minimal.lab.device import DEVICES
from mrla_minimal.lab.plugins import OwnAttention
from mrla_minimal.layer_attention import MRLALight
from mrla_minimal.resnet import BLOCKS, SHORTCUTS

DATASETS = ("cifar10", "cifar100")
SOURCES = ("auto", "real", "synthetic")
SCHEDULES = ("cosine", "steps")


def _light_with_lambda(channels, start):
    """MRLALight whose lambda_o starts at one number in place of N(0, 1)."""
    attention = MRLALight(channels)
    nn.init.constant_(attention.lambda_o, start)
    return attention


# Names beside those of resnet.py, each a callable channels -> module: so that a configuration holds names only.
FURTHER_ATTENTIONS = {
    "mrla-light-lambda0": functools.partial(_light_with_lambda, start=0.0),
    "mrla-light-lambda1": functools.partial(_light_with_lambda, start=1.0),
}


def _option(default, help, choices=None):
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides how a run ends. The defaults are the quick preset; `PRESETS` holds the others.

    Raises ValueError naming the field, what was given and what is allowed.
    """

    dataset: str = _option("cifar10", "which images", DATASETS)
    source: str = _option("auto", "auto: the real files, else a download, else the built-in set", SOURCES)
    data_root: str | None = _option(None, "folder of the data files (else $MRLA_DATA, data/, the user's cache)")
    depth: int = _option(20, "layers: 6n + 2 with basic blocks, 9n + 2 with bottlenecks")
    block: str = _option("basic", "residual block", BLOCKS)
    width: int = _option(16, "channels of the first stage")
    layer_attention: str | None = _option("mrla-light", "attention across layers; FILE.py or FILE.py:CLASS for one of your own",
                                          (*LAYER_ATTENTIONS, None))
    channel_attention: str | None = _option(None, "attention inside a layer", (*CHANNEL_ATTENTIONS, None))
    head_dim: int | None = _option(None, "channels a head of the layer attention (none: its own default)")
    shortcut: str | None = _option(None, "shortcut where the shape changes (none: the block's own)", (*SHORTCUTS, None))
    drop_path: float = _option(0.0, "probability of dropping the attention branch of a sample")
    epochs: int = _option(1, "passes over the training images")
    steps: int | None = _option(None, "train for this many steps in place of whole epochs")
    batch_size: int = _option(64, "images a step, over all processes")
    learning_rate: float = _option(0.1, "peak learning rate")
    schedule: str = _option("cosine", "after the warm-up: cosine to zero, or steps (a tenth at 1/2 and at 3/4)", SCHEDULES)
    warmup_epochs: float = _option(0.2, "epochs of linear warm-up")
    augment: str = _option("auto", "crop and flip the training images; auto: if each is seen more than once", ("auto", "on", "off"))
    weight_decay: float = _option(5e-4, "weight decay")
    decay_all: bool = _option(False, "decay biases, norms and lambda_o too")
    label_smoothing: float = _option(0.0, "probability spread over the other classes")
    validation: bool = _option(False, "train on nine tenths, evaluate on the held-out tenth, test once at the end")
    seed: int = _option(0, "of the initial weights, the order and the augmentation")
    device: str = _option("auto", "where to train", DEVICES)
    amp: bool = _option(True, "bf16 autocast on cuda (without effect elsewhere)")
    channels_last: bool = _option(True, "keep images and feature maps channels last")
    compile: bool = _option(False, "compile the model with torch.compile")

    def __post_init__(self):
        for entry in dataclasses.fields(self):
            value, choices, more = getattr(self, entry.name), entry.metadata["choices"], ""
            if entry.name == "layer_attention":
                own = OwnAttention.parse(value)
                if own:         # which version of the file is meant is settled here, once
                    object.__setattr__(self, entry.name, str(own.with_sum()))
                    continue
                choices, more = (*choices, *FURTHER_ATTENTIONS), ", or FILE.py or FILE.py:CLASS for one of your own"
            if choices is not None and value not in choices:
                raise ValueError(f"{entry.name} must be one of {', '.join(map(_show, choices))}{more}, not {value!r}")
        for name in ("epochs", "batch_size", "depth", "width"):
            self._require(name, isinstance(getattr(self, name), int) and getattr(self, name) >= 1, "a positive integer")
        self._require("steps", self.steps is None or (isinstance(self.steps, int) and self.steps >= 1), "a positive integer or none")
        self._require("seed", isinstance(self.seed, int) and 0 <= self.seed < 2**31, "an integer from 0 to 2**31 - 1")
        self._require("learning_rate", 0 < self.learning_rate < math.inf, "a positive number")
        for name in ("warmup_epochs", "weight_decay"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "a number from 0 on")
        for name in ("drop_path", "label_smoothing"):
            self._require(name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")

    def _require(self, name, condition, wanted):
        if not condition:
            raise ValueError(f"{name} must be {wanted}, not {getattr(self, name)!r}")


def _show(choice):
    return "none" if choice is None else repr(choice)


PRESETS = {
    "quick": {},
    "standard": {"epochs": 200, "batch_size": 128, "learning_rate": 0.1, "weight_decay": 5e-4, "warmup_epochs": 5.0, "schedule": "cosine"},
}


def config_from_dict(values, where):
    """A TrainConfig from a dictionary of its fields. ValueError naming `where` for fields that are none."""
    known = {entry.name for entry in dataclasses.fields(TrainConfig)}
    if not isinstance(values, dict) or set(values) - known:
        raise ValueError(f"{where} is not a configuration: unknown fields {sorted(set(values) - known)}" if isinstance(values, dict)
                         else f"{where} is not a configuration")
    try:
        return TrainConfig(**values)
    except TypeError as error:
        raise ValueError(f"{where} is not a configuration: {error}") from None


def differing_fields(config, stored):
    """["learning_rate: stored 0.1, given 0.2", ...]; where the data lies and which device computes may differ."""
    free = {"device", "data_root", "source"}
    return [f"{entry.name}: stored {getattr(stored, entry.name)!r}, given {getattr(config, entry.name)!r}"
            for entry in dataclasses.fields(config)
            if entry.name not in free and getattr(stored, entry.name) != getattr(config, entry.name)]
