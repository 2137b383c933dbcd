import atexit
import time

import pytest
import torch

from mrla_minimal.lab.device import choose_device, join_world


def test_choose_device():
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="'tpu'"):
        choose_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="'cuda' is not available here"):
            choose_device("cuda")


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


def test_a_certain_gpu(two_gpus):
    assert choose_device() == choose_device("cuda") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="'cuda:2' is not available here; .*: cuda, cuda:0, cuda:1, cpu"):
        choose_device("cuda:2")
    for wrong in ("cuda:", "cuda:-1", "cuda: 1", "cuda:1x", "gpu", 1, None):
        with pytest.raises(ValueError, match="^device must be one of 'auto', 'cuda', 'cuda:N', 'mps', 'cpu'"):
            choose_device(wrong)


def test_a_run_computes_on_the_gpu_that_was_asked_for(two_gpus):
    assert join_world("cuda:1").device == torch.device("cuda", 1) and two_gpus == [torch.device("cuda", 1)]


def test_processes_that_share_a_run_take_a_gpu_each(two_gpus, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="one GPU a process: the device must be cuda, not cuda:1"):
        join_world("cuda:1")


def test_a_process_leaves_the_others_before_python_ends_and_not_in_haste(monkeypatch):
    """A late thread of gloo could abort it: it is given a moment, then the group is left; once a process."""
    done, joined, at_exit = [], [], []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: bool(joined))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *args, **named: joined.append(1))
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: done.append("left"))
    monkeypatch.setattr(time, "sleep", lambda seconds: done.append("waited" if seconds >= 0.2 else "hurried"))
    monkeypatch.setattr(atexit, "register", at_exit.append)
    for _ in range(2):
        assert join_world("cpu").size == 2
    (leave,) = at_exit
    leave()
    assert done == ["waited", "left"]
    joined.clear()          # left by the program itself, before
    leave()
    assert done == ["waited", "left"]
