"""The checkers of notebook 16: plausible mistakes are named."""

import pytest
import torch
from notebook_answers import assert_wrong

from mrla_minimal.course.checks import index_sets
from mrla_minimal.course.checks.index_sets import (
    check_frequency,
    check_gradient,
    check_shared_keys,
    check_two_searches,
)
from mrla_minimal.family.patterns import greedy_search, released_pattern


def rule(step):
    return lambda layers, every: "".join(step(layer, every) for layer in range(layers))


@pytest.mark.parametrize(("answer", "words"), [
    (released_pattern, "FFSSSFSSS is the released pattern"),
    (rule(lambda layer, every: "S" if (layer + 1) % every else "F"), "begins with S"),
    (rule(lambda layer, every: "F" if layer % every else "S"), "begins with S"),
    (rule(lambda layer, every: "F" if layer < every else "S"), "it should be FSSSFSSSF, not FFFFSSSSS"),
    (lambda layers, every: ["F"] * layers, "one string of letters, not of type list"),
    (lambda layers, every: "F", "9 letters, each F or S, not 'F'"),
    (lambda layers, every: "f" * layers, "each F or S"),
    (lambda layers: "F", "your code raises"),
])
def test_wrong_rules_are_named(answer, words):
    assert_wrong(check_frequency, answer, words)


def searches(greedy=None, best=None):
    """The right answer, or one with another greedy or best."""
    def answer(losses, searching):
        layers = len(next(iter(losses)))
        path = {pattern.count("F"): pattern for pattern, _ in greedy_search(losses.get, layers)}
        of_price = min((pattern for pattern in losses if pattern.count("F") == searching), key=losses.get)
        return (greedy(losses, searching, of_price) if greedy else path[searching],
                best(losses, searching, path[searching]) if best else of_price)

    return answer


def takes_the_dearest(losses, searching, _):
    layers = len(next(iter(losses)))
    path = greedy_search(lambda pattern: -losses[pattern], layers)
    return {pattern.count("F"): pattern for pattern, _ in path}[searching]


def test_two_right_searches_pass_and_greedy_is_not_always_best():
    assert check_two_searches.judge(searches()) == ("passed", "passed")
    losses = [index_sets._losses(seed) for seed in range(8)]
    differ = [searches()(given, 2)[0] != searches()(given, 2)[1] for given in losses]
    assert any(differ) and not all(differ)


@pytest.mark.parametrize(("answer", "words"), [
    (searches(greedy=lambda losses, searching, best: best), "the best of all"),
    (searches(best=lambda losses, searching, greedy: greedy), "has not the lowest loss"),
    (searches(best=lambda losses, searching, greedy: min(losses, key=losses.get)), "should have so many F"),
    (searches(greedy=takes_the_dearest), "each step turns the one F to S"),
    (lambda losses, searching: searches()(losses, searching)[0], "return two things"),
    (lambda losses, searching: (1, 2), "one string of letters"),
    (lambda losses: ("F", "F"), "your code raises"),
])
def test_wrong_searches_are_named(answer, words):
    assert_wrong(check_two_searches, answer, words)


def right_gradient(scores, targets):
    return scores.softmax(dim=0) - targets.mean(dim=0)


def test_the_gradient_that_is_asked_for_is_autograds():
    scores = torch.randn(5, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(3, 5, dtype=torch.float64).softmax(dim=1)
    made = scores.log_softmax(dim=0)
    loss = (targets * (targets.log() - made)).sum(dim=1).mean()
    (gradient,) = torch.autograd.grad(loss, scores)
    assert torch.allclose(gradient, right_gradient(scores, targets))
    assert check_gradient.judge(right_gradient) == ("passed", "passed")


@pytest.mark.parametrize(("answer", "words"), [
    (lambda scores, targets: -right_gradient(scores, targets), "the sign is turned round"),
    (lambda scores, targets: len(targets) * right_gradient(scores, targets), "of the sum, not of the mean"),
    (lambda scores, targets: scores.softmax(dim=0) - targets[0], "the first layer's divergence alone"),
    (lambda scores, targets: scores.softmax(dim=0) - targets.sum(dim=0), "should be averaged"),
    (lambda scores, targets: scores - targets.mean(dim=0), "softmax(scores), not the scores"),
    (lambda scores, targets: right_gradient(scores, targets) + 1e-3, "that autograd finds"),
    (lambda scores, targets: right_gradient(scores, targets) * float("nan"), "contains NaN"),
    (lambda scores, targets: scores.softmax(dim=0) - targets, "the shape of your gradient"),
    (lambda scores, targets: 0.0, "should be a tensor"),
])
def test_wrong_gradients_are_named(answer, words):
    assert_wrong(check_gradient, answer, words)


def right_sharing(kind, positions, key, value, memory):
    if kind == "S":
        positions, key, value = memory
    return positions, key, value, (positions, key, value)


def positions_alone(kind, positions, key, value, memory):
    positions = memory if kind == "S" else positions
    return positions, key, value, positions


def own_values(kind, positions, key, value, memory):
    positions, key, _, memory = right_sharing(kind, positions, key, value, memory)
    return positions, key, value, memory


def own_handed_on(kind, positions, key, value, memory):
    *used, _ = right_sharing(kind, positions, key, value, memory)
    return *used, (used[0], key, value)


def never_anew(kind, positions, key, value, memory):
    return (*memory, memory) if memory else (positions, key, value, (positions, key, value))


def wrong_order(kind, positions, key, value, memory):
    positions, key, value, memory = right_sharing(kind, positions, key, value, memory)
    return positions, value, key, memory


def as_floats(*given):
    positions, key, value, memory = right_sharing(*given)
    return positions.double(), key, value, memory


def others_places(*given):
    positions, key, value, memory = right_sharing(*given)
    return positions.flip(-1), key, value, memory


def test_shared_keys_and_values_pass():
    assert check_shared_keys.judge(right_sharing) == ("passed", "passed")


@pytest.mark.parametrize(("answer", "words"), [
    (positions_alone, "layer 2 of FSSFS, which is S: its key should be the F layer's, not its own"),
    (own_values, "layer 2 of FSSFS, which is S: its value should be the F layer's, not its own"),
    (own_handed_on, "layer 3 of FSSFS, which is S: its key should be those that the nearest F layer made"),
    (never_anew, "layer 4 of FSSFS, which is F: an F layer uses its own positions"),
    (as_floats, "your positions should stay integers, of torch.int64, not torch.float64"),
    (others_places, "layer 1 of FSSFS, which is F: its positions should be those"),
    (wrong_order, "layer 1 of FSSFS, which is F: its key should be those"),
    (lambda kind, positions, key, value, memory: (positions, key, value, memory), "it has no positions"),
    (lambda kind, positions, key, value, memory: (positions, key, value), "return four things"),
    (lambda kind, positions, key, value, memory: (positions, key * float("nan"), value, 0), "contains NaN"),
    (lambda kind: kind, "your code raises"),
])
def test_wrong_sharing_is_named(answer, words):
    assert_wrong(check_shared_keys, answer, words)
