"""The notebook in examples runs from top to bottom and is committed without outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


def shown(cell: Any) -> str:
    """Return the text and HTML that a cell shows."""
    outputs = [output for output in cell.outputs if "data" in output]
    return "".join("".join(output.data.values()) for output in outputs)


def test_no_output_is_committed() -> None:
    cells = nbformat.reads(NOTEBOOK.read_text(encoding="utf-8"), as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert code
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


# Jupyter's own: its sockets and loops are closed when the process ends.
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore::ResourceWarning")
def test_it_runs_and_each_result_shows_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    notebook = nbformat.reads(NOTEBOOK.read_text(encoding="utf-8"), as_version=4)
    client = NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    found = {
        cell.source.splitlines()[0].partition("(")[0]: shown(cell)
        for cell in notebook.cells
        if cell.cell_type == "code"
    }
    assert "A score on this test set cannot be believed" in found["tumorlens.audit"]
    assert "left-out" in found["tumorlens.split"]
    assert "<svg" in found["run = tumorlens.train"]
    assert "balanced accuracy" in found["tumorlens.evaluate"]
    assert "Each answers as the run" in found["tumorlens.export"]
    assert "pituitary" in found["tumorlens.predict"]
