"""A small data set in both published packagings, to stand in for CIFAR-10 in the tests."""

import hashlib
import io
import pickle
import tarfile

import numpy as np
import torch

from mrla_minimal.lab.data.download import Source
from mrla_minimal.lab.data.published import Facts

NAMES = ("ant", "bee", "train")  # CIFAR-100 too has a class called train
TRAIN, TEST = 60, 18


def md5(content):
    return hashlib.md5(content).hexdigest()


def tar_of(files):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def png(image):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()


class LittleCifar:
    """60 training and 18 test images of 3 classes, random: pickles in a tar.gz, and PNG files in a tgz."""

    def __init__(self):
        random = np.random.default_rng(0)
        self.images = random.integers(0, 256, (TRAIN + TEST, 3, 32, 32), dtype=np.uint8)
        self.labels = np.arange(TRAIN + TEST) % 3
        self.images[3] = self.images[1]  # the same picture under two labels: CIFAR-100 has such
        self.files = {
            "part_1": self.batch(slice(0, 40)), "part_2": self.batch(slice(40, TRAIN)),
            "test": self.batch(slice(TRAIN, None)),
            "meta": pickle.dumps({b"fine_names": [name.encode() for name in NAMES], b"coarse_names": []}, 4),
        }
        files = {**self.files, "readme": b"hi"}
        self.tar = tar_of({f"little/{name}": content for name, content in files.items()})
        pictures = {}
        for place in random.permutation(TRAIN + TEST):
            split, name = "train" if place < TRAIN else "test", NAMES[self.labels[place]]
            pictures[f"top/{split}/insects/{name}/{place}.png"] = png(self.images[place])
        self.tgz = tar_of({"top/labels.txt": b"ant", "top/train/ant/._1.png": b"not a picture", **pictures})

    def batch(self, places):
        rows = self.images[places].reshape(-1, 3072)
        labels = self.labels[places].tolist()
        return pickle.dumps({b"data": rows, b"fine": labels, b"coarse": [0] * len(rows)}, 4)

    def facts(self, site=None):
        url = site.url("/") if site else "http://127.0.0.1:9/"
        train = {name: md5(self.files[name]) for name in ("part_1", "part_2")}
        return Facts(
            "little", train, {"test": md5(self.files["test"])}, {"meta": md5(self.files["meta"])},
            b"fine", b"fine_names", {"train": TRAIN, "test": TEST},
            Source(url + "little.tar.gz", md5(self.tar), len(self.tar)),
            Source(url + "little.tgz", md5(self.tgz), len(self.tgz)))

    def write_folder(self, root):
        (root / "little").mkdir(parents=True)
        for name, content in self.files.items():
            (root / "little" / name).write_bytes(content)
        return root / "little"


def same(one, other):
    """Whether two Cifar hold the same images, labels and classes."""
    return (one.fingerprint == other.fingerprint and one.classes == other.classes and all(
        torch.equal(getattr(getattr(one, split), field), getattr(getattr(other, split), field))
        for split in ("train", "test") for field in ("images", "labels")))


def names(root):
    """The names in a folder, locks left out."""
    return sorted(path.name for path in root.iterdir() if path.suffix != ".lock")
