"""Many runs: a suite of (variant, seed) with one recipe, run, continued or planned; `contrasts.py` says what may be concluded.

A suite runs all variants of a seed before the next seed, so that whatever is finished can be compared pair by pair. Each
finished run is one line of a JSON-lines file. A run that has its line is skipped, one that has only its run folder is
resumed, so a suite is continued by the command that began it, also by several processes at once or on another machine.
"""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from mrla_minimal.lab.data import load_cifar
from mrla_minimal.lab.device import device_name, join_world
from mrla_minimal.lab.engine import Run, RunInUse, TrainConfig, TrainingDiverged, load_model, train
from mrla_minimal.lab.engine.model import try_model
from mrla_minimal.lab.evidence.contrasts import check_definition
from mrla_minimal.lab.evidence.interventions import chooses, intervene
from mrla_minimal.lab.evidence.records import (
    append_once,
    interventions_path,
    load_records,
    make_record,
    record_id,
    source_commit,
    versions,
    whole_interventions,
)
from mrla_minimal.lab.evidence.suites import NOT_RECIPE
from mrla_minimal.lab.plugins import OwnAttention, first_line


@dataclass(frozen=True)
class Job:
    """One run of a suite: which, and in which phase ("tuning" on the validation split, or "final")."""

    variant: str
    config: TrainConfig
    phase: str
    id: str

    @property
    def folder(self):
        return _folder(self.variant, self.config.seed, self.config.learning_rate, self.phase, self.id)


def _folder(variant, seed, learning_rate, phase, id):
    return f"{variant}-seed{seed}-lr{learning_rate:g}-{phase}-{id}"


def run_folder(suite, record, runs="runs"):
    """Where the run of a record was made."""
    return Path(runs) / suite.name / _folder(*(record[name] for name in ("variant", "seed", "learning_rate", "phase", "id")))


def _job(suite, variant, seed, phase, **changes):
    config = suite.config(variant, seed, validation=phase == "tuning", **changes)
    return Job(variant, config, phase, record_id(suite.name, variant, seed, dataclasses.asdict(config)))


def tuning_jobs(suite, variants, **changes):
    tuned = variants if suite.tuned_on is None else (suite.tuned_on,)
    return [_job(suite, variant, suite.tuning_seed, "tuning", learning_rate=rate, **changes) for variant in tuned for rate in suite.rates]


def best_rates(suite, variants, records, **changes):
    """{variant: learning rate}: the rate with the best last-epoch validation accuracy, of every variant or of `tuned_on`."""
    jobs = tuning_jobs(suite, variants, **changes)
    known = {record["id"]: record for record in records}
    missing = [job.folder for job in jobs if job.id not in known]
    if missing:
        raise ValueError(f"suite {suite.name}: the learning rates are not tuned yet; missing {', '.join(missing[:3])}"
                         + (" and others" if len(missing) > 3 else ""))
    best = {}
    finished = [job for job in jobs if "diverged" not in known[job.id]]
    for job in sorted(finished, key=lambda job: known[job.id]["metrics"][-1]["validation_accuracy"]):
        best[job.variant] = job.config.learning_rate
    hopeless = sorted({job.variant for job in jobs} - set(best))
    if hopeless:
        raise ValueError(f"suite {suite.name}: every learning rate diverged for {', '.join(hopeless)}; tried {suite.rates}")
    return best if suite.tuned_on is None else {variant: best[suite.tuned_on] for variant in variants}


def final_jobs(suite, variants, seeds, rates, **changes):
    return [_job(suite, variant, seed, "final", **({"learning_rate": rates[variant]} if rates else {}), **changes)
            for seed in seeds for variant in variants]


def _work_through(suite, jobs, records_path, runs, data, progress, checkpoint_seconds):
    """Run those of `jobs` that have no record and that no other process is running. Returns how many are left to others.

    A run that diverges is recorded as one, without an accuracy: run again, it would diverge again.
    """
    left, commit = 0, source_commit()
    for job in jobs:
        if job.id in {record["id"] for record in load_records(records_path)}:
            _look_inside(suite, job, records_path, runs, data, progress)
            continue
        run_dir = runs / suite.name / job.folder
        run_dir.mkdir(parents=True, exist_ok=True)
        if progress:
            print(f"{suite.name}: {job.variant}, seed {job.config.seed}, learning rate {job.config.learning_rate:g}, {job.phase}")
        try:
            result = train(job.config, run_dir, data=data, resume=(run_dir / "config.json").exists(), trust=True,
                           progress=progress, checkpoint_seconds=checkpoint_seconds)      # trust: the suite named the file
        except RunInUse:
            left += 1
            continue
        except TrainingDiverged as error:
            print(f"{suite.name}: {job.folder} diverged: {error}")
            config = dataclasses.asdict(job.config) | {"data_root": None}
            record = {"id": job.id, "suite": suite.name, "variant": job.variant, "seed": job.config.seed, "phase": job.phase,
                      "learning_rate": job.config.learning_rate, "recipe": suite.recipe_of(config), "config": config,
                      "test_accuracy": None, "diverged": str(error)}
        else:
            record = make_record(suite, job, result, commit)
        append_once(records_path, record, load_records)
        _look_inside(suite, job, records_path, runs, data, progress)
    return left


def _look_inside(suite, job, records_path, runs, data, progress):
    """Record what a finished net reaches with its attention's choices taken away, once; needs its checkpoint."""
    path = interventions_path(records_path)
    record = next((record for record in load_records(records_path) if record["id"] == job.id), {"diverged": "not finished"})
    if job.phase != "final" or "diverged" in record or job.id in {known["id"] for known in whole_interventions(path)}:
        return
    model, state, weights = _finished_net(suite, job, records_path, runs)
    if model is None or not chooses(model):
        return
    if progress:
        print(f"{suite.name}: {job.variant}, seed {job.config.seed}: its attention frozen, shuffled, made uniform")
    if data is None:
        data = load_cifar(job.config.dataset, job.config.data_root, "synthetic" if state["source"] == "synthetic" else "real")
    if data.fingerprint != record["fingerprint"]:
        print(f"note: {job.folder} was trained on other images than are here: its attention is not looked into")
        return
    try:
        found = intervene(model, data)
    except Exception as error:
        if OwnAttention.parse(job.config.layer_attention) is None:
            raise
        print(f"note: {job.variant}: its weights cannot be frozen ({first_line(error)}); the suite goes on without")
        return
    kept = {name: record[name] for name in ("id", "suite", "variant", "seed", "note", "source", "fingerprint")}
    append_once(path, {**kept, **found, "weights": weights, "device": device_name(next(model.parameters()).device),
                        "versions": versions(), "commit": source_commit()}, whole_interventions)


def _finished_net(suite, job, records_path, runs):
    """(model, state, "float32") of a finished run's folder; where that is gone, of the committed checkpoint if it is this run's."""
    run_dir = runs / suite.name / job.folder
    if (run_dir / "checkpoint.pt").exists():
        return *load_model(run_dir, job.config.device, trust=True), "float32"
    committed = Path(records_path).parent.parent / "checkpoints" / f"{suite.name}-{job.variant}.pt"
    if committed.exists():
        model, state = load_model(committed, job.config.device)
        if state.get("id") == job.id:
            return model, state, "float16"
    return None, None, None


def _parts(suite, variants, seeds, changes):
    """The variants and seeds that are meant, none given: all. ValueError for unknown or repeated ones."""
    variants = tuple(variants or suite.variants)
    seeds = tuple(suite.seeds if seeds is None else seeds)
    for what, given in (("variants", variants), ("seeds", seeds)):
        if len(set(given)) < len(given):
            raise ValueError(f"suite {suite.name}: {what} given twice: {', '.join(map(str, given))}")
    for variant in variants:
        suite.config(variant, 0, **changes)
    return variants, seeds


def _check_definitions(suite, variants, records, changes):
    """ValueError if the records are of other variants of these names, or another recipe: told before a run, not after the last one."""
    for record in records:
        if record["suite"] != suite.name or record["variant"] not in variants or "config" not in record:
            continue
        now = dataclasses.asdict(suite.config(record["variant"], 0, **changes))
        fields = {*now, *record["config"]} - {*NOT_RECIPE, "validation", *changes}
        check_definition(suite, record, sorted(fields), now)


def run_suite(suite, records_path, *, variants=None, seeds=None, runs="runs", data=None, progress=True, checkpoint_seconds=60.0, wait=5.0,
              **changes):
    """Run what of a suite has no record yet, and return all its records.

    `variants` and `seeds` choose a part; `changes` replace fields of the recipe (a shorter run, another device); `data` is
    a `Cifar` of one's own for all runs, None what their configurations name. Several processes may call this with the same arguments: each takes runs that no other is at. Raises ValueError for unknown or
    repeated variants and seeds, and what `train` raises.
    """
    variants, seeds = _parts(suite, variants, seeds, changes)
    records_path, runs = Path(records_path), Path(runs)
    _check_definitions(suite, variants, load_records(records_path), changes)
    for variant in variants:
        try_model(suite.config(variant, 0, **changes))      # what cannot be built is told now, not after the variants before it
    records_path.parent.mkdir(parents=True, exist_ok=True)
    rates = None
    if suite.rates:
        jobs = tuning_jobs(suite, variants, **changes)
        while _work_through(suite, jobs, records_path, runs, data, progress, checkpoint_seconds):
            time.sleep(wait)        # another process is still tuning: its rates are needed before the final runs
        rates = best_rates(suite, variants, load_records(records_path), **changes)
    _work_through(suite, final_jobs(suite, variants, seeds, rates, **changes), records_path, runs, data, progress, checkpoint_seconds)
    return load_records(records_path)


def plan_suite(suite, records, *, variants=None, seeds=None, data=None, timed_steps=20, progress=True, **changes):
    """How long what is left of a suite would take on this machine, as text: each variant is trained for a few steps and timed.

    Nothing is written. Arguments and errors as those of `run_suite`; `records` are those that there are already.
    """
    variants, seeds = _parts(suite, variants, seeds, changes)
    _check_definitions(suite, variants, records, changes)
    known, left = {record["id"] for record in records}, dict.fromkeys(variants, 0)
    for job in tuning_jobs(suite, variants, **changes):
        left[job.variant] = left.get(job.variant, 0) + (job.id not in known)
    for variant in variants:
        try:
            rates = best_rates(suite, (variant,), records, **changes) if suite.rates else None
        except ValueError:      # not tuned yet
            left[variant] += len(seeds)
        else:
            left[variant] += sum(job.id not in known for job in final_jobs(suite, (variant,), seeds, rates, **changes))
    left = {variant: runs for variant, runs in left.items() if runs}
    if not left:
        return f"suite {suite.name}: no runs left of {', '.join(variants)} with seeds {', '.join(map(str, seeds))}"
    lines, total = [f"{'variant':<20} {'images/s':>9} {'minutes a run':>14} {'runs left':>10}"], 0.0
    for variant in tqdm(left, disable=not progress, unit="variant", leave=False):
        config = suite.config(variant, 0, **changes)
        run = Run(config, join_world(config.device), data=data)
        seconds = _seconds_a_step(run, timed_steps)
        minutes = run.total_steps * seconds / 60
        total += left[variant] * minutes
        lines.append(f"{variant:<20} {run.config.batch_size / seconds:>9.0f} {minutes:>14.1f} {left[variant]:>10}")
    head = f"suite {suite.name}, {run.source}, on {device_name(run.world.device)}: {timed_steps} training steps of each variant, timed now"
    return "\n".join([
        head, "", *lines, "",
        f"{sum(left.values())} runs left: {total / 60:.1f} hours one after another, tests and interventions not counted.",
        "With --jobs N, N runs share the device: a small net leaves a GPU mostly idle; the cores of a CPU are shared out."])


def _seconds_a_step(run, steps, warm_up=5):
    for count in (warm_up, steps):
        started = time.perf_counter()
        for _ in range(count):
            run.train_step()
        run.read_losses()       # waits for the device
    return (time.perf_counter() - started) / steps
