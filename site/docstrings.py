"""The library's docstrings are plain prose, and Sphinx wants reStructuredText: from the one to the other.

A paragraph stays one. One whose every line is indented, or in which gaps make columns, is a program or a
table, and is kept as it was typed. In one with hanging lines, each line that is not indented begins an item;
so does each line that begins with a star.
"""

import re
import textwrap


def inline(text: str) -> str:
    """`code` in double backticks, and every sign that would be markup made a plain one."""
    plain_and_code = re.split(r"`+([^`]+)`+", " ".join(text.split()))
    escaped = [piece if index % 2 else re.sub(r"[\\*|`]|_(?!\w)", r"\\\g<0>", piece)
               for index, piece in enumerate(plain_and_code)]
    # "\ " sets code apart from a letter beside it, and is not shown
    return "".join(f"\\ ``{piece}``\\ " if index % 2 else piece for index, piece in enumerate(escaped))


def as_items(lines: list[str]) -> list[str]:
    """Hanging or starred lines as a list: what is indented goes on with the item before it."""
    items: list[str] = []
    for line in lines:
        if line.startswith(" ") and items:
            items[-1] += " " + line.strip()
        else:
            items.append(line.removeprefix("* "))
    return [part for item in items for part in (f"* {inline(item)}", "")]


def restructured(lines: list[str]) -> list[str]:
    """A docstring's lines as reStructuredText."""
    result: list[str] = []
    for paragraph in re.split(r"\n\s*\n", textwrap.dedent("\n".join(lines)).strip("\n")):
        rows = paragraph.split("\n")
        indented = [row.startswith(" ") for row in rows]
        if all(indented) or any(re.search(r"\S {2,}\S", row) for row in rows):
            block = ["::", "", *textwrap.indent(textwrap.dedent(paragraph), "    ").split("\n")]
            if len(result) > 1 and result[-2].startswith("    "):
                block = block[2:]               # one program goes on after an empty line
            result += [*block, ""]
        elif any(indented) or rows[0].startswith("* "):
            result += as_items(rows)
        else:
            result += [inline(paragraph), ""]
    return result


def process(app, what, name, obj, options, lines) -> None:
    lines[:] = restructured(lines)


def process_signature(app, what, name, obj, options, signature, returned) -> tuple[str | None, str | None]:
    """Types by their own names: "list[~mrla_minimal.boxes.Box]" is list[Box]."""
    return tuple(text and re.sub(r"~(?:\w+\.)+", "", text) for text in (signature, returned))


def setup(app) -> dict:
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-process-signature", process_signature)
    return {"parallel_read_safe": True}
