"""`mrla check` of strangers' code: it is judged outside, and whatever it does is its own affair."""

import csv
import json
import os
import sys
import textwrap
import time
from dataclasses import fields

import pytest
import torch
from test_coursework import BASE, BROKEN, BY_KEYWORD, FADING, LIGHT

from mrla_minimal.course import submissions
from mrla_minimal.course.apart.process import Ended, _running
from mrla_minimal.course.apart.remote import Remote
from mrla_minimal.course.checks import coursework
from mrla_minimal.course.submissions import check_apart, check_folder
from mrla_minimal.lab import cli
from mrla_minimal.lab.own_files import Told

MEMORY = 2**31
linux = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="what a process starts is seen on Linux")

# A file each that means no good, and a word of what is found. {} is what a good attention does in forward.
HOSTILE = {
    "an endless loop": ("while True: pass", "process: not done after"),
    "sys.exit(0)": ("import sys; sys.exit(0)", "shapes: your code raises SystemExit"),
    "os._exit(0)": ("import os; os._exit(0)", "process: the process ended with exit status 0"),
    "a fork bomb": ("""
        import os, time
        for _ in range(50):
            if os.fork() == 0:
                time.sleep(600)""", "process: the code starts more than 32 processes"),
    "a child that stays": ("""
        import os, time
        if not MyLight.__dict__.get("started"):
            MyLight.started = True
            if os.fork() == 0:
                os.setsid()
                time.sleep(600)""", "process: the code leaves 1 process running"),
    "100 GB": ("torch.ones(100 * 2**30, dtype=torch.uint8)", "shapes: your code raises RuntimeError"),
    "a thread that never ends": ("""
        import threading, time
        if not MyLight.__dict__.get("started"):
            MyLight.started = True
            threading.Thread(target=time.sleep, args=(600,)).start()""",
                               "process: something that the code started"),
    "control characters": (r"raise ValueError('\x1b[2J\x07 passed \x9b31m')",
                           r"shapes: your code raises ValueError: \x1b[2J\x07 passed \x9b31m"),
    "another torch.allclose": ("""
        torch.allclose = torch.equal = torch.Tensor.equal = lambda *args, **more: True
        torch.Tensor.any = torch.Tensor.all = lambda *args, **more: torch.tensor(True)
        memory = None""", "depth: another X^1 does not change what layer 2 puts out"),
    "another checker": ("""
        import sys
        from mrla_minimal.course.checks import coursework, signature
        for module in [module for name, module in sys.modules.items() if "mrla_minimal.course" in name]:
            for name in list(vars(module)):
                if name.startswith(("check_", "near", "same", "Wrong")):
                    setattr(module, name, lambda *args, **more: (True, "passed"))
        coursework._outcome = lambda *args: (True, "passed")
        memory = None""", "depth: another X^1 does not change what layer 2 puts out"),
    "answers of its own": ("""
        import os
        for number in range(3, 40):
            try:
                os.write(number, bytes(64))
            except OSError:
                pass""", "process: the process answers what it was not asked"),
    "reading what is expected": ("""
        import gc, sys
        frame, found = sys._getframe(), [x]
        while frame is not None:
            found += [frame.f_locals[name] for name in ("wanted", "expected") if name in frame.f_locals]
            frame = frame.f_back
        found += [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor) and thing is not x
                  and thing.shape == x.shape]
        return found[-1], found[-1]""", "depth: "),
}


def hostile(body):
    inner = textwrap.indent(textwrap.dedent(body).strip("\n"), 8 * " ")
    return textwrap.dedent(LIGHT).replace("        row = x.mean", f"{inner}\n        row = x.mean", 1)


def wrong_of(results):
    return [f"{result['check']}: {result['text']}" for result in results if result["passed"] is False]


@pytest.mark.slow
@linux
@pytest.mark.parametrize("name", HOSTILE)
def test_whoever_means_no_good_gets_a_verdict_and_none_is_passed(write, name, capfd):
    body, words = HOSTILE[name]
    seconds = 30 if "loop" in name else 300
    started = time.monotonic()
    results = check_apart(write(hostile(body)), seconds=seconds, memory=MEMORY, quiz=False, progress=False)
    wrong = wrong_of(results)
    assert any(line.startswith(words) for line in wrong), coursework.report(results)
    assert time.monotonic() - started < 300
    assert "\x1b" not in coursework.report(results) and capfd.readouterr() == ("", "")


def test_what_it_patches_prints_and_ends_is_its_own_affair(write):
    """The same in one process, without the slow ones: two attacks that would pass, were they believed."""
    source, printed = hostile(HOSTILE["another checker"][0]), []
    path = write(source.replace("def forward", "print('\\x1b[2J')\n\n    def forward"))
    results = check_apart(path, memory=MEMORY, quiz=False, progress=False, show=printed.append)
    assert wrong_of(results)[0].startswith(HOSTILE["another checker"][1])
    assert printed[0].startswith("\\x1b[2J\n")
    assert torch.allclose(torch.ones(1), torch.zeros(1)) is False


@pytest.fixture(scope="module")
def remote():
    with Remote(900, MEMORY) as remote:
        yield remote


def found_in(remote, path, quiz=False):
    """The findings of one more file in a process that runs several: of files that mean no harm."""
    return list(coursework.findings(remote.load(path), quiz=quiz, progress=False))


@pytest.mark.parametrize("source", [LIGHT, pytest.param(BASE, marks=pytest.mark.slow)], ids=["light", "base"])
def test_the_lines_are_those_of_the_grader_that_runs_the_file_itself(remote, write, source):
    path = write(source)
    assert found_in(remote, path) == coursework.grade(path, quiz=False, progress=False)


def changed(source, *pairs):
    for old, new in pairs:
        assert old in source
        source = source.replace(old, new)
    return source


OTHERS = {
    "fading": FADING,
    "by keyword": BY_KEYWORD,
    "a running mean in a buffer": changed(
        LIGHT, ("self.scale =", "self.norm = nn.BatchNorm2d(channels)\n            self.scale ="),
        ("self.value(x)", "self.norm(self.value(x))")),
    "memory of a class of its own": changed(
        LIGHT, ("class MyLight", "class Held:\n        pass\n\n    class MyLight"),
        ("self.scale * memory", "self.scale * memory.map"),
        ("return output, output",
         "held = Held()\n            held.map = output\n            return output, held")),
    "memory in a named tuple": changed(
        BASE, ("class MyBase", "from collections import namedtuple\n"
                               "    Entry = namedtuple('Entry', 'key value')\n\n    class MyBase"),
        ("append((self.key(pooled), self.value(x)))", "append(Entry(self.key(pooled), self.value(x)))"),
        ("[key for key, _ in memory]", "[entry.key for entry in memory]")),
    "a part that all layers of a stage share": """
        from mrla_minimal.family.dynamic import DLABase

        class Mine(DLABase):
            pass
    """,
    "one projection for both": changed(
        BASE, ("self.key = nn.Linear(channels, channels)", "self.key = self.query")),
}


# These are found by the check meant for each. What else fails for them differs: in one process tensors and
# lists are shared, and copies cross; a parameter made in forward is known to the grader after the call.
TOLD_BY = {"kept in a list of the module's": "calls", "memory scaled in place": "memory is a value",
           "x changed in place": "memory is a value", "a parameter made in forward": "checkpoint"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*BROKEN, *OTHERS])
def test_every_fault_is_told_as_the_grader_tells_it_that_runs_the_file_itself(remote, write, name):
    if name in OTHERS:
        source = OTHERS[name]
    else:
        source, old, new, *_ = BROKEN[name]
        source = source.replace(old, new)
    path = write(source)
    found, here = found_in(remote, path), coursework.grade(path, quiz=False, progress=False)
    if name in TOLD_BY:
        found, here = ([result for result in results if result["check"] == TOLD_BY[name]]
                       for results in (found, here))
        assert found[0]["passed"] is False
    assert found == here


@pytest.mark.slow
def test_the_quiz_ends_with_the_same_accuracy(remote, write):
    path = write(LIGHT)
    assert found_in(remote, path, quiz=True) == coursework.grade(path, progress=False)


def test_gradients_cross_and_what_is_changed_in_place_is_seen(remote, write):
    path = write("""
        import torch
        from torch import nn

        class Mine(nn.Module):
            def __init__(self, channels):
                super().__init__()
                self.weight = nn.Parameter(torch.arange(float(channels)))
                self.register_buffer("calls", torch.zeros(()))

            def forward(self, x, memory):
                self.calls += 1
                memory.append(x.mul_(2))
                return self.weight * x, memory
    """)
    layer = remote.load(path)(3)
    x, memory = torch.ones(2, 3), []
    with torch.no_grad():
        layer(x, memory)
    assert x.tolist() == [[2.0] * 3] * 2 and memory[0].tolist() == x.tolist() and layer.calls == 1
    given = torch.ones(2, 3, requires_grad=True)
    output, _ = layer(given * 1, [])
    output.sum().backward()
    assert given.grad.tolist() == [[0.0, 2.0, 4.0]] * 2 and layer.weight.grad.tolist() == [4.0] * 3
    with torch.no_grad():
        layer.weight.fill_(1.0)
    assert layer(torch.ones(1, 3), [])[0].tolist() == [[2.0] * 3]      # what is changed here counts there


def test_a_process_that_ends_says_so_and_no_check_takes_it_for_an_error(write):
    with Remote(60, MEMORY) as remote:
        attention = remote.load(write(hostile("import os; os._exit(3)")))
        with pytest.raises(Ended, match="ended with exit status 3"):
            list(coursework.findings(attention, quiz=False, progress=False))
        folder = remote.process.folder
    assert not folder.exists()


EINOPS = """
    from einops import rearrange
    from torch import nn

    class Mine(nn.Module):
        def forward(self, x, memory):
            if memory == 'wrong':
                raise KeyError(__file__)
            return rearrange(x, 'b c h w -> b c h w'), x
"""


def test_a_file_that_is_loaded_alone_finds_nothing_beside_it(remote, write):
    """Its neighbours are other people's submissions: one may hide a package, and one is no help to copy."""
    write("rearrange = None\n", "neighbour.py")
    x = torch.ones(1, 2, 3, 3)
    for name in ("good_einops.py", "einops.py"):        # the second hides the package, but from nobody
        path = write(EINOPS, name)
        layer = remote.load(path, alone=True)()
        assert torch.equal(layer(x, None)[0], x)
        with pytest.raises(Told) as told:
            layer(x, "wrong")
        assert told.value.place == f"KeyError: '{path}' ({path}, line 8, in forward)"
    broken = write("class Mine(\n", "my_submission.py")      # Python tells the name of the copy, not its path
    with pytest.raises(ValueError) as error:
        remote.load(broken, alone=True)
    assert str(error.value) == (f"{broken} does not run: SyntaxError: '(' was never closed "
                                "(my_submission.py, line 1)")
    copycat = write("import good_einops\n\nclass Mine(good_einops.Mine):\n    pass\n", "copycat.py")
    with pytest.raises(ValueError) as error:
        remote.load(copycat, alone=True)
    assert str(error.value) == (f"{copycat} does not run: ModuleNotFoundError: No module named 'good_einops' "
                                f"({copycat}, line 1, in <module>)")
    assert remote.load(write("import neighbour\n" + textwrap.dedent(EINOPS).replace("einops", "neighbour")))


# Two processes without the mark, the second of which has lost its parent; their numbers are a parameter
HIDING = """
import subprocess, sys, torch
from torch import nn

SLEEP = "subprocess.Popen(['sleep', '313'], env={}, stdout=subprocess.DEVNULL, start_new_session=True).pid"
START = f"import subprocess; print({SLEEP})"
numbers = [eval(SLEEP), int(subprocess.check_output([sys.executable, "-c", START], env={}))]

class Mine(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.numbers = nn.Parameter(torch.tensor(numbers, dtype=torch.float64))
"""


@linux
@pytest.mark.parametrize("how", ["it ends", pytest.param("it is ended", marks=pytest.mark.slow)])
def test_what_is_started_without_the_mark_is_counted_and_ended_too(write, how):
    with Remote(300, MEMORY) as remote:
        numbers = {int(number) for number in remote.load(write(HIDING))(1).numbers}
        assert numbers < _running().keys()
        if how == "it ends":
            with pytest.raises(Ended, match="the code leaves 2 processes running"):
                remote.process.leave()
    assert len(numbers) == 2 and not _running().keys() & numbers


# A folder of submissions

@pytest.mark.slow
def test_no_submission_of_a_folder_gains_or_loses_by_another(write, tmp_path):
    write(LIGHT, "einops.py")
    write("from einops import rearrange\n" + textwrap.dedent(LIGHT), "good_einops.py")
    write("import good_einops\n\nclass Mine(good_einops.MyLight):\n    pass\n", "copycat.py")
    rows = check_folder(tmp_path, seconds=900, memory=MEMORY, quiz=False)
    assert [(row["file"], row["verdict"]) for row in rows] == [
        ("copycat.py", "not gradable"), ("einops.py", "passed"), ("good_einops.py", "passed")]
    assert "No module named 'good_einops'" in rows[0]["message"]

@pytest.fixture
def no_processes(monkeypatch):
    """Files are judged by their first line: what a folder's report does with findings is what is tested."""
    asked = []

    def check(path, *_, alone, **__):
        assert alone
        asked.append(path.name)
        word = path.read_text(encoding="utf-8").split()[-1]
        if word == "broken":
            raise ValueError(f"{path} does not run: \x1b[2J")
        late = {"check": "corridor quiz, late question", "passed": None, "text": "solved"}
        return [{"check": "built", "passed": True, "text": "yes"},
                {"check": "shapes", "passed": word == "good", "text": "=1+1"}, late]

    monkeypatch.setattr(submissions, "check_apart", check)
    return asked


def read(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_gets_a_line_each_and_a_broken_file_spoils_none(write, tmp_path, no_processes, capsys):
    for name, word in (("anna", "good"), ("bert", "bad"), ("=cmd", "broken"), ("dora", "good")):
        write(f"# {word}\n", f"{name}.py")
    write("no Python\n", "notes.txt")
    grades = tmp_path / "grades.csv", tmp_path / "grades.json"
    arguments = ["check", str(tmp_path), "--csv", str(grades[0]), "--json", str(grades[1])]
    assert cli.main(arguments) == 1
    rows = read(grades[0])
    assert [(row["file"], row["verdict"]) for row in rows] == [
        ("'=cmd.py", "not gradable"), ("anna.py", "passed"), ("bert.py", "failed"), ("dora.py", "passed")]
    assert rows[2]["message"] == "shapes: =1+1" and rows[1]["late_quiz"] == "solved"
    out = capsys.readouterr().out
    assert out.count("\n") == 4 and "\x1b" not in out and r"\x1b[2J" in out
    assert [row["file"] for row in json.loads(grades[1].read_text())["grades"]] == [
        "=cmd.py", "anna.py", "bert.py", "dora.py"]

    # the same command goes on: what has changed is graded anew, and nothing else
    no_processes.clear()
    write("# good\n", "bert.py")
    assert cli.main(arguments) == 1
    assert no_processes == ["bert.py"] and "3 of 4 were graded before" in capsys.readouterr().out
    assert [row["verdict"] for row in read(grades[0])] == ["not gradable", "passed", "passed", "passed"]
    no_processes.clear()
    check_folder(tmp_path, csv_path=grades[0])
    assert no_processes == []


@pytest.mark.parametrize("place", ["csv_path", "json_path"])
def test_what_other_limits_or_another_version_gave_is_graded_anew(write, tmp_path, no_processes, monkeypatch,
                                                                  place):
    write("# good\n")
    path = tmp_path / "grades"
    for limits, graded in (({"seconds": 0.5}, 1), ({"seconds": 170.0}, 1), ({"seconds": 170}, 0),
                           ({"seconds": 170, "memory": 2**30}, 1), ({"memory": 2**30}, 1), ({}, 1),
                           ({"quiz": False}, 1), ({"quiz": False}, 0)):
        no_processes.clear()
        (row,) = check_folder(tmp_path, **{place: path}, **limits)
        assert len(no_processes) == graded, limits
    assert row["graded_by"] == f"mrla-minimal {submissions.__version__}, 120 s, 4 GiB, no quiz"
    monkeypatch.setattr(submissions, "__version__", "another")
    check_folder(tmp_path, **{place: path}, quiz=False)
    assert len(no_processes) == 1


@pytest.mark.parametrize(("ended", "message"), [(False, "shapes: no"), (True, "process: it ended")])
def test_the_message_is_the_first_fault_or_the_end_of_the_process(write, tmp_path, monkeypatch, ended,
                                                                  message):
    found = [{"check": "built", "passed": True, "text": "yes"},
             {"check": "shapes", "passed": False, "text": "no"},
             {"check": "depth", "passed": False, "text": "nor this"}]
    found += [{"check": "process", "passed": False, "text": "it ended"}] * ended
    monkeypatch.setattr(submissions, "check_apart", lambda *_, **__: found)
    write("# good\n")
    (row,) = check_folder(tmp_path)
    assert row["message"] == message and (row["passed"], row["checks"]) == (1, 3 + ended)


def test_what_was_graded_is_kept_when_the_grader_is_interrupted(write, tmp_path, no_processes, monkeypatch):
    for name in ("anna", "bert"):
        write("# good\n", f"{name}.py")
    check, path = submissions.check_apart, tmp_path / "grades.csv"

    def interrupted(file, *_, **__):
        if file.name == "bert.py":
            raise KeyboardInterrupt
        return check(file, alone=True)

    monkeypatch.setattr(submissions, "check_apart", interrupted)
    with pytest.raises(KeyboardInterrupt):
        check_folder(tmp_path, path)
    assert [row["file"] for row in read(path)] == ["anna.py"]


def test_the_json_option_still_prints_where_it_names_no_file(write, tmp_path, no_processes, capsys):
    write("# good\n")
    assert cli.main(["check", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["grades"][0]["verdict"] == "passed"


@pytest.mark.parametrize(("arguments", "words"), [
    (["check", "{}"], "holds no Python file"),
    (["check"], "name a Python file"),
    (["check", "{}/missing.py"], "that exists"),
    (["check", "{}/notes.txt", "--csv", "grades.csv"], "are for a folder"),
    (["check", "{}", "--class", "Mine"], "--class is for one file"),
    (["check", "{}", "--seconds", "0"], "must be a positive number, not '0'"),
    (["check", "{}", "--memory", "1e300"], "too much memory"),
    (["grade", "{}/notes.txt", "--memory", "1e12"], "too much memory"),
])
def test_bad_input_is_one_line(tmp_path, capsys, arguments, words):
    (tmp_path / "notes.txt").write_text("no Python", encoding="utf-8")
    assert cli.main([argument.format(tmp_path) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.count("\n") == 1 and captured.out == ""


@pytest.mark.parametrize("content", [
    "name,points\nanna,3\n", '{"other": 1}', "\x00\x01", 200_000 * "x", 50_000 * "["],
    ids=["table", "json", "bytes", "a long line", "deep"])
def test_a_file_that_holds_something_else_is_not_written_over(write, tmp_path, no_processes, content):
    write("# good\n")
    for place in ("csv_path", "json_path"):
        other = tmp_path / "other"
        other.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match="something else than grades"):
            check_folder(tmp_path, **{place: other})
        assert other.read_text(encoding="utf-8") == content


def test_names_of_any_bytes_and_files_that_cannot_be_read_have_a_row_each(write, tmp_path, no_processes,
                                                                          monkeypatch):
    """A name packed on another system may be no UTF-8; one file that is gone spoils none of the others."""
    write("# good\n", "'anna'.py")
    write("# good\n", "zoe.py")
    gone = write("# good\n", "gone.py")
    names = ["'anna'.py", "gone.py", "zoe.py"]
    if sys.platform == "linux":
        (tmp_path / os.fsdecode(b"jos\xe9.py")).write_text("# good\n", encoding="utf-8")
        names.insert(2, r"jos\xe9.py")
    whole = submissions.Path.read_bytes

    def unreadable(path):
        if path == gone:
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(submissions.Path, "read_bytes", unreadable)
    monkeypatch.setattr(submissions, "check_apart", lambda path, *_, **__: (
        unreadable(path), [{"check": "built", "passed": True, "text": "yes"}])[1])
    grades = tmp_path / "made" / "grades.csv"       # its folder is made before anything is graded
    for _ in range(2):
        check_folder(tmp_path, grades)
        rows = submissions.read_rows(grades, [field.name for field in fields(submissions.Grade)])
        assert [row["file"] for row in rows] == names
        assert [row["verdict"] == "passed" for row in rows] == [name != "gone.py" for name in names]
    assert "Permission denied" in rows[1]["message"]


@pytest.mark.slow
def test_a_file_whose_process_ends_while_it_is_loaded_is_not_gradable(write, capsys):
    assert cli.main(["check", str(write("import os\nos._exit(0)\n"))]) == 2
    err = capsys.readouterr().err
    assert "does not run: the process ended with exit status 0" in err and err.count("\n") == 1
