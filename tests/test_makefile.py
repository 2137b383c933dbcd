"""What `make` does before it runs anything: whether .venv can be used as it is."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[1] / "Makefile"
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture
def project(tmp_path):
    """A folder with a .venv in which all seems installed; make reads no more of it than these files."""
    folder = tmp_path / "project"
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name in ("pyproject.toml", "constraints.txt"):
        (folder / name).touch()
    (folder / ".venv" / "bin" / "pip").write_text(f"#!{folder}/.venv/bin/python3\nimport pip\n")
    (folder / ".venv" / "train").touch()
    return folder


def make(folder, *arguments):
    """make as typed in a folder, not as a child of the make that runs these tests, which it would tell."""
    of_a_child = ("MAKELEVEL", "MAKEFLAGS", "MFLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in of_a_child}
    return subprocess.run(["make", "-f", MAKEFILE, *arguments], cwd=folder, env=environment,
                          capture_output=True, text=True)


def test_an_environment_where_it_was_made_is_used_as_it_is(project):
    assert make(project, "-n", "train").stdout == ".venv/bin/mrla train\n"


@pytest.mark.parametrize("how", ["moved", "copied", "made with a long path"])
def test_an_environment_that_stands_elsewhere_is_made_anew(project, how):
    if how == "made with a long path":          # its scripts begin otherwise
        start = f"#!/bin/sh\n'''exec' {project}/.venv/bin/python3 \"$0\" \"$@\"\n"
        (project / ".venv" / "bin" / "pip").write_text(start)
        assert make(project, "-n", "train").stdout == ".venv/bin/mrla train\n"
    elsewhere = project.with_name("elsewhere")
    (shutil.copytree if how == "copied" else shutil.move)(project, elsewhere)
    done = make(elsewhere, "-n", "train")
    assert "-m venv --clear .venv" in done.stdout and "pip install" in done.stdout
    assert done.stdout.endswith(".venv/bin/mrla train\n")


def test_a_python_that_cannot_make_environments_is_named(project):
    (project / ".venv" / "bin" / "pip").unlink()
    done = make(project, "train", "PYTHON=false")
    assert done.returncode != 0 and "false must be Python 3.11 or newer" in done.stderr
    assert "apt install python3-venv" in done.stderr and "make train PYTHON=python3.12" in done.stderr
    assert len(done.stderr.splitlines()) == 2       # and make's own word that it stops


def test_there_is_a_sign_of_life_before_the_minutes_of_an_installation(project):
    python = project / ".venv" / "bin" / "python"
    python.write_text("#!/bin/sh\n[ \"$1\" = -c ] || echo installing: $@\n")
    python.chmod(0o755)
    mrla = project / ".venv" / "bin" / "mrla"
    mrla.symlink_to("python")
    (project / ".venv" / "train").unlink()
    lines = make(project, "train").stdout.splitlines()
    assert lines[0].startswith("Installing what this needs") and "minutes" in lines[0]
    installing = next(line for line in lines if line.startswith("installing:"))
    assert "--quiet" not in installing and lines[-1] == "installing: train"
