"""The tables of the committed suites inside a Markdown file, made anew in place.

The file's own text says where: a table is the fenced block right below one of these lines,

    <!-- mrla suite report NAME -->
    <!-- interventions NAME -->

which a reader of the page does not see.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from mrla_minimal.lab.evidence.contrasts import summarise
from mrla_minimal.lab.evidence.declared import SUITES
from mrla_minimal.lab.evidence.intervention_table import report_interventions
from mrla_minimal.lab.evidence.records import interventions_path, load_interventions, load_records
from mrla_minimal.lab.evidence.report import report
from mrla_minimal.lab.files import replace_file


def suite_tables(folder: str | Path) -> Iterator[tuple[str, str]]:
    """(marker, table) of every declared suite that has records in `folder`, in the order of declaration."""
    for name, suite in SUITES.items():
        path = Path(folder) / f"{name}.jsonl"
        if path.exists():
            yield f"<!-- mrla suite report {name} -->", report(summarise(load_records(path), suite))
            interventions = load_interventions(interventions_path(path))
            if interventions:
                yield f"<!-- interventions {name} -->", report_interventions(interventions)


def with_tables(text: str, folder: str | Path) -> str:
    """A Markdown text with each suite's tables as the records in `folder` have them now.

    What has no marker in the text yet is added at its end, under the suite's name.
    """
    for marker, table in suite_tables(folder):
        block = f"{marker}\n```\n{table}\n```\n"
        pattern = re.compile(re.escape(marker) + r"\n```\n.*?\n```\n", re.DOTALL)
        found = len(pattern.findall(text))
        if found > 1:
            raise ValueError(f"{marker} stands in the text {found} times: a table has one place")
        if found:
            text = pattern.sub(lambda _, block=block: block, text)
        else:
            name = marker.split()[-2]
            section = f"## {name}\n\n{SUITES[name].about}\n"
            text = "\n\n".join([text.rstrip(), *([] if section in text else [section.rstrip()]), block])
    return text


def update_tables(path: str | Path) -> bool:
    """Make the tables in a Markdown file anew from the records that lie beside it; whether any has changed.

    The file is replaced whole or not at all. Raises OSError if it cannot be read or written, ValueError as
    `summarise` does.
    """
    old = Path(path).read_text(encoding="utf-8")
    new = with_tables(old, Path(path).parent)
    if new != old:
        replace_file(path, lambda file: file.write(new.encode("utf-8")))
    return new != old
