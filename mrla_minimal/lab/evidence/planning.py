"""How long what is left of a suite would take on this machine."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from tqdm import tqdm

from mrla_minimal.lab.columns import first_column
from mrla_minimal.lab.data import Cifar
from mrla_minimal.lab.device import device_name, join_world, plain_defaults
from mrla_minimal.lab.engine.branch import trunk_of
from mrla_minimal.lab.engine.graph import open_run
from mrla_minimal.lab.evidence.jobs import (
    best_rates,
    check_definitions,
    choose_parts,
    final_jobs,
    trunk_job,
    tuning_jobs,
)
from mrla_minimal.lab.evidence.pacing import seconds_a_step
from mrla_minimal.lab.evidence.suites import Suite


@plain_defaults()
def plan_suite(suite: Suite, records: Iterable[dict], *, variants: Sequence[str] | None = None,
               seeds: Sequence[int] | None = None, data: Cifar | None = None, timed_steps: int = 20,
               progress: bool = True, **changes: Any) -> str:
    """How long the runs that are left would take here, as text.

    Each variant is trained for a few steps and timed; nothing is written. Arguments and errors as those of
    `run_suite`; `records` are those that there are already.
    """
    records = list(records)
    variants, seeds = choose_parts(suite, variants, seeds, **changes)
    check_definitions(suite, variants, records, changes)
    left = _runs_left(suite, variants, seeds, records, changes)
    if not left:
        of = f"{', '.join(variants)} with seeds {', '.join(map(str, seeds))}"
        return f"suite {suite.name}: no runs left of {of}"
    configs = {variant: suite.config(variant, 0, **changes) for variant in left if variant in suite.variants}
    configs |= {f"trunk-{config.trunk}": trunk_of(config) for config in configs.values() if config.trunk}
    wide = first_column(left, least=20)
    lines, total = [f"{'variant':<{wide}} {'images/s':>9} {'minutes a run':>14} {'runs left':>10}"], 0.0
    each = 0.0
    for variant in tqdm(left, disable=not progress, unit="variant", leave=False):
        config = configs[variant]
        run = open_run(config, join_world(config.device), data=data)
        seconds = seconds_a_step(run, timed_steps)
        minutes = (run.last_step - run.first_step) * seconds / 60
        total, each = total + left[variant] * minutes, each + minutes
        speed = config.batch_size / seconds
        lines.append(f"{variant:<{wide}} {speed:>9.0f} {minutes:>14.1f} {left[variant]:>10}")
    return "\n".join([
        f"suite {suite.name}, {run.source}, on {device_name(run.world.device)}: "
        f"{timed_steps} training steps of each variant, timed now", "", *lines, "",
        f"{sum(left.values())} runs left: {total / 60:.1f} hours one after another; one of each, {each:.1f} "
        "minutes. Tests and interventions are not counted.",
        "With --jobs N, N runs share the device: a small net leaves a GPU mostly idle; "
        "the cores of a CPU are shared out."])


def _runs_left(suite: Suite, variants: Sequence[str], seeds: Sequence[int], records: Sequence[dict],
               changes: dict) -> dict[str, int]:
    """variant -> how many of its runs have no record, of those that have any left; and the trunks they need.

    A trunk is there if a branch of it is recorded.
    """
    known = {record["id"] for record in records} | {
        record["trunk"]["id"] for record in records if "trunk" in record}
    jobs = tuning_jobs(suite, variants, **changes)
    for variant in variants:
        rates = None
        if suite.rates:
            with suppress(ValueError):      # not tuned yet: for counting, any rate does
                rates = best_rates(suite, (variant,), records, **changes)
        jobs += final_jobs(suite, (variant,), seeds, rates, **changes)
    jobs = [job for job in jobs if job.id not in known]
    trunks = {trunk.id: trunk for trunk in (trunk_job(suite, job) for job in jobs) if trunk}
    left = dict.fromkeys(variants, 0)
    for job in (*jobs, *(trunk for trunk in trunks.values() if trunk.id not in known)):
        left[job.variant] = left.get(job.variant, 0) + 1
    return {variant: runs for variant, runs in left.items() if runs}
