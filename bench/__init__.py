"""Benchmarks of sparsed: `sparsed bench --help` lists them; `plot` and `tables` show their results.

Cases are data (`cases`), results are checked before they are timed, contenders alternate (`harness`), and every figure
goes into a table and a JSON file with the machine that it was taken on (`report`).
"""

from __future__ import annotations

from .main import main

__all__ = ["main"]
