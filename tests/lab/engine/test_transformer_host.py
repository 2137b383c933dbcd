"""A vision transformer as the engine's host: what its configuration takes, trained, resumed, read back."""

import dataclasses

import pytest
import torch
from tiny import tiny_cifar, tiny_train

from mrla_minimal.lab.engine import TrainConfig, build_model, load_model
from mrla_minimal.lab.engine.folder import new_run_dir
from mrla_minimal.lab.engine.presets import PRESETS
from mrla_minimal.lab.engine.run import evaluate
from mrla_minimal.vit import VisionTransformer


def tiny_vit(**changes):
    fields = {"model": "vit", "depth": 3, "dim": 8, "heads": 2, "patch": 8, "layer_attention": "mrla-base",
              "optimizer": "adamw", "learning_rate": 0.01, "epochs": 2, "batch_size": 16, "drop_path": 0.2,
              "device": "cpu"}
    return TrainConfig(**{**fields, **changes})


def test_a_configuration_becomes_the_transformer_that_it_describes():
    config = tiny_vit(resolution=16, patch=2, head_dim=4, reset_every=2, read="cls",
                      layer_attention="mrla-light")
    model = build_model(config, 7, in_channels=1)
    assert isinstance(model, VisionTransformer) and len(model.stages[0]) == 3
    assert (model.image_size, model.reset_every, model.in_channels) == (16, 2, 1)
    assert model.position.shape == (1, 65, 8) and model.classifier.out_features == 7
    block = model.stages[0][-1]
    assert block.layer_attention.head_dim == 4 and block.drop_path.rate == 0.2
    assert block.self_attention.heads == 2
    plain = build_model(dataclasses.replace(config, layer_attention=None, head_dim=None, reset_every=None), 7,
                        in_channels=1).state_dict()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in plain.items())


def test_it_trains_evaluates_and_is_read_back(tmp_path):
    config = tiny_vit(epochs=6, read="cls", reset_every=2)
    result = tiny_train(config, tmp_path / "run")
    assert result.metrics[-1]["train_loss"] < result.metrics[0]["train_loss"]
    model, state = load_model(tmp_path / "run")
    assert TrainConfig(**state["config"]) == config
    loss, accuracy = evaluate(model, tiny_cifar().test)
    assert accuracy == pytest.approx(result.test_accuracy)
    assert loss == pytest.approx(result.metrics[-1]["test_loss"], rel=1e-4)


def test_a_run_that_was_broken_off_goes_on_bit_for_bit(tmp_path):
    whole = tiny_train(tiny_vit(), tmp_path / "whole")
    seen = []

    class Stop(Exception):
        pass

    def stop(record):
        seen.append(record)
        if len(seen) == 1:
            raise Stop

    with pytest.raises(Stop):
        tiny_train(tiny_vit(), tmp_path / "parts", on_record=stop, checkpoint_seconds=0.001)
    parts = tiny_train(tiny_vit(), tmp_path / "parts", resume=True)
    assert parts.metrics == whole.metrics
    one, two = (load_model(tmp_path / name)[0].state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize("fields, message", [
    ({"width": 32}, "width must be 16 with model 'vit', not 32"),
    ({"block": "bottleneck"}, "block must be 'basic' with model 'vit'"),
    ({"wipe": 0.1}, "wipe must be 0.0 with model 'vit'"),
    ({"channel_attention": "se"}, "channel_attention must be None with model 'vit'"),
    ({"shortcut": "conv"}, "shortcut must be None with model 'vit'"),
    ({"layer_attention": "depthwise-relu"}, "layer_attention must be another with model 'vit', which has"),
    ({"read": "max"}, "read must be one of 'mean', 'cls'"),
    ({"reset_every": 0}, "reset_every must be a positive integer.*or none, not 0"),
    ({"heads": 0}, "heads must be a positive integer"),
])
def test_what_does_not_fit_a_transformer_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_vit(**fields)


@pytest.mark.parametrize("field, value", [("dim", 64), ("heads", 2), ("patch", 8), ("read", "cls"),
                                          ("reset_every", 4)])
@pytest.mark.parametrize("model", ["resnet", "corridor"])
def test_a_transformers_options_are_refused_for_another_host(field, value, model):
    with pytest.raises(ValueError, match=f"{field} must be .* with model '{model}', not "):
        TrainConfig(model=model, **{field: value})


@pytest.mark.parametrize("fields, message", [
    ({"patch": 5}, "patch must divide image_size=32"), ({"heads": 3}, "heads must divide dim=8"),
    ({"layer_attention": None, "reset_every": 2}, "reset_every=2 needs a layer_attention"),
])
def test_what_fits_no_transformer_is_told_before_training(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_train(tiny_vit(**fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_its_name_says_what_it_is(tmp_path):
    config = tiny_vit(resolution=16, reset_every=4)
    assert config.host_text == "ViT-3 of dim 8, patches of 8 at 16 pixels, emptied every 4 blocks"
    assert new_run_dir(config, tmp_path).name == (
        "vit-3-of-dim-8-patches-of-8-at-16-pixels-emptied-every-4-blocks-mrla-base-cifar10-seed0")


@pytest.mark.parametrize("name", ["vit", "vit-gpu"])
def test_the_presets_build(name):
    model = build_model(TrainConfig(**PRESETS[name], layer_attention="mrla-base"), 10)
    assert len(model.stages[0]) == 12
