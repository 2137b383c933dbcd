"""Running code of one's own: it finds what lies beside it, leaves the process as it was, and is told by line.
"""

import inspect
import itertools
import re
import sys
import traceback
import types
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import torch
from torch import nn

_NUMBERS = itertools.count(1)   # each file that is run becomes a module with a number of its own
_FILES = set()                  # the files whose lines are told where an exception comes from


# Running it

def run_file(path: Path, source: bytes) -> types.ModuleType:
    """The module that a file makes, importable by its own name: torch.compile and pickle ask for it.

    Raises ValueError, with the line, if the file does not run.
    """
    module = types.ModuleType(f"own_{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}_{next(_NUMBERS)}")
    module.__file__ = str(path)
    _FILES.add(str(path))
    sys.modules[module.__name__] = module
    try:
        with (torch.random.fork_rng(devices=[]), _torch_as_before(),
              _own_imports(path.resolve().parent, module.__name__)):
            # by hand: a cached .pyc may be a second older
            exec(compile(source, str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:
        for name in [name for name in sys.modules if _top(name) == module.__name__]:
            del sys.modules[name]
        raise ValueError(f"{path} does not run: {where(error)}") from error
    return module


@contextmanager
def running_again(name: str) -> Iterator[None]:
    """Within it, code of the module `name`, if `run_file` made it, finds what lies beside its file once more.

    Random numbers are drawn as usual: this is where a module's weights are.
    """
    module = sys.modules.get(name)
    own = module is not None and getattr(module, "__file__", None) in _FILES
    beside = _own_imports(Path(module.__file__).resolve().parent, name) if own else nullcontext()
    with _torch_as_before(), beside:
        yield


@contextmanager
def _torch_as_before() -> Iterator[None]:
    """Afterwards torch's settings for the whole process are what they were before."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    anomaly, check_nan = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
    cudnn = {name: getattr(torch.backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic")}
    gradients = torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_grad_enabled(gradients)
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device.type == "cpu" else device)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if torch.get_float32_matmul_precision() != precision:
            torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.autograd.set_detect_anomaly(anomaly, check_nan)
        for name, value in cudnn.items():
            setattr(torch.backends.cudnn, name, value)


@contextmanager
def _own_imports(folder: Path, prefix: str) -> Iterator[None]:
    """Within it, an import takes what lies in `folder` first: once for each PREFIX, the name of a module.

    Two files may each have a helper.py beside them, and neither may get the other's. So what came from the
    folder is known as PREFIX.helper afterwards, and `helper` is again what it was before, if anything.
    Whoever enters with the same PREFIX again finds the same `helper`.
    """
    beside = {path.stem for path in folder.glob("*.py")}
    beside |= {path.parent.name for path in folder.glob("*/__init__.py")}
    beside -= {"__init__", "__main__", "mrla_minimal", *sys.stdlib_module_names}
    aside = {name: sys.modules.pop(name) for name in list(sys.modules) if _top(name) in beside}
    known, no_bytecode = set(sys.modules), sys.dont_write_bytecode
    earlier = {name.removeprefix(f"{prefix}."): module for name, module in list(sys.modules.items())
               if name.startswith(f"{prefix}.")}
    aside |= {name: sys.modules[name] for name in earlier if name in sys.modules}
    known -= earlier.keys()
    sys.modules.update(earlier)
    sys.path.insert(0, str(folder))
    # a helper that is edited within the second would be taken from its .pyc
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = no_bytecode
        with suppress(ValueError):      # the file may have changed the path itself
            sys.path.remove(str(folder))
        new = [name for name in sys.modules if name not in known]
        for name in [name for name in new if _lies_in(folder, sys.modules.get(_top(name)))]:
            _rename(name, f"{prefix}.{name}")
        sys.modules.update(aside)


def _top(name):
    return name.partition(".")[0]


def _lies_in(folder, module):
    """Whether a module is folder/NAME.py or a package folder/NAME."""
    places = list(getattr(module, "__path__", None) or [getattr(module, "__file__", None) or ""])
    return any(Path(place).resolve().parent == folder for place in places)


def _lies_beside(file, name):
    """Whether folder/NAME.py or a folder of that name is there, beside a file."""
    beside = Path(file).parent / _top(name or "")
    return bool(name) and (beside.with_suffix(".py").is_file() or beside.is_dir())


def _rename(name, new):
    """Let an imported module, its classes and its functions be found under another name."""
    module = sys.modules[new] = sys.modules.pop(name)
    module.__name__ = new
    _FILES.add(getattr(module, "__file__", None))
    for value in vars(module).values():
        if isinstance(value, (type, types.FunctionType)) and value.__module__ == name:
            value.__module__ = new


# Telling where it went wrong

class Told(Exception):
    """An exception of code that ran in another process: its first line, and that with where it came from."""

    def __init__(self, text: str, place: str):
        super().__init__(text)
        self.text, self.place = text, place


def first_line(error: BaseException) -> str:
    """An exception on one line, its type first. Its text is left out if its own __str__ fails."""
    if isinstance(error, Told):
        return error.text
    try:
        lines = str.splitlines(str(error))      # str's own: what __str__ returns may be of a subclass
    except (Exception, SystemExit):
        lines = []
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def where(error: BaseException, attention: type[nn.Module] | None = None) -> str:
    """An exception on one line, with the last line of your own code that it went through.

    If it went through none, as where a call does not fit the class, then with the line where `attention`
    begins. Of a module that lies beside the file it says how to import it.
    """
    if isinstance(error, Told):
        return error.place
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in _FILES]
    if frames:
        place = f"({frames[-1].filename}, line {frames[-1].lineno}, in {frames[-1].name})"
        if isinstance(error, ModuleNotFoundError) and _lies_beside(frames[-1].filename, error.name):
            place += f"; import {error.name} at the top of the file, where what lies beside it is found"
        return f"{first_line(error)} {place}"
    with suppress(OSError, TypeError):      # a class without a source: it was made in an interpreter
        if attention is not None:
            file, line = inspect.getsourcefile(attention), inspect.getsourcelines(attention)[1]
            return f"{first_line(error)} ({file}, line {line}, class {attention.__name__})"
    return first_line(error)
