"""`sparsed bench tables` makes Markdown tables from the JSON of the benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from sparsed.tables import markdown_table

from . import (
    cached_step,
    errors,
    full_pass,
    generate,
    gqa,
    linear,
    machine,
    memory,
    scaling,
    shared_cores,
    step,
    torch_model,
)
from .cases import PUBLISHED_BLOCK, PUBLISHED_DENSITY
from .report import Column, Row, read

# A row keeps a whole number of blocks, so densities this close to the published one count as the published one.
_NEAR = 0.03


def print_tables(results: Sequence[Path]) -> int:
    """Prints the tables of the results, with one heading per benchmark.

    Raises:
        ValueError: A file is not a result of a benchmark.
    """
    tables: dict[str, str] = {}
    for path in results:
        content = read(path)
        text = markdown(content)
        name = content["benchmark"]
        tables[name] = f"{tables[name]}\n{text}" if name in tables else text
    print("\n".join(f"## {name}\n\n{text}" for name, text in tables.items()))
    return 0


def markdown(content: dict[str, Any]) -> str:
    """Formats the tables of one benchmark, with the machine and the command below them."""
    tables = [_TABLES[content["benchmark"]](content["rows"])]
    if content["benchmark"] == "attention":
        tables += _densities(content["rows"])
    found = content["machine"]
    where = f"{machine.summary(found)}, {found['date'][:10]}: `{content.get('command', '')}`"
    return "".join(f"{markdown_table(header, rows)}\n\n" for header, rows in tables) + f"{where}\n"


Table = tuple[list[str], list[list[str]]]


def _attention(rows: Sequence[Row]) -> Table:
    """Makes a table of dense rates and of sparse times at the published density and block size, by shape."""
    header = ["dtype, head_dim, tokens", "dense TFLOP/s", "torch SDPA", "ratio", "sparse ms", "efficiency", "over flex"]
    lines = []
    shapes = dict.fromkeys(_shape(row) for row in rows)
    for shape in shapes:
        inside = [row for row in rows if _shape(row) == shape]
        dense = _find(inside, "sparsed", dense=True)
        peer = _find(inside, "torch SDPA", dense=True)
        sparse = _find(inside, "sparsed", dense=False)
        lines.append(
            [
                f"{shape[0]}, {shape[1]}, {shape[2]}",
                _cell(dense, "flops_per_s", lambda value: f"{value / 1e12:.2f}"),
                _cell(peer, "flops_per_s", lambda value: f"{value / 1e12:.2f}"),
                _cell(dense, "versus_sdpa", _times),
                _cell(sparse, "median_s", lambda value: f"{1e3 * value:.1f}"),
                _cell(sparse, "efficiency", lambda value: f"{value:.2f}"),
                _cell(sparse, "versus_flex", _times),
            ]
        )
    return header, lines


def _densities(rows: Sequence[Row]) -> list[Table]:
    """Makes a table of speed-ups and efficiencies by block size and density, if several densities were measured."""
    swept = [row for row in rows if row["contender"] == "sparsed" and row["block_size"] is not None]
    densities = sorted({round(row["density"], 2) for row in swept})
    if len(densities) <= 2:
        return []
    header = ["dtype, head_dim, tokens", "block", *(f"{density:.2f}" for density in densities)]
    lines = []
    for shape, block in dict.fromkeys((_shape(row), row["block_size"]) for row in swept):
        found = {round(row["density"], 2): row for row in swept if (_shape(row), row["block_size"]) == (shape, block)}
        cells = [
            f"{row['speedup_dense']:.2f}x ({row['efficiency']:.2f})" if (row := found.get(density)) else "-"
            for density in densities
        ]
        lines.append([", ".join(map(str, shape)), str(block), *cells])
    return [(header, lines)]


def _selection(rows: Sequence[Row]) -> Table:
    header = ["dtype, head_dim, tokens", "block", "dense ms", "with selection ms", "overhead", "only selection ms"]
    dense = {_shape(row): row["median_s"] for row in rows if row["contender"] == "attention"}
    separate = {(_shape(row), row["block_size"]): row["median_s"] for row in rows if row["contender"] == "select"}
    lines = [
        [
            ", ".join(map(str, _shape(row))),
            str(row["block_size"]),
            f"{1e3 * dense[_shape(row)]:.1f}",
            f"{1e3 * row['median_s']:.1f}",
            f"{100 * row['overhead']:.1f} %",
            f"{1e3 * separate[_shape(row), row['block_size']]:.1f}",
        ]
        for row in rows
        if "overhead" in row
    ]
    return header, lines


def _linear(rows: Sequence[Row]) -> Table:
    header = ["layer", "tokens", "dtype", "ms", "TFLOP/s", "over torch", "over bfloat16", "over torch int8"]
    torch_int8 = {
        (row["case"], row["tokens"]): row["median_s"] for row in rows if row["contender"] == linear.TORCH_INT8
    }

    def over_torch_int8(row: Row) -> str:
        peer = torch_int8.get((row["case"], row["tokens"]))
        return "-" if peer is None or row["contender"] != linear.SPARSED_INT8 else _times(peer / row["median_s"])

    lines = [
        [
            row["case"],
            str(row["tokens"]),
            row["dtype"],
            f"{1e3 * row['median_s']:.2f}",
            f"{row['flops_per_s'] / 1e12:.2f}",
            _cell(row, "versus_torch", _times),
            _cell(row, "versus_bfloat16", _times),
            over_torch_int8(row),
        ]
        for row in rows
        if row["contender"] in (linear.SPARSED, linear.SPARSED_INT8)
    ]
    return header, lines


def _amdahl(rows: Sequence[Row]) -> Table:
    """Makes a table of the measured steps and of the speed-ups computed from them."""
    header = ["model, tokens", "dense s", "select s", "sparse s", "torch dense s"]
    counts = sorted({row["steps"] for row in rows if row["kind"] == "computed"})
    header += [f"computed: T = {steps} (bound; authors')" for steps in counts]
    lines = []
    for model, length in dict.fromkeys((row["model"], row["length"]) for row in rows):
        inside = [row for row in rows if (row["model"], row["length"]) == (model, length)]
        steps = {row["phase"]: row for row in inside if row["kind"] == "measured"}
        line = [f"{model} ({steps['dense']['layers']} layers), {length}"]
        line += [f"{steps[phase]['median_s']:.2f}" for phase in ("dense", "select", "sparse")]
        line.append(_cell(steps["dense"], "torch_s", lambda value: f"{value:.2f}"))
        for row in (row for row in inside if row["kind"] == "computed"):
            published = "-" if row["published"] is None else f"{row['published']:.2f}"
            line.append(f"{row['speedup']:.2f}x ({row['bound']:.2f}; {published})")
        lines.append(line)
    return header, lines


def _as_printed(identity: Sequence[str], columns: Sequence[Column]) -> Callable[[Sequence[Row]], Table]:
    """Returns a function that makes the table that the benchmark prints, with `identity` as its first columns."""

    def make(rows: Sequence[Row]) -> Table:
        shown = [(key, key, str) for key in identity] + [
            column for column in columns if any(row.get(column[0]) is not None for row in rows)
        ]
        return [header for _, header, _ in shown], [[_cell(row, key, text) for key, _, text in shown] for row in rows]

    return make


_TABLES: dict[str, Callable[[Sequence[Row]], Table]] = {
    "attention": _attention,
    "selection": _selection,
    "gqa": _as_printed(("dtype", "head_dim", "length"), gqa.COLUMNS),
    "cached-step": _as_printed(("dtype", "head_dim", "length", "heads", "kv_heads"), cached_step.COLUMNS),
    "linear": _linear,
    "amdahl": _amdahl,
    "generate": _as_printed(("model", "layers", "length"), generate.COLUMNS),
    "step": _as_printed(("model", "length", "dtype"), step.COLUMNS),
    "torch": _as_printed(("model", "length"), torch_model.COLUMNS),
    "memory": _as_printed(("dtype", "head_dim", "length", "heads"), memory.COLUMNS),
    "shared-cores": _as_printed(("length", "dtype"), shared_cores.COLUMNS),
    "scaling": _as_printed(("dtype", "head_dim"), scaling.COLUMNS),
    "peers": _as_printed(("model", "layers", "length"), full_pass.COLUMNS),
    "errors": _as_printed((), errors.COLUMNS),
}


def _shape(row: Row) -> tuple[str, int, int]:
    return row["dtype"], row["head_dim"], row["length"]


def _find(rows: Iterable[Row], contender: str, *, dense: bool) -> Row | None:
    """Returns the contender's dense row, or its sparse row at the published settings."""
    for row in rows:
        block = row["block_size"]
        near = block == PUBLISHED_BLOCK and abs(row["density"] - PUBLISHED_DENSITY) <= _NEAR
        if row["contender"] == contender and (block is None if dense else near):
            return row
    return None


def _cell(row: Row | None, key: str, text: Callable[[Any], str]) -> str:
    return "-" if row is None or row.get(key) is None else text(row[key])


def _times(value: float) -> str:
    return f"{value:.2f}x"
