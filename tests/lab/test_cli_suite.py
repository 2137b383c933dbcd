"""`mrla suite` and `mrla compare`."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mrla_minimal.lab import cli, cli_suite
from mrla_minimal.lab.engine import TrainingInterrupted
from mrla_minimal.lab.evidence import SUITES, load_records
from mrla_minimal.lab.evidence.records import interventions_path
from mrla_minimal.lab.files import append_record, read_records

PILOT = Path(__file__).parents[2] / "data" / "results" / "cifar10-thin56-cpu.jsonl"
OWN_SUITE = """
from mrla_minimal.lab.evidence import Suite

recipe = {"depth": 8, "width": 4, "steps": STEPS, "batch_size": 16, "device": "cpu", "source": "synthetic"}
variants = {"plain": {"layer_attention": None}, "other": {"layer_attention": "ATTENTION"}}
suite = Suite("own", variants, recipe, seeds=(0, 1))
"""


def write_suite(path, steps=3, attention="mrla-light"):
    path.write_text(OWN_SUITE.replace("STEPS", str(steps)).replace("ATTENTION", attention))


@pytest.fixture
def pilot(tmp_path, monkeypatch):
    """A folder with the pilot's records in it, as the working directory."""
    monkeypatch.chdir(tmp_path)
    for path in (PILOT, interventions_path(PILOT)):
        shutil.copy(path, tmp_path)
    return tmp_path


REPORT = ["suite", "report", "cifar10-thin56-cpu", "--records", "cifar10-thin56-cpu.jsonl"]


def test_suites_are_listed_with_what_they_are_for(capsys):
    assert cli.main(["suite", "list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(SUITES)
    assert all(suite.about in line for suite, line in zip(SUITES.values(), listed, strict=True))
    assert cli.main(["suite", "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["suites"]
    assert [suite["name"] for suite in found] == list(SUITES)
    for arguments in (["suite", "--help"], ["suite", "run", "--help"], ["compare", "--help"]):
        assert cli.main(arguments) == 0
        text = capsys.readouterr().out
        assert all(f"  {name}" in text for name in SUITES)


def test_a_report_is_restricted_to_seeds_and_variants(pilot, capsys):
    assert cli.main(REPORT) == 0
    whole = capsys.readouterr().out
    assert "plain                0-2 " in whole and "mrla-base               2 " in whole
    for command in ([*REPORT, "--seeds", "0", "1"],
                    ["compare", "--report", *REPORT[3:], "--suite", REPORT[2], "--seeds", "0", "1"]):
        assert cli.main(command) == 0
        text = capsys.readouterr().out
        assert "plain                0-1 " in text and "0-2" not in text
        assert "mrla-base               2 " not in text
    assert cli.main([*REPORT, "--variants", "plain", "depthwise", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["accuracies"]) == {"plain", "depthwise"}
    assert cli.main([*REPORT, "--variants", "plane"]) == 2
    assert "unknown variant 'plane'; it has plain, uniform" in capsys.readouterr().err
    assert cli.main([*REPORT, "--seeds", "7"]) == 2
    assert "no finished runs of suite cifar10-thin56-cpu" in capsys.readouterr().err


def test_the_figure_goes_where_it_is_asked_for(pilot, capsys):
    assert cli.main([*REPORT, "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert Path("runs/cifar10-thin56-cpu.png").read_bytes().startswith(b"\x89PNG")
    shutil.rmtree("runs")
    assert cli.main([*REPORT, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["accuracies"]["plain"]["0"] == 0.751 and len(summary["interventions"]) == 9
    assert not Path("runs").exists()
    assert cli.main([*REPORT, "--out", "new/pilot.png"]) == 0
    assert Path("new/pilot.png").read_bytes().startswith(b"\x89PNG")
    assert "figure new/pilot.png" in capsys.readouterr().out
    assert cli.main([*REPORT, "--out", "pilot.pdf"]) == 2
    assert capsys.readouterr().err == "mrla: --out must be a file *.png, not pilot.pdf\n"


def test_a_figure_that_fails_costs_no_table(pilot, monkeypatch, capsys):
    def fail(*_):
        raise ModuleNotFoundError("no module no_such_backend")

    monkeypatch.setattr("mrla_minimal.lab.figures.plot_suite", fail)
    for more, status in (([], 0), (["--out", "a.png"], 1)):
        assert cli.main([*REPORT, *more]) == status
        told = capsys.readouterr()
        assert "contrast (points)" in told.out
        assert "was not drawn: ModuleNotFoundError: no module no_such_backend" in told.err


def test_without_records_the_command_that_makes_them_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_suite(Path("mine.py"))
    for name, more in (("mine.py", []), ("smoke", []), ("cifar10-thin56", ["--records", "r.jsonl"])):
        assert cli.main(["suite", "report", name, *more]) == 2
        told = capsys.readouterr().err.strip()
        command = told.split("to make them: ")[1].split()
        assert command == ["mrla", "suite", "run", name, *more]
        assert cli.build_parser().parse_args(command[1:]).suite == name
        assert f"in {more[-1] if more else ''}" in told
    assert cli.main(["suite", "report", "nothing"]) == 2
    assert "must be one of cifar10-thin56, " in capsys.readouterr().err


def test_variants_that_were_all_renamed_are_told(pilot, capsys):
    for record in load_records("cifar10-thin56-cpu.jsonl"):
        append_record("renamed.jsonl", {**record, "variant": f"my-{record['variant']}"})
    assert cli.main([*REPORT[:-1], "renamed.jsonl"]) == 2
    assert "yet, but of my-plain, my-uniform" in capsys.readouterr().err


def test_files_of_both_kinds_are_merged_each_to_its_own(pilot, capsys):
    runs, interventions = Path("cifar10-thin56-cpu.jsonl"), Path("cifar10-thin56-cpu-interventions.jsonl")
    for source, count in ((runs, 21), (interventions, 9)):
        lines = source.read_text().splitlines(keepends=True)
        assert len(lines) == count
        suffix = source.name.removeprefix("cifar10-thin56-cpu")
        Path(f"a{suffix}").write_text("".join(lines[:8]))
        Path(f"b{suffix}").write_text("".join(lines[5:]))
    files = ["a.jsonl", "a-interventions.jsonl", "b-interventions.jsonl", "b.jsonl"]
    assert cli.main(["suite", "merge", "cifar10-thin56-cpu", *files, "--records", "all.jsonl"]) == 0
    assert capsys.readouterr().out == "all.jsonl: 21 records\nall-interventions.jsonl: 9 records\n"
    assert Path("all.jsonl").read_text() == runs.read_text()
    assert Path("all-interventions.jsonl").read_text() == interventions.read_text()
    assert cli.main(["compare", "--merge", *files[1:3], "--records", "own-interventions.jsonl"]) == 0
    assert Path("own-interventions.jsonl").read_text() == interventions.read_text()
    assert cli.main(["compare", "--merge", *files]) == 2
    assert "--merge needs --records FILE" in capsys.readouterr().err
    shutil.copy(runs, "wrongly-named-interventions.jsonl")
    assert cli.main(["suite", "merge", "smoke", "wrongly-named-interventions.jsonl"]) == 2
    assert "does not hold interventions: record 1: lacks learned" in capsys.readouterr().err


def test_what_is_of_another_suite_is_not_merged(pilot, capsys):
    """Neither into a suite that is named, nor into a file that holds one already; and nothing is written."""
    runs = Path("cifar10-thin56-cpu.jsonl")
    told = f"{runs} holds a line of suite '{runs.stem}', which does not go with those of"
    assert cli.main(["suite", "merge", "nuclei-cpu", str(runs), "--records", "all.jsonl"]) == 2
    assert f"{told} nuclei-cpu" in capsys.readouterr().err and not Path("all.jsonl").exists()
    assert cli.main(["compare", "--suite", "nuclei-cpu", "--merge", str(runs), "--records", "all.jsonl"]) == 2
    assert f"{told} nuclei-cpu" in capsys.readouterr().err and not Path("all.jsonl").exists()
    other = "".join(line.replace('"suite": "cifar10-thin56-cpu"', '"suite": "mine"')
                    for line in runs.read_text().splitlines(keepends=True)[:2])
    Path("mine.jsonl").write_text(other)
    assert cli.main(["compare", "--merge", str(runs), "--records", "mine.jsonl"]) == 2
    assert f"{told} mine" in capsys.readouterr().err and Path("mine.jsonl").read_text() == other
    for number, suite in enumerate(("mine", "mine", "other")):
        append_record("mixed-stops.jsonl", a_stop(suite, number))
    assert cli.main(["compare", "--merge", "mixed-stops.jsonl", "--records", "new.jsonl"]) == 2
    assert "'other', which does not go with those of mine" in capsys.readouterr().err
    assert not Path("new-stops.jsonl").exists()


def a_stop(suite, number):
    return {"suite": suite, "variants": ["plain"], "how": "time", "minutes": 60.0, "complete": [number]}


def test_files_of_three_kinds_are_of_one_suite_or_nothing_is_written(pilot, capsys):
    runs, interventions = "cifar10-thin56-cpu.jsonl", "cifar10-thin56-cpu-interventions.jsonl"
    append_record("mine-stops.jsonl", a_stop("mine", 0))
    append_record("own-stops.jsonl", a_stop("cifar10-thin56-cpu", 0))
    stops = "mine-stops.jsonl"
    for files in ([stops, runs], [runs, stops], [interventions, stops]):
        assert cli.main(["compare", "--merge", *files, "--records", "all.jsonl"]) == 2
        assert "which does not go with those of" in capsys.readouterr().err
    assert cli.main(["suite", "merge", "cifar10-thin56-cpu", "own-stops.jsonl", "gone.jsonl",
                     "--records", "all.jsonl"]) == 2
    assert "gone.jsonl: no such file of records" in capsys.readouterr().err
    append_record("all-stops.jsonl", a_stop("mine", 0))
    assert cli.main(["compare", "--merge", runs, "--records", "all.jsonl"]) == 2
    assert "holds a line of suite 'cifar10-thin56-cpu'" in capsys.readouterr().err
    assert not Path("all.jsonl").exists() and not Path("all-interventions.jsonl").exists()
    Path("all-stops.jsonl").unlink()
    files = [runs, interventions, "own-stops.jsonl"]
    assert cli.main(["compare", "--merge", *files, "--records", "all.jsonl"]) == 0
    assert capsys.readouterr().out == ("all.jsonl: 21 records\nall-interventions.jsonl: 9 records\n"
                                       "all-stops.jsonl: 1 records\n")


def test_a_suite_of_ones_own_takes_no_name_of_the_courses(tmp_path, monkeypatch, capsys):
    """Their records and figures would be taken for one another's."""
    monkeypatch.chdir(tmp_path)
    write_suite(Path("mine.py"))
    Path("mine.py").write_text(Path("mine.py").read_text().replace('"own"', '"smoke"'))
    assert cli.main(["suite", "run", "mine.py"]) == 2
    assert capsys.readouterr().err == ("mrla: mine.py: 'smoke' is the name of one of the course's suites; "
                                       "give yours another\n")
    assert not Path("runs").exists()


def test_one_thing_at_a_time(capsys):
    assert cli.main(["compare", "--plan", "--report"]) == 2
    assert capsys.readouterr().err == "mrla: --plan does not go with --report: one thing at a time\n"


@pytest.mark.parametrize("arguments, words", [
    (["--minutes", "0"], "argument --minutes: must be a positive number, not '0'"),
    (["--minutes", "-2"], "argument --minutes: must be a positive number, not '-2'"),
    (["--minutes", "nan"], "argument --minutes: must be a positive number, not 'nan'"),
    (["--minutes", "inf"], "argument --minutes: must be a positive number, not 'inf'"),
    (["--minutes", "1e308"], "minutes must be at most 525600, a year, not 1e+308"),
    (["--minutes", "soon"], "argument --minutes: must be a positive number, not 'soon'"),
    (["--minutes"], "argument --minutes: expected one argument"),
    (["--jobs", "some"], "argument --jobs: must be a positive whole number or auto, not 'some'"),
    (["--jobs", "0"], "argument --jobs: must be a positive whole number or auto, not '0'"),
    (["--minutes", "2", "--plan"], "--minutes does not go with --plan, which runs nothing"),
    (["--minutes", "2", "--report"], "--minutes does not go with --report, which runs nothing"),
    (["--minutes", "2", "--export"], "--minutes does not go with --export, which runs nothing"),
    (["--minutes", "2", "--merge", "a", "--records", "b"],
     "--minutes does not go with --merge, which runs nothing"),
    (["--jobs", "2", "--plan"], "--jobs does not go with --plan, which runs nothing"),
    (["--json", "--plan"], "--json does not go with --plan, as mrla suite plan has no such option"),
    (["--device", "cpu", "--report"], "--device does not go with --report"),
    (["--steps", "3", "--export"], "--steps does not go with --export"),
    (["--quiet", "--merge", "a", "--records", "b"], "--quiet does not go with --merge"),
    (["--suite", "smok", "--merge", "a", "--records", "b"], "a suite must be one of"),
])
def test_wrong_minutes_jobs_and_what_a_verb_does_nothing_with_are_one_line(arguments, words, capsys):
    assert cli.main(["compare", *arguments]) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1


def test_what_ended_a_suite_is_merged_and_reported(pilot, capsys):
    variants = list(SUITES["cifar10-thin56-cpu"].variants)
    line = {"suite": "cifar10-thin56-cpu", "variants": variants, "how": "time", "minutes": 90.0, "jobs": 2,
            "complete": [0, 1, 2]}
    append_record("a-stops.jsonl", line)
    command = ["suite", "merge", REPORT[2], "a-stops.jsonl", "a-stops.jsonl", *REPORT[3:]]
    for _ in range(2):
        assert cli.main(command) == 0
        assert capsys.readouterr().out == "cifar10-thin56-cpu-stops.jsonl: 1 records\n"
    assert cli.main([*REPORT, "--json"]) == 0
    stopped = json.loads(capsys.readouterr().out)["stopped"]
    assert stopped.endswith("all 3 declared seeds. Stopped by time, within 90 minutes.")


# Processes

@pytest.fixture
def helpers(monkeypatch, tmp_path):
    """What helpers are started with, none being started; the suite's runs are made up."""
    started, stopped = [], []

    class Helper:
        def wait(self):
            return 0

    monkeypatch.chdir(tmp_path)
    def start(arguments, count, threads):
        started.append((arguments, count, threads))
        return [Helper() for _ in range(count)]

    monkeypatch.setattr(cli_suite, "start_helpers", start)
    monkeypatch.setattr(cli_suite, "stop_helpers", stopped.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return started, stopped


def test_jobs_are_started_with_what_was_parsed_not_with_the_host_programs_arguments(helpers, monkeypatch):
    started, _ = helpers
    monkeypatch.setattr(sys, "argv", ["host.py", "--jobs", "9"])
    monkeypatch.setattr(cli_suite.evidence, "run_suite", lambda *_, **__: [])
    assert cli.main(["compare", "--suite", "smoke", "--jobs", "3", "--quiet", "--seeds", "0", "1",
                     "--variants", "plain", "--steps", "2",
                     "--records", "r.jsonl", "--device", "cpu", "--data-root", "here",
                     "--cuda-graph"]) == 0
    ((arguments, count, threads),) = started
    assert (count, threads) == (2, 1)
    mine, theirs = (vars(cli.build_parser().parse_args(given))
                    for given in (arguments, ["suite", "run", "smoke"]))
    assert mine == {**theirs, "quiet": True, "seeds": [0, 1], "variants": ["plain"], "steps": 2,
                    "records": "r.jsonl", "device": "cpu", "data_root": "here", "cuda_graph": True}
    assert cli.main(["compare", "--suite", "smoke", "--quiet"]) == 0
    assert len(started) == 1        # one job needs nobody
    assert cli.main(["suite", "run", "smoke", "--jobs", "2", "--variants", "nope"]) == 2 and len(started) == 1


def test_each_job_has_its_share_of_the_threads_and_the_host_has_its_own_back(helpers, monkeypatch):
    seen, before = [], torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")

    def run(*_, **__):
        seen.append(torch.get_num_threads())

    monkeypatch.setattr(cli_suite.evidence, "run_suite", run)
    assert cli.main(["suite", "run", "smoke", "--jobs", "2", "--quiet"]) == 0
    assert seen == [3] and torch.get_num_threads() == before and helpers[0][0][2] == 3


TERMINATED = TrainingInterrupted("interrupted at step 3 of 9; to go on: mrla train --resume runs/x")
TERMINATED.signal = signal.SIGTERM


def test_helpers_share_the_minutes_and_leave_the_telling_to_their_parent(helpers, monkeypatch):
    started, _ = helpers
    sittings = []
    monkeypatch.setattr(cli_suite.evidence, "run_suite",
                        lambda *_, sitting, **__: sittings.append(sitting))
    monkeypatch.setattr(cli_suite, "fitting_jobs", lambda device: 3)
    before = time.monotonic()
    assert cli.main(["suite", "run", "smoke", "--minutes", "2.5", "--jobs", "auto", "--quiet"]) == 0
    ((arguments, count, _),) = started
    assert cli.main(arguments) == 0
    assert len(started) == 1 and count == 2         # a helper starts none
    mine, theirs = sittings
    assert (mine.minutes, mine.jobs, mine.leads) == (2.5, 3, True) and mine.until >= before + 150
    assert theirs == dataclasses.replace(mine, leads=False)


@pytest.mark.parametrize("error, status, words", [
    (KeyboardInterrupt(), 130, "interrupted"), (ValueError("why"), 2, "why"),
    (TERMINATED, 143, "interrupted at step 3 of 9; the same command goes on"),
])
def test_helpers_are_stopped_whatever_ends_the_parent(helpers, monkeypatch, capsys, error, status, words):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(cli_suite.evidence, "run_suite", fail)
    assert cli.main(["suite", "run", "smoke", "--jobs", "2"]) == status
    assert [len(group) for group in helpers[1]] == [1] and capsys.readouterr().err == f"mrla: {words}\n"


def test_a_suite_that_is_tried_with_few_steps_is_recorded_apart(helpers, monkeypatch):
    asked = []

    def run(suite, path, **options):
        asked.append((path, options))

    monkeypatch.setattr(cli_suite.evidence, "run_suite", run)
    assert cli.main(["suite", "run", "cifar10-thin56", "--quiet", "--steps", "2"]) == 0
    ((path, options),) = asked
    assert path == Path("runs/cifar10-thin56-2-steps/records.jsonl") and options["steps"] == 2
    assert options["runs"] == Path("runs/cifar10-thin56-2-steps")


def test_a_helper_that_failed_is_counted(helpers, monkeypatch, capsys):
    class Failed:
        def wait(self):
            return 2

    monkeypatch.setattr(cli_suite, "start_helpers", lambda *_: [Failed(), Failed()])
    monkeypatch.setattr(cli_suite.evidence, "run_suite", lambda *_, **__: [])
    assert cli.main(["suite", "run", "smoke", "--jobs", "3"]) == 2
    assert capsys.readouterr().err == "mrla: 2 of 3 processes failed; what they finished is recorded\n"


def environment():
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "MRLA_OFFLINE": "1"}


@pytest.mark.slow
def test_two_jobs_make_every_run_and_every_intervention_once(tmp_path):
    write_suite(tmp_path / "mine.py")
    (tmp_path / "queue.py").write_text("raise SystemExit('not this one')")
    host = ("import sys; sys.argv = ['host', '--verbose']; from mrla_minimal.lab.cli import main; "
            "main(['suite', 'run', 'mine.py', '--jobs', '2'])")
    done = subprocess.run([sys.executable, "-P", "-c", host], cwd=tmp_path, env=environment(),
                          capture_output=True, text=True,
                          timeout=600)
    assert done.stdout.count("contrast (points)") == 1, done.stderr
    records = load_records(tmp_path / "runs" / "own" / "records.jsonl")
    found = read_records(tmp_path / "runs" / "own" / "records-interventions.jsonl")[0]
    assert len(records) == 4 and len({record["id"] for record in records}) == 4
    assert sorted(record["seed"] for record in found) == [0, 1]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_killed_jobs_end_with_their_checkpoints_and_go_on(tmp_path):
    """SIGKILL to the parent alone: its helper writes its checkpoint, and ends."""
    write_suite(tmp_path / "mine.py", steps=400)
    command = [sys.executable, "-P", "-m", "mrla_minimal", "suite", "run", "mine.py", "--jobs", "2"]
    parent = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE)
    checkpoints, until = [], time.monotonic() + 300
    while len(checkpoints) < 2 and time.monotonic() < until:        # both are at work
        time.sleep(0.1)
        checkpoints = list(tmp_path.glob("runs/own/*/checkpoint.pt"))
    time.sleep(1.0)
    parent.send_signal(signal.SIGKILL)
    parent.stderr.read()        # ends when the helper has ended, which holds it too
    steps = sorted(torch.load(path, weights_only=True)["step"] for path in checkpoints)
    # the parent's first checkpoint, and the one that the helper wrote last
    assert steps[0] == 0 < steps[1] < 400


@pytest.mark.slow
def test_a_suite_on_the_command_line_goes_on(tmp_path):
    write_suite(tmp_path / "mine.py", attention="depthwise")        # chooses nothing: no interventions
    command = [sys.executable, "-P", "-m", "mrla_minimal", "compare", "--suite", "mine.py"]
    options = {"cwd": tmp_path, "env": environment(), "check": True, "capture_output": True, "text": True,
               "timeout": 600}
    subprocess.run([*command, "--seeds", "0"], **options)
    records = tmp_path / "runs" / "own" / "records.jsonl"
    assert len(load_records(records)) == 2
    done = subprocess.run(command, **options)
    assert len(load_records(records)) == 4 and done.stdout.count("contrast (points)") == 1
    assert (tmp_path / "runs" / "own.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="needs SIGKILL, and /proc to find the helper")
def test_a_suite_run_by_time_that_is_killed_within_a_run_goes_on():
    """All of its processes, then its helper alone: each run once, as in a suite that was left alone."""
    script = Path(__file__).parents[1] / "tools" / "kill_timed.py"
    done = subprocess.run([sys.executable, str(script), "2"], env=environment(), capture_output=True,
                          text=True, timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr
