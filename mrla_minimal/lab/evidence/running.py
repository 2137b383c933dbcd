"""Many runs: a suite of (variant, seed) with one recipe, run or continued.

A suite runs all variants of a seed before the next seed, so that whatever is finished can be compared pair by
pair. Each finished run is one line of a JSON-lines file. A run that has its line is skipped, one that has
only its run folder is resumed. So a suite is continued by the command that began it, also by several
processes at once, or on another machine.
"""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from mrla_minimal.lab.arguments import positive
from mrla_minimal.lab.cost import count_macs
from mrla_minimal.lab.data import Cifar
from mrla_minimal.lab.device import choose_device, device_name
from mrla_minimal.lab.engine import (
    Result,
    RunInUse,
    TrainConfig,
    TrainingDiverged,
    TrainingOutOfTime,
    build_model,
    train,
)
from mrla_minimal.lab.engine.inputs import load_data, prepared
from mrla_minimal.lab.engine.model import image_shape, try_model
from mrla_minimal.lab.evidence.committed import net_of, read_index
from mrla_minimal.lab.evidence.detector_interventions import intervene_on_detector
from mrla_minimal.lab.evidence.interventions import chooses, intervene
from mrla_minimal.lab.evidence.jobs import (
    Job,
    best_rates,
    check_definitions,
    choose_parts,
    final_jobs,
    trunk_job,
    tuning_jobs,
)
from mrla_minimal.lab.evidence.provenance import source_commit, versions
from mrla_minimal.lab.evidence.records import (
    append_once,
    interventions_path,
    load_records,
    whole_interventions,
)
from mrla_minimal.lab.evidence.sitting import run_sitting
from mrla_minimal.lab.evidence.suites import Suite
from mrla_minimal.lab.evidence.timed import Sitting
from mrla_minimal.lab.files import Busy, exclusive
from mrla_minimal.lab.own_files import first_line
from mrla_minimal.lab.plugins import OwnAttention


def run_suite(suite: Suite, records_path: str | Path, *, variants: Sequence[str] | None = None,
              seeds: Sequence[int] | None = None, runs: str | Path = "runs", data: Cifar | None = None,
              progress: bool = True, checkpoint_seconds: float = 60.0, wait: float = 5.0,
              minutes: float | None = None, sitting: Sitting | None = None, **changes: Any) -> list[dict]:
    """Run what of a suite has no record yet, and return all its records.

    variants, seeds     a part of the suite's; None: all
    data                images of one's own for all runs; None: what their configurations name
    changes             fields of the recipe that are replaced (a shorter run, another device)
    minutes             for so long, block after block (all variants of a seed): the seeds that are given, or
                        the suite's and then on, counting. Nothing is begun that cannot end in time
    sitting             in place of minutes, for one of several processes that share them

    Several processes may call this with the same arguments: each takes runs that no other is at. One that
    needs a rate which another is still tuning looks again every `wait` seconds. Raises ValueError for unknown
    or repeated variants and seeds, and for minutes that are too few for one block, and what `train` raises.
    """
    if minutes is not None:
        sitting = Sitting(positive("minutes", minutes), time.monotonic() + 60 * minutes)
    given = seeds
    variants, seeds = choose_parts(suite, variants, seeds, **changes)
    records_path = Path(records_path)
    check_definitions(suite, variants, load_records(records_path), changes)
    for variant in variants:
        try_model(suite.config(variant, 0, **changes))      # what cannot be built is told now
    records_path.parent.mkdir(parents=True, exist_ok=True)
    until = None if sitting is None else sitting.until
    work = Work(suite, records_path, Path(runs) / suite.name, data, progress and sitting is None,
                checkpoint_seconds, source_commit(), until)
    if sitting is not None:
        run_sitting(work, sitting, variants, None if given is None else seeds, tells=progress, **changes)
        return load_records(records_path)
    rates = None
    if suite.rates:
        while work.through(tuning_jobs(suite, variants, **changes)):
            time.sleep(wait)        # another process is still tuning: the final runs need its rates
        rates = best_rates(suite, variants, load_records(records_path), **changes)
    jobs = final_jobs(suite, variants, seeds, rates, **changes)
    while work.through(jobs) and any(job.config.trunk for job in jobs):
        time.sleep(wait)        # a branch may have been left since another process is at its trunk
    return load_records(records_path)


@dataclass(frozen=True)
class Work:
    """One process's work on a suite: where it records and keeps its runs, and how it trains."""

    suite: Suite
    records_path: Path
    folder: Path                # of the run folders
    data: Cifar | None
    progress: bool
    checkpoint_seconds: float
    commit: str | None
    until: float | None = None  # when to stop, by time.monotonic()
    loaded: dict = field(default_factory=dict)      # the data set that was read last

    def load(self, config: TrainConfig, source: str) -> Cifar:
        """The images of one's own, or those that a configuration names: read once, not for every run."""
        which = config.dataset, config.data_root, source
        if self.data is None and which not in self.loaded:
            self.loaded.clear()
            self.loaded[which] = load_data(config, config.data_root, source)
        return self.loaded[which] if self.data is None else self.data

    def through(self, jobs: Sequence[Job]) -> int:
        """Run the jobs that have no record; returns how many are left, since another process is at them."""
        return sum(self.finish(job) is None for job in jobs)

    def finish(self, job: Job) -> dict | None:
        """Run a job to its record, if it has none, and look into its net; None if it did not get there."""
        record = self.record_of(job)
        if record is None:
            record = self.run(job)
            if record is None:
                return None
            append_once(self.records_path, record, load_records)
        late = self.until is not None and time.monotonic() >= self.until
        if job.phase == "final" and "diverged" not in record and not late:
            self.look_inside(job, record)
        return record

    def record_of(self, job: Job) -> dict | None:
        return next((record for record in load_records(self.records_path) if record["id"] == job.id), None)

    def say(self, text: str) -> None:
        if self.progress:
            print(f"{self.suite.name}: {text}")

    def run(self, job: Job) -> dict | None:
        """Train, or go on with it; the record, or None if another process is at it, or the time is over.

        A run that diverges is recorded as one, without an accuracy: run again, it would diverge again.
        """
        run_dir = self.folder / job.folder      # trusted: what runs there is what the suite names
        run_dir.mkdir(parents=True, exist_ok=True)
        rate = f"learning rate {job.config.learning_rate:g}"
        self.say(f"{job.variant}, seed {job.config.seed}, {rate}, {job.phase}")
        try:
            trunk, data = trunk_job(self.suite, job), self.load(job.config, job.config.source)
            result = train(job.config, run_dir, data=data, resume=(run_dir / "config.json").exists(),
                           trust=True, progress=self.progress, checkpoint_seconds=self.checkpoint_seconds,
                           until=self.until, trunk_dir=None if trunk is None else self.folder / trunk.folder)
        except (RunInUse, TrainingOutOfTime):
            return None
        except TrainingDiverged as error:
            print(f"{self.suite.name}: {job.folder} diverged: {error}")
            return self.description(job) | {"test_accuracy": None, "diverged": str(error)}
        return self.description(job) | self.results(job, result)

    def description(self, job: Job) -> dict:
        """What a record says of a run before it is made: all that is needed to make it again."""
        config = dataclasses.asdict(job.config) | {"data_root": None}       # a path is this machine's alone
        return {"id": job.id, "suite": self.suite.name, "variant": job.variant, "seed": job.config.seed,
                "phase": job.phase, "note": self.suite.note, "learning_rate": job.config.learning_rate,
                "recipe": self.suite.recipe_of(config), "config": config}

    def results(self, job: Job, result: Result) -> dict:
        """What a record says of a finished run: all that is needed to compare it."""
        classes, shape = 100 if result.source == "cifar100" else 10, image_shape(job.config)
        if job.config.detects:
            data = self.load(job.config, job.config.source)
            classes, shape = len(data.classes), (3, data.crop, data.crop)
        elif self.data is not None:
            test = prepared(job.config, self.data)
            classes, shape = len(test.classes), tuple(test.test.images.shape[1:])
        priced = shape == (3, shape[2], shape[2])       # count_macs knows square images in colour
        trunk = trunk_job(self.suite, job)
        of_trunk = {} if trunk is None else {"trunk": {"id": trunk.id} | result.trunk}
        accuracy = {} if job.config.detects else {"test_accuracy": result.test_accuracy}
        return of_trunk | accuracy | {
            "metrics": result.metrics,
            "parameters": result.parameters,
            "macs": count_macs(build_model(job.config, classes), shape[2], in_channels=3) if priced else None,
            "seconds": round(result.seconds, 1), "images_per_second": round(result.images_per_second, 1),
            "device": device_name(choose_device(job.config.device)), "precision": result.precision,
            "versions": versions(), "commit": self.commit,
            "source": result.source, "fingerprint": result.fingerprint,
        }

    def look_inside(self, job: Job, record: dict) -> None:
        """Record what a finished net reaches with its attention's choices taken away: once, by one process.

        It needs the net: its run folder, or the committed checkpoint if that is of this run.
        """
        path = interventions_path(self.records_path)

        def is_done() -> bool:
            return job.id in {known["id"] for known in whole_interventions(path)}

        if is_done():
            return
        model, state, weights = self.finished_net(job)
        if model is None or not chooses(model):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with exclusive(self.folder / f".{job.id}.lock", wait=False):
                found = None if is_done() else self.interventions_on(model, state, job, record)
                if found is not None:
                    append_once(path, found | {"weights": weights}, whole_interventions)
        except Busy:
            pass        # another process is at it

    def interventions_on(self, model: nn.Module, state: dict, job: Job, record: dict) -> dict | None:
        """The line of interventions on one net; None, and told, if they cannot be made here."""
        self.say(f"{job.variant}, seed {job.config.seed}: its attention frozen, shuffled, made uniform")
        data = self.load(job.config, "synthetic" if state["source"] == "synthetic" else "real")
        if data.fingerprint != record["fingerprint"]:
            print(f"note: {job.folder} was trained on other images than are here: it is not looked into")
            return None
        try:
            if job.config.detects:
                found = intervene_on_detector(model, data, job.config, progress=self.progress)
            else:
                found = intervene(model, prepared(job.config, data), job.config, progress=self.progress)
        except TrainingDiverged as error:
            print(f"note: {job.folder} has no interventions: {error}")
            return None
        except Exception as error:
            if OwnAttention.parse(job.config.layer_attention) is None:
                raise
            why = first_line(error)
            print(f"note: {job.variant}: its weights cannot be frozen ({why}); the suite goes on without")
            return None
        shared = ("id", "suite", "variant", "seed", "note", "source", "fingerprint")
        device = device_name(next(model.parameters()).device)
        return {name: record[name] for name in shared} | found | {
            "device": device, "versions": versions(), "commit": self.commit}

    def finished_net(self, job: Job) -> tuple[nn.Module | None, dict | None, str | None]:
        """(model, state, type of its stored weights) of a finished run; three Nones if it is gone."""
        run_dir = self.folder / job.folder
        if (run_dir / "checkpoint.pt").exists():
            model, state = net_of(job, run_dir)
            if model is not None:
                return model, state, "float32"
        name = f"{self.suite.name}-{job.variant}.pt"
        committed = self.records_path.parent.parent / "checkpoints" / name
        line = read_index(self.records_path.parent / "checkpoints.jsonl").get(name)
        if line is not None and line.get("id") == job.id and committed.exists():
            model, state = net_of(job, committed, line["sha256"])
            if model is not None:
                return model, state, "float16"
        return None, None, None
