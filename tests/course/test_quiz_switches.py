"""The corridor with switches: its answer, and the methods that have a context or rewrite their memory."""

import pytest
import torch

from mrla_minimal.course import quiz
from mrla_minimal.course.quiz_methods import METHODS
from mrla_minimal.course.quiz_switches import (
    COLOURS,
    DYNAMIC_METHODS,
    VectorContext,
    VectorContextQuery,
    VectorDynamic,
    VectorMeanRewritten,
    lit_rooms,
)

SIGN, COLOUR, SWITCH = slice(0, 8), slice(8, 12), slice(12, 16)


def corridors(count=500, seed=3):
    return quiz.draw_corridors(count, "switches", torch.Generator().manual_seed(seed))


def test_the_answer_is_the_sign_whose_colour_no_switch_turns_off():
    x, answers = corridors()
    assert x.shape == (500, quiz.LAYERS, quiz.INPUTS)
    for corridor, answer in zip(x.tolist(), answers.tolist(), strict=True):
        colours = [row[COLOUR].index(1) for row in corridor[:4]]
        off = [row[SWITCH].index(1) for row in corridor[4:7]]
        assert sorted(colours) == [0, 1, 2, 3] and len(set(off)) == 3
        (lit,) = [room for room, colour in enumerate(colours) if colour not in off]
        assert corridor[lit][SIGN].index(1) == answer


def test_nothing_else_is_in_the_corridor_and_nothing_gives_the_room_away():
    x, answers = corridors(4000)
    assert (x[:, :4].sum(dim=-1) == 2).all() and (x[:, 4:7].sum(dim=-1) == 1).all()
    assert not x[:, 7:].any() and not x[:, 4:7, :12].any()
    asked = lit_rooms(x)
    assert torch.equal(asked, quiz.asked_rooms(x, "switches"))
    assert (asked.sum(dim=1) == 1).all() and not asked[:, COLOURS:].any()
    assert asked[:, :COLOURS].mean(dim=0).sub(1 / 4).abs().max() < 0.03
    assert answers.bincount(minlength=8).div(4000).sub(1 / 8).abs().max() < 0.03


def test_training_and_the_unseen_corridors_differ():
    unseen, _ = quiz.unseen_corridors("switches")
    assert len(unseen) == quiz.TEST_CORRIDORS and not torch.equal(unseen[:500], corridors(500, seed=0)[0])


@pytest.mark.parametrize("name", DYNAMIC_METHODS)
def test_each_trains_and_its_map_has_a_row_for_a_room_that_can_be_asked_for(name):
    result = quiz.train_quiz(name, "switches", steps=2)
    if name in ("context", "mean-dla"):
        assert result.weights_map is None
    else:
        sums = result.weights_map.sum(dim=1)
        assert torch.allclose(sums, torch.tensor([1.0] * 4 + [0.0] * 4), atol=1e-5)


def still(method):
    """With a unit whose parameters are all 0, c stays 0 and every gate is one half."""
    with torch.no_grad():
        for part in method.unit.parameters():
            part.zero_()
    return method.double()


def test_keys_are_rewritten_by_every_layer_that_follows():
    x = corridors(5)[0].double()
    method = still(VectorDynamic(4, 8))
    keys = method.key(x) * 0.5 ** torch.arange(8, -1, -1).double()[:, None]
    logits = (method.query(x)[:, -1:] * keys).sum(dim=-1) / 8 ** 0.5
    wanted = (logits.softmax(dim=-1)[:, :, None] * method.value(x)).sum(dim=1)
    assert torch.allclose(method(x), wanted, atol=1e-12)


def test_the_gates_are_the_units_with_the_context_of_the_layer_that_rewrites():
    x = corridors(5)[0].double()
    method = VectorDynamic(4, 8, opening=1.5).double()
    query, keys, values = method.query(x)[:, -1], method.key(x), method.value(x)
    cache, state = [], None
    for t in range(quiz.LAYERS):
        state = method.unit(method.seen(x)[:, t], state)
        cache = [1.5 * method.unit(key, state)[0] * key for key in cache] + [keys[:, t]]
    weights = torch.stack([(query * key).sum(dim=-1) / 8 ** 0.5 for key in cache], dim=1).softmax(dim=1)
    assert torch.allclose(method(x), (weights[:, :, None] * values).sum(dim=1), atol=1e-12)


def test_open_gates_of_a_still_unit_are_base():
    x = corridors(5)[0].double()
    method = still(DYNAMIC_METHODS["dla-open"](4, 8))
    base = METHODS["base"](4, 8).double()
    base.load_state_dict(method.state_dict(), strict=False)
    assert torch.allclose(method(x), base(x), atol=1e-12)


def test_the_query_is_a_sum_over_the_corridor_and_nothing_is_rewritten():
    x = corridors(5)[0].double()
    method = VectorContextQuery(4, 8).double()
    query = method.query(x)[:, -1] + method.seen(x).sum(dim=1)
    logits = (query[:, None] * method.key(x)).sum(dim=-1) / 8 ** 0.5
    wanted = (logits.softmax(dim=-1)[:, :, None] * method.value(x)).sum(dim=1)
    assert torch.allclose(method(x), wanted, atol=1e-12)


def test_the_context_alone_is_the_units_last_state():
    x = corridors(5)[0].double()
    method = VectorContext(4, 8).double()
    state = None
    for t in range(quiz.LAYERS):
        state = method.unit(method.seen(x)[:, t], state)
    assert torch.allclose(method(x), state[0], atol=1e-12)


def test_the_mean_halves_once_for_every_layer_that_follows():
    x = corridors(5)[0].double()
    method = still(VectorMeanRewritten(4, 8))
    wanted = (method.value(x) * 0.5 ** torch.arange(8, -1, -1).double()[:, None]).mean(dim=1)
    assert torch.allclose(method(x), wanted, atol=1e-12)


@pytest.mark.parametrize("method, expected", [
    ("base", "not solved"), ("base-context", "solved"),
    pytest.param("context", "not solved", marks=pytest.mark.slow),
    pytest.param("dla-open", "solved", marks=pytest.mark.slow)])
def test_a_static_cache_fails_unless_its_query_has_seen_the_corridor(method, expected):
    accuracy = quiz.train_quiz(method, "switches", key_dim=16).accuracy
    assert quiz.verdict(accuracy) == expected, accuracy


def test_a_question_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="'switches', not 'doors'"):
        quiz.draw_corridors(3, "doors", torch.Generator())
