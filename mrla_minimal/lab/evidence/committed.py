"""The committed evidence: small checkpoints, and reading what data/ holds, for the notebooks.

data/results/SUITE.jsonl                  a finished run a line (records.py)
data/results/SUITE-interventions.jsonl    a trained net a line: its accuracy without its attention's choices
data/results/checkpoints.jsonl            a checkpoint a line: its run, and what its rounded weights reach
data/checkpoints/SUITE-VARIANT.pt         its weights, in float16
"""

import hashlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import nn

from mrla_minimal.lab.data import Cifar
from mrla_minimal.lab.data.scenes import Scenes, views
from mrla_minimal.lab.engine import evaluate, load_model, read_checkpoint
from mrla_minimal.lab.engine.checkpoint import model_of_state
from mrla_minimal.lab.engine.config import CIRCUMSTANCES, TrainConfig, config_from_dict, differing_fields
from mrla_minimal.lab.engine.detection import find_objects, precision_by_kind
from mrla_minimal.lab.engine.inputs import load_data, prepared
from mrla_minimal.lab.evidence.blocks import load_stops
from mrla_minimal.lab.evidence.contrasts import Summary, summarise
from mrla_minimal.lab.evidence.declared import SUITES
from mrla_minimal.lab.evidence.jobs import Job, run_folder
from mrla_minimal.lab.evidence.records import load_interventions, load_records
from mrla_minimal.lab.evidence.suites import Suite
from mrla_minimal.lab.files import append_record, exclusive, read_records, replace_file, repository_root

LARGEST_CHECKPOINT = 1_500_000      # bytes
PILOTS = ("cifar10-thin56", "cifar10-thin56-cpu")


def data_folder() -> Path:
    """data/ of the repository that the working directory lies in. ValueError outside of one."""
    root = repository_root()
    if root is None:
        raise ValueError(f"{Path.cwd()} lies in no copy of the repository: the records are in its data/")
    return root / "data"


def committed_records(name: str) -> list[dict]:
    """The records in data/results/NAME.jsonl; [] if there is no such file."""
    path = data_folder() / "results" / f"{name}.jsonl"
    if name in SUITES:
        return load_records(path)
    return read_records(path)[0] if path.exists() else []


def suite_records(name: str, pilot: str | None = None) -> tuple[str, list[dict]]:
    """(suite's name, its finished final runs): of suite `name`, or where it has none of its pilot.

    Says in a printed line which it is.
    """
    for suite in (name, pilot) if pilot else (name,):
        records = _finished(committed_records(suite), suite)
        if records:
            if suite != name:
                print(f"shown in its place: {suite}, {SUITES[suite].note}")
            return suite, records
        print(f"{suite}: no records yet; to make them: mrla suite run {suite}")
    return name, []


def read_suite(name: str, pilot: str | None = None) -> Summary | None:
    """The Summary of `suite_records(name, pilot)`, or None where there are no records."""
    suite, records = suite_records(name, pilot)
    if not records:
        return None
    stops = load_stops(data_folder() / "results" / f"{suite}.jsonl", suite)
    return summarise(committed_records(suite), SUITES[suite], stops)        # diverged runs too


def read_interventions(name: str, pilot: str | None = None) -> list[dict]:
    """The intervention records of suite `name`, or where it has none of its pilot, or [].

    Says in a printed line which it is.
    """
    for suite in (name, pilot) if pilot else (name,):
        records = load_interventions(data_folder() / "results" / f"{suite}-interventions.jsonl")
        if records:
            if suite != name:
                print(f"shown in its place: {suite}, {SUITES[suite].note}")
            return records
        print(f"{suite}: no interventions yet; to make them: mrla suite run {suite}")
    return []


def _finished(records: Iterable[dict], suite: str) -> list[dict]:
    return [record for record in records
            if record["suite"] == suite and record["phase"] == "final" and "diverged" not in record]


# Checkpoints

def read_index(path: str | Path) -> dict[str, dict]:
    """The lines of an index of checkpoints, by the file that each is about; {} if it does not exist.

    Raises ValueError for a line that names no file or no SHA-256.
    """
    lines = read_records(path)[0] if Path(path).exists() else []
    for number, line in enumerate(lines, start=1):
        if not all(isinstance(line.get(name), str) for name in ("file", "sha256")):
            raise ValueError(f"{path} is no index of checkpoints: line {number} lacks a name or a sha256")
    return {line["file"]: line for line in lines}


def checkpoint_path(suite: str, variant: str) -> Path:
    """Where the committed checkpoint of a variant lies, if there is one."""
    return data_folder() / "checkpoints" / f"{suite}-{variant}.pt"


def load_committed(variant: str, suites: Sequence[str] = PILOTS) -> tuple[nn.Module, dict] | None:
    """(model in evaluation mode, state) of the first of `suites` that has a checkpoint of `variant`, or None.

    Says in a printed line which it is. Raises ValueError if the file is not the one that the index names: its
    SHA-256 is checked before anything of it is used.
    """
    for suite in suites:
        path = checkpoint_path(suite, variant)
        if path.exists():
            line = read_index(data_folder() / "results" / "checkpoints.jsonl").get(path.name)
            if line is None:
                raise ValueError(f"{path} is not committed evidence: checkpoints.jsonl lacks it")
            loaded = load_model(path, sha256=line["sha256"])
            note = f" ({SUITES[suite].note})" if SUITES[suite].note else ""
            print(f"checkpoint {path.name}{note}")
            return loaded
    print(f"{variant}: no checkpoint yet; to make it: mrla suite export {suites[0]}")
    return None


def small_state(state: dict, record_id: str) -> dict:
    """What a committed checkpoint holds of a run's: parameters in float16, norms' statistics as they are."""
    kept = {name: state[name] for name in ("format", "classes", "source", "fingerprint", "in_channels")}
    model = {name: tensor.half() if tensor.is_floating_point() and "running_" not in name else tensor
             for name, tensor in state["model"].items()}
    return {**kept, "id": record_id, "config": {**state["config"], "data_root": None}, "model": model}


def export_checkpoints(suite: Suite, records: Iterable[dict], runs: str | Path, folder: str | Path,
                       index: str | Path, data_root: str | Path | None = None,
                       data: Cifar | Scenes | None = None) -> list[dict]:
    """Write folder/SUITE-VARIANT.pt of each variant's first finished seed that is in `runs`, and its line.

    Returns the new lines. A checkpoint that has its line already is left as it is. What is written is tested,
    as rounded, on the whole test set: of `data`, or of what the run was trained on. Only then is it written.
    Raises ValueError if a run's folder is gone, if the file would pass 1.5 MB, if the data here is other
    data, or if float16 does not hold a weight.
    """
    folder, index, lines = Path(folder), Path(index), []
    known, finished = read_index(index), _finished(records, suite.name)
    for variant in suite.variants:
        path = folder / f"{suite.name}-{variant}.pt"
        of_variant = [record for record in finished if record["variant"] == variant]
        if not of_variant or path.name in known:
            continue
        run_dirs = {record["seed"]: run_folder(suite, record, runs) for record in of_variant}
        record = min(of_variant, key=lambda record: (not run_dirs[record["seed"]].exists(), record["seed"]))
        run_dir = run_dirs[record["seed"]]
        state = small_state(read_checkpoint(run_dir), record["id"])
        config = config_from_dict(state["config"], run_dir)
        if data is None:
            data = load_data(config, data_root, "synthetic" if state["source"] == "synthetic" else "real")
        if data.fingerprint != record["fingerprint"]:
            raise ValueError(f"{run_dir} was trained on other images than these {data.source} ones")
        whole = io.BytesIO()
        torch.save(state, whole)
        size = len(whole.getbuffer())
        if size > LARGEST_CHECKPOINT:
            raise ValueError(f"{path.name} would take {size} bytes; "
                             f"at most {LARGEST_CHECKPOINT} are committed")
        rounded = model_of_state(state, path)
        line = {
            "file": path.name, "id": record["id"], "suite": suite.name, "variant": variant,
            "seed": record["seed"], "note": suite.note, **_before_and_after(record, rounded, config, data),
            "source": data.source,
            "fingerprint": data.fingerprint, "sha256": hashlib.sha256(whole.getbuffer()).hexdigest()}
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda file, whole=whole: file.write(whole.getbuffer()))
        with exclusive(f"{index}.lock"):
            append_record(index, line)
        lines.append(line)
    return lines


def _before_and_after(record: dict, rounded: nn.Module, config: TrainConfig, data: Cifar | Scenes) -> dict:
    """What a run reached on test, and what its rounded weights reach."""
    if not config.detects:
        return {"test_accuracy": record["test_accuracy"],
                "rounded_test_accuracy": evaluate(rounded, prepared(config, data).test)[1]}
    seen = list(views(data.test, data.crop))
    scores = precision_by_kind(find_objects(rounded, seen), [None] * len(seen))
    name = "mask_AP" if "mask_AP" in scores else "box_AP"
    return {f"test_{name}": record["metrics"][-1][f"test_{name}"], f"rounded_test_{name}": scores[name]}


def net_of(job: Job, path: Path, sha256: str | None = None) -> tuple[nn.Module | None, dict | None]:
    """(model, state) of a job's checkpoint; two Nones, and told, if the checkpoint is of another run.

    What the suite's own configuration names may run, and nothing that only the file names. Raises
    ValueError for a file that is damaged, or has another sum.
    """
    state = read_checkpoint(path, sha256)
    differing = differing_fields(job.config, config_from_dict(state["config"], path),
                                 CIRCUMSTANCES)
    if differing:
        print(f"note: {path} is of another run, and is not looked into: {'; '.join(differing)}")
        return None, None
    return model_of_state(state, path, job.config.device, trust=True), state
