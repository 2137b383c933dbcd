"""Ratios, each measured in one run against a yardstick that stands in full: `mrla bench`.

The data side against a training step, the engine against a bare loop, a detector with and without attention;
bench_attention.py has the attentions against their naive forms. In each, the candidates take turns, and
ratios are printed: absolute times belong to a machine.
"""

import statistics
from collections.abc import Callable
from dataclasses import replace

import torch
from torch.nn import functional as F

from mrla_minimal import cifar_resnet
from mrla_minimal.lab.bench_attention import bench_attention, spread, step_of
from mrla_minimal.lab.data import load_cifar, plan_epoch, take_batch
from mrla_minimal.lab.data.scenes import load_scenes
from mrla_minimal.lab.device import World, choose_device, device_name
from mrla_minimal.lab.engine import PRESETS, Run, TrainConfig, build_model, build_optimizer, open_run
from mrla_minimal.lab.engine.precision import autocast, choose_precision
from mrla_minimal.lab.timing import take_turns


def bench_data(batch: int = 128, steps: int = 20) -> None:
    """`mrla bench data`: images/s of the data side alone, and of a plain ResNet-20's forward and backward."""
    data = load_cifar("cifar10")
    plan = plan_epoch(len(data.train), seed=0, epoch=0)
    model = cifar_resnet(20).to(memory_format=torch.channels_last)

    def batches(count=200):
        for number in range(count):
            take_batch(data.train, plan, number % 50 * batch, (number % 50 + 1) * batch)

    images, labels = take_batch(data.train, plan, 0, batch)
    step = step_of(model, images.contiguous(memory_format=torch.channels_last), labels)

    def train_steps():
        for _ in range(steps):
            step()

    seconds = take_turns({"data": batches, "step": train_steps}, rounds=5, progress=True)
    rates = {"data": [200 * batch / each for each in seconds["data"]],
             "step": [steps * batch / each for each in seconds["step"]]}
    ratios = [a / b for a, b in zip(rates["data"], rates["step"], strict=True)]
    print(f"{data.source}, batch {batch}, {torch.get_num_threads()} CPU threads")
    for name, text in (("data", "data side alone (crop, flip, normalise, batch)"),
                       ("step", "plain ResNet-20, forward + backward")):
        print(f"  {text:<48} {statistics.median(rates[name]):8.0f} images/s")
    print(f"  data / step: {spread(ratios)}")


def bench_engine(steps: int = 15) -> None:
    """`mrla bench engine`: the training engine's images/s over a bare loop's on one batch in memory."""
    for attention in (None, "mrla-light"):
        config = TrainConfig(layer_attention=attention, batch_size=128, augment="on")
        device = choose_device(config.device)
        seconds = take_turns(_engine_and_bare_loop(config, device, steps), device=device, progress=True)
        ratios = [b / e for e, b in zip(seconds["engine"], seconds["bare"], strict=True)]
        rate = steps * config.batch_size / statistics.median(seconds["engine"])
        hours = 200 * 50_000 / rate / 3600
        print(f"ResNet-20, {attention or 'plain'}, batch {config.batch_size}, {device_name(device)}: "
              f"engine / bare loop {spread(ratios)}; engine {rate:.0f} images/s, "
              f"so 200 epochs take about {hours:.1f} h of steps")


def _engine_and_bare_loop(config: TrainConfig, device: torch.device, steps: int) -> dict[str, Callable]:
    """Functions that make `steps` steps each, of the engine and of a loop without anything else."""
    run = Run(config, World(0, 1, device))
    images, labels = run.batch()
    model = build_model(config, 10).to(device, memory_format=torch.channels_last)
    optimizer = build_optimizer(config, model)

    precision = choose_precision(device, config.amp)

    def bare() -> None:
        for _ in range(steps):
            with autocast(device, precision):
                loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    def engine() -> None:
        for _ in range(steps):
            run.train_step()
            if device.type == "cpu":
                run.read_losses()
        run.read_losses()

    return {"engine": engine, "bare": bare}


def bench_detector(steps: int = 3, rounds: int = 5) -> None:
    """`mrla bench detector`: training steps a second of a detector of nuclei, plain and with MRLA-base."""
    device, scenes = choose_device(), load_scenes("nuclei")
    recipe = TrainConfig(**PRESETS["nuclei"], layer_attention=None)

    def stepping(attention: str | None) -> Callable[[], None]:
        run = open_run(replace(recipe, layer_attention=attention), World(0, 1, device), data=scenes)

        def step() -> None:
            for _ in range(steps):
                run.train_step()
            run.read_losses()

        return step

    names = {"plain": None, "mrla-base": "mrla-base"}
    seconds = take_turns({name: stepping(attention) for name, attention in names.items()}, rounds, 1, device,
                         progress=True)
    rates = {name: [steps / each for each in times] for name, times in seconds.items()}
    ratios = [base / plain for base, plain in zip(rates["mrla-base"], rates["plain"], strict=True)]
    print(f"detector of nuclei, {recipe.batch_size} crops a step, {device_name(device)}")
    for name, each in rates.items():
        print(f"  {name:<10} {statistics.median(each):6.2f} steps/s")
    print(f"  mrla-base / plain: {spread(ratios)}")


BENCHMARKS = {"data": bench_data, "attention": bench_attention, "engine": bench_engine,
              "detector": bench_detector}
