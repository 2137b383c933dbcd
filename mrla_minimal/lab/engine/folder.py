"""A run's folder: its name, what must be in it for a run to go on, and what a killed run left behind.

config.json     the configuration              metrics.jsonl   one line an epoch, no times
checkpoint.pt   all that a resumed run needs   timing.jsonl    how long each epoch took
"""

import dataclasses
import itertools
import os
import re
from pathlib import Path

from mrla_minimal.lab.engine.checkpoint import read_checkpoint, read_config, require_trust
from mrla_minimal.lab.engine.config import TrainConfig, differing_fields
from mrla_minimal.lab.engine.resume import MAY_DIFFER
from mrla_minimal.lab.engine.run import Run
from mrla_minimal.lab.files import read_records, replace_file, to_line, write_json
from mrla_minimal.lab.plugins import OwnAttention


def new_run_dir(config: TrainConfig, runs: str | Path = "runs", source: str | None = None) -> Path:
    """Make runs/NAME, and return it: the first NAME that nobody has.

    NAME says the model, its attentions, the data (`source`, of images of one's own) and the seed. The
    folder is made here, which only one of several processes can do: two that start together get two.
    Raises OSError, naming `runs`, where that is no folder and cannot become one.
    """
    own = OwnAttention.parse(config.layer_attention)
    layer_attention = own.short_name if own else config.layer_attention
    attention = "-".join(filter(None, (layer_attention, config.channel_attention))) or "plain"
    data = source or ("synthetic" if config.source == "synthetic" else config.dataset)
    host = re.sub(r"\W+", "-", config.host_text.lower().replace("resnet-", "resnet"))
    name = f"{host}-{attention}-{re.sub(r'[^A-Za-z0-9._]+', '-', data)}-seed{config.seed}"
    Path(runs).mkdir(parents=True, exist_ok=True)       # not in the loop, which takes "exists" for a name
    for number in itertools.count(1):
        folder = Path(runs) / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            pass


def usable_root(data_root: str | None) -> str | None:
    """Where to look for a recorded run's images: its own folder of data, if that is here; else None.

    A run may have been recorded on another machine: $MRLA_DATA, which speaks of this one, comes first.
    """
    if data_root is None or os.environ.get("MRLA_DATA"):
        return None
    if not Path(data_root).expanduser().exists():
        print(f"note: the run's folder of data, {data_root}, is not here; images are looked for elsewhere")
        return None
    return data_root


def going_on(config: TrainConfig, run_dir: Path, trust: bool) -> TrainConfig:
    """The configuration with which a run folder's run goes on: `config`, with a data_root that is here.

    Raises ValueError if the folder holds no run, or was begun with another configuration (it may go on
    elsewhere, and for longer), or needs a Python file that nobody has said may run.
    """
    stored = read_config(run_dir)
    differing = differing_fields(config, stored, MAY_DIFFER)
    if differing:
        raise ValueError(f"{run_dir} was begun with another configuration: {'; '.join(differing)}")
    if config.epochs != stored.epochs and config.steps is not None and config.steps == stored.steps:
        raise ValueError(f"epochs has no effect on {run_dir}, which counts steps ({stored.steps}): "
                         "give more steps, or epochs with steps none")
    require_trust(stored.layer_attention, run_dir, trust)
    root = usable_root(config.data_root) if config.data_root == stored.data_root else config.data_root
    return dataclasses.replace(config, data_root=root)


def begin(run: Run, run_dir: Path) -> None:
    """Write the configuration of a new run, and a copy of the attention of one's own.

    ValueError if one is there.
    """
    if (run_dir / "config.json").exists():
        raise ValueError(f"{run_dir} holds a run already; resume it, or choose another name")
    write_json(run_dir / "config.json", dataclasses.asdict(run.config))
    own = OwnAttention.parse(run.config.layer_attention)
    if own:
        own.keep_copy(run_dir)


def begun(run: Run, run_dir: Path) -> dict | None:
    """The checkpoint from which a run goes on, or None if it was stopped before its first.

    A run that is to go on for longer has its config.json replaced. Raises ValueError for fewer steps than
    it was begun with, and if the checkpoint is none.
    """
    stored = read_config(run_dir)
    before, now = run.steps_of(stored), run.total_steps
    if now < before:
        raise ValueError(f"{run_dir} was begun for {before} steps: it can go on for more, "
                         f"not end after {now}")
    if now > before and run.world.rank == 0:
        longer = dataclasses.replace(stored, epochs=run.config.epochs, steps=run.config.steps)
        write_json(run_dir / "config.json", dataclasses.asdict(longer))
    return read_checkpoint(run_dir) if (run_dir / "checkpoint.pt").exists() else None


def cut_back(run: Run, run_dir: Path) -> None:
    """Cut from the run's logs what a killed run wrote after its checkpoint: it will be written again."""
    timing = run_dir / "timing.jsonl"
    timed = read_records(timing)[0] if timing.exists() else []
    kept = [record for record in timed if isinstance(record.get("step"), int) and record["step"] <= run.step]
    for path, records in ((run_dir / "metrics.jsonl", run.metrics), (timing, kept)):
        lines = "".join(map(to_line, records)).encode()
        replace_file(path, lambda file, lines=lines: file.write(lines))
