"""`mrla check`: good layer attentions pass, and each way to break one is caught by the check meant for it."""

import json
import re
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from mrla_minimal.course import submissions
from mrla_minimal.course.checks import coursework
from mrla_minimal.course.checks.coursework import CHECKS
from mrla_minimal.lab import cli
from mrla_minimal.lab.plugins import load_class

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
    "another constructor": (
        LIGHT,
        "self, channels)",
        "self, channels, heads)",
        "built",
        "must be built as MyLight(channels), further arguments with defaults; MyLight(16) raises TypeError",
    ),
    "pooled output": (
        LIGHT,
        "return output, output",
        "return output.mean(dim=3), output",
        "shapes",
        "at layer 1 is (3, 16, 5)",
    ),
    "NaN": (LIGHT, ".sigmoid()", ".log()", "shapes", "NaN"),
    "memory not read": (LIGHT, "memory is not None", "False", "depth", "the memory is not read"),
    "own map not read": (
        LIGHT,
        "if memory is not None:",
        "if memory is not None:\n                output = memory",
        "depth",
        "does not change the output of layer 2 itself",
    ),
    "shared between layers": (
        BASE,
        "memory = [] if memory is None else list(memory)",
        "memory = MyBase.shared = list(getattr(MyBase, 'shared', []))[-9:]",
        "depth",
        "they share something",
    ),
    "kept between calls": (
        LIGHT,
        "return output, output",
        "self.calls = getattr(self, 'calls', 0) + 1\n            return output * self.calls, output",
        "calls",
        "keeps something from call to call",
    ),
    "kept for a batch of the same size": (
        LIGHT,
        "return output, output",
        "last, self.last = getattr(self, 'last', None), output.detach()\n"
        "            return output if last is None or len(last) != len(x) else output + last, output",
        "calls",
        "from call to call",
    ),
    "kept from the first call on": (
        LIGHT,
        "return output, output",
        "self.first = getattr(self, 'first', x.detach())\n"
        "            return output + self.first.mean(), output",
        "calls",
        "keeps something from call to call",
    ),
    "kept in a list of the module's": (
        BASE,
        "memory = [] if memory is None else list(memory)",
        "store = MyBase.__dict__.get('store', [])\n"
        "            memory = MyBase.store = [] if memory is None else store",
        "calls",
        "disturb each other",
    ),
    "batch mixed": (
        LIGHT,
        "dim=(2, 3))[:, None]",
        "dim=(0, 2, 3))[None, None]",
        "batch",
        "beside other samples",
    ),
    "softmax over the batch": (BASE, "softmax(dim=1)", "softmax(dim=0)", "batch", "beside other samples"),
    "memory appended in place": (
        BASE,
        "else list(memory)",
        "else memory",
        "memory is a value",
        "changes the memory",
    ),
    "memory scaled in place": (
        LIGHT,
        "self.scale * memory",
        "memory.mul_(self.scale.detach())",
        "memory is a value",
        "changes the memory",
    ),
    "x changed in place": (
        LIGHT,
        "row = x",
        "x = x.detach().mul_(2.0) + 0.0 * x\n            row = x",
        "memory is a value",
        "changes x in place",
    ),
    "memory detached": (
        LIGHT,
        "return output, output",
        "return output, output.detach()",
        "gradients",
        "is the memory detached?",
    ),
    "unused parameter": (
        LIGHT,
        "self.scale =",
        "self.forgotten = nn.Parameter(torch.ones(3))\n            self.scale =",
        "gradients",
        "the parameter forgotten gets no gradient",
    ),
    "query cut off": (
        BASE,
        "self.query(pooled)[",
        "self.query(pooled).detach()[",
        "gradients",
        "query.weight gets no gradient",
    ),
    "leaves the program": (
        LIGHT,
        "row = x",
        "raise SystemExit(0)\n            row = x",
        "shapes",
        "your code raises SystemExit",
    ),
    "one width only": (
        LIGHT,
        "super()",
        "assert channels == 16\n            super()",
        "network",
        "your code raises AssertionError",
    ),
    "divides by what a ReLU made 0": (
        LIGHT,
        "self.value(x)\n",
        "self.value(x) * (x / x)\n",
        "network",
        "not finite",
    ),
    # What the checks above let through and training does not stand: maps are channels last, types are mixed.
    "view": (
        LIGHT,
        "gate[:, :, None, None] * self.value(x)",
        "(gate[:, :, None] * self.value(x).view(len(x), x.shape[1], -1).view(len(x), 4, -1)"
        ".view(len(x), x.shape[1], -1)).view(x.shape)",
        "channels last",
        "use reshape or flatten",
    ),
    "order in memory": (
        LIGHT,
        "row = x",
        "x = x.as_strided(x.shape, (x[0].numel(), x[0, 0].numel(), x.shape[3], 1))\n            row = x",
        "channels last",
        "relies on the order in memory",
    ),
    "lerp": (
        LIGHT,
        "output + self.scale * memory",
        "torch.lerp(memory, output, self.scale)",
        "half precision",
        "bring them to one type",
    ),
    "batch statistics in evaluation": (
        LIGHT,
        "return output, output",
        "output = output - output.mean(dim=0) * (x.shape[1] == 8)\n            return output, output",
        "evaluation",
        "in evaluation mode an image gets other logits",
    ),
    "a buffer that moves in evaluation": (
        LIGHT.replace(
            "super().__init__()",
            "super().__init__()\n            self.register_buffer('seen', torch.zeros(()))",
        ),
        "return output, output",
        "self.seen += 1\n            return output, output",
        "evaluation",
        "in evaluation mode changes stages.0.0.layer_attention.seen",
    ),
    "a parameter made in forward": (
        LIGHT,
        "row = x",
        "self.late = getattr(self, 'late', nn.Parameter(torch.ones(1)))\n"
        "            x = x * self.late\n            row = x",
        "checkpoint",
        "in __init__",
    ),
    "a plain attribute that is kept": (
        LIGHT,
        "row = x",
        "self.mean = x.mean().item() if self.training else getattr(self, 'mean', 0.0)\n"
        "            x = x * (1 + self.mean * (x.shape[1] == 8))\n            row = x",
        "checkpoint",
        "other logits",
    ),
}
FADING = """
    import torch
    from torch import nn

    class Fading(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.value = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
            self.fade = nn.Parameter(torch.zeros(channels))

        def forward(self, x, memory=None):
            output = self.value(x)
            if memory is not None:
                keep = torch.sigmoid(self.fade)[:, None, None]
                output = keep * memory + (1 - keep) * output
            return output, output
"""
BY_KEYWORD = """
    from mrla_minimal import MRLALight
    from torch import nn

    class Wrapped(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.inner = MRLALight(channels)

        def forward(self, x, memory=None):
            return self.inner(x=x, memory=memory)
"""


@pytest.fixture
def no_quiz(monkeypatch):
    monkeypatch.setattr(coursework, "quiz_verdict", lambda attention, question, progress: "not run here")


@pytest.fixture
def here(monkeypatch):
    """`mrla check` runs the file in this process: that another finds the same, test_submissions.py says."""
    monkeypatch.setattr(submissions, "check_apart",
                        lambda path, class_name, *_, **__: coursework.grade(path, class_name))


def all_pass(results):
    return [result["passed"] for result in results] == [True] * len(CHECKS) + [None] * len(
        coursework.REPORTED
    )


def text_of(results, check):
    return next(result["text"] for result in results if result["check"] == check)


@pytest.mark.parametrize(("source", "growth"), [(LIGHT, "1, 1, 1, 1 maps"), (BASE, "1, 2.1, 3.1, 4.1 maps")])
def test_a_good_module_passes_every_check(write, source, growth):
    results = grade(write(source))
    assert all_pass(results), coursework.report(results)
    assert growth in text_of(results, "memory")
    assert ("does not grow" in text_of(results, "memory")) is (source is LIGHT)


def readme_example():
    """The class that the README shows under "Use it in coursework", with its imports."""
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (block,) = [
        block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class LastTwo" in block
    ]
    return block


WINDOW_OF_THREE = BASE.replace("list(memory)", "list(memory[-2:])")


@pytest.mark.parametrize("source", [readme_example(), WINDOW_OF_THREE], ids=["the README's", "a window"])
def test_a_memory_that_forgets_is_a_good_memory(write, source):
    """Layer 4 need not be reached by X^1: what a layer must read is the layer before it."""
    results = grade(write(source))
    assert all_pass(results), coursework.report(results)
    assert "does not grow" in text_of(results, "memory")


def grade(path):
    return coursework.grade(path, quiz=False, progress=False)


@pytest.mark.parametrize("fault", BROKEN)
def test_each_fault_is_caught_by_its_check(write, fault):
    source, old, new, title, words = BROKEN[fault]
    assert source.count(old) >= 1
    passed, text = coursework._outcome(CHECKS[title], load_class(write(source.replace(old, new))))
    assert not passed and words in text, text


@pytest.mark.parametrize("name", ["LayerAttention", "MRLABase", "MRLALight", "MRLALightReleased"])
def test_the_librarys_own_classes_pass(write, name):
    path = write(f"import mrla_minimal\nclass Mine(mrla_minimal.{name}):\n    pass\n")
    results = grade(path)
    assert all_pass(results), coursework.report(results)


def test_grading_leaves_random_numbers_and_modules_as_they_were(write):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    before = dict(sys.modules)
    grade(write(LIGHT))
    assert torch.equal(torch.rand(3), expected)
    assert "my_attention" not in sys.modules and all(
        sys.modules[name] is module for name, module in before.items()
    )


def test_what_one_device_stands_and_several_do_not_is_reported_and_fails_nobody(write):
    results = grade(write(FADING))
    assert all_pass(results), coursework.report(results)
    assert text_of(results, "several GPUs").startswith(
        "fade gets no gradient at layer 1 of a stage: with torchrun DDP"
    )
    assert "every parameter gets a gradient" in text_of(grade(write(BY_KEYWORD)), "several GPUs")


def test_an_attention_that_calls_ours_by_keyword_is_counted_like_ours(write):
    light = "import mrla_minimal\nclass Mine(mrla_minimal.MRLALight):\n    pass\n"
    results, ours = grade(write(BY_KEYWORD)), grade(write(light))
    assert all_pass(results) and text_of(results, "cost") == text_of(ours, "cost")


def line_of(source, words):
    return 1 + next(n for n, line in enumerate(textwrap.dedent(source).splitlines()) if words in line)


@pytest.mark.parametrize(
    ("old", "new", "check", "words"),
    [
        ("row = x.mean", "row = x.meen", "shapes", "line {row = }, in forward)"),
        ("self.query = nn", "self.query = nm", "built", "line {self.query = }, in __init__)"),
        (
            "x, memory=None",
            "x",
            "shapes",
            "line {class MyLight}, class MyLight)",
        ),  # the call fits no line of it
        ("self, channels)", "self, channels, heads)", "built", "line {class MyLight}, class MyLight)"),
        ("row = x", "raise SystemExit\n            row = x", "shapes", "line {row = }, in forward)"),
        ("super()", "assert channels == 16\n            super()", "network", "line {assert}, in __init__)"),
        (
            "output + self.scale * memory",
            "torch.lerp(memory, output, self.scale)",
            "half precision",
            "line {lerp}, in forward)",
        ),
    ],
)
def test_what_the_code_raises_is_told_with_its_line(write, old, new, check, words):
    source = LIGHT.replace(old, new)
    path = write(source)
    place = words[words.index("{") + 1 : words.index("}")]
    number = line_of(source, new.splitlines()[0] if place == "row = " else place)
    text = text_of(grade(path), check)
    assert f"({path}, {words.replace('{' + place + '}', str(number))}" in text


def test_a_helper_of_the_file_is_told_with_its_line_too(write):
    helper = write("def halve(x):\n    return x / 2 + y\n", "helper.py")
    source = LIGHT.replace("import math", "import math\n    from helper import halve")
    path = write(source.replace("row = x", "halve(x)\n            row = x"))
    assert f"NameError: name 'y' is not defined ({helper}, line 2, in halve)" in text_of(
        grade(path), "shapes"
    )


def test_two_submissions_in_one_process_get_their_own_helpers(write, tmp_path):
    source = LIGHT.replace("import math", "import math\n    from helper import WIDTH")
    source = source.replace("super()", "assert WIDTH == {width}; super()")
    for width in (1, 2):
        (tmp_path / str(width)).mkdir()
        write(f"WIDTH = {width}\n", f"{width}/helper.py")
        results = grade(write(source.replace("{width}", str(width)), f"{width}/my_attention.py"))
        assert all_pass(results), coursework.report(results)


def test_other_defaults_of_the_program_change_nothing(write):
    expected = grade(write(LIGHT))
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        assert grade(write(LIGHT)) == expected
        assert torch.get_default_dtype() == torch.float64 and torch.get_default_device().type == "meta"
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


def test_the_grades_are_plain_data(write):
    results = grade(write(FADING))
    assert json.loads(json.dumps(results)) == results
    assert all(result.keys() == {"check", "passed", "text"} for result in results)


def test_the_quiz_shows_how_far_it_is(write, monkeypatch, capsys):
    train = coursework.train_module_quiz
    monkeypatch.setattr(coursework, "train_module_quiz", lambda *args, **more: train(*args, **more, steps=2))
    coursework.grade(write(LIGHT))
    err = capsys.readouterr().err
    assert (
        "checks:" in err
        and "corridor quiz, late question:" in err
        and "corridor quiz, early question:" in err
    )
    coursework.grade(write(LIGHT), progress=False)
    assert capsys.readouterr() == ("", "")


def test_exit_status_0_and_a_line_for_each_check(write, here, no_quiz, capsys):
    assert cli.main(["check", str(write(LIGHT))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("[OK]") for line in lines) == len(CHECKS)
    assert [line for line in lines if "corridor quiz" in line] == [
        "[INFO] corridor quiz, late question: not run here",
        "[INFO] corridor quiz, early question: not run here",
        "[INFO] corridor quiz, lamp question: not run here",
        "[INFO] corridor quiz, colour question: not run here",
    ]
    assert lines[-1] == f"{len(CHECKS)} of {len(CHECKS)} checks passed"


def test_exit_status_1_when_a_check_fails(write, here, no_quiz, capsys):
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
def test_exit_status_2_and_one_line_for_bad_input(write, here, tmp_path, capsys, source, options, words):
    path = tmp_path / "missing.py" if source is None else write(source)
    assert cli.main(["check", str(path), *options]) == 2
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_class_chooses_among_several(write, here, no_quiz, capsys):
    path = write(LIGHT + BASE)
    assert cli.main(["check", str(path), "--class", "MyBase"]) == 0
    assert "grows with depth" in capsys.readouterr().out


@pytest.mark.slow
def test_the_quiz_tells_base_from_light(write):
    base, light = (coursework.grade(write(source)) for source in (BASE, LIGHT))
    assert text_of(base, "corridor quiz, late question").startswith("solved")
    assert text_of(light, "corridor quiz, late question").startswith("not solved")
    assert text_of(light, "corridor quiz, early question").startswith("solved")


def test_what_a_class_imports_while_it_is_built_is_found_beside_its_file(tmp_path):
    (tmp_path / "lazy_helper.py").write_text("from mrla_minimal import MRLALight as Kind\n", encoding="utf-8")
    (tmp_path / "lazy.py").write_text(
        "from torch import nn\nclass Lazy(nn.Module):\n"
        "    def __init__(self, channels):\n        super().__init__()\n"
        "        from lazy_helper import Kind\n        self.inner = Kind(channels)\n"
        "    def forward(self, x, memory=None):\n        return self.inner(x, memory)\n", encoding="utf-8")
    results = grade(tmp_path / "lazy.py")
    assert all(result["passed"] is not False for result in results), results
