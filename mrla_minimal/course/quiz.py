"""The corridor quiz: a task that makes retrieval across layers visible in a second on a CPU.

Eight rooms are eight layers: layer t sees the sign in room t and nothing else. A ninth layer, the exit, is given a room
number and must say which sign hung there. In the *late* question the exit alone knows the number; in the *early* one
every room knows it too. Chance is 1/8.

Each method below gives the exit one vector, made in its own way, and the same small readout answers from it. In the
vector form a layer's input is a vector and each layer has linear maps of its own; in the module form the library's own
classes work on maps of one pixel. The quiz is built to need retrieval across layers: it says nothing about images.
"""

import functools
import math
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from torch import nn
from torch.nn import functional as F

ROOMS = 8
SIGNS = 8
LAYERS = ROOMS + 1              # the exit is the ninth layer
INPUTS = SIGNS + ROOMS          # what a layer sees: a sign and the room asked for, one-hot, or zeros if it is not told
QUESTIONS = ("late", "early")
INTERVENTIONS = ("mean", "shuffle")
TEST_CORRIDORS = 4096
TEST_SEED = 2**32 - 1           # of the test corridors; torch reads the low 32 bits of a CPU seed, so none is larger


# The task

def draw_corridors(count, question, generator):
    """Draw `count` corridors: inputs (count, LAYERS, INPUTS) and answers (count,), the sign of the room asked for.

    The last layer of the inputs is the exit. `question` is "late" or "early". Raises ValueError for anything else.
    """
    _positive("count", count)
    one_of("question", question, QUESTIONS)
    signs = torch.randint(SIGNS, (count, ROOMS), generator=generator)
    asked = torch.randint(ROOMS, (count,), generator=generator)
    inputs = torch.zeros(count, LAYERS, INPUTS)
    inputs[:, :ROOMS, :SIGNS] = F.one_hot(signs, SIGNS)
    knows_from = 0 if question == "early" else ROOMS
    inputs[:, knows_from:, SIGNS:] = F.one_hot(asked, ROOMS)[:, None]
    return inputs, signs.gather(1, asked[:, None])[:, 0]


def verdict(accuracy):
    """What may be said of an accuracy in [0, 1]: "solved" above 0.95, "not solved" below 0.6, "between" otherwise."""
    if not 0.0 <= accuracy <= 1.0:
        raise ValueError(f"accuracy must be between 0 and 1, not {accuracy!r}")
    return "solved" if accuracy > 0.95 else "not solved" if accuracy < 0.6 else "between"


# The vector form: each method maps inputs (batch, LAYERS, INPUTS) to what the exit holds (batch, width)

class OwnLinear(nn.Module):
    """A linear map of its own for each layer: (batch, LAYERS, inputs) -> (batch, LAYERS, outputs)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        bound = 1 / math.sqrt(inputs)                                   # as nn.Linear starts
        self.weight = nn.Parameter(torch.empty(LAYERS, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(LAYERS, outputs).uniform_(-bound, bound))

    def forward(self, x):
        return einsum(x, self.weight, "batch layers i, layers i o -> batch layers o") + self.bias


class LastAlone(nn.Module):
    """The exit's own value, nothing else: each layer has overwritten what the one before it held."""

    def __init__(self, width, key_dim):
        super().__init__()
        self.value = OwnLinear(INPUTS, width)

    def forward(self, x):
        return self.value(x)[:, -1]                                     # (batch, width)


class MeanOfValues(nn.Module):
    """The mean of all layers' values: base with its weights held at 1 / LAYERS."""

    def __init__(self, width, key_dim):
        super().__init__()
        self.value = OwnLinear(INPUTS, width)

    def forward(self, x):
        return self.value(x).mean(dim=1)                                # (batch, width)


class ResidualStream(nn.Module):
    """Each layer adds a two-layer ReLU network of its input to a stream that starts at 0."""

    def __init__(self, width, key_dim, hidden=16):
        super().__init__()
        self.enter = OwnLinear(INPUTS, hidden)
        self.leave = OwnLinear(hidden, width)

    def forward(self, x):
        added = self.leave(torch.relu(self.enter(x)))                   # (batch, layers, width)
        return added.sum(dim=1)                                         # (batch, width)


class VectorLayerAttention(nn.Module):
    """Eq. 4: the exit's own key and value projections read every layer's input.

    One encoder for all layers cannot tell which of them it reads, unless inputs carry a tag that says so (`tagged`).
    """

    def __init__(self, width, key_dim, tagged=False):
        super().__init__()
        self.tagged = tagged
        inputs = INPUTS + LAYERS if tagged else INPUTS
        self.query = nn.Linear(inputs, key_dim)
        self.key = nn.Linear(inputs, key_dim)
        self.value = nn.Linear(inputs, width)
        self.weights = nn.Identity()                                    # to look at the weights, or to replace them

    def forward(self, x):
        if self.tagged:
            tags = torch.eye(LAYERS).expand(len(x), LAYERS, LAYERS)
            x = torch.cat([x, tags], dim=-1)                            # (batch, layers, inputs + layers)
        query = self.query(x[:, -1])                                    # (batch, key_dim)
        keys = self.key(x)                                              # (batch, layers, key_dim)
        values = self.value(x)                                          # (batch, layers, width)
        logits = einsum(query, keys, "b d, b layers d -> b layers") / math.sqrt(query.shape[-1])
        weights = self.weights(logits.softmax(dim=-1))                  # (batch, layers)
        return einsum(weights, values, "b layers, b layers c -> b c")   # (batch, width), Eq. 4


class VectorBase(nn.Module):
    """Eq. 6: every layer makes its key and value once; the exit's query chooses among them when it *reads*."""

    def __init__(self, width, key_dim, softmax=True):
        super().__init__()
        self.query = OwnLinear(INPUTS, key_dim)
        self.key = OwnLinear(INPUTS, key_dim)
        self.value = OwnLinear(INPUTS, width)
        self.softmax = softmax
        self.weights = nn.Identity()

    def forward(self, x):
        query = self.query(x)[:, -1]                                    # (batch, key_dim): the exit asks
        keys = self.key(x)                                              # (batch, layers, key_dim)
        values = self.value(x)                                          # (batch, layers, width)
        logits = einsum(query, keys, "b d, b layers d -> b layers") / math.sqrt(query.shape[-1])
        weights = self.weights(logits.softmax(dim=-1) if self.softmax else logits)
        return einsum(weights, values, "b layers, b layers c -> b c")   # (batch, width), Eq. 6


class VectorLight(nn.Module):
    """Eq. 8: every layer gates its own value when it *writes*, and adds it to the one vector that is carried on."""

    def __init__(self, width, key_dim):
        super().__init__()
        self.query = OwnLinear(INPUTS, key_dim)
        self.key = OwnLinear(INPUTS, key_dim)
        self.value = OwnLinear(INPUTS, width)
        self.lambda_o = nn.Parameter(torch.ones(LAYERS, width))
        self.weights = nn.Identity()

    def forward(self, x):
        query, key = self.query(x), self.key(x)                         # (batch, layers, key_dim) each
        values = self.value(x)                                          # (batch, layers, width)
        logits = (query * key).sum(dim=-1) / math.sqrt(query.shape[-1])
        gates = self.weights(logits.sigmoid())                          # (batch, layers)
        output = torch.zeros_like(values[:, 0])                         # O^0, (batch, width)
        for t in range(LAYERS):
            output = self.lambda_o[t] * output + gates[:, t, None] * values[:, t]     # Eq. 8
        return output


METHODS = {
    "last": LastAlone,
    "mean": MeanOfValues,
    "residual": ResidualStream,
    "light": VectorLight,
    "layer": VectorLayerAttention,
    "layer-tagged": functools.partial(VectorLayerAttention, tagged=True),
    "base": VectorBase,
    "base-no-softmax": functools.partial(VectorBase, softmax=False),
}


# The module form

class ModuleStack(nn.Module):
    """Nine layers of the library's own kind on maps of one pixel: inputs (batch, LAYERS, INPUTS) -> (batch, channels).

    A layer is a linear map of its input to a feature map, then attention_factory(channels); an attention that carries a
    map carries its own output. `hidden` puts a ReLU layer before the linear map: a layer can then gate by itself.
    """

    def __init__(self, attention_factory, channels, hidden):
        super().__init__()
        before = [OwnLinear(INPUTS, 16), nn.ReLU()] if hidden else []
        self.encoder = nn.Sequential(*before, OwnLinear(16 if hidden else INPUTS, channels))
        self.attentions = nn.ModuleList(attention_factory(channels) for _ in range(LAYERS))

    def forward(self, x):
        features = rearrange(self.encoder(x), "batch layers channels -> layers batch channels 1 1")
        memory = None
        for feature, attention in zip(features, self.attentions, strict=True):
            output, memory = attention(feature, memory)                 # (batch, channels, 1, 1)
        if output.shape != feature.shape:
            raise ValueError(f"the output must have x's shape {tuple(feature.shape)}, not {tuple(output.shape)}")
        return output.flatten(1)                                        # (batch, channels)


# Training

class QuizModel(nn.Module):
    """A method, then the readout that all methods share: inputs (batch, LAYERS, INPUTS) -> logits (batch, SIGNS).

    The readout sees what the method gives the exit, (batch, width), and the question.
    """

    def __init__(self, method, width):
        super().__init__()
        self.method = method
        self.readout = nn.Sequential(nn.Linear(width + ROOMS, 64), nn.ReLU(), nn.Linear(64, SIGNS))

    def forward(self, x):
        question = x[:, -1, SIGNS:]                                     # (batch, ROOMS)
        return self.readout(torch.cat([self.method(x), question], dim=-1))


@dataclass(frozen=True)
class QuizResult:
    """One trained model, and what it does on TEST_CORRIDORS corridors that no training saw.

    `weights_map` (ROOMS, LAYERS) holds, for each room asked for, the mean weight of each layer (a gate in light); its
    diagonal belongs to the room asked for. It is None where the method has no weights.
    """

    accuracy: float
    weights_map: torch.Tensor | None
    model: QuizModel
    question: str


def train_quiz(method, question="late", width=4, key_dim=8, steps=400, seed=0):
    """Train one method in the vector form, about a CPU-second, and test it: QuizResult.

    `method` is a name of METHODS, or a callable (width, key_dim) -> module that maps (batch, LAYERS, INPUTS) to
    (batch, width). The same seed gives the same result. Raises ValueError for arguments that are none of these.
    """
    if not callable(method):
        method = METHODS[one_of("method", method, METHODS)]
    _positive("width", width)
    _positive("key_dim", key_dim)
    return _train(lambda: QuizModel(method(width, key_dim), width), question, steps, seed, batch=256)


def train_module_quiz(attention_factory, question="late", channels=8, steps=300, seed=0, hidden=False):
    """Train nine attention_factory(channels) modules in the module form, a few CPU-seconds, and test: QuizResult.

    They have the library's signature, output, memory = attention(x, memory). Raises ValueError for other arguments.
    """
    if not callable(attention_factory):
        raise ValueError(f"attention_factory must be a callable channels -> module, not {attention_factory!r}")
    _positive("channels", channels)
    stack = functools.partial(ModuleStack, attention_factory, channels, hidden)
    return _train(lambda: QuizModel(stack(), channels), question, steps, seed, batch=128)


def _train(build, question, steps, seed, batch):
    """Adam, one cycle up to 1e-2 and down; the parameters and the corridors are both drawn from `seed`."""
    one_of("question", question, QUESTIONS)
    _positive("steps", steps)
    if not isinstance(seed, int) or not 0 <= seed < TEST_SEED:
        raise ValueError(f"seed must be an integer from 0 to {TEST_SEED - 1}, not {seed!r}")
    with torch.random.fork_rng(devices=[]), _one_thread():              # the caller's random numbers stay as they were
        torch.manual_seed(seed)
        model = build()
        optimizer = torch.optim.Adam(model.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
        corridors = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            x, answer = draw_corridors(batch, question, corridors)
            loss = F.cross_entropy(model(x), answer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        model.eval()
        x, answer = unseen_corridors(question)
        return QuizResult(_accuracy(model, x, answer), _weights_map(model, x), model, question)


@contextmanager
def _one_thread():
    """Tensors this small lose more by being shared out than they gain, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# Looking inside, and taking the choice away

def unseen_corridors(question):
    """What every model is tested on: inputs (TEST_CORRIDORS, LAYERS, INPUTS), answers (TEST_CORRIDORS,)."""
    return draw_corridors(TEST_CORRIDORS, question, torch.Generator().manual_seed(TEST_SEED))


def attention_weights(model, x):
    """The weights with which the exit reads the layers, or light's gates: (batch, LAYERS); None if there are none."""
    seen = []
    with _weights_through(model, lambda weights: seen.append(weights)), torch.no_grad():
        model(x)
    return seen[0] if seen else None


def accuracy_without_choice(result, how):
    """Accuracy on the test corridors with the attention's choices taken away; None if the method has no weights.

    how = "mean"      every corridor gets the mean weights of all test corridors
          "shuffle"   every corridor gets the weights of another
    """
    one_of("how", how, INTERVENTIONS)
    x, answer = unseen_corridors(result.question)
    weights = attention_weights(result.model, x)
    if weights is None:
        return None
    if how == "mean":
        replaced = weights.mean(dim=0, keepdim=True).expand_as(weights)
    else:
        replaced = weights[torch.randperm(len(weights), generator=torch.Generator().manual_seed(0))]
    with _weights_through(result.model, lambda _: replaced):
        return _accuracy(result.model, x, answer)


@contextmanager
def _weights_through(model, look):
    """Pass the method's weights through `look`; what it returns, if anything, takes their place."""
    point = getattr(model.method, "weights", None)
    hook = point.register_forward_hook(lambda module, inputs, weights: look(weights)) if point is not None else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()


@torch.no_grad()
def _accuracy(model, x, answer):
    return (model(x).argmax(dim=-1) == answer).float().mean().item()


def _weights_map(model, x):
    weights = attention_weights(model, x)
    if weights is None:
        return None
    asked = x[:, -1, SIGNS:]                                            # (batch, ROOMS), one-hot
    return einsum(asked / asked.sum(dim=0), weights, "b rooms, b layers -> rooms layers")


def one_of(what, given, allowed):
    if given not in tuple(allowed):
        raise ValueError(f"{what} must be one of {', '.join(map(repr, allowed))}, not {given!r}")
    return given


def _positive(what, given):
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise ValueError(f"{what} must be a positive integer, not {given!r}")
