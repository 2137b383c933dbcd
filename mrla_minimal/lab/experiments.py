"""Many runs: a suite of (variant, seed) with one recipe, and its records; `contrasts.py` says what may be concluded from them.

A suite runs all variants of a seed before the next seed, so that whatever is finished can be compared pair by pair. Each
finished run is one line of a JSON-lines file. A run that has its line is skipped, one that has only its run folder is
resumed, so a suite is continued by the command that began it, also by several processes at once or on another machine.
"""

import dataclasses
import hashlib
import json
import platform
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from tqdm import tqdm

from mrla_minimal.lab import contrasts
from mrla_minimal.lab.contrasts import detectable_difference, holm, paired_interval, pooled_error, reading, report, summarise
from mrla_minimal.lab.cost import count_macs, count_parameters
from mrla_minimal.lab.data import load_cifar
from mrla_minimal.lab.device import choose_device, device_name, join_world
from mrla_minimal.lab.files import append_record, read_records, replace_file, to_line
from mrla_minimal.lab.interventions import chooses, intervene, report_interventions
from mrla_minimal.lab.own import first_line, is_own
from mrla_minimal.lab.training import Run, RunInUse, TrainConfig, TrainingDiverged, build_model, load_model, train, try_model

__all__ = ["SUITES", "Suite", "detectable_difference", "holm", "paired_interval", "pooled_error", "reading", "report",
           "report_interventions", "run_suite", "summarise"]

# Fields of a TrainConfig that are no part of a recipe: they may differ between runs that are compared.
NOT_RECIPE = ("seed", "learning_rate", "device", "data_root", "source")


_FILE_NAME = re.compile(r'[^/\\:*?"<>|\x00-\x1f]+')


@dataclass(frozen=True)
class Suite:
    """What is run and what will be asked, both written down before the first run.

    variants   name -> the TrainConfig fields that make it what it is; `recipe` holds all others that differ from the defaults
    primary    the contrasts (a, b), meaning a - b, whose intervals stand unadjusted; `contrasts` and every variant against
               `baseline` are Holm-adjusted together
    rates      learning rates to try on the validation split with `tuning_seed`, by every variant, or by `tuned_on` alone
    """

    name: str
    variants: dict
    recipe: dict
    seeds: tuple = (0, 1, 2, 3, 4)
    primary: tuple = ()
    contrasts: tuple = ()
    baseline: str = "plain"
    rates: tuple = ()
    tuned_on: str | None = None
    tuning_seed: int = 100
    note: str = ""
    committed: bool = True

    def __post_init__(self):
        for what, name in (("the suite", self.name), *(("a variant", variant) for variant in self.variants)):
            if not isinstance(name, str) or not _FILE_NAME.fullmatch(name) or not name.strip(". "):
                raise ValueError(f"suite {self.name!r}: the name of {what} becomes that of a folder: not {name!r}, but one or more "
                                 'characters, none of them / \\ : * ? " < > |, and not dots alone')
        if not isinstance(self.seeds, (tuple, list)):
            raise ValueError(f"suite {self.name}: seeds must be a tuple like (0, 1, 2), not {self.seeds!r}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"suite {self.name}: seeds given twice: {self.seeds}")
        asked = {"primary": self.primary, "contrasts": self.contrasts,
                 "baseline and tuned_on": ((self.baseline, self.tuned_on or self.baseline),)}
        for field, pairs in asked.items():
            for pair in pairs:
                if isinstance(pair, str) or len(pair) != 2:
                    raise ValueError(f"suite {self.name}: {field} must be pairs of variants, (('a', 'b'), ...), not {pairs!r}")
                for name in pair:
                    if name not in self.variants:
                        raise ValueError(f"suite {self.name}: unknown variant {name!r} in {field}; it has {', '.join(self.variants)}")
        for name in self.variants:
            self.config(name, 0)        # a wrong field or value is told now, not after hours

    def config(self, variant, seed, **changes):
        """The TrainConfig of one run."""
        if variant not in self.variants:
            raise ValueError(f"suite {self.name}: unknown variant {variant!r}; it has {', '.join(self.variants)}")
        try:
            return TrainConfig(**{**self.recipe, **self.variants[variant], "seed": seed, **changes})
        except TypeError as error:
            raise ValueError(f"suite {self.name}, variant {variant}: {error}") from None

    def variant_fields(self):
        return sorted(set().union(*(changes for changes in self.variants.values())))

    def recipe_of(self, config):
        """The part of a configuration (as a dictionary) that runs must share to be compared."""
        left_out = {*NOT_RECIPE, *self.variant_fields()}
        return {name: value for name, value in config.items() if name not in left_out}


def _attentions(*names, **more):
    """Variants that differ in their layer attention alone; "plain" has none."""
    return {name: {"layer_attention": None if name == "plain" else name} for name in names} | more


_LIGHT_OWN = {"layer_attention": "mrla-light", "light_carry": "attention"}
_LONG = {"source": "real", "epochs": 60, "warmup_epochs": 3.0, "batch_size": 128}
_ONE_CYCLE = {"source": "real", "epochs": 4, "warmup_epochs": 0.8, "batch_size": 128}
_MRLA_AGAINST_CONTROLS = (("mrla-light", "depthwise"), ("mrla-base", "uniform"))
_RATES = (0.05, 0.1, 0.2)

SUITES = {suite.name: suite for suite in (
    Suite(
        "cifar10-thin56",
        _attentions("plain", "depthwise", "mrla-light", "uniform", "mrla-base", "depthwise-gated", "depthwise-carry",
                    **{"mrla-light-own": _LIGHT_OWN}),
        {"depth": 56, "width": 8, **_LONG}, primary=_MRLA_AGAINST_CONTROLS,
        contrasts=(("mrla-light", "depthwise-gated"), ("mrla-light", "depthwise-carry"), ("depthwise-gated", "depthwise"),
                   ("depthwise-carry", "depthwise"), ("mrla-light", "mrla-light-own"), ("mrla-base", "depthwise")),
        rates=_RATES),
    Suite(
        "cifar10-resnet20",
        {**_attentions("plain", "depthwise", "layer", "uniform", "mrla-base", "mrla-light"), "mrla-light-own": _LIGHT_OWN,
         "se": {"layer_attention": None, "channel_attention": "se"}, "eca": {"layer_attention": None, "channel_attention": "eca"}},
        {"depth": 20, "width": 16, **_LONG},
        contrasts=(*_MRLA_AGAINST_CONTROLS, ("mrla-base", "depthwise"), ("layer", "mrla-base"), ("mrla-light", "mrla-light-own")),
        rates=_RATES),
    Suite(
        "cifar10-bottleneck56", _attentions("plain", "depthwise", "mrla-base", "mrla-light"),
        {"depth": 56, "block": "bottleneck", **_LONG}, contrasts=(("mrla-light", "depthwise"), ("mrla-base", "depthwise")), rates=_RATES),
    Suite(
        "cifar10-lambda", _attentions("plain", "mrla-light", "mrla-light-lambda0", "mrla-light-lambda1"),
        {"depth": 56, "width": 8, **_LONG}, contrasts=(("mrla-light", "mrla-light-lambda0"), ("mrla-light", "mrla-light-lambda1")),
        rates=_RATES),
    *(Suite(f"cifar10-depth{depth}-width{width}", _attentions("plain", "depthwise", "mrla-light", "uniform", "mrla-base"),
            {"depth": depth, "width": width, **_LONG}, contrasts=_MRLA_AGAINST_CONTROLS, rates=_RATES)
      for depth, width in ((20, 8), (56, 16))),
    Suite(
        "cifar10-thin56-cpu", _attentions("plain", "uniform", "mrla-base", "depthwise", "mrla-light", **{"mrla-light-own": _LIGHT_OWN}),
        {"depth": 56, "width": 8, **_ONE_CYCLE}, seeds=(0, 1, 2), primary=_MRLA_AGAINST_CONTROLS, rates=_RATES, tuned_on="plain",
        note="CPU pilot"),
    Suite(
        "smoke", _attentions("plain", "mrla-light"), {"depth": 8, "width": 8, "batch_size": 32, "steps": 4, "source": "synthetic"},
        seeds=(0, 1), contrasts=(("mrla-light", "plain"),), note="a few steps, to see the engine run", committed=False),
)}


# ---- running ----------------------------------------------------------------------------------------------------


def record_id(suite, variant, seed, config):
    """The first 12 hex digits of the SHA-256 of suite, variant, seed and configuration (without device and paths)."""
    kept = {name: value for name, value in config.items() if name not in ("device", "data_root", "source")}
    text = json.dumps([suite, variant, seed, kept], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


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


def _versions():
    import numpy

    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}


def source_commit():
    """The commit of the source tree that this package lies in, with "+changes" if it was changed since; None outside of git."""
    here = Path(__file__).resolve().parents[1]      # the package, subject and lab
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
        changed = subprocess.run(["git", "status", "--porcelain", "--", "."], cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return commit.stdout.strip() + ("+changes" if changed.stdout.strip() else "") if commit.returncode == 0 else None


def make_record(suite, job, result, commit):
    """The line of one finished run: everything needed to compare it, and to make it again."""
    config = dataclasses.asdict(job.config)
    model = build_model(job.config, 100 if job.config.dataset == "cifar100" and result.source == "cifar100" else 10)
    device = choose_device(job.config.device)
    config["data_root"] = None      # a path of this machine is nobody else's
    return {
        "id": job.id, "suite": suite.name, "variant": job.variant, "seed": job.config.seed, "phase": job.phase, "note": suite.note,
        "learning_rate": job.config.learning_rate, "recipe": suite.recipe_of(config), "config": config,
        "test_accuracy": result.test_accuracy, "metrics": result.metrics,
        "parameters": count_parameters(model), "macs": count_macs(model, 32),
        "seconds": round(result.seconds, 1), "images_per_second": round(result.images_per_second, 1),
        "device": device_name(device), "versions": _versions(),
        "source": result.source, "fingerprint": result.fingerprint, "commit": commit,
    }


def load_records(path):
    """The records of a file, [] if it does not exist; what is no whole record is left out, and said."""
    if not Path(path).exists():
        return []
    records, complaints = read_records(path)
    for complaint in complaints:
        print(f"note: {complaint}")
    for record in records:
        wanted = ["id", "suite", "variant", "seed", "phase", "test_accuracy"]
        if "diverged" not in record:
            wanted += ["recipe", "config", "learning_rate", "source", "fingerprint"]
        missing = [name for name in wanted if name not in record]
        if missing:
            raise ValueError(f"{path} does not hold records of a suite: a line lacks {', '.join(missing)}")
        if not isinstance(record["id"], str):
            raise ValueError(f"{path} does not hold records of a suite: the id {record['id']!r} is no text")
    return records


def merge_records(paths, target):
    """Add the records of several files to `target`, each id once. ValueError if two of one id have different accuracies."""
    for path in paths:
        if not Path(path).exists():
            raise ValueError(f"{path}: no such file of records")
    merged = {}
    with FileLock(f"{target}.lock"):
        for path in (target, *paths):
            for record in load_records(path):
                other = merged.setdefault(record["id"], record)
                if any(other.get(name) != record.get(name) for name in ("test_accuracy", "fingerprint")):
                    raise ValueError(f"{path}: record {record['id']} ({record['variant']}, seed {record['seed']}) differs from the one "
                                     "of the same id that was read before; keep one of them")
        replace_file(target, lambda file: file.write("".join(map(to_line, merged.values())).encode()))
    return list(merged.values())


def _work_through(suite, jobs, records_path, runs, progress, checkpoint_seconds):
    """Run those of `jobs` that have no record and that no other process is running. Returns how many are left to others.

    A run that diverges is recorded as one, without an accuracy: run again, it would diverge again.
    """
    left, commit = 0, source_commit()
    for job in jobs:
        if job.id in {record["id"] for record in load_records(records_path)}:
            _look_inside(suite, job, records_path, runs, progress)
            continue
        run_dir = runs / suite.name / job.folder
        run_dir.mkdir(parents=True, exist_ok=True)
        if progress:
            print(f"{suite.name}: {job.variant}, seed {job.config.seed}, learning rate {job.config.learning_rate:g}, {job.phase}")
        try:
            result = train(job.config, run_dir, resume=(run_dir / "config.json").exists(), progress=progress,
                           checkpoint_seconds=checkpoint_seconds)
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
        _append_once(records_path, record, load_records)
        _look_inside(suite, job, records_path, runs, progress)
    return left


def _append_once(path, record, load):
    with FileLock(f"{path}.lock"):
        if record["id"] not in {known["id"] for known in load(path)}:
            append_record(path, record)


def interventions_path(records_path):
    """Where the interventions on a suite's nets are recorded: beside its records."""
    return Path(records_path).with_name(f"{Path(records_path).stem}-interventions.jsonl")


def load_interventions(path):
    """The records of interventions in a file, the latest of each run: what is measured anew, and more fully, stands below the old."""
    return list({record["id"]: record for record in read_records(path)[0]}.values()) if Path(path).exists() else []


def _whole_interventions(path):
    return [record for record in load_interventions(path) if "changed" in record]       # older ones held four accuracies alone


def _look_inside(suite, job, records_path, runs, progress):
    """Record what a finished net reaches with its attention's choices taken away, once; needs its checkpoint."""
    path = interventions_path(records_path)
    record = next((record for record in load_records(records_path) if record["id"] == job.id), {"diverged": "not finished"})
    if job.phase != "final" or "diverged" in record or job.id in {known["id"] for known in _whole_interventions(path)}:
        return
    model, state, weights = _finished_net(suite, job, records_path, runs)
    if model is None or not chooses(model):
        return
    if progress:
        print(f"{suite.name}: {job.variant}, seed {job.config.seed}: its attention frozen, shuffled, made uniform")
    data = load_cifar(job.config.dataset, job.config.data_root, "synthetic" if state["source"] == "synthetic" else "real")
    if data.fingerprint != record["fingerprint"]:
        print(f"note: {job.folder} was trained on other images than are here: its attention is not looked into")
        return
    try:
        found = intervene(model, data)
    except Exception as error:
        if not is_own(job.config.layer_attention):
            raise
        print(f"note: {job.variant}: its weights cannot be frozen ({first_line(error)}); the suite goes on without")
        return
    kept = {name: record[name] for name in ("id", "suite", "variant", "seed", "note", "source", "fingerprint")}
    _append_once(path, {**kept, **found, "weights": weights, "device": device_name(next(model.parameters()).device),
                        "versions": _versions(), "commit": source_commit()}, _whole_interventions)


def _finished_net(suite, job, records_path, runs):
    """(model, state, "float32") of a finished run's folder; where that is gone, of the committed checkpoint if it is this run's."""
    run_dir = runs / suite.name / job.folder
    if (run_dir / "checkpoint.pt").exists():
        return *load_model(run_dir, job.config.device), "float32"
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
        fields = {*suite.variant_fields(), *record["recipe"]} - {*NOT_RECIPE, "validation", *changes}
        contrasts.check_definition(suite, record, sorted(fields), dataclasses.asdict(suite.config(record["variant"], 0, **changes)))


def run_suite(suite, records_path, *, variants=None, seeds=None, runs="runs", progress=True, checkpoint_seconds=60.0, wait=5.0, **changes):
    """Run what of a suite has no record yet, and return all its records.

    `variants` and `seeds` choose a part; `changes` replace fields of the recipe (a shorter run, another device). Several
    processes may call this with the same arguments: each takes runs that no other is at. Raises ValueError for unknown or
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
        while _work_through(suite, jobs, records_path, runs, progress, checkpoint_seconds):
            time.sleep(wait)        # another process is still tuning: its rates are needed before the final runs
        rates = best_rates(suite, variants, load_records(records_path), **changes)
    _work_through(suite, final_jobs(suite, variants, seeds, rates, **changes), records_path, runs, progress, checkpoint_seconds)
    return load_records(records_path)


def plan_suite(suite, records, *, variants=None, seeds=None, timed_steps=20, progress=True, **changes):
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
        run = Run(config, join_world(config.device))
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
