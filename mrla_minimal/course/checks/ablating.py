"""Checkers of notebook 09: contrasts of three factors, who reaches whom, a layer attention of one's own."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from mrla_minimal.course.checks.common import (
    NotAttempted,
    Wrong,
    checker,
    close,
    first_line,
    numbers,
    pair,
    run,
    tensor,
)
from mrla_minimal.layer_attention import per_channel, pool, split_heads
from mrla_minimal.resnet import cifar_resnet

EFFECTS = ("attention", "attention x depth", "attention x width")


@checker("exercise 1")
def check_three_effects(answer: object) -> None:
    """answer(table (seeds, 2, 2, 2)) -> {effect: (seeds,)}; the table is [seed, attention, depth, width]."""
    for seeds in (5, 1):
        table = numbers(seeds, 2, 2, 2, seed=seeds)
        gain = table[:, 1] - table[:, 0]                                    # (seeds, depth, width)
        by_depth, by_width = gain[:, 1] - gain[:, 0], gain[:, :, 1] - gain[:, :, 0]
        means = gain.mean(dim=(1, 2)), by_depth.mean(dim=1), by_width.mean(dim=1)
        wanted = dict(zip(EFFECTS, means, strict=True))
        given = run(answer, table)
        if not isinstance(given, dict) or set(given) != set(EFFECTS):
            raise Wrong("your function should return a dictionary with "
                        f"the keys {', '.join(map(repr, EFFECTS))}")
        if all(value is None or value is Ellipsis for value in given.values()):
            raise NotAttempted
        for name, others in zip(EFFECTS, ((), (by_depth, by_width), (by_width, by_depth)), strict=True):
            effect = tensor(given[name], (seeds,), f"effect {name!r}")
            if not close(effect, wanted[name]):
                _explain_effect(name, effect, wanted, table, others)


def _explain_effect(name, effect, wanted, table, others):
    if close(effect, -wanted[name]):
        raise Wrong(f"your {name!r} has the wrong sign: index 1 (with attention, deep, wide) minus index 0")
    if any(close(effect, factor * wanted[name]) for factor in (2, 4)):
        raise Wrong(f"your {name!r} is a sum over the other factors; average over them instead")
    if close(effect, wanted[name] / 2):
        raise Wrong(f"your {name!r} is halved; here an interaction is the plain difference of the two gains")
    if name != "attention":
        if close(effect, others[1].mean(dim=1)):
            raise Wrong("you have depth and width the wrong way round: "
                        "the table is [seed, attention, depth, width]")
        if close(effect, others[0][:, 0]) or close(effect, others[0][:, 1]):
            raise Wrong(f"your {name!r} looks at one level of the other factor only; average over both")
        by_depth, by_width = (table.select(axis, 1) - table.select(axis, 0) for axis in (2, 3))
        if close(effect, by_depth.mean(dim=(1, 2))) or close(effect, by_width.mean(dim=(1, 2))):
            raise Wrong(f"your {name!r} is what the size does to accuracy, with "
                        "and without attention alike; take the gains first")
    how = ("averaged over the four sizes" if name == "attention"
           else "compared between two levels, averaged over the other factor")
    raise Wrong(f"your {name!r} is not the gain by attention, {how}")


@checker("exercise 2")
def check_reach(answer: object) -> None:
    """answer(list of T tensors (channels,)) -> (T, T).

    [t, s] is the median over channels of the absolute product of lambda^(s+1) to lambda^t.
    """
    # of 6 channels the lower median is not the interpolated one
    for layers, channels in ((5, 7), (4, 6)):
        lambdas = list(numbers(layers, channels, seed=layers))
        lambdas[2] = lambdas[2].clone()
        # a channel that forgets all at once: logarithms fail
        lambdas[2][0] = 0.0
        wanted = _reach(lambdas)
        reached = tensor(run(answer, lambdas), (layers, layers))
        if not close(reached, wanted):
            _explain_reach(reached, wanted, lambdas)
    if not close(tensor(run(answer, lambdas[:1]), (1, 1)), torch.ones(1, 1)):
        raise Wrong("with one layer your table should be a single 1")


def _reach(lambdas, summary=lambda beta: beta.abs().median(), first=1, last=1):
    """first 0: from lambda^s on; last 0: only up to lambda^(t-1)."""
    layers = len(lambdas)
    table = torch.zeros(layers, layers, dtype=lambdas[0].dtype)
    for s in range(layers):
        for t in range(s, layers):
            factors = lambdas[s + first : t + last]
            beta = torch.stack(factors).prod(dim=0) if factors else torch.ones_like(lambdas[0])
            table[t, s] = summary(beta)
    return table


def _explain_reach(reached, wanted, lambdas):
    lower = torch.ones_like(wanted).tril()
    if close(reached, wanted.T):
        raise Wrong("your rows and columns are exchanged: row t is the "
                    "layer that receives, column s the one that wrote")
    if close(reached * lower, wanted):
        raise Wrong("nothing comes from later layers: above the diagonal your table should be 0")
    if close(reached, _reach(lambdas, first=0)):
        raise Wrong("you multiply by lambda^s too: that scales what came before layer s, not its own entry")
    if close(reached, _reach(lambdas, first=0, last=0)):
        raise Wrong("you are one layer early: from layer s to layer "
                    "t the factors are lambda^(s+1) to lambda^t")
    if close(reached, _reach(lambdas, last=0)):
        raise Wrong("lambda^t is missing: layer t scales what it is handed, too")
    if close(reached, _reach(lambdas, summary=lambda beta: beta.median())):
        raise Wrong("you took the median of signed betas; take absolute values before")
    if close(reached, _reach(lambdas, summary=lambda beta: beta.median().abs())):
        raise Wrong("take the absolute values before the median, not after "
                    "it: a channel with -2 keeps as much as one with 2")
    if close(reached, _reach(lambdas, summary=lambda beta: beta.abs().mean())):
        raise Wrong("you took the mean over channels, which a few "
                    "giants make up; the typical channel is the median")
    if close(reached, _reach(lambdas, summary=lambda beta: beta.abs().quantile(0.5))):
        raise Wrong("of an even number of channels you took the mean of the two "
                    "in the middle; take the lower one, as torch.median does")
    medians = [row.abs().median() for row in lambdas]
    if close(reached, _reach([median[None] for median in medians])):
        raise Wrong("you multiplied medians; multiply channel by "
                    "channel first, and take the median of the products")
    if close(reached.diagonal(), torch.ones(len(wanted))):
        raise Wrong("your table is right on its diagonal; row t, column s < "
                    "t should be the median of |lambda^(s+1) ... lambda^t|")
    raise Wrong("your diagonal should be 1: a layer's own new entry has met no lambda yet")


@checker("exercise 3")
def check_blend(answer: object) -> None:
    """answer(channels, head_dim) -> a module that fits into cifar_resnet.

    O^t = (1 - g) O^(t-1) + g v, with g light's gate.
    """
    if not (isinstance(answer, type) and issubclass(answer, nn.Module)):
        raise Wrong("your answer should be a class made from nn.Module")
    batch, heads, d, height, width, layers = 2, 3, 4, 5, 6, 3
    channels = heads * d
    # tells a stub from a wrong class
    run(_build(answer, channels, d), numbers(batch, channels, height, width), None)
    stage = [_build(answer, channels, d) for _ in range(layers)]
    for layer in stage:
        _check_parts(layer, channels)
    for again in range(2):
        memory, carried = None, torch.zeros(batch, channels, height, width, dtype=torch.float64)
        for t, layer in enumerate(stage, start=1):
            x = numbers(batch, channels, height, width, seed=t) + numbers(batch, channels, 1, 1, seed=10 + t)
            output, memory = pair(run(layer, x, memory))
            wanted = _blend(layer, x, carried, d)
            if not close(tensor(output, wanted.shape), wanted):
                if again:
                    raise Wrong("your class is right on its first three calls "
                                "only: it keeps something between calls")
                _explain_blend(layer, output, x, carried, d, t)
            if not close(tensor(memory, wanted.shape, "memory"), wanted):
                raise Wrong("your memory should be the output O^t itself: "
                            "that is what layer t + 1 blends into")
            carried = wanted
    _check_gradient_through_memory(stage, output)
    _check_in_a_network(answer)


def _check_gradient_through_memory(stage, output):
    if not output.requires_grad:
        raise Wrong("no gradient reaches your output; is it detached?")
    (output * numbers(*output.shape, seed=90)).sum().backward()
    first = stage[0].value.weight.grad
    if first is None or not first.any():
        raise Wrong("no gradient of the last output reaches the first layer's value: is the memory detached?")


def _build(answer, channels, head_dim):
    try:
        layer = answer(channels, head_dim=head_dim).double()
    except NotImplementedError:
        raise NotAttempted from None
    except (Exception, SystemExit) as error:
        raise Wrong(f"Blend({channels}, head_dim={head_dim}) raises {first_line(error)}") from error
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


def _check_parts(layer, channels):
    shapes = {"query": (1, 1, 3), "key": (1, 1, 3), "value": (channels, 1, 3, 3)}
    for name, shape in shapes.items():
        weight = getattr(getattr(layer, name, None), "weight", None)
        if weight is None or tuple(weight.shape) != shape:
            raise Wrong(f"your class should have a part .{name} whose weight "
                        f"has the shape {shape} for {channels} channels")
    given = {name for name, _ in layer.named_parameters()}
    extra = sorted(given - {f"{name}.weight" for name in shapes})
    if extra:
        raise Wrong(f"your class has the parameter {extra[0]} besides "
                    "query, key and value; Blend has no other")


def _blend(layer, x, carried, head_dim, gate_of=torch.sigmoid,
           old=lambda gate: 1 - gate, new=lambda gate: gate):
    row = pool(x)
    query, key = (split_heads(part(row), head_dim) for part in (layer.query, layer.key))
    gate = per_channel(gate_of((query * key).sum(dim=-1) / math.sqrt(head_dim)), x)
    return old(gate) * carried + new(gate) * layer.value(x)


def _explain_blend(layer, output, x, carried, d, t):
    if t == 1 and close(output, layer.value(x)):
        raise Wrong("at layer 1 your output is v itself; O^0 = 0, so O^1 = g * v")
    guesses = (
        ({"old": lambda gate: gate, "new": lambda gate: 1 - gate},
         "you have the gate the wrong way round: g scales the new value, 1 - g the old map"),
        ({"gate_of": lambda logits: torch.sigmoid(logits * math.sqrt(d))},
         "your logits lack the factor 1 / sqrt(d), d = head_dim"),
        ({"gate_of": lambda logits: logits}, "your gate is the bare product; put a sigmoid round it"),
        ({"gate_of": lambda logits: torch.sigmoid(logits.mean(dim=1, keepdim=True)).expand_as(logits)},
         "your gate is one for all heads; each head has its own"),
    )
    for changes, words in guesses:
        if close(output, _blend(layer, x, carried, d, **changes)):
            raise Wrong(words)
    if t > 1:
        later = (
            ({"old": torch.ones_like}, "your old map is not scaled: 1 - g times O^(t-1)"),
            ({"old": torch.zeros_like}, "your class is right at the first "
                                        "layer only: the old map is missing"),
        )
        for changes, words in later:
            if close(output, _blend(layer, x, carried, d, **changes)):
                raise Wrong(words)
    raise Wrong(f"at layer {t} your output is not (1 - g) * O^(t-1) + g * "
                "v, with g = sigmoid(q.k / sqrt(d)), one a head and image")


def _check_in_a_network(answer):
    """Plugged in as it is: head_dim left to its default; every parameter of it gets a gradient."""
    probe = _build(answer, 64, None)
    try:
        output = pair(run(probe, numbers(2, 64, 3, 4), None))[0]
    except Wrong as wrong:
        raise Wrong(f"with head_dim left at None, {wrong}; choose_head_dim finds a size then") from wrong
    if not close(output, _blend(probe, numbers(2, 64, 3, 4), torch.zeros(()), 32)):
        raise Wrong("with head_dim=None your heads should have 32 of 64 channels: "
                    "choose_head_dim(channels, head_dim, largest=32)")
    try:
        model = cifar_resnet(20, width=8, layer_attention=answer)
        F.cross_entropy(model(numbers(4, 3, 32, 32).float()), torch.arange(4)).backward()
    except (Exception, SystemExit) as error:
        raise Wrong(f"cifar_resnet(20, width=8, layer_attention=Blend) raises {first_line(error)}") from error
    for name, parameter in model.named_parameters():
        if "layer_attention" in name and (parameter.grad is None or not parameter.grad.isfinite().all()):
            raise Wrong(f"in cifar_resnet(20, width=8) the parameter {name} gets no finite gradient")
