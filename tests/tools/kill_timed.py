"""Kill a suite that runs by time, at random moments, go on with it, and compare with one that was left alone.

    python tests/tools/kill_timed.py [KILLS [all|helper]]      # default 5, of both kinds by turns

Exit status 1 unless all is as it should be: every run has one record, and its metrics are those of an
undisturbed run bit for bit.

Two jobs share the suite. All of its processes are killed with SIGKILL, and the same command goes on; or the
helper alone, and the process that is left finishes all, and says that one failed. Only a kill within a run
counts: each run folder has a lock, and /proc tells who holds it. Where nobody does, another moment is drawn.
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
SEEDS = ("0", "1")
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


def new_folder(parent):
    folder = Path(tempfile.mkdtemp(dir=parent))
    (folder / "mine.py").write_text(SUITE)
    return folder


def finished(folder, minutes=30):
    """The folder, in which the command has gone on to its end."""
    process = start(folder, minutes)
    said, _ = process.communicate(timeout=60 * minutes)
    if process.returncode != 0:
        raise RuntimeError(f"status {process.returncode}: {said}")
    return folder


def results(folder):
    """(seed, variant) -> metrics; an error if a run has two records."""
    records = load_records(folder / RECORDS)
    found = {(record["seed"], record["variant"]): record["metrics"] for record in records}
    if len(found) < len(records):
        raise RuntimeError(f"{len(records)} records of {len(found)} runs")
    return found


def run_of(process_id):
    """The run folder that a process is at, by the lock that it holds; None: it is at none, or gone."""
    try:
        held = [os.readlink(entry) for entry in Path(f"/proc/{process_id}/fd").iterdir()]
    except OSError:
        return None
    return next((Path(path).parent.name for path in held if Path(path).name == ".lock"), None)


def kill_within_a_run(process, whole_group):
    """SIGKILL to the command and its helper, or to its helper alone; the runs that they were at.

    If they are at none, nothing happens to them.
    """
    victims = helpers_of(process) + [process.pid] * whole_group
    for victim in victims:
        os.kill(victim, signal.SIGSTOP)         # to look at them while they do not move
    runs = [run for run in map(run_of, victims) if run]
    for victim in victims:
        os.kill(victim, signal.SIGKILL if runs else signal.SIGCONT)
    return runs


def disturbed(folder, whole_group, moment):
    """Start the suite, and kill within a run, `moment` seconds after the first has begun or soon after.

    Returns the runs that were killed, [] if there was none any more by then.
    """
    process, until = start(folder, 30), time.monotonic() + 600
    while not list(folder.glob("runs/own/*/checkpoint.pt")) and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(moment)
    killed = []
    while not killed and process.poll() is None:
        try:
            killed = kill_within_a_run(process, whole_group)
        except (ProcessLookupError, FileNotFoundError):     # it ended meanwhile
            break
        time.sleep(0.1)
    said, _ = process.communicate(timeout=1800)
    if killed and not whole_group and "1 of 2 processes failed" not in said:
        raise RuntimeError(f"its helper was killed, and it says only: {said}")
    return killed


def main(kills=5, who="both", seed=0):
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        began = time.monotonic()
        alone = results(finished(new_folder(temporary)))
        length = time.monotonic() - began
        print(f"undisturbed: {len(alone)} runs in {length:.0f} s", flush=True)
        good = 0
        for number in range(kills):
            whole_group, killed = who == "all" or (who == "both" and number % 2 == 0), []
            while not killed:
                folder = new_folder(temporary)
                killed = disturbed(folder, whole_group, chance.uniform(0, 0.4 * length))
            left = len(results(folder)) if (folder / RECORDS).exists() else 0
            as_it_should = whole_group or left == len(alone)
            same = results(finished(folder)) == alone
            torn = read_records(folder / RECORDS)[1]
            good += as_it_should and same and not torn
            print(f"{'all' if whole_group else 'helper'} killed within {' and '.join(killed)}: {left} runs "
                  f"recorded when it ended; then {'equal' if same else 'DIFFERENT'}", *torn, flush=True)
        print(f"{good} of {kills} as it should be")
    return 0 if good == kills else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5, *sys.argv[2:3]))
