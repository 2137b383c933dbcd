"""The explorable "The corridor": its script computes what its nets do, and they do what the course says."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from mrla_minimal.course.quiz import QuizModel, attention_weights, draw_corridors, verdict
from mrla_minimal.course.quiz_methods import METHODS

STATIC = Path(__file__).parents[1] / "site/static"
SOLVED = {"late": {"base"}, "early": {"base", "light"}}


def nets():
    """{question: {method: {accuracy, numbers}}}, as the page has them."""
    text = (STATIC / "corridor_nets.js").read_text(encoding="utf-8")
    return json.loads(text.partition("const CORRIDOR_NETS = ")[2].partition(";\n")[0])


def model_of(method, numbers):
    model = QuizModel(METHODS[method](4, 8), 4)
    model.load_state_dict({name: torch.tensor(values) for name, values in numbers.items()})
    return model.double().eval()


@pytest.mark.parametrize("question", ["late", "early"])
def test_the_nets_solve_what_the_course_says_they_solve(question):
    for method, net in nets()[question].items():
        x, right = draw_corridors(512, question, torch.Generator().manual_seed(1))
        answers = model_of(method, net["numbers"])(x.double()).argmax(dim=1)
        accuracy = (answers == right).double().mean().item()
        assert verdict(accuracy) == ("solved" if method in SOLVED[question] else "not solved")
        assert accuracy == pytest.approx(net["accuracy"], abs=0.1)


@pytest.mark.parametrize("question", ["late", "early"])
def test_the_script_computes_what_the_nets_compute(question):
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node, which runs the page's script outside a browser")
    x, _ = draw_corridors(16, question, torch.Generator().manual_seed(2))
    signs, asked = x[:, :8, :8].argmax(dim=2).tolist(), x[:, -1, 8:].argmax(dim=1).tolist()
    code = (f"const {{ answer, inputsOf }} = require({json.dumps(str(STATIC / 'corridor.js'))});"
            f"const nets = require({json.dumps(str(STATIC / 'corridor_nets.js'))}).{question};"
            f"const asked = {json.dumps(list(zip(signs, asked, strict=True)))}.map(([signs, room]) =>"
            f" inputsOf(signs, room, '{question}'));"
            "const answers = ([method, net]) => "
            "[method, asked.map(inputs => answer(net.numbers, method, inputs))];"
            "console.log(JSON.stringify([asked, Object.fromEntries(Object.entries(nets).map(answers))]))")
    run = subprocess.run([node, "-e", code], capture_output=True, text=True, timeout=60, check=True)
    inputs, found = json.loads(run.stdout)
    assert torch.equal(torch.tensor(inputs, dtype=x.dtype), x)
    for method, net in nets()[question].items():
        model, x = model_of(method, net["numbers"]), x.double()
        expected = {"read": model.method(x), "chances": model(x).softmax(dim=1)}
        weights = attention_weights(model, x)
        assert (weights is None) == (method in ("last", "mean"))
        if weights is not None:
            expected |= {"weights": weights, "keys": model.method.key(x), "queries": model.method.query(x)}
        for what, tensor in expected.items():
            shown = torch.tensor([one[what] for one in found[method]], dtype=torch.float64)
            torch.testing.assert_close(shown, tensor.detach(), rtol=0, atol=1e-6)
