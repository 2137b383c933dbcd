"""Drawn scenes, and questions about them, for notebook 18. Nothing here is a photograph.

A scene is 32 x 32: four objects, one in each quarter, each of another shape and of another colour, in front
of grey, with a little noise. A question is two words: "which colour" or "which shape", and what is asked
about:

    objects     which colour is the SHAPE?      which shape is COLOUR?      find the object by one thing, tell
                                                                            the other
    places      which colour is at PLACE?       which shape is at PLACE?    the place is given

Chance is 1/6. Whoever knows which four colours (or shapes) a scene has, and not which is asked for, has 1/4.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mrla_minimal.shapes import check_choice, check_positive

SHAPES = ("square", "disc", "triangle", "plus", "ring", "cross")
COLOURS = {"red": (0.90, 0.15, 0.15), "green": (0.10, 0.70, 0.20), "blue": (0.20, 0.30, 0.95),
           "yellow": (0.95, 0.85, 0.10), "purple": (0.80, 0.20, 0.85), "cyan": (0.10, 0.80, 0.85)}
PLACES = ("top left", "top right", "bottom left", "bottom right")
KINDS = ("colour", "shape")                 # what a question wants to know
QUESTIONS = ("objects", "places")
WORDS = ("which colour", "which shape", *SHAPES, *COLOURS, *PLACES)
ANSWERS = (*COLOURS, *SHAPES)
SIDE, OBJECT, PATCH = 32, 11, 4             # pixels: of a scene, of an object, of a patch
PATCHES = (SIDE // PATCH) ** 2


@dataclass(frozen=True)
class DrawnScenes:
    """images (count, 3, 32, 32), from -0.5 to 0.5 but for the noise. By quarter: shapes and colours, integers
    (count, 4); covered (count, 4, PATCHES), True where the object lies on the patch.
    """

    images: Tensor
    shapes: Tensor
    colours: Tensor
    covered: Tensor

    def __len__(self) -> int:
        return len(self.images)


def draw_scenes(count: int, seed: int) -> DrawnScenes:
    """`count` scenes; the same for the same seed. ValueError unless count is a positive integer."""
    check_positive("count", count)
    generator = torch.Generator().manual_seed(seed)
    shapes, colours = (torch.rand(count, len(kinds), generator=generator).argsort(dim=1)[:, :4]
                       for kinds in (SHAPES, COLOURS))                      # each once in a scene
    corners = torch.randint(SIDE // 2 - OBJECT + 1, (count, 4, 2), generator=generator)
    corners += SIDE // 2 * torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])   # row and column
    masks = torch.zeros(count, 4, SIDE, SIDE)
    rows, columns = (corners[:, :, axis, None] + torch.arange(OBJECT) for axis in (0, 1))
    scene, quarter = torch.arange(count)[:, None, None, None], torch.arange(4)[:, None, None]
    masks[scene, quarter, rows[..., None], columns[:, :, None]] = outlines()[shapes]
    light = 0.8 + 0.4 * torch.rand(count, 4, 1, generator=generator)
    paint = (torch.tensor(list(COLOURS.values()))[colours] * light).clamp(max=1) - 0.5      # (count, 4, 3)
    images = torch.einsum("nkhw,nkc->nchw", masks, paint)                   # grey is 0
    images += 0.05 * torch.randn(images.shape, generator=generator)
    covered = F.max_pool2d(masks, PATCH).flatten(2) > 0
    return DrawnScenes(images, shapes, colours, covered)


def outlines() -> Tensor:
    """The six shapes, (6, 11, 11), 1 inside."""
    y, x = torch.meshgrid(*[torch.arange(OBJECT) - OBJECT // 2] * 2, indexing="ij")
    radius = (x**2 + y**2).sqrt()
    return torch.stack([
        torch.maximum(x.abs(), y.abs()) <= 4, radius <= 5, 2 * x.abs() <= y + 5,
        torch.minimum(x.abs(), y.abs()) <= 1, (radius >= 3) & (radius <= 5.3),
        torch.minimum((x - y).abs(), (x + y).abs()) <= 1]).float()


def ask(shapes: Tensor, colours: Tensor, questions: str, kinds: Tensor, quarters: Tensor,
        ) -> tuple[Tensor, Tensor]:
    """One question a scene: words (count, 2), of WORDS, and answers (count,), of ANSWERS.

    shapes and colours: the scenes', (count, 4); kinds and quarters: integers (count,): what is asked of
    KINDS, and about which quarter's object.
    """
    check_choice("questions", questions, QUESTIONS)
    shape, colour = (each.gather(1, quarters[:, None])[:, 0] for each in (shapes, colours))
    by_shape = kinds == KINDS.index("colour")       # the colour of a shape, or the shape of a colour
    if questions == "objects":
        about = torch.where(by_shape, WORDS.index(SHAPES[0]) + shape, WORDS.index("red") + colour)
    else:
        about = WORDS.index(PLACES[0]) + quarters
    answers = torch.where(by_shape, colour, len(COLOURS) + shape)
    return torch.stack([kinds, about], dim=1), answers


def as_text(words: Sequence[int]) -> str:
    """A question as a sentence: "which colour has the disc?"."""
    kind, about = (WORDS[word] for word in words)
    link = "is at" if about in PLACES else "is" if about in COLOURS else "is the"
    return f"{kind} {link} {about}?"
