"""What a trained detector finds in pictures of your own: files are read, looked at, and drawn."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mrla_minimal.detector import Detections, Detector
from mrla_minimal.lab.data import normalise
from mrla_minimal.lab.predict import open_picture

# Pixels of the shorter side, to which the pictures of these sets were brought.
SHORTER = {"nuclei": 256, "blood": 120}
SURE = 0.4              # the score from which on something found is told and drawn
LARGEST = 4             # times the shorter side: a longer picture than that has to be cut
ZOOM = 3                # pixels of the drawing for one of the picture's
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7")


def read_scene(path: str | Path, dataset: str, crop: int) -> Tensor:
    """The picture in a PNG or JPEG file as the pictures of `dataset` are: uint8 (3, height, width).

    A larger one is shrunk by area until its shorter side is theirs; none is enlarged. Where nuclei glow, in a
    grey picture, the least to the 99.8th percentile is stretched to black and white, as theirs were. Raises
    ValueError naming the file if it is none, if it is smaller than the `crop` that training saw, or so long
    that it has to be cut first.
    """
    from PIL import Image

    image = open_picture(path)
    shorter = min(image.size)
    if shorter < crop:
        raise ValueError(f"{path} is a picture of {image.size[0]} x {image.size[1]} pixels: it must be at "
                         f"least {crop} wide and high, as what the detector was trained on")
    if max(image.size) > LARGEST * shorter:
        raise ValueError(f"{path} is a picture of {image.size[0]} x {image.size[1]} pixels, more than "
                         f"{LARGEST} times as long as it is wide: cut it")
    scale = min(1.0, SHORTER[dataset] / shorter)
    if scale < 1:
        image = image.resize([round(scale * side) for side in image.size], Image.Resampling.BOX)
    pixels = np.array(image)
    if dataset == "nuclei" and (pixels == pixels[..., :1]).all():
        low, high = np.percentile(pixels, (0, 99.8))
        pixels = ((pixels - low) * 255 / max(high - low, 1)).clip(0, 255).round().astype(np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def find_in(model: Detector, image: Tensor) -> Detections:
    """What a detector in evaluation mode, on any device, finds in one picture uint8 (3, height, width).

    Only what scores at least `SURE`. Raises ValueError if its numbers are not finite.
    """
    found, = model.detect(normalise(image[None].to(next(model.parameters()).device)), least=SURE)
    return found


def draw(image: Tensor, found: Detections, path: str | Path) -> None:
    """Write a picture with the boxes and masks of what was found, three times as large, as PNG.

    image uint8 (3, height, width). One colour a class; where there is one class, colours tell objects apart.
    Raises OSError if it cannot be written.
    """
    from PIL import Image, ImageDraw

    from mrla_minimal.lab.files import replace_file

    large = image.permute(1, 2, 0).numpy().repeat(ZOOM, 0).repeat(ZOOM, 1).copy()
    one_class = len(found.classes.unique()) < 2
    colours = [COLOURS[(number if one_class else int(kind)) % len(COLOURS)]
               for number, kind in enumerate(found.classes)]
    if found.masks is not None:
        for mask, colour in zip(found.masks.numpy(), colours, strict=True):
            inside = mask.repeat(ZOOM, 0).repeat(ZOOM, 1)
            paint = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)])
            large[inside] = (0.6 * large[inside] + 0.4 * paint).astype(np.uint8)
    picture = Image.fromarray(large)
    pencil = ImageDraw.Draw(picture)
    for box, colour in zip((ZOOM * found.boxes).tolist(), colours, strict=True):
        pencil.rectangle([box[0], box[1], box[2] - 1, box[3] - 1], outline=colour)
    replace_file(path, lambda file: picture.save(file, format="PNG"))
