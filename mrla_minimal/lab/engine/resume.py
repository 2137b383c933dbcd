"""From a checkpoint's state back to a run at the step where it was.

A state comes out of a file: every part is checked before any is used. The optimiser's settings are not
among them: they follow from the configuration.
"""

from pathlib import Path

import torch

from mrla_minimal.lab.arguments import integer, not_negative, one_of, positive, share, shown, text
from mrla_minimal.lab.engine.checkpoint import is_finite, is_plain, load_weights, require_parts
from mrla_minimal.lab.engine.config import CIRCUMSTANCES, config_from_dict, differing_fields
from mrla_minimal.lab.engine.precision import PRECISIONS
from mrla_minimal.lab.engine.run import Run

MAY_DIFFER = (*CIRCUMSTANCES, "epochs", "steps")        # it may go on elsewhere, and for longer
NEEDED = ("epoch", "train_loss", "learning_rate")       # in every record of an epoch
# The others: losses, accuracies and precisions, a rate.
KINDS = {"source": text, "epoch": integer, "step": integer, "test_mask_fields": text}
SHARES = ("accuracy", "AP", "AP50", "AP75")
# What an optimiser remembers of each parameter, in its shape; AdamW counts its steps too.
MEMORIES = {"sgd": ("momentum_buffer",), "adamw": ("exp_avg", "exp_avg_sq")}
PARTS = ("threads", "step", "losses", "hits", "metrics", "seconds", "random")


def restore(run: Run, state: dict, path: Path) -> None:
    """Put a new Run where the `state()` of an earlier one was.

    Raises ValueError if the state is of other data, of another configuration or model, or damaged.
    """
    if "optimizer" not in state:
        raise ValueError(f"{path} holds weights alone: it can be evaluated, not resumed")
    require_parts(state, PARTS, path)
    differing = differing_fields(run.config, config_from_dict(state["config"], path), MAY_DIFFER)
    if differing:
        raise ValueError(f"{path} is of another run: {'; '.join(differing)}")
    if state["fingerprint"] != run.fingerprint:
        raise ValueError(f"{path} was trained on other images (source {state['source']}) than are here "
                         f"(source {run.source})")
    load_weights(run.model, state, path)
    try:
        _restore_position(run, state)
        _restore_optimizer(run, state)
        _restore_random(run, state["random"])
        run.trunk = checked_trunk(run, state.get("trunk"))
        threads = integer("threads", state["threads"])
        precision = one_of("precision", state.get("precision", run.precision), PRECISIONS)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if run.world.rank == 0:
        if threads != torch.get_num_threads():
            print(f"note: {path} was written with {threads} threads, here are {torch.get_num_threads()}: "
                  "the run goes on, but no longer bit for bit")
        if precision != run.precision:
            print(f"note: {path} was trained in {precision}, and goes on in {run.precision}")


def _restore_position(run, state):
    """How far the run had come, and what it measured on the way."""
    step = integer("step", state["step"], 0, run.total_steps)
    metrics = _checked_metrics(run, state["metrics"], step)
    measured = metrics[-1]["step"] if metrics else 0        # the steps since are of an epoch not yet closed
    for name, size in (("losses", step - measured), ("hits", run.counts_right * (step - measured))):
        if not isinstance(state[name], list) or len(state[name]) != size:
            raise ValueError(f"{name} must be a list of {size}, not {shown(state[name])}")
    losses = [not_negative("a loss", loss) for loss in state["losses"]]
    accuracies = [share("an accuracy", accuracy) for accuracy in state["hits"]]
    if step == run.last_step and (measured != step or run.result not in metrics[-1]):
        raise ValueError(f"the run ended at step {step}, and its metrics do not")
    run.step, run.losses, run.accuracies, run.metrics = step, losses, accuracies, metrics
    run.seconds = not_negative("seconds", state["seconds"])


def _checked_metrics(run, metrics, step):
    needed = (*NEEDED, "train_accuracy") if run.counts_right else NEEDED
    if not isinstance(metrics, list):
        raise ValueError(f"metrics must be a list of records, not {shown(metrics)}")
    before = 0
    for record in metrics:
        if not isinstance(record, dict):
            raise ValueError(f"metrics must be a list of records, and {shown(record)} is none")
        before = integer("the step of an epoch", record.get("step"), before + 1, step)
        for name, value in {**dict.fromkeys(needed), **record}.items():
            check = KINDS.get(name, share if str(name).endswith(SHARES) else not_negative)
            several = str(name).endswith("parts") and isinstance(value, list)
            for number in value if several else [value]:
                check(f"{shown(name)} of an epoch", number)
    return metrics


def _restore_optimizer(run, state):
    """What the optimiser remembers of every parameter, and the scale of float16's gradients."""
    parameters = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
    stored = state["optimizer"].get("state") if isinstance(state["optimizer"], dict) else None
    if not isinstance(stored, dict):
        raise ValueError(f"optimizer must hold a state, not {shown(state['optimizer'])}")
    scaler = state.get("scaler", {})        # empty: it was trained in no float16, and there was no scale
    if not isinstance(scaler, dict):
        raise ValueError(f"scaler must be a table of names and values, not {shown(scaler)}")
    memories = {}
    for number, entry in stored.items():
        integer("the number of a parameter", number, 0, len(parameters) - 1)
        entry = entry if isinstance(entry, dict) else {}
        memories[number] = _checked_memory(run, f"parameter {number}", parameters[number].shape, entry)
    if run.step > 0 and not memories and not scaler:        # a scaler may leave out every step
        raise ValueError(f"optimizer must remember {run.step} steps, and remembers none")
    run.optimizer.load_state_dict({**run.optimizer.state_dict(), "state": memories})
    if run.scaler.is_enabled() and scaler:
        run.scaler.load_state_dict({**run.scaler.state_dict(),
                                    "scale": positive("the scale of gradients", scaler.get("scale")),
                                    "_growth_tracker": integer("its age", scaler.get("_growth_tracker"), 0)})


def _checked_memory(run, parameter, shape, entry):
    """What the optimiser of this configuration remembers of one parameter: tensors of its shape."""
    memory = {name: entry.get(name) for name in MEMORIES[run.config.optimizer]}
    for name, tensor in memory.items():
        if not is_plain(tensor) or not is_finite(tensor) or tensor.shape != shape \
                or not tensor.is_floating_point() or (name == "exp_avg_sq" and bool((tensor < 0).any())):
            numbers = "finite numbers from 0 on" if name == "exp_avg_sq" else "finite numbers"
            raise ValueError(f"{name} of {parameter} must be {tuple(shape)} {numbers}, not {shown(tensor)}")
    if run.config.optimizer == "adamw":
        steps = entry.get("step")
        if not is_plain(steps) or steps.dtype != torch.float32 or steps.dim() \
                or not steps.item().is_integer() or not 0 <= steps.item() <= run.step:
            raise ValueError(f"the steps of {parameter} must be a tensor () of torch.float32 that holds an "
                             f"integer from 0 to {run.step}, not {shown(steps)}")
        memory["step"] = steps
    return memory


def checked_trunk(run: Run, trunk: object) -> dict | None:
    """What a branch remembers of its trunk, None for a run that is none."""
    if run.config.trunk is None:
        return None
    if not isinstance(trunk, dict):
        raise ValueError(f"trunk must be a table of names and values, not {shown(trunk)}")
    return {"step": integer("the trunk's step", trunk.get("step"), run.first_step, run.first_step),
            "train_loss": not_negative("the trunk's loss", trunk.get("train_loss")),
            "seconds": not_negative("the trunk's seconds", trunk.get("seconds")),
            "weights": text("the trunk's weights", trunk.get("weights"))}


def _restore_random(run, random):
    if run.world.parallel:      # each process draws its own drop_path; the checkpoint knows rank 0's alone
        torch.manual_seed(run.config.seed + 1 + run.world.rank + run.world.size * run.step)
        return
    try:
        if not isinstance(random, dict):
            raise TypeError
        torch.set_rng_state(random["cpu"])
        if run.world.device.type == "cuda" and "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"], run.world.device)
    except (RuntimeError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"random is no state of torch's generators ({type(error).__name__})") from None
