"""Code of your own, in a Python file: a layer attention to grade, train and compare, or a suite to run.

A configuration holds names only, so a file's attention goes by a name too, `FILE.py` or `FILE.py:CLASS`. Once it is part
of a configuration the name ends in the file's check sum, `FILE.py:CLASS@0123456789ab`: weights that one version of a file
was trained to are nothing to another version, and no run may go on, or be read, as if they were. (A run keeps a copy of the
version that it was trained with.) The sum is of the file itself, with any line ends, and not of what it imports.
"""

import hashlib
import re
import sys
import traceback
import types
from pathlib import Path

from torch import nn

from mrla_minimal.lab.files import replace_file

_NAME = re.compile(r"(?P<file>.+\.py)(:(?P<class>\w+))?(@(?P<sum>[0-9a-f]{12}))?")
_MODULES = {}       # (path, sum) -> the module that this version of the file makes: each runs once in a process


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
    if parts["sum"]:
        return name
    path, here = _existing(parts["file"]), Path.cwd()
    if path.resolve().is_relative_to(here):     # one spelling, and no folder of this machine
        path = path.resolve().relative_to(here)
    return f"{path.as_posix()}{':' if parts['class'] else ''}{parts['class'] or ''}@{_read(path)[1]}"


def short_name(name):
    """What to call it in a folder's name or a table: its class if named, else its file."""
    parts = _NAME.fullmatch(name)
    return parts["class"] or Path(parts["file"]).stem


def load_attention(name, run_dir=None):
    """A callable channels -> module, from a name with a check sum: that version of the file, or of its copy in a run's folder.

    Raises ValueError if neither is there or the file does not run, and, when called, if its class is not built so.
    """
    parts = _NAME.fullmatch(name)
    path = Path(parts["file"])
    module = _MODULES.get((path.resolve(), parts["sum"]))       # what this process has loaded is at hand, whatever the file is now
    if module is None:
        found = {place: _read(place) for place in _places(path, run_dir) if place.is_file()}
        place = next((place for place, (_, now) in found.items() if now == parts["sum"]), None)
        if place is None:
            now = f"was changed since (its sum is {next(iter(found.values()))[1]} now)" if found else f"is not there ({path.absolute()})"
            raise ValueError(f"{name} is wanted, but {path} {now}: train anew, or bring that version back")
        module = _run(place, *found[place])
    attention = _class_of(module, path, parts["class"])

    def build(channels):
        try:
            return attention(channels)
        except Exception as error:
            raise ValueError(f"{path}: {attention.__name__} must be built as {attention.__name__}(channels), further arguments with "
                             f"defaults; with {channels} channels that raises {where(error, module)}") from error

    return build


def keep_copy(name, run_dir):
    """Put the version of the file that is trained into its run's folder, whole, where `load_attention` looks too."""
    parts = _NAME.fullmatch(name)
    source, now = _read(_existing(parts["file"]))
    if now == parts["sum"]:     # if not, it was changed this moment: the process has what it loaded, and there is no copy
        replace_file(_places(parts["file"], run_dir)[-1], lambda file: file.write(source))


def _places(path, run_dir):
    return [Path(path), *([] if run_dir is None else [Path(run_dir) / Path(path).name])]


def load_class(path, class_name=None):
    """The nn.Module class of a Python file.

    Raises ValueError if the file is not there or does not run, or if it is not clear which class is meant.
    """
    path = _existing(path)
    return _class_of(_run(path, *_read(path)), path, class_name)


def load_one(path, kind):
    """The one object of a class that a Python file makes. ValueError as `load_class`, or unless it is exactly one."""
    path = _existing(path)
    found = {id(value): value for value in vars(_run(path, *_read(path))).values() if isinstance(value, kind)}
    if len(found) != 1:
        raise ValueError(f"{path} must make one {kind.__name__}, not {len(found)}")
    return found.popitem()[1]


def first_line(error):
    """An exception on one line, its type first."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def where(error, module=None):
    """An exception on one line, with the line of the own file (any, if `module` is None) that it comes from."""
    files = {own.__file__ for own in ([module] if module else _MODULES.values())}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    return first_line(error) + (f" ({frames[-1].filename}, line {frames[-1].lineno}, in {frames[-1].name})" if frames else "")


def _existing(path):
    path = Path(path)
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(f"{path} must be a Python file, *.py, that exists")
    return path


def _read(path):
    """(source, check sum) of one reading: what is run is what was summed. Line ends do not count: git may change them."""
    source = path.read_bytes().replace(b"\r\n", b"\n")
    return source, hashlib.sha256(source).hexdigest()[:12]


def _run(path, source, check_sum):
    """The module that a file makes. It stays importable by its name, which torch.compile asks for."""
    key = path.resolve(), check_sum
    if key in _MODULES:
        return _MODULES[key]
    module = types.ModuleType(f"own_{path.stem}_{hashlib.sha256(str(key).encode()).hexdigest()[:12]}")
    module.__file__ = str(path)
    folder = str(key[0].parent)
    sys.path.insert(0, folder)      # what lies beside the file may be imported, as if it were run
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, str(path), "exec"), vars(module))      # by hand: a cached .pyc may be of a version a second older
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise ValueError(f"{path} does not run: {first_line(error)}") from error
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)     # for what it imports later
    _MODULES[key] = module
    return module


def _class_of(module, path, class_name):
    there = {key: value for key, value in vars(module).items()
             if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == module.__name__}
    if class_name is None and len(there) == 1:
        return next(iter(there.values()))
    if class_name in there:
        return there[class_name]
    listed = ", ".join(there) or "none"
    if class_name is None:
        raise ValueError(f"{path} must hold one nn.Module class, or one must be named ({path}:CLASS); its classes: {listed}")
    raise ValueError(f"{path}:{class_name} must name an nn.Module class of that file ({listed})")
