"""The house rules: who imports from whom, how long a module is, and what `import mrla_minimal` loads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mrla_minimal

PACKAGE = Path(mrla_minimal.__file__).parent
TESTS = Path(__file__).parent
FLOORS = {"shapes": 0, "boxes": 1, "targets": 1, "attention": 1, "layer_attention": 1, "channel_attention": 1,
          "controls": 2, "hosting": 3, "resnet": 4, "vit": 4, "looking": 5, "released": 5, "detector": 5}
MODULES = sorted(PACKAGE.rglob("*.py"))
# The doors stand on top: the public names, what comes before torch is imported, the way into the lab.
DOORS = {"__init__", "__main__", "_before_torch"}


def imported_names(path):
    """The dotted names that a module imports anywhere in it; a relative import would begin with a dot."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "mrla_minimal":
            yield from (f"mrla_minimal.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def test_the_subject_is_the_modules_of_the_table():
    assert {path.stem for path in PACKAGE.glob("*.py")} == {*FLOORS, *DOORS}


@pytest.mark.parametrize("name", FLOORS)
def test_a_module_imports_only_from_floors_below(name):
    for module in imported_names(PACKAGE / f"{name}.py"):
        if not module.startswith((".", "mrla_minimal")):
            continue
        package, _, imported = module.partition(".")
        assert package == "mrla_minimal" and imported in FLOORS, f"{name}.py imports {module}"
        assert FLOORS[imported] < FLOORS[name], f"{name}.py imports {imported}.py, which is no lower"


@pytest.mark.parametrize("name", FLOORS)
def test_a_module_of_the_subject_needs_torch_and_einops_alone(name):
    for module in imported_names(PACKAGE / f"{name}.py"):
        top = module.partition(".")[0]
        allowed = {"torch", "einops", "mrla_minimal"} | sys.stdlib_module_names
        assert top in allowed, f"{name}.py imports {module}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "family").glob("*.py")), ids=lambda path: path.stem)
def test_the_family_builds_on_the_subject_alone(path):
    for module in imported_names(path):
        package, _, imported = module.partition(".")
        assert package in {"torch", "einops", "mrla_minimal"} | sys.stdlib_module_names, module
        if package == "mrla_minimal":
            assert imported.partition(".")[0] in {*FLOORS, "family"}, f"{path.name} imports {module}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "lab").rglob("*.py")), ids=lambda path: path.stem)
def test_the_lab_does_not_import_the_course(path):
    """Except for the commands of whoever grades, which lead into the course from within a function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = [name for name in imported_names(path) if name.startswith((".", "mrla_minimal.course"))]
    if path.name == "cli_teach.py":
        at_its_top = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
        own = [name for name in own if name in at_its_top]
    assert own == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_is_read_in_ten_minutes(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300 and len(text.split()) <= 1_600, "split it by idea"


def test_tests_stand_in_folders_like_the_librarys():
    rooms = {path.parent.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")}
    for path in TESTS.rglob("test_*.py"):
        path = path.relative_to(TESTS)
        assert path.parent in rooms, f"{path} stands in no room of the library"


def test_importing_the_package_loads_neither_the_lab_nor_a_library_of_the_lab():
    # torch may load numpy or another of them by itself, so what torch brings does not count.
    code = ("import sys, torch, einops; before = set(sys.modules); import mrla_minimal; "
            "print(*sorted(set(sys.modules) - before))")
    path = [str(PACKAGE.parent), *sys.path]
    run = subprocess.run([sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}; " + code],
                         capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    loaded = run.stdout.split()
    assert "mrla_minimal.resnet" in loaded
    for name in ("matplotlib", "scipy", "PIL", "tqdm", "requests", "filelock", "platformdirs",
                 "mrla_minimal.lab"):
        assert not [module for module in loaded if module == name or module.startswith(f"{name}.")]


def test_public_names_are_importable_from_the_package():
    assert set(mrla_minimal.__all__) >= {
        "softmax_attention", "MultiHeadSelfAttention", "LayerAttention", "MRLABase", "MRLALight",
        "MRLALightReleased", "SqueezeExcitation", "EfficientChannelAttention", "cifar_resnet",
        "imagenet_resnet", "cifar_vit", "deit", "record_attention", "freeze_attention", "eca_kernel_size"}
    assert all(hasattr(mrla_minimal, name) for name in mrla_minimal.__all__)


def public_functions(path):
    """The functions and methods of a module that anyone may call, with their classes' names."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if getattr(node, "name", "_").startswith("_"):
            continue
        inside = node.body if isinstance(node, ast.ClassDef) else [node]
        for function in inside:
            name = getattr(function, "name", "_")
            if isinstance(function, ast.FunctionDef) and (name == "__init__" or not name.startswith("_")):
                yield f"{node.name}.{name}" if node is not function else name, function


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_every_public_function_says_its_types(path):
    for name, function in public_functions(path):
        given = function.args
        arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        untyped = {argument.arg for argument in arguments if argument and not argument.annotation}
        assert not untyped - {"self", "cls"}, f"{name}: {untyped}"
        assert function.returns or function.name == "__init__", f"{name} returns what?"


def test_no_two_test_files_have_one_name():
    """pytest imports them all as top-level modules: of two with one name it can take only one."""
    names = [path.name for path in TESTS.rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)
