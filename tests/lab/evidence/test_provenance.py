"""The commit that a record names is of this project, and of no repository that happens to surround it."""

import shutil
import subprocess

import pytest

from mrla_minimal.lab.evidence.provenance import commit_to_tell, source_commit, versions

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
OURS = '[project]\nname = "mrla-minimal"\n'


def git(folder, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True,
                          text=True)
    return done.stdout.strip()


@pytest.fixture
def make_repository(tmp_path):
    def make(name, files):
        """A repository with these files committed: {path: text}. (its folder, its commit)"""
        folder = tmp_path / name
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        git(folder, "init", "-q")
        git(folder, "add", ".")
        git(folder, "commit", "-q", "-m", "all")
        return folder, git(folder, "rev-parse", "HEAD")

    return make


def test_the_projects_own_commit_and_whether_the_package_was_changed(make_repository):
    folder, commit = make_repository("ours",
                                     {"pyproject.toml": OURS, "mrla_minimal/__init__.py": "", "notes.md": ""})
    package = folder / "mrla_minimal"
    assert source_commit(package) == commit
    (folder / "notes.md").write_text("not of the package")
    assert source_commit(package) == commit
    (package / "new.py").write_text("")
    assert source_commit(package) == f"{commit}+changes"


def test_a_project_inside_a_larger_repository_has_its_commit(make_repository):
    folder, commit = make_repository("all",
                                     {"a/pyproject.toml": OURS, "a/mrla_minimal/__init__.py": "", "b.md": ""})
    assert source_commit(folder / "a" / "mrla_minimal") == commit


@pytest.mark.parametrize("package", ["mrla_minimal", ".venv/lib/site-packages/mrla_minimal"],
                         ids=["copied", "installed"])
def test_a_repository_that_only_surrounds_the_package_is_not_named(make_repository, package):
    """Even one that tracks the package's files."""
    folder, _ = make_repository("theirs",
                                {"pyproject.toml": '[project]\nname = "theirs"\n',
                                 f"{package}/__init__.py": ""})
    assert source_commit(folder / package) is None


def test_a_copy_that_the_surrounding_repository_does_not_track_is_not_named(make_repository):
    folder, _ = make_repository("theirs", {"README": ""})
    package = folder / "downloads" / "mrla-minimal" / "mrla_minimal"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package.parent / "pyproject.toml").write_text(OURS)
    assert source_commit(package) is None


def test_what_git_is_told_of_another_repository_does_not_count(make_repository, monkeypatch):
    """A commit hook, say, sets GIT_DIR for all that it starts."""
    ours, commit = make_repository("ours", {"pyproject.toml": OURS, "mrla_minimal/__init__.py": ""})
    theirs, _ = make_repository("theirs", {"README": ""})
    monkeypatch.setenv("GIT_DIR", str(theirs / ".git"))
    assert source_commit(ours / "mrla_minimal") == commit


def test_a_copy_without_its_repository_has_the_commit_that_it_is_told(make_repository, tmp_path, monkeypatch):
    folder, commit = make_repository("ours", {"pyproject.toml": OURS, "mrla_minimal/__init__.py": "a = 1"})
    told = commit_to_tell(folder / "mrla_minimal")
    assert told.startswith(f"{commit}:")
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(".git"))
    monkeypatch.setenv("MRLA_COMMIT", told)
    assert source_commit(copy / "mrla_minimal") == commit
    (copy / "mrla_minimal" / "__init__.py").write_text("a = 2")
    assert source_commit(copy / "mrla_minimal") == f"{commit}+changes"
    (folder / "mrla_minimal" / "__init__.py").write_text("a = 2")
    assert source_commit(folder / "mrla_minimal") == f"{commit}+changes"        # a repository knows better
    monkeypatch.setenv("MRLA_COMMIT", commit_to_tell(folder / "mrla_minimal"))
    assert source_commit(copy / "mrla_minimal") == f"{commit}+changes"
    assert commit_to_tell(copy / "mrla_minimal") is None


def test_without_git_there_is_no_commit(make_repository, monkeypatch):
    ours, _ = make_repository("ours", {"pyproject.toml": OURS, "mrla_minimal/__init__.py": ""})
    monkeypatch.setenv("PATH", "")
    assert source_commit(ours / "mrla_minimal") is None
    assert set(versions()) == {"python", "torch", "numpy"}
