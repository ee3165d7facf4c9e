"""Tables on stdout and the same figures as JSON."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsed.tables import format_table

from . import machine

# One line of figures: what was run, with what settings, and what came out.
Row = dict[str, Any]
# (key of a row, header, text of a value); a key that a row lacks shows as "-".
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
    """In TFLOP/s."""
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
    """Collects the rows of one benchmark; each section is printed when it is done, and the JSON file kept up to date.

    Args:
        benchmark: Its name in the JSON.
        path: The JSON file; None: none.
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
            self.note(f"Other processes keep {self.machine['busy_cores']:.1f} cores busy: times are not worth keeping.")

    def section(self, title: str, columns: Sequence[Column], rows: Iterable[Row]) -> None:
        """Prints a table and keeps its rows."""
        rows = list(rows)
        self.rows += rows
        print(f"\n{title}\n{table(columns, rows)}", flush=True)
        self.write()

    def skip(self, contender: str, reason: str, **case: Any) -> None:
        """Says, once per reason, who does not take part."""
        if not any(row["contender"] == contender and row["reason"] == reason for row in self.skipped):
            print(f"skipped: {contender}: {reason}", flush=True)
            self.skipped.append({"contender": contender, "reason": reason, **case})

    def note(self, text: str) -> None:
        """Prints a remark and keeps it."""
        self.notes.append(text)
        print(text, flush=True)

    def write(self) -> None:
        """The JSON file, complete at any time."""
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
    """The rows as aligned text; columns that no row has are left out."""
    shown = [column for column in columns if any(row.get(column[0]) is not None for row in rows)]
    lines = [["-" if row.get(key) is None else text(row[key]) for key, _, text in shown] for row in rows]
    return format_table([header for _, header, _ in shown], lines)


def progress(text: str) -> None:
    """A line on a terminal's stderr, which the next one replaces."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def read(path: Path) -> dict[str, Any]:
    """What a report wrote.

    Raises:
        ValueError: The file is something else.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not {"benchmark", "machine", "rows"} <= set(content):
        raise ValueError(f"bench: {path} is not a result of sparsed bench")
    return content


def _arguments() -> list[str]:
    """The command line as the user gave it to `sparsed` or to the module."""
    return sys.argv[1:] if sys.argv[1:2] == ["bench"] else ["bench", *sys.argv[1:]]
