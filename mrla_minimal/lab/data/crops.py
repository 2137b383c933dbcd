"""Random square crops in one of their eight symmetries: of pictures, of label maps, of boxes."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Crop:
    """Which image, where the crop's first row and column lie in it, and how it is turned.

    symmetry, 0 to 7, is three bits: 1 left and right exchanged, 2 up and down, 4 then rows and columns.
    """

    image: int
    top: int
    left: int
    symmetry: int
    size: int


def generator_of(purpose: str, seed: int, step: int) -> torch.Generator:
    """The chance of one purpose in one step, which no other step shares."""
    # torch's CPU generator takes the low 32 bits of a seed, so seed and step are mixed by a hash.
    mixed = hashlib.blake2b(f"{purpose}, {seed}, {step}".encode(), digest_size=4).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(mixed, "little"))


def plan_crops(images: Tensor, size: int, count: int, seed: int, step: int) -> list[Crop]:
    """The `count` crops of one training step, a function of (seed, step) alone, so that a run can be resumed.

    images (N, ..., height, width).
    Raises ValueError if the images are smaller than a crop, or if there are none.
    """
    height, width = images.shape[-2:]
    if not 1 <= size <= min(height, width):
        raise ValueError(f"a crop of {size} x {size} pixels does not fit into images of {width} x {height}")
    if len(images) < 1 or count < 1:
        raise ValueError(f"crops need at least one image and a count of 1, not {len(images)} and {count}")
    generator = generator_of("crops", seed, step)
    choices = (len(images), height - size + 1, width - size + 1, 8)
    drawn = [torch.randint(most, (count,), generator=generator, device="cpu").tolist() for most in choices]
    return [Crop(*numbers, size) for numbers in zip(*drawn, strict=True)]


def cut(maps: Tensor, crops: list[Crop]) -> Tensor:
    """The crops of images or label maps: (N, ..., height, width) -> (crops, ..., size, size)."""
    pieces = []
    for crop in crops:
        rows, columns = slice(crop.top, crop.top + crop.size), slice(crop.left, crop.left + crop.size)
        piece = maps[crop.image][..., rows, columns]
        piece = piece.flip(-1) if crop.symmetry & 1 else piece
        piece = piece.flip(-2) if crop.symmetry & 2 else piece
        pieces.append(piece.mT if crop.symmetry & 4 else piece)
    return torch.stack(pieces)


def cut_boxes(boxes: Tensor, crop: Crop) -> Tensor:
    """An image's boxes (n, 4) as they lie in the crop, cut off at its border: (n, 4).

    Those outside are left with no width or no height, and stand where they were in the list.
    """
    x0, y0, x1, y1 = (boxes - boxes.new_tensor([crop.left, crop.top] * 2)).clamp(0, crop.size).unbind(1)
    if crop.symmetry & 1:
        x0, x1 = crop.size - x1, crop.size - x0
    if crop.symmetry & 2:
        y0, y1 = crop.size - y1, crop.size - y0
    return torch.stack([y0, x0, y1, x1] if crop.symmetry & 4 else [x0, y0, x1, y1], dim=1)


def cut_tiles(maps: Tensor, size: int) -> Tensor:
    """All tiles without overlap: (N, ..., height, width) -> (tiles, ..., size, size).

    Row by row, image after image. Raises ValueError unless `size` divides the height and the width.
    """
    height, width = maps.shape[-2:]
    if size < 1 or height % size or width % size:
        raise ValueError(f"tiles of {size} x {size} pixels do not fill images of {width} x {height}")
    tiles = maps.unflatten(-2, (height // size, size)).unflatten(-1, (width // size, size))
    return tiles.movedim((-4, -2), (1, 2)).flatten(0, 2)        # (N, rows, columns, ..., size, size) before
