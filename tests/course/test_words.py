"""How the lessons speak: words, captions, the width of code; and nothing used before it is taught."""

import ast
import re
import shlex

from test_notebooks import (
    LESSONS,
    ROOT,
    code_cells,
    has_figure,
    lessons,
    markdown,
    number,
    parsed,
    read,
    tags,
)

import mrla_minimal
from mrla_minimal.hosting import LAYER_ATTENTIONS
from mrla_minimal.lab import cli

# The notebook in which a name of the library is built, or (the hosts and tools) first explained.
TAUGHT = {
    "softmax_attention": "01", "MultiHeadSelfAttention": "01", "cifar_resnet": "03",
    "LayerAttention": "05", "MRLABase": "05", "ResidualBlock": "05", "MRLALight": "06",
    "SqueezeExcitation": "08", "EfficientChannelAttention": "08", "eca_kernel_size": "08",
    "DepthwiseValue": "08", "DepthwiseGated": "08", "DepthwiseCarry": "08", "UniformMean": "08",
    "DepthwiseCarryReleased": "08", "MRLALightReleased": "06",
    "record_attention": "10", "freeze_attention": "10", "imagenet_resnet": "11", "rename_weights": "11",
    "cifar_vit": "12", "deit": "12", "Detector": "13b",
}
# The same as TAUGHT by the names under which a host takes them.
BY_NAME = {
    "layer": "05", "mrla-base": "05", "mrla-light": "06", "mrla-light-released": "06", "depthwise": "08",
    "depthwise-gated": "08", "depthwise-carry": "08", "depthwise-carry-released": "08", "uniform": "08",
    "se": "08", "eca": "08", "dla-base": "15", "dla-base-reread": "15", "dla-light": "15",
    "sideways": "17", "acla": "17",
}
WORDS_LINE = (
    "**Words and symbols** [glossary](00_start_here.ipynb#Glossary), "
    "[symbols](00_start_here.ipynb#Symbols)"
)
# What WORDS says otherwise: a map is a feature map, f a projection, layer attention the family.
AVOIDED = ["learned map", "linear map", "attention map", "layer attention, Eq. 4", "layer attention (Eq. 4)",
           "depthwise value", "depthwise control"]


def names_used(cell):
    """Every name of the library that a code cell reads, and every attention that it asks a host for."""
    for node in ast.walk(parsed(cell)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mrla_minimal"):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.keyword) and node.arg in ("layer_attention", "channel_attention"):
            if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
                yield node.value.value


def test_every_name_of_the_library_has_its_notebook():
    assert set(mrla_minimal.__all__) <= set(TAUGHT)
    assert set(TAUGHT.values()) | set(BY_NAME.values()) <= {number(path) for path in LESSONS}


@lessons
def test_nothing_of_the_library_is_used_before_it_is_taught(path):
    known = TAUGHT | BY_NAME
    early = {name for cell in code_cells(read(path)) for name in names_used(cell)
             if known.get(name, "00") > number(path)}
    assert not early, f"taught later: {sorted((known[name], name) for name in early)}"


@lessons
def test_it_links_to_the_glossary_and_the_symbols(path):
    first = read(path).cells[0].source
    if number(path) == "00":
        lines = markdown(read(path)).splitlines()
        assert {"## Glossary", "## Symbols"} <= set(lines)
    else:
        assert WORDS_LINE in first


@lessons
def test_each_figure_has_a_caption_of_fewer_than_40_words(path):
    cells = read(path).cells
    for cell, following in zip(cells, [*cells[1:], None], strict=True):
        if cell.cell_type == "code" and has_figure(cell):
            assert following is not None and following.cell_type == "markdown", f"{cell.id} has no caption"
            caption = following.source.split("\n\n")[0].strip()
            whole = re.fullmatch(r"\*[^*].*[^*]\*", caption, re.DOTALL)
            assert whole, f"{following.id} does not begin with a caption in italics"
            assert len(caption.split()) < 40, f"{following.id}: {len(caption.split())} words"


@lessons
def test_its_figures_are_in_the_courses_style(path):
    notebook = read(path)
    source = "\n".join(cell.source for cell in code_cells(notebook))
    if any(has_figure(cell) for cell in code_cells(notebook)):
        assert source.count("plots.use_style()") == 1
    for setting in ("dpi=", "fontsize="):
        assert setting not in source, setting
    for width in re.findall(r"figsize=\((\d+(?:\.\d+)?),", source):
        assert float(width) <= 9, f"a figure {width} inches wide"


@lessons
def test_its_lines_of_code_are_shorter_than_100_characters(path):
    for cell in code_cells(read(path)):
        if "setup" not in tags(cell):
            for line in cell.source.splitlines():
                assert len(line) < 100, f"{cell.id}: {line}"


@lessons
def test_it_keeps_to_the_courses_words(path):
    text = markdown(read(path)) + "\n".join(cell.source for cell in code_cells(read(path)))
    for word in AVOIDED:
        assert word.lower() not in text.lower(), word
    # a base of natural logarithms beside a width e; a transpose that looks like the number of layers
    assert not re.search(r"\be\^\{?[-\\a-z0-9(]", text), "write \\exp(...)"
    assert not re.search(r"[)\]W]\^\{?T\b", text), "write ^\\top"


# The cheat sheet

CHEAT_SHEET = (ROOT / "notebooks" / "cheat_sheet.md").read_text(encoding="utf-8")


def test_the_cheat_sheet_names_what_there_is():
    names = re.search(r"`layer_attention=` takes (.*?), or a class of your own", CHEAT_SHEET, re.DOTALL)[1]
    assert set(re.findall(r'`"(.*?)"`', names)) == set(LAYER_ATTENTIONS)
    memories = CHEAT_SHEET[CHEAT_SHEET.index("## The memories") : CHEAT_SHEET.index("## On feature maps")]
    classes = re.findall(r"^\| .*? \| `(\w+)` \| ", memories, re.MULTILINE)
    assert classes == ["LayerAttention", "MRLABase", "MRLALight", "MRLALightReleased"]
    assert set(classes) <= set(mrla_minimal.__all__)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", CHEAT_SHEET):
        assert (ROOT / "notebooks" / target).exists(), target


def test_the_cheat_sheets_commands_are_commands():
    commands = re.findall(r"`mrla (.*?)`", CHEAT_SHEET[CHEAT_SHEET.index("## Commands") :])
    assert len(commands) > 5
    for command in commands:
        cli.build_parser().parse_args(shlex.split(command.replace("FILE.py", "mine.py")))
