"""Keys at learned places of earlier layers' maps: beside the formula as a loop, at borders, put to use."""

import pytest
import torch
from torch.nn import functional as F

from mrla_minimal.family.sideways import NAMES, AdaptiveCrossLayerAttention, SidewaysAttention, read_at
from mrla_minimal.lab import cost
from mrla_minimal.resnet import cifar_resnet

every_class = pytest.mark.parametrize("attention", [SidewaysAttention, AdaptiveCrossLayerAttention])


def pixel(x, row, column):
    """One sample's (channels, height, width) between its pixels, by the four around; beyond, its border."""
    height, width = x.shape[1:]
    row, column = min(max(row, 0), height - 1), min(max(column, 0), width - 1)
    top, left = min(int(row), max(height - 2, 0)), min(int(column), max(width - 2, 0))
    down, right = row - top, column - left
    bottom, beside = min(top + 1, height - 1), min(left + 1, width - 1)
    return ((1 - down) * (1 - right) * x[:, top, left] + (1 - down) * right * x[:, top, beside]
            + down * (1 - right) * x[:, bottom, left] + down * right * x[:, bottom, beside])


@pytest.mark.parametrize("size", [(4, 6), (1, 5), (1, 1)])
def test_reading_is_bilinear_and_ends_at_the_border(size):
    torch.manual_seed(0)
    x, offsets = torch.randn(2, 3, *size).double(), 4 * torch.randn(2, 5, 2, *size).double()
    read = read_at(x, offsets)
    assert read.shape == (2, 5, 3, *size)
    for sample, key, row, column in [(s, k, r, c) for s in range(2) for k in range(5)
                                     for r in range(size[0]) for c in range(size[1])]:
        down, right = offsets[sample, key, :, row, column].tolist()
        wanted = pixel(x[sample], row + down, column + right)
        assert torch.allclose(read[sample, key, :, row, column], wanted, atol=1e-9)


def test_an_offset_moves_down_and_right():
    x = torch.arange(12.0).view(1, 1, 3, 4)
    offsets = torch.zeros(1, 1, 2, 3, 4)
    offsets[:, :, 0] = 1
    assert read_at(x, offsets)[0, 0, 0, 0].tolist() == pytest.approx([4, 5, 6, 7], abs=1e-5)
    offsets[:, :, 0], offsets[:, :, 1] = 0, 1                                   # the border stands for beyond
    assert read_at(x, offsets)[0, 0, 0, 0].tolist() == pytest.approx([1, 2, 3, 3], abs=1e-5)


def test_places_are_precise_where_maps_are_not():
    torch.manual_seed(0)
    x, offsets = torch.randn(1, 2, 64, 64), 3 * torch.rand(1, 3, 2, 64, 64)
    offsets = offsets.bfloat16()
    exact = read_at(x.bfloat16().double(), offsets.double())
    read = read_at(x.bfloat16(), offsets)
    assert read.dtype == torch.bfloat16 and (read - exact).abs().max() < 0.02       # one rounding, at the end


def stack(attention, layers=3, channels=4, **arguments):
    torch.manual_seed(1)
    found = [attention(channels, keys=3, radius=1.5, **arguments).double() for _ in range(layers)]
    for layer in found:
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.7)
    return found


@every_class
def test_a_stage_is_its_formula(attention):
    layers = stack(attention)
    maps = torch.randn(3, 2, 4, 3, 5).double()
    memory = None
    for t, (layer, x) in enumerate(zip(layers, maps, strict=True)):
        before = memory
        output, memory = layer(x, memory)
        assert len(memory) == t + 1 and (before is None or len(before) == t)
        gates = layer.gates(x) if attention is AdaptiveCrossLayerAttention else torch.ones(2, 96, 3, 5)
        offsets, logits = layer.offsets(x), layer.logits(x)
        for sample, row, column in [(0, 0, 0), (1, 2, 4), (0, 1, 3), (1, 0, 2)]:
            total, sum_ = 0.0, torch.zeros(4).double()
            for s in range(t + 1):
                for key in range(3):
                    place = 3 * (t - s) + key
                    if gates[sample, place, row, column] <= 0:
                        continue
                    down, right = (offsets[sample, 2 * place + axis, row, column].item() for axis in (0, 1))
                    share = logits[sample, place, row, column].exp().item()
                    sum_ = sum_ + share * pixel(layer.value(maps[s])[sample], row + down, column + right)
                    total += share
            wanted = sum_ / total if total else sum_
            assert torch.allclose(output[sample, :, row, column], wanted, atol=1e-9)


@every_class
def test_it_starts_as_an_even_mean_of_a_ring(attention):
    layer = attention(4, keys=4, radius=1)
    torch.nn.init.dirac_(layer.value.weight)
    x = torch.randn(2, 4, 5, 5)
    output, _ = layer(x)
    around = (x[:, :, :3, 1:4] + x[:, :, 2:, 1:4] + x[:, :, 1:4, :3] + x[:, :, 1:4, 2:]) / 4
    assert torch.allclose(output[:, :, 1:4, 1:4], around, atol=1e-5)


@every_class
def test_gradients_reach_every_part_and_samples_stay_apart(attention):
    layers, maps = stack(attention, most_layers=3), torch.randn(3, 2, 4, 3, 5).double()
    memory, alone = None, None
    for layer, x in zip(layers, maps, strict=True):
        output, memory = layer(x, memory)
        single, alone = layer(x[1:], alone)
        assert torch.allclose(single[0], output[1], atol=1e-9)
    output.square().sum().backward()
    assert all(part.grad is not None and part.grad.any() for part in layers[-1].parameters())


def test_a_shut_gate_drops_its_key_and_all_shut_give_zero():
    layer = AdaptiveCrossLayerAttention(2, keys=2, radius=0)
    torch.nn.init.dirac_(layer.value.weight)
    x = torch.randn(1, 2, 3, 3)
    with torch.no_grad():
        layer.offsets.bias[:4] = torch.tensor([0.0, 0, 0, 1])           # key 1 here, key 2 to the right
        layer.logits.bias[1] = 200.0                                    # it would take everything
        layer.gates.bias[1] = -1.0
    assert torch.allclose(layer(x)[0], x, atol=1e-6)
    with torch.no_grad():
        layer.gates.bias[0] = -1.0
    assert not layer(x)[0].any()


def test_an_open_gate_is_exactly_1():
    torch.manual_seed(0)
    layer = AdaptiveCrossLayerAttention(4, keys=2)
    torch.nn.init.normal_(layer.gates.weight)
    x = torch.randn(2, 4, 9, 9)
    is_open = F.conv2d(x, layer.gates.weight[:2], layer.gates.bias[:2]) > 0
    wanted = is_open.float() / is_open.sum(dim=1, keepdim=True).clamp(min=1)
    assert is_open.any() and torch.equal(layer.weigh(x, 1), wanted)             # to the last digit


def test_a_gate_learns_by_the_slope_of_a_sigmoid():
    layer = AdaptiveCrossLayerAttention(1, keys=2, radius=0)
    torch.nn.init.ones_(layer.value.weight)
    x = torch.arange(5.0).view(1, 1, 1, 5)
    with torch.no_grad():
        layer.offsets.bias[3] = 1.0                                     # key 2 one pixel to the right
    layer(x)[0][..., :4].sum().backward()                               # there it reads 1 more, at 4 pixels
    share = torch.tensor(1.0).sigmoid()
    wanted = 0.5 * (1 - 0.5) * share * (1 - share) * torch.tensor([-4.0, 4.0])
    assert torch.allclose(layer.gates.bias.grad[:2], wanted, atol=1e-6)


def blurred(seed, size):
    noise = torch.randn(8, 1, 20, 20, generator=torch.Generator().manual_seed(seed))
    return F.avg_pool2d(noise, size, stride=1, padding=size // 2, count_include_pad=False) * size


@pytest.mark.parametrize(("blur", "found"), [(5, True), (1, False)])
def test_offsets_find_a_shift_in_an_earlier_layer_if_maps_are_smooth(blur, found):
    """The answer lies 3 rows down and 2 columns left in the first layer's map. Only biases learn."""
    torch.manual_seed(0)
    layer = SidewaysAttention(1, keys=4, radius=2.0, most_layers=2)
    torch.nn.init.ones_(layer.value.weight)
    earlier, x = blurred(1, blur), blurred(2, blur)
    target = read_at(earlier, torch.tensor([3.0, -2.0])[:, None, None].expand(8, 1, 2, 20, 20))[:, 0]
    optimizer = torch.optim.Adam([layer.offsets.bias, layer.logits.bias], lr=0.05)
    for _ in range(200):
        loss = (layer(x, [earlier])[0] - target)[:, :, 4:-4, 4:-4].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = layer.logits.bias.softmax(dim=0)                          # the own layer's four keys first
    best = weights.argmax().item()
    place = layer.offsets.bias.view(8, 2)[best]
    close = (place - torch.tensor([3.0, -2.0])).abs().max().item() < 0.1
    assert (close and best >= 4 and weights[best] > 0.9 and loss < 0.01) == found


# What they refuse

@every_class
@pytest.mark.parametrize(("arguments", "message"), [
    (dict(channels=0), "channels must be a positive integer, not 0"),
    (dict(channels=4, keys=0), "keys must be a positive integer"),
    (dict(channels=4, radius=-1), "radius must be a number of pixels of at least 0, not -1"),
    (dict(channels=4, radius=float("inf")), "radius must be"),
])
def test_other_arguments_are_refused(attention, arguments, message):
    with pytest.raises(ValueError, match=message):
        attention(**arguments)


@every_class
def test_other_maps_memories_and_too_many_layers_are_refused(attention):
    layer, x = attention(4, most_layers=2), torch.zeros(2, 4, 3, 5)
    with pytest.raises(ValueError, match=r"x must have shape \(batch, 4, height, width\)"):
        layer(torch.zeros(2, 3, 3, 5))
    with pytest.raises(ValueError, match="memory must be None or a list"):
        layer(x, x)
    with pytest.raises(ValueError, match="may have 2 layers.*here is layer 3"):
        layer(x, [x, x])


def test_offsets_that_do_not_fit_are_refused():
    x = torch.zeros(2, 4, 3, 5)
    with pytest.raises(ValueError, match=r"of shape \(2, keys, 2, 3, 5\), not \(2, 2, 3, 5\)"):
        read_at(x, torch.zeros(2, 2, 3, 5))
    with pytest.raises(ValueError, match="offsets must be finite"):
        read_at(x, torch.full((2, 1, 2, 3, 5), float("nan")))
    with pytest.raises(ValueError, match=r"offsets must be .* of shape \(2, keys, 2, 3, 5\), not list"):
        read_at(x, [0.0, 1.0])
    with pytest.raises(ValueError, match=r"x must be .*\(batch, channels, height, width\), not str"):
        read_at("x", torch.zeros(2, 1, 2, 3, 5))
    with pytest.raises(ValueError, match=r"x must be .*\(batch, channels, height, width\), not \(4, 3, 5\)"):
        read_at(x[0], torch.zeros(2, 1, 2, 3, 5))


# In a host

@every_class
def test_a_host_takes_it_by_name_and_its_cost_is_counted(attention):
    name = {kind: name for name, kind in NAMES.items()}[attention]
    model = cifar_resnet(14, width=4, layer_attention=name)
    assert isinstance(model.stages[0][0].layer_attention, attention)
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 10)
    layer, x = attention(4, keys=3), torch.zeros(1, 4, 6, 6)

    def macs(every_product=False):
        second = SecondLayer(layer)
        return cost.count_macs(second, 6, every_product, in_channels=4)

    numbers = 3 * 2 * (4 if attention is AdaptiveCrossLayerAttention else 3)     # a place, a logit, a gate
    convolutions = 36 * 4 * (2 * 4 + numbers)                       # two maps' values, six keys' numbers
    assert macs() == convolutions + 6 * x.numel()                   # and a weighted sum of six readings
    assert macs(every_product=True) == macs() + 6 * 4 * x.numel()   # each from four pixels


class SecondLayer(torch.nn.Module):
    """A stage's second layer alone."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x):
        return self.attention(x, [x])[0]
