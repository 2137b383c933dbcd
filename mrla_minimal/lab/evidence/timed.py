"""A suite run by time: block after block, as long as the next one can still end.

All variants of a seed are a block. The processes share a block's runs, the longest first. One that finds none
left begins the next block, if by the paces measured here that block can end in time as well. When the time is
over, what still runs stops with a checkpoint: the same command goes on with it, before anything else.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from mrla_minimal.lab.arguments import positive
from mrla_minimal.lab.data import Cifar
from mrla_minimal.lab.engine import TrainConfig, read_checkpoint
from mrla_minimal.lab.evidence.board import Activity, Board
from mrla_minimal.lab.evidence.jobs import Job
from mrla_minimal.lab.evidence.pacing import MARGIN, Task, estimate, load_paces, note_pace, when_done

JOINING = 30.0      # seconds in which processes that were started with this one may still be about to come
YEAR = 365 * 24 * 60        # minutes
LOOK_AGAIN = 0.5    # seconds after which a process that has nothing to do looks again


@dataclass(frozen=True)
class Sitting:
    """The time that a suite is run for, and the processes that share it.

    until   when it is over, by time.monotonic(): a clock that nobody sets
    leads   whether this process speaks for all: it says how things stand, and records what ended it
    Raises ValueError for minutes that are no positive number, or more than a year has.
    """

    minutes: float
    until: float
    jobs: int = 1
    leads: bool = True

    def __post_init__(self) -> None:
        if not positive("minutes", self.minutes) <= YEAR:
            raise ValueError(f"minutes must be at most {YEAR}, a year, not {self.minutes:g}")

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.until

    @property
    def passed(self) -> float:
        """Seconds since it began."""
        return 60 * self.minutes - (self.until - time.monotonic())


class Blocks:
    """One process's part in running blocks by time.

    load        the images of a run
    finish      runs a job, or goes on with it, to its record; None if it did not get there
    ended       the ids of the runs that have a record
    trunk_of    the trunk that a run goes on from, or None
    The board's folder is that of the run folders.
    """

    def __init__(self, sitting: Sitting, board: Board, load: Callable[[TrainConfig, str], Cifar],
                 finish: Callable[[Job], dict | None], ended: Callable[[], set[str]],
                 trunk_of: Callable[[Job], Job | None]):
        self.sitting, self.board, self.trunk_of = sitting, board, trunk_of
        self.load, self.finish, self.ended = load, finish, ended
        self.paces_path = board.folder / "paces.jsonl"
        self.open: list[list[Job]] = []     # blocks not complete, in order; the last may be untouched
        self.elsewhere: set[str] = set()    # runs that a process without a time limit is at
        self.hopeless: set[str] = set()     # trunks that diverge: what goes on from them will say so
        self.any_begun = False              # whether any run was, by whichever process

    def through(self, blocks: Iterator[list[Job]], what: str) -> bool:
        """Run blocks as long as they fit; whether none is left. `what` says what one of them is.

        In the process that leads, raises ValueError if nothing could be begun.
        """
        self.open = []
        while True:
            with self.board.turn():
                act = self._next_act(blocks)
            if act is None:
                break
            act()
        if self.open and self.sitting.leads and not self.any_begun:
            needed, jobs = math.ceil(10 * self._minutes_needed()) / 10, self.sitting.jobs
            raise ValueError(f"{self.sitting.minutes:g} minutes are too few: {what} takes about {needed:g} "
                             f"minutes here with {jobs} job{'s' * (jobs > 1)}; nothing was begun")
        return not self.open

    def _next_act(self, blocks):
        """What this process does next; None: nothing any more."""
        paces, now = load_paces(self.paces_path, self.sitting.until), time.monotonic()
        others = self.board.others()
        self._take_in(blocks, others)
        mates = [other for other in others if other.id and other.sitting == self.sitting.until]
        self.any_begun |= any(not mate.timing for mate in mates)
        untimed = {kind_of(job): job for block in self.open for job in self._of(block)
                   if kind_of(job) not in paces}
        claimed = {mate.id for mate in mates}
        for kind, job in untimed.items():
            if kind not in claimed:
                text = f"a few steps of {kind}, timed"
                self.board.show(Activity(self.sitting.until, kind, text, now, 2.0, timing=True))
                return functools.partial(self._time, job)
        job = None if untimed or self.sitting.over else self._choose(paces, others, now)
        if job is not None:
            self.board.show(Activity(self.sitting.until, job.id, text_of(job), now, self._left(job, paces)))
            self.any_begun = True
            return functools.partial(self._run, job)
        self.board.show(Activity(self.sitting.until))
        return functools.partial(time.sleep, LOOK_AGAIN) if mates else None

    def _take_in(self, blocks, others):
        """Forget the blocks that are complete, and have an untouched one at hand, if there is one more."""
        self._ended = self.ended()
        self._taken = {other.id for other in others} | self.elsewhere
        self.open = [block for block in self.open if self._of(block)]
        while not self.open or self._is_begun(self.open[-1]):
            block = next(blocks, None)
            if block is None:
                break
            if self._of(block):
                self.open.append(block)

    def _of(self, block, without=frozenset()):
        """The runs of a block that have not ended, and the trunks that they need; but not some."""
        jobs = [job for job in block if job.id not in self._ended]
        needed = [trunk for trunk in map(self.trunk_of, jobs) if trunk and not self._is_trained(trunk)]
        trunks = {trunk.id: trunk for trunk in needed}
        return [job for job in (*trunks.values(), *jobs) if job.id not in without]

    def _is_trained(self, trunk):
        """Whether a trunk is there; it has no record."""
        if trunk.id not in self._ended | self.hopeless:
            try:
                metrics = read_checkpoint(self.board.folder / trunk.folder)["metrics"]
                if metrics[-1]["epoch"] >= trunk.config.trunk_epochs:
                    self._ended = {*self._ended, trunk.id}
            except (ValueError, LookupError, TypeError):    # none yet, or its training will say what is wrong
                pass
        return trunk.id in self._ended | self.hopeless

    def _waits_for(self, job):
        """The id of the trunk that a run waits for, or None."""
        trunk = self.trunk_of(job)
        return None if trunk is None or self._is_trained(trunk) else trunk.id

    def _is_begun(self, block):
        known = {*self._ended, *self._taken, self.board.mine.id}
        trunks = filter(None, map(self.trunk_of, block))
        return any(job.id in known or (self.board.folder / job.folder / "checkpoint.pt").exists()
                   for job in (*block, *trunks))

    def _choose(self, paces, others, now):
        """The run that this process is to begin: the longest of a begun block, or of one that can still end.

        None, if there is none that ends in time.
        """
        left = functools.partial(self._left, paces=paces)
        time_left = self.sitting.until - now
        begun = [block for block in self.open if self._is_begun(block)]
        for block in begun:
            fit = [job for job in self._of(block, self._taken)
                   if MARGIN * left(job) <= time_left and self._waits_for(job) is None]
            if fit:
                return max(fit, key=left)
        untouched = [block for block in self.open if block not in begun][:1]
        if untouched and MARGIN * self._ends([*begun, *untouched], [Activity(0.0), *others], now,
                                              paces) <= time_left:
            return max((job for job in self._of(untouched[0]) if self._waits_for(job) is None), key=left)
        return None

    def _ends(self, blocks, processes, now, paces):
        """When these blocks will have ended, in seconds from now, by what the processes are at.

        Without what waits for a trunk that is trained elsewhere: nobody here knows how long.
        """
        tasks = [[Task(job.id, self._left(job, paces), trunk) for job in self._of(block, self._taken)
                  if (trunk := self._waits_for(job)) not in self.elsewhere] for block in blocks]
        missing = self.sitting.jobs - len(processes)
        coming = [2.0] * missing if self.sitting.passed < JOINING else []      # some may not be here yet
        free = [*(each.left(now) for each in processes), *coming]
        return when_done(tasks, free, {each.id: each.left(now) for each in processes if each.id})

    def _left(self, job, paces):
        """Seconds that a run should take from where it is: its checkpoint knows how far it has come."""
        pace, path = paces[kind_of(job)], self.board.folder / job.folder / "checkpoint.pt"
        try:
            done = (read_checkpoint(path)["step"] - pace.first) / (pace.last - pace.first)
            return pace.seconds * (1 - min(1.0, max(0.0, done)))
        except (ValueError, KeyError, TypeError):       # there is none, or the run itself will complain
            return pace.seconds

    def _minutes_needed(self):
        paces = load_paces(self.paces_path, self.sitting.until)
        tasks = [Task(job.id, self._left(job, paces), self._waits_for(job)) for job in self._of(self.open[0])]
        return (self.sitting.passed + MARGIN * when_done([tasks], [0.0] * self.sitting.jobs)) / 60

    def describe(self) -> str:
        """What runs now, how much time is left, and when what is begun will have ended: for a person."""
        with self.board.turn():
            paces, now = load_paces(self.paces_path, self.sitting.until), time.monotonic()
            others = self.board.others()
            at_work = [each for each in (self.board.mine, *others) if each.id]
            self._taken = {each.id for each in at_work} | self.elsewhere
            begun = [block for block in self.open if self._is_begun(block)]
            running = any(not each.timing for each in at_work) and all(
                kind_of(job) in paces for block in begun for job in self._of(block))
            ends = self._ends(begun, [self.board.mine, *others], now, paces) if running else 0.0
        parts = [f"now {', '.join(each.text for each in at_work)}"] if at_work else []
        parts.append(f"{max(0.0, (self.sitting.until - now) / 60):.1f} minutes left")
        if running:
            parts.append(f"what is begun ends in {ends / 60:.1f}")
        return "; ".join(parts)

    # What a process does outside of its turn

    def _time(self, job):
        data = self.load(job.config, job.config.source)
        pace = estimate(job.config, data, self.sitting.until, kind_of(job))
        with self.board.turn():
            note_pace(self.paces_path, pace)

    def _run(self, job):
        began, whole = time.monotonic(), not (self.board.folder / job.folder / "checkpoint.pt").exists()
        record = self.finish(job)
        seconds = time.monotonic() - began
        if record is None and not self.sitting.over:
            self.elsewhere.add(job.id)
        elif record is not None and "diverged" in record:
            self.hopeless.add(job.id)
        elif record is not None and whole:      # what was gone on with is no measure
            with self.board.turn():
                pace = load_paces(self.paces_path, self.sitting.until)[kind_of(job)]
                note_pace(self.paces_path, replace(pace, seconds=seconds, measured=True))


def kind_of(job: Job) -> str:
    """Runs of one kind take equally long."""
    return job.variant if job.phase == "final" else f"{job.variant} ({job.phase})"


def text_of(job: Job) -> str:
    """What a person would call a run."""
    return f"{kind_of(job)} seed {job.config.seed}"
