"""`mrla grade NOTEBOOK...`: what a student's copy of a lesson has solved, exercise by exercise.

The copy runs cell by cell in a process of its own (apart/process.py says what that holds back), by IPython,
the engine of Jupyter's kernels. The exercises' checkers run here, on answers that stay over there: what the
copy prints, or does to a checker that it has imported, counts for nothing.
"""

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from mrla_minimal.course.apart.process import Ended
from mrla_minimal.course.apart.remote import Remote
from mrla_minimal.course.exercises import (
    called_checkers,
    check_calls,
    lesson_of,
    named_checkers,
    syntax_error,
    without_checks,
)
from mrla_minimal.course.submissions import MEMORY, clean, read_rows, spelt, write_rows
from mrla_minimal.lab.device import plain_defaults
from mrla_minimal.lab.files import is_repository, repository_root
from mrla_minimal.lab.own_files import Told, first_line

SECONDS = 600.0
COLUMNS = ("notebook", "exercise", "status", "message")
# What a notebook reads of the repository that it came with, some 25 MB: what tells that it is one, its
# records, the data that are committed, lesson 19's files. What was downloaded is found by $MRLA_DATA.
READ = ("pyproject.toml", "data/README.md", "data/results", "data/checkpoints", "data/denoisers",
        "data/nuclei", "data/blood", "notebooks/capstone")
# Checkers that call a class's own methods, or change what they have handed to it: no array tells them enough.
LOOKED_INTO = {"check_open_gates"}


def grade_notebook(path: str | Path, seconds: float = SECONDS, memory: int = MEMORY,
                   show: Callable[[str], None] | None = None) -> list[dict]:
    """A row for each exercise of a copy's lesson: notebook, exercise (its checker), status and message.

    The status is "not attempted", "wrong", "passed", or "not judged": the process has ended before, the
    checker is one of LOOKED_INTO, or it is called only where no call is looked for, as in a loop. An exercise
    whose checker the copy calls more than once is judged by the last call. Raises ValueError for a file that
    is no notebook, for one without exercises, and where IPython is not installed.
    """
    _ask_for_ipython()
    cells = _code_cells(path)
    lesson = lesson_of({name for source in cells for name in named_checkers(source)})
    if not lesson:
        raise ValueError(f"{path} has no exercises: it names no checker of the course")
    somewhere = {name for source in cells for name in called_checkers(source)}
    rows = {name: ("not judged", f"no line of its own calls {name}") if name in somewhere
            else ("not attempted", f"the notebook never calls {name}") for name in lesson}
    ended = None
    with Remote(seconds, memory) as remote, plain_defaults():
        try:
            data = _lay_out(remote.process.folder)
            remote.start_the_clock()
            remote.ask("work_in", folder=str(remote.process.folder / "notebooks"), data=data and str(data))
            for source in tqdm(cells, desc=Path(path).name, unit="cell", leave=False):
                error = _raised(remote, without_checks(source, lesson))
                called = called_checkers(source) & lesson.keys()
                if called and (why := syntax_error(source)):
                    rows |= dict.fromkeys(called, ("wrong", f"the cell is no Python: {why}"))
                for call in (call for call in check_calls(source) if call.checker in lesson):
                    rows[call.checker] = "not judged", ""
                    rows[call.checker] = _judged(remote, call, error, lesson[call.checker])
            remote.process.leave()
        except Ended as end:
            ended = end
        if show:
            show(remote.process.printed())
    if ended is not None:
        # what was judged before was judged from outside: it stands, if the code only was slow at the end
        rows = {name: row if row[0] == "wrong" or (ended.slow and row[0] == "passed")
                else ("not judged", str(ended)) for name, row in rows.items()}
    return [{"notebook": spelt(path), "exercise": name, "status": status, "message": clean(message)}
            for name, (status, message) in rows.items()]


def _raised(remote, source):
    """What a cell raises, or None. What runs it may raise as well: the copy can change that, too."""
    try:
        error = remote.ask("run_cell", source=source)
    except (Told, NotImplementedError) as told:
        return str(told)
    return error if isinstance(error, str) else None


def _judged(remote, call, error, checker):
    if error is not None:
        return "wrong", f"the cell raises {error}"
    try:
        answer = remote.ask("value", expression=call.answer)["value"]
    except NotImplementedError:     # as where a checker is handed what a stub returns: check_x(stub(3))
        return "not attempted", "not attempted yet"
    except Told as told:
        return "wrong", f"{call.answer} is no answer: it raises {told.text}"
    if call.checker in LOOKED_INTO:
        return "not judged", "the checker looks into the class, which stays over there: read it yourself"
    return checker.judge(answer)


def _code_cells(path):
    try:
        cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{path} is no notebook (of format 4, as Jupyter writes them)") from None


def _lay_out(folder):
    """Copy what lessons read, as it lies in the repository; returns the repository's data/, or None.

    Copied, not linked: a cell that writes there changes neither the records nor what the next copy reads.
    """
    (folder / "notebooks").mkdir()
    beside = Path(__file__).resolve().parents[2]
    root = repository_root() or (beside if is_repository(beside) else None)
    if root is None:        # lessons then say that there are no records
        return None
    for source in (path for name in READ for path in (root / name, *(root / name).rglob("*"))):
        if source.is_file():
            copied = folder / source.relative_to(root)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copied)
    return root / "data"


def _ask_for_ipython():
    if importlib.util.find_spec("IPython") is None:
        raise ValueError("notebooks are run by IPython, which is not installed here: "
                         'pip install -e ".[course]"')


def grade_notebooks(paths: Sequence[str | Path], csv_path: str | Path | None = None, seconds: float = SECONDS,
                    memory: int = MEMORY) -> list[dict]:
    """Grade one notebook after the other, and print a line for each exercise; the CSV grows with each.

    A folder stands for its notebooks. A file that cannot be graded has one row, with the status "not
    gradable": the others are graded. An earlier CSV is replaced. Raises ValueError, and leaves it, if it
    holds something else than such rows, for a folder without notebooks, and where IPython is not installed.
    """
    _ask_for_ipython()
    rows, paths = [], [file for path in paths for file in _notebooks_of(path)]
    if csv_path is not None:
        read_rows(csv_path, COLUMNS)        # `--csv copies/*.ipynb` must not cost a student's copy
    for path in paths:
        for row in _rows_of(path, seconds, memory):
            what = f"{clean(row['notebook'])}  {row['exercise']}  {row['message']}"
            print(f"{row['status']:<15}{what}".rstrip())
            rows.append(row)
        write_rows(rows, COLUMNS, csv_path, None)
    return rows


def _notebooks_of(path):
    if not Path(path).is_dir():
        return [path]
    # names with a dot in front are what systems and archives put beside files
    files = sorted(file for file in Path(path).glob("*.ipynb") if file.is_file() and file.name[0] != ".")
    if not files:
        raise ValueError(f"{path} holds no notebook, *.ipynb")
    return files


def _rows_of(path, seconds, memory) -> Iterator[dict]:
    try:
        yield from grade_notebook(path, seconds, memory)
    except Exception as error:      # whatever one copy brings about, the others are graded
        message = str(error) if isinstance(error, ValueError | OSError) else first_line(error)
        yield {"notebook": spelt(path), "exercise": "", "status": "not gradable", "message": clean(message)}
