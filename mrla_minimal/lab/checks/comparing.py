"""Checkers of notebook 08: the paired interval, Holm's adjustment, and a layer attention of one's own."""

import math

import torch
from torch import nn

from mrla_minimal.lab.checks.common import Wrong, checker, close, first_line, numbers, run, tensor
from mrla_minimal.lab.checks.coursework import check_training_step


@checker("exercise 1")
def check_paired_interval(answer):
    """answer(a, b), both (seeds,) -> (mean, low, high): a - b and its 95 % interval by Student's t, n - 1 degrees of freedom."""
    for n in (5, 3):
        a = 90.4 + 0.3 * numbers(n)
        b = 90.0 + 0.8 * (a - 90.4) + 0.2 * numbers(n, seed=1)      # correlated, so that pairing shows
        result = run(answer, a, b)
        if not isinstance(result, (tuple, list)) or len(result) != 3:
            raise Wrong("your function should return three numbers: mean, low, high")
        if not all(isinstance(number, (int, float)) or getattr(number, "shape", None) == () for number in result):
            raise Wrong("each of the three should be one number")
        mean, low, high = tensor(torch.tensor([float(number) for number in result], dtype=torch.float64), (3,))
        difference = a - b
        if not close(mean, difference.mean()):
            raise Wrong("your mean has the wrong sign: a - b, so that above 0 speaks for a" if close(mean, -difference.mean())
                        else "your mean should be the mean of a - b")
        if not close(mean - low, high - mean):
            raise Wrong("the interval should reach equally far below and above the mean")
        _explain_half((high - low) / 2, a, b, n)


def _explain_half(half, a, b, n):
    from scipy import stats

    def exact(number):      # float64: a plain number would be compared as float32
        return torch.tensor(number, dtype=torch.float64)

    quantile, error = float(stats.t.ppf(0.975, n - 1)), (a - b).std().item() / math.sqrt(n)
    if close(half, exact(quantile * error)):
        return
    unpaired = math.sqrt((a.var() + b.var()).item() / n)
    normal = "1.96 is for a standard deviation that is known; yours is estimated from a few seeds, so Student's t, n - 1 degrees of freedom"
    mistakes = {
        1.96 * error: normal, float(stats.norm.ppf(0.975)) * error: normal,
        float(stats.t.ppf(0.95, n - 1)) * error: "95 % in the middle leaves 2.5 % on each side: the quantile at 0.975",
        float(stats.t.ppf(0.975, n)) * error: "n differences have n - 1 degrees of freedom: one went into their mean",
        quantile * error * math.sqrt((n - 1) / n): "your standard deviation divides by n; from few differences it must divide by n - 1",
        quantile * error * math.sqrt(n): "that is where single differences lie; the error of their mean is smaller by sqrt(n)",
        quantile * error / math.sqrt(n): "you divide by n; the error of a mean is the standard deviation over sqrt(n)",
        error: "your half width is one standard error; multiply it by the quantile of Student's t",
        quantile * unpaired: "you scatter a and b apart; take the differences seed by seed first, then their standard deviation",
        float(stats.t.ppf(0.975, 2 * n - 2)) * unpaired: "that is the interval for unpaired runs; take the differences seed by seed first",
    }
    for wrong, message in mistakes.items():
        if close(half, exact(wrong)):
            raise Wrong(message)
    raise Wrong("your mean is right; half the interval should be t(0.975, n - 1) * std(differences) / sqrt(n)")


@checker("exercise 2")
def check_holm(answer):
    """answer(p (tests,)) -> (tests,): Holm's adjusted p values, in the order of p."""
    p = torch.tensor([0.55, 0.011, 0.60, 0.010, 0.04, 0.40, 0.0005], dtype=torch.float64)
    given = tensor(run(answer, p), p.shape)
    wanted = _holm(p)
    if not close(given, wanted):
        _explain_holm(given, p, wanted)
    for other in (numbers(4).abs() / 9, torch.tensor([0.03], dtype=torch.float64)):
        if not close(tensor(run(answer, other), other.shape), _holm(other)):
            raise Wrong(f"your function is right for 7 tests and wrong for {len(other)}: something in it counts to 7")


def _holm(p):
    order = p.argsort()
    factors = torch.arange(len(p), 0, -1)                                   # m, m - 1, .., 1
    adjusted = torch.empty_like(p)
    adjusted[order] = (factors * p[order]).clamp(max=1).cummax(0).values
    return adjusted


def _explain_holm(given, p, wanted):
    m, order = len(p), p.argsort()
    back = order.argsort()
    factors = torch.arange(m, 0, -1)
    steps = factors * p[order]
    raw = steps.cummax(0).values
    upwards = "your factors go up with p; the smallest p gets the largest factor"
    unsorted = "you multiply in the order given; sort first: the smallest p gets the factor 7"
    mistakes = (
        (wanted[order], "your values are sorted; give each back to the test it belongs to"),
        ((m * p).clamp(max=1), "that is Bonferroni: every p times 7. Holm multiplies only the smallest by 7, the next by 6, and so on"),
        (m * p, "that is Bonferroni, and a probability is at most 1"),
        (steps[back].clamp(max=1), "a larger p must not get a smaller adjusted one: keep the largest so far while you go up"),
        (steps[back], "a larger p must not get a smaller adjusted one, and a probability is at most 1"),
        (raw[back], "a probability is at most 1: cut what is above"),
        ((m * p[order] / torch.arange(1, m + 1)).flip(0).cummin(0).values.flip(0)[back].clamp(max=1),
         "that is Benjamini and Hochberg's, which bounds the share of false findings, not the chance of any"),
        ((factors.flip(0) * p[order])[back].clamp(max=1), upwards),
        ((factors.flip(0) * p[order]).cummax(0).values[back].clamp(max=1), upwards),
        ((factors * p).clamp(max=1), unsorted),
        ((factors * p).cummax(0).values.clamp(max=1), unsorted),
        (p, "nothing is adjusted yet"),
    )
    for wrong, message in mistakes:
        if close(given, wrong):
            raise Wrong(message)
    raise Wrong("the smallest of the 7 should be multiplied by 7, the next by 6, ..., each raised to the one before, none above 1")


LAYERS, CHANNELS, SHAPE = 3, 6, (2, 6, 4, 5)


@checker("exercise 3")
def check_moving_average(answer):
    """answer(channels) -> a module with .value, .decay (channels,) and O^t = a O^{t-1} + (1 - a) v^t, a = sigmoid(decay)."""
    layers = [_layer(answer) for _ in range(LAYERS)]
    start = layers[0].decay.detach()
    if not close(start, torch.zeros_like(start), 1e-6):
        raise Wrong("decay should start at 0, so that a starts at one half")
    for number, layer in enumerate(layers):
        with torch.no_grad():
            layer.decay.copy_(numbers(CHANNELS, seed=number))
            layer.value.weight.copy_(numbers(*layer.value.weight.shape, seed=10 + number))
    for stage in range(2):
        memory = carried = None
        for t, layer in enumerate(layers, start=1):
            x = numbers(*SHAPE, seed=20 + t + 10 * stage)      # other maps: what was kept then shows
            result = run(layer, x, memory)
            if not isinstance(result, tuple) or len(result) != 2:
                raise Wrong("forward should return two things, the output and the memory for the next layer")
            output, memory = result
            tensor(output, SHAPE)
            value, a = layer.value(x).detach(), layer.decay.detach().sigmoid()[:, None, None]
            wanted = value if carried is None else a * carried + (1 - a) * value
            if not close(output, wanted):
                if stage:
                    raise Wrong("your module is right on its first stage only: something outlives the memory, which is None again there")
                _explain_average(output, x, value, carried, layer.decay.detach(), t)
            carried = wanted
            if not close(tensor(memory, SHAPE, "memory"), wanted):
                raise Wrong("your memory should be the output O^t itself: that is what layer t + 1 averages on")
            if not memory.requires_grad:
                raise Wrong("your memory is detached: no gradient could reach the layers before")
    decay = layers[-1].decay
    output.sum().backward()
    if decay.grad is None or not decay.grad.any():
        raise Wrong("decay gets no gradient: use the parameter itself, not a copy of its numbers")
    try:
        check_training_step(answer)
    except RuntimeError as error:
        raise Wrong(f"in a network, whose stages have 8, 16 and 32 channels, your code raises {first_line(error)}") from error


def _layer(answer):
    layer, probe = run(answer, CHANNELS), run(answer, CHANNELS)
    if not isinstance(layer, nn.Module):
        raise Wrong(f"your answer(channels) should make a module, not a {type(layer).__name__}")
    run(probe, numbers(*SHAPE).float(), None)       # a stub is a stub before it is a wrong module
    names = dict(layer.named_parameters())
    if "decay" not in names or tuple(names["decay"].shape) != (CHANNELS,):
        raise Wrong("your module should hold self.decay, an nn.Parameter with one number a channel")
    if "value.weight" not in names or tuple(names["value.weight"].shape) != (CHANNELS, 1, 3, 3):
        raise Wrong("your module should hold self.value = value_convolution(channels)")
    return layer.double()


def _explain_average(output, x, value, carried, decay, t):
    a = decay.sigmoid()[:, None, None]
    if t == 1:
        if close(output, (1 - a) * value) or close(output, a * value):
            raise Wrong("at the first layer there is nothing to average with: O^1 = v^1, not a share of it")
        if close(output, x):
            raise Wrong("you average the maps X^t; average the values v^t = self.value(x)")
        raise Wrong("at the first layer your output should be v^1 = self.value(x)")
    if close(output, value):
        raise Wrong("your code is right at the first layer only: the memory is not used")
    if close(output, (1 - a) * carried + a * value):
        raise Wrong("you have a and 1 - a exchanged: a is the share of the old")
    if close(output, a * carried + value):
        raise Wrong("old and new should have shares that sum to 1: the new one gets 1 - a (without it you have built depthwise + carry)")
    raw = decay[:, None, None]
    if close(output, raw * carried + (1 - raw) * value):
        raise Wrong("your a is decay itself, which may be anything; sigmoid(decay) lies between 0 and 1")
    mean = decay.mean().sigmoid()
    if close(output, mean * carried + (1 - mean) * value) or close(output, a.mean() * carried + (1 - a.mean()) * value):
        raise Wrong("you use one share for all channels; each channel has its own")
    if close(output, (carried + value) / 2):
        raise Wrong("your shares are one half each, whatever decay is")
    raise Wrong(f"at layer {t} your output is not a * O^(t-1) + (1 - a) * v^t with a = sigmoid(decay), channel by channel")
