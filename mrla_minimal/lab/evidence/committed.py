"""The committed evidence: small checkpoints, and reading what data/ holds, for the notebooks.

data/results/SUITE.jsonl                 one finished run a line (records.py)
data/results/SUITE-interventions.jsonl   one trained net a line: its accuracy with attention's choices taken away
data/results/checkpoints.jsonl           one committed checkpoint a line: which run it is of, and what its rounded weights reach
data/checkpoints/SUITE-VARIANT.pt        its weights, in float16
"""

import hashlib
import io
from pathlib import Path

import torch

from mrla_minimal.lab.data import load_cifar
from mrla_minimal.lab.engine import evaluate, load_model, read_checkpoint
from mrla_minimal.lab.evidence.contrasts import summarise
from mrla_minimal.lab.evidence.records import load_interventions, load_records
from mrla_minimal.lab.evidence.running import run_folder
from mrla_minimal.lab.evidence.suites import SUITES
from mrla_minimal.lab.files import append_record, read_records, replace_file, repository_root

LARGEST_CHECKPOINT = 1_500_000      # bytes


def data_folder():
    """data/ of the repository that the working directory lies in. ValueError outside of one."""
    root = repository_root()
    if root is None:
        raise ValueError(f"{Path.cwd()} lies in no copy of the repository: its records and checkpoints are in data/ there")
    return root / "data"


def committed_records(name):
    """The records in data/results/NAME.jsonl; [] if there is no such file."""
    path = data_folder() / "results" / f"{name}.jsonl"
    if name in SUITES:
        return load_records(path)
    return read_records(path)[0] if path.exists() else []


def suite_records(name, pilot=None):
    """(suite's name, its finished final runs): of suite `name`, or where it has none of its pilot; says so in a printed line."""
    for suite in (name, pilot) if pilot else (name,):
        records = [record for record in committed_records(suite) if record["phase"] == "final" and "diverged" not in record]
        if records:
            if suite != name:
                print(f"shown in its place: {suite}, {SUITES[suite].note}")
            return suite, records
        print(f"{suite}: no records yet; to make them: mrla compare --suite {suite}")
    return name, []


def read_suite(name, pilot=None):
    """The Summary of `suite_records(name, pilot)`, or None where there are no records; says which in a printed line."""
    suite, records = suite_records(name, pilot)
    return summarise(committed_records(suite), SUITES[suite]) if records else None     # diverged runs too


def read_interventions(name, pilot=None):
    """The intervention records of suite `name`, or where it has none of its pilot, or []; says which in a printed line."""
    for suite in (name, pilot) if pilot else (name,):
        records = load_interventions(data_folder() / "results" / f"{suite}-interventions.jsonl")
        if records:
            if suite != name:
                print(f"shown in its place: {suite}, {SUITES[suite].note}")
            return records
        print(f"{suite}: no interventions yet; to make them: mrla compare --suite {suite}")
    return []


def checkpoint_path(suite, variant):
    return data_folder() / "checkpoints" / f"{suite}-{variant}.pt"


def load_committed(variant, suites=("cifar10-thin56", "cifar10-thin56-cpu")):
    """(model in evaluation mode, state) of the first of `suites` that has a checkpoint of `variant`, or None; prints which."""
    for suite in suites:
        path = checkpoint_path(suite, variant)
        if path.exists():
            note = f" ({SUITES[suite].note})" if SUITES[suite].note else ""
            print(f"checkpoint {path.name}{note}")
            return load_model(path)
    print(f"{variant}: no checkpoint yet; to make it: mrla compare --suite {suites[0]} --export")
    return None


def small_state(state, record_id):
    """What a committed checkpoint holds of a run's: no optimiser; the parameters in float16, batch norm's statistics as they are."""
    kept = {name: state[name] for name in ("format", "classes", "source", "fingerprint")}
    model = {name: tensor.half() if tensor.is_floating_point() and "running_" not in name else tensor
             for name, tensor in state["model"].items()}
    return {**kept, "id": record_id, "config": {**state["config"], "data_root": None}, "model": model}


def export_checkpoints(suite, records, runs, folder, index, data_root=None, data=None):
    """Write folder/SUITE-VARIANT.pt of each variant's first finished seed, and its line in `index`. Returns the new lines.

    A checkpoint that has its line already is left as it is. What is written is first tested, as rounded, on the whole test
    set. Raises ValueError if a run's folder is gone, if the file would pass 1.5 MB, or if the data here is other data.
    """
    folder, index, lines = Path(folder), Path(index), []
    known = {line["file"] for line in read_records(index)[0]} if index.exists() else set()
    records = [record for record in records
               if record["suite"] == suite.name and record["phase"] == "final" and "diverged" not in record]
    for variant in suite.variants:
        finished = [record for record in records if record["variant"] == variant]
        path = folder / f"{suite.name}-{variant}.pt"
        if not finished or path.name in known:
            continue
        record = min(finished, key=lambda record: record["seed"])
        run_dir = run_folder(suite, record, runs)
        whole = io.BytesIO()
        torch.save(small_state(read_checkpoint(run_dir), record["id"]), whole)
        if len(whole.getbuffer()) > LARGEST_CHECKPOINT:
            raise ValueError(f"{path.name} would take {len(whole.getbuffer())} bytes; at most {LARGEST_CHECKPOINT} are committed")
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda file, whole=whole: file.write(whole.getbuffer()))
        model, state = load_model(path)
        if data is None:
            source = "synthetic" if state["source"] == "synthetic" else "real"
            data = load_cifar(state["config"]["dataset"], data_root, source)
        if data.fingerprint != record["fingerprint"]:
            raise ValueError(f"{run_dir} was trained on other images than these {data.source} ones")
        lines.append({
            "file": path.name, "id": record["id"], "suite": suite.name, "variant": variant, "seed": record["seed"], "note": suite.note,
            "test_accuracy": record["test_accuracy"], "rounded_test_accuracy": evaluate(model, data.test)[1],
            "source": data.source, "fingerprint": data.fingerprint, "sha256": hashlib.sha256(whole.getbuffer()).hexdigest()})
        append_record(index, lines[-1])
    return lines
