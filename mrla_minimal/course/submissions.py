"""`mrla check FILE` and `mrla check FOLDER`: layer attentions of others, each in a process of its own.

The checks run here, in the grader. The process that runs a submission is asked for arrays, outputs, gradients
and memories, and never for a verdict: what it patches in itself changes no check. `apart/process.py` says
what is held back, and what is not.
"""

import csv
import hashlib
import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tqdm import tqdm

from mrla_minimal import __version__
from mrla_minimal.course.apart.process import Ended, visible
from mrla_minimal.course.apart.remote import Remote
from mrla_minimal.course.checks.coursework import CHECKS, findings
from mrla_minimal.lab.device import plain_defaults
from mrla_minimal.lab.files import replace_file, write_json
from mrla_minimal.lab.plugins import existing

SECONDS, MEMORY = 120.0, 4 * 2**30


@dataclass
class Grade:
    """One submission's line: what was found, in numbers and in words."""

    file: str
    verdict: str            # "passed", "failed" or "not gradable"
    passed: int             # checks
    checks: int
    seconds: float
    message: str            # how the process ended, if it did not last; else the first thing that is wrong
    late_quiz: str
    early_quiz: str
    sum: str                # of the file: another version is graded anew,
    graded_by: str          # and so is one that another version of the library graded, or with other limits


def check_apart(path: str | Path, class_name: str | None = None, seconds: float = SECONDS,
                memory: int = MEMORY, quiz: bool = True, progress: bool = True,
                show: Callable[[str], None] | None = None, alone: bool = False) -> list[dict]:
    """What `coursework.grade` finds, of code that runs in a process of its own.

    Where the process does not last, or leaves something running, the last finding is a failed one, "process"
    (no failed one if it was slow, and only the quiz was left). `alone`: the file imports nothing that lies
    beside it.
    `show` is given what the code has printed. Raises ValueError where there is nothing to check: as
    `load_class` does, and if the file's process ends, or takes more than it may, while it is loaded.
    """
    path, found, attention = existing(path), [], None
    with Remote(seconds, memory) as remote, plain_defaults():
        try:
            remote.start_the_clock()
            attention = remote.load(path, class_name, alone)
            found.extend(findings(attention, quiz, progress))       # what is found before it ends is kept
            remote.process.leave()
        except Ended as ended:
            if attention is None:
                raise ValueError(f"{path} does not run: {ended}") from None
            # the quiz comes last and decides nothing: on a slow machine nobody fails for it
            only_slow = ended.slow and {result["check"] for result in found} >= CHECKS.keys()
            found.append({"check": "process", "passed": None if only_slow else False, "text": str(ended)})
        if show:
            show(remote.process.printed())
    return found


def check_folder(folder: str | Path, csv_path: str | Path | None = None,
                 json_path: str | Path | None = None, seconds: float = SECONDS, memory: int = MEMORY,
                 quiz: bool = True) -> list[dict]:
    """Grade the Python files of a folder, and print a line for each; returns rows as the JSON file has them.

    Each is alone: it can import no other of them. Both files to write to are written anew after each
    submission, whole; their folders are made if need be. What they hold of a version of a file, graded with
    these limits, is not graded again. A file that cannot be read has a row, too. Raises ValueError if there
    is no Python file, or a file to write to holds something else.
    """
    files = sorted(path for path in Path(folder).glob("*.py") if path.is_file())
    if not files:
        raise ValueError(f"{folder} holds no Python file, *.py")
    graded_by = (f"mrla-minimal {__version__}, {seconds:g} s, {memory / 2**30:g} GiB"
                 f"{'' if quiz else ', no quiz'}")
    earlier = {(row["file"], row["sum"], row["graded_by"]): row for row in _earlier(csv_path, json_path)}
    rows, kept = [], 0
    bar = tqdm(files, unit="submission")
    for path in bar:
        key = spelt(path.name), _sum(path), graded_by
        kept += key in earlier
        row = earlier.get(key) or _graded(path, *key[1:], seconds, memory, quiz)
        rows.append(row)
        write_rows([*rows, *(old for old in earlier.values() if old["file"] not in _names(rows))],
                   [field.name for field in fields(Grade)], csv_path, json_path)
        counted = f"{row['passed']:>3} of {row['checks']:<4}{float(row['seconds']):6.1f} s"
        bar.write(f"{row['verdict']:<13}{counted}  {clean(row['file'])}  {row['message']}")
    if kept:
        print(f"{kept} of {len(rows)} were graded before, and have not changed")
    return rows


def _sum(path):
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError:         # its row will say so
        return ""


def _names(rows):
    return {row["file"] for row in rows}


def _graded(path, file_sum, graded_by, seconds, memory, quiz):
    start, found, message = time.monotonic(), [], ""
    try:
        found = check_apart(path, None, seconds, memory, quiz, progress=False, alone=True)
    except (ValueError, OSError) as error:
        message = clean(str(error))
    wrong = [result for result in found if result["passed"] is False]
    graded = [result for result in found if result["passed"] is not None]
    if wrong:       # the process's end, which is found last, says most
        first = wrong[-1] if wrong[-1]["check"] == "process" else wrong[0]
        message = clean(f"{first['check']}: {first['text']}")
    verdict = "not gradable" if not found else "failed" if wrong else "passed"
    quizzes = {result["check"]: result["text"] for result in found if "quiz" in result["check"]}
    late, early = (quizzes.get(f"corridor quiz, {question} question", "") for question in ("late", "early"))
    row = Grade(spelt(path.name), verdict, len(graded) - len(wrong), len(graded),
                round(time.monotonic() - start, 1), message, late, early, file_sum, graded_by)
    return {**asdict(row), "findings": found}


# The files of grades, which `mrla grade` writes too

def spelt(name: str | Path) -> str:
    """A file's name as a text that can be written: bytes of it that are no UTF-8 are spelt out."""
    return str(name).encode(errors="surrogateescape").decode(errors="backslashreplace")


def read_rows(path: str | Path, columns: Sequence[str]) -> list[dict]:
    """The rows of a CSV file that `write_rows` wrote; [] if it is not there: then its folder is made.

    Raises ValueError if it holds something else.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if not Path(path).exists():
        return []
    try:
        return _read_csv(path, columns)
    except (ValueError, AttributeError, TypeError, csv.Error):
        raise _something_else(path) from None


def clean(text: str) -> str:
    """A text on one line, with everything visible that would move a cursor."""
    return "".join(map(visible, " ".join(text.split())))


def write_rows(rows: Sequence[dict], columns: Sequence[str], csv_path: str | Path | None,
               json_path: str | Path | None) -> None:
    """Write the rows' columns as CSV, and the rows as JSON, each file whole."""
    if csv_path is not None:
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(columns)
        writer.writerows([_cell(row[column]) for column in columns] for row in rows)
        replace_file(csv_path, lambda file: file.write(text.getvalue().encode()))
    if json_path is not None:
        write_json(json_path, {"grades": list(rows)})


def _cell(value):
    """No cell is a formula, which a spreadsheet would run: a stranger has named the file."""
    text = str(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "'")) else text


def _earlier(csv_path, json_path):
    """The rows of an earlier try: of the JSON file if one is wanted, it alone holds all; else of the CSV."""
    columns = [field.name for field in fields(Grade)]
    rows = [] if csv_path is None else read_rows(csv_path, columns)
    if json_path is None:
        return rows
    Path(json_path).parent.mkdir(parents=True, exist_ok=True)
    if not Path(json_path).exists():
        return []
    try:
        rows = json.loads(Path(json_path).read_text(encoding="utf-8"))["grades"]
        whole = all(set(columns) <= set(row) for row in rows)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise _something_else(json_path)
    return rows


def _read_csv(path, columns):
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if reader.fieldnames != list(columns) or any(None in row for row in rows):
        raise ValueError("other columns")
    return [{column: value.removeprefix("'") for column, value in row.items()} for row in rows]


def _something_else(path):
    return ValueError(f"{path} holds something else than grades; it stays as it is: name another file")
