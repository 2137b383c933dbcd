"""What README.md says of the library: its commands are commands, its first program runs, its counts are true.

The programs under "Use it in coursework" run in the tests of coursework and of code of one's own.
"""

import itertools
import re
import shlex
from pathlib import Path

from mrla_minimal.lab import cli

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def one_of_each(command):
    """["mrla bench data", "mrla bench attention"] of "mrla bench data\\|attention"."""
    words = [word.split("\\|") for word in command.split(" ")]
    return [" ".join(choice) for choice in itertools.product(*words)]


def test_every_command_parses():
    cells = re.findall(r"^\| (`.*?`) \| ", TEXT, re.MULTILINE)      # `mrla cost`, `mrla cost --paper`
    shown = [command for cell in cells for command in re.findall("`([^`]*)`", cell)]
    shown += [line.split("#")[0] for line in re.findall(r"^    (mrla .*)", TEXT, re.MULTILINE)]
    commands = [command for line in shown for command in one_of_each(line) if command.startswith("mrla ")]
    assert len(commands) > 20
    for command in commands:
        cli.build_parser().parse_args(shlex.split(command.replace(" ...", ""))[1:])


def test_the_first_program_prints_what_it_says(capsys):
    programs = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    (program,) = [program for program in programs if "record_attention" in program]
    exec(program, {})
    assert capsys.readouterr().out == "torch.Size([2, 1, 9])\n"     # (batch, heads, 9 layers read)


def test_the_number_of_the_subjects_modules_is_true():
    words = "zero one two three four five six seven eight nine ten".split()
    modules = [path for path in (ROOT / "mrla_minimal").glob("*.py") if not path.name.startswith("_")]
    assert f"{words[len(modules)]} short modules" in TEXT
