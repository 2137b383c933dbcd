"""The one place where a device is chosen, and the processes of a data-parallel run are counted."""

import atexit
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from mrla_minimal.lab.arguments import one_of

DEVICES = ("auto", "cuda", "mps", "cpu")


def device_text(name: str, value: object) -> str:
    """The check of a device's text: one of DEVICES, or "cuda:N" for a certain GPU.

    Whether it is here is not asked.
    """
    if isinstance(value, str) and re.fullmatch(r"cuda:\d{1,3}", value):
        return value
    try:
        return one_of(name, value, DEVICES)
    except ValueError as error:
        raise ValueError(str(error).replace("'cuda'", "'cuda', 'cuda:N'", 1)) from None


def choose_device(name: str = "auto") -> torch.device:
    """A torch.device from "auto" (cuda, else mps, else cpu), "cuda", "cuda:N", "mps" or "cpu".

    Raises ValueError if it is none of these, or not here.
    """
    device_text("device", name)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = ["cuda"] * (gpus > 0) + ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    if name == "auto":
        return torch.device(here[0])
    if name not in (*here, *(f"cuda:{number}" for number in range(gpus))):
        listed = [f"cuda:{number}" for number in range(gpus)] if gpus > 1 else []
        available = ", ".join([*here[:-1], *listed, "cpu"])
        raise ValueError(f"device {name!r} is not available here; available: {available}")
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """What a person would call it: the GPU's name, or the processor's with the number of torch's threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU (mps)"
    threads = torch.get_num_threads()
    return f"{platform.machine() or 'cpu'} cpu, {threads} thread{'s' if threads > 1 else ''}"


@dataclass(frozen=True)
class World:
    """This process among those of one data-parallel run: its rank, how many there are, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def parallel(self) -> bool:
        return self.size > 1

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor summed over all processes, in place; the same tensor if there is one process."""
        if self.parallel:
            torch.distributed.all_reduce(tensor)
        return tensor

    def first_then_others(self, action: Callable[[], Any]) -> Any:
        """Rank 0 runs `action` before the others do, so that what it downloads is there for them."""
        if self.parallel and self.rank > 0:
            torch.distributed.barrier()
        result = action()
        if self.parallel and self.rank == 0:
            torch.distributed.barrier()
        return result

    def from_rank_zero(self, value: Any) -> Any:
        """Rank 0's value, in every process."""
        if not self.parallel:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0)
        return values[0]


def join_world(device: str = "auto") -> World:
    """The World that torchrun's environment variables describe; a world of one without them.

    Raises ValueError for a device that is not here, or that several processes cannot share.
    """
    chosen = choose_device(device)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        if chosen.index is not None:
            torch.cuda.set_device(chosen)       # compiled kernels go to the current device
        return World(0, 1, chosen)
    if chosen.type == "mps":
        raise ValueError("data-parallel training runs on cuda (nccl) or cpu (gloo), not on mps")
    if chosen.index is not None:
        raise ValueError("data-parallel training takes one GPU a process: the device must be cuda, "
                         f"not {device}")
    if chosen.type == "cuda":
        local, here = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= here:
            raise ValueError(f"there are {here} GPUs for {local + 1} or more processes; "
                             f"start at most {here}, or use --device cpu")
        chosen = torch.device("cuda", local)
        torch.cuda.set_device(chosen)
    if not torch.distributed.is_initialized():
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        # Three hours, for rank 0 may be downloading.
        torch.distributed.init_process_group(backend, timeout=timedelta(hours=3))
        atexit.register(_leave)
    return World(torch.distributed.get_rank(), size, chosen)


def _leave() -> None:
    """Leave the processes of a run, before Python ends.

    A thread of gloo that frees the tensors of the last message only when Python is ending aborts the process,
    after all work is done. So it is given the moment that it needs.
    """
    if torch.distributed.is_initialized():
        time.sleep(1)
        torch.distributed.destroy_process_group()


@contextmanager
def plain_defaults() -> Iterator[None]:
    """Within it new tensors are float32 and on the CPU, whatever the program has set.

    Afterwards its own defaults hold.
    """
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    try:
        torch.set_default_dtype(torch.float32)
        with torch.device("cpu") if device.type != "cpu" else nullcontext():    # one sees every call
            yield
    finally:
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:        # set inside
            torch.set_default_device(None if device.type == "cpu" else device)
