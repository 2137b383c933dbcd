"""Finding CIFAR-10 and CIFAR-100, or fetching them, and loading either of them or the built-in set.

    cifar = load_cifar("cifar10")       # .train and .test, each with .images and .labels
"""

import importlib.util
import os
from pathlib import Path

from mrla_minimal.lab.data.archives import unpack
from mrla_minimal.lab.data.download import DownloadError, fetch, is_offline
from mrla_minimal.lab.data.images import Cifar
from mrla_minimal.lab.data.published import FACTS, AlteredFile, Facts, facts_of, finish, read, verify
from mrla_minimal.lab.data.synthetic import CLASSES, synthetic_images
from mrla_minimal.lab.files import repository_root


def load_cifar(name: str = "cifar10", root: str | Path | None = None, source: str = "auto") -> Cifar:
    """Load "cifar10" or "cifar100" (its 100 fine labels) from files in `data_roots(root)`, or download it.

    source "real": an error where the data cannot be had. "auto": where no download source gave it, the
    built-in set of synthetic.py (10 classes) instead, loudly announced. "synthetic": that set at once.
    Raises ValueError for an unknown name or source and for altered files; DownloadError, StorageError.
    """
    facts = facts_of(name)
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
    return read(unpack(found, facts, name), facts, name)


def find_cifar(name: str = "cifar10", root: str | Path | None = None) -> Path | None:
    """The path where complete and unaltered data lies (a folder, an archive or an .npz), or None.

    It downloads nothing. Raises AlteredFile (a ValueError) for files that are there but altered, and
    ValueError for an unknown name.
    """
    facts = facts_of(name)
    found = _locate(facts, name, root)
    if found is not None:
        verify(found, facts, name)
    return found


def fetch_cifar(name: str = "cifar10", root: str | Path | None = None) -> Path:
    """Make sure that the real data is there, unpacked; return its path.

    Altered files are replaced by good ones, and stay until those are there.
    Raises DownloadError, StorageError, and ValueError for an unknown name.
    """
    facts = facts_of(name)
    try:
        found = find_cifar(name, root)
    except AlteredFile as error:
        print(f"{error.path} is not what was published; getting good data before it is replaced.")
        found = None
    unpack(found or _download(facts, name, root), facts, name)
    while True:
        try:
            return find_cifar(name, root)
        except AlteredFile as error:  # good data in another packaging now lies beside it
            error.path.unlink()


def data_roots(root: str | Path | None = None) -> list[Path]:
    """The folders where data is looked for, in this order; a download goes to the first of them.

    `root` alone if it is given; else $MRLA_DATA if set, data/ of the repository that the working directory
    lies in if any, and the user's cache folder; if there is none of these, data/ of the working directory.
    Who names the unpacked folder itself (.../cifar-10-batches-py) means the one that holds it.
    Raises ValueError for a path in the home folder (~) of a user without one.
    """
    if root is not None:
        return [_holder(root)]
    roots = [_holder(os.environ["MRLA_DATA"])] if os.environ.get("MRLA_DATA") else []
    repository = repository_root()
    roots += [repository / "data"] if repository else []
    if importlib.util.find_spec("platformdirs"):
        import platformdirs

        try:
            cache = Path(platformdirs.user_cache_dir("mrla-minimal"))
        except RuntimeError:        # a user without a home folder, as in many containers
            cache = Path()
        roots += [cache] if cache.is_absolute() else []
    return roots or [Path.cwd() / "data"]


def _holder(root: str | Path) -> Path:
    try:
        folder = Path(root).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{root}: there is no home folder here; write the whole path") from error
    return folder.parent if folder.name in {facts.folder for facts in FACTS.values()} else folder


def _locate(facts: Facts, name: str, root: str | Path | None) -> Path | None:
    """The first packaging that lies in one of the roots, unverified; None if there is none."""
    for folder in data_roots(root):
        try:
            found = _look_in(folder, facts, name)
        except PermissionError:
            print(f"note: {folder} is not yours to read, and is left out")
            continue
        if found:
            return found
    return None


def _look_in(folder: Path, facts: Facts, name: str) -> Path | None:
    """The first packaging that lies in one folder with all its files; None if there is none."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: the data's place must be one")
    missing = [file for file in facts.files if not (folder / facts.folder / file).is_file()]
    if not missing:
        return folder / facts.folder
    if len(missing) < len(facts.files):
        print(f"note: {folder / facts.folder} lacks {', '.join(missing)}, and is left out")
    files = (folder / file for file in (f"{name}.npz", facts.pickles.name, facts.pngs.name))
    return next((file for file in files if file.is_file()), None)


def _download(facts: Facts, name: str, root: str | Path | None) -> Path:
    """The archive, downloaded to the first root. Raises DownloadError with what to do, StorageError."""
    roots = data_roots(root)
    places = ", ".join(map(str, roots))
    if not is_offline():
        size = f"{facts.pickles.size / 1e6:.0f} MB"
        print(f"No good {name} files in {places}: getting about {size} for {roots[0]}.")
    # Without Pillow an archive of PNG files would be of no use.
    sources = [facts.pickles, facts.pngs] if importlib.util.find_spec("PIL") else [facts.pickles]
    try:
        return fetch(sources, roots[0])[0]
    except DownloadError as error:
        command = f"mrla fetch {name}" + (f" --data-root {root}" if root else "")
        how = "unset MRLA_OFFLINE" if is_offline() else f"run `{command}`"
        raise DownloadError(f"no good {name} files in {places}, and {error}. To get them {how}, or put "
                            f"{facts.pickles.name} ({facts.pickles.url}) into {roots[0]}") from error


def _built_in() -> Cifar:
    """10,000 training and 2,000 test images of the built-in set, the same on every machine."""
    parts = [[array.numpy() for array in synthetic_images(count, seed)]
             for count, seed in ((10_000, 0), (2_000, 1))]
    return finish(parts, CLASSES, "synthetic")


def _announce_built_in(name: str, error: Exception) -> None:
    line = "!" * 100
    what = name.upper()
    print(line, f"SYNTHETIC IMAGES INSTEAD OF {what}. Why: {error}.",
          f"The built-in set stands in. No accuracy, figure or record made on it says anything about {what}.",
          line, sep="\n")
