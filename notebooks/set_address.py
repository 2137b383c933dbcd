"""Write the repository's public address into every place that names it.

    python notebooks/set_address.py https://github.com/NAME/REPOSITORY

The address in pyproject.toml is the source: this changes it there, and with it every Colab badge and set-up
cell of the notebooks, and every link of README.md.
"""

import os
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
ADDRESS = re.compile(r"https://github\.com/([A-Za-z0-9-]+/[A-Za-z0-9_.-]+?)(?:\.git)?/?")


def address_of(root: str | Path = ROOT) -> str:
    """The project URL in pyproject.toml."""
    project = tomllib.loads((Path(root) / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"]


def files_that_name_it(root: str | Path = ROOT) -> list[Path]:
    root = Path(root)
    named = [root / "README.md", root / "CITATION.cff"]
    named += sorted(root.glob("notebooks/*.ipynb")) + sorted(root.glob("notebooks/solutions/*.ipynb"))
    named.append(root / "pyproject.toml")   # last: until then it still tells a second try what to look for
    return [path for path in named if path.exists()]


def set_address(address: str, root: str | Path = ROOT) -> list[Path]:
    """Replace the old address by `address`; returns what changed.

    Raises ValueError if it is no repository on GitHub.
    """
    match = ADDRESS.fullmatch(address)
    if match is None:
        raise ValueError(f"the address must be https://github.com/NAME/REPOSITORY, not {address!r}")
    old = ADDRESS.fullmatch(address_of(root)).group(1)
    # github.com/NAME/REPOSITORY in links, github/NAME/REPOSITORY in Colab's
    pattern = re.compile(r"(github(?:\.com)?/)" + re.escape(old) + r"(?![A-Za-z0-9_-])")
    changed = []
    for path in files_that_name_it(root):
        before = path.read_bytes().decode("utf-8")
        after = pattern.sub(lambda found: found.group(1) + match.group(1), before)
        if after != before:
            part = path.with_name(path.name + ".part")
            part.write_bytes(after.encode("utf-8"))
            os.replace(part, path)
            changed.append(path)
    return changed


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python notebooks/set_address.py https://github.com/NAME/REPOSITORY", file=sys.stderr)
        return 2
    try:
        changed = set_address(arguments[0])
    except ValueError as error:
        print(f"set_address: {error}", file=sys.stderr)
        return 2
    tests = "python -m pytest tests/course/test_notebooks.py"
    print(f"{len(changed)} files changed; run the tests of the notebooks: {tests}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
