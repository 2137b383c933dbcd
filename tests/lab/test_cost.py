"""What a model costs: against closed formulas, against the published counts, and leaving no trace on the
model.
"""

import re

import pytest
import torch
from torch import nn

from mrla_minimal import (
    EfficientChannelAttention,
    MRLABase,
    MRLALight,
    SqueezeExcitation,
    cifar_resnet,
    cifar_vit,
    imagenet_resnet,
)
from mrla_minimal.hosting import CHANNEL_ATTENTIONS, LAYER_ATTENTIONS
from mrla_minimal.lab import cost, cost_tables
from mrla_minimal.shapes import eca_kernel_size


@pytest.fixture(scope="module")
def paper_rows():
    sizes = [50] * 8 + [101] * 2 + ["tiny"] * 3 + ["small"] * 3
    return {(size, row.name): row for size, row in zip(sizes, cost_tables.paper_table(), strict=True)}


# Parameters and multiply-adds


def test_a_shared_parameter_counts_once():
    layer = nn.Linear(3, 3)
    assert cost.count_parameters(nn.Sequential(layer, nn.ReLU(), layer)) == 12


@pytest.mark.parametrize("model, parameters, macs", [
    ((50, "ResNet-50"), 25_557_032, "4.0892"),
    ((50, "+ MRLA-light"), 25_738_452, "4.1390"),
    ((50, "+ MRLA-base"), 25_723_348, "4.1512"),
    ((50, "+ Eq. 4"), 25_723_348, "4.2245"),
    ((50, "+ depthwise"), 25_723_176, "4.1389"),
    ((101, "ResNet-101"), 44_549_160, "7.8014"),
    ((101, "+ MRLA-light"), 44_939_646, "7.8822"),
    ((50, "+ SE"), 28_071_976, None),
    ((50, "+ ECA"), 25_557_118, None),
    (("tiny", "DeiT-tiny"), 5_717_416, "1.2537"),
    (("tiny", "+ MRLA-light"), 5_749_792, "1.2578"),
    (("tiny", "+ MRLA-base"), 5_742_880, "1.2588"),
    (("small", "DeiT-small"), 22_050_664, None),
    (("small", "+ MRLA-light"), 22_115_296, None),
    (("small", "+ MRLA-base"), 22_101_472, None),
])
def test_the_published_nets_cost_what_they_should(paper_rows, model, parameters, macs):
    kind = "DeiT" if isinstance(model[0], str) else "ResNet"
    row, plain = paper_rows[model], paper_rows[model[0], f"{kind}-{model[0]}"]
    assert row.parameters == parameters and row.extra_parameters == parameters - plain.parameters
    assert macs is None or f"{row.macs / 1e9:.4f}" == macs
    assert row.extra_macs == row.macs - plain.macs


def test_a_deep_stem_costs_more_than_the_attention(paper_rows):
    stem = paper_rows[50, "+ MRLA-base, deep stem"].macs - paper_rows[50, "+ MRLA-base"].macs
    assert f"{stem / 1e9:.2f}" == "0.24" and stem > paper_rows[50, "+ MRLA-base"].extra_macs


@pytest.mark.parametrize("name, macs", [("mrla-light", "4.1501"), ("mrla-base", "4.1527")])
def test_the_published_nets_with_every_product(name, macs):
    with torch.device("meta"):
        counted = cost.count_macs(imagenet_resnet(50, layer_attention=name), 224, every_product=True)
    assert f"{counted / 1e9:.4f}" == macs


def extra_by_formula(name, stages, layers, every_product):
    """Multiply-adds of a stage's attentions, term by term. `stages` is [(channels, side)]."""
    total = 0
    for channels, side in stages:
        taps, elements = eca_kernel_size(channels), channels * side * side
        for t in range(1, layers + 1):
            value, row, query_key = 9 * elements, taps * channels, channels
            scaled = elements if every_product else 0
            total += {
                "depthwise": value,
                "depthwise-carry": value + scaled,
                "depthwise-carry-released": value + scaled,
                "depthwise-gated": value + 2 * row + query_key + scaled,
                "mrla-light": value + 2 * row + query_key + 2 * scaled,
                "mrla-light-released": value + 2 * row + query_key + 2 * scaled,
                "mrla-base": value + 2 * row + t * query_key + (t * elements if t > 1 else scaled),
                "layer": t * value + (1 + t) * row + t * query_key + (t * elements if t > 1 else scaled),
                "uniform": value + scaled,
                "se": 2 * channels * max(1, channels // 16) + scaled,
                "eca": row + scaled,
            }[name]
    return total


@pytest.mark.parametrize("every_product", [False, True])
# at 1, an einsum is no matrix product to torch's counter
@pytest.mark.parametrize("head_dim", [None, 1, 4])
@pytest.mark.parametrize("name", [*LAYER_ATTENTIONS, *CHANNEL_ATTENTIONS])
def test_every_attention_adds_what_its_formula_says(name, head_dim, every_product):
    if name in CHANNEL_ATTENTIONS:
        arguments = {"channel_attention": name}
    else:
        arguments = {"layer_attention": name, "head_dim": head_dim}
    plain, model = cifar_resnet(20, width=8), cifar_resnet(20, width=8, **arguments)
    added = cost.count_macs(model, 12, every_product) - cost.count_macs(plain, 12, every_product)
    assert added == extra_by_formula(name, [(8, 12), (16, 6), (32, 3)], 3, every_product)


def test_the_plain_net_by_formula():
    stem, first = 27 * 4 * 64, 2 * 9 * 4 * 4 * 64
    others = (9 * 4 * 8 + 9 * 8 * 8) * 16 + (9 * 8 * 16 + 9 * 16 * 16) * 4
    assert cost.count_macs(cifar_resnet(8, width=4), 8) == stem + first + others + 16 * 10


def test_matrix_products_of_other_modules_still_count():
    class Squared(nn.Module):
        def __init__(self):
            super().__init__()
            self.value = nn.Conv2d(3, 5, 1)

        def forward(self, images):
            tokens = self.value(images).flatten(2)
            return tokens @ tokens.transpose(1, 2)

    assert cost.count_macs(Squared(), 4) == 3 * 5 * 16 + 5 * 5 * 16


def test_both_kinds_of_attention_add_up():
    def macs(**arguments):
        return cost.count_macs(cifar_resnet(8, width=4, **arguments), 8, every_product=True)

    both, plain = macs(layer_attention="mrla-base", channel_attention="se"), macs()
    assert both - plain == macs(layer_attention="mrla-base") + macs(channel_attention="se") - 2 * plain


def test_the_count_is_the_same_in_float64_on_meta_and_for_either_wiring():
    expected = cost.count_macs(cifar_resnet(8, width=4, layer_attention="mrla-light"), 8)
    assert cost.count_macs(cifar_resnet(8, width=4, layer_attention="mrla-light").double(), 8) == expected
    assert cost.count_macs(cifar_resnet(8, width=4, layer_attention="mrla-light-released"), 8) == expected
    with torch.device("meta"):
        assert cost.count_macs(cifar_resnet(8, width=4, layer_attention="mrla-light"), 8) == expected


@pytest.mark.parametrize("image_size", [0, -1, 2.5, "32", (32, 32), True])
def test_an_image_size_that_is_none_is_refused(image_size):
    with pytest.raises(ValueError, match="image_size must be a positive integer"):
        cost.count_macs(cifar_resnet(8, width=4), image_size)


def test_images_of_other_channels_are_what_the_first_convolution_takes():
    def net(channels):
        return nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.Conv2d(4, 2, 1))

    assert [cost.count_macs(net(channels), 5) for channels in (1, 3, 4)] == [
        25 * (36 * c + 8) for c in (1, 3, 4)
    ]
    # no convolution tells: three, or what is given
    tokens = nn.Sequential(nn.Flatten(), nn.Linear(2 * 9, 7))
    assert cost.count_macs(tokens, 3, in_channels=2) == 18 * 7
    for wrong in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"in_channels must be a positive integer, not {wrong!r}"):
            cost.count_macs(net(1), 5, in_channels=wrong)


class ByKeyword(nn.Module):
    """An attention that calls another, as code of one's own may."""

    def __init__(self, attention, channels):
        super().__init__()
        self.inner = attention(channels)

    def forward(self, x, memory=None):
        return self.inner(memory=memory, x=x)


def test_the_familys_weighted_sums_count_as_bases_do():
    """Two layers a stage of 4, 8, 16 channels: each has its w.k, and layer 2 its sum of two maps."""
    macs = {name: cost.count_macs(cifar_resnet(14, width=4, layer_attention=name), 8)
            for name in ("uniform", "denseformer", "mudd", "attnres", "kcla")}
    stages = [(4, 8 * 8), (8, 4 * 4), (16, 2 * 2)]                      # channels, pixels
    sums = sum(2 * channels * pixels for channels, pixels in stages)
    assert macs["denseformer"] - macs["uniform"] == sums
    assert macs["attnres"] - macs["uniform"] == sums + sum(3 * channels for channels, _ in stages)
    network = sum(2 * (channels * channels + 32 * channels) for channels, _ in stages)
    assert macs["mudd"] - macs["uniform"] == sums + network
    row = cost.count_macs(cifar_resnet(14, width=4, layer_attention="attnres"), 8, every_product=True)
    assert row - macs["attnres"] == sum(channels * pixels for channels, pixels in stages)   # layer 1's weight


def test_the_table_of_costs_takes_a_name_of_the_family_when_asked():
    assert [row.name for row in cost_tables.cost_rows(["kcla"], depth=14, width=4)] == ["plain", "kcla"]


@pytest.mark.parametrize("name", LAYER_ATTENTIONS)
def test_an_attention_that_is_called_by_keyword_counts_the_same(name):
    attention = LAYER_ATTENTIONS[name]
    wrapped, plain = (cifar_resnet(14, width=4, layer_attention=kind)
                      for kind in (lambda channels: ByKeyword(attention, channels), attention))
    assert cost.count_macs(wrapped, 8, every_product=True) == cost.count_macs(plain, 8, every_product=True)


def test_an_attention_inside_another_is_taken_back_once():
    class Both(MRLABase):
        """Base whose value is an attention's output: q.k, weights and products of both count, and nothing
        twice.
        """

        def __init__(self, channels):
            super().__init__(channels, head_dim=4)
            self.inner = MRLABase(channels, head_dim=4)

        def forward(self, x, memory=None):
            return super().forward(self.inner(x, None)[0], memory)

    alone = cost.count_macs(MRLABase(8, head_dim=4), 4)
    assert alone == 9 * 8 * 16 + 2 * 3 * 8 + 8          # its value convolution, its two rows, its q.k
    assert cost.count_macs(Both(8), 4) == 2 * alone


@pytest.mark.parametrize("kind, inner", [
    (MRLALight, MRLALight), (MRLABase, MRLABase), (MRLALight, MRLABase),
    (SqueezeExcitation, SqueezeExcitation), (EfficientChannelAttention, SqueezeExcitation),
])
@pytest.mark.parametrize("every_product", [False, True])
def test_an_attention_that_only_calls_another_costs_what_that_does(kind, inner, every_product):
    class Delegating(kind):
        def __init__(self, channels):
            super().__init__(channels)
            self.inner = inner(channels)
            self.again = nn.Identity()

        def forward(self, *inputs):
            outcome = self.inner(*inputs)
            return (self.again(outcome[0]), outcome[1]) if isinstance(outcome, tuple) else outcome

    assert (cost.count_macs(Delegating(8), 4, every_product, in_channels=8)
            == cost.count_macs(inner(8), 4, every_product, in_channels=8))


# Nothing is left behind


def trace(model):
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    return state, gradients, modes, hooks, torch.get_rng_state()


@pytest.mark.parametrize("measure", [
    lambda model, images: cost.count_macs(model, 8),
    cost.saved_activation_bytes,
    lambda model, images: cost.step_time(model, images, repeats=1, warm_up=0),
], ids=["count_macs", "saved_activation_bytes", "step_time"])
@pytest.mark.parametrize("training", [True, False])
def test_a_measured_model_is_left_as_it_was(training, measure):
    model = cifar_resnet(8, width=4, layer_attention="mrla-light", drop_path=0.5)
    images = torch.randn(4, 3, 8, 8)
    model(images).sum().backward()
    model.train(training)
    model.stages[1].train(not training)                      # one part in another mode than the whole
    before = trace(model)
    values = {key: gradient.clone() for key, gradient in before[1].items()}
    measure(model, images)
    after = trace(model)
    assert before[0].keys() == after[0].keys() and all(
        torch.equal(after[0][key], before[0][key]) for key in before[0]
    )
    assert all(after[1][key] is before[1][key] and torch.equal(after[1][key], values[key]) for key in values)
    assert after[2:4] == before[2:4] and after[3] == 0
    assert torch.equal(after[4], before[4])


def test_a_model_that_fails_is_left_as_it_was_too():
    model = cifar_resnet(8, width=4, layer_attention="mrla-base")
    model.classifier = nn.Linear(3, 3)                       # does not fit the 16 channels before it
    model.eval()
    for measure, given in ((cost.count_macs, 8), (cost.saved_activation_bytes, torch.zeros(2, 3, 8, 8))):
        with pytest.raises(RuntimeError):
            measure(model, given)
        assert trace(model)[3] == 0 and not any(trace(model)[2])


# Saved activations


class Stage(nn.Module):
    """A bare stage: every layer gets a map of its own, as blocks would make it."""

    def __init__(self, attention, layers, channels):
        super().__init__()
        self.layers = nn.ModuleList(attention(channels) for _ in range(layers))

    def forward(self, x):
        memory, outputs = None, []
        for layer in self.layers:
            x = x + 1.0                                      # keeps nothing for the backward pass
            output, memory = layer(x, memory)
            outputs.append(output)
        return outputs


@pytest.mark.parametrize("layers", [3, 6, 12])
def test_base_keeps_two_maps_a_layer(layers):
    images = torch.randn(2, 16, 24, 24)
    saved = cost.saved_activation_bytes(Stage(MRLABase, layers, 16), images)
    one_map = images.nbytes
    assert 2 * layers * one_map <= saved < (2 * layers + 1) * one_map        # beside maps: rows of 16 numbers


@pytest.mark.parametrize("as_function", [False, True])
def test_what_a_linear_layer_keeps_is_its_input_alone(as_function):
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    images = torch.randn(4, 5)
    # Input of the first; the ReLU's output, which is the second's input: two storages, kept three times.
    assert cost.saved_activation_bytes(model.forward if as_function else model, images) == 4 * (4 * 5 + 4 * 7)
    assert cost.saved_activation_bytes(model.double(), images.double()) == 8 * (4 * 5 + 4 * 7)


def test_parameters_buffers_and_views_of_them_do_not_count():
    model = nn.BatchNorm2d(3)
    images = torch.randn(4, 3, 5, 5)
    mean_and_deviation = 2 * 3 * 4
    assert cost.saved_activation_bytes(model, images) == images.nbytes + mean_and_deviation
    light = MRLALight(16)
    held = cost.saved_activation_bytes(light, torch.randn(1, 16, 1, 1))
    with torch.no_grad():
        light.lambda_o = nn.Parameter(torch.randn(1_000_000)[:16])           # a view of a large storage
    assert cost.saved_activation_bytes(light, torch.randn(1, 16, 1, 1)) == held


def test_saved_bytes_do_not_depend_on_the_mode_and_need_no_caller_to_ask_for_gradients():
    model, images = cifar_resnet(8, width=4, layer_attention="mrla-base"), torch.randn(4, 3, 8, 8)
    expected = cost.saved_activation_bytes(model, images)
    with torch.no_grad():
        assert cost.saved_activation_bytes(model.eval(), images) == expected > 0
    assert cost.saved_activation_bytes(model, images.repeat(2, 1, 1, 1)) > 1.8 * expected
    with pytest.raises(ValueError, match="not on meta"):
        cost.saved_activation_bytes(model.to("meta"), images.to("meta"))


# Step times


def test_models_take_turns_and_the_median_counts(monkeypatch):
    asked = []

    def turns(candidates, rounds, warm_up, device, progress):
        asked.append((rounds, warm_up, device.type, progress))
        return {name: [10.0 * name + turn for turn in (3, 1, 2)] for name in candidates}

    monkeypatch.setattr(cost, "take_turns", turns)
    models, images = [nn.Linear(2, 2), nn.Linear(2, 2)], torch.zeros(1, 2)
    assert cost.step_times(models, images, repeats=3, warm_up=1) == [[3.0, 1.0, 2.0], [13.0, 11.0, 12.0]]
    assert cost.step_time(models[0], images, repeats=3, warm_up=2) == 2.0
    assert asked == [(3, 1, "cpu", False), (3, 2, "cpu", False)]
    monkeypatch.undo()
    for wrong in (dict(repeats=0), dict(warm_up=-1)):
        with pytest.raises(ValueError, match="rounds must be at least 1 and warm_up at least 0"):
            cost.step_times(models, images, **wrong)


@pytest.mark.parametrize("attention", [MRLALight, MRLABase, SqueezeExcitation, EfficientChannelAttention])
def test_a_step_runs_forward_and_backward_of_a_bare_module_too(attention):
    module, backward = attention(4), []
    x = torch.randn(2, 4, 3, 3, requires_grad=True)
    x.register_hook(lambda gradient: backward.append(gradient))
    before, parameters = [], list(module.parameters())
    # what each step begins with: adding to an old gradient would take time of its own
    module.register_forward_pre_hook(lambda *_: before.extend(parameter.grad for parameter in parameters))
    assert cost.step_time(module, x, repeats=2, warm_up=1) > 0
    assert before and all(gradient is None for gradient in before)
    assert len(backward) == 3 and all(parameter.grad is None for parameter in module.parameters())


# What is printed


def test_the_printed_table_holds_what_the_functions_count():
    text = cost_tables.cost_text(["mrla-light", "eca"], depth=8, width=4, image_size=8)
    assert text.splitlines()[0] == "ResNet-8 for 8 x 8 images, basic blocks, width 4, 10 classes"
    names = [line.split("  ")[0] for line in text.splitlines()[3:6]]
    assert names == ["plain", "mrla-light", "eca"] and "step time" not in text
    plain, light = cifar_resnet(8, width=4), cifar_resnet(8, width=4, layer_attention="mrla-light")
    images = torch.zeros(cost_tables.BATCH, 3, 8, 8)
    assert text.splitlines()[4].split()[1:] == [
        f"{cost.count_parameters(light):,}",
        f"+{cost.count_parameters(light) - cost.count_parameters(plain):,}",
        f"{cost.count_macs(light, 8) / 1e6:.2f}",
        f"+{(cost.count_macs(light, 8) - cost.count_macs(plain, 8)) / 1e6:.2f}",
        f"{cost.saved_activation_bytes(light, images) / 2**20:.1f}",
    ]
    # columns stand below each other
    assert len({len(line) for line in text.splitlines()[2:6]}) == 1


def test_a_vision_transformer_has_its_table_too():
    sizes = {"depth": 2, "dim": 16, "heads": 2, "patch": 4}
    lines = cost_tables.cost_text(image_size=8, model="vit", **sizes).splitlines()
    assert lines[0] == "ViT-2 for 8 x 8 images, dim 16, 2 heads, patches of 4, 10 classes"
    rows = {row.split()[0]: row.split()[1:] for row in lines[3 : 4 + len(LAYER_ATTENTIONS)]}
    assert list(rows) == ["plain", *LAYER_ATTENTIONS]
    base = cifar_vit(**sizes, image_size=8, layer_attention="mrla-base")
    assert rows["mrla-base"][0] == f"{cost.count_parameters(base):,}"
    assert rows["mrla-base"][2] == f"{cost.count_macs(base, 8) / 1e6:.2f}"


@pytest.mark.parametrize("arguments, message", [
    ({"model": "vit", "width": 8}, "width is no size of model 'vit', which has depth, dim, heads, patch"),
    ({"dim": 8}, "dim is no size of model 'resnet', which has depth, block, width"),
    ({"model": "mlp"}, "model must be one of 'resnet', 'vit', not 'mlp'"),
    ({"model": "vit", "variants": ["eca"]}, "a variant must be one of 'layer', .*'uniform', .*not 'eca'"),
])
def test_sizes_and_variants_of_another_host_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        cost_tables.cost_text(**arguments)


def test_all_variants_are_printed_and_step_times_as_ratios():
    text = cost_tables.cost_text(depth=8, width=4, image_size=8, measure=True)
    rows = text.splitlines()[3 : 4 + len(LAYER_ATTENTIONS) + len(CHANNEL_ATTENTIONS)]
    assert [row.split()[0] for row in rows] == ["plain", *LAYER_ATTENTIONS, *CHANNEL_ATTENTIONS]
    assert rows[0].endswith("x 1.00") and all(re.search(r"x \d+\.\d\d$", row) for row in rows)
    assert "another machine gives another ratio" in text


@pytest.mark.parametrize("name", ["mrla", "", None])
def test_an_unknown_variant_is_refused(name):
    with pytest.raises(ValueError, match=f"a variant must be one of 'layer', .*'eca', .*not {name!r}"):
        cost_tables.cost_text([name], depth=8, width=4)


def test_the_papers_claim_stands_beside_what_is_true(paper_rows, monkeypatch):
    monkeypatch.setattr(cost_tables, "paper_table", lambda: list(paper_rows.values()))
    text = cost_tables.paper_text()
    assert "+0.16 M parameters, +0.07 B FLOPs" in text
    assert "really adds 0.181 M and 0.050 G, or 0.061 G with" in text
    assert "15,104 numbers" in text and "reports +0.166 M" in text and "reports +0.066 G" in text
    for row in paper_rows.values():
        assert f"{row.parameters:,}" in text and f"{row.macs / 1e9:.4f}" in text
