"""What a trained detector finds in pictures of your own: files are read, looked at, and drawn."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mrla_minimal.boxes import suppress_in_classes
from mrla_minimal.detector import Detections, Detector
from mrla_minimal.lab.data import normalise
from mrla_minimal.lab.predict import open_picture

# Pixels of the shorter side, to which the pictures of these sets were brought.
SHORTER = {"nuclei": 256, "blood": 120}
# Pixels a side of what a detector of the set was tested on: a tile, the longer side of a smear.
WINDOWS = {"nuclei": 128, "blood": 160}
SURE = 0.4              # the score from which on something found is told and drawn
OVERLAP = 0.5           # of two boxes of one class, above which the worse one goes
BRIGHT = 99.8           # the percentile of pixels that counts as the brightest: dust shines
LARGEST = 4             # times the shorter side: a longer picture than that has to be cut
ZOOM = 3                # pixels of the drawing for one of the picture's
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7")


def read_scene(path: str | Path, dataset: str, crop: int) -> Tensor:
    """The picture in a PNG or JPEG file as the pictures of `dataset` are: uint8 (3, height, width).

    A larger one is shrunk by area until its shorter side is theirs; none is enlarged. Where nuclei glow, in a
    grey picture, the least to the 99.8th percentile is stretched to black and white, as theirs were. A
    picture in one colour, of which one channel is more than twice as bright as the others, is that channel in
    grey: what is stained is bright in all. Raises ValueError naming the file if it is none, if it is smaller
    than the `crop` that training saw, or so long that it has to be cut first.
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
    if dataset == "nuclei":
        bright = np.percentile(pixels, BRIGHT, axis=(0, 1))
        *_, second, brightest = bright.argsort()
        if bright[second] < bright[brightest] / 2:
            pixels = pixels[..., brightest, None].repeat(3, axis=2)
        if (pixels == pixels[..., :1]).all():
            low, high = np.percentile(pixels, (0, BRIGHT))
            pixels = ((pixels - low) * 255 / max(high - low, 1)).clip(0, 255).round().astype(np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def find_in(model: Detector, image: Tensor, size: int) -> Detections:
    """What a detector in evaluation mode, on any device, finds in one picture uint8 (3, height, width).

    Only what scores at least `SURE`. It is shown the picture through windows of at most size x size pixels
    that overlap, as large as what it was tested on, since an attention's gates are of all that it sees. From
    each window counts what has its centre in that window's own part: what its edge cuts lies outside, and is
    whole in the neighbour. Of what two windows found the better stays.
    Raises ValueError if the net's numbers are not finite.
    """
    pixels = normalise(image[None].to(next(model.parameters()).device))
    height, width = image.shape[1:]
    parts = []
    for top, bottom, above, below in windows(height, size):
        for left, right, first, last in windows(width, size):
            # `most`: more than there are points, so that it binds nowhere.
            found, = model.detect(pixels[:, :, top:bottom, left:right], least=SURE, overlap=OVERLAP,
                                  most=height * width)
            boxes = found.boxes + torch.tensor([left, top, left, top])
            x, y = (boxes[:, :2] + boxes[:, 2:]).div(2).unbind(1)
            own = (x >= first) & (x < last) & (y >= above) & (y < below)
            masks = None
            if found.masks is not None:
                masks = F.pad(found.masks[own], (left, width - right, top, height - bottom))
            parts.append(Detections(boxes[own], found.scores[own], found.classes[own], masks))
    boxes, scores, classes = (torch.cat([getattr(part, name) for part in parts])
                              for name in ("boxes", "scores", "classes"))
    masks = None if parts[0].masks is None else torch.cat([part.masks for part in parts])
    stay = suppress_in_classes(boxes, scores, classes, OVERLAP, max(height, width))
    return Detections(boxes[stay], scores[stay], classes[stay], None if masks is None else masks[stay])


def windows(length: int, size: int) -> list[tuple[int, int, float, float]]:
    """Where windows of `size` pixels lie along a side of `length`: (start, stop, own start, own stop), ...

    They are spread evenly and overlap by half or more. A window's own part ends a sixteenth of `size` behind
    the middle of an overlap, so that nothing falls between two, and nowhere at the picture's edge. One window
    of the whole side if it is no longer than `size`.
    """
    steps = max(0, math.ceil(2 * (length - size) / size))
    starts = [(length - size) * step // steps for step in range(steps + 1)] if steps else [0]
    middles = [(start + size + following) / 2 for start, following in pairwise(starts)]
    own = pairwise([-math.inf, *middles, math.inf])
    return [(start, min(start + size, length), first - size / 16, last + size / 16)
            for start, (first, last) in zip(starts, own, strict=True)]


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
