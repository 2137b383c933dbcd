"""One training run: its loop, and how it is interrupted and resumed.

`folder.py` says what it leaves behind.
"""

import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from mrla_minimal.lab.arguments import boolean, not_negative
from mrla_minimal.lab.data import Cifar
from mrla_minimal.lab.data.scenes import Scenes
from mrla_minimal.lab.device import device_name, join_world, plain_defaults
from mrla_minimal.lab.engine.branch import branch_off, finished_trunk, trunk_of
from mrla_minimal.lab.engine.checkpoint import save
from mrla_minimal.lab.engine.config import TrainConfig
from mrla_minimal.lab.engine.folder import begin, begun, cut_back, going_on, new_run_dir
from mrla_minimal.lab.engine.graph import GraphRun, open_run
from mrla_minimal.lab.engine.resume import restore
from mrla_minimal.lab.engine.run import TrainingDiverged
from mrla_minimal.lab.files import Busy, append_record, take_lock
from mrla_minimal.lab.own_files import first_line
from mrla_minimal.lab.plugins import OwnAttention


@dataclass(frozen=True)
class Result:
    """What a finished run is remembered by.

    Accuracies are fractions of 1, and None for a detector, whose last metrics hold its average precision; the
    throughput is of training steps alone; `precision` is what they were computed in.
    """

    test_accuracy: float | None
    metrics: list[dict]
    source: str
    fingerprint: str
    parameters: int
    seconds: float
    images_per_second: float
    run_dir: Path
    precision: str
    trunk: dict | None = None       # where a branch comes from: see branch.py


class RunInUse(ValueError):
    """Another process is at this run."""


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, after the checkpoint was written; `signal` is the number of which."""

    def __init__(self, message: str, number: int = signal.SIGINT):
        super().__init__(message)
        self.signal = number


class TrainingOutOfTime(TrainingInterrupted):
    """Its time was over before its steps; the checkpoint was written."""


@contextmanager
def _signals_noted() -> Iterator[list[int]]:
    """Within it, a first Ctrl-C or SIGTERM is only noted in the list that is yielded, by its number.

    So a step is never left half done. A second one interrupts at once.
    """
    noted = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return

    def handler(number, frame):
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, earlier in previous.items():
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)


@plain_defaults()
def train(config: TrainConfig, run_dir: str | Path | None = None, *, data: Cifar | Scenes | None = None,
          resume: bool = False, trust: bool = False, progress: bool = True, checkpoint_seconds: float = 60.0,
          until: float | None = None, on_record: Callable[[dict], None] | None = None,
          trunk_dir: str | Path | None = None) -> Result:
    """Train one model as `config` says, and return its Result.

    Everything is written to `run_dir` (None: a new folder under runs/). `data` holds images of one's own,
    of any size and number of channels (Scenes for a detector); None loads what `config` names:

        train_split = Split(images, labels)         # uint8 (N, channels, height, width); int64 (N,)
        data = Cifar(train_split, test_split, ("cat", "dog"), source="pets", fingerprint="pets, version 1")
        result = train(TrainConfig(depth=20), data=data)

    resume=True continues what run_dir holds: a CPU run that was killed ends with the same weights and
    metrics.jsonl, bit for bit, as one that never was, at the same number of threads. With more epochs (or
    steps) than before, a run goes on for longer, also one that had ended: from there on, what follows from
    the length (the schedule, and augment="auto") is as if it had been begun with the new length, so the
    learning rate may rise again. A run with an attention of one's own is continued only with trust=True,
    for its folder says which Python file to run.

    A checkpoint is written at the start, after every epoch, and whenever `checkpoint_seconds` have passed
    since the last. `until` is a time of time.monotonic() at which it stops, if it is not finished, as after
    SIGTERM. Under torchrun, every process calls this. `on_record` is called with each epoch's record
    once it is on the disk; for TensorBoard, or for a table:

        writer = SummaryWriter(folder)
        train(config, on_record=lambda r: writer.add_scalar("test", r["test_accuracy"], r["step"]))

        table = csv.DictWriter(file, ["epoch", "train_loss", "test_accuracy"], extrasaction="ignore")
        train(config, on_record=table.writerow)

    A branch (`config.trunk`) goes on from its trunk, which is trained first, in `trunk_dir` (None:
    run_dir/trunk), unless it is there already: several branches may share one (branch.py).

    Raises ValueError for a wrong configuration or folder, TrainingDiverged when a number is not finite,
    TrainingInterrupted after Ctrl-C or SIGTERM, TrainingOutOfTime after `until` (the checkpoint is written),
    OSError when a file cannot be written (the last good checkpoint stays).
    """
    not_negative("checkpoint_seconds", checkpoint_seconds)
    for name, value in (("resume", resume), ("trust", trust)):      # a text such as "no" would count as True
        boolean(name, value)
    world = join_world(config.device)
    if run_dir is None and world.rank == 0:
        run_dir = new_run_dir(config, source=data.source if data else None)
    run_dir = Path(world.from_rank_zero(run_dir))
    if world.rank == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        try:
            lock = take_lock(run_dir / ".lock", wait=False)
        except Busy:
            raise RunInUse(f"{run_dir} is in use by another run") from None
    try:
        if resume:
            config = going_on(config, run_dir, trust)
        run = open_run(config, world, run_dir, data)
        goes_on = resume or world.rank > 0      # for the others, rank 0 has begun it
        state = world.first_then_others(lambda: begun(run, run_dir) if goes_on else begin(run, run_dir))
        if world.from_rank_zero(state is not None):     # this rank may see one that rank 0 wrote meanwhile
            restore(run, state, run_dir / "checkpoint.pt")
        elif config.trunk is not None:
            trunk_dir = Path(trunk_dir or run_dir / "trunk")
            trunk = finished_trunk(run, trunk_dir, data)
            if trunk is None:
                _train_trunk(run, run_dir, trunk_dir, data=data, progress=progress,
                             checkpoint_seconds=checkpoint_seconds, until=until)
                trunk = finished_trunk(run, trunk_dir, data)
            branch_off(run, trunk)
        _train_to_the_end(run, run_dir, progress and world.rank == 0, checkpoint_seconds, until, on_record)
        if world.rank == 0:
            _draw(run, run_dir)
    except TrainingDiverged as error:
        checkpoint = run_dir / "checkpoint.pt"
        raise TrainingDiverged(f"{error}; the last good checkpoint is {checkpoint}" if checkpoint.exists()
                               else str(error)) from None
    finally:
        if world.rank == 0:
            lock.release()
            if not (run_dir / "config.json").exists():      # refused before it began: leave nothing behind
                (run_dir / ".lock").unlink(missing_ok=True)
                with suppress(OSError):                     # a folder that holds something stays
                    run_dir.rmdir()
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    return Result(run.metrics[-1].get("test_accuracy"), run.metrics, run.source, run.fingerprint, parameters,
                  run.seconds, run.images_per_second, run_dir, run.precision, run.trunk)


def _train_trunk(run, run_dir, trunk_dir, progress, **options):
    """Train the trunk of a branch, or go on with it. RunInUse if another process is at it."""
    config = trunk_of(run.config)
    if progress:
        print(f"first its trunk: {config.trunk_epochs} epochs with {config.layer_attention}")
    try:
        train(config, trunk_dir, resume=(trunk_dir / "config.json").exists(), progress=progress, **options)
    except TrainingInterrupted as interrupt:
        raise type(interrupt)(f"interrupted in its trunk; to go on: mrla train --resume "
                              f"{shlex.quote(str(run_dir))}", interrupt.signal) from None


def _train_to_the_end(run, run_dir, progress, checkpoint_seconds, until, on_record):
    config, first = run.config, run.world.rank == 0
    run.progress = progress
    if progress:
        graphs = ", each step one CUDA graph" if isinstance(run, GraphRun) else ""
        print(f"training in {run.precision} on {device_name(run.world.device)}{graphs}")
        if config.layer_attention and all(len(stage) == 1 for stage in run.model.stages):
            print(f"note: {config.host_text} has one layer a stage: "
                  "its layer attention has no earlier layer to read")
    # Reading a loss waits for the device.
    read_every = 1 if run.world.device.type == "cpu" and not run.world.parallel else 50
    if first:
        cut_back(run, run_dir)
    save(run, run_dir)
    saved = time.monotonic()
    bar = tqdm(total=run.last_step, initial=run.step, disable=not progress, unit="step", mininterval=0.5)
    with _signals_noted() as signals, bar:
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
                right = [f"accuracy {100 * accuracy:.0f} %" for accuracy in run.accuracies[-1:]]
                bar.set_postfix_str(", ".join([f"loss {run.losses[-1]:.3f}", *right,
                                               f"{run.images_per_second:.0f} images/s"]), refresh=False)
            if epoch_ends:
                record = run.close_epoch()
                if first:
                    _log(run, run_dir, record)
                if progress:
                    bar.write(_describe(record, config, run.images_per_second))
            late = until is not None and time.monotonic() >= until
            stop, late = run.world.from_rank_zero((signals[:1], late)) if reads else ([], False)
            due = not run.world.parallel and time.monotonic() - saved >= checkpoint_seconds
            if epoch_ends or stop or late or due:
                save(run, run_dir)
                saved = time.monotonic()
            if epoch_ends and first and on_record is not None:
                on_record(record)
            if (stop or late) and not run.finished:
                trust = " --trust" if OwnAttention.parse(config.layer_attention) else ""
                where = (f"at step {run.step} of {run.total_steps}; to go on: "
                         f"mrla train --resume {shlex.quote(str(run_dir))}{trust}")
                if stop:
                    raise TrainingInterrupted(f"interrupted {where}", *stop)
                raise TrainingOutOfTime(f"out of time {where}", signal.SIGTERM)


def _log(run, run_dir, record):
    """Add an epoch's line to metrics.jsonl, and how long it took to timing.jsonl."""
    append_record(run_dir / "metrics.jsonl", record)
    append_record(run_dir / "timing.jsonl", {"step": run.step, "training_seconds": round(run.seconds, 3),
                                             "images_per_second": round(run.images_per_second, 1)})


def _describe(record, config, images_per_second):
    """An epoch's record on one line."""
    position = f"epoch {record['epoch']}/{config.epochs}" if config.steps is None else \
        f"step {record['step']}/{config.steps}"
    parts = [position, f"loss {record['train_loss']:.3f}"]
    for name in ("train", "validation", "test"):
        parts += [f"{name} {100 * record[f'{name}_{what}']:.2f} %{unit}"
                  for what, unit in (("accuracy", ""), ("box_AP", " box AP"), ("mask_AP", " mask AP"))
                  if f"{name}_{what}" in record]
    return "  ".join([*parts, f"{images_per_second:.0f} images/s"])


def _draw(run, run_dir):
    """The curves, last of all: whatever goes wrong with a figure, the run is over and its result written."""
    try:
        from mrla_minimal.lab.figures import plot_curves

        plot_curves(run.metrics, run_dir / "curves.png", source=run.source)
    except Exception as error:
        print(f"note: {run_dir / 'curves.png'} could not be drawn ({first_line(error)}); all else is there")
