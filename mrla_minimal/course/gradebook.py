"""`mrla grade NOTEBOOK...`: what a student's copy of a lesson has solved, exercise by exercise.

The copy runs cell by cell in a process of its own (apart/process.py says what that holds back), by IPython,
the engine of Jupyter's kernels. The exercises' checkers run here, on answers that stay over there: what the
copy prints, or does to a checker that it has imported, counts for nothing.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from mrla_minimal.course.apart.process import Ended
from mrla_minimal.course.apart.remote import Remote
from mrla_minimal.course.exercises import check_calls, lesson_of, without_checks
from mrla_minimal.course.submissions import MEMORY, clean, read_rows, spelt, write_rows
from mrla_minimal.lab.device import plain_defaults
from mrla_minimal.lab.files import is_repository, repository_root
from mrla_minimal.lab.own_files import Told

SECONDS = 600.0
COLUMNS = ("notebook", "exercise", "status", "message")
# What a notebook reads of the repository that it came with: its records, its data, and where they are
READ = ("pyproject.toml", "data")
# Checkers that call a class's own methods, or change what they have handed to it: no array tells them enough.
LOOKED_INTO = {"check_open_gates"}


def grade_notebook(path: str | Path, seconds: float = SECONDS, memory: int = MEMORY,
                   show: Callable[[str], None] | None = None) -> list[dict]:
    """A row for each exercise of a copy's lesson: notebook, exercise (its checker), status and message.

    The status is "not attempted", "wrong", "passed", or "not judged": the process has ended before, or the
    checker is one of LOOKED_INTO. An exercise whose checker the copy calls more than once is judged by the
    last call. Raises ValueError for a file that is no notebook, and for one without exercises.
    """
    cells = _code_cells(path)
    calls = [[call for call in check_calls(source)] for source in cells]
    lesson = lesson_of({call.checker for found in calls for call in found})
    if not lesson:
        raise ValueError(f"{path} has no exercises: it calls no checker of the course")
    rows = {name: ("not attempted", f"the notebook never calls {name}") for name in lesson}
    ended = None
    with Remote(seconds, memory) as remote, plain_defaults():
        try:
            _lay_out(remote.process.folder)
            remote.start_the_clock()
            for source, found in zip(tqdm(cells, desc=Path(path).name, unit="cell", leave=False), calls,
                                     strict=True):
                error = remote.ask("run_cell", source=without_checks(source))
                for call in (call for call in found if call.checker in lesson):
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


def _judged(remote, call, error, checker):
    if isinstance(error, str):
        return "wrong", f"the cell raises {error}"
    try:
        answer = remote.ask("value", expression=call.answer)["value"]
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
    """Let the copy find what lessons read, as if it lay in the repository."""
    beside = Path(__file__).resolve().parents[2]
    root = repository_root() or (beside if is_repository(beside) else None)
    with suppress(OSError):         # Windows may forbid links: lessons then say that there are no records
        for name in READ if root else ():
            (folder / name).symlink_to(root / name)


def grade_notebooks(paths: Sequence[str | Path], csv_path: str | Path | None = None, seconds: float = SECONDS,
                    memory: int = MEMORY) -> list[dict]:
    """Grade one notebook after the other, and print a line for each exercise; the CSV grows with each.

    A file that cannot be graded has one row, with the status "not gradable": the others are graded. An
    earlier CSV is replaced. Raises ValueError, and leaves it, if it holds something else than such rows.
    """
    rows = []
    if csv_path is not None:
        read_rows(csv_path, COLUMNS)        # `--csv copies/*.ipynb` must not cost a student's copy
    for path in paths:
        for row in _rows_of(path, seconds, memory):
            what = f"{clean(row['notebook'])}  {row['exercise']}  {row['message']}"
            print(f"{row['status']:<15}{what}".rstrip())
            rows.append(row)
        write_rows(rows, COLUMNS, csv_path, None)
    return rows


def _rows_of(path, seconds, memory) -> Iterator[dict]:
    try:
        yield from grade_notebook(path, seconds, memory)
    except (ValueError, OSError) as error:
        yield {"notebook": spelt(path), "exercise": "", "status": "not gradable",
               "message": clean(str(error))}
