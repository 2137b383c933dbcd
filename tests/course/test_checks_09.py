"""Notebook 09: its checkers name plausible mistakes; and its cells that read records, in every state of
data/results.
"""

import ast
import contextlib
import dataclasses
import io
import math

import matplotlib
import pytest
import torch
from notebook_answers import NOTEBOOKS, assert_wrong, code_cells
from torch import nn

from mrla_minimal import MRLALight
from mrla_minimal.course.checks.ablating import check_blend, check_reach, check_three_effects
from mrla_minimal.lab import evidence
from mrla_minimal.lab.evidence.jobs import final_jobs
from mrla_minimal.lab.files import append_record
from mrla_minimal.layer_attention import (
    channel_convolution,
    per_channel,
    pool,
    split_heads,
    value_convolution,
)
from mrla_minimal.shapes import choose_head_dim

NAME = "09_which_part_matters.ipynb"


# Exercise 1

def three_effects(table, own=lambda gain: gain.mean((1, 2)), depth=lambda gain: gain[:, 1] - gain[:, 0],
                  width=lambda gain: gain[:, :, 1] - gain[:, :, 0], over=lambda part: part.mean(1)):
    """The right answer, where each keyword makes one mistake."""
    gain = table[:, 1] - table[:, 0]
    return {
        "attention": own(gain),
        "attention x depth": over(depth(gain)),
        "attention x width": over(width(gain)),
    }


def of_accuracy(table):
    by_depth = (table[:, :, 1] - table[:, :, 0]).mean((1, 2))
    return three_effects(table) | {"attention x depth": by_depth}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            lambda table: three_effects(table, own=lambda gain: gain.sum((1, 2))),
            "a sum over the other factors",
        ),
        (lambda table: three_effects(table, over=lambda part: part.sum(1)), "a sum over the other factors"),
        (lambda table: three_effects(table, over=lambda part: part.mean(1) / 2), "is halved"),
        (lambda table: three_effects(table, over=lambda part: part[:, 0]), "one level of the other factor"),
        (lambda table: three_effects(table, over=lambda part: -part.mean(1)), "wrong sign"),
        (lambda table: three_effects(-table), "wrong sign"),
        (lambda table: three_effects(table.transpose(2, 3)), "the wrong way round"),
        (lambda table: three_effects(table.transpose(1, 2)), "averaged over the four sizes"),
        (of_accuracy, "take the gains first"),
        (
            lambda table: three_effects(table) | {"attention": table[:, 1, 1, 1] - table[:, 0, 1, 1]},
            "averaged over the four sizes",
        ),
        # the seeds are gone
        (lambda table: {name: effect.mean() for name, effect in three_effects(table).items()}, "is ()"),
        (lambda table: three_effects(table)["attention"], "a dictionary with the keys"),
        (lambda table: three_effects(table * math.nan), "contains NaN"),
        # five seeds only
        (lambda table: three_effects(table[:5].reshape(5, 2, 2, 2)), "your code raises"),
    ],
)
def test_wrong_effects_are_named(answer, words):
    assert_wrong(check_three_effects, answer, words)


def test_a_dictionary_of_nothing_is_a_stub():
    assert check_three_effects.judge(lambda table: dict.fromkeys(three_effects(table)))[0] == "not attempted"


# Exercise 2

def reach(lambdas, first=1, last=1, summary=lambda beta: beta.abs().median()):
    layers = len(lambdas)
    table = torch.zeros(layers, layers, dtype=lambdas[0].dtype)
    for s in range(layers):
        for t in range(s, layers):
            factors = lambdas[s + first : t + last]
            table[t, s] = summary(torch.stack(factors).prod(0) if factors else torch.ones_like(lambdas[0]))
    return table


def by_logarithms(lambdas):
    rows = torch.stack(lambdas).abs().log().cumsum(0)
    return (rows[:, None] - rows[None]).exp().median(-1).values.tril()


def product_of_medians(lambdas):
    return reach([row.abs().median()[None] for row in lambdas])


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda lambdas: reach(lambdas).T, "rows and columns are exchanged"),
        (lambda lambdas: reach(lambdas) + reach(lambdas).T.triu(1), "above the diagonal"),
        (lambda lambdas: reach(lambdas, first=0), "by lambda^s too"),
        (lambda lambdas: reach(lambdas, last=0), "lambda^t is missing"),
        (lambda lambdas: reach(lambdas, first=0, last=0), "one layer early"),
        (lambda lambdas: reach(lambdas, summary=lambda beta: beta.median()), "signed betas"),
        (
            lambda lambdas: reach(lambdas, summary=lambda beta: beta.median().abs()),
            "before the median, not after",
        ),
        (lambda lambdas: reach(lambdas, summary=lambda beta: beta.abs().mean()), "mean over channels"),
        # agrees for 7 channels
        (lambda lambdas: reach(lambdas, summary=lambda beta: beta.abs().quantile(0.5)), "take the lower one"),
        (product_of_medians, "multiplied medians"),
        (by_logarithms, "NaN"),  # right until a lambda is 0
        (lambda lambdas: reach(lambdas) - torch.eye(len(lambdas)), "diagonal should be 1"),
        (lambda lambdas: reach(lambdas).square(), "right on its diagonal"),
        (lambda lambdas: reach(lambdas)[1:], "is (4, 5)"),
        (lambda lambdas: reach(lambdas) if len(lambdas) > 1 else torch.zeros(1, 1), "with one layer"),
    ],
)
def test_wrong_reaches_are_named(answer, words):
    assert_wrong(check_reach, answer, words)


# Exercise 3

class Blend(nn.Module):
    """The right answer; classes below change one thing."""

    largest = 32

    def __init__(self, channels, head_dim=None):
        super().__init__()
        self.head_dim = choose_head_dim(channels, head_dim, largest=self.largest)
        self.query, self.key, self.value = (
            channel_convolution(channels),
            channel_convolution(channels),
            value_convolution(channels),
        )

    def gate(self, x):
        query, key = (split_heads(part(pool(x)), self.head_dim) for part in (self.query, self.key))
        return torch.sigmoid((query * key).sum(-1) / math.sqrt(self.head_dim))

    def mix(self, gate, old, new):
        return (1 - gate) * old + gate * new

    def forward(self, x, memory=None):
        value = self.value(x)
        output = self.mix(
            per_channel(self.gate(x), value), torch.zeros_like(value) if memory is None else memory, value
        )
        return output, output


def changed(**attributes):
    return type("Changed", (Blend,), attributes)


def gate_without_scale(self, x):
    gate = Blend.gate(self, x)
    return torch.sigmoid(torch.logit(gate) * math.sqrt(self.head_dim))


def gate_without_sigmoid(self, x):
    return torch.logit(Blend.gate(self, x))


def gate_of_all_heads(self, x):
    return torch.sigmoid(torch.logit(Blend.gate(self, x)).mean(1, keepdim=True)).expand(
        -1, self.value.weight.shape[0] // self.head_dim
    )


def forward_with_entry(self, x, memory=None):
    output, _ = Blend.forward(self, x, memory)
    return output, self.value(x)


def forward_cut(self, x, memory=None):
    return Blend.forward(self, x, None if memory is None else memory.detach())


def forward_in_place(self, x, memory=None):
    output, _ = Blend.forward(self, x, memory)
    if memory is not None:
        memory.copy_(output)
    return output, output


def forward_with_state(self, x, memory=None):
    output, _ = Blend.forward(self, x, getattr(self, "last", None) if memory is None else memory)
    self.last = output.detach()
    return output, output


class Scaled(Blend):
    def __init__(self, channels, head_dim=None):
        super().__init__(channels, head_dim)
        self.lambda_o = nn.Parameter(torch.ones(channels))


class Detached(Blend):
    def gate(self, x):
        return super().gate(x).detach()


@pytest.mark.parametrize(("answer", "words"), [
    (changed(mix=lambda self, gate, old, new: gate * old + (1 - gate) * new), "the wrong way round"),
    # agrees at t = 1
    (changed(mix=lambda self, gate, old, new: old + gate * new), "old map is not scaled"),
    (changed(mix=lambda self, gate, old, new: gate * new), "the old map is missing"),
    (changed(mix=lambda self, gate, old, new: (1 - gate) * old + new), "at layer 1"),
    (changed(gate=gate_without_scale), "1 / sqrt(d)"),
    (changed(gate=gate_without_sigmoid), "bare product"),
    # agrees with one head
    (changed(gate=gate_of_all_heads), "one for all heads"),
    (changed(forward=forward_with_entry), "the output O^t itself"),
    (changed(forward=forward_cut), "is the memory detached"),
    (changed(forward=forward_in_place), "in place"),
    (changed(forward=forward_with_state), "keeps something between calls"),
    (changed(forward=lambda self, x, memory=None: self.value(x)), "return two things"),
    (changed(gate=lambda self, x: Blend.gate(self, x) * math.nan), "contains NaN"),
    (changed(largest=16), "32 of 64 channels"),
    (Scaled, "the parameter lambda_o besides"),
    (Detached, "no finite gradient"),
    (MRLALight, "the parameter lambda_o besides"),
    (nn.Identity, "raises"),
    (lambda x, memory: (x, x), "a class made from nn.Module"),
])
def test_wrong_blends_are_named(answer, words):
    assert_wrong(check_blend, answer, words)


# The cells that read records: with none, one seed, two and three, and with runs that are missing

def runs_of(suite, seeds, leave_out=()):
    """Made-up records of a suite, a line each as `mrla compare` writes them."""
    suite = evidence.SUITES[suite]
    rates = dict.fromkeys(suite.variants, 0.1) if suite.rates else None
    for number, job in enumerate(final_jobs(suite, suite.variants, seeds, rates)):
        if job.variant not in leave_out:
            config = dataclasses.asdict(job.config)
            loss = 2 + 0.01 * ((5 * number) % 13)
            yield {
                "id": job.id,
                "suite": suite.name,
                "variant": job.variant,
                "seed": job.config.seed,
                "phase": "final",
                "note": suite.note,
                "learning_rate": job.config.learning_rate,
                "recipe": suite.recipe_of(config),
                "config": config,
                "test_accuracy": 0.9 + 0.001 * ((7 * number) % 11),
                "metrics": [{"epoch": 1, "train_loss": loss, "test_loss": loss}],
                "source": "cifar10",
                "fingerprint": "made up",
            }


def all_runs(seeds, leave_out=()):
    return [run for suite in ("amnesia-15", "first-epoch-thin56", "corridor-width4", "corridor-width8")
            for run in runs_of(suite, seeds, leave_out)]


STATES = {
    "no records": ([], 0, "no records yet"),
    "one seed": (all_runs((0,)), 3, "no interval from one seed"),
    "two seeds": (all_runs((0, 1)), 3, "width 8: base - uniform, n = 2"),
    "three seeds": (all_runs((0, 1, 2)), 3, "peak rate   mrla-base   base-zero-query"),
    "a corner is missing": (all_runs((0, 1), ("depthwise-carry",)), 2, "95 % "),
    "without base": (all_runs((0, 1), ("mrla-base",)), 3, "memory x gate"),
}


def is_plain(node):
    """A definition, an import, or a constant: what cells that read records may lean on."""
    return isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)) or (
        isinstance(node, ast.Assign)
        and all(isinstance(target, ast.Name) and target.id.isupper() for target in node.targets)
    )


@pytest.mark.parametrize("state", STATES)
def test_cells_that_read_records_run(state, tmp_path, monkeypatch):
    records, figures, words = STATES[state]
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "data" / "results").mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "mrla-minimal"\n')
    for record in records:
        append_record(tmp_path / "data" / "results" / f"{record['suite']}.jsonl", record)
    monkeypatch.chdir(tmp_path / "notebooks")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    names, said = {}, io.StringIO()
    with contextlib.redirect_stdout(said):
        for source, tags in code_cells(NOTEBOOKS / NAME):
            if "setup" in tags or "exercise" in tags:
                continue
            tree = ast.parse(source)
            if "records" not in tags:
                tree.body = [node for node in tree.body if is_plain(node)]
            exec(compile(tree, NAME, "exec"), names)
    for figure in shown:
        figure.canvas.draw()
    plt.close("all")
    assert len(shown) == figures
    assert words in said.getvalue(), said.getvalue()
    assert "nan" not in said.getvalue().lower()
