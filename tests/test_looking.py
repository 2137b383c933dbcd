"""record_attention and freeze_attention: what they show, what they change, and that they leave nothing behind."""

import copy
import functools

import pytest
import torch
from net_tools import GATES, WEIGHTED, ThirdOfTheInput, images_of, small
from torch import nn

from mrla_minimal import MRLALight, freeze_attention, record_attention

both_blocks = pytest.mark.parametrize("block", ["basic", "bottleneck"])


@both_blocks
@pytest.mark.parametrize("name", WEIGHTED)
def test_recorded_weights_have_a_row_for_each_image_and_head(name, block):
    model = small(name, block, layers=3, head_dim=2)
    with record_attention(model) as weights:
        assert weights == [[None] * 3] * 3                   # nothing has run
        model(images_of(5))
    for stage, row in zip(model.stages, weights, strict=True):
        for layer, recorded in enumerate(row, start=1):
            entries = 1 if name in GATES else layer
            assert recorded.shape == (5, stage[0].channels // 2, entries) and not recorded.requires_grad
            assert (recorded > 0).all() and (recorded <= 1).all()
            if name not in GATES:
                torch.testing.assert_close(recorded.sum(dim=-1), torch.ones(recorded.shape[:2]))
            if name in GATES or layer > 1:
                assert recorded.std() > 1e-4                 # it depends on the image or the head


@pytest.mark.parametrize("name", ["depthwise", "depthwise-carry", "depthwise-carry-released", "uniform", None])
def test_what_has_no_weights_records_none(name):
    with record_attention(small(name)) as weights:
        pass
    assert weights == [[None] * 2] * 3


def test_the_latest_forward_pass_is_recorded_and_nothing_after_the_block():
    model = small("mrla-base").eval()
    with record_attention(model) as weights:
        model(images_of(seed=1))
        first = weights[0][1]
        model(images_of(seed=2))
        second = weights[0][1]
    assert not torch.equal(first, second)
    model(images_of(seed=1))
    assert weights[0][1] is second


def hooks_on(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("enter", [record_attention, *(functools.partial(freeze_attention, how=how, images=images_of())
                                                        for how in ("mean", "shuffle", "uniform"))])
@pytest.mark.parametrize("name", ["mrla-base", "mrla-light"])
def test_no_hook_stays_behind_even_after_an_exception(name, enter):
    model = small(name).eval()
    before = model(images_of())
    with pytest.raises(KeyError), enter(model):
        assert hooks_on(model) >= 6
        model(images_of())
        raise KeyError
    assert hooks_on(model) == 0
    assert torch.equal(model(images_of()), before)


@pytest.mark.parametrize("name", WEIGHTED)
def test_frozen_at_the_mean_every_image_gets_the_mean_over_all_images(name):
    model = small(name, head_dim=2)
    images = images_of(503, size=4)                          # more than are run at once
    model.stages[0][0].residual.norm1.eval()                 # a mode that is not the model's own has to survive, too
    model.eval()
    with torch.no_grad(), record_attention(model) as weights:
        model(images)
    expected = [[recorded.mean(dim=0) for recorded in row] for row in weights]
    model.train()
    model.stages[0][0].residual.norm1.eval()
    state = copy.deepcopy(model.state_dict())
    with freeze_attention(model, "mean", images=images), record_attention(model) as frozen:
        assert model.training and not model.stages[0][0].residual.norm1.training
        assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
        model(images[:3])
    for row, expected_row in zip(frozen, expected, strict=True):
        for recorded, mean in zip(row, expected_row, strict=True):
            torch.testing.assert_close(recorded, mean.expand(3, *mean.shape))


@pytest.mark.parametrize("name", WEIGHTED)
def test_shuffled_weights_are_another_images_own_the_same_one_at_all_layers(name):
    """Those that it has in an undisturbed pass: in a shuffled one its features, and so its weights, would be others."""
    model = small(name, layers=3, head_dim=1).eval()
    with record_attention(model) as own:
        model(images_of(6))
    own = copy.deepcopy(own)
    permutations = []
    # The outer hooks come first and see what the attention chose; the inner ones see what it was given instead.
    with record_attention(model) as chosen, freeze_attention(model, "shuffle"), record_attention(model) as given:
        for _ in range(2):
            model(images_of(6))
            last = 1 if name not in GATES else 0
            permutation = torch.cdist(given[0][last].flatten(1), own[0][last].flatten(1)).argmin(dim=1)
            permutations.append(permutation.tolist())
            assert sorted(permutations[-1]) == list(range(6))
            assert (permutation != torch.arange(6)).all()
            for given_row, own_row in zip(given, own, strict=True):
                for after, before in zip(given_row, own_row, strict=True):
                    assert torch.equal(after, before[permutation])
            assert not torch.allclose(chosen[2][2], own[2][2], atol=1e-6)      # the case exists
    assert permutations[0] != permutations[1]


def test_shuffling_a_model_in_training_mode_changes_its_statistics_once():
    model, other = (small("mrla-base").train() for _ in range(2))
    other.load_state_dict(model.state_dict())
    other(images_of(6))
    with freeze_attention(model, "shuffle"):
        model(images_of(6))
    counts = [module.num_batches_tracked.item() for net in (model, other) for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert set(counts) == {1} and model.training and all(module.training for module in model.modules())


def test_shuffling_knows_no_batch_size_and_takes_images_by_name():
    model = small("mrla-light").eval()
    with freeze_attention(model, "shuffle"), torch.no_grad():
        for count in (5, 1, 0, 2):
            assert model(images=images_of(count)).shape == (count, 10)


def test_base_frozen_uniform_is_the_uniform_control():
    base, uniform = (small(name, layers=3).double().eval() for name in ("mrla-base", "uniform"))
    missing = uniform.load_state_dict(base.state_dict(), strict=False)
    assert not missing.missing_keys and all(key.split(".")[-2] in ("query", "key") for key in missing.unexpected_keys)
    images = images_of(dtype=torch.float64)
    with freeze_attention(base, "uniform"):
        torch.testing.assert_close(base(images), uniform(images), rtol=0, atol=1e-12)
    assert not torch.allclose(base(images), uniform(images), atol=1e-3)


@pytest.mark.parametrize("name", GATES)
def test_a_gate_frozen_uniform_is_its_layers_mean_over_images_and_heads(name):
    model = small(name, head_dim=2).eval()
    with record_attention(model) as weights:
        model(images_of(7))
    with freeze_attention(model, "uniform", images=images_of(7)), record_attention(model) as frozen:
        model(images_of(2, seed=5))
    for row, frozen_row in zip(weights, frozen, strict=True):
        for chosen, recorded in zip(row, frozen_row, strict=True):
            torch.testing.assert_close(recorded, chosen.mean().expand_as(recorded))


def test_a_net_whose_layers_differ_is_recorded_and_frozen_where_it_has_weights():
    model = small(lambda channels: MRLALight(channels) if channels == 8 else ThirdOfTheInput(channels)).eval()
    with freeze_attention(model, "mean", images=images_of()), record_attention(model) as weights:
        model(images_of(2))
    assert [[recorded is None for recorded in row] for row in weights] == [[True] * 2, [False] * 2, [True] * 2]


@pytest.mark.parametrize("name, how, images, message", [
    ("mrla-base", "random", None, "how must be one of 'mean', 'shuffle', 'uniform', not 'random'"),
    ("mrla-base", "mean", None, "freezing at 'mean' needs images"),
    ("mrla-base", "mean", images_of(0), "freezing at 'mean' needs images"),
    ("mrla-light", "uniform", None, "freezing at 'uniform' needs images"),
    ("depthwise", "shuffle", None, "no attention weights"),
    (None, "uniform", None, "no attention weights"),
])
def test_what_cannot_be_frozen_is_refused(name, how, images, message):
    model = small(name)
    with pytest.raises(ValueError, match=message), freeze_attention(model, how, images=images):
        pass
    assert hooks_on(model) == 0


def test_a_model_without_stages_is_refused():
    for enter in (record_attention, functools.partial(freeze_attention, how="shuffle")):
        with pytest.raises(ValueError, match="stages of blocks, .* not be a Linear"), enter(nn.Linear(2, 2)):
            pass
