import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mrla_minimal.lab.data.synthetic import (
    CLASSES,
    SHAPES,
    TEXTURES,
    _texture_mask,
    class_of,
    paint,
    synthetic_images,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_types_sizes_and_balance():
    images, labels = synthetic_images(400, seed=5)
    assert images.shape == (400, 3, 32, 32) and images.dtype == torch.uint8
    assert labels.dtype == torch.int64 and labels.bincount().tolist() == [40] * 10
    assert images.float().std() > 20 and len(images.flatten(1).unique(dim=0)) == 400


def test_the_seed_says_it_all():
    first, again, other = synthetic_images(1_100, 7), synthetic_images(1_100, 7), synthetic_images(1_100, 8)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0]) and not torch.equal(first[1], other[1])


@pytest.mark.parametrize("count", [0, -3])
def test_no_pictures_is_an_error(count):
    with pytest.raises(ValueError, match=f"count must be at least 1, got {count}"):
        synthetic_images(count, 0)


def test_neither_factor_alone_tells_the_class():
    pairs = list(itertools.product(range(len(SHAPES)), range(len(TEXTURES))))
    for label in range(10):
        makers = [pair for pair in pairs if class_of(*pair) == label]
        assert len(makers) == 2 and all(a != b for a, b in zip(*makers, strict=True))
    # All pairs are equally frequent: who guesses from one factor is right as often as its commonest class.
    for shape in range(len(SHAPES)):
        assert len({class_of(shape, texture) for texture in range(len(TEXTURES))}) == 4
    for texture in range(len(TEXTURES)):
        assert len({class_of(shape, texture) for shape in range(len(SHAPES))}) == 5


def test_the_names_say_what_the_classes_are():
    assert len(set(CLASSES)) == 10
    for shape, texture in itertools.product(range(len(SHAPES)), range(len(TEXTURES))):
        assert f"{TEXTURES[texture]} {SHAPES[shape]}" in CLASSES[class_of(shape, texture)].split(" or ")


def nearest_mean(train, train_kind, test, kinds):
    means = torch.stack([train[train_kind == kind].mean(0) for kind in range(kinds)])
    return torch.cdist(test.flatten(1), means.flatten(1)).argmin(1)


def test_blurring_removes_the_texture_and_leaves_the_shape():
    """Under a 4 x 4 blur all textures look alike; the contrast of neighbours tells them apart."""
    texture = torch.arange(len(TEXTURES)).repeat(500)
    pictures = paint(torch.zeros_like(texture), texture, generator()).float()
    grey = pictures[..., 8:24, 8:24].mean(1)  # the disc's middle
    across = (grey[:, :, 2:] - grey[:, :, :-2]).abs().mean((1, 2))
    along = (grey[:, 2:] - grey[:, :-2]).abs().mean((1, 2))
    fine = torch.stack([across, along], 1)
    blurred = F.avg_pool2d(grey, 4, stride=1).flatten(1).sub(grey.mean((1, 2))[:, None])
    train, test = slice(0, 1_000), slice(1_000, None)

    def accuracy(features):
        guess = nearest_mean(features[train], texture[train], features[test], 4)
        return (guess == texture[test]).float().mean()

    assert accuracy(fine) > 0.5
    assert accuracy(blurred) < 0.35  # chance is 0.25


def test_textures_are_light_over_exactly_half_of_any_4_by_4_pixels():
    texture = torch.arange(len(TEXTURES)).repeat(50)
    light = _texture_mask(texture, generator()).float()
    assert (F.avg_pool2d(light, 4, stride=1) == 0.5).all()
    assert len(light.flatten(1).unique(dim=0)) == 4 + 4 + 8 + 8  # every kind and start, slants to both sides


def test_a_mirror_changes_no_class():
    """In a mirror every shape and texture is one of its own kind: both sides' features have equal means."""
    for shape, texture in itertools.product(range(len(SHAPES)), range(len(TEXTURES))):
        count = 300
        pictures = paint(torch.full((count,), shape), torch.full((count,), texture), generator(1))
        pictures = pictures.float().mean(1)
        slant = (pictures[:, 1:, 1:] - pictures[:, :-1, :-1]).abs().mean((1, 2)) - (
            pictures[:, 1:, :-1] - pictures[:, :-1, 1:]).abs().mean((1, 2))
        assert slant.mean().abs() < 4 * slant.std() / count**0.5


def test_a_small_net_learns_it():
    torch.manual_seed(0)
    (images, labels), (test_images, test_labels) = synthetic_images(4_000, 0), synthetic_images(1_000, 1)

    def block(inputs, outputs):
        return nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()

    head = nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(64, 10)
    net = nn.Sequential(*block(3, 16), *block(16, 32), *block(32, 64), *head)
    batches = torch.cat([torch.randperm(4_000) for _ in range(5)]).split(100)
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.01, total_steps=len(batches))
    for batch in batches:
        loss = F.cross_entropy(net(images[batch] / 64 - 2), labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    net.eval()
    accuracy = (net(test_images / 64 - 2).argmax(1) == test_labels).float().mean()
    assert accuracy > 0.3  # more than the shape alone (0.25) or the texture alone (0.2) allows
