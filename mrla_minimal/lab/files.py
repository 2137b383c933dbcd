"""Files that are never half written: replaced whole, or grown by whole lines."""

import json
import os
import re
from pathlib import Path


def replace_file(path, write):
    """Call write(file) on a binary file beside `path`, flush it to the disk, and only then rename it to `path`.

    Whatever interrupts it (a kill, a full disk), `path` holds either its old content or its new one. OSError passes on.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path, value):
    replace_file(path, lambda file: file.write((json.dumps(value, indent=1) + "\n").encode()))


def to_line(record):
    return json.dumps(record, separators=(", ", ": ")) + "\n"


def append_record(path, record):
    """Add one line to a JSON-lines file; a line that an earlier kill left unfinished is ended first, not joined."""
    path = Path(path)
    line = to_line(record).encode()
    with open(path, "ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read_records(path):
    """(records, complaints) of a JSON-lines file: every line that is a JSON object, and one complaint for each that is not."""
    records, complaints = [], []
    for number, line in enumerate(Path(path).read_bytes().decode(errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            complaints.append(f"{path}, line {number}: not a whole record, left out: {line[:60]!r}")
    return records, complaints


def repository_root():
    """The folder of this project's repository that the working directory lies in, or None."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if _is_repository(folder)), None)


def _is_repository(folder):
    project = folder / "pyproject.toml"
    text = project.read_text(encoding="utf-8", errors="replace") if project.is_file() else ""
    return re.search(r"""^name\s*=\s*["']mrla-minimal["']""", text, re.MULTILINE) is not None
