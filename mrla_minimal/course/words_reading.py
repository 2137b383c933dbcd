"""A frozen encoder of drawn scenes, what its layers know, and readers that answer questions on them.

The encoder has a stem, which makes 8 x 8 patches, and four convolutions, all with 24 channels: five layers.
It learns to tell the shapes of the four quarters from its last layer, and is asked for no colour. Then it
is frozen. With `residual` each convolution adds to what it was given.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from mrla_minimal.course.seeds import seeded
from mrla_minimal.course.words_scenes import (
    ANSWERS,
    COLOURS,
    KINDS,
    PATCH,
    PATCHES,
    SHAPES,
    WORDS,
    DrawnScenes,
    ask,
    draw_scenes,
)
from mrla_minimal.family.regional import QuestionReader
from mrla_minimal.shapes import check_choice, check_positive

CHANNELS, DEPTH = 24, 5
TRAIN_SCENES, TEST_SCENES = 1536, 512


class SceneEncoder(nn.Module):
    """images (batch, 3, 32, 32) -> layers (batch, DEPTH, PATCHES, CHANNELS)."""

    def __init__(self, residual: bool = False):
        super().__init__()
        self.residual = residual
        self.stem = nn.Conv2d(3, CHANNELS, PATCH, stride=PATCH)
        self.convolutions = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
                                          for _ in range(DEPTH - 1))
        self.norms = nn.ModuleList(nn.BatchNorm2d(CHANNELS) for _ in range(DEPTH))
        self.shapes = nn.Linear(CHANNELS, len(SHAPES))

    def forward(self, images: Tensor) -> Tensor:
        x = self.norms[0](self.stem(images)).relu()                         # (batch, CHANNELS, 8, 8)
        layers = [x]
        for convolution, norm in zip(self.convolutions, self.norms[1:], strict=True):
            y = norm(convolution(x)).relu()
            x = x + y if self.residual else y
            layers.append(x)
        return torch.stack(layers, dim=1).flatten(3).transpose(2, 3).contiguous()


def by_quarter(rows: Tensor) -> Tensor:
    """The mean of each quarter's patches: (..., PATCHES, channels) -> (..., 4, channels)."""
    grid = rows.unflatten(-2, (2, 4, 2, 4)).transpose(-4, -3)       # quarters (2, 2), then patches (4, 4)
    return grid.mean(dim=(-3, -2)).flatten(-3, -2)


def train_encoder(seed: int, residual: bool = False, steps: int = 128, batch: int = 64) -> SceneEncoder:
    """An encoder trained on the shapes of TRAIN_SCENES scenes of its own, and frozen."""
    check_positive("steps", steps)
    with seeded(seed):
        encoder = SceneEncoder(residual)
    optimizer = torch.optim.Adam(encoder.parameters(), 1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    scenes = draw_scenes(TRAIN_SCENES, seed=3 * seed)
    for step in range(steps):
        block = _block(step, batch, TRAIN_SCENES)
        logits = encoder.shapes(by_quarter(encoder(scenes.images[block])[:, -1]))       # (batch, 4, shapes)
        _step(optimizer, F.cross_entropy(logits.flatten(0, 1), scenes.shapes[block].flatten()), schedule)
    return encoder.eval().requires_grad_(False)


@dataclass(frozen=True)
class Seen:
    """Scenes, and what a frozen encoder makes of them: layers (count, DEPTH, PATCHES, CHANNELS)."""

    scenes: DrawnScenes
    layers: Tensor


def look_at_scenes(encoder: SceneEncoder, seed: int, train: int = TRAIN_SCENES,
                   test: int = TEST_SCENES) -> tuple[Seen, Seen]:
    """Scenes to learn from and unseen ones. Each layer is divided by its root mean square on the first."""
    pairs = []
    for count, offset in ((train, 1), (test, 2)):
        scenes = draw_scenes(count, seed=3 * seed + offset)
        pairs.append((scenes, torch.cat([encoder(images) for images in scenes.images.split(250)])))
    size = pairs[0][1].square().mean(dim=(0, 2, 3), keepdim=True).sqrt()
    seen, unseen = (Seen(scenes, layers / size) for scenes, layers in pairs)
    return seen, unseen


def probe(train: Seen, test: Seen, kind: str) -> list[float]:
    """Accuracy of a linear classifier of the quarters' means on unseen scenes, a layer each. Chance is 1/6.

    kind: "colour" or "shape", what it is to tell. It starts at 0. Raises ValueError for another kind.
    """
    check_choice("kind", kind, KINDS)
    accuracies = []
    wanted, right = ((seen.scenes.colours if kind == "colour" else seen.scenes.shapes).flatten()
                     for seen in (train, test))
    for layer in range(DEPTH):
        rows, unseen = (by_quarter(seen.layers[:, layer]).flatten(0, 1) for seen in (train, test))
        mean, spread = rows.mean(dim=0), rows.std(dim=0) + 1e-6
        linear = skip_init(nn.Linear, CHANNELS, len(COLOURS if kind == "colour" else SHAPES))
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=50)

        def loss(linear=linear, optimizer=optimizer, x=(rows - mean) / spread):
            optimizer.zero_grad()
            value = F.cross_entropy(linear(x), wanted) + 1e-4 * linear.weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        accuracies.append((linear((unseen - mean) / spread).argmax(dim=1) == right).float().mean().item())
    return accuracies


def train_reader(seen: Seen, fusion: str, questions: str = "objects", width: int = 24, seed: int = 0,
                 steps: int = 1000, batch: int = 64) -> tuple[QuestionReader, dict[str, list[float]]]:
    """A reader trained on questions drawn at random, on a frozen encoder's layers; and how it learned.

    How it learned is the accuracy on each 50 steps' own questions: {kind: steps / 50 numbers}. Of one seed
    all fusions meet the same questions, and start alike but for the fusion itself.
    """
    check_positive("steps", steps)
    with seeded(seed):
        reader = QuestionReader(CHANNELS, DEPTH, PATCHES, len(WORDS), len(ANSWERS), fusion, width=width)
    optimizer = torch.optim.Adam(reader.parameters(), 3e-3, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    right = []                                      # of each question: its kind, and whether it was answered
    for step in range(steps):
        block = _block(step, batch, len(seen.layers))
        kinds, quarters = (torch.randint(many, (batch,), generator=generator) for many in (2, 4))
        words, answers = ask(seen.scenes.shapes[block], seen.scenes.colours[block], questions, kinds,
                             quarters)
        logits, _, _ = reader(seen.layers[block], words)
        right.append(torch.stack([kinds, logits.argmax(dim=1) == answers]))
        _step(optimizer, F.cross_entropy(logits, answers), schedule)
    history = {name: [] for name in KINDS}
    for start in range(0, steps, 50):
        asked, found = torch.cat(right[start : start + 50], dim=1)
        for kind, name in enumerate(KINDS):
            history[name].append(found[asked == kind].float().mean().item())
    return reader.eval(), history


@torch.no_grad()
def examine(reader: QuestionReader, unseen: Seen, questions: str = "objects") -> dict[str, dict]:
    """All questions about all unseen scenes: {kind: {"accuracy", "looked", "layers"}}.

    looked: the share of the reading's attention that lies on the patches of the object asked for;
    layers: the mean layer weights, DEPTH numbers.
    """
    found, count = {}, len(unseen.layers)
    for kind, name in enumerate(KINDS):
        right, looked, layers = [], [], []
        for quarter in range(4):
            quarters = torch.full((count,), quarter)
            words, answers = ask(unseen.scenes.shapes, unseen.scenes.colours, questions,
                                 torch.full((count,), kind), quarters)
            logits, attention, weights = reader(unseen.layers, words)
            right.append((logits.argmax(dim=1) == answers).float().mean())
            looked.append((attention * unseen.scenes.covered[:, quarter]).sum(dim=1).mean())
            layers.append(weights.mean(dim=0))
        found[name] = {"accuracy": torch.stack(right).mean().item(),
                       "looked": torch.stack(looked).mean().item(),
                       "layers": torch.stack(layers).mean(dim=0).tolist()}
    return found


def _block(step: int, batch: int, count: int) -> slice:
    """`batch` scenes in a row, others in each step: to gather single maps would take as long as to read them.
    """
    if batch > count:
        raise ValueError(f"batch must be at most the {count} scenes that there are, not {batch}")
    starts = count - batch + 1
    stride = next(stride for stride in itertools.count(batch) if math.gcd(stride, starts) == 1)
    start = stride * step % starts          # the stride has no factor of `starts`: each start has its turn
    return slice(start, start + batch)


def _step(optimizer, loss, schedule):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
