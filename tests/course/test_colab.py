"""The notebooks' set-up cell, as Colab would run it: where torch is, and this package is not."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import venv
from pathlib import Path

import nbformat
import pytest

from notebooks.set_address import address_of

ROOT = Path(__file__).parents[2]
SESSION = """
    import importlib.metadata, json, os, sys, types

    def torch_here():
        import torch
        return [torch.__version__, torch.__file__, os.stat(torch.__file__).st_mtime]

    def packages_of_this_environment():
        return sorted(found.metadata["Name"] for found in importlib.metadata.distributions()
                      if str(found.locate_file("")).startswith(sys.prefix))

    if "colab" in sys.argv:
        sys.modules["google.colab"] = types.ModuleType("google.colab")
    from IPython.core.interactiveshell import InteractiveShell
    shell = InteractiveShell.instance()
    before = {"torch": torch_here(), "packages": packages_of_this_environment()}
    cell = sys.stdin.read()
    for attempt in range(2):            # a student may run it twice
        shell.run_cell(cell).raise_error()
    after = {"torch": torch_here(), "packages": packages_of_this_environment(), "folder": os.getcwd()}
    if "colab" in sys.argv:
        shell.run_cell("from mrla_minimal.course.checks import self_attention, coursework").raise_error()
        after["package"] = sys.modules["mrla_minimal"].__file__
    with open(os.environ["REPORT"], "w") as file:
        json.dump({"before": before, "after": after}, file)
"""


def set_up_cell():
    path = sorted(ROOT.glob("notebooks/*.ipynb"))[0]
    return next(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")


def run_session(python, folder, *arguments, **environment):
    """Run the set-up cell in an IPython session of its own; returns what the session reports."""
    home = folder / "home"
    home.mkdir()
    report = folder / "report.json"
    environment = os.environ | {"HOME": str(home), "REPORT": str(report)} | environment
    environment.pop("PYTHONPATH", None)
    command = [python, "-c", textwrap.dedent(SESSION), *arguments]
    result = subprocess.run(command, input=set_up_cell(), cwd=folder, env=environment, timeout=500,
                            capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(report.read_text()), home


def published(folder):
    """A git repository that holds the working tree as it is now, as if it were pushed."""
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for name in ("mrla_minimal", "notebooks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "--quiet"], ["add", "."], [*identity, "commit", "--quiet", "-m", "all"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder.as_uri()


def fresh_environment(folder):
    """A virtual environment that sees this one's packages, torch among them, by a path file."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.check_output([python, "-c", ask], text=True).strip()
    seen = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    Path(packages, "seen.pth").write_text("\n".join(seen) + "\n")
    # Python 3.11 puts its own old setuptools there, which would hide the newer one
    shutil.rmtree(Path(packages, "setuptools"), ignore_errors=True)
    for old in Path(packages).glob("setuptools-*"):
        shutil.rmtree(old)
    return python


def test_elsewhere_the_set_up_cell_does_nothing(tmp_path):
    report, home = run_session(sys.executable, tmp_path)
    assert report["after"]["folder"] == str(tmp_path.resolve())
    assert not (home / "mrla-minimal").exists()
    assert report["before"]["packages"] == report["after"]["packages"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Colab is Linux; the cell uses its shell")
def test_on_colab_it_fetches_the_course_and_leaves_torch_alone(tmp_path):
    (tmp_path / "published").mkdir()
    address = published(tmp_path / "published")
    python = fresh_environment(tmp_path / "environment")
    report, home = run_session(
        python, tmp_path, "colab",
        GIT_CONFIG_COUNT="2", GIT_CONFIG_KEY_0=f"url.{address}.insteadOf", GIT_CONFIG_VALUE_0=address_of(),
        GIT_CONFIG_KEY_1="protocol.https.allow", GIT_CONFIG_VALUE_1="never",
        PIP_NO_INDEX="1", PIP_NO_BUILD_ISOLATION="0", PIP_DISABLE_PIP_VERSION_CHECK="1",
        PIP_CONFIG_FILE=os.devnull,
    )
    before, after = report["before"], report["after"]
    assert "mrla-minimal" not in before["packages"]
    assert after["packages"] == sorted([*before["packages"], "mrla-minimal"])
    assert after["torch"] == before["torch"]
    assert after["folder"] == str((home / "mrla-minimal" / "notebooks").resolve())
    assert Path(after["package"]).is_relative_to(tmp_path / "environment")
    assert (home / "mrla-minimal" / "pyproject.toml").exists()
