"""Code of your own, in a Python file: a layer attention to grade, train and compare, or a suite to run.

A configuration holds names only, so a file's attention goes by a name too, `FILE.py` or `FILE.py:CLASS`. Once it is part
of a configuration the name ends in the file's check sum, `FILE.py:CLASS@0123456789ab`: weights that one version of a file
was trained to are nothing to another version, and no run may go on, or be read, as if they were.
"""

import functools
import hashlib
import importlib.util
import re
import sys
from pathlib import Path

from torch import nn

_NAME = re.compile(r"(?P<file>.+\.py)(:(?P<class>\w+))?(@(?P<sum>[0-9a-f]{12}))?")


def is_own(name):
    """Whether a layer attention's name is one of a file."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def split_name(name):
    """(file, class or None) of such a name; of any other text, (text, None)."""
    parts = _NAME.fullmatch(name)
    return (parts["file"], parts["class"]) if parts else (name, None)


def with_sum(name):
    """The name with its file's check sum; one that has a sum already is left as it is. ValueError if the file is not there."""
    parts = _NAME.fullmatch(name)
    return name if parts["sum"] else f"{name}@{_sum_of(_existing(parts['file']))}"


def short_name(name):
    """What to call it in a folder's name or a table: its class if named, else its file."""
    parts = _NAME.fullmatch(name)
    return parts["class"] or Path(parts["file"]).stem


def load_attention(name):
    """The class that a name with a check sum stands for. ValueError if its file is not there, does not run, or was changed."""
    parts = _NAME.fullmatch(name)
    path = _existing(parts["file"])
    if _sum_of(path) != parts["sum"]:
        raise ValueError(f"{path} was changed since it was named {name} (its sum is {_sum_of(path)} now): "
                         "train anew, or bring that version back")
    return load_class(path, parts["class"])


def load_class(path, class_name=None):
    """The nn.Module class of a Python file.

    Raises ValueError if the file is not there or does not run, or if it is not clear which class is meant.
    """
    names = _run(_existing(path))
    there = {key: value for key, value in names.items()
             if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == names["__name__"]}
    if class_name is None and len(there) == 1:
        return next(iter(there.values()))
    if class_name in there:
        return there[class_name]
    listed = ", ".join(there) or "none"
    if class_name is None:
        raise ValueError(f"{path} must hold one nn.Module class, or one must be named ({path}:CLASS); its classes: {listed}")
    raise ValueError(f"{path}:{class_name} must name an nn.Module class of that file ({listed})")


def load_one(path, kind):
    """The one object of a class that a Python file makes. ValueError as `load_class`, or unless it is exactly one."""
    found = [value for value in _run(_existing(path)).values() if isinstance(value, kind)]
    if len(found) != 1:
        raise ValueError(f"{path} must make one {kind.__name__}, not {len(found)}")
    return found[0]


def first_line(error):
    """An exception on one line, its type first."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _existing(path):
    path = Path(path)
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(f"{path} must be a Python file, *.py, that exists")
    return path


def _sum_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _run(path):
    return _run_once(path.resolve(), _sum_of(path), str(path))


@functools.cache
def _run_once(path, _sum, shown):
    """The names that a file makes; it runs once in a process, and again only if it was changed."""
    name = f"coursework_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))       # what lies beside the file may be imported, as if it were run; later imports too
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{shown} does not run: {first_line(error)}") from error
    finally:
        del sys.modules[name]
    return vars(module)
