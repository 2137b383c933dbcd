"""The published files of CIFAR-10 and CIFAR-100: what is known of them, and how each packaging is read.

The images come packed in three ways: the published Python pickles (as a folder or still in their archive),
fast.ai's archive of PNG files, or the .npz that is made of that archive once (archives.py). They hold the
same images in different orders, so each split is sorted by a hash of its pixels after loading, and one
fingerprint proves that all came out alike. Nothing is unpickled before its md5 is right.
"""

import hashlib
import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mrla_minimal.lab.data.download import Source, file_md5
from mrla_minimal.lab.data.images import Cifar, Split

Parts = list[tuple[np.ndarray, np.ndarray]]     # (images, labels) of train and of test

# sha256 of the whole content in canonical order (see `finish`).
FINGERPRINTS = {
    "cifar10": "36d398a0b9b2b872a887ca6b26a83c8b8c92b57a1446da4e9cfb7960228f0324",
    "cifar100": "77c620651a5de081f61b07ebf9f7acc79cbce1b684a52ae18d012f8466c43720",
}


@dataclass(frozen=True)
class Facts:
    """What is published about a data set. train, test, meta: file name -> md5 of the pickles."""

    folder: str
    train: dict[str, str]
    test: dict[str, str]
    meta: dict[str, str]
    labels_key: bytes
    names_key: bytes
    sizes: dict[str, int]  # images in each split
    pickles: Source
    pngs: Source

    @property
    def files(self) -> dict[str, str]:
        return self.train | self.test | self.meta


FACTS = {
    "cifar10": Facts(
        folder="cifar-10-batches-py",
        train={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        test={"test_batch": "40351d587109b95175f43aff81a1287e"},
        meta={"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
        labels_key=b"labels",
        names_key=b"label_names",
        sizes={"train": 50_000, "test": 10_000},
        pickles=Source("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
                       "c58f30108f718f92721af3b95e74349a", 170_498_071),
        pngs=Source("https://s3.amazonaws.com/fast-ai-sample/cifar10.tgz",
                    "a5f8c31371b63a406b23368042812d3c", 168_168_549),
    ),
    "cifar100": Facts(
        folder="cifar-100-python",
        train={"train": "16019d7e3df5f24257cddd939b257f8d"},
        test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        meta={"meta": "7973b15100ade9c7d40fb424638fde48"},
        labels_key=b"fine_labels",
        names_key=b"fine_label_names",
        sizes={"train": 50_000, "test": 10_000},
        pickles=Source("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
                       "eb9058c3a382ffc7106e4002c42a8d85", 169_001_437),
        pngs=Source("https://s3.amazonaws.com/fast-ai-imageclas/cifar100.tgz",
                    "e5e65dcb54b9d3913f7b8a9ad6607e62", 169_168_619),
    ),
}


class AlteredFile(ValueError):
    """A data file that is there but does not hold what was published; .path is the file."""

    def __init__(self, path: Path, problem: str):
        super().__init__(f"{path} {problem}: delete it, or let `mrla fetch cifar10` (or cifar100) replace it")
        self.path = path


def facts_of(name: str) -> Facts:
    """What is published about the set of that name. Raises ValueError for an unknown name."""
    if name not in FACTS:
        raise ValueError(f"name must be one of {', '.join(FACTS)}; got {name!r}")
    return FACTS[name]


def verify(path: Path, facts: Facts, name: str) -> None:
    """Raise AlteredFile unless the packaging at `path` holds what was published."""
    if path.suffix == ".npz":
        read(path, facts, name)
    elif path.is_dir():
        for file in facts.files:
            check_md5(path / file, facts)
    else:
        check_md5(path, facts)


def check_md5(path: Path, facts: Facts) -> None:
    """Raise AlteredFile unless a published file holds what was published under its name."""
    published = facts.files | {source.name: source.md5 for source in (facts.pickles, facts.pngs)}
    if file_md5(path) != published[path.name]:
        raise AlteredFile(path, "is altered or incomplete (wrong md5)")


def read(path: Path, facts: Facts, name: str) -> Cifar:
    """Read a pickle folder or an .npz; raises AlteredFile unless its content is the published one."""
    parts, classes = _read_npz(path, facts) if path.suffix == ".npz" else _read_pickles(path, facts)
    return proven(finish(parts, classes, name), path)


def proven(cifar: Cifar, path: Path) -> Cifar:
    """The same Cifar; raises AlteredFile, naming `path`, unless its content is the published one."""
    if cifar.fingerprint != FINGERPRINTS[cifar.source]:
        raise AlteredFile(path, f"does not hold the images of {cifar.source} (wrong fingerprint)")
    return cifar


def finish(parts: Parts, classes: Sequence[str], source: str) -> Cifar:
    """Cifar in canonical order from [(images, labels) of train, of test], arrays as in Split.

    The order is that of each image's blake2b hash, then of the label. The fingerprint is the sha256 of the
    training images and labels (int64, little-endian), the same of the test split, and the class names joined
    by newlines.
    """
    digest, splits = hashlib.sha256(), []
    for images, labels in parts:
        images = np.ascontiguousarray(images)  # decoded images come with their channels last in memory
        keys = [hashlib.blake2b(image).digest() for image in images]
        order = [index for *_, index in sorted(zip(keys, labels.tolist(), range(len(keys)), strict=True))]
        images, labels = images[order], labels[order].astype("<i8")
        digest.update(images)
        digest.update(labels)
        splits.append(Split(torch.from_numpy(images), torch.from_numpy(labels)))
    digest.update("\n".join(classes).encode())
    return Cifar(*splits, tuple(classes), source, digest.hexdigest())


def _dtype(kind: str, align: int = 0, copy: int = 0) -> np.dtype:
    """np.dtype with the old pickles' integers as the booleans that today's numpy warns to want."""
    return np.dtype(kind, bool(align), bool(copy))


# A pickle can name any function and have it called. These are all that arrays need; nothing is ever imported.
_RECONSTRUCT = np.zeros(0, np.uint8).__reduce__()[0]
_ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise ValueError(f"it asks for {module}.{name}, which no array needs")
        return _ALLOWED[module, name]


def _unpickle(path: Path) -> dict[bytes, Any]:
    with open(path, "rb") as file:
        try:
            return _ArraysOnly(file, encoding="bytes").load()
        except ValueError as error:
            raise ValueError(f"{path} is refused: {error}") from error


def _read_pickles(folder: Path, facts: Facts) -> tuple[Parts, list[str]]:
    for file in facts.files:
        check_md5(folder / file, facts)
    parts = []
    for files in (facts.train, facts.test):
        batches = [_unpickle(folder / file) for file in files]
        images = np.concatenate([batch[b"data"] for batch in batches]).reshape(-1, 3, 32, 32)
        parts.append((images, np.concatenate([batch[facts.labels_key] for batch in batches])))
    (meta,) = facts.meta
    return parts, [name.decode() for name in _unpickle(folder / meta)[facts.names_key]]


def _read_npz(path: Path, facts: Facts) -> tuple[Parts, list[str]]:
    content = io.BytesIO(path.read_bytes())     # apart: a failing disk is not to be taken for altered content
    try:
        with np.load(content, allow_pickle=False) as saved:
            parts = [(saved[f"{split}_images"], saved[f"{split}_labels"]) for split in facts.sizes]
            classes = saved["classes"]
    except Exception as error:      # zipfile, zlib and numpy's parser of headers have errors of their own
        raise AlteredFile(path, f"cannot be read ({type(error).__name__})") from error
    for (images, labels), size in zip(parts, facts.sizes.values(), strict=True):
        for array, dtype, shape in ((images, np.uint8, (size, 3, 32, 32)), (labels, np.int64, (size,))):
            if array.dtype != dtype or array.shape != shape:
                what = f"{array.dtype} {array.shape} where {np.dtype(dtype)} {shape} belongs"
                raise AlteredFile(path, f"is not what was written ({what})")
    if classes.ndim != 1 or classes.dtype.kind != "U":
        raise AlteredFile(path, f"is not what was written (class names as {classes.dtype} {classes.shape})")
    return parts, classes.tolist()
