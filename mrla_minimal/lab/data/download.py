"""One file from several sources: checked before it is used, resumed when it breaks off, and never silent.

    path, source = fetch([Source(url, md5, size), Source(another_url, ...)], folder)

The sources are tried in their order. What has arrived stands in NAME.part beside the final file, stays there
between calls and between processes, and becomes NAME only when its length and md5 are right. A source that is
slow keeps its part and the next one gets its turn; if every source is slow or broken, the fastest of the slow
ones finishes the job.
"""

import errno
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from mrla_minimal.lab.data.transfer import (
    STALLED,
    DownloadError,
    Patience,
    SlowSource,
    Source,
    SourceFailed,
    length,
    receive,
)
from mrla_minimal.lab.files import exclusive

TRIES = 5  # connections to one source in a row, each of which must bring something new


class StorageError(ValueError):
    """The folder cannot take the file (no permission, disk full, a file where the folder should be)."""


PATIENCE = Patience()


def fetch(
    sources: Sequence[Source], folder: str | Path, patience: Patience = PATIENCE,
) -> tuple[Path, Source]:
    """Make sure that `folder` holds the file of one of `sources`; return (its path, that source).

    A good file that is there already is returned as it is. With MRLA_OFFLINE=1 nothing is downloaded.
    Raises DownloadError if no source gave the file and StorageError if the folder cannot take it.
    """
    folder = Path(folder)
    source = _already_there(sources, folder)
    if source is None:
        if is_offline():
            raise DownloadError("downloads are forbidden (MRLA_OFFLINE is set)")
        with writing_to(folder, sources[0].size), exclusive(folder / f"{sources[0].name}.lock"):
            # Another process may have brought the file while this one waited for the lock.
            source = _already_there(sources, folder) or _download_any(sources, folder, patience)
    return folder / source.name, source


def is_offline() -> bool:
    """Whether the environment forbids downloads: MRLA_OFFLINE set to anything but 0."""
    return os.environ.get("MRLA_OFFLINE", "") not in ("", "0")


def file_md5(path: str | Path) -> str:
    """The md5 of a file's content, as hex. It checks against damage, so the hash need not be a secure one."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@contextmanager
def writing_to(folder: Path, size: float) -> Iterator[None]:
    """Make `folder`, and turn what the file system refuses within the block into a StorageError.

    size: how many bytes the block needs, for the message.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        place, reason = error.filename or folder, error.strerror or error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "make room there, or set MRLA_DATA to another folder"
        else:
            remedy = "set MRLA_DATA to a folder that you may write to"
        remedy += f", with about {size / 1e6:.0f} MB free"
        raise StorageError(f"cannot write to {place} ({reason}); nothing that was there is lost: "
                           f"{remedy}") from error


def _already_there(sources: Sequence[Source], folder: Path) -> Source | None:
    """The source whose file lies in `folder`, whole; None if there is none, or none that may be read."""
    for source in sources:
        path = folder / source.name
        with suppress(PermissionError):
            if path.is_file() and file_md5(path) == source.md5:
                return source
    return None


def _download_any(sources: Sequence[Source], folder: Path, patience: Patience) -> Source:
    """The source that gave its file: the first quick one, else the fastest of the slow ones."""
    reasons, rates = {}, {}
    for source in sources:
        try:
            return _download(source, folder, patience)
        except SourceFailed as failure:
            print(f"{source.url}: {failure}.")
            reasons[source] = failure
            if isinstance(failure, SlowSource):
                rates[source] = failure.rate
    for source in sorted(rates, key=rates.get, reverse=True):
        rate = f"{rates[source] / 1e3:.1f} kB/s"
        print(f"No source is quick: finishing from {source.url}, at {rate} until now.")
        try:
            return _download(source, folder, replace(patience, least_rate=STALLED))
        except SourceFailed as failure:
            print(f"{source.url}: {failure}.")
            reasons[source] = failure
    told = "; ".join(f"{source.url}: {reason}" for source, reason in reasons.items())
    raise DownloadError(f"no source gave the file: {told}")


def _download(source: Source, folder: Path, patience: Patience) -> Source:
    """Bring source's file into folder, over several connections if need be; return the source.

    The part that was found stays as it was until the whole file has the right md5, unless this source goes
    on with it: what a source brings in its place goes to a second file.
    """
    part, again = folder / f"{source.name}.part", folder / f"{source.name}.again.part"
    if length(part) >= source.size and file_md5(part) != source.md5:
        print(f"{part} is no part of the file and is thrown away.")
        part.unlink()
    found, target = length(part), part
    try:
        for _ in range(TRIES):
            begun = length(target)
            broke_off = receive(source, target, again, patience)
            whole = again if length(again) == source.size else target
            if broke_off:
                if length(target) <= begun:
                    raise SourceFailed(broke_off)
                have = f"{length(target):,} of {source.size:,} bytes"
                print(f"{source.url}: {broke_off} after {have}; resuming.")
            elif file_md5(whole) == source.md5:
                os.replace(whole, folder / source.name)
                part.unlink(missing_ok=True)
                return source
            elif whole is part and found:
                os.truncate(part, found)
                target = again
                print(f"{source.url}: what was resumed has a wrong md5 and is thrown away; "
                      "once more from the start.")
            else:
                whole.unlink()
                raise SourceFailed("its content is not the published one (wrong md5)")
        raise SourceFailed(f"broke off {TRIES} times, the last time with: {broke_off or 'wrong md5'}")
    finally:
        again.unlink(missing_ok=True)
