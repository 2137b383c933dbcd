import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Bit for bit the same is promised at the same number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
