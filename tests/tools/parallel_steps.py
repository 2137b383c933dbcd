"""What data-parallel training must agree on, in one process or several. Rank 0 writes what came out.

    python tests/tools/parallel_steps.py OUT.json
    torchrun --nproc-per-node 2 tests/tools/parallel_steps.py OUT.json

losses, record    twenty steps in float64 with GroupNorm in BN's place. BN would differ: each process
                  normalises by its own share of the batch. With GroupNorm one process and two must agree.
norms             [process]: the sum of a batch norm's running mean, before and after an epoch's end
seeds             [process]: what the random numbers of a run start from, and after it is resumed at step 3
"""

import io
import json
import sys

import torch
from tiny import tiny_cifar, tiny_config
from torch import distributed, nn

from mrla_minimal.lab.device import join_world
from mrla_minimal.lab.engine import Run
from mrla_minimal.lab.engine import run as running
from mrla_minimal.lab.engine.resume import restore


def without_batch_norm(module):
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            norm = nn.GroupNorm(2, child.num_features)
            norm.load_state_dict({"weight": child.weight.data, "bias": child.bias.data})
            setattr(module, name, norm)
        else:
            without_batch_norm(child)
    return module


def twenty_steps(world):
    build = running.build_model
    running.build_model = lambda *arguments: without_batch_norm(build(*arguments)).double()
    config = tiny_config(epochs=4, steps=20, drop_path=0.0, layer_attention="mrla-base")
    run = Run(config, world, data=tiny_cifar())
    running.build_model = build
    losses = []
    while not run.finished:
        run.train_step()
        if run.step % run.steps_per_epoch == 0 or run.finished:
            run.read_losses()
            losses += run.losses
            record = run.close_epoch()
    return losses, record


def norms_and_seeds(world):
    def begun():
        return Run(tiny_config(epochs=1, layer_attention="mrla-light"), world, data=tiny_cifar())

    run, norms, seeds = begun(), [], [torch.initial_seed()]
    while not run.finished:
        run.train_step()
        if run.step == 3:
            kept = io.BytesIO()
            torch.save(run.state(), kept)
    for end in (lambda: None, run.close_epoch):
        end()
        norms.append(run.model.stem.norm.running_mean.sum().item())
    kept = io.BytesIO(world.from_rank_zero(kept.getvalue()))        # the file is rank 0's
    resumed = begun()
    restore(resumed, torch.load(kept, weights_only=True), "checkpoint.pt")
    seeds.append(torch.initial_seed() if world.parallel else None)
    return norms, seeds


def from_all(world, value):
    values = [None] * world.size
    if world.parallel:
        distributed.all_gather_object(values, value)
    return values if world.parallel else [value]


def main(path):
    torch.set_num_threads(1)
    world = join_world("cpu")
    losses, record = twenty_steps(world)
    norms, seeds = norms_and_seeds(world)
    found = {"losses": losses, "processes": world.size, "record": record,
             "norms": from_all(world, norms), "seeds": from_all(world, seeds)}
    if world.rank == 0:
        with open(path, "w") as file:
            json.dump(found, file)


if __name__ == "__main__":
    main(sys.argv[1])
