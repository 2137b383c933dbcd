"""Checkers of notebook 06: the betas of our Eq. 9, a layer of MRLA-light, the best constant of our Eq. 7."""

import math

import torch

from mrla_minimal.course.checks.common import Wrong, checker, close, numbers, pair, run, tensor


@checker("exercise 1")
def check_betas(answer: object) -> None:
    """answer(lambdas (T, channels)) -> (T, channels), row 0 ones.

    Row l is lambda^T * lambda^{T-1} * ... * lambda^{T-l+1}.
    """
    lambdas = numbers(5, 3)
    given = tensor(run(answer, lambdas), lambdas.shape)
    ones = torch.ones_like(lambdas[:1])
    wanted = torch.cat([ones, lambdas.flip(0).cumprod(0)[:-1]])
    if not close(given, wanted):
        if close(given, lambdas.flip(0).cumprod(0)):
            raise Wrong("your rows are one step late: row 0 is the newest "
                        "entry's factor, which no lambda has touched, so 1")
        if close(given, torch.cat([ones, lambdas.cumprod(0)[:-1]])):
            raise Wrong("you multiply from the first layer on; an entry is rescaled "
                        "by the layers after it, so start at the last layer")
        if close(given, wanted.flip(0)):
            raise Wrong("your rows are in the order of the layers; row "
                        "l should be the entry that is l layers old")
        if close(given, torch.cat([ones, lambdas.flip(0)[:-1]])):
            raise Wrong("your row l is one lambda; it should be the product of l of them")
        if not close(given[:1], ones):
            raise Wrong("your row 0 should be ones: no lambda has touched the newest entry yet")
        row = next(row for row in range(5) if not close(given[row], wanted[row]))
        newest = "the newest lambda" if row == 1 else f"the product of the {row} newest lambdas"
        raise Wrong(f"your row {row} is the first wrong one; it should be {newest}, channel by channel")
    if not close(tensor(run(answer, lambdas[:1]), (1, 3)), ones):
        raise Wrong("with one layer there is one beta a channel, and it is 1")


@checker("exercise 2")
def check_light_step(answer: object) -> None:
    """answer(query, key, value, lambda_o, memory) -> (output, memory): one layer of MRLA-light on maps."""
    batch, heads, d, height, width = 2, 3, 4, 5, 6
    shape = (batch, heads * d, height, width)
    layers = []
    for layer in range(3):
        query, key = numbers(batch, heads, d, seed=layer), numbers(batch, heads, d, seed=10 + layer)
        layers.append((query, key, numbers(*shape, seed=20 + layer), numbers(heads * d, seed=30 + layer)))
    for stage in range(2):
        memory, carried = None, torch.zeros(shape, dtype=torch.float64)
        for layer, (query, key, value, lambda_o) in enumerate(layers, start=1):
            output, memory = pair(run(answer, query, key, value, lambda_o, memory))
            tensor(output, shape)
            wanted = _light(query, key, value, lambda_o, carried)
            if not close(output, wanted):
                if stage:
                    raise Wrong("your code is right on its first three calls only: something outlives "
                                "the memory, which is None again at the first layer of a stage")
                _explain_light(output, query, key, value, lambda_o, carried, layer)
            carried = wanted
            if not close(tensor(memory, shape, "memory"), wanted):
                raise Wrong("your memory should be the output O^t itself: "
                            "that is what layer t + 1 carries on")


def _light(query, key, value, lambda_o, carried, gate_of=torch.sigmoid, spread=None):
    d = query.shape[-1]
    gate = gate_of((query * key).sum(-1) / math.sqrt(d))                     # (batch, heads)
    spread = spread or (lambda gate: gate.repeat_interleave(d, dim=1))
    return lambda_o[:, None, None] * carried + spread(gate)[:, :, None, None] * value


def _explain_light(output, query, key, value, lambda_o, carried, layer):
    d = query.shape[-1]
    inputs = (query, key, value, lambda_o, carried)
    if close(output, _light(*inputs, gate_of=torch.ones_like)):
        raise Wrong("your gate is 1 everywhere: a softmax over one entry always is. Put a sigmoid there")
    if close(output, _light(*inputs, gate_of=lambda logits: logits.softmax(dim=-1))):
        raise Wrong("you took a softmax over the heads; each head has one logit of its own, and a sigmoid")
    if close(output, _light(*inputs, gate_of=lambda logits: logits)):
        raise Wrong("your gate is the bare product (Eq. 8 as derived); "
                    "here, as in the released code, a sigmoid goes round it")
    if close(output, _light(*inputs, gate_of=lambda logits: torch.sigmoid(logits * math.sqrt(d)))):
        raise Wrong("your logits lack the factor 1 / sqrt(d), d = head_dim = query.shape[-1]")
    # (batch, heads * d): not summed over the head
    by_channel = (query * key / math.sqrt(d)).flatten(1)
    mean_for_sum = _light(*inputs, gate_of=lambda logits: torch.sigmoid(logits / d))
    not_summed = _light(*inputs, gate_of=lambda _: by_channel.sigmoid(), spread=lambda gate: gate)
    if close(output, mean_for_sum) or close(output, not_summed):
        raise Wrong("your gate is not of the head's whole product: sum "
                    "query * key over its d entries, one gate a head")
    if close(output, _light(*inputs, spread=lambda gate: gate.repeat(1, d))):
        raise Wrong("your heads are interleaved: channel c belongs to head "
                    "c // d, so a gate should be repeated d times in a row")
    if layer > 1:
        if close(output, _light(query, key, value, lambda_o, torch.zeros_like(carried))):
            raise Wrong("your code is right at the first layer only: the carried map is missing")
        if close(output, _light(query, key, value, torch.ones_like(lambda_o), carried)):
            raise Wrong("your carried map is not scaled by lambda_o")
        scaled = lambda_o[:, None, None] * value
        if close(output, _light(query, key, scaled, torch.ones_like(lambda_o), carried)):
            raise Wrong("your lambda_o scales the new entry; it belongs to the carried map")
    raise Wrong(f"at layer {layer} your output is not lambda_o * O^(t-1) + sigmoid(q.k / sqrt(d)) * v")


@checker("exercise 3")
def check_best_constant(answer: object) -> None:
    """answer(before, now), both (samples, heads, d) -> (constant (heads,), error (heads,)).

    now is about constant * before.
    """
    before = numbers(50, 3, 4)
    noise = torch.tensor([0.3, 0.6, 1.0])[:, None] * numbers(50, 3, 4, seed=1)
    now = torch.tensor([1.5, -0.5, 0.1])[:, None] * before + noise
    constant, error = pair(run(answer, before, now), "the constants", "the errors, each one number a head")
    constant, error = tensor(constant, (3,), "constant"), tensor(error, (3,), "error")
    product, square, size = (before * now).sum((0, 2)), (before * before).sum((0, 2)), (now * now).sum((0, 2))
    best = product / square
    if not close(constant, best):
        if close(constant, (now / before).mean((0, 2))):
            raise Wrong("the mean of the ratios is ruined by every entry of "
                        "`before` near 0; minimise the squared distance instead")
        if close(constant, (size / square).sqrt()):
            raise Wrong("the ratio of the lengths has lost the sign and counts "
                        "what is not parallel; use the inner product now . before")
        if close(constant, product / size):
            raise Wrong("you fitted before = constant * now; it is the other way round")
        if close(constant, (product.sum() / square.sum()).expand(3)):
            raise Wrong("you fitted one constant to all heads; each head has its own")
        raise Wrong("your constants do not minimise the sum of (now - "
                    "constant * before)^2 over samples and channels of a head")
    wanted = ((now - best[:, None] * before).square().sum((0, 2)) / size).sqrt()
    if not close(error, wanted):
        if close(error, wanted.square()):
            raise Wrong("your constants are right; your error is the squared one, so take the root")
        raise Wrong("your constants are right; the error should be rms(now "
                    "- constant * before) / rms(now), head by head")
