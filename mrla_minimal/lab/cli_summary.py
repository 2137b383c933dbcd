"""`mrla suite tables`: what the committed records say, all suites at once."""

import argparse
from pathlib import Path
from typing import Any

from mrla_minimal.lab.evidence.committed import data_folder
from mrla_minimal.lab.evidence.tables import update_tables


def add_summary_commands(verbs: argparse._SubParsersAction) -> None:
    """Add the verbs of `mrla suite` that are about all suites together."""
    text = "make the tables in data/results/README.md anew from the records beside it"
    tables = verbs.add_parser("tables", help=text, description=f"{text[0].upper()}{text[1:]}.")
    tables.add_argument("file", nargs="?", metavar="FILE.md",
                        help="another Markdown file, with records beside it")
    tables.add_argument("--json", action="store_true", help="print one JSON object, and all else to stderr")
    tables.set_defaults(function=run_tables)


def run_tables(arguments: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    path = Path(arguments.file) if arguments.file else data_folder() / "results" / "README.md"
    changed = update_tables(path)
    print(f"{path}: {'tables made anew' if changed else 'its tables are up to date'}")
    return 0, {"file": str(path), "changed": changed}
