"""The small committed sets: a zip file of pictures and an index, found, checked and read."""

import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import torch

from mrla_minimal.lab.data.archives import pillow_for
from mrla_minimal.lab.data.cifar_files import data_roots

SPLITS = ("train", "val", "test")


def find_zip(name: str, sha256: str, root: str | Path | None = None) -> Path:
    """NAME/NAME.zip in one of `data_roots(root)`, once its sum is right. Nothing is downloaded.

    Raises ValueError if there is none, or if its SHA-256 is another.
    """
    places = [folder / name / f"{name}.zip" for folder in data_roots(root)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise ValueError(f"no {name}.zip: looked for {', '.join(map(str, places))}; it comes with the "
                         f"repository, in data/{name}: work in the repository, or give its data folder "
                         "(--data-root REPOSITORY/data, or MRLA_DATA)")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise ValueError(f"{path} is damaged or another file: its SHA-256 begins with {found[:12]}, that of "
                         f"the committed one with {sha256[:12]}")
    return path


def read_index(path: Path, split: str) -> list[dict]:
    """The entries of one split's images in a zip file's index.json. ValueError for an unknown split."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(map(repr, SPLITS))}, not {split!r}")
    with zipfile.ZipFile(path) as archive:
        index = json.loads(archive.read("index.json"))
    return [entry for entry in index["images"] if entry["split"] == split]


def check_pictures(images: torch.Tensor) -> None:
    """ValueError unless they are as `read_pictures` gives colour pictures."""
    if images.dim() != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 (N, 3, height, width), not {images.dtype} "
                         f"{tuple(images.shape)}")


def read_pictures(path: Path, members: list[str], colour: bool) -> torch.Tensor:
    """Pictures of one size in a zip file: uint8 (N, 3, height, width), or their plain numbers if not colour.

    Plain numbers are int16 (N, height, width): label maps. Grey becomes colour by repetition.
    Raises ValueError without Pillow.
    """
    pillow = pillow_for(f"{path} holds pictures")
    pictures = []
    with zipfile.ZipFile(path) as archive:
        for member in members:
            with pillow.open(io.BytesIO(archive.read(member))) as picture:
                pictures.append(np.asarray(picture.convert("RGB") if colour else picture))
    stacked = torch.from_numpy(np.stack(pictures).astype(np.uint8 if colour else np.int16))
    return stacked.permute(0, 3, 1, 2).contiguous() if colour else stacked
