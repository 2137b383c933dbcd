"""The CIFAR corridor: eight rooms, each a small CIFAR image, and an exit that is asked about one of them.

A corridor is itself an image, uint8 (3, 8, 72): eight tiles of 8 x 8 pixels, the rooms, and a ninth that
holds the question, white in the column of the room that is asked for and black elsewhere. The label says
what hangs in that room: an animal or a vehicle. Six of CIFAR-10's ten classes are animals, so guessing
reaches 60 %.
"""

import torch

from mrla_minimal.lab.data.images import Split, averaged

ROOMS = 8
TILE = 8        # pixels, each way
KINDS = ("animal", "vehicle")
VEHICLES = ("airplane", "automobile", "ship", "truck")
ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse")


def require_cifar10(classes: tuple[str, ...]) -> None:
    """ValueError unless these are CIFAR-10's classes, of which it is known which are animals."""
    if sorted(classes) != sorted(ANIMALS + VEHICLES):
        raise ValueError(f"corridors need the ten classes of CIFAR-10, not {', '.join(classes)}")


def hang(split: Split, classes: tuple[str, ...], seed: int) -> Split:
    """As many corridors as the split has images, each of which hangs in eight of them.

    What hangs where, and which room is asked for, follows from the seed. Labels: 0 animal, 1 vehicle.
    """
    count, cpu = len(split), {"device": "cpu"}
    generator = torch.Generator("cpu").manual_seed(seed)
    tiles = averaged(split.images, TILE)                                                # (N, 3, 8, 8)
    hung = [torch.randperm(count, generator=generator, **cpu) for _ in range(ROOMS)]    # eight of (N,)
    asked = torch.randint(ROOMS, (count,), generator=generator, **cpu)                  # (N,)
    question = torch.zeros(count, 3, TILE, TILE, dtype=torch.uint8, **cpu)
    question[torch.arange(count, **cpu), :, :, asked] = 255
    chosen = torch.stack(hung, dim=1).gather(1, asked[:, None])[:, 0]       # the image that is asked for
    is_vehicle = torch.tensor([name in VEHICLES for name in classes], dtype=torch.int64, **cpu)
    images = torch.cat([*(tiles[room] for room in hung), question], dim=3)              # (N, 3, 8, 72)
    return Split(images, is_vehicle[split.labels[chosen]])
