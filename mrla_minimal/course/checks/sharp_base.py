"""Checker of notebook 08's own layer attention: MRLA-base whose softmax can be sharper or flatter."""

import torch

from mrla_minimal.course.checks.as_trained import AS_TRAINED
from mrla_minimal.course.checks.common import (
    Wrong,
    blame,
    built,
    checker,
    close,
    first_line,
    numbers,
    pair,
    run,
    tensor,
)
from mrla_minimal.layer_attention import MRLABase

LAYERS, CHANNELS, SHAPE = 4, 48, (2, 48, 5, 7)      # three heads of 16


@checker("exercise 3")
def check_sharp_base(answer: object) -> None:
    """answer(channels) -> an MRLABase with .sharpness, one number: softmax(sharpness * logits) over t layers.
    """
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
            # (batch, heads, t)
            logits = torch.stack([(query * key).sum(dim=-1) for key, _ in cached], dim=-1) / 4
            tensor(output, SHAPE)
            if not close(output, _mix((sharpness[-1] * logits).softmax(dim=-1), cached)):
                if stage:
                    raise Wrong("your module is right on its first stage only: "
                                "something outlives the memory, which is None again there")
                _explain_sharp(output, logits, cached, sharpness[-1])
            _check_pairs(memory, cached, sharpness)
    _check_gradients(layers, output)
    _check_hook(layers, memory)
    try:
        for check in AS_TRAINED:
            check(answer)
    except RuntimeError as error:
        raise Wrong("in a network, whose stages have 8, 16 and 32 channels, "
                    f"your code raises {first_line(error)}") from error


def _layer(answer):
    layer = built(answer, CHANNELS, SHAPE).double()
    if not isinstance(layer, MRLABase):
        raise Wrong("your class should be derived from MRLABase, so "
                    "that it differs from base in the sharpness alone")
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
    """weights (batch, heads, t), t pairs -> sum over s of weights[..., s] * v^s, head by head."""
    spread = weights.repeat_interleave(16, dim=1)                                    # (batch, channels, t)
    return sum(spread[:, :, s, None, None] * value for s, (_, value) in enumerate(cached))


def _explain_sharp(output, logits, cached, own):
    t = len(cached)
    weights = (own * logits).softmax(dim=-1)
    if t == 1:
        if close(output, own * _mix(weights, cached)):
            raise Wrong("at the first layer your output is sharpness * v^1: "
                        "multiply the logits, not the values nor the weights")
        raise Wrong("at the first layer there is one entry, whose weight is "
                    "1 whatever the sharpness: your output should be v^1")
    mistakes = (
        (logits.softmax(dim=-1), "your output is base's: the sharpness is not used"),
        ((abs(own) * logits).softmax(dim=-1), "a sharpness below 0 should prefer what "
                                              "matches least; you take its absolute value"),
        ((logits / own).softmax(dim=-1), "you divide by the sharpness; "
                                         "multiply, so that 0 gives equal weights"),
        ((4 * own * logits).softmax(dim=-1), "the logits should still be divided by sqrt(head_dim)"),
        ((own * logits).softmax(dim=1), "your softmax runs over the heads; it should "
                                        "run over the t layers, the last dimension"),
        ((own * logits).sigmoid(), "your weights come from a sigmoid; base has a softmax over the t layers"),
        (torch.full_like(logits, 1 / t), "your weights are all 1/t: that is the "
                                         "uniform mean, whatever the sharpness"),
    )
    made = [(_mix(wrong, cached), message) for wrong, message in mistakes]
    made.append((cached[-1][1], "your code is right at the first layer only: the memory is not used"))
    blame(output, _mix(weights, cached), made,
          f"at layer {t} your output is not softmax(sharpness * q.k / sqrt(head_dim)) over the {t} cached "
          "layers, head by head")


def _check_pairs(memory, cached, sharpness):
    t = len(cached)
    pairs = isinstance(memory, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in memory)
    if not pairs or len(memory) != t:
        raise Wrong(f"after layer {t} your memory should be a list of "
                    f"{t} pairs (key, value), one for each layer so far")
    key, value = memory[-1]
    tensor(key, cached[-1][0].shape, "cached key")
    tensor(value, SHAPE, "cached value")
    if close(key, sharpness[-1] * cached[-1][0]) or close(value, sharpness[-1] * cached[-1][1]):
        raise Wrong("what you cache is scaled: later layers would read "
                    "it with this layer's sharpness, not with their own")
    for (key, value), (own_key, own_value) in zip(memory, cached, strict=True):
        if not close(key, own_key) or not close(value, own_value):
            raise Wrong("your memory should hold the key and the value of "
                        "each layer as that layer made them, the oldest first")


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
    sums = tensor(seen[0], (SHAPE[0], 3, LAYERS), "weights").sum(dim=-1)
    if not close(sums, torch.ones(SHAPE[0], 3, dtype=torch.float64)):
        raise Wrong("what passes through self.weights should be the "
                    "softmax's result, which sums to 1 over the layers")
