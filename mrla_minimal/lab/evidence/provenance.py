"""Where a record comes from: the versions of what computed it, and the commit of this project."""

import os
import platform
import subprocess
from pathlib import Path

import numpy
import torch

from mrla_minimal.lab.files import is_repository

PACKAGE = Path(__file__).resolve().parents[2]       # the folder mrla_minimal
# What git would go by in place of the folder that it is asked about: a commit hook sets them.
ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY")


def versions() -> dict[str, str]:
    """Of Python, torch and numpy."""
    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}


def source_commit(package: Path = PACKAGE) -> str | None:
    """The commit of the repository that the package belongs to, with "+changes" if it was changed since.

    It belongs to a repository that tracks its files beside this project's pyproject.toml. A package that was
    installed, or copied into another project, has None: a repository that only surrounds it says nothing.
    """
    if not is_repository(package.parent):
        return None
    files = "pyproject.toml", f"{package.name}/__init__.py"
    tracked = _git(package.parent, "ls-files", "--error-unmatch", "--", *files)
    commit = _git(package.parent, "rev-parse", "HEAD")
    changes = _git(package.parent, "status", "--porcelain", "--", package.name)
    if tracked is None or commit is None or changes is None:
        return None
    return commit + ("+changes" if changes else "")


def _git(folder: Path, *arguments: str) -> str | None:
    """What a git command prints in a folder; None if it fails, or where there is no git."""
    environment = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, env=environment, capture_output=True,
                              text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
