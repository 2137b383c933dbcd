"""The notebooks as files: what holds for each, whatever it teaches. That they run is nbval's to say."""

import ast
import copy
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbval.plugin import get_sanitize_patterns

from notebooks.set_address import address_of, set_address

ROOT = Path(__file__).parents[2]
COURSE = [
    "00_start_here", "01_self_attention", "02_attention_that_runs_forward", "03_attention_across_layers",
    "04_recurrent_layer_attention", "05_mrla_on_feature_maps", "06_mrla_light", "07_training_a_small_resnet",
    "08_does_layer_attention_help", "09_which_part_matters", "10_looking_inside", "11_what_it_costs",
    "12_vision_transformer", "13a_boxes_and_masks", "13b_a_detector", "14_what_a_layer_may_know",
    "15_a_memory_that_is_rewritten", "16_attention_across_layers_in_a_language_model",
    "17_looking_sideways", "18_words_choose_layers", "19_your_own_layer_attention",
]
TAUGHT_IN = {
    "attention": ("01",),
    "layer_attention": ("05", "06"),
    "channel_attention": ("08",),
    "controls": ("08",),
}
LESSONS = sorted(ROOT.glob("notebooks/*.ipynb"))
SOLUTIONS = sorted(ROOT.glob("notebooks/solutions/*.ipynb"))
SETUP = """\
import sys
if "google.colab" in sys.modules:      # on Colab only: fetch the course, leave its torch as it is
    ![ -d ~/mrla-minimal ] || git clone --quiet --depth 1 ADDRESS ~/mrla-minimal
    %pip install --quiet --no-deps einops ~/mrla-minimal
    %cd -q ~/mrla-minimal/notebooks"""
IGNORED = {"nbval-ignore-output", "nbval-skip", "raises-exception"}
MACHINE_FOLDER = re.compile(
    r"(?<![\w.~])/(?:tmp|home|root|work|Users|content|mnt|opt|usr|var)/\S*|\b[A-Z]:\\\S*"
)

lessons = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
solutions = pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
every_notebook = pytest.mark.parametrize("path", [*LESSONS, *SOLUTIONS],
                                         ids=lambda path: f"{path.parent.name}/{path.stem}")


def read(path):
    return nbformat.read(path, as_version=4)


def number(path):
    return path.stem.partition("_")[0]


def is_strict(path):
    """Notebooks 00 to 06: every output is compared. The rest train, and compare tagged cells only."""
    return number(path) <= "06"


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def markdown(notebook):
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def tags(cell):
    return set(cell.metadata.get("tags", []))


def tagged(notebook, tag):
    return [cell for cell in code_cells(notebook) if tag in tags(cell)]


def printed(cell):
    """All text that a cell has put out."""
    texts = [
        output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in cell.outputs
    ]
    return "\n".join(texts)


def has_figure(cell):
    return any("image/png" in output.get("data", {}) for output in cell.outputs)


def compared(notebook, strict):
    cells = [cell for cell in code_cells(notebook) if printed(cell).strip() and not tags(cell) & IGNORED]
    return cells if strict else [cell for cell in cells if "nbval-check-output" in tags(cell)]


def parsed(cell):
    """A cell's syntax tree; the set-up cell, alone with its magics, has none."""
    return ast.parse("" if "setup" in tags(cell) else cell.source)


def definitions(tree):
    """{name: syntax tree as text} of the functions and classes of a module or cell, without docstrings."""
    defined = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    return {node.name: ast.dump(without_docstrings(node)) for node in defined}


def without_docstrings(node):
    node = copy.deepcopy(node)
    for part in ast.walk(node):
        if isinstance(part, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(part) is not None:
            part.body = part.body[1:] or [ast.Pass()]
    return node


def library(module):
    return definitions(ast.parse((ROOT / "mrla_minimal" / f"{module}.py").read_text(encoding="utf-8")))


SHIPPED = {}
for module in ("shapes", *TAUGHT_IN, "course/quiz", "course/quiz_methods", "course/quiz_family",
               "family/dynamic", "family/index_cache", "family/language_model"):
    SHIPPED |= library(module)
BLOCKS = {"ResidualBlock": ("resnet", "05"), "TransformerBlock": ("vit", "12"),       # of the hosts
          "Pyramid": ("detector", "13b")}
SHIPPED |= {name: library(module)[name] for name, (module, _) in BLOCKS.items()}


# What a notebook must be

def test_the_notebooks_of_the_first_half_are_there():
    names = {path.stem for path in LESSONS}
    assert names >= set(COURSE[:7]), f"missing: {set(COURSE[:7]) - names}"
    assert names <= set(COURSE)
    assert {path.stem for path in SOLUTIONS} == names - {"00_start_here"}


def assert_executed(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1)), f"cells not run once each, in order: {counts}"


def assert_enough_is_compared(notebook, strict):
    """On too few cells nbval would say little; and at least one of them holds numbers to four decimals."""
    texts = [printed(cell) for cell in compared(notebook, strict)]
    assert len(texts) >= (3 if strict else 5), f"{len(texts)} cells with output that is compared"
    if strict:
        exact = any(re.search(r"\d\.\d{4}\b", text) for text in texts)
        assert exact, "no compared cell prints numbers to 4 decimals"


@every_notebook
def test_was_executed_in_order(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert_executed(notebook)
    assert not any("execution" in cell.metadata for cell in notebook.cells), "execution times are committed"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]       # nbformat would mend doubles
    ids = [cell["id"] for cell in cells]
    assert len(set(ids)) == len(ids)


@lessons
def test_enough_of_its_output_is_compared(path):
    assert_enough_is_compared(read(path), is_strict(path))


@lessons
def test_stripping_the_outputs_is_noticed(path):
    stripped = read(path)
    for cell in code_cells(stripped):
        cell.outputs = []
    with pytest.raises(AssertionError):
        assert_enough_is_compared(stripped, is_strict(path))
    for cell in code_cells(stripped):
        cell.execution_count = None
    with pytest.raises(AssertionError):
        assert_executed(stripped)


@every_notebook
def test_outputs_are_text_and_png_without_errors_or_warnings(path):
    for cell in code_cells(read(path)):
        for output in cell.outputs:
            assert output.output_type != "error", f"{cell.id} raises {output.get('ename')}"
            assert output.get("name") != "stderr", f"{cell.id} writes to stderr: {output.get('text')}"
            kinds = set(output.get("data", {}))
            assert kinds <= {"text/plain", "image/png"}, f"{cell.id} puts out {kinds}"
        text = printed(cell)
        folder = MACHINE_FOLDER.search(text)
        assert folder is None, f"{cell.id} prints a folder of the machine it ran on: {folder.group()}"
        assert "Warning" not in text, f"{cell.id} prints a warning"
        if "plt.show()" in cell.source and cell.outputs:
            assert has_figure(cell), f"{cell.id} shows no figure"


@lessons
def test_a_figure_is_shown_and_no_object_shows_itself(path):
    for cell in code_cells(read(path)):
        if has_figure(cell):
            assert "plt.show()" in cell.source, f"{cell.id} draws, and does not end with plt.show()"
        results = [output for output in cell.outputs if output.output_type == "execute_result"]
        for output in results:
            shown = output.data.get("text/plain", "")
            assert not re.match(r"[\[(]?<|Text\(", shown), f"{cell.id} shows an object: write _ = ..."


@every_notebook
def test_is_small(path):
    assert path.stat().st_size < 500_000


@every_notebook
def test_its_code_cells_are_short_and_plain(path):
    for cell in code_cells(read(path)):
        lines = len(cell.source.rstrip().splitlines())
        shipped = SHIPPED.keys() & definitions(parsed(cell)).keys()
        assert lines <= (40 if shipped else 20), f"{cell.id} has {lines} lines"
        for word in ("tqdm.auto", "NBVAL_", "PYTEST_VALIDATE"):
            assert word not in cell.source, f"{cell.id} contains {word}"


# The address

@every_notebook
def test_its_set_up_cell_is_everyones(path):
    first, *others = code_cells(read(path))
    assert first.source == SETUP.replace("ADDRESS", address_of())
    assert tags(first) == {"setup"} and not first.outputs
    assert not any("setup" in tags(cell) for cell in others)


@lessons
def test_its_badge_opens_this_very_file(path):
    repository = address_of().removeprefix("https://github.com/")
    opens = f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/{path.name}"
    badge = f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({opens})"
    first = read(path).cells[0].source
    assert first.count(badge) == 1
    assert markdown(read(path)).count("colab-badge.svg") == 1


def test_the_readme_and_the_first_notebook_list_the_whole_course():
    readme, first = (ROOT / "README.md").read_text(encoding="utf-8"), markdown(read(LESSONS[0]))
    assert [path.name for path in LESSONS if f"](notebooks/{path.name})" not in readme] == []
    assert [path.name for path in LESSONS[1:] if f"]({path.name})" not in first] == []


def test_no_other_address_is_written_anywhere():
    repository = address_of().removeprefix("https://github.com/")
    for path in [*LESSONS, *SOLUTIONS, ROOT / "README.md"]:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        named = set(re.findall(r"research\.google\.com/github/([\w.-]+/[\w.-]+)", text))
        named |= set(re.findall(r"github\.com/([\w-]+/mrla-minimal)\b", text))
        assert named <= {repository}, f"{path.name} names {named - {repository}}"


@pytest.fixture
def small_repository(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "notebooks" / "solutions").mkdir(parents=True)
    for path in (LESSONS[0], SOLUTIONS[0]):
        shutil.copy(path, tmp_path / path.relative_to(ROOT))
    old = address_of()
    (tmp_path / "README.md").write_text(f"see {old}, {old}/issues and {old}-more\n", encoding="utf-8")
    return tmp_path


def test_one_command_changes_the_address_everywhere(small_repository):
    changed = set_address("https://github.com/someone-else/another.name/", small_repository)
    names = {"pyproject.toml", "README.md", LESSONS[0].name, SOLUTIONS[0].name}
    assert {path.name for path in changed} == names
    new = "https://github.com/someone-else/another.name"
    assert address_of(small_repository) == new
    readme = (small_repository / "README.md").read_text(encoding="utf-8")
    assert readme == f"see {new}, {new}/issues and {address_of()}-more\n"
    for path in (LESSONS[0], SOLUTIONS[0]):
        text = (small_repository / path.relative_to(ROOT)).read_text(encoding="utf-8")
        assert address_of().removeprefix("https://") not in text
        assert len(json.loads(text)["cells"]) == len(read(path).cells)
    lesson = read(small_repository / "notebooks" / LESSONS[0].name)
    assert code_cells(lesson)[0].source == SETUP.replace("ADDRESS", new)
    badge = f"/github/someone-else/another.name/blob/main/notebooks/{LESSONS[0].name}"
    assert badge in lesson.cells[0].source
    assert set_address(new, small_repository) == []


@pytest.mark.parametrize("address", ["", "github.com/a/b", "https://gitlab.com/a/b", "https://github.com/a",
                                     "https://github.com/a/b/c"])
def test_an_address_that_colab_cannot_open_changes_nothing(small_repository, address):
    before = {path: path.read_bytes() for path in small_repository.rglob("*.*") if path.is_file()}
    with pytest.raises(ValueError, match="must be https://github.com/NAME/REPOSITORY"):
        set_address(address, small_repository)
    assert before == {path: path.read_bytes() for path in small_repository.rglob("*.*") if path.is_file()}


# What it teaches

@lessons
def test_what_it_defines_under_a_shipped_name_is_the_shipped_code(path):
    for cell in code_cells(read(path)):
        for name, code in definitions(parsed(cell)).items():
            assert code == SHIPPED.get(name, code), f"{cell.id}: {name} is not the library's code"


def test_each_shipped_class_is_defined_once_where_it_is_taught():
    defined = {}
    for path in LESSONS:
        for cell in code_cells(read(path)):
            for name in definitions(parsed(cell)):
                defined.setdefault(name, []).append(number(path))
    written = {number(path) for path in LESSONS}
    taught = [(name, where) for module, where in TAUGHT_IN.items() for name in library(module)]
    for name, where in [*taught, *((name, (where,)) for name, (_, where) in BLOCKS.items())]:
        places = defined.get(name, [])
        assert len(places) <= 1, f"{name} is defined in {places}"
        if written >= set(where):
            assert set(places) & set(where), f"{name} is defined in {places}, not in one of {where}"


@lessons
def test_it_opens_and_closes_as_all_do(path):
    notebook = read(path)
    first, text = notebook.cells[0].source, markdown(notebook)
    assert first.startswith(f"# {number(path)} ")
    assert re.search(r"^\*[^*]+\?\*$", first, re.MULTILINE), "no question in italics on a line of its own"
    for heading in ("**You will**", "**Before this**", "**Time**", "**Equations**"):
        assert heading in first, f"{heading} is missing at the top"
    you_will = first[first.index("**You will**") : first.index("**Before this**")]
    goals = re.findall(r"^[*-] ", you_will, re.MULTILINE)
    assert 3 <= len(goals) <= 5, f"{len(goals)} goals"
    assert "predict first" in text.lower()
    assert number(path) == "00" or "bug of the day" in text.lower()
    assert "## What we built" in text
    quiz = text[text.index("## Quiz") :]
    assert quiz.count("<details>") == 3, "three questions with hidden answers"
    if path.stem != COURSE[-1]:
        following, ending = COURSE[COURSE.index(path.stem) + 1], quiz[quiz.index("**Next:**") :]
        written = (path.parent / f"{following}.ipynb").exists()
        assert (f"({following}.ipynb)" if written else "not written yet") in ending, "no way onward"


@every_notebook
def test_its_links_lead_somewhere(path):
    notebook = read(path)
    text = markdown(notebook)
    counts = {tag: text.count(tag) for tag in ("<details>", "</details>", "<summary>", "</summary>")}
    assert len(set(counts.values())) == 1, counts
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), f"no such file: {target}"


@every_notebook
def test_its_lights_go_by_their_two_names(path):
    """mrla-light is Eq. 8, mrla-light-released the public code's wiring; nothing else tells them apart."""
    text = "\n".join(cell.source + printed(cell) for cell in read(path).cells if cell.cell_type == "code")
    text += markdown(read(path))
    for word in ("light_carry", "carries_map", "light-own", "own carry"):
        assert word not in text, word


# Exercises

def hidden_solutions(notebook):
    """The code behind each of a lesson's "Solution", in order."""
    solutions = re.findall(r"<summary>Solution</summary>(.*?)</details>", markdown(notebook), re.DOTALL)
    return ["\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)) for text in solutions]


@lessons
def test_each_exercise_has_a_stub_two_hints_and_a_solution(path):
    notebook = read(path)
    stubs = tagged(notebook, "exercise")
    titles = re.findall(r"^## Exercise (\d) · .+$", markdown(notebook), re.MULTILINE)
    assert titles == [str(n + 1) for n in range(len(stubs))]
    if number(path) == "00":
        assert not stubs
        return
    assert 2 <= len(stubs) <= 4
    for n, stub in enumerate(stubs, start=1):
        assert printed(stub).strip() == f"exercise {n}: not attempted yet"
        place = notebook.cells.index(stub)
        task, answers = notebook.cells[place - 1].source, notebook.cells[place + 1].source
        assert f"## Exercise {n} · " in task, f"exercise {n}: its text does not stand before its stub"
        assert re.search(r"★{1,3}", task) and "minutes" in task
        assert re.findall(r"<summary>(.*?)</summary>", answers)[:3] == ["Hint 1", "Hint 2", "Solution"]


@solutions
def test_each_solution_passes_and_is_the_one_behind_the_lesson(path):
    hidden = hidden_solutions(read(ROOT / "notebooks" / path.name))
    solved = tagged(read(path), "solution")
    assert len(solved) == len(hidden)
    for n, (cell, shown) in enumerate(zip(solved, hidden, strict=True), start=1):
        assert printed(cell).strip().splitlines()[-1] == f"exercise {n}: passed"
        assert shown.strip(), f"exercise {n} has no code behind Solution"
        same = definitions(ast.parse(shown)) == definitions(parsed(cell))
        assert same, f"exercise {n}: two different solutions"


# nbval

SANITIZER = ROOT / "tests" / "nbval_sanitize.cfg"


def sanitized(text):
    for pattern, replacement in get_sanitize_patterns(SANITIZER.read_text(encoding="utf-8")):
        text = re.sub(pattern, replacement, text)
    return text


def test_nbval_reads_every_rule_of_the_sanitizer():
    text = SANITIZER.read_text(encoding="utf-8")
    rules = get_sanitize_patterns(text)
    assert len(rules) == text.count("\nregex:") == text.count("\nreplace:") == 2
    assert all(pattern and replacement for pattern, replacement in rules)


@pytest.mark.parametrize(("one", "other", "same"), [
    ("<f at 0x7f00aa11bb22>", "<f at 0x5c11dd33ee44>", True),
    ("[-0.0000,  0.5000]", "[ 0.0000,  0.5000]", True),
    ("[0.0000, 0.5000]", "[0.0001, 0.5000]", False),
    ("0.0000", "10.0000", False),
    ("0.5000", "-0.5000", False),
    ("-0.0010", "0.0010", False),
    ("shape (2, 3)", "shape (3, 2)", False),
])
def test_the_sanitizer_hides_what_may_differ_and_nothing_else(one, other, same):
    assert (sanitized(one) == sanitized(other)) is same


@pytest.fixture
def bench(tmp_path):
    """A folder with this repository's test settings, and a function that runs nbval on a notebook there."""
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "conftest.py", tmp_path)
    shutil.copy(SANITIZER, tmp_path / "tests")

    def run(notebook):
        nbformat.write(notebook, tmp_path / "it.ipynb")
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""}
        options = ["--nbval", "-p", "no:cacheprovider", "-q", "--color=no"]
        command = [sys.executable, "-m", "pytest", *options, "it.ipynb"]
        report = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        return report.stdout

    return run


def change_last_digit(text):
    """The text with its last digit that the sanitizer lets through changed; None if it has none."""
    for place in range(len(text) - 1, -1, -1):
        if text[place] in "0123456789":
            other = text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :]
            if sanitized(other) != sanitized(text):
                return other
    return None


def with_changed_numbers(notebook):
    """(the notebook with a digit changed in every compared cell, how many cells that were)."""
    changed = 0
    notebook = copy.deepcopy(notebook)
    for cell in compared(notebook, strict=True):
        for output in cell.outputs:
            wrong = change_last_digit(output.get("text", ""))
            if wrong is not None:
                output["text"] = wrong
                changed += 1
                break
    return notebook, changed


@pytest.mark.slow
def test_a_changed_number_fails_and_progress_bars_do_not(bench):
    notebook = nbformat.v4.new_notebook()
    sources = {"print(f'{1 / 3:.4f}')": "0.3333\n", "import sys\nprint('50 %', file=sys.stderr)": None}
    for count, (source, text) in enumerate(sources.items(), start=1):
        outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)] if text else []
        notebook.cells.append(nbformat.v4.new_code_cell(source, execution_count=count, outputs=outputs))
    assert "2 passed" in bench(notebook)
    wrong, changed = with_changed_numbers(notebook)
    report = bench(wrong)
    assert changed == 1 and "1 failed, 1 passed" in report, report


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in LESSONS if is_strict(path)], ids=lambda path: path.stem)
def test_a_changed_number_in_any_cell_fails(path, bench):
    wrong, changed = with_changed_numbers(read(path))
    assert changed >= 2
    report = bench(wrong)
    assert re.search(rf"\b{changed} failed\b", report), report[-3000:]
