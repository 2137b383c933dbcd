"""The files that let a run survive being killed: reading and writing checkpoint.pt, and reading config.json.

All of a run's state is in checkpoint.pt. It is written whole or not at all.
"""

import io
import json
from pathlib import Path

import torch

from mrla_minimal.lab.device import choose_device
from mrla_minimal.lab.engine.config import config_from_dict
from mrla_minimal.lab.engine.model import build_model
from mrla_minimal.lab.files import replace_file

CHECKPOINT_FORMAT = "mrla-minimal checkpoint 1"


class TrainingDiverged(RuntimeError):
    """The loss is no longer a finite number."""


def read_checkpoint(path):
    """The state in a checkpoint file (or in a run folder's). ValueError, one line, if it is none."""
    path = Path(path)
    if path.is_dir():
        path = path / "checkpoint.pt"
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint; expected a run folder or a checkpoint file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:       # bytes that are no checkpoint make the unpickler raise anything at all
        raise ValueError(f"{path} is not a checkpoint, or is damaged") from None
    if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
        raise ValueError(f"{path} is not a checkpoint of this package (no {CHECKPOINT_FORMAT!r} in it)")
    require_parts(state, ("config", "classes", "source", "fingerprint", "model"), path)
    return state


def require_parts(state, names, path):
    missing = [name for name in names if name not in state]
    if missing:
        raise ValueError(f"{path} is not a whole checkpoint: it lacks {', '.join(missing)}")


def load_weights(model, state, path):
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise ValueError(f"{path} holds the weights of another model: {' '.join(lines[:2])[:200]}") from None


def load_model(path, device="cpu"):
    """(model in evaluation mode, state) of a run folder or a checkpoint file, in float32 on `device`. ValueError if it is none."""
    state = read_checkpoint(path)
    run_dir = Path(path) if Path(path).is_dir() else Path(path).parent
    config = config_from_dict(state["config"], path)
    model = build_model(config, len(state["classes"]), run_dir, state.get("in_channels", 3))
    load_weights(model, state, path)
    return model.to(choose_device(device)).eval(), state


def read_config(run_dir):
    """The TrainConfig in a run folder. ValueError if there is none."""
    path = Path(run_dir) / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{run_dir} is not a run folder: it has no config.json") from None
    except ValueError as error:     # not text, or not JSON
        raise ValueError(f"{path} is not JSON: {error}") from None
    return config_from_dict(values, path)


def save(run, run_dir):
    """Write the checkpoint, whole or not at all. It is put together in memory first: torch's own writer hides a full disk's OSError."""
    state = run.state()
    if not all(torch.isfinite(p).all() for p in run.model.parameters()):
        raise TrainingDiverged(f"a weight is no longer finite after step {run.step} of {run.total_steps}")
    if run.world.rank == 0:
        whole = io.BytesIO()
        torch.save(state, whole)
        replace_file(run_dir / "checkpoint.pt", lambda file: file.write(whole.getbuffer()))
