"""The drawings of the documentation are fresh, and so are its messages. `make docs` runs its examples."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sparsed
from paths import ROOT

DRAWINGS = ROOT / "docs" / "drawings"


def test_drawings(tmp_path: Path) -> None:
    subprocess.run([sys.executable, DRAWINGS / "draw.py", tmp_path], check=True)
    drawn = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert drawn == {path.name: path.read_text() for path in DRAWINGS.glob("*.svg")}, "run docs/drawings/draw.py"


def test_every_drawing_is_shown() -> None:
    pages = "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    assert {path.name for path in DRAWINGS.glob("*.svg")} == set(re.findall(r"drawings/(\w+\.svg)", pages))


PAGES = [page for page in sorted((ROOT / "docs").glob("*.md")) if "```{doctest}" in page.read_text()]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_sessions_of_the_pages_with_the_messages_of_their_errors(page: Path) -> None:
    session = "\n".join(re.findall(r"^```\{doctest\}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))
    test = doctest.DocTestParser().get_doctest(session, {}, page.name, str(page), 0)
    assert test.examples and doctest.DocTestRunner().run(test).failed == 0


def test_the_message_that_contributing_shows_is_a_real_one() -> None:
    q = np.zeros((1, 32, 4096, 128), np.float32)
    with pytest.raises(ValueError) as error:
        sparsed.attention(q, q[..., :64].copy(), q)
    assert f"`{error.value}`" in (ROOT / "CONTRIBUTING.md").read_text()
