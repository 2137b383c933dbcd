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
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from tqdm import tqdm

from mrla_minimal.lab.files import exclusive

CHUNK = 1 << 18  # bytes read at most at once
STALLED = 1_000  # bytes/s: below this even the last resort counts as standing still
TRIES = 5  # connections to one source in a row, each of which must bring something new


class DownloadError(ValueError):
    """No source gave the file, or none may be asked; the one-line message gives each source's reason."""


class StorageError(ValueError):
    """The folder cannot take the file (no permission, disk full, a file where the folder should be)."""


class SourceFailed(Exception):
    """One source cannot give the file; inside this module only."""


class SlowSource(SourceFailed):
    """One source is slower than patience allows; rate in bytes/s."""

    def __init__(self, rate: float):
        super().__init__(f"slow, {rate / 1e3:.1f} kB/s")
        self.rate = rate


@dataclass(frozen=True)
class Source:
    """Where a file can be had: its address, the md5 of its content (hex) and its length in bytes."""

    url: str
    md5: str
    size: int

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Patience:
    """When to give up on a source: rate in bytes/s over the first `window` seconds; the others in seconds."""

    window: float = 20.0
    least_rate: float = 500_000
    connect: float = 10.0
    read: float = 30.0


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
    """Bring source's file into folder, over several connections if need be; return the source."""
    part = folder / f"{source.name}.part"
    for _ in range(TRIES):
        begun = _length(part)
        broke_off = _receive(source, part, patience)
        if broke_off:
            if _length(part) <= begun:
                raise SourceFailed(broke_off)
            have = f"{_length(part):,} of {source.size:,} bytes"
            print(f"{source.url}: {broke_off} after {have}; resuming.")
        elif file_md5(part) == source.md5:
            os.replace(part, folder / source.name)
            return source
        else:
            part.unlink()
            if not begun:
                raise SourceFailed("its content is not the published one (wrong md5)")
            print(f"{source.url}: what was resumed has a wrong md5 and is thrown away; "
                  "once more from the start.")
    raise SourceFailed(f"broke off {TRIES} times, the last time with: {broke_off or 'wrong md5'}")


def _receive(source: Source, part: Path, patience: Patience) -> str | None:
    """Let `part` grow to source.size over one connection; return None, or why it broke off before."""
    requests, urllib3 = _http()
    if _length(part) > source.size:
        part.unlink()
    have = _length(part)
    if have == source.size:
        return None
    try:
        with _open(requests, source, have, patience) as response:
            start = _check_answer(response, have, source.size)
            have = _append(response.raw, part, start, source, patience)
    except (requests.Timeout, urllib3.exceptions.TimeoutError):
        return f"no answer for {patience.read:g} s"
    except requests.exceptions.SSLError:
        return f"its certificate was not accepted{_trusted()}"
    except requests.exceptions.ProxyError:
        return "no connection by way of the proxy that the environment names"
    except requests.RequestException:
        return "no connection"
    except urllib3.exceptions.HTTPError:        # what happens to an answer's body comes from urllib3 itself
        return "the connection broke"
    return None if have == source.size else "the connection ended"


def _http() -> tuple[ModuleType, ModuleType]:
    try:
        import requests
        import urllib3
    except ImportError as error:
        raise DownloadError(f"downloads need a package: pip install {error.name}") from error
    return requests, urllib3


def _open(requests: ModuleType, source: Source, have: int, patience: Patience) -> Any:
    """The answer to a request for the file from byte `have` on, its body unread."""
    # A compressed answer would make lengths and ranges count something other than the file's bytes.
    plain = {"Accept-Encoding": "identity"}
    options = {"stream": True, "timeout": (patience.connect, patience.read)}
    ranged = {"Range": f"bytes={have}-"} if have else {}
    try:
        response = requests.get(source.url, headers=plain | ranged, **options)
        if response.status_code == 416:  # the server has no byte `have`: not the file that the part is from
            response.close()
            response = requests.get(source.url, headers=plain, **options)
    except requests.RequestException:
        raise
    except OSError as error:        # a file of certificates that is not there: no fault of the data's disk
        raise SourceFailed(f"no connection can be made: {error}{_trusted()}") from error
    return response


def _trusted() -> str:
    """Where the certificates come from, if the environment chooses them: for a message."""
    named = [name for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE") if os.environ.get(name)]
    return f" ({named[0]} is {os.environ[named[0]]})" if named else ""


def _check_answer(response: Any, have: int, size: int) -> int:
    """Where the answer's bytes begin in the file: at `have`, or at 0 if the server ignores ranges."""
    if response.status_code not in (200, 206):
        raise SourceFailed(f"HTTP {response.status_code}")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise SourceFailed("answers with a web page, not the file (does this network want a log-in first?)")
    start = have if response.status_code == 206 else 0
    if start and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        raise SourceFailed("answered with another range than the one asked for")
    length = response.headers.get("Content-Length")
    if length is not None and start + int(length) != size:
        raise SourceFailed(f"offers a file of {start + int(length):,} bytes instead of {size:,}")
    return start


def _append(stream: Any, part: Path, start: int, source: Source, patience: Patience) -> int:
    """Write what arrives to `part` from byte `start` on; return how far it came.

    An answer that begins anew goes to a second file, which takes the part's place only if it grows longer:
    what an answer does not continue, it must not shorten. Raises SourceFailed.
    """
    begun = _length(part)
    target = part if start == begun else part.with_name(f"{source.name}.again.part")
    try:
        with (
            open(target, "ab" if start else "wb") as file,
            tqdm(desc=source.name, total=source.size, initial=start, unit="B", unit_scale=True) as bar,
        ):
            return _copy(stream, file, start, source, patience, bar)
    finally:
        if target != part and _length(target) > begun:
            os.replace(target, part)
        elif target != part or _length(part) == 0:
            target.unlink(missing_ok=True)


def _copy(stream: Any, file: BinaryIO, start: int, source: Source, patience: Patience, bar: tqdm) -> int:
    """Write what arrives to `file`, as bytes `start` and on of the whole; return how far it came."""
    have, mark, mark_time, least_rate = start, start, time.monotonic(), patience.least_rate
    # read1, not read: a trickle must not look like silence
    while have < source.size and (chunk := stream.read1(CHUNK)):
        file.write(chunk)
        have += len(chunk)
        bar.update(len(chunk))
        elapsed = time.monotonic() - mark_time
        if elapsed >= patience.window and have < source.size:
            if (have - mark) / elapsed < least_rate:
                raise SlowSource((have - mark) / elapsed)
            mark, mark_time, least_rate = have, time.monotonic(), STALLED
    if have > source.size:
        file.truncate(start)        # not the file's bytes: back to what was there before
        raise SourceFailed(f"sends more than the file's {source.size:,} bytes")
    return have


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
