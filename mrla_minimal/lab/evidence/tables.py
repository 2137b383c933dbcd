"""The tables of the committed suites inside a Markdown file, made anew in place.

The file's own text says where: a table is the fenced block right below one of these lines,

    <!-- mrla suite summary -->
    <!-- mrla suite report NAME -->
    <!-- interventions NAME -->

which a reader of the page does not see. Where the text shows summary.png, the figure of all suites beside it
is drawn anew, too.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mrla_minimal.lab.evidence.blocks import load_stops
from mrla_minimal.lab.evidence.contrasts import Summary, summarise
from mrla_minimal.lab.evidence.declared import SUITES
from mrla_minimal.lab.evidence.intervention_table import report_interventions
from mrla_minimal.lab.evidence.overview import overview, report_overview
from mrla_minimal.lab.evidence.records import interventions_path, load_interventions, load_records
from mrla_minimal.lab.evidence.report import report
from mrla_minimal.lab.files import replace_file

FIGURE = "summary.png"


@dataclass(frozen=True)
class Table:
    """A table and its place: below `marker`; without one, below the table of the marker `follows`; without
    that, at the end under `title` and `about`.
    """

    marker: str
    text: str
    title: str
    about: str
    follows: str | None = None


def summaries(folder: str | Path) -> list[Summary]:
    """The Summary of every declared suite that has records in `folder`, in the order of declaration."""
    paths = {name: Path(folder) / f"{name}.jsonl" for name in SUITES}
    return [summarise(load_records(path), SUITES[name], load_stops(path, name))
            for name, path in paths.items() if path.exists()]


def tables(found: Sequence[Summary], folder: str | Path) -> Iterator[Table]:
    """The tables of these suites, and of the interventions on their nets that `folder` has."""
    if found:
        yield Table("<!-- mrla suite summary -->", report_overview(overview(found), primary_only=True),
                    "All suites at once", "Every primary contrast, and what the suites say together.")
    for summary in found:
        name, about = summary.suite, SUITES[summary.suite].about
        marker = f"<!-- mrla suite report {name} -->"
        yield Table(marker, report(summary), name, about)
        interventions = load_interventions(interventions_path(Path(folder) / f"{name}.jsonl"))
        if interventions:
            yield Table(f"<!-- interventions {name} -->", report_interventions(interventions), name, about,
                        follows=marker)


def with_tables(text: str, found: Iterable[Table]) -> str:
    """A Markdown text with these tables in their places. ValueError for one that has two."""
    for table in found:
        block = f"{table.marker}\n```\n{table.text}\n```\n"
        pattern = _place(table.marker)
        places = len(pattern.findall(text))
        before = table.follows and _place(table.follows).search(text)
        if places > 1:
            raise ValueError(f"{table.marker} stands in the text {places} times: a table has one place")
        if places:
            text = pattern.sub(lambda _, block=block: block, text)
        elif before:
            text = f"{text[: before.end()]}\n{block}{text[before.end() :]}"
        else:
            text = "\n\n".join([text.rstrip(), f"## {table.title}\n\n{table.about}", block])
    return text


def _place(marker: str) -> re.Pattern:
    """What finds the table below a marker, empty or not, with its marker."""
    return re.compile(re.escape(marker) + r"\n```\n(?:.*?\n)??```\n", re.DOTALL)


def update_tables(path: str | Path) -> bool:
    """Make the tables and the figure of a Markdown file anew; whether its text has changed.

    They are of the records that lie beside it. Each file is replaced whole or not at all. Raises OSError if
    one cannot be read or written, ValueError as `summarise` does.
    """
    path = Path(path)
    old, found = path.read_text(encoding="utf-8"), summaries(path.parent)
    new = with_tables(old, tables(found, path.parent))
    if new != old:
        replace_file(path, lambda file: file.write(new.encode("utf-8")))
    if f"({FIGURE})" in new:
        from mrla_minimal.lab.summary_figure import plot_overview

        plot_overview(overview(found), path.with_name(FIGURE))
    return new != old
