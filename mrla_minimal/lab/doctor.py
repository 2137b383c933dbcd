"""`mrla doctor`: what this machine has, one line a check, and what to do where something is missing."""

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
from pathlib import Path

import torch
from torch.nn import functional as F

from mrla_minimal.lab.data import data_roots, find_cifar
from mrla_minimal.lab.device import choose_device, device_name

NEEDED = ("torch", "numpy", "einops", "tqdm", "matplotlib", "PIL", "pooch", "requests", "filelock", "scipy")
PACKAGE_OF = {"PIL": "pillow"}
TORCH_FROM = (2, 4)
PYTHON_FROM = (3, 11)


def check_python():
    version = platform.python_version()
    if sys.version_info[:2] < PYTHON_FROM:
        return "FAIL", f"Python {version}: install Python {'.'.join(map(str, PYTHON_FROM))} or newer"
    return "OK", f"Python {version}"


def check_package(module):
    name = PACKAGE_OF.get(module, module)
    try:
        importlib.import_module(module)
        version = importlib.metadata.version(name)
    except Exception as error:      # a broken binary raises anything at all while it is imported
        return "FAIL", f"{name} does not import ({type(error).__name__}): pip install {name}"
    if module == "torch" and tuple(int(part) for part in version.split("+")[0].split(".")[:2]) < TORCH_FROM:
        return "FAIL", f"torch {version}: this needs {'.'.join(map(str, TORCH_FROM))} or newer; see https://pytorch.org/get-started/locally/"
    return "OK", f"{name} {version}"


def check_jupyter():
    try:
        return "OK", f"jupyterlab {importlib.metadata.version('jupyterlab')}"
    except importlib.metadata.PackageNotFoundError:
        return "WARN", 'jupyterlab is not installed; for the notebooks: pip install -e ".[course]"'


def check_device():
    device = choose_device()
    try:
        x = torch.ones(2, 3, 8, 8, device=device, requires_grad=True)
        F.conv2d(x, torch.ones(4, 3, 3, 3, device=device)).sum().backward()
        works = bool(torch.isfinite(x.grad).all())
    except RuntimeError as error:
        return "FAIL", f"device {device.type}: a convolution fails there: {str(error).splitlines()[0]}; try --device cpu"
    if not works:
        return "FAIL", f"device {device.type}: a convolution gives no finite numbers there; try --device cpu"
    hint = "" if device.type != "cpu" else "; the quick preset takes minutes, long runs want a GPU"
    return "OK", f"device {device.type}: {device_name(device)}{hint}"


def check_data(name):
    try:
        found = find_cifar(name)
    except (ValueError, OSError) as error:
        return "FAIL", f"{name}: {error}"
    if found is not None:
        return "OK", f"{name}: real images in {found}"
    looked = ", ".join(str(root) for root in data_roots())
    return "WARN", f"{name}: not here (looked in {looked}); to download it: mrla fetch {name}"


def check_disk(folder):
    folder = Path(folder)
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.exists():
        return "FAIL", f"{folder} is not there: set MRLA_DATA to a folder that is"
    free = shutil.disk_usage(folder).free / 2**30
    if not os.access(folder, os.W_OK):
        return "FAIL", f"{folder} is not writable: work in a folder of your own, or set MRLA_DATA to one"
    if free < 0.1:
        return "FAIL", f"{folder}: {free:.2f} GiB free; a data set takes 0.4, a run 0.01: make room"
    if free < 1:
        return "WARN", f"{folder}: {free:.2f} GiB free; a data set takes 0.4 while it is unpacked"
    return "OK", f"{folder}: {free:.0f} GiB free"


def examine():
    """All checks, as a list of (status, text); status is "OK", "WARN" or "FAIL"."""
    checks = [check_python(), *map(check_package, NEEDED), check_jupyter(), check_device()]
    checks += [check_data(name) for name in ("cifar10", "cifar100")]
    folders = dict.fromkeys(str(Path(folder).resolve()) for folder in (Path.cwd(), data_roots()[0]))
    return checks + [check_disk(folder) for folder in folders]


def run_doctor():
    """Print every check; exit status 1 if one failed, else 0."""
    checks = examine()
    for status, text in checks:
        print(f"[{status}]".ljust(7) + text)
    failed = sum(status == "FAIL" for status, _ in checks)
    print(f"{failed} of {len(checks)} checks failed" if failed else "ready: nothing failed")
    return 1 if failed else 0
