"""One training run: its loop, its folder, and how it is interrupted and resumed.

A run folder holds config.json, metrics.jsonl (one line an epoch, no times), timing.jsonl, checkpoint.pt and curves.png.
"""

import dataclasses
import itertools
import math
import shlex
import signal
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from mrla_minimal.lab.device import join_world
from mrla_minimal.lab.engine.checkpoint import TrainingDiverged, read_checkpoint, read_config, save
from mrla_minimal.lab.engine.config import differing_fields
from mrla_minimal.lab.engine.run import Run
from mrla_minimal.lab.files import append_record, replace_file, to_line, write_json
from mrla_minimal.lab.plugins import OwnAttention


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


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C, after the checkpoint was written."""


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


def new_run_dir(config, runs="runs", source=None):
    """Make runs/NAME, and return it: the first NAME that nobody has.

    NAME says the model, its attentions, the data (`source`, of images of one's own) and the seed. The folder is made
    here, which only one of several processes can do: two that start together get two folders.
    """
    own = OwnAttention.parse(config.layer_attention)
    layer_attention = own.short_name if own else config.layer_attention
    attention = "-".join(filter(None, (layer_attention, config.channel_attention))) or "plain"
    data = source or ("synthetic" if config.source == "synthetic" else config.dataset)
    name = f"resnet{config.depth}-{attention}-{data}-seed{config.seed}"
    for number in itertools.count(1):
        folder = Path(runs) / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            pass


def _prepare_folder(config, run_dir, resume):
    """Make or check the run folder, before anything is computed. Returns the checkpoint to go on from, or None."""
    stored = run_dir / "config.json"
    if not resume:
        if stored.exists():
            raise ValueError(f"{run_dir} holds a run already; resume it, or choose another name")
        write_json(stored, dataclasses.asdict(config))
        own = OwnAttention.parse(config.layer_attention)
        if own:
            own.keep_copy(run_dir)
        return None
    if not stored.is_file():
        raise ValueError(f"{run_dir} is not a run folder: it has no config.json")
    differing = differing_fields(config, read_config(run_dir))
    if differing:
        raise ValueError(f"{run_dir} was begun with another configuration: {'; '.join(differing)}")
    return read_checkpoint(run_dir) if (run_dir / "checkpoint.pt").exists() else None


def _describe(record, config, images_per_second):
    parts = [f"epoch {record['epoch']}/{config.epochs}" if config.steps is None else f"step {record['step']}/{config.steps}",
             f"loss {record['train_loss']:.3f}", f"train {100 * record['train_accuracy']:.2f} %"]
    parts += [f"{name} {100 * record[f'{name}_accuracy']:.2f} %" for name in ("validation", "test") if f"{name}_accuracy" in record]
    return "  ".join([*parts, f"{images_per_second:.0f} images/s"])


def train(config, run_dir=None, *, data=None, resume=False, progress=True, checkpoint_seconds=60.0):
    """Train one model as `config` says, and return its Result. Writes run_dir (default: a new folder under runs/).

    `data` holds images of one's own, of any size and number of channels; None loads what the configuration names:

        train_split = Split(images, labels)         # uint8 (N, channels, height, width); int64 (N,)
        data = Cifar(train_split, test_split, classes=("cat", "dog"), source="pets", fingerprint="pets, version 1")
        result = train(TrainConfig(depth=20), data=data)

    resume=True continues what run_dir holds: a CPU run that was killed ends with the same weights and metrics.jsonl, bit for
    bit, as one that never was, at the same number of threads. A checkpoint is written at the start, after every epoch, and
    whenever `checkpoint_seconds` have passed since the last. Under torchrun, every process calls this.

    Raises ValueError for a wrong configuration or folder, TrainingDiverged when the loss is not finite, TrainingInterrupted
    after Ctrl-C (the checkpoint is written), OSError when a file cannot be written (the last good checkpoint stays).
    """
    if not 0 <= checkpoint_seconds < math.inf:
        raise ValueError(f"checkpoint_seconds must be a number from 0 on, not {checkpoint_seconds!r}")
    world = join_world(config.device)
    if run_dir is None and world.rank == 0:
        run_dir = new_run_dir(config, source=data.source if data else None)
    run_dir = Path(world.from_rank_zero(run_dir))
    lock = FileLock(run_dir / ".lock")
    if world.rank == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunInUse(f"{run_dir} is in use by another run") from None
    try:
        run = Run(config, world, run_dir, data)
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
    save(run, run_dir)
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
                save(run, run_dir)
                saved = time.monotonic()
            if stop and not run.finished:
                raise TrainingInterrupted(f"interrupted at step {run.step} of {run.total_steps}; "
                                          f"to go on: mrla train --resume {shlex.quote(str(run_dir))}")
    if first:
        from mrla_minimal.lab.figures import plot_curves

        plot_curves(run.metrics, run_dir / "curves.png", source=run.source)
    parameters = sum(p.numel() for p in run.model.parameters())
    return Result(run.metrics[-1]["test_accuracy"], run.metrics, run.source, run.fingerprint, parameters, run.seconds,
                  run.images_per_second, run_dir)
