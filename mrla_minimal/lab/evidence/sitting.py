"""One sitting of a suite that is run by time: its phases, a line a minute on how it stands, and its end."""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mrla_minimal.lab.evidence.blocks import append_stop, complete_seeds, finished_runs, seeds_in_order
from mrla_minimal.lab.evidence.board import Board
from mrla_minimal.lab.evidence.jobs import Job, best_rates, final_jobs, trunk_job, tuning_jobs
from mrla_minimal.lab.evidence.records import load_records
from mrla_minimal.lab.evidence.timed import Blocks, Sitting

if TYPE_CHECKING:
    from mrla_minimal.lab.evidence.running import Work

EVERY = 60.0        # seconds from one line to the next


def run_sitting(work: "Work", sitting: Sitting, variants: Sequence[str], seeds: Sequence[int] | None,
                tells: bool = True, **changes: Any) -> None:
    """Run a suite's blocks until the time is over, or until none is left of the seeds that are given.

    How it ended is recorded beside the records, once, by the process that leads. Raises ValueError, in that
    process, if not even one block can end in time; it says what one takes.
    """
    suite, path = work.suite, work.records_path

    def ended() -> set[str]:
        return {record["id"] for record in load_records(path)}

    def finish(job: Job) -> dict | None:
        return work.run(job) if job.config.is_trunk else work.finish(job)       # a trunk has no own record

    before, how = len(ended()), "interrupted"
    with Board(work.folder, sitting.until) as board:
        blocks = Blocks(sitting, board, work.load, finish, ended, functools.partial(trunk_job, suite))

        def standing() -> str:
            records = load_records(path)
            complete = len(complete_seeds(suite.name, variants, records))
            return (f"{suite.name}: {complete} complete block{'s' * (complete != 1)}, "
                    f"{len(records) - before} runs in {sitting.passed / 60:.1f} minutes; {blocks.describe()}")

        if tells and sitting.leads:
            jobs = f"{sitting.jobs} job{'s' * (sitting.jobs > 1)}"
            print(f"{suite.name}: {sitting.minutes:g} minutes with {jobs}; first, a few steps of each "
                  "variant are timed", flush=True)
        try:
            with _every_minute(standing if tells and sitting.leads else None):
                rates, whole = None, True
                if suite.rates:
                    whole = blocks.through(iter([tuning_jobs(suite, variants, **changes)]),
                                           f"the tuning of suite {suite.name}")
                    rates = best_rates(suite, variants, load_records(path), **changes) if whole else None
                if whole:
                    def block(seed: int) -> list:
                        return final_jobs(suite, variants, (seed,), rates, **changes)

                    _look_into(work, sitting, map(block, finished_runs(suite.name, load_records(path))))
                    order = seeds_in_order(suite, variants, seeds, load_records(path))
                    whole = blocks.through(map(block, order), f"one block of suite {suite.name}")
            how = "count" if whole else "time"
        except Exception:
            how = "error"
            raise
        finally:
            if sitting.leads and blocks.any_begun:
                complete = complete_seeds(suite.name, variants, load_records(path))
                append_stop(path, {"suite": suite.name, "variants": list(variants), "how": how,
                                   "minutes": sitting.minutes, "took": round(sitting.passed / 60, 2),
                                   "jobs": sitting.jobs, "complete": complete, "commit": work.commit})
    if sitting.leads and tells:
        print(f"{standing()}\n{suite.name}: " + (
            "every block that was asked for is complete" if whole
            else "no other block would end in time; the same command goes on"), flush=True)


def _look_into(work, sitting, blocks):
    """Nets of earlier runs may lack their interventions: a run that ends too late is not looked into."""
    ended = {record["id"] for record in load_records(work.records_path)}
    for job in (job for block in blocks for job in block if job.id in ended):
        if not sitting.over:
            work.finish(job)


@contextmanager
def _every_minute(text: Callable[[], str] | None) -> Iterator[None]:
    """Within it, a thread prints this text every minute; None: nothing does."""
    over = threading.Event()

    def tell() -> None:
        while not over.wait(EVERY):
            print(text(), flush=True)

    thread = threading.Thread(target=tell, daemon=True)
    if text is not None:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if text is not None:
            thread.join()
