"""The corridor quiz: each method solves what it is for and nothing else, as vectors and with the library's
modules.
"""

import functools
import itertools
import json

import numpy as np
import pytest
import torch

from mrla_minimal import MRLABase, MRLALight, UniformMean
from mrla_minimal.course import quiz, quiz_records
from mrla_minimal.course.quiz_family import VectorAttentionResiduals
from mrla_minimal.course.quiz_methods import METHODS
from mrla_minimal.family.depth_weights import (
    AttentionResiduals,
    BlockAttentionResiduals,
    DenseFormer,
    KeyCorrelatedAttention,
    MUDDFormer,
)

QUICK = 200         # steps that solve what 400 solve, in the vector form


@pytest.fixture(scope="module")
def trained():
    """Each vector-form run once, whatever the number of tests that look at it."""
    return functools.cache(
        lambda method, question, steps=QUICK, **more: quiz.train_quiz(method, question, steps=steps, **more)
    )


@pytest.mark.parametrize("question", quiz.QUESTIONS)
def test_corridors_hold_the_answer_in_the_room_asked_for(question):
    x, answer = quiz.draw_corridors(500, question, torch.Generator().manual_seed(3))
    assert x.shape == (500, quiz.LAYERS, quiz.INPUTS) and answer.shape == (500,)
    one_hot = quiz.asked_rooms(x, question)
    assert one_hot.shape == (500, quiz.ROOMS) and (one_hot.sum(dim=1) == 1).all()
    asked = one_hot.argmax(dim=-1)
    assert torch.equal(x[torch.arange(500), asked, :quiz.SIGNS].argmax(dim=-1), answer)
    assert len(asked.unique()) == quiz.ROOMS and len(answer.unique()) == quiz.SIGNS
    assert x[:, -1, :quiz.SIGNS].sum() == 0                              # no sign hangs at the exit
    assert (x[:, :quiz.ROOMS, :quiz.SIGNS].sum(dim=-1) == 1).all()


def test_who_knows_the_room_is_what_the_question_says():
    """Read off the inputs anew: what rooms are told, and what the exit is told."""
    rooms, told = {}, {}
    for question in quiz.QUESTIONS:
        x, _ = quiz.draw_corridors(500, question, torch.Generator().manual_seed(3))
        rooms[question], told[question] = x[:, : quiz.ROOMS, quiz.SIGNS :], x[:, -1, quiz.SIGNS :]
    assert rooms["late"].sum() == 0 and (told["late"].sum(dim=-1) == 1).all()
    assert torch.equal(rooms["early"], told["early"][:, None].expand_as(rooms["early"]))
    assert told["lamp"].sum() == 0 and (rooms["lamp"].sum(dim=(1, 2)) == 1).all()
    assert rooms["lamp"][:, :, 1:].sum() == 0                            # one lamp, no number beside it
    colours, told = rooms["colour"], told["colour"]
    assert (colours.sum(dim=1) == 1).all() and (colours.sum(dim=2) == 1).all()      # each colour hangs once
    assert (told.sum(dim=-1) == 1).all()
    shares = colours.mean(dim=0)                                         # neither the room ...
    assert (shares - 1 / quiz.ROOMS).abs().max() < 0.06                  # ... nor a colour tells the other


def test_training_never_sees_the_unseen_corridors():
    unseen, _ = quiz.unseen_corridors("late")
    assert torch.equal(unseen, quiz.unseen_corridors("late")[0])
    for seed in (0, 1, quiz.TEST_SEED - 1):
        training, _ = quiz.draw_corridors(len(unseen), "late", torch.Generator().manual_seed(seed))
        assert not torch.equal(unseen, training)


@pytest.mark.parametrize("steps", [QUICK, pytest.param(400, marks=pytest.mark.slow)])
@pytest.mark.parametrize("question, method, expected", [
    ("late", "last", "not solved"), ("late", "mean", "not solved"), ("late", "residual", "not solved"),
    ("late", "light", "not solved"), ("late", "layer", "not solved"), ("late", "layer-tagged", "solved"),
    ("late", "base", "solved"),
    ("early", "last", "not solved"), ("early", "mean", "not solved"), ("early", "residual", "solved"),
    ("early", "light", "solved"), ("early", "base", "solved"),
    ("late", "denseformer", "not solved"), ("lamp", "denseformer", "not solved"),
    ("late", "mudd", "solved"), ("lamp", "mudd", "not solved"),
    ("late", "attnres", "not solved"), ("lamp", "attnres", "solved"), ("colour", "attnres", "not solved"),
    ("lamp", "kcla", "solved"), ("lamp", "base", "solved"),
    ("colour", "mudd", "not solved"),
])
def test_vector_form(trained, question, method, expected, steps):
    accuracy = trained(method, question, steps=steps).accuracy
    assert quiz.verdict(accuracy) == expected, accuracy


def test_last_alone_guesses(trained):
    assert abs(trained("last", "late").accuracy - 1 / quiz.SIGNS) < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("question, method", [
    ("colour", "base"), ("colour", "attnres-query"), ("lamp", "rla")])
def test_in_500_steps(trained, question, method):
    assert quiz.verdict(trained(method, question, steps=500).accuracy) == "solved"


@pytest.mark.slow
def test_streams_hold_a_few_rooms_apart_and_no_more(trained):
    late, lamp = (trained("hyper-connections", question, steps=500) for question in ("late", "lamp"))
    assert 0.5 < late.accuracy < 0.9 and quiz.verdict(lamp.accuracy) == "solved"


@pytest.mark.slow
@pytest.mark.parametrize("method, expected", [("base", "solved"), ("base-no-softmax", "not solved")])
def test_with_short_keys_base_needs_its_softmax(trained, method, expected):
    assert quiz.verdict(trained(method, "late", steps=400, key_dim=2).accuracy) == expected


@pytest.mark.parametrize("method, question", [("base", "late"), ("layer-tagged", "late"), ("light", "early")])
def test_what_attention_chooses_matters(trained, method, question):
    result = trained(method, question)
    for how in quiz.INTERVENTIONS:
        assert quiz.accuracy_without_choice(result, how) < 0.4
    x, answer = quiz.unseen_corridors(question)                          # and the model is as it was
    assert (result.model(x).argmax(dim=-1) == answer).float().mean().item() == result.accuracy


def test_interventions_replace_the_weights(trained):
    model = trained("base", "late").model
    x, _ = quiz.unseen_corridors("late")
    weights = quiz.attention_weights(model, x)
    assert weights.shape == (quiz.TEST_CORRIDORS, quiz.LAYERS)
    assert torch.allclose(weights.sum(dim=-1), torch.ones(len(x)), atol=1e-5)
    uniform = torch.full_like(weights, 1 / quiz.LAYERS)
    with quiz._weights_through(model, lambda _: uniform):
        held = model.method(x)
    assert torch.allclose(held, model.method.value(x).mean(dim=1), atol=1e-5)
    assert quiz.accuracy_without_choice(trained("mean", "late"), "mean") is None


@pytest.mark.parametrize("method, question", [("base", "late"), ("light", "early")])
def test_weights_map_shows_the_room_asked_for(trained, method, question):
    weights_map = trained(method, question).weights_map                  # (rooms asked, layers)
    assert weights_map.shape == (quiz.ROOMS, quiz.LAYERS)
    assert torch.equal(weights_map.argmax(dim=-1), torch.arange(quiz.ROOMS))
    diagonal = weights_map.diagonal().mean()
    others = (weights_map[:, : quiz.ROOMS].sum() - weights_map.diagonal().sum()) / (
        quiz.ROOMS * (quiz.ROOMS - 1)
    )
    assert diagonal > 0.7 and others < 0.2
    assert trained("mean", "late").weights_map is None


MODULES = {"base": MRLABase, "light": MRLALight, "uniform": UniformMean, "denseformer": DenseFormer,
           "mudd": MUDDFormer, "attnres": AttentionResiduals, "kcla": KeyCorrelatedAttention}


@pytest.mark.parametrize("question, name, expected", [
    ("late", "base", "solved"), ("early", "light", "solved"),
    *(pytest.param(*row, marks=pytest.mark.slow) for row in (
        ("late", "light", "not solved"), ("late", "uniform", "not solved"),
        ("early", "base", "solved"), ("early", "uniform", "not solved"),
        ("lamp", "attnres", "solved"), ("late", "attnres", "not solved"), ("colour", "attnres", "not solved"),
        ("late", "mudd", "solved"), ("lamp", "mudd", "not solved"), ("lamp", "denseformer", "not solved"),
        ("lamp", "kcla", "solved"), ("late", "kcla", "not solved"))),
])
def test_the_module_learns_what_it_is_for(question, name, expected):
    accuracy = quiz.train_module_quiz(MODULES[name], question).accuracy
    assert quiz.verdict(accuracy) == expected, accuracy


@pytest.mark.slow
def test_a_hidden_layer_gates_without_attention():
    assert quiz.verdict(quiz.train_module_quiz(UniformMean, "early", hidden=True).accuracy) == "solved"


# The relatives' vector forms

def inputs(seed=0):
    return torch.randn(5, quiz.LAYERS, quiz.INPUTS, generator=torch.Generator().manual_seed(seed))


def test_attention_residuals_with_a_computed_query_and_own_keys_are_mrla_base():
    attnres = VectorAttentionResiduals(4, 8, query_of_input=True, own_keys=True)
    base, x = METHODS["base"](4, 8), inputs()
    with torch.no_grad():
        base.query.weight[-1].copy_(attnres.query.weight.T * 8**0.5)     # the scale that base divides by
        base.query.bias[-1].copy_(attnres.query.bias * 8**0.5)
    base.key.load_state_dict(attnres.key.state_dict())
    base.value.load_state_dict(attnres.value.state_dict())
    assert torch.allclose(attnres(x), base(x), atol=1e-6)


def test_attention_residuals_start_as_the_mean_and_positions_as_the_exit_alone():
    x = inputs()
    attnres = VectorAttentionResiduals(4, 8)
    assert torch.allclose(attnres(x), attnres.value(x).mean(dim=1), atol=1e-6)
    for method in ("denseformer", "mudd"):
        model = quiz.METHODS[method](4, 8)
        assert torch.allclose(model(x), model.value(x)[:, -1], atol=1e-6)


@pytest.mark.parametrize("member, vector", [
    (AttentionResiduals, "attnres"), (BlockAttentionResiduals, "attnres-block"), (DenseFormer, "denseformer"),
])
def test_a_vector_form_is_its_map_form_on_maps_of_one_pixel(member, vector):
    """The last layer's output, where the map form's values are those of the vector form."""
    model, x = quiz.METHODS[vector](4, 8), inputs()
    layers = [member(4) for _ in range(quiz.LAYERS)]
    with torch.no_grad():
        if vector == "denseformer":
            model.by_layer.normal_()
            layers[-1].by_distance[: quiz.LAYERS] = model.by_layer.flip(0)
        else:
            model.query.normal_()
            layers[-1].query.copy_(model.query.view(1, 4))
    memory = None
    for layer, value in zip(layers, model.value(x).unbind(dim=1), strict=True):
        layer.value = torch.nn.Identity()
        output, memory = layer(value[:, :, None, None], memory)
    assert torch.allclose(output.flatten(1), model(x), atol=1e-5)


def test_the_mixes_of_hyper_connections_lose_nothing_and_double_nothing():
    """With all writes but the first at 0, rows and columns of a mix that sum to 1 keep the streams' sum."""
    model, x = quiz.METHODS["hyper-connections"](4, 8), inputs()
    with torch.no_grad():
        model.mix.weight.normal_()
        model.write.bias[1:] = -1e4
        model.read.weight.zero_()
        model.read.bias.fill_(1e4)                          # the exit reads the sum of all streams
    written = 2 * model.write(x)[:, 0].sigmoid().sum(dim=1, keepdim=True) * model.value(x)[:, 0]
    assert torch.allclose(model(x), written, rtol=1e-3, atol=1e-3)


def test_rla_reads_each_room_through_one_state():
    model, x = quiz.METHODS["rla"](4, 8), inputs()
    for room in range(quiz.LAYERS):
        changed = x.clone()
        changed[:, room] += 1
        assert not torch.allclose(model(changed), model(x))


@pytest.mark.parametrize("method", quiz.METHODS)
def test_corridors_of_a_batch_are_kept_apart(method):
    model, x = quiz.METHODS[method](4, 8), inputs()
    alone = torch.cat([model(x[number : number + 1]) for number in range(len(x))])
    assert torch.allclose(model(x), alone, atol=1e-5)


def parameters_of(result):
    return torch.cat([parameter.detach().flatten() for parameter in result.model.parameters()])


@pytest.mark.parametrize("train, argument", [(quiz.train_quiz, "light"), (quiz.train_module_quiz, MRLALight)])
def test_the_seed_decides_and_nothing_else_moves(train, argument):
    torch.manual_seed(1)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first = train(argument, steps=3, seed=5)
        assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    torch.manual_seed(2)
    second = train(argument, steps=3, seed=5)
    assert torch.equal(parameters_of(first), parameters_of(second)) and first.accuracy == second.accuracy
    assert not torch.equal(parameters_of(first), parameters_of(train(argument, steps=3, seed=6)))


def test_a_class_of_ones_own_is_trained_like_a_named_one():
    by_class, by_name = quiz.train_quiz(METHODS["base"], steps=3), quiz.train_quiz("base", steps=3)
    assert torch.equal(parameters_of(by_class), parameters_of(by_name))


@pytest.mark.parametrize(
    "train, argument", [(quiz.train_quiz, "layer-tagged"), (quiz.train_module_quiz, MRLALight)]
)
def test_other_defaults_of_the_program_change_nothing(train, argument):
    expected = parameters_of(train(argument, steps=3))
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        result = train(argument, steps=3)
        assert torch.equal(parameters_of(result), expected)
        assert quiz.accuracy_without_choice(quiz.train_quiz("base", steps=3), "shuffle") < 0.5
        assert torch.get_default_dtype() == torch.float64 and torch.get_default_device().type == "meta"
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


@pytest.mark.parametrize("accuracy, expected", [(0.0, "not solved"), (0.59, "not solved"), (0.6, "between"),
                                                (0.95, "between"), (0.951, "solved"), (1.0, "solved")])
def test_verdict(accuracy, expected):
    assert quiz.verdict(accuracy) == expected


class WrongShape(torch.nn.Module):
    def forward(self, x, memory=None):
        return x[:, :1], None


@pytest.mark.parametrize(
    "call, named",
    [
        (lambda: quiz.train_quiz("bass"), "'base'.*not 'bass'"),
        (lambda: quiz.train_quiz("base", "soon"), "'lamp', 'colour', 'switches', not 'soon'"),
        (lambda: quiz.train_quiz("base", width=0), "width.*not 0"),
        (lambda: quiz.train_quiz("base", key_dim=2.0), "key_dim.*not 2.0"),
        (lambda: quiz.train_quiz("base", steps=True), "steps.*not True"),
        (lambda: quiz.train_quiz("base", seed=-1), "seed.*not -1"),
        (lambda: quiz.train_quiz("base", seed=quiz.TEST_SEED), "seed"),
        (lambda: quiz.train_quiz("base", seed=True), "seed must be an integer .* not True"),
        (lambda: quiz.train_module_quiz(MRLABase, seed=1.0), "seed must be an integer .* not 1.0"),
        (lambda: quiz.train_module_quiz("mrla-base"), "callable.*not 'mrla-base'"),
        (
            lambda: quiz.train_module_quiz(MRLABase(8)),
            "attention_factory must make modules; here is one module, a MRLABase",
        ),
        (
            lambda: quiz.train_quiz(METHODS["base"](4, 8)),
            "method must make modules; here is one module, a VectorBase",
        ),
        (lambda: quiz.train_module_quiz(MRLABase, "soon"), "'lamp', 'colour', 'switches', not 'soon'"),
        (lambda: quiz.train_module_quiz(MRLABase, channels=0), "channels.*not 0"),
        (
            lambda: quiz.train_module_quiz(lambda channels: WrongShape()),
            r"\(128, 8, 1, 1\), not \(128, 1, 1, 1\)",
        ),
        (lambda: quiz.draw_corridors(0, "late", torch.Generator()), "count.*not 0"),
        (lambda: quiz.draw_corridors(1, None, torch.Generator()), "question.*not None"),
        (lambda: quiz.accuracy_without_choice(None, "median"), "'mean', 'shuffle', not 'median'"),
        (lambda: quiz.verdict(float("nan")), "not nan"),
        (lambda: quiz.verdict(1.2), "not 1.2"),
        (lambda: next(quiz_records.quiz_records(methods=("base", "bass"))), "not 'bass'"),
    ],
)
def test_bad_arguments_are_named(call, named):
    with pytest.raises(ValueError, match=named) as refused:
        call()
    assert "\n" not in str(refused.value)


class NotFinite(torch.nn.Module):
    """A module of either form whose output is NaN."""

    def __init__(self, channels, key_dim=None):
        super().__init__()
        self.width = None if key_dim is None else channels
        self.scale = torch.nn.Parameter(torch.tensor(torch.nan))

    def forward(self, x, memory=None):
        return x.new_ones(len(x), self.width) * self.scale if self.width else (x * self.scale, memory)


@pytest.mark.parametrize("train", [quiz.train_quiz, quiz.train_module_quiz])
def test_answers_that_are_not_finite_have_no_accuracy(train):
    with pytest.raises(ValueError, match="answers to the quiz are not all finite numbers"):
        train(NotFinite, steps=2)


def test_choices_taken_away_that_are_not_finite_have_no_accuracy():
    result = quiz.train_quiz("base", steps=2)
    with torch.no_grad():
        result.model.readout[0].bias[0] = torch.nan
    with pytest.raises(ValueError, match="answers to the quiz are not all finite numbers"):
        quiz.accuracy_without_choice(result, "mean")


def test_a_seed_of_numpy_is_a_seed():
    assert torch.equal(parameters_of(quiz.train_quiz("base", steps=2, seed=np.int64(3))),
                       parameters_of(quiz.train_quiz("base", steps=2, seed=3)))
    make = functools.partial(quiz_records.quiz_records, widths=(4,), methods=("base",), questions=("late",),
                             steps=2)
    assert list(make(seeds=np.arange(1))) == list(make(seeds=(0,)))


def test_methods_questions_and_widths_may_be_given_one_by_one():
    given = dict(methods=("base", "mean"), questions=("early", "late"), widths=(2, 3))
    make = functools.partial(quiz_records.quiz_records, seeds=(0, 1), steps=1)
    records = list(make(**given))
    assert len(records) == 16
    one_by_one = {name: iter(values) for name, values in given.items()}
    assert list(make(**one_by_one, known=iter(records[:5]))) == records[5:]


def few_records(known=()):
    return quiz_records.quiz_records(
        seeds=(0, 1), widths=(2, 3), methods=("mean", "light"), questions=("early",), steps=2, known=known
    )


def test_records_are_plain_and_continue():
    records = list(few_records())
    assert [record["seed"] for record in records] == [0] * 4 + [1] * 4
    assert json.loads(json.dumps(records)) == records
    assert all(record["accuracy_mean"] is None for record in records if record["method"] == "mean")
    assert all(0 <= record["accuracy_shuffle"] <= 1 for record in records if record["method"] == "light")
    assert len({record["id"] for record in records}) == len(records)
    # of the setting alone
    assert [record["id"] for record in records] == [record["id"] for record in few_records()]
    continued = list(few_records(known=records[:3] + records[5:]))
    assert continued == records[3:5]


def test_the_file_of_records_survives_being_stopped(tmp_path, monkeypatch):
    path = tmp_path / "results" / "quiz.jsonl"
    make = quiz_records.quiz_records
    few = dict(seeds=(0, 1), widths=(2, 3), methods=("mean", "light"), questions=("early",), steps=2)
    monkeypatch.setattr(
        quiz_records, "quiz_records", lambda known, **part: itertools.islice(make(**few, known=known), 1)
    )
    # stopped after one record of each part
    begun = quiz_records.write_quiz_records(path)
    assert len(begun) == 3
    monkeypatch.setattr(quiz_records, "quiz_records", lambda known, **part: make(**few, known=known))
    finished = quiz_records.write_quiz_records(path)
    assert finished[:3] == begun and len(finished) == 8
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == finished
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["quiz.jsonl", "quiz.jsonl.lock"]


def test_a_file_that_holds_something_else_is_left_alone(tmp_path):
    path = tmp_path / "quiz.jsonl"
    path.write_text('{"method": "base"}\nnot a record\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 2: not a whole record.*'not a record'"):
        quiz_records.write_quiz_records(path)
    assert path.read_text(encoding="utf-8").endswith("not a record\n")
