"""Many runs: a suite of (variant, seed) with one recipe, its records, and what may be concluded from them.

A suite runs all variants of a seed before the next seed, so that whatever is finished can be compared pair by pair. Each
finished run is one line of a JSON-lines file. A run that has its line is skipped, one that has only its run folder is
resumed, so a suite is continued by the command that began it, also by several processes at once or on another machine.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import platform
import statistics
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from filelock import FileLock

from mrla_minimal.lab.cost import count_macs, count_parameters
from mrla_minimal.lab.data import load_cifar
from mrla_minimal.lab.device import choose_device, device_name
from mrla_minimal.lab.files import append_record, read_records, replace_file, to_line
from mrla_minimal.lab.interventions import INTERVENTIONS, chooses, intervene
from mrla_minimal.lab.training import RunInUse, TrainConfig, TrainingDiverged, build_model, load_model, train

# Fields of a TrainConfig that are no part of a recipe: they may differ between runs that are compared.
NOT_RECIPE = ("seed", "learning_rate", "device", "data_root", "source")


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
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"suite {self.name}: seeds given twice: {self.seeds}")
        for pair in (*self.primary, *self.contrasts, (self.baseline, self.tuned_on or self.baseline)):
            for name in pair:
                if name not in self.variants:
                    raise ValueError(f"suite {self.name}: unknown variant {name!r}; it has {', '.join(self.variants)}")
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
            record = {"id": job.id, "suite": suite.name, "variant": job.variant, "seed": job.config.seed, "phase": job.phase,
                      "learning_rate": job.config.learning_rate, "test_accuracy": None, "diverged": str(error)}
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
    return read_records(path)[0] if Path(path).exists() else []


def _look_inside(suite, job, records_path, runs, progress):
    """Record what a finished net reaches with its attention's choices taken away, once; needs the run's folder."""
    path, run_dir = interventions_path(records_path), runs / suite.name / job.folder
    record = next((record for record in load_records(records_path) if record["id"] == job.id), {"diverged": "not finished"})
    done = job.id in {known["id"] for known in load_interventions(path)}
    if done or job.phase != "final" or "diverged" in record or not (run_dir / "checkpoint.pt").exists():
        return
    model, state = load_model(run_dir, job.config.device)
    if not chooses(model):
        return
    if progress:
        print(f"{suite.name}: {job.variant}, seed {job.config.seed}: its attention frozen, shuffled, made uniform")
    data = load_cifar(job.config.dataset, job.config.data_root, "synthetic" if state["source"] == "synthetic" else "real")
    kept = {name: record[name] for name in ("id", "suite", "variant", "seed", "note", "source", "fingerprint")}
    _append_once(path, {**kept, **intervene(model, data), "device": device_name(next(model.parameters()).device),
                        "versions": _versions(), "commit": source_commit()}, load_interventions)


def run_suite(suite, records_path, *, variants=None, seeds=None, runs="runs", progress=True, checkpoint_seconds=60.0, wait=5.0, **changes):
    """Run what of a suite has no record yet, and return all its records.

    `variants` and `seeds` choose a part; `changes` replace fields of the recipe (a shorter run, another device). Several
    processes may call this with the same arguments: each takes runs that no other is at. Raises ValueError for unknown or
    repeated variants and seeds, and what `train` raises.
    """
    variants = tuple(variants or suite.variants)
    seeds = tuple(suite.seeds if seeds is None else seeds)
    for what, given in (("variants", variants), ("seeds", seeds)):
        if len(set(given)) < len(given):
            raise ValueError(f"suite {suite.name}: {what} given twice: {', '.join(map(str, given))}")
    for variant in variants:
        suite.config(variant, 0, **changes)
    records_path, runs = Path(records_path), Path(runs)
    records_path.parent.mkdir(parents=True, exist_ok=True)
    rates = None
    if suite.rates:
        jobs = tuning_jobs(suite, variants, **changes)
        while _work_through(suite, jobs, records_path, runs, progress, checkpoint_seconds):
            time.sleep(wait)        # another process is still tuning: its rates are needed before the final runs
        rates = best_rates(suite, variants, load_records(records_path), **changes)
    _work_through(suite, final_jobs(suite, variants, seeds, rates, **changes), records_path, runs, progress, checkpoint_seconds)
    return load_records(records_path)


# ---- statistics -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contrast:
    """a - b over their shared seeds, in accuracy (fractions of 1). Intervals are 95 %; None where n does not allow one.

    interval  paired t, n - 1 degrees of freedom           pooled    with the variance pooled over all variants
    p         two-sided, paired t; `adjusted` by Holm's method over all contrasts that are not primary
    """

    a: str
    b: str
    n: int
    mean: float
    interval: tuple | None
    pooled: tuple | None
    p: float | None
    adjusted: float | None
    primary: bool
    correlation: float | None


@dataclass(frozen=True)
class Summary:
    """What `summarise` found: accuracies[variant][seed], rates[variant], the contrasts, and what they were made from."""

    suite: str
    note: str
    source: str
    baseline: str
    accuracies: dict
    rates: dict
    contrasts: list = field(default_factory=list)
    diverged: dict = field(default_factory=dict)        # variant -> seeds without an accuracy


def paired_interval(differences):
    """(mean, 95 % interval, two-sided p) of paired differences by Student's t; interval and p None for fewer than two."""
    from scipy import stats

    n, mean = len(differences), statistics.fmean(differences)
    if n < 2:
        return mean, None, None
    error = statistics.stdev(differences) / math.sqrt(n)
    half = stats.t.ppf(0.975, n - 1) * error
    p = 2 * stats.t.sf(abs(mean) / error, n - 1) if error > 0 else (1.0 if mean == 0 else 0.0)
    return mean, (mean - half, mean + half), float(p)


def detectable_difference(deviation, n, power=0.8):
    """The true mean difference that a two-sided paired t test at 5 % finds with this power from n seeds.

    `deviation` is the standard deviation of one paired difference; the answer has its unit. ValueError for n below 2.
    """
    import numpy
    from scipy import optimize, stats

    if n < 2 or not 0.05 < power < 1 or not deviation > 0:
        raise ValueError(f"n must be at least 2, power between 0.05 and 1, deviation positive; got {n}, {power}, {deviation}")
    # Averaged over what the n seeds may scatter: scipy's noncentral t gives NaN at one degree of freedom.
    chances = (numpy.arange(4000) + 0.5) / 4000
    limits = stats.t.ppf(0.975, n - 1) * numpy.sqrt(stats.chi2.ppf(chances, n - 1) / (n - 1))

    def shortfall(shift):       # shift: the true difference over its standard error
        return (stats.norm.sf(limits - shift) + stats.norm.cdf(-limits - shift)).mean() - power

    return float(deviation * optimize.brentq(shortfall, 0.0, 1000.0) / math.sqrt(n))


def pooled_error(accuracies):
    """(variance of one run about variant mean + seed effect, degrees of freedom), from the seeds that all variants share.

    The residual of a two-way layout without repetition: it assumes that variants scatter alike about their means. None if
    fewer than two variants or two shared seeds.
    """
    seeds = sorted(set.intersection(*(set(runs) for runs in accuracies.values())))
    if len(seeds) < 2 or len(accuracies) < 2:
        return None
    table = [[runs[seed] for seed in seeds] for runs in accuracies.values()]
    grand = statistics.fmean(itertools.chain(*table))
    rows = [statistics.fmean(row) for row in table]
    columns = [statistics.fmean(column) for column in zip(*table, strict=True)]
    squares = sum((table[i][j] - rows[i] - columns[j] + grand) ** 2 for i in range(len(rows)) for j in range(len(columns)))
    degrees = (len(rows) - 1) * (len(columns) - 1)
    return squares / degrees, degrees


def holm(p_values, family=None):
    """Holm's adjusted p values, in the order given; `family` counts the tests if some have no p value yet."""
    family = len(p_values) if family is None else family
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (family - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def _correlation(x, y):
    if len(x) < 3 or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    return statistics.correlation(x, y)


def _one_of_each(records, what, of):
    """The value that all records share. ValueError naming the differing values otherwise."""
    values = {json.dumps(of(record), sort_keys=True): of(record) for record in records}
    if len(values) > 1:
        first, second = list(values.values())[:2]
        if isinstance(first, dict):
            keys = sorted(key for key in {*first, *second} if first.get(key) != second.get(key))
            first, second = {key: first.get(key) for key in keys}, {key: second.get(key) for key in keys}
        raise ValueError(f"records of different {what} are not compared: {first} and {second}")
    return next(iter(values.values()))


def summarise(records, suite):
    """The Summary of a suite's final records: every variant against the baseline, and the contrasts that the suite declares.

    Raises ValueError if there are none, or if they differ in recipe, data, or the learning rate within one variant.
    """
    records = [record for record in records if record["suite"] == suite.name and record["phase"] == "final"]
    diverged = {}
    for record in records:
        if "diverged" in record:
            diverged.setdefault(record["variant"], []).append(record["seed"])
    records = [record for record in records if "diverged" not in record]
    if not records:
        raise ValueError(f"no finished runs of suite {suite.name} yet; to make them: mrla compare --suite {suite.name}")
    _one_of_each(records, "recipe", lambda record: record["recipe"])
    _one_of_each(records, "data", lambda record: {"source": record["source"], "fingerprint": record["fingerprint"]})
    accuracies, rates, own_fields = {}, {}, suite.variant_fields()
    for variant in suite.variants:
        of_variant = [record for record in records if record["variant"] == variant]
        if of_variant:
            rates[variant] = _one_of_each(of_variant, f"learning rate ({variant})", lambda record: record["learning_rate"])
            _one_of_each(of_variant, f"definition ({variant})", lambda record: {name: record["config"][name] for name in own_fields})
            accuracies[variant] = {record["seed"]: record["test_accuracy"] for record in of_variant}
            if len(accuracies[variant]) < len(of_variant):
                raise ValueError(f"suite {suite.name}: {variant} has two records of one seed")
    pairs = [*suite.primary, *suite.contrasts, *((variant, suite.baseline) for variant in suite.variants if variant != suite.baseline)]
    contrasts = _contrasts(dict.fromkeys(pairs), suite.primary, accuracies)
    return Summary(suite.name, suite.note, records[0]["source"], suite.baseline, accuracies, rates, contrasts, diverged)


def _contrasts(pairs, primary, accuracies):
    from scipy import stats

    error = pooled_error(accuracies)
    rows = []
    for a, b in pairs:
        seeds = sorted(set(accuracies.get(a, {})) & set(accuracies.get(b, {})))
        if not seeds:
            continue
        x, y = [accuracies[a][seed] for seed in seeds], [accuracies[b][seed] for seed in seeds]
        mean, interval, p = paired_interval([i - j for i, j in zip(x, y, strict=True)])
        pooled = None
        if error is not None and len(seeds) >= 2:
            half = stats.t.ppf(0.975, error[1]) * math.sqrt(2 * error[0] / len(seeds))
            pooled = (mean - half, mean + half)
        rows.append(Contrast(a, b, len(seeds), mean, interval, pooled, p, None, (a, b) in primary, _correlation(x, y)))
    others = [row for row in rows if not row.primary and row.p is not None]
    family = sum(pair not in primary for pair in pairs)      # all that were declared, whether or not their runs are there
    adjusted = dict(zip(((row.a, row.b) for row in others), holm([row.p for row in others], family), strict=True))
    return [dataclasses.replace(row, adjusted=adjusted.get((row.a, row.b))) for row in rows]


MARGIN = 0.003      # 0.3 points: what a difference must pass to be worth its name here


def reading(interval, margin=MARGIN):
    """What an interval of a - b allows to be said: "a above b", "a below b", "within 0.3 points", or "undecided"."""
    if interval is None:
        return "too few seeds"
    low, high = interval
    words = ["a above b"] if low > 0 else ["a below b"] if high < 0 else []
    if -margin < low and high < margin:
        words.append(f"within {100 * margin:g} points")
    return ", ".join(words) or "undecided"


def _points(interval):
    return "too few seeds" if interval is None else f"{100 * interval[0]:+.2f} to {100 * interval[1]:+.2f}"


def report(summary):
    """The Summary as text: a table of variants, a table of contrasts, and what the columns mean."""
    note = f" [{summary.note}]" if summary.note else ""
    lines = [f"suite {summary.suite}, {summary.source} test accuracy of the last epoch{note}", "",
             f"{'variant':<20} {'runs':>4} {'mean %':>8} {'sd':>6} {'rate':>6}"]
    for variant, runs in summary.accuracies.items():
        values = [100 * value for value in runs.values()]
        deviation = f"{statistics.stdev(values):.2f}" if len(values) > 1 else "-"
        lines.append(f"{variant:<20} {len(values):>4} {statistics.fmean(values):>8.2f} {deviation:>6} {summary.rates[variant]:>6g}")
    lines += [f"{variant:<20} diverged: seeds {', '.join(map(str, seeds))}" for variant, seeds in summary.diverged.items()]
    lines += ["", f"{'contrast (points)':<36} {'n':>2} {'mean':>6}  {'95 % paired':<18} {'95 % pooled':<18} "
                  f"{'p':>6} {'Holm':>6} {'corr':>5}  reading"]
    for row in summary.contrasts:
        p = "-" if row.p is None else f"{row.p:.3f}"
        adjusted = "primary" if row.primary else "-" if row.adjusted is None else f"{row.adjusted:.3f}"
        correlation = "-" if row.correlation is None else f"{row.correlation:.2f}"
        lines.append(f"{row.a + ' - ' + row.b:<36} {row.n:>2} {100 * row.mean:>+6.2f}  {_points(row.interval):<18} "
                     f"{_points(row.pooled):<18} {p:>6} {adjusted:>6} {correlation:>5}  {reading(row.interval)}")
    lines += ["", "Differences are paired by seed. Primary contrasts were declared before the first run and stand unadjusted;",
              "the p values of all others are Holm-adjusted. corr: between same-seed runs. reading: of the paired interval,",
              f"unadjusted, against a margin of {100 * MARGIN:g} points. Intervals cover seeds, not the choice of the test images."]
    return "\n".join(lines)


def report_interventions(records):
    """A table of intervention records: what each net reaches as learned, and what it loses without its attention's choices."""
    lines = ["what the attention chooses: test accuracy as learned, and the points lost with its choices taken away", "",
             f"{'variant':<20} {'seed':>4} {'learned %':>10} " + " ".join(f"{how:>8}" for how in INTERVENTIONS)]
    for record in sorted(records, key=lambda record: (record["variant"], record["seed"])):
        lost = " ".join(f"{100 * (record[how] - record['learned']):>+8.2f}" for how in INTERVENTIONS)
        lines.append(f"{record['variant']:<20} {record['seed']:>4} {100 * record['learned']:>10.2f} {lost}")
    return "\n".join(lines)
