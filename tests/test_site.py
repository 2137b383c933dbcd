"""What the site takes from the repository. The built pages have tests of their own: `make test-site`."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "site"))      # at the end: a module there may be called like another package

import docstrings  # noqa: E402
import exporting  # noqa: E402
import sources  # noqa: E402

RESULTS = ROOT / "data/results/README.md"
LESSON = ROOT / "notebooks/03_attention_across_layers.ipynb"
ADDRESS = "https://github.com/OWNER/mrla-minimal"


def test_every_notebook_is_a_lesson_of_one_part():
    course = sources.lessons()
    assert {lesson.path for lesson in course} == set((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    assert sum(len(chosen) for chosen in sources.parts(course).values()) == len(course)
    parts = {lesson.number: lesson.part for lesson in course}
    assert (parts["06"], parts["07"], parts["11"], parts["12"]) == (0, 7, 7, 12)


def notebook(head):
    return json.dumps({"cells": [{"cell_type": "markdown", "source": head}]})


def test_a_lesson_may_have_a_letter_and_must_say_what_it_is(tmp_path):
    head = "# 13a Boxes\n\n*Does it find things?*\n\n**Time** 40 minutes to study"
    (tmp_path / "13a_boxes.ipynb").write_text(notebook(head))
    (lesson,) = sources.lessons(tmp_path)
    assert (lesson.number, lesson.title, lesson.question, lesson.minutes, lesson.part) == (
        "13a", "Boxes", "Does it find things?", "40", 12)
    for wrong in (head.replace("# 13a", "#"), head.replace("*Does", "Does"), head.replace("40", "forty")):
        (tmp_path / "13a_boxes.ipynb").write_text(notebook(wrong))
        with pytest.raises(ValueError, match="13a_boxes.ipynb: the first cell must begin with"):
            sources.lessons(tmp_path)


@pytest.mark.parametrize(("target", "there"), [
    ("01_self_attention.ipynb#Quiz", "/notebooks/01_self_attention.ipynb#quiz"),
    ("01_self_attention.ipynb#What-we-built!", "/notebooks/01_self_attention.ipynb#what-we-built"),
    ("cheat_sheet.md", "/notebooks/cheat_sheet.md"),
    ("lecture_plan.md", "/notebooks/lecture_plan.md"),
    ("../data/results/README.md", "/evidence.md"),
    ("../data/results/README.md#the-corridor-quiz", "/evidence.md#the-corridor-quiz"),
    ("../README.md#bibliography", "/bibliography.md"),
    ("../README.md", f"{ADDRESS}/blob/main/README.md"),
    ("../mrla_minimal/lab/cost.py", "/api/mrla_minimal.lab.cost.rst"),
    ("solutions/01_self_attention.ipynb", f"{ADDRESS}/blob/main/notebooks/solutions/01_self_attention.ipynb"),
    ("https://arxiv.org/abs/2302.03985", "https://arxiv.org/abs/2302.03985"),
    ("#here", "#here"),
])
def test_a_link_leads_to_the_sites_page_or_to_the_repository(target, there):
    assert sources.site_link(target, LESSON, ADDRESS) == there


def test_code_and_pictures_are_no_links():
    text = "`[a](../README.md)` ![b](figures/quiz.png) [c](cheat_sheet.md)\n```\n[d](../README.md)\n```"
    assert sources.relink(text, LESSON, ADDRESS) == text.replace("(cheat", "(/notebooks/cheat")


@pytest.mark.parametrize("lesson", sources.lessons(), ids=lambda lesson: lesson.number)
def test_every_figure_of_a_lesson_has_words_and_no_picture_is_of_another_host(lesson):
    before = lesson.path.read_text(encoding="utf-8")
    cells = json.loads(sources.notebook_for_the_site(before, lesson.path, ADDRESS))["cells"]
    for cell in cells:
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])):
            words = cell["metadata"]["mystnb"]["image"]["alt"]
            assert len(words.split()) >= 4 and not re.search(r"[*`$]", words)
        if cell["cell_type"] == "markdown":
            assert not re.search(r"!\[[^\]]*\]\(http|<img", "".join(cell["source"]))
    assert "colab-badge.svg" in before


def test_a_figure_without_a_caption_is_named_by_its_section():
    figure = {"cell_type": "code", "source": "", "outputs": [{"data": {"image/png": ""}}]}
    text = [{"cell_type": "markdown", "source": source} for source in
            ("## One", "*Two $X^t$ and [three](x.md).*\n\nMore.", "**Bold** text")]
    assert sources.captions([text[0], figure, text[1], figure, text[2], figure]) == {
        1: "Two X^t and three.", 3: "Figure: One", 5: "Figure: One"}


def test_the_result_on_the_home_page_is_the_records():
    results = RESULTS.read_text(encoding="utf-8")
    numbers = sources.planted_choice(results)
    row = f"corridor-width4 {int(numbers['n']):7} {numbers['mean']:>7}  {numbers['low']} to {numbers['high']}"
    assert row in results
    with pytest.raises(ValueError, match="no row 'mrla-base - uniform"):
        sources.planted_choice(results.replace("corridor-width4", "corridor"))


def test_the_two_hours_are_the_readmes():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    chosen = sources.two_hours(readme, sources.lessons())
    assert [lesson.number for lesson in chosen] == ["00", "03", "04", "06", "08"]


def test_a_section_ends_where_the_next_begins():
    text = "# T\n## A\none\n### B\ntwo\n## C\nthree"
    assert sources.section(text, "## A") == "one\n### B\ntwo" and sources.section(text, "## C") == "three"
    with pytest.raises(ValueError, match="no section '## D'"):
        sources.section(text, "## D")


def test_every_paper_that_the_course_names_is_in_the_bibliography():
    known = (ROOT / "site/pages/bibliography.md").read_text(encoding="utf-8")
    named = [ROOT / "README.md", RESULTS, *(ROOT / "notebooks").glob("*.ipynb"),
             *(ROOT / "notebooks").glob("*.md"), *(ROOT / "mrla_minimal").rglob("*.py")]
    number = re.compile(r"arxiv[^0-9]{1,9}(\d{4}\.\d{4,5})", re.IGNORECASE)
    texts = [(path.name, path.read_text(encoding="utf-8")) for path in named]
    papers = {(found, name) for name, text in texts for found in number.findall(text)}
    assert len({found for found, _ in papers}) > 10
    assert not [paper for paper in papers if paper[0] not in known], "add it to site/pages/bibliography.md"


def test_every_module_with_a_text_of_its_own_is_in_the_library_pages():
    rooms = sources.modules()
    assert "mrla_minimal.layer_attention" in rooms["mrla_minimal"]
    assert "mrla_minimal.lab.evidence.report" in rooms["mrla_minimal.lab"]
    names = [name for of_room in rooms.values() for name in of_room]
    assert len(names) == len(set(names)) and not [name for name in names if "._" in name]
    assert sources.first_sentence("mrla_minimal.shapes")


@pytest.mark.parametrize(("prose", "restructured"), [
    ("One line\nand `code`s of x_ and *2.", ["One line and \\ ``code``\\ s of x\\_ and \\*2.", ""]),
    ("Two:\n\n    a    one\n    b    two", ["Two:", "", "::", "", "    a    one", "    b    two", ""]),
    ("first: one\n    goes on\nsecond: two", ["* first: one goes on", "", "* second: two", ""]),
    ("* star\n* two\n  on", ["* star", "", "* two on", ""]),
    ("a     one\nbcd   two", ["::", "", "    a     one", "    bcd   two", ""]),
])
def test_a_docstring_keeps_its_form(prose, restructured):
    assert docstrings.restructured(prose.split("\n")) == restructured


def test_what_people_can_play_with_stands_at_the_end_of_its_section():
    for name, (lesson, heading, scripts) in sources.EXPLORABLES.items():
        assert all((ROOT / "site/static" / script).exists() for script in scripts)
        page = ROOT / f"notebooks/{lesson}.ipynb"
        text = sources.notebook_for_the_site(page.read_text(encoding="utf-8"), page, ADDRESS)
        prose = ["".join(cell["source"]) for cell in json.loads(text)["cells"]]
        (place,) = [index for index, source in enumerate(prose) if f'data-explorable="{name}"' in source]
        before = [line for source in prose[:place] for line in source.split("\n") if re.match("##? ", line)]
        assert before[-1] == heading
    with pytest.raises(ValueError, match="11_what_it_costs has no section '## The bill'"):
        sources.with_explorables([], "11_what_it_costs")


def test_a_signature_calls_types_by_their_own_names():
    signature = "(boxes: list[~mrla_minimal.boxes.Box])"
    shown = docstrings.process_signature(None, "class", "", None, None, signature, None)
    assert shown == ("(boxes: list[Box])", None)


@pytest.mark.parametrize("file", sorted(path.name for path in exporting.STATIC.glob("*_nets.js")))
def test_a_pages_numbers_are_written_as_they_stand(file, tmp_path, monkeypatch):
    text = (exporting.STATIC / file).read_text(encoding="utf-8")
    said, name, numbers = re.match(r"// Made by (.+)\.\nconst (\w+) = (.+);\n", text).groups()
    monkeypatch.setattr(exporting, "STATIC", tmp_path)
    exporting.write(file, name, json.loads(numbers), said)
    assert (tmp_path / file).read_text(encoding="utf-8") == text


def test_numbers_are_shortened_in_nested_lists():
    numbers = [[0.123456789, 2.0], [-12345.678, [1e-9]]]
    assert exporting.rounded(numbers, exporting.five_digits) == [[0.12346, 2.0], [-12346.0, [1e-9]]]
    shortened = exporting.rounded(numbers, exporting.six_decimals)
    assert json.dumps(shortened) == "[[0.123457, 2], [-12345.678, [0]]]"
