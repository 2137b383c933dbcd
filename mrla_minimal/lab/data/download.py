"""One file from several sources: checked before it is used, resumed when it breaks off, never waited for in silence.

    path, source = fetch([Source(url, md5, size), Source(another_url, ...)], folder)

The sources are tried in their order. What has arrived stands in NAME.part beside the final file, stays there between
calls and between processes, and becomes NAME only when its length and md5 are right. A source that is slow keeps its
part and the next one gets its turn; if every source is slow or broken, the fastest of the slow ones finishes the job.
"""

import hashlib
import os
import tarfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath

from tqdm import tqdm

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
    def __init__(self, rate):
        super().__init__(f"slow, {rate / 1e3:.1f} kB/s")
        self.rate = rate


@dataclass(frozen=True)
class Source:
    """Where a file can be had: its address, the md5 of its content (hex) and its length in bytes."""

    url: str
    md5: str
    size: int

    @property
    def name(self):
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Patience:
    """When to give up on a source: rate in bytes/s over the first `window` seconds; the others in seconds."""

    window: float = 20.0
    least_rate: float = 500_000
    connect: float = 10.0
    read: float = 30.0


PATIENCE = Patience()


def fetch(sources, folder, patience=PATIENCE):
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


def is_offline():
    """Whether the environment forbids downloads: MRLA_OFFLINE set to anything but 0."""
    return os.environ.get("MRLA_OFFLINE", "") not in ("", "0")


def file_md5(path):
    """The md5 of a file's content, as hex; a check against damage, so the hash need not be a secure one."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def files_in(archive):
    """Go through a tar archive's files: yields (path within it, content as bytes), writes nothing.

    Raises ValueError, naming the member, at the first that could reach outside: absolute, "..", link, device.
    """
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PureWindowsPath(member.name)  # knows both kinds of slashes, and drives
            if path.anchor or ".." in path.parts or not (member.isfile() or member.isdir()):
                raise ValueError(f"{archive} is refused: its member {member.name!r} is no plain file within it")
            if member.isfile():
                yield path, tar.extractfile(member).read()


@contextmanager
def writing_to(folder, size):
    """Make `folder`; turn what the file system refuses within the block into a StorageError. size: bytes needed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(f"cannot write to {folder} ({reason}): it must be a folder you may write to, "
                           f"with about {size / 1e6:.0f} MB free") from error


@contextmanager
def exclusive(path):
    """Let one process at a time into the block; the others say that they wait. path: the lock's file."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"Another process is writing to {path.parent}; waiting for it ({path.name}).")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _already_there(sources, folder):
    for source in sources:
        path = folder / source.name
        if path.is_file() and file_md5(path) == source.md5:
            return source
    return None


def _download_any(sources, folder, patience):
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
        print(f"No source is quick: finishing from {source.url}, at {rates[source] / 1e3:.1f} kB/s until now.")
        try:
            return _download(source, folder, replace(patience, least_rate=STALLED))
        except SourceFailed as failure:
            print(f"{source.url}: {failure}.")
            reasons[source] = failure
    raise DownloadError("no source gave the file: " + "; ".join(f"{s.url}: {r}" for s, r in reasons.items()))


def _download(source, folder, patience):
    """Bring source's file into folder, over several connections if need be; return the source."""
    part = folder / f"{source.name}.part"
    for _ in range(TRIES):
        begun = _length(part)
        broke_off = _receive(source, part, patience)
        if broke_off:
            if _length(part) <= begun:
                raise SourceFailed(broke_off)
            print(f"{source.url}: {broke_off} after {_length(part):,} of {source.size:,} bytes; resuming.")
        elif file_md5(part) == source.md5:
            os.replace(part, folder / source.name)
            return source
        else:
            part.unlink()
            if not begun:
                raise SourceFailed("its content is not the published one (wrong md5)")
            print(f"{source.url}: what was resumed has a wrong md5 and is thrown away; once more from the start.")
    raise SourceFailed(f"broke off {TRIES} times, the last time with: {broke_off or 'wrong md5'}")


def _receive(source, part, patience):
    """Let `part` grow to source.size over one connection; return None, or the reason why it broke off before."""
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
        return "its certificate was not accepted"
    except (requests.RequestException, urllib3.exceptions.HTTPError):  # the body's errors come from urllib3 itself
        return "no connection" if have == _length(part) else "the connection broke"
    return None if have == source.size else "the connection ended"


def _http():
    try:
        import requests
        import urllib3
    except ImportError as error:
        raise DownloadError(f"downloads need the package {error.name} (pip install pooch brings it)") from error
    return requests, urllib3


def _open(requests, source, have, patience):
    # A compressed answer would make lengths and ranges count something other than the file's bytes.
    plain = {"Accept-Encoding": "identity"}
    options = {"stream": True, "timeout": (patience.connect, patience.read)}
    ranged = {"Range": f"bytes={have}-"} if have else {}
    response = requests.get(source.url, headers=plain | ranged, **options)
    if response.status_code == 416:  # the server has no byte `have`: not the file that the part is from
        response.close()
        response = requests.get(source.url, headers=plain, **options)
    return response


def _check_answer(response, have, size):
    """Where the answer's bytes begin in the file: at `have`, or at 0 if the server ignores ranges."""
    if response.status_code not in (200, 206):
        raise SourceFailed(f"HTTP {response.status_code}")
    start = have if response.status_code == 206 else 0
    if start and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        raise SourceFailed("answered with another range than the one asked for")
    length = response.headers.get("Content-Length")
    if length is not None and start + int(length) != size:
        raise SourceFailed(f"offers a file of {start + int(length):,} bytes instead of {size:,}")
    return start


def _append(stream, part, start, source, patience):
    """Write what arrives to `part` from byte `start` on; return its length. Raises SlowSource."""
    have, mark, mark_time, least_rate = start, start, time.monotonic(), patience.least_rate
    with (
        open(part, "ab" if start else "wb") as file,
        tqdm(desc=source.name, total=source.size, initial=start, unit="B", unit_scale=True) as bar,
    ):
        while have < source.size and (chunk := stream.read1(CHUNK)):  # read1: a trickle must not look like silence
            file.write(chunk)
            have += len(chunk)
            bar.update(len(chunk))
            elapsed = time.monotonic() - mark_time
            if elapsed >= patience.window and have < source.size:
                if (have - mark) / elapsed < least_rate:
                    raise SlowSource((have - mark) / elapsed)
                mark, mark_time, least_rate = have, time.monotonic(), STALLED
    if have > source.size:
        part.unlink()
        raise SourceFailed(f"sends more than the file's {source.size:,} bytes")
    return have


def _length(path):
    return path.stat().st_size if path.exists() else 0
