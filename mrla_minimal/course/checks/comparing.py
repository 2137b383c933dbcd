"""Checkers of notebook 08: the paired interval, Holm's adjustment, and a layer attention of one's own."""

import math

import torch
from torch import nn

from mrla_minimal.course.checks.common import Wrong, checker, close, first_line, numbers, pair, run, tensor
from mrla_minimal.course.checks.coursework import check_training_step
from mrla_minimal.layer_attention import MRLABase


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
        1.96 * error * math.sqrt((n - 1) / n):
            "both halves of the bug of the day: 1.96 in place of Student's t, and a standard deviation that divides by n",
        -quantile * error: "your ends are exchanged: the lower one comes first",
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


LAYERS, CHANNELS, SHAPE = 4, 48, (2, 48, 5, 7)      # three heads of 16


@checker("exercise 3")
def check_sharp_base(answer):
    """answer(channels) -> an MRLABase with .sharpness, one number: softmax(sharpness * logits) over the t cached layers."""
    layers = [_layer(answer) for _ in range(LAYERS)]
    with torch.no_grad():
        for number, layer in enumerate(layers):
            layer.sharpness.fill_((0.6, 1.7, -0.9, 2.2)[number])     # 1 everywhere would be base
            for place, module in enumerate((layer.query, layer.key, layer.value)):
                module.weight.copy_(0.7 * numbers(*module.weight.shape, seed=10 * number + place))
    for stage in range(2):
        memory, cached, sharpness = None, [], []
        for t, layer in enumerate(layers, start=1):
            x = numbers(*SHAPE, seed=50 + t + 10 * stage)            # other maps: what was kept then shows
            x = x + numbers(*SHAPE[:2], 1, 1, seed=70 + t + 10 * stage)
            output, memory = pair(run(layer, x, memory))
            query, key, value = _project(layer, x)
            cached.append((key, value))
            sharpness.append(layer.sharpness.detach().reshape(()))
            logits = torch.stack([(query * key).sum(dim=-1) for key, _ in cached], dim=-1) / 4       # (batch, heads, t)
            tensor(output, SHAPE)
            if not close(output, _mix((sharpness[-1] * logits).softmax(dim=-1), cached)):
                if stage:
                    raise Wrong("your module is right on its first stage only: something outlives the memory, which is None again there")
                _explain_sharp(output, logits, cached, sharpness[-1])
            _check_pairs(memory, cached, sharpness)
    _check_gradients(layers, output)
    _check_hook(layers, memory)
    try:
        check_training_step(answer)
    except RuntimeError as error:
        raise Wrong(f"in a network, whose stages have 8, 16 and 32 channels, your code raises {first_line(error)}") from error


def _layer(answer):
    layer = run(answer, CHANNELS)
    if not isinstance(layer, nn.Module):
        raise Wrong(f"your answer(channels) should make a module, not a {type(layer).__name__}")
    run(layer, numbers(*SHAPE).float(), None)       # a stub is a stub before it is a wrong module
    layer = run(answer, CHANNELS).double()
    if not isinstance(layer, MRLABase):
        raise Wrong("your class should be derived from MRLABase, so that it differs from base in the sharpness alone")
    sharpness = dict(layer.named_parameters()).get("sharpness")
    if sharpness is None or sharpness.numel() != 1:
        raise Wrong("your module should hold self.sharpness, an nn.Parameter with one number")
    if not close(sharpness.reshape(()), torch.ones((), dtype=torch.float64)):
        raise Wrong("sharpness should start at 1, where your layer is base")
    return layer


def _project(layer, x):
    """The query and key (batch, heads, 16) and the value map that the layer's own weights give."""
    with torch.no_grad():
        row = x.mean(dim=(2, 3)).unsqueeze(1)                                        # (batch, 1, channels)
        query, key = (module(row).reshape(len(x), -1, 16) for module in (layer.query, layer.key))
        return query, key, layer.value(x)


def _mix(weights, cached):
    """weights (batch, heads, t) and t pairs -> sum over s of weights[..., s] * v^s, each weight on its head's channels."""
    return sum(weights[:, :, s].repeat_interleave(16, dim=1)[:, :, None, None] * value for s, (_, value) in enumerate(cached))


def _explain_sharp(output, logits, cached, own):
    t = len(cached)
    weights = (own * logits).softmax(dim=-1)
    if t == 1:
        if close(output, own * _mix(weights, cached)):
            raise Wrong("at the first layer your output is sharpness * v^1: multiply the logits, not the values nor the weights")
        raise Wrong("at the first layer there is one entry, whose weight is 1 whatever the sharpness: your output should be v^1")
    mistakes = (
        (logits.softmax(dim=-1), "your output is base's: the sharpness is not used"),
        ((abs(own) * logits).softmax(dim=-1), "a sharpness below 0 should prefer what matches least; you take its absolute value"),
        ((logits / own).softmax(dim=-1), "you divide by the sharpness; multiply, so that 0 gives equal weights"),
        ((4 * own * logits).softmax(dim=-1), "the logits should still be divided by sqrt(head_dim)"),
        ((own * logits).softmax(dim=1), "your softmax runs over the heads; it should run over the t layers, the last dimension"),
        ((own * logits).sigmoid(), "your weights come from a sigmoid; base has a softmax over the t layers"),
        (torch.full_like(logits, 1 / t), "your weights are all 1/t: that is the uniform mean, whatever the sharpness"),
    )
    for wrong, message in mistakes:
        if close(output, _mix(wrong, cached)):
            raise Wrong(message)
    if close(output, cached[-1][1]):
        raise Wrong("your code is right at the first layer only: the memory is not used")
    raise Wrong(f"at layer {t} your output is not softmax(sharpness * q.k / sqrt(head_dim)) over the {t} cached layers, head by head")


def _check_pairs(memory, cached, sharpness):
    t = len(cached)
    pairs = isinstance(memory, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in memory)
    if not pairs or len(memory) != t:
        raise Wrong(f"after layer {t} your memory should be a list of {t} pairs (key, value), one for each layer so far")
    key, value = memory[-1]
    tensor(key, cached[-1][0].shape, "cached key")
    tensor(value, SHAPE, "cached value")
    if close(key, sharpness[-1] * cached[-1][0]) or close(value, sharpness[-1] * cached[-1][1]):
        raise Wrong("what you cache is scaled: later layers would read it with this layer's sharpness, not with their own")
    for (key, value), (own_key, own_value) in zip(memory, cached, strict=True):
        if not close(key, own_key) or not close(value, own_value):
            raise Wrong("your memory should hold the key and the value of each layer as that layer made them, the oldest first")


def _check_gradients(layers, output):
    (output * numbers(*SHAPE, seed=90)).sum().backward()
    if layers[-1].sharpness.grad is None or not layers[-1].sharpness.grad.any():
        raise Wrong("sharpness gets no gradient: use the parameter itself, not a copy of its number")
    for module in (layers[0].key, layers[0].value):
        if module.weight.grad is None or not module.weight.grad.any():
            raise Wrong("no gradient reaches the first layer's key and value: is the memory detached?")


def _check_hook(layers, memory):
    seen = []
    handle = layers[-1].weights.register_forward_hook(lambda module, inputs, weights: seen.append(weights))
    run(layers[-1], numbers(*SHAPE), memory[:-1])
    handle.remove()
    if len(seen) != 1:
        raise Wrong("pass your weights through self.weights: that is where they are looked at and replaced")
    if not close(tensor(seen[0], (SHAPE[0], 3, LAYERS), "weights").sum(dim=-1), torch.ones(SHAPE[0], 3, dtype=torch.float64)):
        raise Wrong("what passes through self.weights should be the softmax's result, which sums to 1 over the layers")
