"""`sparsed bench plot` draws roofline and density curves as PNG from the JSON of `attention` and `linear`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import DTYPES
from .report import Row, read

_CONTENDERS = ("sparsed", "torch SDPA", "torch flex", "torch linear")
_DPI = 150


def plot(results: Sequence[Path], folder: Path, peaks: Mapping[str, float]) -> int:
    """Writes roofline.png and, if there are sparse rows, density.png. Prints their paths.

    Args:
        results: JSON files of one machine.
        folder: The folder for the pictures.
        peaks: The hardware's limits in TFLOP/s by dtype.

    Returns:
        The exit status: 0, or 1 if matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError:
        print("skipped: matplotlib is not installed (pip install matplotlib)")
        return 1
    matplotlib.use("Agg")
    contents = [read(path) for path in results]
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for content in contents for row in content["rows"] if "flops_per_s" in row]
    sparse = [row for row in rows if "efficiency" in row]
    written = []
    if rows:
        machine = contents[0]["machine"]
        roofs = [content["roofs"] for content in contents if "roofs" in content]
        written.append(_roofline(rows, roofs[0] if roofs else None, peaks, _title(machine), folder / "roofline.png"))
    if sparse:
        written.append(_density(sparse, _title(contents[0]["machine"]), folder / "density.png"))
    for path in written:
        print(path)
    if not written:
        print("nothing to draw, expected rows of attention or linear")
    return 0


def _title(machine: Row) -> str:
    return f"{machine['cpu']}, {machine['isa']}, {machine['threads']} threads"


def intensity(row: Row) -> float | None:
    """Returns the FLOPs per byte of inputs and output, which must cross the memory bus once; None without a shape."""
    size = DTYPES[row["dtype"]].itemsize
    if "tokens" in row:
        tokens, outputs, inputs = row["tokens"], row["outputs"], row["inputs"]
        moved = size * (tokens * inputs + outputs * inputs + tokens * outputs)
        return float(2 * tokens * outputs * inputs / moved)
    if "kv_heads" in row and "density" in row:
        heads, kv_heads, length = row["heads"], row["kv_heads"], row["length"]
        return float(4 * heads * length * row["density"] / (size * 2 * (heads + kv_heads)))
    return None


def _roofline(rows: Sequence[Row], roofs: Row | None, peaks: Mapping[str, float], title: str, path: Path) -> Path:
    from matplotlib import pyplot

    dtypes = sorted({row["dtype"] for row in rows})
    figure, grid = pyplot.subplots(1, len(dtypes), figsize=(6 * len(dtypes), 4.5), squeeze=False)
    for axes, dtype in zip(grid[0], dtypes, strict=True):
        points = defaultdict(list)
        for row in rows:
            x = intensity(row)
            if x is not None and row["dtype"] == dtype:
                points[row["contender"]].append((x, row["flops_per_s"] / 1e12))
        for name in (*_CONTENDERS, *sorted(set(points) - set(_CONTENDERS))):
            if points[name]:
                axes.scatter(*zip(*points[name], strict=True), s=12, label=name)
        xs = np.array([x for values in points.values() for x, _ in values])
        _draw_roofs(axes, xs, roofs, dtype, peaks.get(dtype))
        axes.set(xscale="log", yscale="log", xlabel="FLOP per byte of inputs and output", ylabel="TFLOP/s", title=dtype)
        axes.legend(fontsize=7)
    return _save(figure, title, path)


def _draw_roofs(axes: Any, xs: Any, roofs: Row | None, dtype: str, peak: float | None) -> None:
    """Draws the measured bandwidth and product, and the given limit."""
    span = np.geomspace(xs.min() / 2, xs.max() * 2, 100)
    product = None if roofs is None else roofs["product"].get(dtype)
    tops = [(product and product / 1e12, "--", "ops.linear, large product"), (peak, "-", "hardware limit")]
    for top, style, label in tops:
        if top:
            slope = np.full_like(span, np.inf) if roofs is None else span * roofs["bandwidth"] / 1e12
            axes.plot(span, np.minimum(slope, top), style, color="gray", linewidth=1, label=label)


def _density(rows: Sequence[Row], title: str, path: Path) -> Path:
    """Draws the speed-up over the same library's dense attention, beside the ideal of 1 / density.

    There is one panel per dtype and head size. It shows the longest length for which many densities were measured.
    """
    from matplotlib import pyplot

    panels = sorted({(row["dtype"], row["head_dim"]) for row in rows})
    rows = [row for row in rows if row["contender"] in _CONTENDERS]
    figure, grid = pyplot.subplots(1, len(panels), figsize=(4.5 * len(panels), 4.5), squeeze=False)
    for axes, panel in zip(grid[0], panels, strict=True):
        inside = _longest_sweep([row for row in rows if (row["dtype"], row["head_dim"]) == panel])
        for label, points in _curves(inside):
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1, label=label)
        span = np.geomspace(min(row["density"] for row in inside), 1, 50)
        axes.plot(span, 1 / span, "--", color="gray", linewidth=1, label="ideal")
        axes.set(xscale="log", yscale="log", xlabel="density", ylabel="speed-up over dense")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("{x:g}")
        axes.set_title(f"{panel[0]}, head_dim {panel[1]}, {inside[0]['length']} tokens")
        axes.legend(fontsize=6)
    return _save(figure, title, path)


def _curves(rows: Iterable[Row]) -> list[tuple[str, list[tuple[float, float]]]]:
    """Returns (label, [(density, speed-up)]) for each contender and block size."""
    points: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        points[row["contender"], row["block_size"]].append((row["density"], row["speedup_dense"]))
    return [(f"{name}, b {block}", sorted(values)) for (name, block), values in sorted(points.items())]


def _longest_sweep(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows of the length with the most densities; of several such lengths, the longest."""
    densities: dict[int, set[float]] = defaultdict(set)
    for row in rows:
        densities[row["length"]].add(row["density"])
    length = max(densities, key=lambda key: (len(densities[key]), key))
    return [row for row in rows if row["length"] == length]


def _save(figure: Any, title: str, path: Path) -> Path:
    from matplotlib import pyplot

    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=_DPI)
    pyplot.close(figure)
    return path
