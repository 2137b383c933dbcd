"""The files that let a run survive being killed: checkpoint.pt, and config.json beside it.

All of a run's state is in checkpoint.pt. It is written whole or not at all, and nothing of it is used
before it has been checked: the sums of its bytes, then the kinds of its parts.
"""

import dataclasses
import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from mrla_minimal.lab.arguments import boolean, integer, shown, text
from mrla_minimal.lab.device import choose_device, plain_defaults
from mrla_minimal.lab.engine.config import TrainConfig, config_from_dict
from mrla_minimal.lab.engine.model import build_model
from mrla_minimal.lab.files import replace_file
from mrla_minimal.lab.plugins import OwnAttention

if TYPE_CHECKING:
    from mrla_minimal.lab.engine.run import Run

CHECKPOINT_FORMAT = "mrla-minimal checkpoint 1"
CPU = torch.device("cpu")


def read_checkpoint(path: str | Path, sha256: str | None = None) -> dict:
    """The state in a checkpoint file (or in a run folder's).

    Its configuration is whole: what the file lacks stands at its default. `sha256` is the sum that the file
    was published with, if it was. Raises ValueError, one line, for a file that has another sum, is damaged,
    or is no checkpoint. Whether its weights are finite is asked where a model is given them.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "checkpoint.pt"
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint; expected a run folder or a checkpoint file")
    content = path.read_bytes()     # once: what is checked is what is loaded
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path} is not the file that was published: its SHA-256 is "
                         f"{hashlib.sha256(content).hexdigest()}, not {sha256}")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:       # torch.load reads past a wrong check sum
            whole = archive.testzip() is None
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True) if whole else None
    except Exception:       # bytes that are no checkpoint make zip and unpickler raise anything at all
        whole = False
    if not whole:
        raise ValueError(f"{path} is not a checkpoint, or is damaged")
    if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
        raise ValueError(f"{path} is not a checkpoint of this package (no {CHECKPOINT_FORMAT!r} in it)")
    require_parts(state, ("config", "classes", "source", "fingerprint", "model"), path)
    try:
        for name in ("source", "fingerprint"):
            text(name, state[name])
        integer("in_channels", state.setdefault("in_channels", 3))
        if not isinstance(state["classes"], list | tuple) or not state["classes"]:
            raise ValueError(f"classes must be a list of names, not {shown(state['classes'])}")
        for name in state["classes"]:
            text("the name of a class", name)
        _check_weights(state["model"])
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    return {**state, "config": dataclasses.asdict(config_from_dict(state["config"], path))}


def require_parts(state: dict, names: tuple[str, ...], path: Path) -> None:
    """ValueError unless the state has all parts of these names."""
    missing = [name for name in names if name not in state]
    if missing:
        raise ValueError(f"{path} is not a whole checkpoint: it lacks {', '.join(missing)}")


def is_plain(tensor: object) -> bool:
    """Whether this is a tensor as a checkpoint holds it: dense, and in memory."""
    return isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided and tensor.device == CPU


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds no inf and no NaN."""
    return bool(torch.isfinite(tensor).all())


def names_of_finite(model: nn.Module) -> list[str]:
    """The names of what must be finite in a model's state: parameters, and the statistics of norms.

    Other buffers may hold what they like, such as a mask of -inf: what they break, the loss tells.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return [name for name, tensor in model.state_dict().items() if tensor.is_floating_point()
            and (name in parameters or name.rpartition(".")[2] in ("running_mean", "running_var"))]


def _check_weights(weights):
    if not isinstance(weights, dict):
        raise ValueError(f"model must hold tensors by name, not {shown(weights)}")
    for name, tensor in weights.items():
        if not isinstance(name, str) or not is_plain(tensor):
            raise ValueError(f"model: {shown(name)} must be a dense tensor, not {shown(tensor)}")


def load_weights(model: nn.Module, state: dict, path: Path) -> None:
    """Give a model the weights of a state. ValueError if they are another model's, or not finite."""
    for name in names_of_finite(model):
        if name in state["model"] and not is_finite(state["model"][name]):
            raise ValueError(f"{path} is damaged: model: {name!r} must hold finite numbers alone")
    wanted = model.state_dict()
    lines = [f"{name} is {shown(tensor)}" for name, tensor in state["model"].items()
             if name in wanted and tensor.is_floating_point() != wanted[name].is_floating_point()]
    try:
        if not lines:
            model.load_state_dict(state["model"])
    except (RuntimeError, TypeError, AttributeError) as error:
        lines = [line.strip() for line in str(error).splitlines()]
    if lines:
        raise ValueError(f"{path} holds the weights of another model: {' '.join(lines[:2])[:200]}")


def require_trust(layer_attention: str | None, path: str | Path, trust: bool) -> None:
    """ValueError if a run folder or a checkpoint asks for code, and its user has not said that it may run.

    Whoever made the folder chose the code: it may lie in the folder, or anywhere that its name leads to. So
    the rule is the same for all of it, and for runs of one's own: what only a folder names is not run
    without being asked for.
    """
    own = OwnAttention.parse(layer_attention)
    if own and not trust:
        raise ValueError(f"{path} needs {own.path}, and to read it is to run that Python file: if "
                         "you trust whoever wrote it, say so with --trust (in Python: trust=True)")


@plain_defaults()
def load_model(path: str | Path, device: str = "cpu", trust: bool = False,
               sha256: str | None = None) -> tuple[nn.Module, dict]:
    """(model in evaluation mode, state) of a run folder or a checkpoint file, in float32 on `device`.

    A net with an attention of one's own is loaded only with `trust`: that runs a Python file, from where
    the checkpoint says it lies, or the copy in the run folder. Raises ValueError without it, and as
    `read_checkpoint`.
    """
    boolean("trust", trust)
    state = read_checkpoint(path, sha256)
    return model_of_state(state, path, device, trust), state


@plain_defaults()
def model_of_state(state: dict, path: str | Path, device: str = "cpu", trust: bool = False) -> nn.Module:
    """The model in evaluation mode of a state that `read_checkpoint` found at `path`; as `load_model`."""
    config = config_from_dict(state["config"], path)
    require_trust(config.layer_attention, path, trust)
    run_dir = Path(path) if Path(path).is_dir() else Path(path).parent
    model = build_model(config, len(state["classes"]), run_dir, state["in_channels"])
    load_weights(model, state, path)
    return model.to(choose_device(device)).eval()


def read_config(run_dir: str | Path) -> TrainConfig:
    """The TrainConfig in a run folder. ValueError if there is none."""
    path = Path(run_dir) / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{run_dir} is not a run folder: it has no config.json") from None
    except (ValueError, RecursionError) as error:     # not text, not JSON, or nested without end
        raise ValueError(f"{path} is not JSON: {error}") from None
    return config_from_dict(values, path)


def save(run: "Run", run_dir: Path) -> None:
    """Write a Run's checkpoint, whole or not at all.

    It is put together in memory first: torch's own writer hides a full disk's OSError. Raises
    TrainingDiverged, and writes nothing, if a number in it is not finite.
    """
    state = run.state()
    if run.world.rank == 0:
        whole = io.BytesIO()
        torch.save(state, whole)
        replace_file(run_dir / "checkpoint.pt", lambda file: file.write(whole.getbuffer()))
