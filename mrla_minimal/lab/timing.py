"""The one clock: functions that take turns, each timed until its device is done."""

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch
from tqdm import tqdm

Name = TypeVar("Name", bound=Hashable)


def seconds_of(function: Callable[[], object], device: torch.device | None = None) -> float:
    """Seconds of one call; on an accelerator from when it is idle until it is done (None: on the CPU)."""
    accelerator = {"cuda": torch.cuda, "mps": torch.mps}.get(device.type if device else "cpu")
    if accelerator:
        accelerator.synchronize()
    start = time.perf_counter()
    function()
    if accelerator:
        accelerator.synchronize()
    return time.perf_counter() - start


def take_turns(candidates: Mapping[Name, Callable[[], object]], rounds: int = 7, warm_up: int = 2,
               device: torch.device | None = None, progress: bool = False) -> dict[Name, list[float]]:
    """{name: [seconds of each round]} of functions without arguments, after `warm_up` untimed rounds.

    In turns, whatever else the machine does falls on all of them alike: trust the ratio of two times of one
    round. Raises ValueError if rounds < 1 or warm_up < 0.
    """
    if rounds < 1 or warm_up < 0:
        raise ValueError(f"rounds must be at least 1 and warm_up at least 0, not {rounds!r} and {warm_up!r}")
    seconds = {name: [] for name in candidates}
    for number in tqdm(range(warm_up + rounds), desc="rounds", disable=not progress, leave=False):
        for name, function in candidates.items():
            elapsed = seconds_of(function, device)
            if number >= warm_up:
                seconds[name].append(elapsed)
    return seconds
