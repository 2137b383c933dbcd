"""What is run and what will be asked of it: a suite is written down before its first run."""

import dataclasses
import re
from dataclasses import dataclass

from mrla_minimal.lab.engine import TrainConfig

# Fields of a TrainConfig that are no part of a recipe: they may differ between runs that are compared.
NOT_RECIPE = ("seed", "learning_rate", "device", "data_root", "source")
_FILE_NAME = re.compile(r'[^/\\:*?"<>|\x00-\x1f]+')


def with_defaults(config: dict) -> dict:
    """A configuration as a dictionary, with the default of every field of TrainConfig that it lacks."""
    return {entry.name: entry.default for entry in dataclasses.fields(TrainConfig)} | config


def beyond_defaults(config: dict) -> dict:
    """The part of a configuration that differs from the defaults.

    Ids and recipes are made of it, so that a field that TrainConfig gains later leaves all older records what they are. The
    price: the default of a field that has records must never change (a test holds them).
    """
    default = with_defaults({})
    return {name: value for name, value in config.items() if name not in default or value != default[name]}


@dataclass(frozen=True)
class Suite:
    """What is run and what will be asked, both written down before the first run.

    variants   name -> the TrainConfig fields that make it what it is; `recipe` holds all others that differ from the defaults
    primary    the contrasts (a, b), meaning a - b, whose intervals stand unadjusted; `contrasts` and every variant against
               `baseline` are Holm-adjusted together
    rates      learning rates to try on the validation split with `tuning_seed`, by every variant, or by `tuned_on` alone
    """

    name: str
    variants: dict
    recipe: dict
    seeds: tuple = (0, 1, 2, 3, 4)
    primary: tuple = ()
    contrasts: tuple = ()
    baseline: str = "plain"
    rates: tuple = ()
    tuned_on: str | None = None
    tuning_seed: int = 100
    note: str = ""
    committed: bool = True

    def __post_init__(self):
        for what, name in (("the suite", self.name), *(("a variant", variant) for variant in self.variants)):
            if not isinstance(name, str) or not _FILE_NAME.fullmatch(name) or not name.strip(". "):
                raise ValueError(f"suite {self.name!r}: the name of {what} becomes that of a folder: not {name!r}, but one or more "
                                 'characters, none of them / \\ : * ? " < > |, and not dots alone')
        if not isinstance(self.seeds, (tuple, list)):
            raise ValueError(f"suite {self.name}: seeds must be a tuple like (0, 1, 2), not {self.seeds!r}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"suite {self.name}: seeds given twice: {self.seeds}")
        asked = {"primary": self.primary, "contrasts": self.contrasts,
                 "baseline and tuned_on": ((self.baseline, self.tuned_on or self.baseline),)}
        for field, pairs in asked.items():
            for pair in pairs:
                if isinstance(pair, str) or len(pair) != 2:
                    raise ValueError(f"suite {self.name}: {field} must be pairs of variants, (('a', 'b'), ...), not {pairs!r}")
                for name in pair:
                    if name not in self.variants:
                        raise ValueError(f"suite {self.name}: unknown variant {name!r} in {field}; it has {', '.join(self.variants)}")
        for name in self.variants:
            self.config(name, 0)        # a wrong field or value is told now, not after hours

    def config(self, variant, seed, **changes):
        """The TrainConfig of one run."""
        if variant not in self.variants:
            raise ValueError(f"suite {self.name}: unknown variant {variant!r}; it has {', '.join(self.variants)}")
        try:
            return TrainConfig(**{**self.recipe, **self.variants[variant], "seed": seed, **changes})
        except TypeError as error:
            raise ValueError(f"suite {self.name}, variant {variant}: {error}") from None

    def variant_fields(self):
        return sorted(set().union(*(changes for changes in self.variants.values())))

    def recipe_of(self, config):
        """The part of a configuration (as a dictionary) that runs must share to be compared: what differs from the defaults."""
        left_out = {*NOT_RECIPE, *self.variant_fields()}
        return {name: value for name, value in beyond_defaults(config).items() if name not in left_out}


def _attentions(*names, **more):
    """Variants that differ in their layer attention alone; "plain" has none."""
    return {name: {"layer_attention": None if name == "plain" else name} for name in names} | more


_LONG = {"source": "real", "epochs": 60, "warmup_epochs": 3.0, "batch_size": 128}
_ONE_CYCLE = {"source": "real", "epochs": 4, "warmup_epochs": 0.8, "batch_size": 128}
_MRLA_AGAINST_CONTROLS = (("mrla-light", "depthwise"), ("mrla-base", "uniform"))
_RATES = (0.05, 0.1, 0.2)
SUITES = {suite.name: suite for suite in (
    Suite(
        "cifar10-thin56",
        _attentions("plain", "depthwise", "mrla-light", "uniform", "mrla-base", "depthwise-gated", "depthwise-carry",
                    "mrla-light-released"),
        {"depth": 56, "width": 8, **_LONG}, primary=_MRLA_AGAINST_CONTROLS,
        contrasts=(("mrla-light", "depthwise-gated"), ("mrla-light", "depthwise-carry"),
                   ("depthwise-gated", "depthwise"), ("depthwise-carry", "depthwise"),
                   ("mrla-light", "mrla-light-released"), ("mrla-base", "depthwise")),
        rates=_RATES),
    Suite(
        "cifar10-resnet20",
        {**_attentions("plain", "depthwise", "layer", "uniform", "mrla-base", "mrla-light", "mrla-light-released"),
         "se": {"layer_attention": None, "channel_attention": "se"},
         "eca": {"layer_attention": None, "channel_attention": "eca"}},
        {"depth": 20, "width": 16, **_LONG},
        contrasts=(*_MRLA_AGAINST_CONTROLS, ("mrla-base", "depthwise"), ("layer", "mrla-base"),
                   ("mrla-light", "mrla-light-released")),
        rates=_RATES),
    Suite(
        "cifar10-bottleneck56", _attentions("plain", "depthwise", "mrla-base", "mrla-light"),
        {"depth": 56, "block": "bottleneck", **_LONG},
        contrasts=(("mrla-light", "depthwise"), ("mrla-base", "depthwise")), rates=_RATES),
    Suite(
        "cifar10-lambda", _attentions("plain", "mrla-light", "mrla-light-lambda0", "mrla-light-lambda1"),
        {"depth": 56, "width": 8, **_LONG},
        contrasts=(("mrla-light", "mrla-light-lambda0"), ("mrla-light", "mrla-light-lambda1")), rates=_RATES),
    *(Suite(f"cifar10-depth{depth}-width{width}",
            _attentions("plain", "depthwise", "mrla-light", "uniform", "mrla-base"),
            {"depth": depth, "width": width, **_LONG}, contrasts=_MRLA_AGAINST_CONTROLS, rates=_RATES)
      for depth, width in ((20, 8), (56, 16))),
    Suite(      # declared when its "mrla-light" still meant the released wiring: the primary contrast is that one's
        "cifar10-thin56-cpu",
        _attentions("plain", "uniform", "mrla-base", "depthwise", "mrla-light-released", "mrla-light"),
        {"depth": 56, "width": 8, **_ONE_CYCLE}, seeds=(0, 1, 2),
        primary=(("mrla-light-released", "depthwise"), ("mrla-base", "uniform")),
        rates=_RATES, tuned_on="plain", note="CPU pilot"),
    Suite(
        "smoke", _attentions("plain", "mrla-light"),
        {"depth": 8, "width": 8, "batch_size": 32, "steps": 4, "source": "synthetic"}, seeds=(0, 1),
        contrasts=(("mrla-light", "plain"),), note="a few steps, to see the engine run", committed=False),
)}
