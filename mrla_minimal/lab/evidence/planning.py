"""How long what is left of a suite would take on this machine."""

from collections.abc import Iterable, Sequence
from typing import Any

from tqdm import tqdm

from mrla_minimal.lab.data import Cifar
from mrla_minimal.lab.device import device_name, join_world, plain_defaults
from mrla_minimal.lab.engine import Run
from mrla_minimal.lab.engine.graph import open_run
from mrla_minimal.lab.evidence.jobs import (
    best_rates,
    check_definitions,
    choose_parts,
    final_jobs,
    tuning_jobs,
)
from mrla_minimal.lab.evidence.suites import Suite
from mrla_minimal.lab.timing import seconds_of


@plain_defaults()
def plan_suite(suite: Suite, records: Iterable[dict], *, variants: Sequence[str] | None = None,
               seeds: Sequence[int] | None = None, data: Cifar | None = None, timed_steps: int = 20,
               progress: bool = True, **changes: Any) -> str:
    """How long the runs that are left would take here, as text.

    Each variant is trained for a few steps and timed; nothing is written. Arguments and errors as those of
    `run_suite`; `records` are those that there are already.
    """
    variants, seeds = choose_parts(suite, variants, seeds, **changes)
    check_definitions(suite, variants, records, changes)
    left = _runs_left(suite, variants, seeds, records, changes)
    if not left:
        of = f"{', '.join(variants)} with seeds {', '.join(map(str, seeds))}"
        return f"suite {suite.name}: no runs left of {of}"
    lines, total = [f"{'variant':<20} {'images/s':>9} {'minutes a run':>14} {'runs left':>10}"], 0.0
    each = 0.0
    for variant in tqdm(left, disable=not progress, unit="variant", leave=False):
        config = suite.config(variant, 0, **changes)
        run = open_run(config, join_world(config.device), data=data)
        seconds = _seconds_a_step(run, timed_steps)
        minutes = run.total_steps * seconds / 60
        total, each = total + left[variant] * minutes, each + minutes
        speed = config.batch_size / seconds
        lines.append(f"{variant:<20} {speed:>9.0f} {minutes:>14.1f} {left[variant]:>10}")
    return "\n".join([
        f"suite {suite.name}, {run.source}, on {device_name(run.world.device)}: "
        f"{timed_steps} training steps of each variant, timed now", "", *lines, "",
        f"{sum(left.values())} runs left: {total / 60:.1f} hours one after another; one of each, {each:.1f} "
        "minutes. Tests and interventions are not counted.",
        "With --jobs N, N runs share the device: a small net leaves a GPU mostly idle; "
        "the cores of a CPU are shared out."])


def _runs_left(suite: Suite, variants: Sequence[str], seeds: Sequence[int], records: Iterable[dict],
               changes: dict) -> dict[str, int]:
    """variant -> how many of its runs have no record, of those that have any left."""
    known, left = {record["id"] for record in records}, dict.fromkeys(variants, 0)
    for job in tuning_jobs(suite, variants, **changes):
        left[job.variant] = left.get(job.variant, 0) + (job.id not in known)
    for variant in variants:
        try:
            rates = best_rates(suite, (variant,), records, **changes) if suite.rates else None
        except ValueError:      # not tuned yet
            left[variant] += len(seeds)
        else:
            jobs = final_jobs(suite, (variant,), seeds, rates, **changes)
            left[variant] += sum(job.id not in known for job in jobs)
    return {variant: runs for variant, runs in left.items() if runs}


def _seconds_a_step(run: Run, steps: int, warm_up: int = 5) -> float:
    def train(count):
        for _ in range(count):
            run.train_step()
        run.read_losses()       # waits for the device

    train(warm_up)
    return seconds_of(lambda: train(steps), run.world.device) / steps
