"""Runs the named notebooks of this folder, or all of them, and saves their outputs."""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def run(path: Path) -> None:
    """Executes one notebook in place. It stores no execution times, so that only real changes show in a diff."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, kernel_name="python3", record_timing=False, coalesce_streams=True).execute()
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata = {}
    nbformat.write(notebook, path)


if __name__ == "__main__":
    folder = Path(__file__).parent
    for path in [folder / f"{name}.ipynb" for name in sys.argv[1:]] or sorted(folder.glob("*.ipynb")):
        print(path.name)
        run(path)
