"""Where a record comes from: the versions of what computed it, and the commit of this project."""

import hashlib
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

    A copy that was sent without its repository has what $MRLA_COMMIT says, the text that `commit_to_tell`
    gave where the repository is: that commit, and "+changes" if the files here are not those.
    """
    if not is_repository(package.parent):
        return None
    return _commit_by_git(package) or _told_commit(package)


def commit_to_tell(package: Path = PACKAGE) -> str | None:
    """COMMIT:SUM, for $MRLA_COMMIT where a copy of this package goes without its repository."""
    commit = _commit_by_git(package)
    return f"{commit}:{_sum_of(package)}" if commit else None


def _told_commit(package: Path) -> str | None:
    commit, _, sum_there = os.environ.get("MRLA_COMMIT", "").partition(":")
    changed = sum_there != _sum_of(package) and not commit.endswith("+changes")
    return commit + "+changes" * changed if commit else None


def _sum_of(package: Path) -> str:
    """The first 16 hex digits of a SHA-256 of all of the package's Python files, names included."""
    whole = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        whole.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return whole.hexdigest()[:16]


def _commit_by_git(package: Path) -> str | None:
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
