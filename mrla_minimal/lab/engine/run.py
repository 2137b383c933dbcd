"""The state of one run: data, model, optimiser; one step, one epoch's metrics, and evaluation.

The random choices of an epoch follow from (seed, epoch) alone, so a position in the run is nothing but a step number.
"""

import dataclasses
import math

import torch
from torch import nn
from torch.nn import functional as F

from mrla_minimal.lab.arguments import check_images
from mrla_minimal.lab.data import hold_out, load_cifar, normalise, plan_epoch, take_batch
from mrla_minimal.lab.device import World
from mrla_minimal.lab.engine.checkpoint import CHECKPOINT_FORMAT, TrainingDiverged, load_weights, require_parts
from mrla_minimal.lab.engine.config import config_from_dict, differing_fields
from mrla_minimal.lab.engine.model import build_model, build_optimizer, learning_rate_at, try_model


@torch.no_grad()
def evaluate(model, split, world=None, batch_size=500, amp=False, channels_last=False):
    """(mean cross-entropy, accuracy) of a model on a Split, in evaluation mode; with a World, each process counts its share."""
    world = world or World(0, 1, split.images.device)
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=split.images.device if world.device.type != "mps" else "cpu")
    for start in range(world.rank * batch_size, len(split), world.size * batch_size):
        images = normalise(split.images[start : start + batch_size]).to(next(model.parameters()).dtype)
        labels = split.labels[start : start + batch_size]
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(world.device.type, torch.bfloat16, enabled=amp and world.device.type == "cuda"):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels, reduction="sum")
        correct = (logits.argmax(dim=1) == labels).sum()
        sums += torch.stack([loss, correct.to(loss.dtype), torch.full_like(loss, len(labels))]).to(sums)
    model.train(was_training)
    loss, correct, count = world.sum(sums).tolist()
    return loss / count, correct / count


class Run:
    """The state of one run on this process: data, model, optimiser, and how far it has come.

    `data` is a `Cifar` of one's own, or None: then what the configuration names is loaded. `step` counts optimiser steps
    from 0; `losses` and `hits` hold those of the current epoch as numbers, in order.
    """

    def __init__(self, config, world, run_dir=None, data=None):
        self.config, self.world = config, world
        if config.batch_size % world.size:
            raise ValueError(f"batch_size must be divisible by the {world.size} processes, which {config.batch_size} is not")
        try_model(config, run_dir)      # wrong arguments are told before the data is fetched
        if data is None:
            data = world.first_then_others(lambda: load_cifar(config.dataset, config.data_root, config.source))
        else:
            data = check_images(data)
        self.source, self.fingerprint, self.classes = data.source, data.fingerprint, data.classes
        training, held_out = hold_out(data.train, seed=0) if config.validation else (data.train, None)
        self.training = training.to(world.device)
        self.validation = held_out.to(world.device) if held_out else None
        self.test = data.test.to(world.device)
        if len(self.training) < config.batch_size:
            raise ValueError(f"batch_size must be at most the {len(self.training)} training images, not {config.batch_size}")
        self.steps_per_epoch = len(self.training) // config.batch_size      # the incomplete last batch of an epoch is left out
        self.total_steps = config.steps or config.epochs * self.steps_per_epoch

        memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.in_channels = data.train.images.shape[1]
        model = build_model(config, len(self.classes), run_dir, self.in_channels)
        self.model = model.to(world.device, memory_format=memory_format)
        self.optimizer = build_optimizer(config, self.model)
        self.forward = torch.compile(self.model) if config.compile else self.model
        if world.parallel:
            self.forward = nn.parallel.DistributedDataParallel(self.forward)
        torch.manual_seed(config.seed + 1 + world.rank)      # what drop_path draws while training
        self.step, self.losses, self.hits, self.metrics = 0, [], [], []
        self.seconds = 0.0      # of training steps, over all the processes that this run was continued in
        self._unread = []
        self._plan = None, None

    @property
    def finished(self):
        return self.step >= self.total_steps

    @property
    def epoch(self):
        return self.step // self.steps_per_epoch

    @property
    def images_per_second(self):
        return self.step * self.config.batch_size / self.seconds if self.seconds else math.nan

    def batch(self):
        """This process's share of the current step's images (normalised) and labels."""
        if self._plan[0] != self.epoch:
            augment = self.config.augment == "on" or (self.config.augment == "auto" and self.total_steps > self.steps_per_epoch)
            plan = plan_epoch(len(self.training), self.config.seed, self.epoch, augment)
            self._plan = self.epoch, plan.to(self.world.device)
        share = self.config.batch_size // self.world.size
        start = self.step % self.steps_per_epoch * self.config.batch_size + self.world.rank * share
        images, labels = take_batch(self.training, self._plan[1], start, start + share)
        if self.config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, labels

    def train_step(self):
        """One optimiser step. Nothing here waits for the device: losses are read by `read_losses`."""
        rate = learning_rate_at(self.config, self.step, self.steps_per_epoch, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        images, labels = self.batch()
        self.model.train()
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.config.amp and self.world.device.type == "cuda"):
            logits = self.forward(images)
            loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        hits = (logits.detach().argmax(dim=1) == labels).sum().to(loss.dtype)
        self._unread.append(torch.stack([loss.detach() * len(labels), hits]))
        self.step += 1

    def read_losses(self):
        """Bring the losses since the last call to the host, summed over the processes. TrainingDiverged if one is not finite."""
        if not self._unread:
            return
        rows = self.world.sum(torch.stack(self._unread).double() if self.world.device.type != "mps" else torch.stack(self._unread)).tolist()
        first = self.step - len(self._unread)
        self._unread = []
        for offset, (loss, hits) in enumerate(rows):
            if not math.isfinite(loss):
                rate = learning_rate_at(self.config, first + offset, self.steps_per_epoch, self.total_steps)
                raise TrainingDiverged(f"the loss is {loss} at step {first + offset + 1} of {self.total_steps}, learning rate {rate:.4g}")
            self.losses.append(loss / self.config.batch_size)
            self.hits.append(hits / self.config.batch_size)

    def close_epoch(self):
        """The metrics of the epoch that just ended (or of the part of it that `steps` allows), as one JSON-able record."""
        self.read_losses()
        record = {
            "source": self.source,
            "epoch": (self.step - 1) // self.steps_per_epoch + 1,
            "step": self.step,
            "train_loss": sum(self.losses) / len(self.losses),
            "train_accuracy": sum(self.hits) / len(self.hits),
            "train_loss_parts": _means_of_parts(self.losses),
            "train_accuracy_parts": _means_of_parts(self.hits),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }
        if self.world.parallel:     # each process has its own BN statistics; those of rank 0 are the model's
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, src=0)
        splits = {"test": self.test}
        if self.validation is not None:
            splits = {"validation": self.validation, "test": self.test} if self.finished else {"validation": self.validation}
        for name, split in splits.items():
            loss, accuracy = evaluate(self.model, split, self.world, amp=self.config.amp, channels_last=self.config.channels_last)
            record |= {f"{name}_loss": loss, f"{name}_accuracy": accuracy}
        self.metrics.append(record)
        self.losses, self.hits = [], []
        return record

    def state(self):
        """All that a resumed run needs, of kinds that weights_only loading admits."""
        self.read_losses()
        random = {"cpu": torch.get_rng_state()}
        if self.world.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.world.device)
        return {
            "format": CHECKPOINT_FORMAT, "config": dataclasses.asdict(self.config), "classes": list(self.classes),
            "in_channels": self.in_channels,
            "source": self.source, "fingerprint": self.fingerprint, "threads": torch.get_num_threads(),
            "step": self.step, "losses": self.losses, "hits": self.hits, "metrics": self.metrics,
            "seconds": self.seconds, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "random": random,
        }

    def restore(self, state, path):
        """Continue from a `state()`. ValueError if it belongs to other data or another model."""
        if "optimizer" not in state:
            raise ValueError(f"{path} holds weights alone: it can be evaluated, not resumed")
        require_parts(state, ("threads", "step", "losses", "hits", "metrics", "seconds", "random"), path)
        differing = differing_fields(self.config, config_from_dict(state["config"], path))
        if differing:
            raise ValueError(f"{path} is of another run: {'; '.join(differing)}")
        if state["fingerprint"] != self.fingerprint:
            raise ValueError(f"{path} was trained on other images (source {state['source']}) than are here (source {self.source})")
        if state["threads"] != torch.get_num_threads() and self.world.rank == 0:
            print(f"note: {path} was written with {state['threads']} threads, here are {torch.get_num_threads()}: "
                  "the run goes on, but no longer bit for bit")
        load_weights(self.model, state, path)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.world.parallel:     # each process draws its own drop_path, and the checkpoint knows rank 0's alone
            torch.manual_seed(self.config.seed + 1 + self.world.rank + self.world.size * state["step"])
        else:
            torch.set_rng_state(state["random"]["cpu"])
        if self.world.device.type == "cuda" and "cuda" in state["random"] and not self.world.parallel:
            torch.cuda.set_rng_state(state["random"]["cuda"], self.world.device)
        self.step, self.losses, self.hits, self.metrics = state["step"], state["losses"], state["hits"], state["metrics"]
        self.seconds = state["seconds"]


def _means_of_parts(losses, parts=10):
    """The means of a list's consecutive tenths (its single entries, if it is shorter): how training went within an epoch."""
    borders = [len(losses) * part // parts for part in range(parts + 1)]
    return [sum(losses[a:b]) / (b - a) for a, b in zip(borders, borders[1:], strict=False) if b > a]
