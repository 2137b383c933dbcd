import textwrap

import pytest


@pytest.fixture
def write(tmp_path):
    """Write a source as a file of a student's: write(source, name) -> its path."""
    def write(source, name="my_attention.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(source), encoding="utf-8")
        return path

    return write
