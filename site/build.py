"""Build the web site from the committed notebooks and records: `make site`, or `python site/build.py`.

    python site/build.py [--out FOLDER]         # default: build/site; the pages are in FOLDER/html

Nothing is executed and nothing is fetched. Where a Chromium or Chrome is installed, it also prints the cheat
sheet to notebooks/cheat_sheet.pdf beside the pages. Exit status 1 if Sphinx warns: a link that leads nowhere.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "notebooks")]

from mathml import write_font  # noqa: E402
from set_address import address_of  # noqa: E402
from sources import write_sources  # noqa: E402

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> str | None:
    """The path of an installed Chromium or Chrome."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def print_page(browser: str, page: Path, pdf: Path) -> None:
    """Print a built page to a PDF. Raises RuntimeError with the browser's own words if none comes out."""
    pdf.unlink(missing_ok=True)
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer",
               f"--print-to-pdf={pdf}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if not pdf.exists():
        raise RuntimeError(f"{browser} printed no {pdf.name}: {done.stderr.strip()[-300:]}")


def build(out: Path) -> int:
    """Build the site into out/html; returns Sphinx's exit status."""
    from sphinx.cmd.build import build_main
    browser = find_browser()
    write_sources(out / "source", address_of(), printed=browser is not None)
    shutil.rmtree(out / "html", ignore_errors=True)
    # -E: pages are made from files that Sphinx does not watch
    status = build_main(["-b", "html", "-c", str(HERE), "-E", "-q", "-W", "--keep-going",
                         "-d", str(out / "doctrees"), str(out / "source"), str(out / "html")])
    if status == 0:
        write_font(out / "html/_static")
        if browser is None:
            print("no Chromium or Chrome is installed: the cheat sheet has no PDF", file=sys.stderr)
        else:
            sheet = out / "html/notebooks/cheat_sheet.html"
            print_page(browser, sheet, sheet.with_suffix(".pdf"))
        print(f"open {out / 'html/index.html'}")
    return status


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Build the web site.")
    parser.add_argument("--out", type=Path, default=HERE.parent / "build/site", metavar="FOLDER")
    return build(parser.parse_args(arguments).out.resolve())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
