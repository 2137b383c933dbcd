import json
import os
import subprocess
import sys
from pathlib import Path

import parallel_steps
import pytest
import torch
from tiny import tiny_cifar

from mrla_minimal.lab.device import World
from mrla_minimal.lab.engine import Run, TrainConfig, read_checkpoint
from mrla_minimal.lab.files import read_records

TOOLS = Path(parallel_steps.__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="torchrun has no libuv on Windows")


def _run(command, cwd=None):
    paths = filter(None, [str(TOOLS.parents[1]), os.environ.get("PYTHONPATH")])
    done = subprocess.run(command, cwd=cwd, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory):
    """What parallel_steps.py finds in one process, and in two."""
    folder, script = tmp_path_factory.mktemp("steps"), str(TOOLS / "parallel_steps.py")
    _run([sys.executable, script, str(folder / "one.json")])
    _run([*TORCHRUN, script, str(folder / "two.json")])
    return [json.loads((folder / name).read_text()) for name in ("one.json", "two.json")]


def test_two_processes_give_the_loss_curve_of_one(one_and_two):
    one, two = one_and_two
    assert (one["processes"], two["processes"]) == (1, 2) and len(one["losses"]) == len(two["losses"]) == 20
    assert max(abs(a - b) for a, b in zip(one["losses"], two["losses"], strict=True)) < 1e-10
    assert one["record"]["test_accuracy"] == two["record"]["test_accuracy"]
    assert abs(one["record"]["test_loss"] - two["record"]["test_loss"]) < 1e-10


def test_at_an_epochs_end_every_process_has_the_statistics_of_the_first(one_and_two):
    """Each saw other images, and what is evaluated in shares must be one model."""
    (before, after), (before_other, after_other) = one_and_two[1]["norms"]
    assert before != before_other and after == after_other == before


def test_each_process_draws_its_own_random_numbers_after_a_resume_too(one_and_two):
    (begun, resumed), (begun_other, resumed_other) = one_and_two[1]["seeds"]
    assert (begun, begun_other) == (1, 2)
    assert len({begun, begun_other, resumed, resumed_other}) == 4       # none draws what was drawn before


@pytest.mark.slow
def test_torchrun_trains_and_rank_zero_alone_writes(tmp_path):
    options = ["--depth", "8", "--width", "4", "--steps", "3", "--batch-size", "32", "--source", "synthetic",
               "--device", "cpu"]
    output = _run([*TORCHRUN, "-m", "mrla_minimal", "train", *options], cwd=tmp_path)
    assert output.count("test accuracy ") == 1
    (run_dir,) = (tmp_path / "runs").iterdir()          # each process would have made one of its own
    records, complaints = read_records(run_dir / "metrics.jsonl")
    assert len(records) == 1 and not complaints and records[0]["step"] == 3
    assert read_checkpoint(run_dir)["step"] == 3


def test_a_batch_that_the_processes_cannot_share_is_refused():
    with pytest.raises(ValueError, match="divisible by the 3 processes, which 64 is not"):
        Run(TrainConfig(), World(0, 3, torch.device("cpu")), data=tiny_cifar())
