"""What the built files show without a browser: nothing is loaded from elsewhere, nothing is missing."""

import json
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
from mathml import mathml
from sources import lessons, modules

from conftest import HTML, SITE, built_pages

pytestmark = pytest.mark.skipif(not HTML.exists(), reason="the site is not built: make site")
LINKS = {"stylesheet", "icon", "preload", "modulepreload", "preconnect", "dns-prefetch", "prefetch"}
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "object": "data",
         "embed": "src", "use": "href"}
ELSEWHERE = re.compile(r"(https?:)?//")


class Reader(HTMLParser):
    """Collects what a page loads, and its pictures' words."""

    def __init__(self, text: str):
        super().__init__()
        self.loaded, self.pictures, self.styles, self.inside_style = [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.inside_style = tag == "style"
        if tag == "link" and LINKS & set(given.get("rel", "").split()):
            self.loaded.append(given["href"])
        elif given.get(LOADS.get(tag)):
            self.loaded.append(given[LOADS[tag]])
        self.loaded += re.findall(r"(\S+)(?: [\d.]+[wx])?", given.get("srcset") or "")
        self.styles.append(given.get("style") or "")
        if tag == "img":
            self.pictures.append((given["src"], given.get("alt")))

    def handle_data(self, data):
        if self.inside_style:
            self.styles.append(data)
            self.inside_style = False


def loaded_by_style(text):
    return re.findall(r"url\(\s*['\"]?([^'\")]+)", text) + re.findall(r"@import\s+['\"]([^'\"]+)", text)


def test_no_page_loads_anything_from_another_host(name):
    page = HTML / name
    reader = Reader(page.read_text(encoding="utf-8"))
    loaded = reader.loaded + [target for style in reader.styles for target in loaded_by_style(style)]
    assert len(loaded) > 5
    for target in loaded:
        assert not ELSEWHERE.match(target), f"{name} loads {target}"
        if not target.startswith(("data:", "#")):
            file = page.parent / unquote(target.partition("?")[0].partition("#")[0])
            assert file.exists(), f"{name} loads {target}, which is not there"


def test_no_style_sheet_loads_anything_from_another_host():
    sheets = sorted(HTML.rglob("*.css"))
    assert len(sheets) > 3
    for sheet in sheets:
        for target in loaded_by_style(sheet.read_text(encoding="utf-8")):
            assert not ELSEWHERE.match(target), f"{sheet.name} loads {target}"
    assert "stix-two-math.woff" in (HTML / "_static/site.css").read_text(encoding="utf-8")
    assert (HTML / "_static/stix-two-math.woff").stat().st_size < 300_000


def test_every_picture_has_words(name):
    for source, words in Reader((HTML / name).read_text(encoding="utf-8")).pictures:
        # "" is right for an ornament, such as the theme's buttons
        assert words is not None and (words or "/_static/" in f"/{source}"), f"{name}: {source}"
        assert not re.search(r"\.(png|svg)|_images|<Figure", words), f"{name}: {source} is called {words!r}"


def test_every_lesson_and_every_module_has_a_page():
    wanted = {f"{lesson.page}.html" for lesson in lessons()}
    wanted |= {f"api/{name}.html" for names in modules().values() for name in names}
    wanted |= {f"{path.stem}.html" for path in (SITE / "pages").glob("*.md") if path.stem != "api"}
    assert wanted | {"evidence.html", "notebooks/cheat_sheet.html", "search.html"} <= set(built_pages())


def test_a_lessons_page_has_its_figures_and_its_folds():
    for lesson in lessons():
        text = (HTML / f"{lesson.page}.html").read_text(encoding="utf-8")
        cells = json.loads(lesson.path.read_text(encoding="utf-8"))["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        shown = sum("image/png" in output.get("data", {}) for output in outputs)
        assert len(re.findall(r"<img[^>]*_images/", text)) == shown, lesson.page
        prose = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        folded = sum(source.count("<details>") for source in prose)
        article = re.search(r"<article.*</article>", text, re.DOTALL)[0]
        assert article.count("<details><summary>") == folded, lesson.page
        assert f"blob/main/notebooks/{lesson.path.name}" in text, "no button for Colab"


def test_no_formula_is_left_in_tex(name):
    text = (HTML / name).read_text(encoding="utf-8")
    text = re.sub(r"<(script|pre|code)\b.*?</\1>", "", text, flags=re.DOTALL)
    assert not re.findall(r"\$[^$<\n]*\\[a-z]+[^$<\n]*\$|\\(?:frac|sqrt|lambda|odot|mathrm)\b", text), name


def test_the_cheat_sheet_prints_on_two_pages():
    pdf = HTML / "notebooks/cheat_sheet.pdf"
    if not pdf.exists():
        pytest.skip("no browser printed it when the site was built")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf.read_bytes())) == 2


def test_a_formula_is_laid_out_and_its_number_stands_beside_it():
    shown = mathml(r"O^t = \lambda_o^t \odot O^{t-1} \tag{8}", display=True)
    assert '<span class="eqno">(8)</span>' in shown and "tag" not in shown
    assert shown.count("<math") == 1 and "&#x02299;" in shown or "⊙" in shown
    assert "monospaced" in mathml(r"\mathtt{now}", display=False)
