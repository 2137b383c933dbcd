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
