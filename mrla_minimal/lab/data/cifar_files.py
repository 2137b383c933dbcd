"""Finding CIFAR-10 and CIFAR-100, or fetching them, and loading either of them or the built-in set.

    cifar = load_cifar("cifar10")       # .train and .test, each with .images and .labels
"""

import importlib.util
import os
import warnings
from pathlib import Path

from mrla_minimal.lab.data.download import DownloadError, fetch, is_offline
from mrla_minimal.lab.data.published import AlteredFile, facts_of, finish, read, unpack, verify
from mrla_minimal.lab.data.synthetic import CLASSES, synthetic_images
from mrla_minimal.lab.files import repository_root


def load_cifar(name="cifar10", root=None, source="auto"):
    """Load "cifar10" or "cifar100" (its 100 fine labels) from the files of `data_roots(root)`, else by a download.

    source "real": an error where the data cannot be had. "auto": where no download source gave it, the built-in set
    of synthetic.py (10 classes) instead, loudly announced. "synthetic": that set at once.
    Raises ValueError for an unknown name or source and for files that are altered; DownloadError, StorageError.
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


def find_cifar(name="cifar10", root=None):
    """The path where complete and unaltered data lies (a folder, an archive or an .npz), or None. No download.

    Raises AlteredFile (a ValueError) for files that are there but altered, ValueError for an unknown name.
    """
    facts = facts_of(name)
    found = _locate(facts, name, root)
    if found is not None:
        verify(found, facts, name)
    return found


def fetch_cifar(name="cifar10", root=None):
    """Make sure that the real data is there, unpacked; return its path. Altered files are replaced by good ones.

    Raises DownloadError, StorageError, and ValueError for an unknown name. What lies there stays until good data does.
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
    return finish(parts, CLASSES, "synthetic")


def _announce_built_in(name, error):
    line = "!" * 100
    print(line, f"SYNTHETIC IMAGES INSTEAD OF {name.upper()}. Why: {error}.",
          f"The built-in set stands in. No accuracy, figure or record made on it says anything about {name.upper()}.",
          line, sep="\n")
