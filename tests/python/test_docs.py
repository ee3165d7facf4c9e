"""The drawings of the documentation are fresh. `make docs` runs its examples."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DRAWINGS = ROOT / "docs" / "drawings"


def test_drawings(tmp_path: Path) -> None:
    subprocess.run([sys.executable, DRAWINGS / "draw.py", tmp_path], check=True)
    drawn = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert drawn == {path.name: path.read_text() for path in DRAWINGS.glob("*.svg")}, "run docs/drawings/draw.py"


def test_every_drawing_is_shown() -> None:
    pages = "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    assert {path.name for path in DRAWINGS.glob("*.svg")} == set(re.findall(r"drawings/(\w+\.svg)", pages))
