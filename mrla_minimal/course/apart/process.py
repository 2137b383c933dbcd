"""A process with limits that runs a stranger's code, and the thread that watches it from outside.

What this holds back: it works in an empty temporary folder that is its home too; it may take `seconds`, and
then is ended, on Linux with all that it started (macOS: with its process group); on Linux it may take
`memory` bytes and start 32 processes; on Linux and macOS it may write files of 256 MB. What it prints goes to
a file.
It is no sandbox: the code runs as you, and one that means harm can read and delete what you can, use the
network, and end any process of yours. For that, grade in a container.
"""

import os
import re
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from mrla_minimal.course.apart.wire import LARGEST, Foul
from mrla_minimal.lab.processes import ROOT

PROCESSES = 32
START = 300             # seconds to import torch, which a cold disk takes long for; they do not count
LEAVE = 30              # seconds to end by itself once it is told that nothing more is asked
SLOW = "not done"
GLANCE = 0.2            # seconds between two looks at what it does
PRINTED = 10_000        # characters of what it prints that are kept
MARK = "MRLA_APART"     # the variable by which what it starts is known, however it was started
# A file in its folder must not hide a module that Python brings along, so this package is found last.
WORKER = ("import sys; sys.path.append(sys.argv.pop(1)); "
          "from mrla_minimal.course.apart.worker import main; main(int(sys.argv[1]))")
# What a program may need to know of the machine; no word of the rest, where keys and passwords may stand.
PASSED_ON = ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "PYTHONPATH",
             "VIRTUAL_ENV", "OMP_NUM_THREADS", "MRLA_DATA")


class Ended(BaseException):
    """The process is gone, or has to be ended; the message says why.

    No `except Exception` takes it for an error of the code that is asked. `slow`: it took its time, no more.
    """

    def __init__(self, reason: str):
        super().__init__(reason)
        self.slow = reason.startswith(SLOW)


class Process:
    """`with Process(seconds, memory) as process:`, and then `process.ask(message)`.

    `seconds` count from the first question on. `folder` is where it works; whatever it left there is deleted.
    """

    def __init__(self, seconds: float, memory: int):
        self.seconds, self.memory = seconds, memory
        self.reason = None              # why it was ended from here
        self.deadline = time.monotonic() + START

    def __enter__(self) -> "Process":
        self.folder = Path(tempfile.mkdtemp(prefix="mrla-"))
        self._printed = tempfile.TemporaryFile()
        self._mark = secrets.token_hex(16)
        home = {name: str(self.folder) for name in ("HOME", "USERPROFILE", "TMPDIR", "TEMP", "TMP")}
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        environment |= home | {MARK: self._mark, "PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "utf-8",
                               "PYTHONUNBUFFERED": "1",         # what it prints is there however it ends
                               "MPLBACKEND": "Agg", "MRLA_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER, ROOT, str(self.memory)], cwd=self.folder, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._printed, start_new_session=True)
        # what it and all that it started began as, by their numbers
        self._seen = {pid: start for pid, (_, start) in _running().items() if pid == self._process.pid}
        self._closing = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        return self

    def __exit__(self, *_) -> None:
        self._closing.set()
        self._kill()
        self._watch.join()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                pipe.close()
        self._printed.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def ask(self, message: bytes) -> bytes:
        """The answer to a message. Raises Ended."""
        if self.reason:
            raise Ended(self.reason)
        try:
            self._process.stdin.write(struct.pack("<Q", len(message)) + message)
            self._process.stdin.flush()
            (length,) = struct.unpack("<Q", self._read(8))
            if length > LARGEST:
                raise self.foul(f"an answer of {length} bytes")
            return self._read(length)
        except OSError:
            raise self._ended() from None

    def start_the_clock(self) -> None:
        """From here on its seconds count."""
        self.deadline = time.monotonic() + self.seconds

    def foul(self, error: Foul | str) -> Ended:
        """The exception for an answer that is none; the process is ended."""
        self.reason = f"the process answers what it was not asked ({error})"
        self._kill()
        return Ended(self.reason)

    def leave(self) -> None:
        """Let it end by itself. Raises Ended if it does not, or if something that it started goes on."""
        if self.reason:
            raise Ended(self.reason)
        self._closing.set()
        self._watch.join()
        self._strays()          # whose parent it is can be told as long as it is there
        with suppress(OSError):
            self._process.stdin.close()
        try:
            status = self._process.wait(LEAVE)
        except subprocess.TimeoutExpired:
            raise Ended(f"something that the code started goes on and on: {LEAVE} s after its end "
                        "the process is still there") from None
        if status != 0:
            raise Ended(f"the process {_how(status)}")
        left = len(self._strays())
        if left:
            raise Ended(f"the code leaves {left} process{'es' if left > 1 else ''} running")

    def printed(self) -> str:
        """The beginning of what it has printed, with what is no text made visible: no colours, no cursor."""
        self._printed.seek(0)
        text = self._printed.read(4 * PRINTED).decode(errors="replace")
        return "".join(visible(letter) for letter in text[:PRINTED])

    def _read(self, length):
        parts, missing = [], length
        while missing:
            part = self._process.stdout.read1(min(missing, 2**20))
            if not part:
                raise self._ended()
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def _ended(self):
        if self.reason is None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(LEAVE)
            self.reason = self.reason or f"the process {_how(self._process.poll())} before all was asked"
        self._kill()
        return Ended(self.reason)

    # Watching

    def _look(self):
        while not self._closing.wait(GLANCE):
            reason = self._beyond()
            if reason:
                self.reason = self.reason or reason
                self._kill()
                return
            if self._process.poll() is not None:
                self._kill()            # what it started may hold its end of the pipe
                return

    def _beyond(self):
        if time.monotonic() > self.deadline:
            return f"{SLOW} after {self.seconds:g} s"
        strays = self._strays()
        if len(strays) > PROCESSES:
            return f"the code starts more than {PROCESSES} processes"
        taken = sum(_own_bytes(pid) for pid in strays)
        if strays and taken > self.memory:
            return f"the code and what it starts take more than {self.memory / 2**30:g} GiB"
        return None

    def _strays(self):
        """The running processes that it has started, itself left out. Linux alone tells.

        They are known by the mark, by a parent that is known, or by having been known before: an environment
        or a session of its own hides none, nor does a parent that is gone. Only what is started without the
        mark less than a GLANCE before the process ends itself is missed.
        """
        running = _running()
        known = {pid for pid, start in dict(self._seen).items() if running.get(pid, (0, ""))[1] == start}
        mark = f"{MARK}={self._mark}".encode()
        for pid in running:
            with suppress(OSError):
                if mark in Path(f"/proc/{pid}/environ").read_bytes():
                    known.add(pid)
        while children := {pid for pid, (parent, _) in running.items() if parent in known} - known:
            known |= children
        self._seen |= {pid: running[pid][1] for pid in known}
        return sorted(known - {self._process.pid})

    def _kill(self):
        if os.name != "posix":
            self._process.kill()
            return
        self._strays()
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        for _ in range(100):            # what is just being started is seen the next time
            strays = self._strays()
            for how in (signal.SIGSTOP, signal.SIGKILL):
                for pid in strays:
                    with suppress(OSError):
                        os.kill(pid, how)
            if not strays:
                return


def visible(letter: str) -> str:
    """The letter, or what is written for one that moves the cursor, rings or changes colours."""
    return letter if letter.isprintable() or letter in "\n\t" else letter.encode("unicode_escape").decode()


def _how(status):
    if status is None:
        return "closed its pipe"
    return f"was ended by signal {-status}" if status < 0 else f"ended with exit status {status}"


def _running():
    """{pid: (parent's pid, when it began)} of the running processes, those that have ended left out; else {}.

    A number is given again once its process is gone: with its beginning it means one process for good.
    """
    found = {}
    for folder in Path("/proc").glob("[0-9]*") if sys.platform == "linux" else []:
        with suppress(OSError):
            # the name, in brackets, may hold anything
            state, parent, *more = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if state not in "ZX":
                found[int(folder.name)] = int(parent), more[17]
    return found


def _own_bytes(pid):
    """What a process takes of the memory; of what it shares with those that it came from, its share."""
    with suppress(OSError):
        found = re.search(r"^Pss: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
        return 1024 * int(found[1]) if found else 0
    return 0
