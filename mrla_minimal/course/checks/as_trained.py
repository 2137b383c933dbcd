"""Whether a layer attention stands what training does with it: what passes here, trains.

Each check takes a callable channels -> module, and returns what it found, or raises Wrong. The network is a
small cifar_resnet, in one check a small cifar_vit, on images drawn from a fixed seed.
"""

import copy
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.nn import functional as F

from mrla_minimal.course.checks.common import Wrong, numbers, tensor
from mrla_minimal.course.checks.signature import Attention, build, features, near, run_stack, same
from mrla_minimal.lab.cost import count_macs
from mrla_minimal.lab.own_files import where
from mrla_minimal.resnet import cifar_resnet
from mrla_minimal.vit import cifar_vit

IN_A_NETWORK = "cifar_resnet(20, width=8, layer_attention=...)"
IN_A_TRANSFORMER = "cifar_vit(3, dim=16, heads=2, patch=8, layer_attention=...)"


@contextmanager
def _explained(attention: Attention, words: str) -> Iterator[None]:
    """What your code raises within it is told with its line, and then with these words."""
    try:
        yield
    except RuntimeError as error:       # torch's own: of a view that cannot be, of two types that do not fit
        raise Wrong(f"your code raises {where(error, attention)}; {words}") from error


def _network(attention: Attention) -> nn.Module:
    return cifar_resnet(20, width=8, layer_attention=attention)


def _images() -> tuple[torch.Tensor, torch.Tensor]:
    """Four images and their labels."""
    return numbers(4, 3, 32, 32).float(), torch.arange(4)


def _train(model: nn.Module, steps: int, where_it_is: str = IN_A_NETWORK) -> None:
    images, labels = _images()
    take_steps(torch.optim.SGD(model.parameters(), lr=0.01),
               lambda: F.cross_entropy(model(images), labels), steps, where_it_is)


def take_steps(optimizer: torch.optim.Optimizer, loss_of: Callable[[], torch.Tensor], steps: int,
               where_it_is: str) -> None:
    """Some training steps; Wrong if a loss, or a parameter after them, is not finite."""
    for _ in range(steps):
        loss = loss_of()
        if not loss.isfinite():
            raise Wrong(f"the loss is not finite in {where_it_is}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    if not all(parameter.isfinite().all() for parameter in parameters):
        raise Wrong(f"after {steps} training steps of {where_it_is} some parameters are not finite")


def check_training_step(attention: Attention) -> str:
    _train(_network(attention), steps=2)
    return f"{IN_A_NETWORK} takes two steps"


def check_transformer(attention: Attention) -> str:
    """In a vision transformer a map is 4 x 4 patches, and the layers are all of the net's blocks."""
    model = cifar_vit(3, dim=16, heads=2, patch=8, layer_attention=attention)
    _train(model, 2, IN_A_TRANSFORMER)
    return f"{IN_A_TRANSFORMER} takes two steps"


def check_channels_last(attention: Attention) -> str:
    stack, maps = build(attention), features()
    with torch.no_grad():
        wanted = run_stack(copy.deepcopy(stack), maps)
    last = [x.contiguous(memory_format=torch.channels_last) for x in maps]
    with _explained(attention, "training keeps its maps channels last in memory, where view often fails: "
                               "use reshape or flatten"):
        outputs = run_stack(stack, last)
        sum(output.square().mean() for output in outputs).backward()
    if not same([output.detach() for output in outputs], wanted):
        raise Wrong("maps that are stored channels last, as in training, give another output: "
                    "your code relies on the order in memory (as_strided, data_ptr, storage)")
    return "maps stored channels last, as training stores them, give the same output"


def check_half_precision(attention: Attention) -> str:
    for dtype in (torch.bfloat16, torch.float32):       # under autocast, maps come in either
        stack, maps = build(attention), [x.to(dtype) for x in features()]
        with _explained(attention, "on a GPU, training runs under autocast, "
                                   "where some tensors are of half precision "
                                   "and others float32: bring them to one type, as in a.to(b.dtype)"):
            with torch.autocast("cpu", torch.bfloat16):
                outputs = run_stack(stack, maps)
            for layer, (output, x) in enumerate(zip(outputs, maps, strict=True), start=1):
                tensor(output, x.shape, f"output at layer {layer} under autocast")
            sum(output.float().square().mean() for output in outputs).backward()
    return "runs forward and backward under autocast in bfloat16"


@torch.no_grad()
def check_evaluation(attention: Attention) -> str:
    model, (images, _) = _network(attention).eval(), _images()
    before = copy.deepcopy(model.state_dict())
    together = tensor(model(images), (4, 10), "net's output in evaluation mode")
    alone = torch.cat([model(image[None]) for image in images])
    if not near(alone, together):
        raise Wrong("in evaluation mode an image gets other logits alone than beside others")
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    if changed:
        raise Wrong(f"a forward pass in evaluation mode changes {changed[0]}; "
                    "ask self.training before you change it")
    return "in evaluation mode an image's logits are its own, and nothing in the net changes"


def check_checkpoint(attention: Attention) -> str:
    model, fresh, (images, _) = _network(attention), _network(attention), _images()
    _train(model, steps=1)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    try:
        fresh.load_state_dict(torch.load(file, weights_only=True))
    except RuntimeError as error:
        raise Wrong("the weights of a trained net do not fit a new one: "
                    "make all parameters and buffers in __init__, "
                    "none in forward") from error
    with torch.no_grad():
        if not near(fresh.eval()(images), model.eval()(images)):
            raise Wrong("a net that is restored from its checkpoint gives other logits: what is learned or "
                        "kept must be an nn.Parameter or a buffer (register_buffer), not a plain attribute")
    return "a net restored from its checkpoint is the same net"


def check_cost(attention: Attention) -> str:
    # an attention whose forward runs in another process counts there
    with getattr(attention, "counting", nullcontext)() as elsewhere:
        macs = count_macs(_network(attention), 32) + sum(elsewhere or ())
    return f"{macs / 1e6:.2f} M multiply-adds in {IN_A_NETWORK}, without what your code multiplies map by map"


def several_gpus(attention: Attention) -> str:
    """Which parameters get no gradient at a layer: training in one process does not mind, DDP does."""
    model, (images, labels) = _network(attention), _images()
    F.cross_entropy(model(images), labels).backward()
    idle = {}
    for stage in model.stages:
        for layer, block in enumerate(stage, start=1):
            for name, parameter in block.layer_attention.named_parameters():
                if parameter.grad is None:
                    idle.setdefault(name, set()).add(layer)
    if not idle:
        return "every parameter gets a gradient at every layer, as DDP needs it (torchrun, one process a GPU)"
    missing = "; ".join(f"{name} gets no gradient at layer {', '.join(map(str, sorted(layers)))} of a stage"
                        for name, layers in idle.items())
    return (f"{missing}: with torchrun DDP would stop there, on one device it does no harm. "
            "Let layer 1 start from a memory of zeros, as MRLALight does")


# What an exercise's own attention must stand as well, in this order
AS_TRAINED = (check_training_step, check_channels_last, check_half_precision, check_evaluation,
              check_checkpoint)
