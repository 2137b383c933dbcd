"""What the site shows: the lessons that the folder holds, and the pages written around them.

Everything is read from the files of the repository, so a new notebook or module has its page without a word
here. Nothing is executed. Needs the standard library alone.
"""

import ast
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = Path(__file__).resolve().parent / "pages"

# The number of each part's first lesson; all after it belong to the part, up to the next one's first.
PARTS = {0: ("I", "Build"), 7: ("II", "Test"), 12: ("III", "Beyond")}
ROOMS = {"mrla_minimal": "The subject", "mrla_minimal.family": "Its relatives",
         "mrla_minimal.lab": "The lab: training, data, cost, evidence",
         "mrla_minimal.course": "The course: the quiz, its pictures, the exercises' checkers"}
# What is a page of the site, and what it is called there. Every other file is linked to in the repository.
MOVED = {"data/results/README.md": "evidence.md", "README.md#bibliography": "bibliography.md"}
# What people can play with: in which lesson, at the end of which section, and by which scripts.
EXPLORABLES = {"keeps": ("11_what_it_costs", "## The bill", ("keeps.js",)),
               "corridor": ("00_start_here", "## A corridor of eight rooms",
                            ("parts.js", "corridor_nets.js", "corridor.js")),
               "images": ("10_looking_inside", "## Part C · Does it matter what is chosen?",
                          ("parts.js", "images_nets.js", "images.js")),
               "square": ("14_what_a_layer_may_know", "## Part 3 · Eight memories, three questions",
                          ("parts.js", "corridor.js", "square_nets.js", "square.js"))}


@dataclass(frozen=True)
class Lesson:
    """One notebook as its first cell describes it."""

    path: Path
    number: str         # "03", "13a"
    title: str          # "Attention across layers"
    question: str
    minutes: str        # to study

    @property
    def part(self) -> int:
        """The number of its part's first lesson: a key of PARTS."""
        return max(first for first in PARTS if first <= int(re.match(r"\d+", self.number)[0]))

    @property
    def page(self) -> str:
        """Its page's name, without an ending."""
        return f"notebooks/{self.path.stem}"


def read_lesson(path: Path) -> Lesson:
    """Raises ValueError, naming the file, if its first cell lacks the title, the question or the time."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    head = "".join(cells[0]["source"]) if cells else ""
    title = re.match(r"# (\d+[a-z]?) (.+)\n+\*(.+)\*\n", head)
    minutes = re.search(r"^\*\*Time\*\* (\d+) minutes", head, re.MULTILINE)
    if title is None or minutes is None:
        raise ValueError(f"{path.name}: the first cell must begin with '# NN Title' and '*question*', "
                         f"and say '**Time** N minutes', not {head[:60]!r}")
    return Lesson(path, title[1], title[2], title[3], minutes[1])


def lessons(folder: Path = ROOT / "notebooks") -> list[Lesson]:
    """All lessons of a folder, in the order in which they are read."""
    return [read_lesson(path) for path in sorted(folder.glob("[0-9]*.ipynb"))]


# Links and pictures

def site_link(target: str, page: Path, address: str, root: Path = ROOT) -> str:
    """Where a link of the repository's file `page` leads on the site.

    target, as written there: "../data/results/README.md", "01_self_attention.ipynb#Quiz". What the site has
    no page of is linked to in the public repository, `address`.
    """
    if re.match(r"[a-z]+:|#|/", target):
        return target
    name, _, anchor = target.partition("#")
    file = (page.parent / name).resolve().relative_to(root.resolve()).as_posix()
    # JupyterLab keeps a heading's capitals and signs, GitHub and the site do not
    after = "#" + re.sub(r"[^\w-]", "", anchor).lower() if anchor else ""
    if f"{file}{after}" in MOVED:
        return "/" + MOVED[f"{file}{after}"]
    if file in MOVED:
        return f"/{MOVED[file]}{after}"
    module = re.fullmatch(r"(mrla_minimal/.+)\.py", file)
    if module:
        return f"/api/{module[1].replace('/', '.')}.rst"
    if re.fullmatch(r"notebooks/[^/]+\.(ipynb|md)", file):
        return f"/{file}{after}"
    return f"{address}/blob/main/{file}{after}"


def relink(text: str, page: Path, address: str, root: Path = ROOT) -> str:
    """A markdown text with each of its links as `site_link` says; pictures and code stay as they are."""
    def one(found):
        return found[0] if found["code"] else (
            f"{found['before']}({site_link(found['target'], page, address, root)})")
    pattern = r"(?P<code>```.*?```|`[^`\n]*`)|(?P<before>(?<!!)\[[^\]\n]+\])\((?P<target>[^)\s]+)\)"
    return re.sub(pattern, one, text, flags=re.DOTALL)


def plain_words(markdown: str) -> str:
    """A caption for who cannot see the figure: the markup, the links and the formulas' signs left out."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", markdown)
    return " ".join(re.sub(r"[*`$\\{}]", "", text).split())


def captions(cells: list[dict]) -> dict[int, str]:
    """{index of a cell that shows a picture: words for it}: its caption, else the title of its section."""
    found, heading = {}, ""
    for index, cell in enumerate(cells):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heading = (re.findall(r"^#+ (.+)$", source, re.MULTILINE) or [heading])[-1]
        elif any("image/png" in output.get("data", {}) for output in cell["outputs"]):
            below = "".join(cells[index + 1]["source"]) if index + 1 < len(cells) else ""
            caption = re.match(r"\*(?!\*)(.+?)(?<!\*)\*(?:\n|$)", below)
            found[index] = plain_words(caption[1]) if caption else f"Figure: {plain_words(heading)}"
    return found


def explorable(name: str, static: str) -> str:
    """The place in a page that its scripts fill; `static` leads from the page to them."""
    scripts = "".join(f'<script src="{static}/{script}" defer></script>' for script in EXPLORABLES[name][2])
    return (f'<div class="explorable" data-explorable="{name}"><p>This part needs JavaScript.</p></div>\n'
            f'{scripts}')


def with_explorables(cells: list[dict], lesson: str) -> list[dict]:
    """The cells of a lesson, and those to play with, each behind the last cell of its section.

    Raises ValueError if the section is not there.
    """
    cells = list(cells)
    for name, (where, heading, _) in EXPLORABLES.items():
        if where != lesson:
            continue
        headings = [(index, line) for index, cell in enumerate(cells) if cell["cell_type"] == "markdown"
                    for line in "".join(cell["source"]).split("\n") if re.match("##? ", line)]
        lines = [line for _, line in headings]
        if heading not in lines:
            raise ValueError(f"{lesson} has no section {heading!r}, where {name!r} would stand")
        following = [index for index, _ in headings[lines.index(heading) + 1:]]
        place = following[0] if following else len(cells)
        source = f"**Try it.**\n\n{explorable(name, '../_static')}"
        cells.insert(place, {"cell_type": "markdown", "id": name, "metadata": {}, "source": source})
    return cells


def notebook_for_the_site(text: str, page: Path, address: str, root: Path = ROOT) -> str:
    """A notebook's JSON as the site shows it: figures with words, links to pages, no badge, set-up folded.

    The badge's picture would be loaded from another host; the page has a button for Colab instead.
    """
    notebook = json.loads(text)
    cells = notebook["cells"]
    for index, words in captions(cells).items():
        cells[index]["metadata"]["mystnb"] = {"image": {"alt": words}}
    for cell in cells:
        if cell["cell_type"] == "markdown":
            source = re.sub(r"\[!\[[^\]]*\]\([^)]*\)\]\([^)]*\)\n*", "", "".join(cell["source"]))
            cell["source"] = relink(source, page, address, root)
        elif "setup" in cell["metadata"].get("tags", []):
            cell["metadata"]["tags"].append("hide-cell")
    notebook["cells"] = with_explorables(cells, page.stem)
    # the set-up cell is no plain Python
    notebook["metadata"]["language_info"]["pygments_lexer"] = "ipython3"
    return json.dumps(notebook)


# Pages made of what stands elsewhere

def section(markdown: str, heading: str) -> str:
    """What stands under `heading` ("## Glossary"), up to the next heading of its rank or above.

    Raises ValueError if there is none.
    """
    rank = heading.split()[0]
    found = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{len(rank)}}} |\Z)", markdown,
                      re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"no section {heading!r}")
    return found[1].strip()


def table_of(chosen: list[Lesson]) -> str:
    rows = [f"| [{one.number} {one.title}](/{one.page}.ipynb) | {one.question} | {one.minutes} |"
            for one in chosen]
    return "\n".join(["| notebook | the question it answers | minutes |", "|---|---|---|", *rows])


def contents(caption: str, pages: list[str]) -> str:
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```"])


def parts(course: list[Lesson]) -> dict[int, list[Lesson]]:
    """The lessons of each part that has any."""
    chosen = {first: [lesson for lesson in course if lesson.part == first] for first in PARTS}
    return {first: of_part for first, of_part in chosen.items() if of_part}


def two_hours(readme: str, course: list[Lesson]) -> list[Lesson]:
    """The lessons that the README names for who has two hours only."""
    sentence = re.search(r"\*\*Two hours only\?\*\* Read the text of ([\d, and]+)", readme)[1]
    return [lesson for lesson in course if lesson.number in re.findall(r"\d\d", sentence)]


def planted_choice(results: str) -> dict[str, str]:
    """The numbers of the corridor's contrast as the committed table has them: n, mean, low, high."""
    row = (r"^mrla-base - uniform \* +corridor-width4 "
           r"+(?P<n>\d+) +(?P<mean>\S+) +(?P<low>\S+) to (?P<high>\S+) ")
    found = re.search(row, results, re.MULTILINE)
    if found is None:
        raise ValueError("data/results/README.md has no row 'mrla-base - uniform *' of corridor-width4")
    return found.groupdict()


def modules(root: Path = ROOT) -> dict[str, list[str]]:
    """The library's public modules, {room: dotted names}, each in the deepest room of ROOMS it stands in."""
    rooms: dict[str, list[str]] = {room: [] for room in ROOMS}
    for path in sorted((root / "mrla_minimal").rglob("*.py")):
        names = path.relative_to(root).with_suffix("").parts
        names = names[:-1] if names[-1] == "__init__" else names
        dotted = ".".join(names)
        if not names[-1].startswith("_") and ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))):
            room = max((room for room in ROOMS if dotted == room or dotted.startswith(f"{room}.")), key=len)
            rooms[room].append(dotted)
    return {room: names for room, names in rooms.items() if names}


def first_sentence(module: str, root: Path = ROOT) -> str:
    path = root / Path(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).split("\n")[0]


def write_api(folder: Path, root: Path) -> None:
    folder.mkdir()
    index = [(PAGES / "api.md").read_text(encoding="utf-8").rstrip()]
    for room, names in modules(root).items():
        index += [f"## {ROOMS[room]}", "| module | |\n|---|---|\n" + "\n".join(
            f"| [`{name}`]({name}.rst) | {first_sentence(name, root)} |" for name in names),
            contents(ROOMS[room], [f"{name.removeprefix('mrla_minimal.')} <{name}>" for name in names])]
        for name in names:
            title = f"{name}\n{'=' * len(name)}\n"
            text = f"{title}\n.. automodule:: {name}\n   :members:\n   :ignore-module-all:\n"
            (folder / f"{name}.rst").write_text(text, encoding="utf-8")
    (folder / "index.md").write_text("\n\n".join(index) + "\n", encoding="utf-8")


def write_sources(folder: Path, address: str, printed: bool, root: Path = ROOT) -> None:
    """Write what Sphinx reads into `folder`, which is made anew.

    address: of the public repository. printed: whether the cheat sheet will lie beside its page as a PDF.
    """
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "notebooks").mkdir(parents=True)
    course = lessons(root / "notebooks")
    readme = (root / "README.md").read_text(encoding="utf-8")
    results = (root / "data/results/README.md").read_text(encoding="utf-8")
    start = json.loads(course[0].path.read_text(encoding="utf-8"))["cells"]
    words = "\n\n".join("".join(cell["source"]) for cell in start if cell["cell_type"] == "markdown")
    made = {"parts": "\n\n".join(f"## {' '.join(PARTS[first])}\n\n{table_of(chosen)}"
                                 for first, chosen in parts(course).items()),
            "contents": "\n\n".join(contents(" ".join(PARTS[first]), [lesson.page for lesson in chosen])
                                    for first, chosen in parts(course).items()),
            "two hours": table_of(two_hours(readme, course)),
            "glossary": relink(section(words, "## Glossary"), course[0].path, address, root),
            "symbols": relink(section(words, "## Symbols"), course[0].path, address, root),
            "instructors": relink(section(readme, "## For instructors"), root / "README.md", address, root),
            "address": address, **{name: explorable(name, "_static") for name in EXPLORABLES},
            **planted_choice(results)}
    for path in PAGES.glob("*.md"):
        if path.name != "api.md":
            text = re.sub(r"\{\{(.+?)\}\}", lambda found: made[found[1]], path.read_text(encoding="utf-8"))
            (folder / path.name).write_text(text, encoding="utf-8")
    for lesson in course:
        shutil.copy(lesson.path, folder / "notebooks")
    shutil.copytree(root / "notebooks/figures", folder / "notebooks/figures")
    for sheet in (root / "notebooks").glob("*.md"):
        text = relink(sheet.read_text(encoding="utf-8"), sheet, address, root)
        if printed and sheet.stem == "cheat_sheet":
            link = '<a href="cheat_sheet.pdf">The same on two printed pages (PDF)</a>'
            text = text.replace("\n\n", f'\n\n<p class="only-on-screen">{link}</p>\n\n', 1)
        (folder / "notebooks" / sheet.name).write_text(text, encoding="utf-8")
    (folder / "evidence.md").write_text(
        relink(results, root / "data/results/README.md", address, root), encoding="utf-8")
    shutil.copy(root / "data/results/summary.png", folder)
    write_api(folder / "api", root)
