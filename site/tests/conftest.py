"""The built site, and a browser to look at it with."""

import sys
from pathlib import Path

import pytest

SITE = Path(__file__).resolve().parents[1]
HTML = SITE.parent / "build/site/html"
sys.path.insert(0, str(SITE))


def built_pages() -> list[str]:
    """Every page of the built site, by its path; what the theme leaves in _static is no page."""
    names = (path.relative_to(HTML).as_posix() for path in HTML.rglob("*.html"))
    return sorted(name for name in names if not name.startswith("_"))


def pytest_generate_tests(metafunc):
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", built_pages())


@pytest.fixture(scope="session")
def browser():
    """A Chromium or Chrome of this machine, driven by playwright, which brings none along."""
    from build import find_browser
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: make .venv/site")
    path = find_browser()
    if path is None:
        pytest.skip("no Chromium or Chrome is installed (Debian: apt install chromium)")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=path)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser):
    """A page, with what went wrong while it was used: opened(width) -> (page, list of complaints)."""
    contexts = []

    def new(width, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, offline=True, **options)
        contexts.append(context)
        page, complaints = context.new_page(), []
        page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
        page.on("request", lambda request: request.url.startswith(("file:", "data:", "blob:"))
                or complaints.append(f"elsewhere: {request.url}"))
        return page, complaints

    yield new
    for context in contexts:
        context.close()
