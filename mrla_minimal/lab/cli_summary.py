"""`mrla suite summary` and `mrla suite tables`: what the committed records say, all suites at once."""

import argparse
from pathlib import Path

from mrla_minimal.lab.cli_parser import Outcome, json_option
from mrla_minimal.lab.cli_suite_options import check_out
from mrla_minimal.lab.evidence.committed import data_folder
from mrla_minimal.lab.evidence.overview import overview, overview_as_json, report_overview
from mrla_minimal.lab.evidence.tables import summaries, update_tables


def add_summary_commands(verbs: argparse._SubParsersAction) -> None:
    """Add the verbs of `mrla suite` that are about all suites together."""
    text = "every contrast of every suite with records, and what the suites say together"
    summary = verbs.add_parser("summary", help=text, description=f"{text[0].upper()}{text[1:]}.")
    summary.add_argument("--records", metavar="FOLDER",
                         help="the folder of the suites' records (default: data/results/)")
    summary.add_argument("--out", metavar="FIGURE.png", help="draw the primary contrasts there, too")
    summary.add_argument("--every", action="store_true", help="with --out: draw every contrast")
    json_option(summary)
    summary.set_defaults(function=run_summary)
    text = "make the tables in data/results/README.md anew from the records beside it"
    tables = verbs.add_parser("tables", help=text, description=f"{text[0].upper()}{text[1:]}.")
    tables.add_argument("file", nargs="?", metavar="FILE.md",
                        help="another Markdown file, with records beside it")
    json_option(tables)
    tables.set_defaults(function=run_tables)


def run_summary(arguments: argparse.Namespace) -> Outcome:
    check_out(arguments)
    if arguments.every and not arguments.out:
        raise ValueError("--every says what is drawn; it needs --out FIGURE.png")
    folder = Path(arguments.records) if arguments.records else data_folder() / "results"
    found = summaries(folder)
    if not found:
        raise ValueError(f"{folder} holds no records of any suite; to make some: mrla suite run NAME")
    if arguments.out:
        Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
    everything = overview(found)
    print(report_overview(everything))
    if arguments.out:
        from mrla_minimal.lab.summary_figure import plot_overview

        plot_overview(everything, arguments.out, arguments.every)
        print(f"\nfigure {arguments.out}")
    return 0, overview_as_json(everything)


def run_tables(arguments: argparse.Namespace) -> Outcome:
    path = Path(arguments.file) if arguments.file else data_folder() / "results" / "README.md"
    changed = update_tables(path)
    print(f"{path}: {'tables made anew' if changed else 'its tables are up to date'}")
    return 0, {"file": str(path), "changed": changed}
