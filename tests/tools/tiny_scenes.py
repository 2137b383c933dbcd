"""Bright discs on a dark ground in place of nuclei; as a script, one run of a detector in its own process.

    python tests/tools/tiny_scenes.py RUN_DIR [--resume] [--checkpoint-seconds S] [--epochs E] [--pause P]
"""

import sys

import tiny
import torch
from tiny import tiny_train

from mrla_minimal.boxes import label_boxes
from mrla_minimal.lab.data.blood import Blood
from mrla_minimal.lab.data.nuclei import Nuclei
from mrla_minimal.lab.data.scenes import Scenes
from mrla_minimal.lab.engine import TrainConfig


def discs(count, size=64, seed=0):
    """Nuclei: `count` images of up to seven discs, none on another; every second image is "stained"."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.arange(size)[:, None] + 0.5, torch.arange(size) + 0.5
    images = 20 + 8 * torch.randn(count, 3, size, size, generator=generator)
    labels = torch.zeros(count, size, size, dtype=torch.int16)
    for image in range(count):
        number = 0
        for _ in range(7):
            radius, x, y = (torch.rand(3, generator=generator) * torch.tensor([12.0, size, size])).tolist()
            disc = (columns - x) ** 2 + (rows - y) ** 2 < (radius + 3) ** 2
            if not labels[image][disc].any() and disc.sum() > 20:
                number += 1
                labels[image][disc] = number
                images[image] += disc * (80 + 80 * torch.rand(3, 1, 1, generator=generator))
    return Nuclei(images.clamp(0, 255).to(torch.uint8), labels, tuple(f"image{i}" for i in range(count)),
                  tuple(("fluorescence", "stained")[i % 2] for i in range(count)),
                  tuple(f"field{i // 2}" for i in range(count)))


def tiny_scenes(count=8, size=64, crop=32):
    """Scenes of discs with masks: the same images to train on and to test on."""
    split = discs(count, size)
    return Scenes(split, discs(4, size, seed=1), split, ("disc",), "discs", "discs, version 1", crop)


def tiny_cells():
    """Scenes of discs as Blood has them: boxes of two of its classes, no masks."""
    def cells(split):
        boxes = [label_boxes(labels[None].long(), int(labels.max()))[0] for labels in split.labels]
        return Blood(split.images, tuple(boxes), tuple(torch.arange(len(some)) % 2 for some in boxes),
                     split.names)

    scenes = tiny_scenes()
    return Scenes(*map(cells, (scenes.train, scenes.validation, scenes.test)), ("RBC", "WBC", "Platelets"),
                  "cells", "cells, version 1", 32)


def detection_config(**changes):
    fields = {"dataset": "nuclei", "depth": 8, "width": 8, "epochs": 2, "batch_size": 4, "drop_path": 0.2,
              "warmup_epochs": 0.5, "optimizer": "adamw", "learning_rate": 6e-3, "device": "cpu"}
    return TrainConfig(**{**fields, **changes})


def detection_train(config, run_dir, **options):
    """train() on the discs, without a progress bar; returns its Result."""
    return tiny_train(config, run_dir, **{"data": tiny_scenes(), **options})


if __name__ == "__main__":
    tiny.tiny_config, tiny.tiny_cifar = detection_config, tiny_scenes
    sys.exit(tiny.main())
