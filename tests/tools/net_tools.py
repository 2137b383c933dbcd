"""Thin ResNets with any attention, images for them, and the least attention that can be plugged in."""

import re

import pytest
import torch
from torch import nn

from mrla_minimal import cifar_resnet

LISTS = ("layer", "mrla-base", "uniform")                       # their memory: a list of the earlier layers
CARRIES = ("mrla-light", "depthwise-carry")                         # their memory: their own last output
RELEASED = ("mrla-light-released", "depthwise-carry-released")      # they are given their block's input
GATES = ("mrla-light", "mrla-light-released", "depthwise-gated")
WEIGHTED = ("layer", "mrla-base", *GATES)


def small(name=None, block="basic", layers=2, seed=0, **arguments):
    """A thin ResNet with `layers` blocks a stage, whose branches and attention weights are far from 0."""
    torch.manual_seed(seed)
    depth = (6 if block == "basic" else 9) * layers + 2
    arguments = {"width": 4} | arguments
    model = cifar_resnet(depth, block=block, layer_attention=name, **arguments)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
        if isinstance(module, nn.Conv1d):
            nn.init.normal_(module.weight, std=0.5)
    return model


def images_of(count=4, size=8, seed=0, dtype=torch.float32):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def assert_refuses_wrong_images(model, wanted):
    """Of a net for colour images: whatever is no batch of them is refused, naming the shape `wanted`."""
    for images, given in (
            (torch.zeros(3, 8, 8), "(3, 8, 8) of torch.float32"),
            (torch.zeros(2, 1, 8, 8), "(2, 1, 8, 8) of torch.float32"),
            (torch.zeros(2, 8, 8, 3), "(2, 8, 8, 3) of torch.float32"),
            (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "(2, 3, 8, 8) of torch.uint8")):
        message = f"images must be a floating-point tensor of shape {wanted}, not {given}"
        with pytest.raises(ValueError, match=re.escape(message)):
            model(images)
    with pytest.raises(ValueError, match=re.escape(f"tensor of shape {wanted}, not list")):
        model([[0.0]])


def blocks_of(model):
    return [block for stage in model.stages for block in stage]


class ThirdOfTheInput(nn.Module):
    """The least that coursework can plug in: no attribute that the block looks for."""

    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 1 / 3))

    def forward(self, x, memory=None):
        return self.scale * x, (memory or 0) + 1
