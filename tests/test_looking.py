"""record_attention and freeze_attention: what they show and change, and that they leave nothing behind."""

import copy
import functools

import pytest
import torch
from net_tools import GATES, WEIGHTED, ThirdOfTheInput, images_of, small
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from mrla_minimal import MRLABase, MRLALight, freeze_attention, record_attention
from mrla_minimal.hosting import LAYER_ATTENTIONS
from mrla_minimal.looking import in_evaluation

both_blocks = pytest.mark.parametrize("block", ["basic", "bottleneck"])
HOWS = ("mean", "shuffle", "uniform")
every_freeze = pytest.mark.parametrize("how", HOWS)
every_context = pytest.mark.parametrize("enter", [
    record_attention, *(functools.partial(freeze_attention, how=how, images=images_of()) for how in HOWS),
], ids=["record", *HOWS])


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


@pytest.mark.parametrize("name", [None, *(name for name in LAYER_ATTENTIONS if name not in WEIGHTED)])
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


@every_context
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
    model.stages[0][0].residual.norm1.eval()                 # its own mode has to survive
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
    """Those that it has in an undisturbed pass: in a shuffled one it would have others."""
    model = small(name, layers=3, head_dim=1).eval()
    with record_attention(model) as own:
        model(images_of(6))
    own = copy.deepcopy(own)
    permutations = []
    # The outer hooks come first and see what the attention chose; the inner ones what it was given instead.
    shuffling = freeze_attention(model, "shuffle")
    with record_attention(model) as chosen, shuffling, record_attention(model) as given:
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
    modules = [*model.modules(), *other.modules()]
    norms = [module for module in modules if isinstance(module, nn.BatchNorm2d)]
    counts = [norm.num_batches_tracked.item() for norm in norms]
    assert set(counts) == {1} and model.training and all(module.training for module in model.modules())


def test_shuffling_knows_no_batch_size_and_takes_images_by_name():
    model = small("mrla-light").eval()
    with freeze_attention(model, "shuffle"), torch.no_grad():
        for count in (5, 1, 0, 2):
            assert model(images=images_of(count)).shape == (count, 10)


def test_base_frozen_uniform_is_the_uniform_control():
    base, uniform = (small(name, layers=3).double().eval() for name in ("mrla-base", "uniform"))
    missing = uniform.load_state_dict(base.state_dict(), strict=False)
    assert not missing.missing_keys
    assert all(key.split(".")[-2] in ("query", "key") for key in missing.unexpected_keys)
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
    with_weights = [[recorded is not None for recorded in row] for row in weights]
    assert with_weights == [[False, False], [True, True], [False, False]]


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


# One attention shared by several blocks


def shared(name, blocks=3):
    """A net in which all blocks of a stage share one attention, and its twin whose blocks have copies."""
    model = small(name, layers=blocks, head_dim=2).eval()
    for stage in model.stages:
        for block in stage[1:]:
            block.layer_attention.load_state_dict(stage[0].layer_attention.state_dict())
    own = copy.deepcopy(model)
    for stage in model.stages:
        for block in stage[1:]:
            block.layer_attention = stage[0].layer_attention
    return model, own


def assert_same_weights(given, wanted):
    for given_row, wanted_row in zip(given, wanted, strict=True):
        for one, other in zip(given_row, wanted_row, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", WEIGHTED)
def test_a_shared_attention_is_recorded_under_the_layer_that_asks(name):
    model, own = shared(name)
    with record_attention(model) as weights, record_attention(own) as wanted:
        for seed in (1, 2):                                 # the second pass starts counting anew
            model(images_of(seed=seed))
            own(images_of(seed=seed))
            assert_same_weights(weights, wanted)
        model.classifier.register_forward_pre_hook(lambda module, inputs: 1 / 0)
        model.stages[1][1].residual.conv1.register_forward_pre_hook(lambda module, inputs: 1 / 0)
        with pytest.raises(ZeroDivisionError):              # a pass that breaks off does not shift the next
            model(images_of(seed=3))
        model.stages[1][1].residual.conv1._forward_pre_hooks.clear()
        with pytest.raises(ZeroDivisionError):
            model(images_of(seed=1))
        own(images_of(seed=1))
        assert_same_weights(weights, wanted)


@every_freeze
@pytest.mark.parametrize("name", WEIGHTED)
def test_a_shared_attention_is_frozen_layer_by_layer(name, how):
    model, own = shared(name)
    with freeze_attention(model, how, images_of(5)), freeze_attention(own, how, images_of(5)):
        for seed in (1, 2):
            torch.testing.assert_close(model(images_of(seed=seed)), own(images_of(seed=seed)))


def forward_and_backward(model, images, run):
    """The gradients of a net each of whose layers is run by run(block, x, memory)."""
    model.zero_grad()
    x = model.stem(images)
    for stage in model.stages:
        memory = None
        for block in stage:
            x, memory = run(block, x, memory)
    model.classifier(x.mean(dim=(2, 3))).square().sum().backward()
    return {key: parameter.grad for key, parameter in model.named_parameters()}


def checkpointed(block, x, memory):
    return checkpoint(block, x, memory, use_reentrant=False)


@pytest.mark.parametrize("how", [None, "mean", "uniform"])
@pytest.mark.parametrize("name", WEIGHTED)
def test_a_shared_attention_may_be_checkpointed(name, how):
    """The backward pass runs the last block first: it must be given its own layer's weights again."""
    model, _ = shared(name)
    images = images_of(5)
    with freeze_attention(model, how, images) if how else record_attention(model) as found:
        wanted = forward_and_backward(model, images, lambda block, *inputs: block(*inputs))
        before = copy.deepcopy(found) if how is None else None
        given = forward_and_backward(model, images, checkpointed)
        for key, gradient in given.items():
            assert (gradient is None) == (wanted[key] is None)
            if gradient is not None:
                torch.testing.assert_close(gradient, wanted[key])
        if how is None:
            assert_same_weights(found, before)
    assert hooks_on(model) == 0


def test_a_shared_attention_that_runs_again_outside_of_its_block_is_refused():
    model, _ = shared("mrla-base")

    def attend_again(block, x, memory):
        return checkpoint(block.layer_attention, x, memory, use_reentrant=False)

    stage = model.stages[0]
    x = torch.randn(2, stage[0].channels, 8, 8, requires_grad=True)
    with record_attention(model):
        output, memory = attend_again(stage[0], x, None)
        output, memory = attend_again(stage[1], output, memory)
        with pytest.raises(ValueError, match="which layer is asking cannot be told; checkpoint whole blocks"):
            output.sum().backward()


def test_a_model_is_saved_by_its_state_dict_within_a_context(tmp_path):
    model = small("mrla-base")
    with record_attention(model):
        torch.save(model.state_dict(), tmp_path / "weights.pt")
    assert torch.load(tmp_path / "weights.pt").keys() == model.state_dict().keys()


# What is taken for attention weights


class ConvolutionNamedWeights(nn.Module):
    """One's own attention, in which `weights` is a layer with parameters and no place to look at."""

    def __init__(self, channels):
        super().__init__()
        self.weights = nn.Conv2d(channels, channels, 1)

    def forward(self, x, memory=None):
        return self.weights(x), None


def test_only_an_identity_named_weights_is_a_place_to_look_at():
    model = small(ConvolutionNamedWeights).eval()
    with record_attention(model) as weights:
        model(images_of())
    assert weights == [[None] * 2] * 3
    with pytest.raises(ValueError, match="no attention weights"), freeze_attention(model, "uniform"):
        pass
    mixed = small(lambda channels: (MRLABase if channels == 8 else ConvolutionNamedWeights)(channels)).eval()
    with freeze_attention(mixed, "uniform"):
        frozen = mixed(images_of())
    with torch.no_grad():
        for stage in (mixed.stages[0], mixed.stages[2]):
            for block in stage:
                block.layer_attention.weights.weight.zero_()
    assert not torch.allclose(mixed(images_of()), frozen)   # so the convolutions were in use


class Host(nn.Module):
    """A host that is no ResNet: one stage, whose last block has no attention, and a dictionary as output."""

    class Block(nn.Module):
        def __init__(self, attention):
            super().__init__()
            self.layer_attention = attention

        def forward(self, x, memory):
            output, memory = self.layer_attention(x, memory)
            return x + output, memory

    def __init__(self):
        super().__init__()
        stage = [self.Block(MRLABase(4)), self.Block(MRLABase(4)), nn.Identity()]
        self.stages = nn.ModuleList([nn.ModuleList(stage)])

    def forward(self, x):
        memory = None
        for block in self.stages[0][:2]:
            x, memory = block(x, memory)
        return {"features": x}


def test_any_host_with_stages_of_blocks_can_be_looked_into():
    torch.manual_seed(0)
    host, maps = Host().eval(), torch.randn(3, 4, 5, 5)
    with record_attention(host) as own:
        host(maps)
    first, second, none = own[0]
    assert first.shape == (3, 1, 1) and second.shape == (3, 1, 2) and none is None
    for how in ("mean", "shuffle", "uniform"):
        with freeze_attention(host, how, maps), record_attention(host) as frozen:
            assert host(maps)["features"].shape == maps.shape
        assert not torch.equal(frozen[0][1], second)


# Copies, wrappers, compiled models


@pytest.mark.parametrize("how", ["record", "mean", "shuffle", "uniform"])
def test_a_copy_made_inside_a_context_is_a_model_of_its_own(how):
    model = small("mrla-light").eval()
    images, before = images_of(6), model(images_of(6))
    enter = record_attention(model) if how == "record" else freeze_attention(model, how, images)
    with enter, record_attention(model) as seen:
        model(images)
        first = seen[0][0]
        twin, average = copy.deepcopy(model), AveragedModel(model).eval()
        assert torch.equal(twin(images), before) and torch.equal(average(images), before)
        assert seen[0][0] is first
        with record_attention(twin) as own:
            twin(images)
        assert own[0][0] is not None
    assert torch.equal(twin(images), before) and torch.equal(model(images), before)


@pytest.mark.parametrize("wrap", [
    AveragedModel, nn.DataParallel, lambda model: nn.DataParallel(AveragedModel(model)),
], ids=["AveragedModel", "DataParallel", "both"])
@every_freeze
def test_a_wrapped_model_is_looked_into_like_the_model_itself(how, wrap):
    model = small("mrla-light").eval()
    images = images_of(6)
    with freeze_attention(model, how, images), record_attention(model) as wanted:
        expected = model(images)
    wrapped = wrap(model).eval()
    with freeze_attention(wrapped, how, images) as given, record_attention(wrapped) as weights:
        assert given is wrapped
        torch.testing.assert_close(wrapped(images), expected)
    assert_same_weights(weights, wanted)
    assert not torch.allclose(model(images), expected) and hooks_on(wrapped) == 0


def test_data_parallel_over_several_devices_is_refused():
    model = nn.DataParallel(small("mrla-base"))
    model.device_ids = [0, 1]
    with pytest.raises(ValueError, match="runs copies .*: give its `module`"), record_attention(model):
        pass


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


def compiled_block(model):
    model.stages[1][0].compile(backend="eager")
    return model


@pytest.mark.parametrize("compiled", [
    lambda model: torch.compile(model, backend="eager"), compiled_in_place, compiled_block,
    lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
], ids=["as a new object", "in place", "one block", "in a wrapper"])
@every_context
def test_a_compiled_model_is_refused(enter, compiled):
    model = compiled(small("mrla-light"))
    with pytest.raises(ValueError, match="a compiled model runs without hooks"), enter(model):
        pass
    assert hooks_on(model) == 0


@pytest.mark.slow
def test_a_model_compiled_inside_a_context_is_frozen_there_and_free_afterwards():
    model = small("mrla-light").eval()
    images, before = images_of(), model(images_of())
    with torch.no_grad(), freeze_attention(model, "mean", images):
        frozen = model(images)
        compiled = torch.compile(model, backend="eager")
        torch.testing.assert_close(compiled(images), frozen)
    assert not torch.allclose(frozen, before)
    torch.testing.assert_close(compiled(images), before)


# Numbers


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
@pytest.mark.parametrize("how", ["mean", "uniform"])
def test_mean_gates_of_many_images_are_added_up_in_float32(how, dtype, tolerance):
    """A sum of 5,000 gates has steps of 16 in bfloat16: each batch would be rounded, not the mean alone."""
    model = small("mrla-light", width=2, layers=1, head_dim=2).eval()
    images = images_of(5003, size=4)
    with torch.no_grad():
        for block in [block for stage in model.stages for block in stage]:
            block.layer_attention.query.weight.fill_(0.3)
            block.layer_attention.key.weight.fill_(0.3)
    model, images = model.to(dtype), images.to(dtype)
    with torch.no_grad(), record_attention(model) as weights:
        model(images)
    wanted = [[recorded.double().mean(dim=0) for recorded in row] for row in weights]
    with torch.no_grad(), freeze_attention(model, how, images), record_attention(model) as frozen:
        model(images[:2])
    for row, wanted_row in zip(frozen, wanted, strict=True):
        for recorded, mean in zip(row, wanted_row, strict=True):
            assert recorded.dtype == dtype
            mean = mean.mean() if how == "uniform" else mean
            torch.testing.assert_close(recorded.double(), mean.expand(recorded.shape), rtol=tolerance, atol=0)


def test_in_evaluation_gives_every_module_its_mode_back_even_after_an_exception():
    model = small("mrla-light").train()
    model.stages[0][0].residual.norm1.eval()                 # a frozen batch norm
    before = [module.training for module in model.modules()]
    with pytest.raises(KeyError), in_evaluation(model) as given:
        assert given is model and not any(module.training for module in model.modules())
        raise KeyError
    assert [module.training for module in model.modules()] == before
