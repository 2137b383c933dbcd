"""What a trained model says about pictures of your own: files are read, cut, shrunk and classified."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from mrla_minimal.lab.data import normalise
from mrla_minimal.lab.engine import TrainConfig

if TYPE_CHECKING:
    from PIL import Image

SIZE = 32                       # pixels a side: the images that CIFAR nets are trained on
FORMATS = ("PNG", "JPEG")


def open_picture(path: str | Path) -> "Image.Image":
    """The picture in a PNG or JPEG file, in colour: grey is made so, what is transparent is put on white.

    Raises ValueError naming the file if it is none.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=FORMATS) as file:
            image = ImageOps.exif_transpose(file)        # a phone's picture may lie on its side
            if image.mode.startswith("I"):              # 16 bits a pixel, which PIL would cut off at 255
                image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
            image = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise ValueError(f"{path}: {error.strerror}; expected a PNG or JPEG file") from None
    except Exception as error:      # bytes that are no picture make a decoder raise anything at all
        reason = type(error).__name__
        raise ValueError(f"{path} is no PNG or JPEG picture, or is damaged ({reason})") from None


def read_image(path: str | Path) -> torch.Tensor:
    """The picture in a PNG or JPEG file, uint8 (3, 32, 32): its largest central square, shrunk by area.

    By area means that each pixel is the mean of those it stands for. A smaller picture is enlarged by
    repeating pixels. Raises ValueError as `open_picture`.
    """
    from PIL import Image

    image = open_picture(path)
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    small = image.resize((SIZE, SIZE), Image.Resampling.BOX, box=(left, top, left + side, top + side))
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous()


@torch.no_grad()
def probabilities(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Class probabilities (b, classes), on the CPU, of images uint8 (b, 3, height, width).

    The model is one in evaluation mode, on any device. Raises ValueError if its logits are not finite.
    """
    device = next(model.parameters()).device
    logits = torch.cat([model(normalise(batch.to(device))).cpu() for batch in images.split(100)])
    broken = (~logits.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if broken:
        raise ValueError(f"the model's logits are not finite for {len(broken)} of {len(images)} images "
                         f"(the first is image {broken[0] + 1})")
    return logits.softmax(dim=1)


def require_pictures(config: TrainConfig, where: str | Path) -> None:
    """ValueError, naming `where`, if the model of a configuration cannot be asked about single pictures."""
    if config.detects:
        raise ValueError(f"{where} was trained to find objects, not to classify pictures: mrla detect asks "
                         "it")
    if config.model == "corridor":
        raise ValueError(f"{where} was trained on corridors of eight rooms and a question (model corridor), "
                         "not on single pictures")
    if config.wipe:
        raise ValueError(f"{where} wipes streams by a sample's place in its batch (wipe {config.wipe:g}): "
                         "what it says about one picture would depend on the others")
