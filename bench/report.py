"""Prints tables on stdout and writes the same figures as JSON."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsed.tables import format_table

from . import machine

# One line of figures: the contender, its settings and its results.
Row = dict[str, Any]
# (key in a row, header, function that formats a value). The table shows "-" for a missing key.
Column = tuple[str, str, Callable[[Any], str]]


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}" if seconds < 0.1 else f"{1e3 * seconds:.0f}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def ratio(value: float) -> str:
    return f"{value:.2f}x"


def number(digits: int) -> Callable[[float], str]:
    return lambda value: f"{value:.{digits}f}"


def rate(flops_per_second: float) -> str:
    """Formats a rate in TFLOP/s."""
    return f"{flops_per_second / 1e12:.3f}"


TIME_COLUMNS: tuple[Column, ...] = (
    ("median_s", "ms", milliseconds),
    ("min_s", "min", milliseconds),
    ("spread", "spread", percent),
)
ERROR_COLUMNS: tuple[Column, ...] = (
    ("error", "error", "{:.1e}".format),
    ("error_over_naive", "over naive", number(2)),
)


class Report:
    """Collects the rows of one benchmark. It prints each section when it is done and updates the JSON file.

    Args:
        benchmark: The name of the benchmark in the JSON file.
        path: The JSON file, or None for no file.
    """

    def __init__(self, benchmark: str, path: Path | None) -> None:
        self.benchmark = benchmark
        self.machine = machine.describe()
        self.command = shlex.join(["sparsed", *_arguments()])
        self.rows: list[Row] = []
        self.skipped: list[Row] = []
        self.notes: list[str] = []
        self.roofs: Row | None = None
        self._path = path
        print(f"# {benchmark}: {machine.summary(self.machine)}", flush=True)
        if self.machine["busy_cores"] > machine.BUSY:
            self.note(
                f"Other processes keep {self.machine['busy_cores']:.1f} cores busy, so these times are not reliable."
            )

    def section(self, title: str, columns: Sequence[Column], rows: Iterable[Row]) -> None:
        """Prints a table and keeps its rows."""
        rows = list(rows)
        self.rows += rows
        print(f"\n{title}\n{table(columns, rows)}", flush=True)
        self.write()

    def skip(self, contender: str, reason: str, **case: Any) -> None:
        """Says that a contender does not take part, once per reason."""
        if not any(row["contender"] == contender and row["reason"] == reason for row in self.skipped):
            print(f"skipped: {contender}: {reason}", flush=True)
            self.skipped.append({"contender": contender, "reason": reason, **case})

    def note(self, text: str) -> None:
        """Prints a remark and keeps it."""
        self.notes.append(text)
        print(text, flush=True)

    def write(self) -> None:
        """Writes everything so far to the JSON file."""
        if self._path is None:
            return
        content = {
            "benchmark": self.benchmark,
            "command": self.command,
            "machine": self.machine,
            "notes": self.notes,
            "skipped": self.skipped,
            **({} if self.roofs is None else {"roofs": self.roofs}),
            "rows": self.rows,
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def table(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> str:
    """Formats the rows as aligned text, without columns that no row has."""
    shown = [column for column in columns if any(row.get(column[0]) is not None for row in rows)]
    lines = [["-" if row.get(key) is None else text(row[key]) for key, _, text in shown] for row in rows]
    return format_table([header for _, header, _ in shown], lines)


def progress(text: str) -> None:
    """Shows a line on stderr if it is a terminal. The next call replaces the line."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def read(path: Path) -> dict[str, Any]:
    """Reads a file that a report wrote.

    Raises:
        ValueError: The file is not one of these.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not {"benchmark", "machine", "rows"} <= set(content):
        raise ValueError(f"bench: {path} is not a result of sparsed bench")
    return content


def _arguments() -> list[str]:
    """Returns the arguments that the user gave, beginning with `bench`, which `python -m bench` leaves out."""
    return sys.argv[1:] if sys.argv[1:2] == ["bench"] else ["bench", *sys.argv[1:]]
