"""What a lesson says in words of numbers beside it: of the committed records, and of its own outputs."""

import re
from pathlib import Path
from statistics import mean

from test_notebooks import LESSONS, markdown, number, read

from mrla_minimal.lab.evidence import load_records

ROOT = Path(__file__).parents[2]


def lesson(name):
    """The lesson whose number is `name`."""
    (path,) = [path for path in LESSONS if number(path) == name]
    return read(path)


def said(text, sentence):
    """Asserts that `text` holds `sentence`, however its lines are broken."""
    assert " ".join(sentence.split()) in " ".join(text.split()), sentence


def finals(suite):
    """{variant: {seed: test accuracy in percent}} of a committed suite's final runs."""
    accuracies = {}
    for record in load_records(ROOT / "data" / "results" / f"{suite}.jsonl"):
        if record["phase"] == "final" and "diverged" not in record:
            by_seed = accuracies.setdefault(record["variant"], {})
            by_seed[record["seed"]] = 100 * record["test_accuracy"]
    return accuracies


def points(accuracies, a, b):
    """The mean difference of two variants in points, over the seeds that both have."""
    seeds = accuracies[a].keys() & accuracies[b].keys()
    assert seeds, f"no seed has both {a} and {b}"
    return mean(accuracies[a][seed] - accuracies[b][seed] for seed in seeds)


def test_00_says_on_its_first_screen_what_the_released_light_costs():
    first = lesson("00").cells[0].source
    said(first, "about as bad as no memory at all, and some 30 points of accuracy below Eq. 8")
    accuracies = finals("amnesia-15")
    assert abs(points(accuracies, "mrla-light-released", "depthwise")) < 5
    assert 25 < points(accuracies, "mrla-light", "mrla-light-released") < 35


def test_06_says_on_its_first_screen_what_the_released_wiring_costs():
    first = lesson("06").cells[0].source
    said(first, "**The released code does not run Eq. 8.**")
    said(first, "before each layer but a stage's first, 15 % of the images have their residual stream wiped")
    said(first, "The released light is then no better than depthwise (v alone), which has no memory.")
    said(first, "Eq. 8 is some 30 points above both")
    runs = load_records(ROOT / "data" / "results" / "amnesia-15.jsonl")
    assert {run["config"]["wipe"] for run in runs} == {0.15}
    accuracies = finals("amnesia-15")
    assert points(accuracies, "mrla-light-released", "depthwise") < 1
    for other in ("mrla-light-released", "depthwise"):
        assert 25 < points(accuracies, "mrla-light", other) < 35


def test_06_lists_what_is_assumed_and_what_the_released_code_leaves_out():
    rows = re.findall(r"^\| \*\*(A\d)\*\* \| (.*) \| (.*) \|$", markdown(lesson("06")), re.MULTILINE)
    assert [name for name, *_ in rows] == ["A0", "A1", "A2", "A3", "A4", "A5"]
    words = ("who asks", "no softmax", "the one before, rescaled", "within a head", "all images", "carried")
    for (name, assumed, _), word in zip(rows, words, strict=True):
        assert word in assumed, name
    made = {name: answer.strip("*").split(":")[0] for name, _, answer in rows}
    assert made == {"A0": "yes", "A1": "in part", "A2": "no", "A3": "no", "A4": "yes", "A5": "no"}


def test_04_says_that_the_residual_sum_has_a_network():
    sentence = "each room adds to the stream what a **two-layer ReLU network** makes of its sign"
    said(markdown(lesson("04")), sentence)


def test_05_names_both_blind_spots_of_a_view():
    text = markdown(lesson("05"))
    said(text, "a view where a transpose is needed, has *two* blind spots: one head, and $t = 1$")
    said(text, "right at $t = 1$ and right with one head: two blind spots")
