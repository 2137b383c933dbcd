"""Several processes: their shares of the cores, what they are started with, and how they end."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from mrla_minimal.lab import processes

CHILD = """
import sys, time
from mrla_minimal.lab import processes
processes.end_with_parent()
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
PARENT = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdin=subprocess.PIPE)
time.sleep(60)
"""


@pytest.mark.parametrize("asked, shares", [
    (None, (8, 4, 2, 1, 1)), ("3", (3, 3, 3, 3, 3)), ("", (8, 4, 2, 1, 1)), ("all", (8, 4, 2, 1, 1))])
def test_cores_are_shared_out_unless_the_environment_says_otherwise(monkeypatch, asked, shares):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    if asked is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.setattr(processes, "_text", lambda path: "")        # no quota
    assert tuple(processes.threads_each(count) for count in (1, 2, 3, 8, 20)) == shares


@pytest.mark.parametrize("quota, shares", [("400000 100000", (4, 2, 1)), ("50000 100000", (1, 1, 1))])
def test_a_container_shares_out_what_it_may_use_and_not_its_machine(monkeypatch, quota, shares):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(processes, "_text", lambda path: quota if path.endswith("cpu.max") else "")
    assert tuple(processes.threads_each(count) for count in (1, 2, 4)) == shares


def test_helpers_run_the_command_whatever_lies_in_the_working_directory(tmp_path, monkeypatch):
    """A file called like a module of Python's would be imported in its place, by torch among others."""
    monkeypatch.chdir(tmp_path)
    for name in ("random.py", "queue.py", "mrla_minimal.py"):
        (tmp_path / name).write_text("raise SystemExit(3)")
    end = ("from mrla_minimal.lab.cli import main; status = main(sys.argv[1:]); processes.is_ending(); "
           "sys.exit(status)")
    tell = "import os; sys.exit(50 + len(sys.argv[1:]) + int(os.environ['OMP_NUM_THREADS']))"
    assert end in processes.HELPER
    instead = processes.HELPER.replace(end, f"import torch, random, queue; {tell}")
    monkeypatch.setattr(processes, "HELPER", instead)
    helpers = processes.start_helpers(["suite", "run", "smoke"], 2, threads=7)
    # 50, three words and seven threads.
    assert [helper.wait(timeout=120) for helper in helpers] == [60, 60]
    processes.stop_helpers(helpers)


def test_stopping_interrupts_each_helper_once(tmp_path):
    helpers = [subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                text=True)]
    assert helpers[0].stdout.readline() == "ready\n"
    processes.stop_helpers(helpers)
    assert helpers[0].stdout.read() == "interrupted\n" and helpers[0].returncode == 0


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL and SIGTERM")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM] if os.name == "posix" else [])
def test_a_parent_that_is_killed_takes_its_helpers_along(number):
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "ready\n"        # printed by the child, on the same pipe
    started = time.monotonic()
    parent.send_signal(number)
    assert parent.stdout.read() == "interrupted\n"      # ends with the last process that holds the pipe
    assert time.monotonic() - started < 20 and parent.wait() == -number


def test_a_second_ctrl_c_while_helpers_are_stopped_kills_them():
    class Helper:
        stdin = open(os.devnull, "w")
        killed = False

        def wait(self):
            raise KeyboardInterrupt

        def kill(self):
            self.killed = True

    helpers = [Helper(), Helper()]
    with pytest.raises(KeyboardInterrupt):
        processes.stop_helpers(helpers)
    assert all(helper.killed for helper in helpers)


@pytest.mark.parametrize("limits, expected", [
    ({}, 3),                                                        # 0 and 4 are threads of one core
    ({"cpu.max": "200000 100000"}, 2), ({"cpu.max": "50000 100000"}, 1), ({"cpu.max": "max 100000"}, 3),
    ({"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, 2),
    ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 3),
])
def test_cores_are_those_that_this_process_may_use(monkeypatch, limits, expected):
    siblings = {0: "0,4", 4: "0,4", 1: "1,5", 2: ""}        # of 2 the system says nothing
    files = {f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list": text
             for number, text in siblings.items()}
    files |= {f"/sys/fs/cgroup/{name}": text for name, text in limits.items()}
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda _: {0, 1, 2, 4}, raising=False)
    monkeypatch.setattr(processes, "_text", lambda path: files.get(path, ""))
    assert processes.cores() == expected


@pytest.mark.parametrize("device, free, expected", [
    ("cpu", None, 6), ("cuda", 80 * 2**30, 6), ("cuda", 9 * 2**30, 4), ("cuda", 2**20, 1), ("mps", None, 1)])
def test_jobs_that_suit_a_device(monkeypatch, device, free, expected):
    monkeypatch.setattr(processes, "cores", lambda: 6)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    assert processes.fitting_jobs(torch.device(device)) == expected


def test_a_helper_whose_work_is_done_is_not_interrupted_any_more():
    code = ("import os, time; from mrla_minimal.lab import processes; processes.end_with_parent(); "
            "processes.is_ending(); print('ready', flush=True); time.sleep(1.0)")
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    assert child.communicate(timeout=60) == ("", "") and child.returncode == 0      # its input is closed
