"""Run every notebook from a fresh kernel and keep its new outputs in place: `make notebooks`.

    python notebooks/run_all.py [NOTEBOOK ...]          # default: all lessons, then all solutions

A notebook that fails is left as it was; exit status 1 then.
"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from tqdm import tqdm

HERE = Path(__file__).resolve().parent


def run(path: Path) -> None:
    """Execute one notebook with its folder's lessons as the working directory, and write it back whole."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, record_timing=False, coalesce_streams=True,
                   resources={"metadata": {"path": str(HERE)}}).execute()
    notebook.metadata["language_info"] = {"name": "python"}      # the rest differs from machine to machine
    part = path.with_name(path.name + ".part")
    nbformat.write(notebook, part)
    os.replace(part, path)


def main(arguments: list[str]) -> int:
    # One thread: what the committed outputs were made with. An Agg set elsewhere would show no figure inline.
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "MRLA_OFFLINE": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    everything = [*sorted(HERE.glob("*.ipynb")), *sorted(HERE.glob("solutions/*.ipynb"))]
    paths = [Path(name) for name in arguments] or everything
    failed = 0
    for path in tqdm(paths, unit="notebook"):
        try:
            run(path)
        except (CellExecutionError, OSError, nbformat.reader.NotJSONError) as error:
            failed += 1
            print(f"{path}: not changed: {str(error).strip().splitlines()[-1]}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
