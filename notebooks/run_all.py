"""Run every notebook from a fresh kernel and keep its new outputs in place: `make notebooks`.

    python notebooks/run_all.py [NOTEBOOK ...]          # default: all lessons, then all solutions

What an editor notes beside cells, tags and outputs is taken out, so that a diff shows what has changed.
A notebook that fails is left as it was; exit status 1 then.
"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
# The rest that Jupyter writes, versions above all, differs from machine to machine.
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def tidy(notebook: NotebookNode) -> None:
    """Leave no metadata but the kernel's name and the cells' tags, in place."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})


def run(path: Path) -> None:
    """Execute one notebook with its folder's lessons as the working directory, and write it back whole."""
    notebook = nbformat.read(path, as_version=4)
    tidy(notebook)      # first: a kernel of another name may not be there
    NotebookClient(notebook, timeout=600, record_timing=False, coalesce_streams=True,
                   resources={"metadata": {"path": str(HERE)}}).execute()
    tidy(notebook)
    part = path.with_name(path.name + ".part")
    nbformat.write(notebook, part)
    os.replace(part, path)


def main(arguments: list[str]) -> int:
    """Run the notebooks named, or all; the exit status."""
    # One thread: what the committed outputs were made with. Inline figures: an inherited Agg would show none.
    os.environ |= {"OMP_NUM_THREADS": "1", "MRLA_OFFLINE": "1",
                   "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    paths = [Path(name) for name in arguments]
    paths = paths or [*sorted(HERE.glob("*.ipynb")), *sorted(HERE.glob("solutions/*.ipynb"))]
    failed = 0
    for path in tqdm(paths, unit="notebook"):
        try:
            run(path)
        except Exception as error:      # of a cell, a dead kernel, a file that is no notebook: the others run
            failed += 1
            lines = str(error).strip().splitlines() or [type(error).__name__]
            print(f"{path}: not changed: {lines[-1]}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
