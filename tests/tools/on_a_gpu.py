"""The parts of tests/on_a_gpu.sh, one after another, each a process with its time."""

import argparse
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import torch
from gpu_ways import choose_way

from mrla_minimal.lab.data import find_cifar
from mrla_minimal.lab.device import choose_device, device_name
from mrla_minimal.lab.evidence import SUITES, load_records
from mrla_minimal.lab.evidence.provenance import commit_to_tell, source_commit, versions
from mrla_minimal.lab.files import append_record, read_records

ROOT = Path(__file__).resolve().parents[2]
MINUTES = {"a": 1.5, "b": 2.0, "d": 1.5, "c": 7.5}      # in the order in which they run
TO_STOP = 10.0      # seconds that a part whose time is over has to stop by itself


class Notes:
    """The file of what was found, OUT/on_a_gpu.jsonl: each line says on what, by what, and when."""

    def __init__(self, out, device):
        self.path = Path(out) / "on_a_gpu.jsonl"
        self.facts = {"device": device_name(choose_device(device)), **versions(),
                      "cuda": torch.version.cuda, "cores": os.cpu_count(), "commit": source_commit()}

    def add(self, part, **found):
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = {"part": part, **found, **self.facts, "time": now}
        append_record(self.path, line)
        return line

    def of_part(self, part):
        lines = read_records(self.path)[0] if self.path.exists() else []
        return [line for line in lines if line["part"] == part]


def parse(words, environment):
    """(arguments, {part: minutes}): ValueError for a part or a time that there is not."""
    parser = argparse.ArgumentParser(prog="tests/on_a_gpu.sh", description="See the head of the file.")
    parser.add_argument("parts", nargs="*", metavar="PART[=MINUTES]", help="a, b, c or d (default: all)")
    parser.add_argument("--device", default=environment.get("MRLA_TEST_DEVICE", "cuda"))
    parser.add_argument("--suite", default="scratch-gpu", help="what parts b and c run")
    parser.add_argument("--out", type=Path, default=Path(environment.get("OUT") or "runs/on_a_gpu"))
    parser.add_argument("--commit", action="store_true", help="print what to set MRLA_COMMIT to, and end")
    arguments = parser.parse_args(words)
    if arguments.suite not in SUITES:
        raise ValueError(f"--suite must be one of {', '.join(SUITES)}, not {arguments.suite}")
    minutes = MINUTES | minutes_of(environment.get("MRLA_GPU_MINUTES", "").split(), MINUTES)
    return arguments, minutes_of(arguments.parts or list(MINUTES), minutes)


def minutes_of(words, default):
    """{part: minutes} of words like "a" and "a=1.5"."""
    found = {}
    for word in words:
        part, _, text = word.partition("=")
        try:
            minutes = float(text) if "=" in word else default[part]
            if part not in MINUTES or not 0 < minutes < 1000:
                raise ValueError
        except (ValueError, KeyError):
            raise ValueError(f"a part must be a, b, c or d, or like a=1.5 (minutes), not {word!r}") from None
        found[part] = minutes
    return found


def command_of(part, arguments, minutes, out, notes):
    """The command line that does a part. ValueError if it cannot be done here."""
    tools, device = ROOT / "tests" / "tools", arguments.device
    if part == "a":
        if find_spec("pytest") is None:
            raise ValueError("there is no pytest here; it is plain Python: pip install --target FOLDER "
                             "pytest elsewhere, bring FOLDER, and name it in PYTHONPATH")
        return [sys.executable, "-m", "pytest", str(ROOT / "tests" / "test_cuda.py"), "-v", "--tb=short",
                "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    if part != "c":
        program = {"b": "gpu_ways.py", "d": "gpu_resnets.py"}[part]
        return [sys.executable, str(tools / program), device, arguments.suite, str(minutes), str(out)]
    suite = SUITES[arguments.suite]
    if suite.recipe.get("source") == "real" and find_cifar(suite.recipe.get("dataset", "cifar10")) is None:
        raise ValueError("there is no CIFAR here: set MRLA_DATA to the folder of its files")
    # The suite's own time is a little less: what runs then is stopped, and the table printed.
    minutes = max(0.8 * minutes, minutes - 0.5)
    way, why = choose_way(notes.of_part("b"), suite, os.cpu_count(), 60 * minutes)
    print(f"part c: {why}")
    notes.add("c", what="choice", way=way.kind, jobs=way.models, why=why)
    options = ["--cuda-graph"] if way.kind == "graph" else []
    return [sys.executable, "-m", "mrla_minimal", "compare", "--suite", suite.name, "--device", device,
            "--minutes", f"{minutes:.2f}", "--jobs", str(way.models),
            "--records", str(out / f"{suite.name}.jsonl"), *options]


def run(command, seconds, log, folder, environment):
    """(exit status, None if its time was over), with what it prints on stdout and in the log, as it comes."""
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, process_group=0)
    ends, late = time.monotonic() + seconds, False
    os.set_blocking(process.stdout.fileno(), False)
    try:
        while True:
            ended = process.poll() is not None
            text = process.stdout.read()
            if text:
                log.write(text)
                log.flush()
                sys.stdout.buffer.write(text)
                sys.stdout.flush()
            if ended:
                return None if late else process.returncode
            if time.monotonic() > ends:
                os.killpg(process.pid, signal.SIGKILL if late else signal.SIGTERM)
                ends, late = time.monotonic() + TO_STOP, True
            time.sleep(0.05)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def do_part(part, arguments, minutes, out, notes):
    """Whether a part went well; what went wrong is told and noted."""
    print(f"part {part}, {minutes:g} minutes at most", flush=True)
    began = time.monotonic()
    environment = os.environ | {"MRLA_TEST_DEVICE": arguments.device}
    try:
        command = command_of(part, arguments, minutes, out, notes)
        # Run folders are this machine's alone: what is to come back lies in OUT.
        with tempfile.TemporaryDirectory() as folder, open(out / "log.txt", "ab") as log:
            status = run(command, 60 * minutes, log, folder, environment)
        problem = None if status == 0 else "out of time" if status is None else f"exit status {status}"
    except (ValueError, OSError) as error:
        problem = str(error)
    found = {}
    records = out / f"{arguments.suite}.jsonl"
    if part == "c":
        done = Counter(r["seed"] for r in load_records(records)) if records.exists() else {}
        found = {"records": sum(done.values()),
                 "whole_blocks": sum(n == len(SUITES[arguments.suite].variants) for n in done.values())}
        for lock in out.glob("*.lock"):
            lock.unlink(missing_ok=True)
    took = time.monotonic() - began
    notes.add(part, what="end", problem=problem, seconds=round(took, 1), **found)
    print(f"part {part}: {problem or 'done'}, {took:.0f} s{''.join(f', {k} {v}' for k, v in found.items())}")
    return problem is None


def main(words):
    try:
        arguments, parts = parse(words, os.environ)
        if arguments.commit:
            print(commit_to_tell() or "no commit: this is no repository of the project")
            return 0
        if os.environ.get("MRLA_DATA"):
            os.environ["MRLA_DATA"] = os.path.abspath(os.environ["MRLA_DATA"])     # parts run elsewhere
        out = arguments.out.resolve()
        out.mkdir(parents=True, exist_ok=True)
        notes = Notes(out, arguments.device)
    except ValueError as error:
        print(f"tests/on_a_gpu.sh: {error}", file=sys.stderr)
        return 2
    print(f"{notes.facts}, Python at {sys.executable}, {platform.platform()}")
    failed = [part for part, minutes in parts.items() if not do_part(part, arguments, minutes, out, notes)]
    print(f"failed: {', '.join(failed)}" if failed else "all parts done", f"(see {out})")
    return 1 if failed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))     # so that what a part started is stopped
    sys.exit(main(sys.argv[1:]))
