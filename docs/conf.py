"""Sphinx: `make docs` runs the examples and builds the site; warnings are errors."""

from __future__ import annotations

import doctest
import json
import sys
from pathlib import Path

import sparsed

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "python")]  # bench; the tiny torch models of the examples

from bench import int8_logits, quality  # noqa: E402
from bench.report import read  # noqa: E402
from bench.tables import markdown  # noqa: E402

from sparsed.apps.eval import heads, report  # noqa: E402

project = "sparsed"
author = "the sparsed authors"
release = sparsed.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.doctest", "sphinx.ext.napoleon"]
exclude_patterns = ["generated"]

html_theme = "furo"
html_title = f"sparsed {release}"
html_show_copyright = False
html_copy_source = False

# Docstrings: Google sections, `code` in single or double backticks. Types stand in their text, with shapes and dtypes.
default_role = "literal"
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_use_rtype = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"
add_module_names = False
# As Sphinx has them, but for the details of exceptions: what a message says is compared too.
doctest_default_flags = doctest.ELLIPSIS | doctest.DONT_ACCEPT_TRUE_FOR_1
doctest_global_setup = "import numpy as np\nfrom sparsed import *"


def write_tables(folder: Path) -> None:
    """The tables of the measured results, as `sparsed bench tables` makes them."""
    folder.mkdir(exist_ok=True)
    for path in (ROOT / "bench" / "results").glob("*.json"):
        (folder / f"{path.stem}.md").write_text(markdown(read(path)), encoding="utf-8")
    for path in (ROOT / "bench" / "results" / "quality").glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        kinds = {
            "similarity": heads.markdown,
            "cells": quality.markdown,
            "predictions": int8_logits.markdown,
        }
        table = next((kind for key, kind in kinds.items() if key in content), report.markdown)(content)
        (folder / f"{path.stem}.md").write_text(table, encoding="utf-8")


write_tables(Path(__file__).parent / "generated")
