"""Benchmarks of sparsed. `sparsed bench --help` lists them, and `plot` and `tables` show their results.

The cases are data (`cases`). Each result is checked before it is timed, and contenders run in turns (`harness`). Every
figure goes into a table and into a JSON file that describes the machine (`report`).
"""

from __future__ import annotations

from .main import main

__all__ = ["main"]
