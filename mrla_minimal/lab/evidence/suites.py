"""What a suite is: what is run and what will be asked of it, written down before its first run.

`declared.py` holds those of this course.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from mrla_minimal.lab.arguments import boolean, integer, one_of, or_none, positive, shown
from mrla_minimal.lab.engine import TrainConfig
from mrla_minimal.lab.engine.branch import trunk_of
from mrla_minimal.lab.engine.config import CIRCUMSTANCES
from mrla_minimal.lab.evidence.designs import Effect, LogUniform
from mrla_minimal.lab.evidence.measures import MEASURES

# Fields of a TrainConfig that are no part of a recipe: they may differ between runs that are compared.
NOT_RECIPE = ("seed", "learning_rate", *CIRCUMSTANCES)
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
    effects    what is asked beyond pairs, each of the primary family or of the other
    measure    what all of these are asked of: one of `measures.MEASURES`
    margin     a difference below it counts as nothing: in points for an accuracy, in nat for a loss.
               None: `intervals.MARGIN`, and for a loss nothing is said to be nothing
    draws      field -> LogUniform: the part of the recipe that a seed draws, the same for all its variants.
               So what is found holds for a range of recipes, and intervals cover it
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
    measure: str = "test_accuracy"
    margin: float | None = None
    effects: tuple[Effect, ...] = ()
    draws: dict[str, LogUniform] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        try:
            self._check()
        except ValueError as error:
            where = "" if str(error).startswith("suite ") else f"suite {shown(self.name)}: "
            raise ValueError(f"{where}{error}") from None

    def _check(self) -> None:
        for field in ("variants", "recipe", "draws"):
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
        self._set("measure", one_of("measure", self.measure, MEASURES))
        self._set("margin", or_none(positive)("margin", self.margin))
        self._set("seeds", check_seeds("seeds", self.seeds))
        self._set("tuning_seed", integer("tuning_seed", self.tuning_seed, least=0))
        self._set("rates", _several("rates", self.rates, positive))
        for field in ("primary", "contrasts"):
            self._set(field, self._pairs(field))
        self._set("effects", self._checked_effects())
        self._known(self.baseline, " as baseline")
        if self.tuned_on is not None:
            self._known(self.tuned_on, " in tuned_on")
        for name, drawn in self.draws.items():
            self._require(isinstance(drawn, LogUniform), f"draws: {name} must be a LogUniform", drawn)
            self._require(name != "learning_rate" or not self.rates,
                          "the learning rate is either drawn or tuned by rates", self.rates)
        for name, fields in self.variants.items():
            self._require(isinstance(fields, dict), f"variant {name} must be a dictionary of fields", fields)
            for field in ("seed", "validation"):
                given = {**self.recipe, **fields}
                self._require(field not in given, f"{field} is the suite's own to choose", given)
            for field in self.draws:
                self._require(field not in given, f"{field} is drawn, and given as well", given)
            self.config(name, 0)        # a wrong field or value is told now, not after hours
        self._check_trunks()

    def _check_trunks(self) -> None:
        """Branches are compared because they leave one trunk: the nets of two have parted long before."""
        configs = {name: self.config(name, 0) for name in self.variants}
        trunks = {name: dataclasses.asdict(trunk_of(config))
                  for name, config in configs.items() if config.trunk}
        for name, fields in trunks.items():
            first, others = next(iter(trunks.items()))
            differing = [f"{field} ({others[field]!r}, {fields[field]!r})" for field in fields
                         if fields[field] != others[field]]
            if differing:
                raise ValueError(f"branches must leave one trunk; those of {first} and {name} differ in "
                                 f"{', '.join(differing)}")

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

    def _checked_effects(self) -> tuple[Effect, ...]:
        wanted = "effects must be several Effect(name, plus, minus), each name once"
        self._require(isinstance(self.effects, tuple | list), wanted, self.effects)
        for effect in self.effects:
            self._require(isinstance(effect, Effect), wanted, self.effects)
            for variant in (*effect.plus, *effect.minus):
                self._known(variant, f" in effect {effect.name}")
        names = [effect.name for effect in self.effects]
        self._require(len(set(names)) == len(names), wanted, names)
        return tuple(self.effects)

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
            return TrainConfig(**{**self.recipe, **self.variants[variant], **self.drawn(seed), "seed": seed,
                                  **changes})
        except TypeError as error:
            raise ValueError(f"suite {self.name}, variant {variant}: {error}") from None

    def drawn(self, seed: int) -> dict[str, float]:
        """What a seed draws: field -> number, the same whatever other fields are drawn."""
        return {name: drawn.draw(self.name, seed, name) for name, drawn in self.draws.items()}

    def variant_fields(self) -> list[str]:
        """The fields in which the variants differ."""
        return sorted(set().union(*self.variants.values()))

    def recipe_of(self, config: dict) -> dict:
        """The part of a configuration that runs must share to be compared: what differs from the defaults."""
        left_out = {*NOT_RECIPE, *self.variant_fields(), *self.draws}
        return {name: value for name, value in beyond_defaults(config).items() if name not in left_out}

    def check_blocks(self, records: Iterable[dict]) -> None:
        """ValueError unless all records of a seed have the same drawn values, and the same trunk's weights.

        Only then is what differs between them their variants'.
        """
        first, trunks = {}, {}
        for record in records:
            config = with_defaults(record["config"])
            other = first.setdefault(record["seed"], record)
            for name in self.draws:
                one, two = with_defaults(other["config"])[name], config[name]
                if one != two:
                    raise ValueError(f"suite {self.name}, seed {record['seed']}: {other['variant']} was run "
                                     f"with {name} {one:g}, {record['variant']} with {two:g}: they are not "
                                     "compared")
            trunk = record.get("trunk")
            known = trunk and trunks.setdefault(record["seed"], trunk)
            if trunk and (known["id"], known["weights"]) != (trunk["id"], trunk["weights"]):
                of = f"two trainings of the trunk {trunk['id']}"
                if known["id"] != trunk["id"]:
                    of = f"two trunks, {known['id']} and {trunk['id']},"
                raise ValueError(f"suite {self.name}, seed {record['seed']}: branches of {of} are not "
                                 "compared")


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
