"""Branches of a trunk: nets that share their first epochs, so that little but the last ones differs.

A trunk is an ordinary run that stops after `trunk_epochs` of its epochs' schedule. A branch has the same
configuration but for its layer attention (and the order of its images), and goes on from there. So two
branches of a trunk scatter far less than two runs, and their difference says what their attentions do for a
net that is trained already.

A branch takes over every tensor that its trunk has under the same name in the same shape, and what the
optimiser remembers of it. What its attention has beyond that starts as its class starts. In training, what
the first batch gives is then the same

    from depthwise to depthwise-carry-lambda0     bit for bit: 0 times the carried map is added
    from uniform to base-zero-query               up to rounding: all weights are 1 / t
    from depthwise to light-zero-query            up to the eps of the batch norm after the attention: all
                                                  gates are 1/2, a factor that this norm takes away. In the
                                                  pilot's depthwise net eps shifts most channels by 1e-5 of
                                                  their scale, the quietest by 1e-2

and of other pairs nothing is promised. In *evaluation* the third differs at first: the norm's running
statistics are those of the ungated map, until some dozens of steps have brought them to half of it.
"""

import dataclasses
import hashlib
from pathlib import Path

import torch

from mrla_minimal.lab.data import Cifar
from mrla_minimal.lab.engine.checkpoint import read_checkpoint
from mrla_minimal.lab.engine.config import CIRCUMSTANCES, TrainConfig, config_from_dict, differing_fields
from mrla_minimal.lab.engine.resume import restore
from mrla_minimal.lab.engine.run import Run


def trunk_of(config: TrainConfig) -> TrainConfig:
    """The configuration of a branch's trunk. ValueError for a run that is no branch."""
    if config.trunk is None:
        raise ValueError("trunk must be the name of a layer attention for a branch, and is none")
    return dataclasses.replace(config, layer_attention=config.trunk, trunk=None, order=None)


def finished_trunk(branch: Run, trunk_dir: Path, data: Cifar | None) -> Run | None:
    """The Run of a branch's trunk where it was left, or None while it is not trained to its end.

    It also puts torch's generators where the trunk left them. Raises ValueError if what is there is no trunk
    of this branch (another width, depth, resolution, recipe, seed, other images), or if several processes
    train the branch.
    """
    if branch.world.parallel:
        raise ValueError(f"a branch is trained by one process, not by {branch.world.size}")
    path, config = trunk_dir / "checkpoint.pt", trunk_of(branch.config)
    if not path.exists():
        return None
    state = read_checkpoint(path)
    differing = differing_fields(config, config_from_dict(state["config"], path), CIRCUMSTANCES)
    if differing:
        raise ValueError(f"{path} is no trunk of this branch: {'; '.join(differing)}")
    trunk = Run(config, branch.world, trunk_dir, data)
    restore(trunk, state, path)
    return trunk if trunk.finished else None


def branch_off(branch: Run, trunk: Run) -> None:
    """Put a new Run where its trunk is, with all that it takes over from it."""
    theirs, own = trunk.model.state_dict(), branch.model.state_dict()
    taken = {name: theirs[name] for name, tensor in own.items()
             if name in theirs and theirs[name].shape == tensor.shape}
    branch.model.load_state_dict(own | taken)
    memories = trunk.optimizer.state_dict()["state"]
    remembered = {name: memories[number] for number, name in enumerate(_parameter_names(trunk))
                  if number in memories}
    state = branch.optimizer.state_dict()
    state["state"] |= {number: remembered[name] for number, name in enumerate(_parameter_names(branch))
                       if name in taken and name in remembered}
    branch.optimizer.load_state_dict(state)
    branch.scaler.load_state_dict(trunk.scaler.state_dict())
    branch.step, branch.metrics = trunk.step, trunk.metrics
    branch.trunk = {"step": trunk.step, "train_loss": trunk.metrics[-1]["train_loss"],
                    "seconds": trunk.seconds, "weights": weights_sum(theirs)}


def weights_sum(weights: dict[str, torch.Tensor]) -> str:
    """The first 12 hex digits of the SHA-256 of a model's tensors: which training of a trunk this was."""
    content = hashlib.sha256()
    for name in sorted(weights):
        content.update(name.encode() + weights[name].cpu().contiguous().numpy().tobytes())
    return content.hexdigest()[:12]


def _parameter_names(run: Run) -> list[str]:
    """The names of a model's parameters, in the order in which its optimiser numbers them."""
    names = {parameter: name for name, parameter in run.model.named_parameters()}
    return [names[parameter] for group in run.optimizer.param_groups for parameter in group["params"]]
