"""What every exercise's checker is made of: stubs, wrong answers and right ones are told apart, and nothing
crashes.
"""

import pytest
import torch

from mrla_minimal.course.checks.common import NotAttempted, Wrong, blame, checker, close, numbers, run, tensor

X = numbers(3, 5)


@checker("exercise 1")
def check_softmax(answer):
    weights = tensor(run(answer, X), (3, 5), "weights")
    if not close(weights, X.softmax(dim=1)):
        raise Wrong("these are not the softmax of the rows")


def stub_that_raises(x):
    raise NotImplementedError


def changes_its_input(x):
    x[0] = 0
    return X.softmax(dim=1)


ANSWERS = {
    "none": (None, "not attempted", ""),
    "dots": (..., "not attempted", ""),
    "returns none": (lambda x: None, "not attempted", ""),
    "returns a pair of none": (lambda x: (None, None), "not attempted", ""),
    "raises not implemented": (stub_that_raises, "not attempted", ""),
    "no function": (3, "wrong", "should be a function, not of type int"),
    "raises": (lambda x: x @ x, "wrong", "your code raises RuntimeError: mat1 and mat2"),
    "other signature": (lambda: 1, "wrong", "your code raises TypeError"),
    "not a tensor": (lambda x: [1.0], "wrong", "should be a tensor, not of type list"),
    "other shape": (lambda x: x.T, "wrong", "is (5, 3), it should be (3, 5)"),
    "NaN": (lambda x: x * float("nan"), "wrong", "contains NaN"),
    "infinite": (lambda x: x / 0, "wrong", "contains infinite"),
    "in place": (changes_its_input, "wrong", "changes its input number 1 (a tensor) in place"),
    "other numbers": (lambda x: x.softmax(dim=0), "wrong", "not the softmax of the rows"),
    "right": (lambda x: x.softmax(dim=1), "passed", "passed"),
    "right in float32": (lambda x: x.float().softmax(dim=1), "passed", "passed"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_judgement_and_the_printed_line(name, capsys):
    answer, status, words = ANSWERS[name]
    assert check_softmax.judge(answer)[0] == status
    assert words in check_softmax.judge(answer)[1]
    assert check_softmax(answer) is None
    printed = capsys.readouterr().out
    start = {"not attempted": "not attempted yet", "wrong": "not yet: ", "passed": "passed"}[status]
    assert printed.startswith(f"exercise 1: {start}") and printed.count("\n") == 1


def test_an_answer_the_checker_did_not_foresee_is_wrong_not_a_crash():
    @checker("exercise 2")
    def check_pair(answer):
        output, weights = run(answer, X)

    status, message = check_pair.judge(lambda x: (x, x, x))
    assert status == "wrong" and "cannot use your answer (ValueError: too many values" in message


def leave(x):
    raise SystemExit("bye")


@checker("exercise 2")
def check_directly(answer):
    answer(X)


@pytest.mark.parametrize("check", [check_softmax, check_directly])
def test_an_answer_that_leaves_the_program_is_wrong_and_an_interrupt_passes(check):
    status, message = check.judge(leave)
    assert status == "wrong" and "SystemExit: bye" in message

    def interrupt(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check.judge(interrupt)


def test_other_defaults_of_the_program_change_no_judgement():
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        assert check_softmax.judge(lambda x: x.softmax(dim=1) + torch.zeros(5)) == ("passed", "passed")
        assert torch.get_default_dtype() == torch.float64 and torch.get_default_device().type == "meta"
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


def test_judging_leaves_the_global_random_state_alone_and_is_repeatable():
    drawn = []

    @checker("exercise 3")
    def check_random(answer):
        drawn.append(torch.rand(1).item())

    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    check_random.judge(1)
    check_random.judge(1)
    assert torch.equal(torch.rand(2), expected)
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("spoil", [
    lambda memory, x: memory.append(x), lambda memory, x: memory[0].mul_(2), lambda memory, x: x.add_(1)])
def test_inputs_changed_in_place_are_noticed_also_inside_lists(spoil):
    memory, x = [numbers(2), numbers(2, seed=1)], numbers(2, seed=2)
    kept = [part.clone() for part in (*memory, x)]

    def answer(memory, x):
        spoil(memory, x)
        return x

    with pytest.raises(Wrong, match="in place"):
        run(answer, memory, x)
    assert all(map(torch.equal, (*memory, x), kept))


def test_gradients_reach_the_inputs_that_a_checker_holds():
    x = numbers(4).requires_grad_()
    run(lambda x: 3 * x, x).sum().backward()
    assert torch.equal(x.grad, torch.full((4,), 3.0, dtype=torch.float64))


def test_a_stub_is_told_by_an_exception():
    with pytest.raises(NotAttempted):
        run(lambda x: ..., X)


def test_close():
    one = torch.ones(3, dtype=torch.float64)
    assert close(one, one + 1e-9) and not close(one, one + 1e-7)
    assert close(1000 * one, 1000 * one + 1e-6), "relative to the largest number"
    assert not close(one, one[:2]) and not close(one, torch.ones(1, 3))
    assert not close(one * float("nan"), one) and not close(one, one * float("nan"))
    assert not close(one * float("nan"), one * float("nan"))
    assert not close(one * float("inf"), one * float("inf"))
    assert close(one.float() / 3, one / 3) and not close(one.float() / 3 + 1e-3, one / 3)
    assert close(0.5, 0.5) and not close(0.5, 0.6)
    assert close(torch.ones(0), torch.ones(0))


def test_numbers_are_the_same_each_time_and_differ_by_seed():
    assert torch.equal(numbers(2, 3), numbers(2, 3)) and not torch.equal(numbers(2, 3), numbers(2, 3, seed=1))
    assert numbers(2, 3).shape == (2, 3) and numbers(2).dtype == torch.float64


def test_blame_takes_pairs_or_a_dictionary_and_never_a_mistake_that_is_right_here():
    mistakes = {"that is half": X / 2, "that is it": X}
    blame(X, X, mistakes, "no")
    for form in (mistakes, [(wrong, message) for message, wrong in mistakes.items()]):
        with pytest.raises(Wrong, match="^so far, that is half$"):
            blame(X / 2, X, form, "no", prefix="so far, ")
        with pytest.raises(Wrong, match="^no$"):
            blame(X / 3, X, form, "no")
