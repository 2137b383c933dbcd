"""Twenty float64 training steps with GroupNorm in BN's place; under torchrun, data-parallel. Rank 0 writes what came out.

    python tests/tools/parallel_steps.py OUT.json          # or: torchrun --nproc-per-node 2 tests/tools/parallel_steps.py OUT.json

BN would differ: each process normalises by its own share of the batch. With GroupNorm one process and two must agree.
"""

import json
import sys

import torch
from tiny import tiny_cifar, tiny_config
from torch import nn

from mrla_minimal.lab.device import join_world
from mrla_minimal.lab.engine import run as running


def without_batch_norm(module):
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            norm = nn.GroupNorm(2, child.num_features)
            norm.load_state_dict({"weight": child.weight.data, "bias": child.bias.data})
            setattr(module, name, norm)
        else:
            without_batch_norm(child)
    return module


def main(path):
    torch.set_num_threads(1)
    build = running.build_model
    running.build_model = lambda *arguments: without_batch_norm(build(*arguments)).double()
    world = join_world("cpu")
    run = running.Run(tiny_config(epochs=4, steps=20, drop_path=0.0, layer_attention="mrla-base"), world, data=tiny_cifar())
    losses = []
    while not run.finished:
        run.train_step()
        if run.step % run.steps_per_epoch == 0 or run.finished:
            run.read_losses()
            losses += run.losses
            record = run.close_epoch()
    if world.rank == 0:
        with open(path, "w") as file:
            json.dump({"losses": losses, "processes": world.size, "record": record}, file)


if __name__ == "__main__":
    main(sys.argv[1])
