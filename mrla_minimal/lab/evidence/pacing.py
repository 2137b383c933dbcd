"""How long runs take on this machine, and when several processes that share them would be done."""

import heapq
import math
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType

from mrla_minimal.lab.data import Cifar
from mrla_minimal.lab.data.scenes import views
from mrla_minimal.lab.device import join_world, plain_defaults
from mrla_minimal.lab.engine import Run, TrainConfig, TrainingDiverged, evaluate, open_run
from mrla_minimal.lab.engine.detection import BATCH, find_objects
from mrla_minimal.lab.evidence.interventions import chooses
from mrla_minimal.lab.files import append_record, read_records
from mrla_minimal.lab.timing import seconds_of

MARGIN = 1.1        # what is predicted may take this much longer
UNTRIED = 1.15      # and this much, while no run has shown how good the estimates are
LOOKS = 13          # interventions on a net that chooses take about as long as this many tests of it


@dataclass(frozen=True)
class Pace:
    """What a whole run of one kind (variant and phase) takes here, its tests and interventions included.

    sitting       the end of the timed run that it was taken in, which tells them apart
    first, last   the steps that it begins and ends with
    measured      whether such a run was made; otherwise it is an estimate from a few steps
    """

    sitting: float
    kind: str
    seconds: float
    first: int
    last: int
    measured: bool


def note_pace(path: Path, pace: Pace) -> None:
    """Add a pace to a file that the processes of a timed run share."""
    append_record(path, asdict(pace))


def load_paces(path: Path, sitting: float) -> dict[str, Pace]:
    """kind -> the pace to go by: the slowest of its last three runs in this timed run.

    Of a kind that was not run yet, its estimate, corrected by how far the estimates of the others were off.
    """
    lines = read_records(path)[0] if path.exists() else []
    paces = [Pace(**line) for line in lines if line["sitting"] == sitting]
    estimated = {pace.kind: pace for pace in paces if not pace.measured}
    measured = {}
    for kind in {pace.kind for pace in paces if pace.measured}:
        latest = [pace for pace in paces if pace.measured and pace.kind == kind][-3:]
        measured[kind] = max(latest, key=lambda pace: pace.seconds)
    off = max((pace.seconds / estimated[kind].seconds for kind, pace in measured.items()
               if kind in estimated), default=UNTRIED)
    corrected = {kind: replace(pace, seconds=off * pace.seconds) for kind, pace in estimated.items()}
    return corrected | measured


@plain_defaults()
def estimate(config: TrainConfig, data: Cifar, sitting: float, kind: str) -> Pace:
    """What a run would take: a few steps and a part of a test of it, timed now, in about two seconds."""
    started = time.perf_counter()
    run = open_run(config, join_world(config.device), data=data)
    built = time.perf_counter() - started
    once = seconds_a_step(run, 1, warm_up=4)        # the fourth step captures a CUDA graph, if there is one
    step = seconds_a_step(run, max(3, min(20, math.ceil(1.0 / once))), warm_up=0)
    steps, looks = run.last_step - run.first_step, run.last_step == run.total_steps and chooses(run.model)
    if config.detects:
        whole, tests = list(views(run.test, run.crop)), 1
        few = whole[:BATCH]
    else:
        whole, tests = run.test, math.ceil(steps / run.steps_per_epoch) + LOOKS * looks
        few = type(whole)(whole.images[:500], whole.labels[:500])
    test = len(whole) / len(few) * min(_seconds_of_test(run, few) for _ in range(2))
    seconds = built + steps * step + tests * test
    return Pace(sitting, kind, seconds, run.first_step, run.last_step, False)


def _seconds_of_test(run, few):
    def test():
        with suppress(TrainingDiverged):        # told when it is run: numbers that are none take as long
            look = find_objects if run.config.detects else evaluate
            look(run.model, few, precision=run.precision, channels_last=run.config.channels_last)

    return seconds_of(test, run.world.device)


def seconds_a_step(run: Run, steps: int, warm_up: int = 5) -> float:
    """Seconds of one training step, over `steps` of them after `warm_up` that do not count.

    Whether the loss stays finite does not matter.
    """
    def train(count):
        for _ in range(count):
            run.train_step()
        with suppress(TrainingDiverged):
            run.read_losses()       # waits for the device

    train(warm_up)
    return seconds_of(lambda: train(steps), run.world.device) / steps


@dataclass(frozen=True)
class Task:
    """A run that is to be made: how long it takes, and the id of the trunk that it waits for, if it does."""

    id: str
    seconds: float
    after: str | None = None


def when_done(blocks: Iterable[Iterable[Task]], free: Iterable[float],
              trunks: Mapping[str, float] = MappingProxyType({})) -> float:
    """When the last of these runs ends, in seconds from now.

    blocks    a process that is free takes the longest run of the first block that has one it can begin
    free      when each of the processes that share them is free, in seconds from now: at least one
    trunks    when those that are being trained will be done
    """
    waiting = [sorted(block, key=lambda task: -task.seconds) for block in blocks]
    ready, ends, last = dict(trunks), list(free), 0.0
    heapq.heapify(ends)
    while any(waiting):
        now = heapq.heappop(ends)
        possible = ((block, task) for block in waiting for task in block
                    if task.after is None or ready.get(task.after, math.inf) <= now)
        block, task = next(possible, (None, None))
        if task is None:        # it waits for a trunk
            heapq.heappush(ends, min(end for end in ready.values() if end > now))
            continue
        block.remove(task)
        ready[task.id] = now + task.seconds
        last = max(last, ready[task.id])
        heapq.heappush(ends, ready[task.id])
    return max(last, *ends, *trunks.values())
