"""What the processes of a timed run tell each other: who is at work, at what, and since when.

Each has a small file in the suite's folder of runs, and holds a lock as long as it lives, however it ends.
Times are those of time.monotonic(), which all processes of a machine share and which nobody sets.
"""

import itertools
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from mrla_minimal.lab.files import Busy, exclusive, take_lock, write_json


@dataclass(frozen=True)
class Activity:
    """What a process is at: a run (its id; None: nothing), its text, since when, and how long it should take.

    `sitting` tells the timed runs apart, so that two at once do not wait for each other. With `timing` it is
    no run, but a few steps of one of this kind (its id).
    """

    sitting: float
    id: str | None = None
    text: str = ""
    since: float = 0.0
    seconds: float = 0.0
    timing: bool = False

    def left(self, now: float) -> float:
        """Seconds that it should still take; of what takes longer than it should, a tenth of the whole."""
        return max(self.seconds - (now - self.since), 0.1 * self.seconds) if self.id else 0.0


class Board:
    """A process's place at a suite's folder of runs: `with Board(folder, sitting) as board:`."""

    def __init__(self, folder: Path, sitting: float):
        self.folder, self.sitting = folder, sitting

    def __enter__(self) -> "Board":
        self.folder.mkdir(parents=True, exist_ok=True)
        for number in itertools.count():
            try:
                self._lock = take_lock(self._place(number, "lock"), wait=False)
            except Busy:
                continue
            self._number = number
            self.show(Activity(self.sitting))
            return self

    def __exit__(self, *_) -> None:
        self._place(self._number, "json").unlink(missing_ok=True)
        self._lock.release()

    def _place(self, number, ending):
        return self.folder / f".at-work-{number}.{ending}"

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Within it no other process looks at the board, nor changes what it is at."""
        while True:
            try:
                lock = take_lock(self.folder / ".board.lock", wait=False)
                break
            except Busy:        # for an instant: not worth the word that a waiting take_lock has for it
                time.sleep(0.02)
        try:
            yield
        finally:
            lock.release()

    def show(self, activity: Activity) -> None:
        """Say what this process is at from now on."""
        self.mine = activity
        write_json(self._place(self._number, "json"), asdict(activity))

    def others(self) -> list[Activity]:
        """What the other processes that are alive are at; call it within a `turn`."""
        found = []
        for path in sorted(self.folder.glob(".at-work-*.lock")):
            number = int(path.stem.rpartition("-")[2])
            if number == self._number:
                continue
            with suppress(Busy), exclusive(path, wait=False):       # it can be taken: its process is gone
                self._place(number, "json").unlink(missing_ok=True)
                continue
            with suppress(FileNotFoundError):               # it is just coming, or going
                found.append(Activity(**json.loads(self._place(number, "json").read_text("utf-8"))))
        return found
