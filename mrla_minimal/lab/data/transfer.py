"""One connection to one source: what it brings is added to the part of a file that is there already."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from tqdm import tqdm

CHUNK = 1 << 18  # bytes read at most at once
STALLED = 1_000  # bytes/s: below this even the last resort counts as standing still


class DownloadError(ValueError):
    """No source gave the file, or none may be asked; the one-line message gives each source's reason."""


class SourceFailed(Exception):
    """One source cannot give the file; inside these two modules only."""


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


def receive(source: Source, part: Path, again: Path, patience: Patience) -> str | None:
    """Let `part` grow to source.size over one connection; return None, or why it broke off before.

    An answer that begins anew goes to `again`. That takes the part's place if it goes on with the part's
    own bytes, and stays beside it if it is whole: then its md5 must decide. Raises SourceFailed.
    """
    requests, urllib3 = _http()
    have = length(part)
    if have == source.size:
        return None
    try:
        with _open(requests, source, have, patience) as response:
            start = _check_answer(response, have, source.size)
            have = _append(response.raw, part, again, start, source, patience)
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
    announced = response.headers.get("Content-Length", str(size - start)).strip()
    if not announced.isdecimal():
        raise SourceFailed(f"announces a length that is no number: {announced[:20]!r}")
    if start + int(announced) != size:
        raise SourceFailed(f"offers a file of {start + int(announced):,} bytes instead of {size:,}")
    return start


def _append(stream: Any, part: Path, again: Path, start: int, source: Source, patience: Patience) -> int:
    """Write what arrives, from byte `start` on, to `part` or to `again`; return how far it came."""
    target = part if start == length(part) else again
    try:
        with (
            open(target, "ab" if start else "wb") as file,
            tqdm(desc=source.name, total=source.size, initial=start, unit="B", unit_scale=True) as bar,
        ):
            return _copy(stream, file, start, source, patience, bar)
    finally:
        if target != part and length(target) < source.size:
            if length(target) > length(part) and _begins_alike(target, part):
                os.replace(target, part)
            else:
                target.unlink(missing_ok=True)
        elif length(target) == 0:
            target.unlink(missing_ok=True)


def _begins_alike(longer: Path, part: Path) -> bool:
    with open(longer, "rb") as one, open(part, "rb") as other:
        while expected := other.read(CHUNK):
            if one.read(len(expected)) != expected:
                return False
    return True


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


def length(path: Path) -> int:
    """A file's bytes, 0 if there is none."""
    return path.stat().st_size if path.exists() else 0
