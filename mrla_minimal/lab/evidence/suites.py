"""What is run and what will be asked of it: a suite is written down before its first run."""

import dataclasses
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mrla_minimal.lab.arguments import boolean, integer, positive, shown
from mrla_minimal.lab.engine import TrainConfig

# Fields of a TrainConfig that are no part of a recipe: they may differ between runs that are compared.
NOT_RECIPE = ("seed", "learning_rate", "device", "data_root", "source")
_FILE_NAME = re.compile(r'[^/\\:*?"<>|\x00-\x1f]+')


def with_defaults(config: dict) -> dict:
    """A configuration as a dictionary, with the default of every field of TrainConfig that it lacks."""
    return {entry.name: entry.default for entry in dataclasses.fields(TrainConfig)} | config


def beyond_defaults(config: dict) -> dict:
    """The part of a configuration that differs from the defaults.

    Ids and recipes are made of it, so that a field that TrainConfig gains later leaves all older records what
    they are. The price: the default of a field that has records must never change (a test holds them).
    """
    default = with_defaults({})
    return {name: value for name, value in config.items() if name not in default or value != default[name]}


@dataclass(frozen=True)
class Suite:
    """What is run and what will be asked, both written down before the first run.

    variants   name -> the TrainConfig fields that make it what it is; `recipe` holds all others that differ
               from the defaults, the seed and the validation split aside: these are the suite's to choose
    primary    the contrasts (a, b), meaning a - b, that the suite exists for; `contrasts` and every variant
               against `baseline` are asked too. Each of the two families has its own Holm adjustment
    rates      learning rates to try on the validation split with `tuning_seed`, by every variant, or by
               `tuned_on` alone
    note       stands in every record and table; `about` is the line by which the suite is listed
    committed  whether its records belong in data/results/ of the repository

    Lists may stand for tuples, numpy's numbers for Python's. Raises ValueError naming the suite and what is
    wrong.
    """

    name: str
    variants: dict[str, dict[str, Any]]
    recipe: dict[str, Any]
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    primary: tuple[tuple[str, str], ...] = ()
    contrasts: tuple[tuple[str, str], ...] = ()
    baseline: str = "plain"
    rates: tuple[float, ...] = ()
    tuned_on: str | None = None
    tuning_seed: int = 100
    note: str = ""
    about: str = ""
    committed: bool = True

    def __post_init__(self):
        try:
            self._check()
        except ValueError as error:
            where = "" if str(error).startswith("suite ") else f"suite {shown(self.name)}: "
            raise ValueError(f"{where}{error}") from None

    def _check(self) -> None:
        for field in ("variants", "recipe"):
            given = getattr(self, field)
            self._require(isinstance(given, dict), f"{field} must be a dictionary", given)
        self._require(self.variants, "variants must hold at least one", self.variants)
        for what, name in (("the suite", self.name), *(("a variant", variant) for variant in self.variants)):
            self._require(isinstance(name, str) and _FILE_NAME.fullmatch(name) and name.strip(". "),
                          f"the name of {what} becomes that of a folder: one or more characters, none of "
                          r'them / \ : * ? " < > |, and not dots alone', name)
        for field in ("note", "about"):
            given = getattr(self, field)
            self._require(isinstance(given, str), f"{field} must be a text", given)
        self._set("committed", boolean("committed", self.committed))
        self._set("seeds", check_seeds("seeds", self.seeds))
        self._set("tuning_seed", integer("tuning_seed", self.tuning_seed, least=0))
        self._set("rates", _several("rates", self.rates, positive))
        for field in ("primary", "contrasts"):
            self._set(field, self._pairs(field))
        self._known(self.baseline, " as baseline")
        if self.tuned_on is not None:
            self._known(self.tuned_on, " in tuned_on")
        for name, fields in self.variants.items():
            self._require(isinstance(fields, dict), f"variant {name} must be a dictionary of fields", fields)
            for field in ("seed", "validation"):
                given = {**self.recipe, **fields}
                self._require(field not in given, f"{field} is the suite's own to choose", given)
            self.config(name, 0)        # a wrong field or value is told now, not after hours

    def _set(self, field: str, value: Any) -> None:
        object.__setattr__(self, field, value)

    def _require(self, condition: Any, wanted: str, given: Any) -> None:
        if not condition:
            raise ValueError(f"{wanted}; not {shown(given)}")

    def _known(self, variant: Any, where: str = "") -> None:
        if not isinstance(variant, str) or variant not in self.variants:
            raise ValueError(f"suite {self.name}: unknown variant {shown(variant)}{where}; "
                             f"it has {', '.join(self.variants)}")

    def _pairs(self, field: str) -> tuple[tuple[str, str], ...]:
        given = getattr(self, field)
        wanted = f"{field} must be pairs of variants, (('a', 'b'), ...), each pair once"
        self._require(isinstance(given, tuple | list), wanted, given)
        for pair in given:
            self._require(isinstance(pair, tuple | list) and len(pair) == 2, wanted, given)
            for name in pair:
                self._known(name, f" in {field}")
        distinct = {frozenset(pair) for pair in given}
        self._require(len(distinct) == len(given) and all(len(pair) == 2 for pair in distinct), wanted, given)
        return tuple((a, b) for a, b in given)

    @property
    def secondary(self) -> tuple[tuple[str, str], ...]:
        """What is asked beside the primary contrasts: those declared, each variant against the baseline."""
        asked = {frozenset(pair): pair for pair in self.primary}
        against = ((variant, self.baseline) for variant in self.variants if variant != self.baseline)
        for pair in (*self.contrasts, *against):
            asked.setdefault(frozenset(pair), pair)
        return tuple(asked.values())[len(self.primary):]

    def config(self, variant: str, seed: int, **changes: Any) -> TrainConfig:
        """The TrainConfig of one run."""
        self._known(variant)
        try:
            return TrainConfig(**{**self.recipe, **self.variants[variant], "seed": seed, **changes})
        except TypeError as error:
            raise ValueError(f"suite {self.name}, variant {variant}: {error}") from None

    def variant_fields(self) -> list[str]:
        """The fields in which the variants differ."""
        return sorted(set().union(*self.variants.values()))

    def recipe_of(self, config: dict) -> dict:
        """The part of a configuration that runs must share to be compared: what differs from the defaults."""
        left_out = {*NOT_RECIPE, *self.variant_fields()}
        return {name: value for name, value in beyond_defaults(config).items() if name not in left_out}


def check_seeds(name: str, seeds: Any) -> tuple[int, ...]:
    """At least one seed, each once, as a tuple of integers from 0 on. ValueError naming `name` otherwise."""
    checked = _several(name, seeds, functools.partial(integer, least=0))
    if not checked:
        raise ValueError(f"{name} must be at least one integer, not {shown(seeds)}")
    return checked


def _several(name: str, values: Any, check: Callable) -> tuple:
    """Different values, each of them checked, as a tuple."""
    try:
        if isinstance(values, str):
            raise TypeError
        values = tuple(values)
    except TypeError:
        raise ValueError(f"{name} must be several numbers like (0, 1, 2), not {shown(values)}") from None
    checked = tuple(check(name, value) for value in values)
    if len(set(checked)) < len(checked):
        raise ValueError(f"{name} given twice: {', '.join(map(str, checked))}")
    return checked


def _attentions(*names: str, **more: dict) -> dict[str, dict]:
    """Variants that differ in their layer attention alone; "plain" has none."""
    return {name: {"layer_attention": None if name == "plain" else name} for name in names} | more


_LONG = {"source": "real", "epochs": 60, "warmup_epochs": 3.0, "batch_size": 128}
_ONE_CYCLE = {"source": "real", "epochs": 4, "warmup_epochs": 0.8, "batch_size": 128}
_MRLA_AGAINST_CONTROLS = (("mrla-light", "depthwise"), ("mrla-base", "uniform"))
_RATES = (0.05, 0.1, 0.2)
SUITES = {suite.name: suite for suite in (
    Suite(
        "cifar10-thin56",
        _attentions("plain", "depthwise", "mrla-light", "uniform", "mrla-base", "depthwise-gated",
                    "depthwise-carry", "mrla-light-released"),
        {"depth": 56, "width": 8, **_LONG}, primary=_MRLA_AGAINST_CONTROLS,
        contrasts=(("mrla-light", "depthwise-gated"), ("mrla-light", "depthwise-carry"),
                   ("depthwise-gated", "depthwise"), ("depthwise-carry", "depthwise"),
                   ("mrla-light", "mrla-light-released"), ("mrla-base", "depthwise")),
        rates=_RATES,
        about="does layer attention help, and which part of it: ResNet-56 of width 8, 60 epochs"),
    Suite(
        "cifar10-resnet20",
        {**_attentions("plain", "depthwise", "layer", "uniform", "mrla-base", "mrla-light",
                       "mrla-light-released"),
         "se": {"layer_attention": None, "channel_attention": "se"},
         "eca": {"layer_attention": None, "channel_attention": "eca"}},
        {"depth": 20, "width": 16, **_LONG},
        contrasts=(*_MRLA_AGAINST_CONTROLS, ("mrla-base", "depthwise"), ("layer", "mrla-base"),
                   ("mrla-light", "mrla-light-released")),
        rates=_RATES, about="the same in ResNet-20 of width 16, with Eq. 4, SE and ECA beside"),
    Suite(
        "cifar10-bottleneck56", _attentions("plain", "depthwise", "mrla-base", "mrla-light"),
        {"depth": 56, "block": "bottleneck", **_LONG},
        contrasts=(("mrla-light", "depthwise"), ("mrla-base", "depthwise")),
        rates=_RATES, about="the same in ResNet-56 with bottleneck blocks"),
    Suite(
        "cifar10-lambda", _attentions("plain", "mrla-light", "mrla-light-lambda0", "mrla-light-lambda1"),
        {"depth": 56, "width": 8, **_LONG},
        contrasts=(("mrla-light", "mrla-light-lambda0"), ("mrla-light", "mrla-light-lambda1")),
        rates=_RATES, about="does it matter where light's lambda starts: at random, at 0, at 1"),
    *(Suite(f"cifar10-depth{depth}-width{width}",
            _attentions("plain", "depthwise", "mrla-light", "uniform", "mrla-base"),
            {"depth": depth, "width": width, **_LONG}, contrasts=_MRLA_AGAINST_CONTROLS,
            rates=_RATES,
            about=f"ResNet-{depth} of width {width}: with the first two, a grid of depth and width")
      for depth, width in ((20, 8), (56, 16))),
    # Declared when its "mrla-light" still meant the released wiring: the primary contrast is that one's.
    Suite(
        "cifar10-thin56-cpu",
        _attentions("plain", "uniform", "mrla-base", "depthwise", "mrla-light-released", "mrla-light"),
        {"depth": 56, "width": 8, **_ONE_CYCLE}, seeds=(0, 1, 2),
        primary=(("mrla-light-released", "depthwise"), ("mrla-base", "uniform")),
        rates=_RATES, tuned_on="plain", note="CPU pilot",
        about="the first suite with four epochs and three seeds, run on a CPU: its records are committed"),
    *(Suite(
        f"corridor-width{width}",
        _attentions("depthwise", "depthwise-carry", "mrla-light", "uniform", "mrla-base"),
        {"model": "corridor", "width": width, "steps": 500, "batch_size": 128, "source": "real",
         "optimizer": "adamw", "learning_rate": 0.01}, seeds=tuple(range(10)),
        primary=(("mrla-base", "uniform"),) if width == 4 else (),
        contrasts=(("mrla-light", "depthwise-carry"),),
        baseline="depthwise", note="positive control",
        about=f"is choice found where it must help: the CIFAR corridor with layers of {width} channels")
      for width in (4, 8, 16)),
    *(Suite(
        f"amnesia-{100 * wipe:02.0f}",
        _attentions("depthwise", "mrla-light-released", "mrla-light", "depthwise-carry", "uniform",
                    "mrla-base"),
        {"depth": 26, "width": 8, "resolution": 16, "wipe": wipe, "epochs": 2, "warmup_epochs": 0.4,
         "batch_size": 128, "source": "real"}, seeds=tuple(range(5)),
        primary=(("uniform", "depthwise"), ("mrla-light", "depthwise"), ("mrla-light-released", "depthwise"))
        if wipe == 0.15 else (), contrasts=(("mrla-base", "uniform"), ("mrla-light", "depthwise-carry")),
        baseline="depthwise", note="positive control",
        about=f"is memory found where it must help: {wipe:.0%} of the streams wiped between blocks")
      for wipe in (0.0, 0.05, 0.15)),
    Suite(
        "smoke", _attentions("plain", "mrla-light"),
        {"depth": 8, "width": 8, "batch_size": 32, "steps": 4, "source": "synthetic"}, seeds=(0, 1),
        contrasts=(("mrla-light", "plain"),), note="a few steps, to see the engine run",
        about="a few steps on the built-in images, to see the engine run", committed=False),
)}
