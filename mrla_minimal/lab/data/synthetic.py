"""The built-in image set: 32 x 32 colour pictures drawn from a seed, for when there is no CIFAR to be had.

Each picture shows one of 5 large shapes filled with one of 4 fine textures, and the class needs both:

    label = (2 * shape + texture) mod 10

so each of the 10 classes is made by exactly two (shape, texture) pairs that share neither factor. Who sees
the shape alone is right one time in 4 at best, who sees the texture alone one time in 5.

The textures repeat every 4 pixels and are equally bright over any 4 x 4 pixels inside a shape, so blurring
removes them; the shapes are 16 to 24 pixels wide. Shapes and textures look the same in a mirror, so that
flipping a picture never changes its class. Colours, position, size, tilt and noise are random and say nothing
about the class. Everything is drawn on the CPU in float32, whatever torch's defaults are: the same set
everywhere.
"""

import torch

SHAPES = ("disc", "square", "ring", "cross", "triangle")
TEXTURES = ("lying", "standing", "checked", "slanted")  # three directions of stripes, and a checkerboard
CHUNK = 1_000  # pictures painted at once, which bounds the memory
LINE = torch.arange(32, device="cpu")
COLUMN, ROW = LINE[None, None, :], LINE[None, :, None]


def class_of(shape: int | torch.Tensor, texture: int | torch.Tensor) -> int | torch.Tensor:
    """The label (0..9) of shape (0..4) filled with texture (0..3); integers or integer tensors."""
    return (2 * shape + texture) % 10


def _class_name(label: int) -> str:
    pairs = [(s, t) for s in range(len(SHAPES)) for t in range(len(TEXTURES)) if class_of(s, t) == label]
    return " or ".join(f"{TEXTURES[texture]} {SHAPES[shape]}" for shape, texture in pairs)


CLASSES = tuple(_class_name(label) for label in range(10))


def synthetic_images(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw `count` pictures: images uint8 (count, 3, 32, 32) and labels int64 (count,).

    They are the same for the same seed. All 20 (shape, texture) pairs come equally often (up to one, if 20
    does not divide count), in random order. Raises ValueError for a count below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    generator = torch.Generator("cpu").manual_seed(seed)
    pair = torch.randperm(count, generator=generator, device="cpu") % (len(SHAPES) * len(TEXTURES))
    shape, texture = pair // len(TEXTURES), pair % len(TEXTURES)
    chunks = zip(shape.split(CHUNK), texture.split(CHUNK), strict=True)
    return torch.cat([paint(*chunk, generator) for chunk in chunks]), class_of(shape, texture)


def paint(shape: torch.Tensor, texture: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One picture for each shape (n,) and texture (n,), int64: uint8 (n, 3, 32, 32).

    All else is left to chance.
    """
    inside = _shape_mask(shape, generator)[:, None]
    stripe = _texture_mask(texture, generator)[:, None]
    light, dark, ground = _colours(len(shape), generator)
    picture = torch.where(inside, torch.where(stripe, light, dark), ground)
    noise = 80 * (_uniform(picture.shape, generator) - 0.5)
    return (picture + noise).clamp(0, 255).to(torch.uint8)


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")


def _shape_mask(shape: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Where the shapes are: bool (n, 32, 32). No sines: their last bit may differ between machines."""
    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * _uniform((len(shape), 1, 1), generator)

    radius, tilt = uniform(8, 12), uniform(-0.3, 0.3)
    x, y = COLUMN - uniform(11, 20), ROW - uniform(11, 20)
    norm = radius * (1 + tilt * tilt).sqrt()
    u, v = (x - tilt * y) / norm, (y + tilt * x) / norm  # turned by atan(tilt) and scaled by the radius
    distance = u * u + v * v
    largest, smallest = torch.maximum(u.abs(), v.abs()), torch.minimum(u.abs(), v.abs())
    masks = torch.stack([
        distance < 1,
        largest < 0.85,
        (distance < 1.1) & (distance > 0.25),
        (largest < 1) & (smallest < 0.35),
        (v < 0.8) & (v > 2 * u.abs() - 1),
    ])
    return masks[shape, torch.arange(len(shape), device="cpu")]


def _texture_mask(texture: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Where the textures are light: bool (n, 32, 32). They start anywhere, and slant to either side."""
    start = torch.randint(0, 4, (2, len(texture), 1, 1), generator=generator, device="cpu")
    side = 1 - 2 * torch.randint(0, 2, (len(texture), 1, 1), generator=generator, device="cpu")
    x, y = torch.broadcast_tensors(COLUMN + start[0], ROW + start[1])
    lying, standing, slanted = y % 4 < 2, x % 4 < 2, (x + side * y) % 4 < 2
    masks = torch.stack([lying, standing, lying ^ standing, slanted])
    return masks[texture, torch.arange(len(texture), device="cpu")]


def _colours(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The texture's light and dark colour and the ground's: three (count, 3, 1, 1) in 0..255."""
    middle, contrast, ground = _uniform((3, count, 3, 1, 1), generator)
    middle, contrast, ground = 90 + 75 * middle, 18 + 32 * contrast, 40 + 175 * ground
    return middle + contrast, middle - contrast, ground
