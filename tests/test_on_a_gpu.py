"""The script for a machine with a GPU, rehearsed: its arguments, its table, its times, a part on the CPU."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import on_a_gpu
import pytest
from gpu_ways import FALLBACK, FITS, WORTH, Way, choose_way, ways_here

from mrla_minimal.lab.evidence import SUITES

SCRIPT = Path(__file__).with_name("on_a_gpu.sh")
SMOKE = SUITES["smoke"]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="a script for sh, with process groups")


def script(*words, **environment):
    return subprocess.run([str(SCRIPT), *words], capture_output=True, text=True,
                          env=os.environ | {"PYTHON": sys.executable} | environment)


# Arguments

def test_all_parts_end_within_13_minutes():
    arguments, parts = on_a_gpu.parse([], {})
    assert list(parts) == ["a", "b", "d", "c"] and sum(parts.values()) <= 12.5     # and what is late has 10 s
    assert arguments.device == "cuda" and str(arguments.out) == "runs/on_a_gpu"


def test_parts_and_their_minutes_are_taken_from_the_words_or_the_environment():
    environment = {"MRLA_GPU_MINUTES": "a=1 c=9", "MRLA_TEST_DEVICE": "cpu", "OUT": "here"}
    arguments, parts = on_a_gpu.parse(["c", "d=0.5", "a=3"], environment)
    assert list(parts.items()) == [("c", 9.0), ("d", 0.5), ("a", 3.0)]
    assert (arguments.device, str(arguments.out)) == ("cpu", "here")


@pytest.mark.parametrize("words, message", [
    (["e"], "a, b, c or d, or like a=1.5 (minutes), not 'e'"), (["a=0"], "not 'a=0'"), (["a=x"], "not 'a=x'"),
    (["a=nan"], "not 'a=nan'"), (["--suite", "none"], "--suite must be one of")])
def test_wrong_words_are_told(words, message):
    with pytest.raises(ValueError) as error:
        on_a_gpu.parse(words, {})
    assert message in str(error.value)


def test_the_script_ends_with_2_for_a_wrong_word_or_device(tmp_path):
    done = script("a=soon", "--device", "cpu", OUT=str(tmp_path / "out"))
    assert done.returncode == 2 and done.stderr.startswith("tests/on_a_gpu.sh: a part must be")
    assert not (tmp_path / "out").exists()


# The table

def rates(kind, models, *images_per_second):
    return [{"what": "rate", "suite": "smoke", "way": kind, "models": models, "variant": variant,
             "images_per_second": rate} for variant, rate in zip(SMOKE.variants, images_per_second,
                                                                 strict=False)]


def agreed(*differences):
    return [{"what": "losses", "suite": "smoke", "variant": variant, "difference": difference}
            for variant, difference in zip(SMOKE.variants, differences, strict=False)]


EAGER = rates("eager", 8, 100, 100) + rates("eager", 14, 200, 80)      # a block: 2 / 100, 3.5 / 200


@pytest.mark.parametrize("lines, way", [
    (EAGER, Way("eager", 14)),
    (EAGER + agreed(0, 0.05) + rates("graph", 3, 300, 120), Way("graph", 3)),      # 1.5 times as fast
    (EAGER + agreed(0, 0.05) + rates("graph", 3, 220, 100), Way("eager", 14)),     # 1.2 times
    (EAGER + agreed(0, 0.5) + rates("graph", 3, 300, 120), Way("eager", 14)),      # other losses
    (EAGER + agreed(0) + rates("graph", 3, 300, 120), Way("eager", 14)),           # losses not compared
    (EAGER + agreed(0, 0) + rates("graph", 3, 3000), Way("eager", 14)),            # a variant is missing
    (EAGER + agreed(0, 0) + rates("streams", 12, 3000, 3000), Way("eager", 14)),   # is never picked
    (agreed(0, 0) + rates("graph", 3, 300, 120), Way("graph", 3)),
    (rates("eager", 8, 100), FALLBACK),
    ([line | {"suite": "another"} for line in EAGER], FALLBACK), ([], FALLBACK)])
def test_the_table_picks(lines, way):
    assert 1.2 < WORTH < 1.5
    found, why = choose_way(lines, SMOKE, 16)
    assert found == way and str(way.models) in why


@pytest.mark.parametrize("seconds, way", [(24, Way("eager", 14)), (20, Way("eager", 8)), (10, FALLBACK)])
def test_a_way_must_leave_time_for_what_begins_together(seconds, way):
    """14 runs of 128 images each, at 80 images a second in all, take 22.4 s; 8 at 100 take 10.2 s."""
    assert choose_way(EAGER, SMOKE, 16, seconds / FITS)[0] == way


def test_no_more_processes_than_cores():
    assert ways_here(2) == [Way("eager", 2), Way("graph", 2), Way("streams", 2)]
    assert Way("eager", 14) in ways_here(16) and choose_way([], SMOKE, 2)[0] == Way("eager", 2)


# Parts

def run(code, seconds, folder):
    with open(folder / "log.txt", "ab") as log:
        return on_a_gpu.run([sys.executable, "-uc", code], seconds, log, folder, dict(os.environ))


def test_what_a_part_prints_is_kept_and_its_status_told(tmp_path, capfdbinary):
    assert run("print('so far'); raise SystemExit(3)", 60, tmp_path) == 3
    assert (tmp_path / "log.txt").read_text() == "so far\n" == capfdbinary.readouterr().out.decode()


@pytest.mark.parametrize("deaf", ["", "signal.signal(signal.SIGTERM, signal.SIG_IGN);"])
def test_a_part_whose_time_is_over_ends_with_all_that_it_started(deaf, tmp_path, monkeypatch):
    monkeypatch.setattr(on_a_gpu, "TO_STOP", 0.5)
    code = (f"import signal, subprocess, sys; {deaf} child = subprocess.Popen(['sleep', '600']);"
            "print(child.pid); child.wait()")
    assert run(code, 3.0, tmp_path) is None
    child = int((tmp_path / "log.txt").read_text())
    for _ in range(100):        # until whoever adopted it has noticed
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(child)], capture_output=True, text=True).stdout
        if not state.strip() or state.startswith("Z"):
            break
        time.sleep(0.1)
    assert not state.strip() or state.startswith("Z")


def test_a_part_that_fails_is_noted_and_the_others_run(tmp_path, monkeypatch, capsys):
    programs = {"a": "raise SystemExit(1)", "b": "print('timed')"}
    monkeypatch.setattr(on_a_gpu, "command_of",
                        lambda part, *rest: [sys.executable, "-c", programs[part]])
    status = on_a_gpu.main(["a", "b", "--device", "cpu", "--suite", "smoke", "--out", str(tmp_path)])
    lines = [json.loads(line) for line in (tmp_path / "on_a_gpu.jsonl").read_text().splitlines()]
    assert status == 1 and "failed: a" in capsys.readouterr().out
    assert [(line["part"], line["problem"]) for line in lines] == [("a", "exit status 1"), ("b", None)]
    assert all({"device", "torch", "commit", "time"} <= set(line) for line in lines)


def test_a_suite_on_real_images_needs_them(tmp_path, monkeypatch):
    monkeypatch.setattr(on_a_gpu, "find_cifar", lambda name: None)
    notes = on_a_gpu.Notes(tmp_path, "cpu")
    arguments, _ = on_a_gpu.parse(["--suite", "amnesia-15"], {})
    with pytest.raises(ValueError, match="set MRLA_DATA"):
        on_a_gpu.command_of("c", arguments, 1.0, tmp_path, notes)


def test_without_pytest_part_a_says_how_to_bring_it(tmp_path, monkeypatch):
    monkeypatch.setattr(on_a_gpu, "find_spec", lambda name: None)
    arguments, _ = on_a_gpu.parse([], {})
    with pytest.raises(ValueError, match="--target FOLDER pytest elsewhere"):
        on_a_gpu.command_of("a", arguments, 1.0, tmp_path, None)


@pytest.mark.slow
def test_steps_are_timed_and_a_suite_is_run_by_time_on_the_cpu(tmp_path):
    done = script("b=2", "c=2", "--device", "cpu", "--suite", "smoke", OUT=str(tmp_path))
    assert done.returncode == 0, done.stdout
    lines = [json.loads(line) for line in (tmp_path / "on_a_gpu.jsonl").read_text().splitlines()]
    timed = {(line["way"], line["variant"]) for line in lines if line["what"] == "rate"}
    assert timed == {(way, name) for way in ("eager", "graph", "streams") for name in SMOKE.variants}
    records = [json.loads(line) for line in (tmp_path / "smoke.jsonl").read_text().splitlines()]
    found = Counter(record["seed"] for record in records)       # how many seeds, the machine's speed decides
    whole = [seed for seed, runs in found.items() if runs == len(SMOKE.variants)]
    assert lines[-1]["whole_blocks"] == len(whole) >= 1
    assert len(list(tmp_path.iterdir())) <= 8       # as many files as some machines hand back
