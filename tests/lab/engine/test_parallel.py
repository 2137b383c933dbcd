import json
import os
import subprocess
import sys
from pathlib import Path

import parallel_steps
import pytest

from mrla_minimal.lab.engine import read_checkpoint
from mrla_minimal.lab.files import read_records

TOOLS = Path(parallel_steps.__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="torch's Windows builds have no libuv store for torchrun")


def _run(command, cwd=None):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(TOOLS.parents[1]), os.environ.get("PYTHONPATH")]))}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_two_processes_give_the_loss_curve_of_one(tmp_path):
    _run([sys.executable, str(TOOLS / "parallel_steps.py"), str(tmp_path / "one.json")])
    _run([*TORCHRUN, str(TOOLS / "parallel_steps.py"), str(tmp_path / "two.json")])
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert (one["processes"], two["processes"]) == (1, 2) and len(one["losses"]) == len(two["losses"]) == 20
    assert max(abs(a - b) for a, b in zip(one["losses"], two["losses"], strict=True)) < 1e-10
    assert one["record"]["test_accuracy"] == two["record"]["test_accuracy"]
    assert abs(one["record"]["test_loss"] - two["record"]["test_loss"]) < 1e-5     # evaluated in float32


@pytest.mark.slow
def test_torchrun_trains_and_rank_zero_alone_writes(tmp_path):
    options = ["--depth", "8", "--width", "4", "--steps", "3", "--batch-size", "32", "--source", "synthetic", "--device", "cpu"]
    output = _run([*TORCHRUN, "-m", "mrla_minimal", "train", *options, "--name", "pair"], cwd=tmp_path)
    assert output.count("test accuracy ") == 1
    records, complaints = read_records(tmp_path / "runs" / "pair" / "metrics.jsonl")
    assert len(records) == 1 and not complaints and records[0]["step"] == 3
    assert read_checkpoint(tmp_path / "runs" / "pair")["step"] == 3


def test_a_batch_that_the_processes_cannot_share_is_refused():
    import torch

    from mrla_minimal.lab.device import World
    from mrla_minimal.lab.engine import Run, TrainConfig

    with pytest.raises(ValueError, match="divisible by the 3 processes, which 64 is not"):
        Run(TrainConfig(), World(0, 3, torch.device("cpu")))
