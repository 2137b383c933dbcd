"""The published files of CIFAR-10 and CIFAR-100: what is known of them, and how each packaging is read.

The images come packed in three ways: the published Python pickles (as a folder or still in their archive), fast.ai's
archive of PNG files, or the .npz that is made of that archive once. They hold the same images in different orders, so
each split is sorted by a hash of its pixels after loading, and one fingerprint proves that all came out alike. Nothing
is opened before its md5 is right.
"""

import hashlib
import io
import os
import pickle
import shutil
import zipfile
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from mrla_minimal.lab.data.download import Source, exclusive, file_md5, files_in, writing_to
from mrla_minimal.lab.data.images import Cifar, Split
from mrla_minimal.lab.files import replace_file

# sha256 of the whole content in canonical order (see `finish`).
FINGERPRINTS = {
    "cifar10": "36d398a0b9b2b872a887ca6b26a83c8b8c92b57a1446da4e9cfb7960228f0324",
    "cifar100": "77c620651a5de081f61b07ebf9f7acc79cbce1b684a52ae18d012f8466c43720",
}


@dataclass(frozen=True)
class Facts:
    """What is published about a data set. train, test, meta: file name -> md5 of the pickles."""

    folder: str
    train: dict
    test: dict
    meta: dict
    labels_key: bytes
    names_key: bytes
    sizes: dict  # images in each split
    pickles: Source
    pngs: Source

    @property
    def files(self):
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

    def __init__(self, path, problem):
        super().__init__(f"{path} {problem}: delete it, or let `mrla fetch cifar10` (or cifar100) replace it")
        self.path = path


def facts_of(name):
    if name not in FACTS:
        raise ValueError(f"name must be one of {', '.join(FACTS)}; got {name!r}")
    return FACTS[name]


def verify(path, facts, name):
    """Raise AlteredFile unless the packaging at `path` holds what was published."""
    if path.suffix == ".npz":
        read(path, facts, name)
    elif path.is_dir():
        for file in facts.files:
            _check_md5(path / file, facts)
    else:
        _check_md5(path, facts)


def _check_md5(path, facts):
    published = facts.files | {source.name: source.md5 for source in (facts.pickles, facts.pngs)}
    if file_md5(path) != published[path.name]:
        raise AlteredFile(path, "is altered or incomplete (wrong md5)")


def read(path, facts, name):
    """Read a pickle folder or an .npz to a Cifar; raises AlteredFile unless its content is the published one."""
    parts, classes = _read_npz(path) if path.suffix == ".npz" else _read_pickles(path, facts)
    return _proven(finish(parts, classes, name), path)


def _proven(cifar, path):
    if cifar.fingerprint != FINGERPRINTS[cifar.source]:
        raise AlteredFile(path, f"does not hold the images of {cifar.source} (wrong fingerprint)")
    return cifar


def finish(parts, classes, source):
    """Cifar in canonical order from [(images, labels) of train, of test], arrays as in Split.

    The order is that of each image's blake2b hash, then of the label. The fingerprint is the sha256 of: training
    images and labels (int64, little-endian), the same of the test split, class names joined by newlines.
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


# A pickle can name any function and have it called. These are all that arrays need, so nothing is ever imported.
_RECONSTRUCT = np.zeros(0, np.uint8).__reduce__()[0]
_ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in _ALLOWED:
            raise ValueError(f"it asks for {module}.{name}, which no array needs")
        return _ALLOWED[module, name]


def _unpickle(path):
    with open(path, "rb") as file:
        try:
            return _ArraysOnly(file, encoding="bytes").load()
        except ValueError as error:
            raise ValueError(f"{path} is refused: {error}") from error


def _read_pickles(folder, facts):
    for file in facts.files:
        _check_md5(folder / file, facts)
    parts = []
    for files in (facts.train, facts.test):
        batches = [_unpickle(folder / file) for file in files]
        images = np.concatenate([batch[b"data"] for batch in batches]).reshape(-1, 3, 32, 32)
        parts.append((images, np.concatenate([batch[facts.labels_key] for batch in batches])))
    (meta,) = facts.meta
    return parts, [name.decode() for name in _unpickle(folder / meta)[facts.names_key]]


def _read_npz(path):
    try:
        with np.load(path, allow_pickle=False) as saved:
            parts = [(saved[f"{split}_images"], saved[f"{split}_labels"]) for split in ("train", "test")]
            return parts, saved["classes"].tolist()
    except (ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise AlteredFile(path, f"cannot be read ({type(error).__name__})") from error


def unpack(path, facts, name):
    """Turn an archive, beside itself, into a folder of pickles or an .npz; return its path. Leave those as they are."""
    if path.is_dir() or path.suffix == ".npz":
        return path
    is_pickles = path.name == facts.pickles.name
    target = path.with_name(facts.folder if is_pickles else f"{name}.npz")
    with writing_to(path.parent, 3_100 * sum(facts.sizes.values())), exclusive(path.with_name(f"{path.name}.lock")):
        _check_md5(path, facts)
        try:
            verify(target, facts, name)  # another process may have unpacked it meanwhile
        except (FileNotFoundError, AlteredFile):
            if is_pickles:
                _extract_pickles(path, target, facts)
            else:
                _convert_pngs(path, target, facts, name)
    return target


def _extract_pickles(archive, target, facts):
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        for path, content in files_in(archive):
            if path.parent.name == facts.folder and path.name in facts.files:
                (part / path.name).write_bytes(content)  # a name from the table: the archive chooses no path
        for file in facts.files:
            _check_md5(part / file, facts)
        target.mkdir(exist_ok=True)
        for file in facts.files:
            os.replace(part / file, target / file)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _convert_pngs(archive, target, facts, name):
    cifar = _proven(finish(*_decode_pngs(archive, facts), name), archive)
    arrays = {f"{split}_{field}": getattr(getattr(cifar, split), field).numpy()
              for split in ("train", "test") for field in ("images", "labels")}
    replace_file(target, lambda file: np.savez(file, **arrays, classes=np.array(cifar.classes)))


def _decode_pngs(archive, facts):
    """Parts and class names from .../train/.../CLASS/*.png and .../test/.../CLASS/*.png, decoded within the archive.

    A label is the class's place among the sorted names, which is the official order of both CIFAR sets.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError(f"{archive} holds PNG files: reading them needs Pillow (pip install pillow)") from error
    images, names = {"train": [], "test": []}, {"train": [], "test": []}
    with tqdm(desc=f"decoding {archive.name}", total=sum(facts.sizes.values()), unit=" images") as progress:
        for path, content in files_in(archive):
            # The two last parts are left out: CIFAR-100 has a class of the name "train".
            split = next((folder for folder in path.parts[:-2] if folder in images), None)
            if split is None or path.suffix != ".png" or path.name.startswith("._"):
                continue
            with Image.open(io.BytesIO(content)) as image:
                if image.size != (32, 32) or image.mode != "RGB":
                    raise ValueError(f"{archive}: {path} is {image.size} {image.mode}, not (32, 32) RGB")
                images[split].append(np.asarray(image).transpose(2, 0, 1))
            names[split].append(path.parent.name)
            progress.update()
    if (counts := {split: len(images[split]) for split in images}) != facts.sizes:
        raise ValueError(f"{archive} holds {counts} images instead of {facts.sizes}")
    classes = sorted(set(names["train"]))
    return [(np.stack(images[split]), np.searchsorted(classes, names[split])) for split in images], classes
