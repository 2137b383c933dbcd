"""The corridor quiz: a task that makes retrieval across layers visible in a second on a CPU.

Eight rooms are eight layers: layer t sees the sign in room t and nothing else. A ninth layer, the exit, must
say which sign hung in the room asked for. Chance is 1/8. Questions differ in who knows which room that is:

    late      the exit alone: it is given the room's number
    early     the exit and every room: all are given the number
    lamp      the room alone: a lamp burns in it, and the exit is told nothing
    colour    neither alone: the rooms' colours change places each time, and the exit is given one of them
    switches  nobody until later rooms have turned off all lights but one's (`quiz_switches.py`)

Each method (`quiz_methods.py`, `quiz_family.py`, `quiz_switches.py`) gives the exit one vector, made in its
own way, and the same small readout answers from it. The quiz needs retrieval across layers by design: it says
nothing about images.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from einops import einsum
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from mrla_minimal.course import quiz_methods
from mrla_minimal.course.quiz_family import FAMILY_METHODS
from mrla_minimal.course.quiz_methods import INPUTS, LAYERS, ROOMS, SIGNS, ModuleStack, OwnLinear, VectorLight
from mrla_minimal.course.quiz_switches import DYNAMIC_METHODS, draw_switches, lit_rooms
from mrla_minimal.course.seeds import seeded
from mrla_minimal.lab.arguments import integer
from mrla_minimal.lab.device import plain_defaults
from mrla_minimal.shapes import check_choice, check_positive

__all__ = ["INPUTS", "LAYERS", "METHODS", "QUESTIONS", "ROOMS", "SIGNS", "ModuleStack", "OwnLinear",
           "QuizModel", "QuizResult", "VectorLight", "accuracy_without_choice", "asked_rooms",
           "attention_weights", "draw_corridors", "train_module_quiz", "train_quiz", "unseen_corridors",
           "verdict"]
METHODS = quiz_methods.METHODS | FAMILY_METHODS | DYNAMIC_METHODS
QUESTIONS = ("late", "early", "lamp", "colour")      # what `mrla check` asks
ALL_QUESTIONS = (*QUESTIONS, "switches")
INTERVENTIONS = ("mean", "shuffle")
TEST_CORRIDORS = 4096
# of the test corridors; torch reads the low 32 bits of a CPU seed, so none is larger
TEST_SEED = 2**32 - 1


# The task

def draw_corridors(count: int, question: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw corridors: inputs (count, LAYERS, INPUTS), and answers (count,), the sign of the room asked for.

    The last layer of the inputs is the exit. `question` is one of ALL_QUESTIONS. Raises ValueError for
    anything else.
    """
    check_positive("count", count)
    check_choice("question", question, ALL_QUESTIONS)
    with plain_defaults():
        if question == "switches":
            return draw_switches(count, generator)
        signs = torch.randint(SIGNS, (count, ROOMS), generator=generator)
        asked = torch.randint(ROOMS, (count,), generator=generator)
        inputs = torch.zeros(count, LAYERS, INPUTS)
        if question == "colour":
            colours = torch.rand(count, ROOMS, generator=generator).argsort(dim=1)
    number = F.one_hot(asked, ROOMS)                                    # (count, ROOMS)
    inputs[:, :ROOMS, :SIGNS] = F.one_hot(signs, SIGNS)
    if question == "lamp":
        inputs[:, :ROOMS, SIGNS] = number.to(inputs)
    elif question == "colour":
        inputs[:, :ROOMS, SIGNS:] = F.one_hot(colours, ROOMS)
        inputs[:, -1, SIGNS:] = F.one_hot(colours.gather(1, asked[:, None])[:, 0], ROOMS)
    else:
        inputs[:, 0 if question == "early" else ROOMS :, SIGNS:] = number[:, None]
    return inputs, signs.gather(1, asked[:, None])[:, 0]


def asked_rooms(inputs: Tensor, question: str) -> Tensor:
    """The room asked for, one-hot (count, ROOMS), of inputs (count, LAYERS, INPUTS) drawn for `question`."""
    check_choice("question", question, ALL_QUESTIONS)
    if question == "switches":
        return lit_rooms(inputs)
    told = inputs[:, -1, SIGNS:]                                        # (count, ROOMS)
    if question == "lamp":
        return inputs[:, :ROOMS, SIGNS]
    if question == "colour":
        return einsum(inputs[:, :ROOMS, SIGNS:], told, "b rooms colours, b colours -> b rooms")
    return told


def unseen_corridors(question: str) -> tuple[Tensor, Tensor]:
    """What every model is tested on: inputs (TEST_CORRIDORS, LAYERS, INPUTS), answers (TEST_CORRIDORS,)."""
    return draw_corridors(TEST_CORRIDORS, question, torch.Generator().manual_seed(TEST_SEED))


def verdict(accuracy: float) -> str:
    """"solved" for an accuracy above 0.95, "not solved" below 0.6, "between" otherwise.

    Raises ValueError for one outside of [0, 1].
    """
    if not 0.0 <= accuracy <= 1.0:
        raise ValueError(f"accuracy must be between 0 and 1, not {accuracy!r}")
    return "solved" if accuracy > 0.95 else "not solved" if accuracy < 0.6 else "between"


# Training

class QuizModel(nn.Module):
    """A method, then the readout all methods share: inputs (batch, LAYERS, INPUTS) -> logits (batch, SIGNS).

    The readout sees what the method gives the exit, (batch, width), and what the exit is told.
    """

    def __init__(self, method: nn.Module, width: int):
        super().__init__()
        self.method = method
        self.readout = nn.Sequential(nn.Linear(width + ROOMS, 64), nn.ReLU(), nn.Linear(64, SIGNS))

    def forward(self, x: Tensor) -> Tensor:
        told = x[:, -1, SIGNS:]                                         # (batch, ROOMS)
        return self.readout(torch.cat([self.method(x), told], dim=-1))


@dataclass(frozen=True)
class QuizResult:
    """One trained model, and what it does on TEST_CORRIDORS corridors that no training saw.

    `weights_map` (ROOMS, LAYERS) holds, for each room asked for, the mean weight of each layer (a gate in
    light); its diagonal belongs to the room asked for, and a room that is never asked for has zeros. It is
    None where the method has no weights.
    """

    accuracy: float
    weights_map: Tensor | None
    model: QuizModel
    question: str


def train_quiz(method: str | Callable[[int, int], nn.Module], question: str = "late", width: int = 4,
               key_dim: int = 8, steps: int = 400, seed: int = 0, progress: bool = False) -> QuizResult:
    """Train one method in the vector form, about a CPU-second, and test it: QuizResult.

    `method` is a name of METHODS, or a callable (width, key_dim) -> module that maps (batch, LAYERS, INPUTS)
    to (batch, width). The same seed gives the same result; `progress` shows a bar on stderr. Raises
    ValueError for arguments that are none of these, and if the trained net's answers are not finite.
    """
    if not callable(method):
        check_choice("method", method, METHODS)
        method = METHODS[method]
    _no_instance("method", method)
    check_positive("width", width)
    check_positive("key_dim", key_dim)
    return _train(lambda: QuizModel(method(width, key_dim), width), question, steps, seed, 256, progress)


def train_module_quiz(attention_factory: Callable[[int], nn.Module], question: str = "late",
                      channels: int = 8, steps: int = 300, seed: int = 0, hidden: bool = False,
                      progress: bool = False) -> QuizResult:
    """Train nine attention_factory(channels) modules in the module form, a few CPU-seconds, and test:
    QuizResult.

    They have the library's signature, output, memory = attention(x, memory). `progress` shows a bar on
    stderr. Raises ValueError for other arguments, and if the trained net's answers are not finite.
    """
    if not callable(attention_factory):
        raise ValueError("attention_factory must be a callable channels "
                         f"-> module, not {attention_factory!r}")
    _no_instance("attention_factory", attention_factory)
    check_positive("channels", channels)
    stack = functools.partial(ModuleStack, attention_factory, channels, hidden)
    return _train(lambda: QuizModel(stack(), channels), question, steps, seed, 128, progress)


def _train(build, question, steps, seed, batch, progress):
    """Adam, one cycle up to 1e-2 and down; the parameters and the corridors are both drawn from `seed`."""
    check_choice("question", question, ALL_QUESTIONS)
    check_positive("steps", steps)
    seed = integer("seed", seed, 0, TEST_SEED - 1)
    # the caller's own stay as they were
    with seeded(seed), plain_defaults(), _one_thread():
        model = build()
        optimizer = torch.optim.Adam(model.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
        corridors = torch.Generator().manual_seed(seed)
        description = f"corridor quiz, {question} question"
        for _ in tqdm(range(steps), desc=description, unit="step", leave=False, disable=not progress):
            x, answer = draw_corridors(batch, question, corridors)
            loss = F.cross_entropy(model(x), answer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        model.eval()
        x, answer = unseen_corridors(question)
        return QuizResult(_accuracy(model, x, answer), _weights_map(model, x, question), model, question)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Tensors this small lose more by being shared out than they gain, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# Looking inside, and taking the choice away

def attention_weights(model: QuizModel, x: Tensor) -> Tensor | None:
    """The weights with which the exit reads the layers, or light's gates: (batch, LAYERS), or None."""
    seen = []
    with _weights_through(model, lambda weights: seen.append(weights)), torch.no_grad():
        model(x)
    return seen[0] if seen else None


def accuracy_without_choice(result: QuizResult, how: str) -> float | None:
    """Accuracy on the test corridors with the attention's choices taken away. None if there are no weights.

    how = "mean"      every corridor gets the mean weights of all test corridors
          "shuffle"   every corridor gets the weights of another, but for the few that a random permutation of
                      thousands leaves in their place
    """
    check_choice("how", how, INTERVENTIONS)
    x, answer = unseen_corridors(result.question)
    weights = attention_weights(result.model, x)
    if weights is None:
        return None
    if how == "mean":
        replaced = weights.mean(dim=0, keepdim=True).expand_as(weights)
    else:
        order = torch.randperm(len(weights), generator=torch.Generator().manual_seed(0), device="cpu")
        replaced = weights[order]
    with _weights_through(result.model, lambda _: replaced):
        return _accuracy(result.model, x, answer)


@contextmanager
def _weights_through(model: QuizModel, look: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Pass the method's weights through `look`; what it returns, if anything, takes their place."""
    point = getattr(model.method, "weights", None)
    if point is None:
        yield
        return
    hook = point.register_forward_hook(lambda module, inputs, weights: look(weights))
    try:
        yield
    finally:
        hook.remove()


@torch.no_grad()
def _accuracy(model, x, answer):
    logits = model(x)
    if not torch.isfinite(logits).all():        # the largest of what is no number is no answer
        raise ValueError("the net's answers to the quiz are not all finite numbers: it has no accuracy")
    return (logits.argmax(dim=-1) == answer).float().mean().item()


def _weights_map(model, x, question):
    weights = attention_weights(model, x)
    if weights is None:
        return None
    asked = asked_rooms(x, question)                                    # (batch, ROOMS), one-hot
    return einsum(asked / asked.sum(dim=0).clamp(min=1), weights, "b rooms, b layers -> rooms layers")


def _no_instance(what, given):
    if isinstance(given, nn.Module):
        raise ValueError(f"{what} must make modules; here is one module, "
                         f"a {type(given).__name__}: give its class")
