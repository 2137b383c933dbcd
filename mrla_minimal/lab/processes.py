"""Several processes at one task: started beside this one, each with its share of the cores, ended with it."""

import _thread
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import torch

ROOT = str(Path(__file__).resolve().parents[2])     # the folder that holds this package
# A helper finds the package last: what lies beside it must not hide a module that Python brings along.
HELPER = ("import sys; sys.path.append(sys.argv.pop(1)); "
          "from mrla_minimal.lab import processes; processes.end_with_parent(); "
          "from mrla_minimal.lab.cli import main; status = main(sys.argv[1:]); processes.is_ending(); "
          "sys.exit(status)")


def threads_each(processes: int) -> int:
    """How many threads each of several processes computes with: its share of the cores, or OMP_NUM_THREADS.

    Processes that all use every core slow each other down many times over. So do those of a container that
    use every core of its machine: what its control group may use is shared out.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(here, math.floor(_quota())) // processes)


def cores() -> int:
    """Physical cores that this process may use: of its affinity's, two threads of one core counted once.

    A quota of its control group (a container's) may leave fewer. Where the system does not tell threads from
    cores, all count.
    """
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    mine = os.sched_getaffinity(0)
    shared = [_text(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list") or str(number)
              for number in mine]
    return max(1, min(len(set(shared)), math.floor(_quota())))


def _quota():
    """How many cores' time the control group may use, by its version 2 or 1; inf without a limit."""
    limit = _text("/sys/fs/cgroup/cpu.max").split() or [
        _text(f"/sys/fs/cgroup/cpu/cpu.cfs_{what}_us") for what in ("quota", "period")]
    if len(limit) != 2 or not all(number.isdigit() for number in limit):       # "max", or -1, or no such file
        return sys.maxsize
    return int(limit[0]) / int(limit[1])


def _text(path):
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def fitting_jobs(device: torch.device) -> int:
    """How many processes side by side suit a device: one a core.

    On a GPU, which small nets leave mostly idle, as many, if each finds 2 GiB of free memory; on an Apple
    GPU, one.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return max(1, min(cores(), free // 2**31))
    return 1 if device.type == "mps" else cores()


def start_helpers(arguments: Sequence[str], count: int, threads: int) -> list[subprocess.Popen]:
    """Start the command `mrla ARGUMENTS...` in `count` processes that print nothing but errors.

    They end when this process closes their standard input, or ends itself, however that happens. A Ctrl-C in
    the terminal does not reach them: this process stops them, once. Nor does a file in the working directory
    that is called like a module of Python's.
    """
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": str(threads)}
    apart: dict = {"start_new_session": True}
    if os.name != "posix":
        apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return [subprocess.Popen([sys.executable, "-c", HELPER, ROOT, *arguments], stdin=subprocess.PIPE,
                             stdout=subprocess.DEVNULL, env=environment, **apart) for _ in range(count)]


def stop_helpers(helpers: Sequence[subprocess.Popen]) -> None:
    """Interrupt them as Ctrl-C would, so that their checkpoints are written, and wait for them.

    A Ctrl-C meanwhile kills them.
    """
    for helper in helpers:
        helper.stdin.close()
    try:
        for helper in helpers:
            helper.wait()
    except BaseException:
        for helper in helpers:
            helper.kill()
        raise


def end_with_parent() -> None:
    """Interrupt this process, as Ctrl-C would, once its standard input is closed.

    Its parent has stopped it then, or has ended.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)        # a shell may have had it ignored

    def watch():
        while os.read(0, 1024):
            pass
        if os.name == "posix":
            os.kill(os.getpid(), signal.SIGINT)     # wakes the main thread even from a sleep
        else:
            _thread.interrupt_main()

    threading.Thread(target=watch, daemon=True).start()


def is_ending() -> None:
    """Its work done, this process ends by itself: an interruption now would only tear its last moments."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
