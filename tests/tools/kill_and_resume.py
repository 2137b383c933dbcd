"""Kill a run with SIGKILL at random moments, resume it, and compare with a run that was never killed.

    python tests/tools/kill_and_resume.py [KILLS]          # default 10; exit status 1 unless all are equal

Every step writes a checkpoint here, so many kills fall into the writing of one. Equal means: the same
weights and momentum bit for bit, and the same bytes in metrics.jsonl.
"""

import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

SCRIPT = Path(__file__).with_name("tiny.py")
EPOCHS = 12


def start(run_dir, *options):
    return subprocess.Popen([sys.executable, str(SCRIPT), str(run_dir), "--epochs", str(EPOCHS), *options])


def finish(run_dir, *options):
    process = start(run_dir, *options)
    if process.wait(timeout=300) != 0:
        raise RuntimeError(f"the run in {run_dir} ended with status {process.returncode}")


def same(first, second):
    """Whether two finished run folders hold bitwise the same result."""
    if (first / "metrics.jsonl").read_bytes() != (second / "metrics.jsonl").read_bytes():
        return False
    states = [torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (first, second)]
    pairs = [(a, states[1]["model"][name]) for name, a in states[0]["model"].items()]
    memories = [state["optimizer"]["state"] for state in states]
    pairs += [(memory, memories[1][key][name]) for key in memories[0]
              for name, memory in memories[0][key].items()]
    return len(states[0]["model"]) == len(states[1]["model"]) and all(torch.equal(a, b) for a, b in pairs)


def kill_once(run_dir, delay):
    """Start a run, kill it `delay` seconds after its folder has a configuration, and return its last step.

    None if it had ended by then.
    """
    process = start(run_dir)
    while not (run_dir / "config.json").exists():
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        return None
    checkpoint = run_dir / "checkpoint.pt"
    return torch.load(checkpoint, weights_only=True)["step"] if checkpoint.exists() else 0


def main(kills=10, seed=0):
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        unkilled = Path(folder) / "unkilled"
        started = time.monotonic()
        process = start(unkilled)
        while not (unkilled / "config.json").exists():
            time.sleep(0.005)
        configured = time.monotonic()
        if process.wait() != 0:
            raise RuntimeError("the unkilled run failed")
        length = time.monotonic() - configured
        print(f"unkilled run: {length:.1f} s after a start of {configured - started:.1f} s")
        equal = 0
        for number in range(kills):
            run_dir, delay = Path(folder) / f"killed{number}", chance.uniform(0, 0.7 * length)
            while (step := kill_once(run_dir, delay)) is None:  # the machine is less busy now: kill sooner
                shutil.rmtree(run_dir)
                delay /= 2
            parts = len(list(run_dir.glob(".checkpoint.pt.*.part")))
            finish(run_dir, "--resume")
            matches = same(unkilled, run_dir)
            equal += matches
            moment = f"at step {step}" + (", while a checkpoint was being written" if parts else "")
            print(f"kill {number + 1}: {moment}: {'equal' if matches else 'DIFFERENT'}")
        print(f"{equal} of {kills} equal")
    return 0 if equal == kills else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10))
