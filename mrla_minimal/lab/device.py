"""The one place where a device is chosen, and the processes of a data-parallel run are counted."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch

DEVICES = ("auto", "cuda", "mps", "cpu")


def choose_device(name="auto"):
    """A torch.device from "auto" (cuda, else mps, else cpu), "cuda", "mps" or "cpu". ValueError if it is none, or not here."""
    if name not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(map(repr, DEVICES))}, not {name!r}")
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, available in here.items() if available)
    elif not here[name]:
        raise ValueError(f"device {name!r} is not available here; available: {', '.join(d for d in here if here[d])}")
    return torch.device(name)


def device_name(device):
    """What a person would call it: the GPU's name, or the processor's with the number of threads that torch uses."""
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
    def parallel(self):
        return self.size > 1

    def sum(self, tensor):
        """The tensor summed over all processes, in place; the same tensor if there is one process."""
        if self.parallel:
            torch.distributed.all_reduce(tensor)
        return tensor

    def first_then_others(self, action):
        """Rank 0 runs `action` before the others do, so that what it downloads is there for them."""
        if self.parallel and self.rank > 0:
            torch.distributed.barrier()
        result = action()
        if self.parallel and self.rank == 0:
            torch.distributed.barrier()
        return result

    def from_rank_zero(self, value):
        """Rank 0's value, in every process."""
        if not self.parallel:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0)
        return values[0]


def join_world(device="auto"):
    """The World that torchrun's environment variables describe; a world of one without them."""
    device = choose_device(device)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World(0, 1, device)
    if device.type == "mps":
        raise ValueError("data-parallel training runs on cuda (nccl) or cpu (gloo), not on mps")
    if device.type == "cuda":
        local, here = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= here:
            raise ValueError(f"there are {here} GPUs for {local + 1} or more processes; start at most {here}, or use --device cpu")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not torch.distributed.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, timeout=timedelta(hours=3))      # rank 0 may be downloading
    return World(torch.distributed.get_rank(), size, device)


@contextmanager
def plain_defaults() -> Iterator[None]:
    """Within it new tensors are float32 and on the CPU, whatever the program has set; afterwards its own defaults hold."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    try:
        torch.set_default_dtype(torch.float32)
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:        # set inside
            torch.set_default_device(None if device.type == "cpu" else device)
