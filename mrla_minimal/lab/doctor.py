"""`mrla doctor`: what this machine has, one line a check, and what to do where something is missing.

It downloads and writes nothing. Each line is printed as soon as it is known.
"""

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn import functional as F

from mrla_minimal.lab.data import data_roots, find_cifar
from mrla_minimal.lab.device import choose_device, device_name
from mrla_minimal.lab.engine.precision import choose_precision
from mrla_minimal.lab.files import repository_root

NEEDED = ("torch", "numpy", "einops", "tqdm", "matplotlib", "PIL", "platformdirs", "requests", "urllib3",
          "filelock", "scipy")
PACKAGE_OF = {"PIL": "pillow"}
TORCH_FROM = (2, 4)
PYTHON_FROM = (3, 11)
SETS = ("cifar10", "cifar100")

Check = tuple[str, str]     # "OK", "WARN" or "FAIL", and what is said


def check_python() -> Check:
    version = platform.python_version()
    if sys.version_info[:2] < PYTHON_FROM:
        return "FAIL", f"Python {version}: install Python {'.'.join(map(str, PYTHON_FROM))} or newer"
    return "OK", f"Python {version}"


def check_package(module: str) -> Check:
    """Whether a package imports; for torch, also whether it is new enough."""
    name = PACKAGE_OF.get(module, module)
    try:
        importlib.import_module(module)
        version = importlib.metadata.version(name)
    except Exception as error:      # a broken binary raises anything at all while it is imported
        return "FAIL", f"{name} does not import ({type(error).__name__}): pip install {name}"
    if module == "torch" and tuple(int(part) for part in version.split("+")[0].split(".")[:2]) < TORCH_FROM:
        oldest = ".".join(map(str, TORCH_FROM))
        where = "https://pytorch.org/get-started/locally/"
        return "FAIL", f"torch {version}: this needs {oldest} or newer; see {where}"
    return "OK", f"{name} {version}"


def check_jupyter() -> Check:
    try:
        return "OK", f"jupyterlab {importlib.metadata.version('jupyterlab')}"
    except importlib.metadata.PackageNotFoundError:
        return "WARN", 'jupyterlab is not installed; for the notebooks: pip install -e ".[course]"'


def check_device() -> Check:
    """Whether a convolution runs, forward and backward, on the device that training would choose."""
    device = choose_device()
    try:
        x = torch.ones(2, 3, 8, 8, device=device, dtype=torch.float32, requires_grad=True)
        kernel = torch.ones(4, 3, 3, 3, device=device, dtype=torch.float32)
        F.conv2d(x, kernel).sum().backward()
        works = bool(torch.isfinite(x.grad).all())
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        return "FAIL", f"device {device.type}: a convolution fails there: {reason}; try --device cpu"
    if not works:
        return "FAIL", f"device {device.type}: a convolution gives no finite numbers there; try --device cpu"
    hint = f"trains in {choose_precision(device)}"
    if device.type == "cpu":
        hint = "the quick preset takes minutes, long runs want a GPU"
    return "OK", f"device {device.type}: {device_name(device)}; {hint}"


def check_data(name: str) -> Check:
    """Whether "cifar10" or "cifar100" is here, whole and unaltered."""
    try:
        found = find_cifar(name)
        looked = ", ".join(str(root) for root in data_roots())
    except (ValueError, OSError) as error:
        return "FAIL", f"{name}: {error}"
    if found is not None:
        return "OK", f"{name}: real images in {found}"
    return "WARN", f"{name}: not here (looked in {looked}); to download it: mrla fetch {name}"


def check_records() -> Check:
    """Whether the committed records and checkpoints, which a package alone does not bring, are at hand."""
    root = repository_root()
    if root is None:
        return "WARN", ("records and checkpoints: not here, for this folder lies in no copy of the "
                        "repository; notebooks 08 to 11 read them from its data/")
    records, checkpoints = (len(list((root / "data" / kind).glob(pattern)))
                            for kind, pattern in (("results", "*.jsonl"), ("checkpoints", "*.pt")))
    if not records or not checkpoints:
        return "WARN", (f"{root / 'data'}: {records} files of records, {checkpoints} checkpoints; "
                        "git checkout data brings back what is missing")
    return "OK", f"{root / 'data'}: {records} files of records, {checkpoints} checkpoints"


def check_disk(folder: str | Path) -> Check:
    """Whether a run or a data set can be written to `folder`, or to where it would be made."""
    folder = Path(folder)
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if not folder.exists():
            return "FAIL", f"{folder} is not there: set MRLA_DATA to a folder that is"
        if not folder.is_dir():
            return "FAIL", f"{folder} is no folder: set MRLA_DATA to one"
        free = shutil.disk_usage(folder).free / 2**30
    except OSError as error:
        return "FAIL", f"{folder}: {error.strerror or error}"
    if not os.access(folder, os.W_OK):
        return "FAIL", f"{folder} is not writable: work in a folder of your own, or set MRLA_DATA to one"
    if free < 0.1:
        return "FAIL", f"{folder}: {free:.2f} GiB free; a data set takes 0.4, a run 0.01: make room"
    if free < 1:
        return "WARN", f"{folder}: {free:.2f} GiB free; a data set takes 0.4 while it is unpacked"
    return "OK", f"{folder}: {free:.0f} GiB free"


def check_data_folder(folder: str | Path, present: int) -> Check:
    """Whether data can be downloaded to `folder`: a must only while none of the data sets is present."""
    status, text = check_disk(folder)
    if status != "FAIL" or present == 0:
        return status, text
    if present < len(SETS):
        return "WARN", f"{text}. What is not here could not be downloaded"
    return "OK", f"{folder}: no place to write, and no need of one: all data is here"


def examine() -> Iterator[Check]:
    """All checks, one after the other."""
    yield check_python()
    yield from map(check_package, NEEDED)
    yield check_jupyter()
    yield check_device()
    present = 0
    for name in SETS:
        status, text = check_data(name)
        present += status == "OK"
        yield status, text
    yield check_records()
    here, there = Path.cwd().resolve(), Path(data_roots()[0]).resolve()
    yield check_disk(here)
    if there != here:
        yield check_data_folder(there, present)


def run_doctor() -> int:
    """Print every check; exit status 1 if one failed, else 0."""
    failed = checks = 0
    for status, text in examine():
        print(f"[{status}]".ljust(7) + text, flush=True)
        failed += status == "FAIL"
        checks += 1
    print(f"{failed} of {checks} checks failed" if failed else "ready: nothing failed")
    return 1 if failed else 0
