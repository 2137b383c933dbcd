"""Hosts of the positive controls: nets in which memory, or choice, must help, whatever images need.

If a measurement finds nothing on CIFAR, it should be known to find something where there is something to
find.

* The amnesia host is a ResNet whose stream is wiped now and then (`wipe_streams`): what a layer handed on
  is lost, unless the layer attention kept it. It asks for memory.
* The corridor is a net of nine layers (`Corridor`): eight rooms, each with an image of its own, and an exit
  that is told which room is asked for. It asks for choice.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mrla_minimal.hosting import AttentionFactory, attention_factory
from mrla_minimal.lab.data.corridors import ROOMS, TILE


def wipe_streams(model: nn.Module, probability: float) -> nn.Module:
    """Wipe a sample's stream before each block but a stage's first, with this probability.

    So it goes in training and in evaluation. A wiped sample enters its block as zeros, by the shortcut as
    well; the memory of the layer attention is left alone. Returns the model, with a forward pre-hook on
    each of those blocks. Raises ValueError unless 0 <= probability < 1.
    """
    if not 0.0 <= probability < 1.0:
        raise ValueError("the probability of a wiped stream must be at least 0 and below 1, "
                         f"not {probability!r}")
    for number, stage in enumerate(model.stages):
        for position, block in enumerate(stage):
            if position > 0:
                block.register_forward_pre_hook(_Wipe(probability, seed=100 * number + position))
    return model


class _Wipe:
    """The hook. In evaluation it wipes the same samples of every batch, for every net: one accuracy each."""

    def __init__(self, probability, seed):
        self.probability, self.seed = probability, seed

    def __call__(self, block, inputs):
        x, *others = inputs
        if block.training:
            keep = torch.empty(len(x), 1, 1, 1, dtype=x.dtype, device=x.device)
            keep.bernoulli_(1.0 - self.probability)
        else:       # drawn on the CPU, where every machine draws alike
            generator = torch.Generator("cpu").manual_seed(self.seed)
            keep = torch.empty(len(x), 1, 1, 1, device="cpu")
            keep = keep.bernoulli_(1.0 - self.probability, generator=generator).to(x)
        return x * keep, *others


class Room(nn.Module):
    """One layer of the corridor: a linear map of what it sees to a feature map of one pixel, then attention.

    forward(seen, memory) -> (output, memory): seen (batch, inputs), output (batch, channels, 1, 1).
    """

    def __init__(self, inputs: int, channels: int, attention: nn.Module | None):
        super().__init__()
        self.enter = nn.Linear(inputs, channels)
        self.layer_attention = attention

    def forward(self, seen: Tensor, memory: Any = None) -> tuple[Tensor, Any]:
        x = self.enter(seen)[:, :, None, None]                              # (batch, channels, 1, 1)
        return (x, None) if self.layer_attention is None else self.layer_attention(x, memory)


class Corridor(nn.Module):
    """Eight rooms and an exit, nine layers of one stage: corridors -> logits (batch, classes).

    forward(images): corridors as data/corridors.py makes them, normalised, (batch, 3, 8, 72).

    One small convolutional net, the eye, looks at all rooms alike; each room has a linear map of its own to
    the `channels` numbers that its layer holds. The exit sees the question alone. What its attention gets
    out of the rooms, and the question, go to the readout. So all that is known of a room has to pass
    through `channels` numbers.
    """

    def __init__(self, channels: int, layer_attention: str | AttentionFactory | None, num_classes: int = 2,
                 head_dim: int | None = None, features: int = 32):
        super().__init__()
        self.eye = nn.Sequential(                                           # 8 x 8 -> 4 x 4 -> 2 x 2 pixels
            nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, features, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(features), nn.ReLU(),
            nn.Conv2d(features, features, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(features),
            nn.ReLU())
        rooms = [Room(features, channels, None) for _ in range(ROOMS)] + [Room(ROOMS, channels, None)]
        self.stages = nn.ModuleList([nn.ModuleList(rooms)])
        self.readout = nn.Sequential(nn.Linear(channels + ROOMS, 32), nn.ReLU(), nn.Linear(32, num_classes))
        if layer_attention is not None:     # last, so that all variants of one seed share their host's start
            build = attention_factory(layer_attention, head_dim)
            for room in rooms:
                room.layer_attention = build(channels)
                if getattr(room.layer_attention, "takes_block_input", False):
                    raise ValueError("a layer of the corridor has no input to hand over in place of the "
                                     f"memory, which {type(room.layer_attention).__name__} asks for")

    def forward(self, images: Tensor) -> Tensor:
        if images.dim() != 4 or tuple(images.shape[1:]) != (3, TILE, TILE * (ROOMS + 1)):
            raise ValueError(f"images must be corridors (batch, 3, {TILE}, {TILE * (ROOMS + 1)}), "
                             f"not {tuple(images.shape)}")
        *tiles, question = images.split(TILE, dim=3)                        # nine of (batch, 3, 8, 8)
        seen = self.eye(torch.cat(tiles)).mean(dim=(2, 3)).chunk(ROOMS)     # eight of (batch, features)
        asked = (question[:, 0, 0] > 0).to(images.dtype)                    # (batch, 8), one-hot
        memory = None
        for room, sight in zip(self.stages[0], (*seen, asked), strict=True):
            output, memory = room(sight, memory)                            # (batch, channels, 1, 1)
        return self.readout(torch.cat([output.flatten(1), asked], dim=1))   # (batch, classes)
