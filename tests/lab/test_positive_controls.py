"""The hosts of the positive controls: what is wiped, what passes through a corridor, and both trained."""

import pytest
import torch
from tiny import tiny_cifar, tiny_config

from mrla_minimal import cifar_resnet, record_attention
from mrla_minimal.hosting import LAYER_ATTENTIONS
from mrla_minimal.lab.data import Cifar, Split, averaged
from mrla_minimal.lab.data.corridors import ANIMALS, VEHICLES, hang
from mrla_minimal.lab.engine import TrainConfig, build_model, evaluate, load_model, train
from mrla_minimal.lab.engine.folder import new_run_dir
from mrla_minimal.lab.engine.inputs import crop_padding, prepared
from mrla_minimal.lab.positive_controls import Corridor, wipe_streams

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def named(data):
    """Tiny images under the names of CIFAR-10's classes."""
    return Cifar(data.train, data.test, CLASSES, data.source, data.fingerprint)


def hung(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator).to(torch.uint8)
    split = Split(images, torch.arange(count) % 10)
    return Cifar(split, split, CLASSES, "cifar10", "none")


# ---- resolution ----------------------------------------------------------------------------------

def test_averaging_halves_by_means_of_squares():
    images = torch.randint(0, 256, (5, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    squares = images.double().unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5))
    small = averaged(images, 16)
    assert small.dtype == torch.uint8 and (small.double() - squares).abs().max() <= 0.5
    assert averaged(images, 32) is images
    for pixels in (24, 20):
        assert averaged(images, pixels).shape == (5, 3, pixels, pixels)
        assert abs(averaged(images, pixels).double().mean() - images.double().mean()) < 1


@pytest.mark.parametrize("pixels", [0, 33])
def test_averaging_refuses_other_sizes(pixels):
    with pytest.raises(ValueError, match=f"to 1 to 32, not to {pixels}"):
        averaged(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), pixels)


def test_crops_scale_with_the_resolution():
    assert [crop_padding(TrainConfig(resolution=pixels)) for pixels in (32, 24, 20, 16)] == [4, 3, 2, 2]


@pytest.mark.parametrize("resolution", [31, 16.0, True, "16"])
def test_only_four_resolutions(resolution):
    with pytest.raises(ValueError, match="resolution must be one of 32, 24, 20, 16, not"):
        TrainConfig(resolution=resolution)


def test_a_run_at_16_pixels_sees_16_pixels(tmp_path):
    result = train(tiny_config(resolution=16, epochs=1), tmp_path / "run", data=tiny_cifar(), progress=False)
    model, state = load_model(tmp_path / "run")
    assert state["config"]["resolution"] == 16 and result.test_accuracy >= 0
    small = prepared(TrainConfig(resolution=16), tiny_cifar()).test
    assert small.images.shape[2:] == (16, 16) and small.labels.equal(tiny_cifar().test.labels)


# ---- amnesia -------------------------------------------------------------------------------------

def stream_entering(model, images):
    """[stage][position]: what each block was given, in one forward pass."""
    seen, hooks = {}, []
    for number, stage in enumerate(model.stages):
        for position, block in enumerate(stage):
            def keep(module, inputs, output, place=(number, position)):
                seen[place] = inputs[0].detach()
            hooks.append(block.register_forward_hook(keep))
    model(images)
    for hook in hooks:
        hook.remove()
    return seen


def unlike_zero(name):
    """A net in which nothing is 0 but by a wipe."""
    torch.manual_seed(0)
    model = cifar_resnet(20, width=4, layer_attention=name)
    for stage in model.stages:
        for block in stage:
            torch.nn.init.normal_(block.attention_norm.bias)
    return model


def test_wiping_empties_whole_samples_before_all_but_a_stages_first_block():
    seen = stream_entering(wipe_streams(unlike_zero("depthwise"), 0.4).train(), torch.randn(200, 3, 8, 8))
    for (_, position), x in seen.items():
        empty = (x.flatten(1) == 0).all(dim=1)
        assert empty.sum() == 0 if position == 0 else 50 < empty.sum() < 110


def test_wiping_differs_between_layers_and_between_steps_of_training():
    model = wipe_streams(cifar_resnet(20, width=4), 0.4).train()
    first, second = (stream_entering(model, torch.randn(64, 3, 8, 8)) for _ in range(2))

    def empty(seen, place):
        return (seen[place].flatten(1) == 0).all(dim=1)

    assert not empty(first, (0, 1)).equal(empty(first, (0, 2)))
    assert not empty(first, (0, 1)).equal(empty(second, (0, 1)))


def test_in_evaluation_the_same_samples_are_wiped_for_every_net():
    images = torch.randn(64, 3, 8, 8)
    seen = [stream_entering(wipe_streams(unlike_zero(name), 0.4).eval(), images)
            for name in ("depthwise", "mrla-light")]
    for place in seen[0]:
        empty = [(each[place].flatten(1) == 0).all(dim=1) for each in seen]
        assert empty[0].equal(empty[1])


@pytest.mark.parametrize("name, keeps", [("mrla-base", True), ("uniform", True), ("mrla-light", True),
                                         ("depthwise-carry", True), ("mrla-light-released", False),
                                         ("depthwise", False), (None, False)])
def test_memory_survives_a_wipe_and_the_released_light_has_none(name, keeps):
    torch.manual_seed(0)
    model = cifar_resnet(20, width=8, layer_attention=name).eval()
    block = model.stages[0][1]
    block.register_forward_pre_hook(lambda module, inputs: (torch.zeros_like(inputs[0]), *inputs[1:]))
    images = torch.randn(2, 3, 8, 8, requires_grad=True)
    x, memory = model.stages[0][0](model.stem(images), None)
    x, memory = block(x, memory)
    gradient = None
    if x.requires_grad:
        (gradient,) = torch.autograd.grad(x.square().sum(), images, allow_unused=True)
    assert (gradient is not None and bool(gradient.any())) == keeps


@pytest.mark.parametrize("probability", [-0.1, 1.0])
def test_a_wipe_is_a_probability(probability):
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        wipe_streams(cifar_resnet(8), probability)
    with pytest.raises(ValueError, match="wipe must be a number of at least 0 and below 1"):
        TrainConfig(wipe=probability)


def test_an_amnesia_run_evaluates_to_its_own_accuracy(tmp_path):
    config = tiny_config(depth=14, wipe=0.3, layer_attention="uniform", epochs=1)
    result = train(config, tmp_path / "run", data=tiny_cifar(), progress=False)
    model, _ = load_model(tmp_path / "run")
    assert [evaluate(model, tiny_cifar().test)[1] for _ in range(2)] == [result.test_accuracy] * 2


# ---- the corridor --------------------------------------------------------------------------------

def test_a_corridors_label_is_what_hangs_in_the_room_that_is_asked_for():
    cifar = hung(40)
    found = hang(cifar.train, CLASSES, 0)
    small = averaged(cifar.train.images, 8)
    assert found.images.shape == (40, 3, 8, 72) and sorted(ANIMALS + VEHICLES) == sorted(CLASSES)
    for image, label in zip(found.images, found.labels, strict=True):
        question = image[:, :, 64:]
        (asked,) = (question[0, 0] == 255).nonzero()[:, 0].tolist()
        assert question.sum() == 255 * 3 * 8
        tile = image[:, :, 8 * asked : 8 * asked + 8]
        (which,) = (small == tile).all(dim=(1, 2, 3)).nonzero()[:, 0].tolist()
        assert label == (CLASSES[cifar.train.labels[which]] in VEHICLES)


def test_corridors_are_the_same_every_time_and_differ_between_the_splits():
    one, two = (prepared(TrainConfig(model="corridor"), hung(40)) for _ in range(2))
    assert one.train.images.equal(two.train.images) and not one.train.images.equal(one.test.images)
    assert one.classes == ("animal", "vehicle") and one.validation is None


def test_no_image_hangs_in_training_corridors_and_in_those_held_out():
    found = prepared(TrainConfig(model="corridor", validation=True), hung(40))
    assert len(found.train) == 36 and len(found.validation) == 4
    tiles = [{tile.numpy().tobytes() for image in split.images for tile in image.split(8, dim=2)[:8]}
             for split in (found.train, found.validation)]
    assert len(tiles[0]) == 36 and len(tiles[1]) == 4 and not tiles[0] & tiles[1]


def test_corridors_are_of_cifar_10_alone():
    with pytest.raises(ValueError, match="corridors need the ten classes of CIFAR-10, not a, b"):
        prepared(TrainConfig(model="corridor"), tiny_cifar())


@pytest.mark.parametrize("name", [None, *(name for name in LAYER_ATTENTIONS if "released" not in name)])
def test_every_attention_fits_the_corridor(name):
    torch.manual_seed(0)
    model = Corridor(4, name)
    logits = model(torch.randn(6, 3, 8, 72))
    assert logits.shape == (6, 2)
    logits.sum().backward()
    with record_attention(model) as weights:
        model(torch.randn(6, 3, 8, 72))
    if name == "mrla-base":
        assert [tuple(row.shape) for row in weights[0]] == [(6, 1, layer) for layer in range(1, 10)]


@pytest.mark.parametrize("name", ["mrla-light-released", "depthwise-carry-released"])
def test_a_corridor_has_no_block_input(name):
    with pytest.raises(ValueError, match="no input to hand over in place of the memory"):
        Corridor(4, name)


def test_only_the_exit_knows_the_question_and_only_memory_brings_it_a_room():
    torch.manual_seed(0)
    images = torch.randn(4, 3, 8, 72)
    other = images.clone()
    other[:, :, :, :64] = torch.randn(4, 3, 8, 64)
    for name, sees in (("depthwise", False), ("mrla-base", True), ("mrla-light", True), ("uniform", True)):
        model = Corridor(4, name).eval()
        assert model(images).allclose(model(other)) != sees


def test_all_variants_of_a_seed_share_their_host():
    nets = []
    for name in ("uniform", "mrla-base"):
        torch.manual_seed(3)
        nets.append(Corridor(4, name).state_dict())
    shared = [key for key in nets[0] if "layer_attention" not in key]
    assert len(shared) > 20 and all(nets[0][key].equal(nets[1][key]) for key in shared)


def test_a_corridor_refuses_other_images_and_other_options():
    with pytest.raises(ValueError, match=r"corridors \(batch, 3, 8, 72\), not \(2, 3, 32, 32\)"):
        Corridor(4, None)(torch.zeros(2, 3, 32, 32))
    for field, value in (("resolution", 16), ("wipe", 0.1), ("augment", "on"), ("channel_attention", "se"),
                         ("drop_path", 0.1), ("depth", 56), ("dataset", "cifar100"), ("shortcut", "conv"),
                         ("layer_attention", "depthwise-relu")):
        with pytest.raises(ValueError, match=f"{field} must be .* with model 'corridor'"):
            TrainConfig(**{"model": "corridor", field: value})


def test_the_engine_trains_a_corridor_and_reads_it_back(tmp_path):
    config = TrainConfig(model="corridor", width=4, layer_attention="mrla-base", optimizer="adamw",
                         learning_rate=0.01, batch_size=16, steps=8, device="cpu")
    result = train(config, tmp_path / "run", data=named(tiny_cifar()), progress=False)
    model, state = load_model(tmp_path / "run")
    assert isinstance(model, Corridor) and state["classes"] == ["animal", "vehicle"]
    assert 0 <= result.test_accuracy <= 1


def test_adamw_steps_differ_from_sgd(tmp_path):
    sgd, adamw = (train(tiny_config(optimizer=name, epochs=1), tmp_path / name, data=tiny_cifar(),
                        progress=False) for name in ("sgd", "adamw"))
    assert sgd.metrics[0]["train_loss"] != adamw.metrics[0]["train_loss"]


# ---- the further variants ------------------------------------------------------------------------

def test_a_base_with_zero_queries_starts_as_the_uniform_mean():
    config = {"depth": 20, "width": 8, "device": "cpu"}
    nets = [build_model(TrainConfig(layer_attention=name, **config), 10).eval()
            for name in ("base-zero-query", "uniform")]
    nets[1].load_state_dict(nets[0].state_dict(), strict=False)
    images = torch.randn(3, 3, 16, 16)
    assert nets[0](images).allclose(nets[1](images), atol=1e-5)
    nets[0].train()(images).square().sum().backward()
    assert nets[0].stages[0][2].layer_attention.query.weight.grad.any()      # and then it may choose


def test_depthwise_relu_is_depthwise_with_the_relu_of_base():
    with_relu, without = (build_model(TrainConfig(depth=20, width=8, layer_attention=name), 10)
                          for name in ("depthwise-relu", "depthwise"))
    assert with_relu.stages[0][0].relu_after_norm and not without.stages[0][0].relu_after_norm
    assert all(a.equal(b) for a, b in zip(with_relu.parameters(), without.parameters(), strict=True))


@pytest.mark.parametrize("changes, text", [
    ({}, "ResNet-20"), ({"resolution": 16, "wipe": 0.15, "depth": 26}, "ResNet-26 at 16 pixels, 15 % wiped"),
    ({"model": "corridor", "width": 4}, "corridor of 4 channels")])
def test_a_run_says_what_its_host_is(changes, text, tmp_path):
    config = TrainConfig(**changes)
    assert config.host_text == text
    assert new_run_dir(config, tmp_path).name.startswith(text.lower().split()[0].replace("-", ""))
