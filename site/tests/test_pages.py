"""Every page in a real browser, opened from disk: no error, no request elsewhere, nothing that sticks out."""

from pathlib import Path

import pytest

from conftest import HTML

pytestmark = pytest.mark.skipif(not HTML.exists(), reason="the site is not built: make site")
WIDTHS = (360, 1280)
KINDS = ("index.html", "notebooks/03_attention_across_layers.html", "evidence.html", "glossary.html",
         "the_corridor.html", "which_layers.html", "who_must_know.html")
# What sticks out of the window and lies in no box of its own that can be scrolled: it would be cut off.
OVERFLOW = """() => {
  const width = document.documentElement.clientWidth, whole = document.querySelector(".bd-article-container");
  const scrolls = part => part !== whole &&
    (/auto|scroll/.test(getComputedStyle(part).overflowX) || scrolls(part.parentElement));
  const out = [...whole.querySelectorAll("*")].filter(part =>
    part.getBoundingClientRect().right > width + 1 && part.getBoundingClientRect().width && !scrolls(part));
  return out.slice(0, 5).map(part => `${part.tagName}: ${part.textContent.trim().slice(0, 60)}`)
    .concat(document.documentElement.scrollWidth > width ? ["the page"] : []);
}"""


def address(name: str) -> str:
    return Path(HTML / name).as_uri()


def test_a_page_loads_and_nothing_sticks_out(opened, name):
    page, complaints = opened(WIDTHS[0])
    page.goto(address(name))
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate(OVERFLOW) == [], f"at {width} pixels"
    assert complaints == []


def serious_faults(page):
    from axe_playwright_python.sync_playwright import Axe
    return [f"{fault['id']}: {fault['nodes'][0]['html'][:200]} ({len(fault['nodes'])} places)"
            for fault in Axe().run(page).response["violations"] if fault["impact"] in ("serious", "critical")]


def test_axe_finds_no_serious_fault(opened, name):
    page, _ = opened(1280)
    page.goto(address(name))
    assert serious_faults(page) == []


@pytest.mark.parametrize("kind", KINDS)
def test_axe_finds_no_serious_fault_in_the_dark_nor_on_a_telephone(opened, kind):
    page, _ = opened(360, color_scheme="dark")
    page.goto(address(kind))
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert serious_faults(page) == []


def test_the_search_finds_a_word(opened):
    page, complaints = opened(1280)
    page.goto(address("search.html") + "?q=corridor")
    page.wait_for_selector("#search-results li a", timeout=30_000)
    assert complaints == []
