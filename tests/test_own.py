"""Code of one's own in a file: named in a configuration, trained, resumed, compared; and refused once it was changed."""

import re
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from mrla_minimal.lab import cli, cost, experiments, own, training
from mrla_minimal.lab.files import read_records
from mrla_minimal.lab.training import TrainConfig

sys.path.insert(0, str(Path(__file__).parent))
from tiny import tiny_cifar

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
TINY = ["--depth", "8", "--width", "4", "--batch-size", "16", "--steps", "3", "--device", "cpu"]


def readme_block(word):
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if word in block]
    return block


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """A working directory with the README's class in my_attention.py, and the tiny data in place of CIFAR."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "load_cifar", tiny_cifar)
    monkeypatch.setattr(experiments, "load_cifar", tiny_cifar)
    source = readme_block("class LastTwo").split("\nmodel = ")[0]
    (tmp_path / "my_attention.py").write_text(source, encoding="utf-8")
    return tmp_path


def change(folder, source="\n# another version\n"):
    with open(folder / "my_attention.py", "a", encoding="utf-8") as file:
        file.write(textwrap.dedent(source))


@pytest.mark.parametrize("name, own_one", [
    ("mine.py", True), ("some/where/mine.py:My", True), ("C:\\a\\mine.py:My", True), ("mine.py:My@0123456789ab", True),
    ("mrla-light", False), ("mine.py:", False), ("mine.py@123", False), (None, False), ("minepy", False),
])
def test_which_names_are_of_files(name, own_one):
    assert own.is_own(name) is own_one


def test_a_configuration_names_the_version_of_the_file(folder):
    config = TrainConfig(layer_attention="my_attention.py:LastTwo")
    name = config.layer_attention
    assert re.fullmatch(r"my_attention\.py:LastTwo@[0-9a-f]{12}", name)
    assert TrainConfig(layer_attention=name).layer_attention == name and own.short_name(name) == "LastTwo"
    change(folder)
    assert TrainConfig(layer_attention="my_attention.py:LastTwo").layer_attention != name
    with pytest.raises(ValueError, match="my_attention.py was changed since it was named"):
        training.build_model(config, 10)


def test_the_model_is_made_of_the_files_class(folder):
    config = TrainConfig(layer_attention="my_attention.py", depth=8, width=4)
    model, other = training.build_model(config, 10), training.build_model(TrainConfig(layer_attention=None, depth=8, width=4), 10)
    assert {type(block.layer_attention).__name__ for stage in model.stages for block in stage} == {"LastTwo"}
    for name, value in other.state_dict().items():      # the host starts as every variant of this seed does
        assert torch.equal(model.state_dict()[name], value)


def test_a_file_runs_once_in_a_process_and_again_when_changed(folder):
    change(folder, """
        with open("log", "a") as log:
            log.write("ran ")
    """)
    for _ in range(3):
        training.build_model(TrainConfig(layer_attention="my_attention.py", depth=8, width=4), 10)
    assert (folder / "log").read_text() == "ran "
    change(folder)
    own.load_class("my_attention.py")
    assert (folder / "log").read_text() == "ran ran "


def test_train_evaluate_and_resume_on_the_command_line(folder, capsys):
    assert cli.main(["train", "--layer-attention", "my_attention.py", *TINY]) == 0
    (run,) = (folder / "runs").iterdir()
    assert run.name == "resnet8-my_attention-cifar10-seed0"
    assert cli.main(["train", "--resume", str(run)]) == 0
    change(folder)
    capsys.readouterr()
    before = sorted((path.name, path.stat().st_mtime_ns) for path in run.iterdir())
    assert cli.main(["train", "--resume", str(run)]) == 2
    assert "was changed since" in capsys.readouterr().err
    assert cli.main(["evaluate", str(run)]) == 2
    captured = capsys.readouterr()
    assert "was changed since" in captured.err and captured.err.count("\n") == 1
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
                                                    '{"depth": 8, "width": 4, "batch_size": 16, "steps": 3, "device": "cpu"}')
    (folder / "my_suite.py").write_text(source.replace("seeds=(0, 1, 2)", "seeds=(0, 1)"), encoding="utf-8")
    assert cli.main(["compare", "--suite", "my_suite.py", "--quiet"]) == 0
    path = folder / "runs" / "last-two" / "records.jsonl"
    records = read_records(path)[0]
    assert [(r["variant"], r["seed"]) for r in records] == [(v, s) for s in (0, 1) for v in ("plain", "depthwise", "last two")]
    assert cli.main(["compare", "--suite", "my_suite.py"]) == 0
    out = capsys.readouterr().out
    assert read_records(path)[0] == records and "last two - depthwise" in out and "primary" in out
    assert cli.main(["compare", "--suite", "my_suite.py", "--export"]) == 2
    assert "--export is for the suites" in capsys.readouterr().err

    change(folder)      # another version is another variant: its runs are new, and are not mixed with the old ones
    assert cli.main(["compare", "--suite", "my_suite.py"]) == 2
    assert "records of different definition (last two) are not compared" in capsys.readouterr().err
    assert len(read_records(path)[0]) == 8


@pytest.mark.parametrize("source, words", [
    (None, "suite.py must be a Python file"),
    ("x = 1", "must make one Suite, not 0"),
    ("from mrla_minimal.lab.experiments import SUITES\na, b, *_ = SUITES.values()", "must make one Suite, not 2"),
    ("from mrla_minimal.lab.experiments import Suite\nSuite('s', {'a': {}}, {})", "suite.py does not run: ValueError: suite s: unknown"),
])
def test_a_file_that_makes_no_suite_is_told(folder, capsys, source, words):
    if source:
        (folder / "suite.py").write_text(source, encoding="utf-8")
    assert cli.main(["compare", "--suite", "suite.py"]) == 2
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.count("\n") == 1


def test_its_cost_says_what_is_not_counted(folder):
    text = cost.cost_text(["my_attention.py:LastTwo", "mrla-light"], depth=8, width=4)
    assert "LastTwo" in text and "MACs of your own attention" in text
    assert "MACs of your own attention" not in cost.cost_text(["mrla-light"], depth=8, width=4)
    with pytest.raises(ValueError, match="FILE.py:CLASS"):
        cost.cost_text(["nope"])
