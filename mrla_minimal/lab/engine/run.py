"""The state of one run: data, model, optimiser; one step, one epoch's metrics, and evaluation.

The random choices of an epoch follow from (seed, epoch) alone, so a position in the run is nothing but a
step number.
"""

import dataclasses
import math
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from mrla_minimal.lab import arguments
from mrla_minimal.lab.data import Cifar, EpochPlan, Split, load_cifar, normalise, take_batch
from mrla_minimal.lab.device import World
from mrla_minimal.lab.engine.checkpoint import CHECKPOINT_FORMAT, names_of_finite
from mrla_minimal.lab.engine.config import TrainConfig
from mrla_minimal.lab.engine.inputs import planned_epoch, prepared, steps_an_epoch, steps_asked_for
from mrla_minimal.lab.engine.model import build_model, build_optimizer, learning_rate_at, try_model
from mrla_minimal.lab.engine.precision import (
    SMALLEST_SCALE,
    autocast,
    choose_precision,
    for_loss,
    gradient_scaler,
)
from mrla_minimal.looking import in_evaluation


class TrainingDiverged(RuntimeError):
    """A number that is no longer finite: a loss, a weight, a batch norm's statistic.

    Such a net has no result.
    """


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, world: World | None = None, batch_size: int = 500,
             precision: str = "float32", channels_last: bool = False,
             progress: bool = False) -> tuple[float, float]:
    """(mean cross-entropy, accuracy) of a model on a Split, in evaluation mode.

    Every module's own mode is put back. With a World, each process counts its share. Raises
    TrainingDiverged if the loss is not finite: the largest of logits that are no numbers is no answer.
    Raises ValueError for a Split of no images.
    """
    if not len(split):
        raise ValueError("split must hold at least one image, not none")
    world = world or World(0, 1, split.images.device)
    device, dtype = split.images.device, next(model.parameters()).dtype
    sums = torch.zeros(3, dtype=torch.float64, device=device if device.type != "mps" else "cpu")
    with in_evaluation(model):
        starts = range(world.rank * batch_size, len(split), world.size * batch_size)
        for start in tqdm(starts, desc="evaluating", unit="batch", leave=False, disable=not progress):
            images = normalise(split.images[start : start + batch_size]).to(dtype)
            labels = split.labels[start : start + batch_size]
            if channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with autocast(device, precision):
                logits = model(images)
            loss = F.cross_entropy(for_loss(logits), labels, reduction="sum")
            correct = (logits.argmax(dim=1) == labels).sum()
            sums += torch.stack([loss, correct.to(loss.dtype), torch.full_like(loss, len(labels))]).to(sums)
    loss, correct, count = world.sum(sums).tolist()
    if not math.isfinite(loss):
        raise TrainingDiverged(f"the mean loss over {count:.0f} images is {loss}: "
                               "not all of the net's numbers are finite")
    return loss / count, correct / count


class Run:
    """The state of one run on this process: data, model, optimiser, and how far it has come.

    `data` is a `Cifar` of one's own, or None: then what the configuration names is loaded. `step` counts
    optimiser steps from 0; `losses` and `accuracies` hold those of the current epoch as numbers, in order;
    where there are no right answers (detection.py), `accuracies` stays empty.
    `precision` is what it computes in. Raises ValueError for a configuration or for images that cannot be
    trained.
    """

    result = "test_accuracy"        # what the last epoch's metrics must hold
    counts_right = True             # whether a step has right answers to count
    progress = False                # whether long tests show a bar

    def __init__(self, config: TrainConfig, world: World, run_dir: Path | None = None,
                 data: Cifar | None = None):
        self.config, self.world = config, world
        if config.batch_size % world.size:
            raise ValueError(f"batch_size must be divisible by the {world.size} processes, "
                             f"which {config.batch_size} is not")
        try_model(config, run_dir)      # wrong arguments are told before the data is fetched
        self._take_data(world.first_then_others(self._load) if data is None else data)

        memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        model = build_model(config, len(self.classes), run_dir, self.in_channels)
        self.model = model.to(world.device, memory_format=memory_format)
        self.precision = choose_precision(world.device, config.amp)
        self.scaler = gradient_scaler(world.device, self.precision)
        self.optimizer = build_optimizer(config, self.model, fused=self.scaler.is_enabled() or None)
        self.forward = torch.compile(self.model) if config.compile else self.model
        if world.parallel:
            unasked = config.model == "corridor"        # only the exit's query and output are read there
            self.forward = nn.parallel.DistributedDataParallel(self.forward, find_unused_parameters=unasked)
        torch.manual_seed(config.seed + 1 + world.rank)      # what drop_path draws while training
        self.step, self.losses, self.accuracies, self.metrics = 0, [], [], []
        self.trunk = None       # of a branch: where it comes from, once it has begun
        self.seconds = 0.0      # of training steps, over all the processes that this run was continued in
        self._unread = []
        self._plan = None, None

    def _load(self):
        """The images that the configuration names."""
        return load_cifar(self.config.dataset, self.config.data_root, self.config.source)

    def _take_data(self, data):
        """Bring the splits to the device, and count the steps."""
        inputs, device = prepared(self.config, arguments.images("data", data)), self.world.device
        self.source, self.fingerprint, self.classes = data.source, data.fingerprint, inputs.classes
        self.in_channels = inputs.train.images.shape[1]
        self.training, self.test = inputs.train.to(device), inputs.test.to(device)
        self.validation = inputs.validation.to(device) if inputs.validation else None
        if len(self.training) < self.config.batch_size:
            raise ValueError(f"batch_size must be at most the {len(self.training)} training images, "
                             f"not {self.config.batch_size}")
        self.steps_per_epoch = steps_an_epoch(self.config, len(self.training))
        self.total_steps = self.steps_of(self.config)

    def steps_of(self, config: TrainConfig) -> int:
        """How many steps a configuration asks for, on this run's images."""
        return steps_asked_for(config, self.steps_per_epoch)

    @property
    def first_step(self) -> int:
        """Where it begins: at 0, or where a branch leaves its trunk."""
        return self.config.trunk_epochs * self.steps_per_epoch if self.config.trunk else 0

    @property
    def last_step(self) -> int:
        """Where it ends: with its schedule, or where a trunk is left by its branches."""
        return self.config.trunk_epochs * self.steps_per_epoch if self.config.is_trunk else self.total_steps

    @property
    def finished(self) -> bool:
        return self.step >= self.last_step

    @property
    def epoch(self) -> int:
        """The current epoch, from 0."""
        return self.step // self.steps_per_epoch

    @property
    def images_per_second(self) -> float:
        """Of training steps alone; 0 before the first."""
        own_steps = self.step - self.first_step
        return own_steps * self.config.batch_size / self.seconds if self.seconds else 0.0

    def place(self) -> tuple[EpochPlan, int, int]:
        """(the current epoch's plan, start, stop): where in it this process's share of the step lies."""
        if self._plan[0] != self.epoch:
            plan = planned_epoch(self.config, len(self.training), self.epoch)
            self._plan = self.epoch, plan.to(self.world.device)
        share = self.config.batch_size // self.world.size
        start = self.step % self.steps_per_epoch * self.config.batch_size + self.world.rank * share
        return self._plan[1], start, start + share

    def take(self, plan: EpochPlan, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (normalised, as the net reads them) and labels of a part of a plan."""
        images, labels = take_batch(self.training, plan, start, stop)
        images = images.to(next(self.model.parameters()).dtype)
        if self.config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, labels

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """This process's share of the current step's images (normalised) and labels."""
        return self.take(*self.place())

    def rate(self, step: int) -> float:
        """The learning rate of one step, counted from 0."""
        return learning_rate_at(self.config, step, self.steps_per_epoch, self.total_steps)

    def train_step(self) -> None:
        """One optimiser step. Nothing here waits for the device: losses are read by `read_losses`."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.step)
        self._unread.append(self.update(*self.batch()))
        self.step += 1

    def update(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Change the net by one batch; returns (2,): the sum of its losses, how many it got right."""
        self.model.train()
        with autocast(self.world.device, self.precision):
            logits = self.forward(images)
        loss = F.cross_entropy(for_loss(logits), labels, label_smoothing=self.config.label_smoothing)
        self.descend(loss)
        right = (logits.detach().argmax(dim=1) == labels).sum().to(loss.dtype)
        return torch.stack([loss.detach() * len(labels), right])

    def descend(self, loss: torch.Tensor) -> None:
        """Change the net by the gradient of a loss."""
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def read_losses(self) -> None:
        """Bring the losses since the last call to the host, summed over the processes.

        Raises TrainingDiverged if one is not finite.
        """
        if not self._unread:
            return
        rows = torch.stack(self._unread)
        rows = self.world.sum(rows if self.world.device.type == "mps" else rows.double()).tolist()
        first = self.step - len(self._unread)
        self._unread = []
        for step, (loss, *right) in enumerate(rows, start=first):
            if not math.isfinite(loss):
                raise TrainingDiverged(f"the loss is {loss} at step {step + 1} of {self.total_steps}, "
                                       f"learning rate {self.rate(step):.4g}")
            self.losses.append(loss / self.config.batch_size)
            self.accuracies += [count / self.config.batch_size for count in right]

    def require_finite(self) -> None:
        """TrainingDiverged unless all weights, and all statistics of batch norms, are finite numbers."""
        names, state = names_of_finite(self.model), self.model.state_dict()
        finite = torch.stack([torch.isfinite(state[name]).all() for name in names]).tolist()
        broken = [name for name, whole in zip(names, finite, strict=True) if not whole]
        where = f"after step {self.step} of {self.total_steps}"
        if broken:
            raise TrainingDiverged(f"the net is no longer finite {where}: {broken[0]}")
        if self.scaler.is_enabled() and self.scaler.get_scale() < SMALLEST_SCALE:
            raise TrainingDiverged(f"float16 holds no step's gradients any more {where}")

    def close_epoch(self) -> dict:
        """The metrics of the epoch that just ended, as one record that JSON can hold.

        `steps` may have cut the epoch short. Raises TrainingDiverged if a number in the net, or of the
        record, is not finite.
        """
        self.read_losses()
        record = {"source": self.source, "epoch": (self.step - 1) // self.steps_per_epoch + 1,
                  "step": self.step}
        trained = {"loss": self.losses, "accuracy": self.accuracies}
        trained = {name: numbers for name, numbers in trained.items() if numbers}
        record |= {f"train_{name}": sum(numbers) / len(numbers) for name, numbers in trained.items()}
        record |= {f"train_{name}_parts": means_of_parts(numbers) for name, numbers in trained.items()}
        record |= {"learning_rate": self.rate(self.step - 1)}
        if self.world.parallel:     # each process has its own BN statistics; those of rank 0 are the model's
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, src=0)
        self.require_finite()
        record |= self.measured()
        self.metrics.append(record)
        self.losses, self.accuracies = [], []
        return record

    def measured(self) -> dict:
        """What the net now reaches on the held-out images, and on the test images if it is time for them."""
        splits, reached = {"test": self.test}, {}
        if self.validation is not None:
            splits = {"validation": self.validation} | (splits if self.finished else {})
        for name, split in splits.items():
            loss, accuracy = evaluate(self.model, split, self.world, precision=self.precision,
                                      channels_last=self.config.channels_last)
            reached |= {f"{name}_loss": loss, f"{name}_accuracy": accuracy}
        return reached

    def state(self) -> dict:
        """All that a resumed run needs, of kinds that weights_only loading admits.

        TrainingDiverged if it is not finite.
        """
        self.read_losses()
        self.require_finite()
        random = {"cpu": torch.get_rng_state()}
        if self.world.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.world.device)
        trunk = {} if self.trunk is None else {"trunk": self.trunk}
        return trunk | {
            "format": CHECKPOINT_FORMAT, "config": dataclasses.asdict(self.config),
            "classes": list(self.classes), "in_channels": self.in_channels,
            "source": self.source, "fingerprint": self.fingerprint, "threads": torch.get_num_threads(),
            "step": self.step, "losses": self.losses, "hits": self.accuracies, "metrics": self.metrics,
            "seconds": self.seconds, "precision": self.precision, "scaler": self.scaler.state_dict(),
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "random": random,
        }


def means_of_parts(losses: list[float], parts: int = 10) -> list[float]:
    """The means of a list's consecutive tenths (its single entries, if it is shorter): how an epoch went."""
    borders = [len(losses) * part // parts for part in range(parts + 1)]
    return [sum(losses[a:b]) / (b - a) for a, b in zip(borders, borders[1:], strict=False) if b > a]
