"""Part d of tests/on_a_gpu.sh: what the usual nets take on this GPU.

    python tests/tools/gpu_resnets.py DEVICE SUITE MINUTES OUT      # SUITE is left aside
"""

import sys
import time
from pathlib import Path

import torch
from on_a_gpu import Notes

from mrla_minimal.lab.bench_attention import bench_resnet50
from mrla_minimal.lab.data import Cifar, Split
from mrla_minimal.lab.device import join_world
from mrla_minimal.lab.engine import PRESETS, GraphRun, Run, TrainConfig, evaluate
from mrla_minimal.lab.timing import seconds_of


def of_cifars_size(train=50_000, test=10_000):
    """Images of noise, as many as CIFAR-10 has: for times, and for nothing else."""
    generator = torch.Generator().manual_seed(0)
    splits = [Split(torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator),
                    torch.arange(count) % 10) for count in (train, test)]
    return Cifar(*splits, tuple("abcdefghij"), "synthetic", "noise")


def time_resnet20(kind, device, seconds, data):
    """Plain ResNet-20 with the preset "standard": steps for so many seconds, and one evaluation."""
    fields = PRESETS["standard"] | {"layer_attention": None, "device": device, "cuda_graph": kind is GraphRun}
    run = kind(TrainConfig(depth=20, **fields), join_world(device), data=data)
    rows = 10 if run.world.device.type == "cuda" else 1

    def steps():
        for _ in range(rows):
            run.train_step()
        run.read_losses()

    steps()                     # kernels are chosen, a graph captured
    began, times = time.perf_counter(), []
    while time.perf_counter() - began < seconds:
        times.append(seconds_of(steps, run.world.device))
    a_step = sum(times) / len(times) / rows

    def measured():
        evaluate(run.model, run.test, precision=run.precision, channels_last=run.config.channels_last)

    measured()
    one_test = seconds_of(measured, run.world.device)
    total = run.config.epochs * (50_000 // run.config.batch_size * a_step + 10_000 / len(run.test) * one_test)
    launches = "launch by launch" if kind is Run else "each step one CUDA graph"
    if kind is GraphRun and run.world.device.type != "cuda":
        launches = "the steps of a graph, none captured on a CPU"
    return {"net": "plain ResNet-20", "launches": launches, "precision": run.precision,
            "batch_size": run.config.batch_size, "images": "noise, as many as CIFAR-10 has",
            "images_per_second": run.config.batch_size / a_step, "seconds_of_one_test": one_test,
            "epochs": run.config.epochs, "seconds_a_run": total,
            "extrapolated_from_steps": rows * len(times)}


def main(device, minutes, out):
    notes, on_gpu = Notes(out, device), device.startswith("cuda")
    seconds = min(12.0, 60 * minutes / 10)
    data, failed = of_cifars_size() if on_gpu else of_cifars_size(1000, 100), False
    for kind in (Run, GraphRun):
        try:
            line = notes.add("d", what="resnet20", **time_resnet20(kind, device, seconds, data))
        except RuntimeError as error:           # a graph that this torch cannot capture
            failed = True
            notes.add("d", what="failure", problem=f"{kind.__name__}: {error}")
            print(f"{kind.__name__} failed: {error}")
            continue
        print(f"plain ResNet-20, {line['launches']}, "
              f"{line['precision']}: {line['images_per_second']:.0f} images/s, "
              f"{line['seconds_a_run']:.0f} s for {line['epochs']} epochs and their tests "
              f"(extrapolated from {line['extrapolated_from_steps']} steps)")
    size = {} if on_gpu else {"batch": 2, "size": 32, "rounds": 1}      # a rehearsal
    for found in bench_resnet50(torch.device(device), ("eager",), progress=False, **size):
        notes.add("d", what="resnet50", **found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[3]), Path(sys.argv[4])))
