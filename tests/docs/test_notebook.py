"""The notebook of the documentation runs from its first cell to its last."""

from pathlib import Path

import pytest

from tests.docs.blocks import ROOT

nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed, which executes the notebook")
pytest.importorskip("ipykernel", reason="ipykernel is not installed, which executes the notebook")
import nbformat  # noqa: E402  which comes with nbclient


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of asyncio and zmq, inside nbclient
def test_it_runs_and_shows_what_it_says(tmp_path: Path) -> None:
    notebook = nbformat.read(ROOT / "docs/digits.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.get("text", "") for output in outputs)
    assert "epoch 10 training loss" in printed
    assert [line.split()[0] for line in printed.splitlines()[-3:]] == ["distilled", "random", "full"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert (tmp_path / "digits.beton").is_file() and (tmp_path / "digits.beton.yaml").is_file()
