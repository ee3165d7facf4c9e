"""`sparsed bench attention` times dense and block-sparse attention against torch, over lengths and sparsities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import sparsed

from .arrays import Accuracy, Array, Blocks, CheckError, check_attention, random_blocks, random_qkv
from .cases import PUBLISHED_DENSITY, AttentionAxes, AttentionCase
from .harness import Contender, Timing, time_in_turns
from .options import Options
from .peers import Peer, SkipError, available_peers
from .report import ERROR_COLUMNS, TIME_COLUMNS, Column, Report, Row, number, progress, rate, ratio
from .roofs import best_roofs, measure_roofs

COLUMNS: tuple[Column, ...] = (
    ("contender", "contender", str),
    ("block_size", "block", str),
    ("density", "density", number(3)),
    *TIME_COLUMNS,
    ("flops_per_s", "TFLOP/s", rate),
    ("efficiency", "efficiency", number(2)),
    ("speedup_dense", "dense/this", ratio),
    ("versus_sdpa", "SDPA/this", ratio),
    ("versus_flex", "flex/this", ratio),
    *ERROR_COLUMNS,
)
NOTE = (
    "FLOPs count only the selected blocks. sparsed's times include packing and planning; flex's times do not include "
    "building and compiling its mask. efficiency = dense time x density / sparse time, of the same library. error is "
    "relative to float64 and taken on some rows; naive is the error of a plain computation in the same dtype."
)
SPARSED, SDPA, FLEX = "sparsed", "torch SDPA", "torch flex"
# Small cases of this length are checked in full before anything is timed. No block size divides it.
_SMALL_LENGTH = 300


def run(options: Options, report: Report) -> None:
    """Measures all cases."""
    axes = options.attention_axes()
    peers, missing = available_peers([name for name in ("sdpa", "flex", "numpy") if name in options.peers])
    for name, reason in missing.items():
        report.skip(name, reason)
    report.roofs = measure_roofs(axes.dtypes, options.quick)
    _check_small(axes)
    for case in axes.cases():
        progress(str(case))
        entries = _entries(case, axes.sparsities(case.length), peers, report)
        timings = time_in_turns(
            {entry.key: entry.contender.run for entry in entries}, options.repeat, options.sample_seconds
        )
        progress("")
        report.section(str(case), COLUMNS, [_figures(case, entry, timings) for entry in entries])
    report.roofs = best_roofs(report.roofs, measure_roofs(axes.dtypes, options.quick))
    report.note(NOTE)


def _check_small(axes: AttentionAxes) -> None:
    """Checks every row of every kind of case against float64."""
    for dtype in axes.dtypes:
        for head_dim in axes.head_dims:
            case = AttentionCase(dtype, head_dim, _SMALL_LENGTH, *axes.heads)
            q, k, v = random_qkv(case, seed=3)
            check_attention("dense attention", sparsed.attention(q, k, v), q, k, v, None, full=True)
            for block_size in axes.block_sizes:
                blocks = random_blocks(case.length, case.heads, block_size, 0.5)
                out = sparsed.attention(q, k, v, blocks.pattern)
                check_attention(f"attention with blocks of {block_size}", out, q, k, v, blocks, full=True)


@dataclass(frozen=True)
class _Entry:
    """A contender whose result is right, the blocks that it computes (None for all) and its accuracy."""

    contender: Contender
    blocks: Blocks | None
    accuracy: Accuracy

    @property
    def key(self) -> str:
        return _key(self.contender.name, self.blocks)


def _key(name: str, blocks: Blocks | None) -> str:
    return name if blocks is None else f"{name} b{blocks.block_size} {blocks.density}"


def _entries(
    case: AttentionCase, sparsities: Sequence[tuple[int, float]], peers: Sequence[Peer], report: Report
) -> list[_Entry]:
    """Returns the contenders of a case whose results are right, and reports why others are skipped."""
    q, k, v = random_qkv(case)
    asked: list[tuple[str, Blocks | None, Callable[[], Contender | None]]] = [(SPARSED, None, partial(_dense, q, k, v))]
    asked += [(peer.name, None, partial(peer.dense, q, k, v)) for peer in peers]
    densities = [density for _, density in sparsities]
    peer_density = PUBLISHED_DENSITY if PUBLISHED_DENSITY in densities else densities[0]
    for block_size, density in sparsities:
        blocks = random_blocks(case.length, case.heads, block_size, density)
        asked.append((SPARSED, blocks, partial(_sparse, q, k, v, blocks)))
        if density == peer_density:
            asked += [(peer.name, blocks, partial(peer.sparse, q, k, v, blocks)) for peer in peers]

    entries = []
    for name, blocks_or_none, make in asked:
        try:
            contender = make()
            if contender is not None:
                out = contender.array(contender.run())
                accuracy = check_attention(name, out, q, k, v, blocks_or_none, full=False)
                entries.append(_Entry(contender, blocks_or_none, accuracy))
        except SkipError as skip:
            report.skip(name, str(skip), case=str(case))
        except CheckError as wrong:
            if name == SPARSED:
                raise
            report.skip(name, str(wrong), case=str(case))
    return entries


def _dense(q: Array, k: Array, v: Array) -> Contender:
    return Contender(SPARSED, lambda: sparsed.attention(q, k, v))


def _sparse(q: Array, k: Array, v: Array, blocks: Blocks) -> Contender:
    pattern = blocks.pattern
    return Contender(SPARSED, lambda: sparsed.attention(q, k, v, pattern))


def _figures(case: AttentionCase, entry: _Entry, timings: Mapping[str, Timing]) -> Row:
    """Returns one contender's times and its speed-ups over dense attention and over the peers."""
    name, blocks = entry.contender.name, entry.blocks
    timing = timings[entry.key]
    density = 1.0 if blocks is None else blocks.density
    row: Row = {
        **case.fields(),
        "contender": name,
        "block_size": None if blocks is None else blocks.block_size,
        "density": density,
        **timing.fields(),
        "flops_per_s": case.flops_per_pair * case.dense_pairs * density / timing.median,
        **entry.accuracy.fields(),
    }
    # flex has no dense kernel here; it belongs to the same library as SDPA.
    dense = timings.get(SDPA if name == FLEX else name)
    if blocks is not None and dense is not None:
        row["speedup_dense"] = dense.median / timing.median
        row["efficiency"] = density * row["speedup_dense"]
    if name == SPARSED:
        for column, rival in (("versus_sdpa", SDPA), ("versus_flex", _key(FLEX, blocks))):
            if rival in timings:
                row[column] = timings[rival].median / timing.median
    return row
