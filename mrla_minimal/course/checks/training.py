"""Checkers of notebook 07: a schedule, an accuracy without trace, a layer attention trained by its name."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from mrla_minimal.course.checks.as_trained import AS_TRAINED
from mrla_minimal.course.checks.common import Wrong, checker, close, numbers, pair, run, tensor


def _number(output, name):
    """`output` as a finite float, from a number or a tensor that holds one; else raises Wrong."""
    if isinstance(output, torch.Tensor) and output.numel() == 1:
        output = output.item()
    if isinstance(output, bool) or not isinstance(output, (int, float)):
        raise Wrong(f"your {name} should be one number, not of type {type(output).__name__}")
    if not math.isfinite(output):
        raise Wrong(f"your {name} is {output}; it should be a finite number")
    return float(output)


# Exercise 1

def _trapezoid(step, total_steps, warmup_steps, peak, late_warmup=0, early_end=0, plateau=True):
    if step < warmup_steps:
        return peak * (step + 1 - late_warmup) / warmup_steps
    start = total_steps // 2 if plateau else warmup_steps
    end = total_steps - early_end
    return peak if step < start else peak * (end - step) / (end - start)


@checker("exercise 1")
def check_trapezoid(answer: object) -> None:
    """answer(step, total_steps, warmup_steps, peak) -> the rate.

    Up in equal steps, flat to half of the run, down to zero.
    """
    for total_steps, warmup_steps, peak in ((40, 5, 0.8), (12, 3, 2.0), (20, 0, 0.1)):
        steps = range(total_steps)
        rates = [_number(run(answer, step, total_steps, warmup_steps, peak), "rate") for step in steps]

        def differs(rates=rates, run=(total_steps, warmup_steps, peak), **mistake):
            wanted = [_trapezoid(step, *run, **mistake) for step in range(len(rates))]
            return next((step for step, (given, right) in enumerate(zip(rates, wanted, strict=True))
                         if not math.isclose(given, right, rel_tol=1e-6, abs_tol=1e-9)), None)

        first = differs()
        if first is None:
            continue
        if rates[0] == 0:
            raise Wrong("your first rate is 0, so the first step changes nothing; "
                        "step 0 is the first of the warm-up's equal steps")
        if differs(early_end=1) is None:
            raise Wrong("your last step has rate 0 and changes nothing; "
                        "the line should reach 0 one step after the last")
        if differs(plateau=False) is None:
            raise Wrong("your rate falls from the end of the warm-up on; "
                        "it should stay at the peak until half of the run")
        where = ("in the warm-up" if first < warmup_steps else
                 "on the flat part" if first < total_steps // 2 else "on the way down")
        wanted = _trapezoid(first, total_steps, warmup_steps, peak)
        raise Wrong(f"{where}, at step {first} of {total_steps} with {warmup_steps} warm-up steps and "
                    f"peak {peak}, your rate is {rates[first]:.4g}, it should be {wanted:.4g}")


# Exercise 2

class _Witness(nn.Module):
    """A small net with BN and dropout that writes down how it was called."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm2d(3), nn.Dropout(0.5)
        self.classifier = nn.Linear(3, 4)
        with torch.no_grad():
            self.norm.running_mean.copy_(torch.tensor([1.0, -0.5, 0.2]))
            self.norm.running_var.copy_(torch.tensor([2.0, 0.5, 1.0]))
            self.classifier.weight.copy_(numbers(4, 3, seed=3))
            self.classifier.bias.zero_()
        self.double()
        self.sizes, self.with_gradient = [], False

    def forward(self, x):
        self.sizes.append(len(x))
        self.with_gradient |= torch.is_grad_enabled()
        return self.classifier(self.drop(self.norm(x)).mean(dim=(2, 3)))


def _judged(images):
    """The logits of a witness in evaluation mode, and labels for which its batches of 4 differ in accuracy.
    """
    with torch.no_grad():
        logits = _Witness().eval()(images)
    labels = logits.argmax(dim=1)
    labels[3:8] = (labels[3:8] + 1) % 4         # in batches of 4, 4 and 2 images, 3, 0 and 2 are right
    return logits, labels


@checker("exercise 2")
def check_accuracy(answer: object) -> None:
    """answer(model, images (n, 3, h, w), labels (n,), batch_size) -> share of right answers.

    And no trace in the model.
    """
    images = numbers(10, 3, 5, 4)
    images = images - 2 * numbers(10, 3, 1, 1, seed=1)
    logits, labels = _judged(images)
    for was_training in (True, False):
        for batch_size in (4, 5, 16):
            model = _Witness().train(was_training)
            state = {name: value.clone() for name, value in model.state_dict().items()}
            given = _number(run(answer, model, images, labels, batch_size), "accuracy")
            if not model.sizes:
                raise Wrong("your code never calls the model that it is given (a copy of it does not count)")
            if any(not torch.equal(value, state[name]) for name, value in model.state_dict().items()):
                raise Wrong("measuring has changed the model: in training mode each batch moves BN's "
                            "running statistics. Call model.eval() first")
            if max(model.sizes) > batch_size:
                raise Wrong(f"you gave the model {max(model.sizes)} images "
                            f"at once; a batch holds {batch_size} at most")
            _compare_accuracy(given, logits.argmax(dim=1) == labels, batch_size)
            if model.with_gradient:
                raise Wrong("your accuracy is right, but autograd keeps every activation meanwhile; "
                            "put `with torch.no_grad():` round the loop")
            if model.training is not was_training or model.norm.training is not was_training:
                now, before = (("training", "evaluation") if model.training else ("evaluation", "training"))
                raise Wrong(f"your accuracy is right, but the model was in {before} mode before and is in "
                            f"{now} mode now; put it back as you found it")


def _compare_accuracy(given, right, batch_size):
    share = right.double().mean().item()
    batches = right.double().split(batch_size)
    if math.isclose(given, share, abs_tol=1e-9):
        return
    if math.isclose(given, 100 * share, abs_tol=1e-7):
        raise Wrong("your accuracy is in per cent; return a share from 0 to 1")
    if math.isclose(given, right.sum().item()):
        raise Wrong("you return how many are right; divide by the number of images")
    if math.isclose(given, torch.stack([batch.mean() for batch in batches]).mean().item(), abs_tol=1e-7):
        raise Wrong("you averaged the batches' accuracies, and the last "
                    "batch is smaller; count right answers over all images")
    whole = [batch for batch in batches if len(batch) == batch_size]
    if whole and given <= 1 and any(math.isclose(given, torch.cat(whole).sum().item() / n, abs_tol=1e-7)
                                    for n in (len(right), len(torch.cat(whole)))):
        raise Wrong("the last, smaller batch is missing")
    raise Wrong(f"in batches of {batch_size} your accuracy is {given:.4g}, it should be {share:.4g}")


# Exercise 3

def _fading_layer(answer, channels, seed):
    """An instance of the answer with weights of our own, in float64."""
    layer = run(answer, channels)
    if not isinstance(layer, nn.Module):
        raise Wrong("your class should be an nn.Module, built as "
                    f"FadingMean(channels); it gives {type(layer).__name__}")
    value, fade = getattr(layer, "value", None), getattr(layer, "fade", None)
    if not isinstance(value, nn.Conv2d) or tuple(value.weight.shape) != (channels, 1, 3, 3):
        raise Wrong("your self.value should be a depthwise 3x3 Conv2d: "
                    "groups=channels, so its weights are (channels, 1, 3, 3)")
    if value.bias is not None:
        raise Wrong("your self.value has a bias; the value convolutions of the course have none (bias=False)")
    if not isinstance(fade, nn.Parameter):
        raise Wrong("your self.fade should be an nn.Parameter: nothing "
                    "else is found by the optimiser, or moved to a GPU")
    tensor(fade, (channels,), "self.fade")
    if fade.detach().any():
        raise Wrong("your self.fade should start at 0, so that old and new start with equal shares")
    layer.double()
    with torch.no_grad():
        layer.value.weight.copy_(numbers(channels, 1, 3, 3, seed=seed))
        layer.fade.copy_(numbers(channels, seed=100 + seed))
    return layer


def _fading(layer, x, memory, share_of=torch.sigmoid, first=None):
    value = F.conv2d(x, layer.value.weight, padding=1, groups=x.shape[1])
    keep = share_of(layer.fade)[:, None, None]
    if memory is None:
        return value if first is None else first(keep) * value
    return keep * memory + (1 - keep) * value


@checker("exercise 3")
def check_fading_mean(answer: object) -> None:
    """answer(channels) -> a layer attention: O^1 = v^1, then O^t = keep * O^(t-1) + (1 - keep) * v^t.

    keep = sigmoid(fade), a channel.
    """
    channels, shape = 6, (2, 6, 5, 4)
    probe = run(answer, channels)
    if isinstance(probe, nn.Module):
        run(probe, numbers(*shape).float(), None)       # a stub stops here
    layers = [_fading_layer(answer, channels, seed) for seed in range(3)]
    for stage in range(2):
        # the same would hide what is kept
        features = [numbers(*shape, seed=10 + 3 * stage + t) for t in range(3)]
        memory, carried = None, None
        for t, (layer, x) in enumerate(zip(layers, features, strict=True), start=1):
            output, memory = pair(run(layer, x, memory))
            tensor(output, shape)
            wanted = _fading(layer, x, carried)
            if not close(output, wanted):
                if stage:
                    raise Wrong("your code is right on its first stage only: something outlives the "
                                "memory, which is None again at the first layer of a stage")
                _explain_fading(output, layer, x, carried, t)
            carried = wanted
            if not close(tensor(memory, shape, "memory"), wanted):
                raise Wrong("your memory should be the output O^t itself: that is what layer t + 1 lets fade")
        learned = (layers[0].value.weight, layers[2].fade)
        reached = (None, None)
        if output.requires_grad:
            reached = torch.autograd.grad(output.square().sum(), learned, allow_unused=True)
        if reached[0] is None:
            raise Wrong("your outputs are right, but no gradient of layer "
                        "3's output reaches layer 1; is the memory detached?")
        if reached[1] is None or not reached[1].any():
            raise Wrong("your outputs are right, but no gradient reaches self.fade; is it detached?")
    for check in AS_TRAINED:
        check(answer)


def _explain_fading(output, layer, x, carried, t):
    if carried is None:
        if close(output, _fading(layer, x, None, first=lambda keep: 1 - keep)):
            raise Wrong("at layer 1 your output is (1 - keep) * v: with nothing to fade, O^1 = v^1")
        raise Wrong("at layer 1 your output is not v, the depthwise convolution of x")
    value = _fading(layer, x, None)
    if close(output, value):
        raise Wrong(f"at layer {t} your output is v alone; the memory is missing")
    if close(output, _fading(layer, x, carried, lambda fade: 1 - torch.sigmoid(fade))):
        raise Wrong("you have the shares the wrong way round: keep = "
                    "sigmoid(fade) belongs to the memory, 1 - keep to v")
    if close(output, _fading(layer, x, carried, lambda fade: fade)):
        raise Wrong("your share is self.fade itself, which may leave 0..1; put a sigmoid round it")
    if close(output, torch.sigmoid(layer.fade)[:, None, None] * carried + value):
        raise Wrong("your new entry comes in whole; scale it by 1 - keep, so that the shares sum to 1")
    if close(output, (carried + value) / 2):
        raise Wrong("your shares are 1/2 each, whatever self.fade is")
    raise Wrong(f"at layer {t} your output is not keep * memory + (1 - keep) * v, channel by channel")

