"""The denoiser of notebook 17: what its variants share, where they differ, and that they learn."""

import math

import pytest
import torch
from tiny import tiny_cifar

from mrla_minimal.course import denoising
from mrla_minimal.course.denoising import (
    VARIANTS,
    Denoiser,
    MeanOfMaps,
    SameLayer,
    add_noise,
    denoise,
    look_sideways,
    psnr,
    train_denoiser,
)
from mrla_minimal.family.sideways import AdaptiveCrossLayerAttention, SidewaysAttention
from mrla_minimal.lab.cost import count_parameters

every_variant = pytest.mark.parametrize("variant", VARIANTS)


def randomised(module, seed=3):
    torch.manual_seed(seed)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def test_psnr_by_hand():
    wanted = torch.zeros(3, 1, 2, 2)
    given = torch.stack([torch.full((1, 2, 2), value) for value in (1.0, 0.1, 0.01)])
    given[0, 0, 0, 0] = 0.0                                     # a mean squared error of 3/4
    assert psnr(given, wanted).tolist() == pytest.approx([10 * math.log10(4 / 3), 20, 40], abs=1e-4)
    with pytest.raises(ValueError, match=r"one shape, not \(3, 1, 2, 2\) and \(1, 2, 2\)"):
        psnr(given, wanted[0])


def test_noise_has_its_size_and_its_seed():
    images = torch.full((16, 3, 32, 32), 0.5)
    noise = add_noise(images, 1) - images
    assert noise.std().item() == pytest.approx(25 / 255, rel=0.02) and abs(noise.mean().item()) < 0.002
    assert torch.equal(add_noise(images, 1), add_noise(images, 1))
    assert not torch.equal(add_noise(images, 1), add_noise(images, 2))
    assert psnr(add_noise(images, 1), images).mean().item() == pytest.approx(20.17, abs=0.1)


@every_variant
def test_variants_of_a_seed_begin_as_the_same_net(variant):
    nets = []
    for name in ("plain", variant):
        torch.manual_seed(0)
        nets.append(Denoiser(name))
    images = torch.rand(2, 3, 8, 12)
    plain, other = (net(images) for net in nets)
    assert plain.shape == images.shape and torch.equal(plain, other)
    assert variant == "plain" or not torch.equal(*(randomised(net)(images) for net in nets))


def test_the_controls_differ_only_where_they_should():
    same, sideways, adaptive = (Denoiser(name) for name in ("same-layer", "sideways", "acla"))
    assert count_parameters(same) == count_parameters(sideways) < count_parameters(adaptive)
    assert [each.keys for each in same.attentions] == [4, 8, 12]
    x, earlier = torch.randn(2, 5, 6, 7), [torch.randn(2, 5, 6, 7) for _ in range(2)]
    mean, still = randomised(MeanOfMaps(5)), SidewaysAttention(5, radius=0, most_layers=3)
    still.value.load_state_dict(mean.value.state_dict())
    output, memory = mean(x, earlier)
    assert torch.allclose(output, still(x, earlier)[0], atol=1e-5) and len(memory) == 3 and len(earlier) == 2
    alone = randomised(SameLayer(5, keys=8, most_layers=1))
    read, nothing = alone(x, None)
    assert nothing is None and torch.equal(read, SidewaysAttention.forward(alone, x)[0])


@pytest.mark.parametrize(("variant", "kind"), [
    ("mean", MeanOfMaps), ("sideways", SidewaysAttention), ("acla", AdaptiveCrossLayerAttention)])
def test_a_layer_reads_all_maps_before_it_and_one_of_same_layer_none(variant, kind):
    model = randomised(Denoiser(variant))
    assert all(type(each) is kind for each in model.attentions)
    lengths = []
    for attention in model.attentions:
        attention.register_forward_hook(lambda module, given, output: lengths.append(len(output[1])))
    model(torch.rand(1, 3, 8, 8))
    assert lengths == [1, 2, 3]


@pytest.mark.parametrize("variant", ["plain", "acla"])
def test_a_few_steps_lower_the_error(variant):
    cifar = tiny_cifar()
    clean = cifar.test.images / 255
    noisy = add_noise(clean, 7)
    before, after = (psnr(denoise(train_denoiser(cifar, variant, steps=steps), noisy), clean).mean().item()
                     for steps in (1, 40))
    assert after > before + 1


def test_training_is_the_same_for_the_same_seed_only():
    cifar, state = tiny_cifar(), torch.get_rng_state()
    first, again, other = (train_denoiser(cifar, "mean", seed, steps=2).leave.weight for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_where_the_keys_lie_and_what_they_weigh():
    torch.manual_seed(0)
    model, noisy = Denoiser("acla"), torch.rand(3, 3, 8, 8)
    looked = look_sideways(model, noisy, block=2)
    assert looked["weights"] == [pytest.approx([1.0]), pytest.approx([1 / 2] * 2), pytest.approx([1 / 3] * 3)]
    assert looked["moved"] == pytest.approx([0.0] * 3, abs=1e-6) and looked["open"] == [1.0] * 3
    assert looked["varies"] == pytest.approx([0.0] * 3, abs=1e-6)
    second = model.attentions[1]
    with torch.no_grad():
        second.logits.bias[4:] += math.log(3)               # the first map's keys: three times as heavy
        second.offsets.bias[8:] += torch.tensor([0.0, 2.0]).repeat(4)       # and two pixels further right
        second.gates.bias[0] = -1.0                                 # one key of the second map is shut
    looked = look_sideways(model, noisy)
    assert looked["weights"][1] == pytest.approx([12 / 15, 3 / 15])
    assert looked["moved"][1] == pytest.approx(2 * 12 / 15) and looked["open"][1] == 7 / 8
    second.offsets.weight.data.normal_()
    assert look_sideways(model, noisy)["varies"][1] > 0.1
    assert look_sideways(Denoiser("same-layer"), noisy)["weights"] == [pytest.approx([1.0])] * 3


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="variant must be one of 'plain', 'mean', .*, not 'best'"):
        Denoiser("best")
    with pytest.raises(ValueError, match=r"images must be .*\(batch, 3, height, width\)"):
        Denoiser()(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="layers must be a positive integer, not 0"):
        Denoiser(layers=0)
    with pytest.raises(ValueError, match="steps must be a positive integer, not 0"):
        train_denoiser(tiny_cifar(), "plain", steps=0)
    for variant in ("plain", "mean"):
        with pytest.raises(ValueError, match="must have keys: same-layer, sideways or acla"):
            look_sideways(Denoiser(variant), torch.zeros(1, 3, 8, 8))
    assert denoising.images_to_clean(tiny_cifar(), 5)[0].shape == (5, 3, 32, 32)
