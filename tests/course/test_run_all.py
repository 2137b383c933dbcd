"""What `make notebooks` writes back."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from notebooks import run_all


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """A notebook as an editor leaves it, and the environment that run_all changes."""
    for name in ("OMP_NUM_THREADS", "MRLA_OFFLINE", "MPLBACKEND"):
        monkeypatch.setenv(name, "")
    timed = {"execution": {"shell.execute_reply": "1 s"}, "tags": ["kept"]}
    notebook = new_notebook(cells=[
        new_markdown_cell("text", metadata={"collapsed": True}),
        new_code_cell("print('old'); print(6 * 7)", metadata=timed),
        new_code_cell("1 + 1", metadata={"tags": [], "trusted": True}),
    ], metadata={"kernelspec": {"name": "mrla", "display_name": "mine"}, "widgets": {}, "author": "me"})
    nbformat.write(notebook, tmp_path / "edited.ipynb")
    return tmp_path / "edited.ipynb"


def test_a_notebook_keeps_cells_tags_and_outputs_alone(edited, tmp_path):
    assert run_all.main([str(edited)]) == 0
    notebook = nbformat.read(edited, as_version=4)
    assert notebook.metadata == run_all.METADATA
    assert [cell.metadata for cell in notebook.cells] == [{}, {"tags": ["kept"]}, {}]
    assert notebook.cells[1].outputs[0].text == "old\n42\n"
    assert notebook.cells[2].outputs[0].data["text/plain"] == "2"
    assert list(tmp_path.iterdir()) == [edited]
    once = edited.read_bytes()
    assert run_all.main([str(edited)]) == 0 and edited.read_bytes() == once


def test_a_notebook_that_fails_stays_as_it_was_and_the_next_still_runs(edited, tmp_path, capsys):
    bad, none = tmp_path / "bad.ipynb", tmp_path / "none.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("1 / 0")]), bad)
    (tmp_path / "text.ipynb").write_text("no notebook")
    before = bad.read_bytes()
    assert run_all.main([str(bad), str(none), str(tmp_path / "text.ipynb"), str(edited)]) == 1
    assert bad.read_bytes() == before and "old" in edited.read_text()
    told = [line for line in capsys.readouterr().err.splitlines() if "not changed" in line]
    assert len(told) == 3 and "ZeroDivisionError" in told[0] and "none.ipynb" in told[1]
    assert nbformat.read(edited, as_version=4).cells[1].outputs
