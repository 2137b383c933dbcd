"""CIFAR-10, CIFAR-100 or the built-in set -> tensors -> augmented batches.

    cifar = load_cifar("cifar10")                       # .train and .test, each with .images and .labels
    plan = plan_epoch(len(cifar.train), seed=0, epoch=3)
    images, labels = take_batch(cifar.train, plan, 0, 128)

The real data may come packed in three ways: the published Python pickles (as a folder or still in their archive),
fast.ai's archive of PNG files, or the .npz that is made of that archive once. They hold the same images in different
orders, so each split is sorted by a hash of its pixels after loading, and one fingerprint proves that all came out
alike. Nothing is opened before its md5 is right.
"""

import hashlib
import importlib.util
import io
import os
import pickle
import re
import shutil
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from mrla_minimal.lab.download import (
    DownloadError,
    Source,
    exclusive,
    fetch,
    file_md5,
    files_in,
    is_offline,
    writing_to,
)
from mrla_minimal.lab.files import replace_file
from mrla_minimal.lab.synthetic import CLASSES, synthetic_images

# Mean and standard deviation of CIFAR-10's training pixels, per channel, in [0, 1] units. Every set is normalised by
# these: a model's input scale must not depend on which set it happens to see.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
PADDING = 4

# sha256 of the whole content in canonical order (see `_finish`).
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


@dataclass(frozen=True, eq=False)
class Split:
    """images uint8 (N, 3, 32, 32) and labels int64 (N,)."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self):
        return len(self.labels)

    def to(self, device):
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Cifar:
    """Both splits in canonical order; source: "cifar10", "cifar100" or "synthetic"; fingerprint: sha256, hex."""

    train: Split
    test: Split
    classes: tuple[str, ...]
    source: str
    fingerprint: str


# ---- finding and loading ----------------------------------------------------------------------------------------


def load_cifar(name="cifar10", root=None, source="auto"):
    """Load "cifar10" or "cifar100" (its 100 fine labels) from the files of `data_roots(root)`, else by a download.

    source "real": an error where the data cannot be had. "auto": where no download source gave it, the built-in set
    of synthetic.py (10 classes) instead, loudly announced. "synthetic": that set at once.
    Raises ValueError for an unknown name or source and for files that are altered; DownloadError, StorageError.
    """
    facts = _facts(name)
    if source not in ("auto", "real", "synthetic"):
        raise ValueError(f"source must be 'auto', 'real' or 'synthetic', got {source!r}")
    if source == "synthetic":
        return _built_in()
    try:
        found = _locate(facts, name, root) or _download(facts, name, root)
    except DownloadError as error:
        if source == "real":
            raise
        _announce_built_in(name, error)
        return _built_in()
    return _read(_unpack(found, facts, name), facts, name)


def find_cifar(name="cifar10", root=None):
    """The path where complete and unaltered data lies (a folder, an archive or an .npz), or None. No download.

    Raises AlteredFile (a ValueError) for files that are there but altered, ValueError for an unknown name.
    """
    facts = _facts(name)
    found = _locate(facts, name, root)
    if found is not None:
        _verify(found, facts, name)
    return found


def fetch_cifar(name="cifar10", root=None):
    """Make sure that the real data is there, unpacked; return its path. Altered files are replaced by good ones.

    Raises DownloadError, StorageError, and ValueError for an unknown name. What lies there stays until good data does.
    """
    facts = _facts(name)
    try:
        found = find_cifar(name, root)
    except AlteredFile as error:
        print(f"{error.path} is not what was published; getting good data before it is replaced.")
        found = None
    _unpack(found or _download(facts, name, root), facts, name)
    while True:
        try:
            return find_cifar(name, root)
        except AlteredFile as error:  # good data in another packaging now lies beside it
            error.path.unlink()


def data_roots(root=None):
    """The folders where data is looked for, in this order; a download goes to the first of them. Returns Paths.

    `root` alone if it is given; else $MRLA_DATA if set, data/ of the repository that the working directory lies in
    if any, and the user's cache folder.
    """
    if root is not None:
        return [Path(root).expanduser()]
    roots = [Path(os.environ["MRLA_DATA"]).expanduser()] if os.environ.get("MRLA_DATA") else []
    repository = repository_root()
    roots += [repository / "data"] if repository else []
    if importlib.util.find_spec("pooch"):
        with warnings.catch_warnings():     # in a notebook, its progress bar complains of missing widgets that nobody asked for
            warnings.filterwarnings("ignore", message="IProgress not found")
            import pooch

        roots.append(Path(pooch.os_cache("mrla-minimal")))
    return roots or [Path.cwd() / "data"]


def repository_root():
    """The folder of this project's repository that the working directory lies in, or None."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if _is_repository(folder)), None)


def _is_repository(folder):
    project = folder / "pyproject.toml"
    text = project.read_text(encoding="utf-8", errors="replace") if project.is_file() else ""
    return re.search(r"""^name\s*=\s*["']mrla-minimal["']""", text, re.MULTILINE) is not None


def _facts(name):
    if name not in FACTS:
        raise ValueError(f"name must be one of {', '.join(FACTS)}; got {name!r}")
    return FACTS[name]


def _locate(facts, name, root):
    """The first packaging that lies in one of the roots with all its files, unverified; None if there is none."""
    for folder in data_roots(root):
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is not a folder: the data's place must be one")
        missing = [file for file in facts.files if not (folder / facts.folder / file).is_file()]
        if not missing:
            return folder / facts.folder
        if len(missing) < len(facts.files):
            print(f"note: {folder / facts.folder} lacks {', '.join(missing)}, and is left out")
        for file in (f"{name}.npz", facts.pickles.name, facts.pngs.name):
            if (folder / file).is_file():
                return folder / file
    return None


def _verify(path, facts, name):
    """Raise AlteredFile unless the packaging at `path` holds what was published."""
    if path.suffix == ".npz":
        _read(path, facts, name)
    elif path.is_dir():
        for file in facts.files:
            _check_md5(path / file, facts)
    else:
        _check_md5(path, facts)


def _check_md5(path, facts):
    published = facts.files | {source.name: source.md5 for source in (facts.pickles, facts.pngs)}
    if file_md5(path) != published[path.name]:
        raise AlteredFile(path, "is altered or incomplete (wrong md5)")


def _download(facts, name, root):
    """The archive, downloaded to the first root. Raises DownloadError with what to do, StorageError."""
    roots = data_roots(root)
    places = ", ".join(map(str, roots))
    if not is_offline():
        print(f"No good {name} files in {places}: getting about {facts.pickles.size / 1e6:.0f} MB for {roots[0]}.")
    # Without Pillow an archive of PNG files would be of no use.
    sources = [facts.pickles, facts.pngs] if importlib.util.find_spec("PIL") else [facts.pickles]
    try:
        return fetch(sources, roots[0])[0]
    except DownloadError as error:
        how = "unset MRLA_OFFLINE" if is_offline() else f"run `mrla fetch {name}`" + (f" --data-root {root}" if root else "")
        raise DownloadError(f"no good {name} files in {places}, and {error}. To get them {how}, or put "
                            f"{facts.pickles.name} ({facts.pickles.url}) into {roots[0]}") from error


def _built_in():
    parts = [[array.numpy() for array in synthetic_images(count, seed)] for count, seed in ((10_000, 0), (2_000, 1))]
    return _finish(parts, CLASSES, "synthetic")


def _announce_built_in(name, error):
    line = "!" * 100
    print(line, f"SYNTHETIC IMAGES INSTEAD OF {name.upper()}. Why: {error}.",
          f"The built-in set stands in. No accuracy, figure or record made on it says anything about {name.upper()}.",
          line, sep="\n")


# ---- the packagings ---------------------------------------------------------------------------------------------


def _read(path, facts, name):
    """Read a pickle folder or an .npz to a Cifar; raises AlteredFile unless its content is the published one."""
    parts, classes = _read_npz(path) if path.suffix == ".npz" else _read_pickles(path, facts)
    return _proven(_finish(parts, classes, name), path)


def _proven(cifar, path):
    if cifar.fingerprint != FINGERPRINTS[cifar.source]:
        raise AlteredFile(path, f"does not hold the images of {cifar.source} (wrong fingerprint)")
    return cifar


def _finish(parts, classes, source):
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


def _unpack(path, facts, name):
    """Turn an archive, beside itself, into a folder of pickles or an .npz; return its path. Leave those as they are."""
    if path.is_dir() or path.suffix == ".npz":
        return path
    is_pickles = path.name == facts.pickles.name
    target = path.with_name(facts.folder if is_pickles else f"{name}.npz")
    with writing_to(path.parent, 3_100 * sum(facts.sizes.values())), exclusive(path.with_name(f"{path.name}.lock")):
        _check_md5(path, facts)
        try:
            _verify(target, facts, name)  # another process may have unpacked it meanwhile
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
    cifar = _proven(_finish(*_decode_pngs(archive, facts), name), archive)
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


# ---- splits and batches -----------------------------------------------------------------------------------------


def hold_out(split, size=None, seed=0):
    """Take `size` images (None: a tenth) out of a split: (the rest, those taken), each in the split's order.

    Stratified: every class gives its share, and what whole numbers leave over goes to the largest remainders, among
    equal ones by a draw. The same seed takes the same images. Raises ValueError unless 1 <= size < len(split).
    """
    total = len(split)
    size = total // 10 if size is None else size
    if not 1 <= size < total:
        raise ValueError(f"size must be between 1 and {total - 1} for a split of {total} images, got {size}")
    generator = torch.Generator().manual_seed(seed)
    labels = split.labels.cpu()
    counts = labels.bincount()
    share, remainder = size * counts // total, size * counts % total
    draw = torch.randperm(len(counts), generator=generator)
    by_remainder = draw[remainder[draw].argsort(descending=True, stable=True)]
    share[by_remainder[:size - share.sum()]] += 1

    shuffled = torch.randperm(total, generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    place = torch.arange(total) - (counts.cumsum(0) - counts).repeat_interleave(counts)  # within its class
    taken = torch.zeros(total, dtype=torch.bool)
    taken[by_class[place < share.repeat_interleave(counts)]] = True
    taken = taken.to(split.labels.device)
    return Split(split.images[~taken], split.labels[~taken]), Split(split.images[taken], split.labels[taken])


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """All of an epoch's chance, by position in it: order int64 (N,), shift int64 (N, 2) in 0..8, flip bool (N,)."""

    order: torch.Tensor
    shift: torch.Tensor
    flip: torch.Tensor

    def to(self, device):
        return EpochPlan(self.order.to(device), self.shift.to(device), self.flip.to(device))


def plan_epoch(size, seed, epoch, augment=True):
    """The plan for `size` images, a function of (seed, epoch) alone; without augment: centred crops, no flips.

    It is drawn on the CPU so that every device sees the same images, and at once so that a resumed run needs to know
    no more than its step number. Raises ValueError for a size below 1.
    """
    if size < 1:
        raise ValueError(f"an epoch needs at least 1 image, got {size}")
    # torch's CPU generator takes the low 32 bits of a seed, so seed and epoch are mixed by a hash.
    mixed = hashlib.blake2b(f"{seed}, {epoch}".encode(), digest_size=4).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(mixed, "little"))
    order = torch.randperm(size, generator=generator)
    if not augment:
        return EpochPlan(order, torch.full((size, 2), PADDING), torch.zeros(size, dtype=torch.bool))
    shift = torch.randint(0, 2 * PADDING + 1, (size, 2), generator=generator)
    return EpochPlan(order, shift, torch.randint(0, 2, (size,), generator=generator).bool())


def take_batch(split, plan, start, stop):
    """Positions start..stop of the epoch: images float32 (b, 3, 32, 32), augmented and normalised; labels (b,).

    A random crop after padding with 4 zeros on each side, then a flip from left to right where the plan says so.
    split and plan lie on the same device.
    """
    chosen, shift, flip = plan.order[start:stop], plan.shift[start:stop], plan.flip[start:stop]
    padded = F.pad(split.images[chosen], (PADDING,) * 4)  # (b, 3, 40, 40)
    line = torch.arange(32, device=chosen.device)
    rows = shift[:, :1] + line
    columns = shift[:, 1:] + torch.where(flip[:, None], 31 - line, line)
    pixels = (padded.shape[3] * rows[:, :, None] + columns[:, None, :]).flatten(1)  # (b, 1024): places in a plane
    images = padded.flatten(2).gather(2, pixels[:, None].expand(-1, 3, -1)).unflatten(2, (32, 32))
    return normalise(images), split.labels[chosen]


def normalise(images):
    """uint8 (b, 3, 32, 32) -> float32 with mean 0 and deviation 1 per channel over CIFAR-10's training pixels."""
    images = images.to(torch.float32)
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        # Plain numbers: a constant tensor would have to be copied to the device, which makes the host wait.
        images[:, channel].sub_(255 * mean).mul_(1 / (255 * std))
    return images
