"""Unpacking the published archives, once: into a folder of pickles, or an .npz of the decoded PNG files.

No archive is opened before its md5 is right, and none chooses where its files go.
"""

import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from types import ModuleType

import numpy as np
from tqdm import tqdm

from mrla_minimal.lab.data.download import writing_to
from mrla_minimal.lab.data.published import AlteredFile, Facts, Parts, check_md5, finish, proven, verify
from mrla_minimal.lab.files import exclusive, replace_file


def unpack(path: Path, facts: Facts, name: str) -> Path:
    """Turn an archive, beside itself, into a folder of pickles or an .npz; leave those two as they are.

    Returns the path of the folder or .npz. Raises AlteredFile, StorageError, and ValueError for an archive
    that reaches outside.
    """
    if path.is_dir() or path.suffix == ".npz":
        return path
    is_pickles = path.name == facts.pickles.name
    target = path.with_name(facts.folder if is_pickles else f"{name}.npz")
    lock = path.with_name(f"{path.name}.lock")
    with writing_to(path.parent, 3_100 * sum(facts.sizes.values())), exclusive(lock):
        check_md5(path, facts)
        try:
            verify(target, facts, name)  # another process may have unpacked it meanwhile
        except (FileNotFoundError, AlteredFile):
            if is_pickles:
                _extract_pickles(path, target, facts)
            else:
                _convert_pngs(path, target, facts, name)
    return target


def files_in(archive: str | Path) -> Iterator[tuple[PureWindowsPath, bytes]]:
    """Go through a tar archive's files: yields (path within it, content as bytes), writes nothing.

    Raises ValueError, naming the member, at the first that could reach outside: absolute, "..", a link or a
    device.
    """
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PureWindowsPath(member.name)  # knows both kinds of slashes, and drives
            if path.anchor or ".." in path.parts or not (member.isfile() or member.isdir()):
                raise ValueError(f"{archive} is refused: its {member.name!r} is no plain file within it")
            if member.isfile():
                yield path, tar.extractfile(member).read()


def pillow_for(holding: str) -> ModuleType:
    """PIL.Image. Raises ValueError, which begins with what holds pictures, if Pillow is not installed."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError(f"{holding}: reading them needs Pillow (pip install pillow)") from error
    return Image


def _extract_pickles(archive: Path, target: Path, facts: Facts) -> None:
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        for path, content in files_in(archive):
            if path.parent.name == facts.folder and path.name in facts.files:
                (part / path.name).write_bytes(content)  # a name from the table: the archive chooses no path
        for file in facts.files:
            check_md5(part / file, facts)
        target.mkdir(exist_ok=True)
        for file in facts.files:
            os.replace(part / file, target / file)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _convert_pngs(archive: Path, target: Path, facts: Facts, name: str) -> None:
    cifar = proven(finish(*_decode_pngs(archive, facts), name), archive)
    arrays = {f"{split}_{field}": getattr(getattr(cifar, split), field).numpy()
              for split in ("train", "test") for field in ("images", "labels")}
    replace_file(target, lambda file: np.savez(file, **arrays, classes=np.array(cifar.classes)))


def _decode_pngs(archive: Path, facts: Facts) -> tuple[Parts, list[str]]:
    """Parts and class names from .../train/.../CLASS/*.png and .../test/.../CLASS/*.png of the archive.

    A label is the class's place among the sorted names, which is the official order of both CIFAR sets.
    """
    pillow = pillow_for(f"{archive} holds PNG files")
    images, names = {"train": [], "test": []}, {"train": [], "test": []}
    with tqdm(desc=f"decoding {archive.name}", total=sum(facts.sizes.values()), unit=" images") as progress:
        for path, content in files_in(archive):
            # The two last parts are left out: CIFAR-100 has a class of the name "train".
            split = next((folder for folder in path.parts[:-2] if folder in images), None)
            if split is None or path.suffix != ".png" or path.name.startswith("._"):
                continue
            with pillow.open(io.BytesIO(content)) as image:
                if image.size != (32, 32) or image.mode != "RGB":
                    raise ValueError(f"{archive}: {path} is {image.size} {image.mode}, not (32, 32) RGB")
                images[split].append(np.asarray(image).transpose(2, 0, 1))
            names[split].append(path.parent.name)
            progress.update()
    if (counts := {split: len(images[split]) for split in images}) != facts.sizes:
        raise ValueError(f"{archive} holds {counts} images instead of {facts.sizes}")
    classes = sorted(set(names["train"]))
    return [(np.stack(images[split]), np.searchsorted(classes, names[split])) for split in images], classes
