"""Checkers of notebook 19: the price of a window, what an interval says, a layer attention of one's own."""

from mrla_minimal.course.checks import signature
from mrla_minimal.course.checks.common import Wrong, checker, run

READINGS = ("lowers", "raises", "within", "undecided")
SIGNATURE = (signature.check_shapes, signature.check_reading, signature.check_batch, signature.check_calls,
             signature.check_memory_is_a_value, signature.check_gradients)


@checker("exercise 1")
def check_window(answer: object) -> None:
    """answer(layers, window) -> (values summed, values handed on) of base with a window.

    Summed: over all layers of a stage, one for each layer that one of them reads, itself included. Handed
    on: what a further layer would still want after the last one.
    """
    for layers, window in ((7, 3), (5, 2), (4, 4), (3, 6)):
        given = run(answer, layers, window)
        if not isinstance(given, tuple) or len(given) != 2:
            raise Wrong("return two numbers: values summed, values handed on")
        summed, handed = given
        reads = [min(layer, window) for layer in range(1, layers + 1)]
        case = f"{layers} layers and a window of {window}"
        if summed != sum(reads):
            if summed == layers * window:
                raise Wrong(f"for {case} you sum {summed}: the first layers have fewer than {window} to read")
            if summed == layers * (layers + 1) // 2:
                raise Wrong(f"for {case} you sum {summed}: that is base without a window")
            raise Wrong(f"for {case} the layers read {reads}, together {sum(reads)}, not {summed}")
        wanted = min(layers, window - 1)
        if handed != wanted:
            raise Wrong(f"for {case} a further layer would want {wanted} of the values, beside its own, "
                        f"not {handed}")


@checker("exercise 2")
def check_reading(answer: object) -> None:
    """answer(low, high, margin) -> one of READINGS, of a difference of losses and its interval low to high.

    "lowers" if all of the interval is below -margin, "raises" if all of it is above margin, "within" if all
    of it lies between the two, else "undecided".
    """
    cases = {(-0.30, -0.10): "lowers", (0.07, 0.20): "raises", (-0.03, 0.04): "within",
             (-0.20, 0.01): "undecided", (-0.09, -0.01): "undecided", (0.02, 0.30): "undecided",
             (-0.20, 0.30): "undecided"}
    for (low, high), right in cases.items():
        given = run(answer, low, high, 0.05)
        if given not in READINGS:
            raise Wrong(f"return one of {', '.join(READINGS)}, not {given!r}")
        if given != right:
            where = f"{low:+.2f} to {high:+.2f} with a margin of 0.05 is {right!r}, not {given!r}"
            if given == "within":
                raise Wrong(f"{where}: a part of the interval lies beyond the margin")
            if right == "undecided":
                raise Wrong(f"{where}: a part of the interval lies within the margin")
            raise Wrong(where)


@checker("exercise 3")
def check_proposal(answer: object) -> None:
    """answer(channels) -> a layer attention: what `mrla check` asks first of every file.

    Its other checks, and the corridor, take longer: run `mrla check FILE`.
    """
    run(answer, signature.CHANNELS)         # a stub gives no module
    for check in SIGNATURE:
        check(answer)
