"""Code of your own, in a Python file: a layer attention to grade, train and compare, or a suite to run.

A configuration holds names only, so a file's attention goes by a text too, `FILE.py` or `FILE.py:CLASS`. Once
it is part of a configuration the text ends in the file's check sum, `FILE.py:CLASS@0123456789ab`: weights
that one version of a file was trained to are nothing to another version, and no run may go on, or be read, as
if they were. (A run keeps a copy of the version that it was trained with.) The sum is of the file itself,
with any line ends, and not of what it imports.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from torch import nn

from mrla_minimal.lab.files import replace_file
from mrla_minimal.lab.own_files import run_file, running_again, where

T = TypeVar("T")
_TEXT = re.compile(r"(?P<path>.+\.py)(:(?P<class_name>\w+))?(@(?P<sum>[0-9a-f]{12}))?")
# (path, sum) -> that module: what a configuration names runs once in a process
_VERSIONS = {}


# A layer attention as a value

@dataclass(frozen=True)
class OwnAttention:
    """A layer attention of your own: its file, its class, and the check sum of the file's version.

    Without `class_name` it is the file's only class, without `sum` the version that is there. `str` gives its
    text.
    """

    path: str
    class_name: str | None = None
    sum: str | None = None

    def __post_init__(self):
        if not _TEXT.fullmatch(str(self)):
            raise ValueError("an attention of one's own must be FILE.py, "
                             f"FILE.py:CLASS or FILE.py:CLASS@SUM, not {self}")

    def __str__(self) -> str:
        name = f":{self.class_name}" if self.class_name else ""
        return f"{self.path}{name}" + (f"@{self.sum}" if self.sum else "")

    @classmethod
    def parse(cls, text: object) -> "OwnAttention | None":
        """The attention that a text names; None for anything that is no such text."""
        parts = _TEXT.fullmatch(text) if isinstance(text, str) else None
        return cls(**parts.groupdict()) if parts else None

    @property
    def short_name(self) -> str:
        """What to call it in a folder's name or a table: its class if named, else its file."""
        return self.class_name or Path(self.path).stem

    def with_sum(self) -> "OwnAttention":
        """The same with its file's check sum; one that has a sum stays as it is.

        ValueError if the file is not there.
        """
        if self.sum:
            return self
        path, here = existing(self.path), Path.cwd()
        if path.resolve().is_relative_to(here):     # one spelling, and no folder of this machine
            path = path.resolve().relative_to(here)
        return replace(self, path=path.as_posix(), sum=_read(path)[1])

    def load(self, run_dir: str | Path | None = None) -> Callable[[int], nn.Module]:
        """A callable channels -> module, made by this version of the file, or of its copy in a run's folder.

        Raises ValueError if neither is there or the file does not run, and, when called, if its class is not
        built so.
        """
        wanted = self.with_sum()
        path = Path(wanted.path)
        key = path.resolve(), wanted.sum
        if key not in _VERSIONS:        # what this process has loaded is at hand, whatever the file is now
            found = {place: _read(place) for place in wanted._places(run_dir) if place.is_file()}
            place = next((place for place, (_, now) in found.items() if now == wanted.sum), None)
            if place is None:
                now = next((now for _, now in found.values()), None)
                state = (f"was changed since (its sum is {now} now)" if now
                         else f"is not there ({path.absolute()})")
                raise ValueError(f"{wanted} is wanted, but {path} {state}: "
                                 "train anew, or bring that version back")
            _VERSIONS[key] = run_file(place, found[place][0])
        attention = _class_of(_VERSIONS[key], path, wanted.class_name)

        def build_it(channels, **shared):
            return build(attention, channels, path, **shared)

        build_it.shared_part = getattr(attention, "shared_part", None)      # hosting.sharing looks for it
        return build_it

    def keep_copy(self, run_dir: str | Path) -> None:
        """Put the version of the file that is trained into its run's folder, whole, where `load` looks too.
        """
        source, now = _read(existing(self.path))
        # if not, it was changed this moment: the process has what it loaded, and there is no copy
        if now == self.sum:
            replace_file(self._places(run_dir)[-1], lambda file: file.write(source))

    def _places(self, run_dir):
        path = Path(self.path)
        return [path] if run_dir is None else [path, Path(run_dir) / path.name]


def build(attention: type[nn.Module], channels: int, path: str | Path, **shared: nn.Module) -> nn.Module:
    """attention(channels, **shared), a class of the file `path`. ValueError, with the line, if it cannot be.

    What it imports meanwhile is looked for beside its file first, as when the file ran.
    """
    try:
        with running_again(attention.__module__):
            return attention(channels, **shared)
    except (Exception, SystemExit) as error:
        name = attention.__name__
        raise ValueError(f"{path}: {name} must be built as {name}(channels), "
                         "further arguments with defaults; "
                         f"with {channels} channels that raises {where(error, attention)}") from error


# What a file makes

def load_class(path: str | Path, class_name: str | None = None) -> type[nn.Module]:
    """The nn.Module class of a Python file, which is run anew.

    Raises ValueError if the file is not there or does not run, or if it is not clear which class is meant.
    """
    path = existing(path)
    return _class_of(run_file(path, _read(path)[0]), path, class_name)


def load_one(path: str | Path, kind: type[T]) -> T:
    """The one object of a class that a Python file makes.

    ValueError as `load_class`, or unless it is exactly one.
    """
    path = existing(path)
    made = vars(run_file(path, _read(path)[0])).values()
    found = {id(value): value for value in made if isinstance(value, kind)}
    if len(found) != 1:
        raise ValueError(f"{path} must make one {kind.__name__}, not {len(found)}")
    return found.popitem()[1]


def existing(path: str | Path) -> Path:
    """The path, if it is a Python file that is there; ValueError if not."""
    path = Path(path)
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(f"{path} must be a Python file, *.py, that exists")
    return path


def _read(path):
    """(source, check sum) of one reading: what is run is what was summed.

    Line ends do not count: git may change them.
    """
    source = path.read_bytes().replace(b"\r\n", b"\n")
    return source, hashlib.sha256(source).hexdigest()[:12]


def _class_of(module, path, class_name):
    modules = {name: value for name, value in vars(module).items()
               if isinstance(value, type) and issubclass(value, nn.Module)}
    there = {name: value for name, value in modules.items() if value.__module__ == module.__name__}
    if class_name in there:
        return there[class_name]
    different = set(there.values())     # a class under a second name counts once
    listed = ", ".join(dict.fromkeys(kind.__name__ for kind in there.values())) or "none"
    if class_name is not None:
        raise ValueError(f"{path}:{class_name} must name an nn.Module class of that file ({listed})")
    if len(different) != 1:
        raise ValueError(f"{path} must hold one nn.Module class, or one must be named ({path}:CLASS); "
                         f"its classes: {listed}")
    return different.pop()
