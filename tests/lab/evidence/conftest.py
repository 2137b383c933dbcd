import dataclasses

import pytest
import torch
from tiny import tiny_cifar
from tiny_suites import NETS

from mrla_minimal.lab.evidence import SUITES


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """An empty repository as the working directory, with two suites more: NETS, and "large"."""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "mrla-minimal"\n')
    for suite in (NETS, dataclasses.replace(NETS, name="large", note="")):
        monkeypatch.setitem(SUITES, suite.name, suite)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def odd_defaults():
    """Call a function of the tiny images with float64 as torch's default type, "meta" as its device."""
    data = tiny_cifar()

    def call(function):
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")        # which holds no values
        try:
            return function(data)
        finally:
            torch.set_default_device(None)
            torch.set_default_dtype(torch.float32)

    return call
