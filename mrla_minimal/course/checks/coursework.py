"""`mrla check FILE`: grade a layer attention of your own against the signature that all of them share.

    output, memory = attention(x, memory)       # x, output (batch, channels, height, width); memory None at layer 1

The file holds one nn.Module class that is built as Class(channels), or several and one is named. Every check runs the
class itself on small random maps: a stack of layers, each with an instance of its own, as in a stage of a network.
"""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from mrla_minimal.course.checks.common import Wrong, close, numbers, tensor
from mrla_minimal.course.quiz import QUESTIONS, train_module_quiz, verdict
from mrla_minimal.lab.plugins import first_line, load_class
from mrla_minimal.resnet import cifar_resnet

BATCH, CHANNELS, HEIGHT, WIDTH = 3, 16, 5, 7
LAYERS = 4
TOLERANCE = 1e-4        # of the largest number, in float32: a batch of another size may be summed in another order


def grade(path, class_name=None, quiz=True):
    """All checks on the class in a file: a list of (passed, text), passed None where something is only reported.

    Takes about half a minute, nearly all of it for the corridor quiz (left out if `quiz` is False). Raises ValueError
    as `load_class` does; whatever the class itself raises is a failed check.
    """
    attention = load_class(path, class_name)
    results = []
    for title, check in CHECKS:
        passed, text = _outcome(check, attention)
        results.append((passed, f"{title}: {text}"))
        if check is check_shapes and not passed:
            results.append((None, "the other checks were not run: they need what this one asks for"))
            return results
    results.append((None, f"memory: {_outcome(memory_growth, attention)[1]}"))
    if quiz:
        for question in QUESTIONS:
            _, text = _outcome(lambda factory, question=question: quiz_verdict(factory, question), attention)
            results.append((None, f"corridor quiz, {question} question: {text}"))
    return results


def report(results):
    """The results as text, a line each, and a last line that counts."""
    marks = {True: "[OK]", False: "[FAIL]", None: "[INFO]"}
    lines = [f"{marks[passed]:<7}{text}" for passed, text in results]
    graded = [passed for passed, _ in results if passed is not None]
    lines.append(f"{sum(graded)} of {len(graded)} checks passed")
    return "\n".join(lines)


def _outcome(check, attention):
    """(passed, text) of one check, with random numbers of its own."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return True, check(attention)
    except Wrong as wrong:
        return False, str(wrong)
    except (Exception, SystemExit) as error:
        return False, f"your code raises {first_line(error)}"


# What the checks share

def features(seed=0, batch=BATCH):
    """X^1 .. X^T, each (batch, channels, height, width)."""
    return list(numbers(LAYERS, batch, CHANNELS, HEIGHT, WIDTH, seed=seed).float())


def build(attention):
    """One instance a layer, in evaluation mode; every parameter is moved a little: a 0 would hide what it does."""
    stack = [attention(CHANNELS).eval() for _ in range(LAYERS)]
    with torch.no_grad():
        for parameter in nn.ModuleList(stack).parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return stack


def call(layer, x, memory):
    """(output, memory) of one layer; Wrong unless it returns such a pair."""
    result = layer(x, memory)
    if not isinstance(result, tuple) or len(result) != 2:
        raise Wrong(f"forward(x, memory) should return a pair, output and memory, not a {type(result).__name__}")
    return result


def run_stack(stack, maps):
    """The outputs O^1 .. O^T. Copies of maps go in, copies of outputs come out: writing into them does no harm."""
    outputs, memory = [], None
    for layer, x in zip(stack, maps, strict=True):
        output, memory = call(layer, x.clone(), memory)
        outputs.append(output.clone())
    return outputs


def tensors_in(memory):
    """All tensors of a memory, whatever it is made of."""
    if isinstance(memory, torch.Tensor):
        return [memory]
    if isinstance(memory, dict):
        memory = list(memory.values())
    elif not isinstance(memory, (list, tuple)):
        memory = list(vars(memory).values()) if hasattr(memory, "__dict__") else []
    return [found for part in memory for found in tensors_in(part)]


def near(a, b):
    if b.numel() == 0:
        return a.shape == b.shape
    scale = b.abs().max().clamp(min=1e-30)
    return close(a / scale, b / scale, TOLERANCE)


def same(these, those):
    return len(these) == len(those) and all(near(a, b) for a, b in zip(these, those, strict=True))


# The checks: each takes the class, and returns what it found or raises Wrong

def check_shapes(attention):
    for layer, output in enumerate(run_stack(build(attention), features()), start=1):
        tensor(output, (BATCH, CHANNELS, HEIGHT, WIDTH), f"output at layer {layer}")
    return f"output {(BATCH, CHANNELS, HEIGHT, WIDTH)} like x at each of {LAYERS} layers"


@torch.no_grad()
def check_reading(attention):
    stack, maps, others = build(attention), features(), features(seed=1)
    before = run_stack(copy.deepcopy(stack), maps)
    for changed in range(LAYERS):
        after = run_stack(copy.deepcopy(stack), [*maps[:changed], others[changed], *maps[changed + 1 :]])
        if not same(before[:changed], after[:changed]):
            raise Wrong(f"another X^{changed + 1} changes the output of an earlier layer: they share something")
        if near(after[changed], before[changed]):
            raise Wrong(f"another X^{changed + 1} does not change the output of layer {changed + 1} itself")
        if changed + 1 < LAYERS and near(after[changed + 1], before[changed + 1]):
            raise Wrong(f"another X^{changed + 1} does not change what layer {changed + 2} puts out: the memory is not read")
    return "each layer reads its own map and at least the one before it, none after it"


@torch.no_grad()
def check_batch(attention):
    stack, maps = build(attention), features()
    together = run_stack(copy.deepcopy(stack), maps)
    for sample in range(BATCH):
        alone = run_stack(copy.deepcopy(stack), [x[sample : sample + 1] for x in maps])
        if not same(alone, [output[sample : sample + 1] for output in together]):
            raise Wrong(f"sample {sample + 1} gets another output alone than beside other samples of its batch")
    return "a sample's output does not depend on its batch-mates"


@torch.no_grad()
def check_calls(attention):
    stack, maps, others = build(attention), features(), features(seed=1)
    first = run_stack(copy.deepcopy(stack), maps)
    for between in (features(seed=1, batch=BATCH + 1), others):     # of the same size too: what is kept may fit only then
        run_stack(stack, between)
        if not same(first, run_stack(stack, maps)):
            raise Wrong("the same maps give another output the second time: the module keeps something from call to call")
    if not same(first, _interleaved(stack, maps, others)):
        raise Wrong("two networks that run at the same time disturb each other: something is kept outside of the memory")
    return "the same maps give the same output again: nothing is kept between calls"


def _interleaved(stack, maps, others):
    """The outputs for `maps` if another network of the same class runs on `others`, layer by layer, in between."""
    outputs, memory, other_memory = [], None, None
    for layer, other_layer, x, other in zip(copy.deepcopy(stack), copy.deepcopy(stack), maps, others, strict=True):
        output, memory = call(layer, x.clone(), memory)
        outputs.append(output.clone())
        _, other_memory = call(other_layer, other.clone(), other_memory)
    return outputs


@torch.no_grad()
def check_memory_is_a_value(attention):
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


def check_gradients(attention):
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


def check_training_step(attention):
    model = cifar_resnet(20, width=8, layer_attention=attention)
    images, labels = numbers(4, 3, 32, 32).float(), torch.arange(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        loss = F.cross_entropy(model(images), labels)
        if not loss.isfinite():
            raise Wrong("the loss is not finite in cifar_resnet(20, width=8)")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise Wrong("after two training steps of cifar_resnet(20, width=8) some parameters are not finite")
    return "cifar_resnet(20, width=8, layer_attention=...) takes two steps"


CHECKS = [
    ("shapes", check_shapes),
    ("depth", check_reading),
    ("batch", check_batch),
    ("calls", check_calls),
    ("memory is a value", check_memory_is_a_value),
    ("gradients", check_gradients),
    ("network", check_training_step),
]


# What is only reported

@torch.no_grad()
def memory_growth(attention):
    """How many maps' worth of numbers each layer hands on; a tensor that is in the memory twice counts once."""
    kept, memory = [], None
    for layer, x in zip(build(attention), features(), strict=True):
        _, memory = call(layer, x, memory)
        unique = {part.data_ptr(): part.numel() for part in tensors_in(memory)}
        kept.append(sum(unique.values()) / x.numel())
    how = "does not grow with depth" if kept[-1] <= kept[-2] else "grows with depth"
    return f"{', '.join(f'{maps:.2g}' for maps in kept)} maps after layers 1 to {LAYERS}; it {how}"


def quiz_verdict(attention, question):
    accuracy = train_module_quiz(attention, question).accuracy
    return f"{verdict(accuracy)} (accuracy {accuracy:.2f}, chance 0.12)"
