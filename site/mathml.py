"""Formulas as MathML, made once when the site is built: no script, no picture, nothing to be fetched.

Browsers lay MathML out by themselves (Chromium since 109, Firefox, Safari), screen readers read it, and it
prints. What it needs is one mathematical font, which the site brings along: see `write_font`.
"""

import html
import logging
import re
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont
from latex2mathml.converter import convert

# MathML Core has no monospaced letters of its own.
MONOSPACED = re.compile(r'mathvariant="monospace"')
# Latin, Greek, punctuation, arrows, operators, brackets, and the slanted letters of names of one letter.
RANGES = ((0x20, 0x7E), (0xA0, 0xFF), (0x2B0, 0x36F), (0x370, 0x3FF), (0x2010, 0x2057), (0x2190, 0x22FF),
          (0x2308, 0x230B), (0x23B4, 0x23E1), (0x27E8, 0x27EB), (0x1D434, 0x1D467), (0x1D6E2, 0x1D71B))


def mathml(formula: str, display: bool) -> str:
    """A formula in TeX's notation as a <math> element; of a display, its \\tag{4} stands beside it as (4)."""
    tag = re.search(r"\\tag\{([^}]*)\}", formula)
    formula = formula.replace(tag[0], "") if tag else formula
    element = convert(formula.strip(), display="block" if display else "inline")
    element = MONOSPACED.sub('mathvariant="normal" class="monospaced"', element)
    number = f'<span class="eqno">({html.escape(tag[1])})</span>' if tag else ""
    # the word joiner keeps a comma that follows on the same line
    return f'<div class="formula">{element}{number}</div>' if display else f"{element}\u2060"


def visit_math(translator, node) -> None:
    from docutils.nodes import SkipNode
    translator.body.append(mathml(node.astext(), display=False))
    raise SkipNode


def visit_math_block(translator, node) -> None:
    from docutils.nodes import SkipNode
    translator.body.append(mathml(node.astext(), display=True))
    raise SkipNode


def write_font(folder: Path) -> None:
    """Write stix-two-math.woff: STIX Two Math (SIL Open Font License 1.1), the characters of RANGES alone.

    Its table of how formulas are laid out stays whole. The font comes with the package ziamath.
    """
    import ziamath.fonts
    font = TTFont(Path(ziamath.fonts.__file__).parent / "STIXTwoMath-Regular.ttf")
    logging.getLogger("fontTools.subset").setLevel(logging.WARNING)     # Sphinx would show its every step
    subsetter = subset.Subsetter(subset.Options(layout_features=["ssty"]))      # letters drawn to be small
    subsetter.populate(unicodes=[code for first, last in RANGES for code in range(first, last + 1)])
    subsetter.subset(font)
    font.flavor = "woff"
    folder.mkdir(parents=True, exist_ok=True)
    font.save(folder / "stix-two-math.woff")


def setup(app) -> dict:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
