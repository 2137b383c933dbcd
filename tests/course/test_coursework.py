"""`mrla check`: good layer attentions pass, and each way to break one is caught by the check that is meant for it."""

import re
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from mrla_minimal.course.checks import coursework
from mrla_minimal.lab import cli

LIGHT = """
    import math
    import torch
    from torch import nn

    class MyLight(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.query = nn.Conv1d(1, 1, 3, padding=1, bias=False)
            self.key = nn.Conv1d(1, 1, 3, padding=1, bias=False)
            self.value = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
            self.scale = nn.Parameter(torch.ones(channels, 1, 1))

        def forward(self, x, memory=None):
            row = x.mean(dim=(2, 3))[:, None]
            gate = ((self.query(row) * self.key(row)).sum(dim=-1) / math.sqrt(x.shape[1])).sigmoid()
            output = gate[:, :, None, None] * self.value(x)
            if memory is not None:
                output = output + self.scale * memory
            return output, output
"""
BASE = """
    import torch
    from torch import nn

    class MyBase(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.query = nn.Linear(channels, channels)
            self.key = nn.Linear(channels, channels)
            self.value = nn.Conv2d(channels, channels, 1)

        def forward(self, x, memory=None):
            pooled = x.mean(dim=(2, 3))
            memory = [] if memory is None else list(memory)
            memory.append((self.key(pooled), self.value(x)))
            keys = torch.stack([key for key, _ in memory], dim=1)
            values = torch.stack([value for _, value in memory], dim=1)
            logits = (self.query(pooled)[:, None] * keys).sum(dim=-1) / x.shape[1] ** 0.5
            return (logits.softmax(dim=1)[:, :, None, None, None] * values).sum(dim=1), memory
"""
BROKEN = {
    "no pair": (LIGHT, "return output, output", "return output", "shapes", "should return a pair"),
    "no memory argument": (LIGHT, "x, memory=None", "x", "shapes", "your code raises TypeError"),
    "another constructor": (LIGHT, "self, channels)", "self, channels, heads)", "shapes", "your code raises TypeError"),
    "pooled output": (LIGHT, "return output, output", "return output.mean(dim=3), output", "shapes",
                      "at layer 1 is (3, 16, 5)"),
    "NaN": (LIGHT, ".sigmoid()", ".log()", "shapes", "NaN"),
    "memory not read": (LIGHT, "memory is not None", "False", "depth", "the memory is not read"),
    "own map not read": (LIGHT, "if memory is not None:", "if memory is not None:\n                output = memory",
                         "depth", "does not change the output of layer 2 itself"),
    "shared between layers": (
        BASE, "memory = [] if memory is None else list(memory)",
        "memory = MyBase.shared = list(getattr(MyBase, 'shared', []))[-9:]", "depth", "they share something"),
    "kept between calls": (LIGHT, "return output, output",
                           "self.calls = getattr(self, 'calls', 0) + 1\n            return output * self.calls, output",
                           "calls", "keeps something from call to call"),
    "kept for a batch of the same size": (
        LIGHT, "return output, output",
        "last, self.last = getattr(self, 'last', None), output.detach()\n"
        "            return output if last is None or len(last) != len(x) else output + last, output", "calls", "from call to call"),
    "kept from the first call on": (
        LIGHT, "return output, output",
        "self.first = getattr(self, 'first', x.detach())\n"
        "            return output + self.first.mean(), output", "calls", "keeps something from call to call"),
    "kept in a list of the module's": (
        BASE, "memory = [] if memory is None else list(memory)",
        "store = MyBase.__dict__.get('store', [])\n            memory = MyBase.store = [] if memory is None else store", "calls",
        "disturb each other"),
    "batch mixed": (LIGHT, "dim=(2, 3))[:, None]", "dim=(0, 2, 3))[None, None]", "batch", "beside other samples"),
    "softmax over the batch": (BASE, "softmax(dim=1)", "softmax(dim=0)", "batch", "beside other samples"),
    "memory appended in place": (BASE, "else list(memory)", "else memory", "memory is a value", "changes the memory"),
    "memory scaled in place": (LIGHT, "self.scale * memory", "memory.mul_(self.scale.detach())",
                               "memory is a value", "changes the memory"),
    "x changed in place": (LIGHT, "row = x", "x = x.detach().mul_(2.0) + 0.0 * x\n            row = x",
                           "memory is a value", "changes x in place"),
    "memory detached": (LIGHT, "return output, output", "return output, output.detach()", "gradients",
                        "is the memory detached?"),
    "unused parameter": (LIGHT, "self.scale =",
                         "self.forgotten = nn.Parameter(torch.ones(3))\n            self.scale =", "gradients",
                         "the parameter forgotten gets no gradient"),
    "query cut off": (BASE, "self.query(pooled)[", "self.query(pooled).detach()[", "gradients",
                      "query.weight gets no gradient"),
    "leaves the program": (LIGHT, "row = x", "raise SystemExit(0)\n            row = x", "shapes", "your code raises SystemExit"),
    "one width only": (LIGHT, "super()", "assert channels == 16\n            super()", "network",
                       "your code raises AssertionError"),
    "divides by what a ReLU made 0": (LIGHT, "self.value(x)\n", "self.value(x) * (x / x)\n", "network", "not finite"),
}


@pytest.fixture
def write(tmp_path):
    def write(source, name="my_attention.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(source), encoding="utf-8")
        return path

    return write


@pytest.fixture
def no_quiz(monkeypatch):
    monkeypatch.setattr(coursework, "quiz_verdict", lambda attention, question: "not run here")


def verdicts(results):
    return {text.split(":")[0]: passed for passed, text in results}


@pytest.mark.parametrize(("source", "growth"), [(LIGHT, "1, 1, 1, 1 maps"), (BASE, "1, 2.1, 3.1, 4.1 maps")])
def test_a_good_module_passes_every_check(write, source, growth):
    results = coursework.grade(write(source), quiz=False)
    assert [passed for passed, _ in results] == [True] * len(coursework.CHECKS) + [None], coursework.report(results)
    assert growth in results[-1][1]
    assert ("does not grow" in results[-1][1]) is (source is LIGHT)


def readme_example():
    """The class that the README shows under "Use it in coursework", with its imports."""
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class LastTwo" in block]
    return block


WINDOW_OF_THREE = BASE.replace("list(memory)", "list(memory[-2:])")


@pytest.mark.parametrize("source", [readme_example(), WINDOW_OF_THREE], ids=["the README's", "a window"])
def test_a_memory_that_forgets_is_a_good_memory(write, source):
    """Layer 4 need not be reached by X^1: what a layer must read is the layer before it."""
    results = coursework.grade(write(source), quiz=False)
    assert [passed for passed, _ in results] == [True] * len(coursework.CHECKS) + [None], coursework.report(results)
    assert "does not grow" in results[-1][1]


@pytest.mark.parametrize("fault", BROKEN)
def test_each_fault_is_caught_by_its_check(write, fault):
    source, old, new, title, words = BROKEN[fault]
    assert source.count(old) >= 1
    results = coursework.grade(write(source.replace(old, new)), quiz=False)
    failed = {text.split(":")[0]: text for passed, text in results if passed is False}
    assert words in failed.get(title, "nothing"), coursework.report(results)


@pytest.mark.parametrize("name", ["LayerAttention", "MRLABase", "MRLALight"])
def test_the_librarys_own_classes_pass(write, name):
    path = write(f"import mrla_minimal\nclass Mine(mrla_minimal.{name}):\n    pass\n")
    results = coursework.grade(path, quiz=False)
    assert all(passed is not False for passed, _ in results), coursework.report(results)


def test_grading_leaves_random_numbers_and_modules_as_they_were(write):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    before = dict(sys.modules)
    coursework.grade(write(LIGHT), quiz=False)
    assert torch.equal(torch.rand(3), expected)
    assert "my_attention" not in sys.modules and all(sys.modules[name] is module for name, module in before.items())


def test_exit_status_0_and_a_line_for_each_check(write, no_quiz, capsys):
    assert cli.main(["check", str(write(LIGHT))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("[OK]") for line in lines) == len(coursework.CHECKS)
    assert [line for line in lines if "corridor quiz" in line] == [
        "[INFO] corridor quiz, late question: not run here", "[INFO] corridor quiz, early question: not run here"]
    assert lines[-1] == f"{len(coursework.CHECKS)} of {len(coursework.CHECKS)} checks passed"


def test_exit_status_1_when_a_check_fails(write, no_quiz, capsys):
    assert cli.main(["check", str(write(BASE.replace("else list(memory)", "else memory")))]) == 1
    assert "[FAIL] memory is a value: layer 2 changes the memory" in capsys.readouterr().out


@pytest.mark.parametrize(("source", "options", "words"), [
    (None, [], "that exists"),
    ("x = (", [], "does not run: SyntaxError"),
    ("import no_such_package", [], "does not run: ModuleNotFoundError"),
    ("import sys; sys.exit()", [], "does not run: SystemExit"),
    ("class Plain: pass", [], "its classes: none"),
    (LIGHT + BASE, [], "its classes: MyLight, MyBase"),
    (LIGHT, ["--class", "Other"], "must name an nn.Module class"),
])
def test_exit_status_2_and_one_line_for_bad_input(write, tmp_path, capsys, source, options, words):
    path = tmp_path / "missing.py" if source is None else write(source)
    assert cli.main(["check", str(path), *options]) == 2
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_class_chooses_among_several(write, no_quiz, capsys):
    path = write(LIGHT + BASE)
    assert cli.main(["check", str(path), "--class", "MyBase"]) == 0
    assert "grows with depth" in capsys.readouterr().out


@pytest.mark.slow
def test_the_quiz_tells_base_from_light(write):
    base, light = (dict(text.split(": ", 1) for _, text in coursework.grade(write(source))) for source in (BASE, LIGHT))
    assert base["corridor quiz, late question"].startswith("solved")
    assert light["corridor quiz, late question"].startswith("not solved")
    assert light["corridor quiz, early question"].startswith("solved")
