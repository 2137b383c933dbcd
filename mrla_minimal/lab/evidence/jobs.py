"""Which runs a suite consists of: the jobs that tune its learning rates, and the final ones."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mrla_minimal.lab.engine import TrainConfig
from mrla_minimal.lab.engine.branch import trunk_of
from mrla_minimal.lab.evidence.records import record_id
from mrla_minimal.lab.evidence.suites import NOT_RECIPE, Suite, check_seeds, with_defaults


@dataclass(frozen=True)
class Job:
    """One run of a suite: which, and in which phase ("tuning" on the validation split, or "final")."""

    variant: str
    config: TrainConfig
    phase: str
    id: str

    @property
    def folder(self) -> str:
        """The name of its run folder."""
        return _folder(self.variant, self.config.seed, self.config.learning_rate, self.phase, self.id)


def _folder(variant: str, seed: int, learning_rate: float, phase: str, id: str) -> str:
    return f"{variant}-seed{seed}-lr{learning_rate:g}-{phase}-{id}"


def run_folder(suite: Suite, record: dict, runs: str | Path = "runs") -> Path:
    """Where the run of a record was made."""
    parts = (record[name] for name in ("variant", "seed", "learning_rate", "phase", "id"))
    return Path(runs) / suite.name / _folder(*parts)


def _job(suite: Suite, variant: str, seed: int, phase: str, **changes: Any) -> Job:
    config = suite.config(variant, seed, validation=phase == "tuning", **changes)
    return Job(variant, config, phase, record_id(suite.name, variant, seed, dataclasses.asdict(config)))


def trunk_job(suite: Suite, job: Job) -> Job | None:
    """The trunk that a branch goes on from, one for all branches of a seed; None for other runs.

    It has a run folder, and no record of its own.
    """
    if job.config.trunk is None:
        return None
    config, variant = trunk_of(job.config), f"trunk-{job.config.trunk}"
    id = record_id(suite.name, variant, config.seed, dataclasses.asdict(config))
    return Job(variant, config, job.phase, id)


def tuning_jobs(suite: Suite, variants: Sequence[str], **changes: Any) -> list[Job]:
    """A run for every learning rate of the suite, of these variants or of `tuned_on` alone."""
    tuned = variants if suite.tuned_on is None else (suite.tuned_on,)
    return [_job(suite, variant, suite.tuning_seed, "tuning", learning_rate=rate, **changes)
            for variant in tuned for rate in suite.rates]


def best_rates(suite: Suite, variants: Sequence[str], records: Iterable[dict],
               **changes: Any) -> dict[str, float]:
    """variant -> learning rate: the one with the best last-epoch validation accuracy.

    Each variant's own, or that of `tuned_on` for all. Raises ValueError if one has not been tried yet, or if
    all diverged.
    """
    jobs = tuning_jobs(suite, variants, **changes)
    known = {record["id"]: record for record in records}
    missing = [job.folder for job in jobs if job.id not in known]
    if missing:
        some = ", ".join(missing[:3]) + (" and others" if len(missing) > 3 else "")
        raise ValueError(f"suite {suite.name}: the learning rates are not tuned yet; missing {some}")
    best = {}
    finished = [job for job in jobs if "diverged" not in known[job.id]]
    for job in sorted(finished, key=lambda job: known[job.id]["metrics"][-1]["validation_accuracy"]):
        best[job.variant] = job.config.learning_rate
    hopeless = sorted({job.variant for job in jobs} - set(best))
    if hopeless:
        raise ValueError(f"suite {suite.name}: every learning rate diverged for {', '.join(hopeless)}; "
                         f"tried {suite.rates}")
    return best if suite.tuned_on is None else {variant: best[suite.tuned_on] for variant in variants}


def final_jobs(suite: Suite, variants: Sequence[str], seeds: Sequence[int], rates: dict[str, float] | None,
               **changes: Any) -> list[Job]:
    """All variants of a seed before the next seed, each at its rate, or at the recipe's if there are none."""
    chosen = {variant: {"learning_rate": rates[variant]} if rates else {} for variant in variants}
    return [_job(suite, variant, seed, "final", **chosen[variant], **changes)
            for seed in seeds for variant in variants]


def choose_parts(suite: Suite, variants: Sequence[str] | None, seeds: Sequence[int] | None,
                 **changes: Any) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The variants and seeds that are meant, none given: all.

    ValueError for unknown or repeated ones, and for a change of what the suite chooses itself.
    """
    own = {"variant", "seed", "validation", *suite.draws, *suite.variant_fields()}
    own |= {"learning_rate"} if suite.rates else set()
    for name in changes:
        if name in own:
            raise ValueError(f"suite {suite.name}: {name} is the suite's own to choose; it cannot be changed")
    variants = tuple(suite.variants if variants is None else variants)
    for variant in variants:
        suite.config(variant, 0, **changes)
    if not variants or len(set(variants)) < len(variants):
        raise ValueError(f"suite {suite.name}: variants must be some of {', '.join(suite.variants)}, each "
                         f"once; not {', '.join(variants) or 'none'}")
    return variants, suite.seeds if seeds is None else check_seeds("seeds", seeds)


def check_definitions(suite: Suite, variants: Collection[str], records: Iterable[dict],
                      changes: Mapping[str, Any] = MappingProxyType({})) -> None:
    """ValueError if records of these variants are of another definition or recipe than the suite has now.

    changes: the fields that the runs were told to have otherwise, and their values; they are not compared.
    """
    free = {*NOT_RECIPE, "validation", *changes} - {*suite.draws}
    for record in records:
        if record["suite"] != suite.name or record["variant"] not in variants:
            continue
        defined = dataclasses.asdict(suite.config(record["variant"], record["seed"], **changes))
        recorded, defined = with_defaults(record["config"]), with_defaults(defined)
        for name in sorted({*recorded, *defined} - free):
            then, now = recorded.get(name), defined.get(name)
            if then != now:
                raise ValueError(
                    f"suite {suite.name}: {record['variant']} was recorded with {name} {then!r}, and has "
                    f"{now!r} now: give the variant or the suite another name, or put the records away")
