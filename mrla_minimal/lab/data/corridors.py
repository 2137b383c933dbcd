"""The CIFAR corridor: eight rooms, each a small CIFAR image, and an exit that is asked about one of them.

A corridor is itself an image, uint8 (3, 8, 72): eight tiles of 8 x 8 pixels, the rooms, and a ninth that
holds the question, white in the column of the room that is asked for and black elsewhere. The label says
what hangs in that room: an animal or a vehicle. Six of CIFAR-10's ten classes are animals, so guessing
reaches 60 %.
"""

import torch

from mrla_minimal.lab.data.images import Cifar, Split, averaged

ROOMS = 8
TILE = 8        # pixels, each way
VEHICLES = ("airplane", "automobile", "ship", "truck")
ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse")


def corridors(cifar: Cifar) -> Cifar:
    """As many corridors as there are images, in each split.

    What hangs where, and which room is asked for, is the same every time. Every image hangs in eight
    corridors. Raises ValueError unless the classes are CIFAR-10's.
    """
    if sorted(cifar.classes) != sorted(ANIMALS + VEHICLES):
        raise ValueError(f"corridors need the ten classes of CIFAR-10, not {', '.join(cifar.classes)}")
    is_vehicle = torch.tensor([name in VEHICLES for name in cifar.classes]).long()
    splits = [_corridors_of(split, is_vehicle, seed) for seed, split in enumerate((cifar.train, cifar.test))]
    return Cifar(*splits, ("animal", "vehicle"), cifar.source, cifar.fingerprint)


def _corridors_of(split, is_vehicle, seed):
    count, generator = len(split), torch.Generator().manual_seed(seed)
    tiles = averaged(split.images, TILE)                                    # (N, 3, 8, 8)
    hung = torch.stack([torch.randperm(count, generator=generator) for _ in range(ROOMS)], dim=1)   # (N, 8)
    asked = torch.randint(ROOMS, (count,), generator=generator)             # (N,)
    question = torch.zeros(count, 3, TILE, TILE, dtype=torch.uint8)
    question[torch.arange(count), :, :, asked] = 255
    rooms = [tiles[hung[:, room]] for room in range(ROOMS)]                 # eight of (N, 3, 8, 8)
    chosen = hung.gather(1, asked[:, None])[:, 0]                           # which image is asked for
    return Split(torch.cat([*rooms, question], dim=3), is_vehicle[split.labels[chosen]])
