import pytest
from tiny import tiny_config

from mrla_minimal.lab.engine import TrainConfig, build_model, build_optimizer, learning_rate_at


def test_learning_rate_warms_up_linearly_and_falls_to_zero_by_a_cosine():
    config = TrainConfig(learning_rate=0.4, warmup_epochs=2.0, epochs=10)
    rates = [learning_rate_at(config, step, 5, 50) for step in range(50)]
    assert rates[:10] == pytest.approx([0.04 * (step + 1) for step in range(10)])
    assert rates[10] == pytest.approx(0.4) and rates[30] == pytest.approx(0.2)
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False)) and 0 < rates[-1] < 0.001


def test_step_schedule_divides_by_ten_at_half_and_three_quarters():
    config = TrainConfig(learning_rate=1.0, warmup_epochs=0.0, schedule="steps")
    rates = [learning_rate_at(config, step, 10, 100) for step in (0, 49, 50, 74, 75, 99)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("decay_all", [False, True])
def test_weight_decay_spares_biases_norms_and_lambda_unless_asked(decay_all):
    config = tiny_config(layer_attention="mrla-light", decay_all=decay_all, weight_decay=0.3)
    model = build_model(config, 10)
    groups = build_optimizer(config, model).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        spared = name.endswith(("bias", "lambda_o")) or "norm" in name
        assert decay[id(parameter)] == (0.3 if decay_all or not spared else 0.0), name
    assert len(decay) == len(list(model.parameters()))


@pytest.mark.parametrize("decay_all", [False, True])
def test_weight_decay_spares_a_class_token_and_positions_too(decay_all):
    config = TrainConfig(model="vit", depth=2, dim=8, heads=2, read="cls", optimizer="adamw",
                         layer_attention="mrla-light-released", decay_all=decay_all, weight_decay=0.3)
    model = build_model(config, 10)
    groups = build_optimizer(config, model).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    decayed = {name for name, p in model.named_parameters() if decay[id(p)] == 0.3}
    assert decay_all == ({"class_token", "position"} <= decayed)
    if not decay_all:
        assert not any(name.endswith(("bias", "lambda_o")) or "norm" in name for name in decayed)
        assert {"patches.weight", "classifier.weight"} <= decayed
    assert len(decay) == len(list(model.parameters()))
