"""Suites: what may be written down, and what is."""

import pytest
from tiny_suites import tiny_suite

from mrla_minimal.lab.engine import TrainConfig, build_model
from mrla_minimal.lab.evidence import SUITES


@pytest.mark.parametrize("changes, message", [
    ({"seeds": 0}, "seeds must be a tuple"), ({"primary": ("mrla-light", "plain")}, "primary must be pairs of variants"),
    ({"seeds": (0, 0)}, "seeds given twice"), ({"primary": (("mrla", "plain"),)}, "unknown variant 'mrla'"),
    ({"baseline": "none"}, "unknown variant 'none'"),
    ({"variants": {"plain": {"layer_attention": "x"}}, "contrasts": ()}, "layer_attention must be one of"),
    ({"recipe": {"colour": 1}}, "colour"),
])
def test_a_wrong_suite_is_refused_when_it_is_written_down(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_suite(**changes)


def test_every_suite_is_sound_and_no_cifar_suite_may_use_the_built_in_set():
    for name, suite in SUITES.items():
        assert suite.name == name
        for variant in suite.variants:
            config = suite.config(variant, 0)
            assert build_model(config, 10) is not None
            assert not suite.committed or config.source == "real"
    assert SUITES["cifar10-thin56"].primary == (("mrla-light", "depthwise"), ("mrla-base", "uniform"))


def test_lambda_variants_start_where_their_names_say():
    for name, start in (("mrla-light-lambda0", 0.0), ("mrla-light-lambda1", 1.0)):
        model = build_model(TrainConfig(depth=8, layer_attention=name), 10)
        lambdas = [value for key, value in model.state_dict().items() if key.endswith("lambda_o")]
        assert len(lambdas) == 3 and all((value == start).all() for value in lambdas)
