"""Suites: what may be written down, and what is."""

from pathlib import Path

import numpy as np
import pytest
from tiny_suites import RECIPE, tiny_suite

from mrla_minimal.lab.engine import TrainConfig, build_model
from mrla_minimal.lab.evidence import SUITES, Effect, LogUniform
from mrla_minimal.lab.evidence.declared import by_name
from mrla_minimal.lab.evidence.measures import MEASURES
from mrla_minimal.lab.evidence.readings import amount


@pytest.mark.parametrize("changes, message", [
    ({"name": "a/b"}, "folder"), ({"name": 3}, "folder"), ({"name": ".."}, "folder"),
    ({"variants": {}}, "at least one"), ({"variants": ["plain"]}, "variants must be a dictionary"),
    ({"variants": {"plain": None}, "contrasts": ()}, "variant plain must be a dictionary"),
    ({"variants": {"plain": {"layer_attention": "x"}}, "contrasts": ()}, "layer_attention must be one of"),
    ({"recipe": None}, "recipe must be a dictionary"), ({"recipe": {"colour": 1}}, "colour"),
    ({"recipe": {**RECIPE, "seed": 3}}, "seed is the suite's own"),
    ({"recipe": {**RECIPE, "validation": True}}, "validation is the"),
    ({"seeds": 0}, "seeds must be several numbers"), ({"seeds": "01"}, "seeds must be several numbers"),
    ({"seeds": ()}, "at least one integer"), ({"seeds": (0, 0)}, "seeds given twice: 0, 0"),
    ({"seeds": (0, -1)}, "seeds must be an integer from 0"), ({"seeds": (0.5,)}, "seeds must be an integer"),
    ({"seeds": (True,)}, "seeds must be an integer"), ({"tuning_seed": -1}, "tuning_seed must be an integer"),
    ({"tuning_seed": "a"}, "tuning_seed must be an integer"),
    ({"primary": ("mrla-light", "plain")}, "primary must be pairs of variants"),
    ({"primary": "ab"}, "primary must be pairs"),
    ({"primary": None}, "primary must be pairs"),
    ({"primary": (("plain", "plain"),)}, "primary must be pairs"),
    ({"primary": (("mrla", "plain"),)}, "unknown variant 'mrla' in primary; it has plain, mrla-light"),
    ({"contrasts": ((["plain"], "plain"),)}, "unknown variant \\['plain'\\]"),
    ({"contrasts": (("plain", "mrla-light"), ("mrla-light", "plain"))},
     "contrasts must be pairs of variants.*each pair once"),
    ({"baseline": "none"}, "unknown variant 'none'"),
    ({"tuned_on": "none"}, "unknown variant 'none' in tuned_on"),
    ({"rates": 0.1}, "rates must be several numbers"),
    ({"rates": (0.1, "0.2")}, "rates must be a positive number"),
    ({"rates": (0.1, float("nan"))}, "rates must be a positive number"),
    ({"rates": (0.1, 0.1)}, "rates given twice"),
    ({"measure": "accuracy"}, "measure must be one of 'test_accuracy', 'test_loss', 'first_epoch_loss'"),
    ({"margin": 0}, "margin must be a positive number, or none, not 0"),
    ({"margin": "0.5"}, "margin must be a positive number"),
    ({"effects": Effect("memory", ("plain",), ("mrla-light",))}, "effects must be several Effect"),
    ({"effects": (("plain", "mrla-light"),)}, "effects must be several Effect"),
    ({"effects": 2 * (Effect("memory", ("plain",), ("mrla-light",)),)},
     "each name once; not \\['memory', 'memory'\\]"),
    ({"effects": (Effect("memory", ("mrla-base",), ("plain",)),)},
     "unknown variant 'mrla-base' in effect memory; it has plain, mrla-light"),
    ({"draws": ["learning_rate"]}, "draws must be a dictionary"),
    ({"draws": {"learning_rate": (0.05, 0.3)}}, "draws: learning_rate must be a LogUniform; not"),
    ({"draws": {"colour": LogUniform(1, 2)}}, "suite tiny, variant plain.*colour"),
    ({"draws": {"head_dim": LogUniform(8.5, 8.6)}}, "head_dim must be a positive integer"),
    ({"draws": {"learning_rate": LogUniform(0.05, 0.3)}, "rates": (0.1,)}, "either drawn or tuned by rates"),
    ({"draws": {"learning_rate": LogUniform(0.05, 0.3)}, "recipe": {**RECIPE, "learning_rate": 0.1}},
     "learning_rate is drawn, and given as well"),
    ({"note": None}, "note must be a text"), ({"committed": 1}, "committed must be True or False"),
])
def test_a_wrong_suite_is_refused_when_it_is_written_down(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_suite(**changes)


@pytest.mark.parametrize("arguments, message", [
    (("", ("a",), ("b",)), "name of an effect must be a text"), ((3, ("a",), ("b",)), "name of an effect"),
    (("e", "ab", ("b",)), "effect e: plus must be several variants, not 'ab'"),
    (("e", ("a",), ()), "effect e: minus must be several variants"),
    (("e", ("a", "a"), ("b",)), "each variant may stand once"),
    (("e", ("a",), ("b", "a")), "each variant may stand once"),
    (("e", ("a",), ("b",), 1), "effect e: primary must be True or False"),
    (("e", ("a",), ("b",), True, "yes"), "effect e: summed must be True or False"),
])
def test_a_wrong_effect_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Effect(*arguments)


def test_an_effect_is_a_mean_minus_a_mean():
    memory = Effect("memory", ["carry", "light"], ["depthwise", "gated"])
    assert memory.weights == {"carry": 0.5, "light": 0.5, "depthwise": -0.5, "gated": -0.5}
    assert Effect("three", ("a", "b", "c"), ("d",)).weights["d"] == -1.0


def test_a_summed_effect_of_the_diagonals_is_the_interaction():
    """The difference of differences, as notebook 09 defines it, and not half of it."""
    runs = {"light": 92.0, "carry": 91.0, "gated": 91.5, "depthwise": 91.0}
    interaction = Effect("memory x gate", ("light", "depthwise"), ("carry", "gated"), summed=True)
    found = sum(weight * runs[variant] for variant, weight in interaction.weights.items())
    assert found == (92.0 - 91.0) - (91.5 - 91.0)
    declared = [effect for suite in SUITES.values() for effect in suite.effects if " x " in effect.name]
    assert declared and all(effect.summed and not effect.primary for effect in declared)


def test_two_suites_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two suites are called tiny"):
        by_name([tiny_suite(), tiny_suite(name="other"), tiny_suite(seeds=(5,))])


def test_lists_and_numpys_numbers_are_as_good_as_tuples_and_pythons():
    plain = tiny_suite(seeds=(0, 1, 2), rates=(0.05, 0.1), primary=(("mrla-light", "plain"),), contrasts=(),
                       margin=0.5)
    other = tiny_suite(seeds=np.arange(3), rates=[np.float64(0.05), np.float64(0.1)],
                       primary=[["mrla-light", "plain"]], contrasts=[],
                       tuning_seed=np.int64(100), effects=[], margin=np.float64(0.5))
    assert other == plain
    assert {type(seed) for seed in (*other.seeds, other.tuning_seed)} == {int}
    assert {type(rate) for rate in other.rates} == {float}


def test_what_is_asked_is_asked_once():
    """A pair that is primary, or declared the other way round, is not asked again against the baseline."""
    names = ("plain", "depthwise", "mrla-light")
    suite = tiny_suite(variants={name: {"layer_attention": None if name == "plain" else name}
                                 for name in names},
                       primary=(("plain", "depthwise"),), contrasts=(("mrla-light", "depthwise"),))
    assert suite.secondary == (("mrla-light", "depthwise"), ("mrla-light", "plain"))


def test_every_suite_is_sound_and_no_cifar_suite_may_use_the_built_in_set():
    for name, suite in SUITES.items():
        assert suite.name == name and suite.about
        for variant in suite.variants:
            config = suite.config(variant, 0)
            assert build_model(config, 10) is not None
            assert not suite.committed or config.source == "real"
    assert SUITES["cifar10-thin56"].primary == (("mrla-light", "depthwise"), ("mrla-base", "uniform"))


def test_the_reader_is_told_what_was_declared():
    """The table of data/results/README.md has the suites that declare a margin, as the code has them."""
    text = (Path(__file__).parents[3] / "data" / "results" / "README.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in text.splitlines()
            if line.startswith("| `") and "counts as nothing" not in line and line.count("|") == 7}
    declared = {name: suite for name, suite in SUITES.items() if suite.margin is not None}
    assert set(rows) == set(declared)
    for name, suite in declared.items():
        _, _, what, asked, measure, margin, seeds, _ = rows[name].split("|")
        net = "ViT-{} of dim" if suite.recipe.get("model") == "vit" else "ResNet-{} of width"
        assert net.format(suite.config(suite.baseline, 0).depth) in what or "the same" in what
        unit = MEASURES[suite.measure].unit
        assert margin.strip() == f"below {amount(suite.margin, unit)}" and int(seeds) == len(suite.seeds)
        assert measure.strip() == MEASURES[suite.measure].label.removesuffix(" of the last epoch")
        for a, b in suite.primary:
            assert f"`{a}` - `{b}`" in asked
        assert asked.count("` - `") == len(suite.primary)
        for effect in suite.effects:
            assert (effect.name in asked) == effect.primary


def test_lambda_variants_start_where_their_names_say():
    for name, start in (("mrla-light-lambda0", 0.0), ("mrla-light-lambda1", 1.0)):
        model = build_model(TrainConfig(depth=8, layer_attention=name), 10)
        lambdas = [value for key, value in model.state_dict().items() if key.endswith("lambda_o")]
        assert len(lambdas) == 3 and all((value == start).all() for value in lambdas)
