"""A tiny data set and run for the tests of the engine; as a script, one run of it in a process of its own.

    python tests/tools/tiny.py RUN_DIR [--resume] [--checkpoint-seconds S] [--epochs E] [--pause P]
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from mrla_minimal.lab.data import Cifar, Split
from mrla_minimal.lab.device import World
from mrla_minimal.lab.engine import Run, TrainConfig, TrainingInterrupted, train

CLASSES = tuple("abcdefghij")


def tiny_cifar(name="cifar10", root=None, source="auto"):
    """Ten classes told apart by their mean colour: 96 + 40 images. It can stand in for load_cifar."""
    generator = torch.Generator().manual_seed(0)
    splits = []
    for count in (96, 40):
        labels = torch.arange(count) % 10
        base = (25 * labels)[:, None, None, None] + torch.tensor([0, 3, 6])[:, None, None]
        images = base + torch.randint(0, 10, (count, 3, 32, 32), generator=generator)
        splits.append(Split(images.clamp(0, 255).to(torch.uint8), labels))
    return Cifar(*splits, CLASSES, "synthetic", "tiny")


def tiny_config(**changes):
    fields = {"depth": 8, "width": 4, "epochs": 2, "batch_size": 16, "warmup_epochs": 1.0, "drop_path": 0.2,
              "device": "cpu"}
    return TrainConfig(**{**fields, **changes})


def tiny_run(**changes):
    """A Run of the tiny data on this process, at its first step."""
    return Run(tiny_config(**changes), World(0, 1, torch.device("cpu")), data=tiny_cifar())


def losses_of(run, steps=None):
    """A Run's losses, once it has made so many steps; None: to its end."""
    while not run.finished and run.step != steps:
        run.train_step()
    run.read_losses()
    return run.losses


def tiny_train(config, run_dir, **options):
    """train() on the tiny data, without a progress bar; returns its Result."""
    return train(config, run_dir, **{"data": tiny_cifar(), "progress": False, **options})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--checkpoint-seconds", type=float, default=0.0)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds to sleep in each batch")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.pause:
        batch = Run.batch

        def slow_batch(state):
            time.sleep(arguments.pause)
            return batch(state)

        Run.batch = slow_batch
    try:
        tiny_train(tiny_config(epochs=arguments.epochs), arguments.run_dir, resume=arguments.resume,
                   checkpoint_seconds=arguments.checkpoint_seconds)
    except TrainingInterrupted as interrupt:
        print(interrupt, flush=True)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
