"""The explorables "The corridor" and "Who must know?": their scripts compute what their nets do, and these do
what the course says."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from mrla_minimal.course.quiz import (
    METHODS,
    QuizModel,
    asked_rooms,
    attention_weights,
    draw_corridors,
    verdict,
)
from mrla_minimal.lab.files import read_records

ROOT = Path(__file__).parents[1]
STATIC = ROOT / "site/static"
SOLVED = {"late": {"base"}, "early": {"base", "light"}}


WIDTHS = ("4", "8")
ASKED = {"number": "late", "lamp": "lamp", "colour": "colour"}
# in which question each memory of the square finds the room: notebook 14
KNOWS = {"denseformer": set(), "attnres": {"lamp"}, "mudd": {"number"}, "base": {"number", "lamp", "colour"}}


def nets(file="corridor_nets.js"):
    """{width: {question: {method: {accuracy, numbers}}}} or {question: {memory: ...}}, as a page has them."""
    text = (STATIC / file).read_text(encoding="utf-8")
    return json.loads(text.partition("_NETS = ")[2].partition(";\n")[0])


def model_of(method, numbers, width=4):
    model = QuizModel(METHODS[method](width, 8), width)
    model.load_state_dict({name: torch.tensor(values) for name, values in numbers.items()})
    return model.double().eval()


def accuracy_of(model, question):
    x, right = draw_corridors(512, question, torch.Generator().manual_seed(1))
    return (model(x.double()).argmax(dim=1) == right).double().mean().item()


def run_script(code):
    """What a script of the page's, run by node, prints as JSON."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node, which runs the page's script outside a browser")
    run = subprocess.run([node, "-e", code], capture_output=True, text=True, timeout=60, check=True)
    return json.loads(run.stdout)


def required(file):
    return f"require({json.dumps(str(STATIC / file))})"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("question", ["late", "early"])
def test_the_nets_solve_what_the_course_says_they_solve(width, question):
    for method, net in nets()[width][question].items():
        accuracy = accuracy_of(model_of(method, net["numbers"], int(width)), question)
        assert verdict(accuracy) == ("solved" if method in SOLVED[question] else "not solved")
        assert accuracy == pytest.approx(net["accuracy"], abs=0.1)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("question", ["late", "early"])
def test_the_script_computes_what_the_nets_compute(width, question):
    x, _ = draw_corridors(16, question, torch.Generator().manual_seed(2))
    signs, asked = x[:, :8, :8].argmax(dim=2).tolist(), x[:, -1, 8:].argmax(dim=1).tolist()
    inputs, found = run_script(
        f"const {{ answer, inputsOf }} = {required('corridor.js')};"
        f"const nets = {required('corridor_nets.js')}[{width}].{question};"
        f"const asked = {json.dumps(list(zip(signs, asked, strict=True)))}.map(([signs, room]) =>"
        f" inputsOf(signs, room, '{question}'));"
        "const answers = ([method, net]) => "
        "[method, asked.map(inputs => answer(net.numbers, method, inputs))];"
        "console.log(JSON.stringify([asked, Object.fromEntries(Object.entries(nets).map(answers))]))")
    assert torch.equal(torch.tensor(inputs, dtype=x.dtype), x)
    for method, net in nets()[width][question].items():
        model, x = model_of(method, net["numbers"], int(width)), x.double()
        expected = {"read": model.method(x), "chances": model(x).softmax(dim=1)}
        weights = attention_weights(model, x)
        assert (weights is None) == (method in ("last", "mean"))
        if weights is not None:
            expected |= {"weights": weights, "keys": model.method.key(x), "queries": model.method.query(x)}
        assert_shown(found[method], expected)


def assert_shown(found, expected):
    """Each number that a script computed is Python's to 1e-6."""
    for what, tensor in expected.items():
        shown = torch.tensor([one[what] for one in found], dtype=torch.float64)
        torch.testing.assert_close(shown, tensor.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("question", ASKED)
def test_the_square_stands_as_the_records_say(question):
    records = read_records(ROOT / "data/results/who-knows.jsonl")[0]
    for memory, net in nets("square_nets.js")[question].items():
        accuracy = accuracy_of(model_of(memory, net["numbers"]), ASKED[question])
        assert verdict(accuracy) == ("solved" if question in KNOWS[memory] else "not solved")
        recorded = [record["accuracy"] for record in records
                    if (record["method"], record["question"]) == (memory, ASKED[question])]
        assert len(recorded) == 5 and {verdict(one) for one in recorded} == {verdict(accuracy)}
        assert net["accuracy"] == pytest.approx(accuracy, abs=0.1)


@pytest.mark.parametrize("question", ASKED)
def test_the_squares_script_computes_what_the_nets_compute(question):
    x, _ = draw_corridors(16, ASKED[question], torch.Generator().manual_seed(2))
    rooms, told = x[:, :8, 8:], x[:, -1, 8:]
    asked = asked_rooms(x, ASKED[question]).argmax(dim=1)
    signs, colours = x[:, :8, :8].argmax(dim=2), rooms.argmax(dim=2)
    drawn = zip(signs.tolist(), asked.tolist(), colours.tolist(), strict=True)
    inputs, found = run_script(
        f"const {{ answerSquare, squareInputs }} = {required('square.js')};"
        f"const nets = {required('square_nets.js')}.{question};"
        f"const asked = {json.dumps(list(drawn))}.map(([signs, room, colours]) =>"
        f" squareInputs(signs, room, '{question}', colours));"
        "const answers = ([memory, net]) => "
        "[memory, asked.map(inputs => answerSquare(net.numbers, memory, inputs))];"
        "console.log(JSON.stringify([asked, Object.fromEntries(Object.entries(nets).map(answers))]))")
    assert torch.equal(torch.tensor(inputs, dtype=x.dtype), x) and told.any() == (question != "lamp")
    assert set(found) == set(KNOWS)
    for memory, net in nets("square_nets.js")[question].items():
        model, x = model_of(memory, net["numbers"]), x.double()
        assert_shown(found[memory], {"read": model.method(x), "chances": model(x).softmax(dim=1),
                                     "weights": attention_weights(model, x)})
