"""Checkers of notebook 10: a paired count and its p value, weights by class, and a layer attention without a choice per image."""

import math

import torch
from torch import nn

from mrla_minimal.course.checks.common import Wrong, checker, close, first_line, numbers, pair, run, tensor
from mrla_minimal.course.checks.coursework import check_batch, check_calls, check_gradients, check_memory_is_a_value, check_training_step

# (right before and after, lost, gained, wrong before and after) of the tests that exercise 1 is given.
COUNTS = ((20, 9, 2, 6), (11, 1, 6, 3), (5, 3, 3, 4), (7, 0, 0, 2), (30, 40, 31, 0))


@checker("exercise 1")
def check_paired_test(answer):
    """answer(before, after, labels), predicted and true classes (n,) each -> (lost, gained, p), p of the exact McNemar test."""
    for counts in COUNTS:
        before, after, labels = _predictions(*counts)
        result = run(answer, before, after, labels)
        if not isinstance(result, (tuple, list)) or len(result) != 3:
            raise Wrong("your function should return three numbers: lost, gained, p")
        if not all(isinstance(number, (int, float)) or getattr(number, "shape", None) == () for number in result):
            raise Wrong("each of the three should be one number")
        lost, gained, p = (float(number) for number in result)
        if any(map(math.isnan, (lost, gained, p))):
            raise Wrong("one of your numbers is NaN; with nothing lost and nothing gained, p is 1")
        _explain_counts(lost, gained, *counts)
        _explain_p(p, *counts)


def _predictions(kept, lost, gained, neither):
    """Images in mixed order; of those that are wrong before and after, every second one changes its wrong answer."""
    n = kept + lost + gained + neither
    labels = torch.arange(n) % 10
    right, other, third = labels, (labels + 1) % 10, (labels + 4) % 10
    kind = torch.tensor([0] * kept + [1] * lost + [2] * gained + [3] * neither)
    before = torch.where(kind <= 1, right, other)
    after = torch.where((kind == 0) | (kind == 2), right, torch.where((kind == 3) & (labels % 2 == 0), third, other))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
    return before[order], after[order], labels[order]


def _explain_counts(lost, gained, kept, right_lost, right_gained, neither):
    if (lost, gained) == (right_lost, right_gained):
        return
    if (lost, gained) == (right_gained, right_lost):
        raise Wrong("lost and gained are exchanged: lost were right before and are wrong after")
    if (lost, gained) == (right_lost + neither, right_gained + neither) or lost + gained > right_lost + right_gained:
        raise Wrong("you count images that were wrong before and after; one wrong answer for another neither gains nor loses")
    if lost + gained == abs(right_lost - right_gained):
        raise Wrong("you took the difference of the two accuracies; it hides the images that were lost and gained in equal number")
    raise Wrong(f"of {kept + right_lost + right_gained + neither} images {right_lost} are lost and {right_gained} gained; "
                f"yours: {lost:g} and {gained:g}")


def _tail(successes, trials, half=0.5):
    return sum(math.comb(trials, k) for k in range(successes + 1)) * half**trials


def _explain_p(p, kept, lost, gained, neither):
    trials, fewer, n = lost + gained, min(lost, gained), kept + lost + gained + neither
    if close(p, min(1.0, 2 * _tail(fewer, trials))):
        return
    if trials == 0:
        raise Wrong("with nothing lost and nothing gained there is no sign of a difference: p is 1")
    if close(p, 2 * _tail(fewer, trials)) and p > 1:
        raise Wrong("with as many lost as gained your p passes 1; a probability is at most 1")
    if close(p, min(1.0, 2 * _tail(max(lost, gained), trials))):
        raise Wrong("you summed up to the larger of the two counts; take the smaller")
    if close(p, _tail(fewer, trials)) or close(p, _tail(lost, trials)) or close(p, _tail(gained, trials)):
        raise Wrong("that is one side of the binomial; you did not know beforehand which way it would go, so take both: twice the smaller")
    if close(p, 2 * math.comb(trials, fewer) * 0.5**trials):
        raise Wrong("you took the chance of exactly this count; p is the chance of this one or a more extreme one: sum from 0")
    if close(p, min(1.0, 2 * _tail(fewer, n))) or close(p, _tail(fewer, n)):
        raise Wrong("your coin is thrown once an image; only the lost and gained ones say anything, so throw it lost + gained times")
    if close(p, math.erfc(abs(lost - gained) / math.sqrt(2 * trials))):
        raise Wrong("that is the normal approximation, too rough for a handful of images; sum the binomial itself")
    raise Wrong(f"with {lost} lost and {gained} gained, p is the chance that {trials} throws of a fair coin are at least this uneven")


@checker("exercise 2")
def check_by_class(answer):
    """answer(weights, labels, classes): T tensors (batch, heads, t) -> (classes, heads, T, T), each class's mean, 0 elsewhere."""
    for batch, heads, layers, classes in ((11, 2, 4, 5), (7, 3, 2, 6)):
        weights = [numbers(batch, heads, t, seed=t).softmax(dim=-1) for t in range(1, layers + 1)]
        labels = torch.tensor([3, 0, 2, 3, 3, 0, 2, 3, 0, 2, 2])[:batch]         # class 1 and the last ones have no image
        given = tensor(run(answer, weights, labels, classes), (classes, heads, layers, layers))
        wanted = _by_class(weights, labels, classes)
        if not close(given, wanted):
            _explain_by_class(given, wanted, weights, labels, classes, heads, layers)


def _by_class(weights, labels, classes):
    layers = len(weights)
    result = torch.zeros(classes, weights[0].shape[1], layers, layers, dtype=weights[0].dtype)
    for t, of_layer in enumerate(weights, start=1):
        for label in labels.unique().tolist():
            result[label, :, t - 1, :t] = of_layer[labels == label].mean(dim=0)
    return result


def _explain_by_class(given, wanted, weights, labels, classes, heads, layers):
    counts = torch.bincount(labels, minlength=classes).to(wanted.dtype)[:, None, None, None]
    if close(given, wanted.mean(dim=1, keepdim=True).expand_as(wanted)):
        raise Wrong("all your heads are alike: do not average over the heads")
    everyone = torch.zeros_like(wanted)
    for t, of_layer in enumerate(weights, start=1):
        everyone[:, :, t - 1, :t] = of_layer.mean(dim=0)
    if close(given, everyone) or close(given, everyone * (counts > 0)):
        raise Wrong("all your classes are alike: take the mean over the images of one class at a time")
    if close(given, wanted * counts):
        raise Wrong("you sum over the images of a class; divide by their number")
    if close(given, wanted * counts / len(labels)):
        raise Wrong("you divide by the number of all images; divide by the number of the class's own")
    if close(given, wanted.transpose(2, 3)):
        raise Wrong("your rows and columns are exchanged: row t asks, column s is read")
    if close(given, wanted.flip(3)):
        raise Wrong("your columns run from the newest layer to the oldest; column s belongs to layer s")
    if not close(given.triu(1), torch.zeros_like(given)):
        raise Wrong("something stands above the diagonal; layer t has read layers 1 to t only, the rest of its row is 0")
    empty = [label for label in range(classes) if not (labels == label).any()]
    if not close(given[empty], torch.zeros_like(given[empty])):
        raise Wrong("a class without images should be all 0")
    raise Wrong("entry [class, head, t - 1, s - 1] should be the mean of weights[t - 1][image, head, s - 1] over the class's images")


CHANNELS = 32       # two heads of 16


@checker("exercise 3")
def check_fixed_weights(answer):
    """answer(channels) -> a module with .value and .weights, O^t = sum_s w_s v^s, w a softmax of learned numbers, not of the image."""
    module = run(answer, CHANNELS)
    if not isinstance(module, nn.Module):
        raise Wrong(f"your answer(channels) should make a module, not a {type(module).__name__}")
    run(module, numbers(2, CHANNELS, 4, 5).float(), None)       # a stub is a stub before it is a wrong module
    _named_parts(module)
    _fixed_layers(answer)
    _deep_enough(answer)
    for check in (check_memory_is_a_value, check_calls, check_batch, check_gradients, check_training_step):
        check(answer)


def _named_parts(module):
    if not isinstance(getattr(module, "weights", None), nn.Module):
        raise Wrong("your module should hold self.weights = nn.Identity() and pass its weights through it; without it nobody can look")
    names = dict(module.named_parameters())
    if "value.weight" not in names or tuple(names["value.weight"].shape) != (CHANNELS, 1, 3, 3):
        raise Wrong("your module should hold self.value = value_convolution(channels)")
    if len(names) < 2:
        raise Wrong("your module has no parameter but the value's: which numbers are the weights learned in?")
    if not getattr(module, "relu_after_norm", False):
        raise Wrong("set relu_after_norm = True on your class, as base has it: the block then puts a ReLU after the BN")
    if any(name.startswith(("query", "key")) for name in names):
        raise Wrong("your module has a query or a key; its weights should come from learned numbers alone, whatever the image")


def _deep_enough(answer):
    """The deepest stage that the exercise speaks of: 32 layers, each reading all before it."""
    memory = None
    with torch.no_grad():
        for t in range(1, 33):
            layer = run(answer, CHANNELS)
            try:
                _, memory = layer(numbers(1, CHANNELS, 2, 2).float(), memory)
            except Exception as error:
                raise Wrong(f"at layer {t} of a stage of 32 your module raises {first_line(error)}") from error


def _fixed_layers(answer):
    """Three layers, called on two batches: the weights at each, and what the output is made of."""
    layers = [run(answer, CHANNELS).double() for _ in range(3)]
    seen = []
    with torch.no_grad():
        for number, layer in enumerate(layers):
            layer.weights.register_forward_hook(lambda module, inputs, output: seen.append(output))
            for place, (name, parameter) in enumerate(sorted(layer.named_parameters())):
                if name != "value.weight":
                    parameter.copy_(numbers(*parameter.shape, seed=100 * number + place))
                else:
                    parameter.copy_(numbers(*parameter.shape, seed=50 + number))
        kept = []
        for batch in (2, 3):
            memory, values, seen[:] = None, [], []
            for t, layer in enumerate(layers, start=1):
                x = numbers(batch, CHANNELS, 4, 5, seed=10 * batch + t)
                values.append(layer.value(x))
                before = len(seen)
                output, memory = pair(run(layer, x, memory))
                tensor(output, x.shape)
                if len(seen) == before:
                    raise Wrong("nothing passes through self.weights: write weights = self.weights(...) in forward")
                _explain_fixed(output, tensor(seen[-1], (batch, 2, t), "weights tensor"), values, t)
            kept.append([weights[:1] for weights in seen])
    if not all(close(one, other) for one, other in zip(*kept, strict=True)):
        raise Wrong("your weights change with the images; they should depend on the layers alone")
    with torch.no_grad():
        for layer in layers:
            for name, parameter in layer.named_parameters():
                if name != "value.weight":
                    parameter.add_(0.7)
        memory, seen[:] = None, []
        for t, layer in enumerate(layers, start=1):
            _, memory = pair(run(layer, numbers(2, CHANNELS, 4, 5, seed=t), memory))
    if not all(close(one[:1], other) for one, other in zip(seen, kept[0], strict=True)):
        raise Wrong("with 0.7 added to all your learned numbers the weights change, which a softmax of them would not do; "
                    "take softmax(a), with a number of its own for each layer (or distance) and head")


def _explain_fixed(output, weights, values, t):
    if not close(weights.sum(dim=-1), torch.ones_like(weights[:, :, 0])):
        axis = "the heads" if weights.shape[1] > 1 and close(weights.sum(dim=1), torch.ones_like(weights[:, 0])) else "another axis"
        raise Wrong(f"at layer {t} the weights of a head do not sum to 1 over the {t} layers; is the softmax over {axis}, "
                    "or taken before the layers that do not exist yet are cut off?")
    if not close(weights, weights[:1].expand_as(weights)):
        raise Wrong("your weights differ between the images of one batch; they should depend on the layers alone")
    if t > 1:
        if close(weights, torch.full_like(weights, 1 / t)):
            raise Wrong("your weights are 1/t whatever the parameters are: that is the uniform control; make them learnable")
        if close(weights[:, 0], weights[:, 1]):
            raise Wrong("both heads have the same weights; give each head numbers of its own")
    spread = weights.repeat_interleave(values[0].shape[1] // weights.shape[1], dim=1)       # (batch, channels, t)
    wanted = sum(spread[:, :, s, None, None] * value for s, value in enumerate(values))
    if not close(output, wanted):
        flipped = spread.flip(-1)
        if close(output, sum(flipped[:, :, s, None, None] * value for s, value in enumerate(values))):
            raise Wrong("your values are in the opposite order of your weights: entry s of the weights belongs to layer s")
        if close(output, spread[:, :, -1, None, None] * values[-1]):
            raise Wrong("your output has the newest value only; sum over all values in the memory")
        raise Wrong(f"at layer {t} your output is not the sum of weights[:, head, s] * v^s over the layers s = 1 .. {t}")
