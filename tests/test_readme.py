"""What README.md says of the library: its commands are commands, its first program runs, its counts are true.

The programs under "Use it in coursework" run in the tests of coursework and of code of one's own.
"""

import itertools
import json
import re
import shlex
from pathlib import Path

import pytest

from mrla_minimal.course.checks.coursework import CHECKS, REPORTED
from mrla_minimal.course.quiz import QUESTIONS
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
    words = "zero one two three four five six seven eight nine ten eleven twelve thirteen".split()
    modules = [path for path in (ROOT / "mrla_minimal").glob("*.py") if not path.name.startswith("_")]
    assert f"{words[len(modules)]} short modules" in TEXT


def notebooks_in_the_table():
    """[(number, file, minutes as the table has them)] of the course's notebooks."""
    row = r"^\| \[(\d\d[ab]?) .*?\]\((notebooks/.*?\.ipynb)\) \| .*? \| (\d+) \| "
    rows = re.findall(row, TEXT, re.MULTILINE)
    assert len(rows) == len(list((ROOT / "notebooks").glob("[0-9]*.ipynb")))
    return [(number, file, int(minutes)) for number, file, minutes in rows]


def test_the_minutes_and_hours_are_the_notebooks():
    hours, exercises = {"I": 0.0, "from 07": 0.0}, 0.0
    for number, file, minutes in notebooks_in_the_table():
        cells = json.loads((ROOT / file).read_text(encoding="utf-8"))["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
        assert re.search(r"\*\*Time\*\* (\d+) minutes to study", text)[1] == str(minutes), file
        hours["I" if number < "07" else "from 07"] += minutes / 60
        exercises += sum(map(int, re.findall(r"^\u2605+ \u00b7 (\d+) minutes", text, re.MULTILINE))) / 60
    said = re.search(r"nearly (\w+) and a half hours for 00 to 06, and nearly (\w+) from 07 on", TEXT)
    words = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen".split()
    first, later = words.index(said[1]) + 0.5, words.index(said[2])
    assert first - 0.5 < hours["I"] <= first and later - 0.5 < hours["from 07"] <= later, hours
    assert "take a good three quarters of that again" in TEXT
    assert 0.75 < exercises / sum(hours.values()) < 0.82


def test_the_picture_of_the_quiz_is_what_notebook_00_trains_and_one_method_more():
    lesson = (ROOT / "notebooks" / "00_start_here.ipynb").read_text(encoding="utf-8")
    drawn = (ROOT / "notebooks" / "draw_figures.py").read_text(encoding="utf-8")
    assert "trains three of the four on your own machine" in TEXT and "the residual sum comes in 03" in TEXT
    assert 'for method in (\\"last\\", \\"mean\\", \\"base\\"):' in lesson
    assert 'for method in ("last", "mean", "residual", "base")' in drawn
    third = (ROOT / "notebooks" / "03_attention_across_layers.ipynb").read_text(encoding="utf-8")
    assert "class ResidualStream" in third


def shown(first_line):
    """The lines of the block of output that begins with this line."""
    blocks = re.findall(r"```text\n(.*?)```", TEXT, re.DOTALL)
    (block,) = [block for block in blocks if block.startswith(first_line)]
    return block.rstrip().splitlines()


def test_the_output_of_mrla_check_that_is_shown_has_every_check():
    *findings, summary = shown("[OK]   built")
    names = [re.match(r"\[\w+\] +(.*?): ", finding)[1] for finding in findings]
    assert names[: len(CHECKS)] == list(CHECKS)
    assert names[len(CHECKS) : -len(QUESTIONS)] == list(REPORTED)
    assert names[-len(QUESTIONS) :] == [f"corridor quiz, {question} question" for question in QUESTIONS]
    assert summary == f"{len(CHECKS)} of {len(CHECKS)} checks passed"


def test_the_report_that_is_shown_is_the_records():
    """data/results/README.md holds the whole table, and another test holds that to the records."""
    report = "\n".join(shown("suite cifar10-thin56-cpu"))
    assert "contrast (points)" in report
    assert report in (ROOT / "data" / "results" / "README.md").read_text(encoding="utf-8")


def test_the_sample_suite_has_five_seeds():
    assert "seeds=(0, 1, 2, 3, 4)," in TEXT


def test_its_pictures_and_links_are_there():
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", TEXT)
    here = [target for target in targets if not target.startswith("http")]
    assert len(here) > 15
    for target in here:
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("page", sorted(
    path.relative_to(ROOT).as_posix() for folder in (".", "data", "notebooks", "site/pages")
    for path in ROOT.glob(f"{folder}/**/*.md" if folder != "." else "*.md")
    if not {".venv", "node_modules"} & set(path.parts)))
def test_what_is_fenced_ends(page):
    # A fence too many turns the rest of a page inside out: its text is shown as code.
    fenced = False
    for row in (ROOT / page).read_text(encoding="utf-8").splitlines():
        if row.startswith("```"):
            assert not (fenced and row.strip("`")), f"a fence is opened inside another: {row}"
            fenced = not fenced
        elif fenced:
            assert not row.startswith(("<!-- mrla ", "## ", "### ", "![")), f"fenced: {row}"
    assert not fenced
