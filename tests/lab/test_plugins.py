"""Code of one's own in a file: named in a configuration, trained, resumed, compared; refused once changed."""

import pickle
import re
import sys
import textwrap
import types
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from tiny import tiny_cifar

from mrla_minimal import MRLALight, cifar_resnet
from mrla_minimal.hosting import attention_factory
from mrla_minimal.lab import cli, cost_tables, data, evidence, plugins
from mrla_minimal.lab.engine import TrainConfig, build_model, inputs, run
from mrla_minimal.lab.evidence.records import load_interventions
from mrla_minimal.lab.files import read_records
from mrla_minimal.lab.plugins import OwnAttention

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
TINY = ["--depth", "8", "--width", "4", "--batch-size", "16", "--steps", "3", "--device", "cpu"]


def readme_block(word):
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if word in block]
    return block


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """A working directory with the README's class in my_attention.py, and the tiny data in place of CIFAR."""
    monkeypatch.chdir(tmp_path)
    for module in (run, inputs, data):
        monkeypatch.setattr(module, "load_cifar", tiny_cifar)
    source = readme_block("class LastTwo").split("\nmodel = ")[0]
    (tmp_path / "my_attention.py").write_text(source, encoding="utf-8")
    return tmp_path


def change(folder, source="\n# another version\n"):
    with open(folder / "my_attention.py", "a", encoding="utf-8") as file:
        file.write(textwrap.dedent(source))


@pytest.fixture
def fresh_process(monkeypatch):
    """What a new process would know of the files: nothing."""
    return lambda: monkeypatch.setattr(plugins, "_VERSIONS", {})


@pytest.mark.parametrize(
    "name, own_one",
    [
        ("mine.py", True),
        ("some/where/mine.py:My", True),
        ("C:\\a\\mine.py:My", True),
        ("mine.py:My@0123456789ab", True),
        ("mrla-light", False),
        ("mine.py:", False),
        ("mine.py@123", False),
        (None, False),
        ("minepy", False),
    ],
)
def test_which_names_are_of_files(name, own_one):
    assert (OwnAttention.parse(name) is not None) is own_one
    assert not own_one or str(OwnAttention.parse(name)) == name


def test_a_configuration_names_the_version_of_the_file(folder, fresh_process):
    config = TrainConfig(layer_attention="my_attention.py:LastTwo")
    name = config.layer_attention
    assert re.fullmatch(r"my_attention\.py:LastTwo@[0-9a-f]{12}", name)
    assert (
        TrainConfig(layer_attention=name).layer_attention == name
        and OwnAttention.parse(name).short_name == "LastTwo"
    )
    change(folder)
    assert TrainConfig(layer_attention="my_attention.py:LastTwo").layer_attention != name
    fresh_process()
    with pytest.raises(ValueError, match="is wanted, but my_attention.py was changed since"):
        build_model(config, 10)


def test_the_model_is_made_of_the_files_class(folder):
    config = TrainConfig(layer_attention="my_attention.py", depth=8, width=4)
    model, other = (
        build_model(config, 10),
        build_model(TrainConfig(layer_attention=None, depth=8, width=4), 10),
    )
    assert {type(block.layer_attention).__name__ for stage in model.stages for block in stage} == {"LastTwo"}
    for name, value in other.state_dict().items():      # the host starts as every variant of this seed does
        assert torch.equal(model.state_dict()[name], value)


def test_the_layers_of_a_stage_share_what_the_files_class_says(folder):
    source = "from mrla_minimal.family.dynamic import DLABase\n\nclass Mine(DLABase):\n    pass\n"
    (folder / "shares.py").write_text(source, encoding="utf-8")
    build = attention_factory(OwnAttention("shares.py").load(), None)
    assert build(8).unit is build(8).unit and build(16).unit.channels == 16


def test_a_file_runs_once_in_a_process_and_again_when_changed(folder):
    change(folder, """
        with open("log", "a") as log:
            log.write("ran ")
    """)
    for _ in range(3):
        build_model(TrainConfig(layer_attention="my_attention.py", depth=8, width=4), 10)
    assert (folder / "log").read_text() == "ran "
    change(folder)
    plugins.load_class("my_attention.py")
    assert (folder / "log").read_text() == "ran ran "


def test_train_evaluate_and_resume_on_the_command_line(folder, capsys, fresh_process, monkeypatch):
    assert cli.main(["train", "--layer-attention", "my_attention.py", *TINY]) == 0
    (run,) = (folder / "runs").iterdir()
    assert run.name == "resnet8-my_attention-cifar10-seed0"
    for command in (["train", "--resume", str(run)], ["evaluate", str(run)]):
        capsys.readouterr()
        assert cli.main(command) == 2 and "needs my_attention.py" in (told := capsys.readouterr().err)
        assert "--trust" in told and told.count("\n") == 1
        assert cli.main([*command, "--trust"]) == 0
    trained = (folder / "my_attention.py").read_bytes()
    change(folder)
    # the run has a copy of the version that it was trained with
    for place in (folder, folder / "elsewhere"):
        place.mkdir(exist_ok=True)
        monkeypatch.chdir(place)
        fresh_process()
        assert cli.main(["train", "--resume", str(run), "--trust"]) == 0
        assert cli.main(["evaluate", str(run), "--trust"]) == 0
    assert (run / "my_attention.py").read_bytes() == trained
    (run / "my_attention.py").unlink()
    capsys.readouterr()
    before = sorted((path.name, path.stat().st_mtime_ns) for path in run.iterdir())
    for place, words in ((folder, "was changed since"), (folder / "elsewhere", "is not there (")):
        monkeypatch.chdir(place)
        for command in (["train", "--resume", str(run), "--trust"], ["evaluate", str(run), "--trust"]):
            fresh_process()
            assert cli.main(command) == 2
            captured = capsys.readouterr()
            assert words in captured.err and captured.err.count("\n") == 1
    assert sorted((path.name, path.stat().st_mtime_ns) for path in run.iterdir()) == before


@pytest.mark.parametrize("name, words", [
    ("missing.py", "missing.py must be a Python file"),
    ("my_attention.py:Nope", "must name an nn.Module class of that file (LastTwo)"),
    ("my_attention.txt", "or FILE.py or FILE.py:CLASS for one of your own"),
])
def test_bad_names_are_one_line_and_leave_nothing(folder, capsys, name, words):
    assert cli.main(["train", "--layer-attention", name, *TINY]) == 2
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.count("\n") == 1
    assert not list(folder.glob("runs/*"))


def test_check_takes_the_same_name(folder, capsys):
    assert cli.main(["check", "my_attention.py:Nope"]) == 2
    assert "(LastTwo)" in capsys.readouterr().err


def test_the_readmes_suite_runs_and_goes_on(folder, capsys):
    source = readme_block("suite = Suite(").replace('{"depth": 20, "width": 8, "epochs": 2}',
                                                    '{"depth": 8, "width": 4, "batch_size": '
                                                    '16, "steps": 3, "device": "cpu"}')
    assert "seeds=(0, 1, 2, 3, 4)" in source
    source = source.replace("seeds=(0, 1, 2, 3, 4)", "seeds=(0, 1)")
    (folder / "my_suite.py").write_text(source, encoding="utf-8")
    assert cli.main(["compare", "--suite", "my_suite.py", "--quiet"]) == 0
    path = folder / "runs" / "last-two" / "records.jsonl"
    records = read_records(path)[0]
    assert [(r["variant"], r["seed"]) for r in records] == [
        (v, s) for s in (0, 1) for v in ("plain", "depthwise", "last-two")
    ]
    assert cli.main(["compare", "--suite", "my_suite.py"]) == 0
    out = capsys.readouterr().out
    assert read_records(path)[0] == records and "last-two - depthwise" in out and "primary" in out
    assert cli.main(["compare", "--suite", "my_suite.py", "--export"]) == 2
    assert "only suites whose records are committed are exported" in capsys.readouterr().err

    change(folder)      # another version is another variant: told before anything is run
    (folder / "my_suite.py").write_text((folder / "my_suite.py").read_text() + "\n", encoding="utf-8")
    for options in ([], ["--plan"], ["--report"]):
        assert cli.main(["compare", "--suite", "my_suite.py", *options]) == 2
        captured = capsys.readouterr()
        assert (
            "last-two was recorded with layer_attention 'my_attention.py@" in captured.err
            and captured.err.count("\n") == 1
        )
    assert read_records(path)[0] == records and len(list((folder / "runs" / "last-two").glob("*-seed*"))) == 6


@pytest.mark.parametrize(
    "source, words",
    [
        (None, "suite.py must be a Python file"),
        ("x = 1", "must make one Suite, not 0"),
        (
            "from mrla_minimal.lab.evidence import SUITES\na, b, *_ = SUITES.values()",
            "must make one Suite, not 2",
        ),
        (
            "from mrla_minimal.lab.evidence import Suite\nSuite('s', {'a': {}}, {})",
            "suite.py does not run: ValueError: suite s: unknown",
        ),
    ],
)
def test_a_file_that_makes_no_suite_is_told(folder, capsys, source, words):
    if source:
        (folder / "suite.py").write_text(source, encoding="utf-8")
    assert cli.main(["compare", "--suite", "suite.py"]) == 2
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.count("\n") == 1


def test_its_cost_says_what_is_not_counted(folder):
    text = cost_tables.cost_text(["my_attention.py:LastTwo", "mrla-light"], depth=8, width=4)
    assert "LastTwo" in text and "MACs of your own attention" in text
    assert "MACs of your own attention" not in cost_tables.cost_text(["mrla-light"], depth=8, width=4)
    with pytest.raises(ValueError, match="FILE.py:CLASS"):
        cost_tables.cost_text(["nope"])


def test_what_runs_is_what_was_summed(folder, monkeypatch):
    """Three versions of one size within a second: a cached .pyc could not tell them apart."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for number in (1, 2, 3):
        source = (f"from torch import nn\nclass K(nn.Module):\n    number = {number}\n"
                  "    def __init__(self, c): super().__init__()\n")
        (folder / "k.py").write_text(source, encoding="utf-8")
        assert OwnAttention("k.py").load()(4).number == number


def test_line_ends_and_ways_of_naming_a_file_make_no_other_version(folder):
    name = OwnAttention("my_attention.py").with_sum()
    assert OwnAttention("./my_attention.py").with_sum() == name
    content = (folder / "my_attention.py").read_bytes()
    (folder / "my_attention.py").write_bytes(content.replace(b"\n", b"\r\n"))
    assert OwnAttention("my_attention.py").with_sum() == name and name.load()(8) is not None


def test_a_file_that_is_edited_while_its_run_trains_still_gets_its_record(folder, monkeypatch):
    suite = evidence.Suite(
        "edited",
        {"plain": {"layer_attention": None}, "own": {"layer_attention": "my_attention.py"}},
        {"depth": 8, "width": 4, "batch_size": 16, "steps": 3, "device": "cpu"},
        seeds=(0,),
    )
    original = run.Run.close_epoch
    monkeypatch.setattr(run.Run, "close_epoch", lambda run: (change(folder), original(run))[1])
    records = evidence.run_suite(suite, folder / "records.jsonl", progress=False)
    assert [record["variant"] for record in records] == ["plain", "own"] and records[1][
        "parameters"
    ] > records[0]["parameters"]


SCALED = """
import torch
from torch import nn
SCALE = 2.0
class Scaled(nn.Module):
    def __init__(self, channels):
        super().__init__()
    def forward(self, x, memory=None):
        return SCALE * torch.relu(x), x
"""


def test_an_attention_of_ones_own_can_be_compiled(folder):
    """torch.compile asks for the module of what it compiles, by name."""
    (folder / "scaled.py").write_text(SCALED, encoding="utf-8")
    model = build_model(TrainConfig(layer_attention="scaled.py", depth=8, width=4), 10).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            torch.compile(model, backend="eager", fullgraph=True)(images), model(images)
        )


@pytest.mark.parametrize(
    "body, words",
    [
        (
            "def __init__(self, channels, heads):\n        super().__init__()",
            "must be built as Bad(channels), further arguments with defaults",
        ),
        (
            "def __init__(self, c):\n        super().__init__()\n        self.c = 1 / 0",
            "ZeroDivisionError: division by zero (bad.py, line 5",
        ),
        (
            "def __init__(self, c):\n        super().__init__()\n   "
            " def forward(self, x, memory=None):\n        return x",
            "output, memory = attention(x, memory) does not work in this net: ValueError",
        ),
        (
            "def __init__(self, c):\n        super().__init__()\n    def "
            "forward(self, x, memory=None):\n        return x + memory, x",
            "does not work in this net: TypeError: unsupported operand type(s) "
            "for +: 'Tensor' and 'NoneType' (bad.py, line 6, in forward)",
        ),
        (       # training keeps maps channels last, of which there is no such view
            "def __init__(self, c):\n        super().__init__()\n    def "
            "forward(self, x, memory=None):\n        return x.view(len(x), -1).view_as(x), None",
            "does not work in this net: RuntimeError: view size is not compatible",
        ),
    ],
)
def test_a_class_that_cannot_work_is_told_before_the_data_is_read(folder, capsys, monkeypatch, body, words):
    (folder / "bad.py").write_text(
        f"from torch import nn\nclass Bad(nn.Module):\n    {body}\n", encoding="utf-8"
    )
    monkeypatch.setattr(run, "load_cifar", lambda *_: pytest.fail("data was read"))
    assert cli.main(["train", "--layer-attention", "bad.py", *TINY]) == 2
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.count("\n") == 1 and not list(folder.glob("runs/*"))


WITH_POINT = """
from torch import nn
class Odd(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weights = {weights}
        self.norm = nn.BatchNorm2d(channels, track_running_stats=False)
    def forward(self, x, memory=None):
        return self.norm(x){forward}, x
"""


@pytest.mark.parametrize("weights, forward, looked_at", [
    # a natural name, and no place to look
    ("nn.Parameter(__import__('torch').ones(channels, 1, 1))", " * self.weights", False),
    # no batch dimension: cannot be shuffled
    ("nn.Identity()", " * self.weights(x.mean())", None),
    ("nn.Identity()", " * self.weights(x.mean(dim=(2, 3))[:, None])[:, 0, :, None, None]", True),
])
def test_a_suite_goes_on_where_an_own_attention_cannot_be_looked_into(
    folder, capsys, weights, forward, looked_at
):
    (folder / "odd.py").write_text(WITH_POINT.format(weights=weights, forward=forward), encoding="utf-8")
    suite = evidence.Suite(
        "odd",
        {"own": {"layer_attention": "odd.py"}, "plain": {"layer_attention": None}},
        {"depth": 8, "width": 4, "batch_size": 16, "steps": 3, "device": "cpu"},
        seeds=(0, 1),
    )
    records = evidence.run_suite(suite, folder / "records.jsonl", progress=False)
    assert len(records) == 4
    found = load_interventions(folder / "records-interventions.jsonl")
    assert len(found) == (2 if looked_at else 0)
    assert ("its weights cannot be frozen" in capsys.readouterr().out) is (looked_at is None)


@pytest.mark.parametrize("name", ["../up", "a/b", "", "..", "ok.py:Mine", 7])
def test_names_in_a_suite_become_those_of_folders(name):
    for fields in (
        {"name": name, "variants": {"plain": {}}},
        {"name": "s", "variants": {"plain": {}, name: {}}},
    ):
        with pytest.raises(ValueError, match="becomes that of a folder"):
            evidence.Suite(**fields, recipe={})


def test_two_versions_under_one_class_name_are_two_rows(folder):
    for name in ("v1.py", "v2.py", "plain.py"):
        (folder / name).write_text((folder / "my_attention.py").read_text(), encoding="utf-8")
    text = cost_tables.cost_text(["v1.py:LastTwo", "v2.py:LastTwo", "plain.py"], depth=8, width=4)
    rows = [line.split()[0] for line in text.splitlines() if re.search(r"\+[\d,]+ ", line)]
    assert rows == ["plain", "LastTwo", "v2.py:LastTwo", "plain.py"] and "MACs of your own attention" in text


def test_one_suite_under_two_names_is_one(folder):
    source = "from mrla_minimal.lab.evidence import Suite\na = b = Suite('s', {'plain': {}}, {})"
    (folder / "twice.py").write_text(source, encoding="utf-8")
    assert plugins.load_one("twice.py", evidence.Suite).name == "s"


K = """
from torch import nn
from beside import NUMBER, double
class K(nn.Module):
    number = NUMBER
    def __init__(self, channels):
        super().__init__()
    def forward(self, x, memory=None):
        return double(x), x
"""
BESIDE = "import torch\nNUMBER = {number}\ndef double(x):\n    return NUMBER * torch.relu(x)\n"


def two_folders(folder):
    """a/k.py and b/k.py, the same file with another beside.py next to each."""
    for number, place in ((1, folder / "a"), (2, folder / "b")):
        place.mkdir()
        (place / "beside.py").write_text(BESIDE.format(number=number), encoding="utf-8")
        (place / "k.py").write_text(K, encoding="utf-8")


def test_each_file_gets_what_lies_beside_it_and_leaves_nothing_behind(folder, monkeypatch):
    two_folders(folder)
    beside = types.ModuleType("beside")             # the host program's own file of that name
    monkeypatch.setitem(sys.modules, "beside", beside)
    # a .pyc of the same second could not tell versions apart
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = list(sys.path)
    first, second = plugins.load_class("a/k.py"), OwnAttention("b/k.py").load()(8)
    assert (first.number, second.number) == (1, 2)
    assert sys.modules["beside"] is beside and sys.path == path
    (folder / "a" / "beside.py").write_text(BESIDE.format(number=4), encoding="utf-8")
    assert plugins.load_class("a/k.py").number == 4 and first.number == 1


def test_a_package_beside_the_file_is_its_own_too_and_one_that_fails_leaves_nothing(folder):
    for place in (folder / "parts", folder / "loose"):      # a package, and a folder without __init__.py
        place.mkdir()
        (place / "width.py").write_text("WIDTH = 3\n", encoding="utf-8")
    (folder / "parts" / "__init__.py").write_text("from parts.width import WIDTH\n", encoding="utf-8")
    change(folder, "\nfrom parts import WIDTH\nfrom loose.width import WIDTH as again\n")
    for ends in ("", "\nraise RuntimeError\n"):
        before = set(sys.modules)
        change(folder, ends)
        told = r"my_attention.py does not run: RuntimeError \(my_attention.py, line \d+, in <module>\)"
        with pytest.raises(ValueError, match=told) if ends else nullcontext():
            plugins.load_class("my_attention.py")
        new = sorted(name.partition(".")[2] for name in set(sys.modules) - before)
        assert new == ([] if ends else ["", "loose", "loose.width", "parts", "parts.width"])


def test_what_a_file_makes_is_found_by_pickle_and_by_the_compiler(folder):
    two_folders(folder)
    for number, place in ((1, "a"), (2, "b")):
        module = plugins.load_class(f"{place}/k.py")(8)
        x = torch.ones(1, 8, 2, 2)
        assert torch.equal(torch.compile(module, backend="eager", fullgraph=True)(x)[0], number * x)
        assert torch.equal(pickle.loads(pickle.dumps(module))(x)[0], number * x)
        assert pickle.loads(pickle.dumps(sys.modules[type(module).__module__].double)) is not None


SETTINGS = """
torch.set_grad_enabled(False)
torch.set_default_dtype(torch.float64)
torch.set_default_device('meta')
torch.use_deterministic_algorithms(True, warn_only=True)
torch.autograd.set_detect_anomaly(True, check_nan=False)
torch.set_num_threads(torch.get_num_threads() + 1)
torch.set_float32_matmul_precision('medium')
torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark = False, True
torch.backends.cudnn.deterministic = True
"""


def settings():
    cudnn = torch.backends.cudnn
    return (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled(),
            torch.get_num_threads(), torch.get_float32_matmul_precision(),
            cudnn.enabled, cudnn.benchmark, cudnn.deterministic)


@pytest.mark.parametrize("place", ["the file", "__init__"])
def test_what_a_file_sets_for_the_whole_process_is_put_back(folder, place):
    at_the_top, inside = (SETTINGS, "") if place == "the file" else ("", textwrap.indent(SETTINGS, " " * 8))
    (folder / "k.py").write_text(
        f"import torch\n{at_the_top}\nclass K(torch.nn.Module):\n"
        f"    def __init__(self, channels):\n        super().__init__()\n{inside}",
        encoding="utf-8",
    )
    before = settings()
    OwnAttention("k.py").load()(8)
    assert settings() == before


def test_a_file_that_draws_random_numbers_changes_none_of_its_users_but_its_weights_are_drawn(folder):
    (folder / "k.py").write_text(
        "import torch\ntorch.manual_seed(5)\nclass K(torch.nn.Linear):\n"
        "    def __init__(self, channels):\n        super().__init__(channels, channels)\n",
        encoding="utf-8",
    )
    state = torch.get_rng_state()
    made = OwnAttention("k.py").load()
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(made(4).weight, made(4).weight)      # each block starts from numbers of its own


LAZY = """
from torch import nn
class K(nn.Module):
    def __init__(self, channels):
        super().__init__()
        from beside import NUMBER, double
        import parts.inner
        self.number, self.double, self.inner = NUMBER, double, parts.inner.Inner()
    def forward(self, x, memory=None):
        return self.double(x), x
"""


def test_what_lies_beside_the_file_is_found_while_its_class_is_built(folder):
    two_folders(folder)
    for place in ("a", "b"):
        (folder / place / "k.py").write_text(LAZY, encoding="utf-8")
        (folder / place / "parts").mkdir()
        (folder / place / "parts" / "__init__.py").touch()
        (folder / place / "parts" / "inner.py").write_text(
            "from torch import nn\nclass Inner(nn.Module):\n    pass\n", encoding="utf-8")
    path, before = list(sys.path), set(sys.modules)
    first, second = OwnAttention("a/k.py").load(), OwnAttention("b/k.py").load()
    blocks = [(first(8), second(8)) for _ in range(2)]
    assert [(one.number, other.number) for one, other in blocks] == [(1, 2)] * 2
    assert type(blocks[0][0].inner) is type(blocks[1][0].inner)         # the helper ran once
    assert type(blocks[0][0].inner) is not type(blocks[0][1].inner)
    assert sys.path == path and not {"beside", "parts", "parts.inner"} & (set(sys.modules) - before)
    for module in blocks[1]:
        assert pickle.loads(pickle.dumps(module)).number == module.number


def test_an_import_within_forward_is_told_to_stand_at_the_top(folder, capsys):
    two_folders(folder)
    (folder / "a" / "k.py").write_text(LAZY.split("        from")[0] + (
        "    def forward(self, x, memory=None):\n        import beside\n        return beside.double(x), x\n"
    ), encoding="utf-8")
    assert cli.main(["train", "--layer-attention", "a/k.py", *TINY]) == 2
    told = capsys.readouterr().err
    assert "No module named 'beside' (a/k.py, line 7, in forward); import beside at the top" in told
    assert told.count("\n") == 1


def test_another_module_that_is_missing_is_not_said_to_lie_beside_the_file(folder, capsys):
    (folder / "k.py").write_text(LAZY.replace("from beside", "from nowhere"), encoding="utf-8")
    assert cli.main(["train", "--layer-attention", "k.py", *TINY]) == 2
    told = capsys.readouterr().err
    assert "No module named 'nowhere' (k.py, line 6" in told and "at the top" not in told


def test_a_class_with_a_second_name_counts_once(folder):
    change(folder, "\nAlias = LastTwo\n")
    assert plugins.load_class("my_attention.py").__name__ == "LastTwo"
    assert plugins.load_class("my_attention.py", "Alias").__name__ == "LastTwo"
    change(folder, "\nclass Second(LastTwo):\n    pass\n")
    with pytest.raises(ValueError, match="its classes: LastTwo, Second$"):
        plugins.load_class("my_attention.py")


@pytest.mark.parametrize("arguments", [("k.txt",), ("k.py", "not a name"), ("k.py", None, "123")])
def test_a_value_that_has_no_text_is_refused(arguments):
    with pytest.raises(ValueError, match="must be FILE.py, FILE.py:CLASS or FILE.py:CLASS@SUM"):
        OwnAttention(*arguments)


def test_an_instance_in_place_of_a_class_is_told():
    for instance in (MRLALight(8), plugins.nn.Identity()):
        with pytest.raises(ValueError, match="not one module: every block needs its own"):
            cifar_resnet(8, width=8, layer_attention=instance)


def test_what_is_imported_counts_neither_as_the_files_class_nor_against_it(folder):
    (folder / "helper.py").write_text("WIDTH = 3\n", encoding="utf-8")
    change(folder, "\nfrom helper import WIDTH\nfrom mrla_minimal import MRLALight\n")
    assert plugins.load_class("my_attention.py").__name__ == "LastTwo"


def test_what_a_suite_cannot_build_is_told_before_its_first_run(folder, capsys):
    (folder / "bad.py").write_text(
        "from torch import nn\nclass Bad(nn.Module):\n    pass\n", encoding="utf-8"
    )
    (folder / "suite.py").write_text(
        textwrap.dedent("""
        from mrla_minimal.lab.evidence import Suite
        variants = {"plain": {"layer_attention": None}, "bad": {"layer_attention": "bad.py"}}
        suite = Suite("s", variants, {"depth": 8, "width": 4})
    """),
        encoding="utf-8",
    )
    assert cli.main(["compare", "--suite", "suite.py"]) == 2
    assert "must be built as Bad(channels)" in capsys.readouterr().err and not (folder / "runs").exists()


def test_one_layer_a_stage_is_noted(folder, capsys):
    run = ["train", "--layer-attention", "my_attention.py", *TINY]
    assert cli.main(run) == 0 and "one layer a stage" in capsys.readouterr().out
    assert cli.main([*run, "--depth", "14"]) == 0 and "one layer a stage" not in capsys.readouterr().out
    assert (
        cli.main(["train", "--layer-attention", "none", *TINY]) == 0
        and "one layer a stage" not in capsys.readouterr().out
    )
