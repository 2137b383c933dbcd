"""Published weights: names and shapes as torchvision and the MRLA release have them, and their nets."""

import pytest
import torch
from torch.nn import functional as F

from mrla_minimal import imagenet_resnet, rename_weights

STAGES = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
DEEP_STEM = [("conv1.0", 3, 32), ("conv1.3", 32, 32), ("conv1.6", 32, 64)]      # norms: conv1.1, conv1.4, bn1


def add_norm(shapes, name, channels):
    shapes |= {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
    shapes[f"{name}.num_batches_tracked"] = ()


def published_shapes(depth, extra=(), deep=False):
    """{published name: shape}; `extra` may hold "se", "eca", "light", "base", "dw" and "eq4"."""
    shapes = {"conv1.weight": (64, 3, 7, 7)}
    if deep:
        shapes = {f"{name}.weight": (outputs, inputs, 3, 3) for name, inputs, outputs in DEEP_STEM}
        for name in ("conv1.1", "conv1.4"):
            add_norm(shapes, name, 32)
    add_norm(shapes, "bn1", 64)
    inputs = 64
    for stage, blocks in enumerate(STAGES[depth]):
        planes, channels = 64 * 2**stage, 256 * 2**stage
        for block in range(blocks):
            start = f"stages.{stage}.{block}" if "base" in extra else f"layer{stage + 1}.{block}"
            shapes |= {f"{start}.conv1.weight": (planes, inputs, 1, 1),
                       f"{start}.conv2.weight": (planes, planes, 3, 3),
                       f"{start}.conv3.weight": (channels, planes, 1, 1)}
            for name, width in (("bn1", planes), ("bn2", planes), ("bn3", channels)):
                add_norm(shapes, f"{start}.{name}", width)
            if block == 0:
                shapes[f"{start}.downsample.0.weight"] = (channels, inputs, 1, 1)
                add_norm(shapes, f"{start}.downsample.1", channels)
            add_attentions(shapes, start, channels, extra)
            inputs = channels
    return shapes | {"fc.weight": (1000, 2048), "fc.bias": (1000,)}


def add_attentions(shapes, start, channels, extra):
    taps = 7 if channels == 2048 else 5
    attention = {"light": "mrla.mrla", "base": "mrla.mrla", "eq4": "la"}
    if "se" in extra:
        shapes |= {f"{start}.se.fc.0.weight": (channels // 16, channels),
                   f"{start}.se.fc.2.weight": (channels, channels // 16)}
    if "eca" in extra:
        shapes[f"{start}.eca.conv.weight"] = (1, 1, taps)
    for kind in {*extra} & {*attention}:
        shapes |= {f"{start}.{attention[kind]}.{name}.weight": (1, 1, taps) for name in ("Wq", "Wk")}
        shapes[f"{start}.{attention[kind]}.Wv.weight"] = (channels, 1, 3, 3)
        add_norm(shapes, f"{start}.{'bn_la' if kind == 'eq4' else 'bn_mrla'}", channels)
    if "light" in extra:
        shapes[f"{start}.mrla.lambda_t"] = (channels, 1, 1)
    if "dw" in extra:
        shapes[f"{start}.dwconv.weight"] = (channels, 1, 3, 3)
        add_norm(shapes, f"{start}.bn_dw", channels)


NETS = {
    "resnet50": (50, (), {}),
    "resnet101": (101, (), {}),
    "resnet50_se": (50, ("se",), {"channel_attention": "se"}),
    "resnet50_eca": (50, ("eca",), {"channel_attention": "eca"}),
    "resnet50_mrlal": (50, ("light",), {"layer_attention": "mrla-light-released"}),
    "resnet101_mrlal": (101, ("light",), {"layer_attention": "mrla-light-released"}),
    "resnet50_mrlal with SE": (
        50, ("light", "se"), {"layer_attention": "mrla-light-released", "channel_attention": "se"}),
    "resnet50_mrlab": (50, ("base",), {"layer_attention": "mrla-base", "stem": "deep"}),
    "resnet101_mrlab": (101, ("base",), {"layer_attention": "mrla-base", "stem": "deep"}),
    "resnet50_dw": (50, ("dw",), {"layer_attention": "depthwise"}),
    "resnet50_la_eq4": (50, ("eq4",), {"layer_attention": "layer"}),
}


@pytest.mark.parametrize("net", NETS)
def test_every_published_weight_has_its_place_and_every_place_its_weight(net):
    depth, extra, arguments = NETS[net]
    with torch.device("meta"):
        model = imagenet_resnet(depth, **arguments)
        shapes = published_shapes(depth, extra, deep=arguments.get("stem") == "deep")
        published = {name: torch.empty(shape) for name, shape in shapes.items()}
    assert len(published) == len(model.state_dict())
    assert model.load_state_dict(rename_weights(published), strict=True, assign=True)


def drawn(shapes, seed=0):
    """float64 weights of these shapes: signals neither vanish nor grow, and variances are positive."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        tensor = torch.randn(shape, generator=generator, dtype=torch.float64)
        if name.endswith("running_var"):
            tensor = 0.5 + tensor.abs()
        elif len(shape) >= 2 and not name.endswith("lambda_t"):
            tensor = tensor / tensor[0].numel() ** 0.5
        state[name] = tensor.long() if name.endswith("num_batches_tracked") else tensor
    return state


def published_forward(state, images, blocks, light):
    """What the published names mean, in evaluation mode: the release's net in plain functions."""
    def norm(name, x):
        parts = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts)

    x = F.conv2d(images, state["conv1.weight"], stride=2, padding=3)
    x = F.max_pool2d(norm("bn1", x).relu(), 3, stride=2, padding=1)
    for stage, count in enumerate(blocks, start=1):
        for number in range(count):
            at = f"layer{stage}.{number}"
            stride = 2 if stage > 1 and number == 0 else 1
            y = norm(f"{at}.bn1", F.conv2d(x, state[f"{at}.conv1.weight"])).relu()
            y = norm(f"{at}.bn2", F.conv2d(y, state[f"{at}.conv2.weight"], stride=stride, padding=1)).relu()
            y = norm(f"{at}.bn3", F.conv2d(y, state[f"{at}.conv3.weight"]))
            if number == 0:
                x = norm(f"{at}.downsample.1", F.conv2d(x, state[f"{at}.downsample.0.weight"], stride=stride))
            identity, x = x, (y + x).relu()
            if light:
                x = x + norm(f"{at}.bn_mrla", released_light(state, f"{at}.mrla", x, identity))
    return F.linear(x.mean(dim=(2, 3)), state["fc.weight"], state["fc.bias"])


def released_light(state, at, x, identity):
    batch, channels, _, _ = x.shape
    row = x.mean(dim=(2, 3)).view(batch, 1, channels)
    taps = state[f"{at}.mrla.Wq.weight"].shape[-1]
    query, key = (F.conv1d(row, state[f"{at}.mrla.{name}.weight"], padding=taps // 2).view(batch, -1, 32)
                  for name in ("Wq", "Wk"))
    gates = torch.sigmoid((query * key).sum(dim=2) / 32**0.5).repeat_interleave(32, dim=1)
    value = F.conv2d(x, state[f"{at}.mrla.Wv.weight"], padding=1, groups=channels)
    return gates[:, :, None, None] * value + state[f"{at}.lambda_t"] * identity


@pytest.mark.parametrize(("extra", "attention"), [((), None), (("light",), "mrla-light-released")])
def test_renamed_weights_compute_what_the_published_names_mean(extra, attention):
    state = drawn(published_shapes(50, extra))
    model = imagenet_resnet(50, layer_attention=attention).double().eval()
    model.load_state_dict(rename_weights(state))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        wanted = published_forward(state, images, STAGES[50], light="light" in extra)
        torch.testing.assert_close(model(images), wanted, rtol=1e-9, atol=1e-9)


def test_a_training_checkpoint_of_data_parallel_is_unwrapped():
    names = {"fc.weight": torch.zeros(2, 2), "layer3.22.mrla.lambda_t": torch.ones(4, 1, 1)}
    checkpoint = {"epoch": 90, "arch": "resnet101_mrlal",
                  "state_dict": {f"module.{name}": tensor for name, tensor in names.items()}}
    renamed = rename_weights(checkpoint)
    assert renamed.keys() == {"classifier.weight", "stages.2.22.layer_attention.lambda_o"}
    assert renamed["classifier.weight"] is names["fc.weight"]
    assert renamed["stages.2.22.layer_attention.lambda_o"].shape == (4,)
    assert checkpoint["state_dict"].keys() == {f"module.{name}" for name in names}


def test_old_files_without_counters_and_plain_weights_under_an_attention_load_too():
    with torch.device("meta"):
        published = {name: torch.empty(shape) for name, shape in published_shapes(50).items()
                     if not name.endswith("num_batches_tracked")}
        assert imagenet_resnet(50).load_state_dict(rename_weights(published), assign=True)
        model = imagenet_resnet(50, layer_attention="mrla-base")
        missing = model.load_state_dict(rename_weights(published), strict=False, assign=True)
    assert not missing.unexpected_keys
    assert all("attention" in name or name.endswith("num_batches_tracked") for name in missing.missing_keys)


@pytest.mark.parametrize(("state", "message"), [
    ({"layer5.0.conv1.weight": torch.zeros(1)}, "'layer5.0.conv1.weight' is a weight neither of"),
    ({"module.head.weight": torch.zeros(1)}, "'head.weight' is a weight neither"),
    ({"layer1.0.conv4.weight": torch.zeros(1)}, "'layer1.0.conv4.weight' is"),
    ({"layer1.0.mrla.mrla.Wq": torch.zeros(1)}, "'layer1.0.mrla.mrla.Wq' is"),
    (torch.zeros(1), "state must be a state dict, .*, not a Tensor"),
    ({0: torch.zeros(1)}, "the names in state must be texts, not 0"),
    ({"conv1.weight": torch.zeros(1), "module.conv1.weight": torch.ones(1)},
     "'module.conv1.weight' says the same as a name before it: both become 'stem.0.weight'"),
])
def test_what_no_published_net_has_is_refused(state, message):
    with pytest.raises(ValueError, match=message):
        rename_weights(state)
