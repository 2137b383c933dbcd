"""What every layer attention must hold to: the checks of the signature that all of them share.

    # x, output (batch, channels, height, width); memory None at layer 1
    output, memory = attention(x, memory)

Each check takes a callable channels -> module, runs a stack of layers on small random maps, each layer with
an instance of its own as in a stage of a network (and one `shared_part` between them, if the class names
one), and returns what it found, or raises Wrong.
"""

import copy
from collections.abc import Callable

import torch
from torch import nn

from mrla_minimal.course.checks.common import Wrong, close, numbers, tensor
from mrla_minimal.hosting import sharing

BATCH, CHANNELS, HEIGHT, WIDTH = 3, 16, 5, 7
LAYERS = 4
# of the largest number, in float32: a batch of another size may be summed in another order
TOLERANCE = 1e-4
Attention = Callable[[int], nn.Module]
Memory = object         # whatever the attention makes of it


# What the checks share

def features(seed: int = 0, batch: int = BATCH) -> list[torch.Tensor]:
    """X^1 .. X^T, each (batch, channels, height, width)."""
    return list(numbers(LAYERS, batch, CHANNELS, HEIGHT, WIDTH, seed=seed).float())


def build(attention: Attention) -> list[nn.Module]:
    """One instance a layer, in evaluation mode, every parameter moved: a 0 would hide what it does."""
    one_of_a_net = sharing(attention)
    stack = [one_of_a_net(CHANNELS).eval() for _ in range(LAYERS)]
    with torch.no_grad():
        for parameter in nn.ModuleList(stack).parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return stack


def call(layer: nn.Module, x: torch.Tensor, memory: Memory) -> tuple[torch.Tensor, Memory]:
    """(output, memory) of one layer; Wrong unless it returns such a pair."""
    result = layer(x, memory)
    if not isinstance(result, tuple) or len(result) != 2:
        raise Wrong("forward(x, memory) should return a pair, output and memory, "
                    f"not a {type(result).__name__}")
    return result


def run_stack(stack: list[nn.Module], maps: list[torch.Tensor]) -> list[torch.Tensor]:
    """The outputs O^1 to O^T.

    Copies of maps go in, copies of outputs come out: writing into them does no harm.
    """
    outputs, memory = [], None
    for layer, x in zip(stack, maps, strict=True):
        output, memory = call(layer, x.clone(), memory)
        outputs.append(output.clone())
    return outputs


def tensors_in(memory: Memory) -> list[torch.Tensor]:
    """All tensors of a memory, whatever it is made of."""
    if isinstance(memory, torch.Tensor):
        return [memory]
    if isinstance(memory, dict):
        memory = list(memory.values())
    elif not isinstance(memory, (list, tuple)):
        memory = list(vars(memory).values()) if hasattr(memory, "__dict__") else []
    return [found for part in memory for found in tensors_in(part)]


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors of one shape agree to TOLERANCE of b's largest number."""
    if b.numel() == 0:
        return a.shape == b.shape
    scale = b.abs().max().clamp(min=1e-30)
    return close(a / scale, b / scale, TOLERANCE)


def same(these: list[torch.Tensor], those: list[torch.Tensor]) -> bool:
    return len(these) == len(those) and all(near(a, b) for a, b in zip(these, those, strict=True))


# The checks

def check_shapes(attention: Attention) -> str:
    for layer, output in enumerate(run_stack(build(attention), features()), start=1):
        tensor(output, (BATCH, CHANNELS, HEIGHT, WIDTH), f"output at layer {layer}")
    return f"output {(BATCH, CHANNELS, HEIGHT, WIDTH)} like x at each of {LAYERS} layers"


@torch.no_grad()
def check_reading(attention: Attention) -> str:
    stack, maps, others = build(attention), features(), features(seed=1)
    before = run_stack(copy.deepcopy(stack), maps)
    for changed in range(LAYERS):
        after = run_stack(copy.deepcopy(stack), [*maps[:changed], others[changed], *maps[changed + 1 :]])
        if not same(before[:changed], after[:changed]):
            raise Wrong(f"another X^{changed + 1} changes the output "
                        "of an earlier layer: they share something")
        if near(after[changed], before[changed]):
            raise Wrong(f"another X^{changed + 1} does not change the output of layer {changed + 1} itself")
        if changed + 1 < LAYERS and near(after[changed + 1], before[changed + 1]):
            raise Wrong(f"another X^{changed + 1} does not change what layer {changed + 2} puts out: "
                        "the memory is not read")
    return "each layer reads its own map and at least the one before it, none after it"


@torch.no_grad()
def check_batch(attention: Attention) -> str:
    stack, maps = build(attention), features()
    together = run_stack(copy.deepcopy(stack), maps)
    for sample in range(BATCH):
        alone = run_stack(copy.deepcopy(stack), [x[sample : sample + 1] for x in maps])
        if not same(alone, [output[sample : sample + 1] for output in together]):
            raise Wrong(f"sample {sample + 1} gets another output "
                        "alone than beside other samples of its batch")
    return "a sample's output does not depend on its batch-mates"


@torch.no_grad()
def check_calls(attention: Attention) -> str:
    stack, maps, others = build(attention), features(), features(seed=1)
    first = run_stack(copy.deepcopy(stack), maps)
    # of the same size too: what is kept may fit only then
    for between in (features(seed=1, batch=BATCH + 1), others):
        run_stack(stack, between)
        if not same(first, run_stack(stack, maps)):
            raise Wrong("the same maps give another output the second time: "
                        "the module keeps something from call to call")
    if not same(first, _interleaved(stack, maps, others)):
        raise Wrong("two networks that run at the same time disturb each "
                    "other: something is kept outside of the memory")
    return "the same maps give the same output again: nothing is kept between calls"


def _interleaved(stack, maps, others):
    """The outputs for `maps` while another network of the class runs on `others`, layer by layer, in between.
    """
    outputs, memory, other_memory = [], None, None
    twins = copy.deepcopy(stack), copy.deepcopy(stack)
    for layer, other_layer, x, other in zip(*twins, maps, others, strict=True):
        output, memory = call(layer, x.clone(), memory)
        outputs.append(output.clone())
        _, other_memory = call(other_layer, other.clone(), other_memory)
    return outputs


@torch.no_grad()
def check_memory_is_a_value(attention: Attention) -> str:
    memory = None
    for number, (layer, x) in enumerate(zip(build(attention), features(), strict=True), start=1):
        given, x_given = copy.deepcopy(memory), x.clone()
        _, new = call(layer, x, memory)
        if not same(tensors_in(memory), tensors_in(given)):
            raise Wrong(f"layer {number} changes the memory it was given in place; return a new one")
        if not torch.equal(x, x_given):
            raise Wrong(f"layer {number} changes x in place")
        memory = new
    return "the memory a layer is given stays as it was"


def check_gradients(attention: Attention) -> str:
    stack, maps = build(attention), [x.requires_grad_() for x in features()]
    outputs = run_stack(stack, maps)
    loss = (outputs[-1] * torch.randn_like(outputs[-1])).sum()
    reached = torch.autograd.grad(loss, maps, retain_graph=True, allow_unused=True)
    for layer, gradient in enumerate(reached[-2:], start=LAYERS - 1):     # a window may end before X^1
        if gradient is None or not gradient.any():
            raise Wrong(f"no gradient of the last output reaches X^{layer}; is the memory detached?")
        tensor(gradient, (BATCH, CHANNELS, HEIGHT, WIDTH), f"gradient of X^{layer}")
    sum((output * torch.randn_like(output)).sum() for output in outputs).backward()
    for name, _ in stack[0].named_parameters():
        gradients = [layer.get_parameter(name).grad for layer in stack]
        if not any(gradient is not None and gradient.any() for gradient in gradients):
            raise Wrong(f"the parameter {name} gets no gradient at any layer")
        if any(gradient is not None and not gradient.isfinite().all() for gradient in gradients):
            raise Wrong(f"the parameter {name} gets a gradient that is not finite")
    return f"reach all {len(list(stack[0].parameters()))} parameters, and X^{LAYERS - 1} from layer {LAYERS}"


@torch.no_grad()
def memory_growth(attention: Attention) -> str:
    """How many maps' worth of numbers each layer hands on; a tensor that is in the memory twice counts once.
    """
    kept, memory = [], None
    for layer, x in zip(build(attention), features(), strict=True):
        _, memory = call(layer, x, memory)
        unique = {part.data_ptr(): part.numel() for part in tensors_in(memory)}
        kept.append(sum(unique.values()) / x.numel())
    how = "does not grow with depth" if kept[-1] <= kept[-2] else "grows with depth"
    return f"{', '.join(f'{maps:.2g}' for maps in kept)} maps after layers 1 to {LAYERS}; it {how}"
