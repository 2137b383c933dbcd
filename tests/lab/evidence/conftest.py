import dataclasses

import pytest
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
