"""Kill a suite that runs by time, at random moments, go on with it, and compare with one that was left alone.

    python tests/tools/kill_timed.py [KILLS]       # default 5; exit status 1 unless all is as it should be

Two jobs share the suite. By turns all of its processes are killed with SIGKILL, or the helper alone. Then the
same command goes on until three blocks are complete. As it should be: every run has one record, the metrics
of each are those of an undisturbed run bit for bit, and what the killed command left is finished first.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mrla_minimal.lab.evidence.records import load_records
from mrla_minimal.lab.files import read_records

ROOT = Path(__file__).parents[2]
SEEDS = ("0", "1", "2")
SUITE = """
from mrla_minimal.lab.evidence import Suite

recipe = {"depth": 8, "width": 4, "steps": 40, "batch_size": 16, "device": "cpu", "source": "synthetic"}
variants = {name: {"layer_attention": None if name == "plain" else name}
            for name in ("plain", "depthwise", "uniform")}
suite = Suite("own", variants, recipe, baseline="plain")
"""
RECORDS = Path("runs/own/records.jsonl")


def start(folder, minutes):
    """The command, and the helper that it starts, in a group of processes of their own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MRLA_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "mrla_minimal", "compare", "--suite", "mine.py", "--jobs", "2",
               "--seeds", *SEEDS, "--minutes", str(minutes)]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, start_new_session=True)


def helpers_of(process):
    """The process ids of a command's helpers."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children]


def finish(folder, minutes=30):
    process = start(folder, minutes)
    said, _ = process.communicate(timeout=60 * minutes)
    if process.returncode not in (0, 2):        # 2: its helper was killed, and it says so
        raise RuntimeError(f"status {process.returncode}: {said}")
    return said


def results(folder):
    """(seed, variant) -> metrics; an error if a run has two records."""
    records = load_records(folder / RECORDS)
    found = {(record["seed"], record["variant"]): record["metrics"] for record in records}
    if len(found) < len(records):
        raise RuntimeError(f"{len(records)} records of {len(found)} runs")
    return found


def kill(process, whole_group):
    """SIGKILL to the command and its helper, or to its helper alone."""
    helpers = helpers_of(process)
    if whole_group:
        process.kill()
    for helper in helpers:
        os.kill(helper, signal.SIGKILL)
    process.communicate(timeout=600)


def main(kills=5, seed=0):
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / name for name in ("alone", *map(str, range(kills)))]
        for folder in folders:
            folder.mkdir()
            (folder / "mine.py").write_text(SUITE)
        began = time.monotonic()
        finish(folders[0])
        length, alone = time.monotonic() - began, results(folders[0])
        print(f"undisturbed: {len(alone)} runs in {length:.0f} s")
        good = 0
        for number, folder in enumerate(folders[1:]):
            process, whole_group = start(folder, 30), number % 2 == 0
            until = time.monotonic() + 300
            while not list(folder.glob("runs/own/*/checkpoint.pt")) and time.monotonic() < until:
                time.sleep(0.05)
            time.sleep(chance.uniform(0, 0.5 * length))
            kill(process, whole_group)
            left = len(results(folder)) if (folder / RECORDS).exists() else 0
            finish(folder)
            same = results(folder) == alone
            torn = read_records(folder / RECORDS)[1]
            good += same and not torn
            print(f"{'all' if whole_group else 'helper'} killed after {left} runs: "
                  f"{'equal' if same else 'DIFFERENT'}", *torn, flush=True)
        print(f"{good} of {kills} as it should be")
    return 0 if good == kills else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
