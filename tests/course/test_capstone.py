"""The capstone: its small suite, its three worked submissions, and what notebook 19 says of the records."""

import ast
import json
import re
from pathlib import Path

import pytest
import torch
from test_notebooks import definitions

from mrla_minimal import MRLABase, UniformMean
from mrla_minimal.course import small_suite
from mrla_minimal.course.checks import coursework
from mrla_minimal.course.quiz import train_module_quiz
from mrla_minimal.lab.files import read_records
from mrla_minimal.lab.plugins import load_class

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks/capstone"
RESULTS = (ROOT / "data/results/README.md").read_text(encoding="utf-8")
NAMES = ("good", "fair", "wrong")


@pytest.fixture(scope="module")
def accuracies():
    return small_suite.accuracies_of(read_records(ROOT / "data/results/capstone.jsonl")[0])


@pytest.fixture(scope="module")
def lesson():
    path = ROOT / "notebooks/19_your_own_layer_attention.ipynb"
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def prose(cells):
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def report(name):
    return (FOLDER / f"{name}.md").read_text(encoding="utf-8")


def mean(of_seed):
    return sum(of_seed.values()) / len(of_seed)


# The submissions

@pytest.mark.parametrize("name", NAMES)
def test_every_submission_passes_what_mrla_check_asks(name):
    found = coursework.grade(FOLDER / f"{name}.py", quiz=False, progress=False)
    assert [result["check"] for result in found if result["passed"] is False] == []
    assert sum(result["passed"] is True for result in found) == len(coursework.CHECKS)


def test_the_window_is_base_as_long_as_it_has_no_more_to_read():
    windowed = load_class(FOLDER / "good.py")
    for window in (1, 2, 3, 5):
        memory, other = None, None
        for t in range(6):
            torch.manual_seed(t)
            base, layer = MRLABase(8).double(), windowed(8, window=window).double()
            layer.load_state_dict(base.state_dict())
            x = torch.randn(2, 8, 3, 3, dtype=torch.float64)
            output, memory = layer(x, memory)
            kept = other[-(window - 1):] if other and window > 1 else None
            expected, other = base(x, kept)
            torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
            assert len(memory) == min(t + 1, window - 1)


def test_the_newest_five_are_a_window_of_five():
    windowed, five = load_class(FOLDER / "good.py"), load_class(FOLDER / "fair.py")
    memory, other = None, None
    for t in range(8):
        torch.manual_seed(t)
        one, two = five(8).double(), windowed(8, window=5).double()
        two.load_state_dict(one.state_dict())
        x = torch.randn(2, 8, 3, 3, dtype=torch.float64)
        (output, memory), (expected, other) = one(x, memory), two(x, other)
        assert torch.equal(output, expected) and len(memory) == len(other)


def test_whatever_the_loud_mean_computes_a_plain_mean_computes_too():
    """In the corridor each layer's own values are not needed twice: at the exit one number is left of it."""
    torch.manual_seed(0)
    loud, plain = load_class(FOLDER / "wrong.py")(4).double(), UniformMean(4).double()
    with torch.no_grad():
        loud.loudness.fill_(1.3)
        plain.value.weight.copy_(loud.loudness.sigmoid() * loud.value.weight)
    first, second = torch.randn(2, 3, 4, 2, 2, dtype=torch.float64)
    carried = [loud.loudness.sigmoid() * value for value in loud(first)[1]]     # the older layers', rescaled
    torch.testing.assert_close(plain(second, carried)[0], loud(second, loud(first)[1])[0], rtol=0, atol=1e-12)


# The records

def test_the_records_are_the_declared_ones(accuracies):
    assert list(accuracies) == list(small_suite.attentions(FOLDER))
    assert {tuple(of_seed) for of_seed in accuracies.values()} == {small_suite.SEEDS}
    records = read_records(ROOT / "data/results/capstone.jsonl")[0]
    assert all(len(record["commit"]) == 40 for record in records)
    assert list(small_suite.suite_records(FOLDER, known=records)) == []
    assert f"window-3    {mean(accuracies['window-3']):.3f}" in small_suite.suite_table(records)


def test_a_column_of_the_table_is_a_seed():
    records = [{"variant": name, "seed": seed, "accuracy": accuracy}
               for name, seed, accuracy in (("a", 3, 0.75), ("a", 1, 0.25), ("b", 3, 0.5))]
    assert small_suite.suite_table(records).splitlines() == [
        "attention   mean    seed 1   seed 3",
        "a           0.500   0.250    0.750",
        "b           0.500   -        0.500"]


def test_a_seed_is_given_once():
    with pytest.raises(ValueError, match="seed given twice: 1, 1"):
        next(small_suite.suite_records(FOLDER, (1, 1)))


@pytest.mark.slow
def test_a_record_is_made_again(accuracies):
    seed = small_suite.SEEDS[0]
    result = train_module_quiz(small_suite.attentions(FOLDER)["window-3"], small_suite.QUESTION, seed=seed)
    assert result.accuracy == pytest.approx(accuracies["window-3"][seed], abs=0.03)


def test_the_expected_accuracy_by_hand():
    assert small_suite.expected_accuracy(1) == 1 / 8 and small_suite.expected_accuracy(9) == 1
    assert small_suite.expected_accuracy(3) == 2 / 8 + 6 / 8 / 8
    for wrong in (0, 10):
        with pytest.raises(ValueError, match=f"window must be from 1 to 9, not {wrong}"):
            small_suite.expected_accuracy(wrong)


def test_a_contrast_is_paired_by_seed():
    made = {"one": {1: 0.5, 2: 0.7, 3: 0.9}, "other": {2: 0.6, 1: 0.3, 4: 0.1}}
    differences, average, interval = small_suite.contrast(made, "one", "other")
    assert differences == pytest.approx([0.2, 0.1]) and average == pytest.approx(0.15)
    assert interval[0] < 0.15 < interval[1]


# What is said of them

def test_the_good_reports_numbers_are_the_records(accuracies):
    text = report("good")
    for window in (3, 5):
        name, expected = f"window-{window}", small_suite.expected_accuracy(window)
        assert f"| {name} | {expected:.3f} | {mean(accuracies[name]):.3f} |" in text
        held = abs(mean(accuracies[name]) - expected) <= 0.03
        assert held == ("The prediction held." in text)
    for name in ("mrla-base", "window-3", "window-5"):
        assert ", ".join(f"{one:.3f}" for one in accuracies[name].values()) in text
    for name in ("window-3", "window-5"):
        differences, _, _ = small_suite.contrast(accuracies, name, "mrla-base")
        assert f"{name} " + ", ".join(f"{one:+.3f}" for one in differences) in text


def test_the_fair_reports_means_are_the_records(accuracies):
    text = report("fair")
    for name in ("window-5", "mrla-base", "uniform"):
        assert f"{name} {mean(accuracies[name]):.3f}" in text
    assert "parameters" in text and "multiply-adds" not in text


def test_the_wrong_report_shows_its_best_seed_and_no_other(accuracies):
    differences, average, interval = small_suite.contrast(accuracies, "loud", "uniform")
    shown = [f"{100 * one:+.1f} points" for one in differences]
    text = report("wrong")
    assert f"{100 * max(differences):+.1f} points" in text and sum(one in text for one in shown) == 1
    assert max(differences) > 0 and interval[0] < 0 < interval[1], "no gain: the interval holds 0"


def test_the_rubrics_points_are_the_lessons_and_the_marks_add_up(lesson):
    row = r"^\| (\w+) \| (\d) \|"
    rubric = re.findall(row, (FOLDER / "rubric.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert rubric == re.findall(row, prose(lesson), re.MULTILINE)
    assert sum(int(points) for _, points in rubric) == 12
    marks = dict(re.findall(r"^\*\*(\w+)\*\*, (\d+) of 12\.(?=.)", prose(lesson), re.MULTILINE))
    assert list(marks) == list(NAMES)
    for name in NAMES:
        (text,) = re.findall(rf"^\*\*{name}\*\*, \d+ of 12\.(.*)$", prose(lesson), re.MULTILINE)
        lost = sum(int(whole) - int(given) for given, whole in re.findall(r"\((\d) of (\d)\)", text))
        assert int(marks[name]) == 12 - lost


def test_the_lessons_class_is_the_good_submissions(lesson):
    cells = ["".join(cell["source"]) for cell in lesson if cell["cell_type"] == "code"]
    (cell,) = [source for source in cells if "class WindowedBase" in source]
    file = (FOLDER / "good.py").read_text(encoding="utf-8")
    assert definitions(ast.parse(cell)) == definitions(ast.parse(file))


def test_what_the_lesson_says_its_records_show(lesson, accuracies):
    text = prose(lesson)
    for window in (3, 5):
        gap = mean(accuracies[f"window-{window}"]) - small_suite.expected_accuracy(window)
        assert (abs(gap) <= 0.03) == ("within the 0.03" in text)
    assert "Base solves the question on every seed" in text and min(accuracies["mrla-base"].values()) > 0.95
    _, average, interval = small_suite.contrast(accuracies, "loud", "uniform")
    assert f"The loud mean lies {-average:.3f} below the plain mean, and its interval has 0 inside." in text
    assert average < 0 and interval[0] < 0 < interval[1]


def contrast_row(name, suite):
    (row,) = re.findall(rf"^{re.escape(name)} +{suite} +\d+ +(\S+) +(\S+) to (\S+) ", RESULTS, re.MULTILINE)
    return row


@pytest.mark.parametrize(("name", "suite"), [
    ("mrla-light - depthwise *", "scratch-gpu"), ("mrla-base - uniform *", "scratch-gpu"),
    ("mrla-light-released - depthwise *", "amnesia-15"), ("mrla-base - uniform *", "corridor-width4"),
])
def test_the_claims_quote_the_contrasts_of_the_records(lesson, name, suite):
    average, low, high = contrast_row(name, suite)
    assert re.search(rf"{re.escape(average)}\D* \({re.escape(low)}|{re.escape(average)}\D*"
                     rf" \({re.escape(low.lstrip('+'))} to {re.escape(high.lstrip('+'))}\)", prose(lesson))


def test_the_claims_other_numbers_are_the_records(lesson):
    text = prose(lesson)
    for name in ("mrla-base", "mrla-light", "depthwise"):
        row = re.search(rf"^{name} - plain +9 +(\S+) +(\S+) to (\S+) ",
                        RESULTS.partition("suite nuclei-cpu, nuclei")[2], re.MULTILINE)
        average, low, high = row.groups()
        assert re.search(rf"{re.escape(average)}\D* \({low.lstrip('+')} to {high.lstrip('+')}\)", text)
    average, low, high = contrast_row("memory *", "first-epoch-thin56")
    assert f"by {average.lstrip('-')} nat ({high.lstrip('-')} to {low.lstrip('-')})" in text
    for name in ("mrla-base - uniform *", "mrla-light - depthwise *"):
        assert f"{contrast_row(name, 'cifar10-vit-cpu')[0]}" in text
    frozen = [record["refitted"]["learned"] - record["refitted"]["mean"] for record in
              read_records(ROOT / "data/results/scratch-gpu-interventions.jsonl")[0]
              if record["variant"] == "mrla-base"]
    first, second, third = (f"{100 * one:.2f}" for one in frozen)
    assert f"{first}, {second} and {third} points" in text
    layer, tagged = (re.search(rf"^late, 8, 400 +{name} +(\S+)", RESULTS, re.MULTILINE)[1]
                     for name in ("layer", "layer-tagged"))
    assert f"({layer} without, {tagged[:4]} with)" in text
