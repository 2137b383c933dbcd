"""Look into three trained nets with forty test images, for the explorable "Which layers does this image ask?"

    python site/export_images.py        # writes site/static/images_nets.js and images.png; a CPU-minute

Needs the committed checkpoints and CIFAR-10. Everything is computed by the library, in float64, and rounded
to six decimals. The picture holds the images themselves, each pixel as it is.
"""

from functools import partial

import torch
from exporting import STATIC, rounded, six_decimals, write
from PIL import Image
from torch import Tensor, nn

from mrla_minimal import freeze_attention, record_attention
from mrla_minimal.lab.data import Split, load_cifar, normalise
from mrla_minimal.lab.data.images import averaged
from mrla_minimal.lab.engine.config import TrainConfig, config_from_dict
from mrla_minimal.lab.evidence.committed import checkpoint_path, load_committed, read_interventions

NETS = (("scratch-gpu", "mrla-base", "MRLA-base in a ResNet-56"),
        ("scratch-gpu", "mrla-light", "MRLA-light in a ResNet-56"),
        ("cifar10-vit-cpu", "mrla-base", "MRLA-base in a vision transformer"))
HOWS = ("learned", "mean", "uniform")
EACH = 4            # images of each class: the first ones, in an order that comes from a hash of the pixels
MEAN_OVER = 500     # training images that weights are frozen at the mean of
COLUMNS = 10
short = partial(rounded, shorten=six_decimals)


def chosen_images(test: Split) -> tuple[Tensor, Tensor]:
    """(images uint8 (n, 3, 32, 32), labels (n,)): the first EACH of each class, class by class in turn."""
    of_class = [torch.nonzero(test.labels == label).flatten()[:EACH] for label in test.labels.unique()]
    order = torch.stack(of_class, dim=1).flatten()          # a row of the picture holds one image a class
    return test.images[order], test.labels[order]


def load_net(suite: str, variant: str) -> tuple[nn.Module, TrainConfig]:
    """The committed net in float64, and how it was trained. Raises ValueError if it is not there."""
    loaded = load_committed(variant, (suite,))
    if loaded is None:
        raise ValueError(f"no checkpoint {checkpoint_path(suite, variant)}")
    model, state = loaded
    return model.double(), config_from_dict(state["config"], variant)


def prepare(images: Tensor, resolution: int) -> Tensor:
    """uint8 (n, 3, 32, 32) as a net wants them: averaged down, normalised, float64."""
    return normalise(images if resolution == 32 else averaged(images, resolution)).double()


@torch.no_grad()
def look(model: nn.Module, images: Tensor, how: str, others: Tensor | None = None) -> tuple[list, Tensor]:
    """(weights [stage][layer], each (images, heads, t) or for a gate (images, heads, 1); chances of classes).

    how: "learned", or what `freeze_attention` takes, with `others` to take means over.
    """
    if how == "learned":
        with record_attention(model) as weights:
            return weights, model(images).softmax(dim=1)
    with freeze_attention(model, how, others), record_attention(model) as weights:
        return weights, model(images).softmax(dim=1)


def by_image(weights: list, image: int) -> list:
    """[stage][layer][head]: the weights that one image got, a list of t numbers each."""
    return [[layer[image].tolist() for layer in stage] for stage in weights]


def describe(suite: str, variant: str, title: str, images: Tensor, others: Tensor) -> dict:
    """What the page knows of one net.

    {title, checkpoint, gates, tested: {how: test accuracy}, weights: [image][stage][layer][head],
    frozen: {"mean", "uniform": the same without images}, chances: {how: [image][class]}}
    """
    model, config = load_net(suite, variant)
    images, others = prepare(images, config.resolution), prepare(others, config.resolution)
    looked = {how: look(model, images, how, others) for how in HOWS}
    (record,) = (line for line in read_interventions(suite)
                 if (line["variant"], line["seed"]) == (variant, config.seed))
    weights = looked["learned"][0]
    return {"title": title, "checkpoint": checkpoint_path(suite, variant).name,
            "gates": weights[0][-1].shape[-1] == 1,
            "tested": {how: round(record[how], 4) for how in HOWS},
            "weights": [short(by_image(weights, image)) for image in range(len(images))],
            "frozen": {how: short(by_image(looked[how][0], 0)) for how in HOWS[1:]},
            "chances": {how: short(looked[how][1].tolist()) for how in HOWS}}


def as_picture(images: Tensor) -> Image.Image:
    """uint8 (n, 3, 32, 32), n a multiple of COLUMNS -> one picture of them, COLUMNS a row."""
    rows = images.unflatten(0, (-1, COLUMNS)).permute(0, 3, 1, 4, 2)       # (rows, 32, columns, 32, 3)
    return Image.fromarray(rows.flatten(0, 1).flatten(1, 2).contiguous().numpy())


def main() -> None:
    """Write both files. Raises ValueError where CIFAR-10 or a checkpoint is missing."""
    cifar = load_cifar("cifar10", source="real")
    images, labels = chosen_images(cifar.test)
    others = cifar.train.images[:MEAN_OVER]
    nets = {"classes": list(cifar.classes), "labels": labels.tolist(), "columns": COLUMNS,
            "nets": [describe(*net, images, others) for net in NETS]}
    write("images_nets.js", "IMAGES_NETS", nets,
          "site/export_images.py from committed checkpoints and CIFAR-10 (Krizhevsky, 2009)")
    as_picture(images).save(STATIC / "images.png", optimize=True)


if __name__ == "__main__":
    main()
