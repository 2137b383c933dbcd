import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from mrla_minimal import MRLALight
from mrla_minimal.lab.engine import TrainConfig
from mrla_minimal.lab.engine.config import config_from_dict, differing_fields
from mrla_minimal.lab.engine.variants import FURTHER_ATTENTIONS


@pytest.mark.parametrize("field, value, allowed", [
    ("dataset", "mnist", "'cifar10', 'cifar100'"), ("layer_attention", "mrla", "'mrla-light'"),
    ("channel_attention", "cbam", "'se', 'eca', none"), ("schedule", "linear", "'cosine', 'steps'"),
    ("source", "web", "'real'"), ("device", "tpu", "'cuda', 'cuda:N', 'mps', 'cpu'"),
    ("device", "cuda:x", "'cuda:N'"), ("batch_size", 0, "positive integer"),
    ("epochs", 0, "positive integer"),
    ("epochs", 2.0, "positive integer"), ("epochs", True, "positive integer"),
    ("depth", "20", "positive integer"), ("width", None, "positive integer"),
    ("steps", 0, "positive integer, at most 2147483647, or none"), ("head_dim", "16", "or none"),
    ("seed", -1, "from 0 to 2147483647"),
    ("learning_rate", -0.1, "positive number"), ("learning_rate", math.nan, "positive number"),
    ("learning_rate", math.inf, "positive number"), ("learning_rate", "0.1", "positive number"),
    ("learning_rate", True, "positive number"), ("learning_rate", [0.1], "positive number"),
    ("weight_decay", -1.0, "from 0"), ("weight_decay", 10**400, "from 0"), ("warmup_epochs", None, "from 0"),
    ("drop_path", 1.0, "below 1"), ("label_smoothing", -0.1, "at least 0"),
    ("amp", "false", "True or False"), ("compile", 0, "True or False"), ("decay_all", None, "True or False"),
    ("validation", "no", "True or False"), ("channels_last", [], "True or False"),
    ("data_root", 5, "a text"), ("data_root", "", "a text"), ("block", ["basic"], "'basic', 'bottleneck'"),
])
def test_a_wrong_field_is_named_with_what_is_given_and_what_is_allowed(field, value, allowed):
    with pytest.raises(ValueError) as error:
        TrainConfig(**{field: value})
    text = str(error.value)
    assert text.startswith(f"{field} must be ") and allowed in text and repr(value)[:60] in text
    assert len(text) < 400 and "\n" not in text


def test_every_field_refuses_a_value_of_no_kind():
    for entry in dataclasses.fields(TrainConfig):
        with pytest.raises(ValueError, match=f"^{entry.name} must be "):
            TrainConfig(**{entry.name: object()})


def test_a_name_that_a_lesson_adds_is_known_from_then_on(monkeypatch):
    monkeypatch.setitem(FURTHER_ATTENTIONS, "of-a-lesson", MRLALight)
    assert TrainConfig(layer_attention="of-a-lesson").layer_attention == "of-a-lesson"
    monkeypatch.undo()
    with pytest.raises(ValueError, match="layer_attention must be"):
        TrainConfig(layer_attention="of-a-lesson")


@pytest.mark.parametrize("digits", [400, 5000])
def test_a_number_of_many_digits_is_refused_in_a_short_line(digits):
    with pytest.raises(ValueError, match="^steps must be .{,200}$"):
        TrainConfig(steps=10**digits)


def test_numpys_numbers_become_pythons():
    given = {"depth": np.int64(20), "steps": np.uint8(3), "seed": np.int32(1),
             "learning_rate": np.float32(0.5), "warmup_epochs": np.int64(2), "amp": np.bool_(False),
             "dataset": np.str_("cifar10"),
             "data_root": Path("some") / "where"}
    config = TrainConfig(**given)
    kinds = {name: type(getattr(config, name)) for name in given}
    assert kinds == {"depth": int, "steps": int, "seed": int, "learning_rate": float, "warmup_epochs": float,
                     "amp": bool, "dataset": str, "data_root": str}
    assert config == TrainConfig(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert (config.learning_rate, config.warmup_epochs, config.amp) == (0.5, 2.0, False)


def test_a_device_may_be_a_certain_gpu_that_is_not_here():
    assert TrainConfig(device="cuda:7").device == "cuda:7"


def test_an_option_that_a_file_does_not_know_yet_stands_at_its_default():
    values = dataclasses.asdict(TrainConfig(depth=8))
    del values["compile"], values["augment"]
    config = config_from_dict(values, "config.json")
    assert config == TrainConfig(depth=8) and differing_fields(config, TrainConfig(depth=8), ()) == []
    compiled = TrainConfig(depth=8, compile=True)
    assert differing_fields(compiled, config, ()) == ["compile: stored False, given True"]
    assert differing_fields(compiled, config, ("compile",)) == []


@pytest.mark.parametrize("values, complaint", [
    ([], "is not a configuration"), ({"widht": 4}, "unknown fields 'widht'"), ({3: 4}, "unknown fields 3"),
    ({"light_carry": "own"}, "unknown fields 'light_carry'.*of an earlier version.*must be trained anew"),
    ({"width": "4"}, "width must be a positive integer"),
])
def test_what_is_no_configuration_names_its_file(values, complaint):
    with pytest.raises(ValueError, match=f"^config.json (is not a configuration.*)?{complaint}"):
        config_from_dict(values, "config.json")
