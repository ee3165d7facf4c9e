"""Tables as text and as Markdown, and sizes as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def format_bytes(count: float) -> str:
    """Returns a number of bytes in GiB, or in MiB below 0.1 GiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 0.1 * 2**30 else f"{count / 2**20:.1f} MiB"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table in Markdown; all columns but the first are aligned to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a text table: the first column is aligned to the left, the others to the right."""
    lines = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def join(line: Sequence[str]) -> str:
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        cells[0] = line[0].ljust(widths[0])
        return "  ".join(cells).rstrip()

    return "\n".join([join(lines[0]), "  ".join("-" * width for width in widths), *map(join, lines[1:])])
