"""Records: one finished run is one line of a JSON-lines file, with everything needed to compare it and to make it again."""

import dataclasses
import hashlib
import json
import platform
import subprocess
from pathlib import Path

import torch
from filelock import FileLock

from mrla_minimal.lab.cost import count_macs, count_parameters
from mrla_minimal.lab.device import choose_device, device_name
from mrla_minimal.lab.engine import build_model
from mrla_minimal.lab.evidence.suites import beyond_defaults
from mrla_minimal.lab.files import append_record, read_records, replace_file, to_line


def record_id(suite, variant, seed, config):
    """The first 12 hex digits of the SHA-256 of suite, variant, seed, and what the configuration has beyond the defaults.

    The device and paths do not count.
    """
    kept = {name: value for name, value in beyond_defaults(config).items() if name not in ("device", "data_root", "source")}
    text = json.dumps([suite, variant, seed, kept], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def versions():
    import numpy

    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}


def source_commit():
    """The commit of the source tree that this package lies in, with "+changes" if it was changed since; None outside of git."""
    here = Path(__file__).resolve().parents[2]      # the package, subject and lab
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
        "device": device_name(device), "versions": versions(),
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
            wanted += ["config", "learning_rate", "source", "fingerprint"]
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


def append_once(path, record, load):
    with FileLock(f"{path}.lock"):
        if record["id"] not in {known["id"] for known in load(path)}:
            append_record(path, record)


def interventions_path(records_path):
    """Where the interventions on a suite's nets are recorded: beside its records."""
    return Path(records_path).with_name(f"{Path(records_path).stem}-interventions.jsonl")


def load_interventions(path):
    """The records of interventions in a file, the latest of each run: what is measured anew, and more fully, stands below the old."""
    return list({record["id"]: record for record in read_records(path)[0]}.values()) if Path(path).exists() else []


def whole_interventions(path):
    return [record for record in load_interventions(path) if "changed" in record]       # older ones held four accuracies alone
