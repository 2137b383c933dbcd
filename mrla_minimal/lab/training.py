"""One training run: its configuration, its loop, and the files that let it survive being killed.

A run folder holds config.json, metrics.jsonl (one line an epoch, no times), timing.jsonl, checkpoint.pt and curves.png.
All of a run's state is in checkpoint.pt; the random choices of an epoch follow from (seed, epoch) alone, so a position in
the run is nothing but a step number.
"""

import dataclasses
import functools
import io
import json
import math
import shlex
import signal
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from mrla_minimal.lab.data import hold_out, load_cifar, normalise, plan_epoch, take_batch
from mrla_minimal.lab.device import DEVICES, World, choose_device, join_world
from mrla_minimal.lab.files import append_record, replace_file, to_line, write_json
from mrla_minimal.lab.own import is_own, keep_copy, load_attention, short_name, where, with_sum
from mrla_minimal.layer_attention import MRLALight
from mrla_minimal.resnet import BLOCKS, CHANNEL_ATTENTIONS, LAYER_ATTENTIONS, LIGHT_CARRIES, SHORTCUTS, cifar_resnet

DATASETS = ("cifar10", "cifar100")
SOURCES = ("auto", "real", "synthetic")
SCHEDULES = ("cosine", "steps")
MOMENTUM = 0.9
CHECKPOINT_FORMAT = "mrla-minimal checkpoint 1"


def _light_with_lambda(channels, start):
    """MRLALight whose lambda_o starts at one number in place of N(0, 1)."""
    attention = MRLALight(channels)
    nn.init.constant_(attention.lambda_o, start)
    return attention


# Names beside those of resnet.py, each a callable channels -> module: so that a configuration holds names only.
FURTHER_ATTENTIONS = {
    "mrla-light-lambda0": functools.partial(_light_with_lambda, start=0.0),
    "mrla-light-lambda1": functools.partial(_light_with_lambda, start=1.0),
}


def _option(default, help, choices=None):
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides how a run ends. The defaults are the quick preset; `PRESETS` holds the others.

    Raises ValueError naming the field, what was given and what is allowed.
    """

    dataset: str = _option("cifar10", "which images", DATASETS)
    source: str = _option("auto", "auto: the real files, else a download, else the built-in set", SOURCES)
    data_root: str | None = _option(None, "folder of the data files (else $MRLA_DATA, data/, the user's cache)")
    depth: int = _option(20, "layers: 6n + 2 with basic blocks, 9n + 2 with bottlenecks")
    block: str = _option("basic", "residual block", BLOCKS)
    width: int = _option(16, "channels of the first stage")
    layer_attention: str | None = _option("mrla-light", "attention across layers; FILE.py or FILE.py:CLASS for one of your own",
                                          (*LAYER_ATTENTIONS, None))
    channel_attention: str | None = _option(None, "attention inside a layer", (*CHANNEL_ATTENTIONS, None))
    head_dim: int | None = _option(None, "channels a head of the layer attention (none: its own default)")
    light_carry: str = _option("block_input", "what MRLA-light carries", LIGHT_CARRIES)
    shortcut: str | None = _option(None, "shortcut where the shape changes (none: the block's own)", (*SHORTCUTS, None))
    drop_path: float = _option(0.0, "probability of dropping the attention branch of a sample")
    epochs: int = _option(1, "passes over the training images")
    steps: int | None = _option(None, "train for this many steps in place of whole epochs")
    batch_size: int = _option(64, "images a step, over all processes")
    learning_rate: float = _option(0.1, "peak learning rate")
    schedule: str = _option("cosine", "after the warm-up: cosine to zero, or steps (a tenth at 1/2 and at 3/4)", SCHEDULES)
    warmup_epochs: float = _option(0.2, "epochs of linear warm-up")
    augment: str = _option("auto", "crop and flip the training images; auto: if each is seen more than once", ("auto", "on", "off"))
    weight_decay: float = _option(5e-4, "weight decay")
    decay_all: bool = _option(False, "decay biases, norms and lambda_o too")
    label_smoothing: float = _option(0.0, "probability spread over the other classes")
    validation: bool = _option(False, "train on nine tenths, evaluate on the held-out tenth, test once at the end")
    seed: int = _option(0, "of the initial weights, the order and the augmentation")
    device: str = _option("auto", "where to train", DEVICES)
    amp: bool = _option(True, "bf16 autocast on cuda (without effect elsewhere)")
    channels_last: bool = _option(True, "keep images and feature maps channels last")
    compile: bool = _option(False, "compile the model with torch.compile")

    def __post_init__(self):
        for entry in dataclasses.fields(self):
            value, choices, more = getattr(self, entry.name), entry.metadata["choices"], ""
            if entry.name == "layer_attention":
                if is_own(value):       # which version of the file is meant is settled here, once
                    object.__setattr__(self, entry.name, with_sum(value))
                    continue
                choices, more = (*choices, *FURTHER_ATTENTIONS), ", or FILE.py or FILE.py:CLASS for one of your own"
            if choices is not None and value not in choices:
                raise ValueError(f"{entry.name} must be one of {', '.join(map(_show, choices))}{more}, not {value!r}")
        for name in ("epochs", "batch_size", "depth", "width"):
            self._require(name, isinstance(getattr(self, name), int) and getattr(self, name) >= 1, "a positive integer")
        self._require("steps", self.steps is None or (isinstance(self.steps, int) and self.steps >= 1), "a positive integer or none")
        self._require("seed", isinstance(self.seed, int) and 0 <= self.seed < 2**31, "an integer from 0 to 2**31 - 1")
        self._require("learning_rate", 0 < self.learning_rate < math.inf, "a positive number")
        for name in ("warmup_epochs", "weight_decay"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "a number from 0 on")
        for name in ("drop_path", "label_smoothing"):
            self._require(name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")

    def _require(self, name, condition, wanted):
        if not condition:
            raise ValueError(f"{name} must be {wanted}, not {getattr(self, name)!r}")


def _show(choice):
    return "none" if choice is None else repr(choice)


PRESETS = {
    "quick": {},
    "standard": {"epochs": 200, "batch_size": 128, "learning_rate": 0.1, "weight_decay": 5e-4, "warmup_epochs": 5.0, "schedule": "cosine"},
}


@dataclass(frozen=True)
class Result:
    """What a finished run is remembered by; accuracies are fractions of 1, the throughput is of training steps alone."""

    test_accuracy: float
    metrics: list
    source: str
    fingerprint: str
    parameters: int
    seconds: float
    images_per_second: float
    run_dir: Path


class RunInUse(ValueError):
    """Another process is at this run."""


class TrainingDiverged(RuntimeError):
    """The loss is no longer a finite number."""


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C, after the checkpoint was written."""


def build_model(config, num_classes, run_dir=None):
    """The model of a configuration, started from its seed: variants of one seed share their host's initial weights.

    An attention of one's own is taken from its file, or from the copy in `run_dir`.
    """
    name = config.layer_attention
    attention = load_attention(name, run_dir) if is_own(name) else FURTHER_ATTENTIONS.get(name, name)
    torch.manual_seed(config.seed)
    return cifar_resnet(config.depth, block=config.block, num_classes=num_classes, layer_attention=attention,
                        channel_attention=config.channel_attention, head_dim=config.head_dim, light_carry=config.light_carry,
                        shortcut=config.shortcut, width=config.width, drop_path=config.drop_path)


def try_model(config, run_dir=None):
    """Build the model once, and let an attention of one's own see an image, so that what cannot work is told at once, as a ValueError."""
    model = build_model(config, 10, run_dir).eval()
    if is_own(config.layer_attention):
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                model(torch.zeros(2, 3, 32, 32))
        except Exception as error:
            raise ValueError(f"layer_attention {config.layer_attention}: output, memory = attention(x, memory) does not work in "
                             f"this net: {where(error)}; mrla check tells more") from error


def build_optimizer(config, model):
    """SGD with Nesterov momentum; biases, norms and lambda_o (everything with one dimension) decay only with `decay_all`."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if config.decay_all or p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if not config.decay_all and p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD([group for group in groups if group["params"]], lr=config.learning_rate, momentum=MOMENTUM, nesterov=True)


def learning_rate_at(config, step, steps_per_epoch, total_steps):
    """The learning rate of one step: a linear warm-up to the peak, then a half cosine to zero, or a tenth at 1/2 and 3/4 of the run."""
    warmup_steps = min(config.warmup_epochs * steps_per_epoch, total_steps)
    if step < warmup_steps:
        return config.learning_rate * min(1.0, (step + 1) / warmup_steps)
    if config.schedule == "steps":
        return config.learning_rate * 0.1 ** sum(step >= share * total_steps for share in (0.5, 0.75))
    progress = (step - warmup_steps) / max(1.0, total_steps - warmup_steps)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


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

    `step` counts optimiser steps from 0; `losses` and `hits` hold those of the current epoch as numbers, in order.
    """

    def __init__(self, config, world, run_dir=None):
        self.config, self.world = config, world
        if config.batch_size % world.size:
            raise ValueError(f"batch_size must be divisible by the {world.size} processes, which {config.batch_size} is not")
        try_model(config, run_dir)      # wrong arguments are told before the data is fetched
        data = world.first_then_others(lambda: load_cifar(config.dataset, config.data_root, config.source))
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
        self.model = build_model(config, len(self.classes), run_dir).to(world.device, memory_format=memory_format)
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
            "source": self.source, "fingerprint": self.fingerprint, "threads": torch.get_num_threads(),
            "step": self.step, "losses": self.losses, "hits": self.hits, "metrics": self.metrics,
            "seconds": self.seconds, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "random": random,
        }

    def restore(self, state, path):
        """Continue from a `state()`. ValueError if it belongs to other data or another model."""
        if "optimizer" not in state:
            raise ValueError(f"{path} holds weights alone: it can be evaluated, not resumed")
        _require_parts(state, ("threads", "step", "losses", "hits", "metrics", "seconds", "random"), path)
        differing = differing_fields(self.config, config_from_dict(state["config"], path))
        if differing:
            raise ValueError(f"{path} is of another run: {'; '.join(differing)}")
        if state["fingerprint"] != self.fingerprint:
            raise ValueError(f"{path} was trained on other images (source {state['source']}) than are here (source {self.source})")
        if state["threads"] != torch.get_num_threads() and self.world.rank == 0:
            print(f"note: {path} was written with {state['threads']} threads, here are {torch.get_num_threads()}: "
                  "the run goes on, but no longer bit for bit")
        _load_weights(self.model, state, path)
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


def read_checkpoint(path):
    """The state in a checkpoint file (or in a run folder's). ValueError, one line, if it is none."""
    path = Path(path)
    if path.is_dir():
        path = path / "checkpoint.pt"
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint; expected a run folder or a checkpoint file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:       # bytes that are no checkpoint make the unpickler raise anything at all
        raise ValueError(f"{path} is not a checkpoint, or is damaged") from None
    if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
        raise ValueError(f"{path} is not a checkpoint of this package (no {CHECKPOINT_FORMAT!r} in it)")
    _require_parts(state, ("config", "classes", "source", "fingerprint", "model"), path)
    return state


def _require_parts(state, names, path):
    missing = [name for name in names if name not in state]
    if missing:
        raise ValueError(f"{path} is not a whole checkpoint: it lacks {', '.join(missing)}")


def config_from_dict(values, where):
    """A TrainConfig from a dictionary of its fields. ValueError naming `where` for fields that are none."""
    known = {entry.name for entry in dataclasses.fields(TrainConfig)}
    if not isinstance(values, dict) or set(values) - known:
        raise ValueError(f"{where} is not a configuration: unknown fields {sorted(set(values) - known)}" if isinstance(values, dict)
                         else f"{where} is not a configuration")
    try:
        return TrainConfig(**values)
    except TypeError as error:
        raise ValueError(f"{where} is not a configuration: {error}") from None


def _load_weights(model, state, path):
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise ValueError(f"{path} holds the weights of another model: {' '.join(lines[:2])[:200]}") from None


def load_model(path, device="cpu"):
    """(model in evaluation mode, state) of a run folder or a checkpoint file, in float32 on `device`. ValueError if it is none."""
    state = read_checkpoint(path)
    run_dir = Path(path) if Path(path).is_dir() else Path(path).parent
    model = build_model(config_from_dict(state["config"], path), len(state["classes"]), run_dir)
    _load_weights(model, state, path)
    return model.to(choose_device(device)).eval(), state


@contextmanager
def _ctrl_c_as_a_flag():
    """Within it, a first Ctrl-C only sets the flag that is yielded: a step is never left half done. A second one interrupts."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handler(number, frame):
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()

    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, previous)


def new_run_dir(config, runs="runs"):
    """runs/NAME, the first NAME that is not taken: the model, its attentions, the data asked for and the seed."""
    layer_attention = short_name(config.layer_attention) if is_own(config.layer_attention) else config.layer_attention
    attention = "-".join(filter(None, (layer_attention, config.channel_attention))) or "plain"
    data = "synthetic" if config.source == "synthetic" else config.dataset
    name = f"resnet{config.depth}-{attention}-{data}-seed{config.seed}"
    names = [name, *(f"{name}-{number}" for number in range(2, 10_000))]
    return next(Path(runs) / name for name in names if not (Path(runs) / name / "config.json").exists())


def _prepare_folder(config, run_dir, resume):
    """Make or check the run folder, before anything is computed. Returns the checkpoint to go on from, or None."""
    stored = run_dir / "config.json"
    if not resume:
        if stored.exists():
            raise ValueError(f"{run_dir} holds a run already; resume it, or choose another name")
        write_json(stored, dataclasses.asdict(config))
        if is_own(config.layer_attention):
            keep_copy(config.layer_attention, run_dir)
        return None
    if not stored.is_file():
        raise ValueError(f"{run_dir} is not a run folder: it has no config.json")
    differing = differing_fields(config, read_config(run_dir))
    if differing:
        raise ValueError(f"{run_dir} was begun with another configuration: {'; '.join(differing)}")
    return read_checkpoint(run_dir) if (run_dir / "checkpoint.pt").exists() else None


def read_config(run_dir):
    """The TrainConfig in a run folder. ValueError if there is none."""
    path = Path(run_dir) / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{run_dir} is not a run folder: it has no config.json") from None
    except ValueError as error:     # not text, or not JSON
        raise ValueError(f"{path} is not JSON: {error}") from None
    return config_from_dict(values, path)


def differing_fields(config, stored):
    """["learning_rate: stored 0.1, given 0.2", ...]; where the data lies and which device computes may differ."""
    free = {"device", "data_root", "source"}
    return [f"{entry.name}: stored {getattr(stored, entry.name)!r}, given {getattr(config, entry.name)!r}"
            for entry in dataclasses.fields(config)
            if entry.name not in free and getattr(stored, entry.name) != getattr(config, entry.name)]


def _save(run, run_dir):
    """Write the checkpoint, whole or not at all. It is put together in memory first: torch's own writer hides a full disk's OSError."""
    state = run.state()
    if not all(torch.isfinite(p).all() for p in run.model.parameters()):
        raise TrainingDiverged(f"a weight is no longer finite after step {run.step} of {run.total_steps}")
    if run.world.rank == 0:
        whole = io.BytesIO()
        torch.save(state, whole)
        replace_file(run_dir / "checkpoint.pt", lambda file: file.write(whole.getbuffer()))


def _describe(record, config, images_per_second):
    parts = [f"epoch {record['epoch']}/{config.epochs}" if config.steps is None else f"step {record['step']}/{config.steps}",
             f"loss {record['train_loss']:.3f}", f"train {100 * record['train_accuracy']:.2f} %"]
    parts += [f"{name} {100 * record[f'{name}_accuracy']:.2f} %" for name in ("validation", "test") if f"{name}_accuracy" in record]
    return "  ".join([*parts, f"{images_per_second:.0f} images/s"])


def train(config, run_dir=None, *, resume=False, progress=True, checkpoint_seconds=60.0):
    """Train one model as `config` says, and return its Result. Writes run_dir (default: a new folder under runs/).

    resume=True continues what run_dir holds: a CPU run that was killed ends with the same weights and metrics.jsonl, bit for
    bit, as one that never was, at the same number of threads. A checkpoint is written at the start, after every epoch, and
    whenever `checkpoint_seconds` have passed since the last. Under torchrun, every process calls this.

    Raises ValueError for a wrong configuration or folder, TrainingDiverged when the loss is not finite, TrainingInterrupted
    after Ctrl-C (the checkpoint is written), OSError when a file cannot be written (the last good checkpoint stays).
    """
    if not 0 <= checkpoint_seconds < math.inf:
        raise ValueError(f"checkpoint_seconds must be a number from 0 on, not {checkpoint_seconds!r}")
    world = join_world(config.device)
    run_dir = Path(world.from_rank_zero(run_dir or new_run_dir(config)))
    lock = FileLock(run_dir / ".lock")
    if world.rank == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunInUse(f"{run_dir} is in use by another run") from None
    try:
        run = Run(config, world, run_dir)
        state = world.first_then_others(lambda: _prepare_folder(config, run_dir, resume or world.rank > 0))
        if world.from_rank_zero(state is not None):     # not what this rank saw: rank 0 may write a first checkpoint meanwhile
            run.restore(state, run_dir / "checkpoint.pt")
        return _train_to_the_end(run, run_dir, progress and world.rank == 0, checkpoint_seconds)
    except TrainingDiverged as error:
        hint = f"; the last good checkpoint is {run_dir / 'checkpoint.pt'}" if (run_dir / "checkpoint.pt").exists() else ""
        raise TrainingDiverged(f"{error}{hint}") from None
    finally:
        if world.rank == 0:
            lock.release()
            if not (run_dir / "config.json").exists():      # refused before it began: leave nothing behind
                (run_dir / ".lock").unlink(missing_ok=True)
                with suppress(OSError):                     # a folder that holds something stays
                    run_dir.rmdir()


def _train_to_the_end(run, run_dir, progress, checkpoint_seconds):
    config, first = run.config, run.world.rank == 0
    if progress and config.layer_attention and all(len(stage) == 1 for stage in run.model.stages):
        print(f"note: ResNet-{config.depth} has one layer a stage: its layer attention has no earlier layer to read")
    read_every = 1 if run.world.device.type == "cpu" and not run.world.parallel else 50      # reading a loss waits for the device
    if first:
        # What a killed run wrote after its checkpoint is cut: it will be written again, the same.
        metrics = "".join(to_line(record) for record in run.metrics).encode()
        replace_file(run_dir / "metrics.jsonl", lambda file: file.write(metrics))
    _save(run, run_dir)
    saved = time.monotonic()
    bar = tqdm(total=run.total_steps, initial=run.step, disable=not progress, unit="step", mininterval=0.5)
    with _ctrl_c_as_a_flag() as interrupted, bar:
        while not run.finished:
            started = time.perf_counter()
            run.train_step()
            epoch_ends = run.finished or run.step % run.steps_per_epoch == 0
            reads = epoch_ends or run.step % read_every == 0
            if reads:
                run.read_losses()
            run.seconds += time.perf_counter() - started
            bar.update()
            if reads and progress:
                text = f"loss {run.losses[-1]:.3f}, accuracy {100 * run.hits[-1]:.0f} %, {run.images_per_second:.0f} images/s"
                bar.set_postfix_str(text, refresh=False)
            if epoch_ends:
                record = run.close_epoch()
                if first:
                    append_record(run_dir / "metrics.jsonl", record)
                    append_record(run_dir / "timing.jsonl", {"step": run.step, "training_seconds": round(run.seconds, 3),
                                                             "images_per_second": round(run.images_per_second, 1)})
                if progress:
                    bar.write(_describe(record, config, run.images_per_second))
            stop = run.world.from_rank_zero(interrupted.is_set()) if reads else False
            due = not run.world.parallel and time.monotonic() - saved >= checkpoint_seconds
            if epoch_ends or stop or due:
                _save(run, run_dir)
                saved = time.monotonic()
            if stop and not run.finished:
                raise TrainingInterrupted(f"interrupted at step {run.step} of {run.total_steps}; "
                                          f"to go on: mrla train --resume {shlex.quote(str(run_dir))}")
    if first:
        from mrla_minimal.lab.plots import plot_curves

        plot_curves(run.metrics, run_dir / "curves.png", source=run.source)
    parameters = sum(p.numel() for p in run.model.parameters())
    return Result(run.metrics[-1]["test_accuracy"], run.metrics, run.source, run.fingerprint, parameters, run.seconds,
                  run.images_per_second, run_dir)
