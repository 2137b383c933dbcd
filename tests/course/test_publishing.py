"""What a published copy needs: its address mends itself, its citation reads, its wheel works elsewhere."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

import mrla_minimal
from notebooks.set_address import address_of

ROOT = Path(__file__).parents[2]
WORKFLOWS = ROOT / ".github" / "workflows"
ADDRESS = "https://github.com/someone/their-mrla"


def git(folder, *arguments):
    names = {f"GIT_{who}_{what}": f"nobody{'@localhost' * (what == 'EMAIL')}"
             for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(["git", *arguments], cwd=folder, env=os.environ | names, check=True,
                          capture_output=True, text=True, timeout=120)
    return done.stdout


def steps_of(workflow, job):
    return yaml.safe_load((WORKFLOWS / f"{workflow}.yml").read_text(encoding="utf-8"))["jobs"][job]["steps"]


def run_in(folder, script):
    """A step of a workflow, for a repository that is at ADDRESS."""
    script = script.replace("python ", f"{sys.executable} ", 1)
    subprocess.run(["bash", "-euc", script], cwd=folder, env=os.environ | {"ADDRESS": ADDRESS}, check=True,
                   capture_output=True, timeout=120)


@pytest.fixture
def published(tmp_path):
    """A clone of a repository that holds little more than what names the address."""
    clone = tmp_path / "clone"
    (clone / "notebooks").mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "CITATION.cff", "notebooks/set_address.py",
                 "notebooks/00_start_here.ipynb"):
        shutil.copy(ROOT / name, clone / name)
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch", "main", "origin")
    git(clone, "init", "--quiet", "--initial-branch", "main")
    git(clone, "add", ".")
    git(clone, "commit", "--quiet", "--message", "all")
    git(clone, "remote", "add", "origin", str(tmp_path / "origin"))
    git(clone, "push", "--quiet", "--set-upstream", "origin", "main")
    return clone


@pytest.mark.skipif(os.name != "posix" or not shutil.which("git"), reason="it is a shell's work and git's")
def test_a_published_copy_writes_its_own_address_once(published):
    steps = steps_of("address", "address")
    for _ in range(2):
        run_in(published, steps[-1]["run"])
    assert git(published, "log", "--format=%s", "origin/main").splitlines() == [
        f"This repository's own address: {ADDRESS}", "all"]
    assert address_of(published) == ADDRESS and git(published, "status", "--short") == ""
    old = address_of().removeprefix("https://github.com/")
    for name in ("README.md", "CITATION.cff", "notebooks/00_start_here.ipynb"):
        text = (published / name).read_text(encoding="utf-8")
        assert old not in text and "someone/their-mrla" in text


@pytest.mark.skipif(os.name != "posix" or not shutil.which("git"), reason="it is a shell's work and git's")
def test_the_site_of_a_published_copy_names_the_copy(published):
    """A push starts both workflows, and the commit of `address` none: the one for the site sets it too."""
    steps = steps_of("site", "build")
    scripts = [step.get("run", "") for step in steps]
    (number,) = [number for number, script in enumerate(scripts) if "set_address" in script]
    assert number < scripts.index("make test-site")
    assert steps[number]["env"] == {"ADDRESS": "https://github.com/${{ github.repository }}"}
    run_in(published, scripts[number])
    assert address_of(published) == ADDRESS


def test_the_citation_names_this_version_and_this_address():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == mrla_minimal.__version__ and cited["repository-code"] == address_of()
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "CHANGELOG.md"])
def test_what_they_point_to_is_there(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w./]+\.(?:py|md))`", text)) | set(re.findall(r"\]\(([^)]+)\)", text))
    places = (ROOT, ROOT / "mrla_minimal", ROOT / "tests" / "course")
    for path in named - {"my_attention.py"}:
        if "NN" not in path:
            assert any((place / path).exists() for place in places), path


def test_the_lecture_plans_name_lessons_that_are_there():
    text = (ROOT / "notebooks" / "lecture_plan.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in text.splitlines() if re.match(r"\| \d+ \|", line)]
    named = {number for row in rows for number in re.findall(r"\b\d\d\b", row[2])}
    there = {path.name[:2] for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")}
    assert {f"{number:02}" for number in range(12)} <= named <= there


@pytest.mark.slow
def test_the_wheel_works_from_another_folder(tmp_path):
    source = tmp_path / "source"        # building leaves folders beside what it builds
    shutil.copytree(ROOT / "mrla_minimal", source / "mrla_minimal",
                    ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path),
                    str(source)], check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--target", str(tmp_path / "site"), str(wheel)],
                   check=True, capture_output=True, timeout=300)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "own.py").write_text(textwrap.dedent("""
        import mrla_minimal

        class Own(mrla_minimal.MRLALight):
            pass
    """), encoding="utf-8")

    def mrla(*arguments):
        code = "import sys; from mrla_minimal.__main__ import main; sys.exit(main(sys.argv[1:]))"
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1",
                                    "HOME": str(elsewhere), "MRLA_OFFLINE": "1"}
        return subprocess.run([sys.executable, "-c", code, *arguments], cwd=elsewhere, env=environment,
                              capture_output=True, text=True, timeout=600)

    doctor = mrla("doctor")
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    assert "[WARN] records and checkpoints: not here" in doctor.stdout
    costs = mrla("cost", "--layer-attention", "mrla-light")
    assert costs.returncode == 0 and "273,808" in costs.stdout
    report = mrla("suite", "report", "cifar10-thin56-cpu")
    assert report.returncode == 2 and report.stderr.count("\n") == 1, report.stderr
    checked = mrla("check", "own.py", "--seconds", "20")      # the process finds the wheel's package too
    assert "[OK]   built" in checked.stdout, checked.stderr
    handed = mrla("assignment", "04", "--out", "handout")
    assert handed.returncode == 2 and "the notebooks are not here" in handed.stderr
