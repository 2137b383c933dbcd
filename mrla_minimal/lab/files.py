"""Files that are never half written: replaced whole, or grown by whole lines, by one process at a time."""

import errno
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from filelock import FileLock

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


class Busy(ValueError):
    """Another process holds the lock."""


def replace_file(path: str | Path, write: Callable[[BinaryIO], Any]) -> None:
    """Call write(file) on a binary file beside `path`, flush it to the disk, and only then rename it.

    Whatever interrupts it (a kill, a full disk), `path` holds either its old content or its new one.
    A symbolic link stays one: the file that it points to is replaced. OSError passes on, and names `path`.
    """
    asked, path = path, Path(os.path.realpath(path))
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(part)):
            raise
        raise OSError(error.errno, error.strerror, str(asked)) from error       # nobody knows the part
    finally:
        with suppress(OSError):     # there is none where its folder is none
            part.unlink()


def write_json(path: str | Path, value: Any) -> None:
    """Replace a file by `value` as indented JSON. Raises ValueError for a number that is not finite."""
    text = _to_json(value, indent=1) + "\n"
    replace_file(path, lambda file: file.write(text.encode()))


def to_line(record: dict) -> str:
    """A record as one line of a JSON-lines file. Raises ValueError for a number that is not finite."""
    return _to_json(record, separators=(", ", ": ")) + "\n"


def append_record(path: str | Path, record: dict) -> None:
    """Add one line to a JSON-lines file.

    A line that an earlier kill left unfinished is ended first, not joined.
    Raises ValueError, before anything is written, for a number that is not finite.
    """
    line = to_line(record).encode()
    with open(path, "ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read_records(path: str | Path) -> tuple[list[dict], list[str]]:
    """(records, complaints) of a JSON-lines file.

    Every line that is a JSON object of finite numbers is a record. Every other line gives one complaint
    that names it.
    """
    records, complaints = [], []
    for number, line in enumerate(Path(path).read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode(), parse_constant=_refuse, parse_float=_finite)
        except (ValueError, RecursionError):    # no JSON, no UTF-8, no finite number, or nested without end
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            start = line[:60].decode(errors="replace")
            complaints.append(f"{path}, line {number}: not a whole record: {start!r}")
    return records, complaints


def take_lock(path: str | Path, wait: bool = True) -> "FileLock":
    """Lock a file for this process; the caller calls its .release(). Other processes wait and say so.

    The file is made if need be, and stays where it is. With wait=False, Busy is raised where another process
    holds it. Raises OSError, naming the file and the reason, if it cannot be locked at all.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise Busy(f"{path} is held by another process") from None
            print(f"Another process is writing to {Path(path).parent}; waiting for it ({Path(path).name}).")
            lock.acquire()
    except NotImplementedError as error:        # an older filelock's word for a file system without locks
        raise _lock_error(OSError(errno.ENOSYS, str(error)), path) from error
    except OSError as error:
        raise _lock_error(error, path) from error
    return lock


@contextmanager
def exclusive(path: str | Path, wait: bool = True) -> Iterator[None]:
    """Let one process at a time into the block: take_lock(path, wait), and release it at the end."""
    lock = take_lock(path, wait)
    try:
        yield
    finally:
        lock.release()


def _lock_error(error: OSError, path: str | Path) -> OSError:
    if isinstance(error, PermissionError):
        reason = "the lock is another user's, or you may not write to its folder"
    elif error.errno in NO_LOCKS:
        reason = "the file system there cannot lock files; use a folder on a disk of this machine"
    else:
        reason = error.strerror or str(error)
    return OSError(error.errno, reason, str(path))


def repository_root() -> Path | None:
    """The folder of this project's repository that the working directory lies in, or None."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if is_repository(folder)), None)


def is_repository(folder: Path) -> bool:
    """Whether a folder is that of a copy of this project: its pyproject.toml says so."""
    try:
        text = (folder / "pyproject.toml").read_text(encoding="utf-8", errors="replace")
    except OSError:         # none there, or none that may be read
        return False
    return re.search(r"""^name\s*=\s*["']mrla-minimal["']""", text, re.MULTILINE) is not None


def _to_json(value: Any, **options: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError as error:
        raise ValueError(f"not written: {_not_finite(value) or error}") from error


def _not_finite(value: Any, place: str = "value") -> str | None:
    """Where the first number that is not finite stands, and what it is: "loss[2] is nan"."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{place} is {value}, not a finite number"
    if isinstance(value, dict):
        inner = ((item, key if place == "value" else f"{place}.{key}") for key, item in value.items())
    elif isinstance(value, (list, tuple)):
        inner = ((item, f"{place}[{index}]") for index, item in enumerate(value))
    else:
        return None
    return next(filter(None, (_not_finite(item, where) for item, where in inner)), None)


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no finite number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)
