"""The notebooks: they run, they explain themselves, and their outputs are there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from paths import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
_SECONDS = 240  # of one cell, on a machine that does other things too
_MAX_BYTES = 600_000


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_there_are_notebooks() -> None:
    assert {path.stem for path in NOTEBOOKS} == {"quickstart", "patterns", "tuning", "your_model"}


@pytest.mark.slow
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    import nbformat

    monkeypatch.delenv("SPARSED_MODEL", raising=False)
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=_SECONDS, kernel_name="python3", resources=resources).execute()
    assert list(tmp_path.iterdir()) == []  # nothing is left behind
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.get("name") != "stderr", output


def test_notebook_is_as_it_was_run(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    cells = json.loads(text)["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert cells[0]["cell_type"] == "markdown" and len(text) < _MAX_BYTES
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        assert cell["metadata"] == {}, "run by notebooks/run.py"
        assert "".join(cell["source"]).startswith("# "), "a cell begins with what it does"
        for output in cell["outputs"]:
            assert output["output_type"] != "error" and output.get("name") != "stderr"
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell["outputs"])
    assert not re.search(r"/(root|home|tmp|Users)/", text)
